/* undo.c - begin, end, roll back, adopt. */
#include "undo.h"

#include <errno.h>

#include "arena.h"
#include "retire.h"

void se_undo_begin(se_store *store, uint64_t version) {
    SE_ASSERT(store->undo_count == 0 && store->taken_count == 0);
    se_store_release(&store->seq->undo_version, version);
}

void se_undo_end(se_store *store) {
    store->undo_count = 0;
    store->taken_count = 0;
    /* Version 0 is always reached: this store is the commit point of upkeep, which has no version. */
    se_store_release(&store->seq->undo_version, 0);
    se_store_release(&store->seq->undo_count, 0);
    se_store_release(&store->seq->taken_count, 0);
}

bool se_undo_adopt(se_store *store) {
    se_sequencer *seq = store->seq;
    store->undo_count = se_load_acquire(&seq->undo_count);
    store->taken_count = se_load_acquire(&seq->taken_count);
    if (store->undo_count > SE_UNDO_MAX)
        store->undo_count = 0;
    if (store->taken_count > SE_TAKEN_MAX)
        store->taken_count = 0;
    if (store->undo_count == 0 && store->taken_count == 0)
        return false;
    if (se_load_acquire(&seq->commit_version) >= se_load_acquire(&seq->undo_version)) {
        se_undo_end(store);
        return false;
    }
    return true;
}

se_status se_undo_rollback(se_store *store) {
    se_sequencer *seq = store->seq;
    for (uint64_t index = store->undo_count; index-- > 0;) {
        const se_undo_entry *entry = &store->undo[index];
        se_word *word = se_ref_word(store, se_load_relaxed(&entry->ref));
        if (!word)
            return SE_CORRUPT;
        se_store_release(word, se_load_relaxed(&entry->old));
    }
    if (store->undo_count > 0)
        se_undo_bump_run_epoch(store);
    store->undo_count = 0;
    se_store_release(&seq->undo_count, 0);
    bool unseen = se_load_relaxed(&seq->undo_version) == SE_UPKEEP;
    while (store->taken_count > 0) {
        uint64_t block = se_load_relaxed(&store->taken[store->taken_count - 1]);
        if (se_arena_was_taken(store, block))
            SE_TRY(unseen ? se_arena_give(store, block) : se_retire_after_rollback(store, block));
        store->taken_count--;
        se_store_release(&seq->taken_count, store->taken_count);
    }
    return SE_OK;
}

se_status se_undo_reserve(se_store *store, uint64_t undo_need, uint64_t taken_need) {
    se_sequencer *seq = store->seq;
    if (undo_need > SE_UNDO_MAX || taken_need > SE_TAKEN_MAX)
        return SE_TOO_LARGE;
    if (undo_need > se_load_relaxed(&seq->undo_allocated)) {
        SE_TRY(se_back_with_memory(store->control_fd, store->header->undo_offset,
                                   undo_need * sizeof(se_undo_entry)));
        se_store_release(&seq->undo_allocated, undo_need);
    }
    if (taken_need > se_load_relaxed(&seq->taken_allocated)) {
        SE_TRY(se_back_with_memory(store->control_fd, store->header->taken_offset,
                                   taken_need * sizeof(se_word)));
        se_store_release(&seq->taken_allocated, taken_need);
    }
    return SE_OK;
}
