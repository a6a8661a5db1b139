/* erase.c - gather, remove, conclude. */
#include "erase.h"

#include "client.h"
#include "futex.h"
#include "retire.h"
#include "sequencer.h"
#include "sweep.h"
#include "undo.h"
#include "walring.h"

#define STEP_KEYS 32u
#define UNDO_PER_KEY 24u
#define RETIRE_PER_KEY 8u
#define LOCK_BOUND_NS (UINT64_C(200) * 1000000u)
#define QUEUE_MAX 64u /* runs looked at in one go */

static void run_key_of(uint8_t *key, const uint8_t *run) {
    memcpy(key, run, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = 0;
}

static void queue_key_of(uint8_t *key, const uint8_t *run) {
    memset(key, 0, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = SE_SPACE_BOOKKEEPING;
    key[SE_RUN_ID_SIZE + 2] = 'e';
    memcpy(key + SE_RUN_ID_SIZE + 3, run, SE_RUN_ID_SIZE);
}

static se_status head_of_key(const se_store *store, const uint8_t *key, uint32_t key_size,
                             const se_record **head) {
    uint64_t offset;
    *head = NULL;
    SE_TRY(se_index_find(store, key, key_size, &offset));
    if (!offset)
        return SE_OK;
    const se_leaf *leaf = se_leaf_at(store, offset);
    *head = leaf ? se_record_at(store, se_load_relaxed(&leaf->head)) : NULL;
    return *head ? SE_OK : SE_CORRUPT;
}

/* The version of the mark, 0: the run is not marked (any more). */
static se_status mark_of(const se_store *store, const uint8_t *run, uint64_t *mark) {
    uint8_t key[SE_RUN_ID_SIZE + 2];
    const se_record *head;
    *mark = 0;
    run_key_of(key, run);
    SE_TRY(head_of_key(store, key, sizeof key, &head));
    if (head && se_record_run_status(head) == SE_RUN_DELETED)
        *mark = head->version;
    return SE_OK;
}

/* The next keys of the run; its record, which bears the mark, stays to the end. */
static se_status gather(const se_store *store, const uint8_t *run, uint64_t *leaves,
                        uint32_t *count) {
    se_iter iter;
    *count = 0;
    SE_TRY(se_iter_seek(&iter, store, run, SE_RUN_ID_SIZE));
    while (*count < STEP_KEYS) {
        uint64_t offset;
        SE_TRY(se_iter_next(&iter, &offset));
        const se_leaf *leaf = offset ? se_leaf_at(store, offset) : NULL;
        if (offset && !leaf)
            return SE_CORRUPT;
        if (!leaf || memcmp(leaf->key, run, SE_RUN_ID_SIZE) != 0)
            return SE_OK;
        if (leaf->key[SE_RUN_ID_SIZE] != SE_TAG_RUN)
            leaves[(*count)++] = offset;
    }
    return SE_OK;
}

static void add(se_store *store, se_word *counter, uint64_t more) {
    if (more)
        se_undo_store(store, counter, se_load_relaxed(counter) + more);
}

static se_status remove_leaf(se_store *store, const se_leaf *leaf, uint64_t *live,
                             uint64_t *expiring) {
    uint8_t key[SE_KEY_MAX];
    const se_record *head = se_record_at(store, se_load_relaxed(&leaf->head));
    if (!head)
        return SE_CORRUPT;
    *live += (head->flags & SE_RECORD_TOMBSTONE) == 0;
    *expiring += head->expires_us != 0;
    uint32_t key_size = leaf->key_size;
    memcpy(key, leaf->key, key_size);
    return se_index_remove(store, key, key_size);
}

static se_status remove_all(se_store *store, const uint64_t *leaves, uint32_t count) {
    uint64_t live = 0;
    uint64_t expiring = 0;
    for (uint32_t index = 0; index < count; index++) {
        const se_leaf *leaf = se_leaf_at(store, leaves[index]);
        if (!leaf)
            return SE_CORRUPT;
        SE_TRY(remove_leaf(store, leaf, &live, &expiring));
    }
    add(store, &store->seq->live_keys, -live);
    add(store, &store->seq->ttl_keys, -expiring);
    return SE_OK;
}

/* What marked the run is buried, in the log too: from then on the id is as if it had never been used.
 * The leaves stay for a checkpoint under way, which must find mark and keys together; a sweep takes
 * them. */
static se_status bury_marks(se_store *store, const uint8_t *run) {
    uint8_t keys[2][SE_ERASE_KEY_SIZE];
    uint32_t sizes[2] = {SE_ERASE_KEY_SIZE, SE_RUN_ID_SIZE + 2};
    uint64_t now_us = se_clock_real_us();
    queue_key_of(keys[0], run); /* first: a replay erases the run's keys when it comes to this */
    run_key_of(keys[1], run);
    for (int index = 0; index < 2; index++) {
        uint64_t offset;
        SE_TRY(se_index_find(store, keys[index], sizes[index], &offset));
        se_leaf *leaf = offset ? se_leaf_at(store, offset) : NULL;
        if (!leaf)
            return SE_CORRUPT;
        SE_TRY(se_sweep_bury(store, leaf, now_us));
    }
    add(store, &store->seq->erasing_runs, UINT64_MAX);
    return SE_OK;
}

/* As a sweep's: a step that changed anything has a version, but in a replay. */
static void conclude(se_store *store, uint64_t mark) {
    se_sequencer *seq = store->seq;
    if (mark > se_load_relaxed(&seq->removed_horizon))
        se_store_release(&seq->removed_horizon, mark);
    if (store->undo_count)
        se_store_relaxed(&seq->sweep_serial, se_load_relaxed(&seq->sweep_serial) + 1);
    if (store->undo_count && !store->replaying) {
        uint64_t version = se_load_relaxed(&seq->commit_version) + 1;
        se_ring_end(store, version, se_load_relaxed(&seq->last_timestamp), UINT32_MAX);
        se_store_release(&seq->commit_version, version);
    }
    se_undo_end(store);
}

static se_status change(se_store *store, const uint8_t *run, const uint64_t *leaves,
                        uint32_t count, uint64_t mark) {
    store->frame_at = UINT64_MAX;
    if (count == 0) {
        uint64_t frame = sizeof(se_frame) + 2 * (sizeof(se_frame_op) + SE_ERASE_KEY_SIZE) + 8;
        SE_TRY(se_ring_begin(store, frame));
    }
    SE_TRY(se_undo_reserve(store, STEP_KEYS * UNDO_PER_KEY + 64, STEP_KEYS * 4 + 64));
    SE_TRY(se_retire_reserve(store, (uint64_t)(count + 2) * RETIRE_PER_KEY));
    se_undo_begin(store, se_load_relaxed(&store->seq->commit_version) + 1);
    se_status status = count ? remove_all(store, leaves, count) : bury_marks(store, run);
    if (status == SE_OK) {
        conclude(store, mark);
        return SE_OK;
    }
    se_status undone = se_undo_rollback(store);
    return undone == SE_OK ? status : undone;
}

/* With the sequencer in hand. */
static se_status step_held(se_store *store, const uint8_t *run, se_erase_state *state) {
    uint64_t leaves[STEP_KEYS];
    uint32_t count;
    uint64_t mark;
    SE_TRY(mark_of(store, run, &mark));
    *state = SE_ERASE_DONE;
    if (!mark)
        return SE_OK;
    se_horizon_update(store);
    *state = SE_ERASE_WAITS;
    if (se_load_relaxed(&store->seq->trim_effective) < mark)
        return SE_OK;
    SE_TRY(gather(store, run, leaves, &count));
    se_status status = change(store, run, leaves, count, mark);
    if (status == SE_NEED_LOG || status == SE_READ_ONLY)
        return SE_OK;
    SE_TRY(status);
    *state = count ? SE_ERASE_MORE : SE_ERASE_DONE;
    return SE_OK;
}

se_status se_erase_step(se_store *store, const uint8_t *run, se_erase_state *state) {
    *state = SE_ERASE_MORE;
    SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
    store->deleting = true; /* nodes without a child are new nodes */
    se_status status = step_held(store, run, state);
    store->deleting = false;
    if (status == SE_OK || status == SE_NEED_SPACE) {
        se_status freed = se_retire_free(store, 64 + STEP_KEYS * RETIRE_PER_KEY);
        status = freed == SE_OK ? status : freed;
    }
    se_sequencer_finish(store);
    return status;
}

/* The runs of the queue, as many as there is room for. */
static se_status read_queue(se_store *store, uint8_t (*runs)[SE_RUN_ID_SIZE], uint32_t *count) {
    static const uint8_t nobody[SE_RUN_ID_SIZE];
    uint8_t start[SE_ERASE_KEY_SIZE];
    se_iter iter;
    queue_key_of(start, nobody);
    *count = 0;
    SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
    se_status status = se_iter_seek(&iter, store, start, sizeof start);
    while (status == SE_OK && *count < QUEUE_MAX) {
        uint64_t offset;
        status = se_iter_next(&iter, &offset);
        const se_leaf *leaf = status == SE_OK && offset ? se_leaf_at(store, offset) : NULL;
        if (!leaf || !se_is_erase_key(leaf->key, leaf->key_size))
            break;
        const se_record *head = se_record_at(store, se_load_relaxed(&leaf->head));
        if (head && !(head->flags & SE_RECORD_TOMBSTONE))
            memcpy(runs[(*count)++], leaf->key + SE_RUN_ID_SIZE + 3, SE_RUN_ID_SIZE);
    }
    se_sequencer_finish(store);
    return status;
}

se_status se_erase_queued(se_store *store, uint32_t steps) {
    uint8_t runs[QUEUE_MAX][SE_RUN_ID_SIZE];
    uint32_t count = 0;
    if (SE_LIKELY(se_load_relaxed(&store->seq->erasing_runs) == 0))
        return SE_OK;
    SE_TRY(read_queue(store, runs, &count));
    for (uint32_t index = 0; index < count; index++) {
        se_erase_state state = SE_ERASE_MORE;
        while (state == SE_ERASE_MORE && steps-- > 0)
            SE_TRY(se_erase_step(store, runs[index], &state));
    }
    return SE_OK;
}

se_status se_erase_replayed(se_store *store, const uint8_t *run) {
    uint64_t leaves[STEP_KEYS];
    uint32_t count = STEP_KEYS;
    while (count > 0) {
        SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
        store->deleting = true;
        se_status status = gather(store, run, leaves, &count);
        if (status == SE_OK && count > 0)
            status = change(store, run, leaves, count, 0);
        (void)se_retire_free(store, 64 + STEP_KEYS * RETIRE_PER_KEY);
        store->deleting = false;
        se_sequencer_release(store);
        SE_TRY(status);
    }
    return SE_OK;
}
