/* undo.h - the undo log of the commit that is under way.
 *
 * Why:        whoever holds the sequencer may be killed between any two stores. Each word that a
 *             reader could reach is changed through se_undo_store, which first notes the old value;
 *             the next holder puts the old values back, newest first. Blocks taken from the arena
 *             are noted in a second list, because a reader may stand on them: they are retired, not
 *             given back.
 * Used by:    the holder of the sequencer.
 * Shared:     undo_version, undo_count, taken_count, the two arrays -> FORMAT.md, "Undo log"
 * Invariants: U1 while undo_count or taken_count is not 0 and commit_version < undo_version, the
 *             words noted are to be restored; U2 once commit_version has reached undo_version the
 *             notes mean nothing (tests/core/test_kill.c dies before every store).
 * Crash:      between noting and storing, restoring writes a value that is there already.
 */
#ifndef SE_UNDO_H
#define SE_UNDO_H

#include "store.h"

/* An undo_version that no commit reaches: upkeep, which has no commit point but its end. No reader
 * can see a block that it takes (a wider retire ring), so that a rollback gives it straight back. */
#define SE_UPKEEP UINT64_MAX

void se_undo_begin(se_store *store, uint64_t version);
/* The change stands; for a commit this comes after commit_version was stored. */
void se_undo_end(se_store *store);
/* Restores the words and retires the blocks. Also after a death: call se_undo_adopt first. */
se_status se_undo_rollback(se_store *store);
/* Takes over what a dead holder left: true if there is something to roll back. */
bool se_undo_adopt(se_store *store);
/* Backs room for so many entries; outside a change. */
se_status se_undo_reserve(se_store *store, uint64_t undo_need, uint64_t taken_need);

/* After a run's leaf was linked or unlinked, and after a rollback, which may have done either. Never
 * wound back: a client that remembers a leaf under one number must not meet that number again. */
static inline void se_undo_bump_run_epoch(se_store *store) {
    se_word *epoch = &store->seq->run_epoch;
    se_store_release(epoch, se_load_relaxed(epoch) + 1);
}

static inline void se_undo_store(se_store *store, se_word *word, uint64_t value) {
    se_undo_entry *entry = &store->undo[store->undo_count];
    se_store_relaxed(&entry->ref, se_ref_of(store, word));
    se_store_relaxed(&entry->old, se_load_relaxed(word));
    store->undo_count++;
    se_store_release(&store->seq->undo_count, store->undo_count);
    se_store_release(word, value);
}

/* block = class << 57 | offset, noted before the allocator's word moves past it. */
static inline void se_undo_note_taken(se_store *store, uint64_t block) {
    se_store_relaxed(&store->taken[store->taken_count], block);
    store->taken_count++;
    se_store_release(&store->seq->taken_count, store->taken_count);
}

#endif
