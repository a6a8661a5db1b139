/* retire.c - push, mend, free. */
#include "retire.h"

#include "arena.h"
#include "client.h"
#include "record.h"
#include "sequencer.h"
#include "undo.h"

#ifdef SE_KILL_POINTS
#define RING_FIRST 64u /* so that a short workload makes it grow */
#else
#define RING_FIRST 4096u
#endif
#define RING_SLACK 32u
#define UPKEEP_BUDGET 64u /* from here on the caller is upkeep, which takes more trouble */
#define STUCK_MAX 1024u
#define FREE_MAX 8192u /* at once, below a millisecond */

static se_retired *ring_entry(const se_store *store, uint64_t position) {
    uint64_t capacity = se_load_relaxed(&store->seq->ring_capacity);
    if (capacity == 0 || (capacity & (capacity - 1)) || capacity > store->data_size)
        return NULL;
    se_retired *ring = se_at(store, se_load_relaxed(&store->seq->ring_offset),
                             capacity * sizeof(se_retired));
    return ring ? &ring[position & (capacity - 1)] : NULL;
}

se_status se_retire_init(se_store *store) {
    uint64_t offset;
    se_undo_begin(store, SE_UPKEEP);
    SE_TRY(se_arena_take(store, RING_FIRST * sizeof(se_retired), &offset));
    se_store_relaxed(&store->seq->ring_offset, offset);
    se_store_relaxed(&store->seq->ring_capacity, RING_FIRST);
    se_undo_end(store);
    return SE_OK;
}

static uint64_t next_epoch(const se_store *store) {
    /* Nobody reads while the log is replayed: what is retired may go at once. */
    return store->replaying ? 0 : se_load_relaxed(&store->seq->commit_version) + 1;
}

static se_status push(se_store *store, uint64_t block, bool undoable) {
    se_sequencer *seq = store->seq;
    uint64_t tail = se_load_relaxed(&seq->ring_tail);
    se_retired *entry = ring_entry(store, tail);
    if (!entry)
        return SE_CORRUPT;
    SE_ASSERT(tail - se_load_relaxed(&seq->ring_head) < se_load_relaxed(&seq->ring_capacity));
    se_store_relaxed(&entry->block, block);
    se_store_relaxed(&entry->epoch, next_epoch(store));
    if (undoable)
        se_undo_store(store, &seq->ring_tail, tail + 1);
    else
        se_store_release(&seq->ring_tail, tail + 1);
    return SE_OK;
}

static se_status widen(se_store *store, uint64_t wider) {
    se_sequencer *seq = store->seq;
    uint64_t head = se_load_relaxed(&seq->ring_head);
    uint64_t tail = se_load_relaxed(&seq->ring_tail);
    uint64_t capacity = se_load_relaxed(&seq->ring_capacity);
    uint64_t old_offset = se_load_relaxed(&seq->ring_offset);
    uint64_t offset;
    SE_TRY(se_arena_take(store, wider * sizeof(se_retired), &offset));
    se_retired *ring = se_at(store, offset, wider * sizeof(se_retired));
    if (!ring)
        return SE_CORRUPT;
    for (uint64_t position = head; position != tail; position++) {
        const se_retired *from = ring_entry(store, position);
        if (!from)
            return SE_CORRUPT;
        se_retired *to = &ring[position & (wider - 1)];
        se_store_relaxed(&to->block, se_load_relaxed(&from->block));
        se_store_relaxed(&to->epoch, se_load_relaxed(&from->epoch));
    }
    se_undo_store(store, &seq->ring_offset, offset);
    se_undo_store(store, &seq->ring_capacity, wider);
    return push(store, se_block(old_offset, capacity * sizeof(se_retired)), true);
}

/* Where a chain goes on after the record at this block; 0 at its end. */
static uint64_t chain_rest(const se_store *store, const se_record *record) {
    uint64_t prev = se_load_relaxed(&record->prev);
    const se_record *older = prev > SE_CUT ? se_record_at(store, prev) : NULL;
    return older && se_record_in_order(record, older)
               ? se_record_block(prev, older) | SE_BLOCK_CHAIN
               : 0;
}

static void step_past(se_store *store, se_retired *entry, uint64_t rest) {
    if (rest)
        se_store_release(&entry->block, rest);
    else
        se_store_release(&store->seq->ring_head, se_load_relaxed(&store->seq->ring_head) + 1);
}

/* The link of the free list overwrites the record's prev: what comes after it is noted first. */
static se_status free_link_of_chain(se_store *store, se_retired *entry, uint64_t block) {
    se_word *next = &store->seq->chain_next;
    if (!(block & SE_BLOCK_FREEING)) {
        const se_record *record = se_record_at(store, block & SE_BLOCK_OFFSET_MASK);
        if (!record)
            return SE_CORRUPT;
        se_store_release(next, chain_rest(store, record));
        se_store_release(&entry->block, block | SE_BLOCK_FREEING);
    }
    SE_TRY(se_arena_give(store, block));
    step_past(store, entry, se_load_relaxed(next));
    return SE_OK;
}

static se_status free_oldest(se_store *store, se_retired *entry) {
    uint64_t block = se_load_relaxed(&entry->block);
    if (block & SE_BLOCK_CHAIN)
        return free_link_of_chain(store, entry, block);
    SE_TRY(se_arena_give(store, block));
    step_past(store, entry, 0);
    return SE_OK;
}

static bool may_free(se_store *store, uint64_t epoch, bool *measured) {
    se_sequencer *seq = store->seq;
    if (epoch <= se_load_relaxed(&seq->safe_epoch))
        return true;
    if (*measured || epoch > se_load_relaxed(&seq->commit_version))
        return false;
    *measured = true;
    se_store_relaxed(&seq->safe_epoch, se_epoch_min(store));
    return epoch <= se_load_relaxed(&seq->safe_epoch);
}

/* Frees the oldest ones that nobody can see any more. */
static se_status free_ready(se_store *store, uint64_t budget, bool *measured) {
    se_sequencer *seq = store->seq;
    while (budget-- > 0) {
        uint64_t head = se_load_relaxed(&seq->ring_head);
        if (head == se_load_relaxed(&seq->ring_tail))
            break;
        se_retired *entry = ring_entry(store, head);
        if (!entry)
            return SE_CORRUPT;
        if (!may_free(store, se_load_relaxed(&entry->epoch), measured))
            break;
        SE_TRY(free_oldest(store, entry));
    }
    return SE_OK;
}

uint64_t se_retire_room(const se_store *store) {
    const se_sequencer *seq = store->seq;
    uint64_t used = se_load_relaxed(&seq->ring_tail) - se_load_relaxed(&seq->ring_head);
    uint64_t capacity = se_load_relaxed(&seq->ring_capacity);
    return used + RING_SLACK < capacity ? capacity - used - RING_SLACK : 0;
}

se_status se_retire_reserve(se_store *store, uint64_t need) {
    se_sequencer *seq = store->seq;
    if (SE_LIKELY(need <= se_retire_room(store)))
        return SE_OK;
    /* A wider ring needs memory, which may be what is lacking. */
    bool measured = false;
    SE_TRY(free_ready(store, need < FREE_MAX ? need + RING_SLACK : FREE_MAX, &measured));
    if (need <= se_retire_room(store))
        return SE_OK;
    uint64_t used = se_load_relaxed(&seq->ring_tail) - se_load_relaxed(&seq->ring_head);
    uint64_t wider = se_load_relaxed(&seq->ring_capacity);
    while (used + need + RING_SLACK > wider)
        wider *= 2;
    se_undo_begin(store, SE_UPKEEP);
    se_status status = widen(store, wider);
    if (status == SE_OK) {
        se_undo_end(store);
        return SE_OK;
    }
    se_status undone = se_undo_rollback(store);
    return undone == SE_OK ? status : undone;
}

se_status se_retire(se_store *store, uint64_t block) { return push(store, block, true); }

se_status se_retire_after_rollback(se_store *store, uint64_t block) {
    uint64_t tail = se_load_relaxed(&store->seq->ring_tail);
    if (tail != se_load_relaxed(&store->seq->ring_head)) {
        const se_retired *last = ring_entry(store, tail - 1);
        if (last && se_load_relaxed(&last->block) == block)
            return SE_OK;
    }
    return push(store, block, false);
}

se_status se_retire_mend(se_store *store) {
    se_sequencer *seq = store->seq;
    uint64_t head = se_load_relaxed(&seq->ring_head);
    if (head == se_load_relaxed(&seq->ring_tail))
        return SE_OK;
    se_retired *entry = ring_entry(store, head);
    if (!entry)
        return SE_CORRUPT;
    uint64_t block = se_load_relaxed(&entry->block);
    uint32_t size_class = (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
    if ((block & SE_BLOCK_OFFSET_MASK) == 0)
        return SE_CORRUPT;
    bool given = se_load_relaxed(&seq->free_head[size_class]) == (block & SE_BLOCK_OFFSET_MASK);
    return given || (block & SE_BLOCK_FREEING) ? free_oldest(store, entry) : SE_OK;
}

/* What a rollback retired carries the next version; if no commit comes, one is consumed for it. */
static void advance_if_stuck(se_store *store, uint32_t budget) {
    se_sequencer *seq = store->seq;
    uint64_t head = se_load_relaxed(&seq->ring_head);
    uint64_t waiting = se_load_relaxed(&seq->ring_tail) - head;
    const se_retired *oldest = waiting ? ring_entry(store, head) : NULL;
    if (oldest && se_load_relaxed(&oldest->epoch) > se_load_relaxed(&seq->commit_version) &&
        (budget >= UPKEEP_BUDGET || waiting >= STUCK_MAX))
        se_sequencer_advance(store);
}

se_status se_retire_free(se_store *store, uint32_t budget) {
    advance_if_stuck(store, budget);
    bool measured = (store->commit_serial & 31) != 0 && budget < UPKEEP_BUDGET;
    return free_ready(store, budget, &measured);
}
