/* sweep.c - walk, trim, remove, free. */
#include "sweep.h"

#include "client.h"
#include "futex.h"
#include "index.h"
#include "retire.h"
#include "sequencer.h"
#include "undo.h"

#define STEP_KEYS 32u
#define STEP_RECORDS 2048u
#define UNDO_PER_KEY 24u
#define RETIRE_PER_KEY 8u
#define LOCK_BOUND_NS (UINT64_C(200) * 1000000u)

typedef struct {
    uint8_t run[SE_RUN_ID_SIZE];
    bool known;
    se_retention retention;
} run_policy;

static se_status policy_of(se_store *store, const uint8_t *key, run_policy *policy) {
    if (policy->known && memcmp(policy->run, key, SE_RUN_ID_SIZE) == 0)
        return SE_OK;
    uint8_t run_key[SE_RUN_ID_SIZE + 2];
    memcpy(run_key, key, SE_RUN_ID_SIZE);
    run_key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    run_key[SE_RUN_ID_SIZE + 1] = 0;
    memcpy(policy->run, key, SE_RUN_ID_SIZE);
    policy->known = true;
    policy->retention.kind = SE_RETAIN_DEFAULT;
    policy->retention.argument = 0;
    uint64_t offset;
    SE_TRY(se_index_find(store, run_key, sizeof run_key, &offset));
    const se_leaf *leaf = offset ? se_leaf_at(store, offset) : NULL;
    const se_record *head = leaf ? se_record_at(store, se_load_relaxed(&leaf->head)) : NULL;
    if (head && !(head->flags & SE_RECORD_TOMBSTONE) &&
        head->value_size >= sizeof(se_run_record)) {
        const se_run_record *run = (const se_run_record *)head->value;
        policy->retention.kind = run->retention_kind;
        policy->retention.argument = run->retention_argument;
    }
    return SE_OK;
}

/* A value that ran out, and that no snapshot may still see alive, becomes a tombstone: the sweep
 * hides nothing by this, for readers compare the time themselves. */
static se_status bury_expired(se_store *store, se_leaf *leaf, se_sweep *sweep, uint64_t now_us) {
    se_sequencer *seq = store->seq;
    uint64_t offset = se_load_relaxed(&leaf->head);
    const se_record *head = se_record_at(store, offset);
    if (!head)
        return SE_CORRUPT;
    if (head->flags & SE_RECORD_TOMBSTONE || head->expires_us == 0 || head->expires_us > now_us ||
        head->version > se_load_relaxed(&seq->trim_effective))
        return SE_OK;
    uint64_t last = se_load_relaxed(&seq->last_timestamp);
    uint64_t tombstone;
    SE_TRY(se_record_make(store, offset, se_load_relaxed(&seq->commit_version) + 1,
                          now_us > last ? now_us : last, 0, SE_RECORD_TOMBSTONE, NULL, 0,
                          &tombstone));
    se_undo_store(store, &leaf->head, tombstone);
    se_undo_store(store, &seq->live_keys, se_load_relaxed(&seq->live_keys) - 1);
    se_undo_store(store, &seq->ttl_keys, se_load_relaxed(&seq->ttl_keys) - 1);
    se_store_relaxed(&seq->last_timestamp, now_us > last ? now_us : last);
    sweep->expired_count++;
    return SE_OK;
}

static se_status visit(se_store *store, se_sweep *sweep, se_leaf *leaf, run_policy *policy,
                       uint64_t now_us, uint64_t *walked) {
    bool alone = false;
    uint64_t walk = UINT64_MAX; /* a long history is walked whole, or it would never be trimmed */
    if (SE_UNLIKELY(leaf->key_size <= SE_RUN_ID_SIZE))
        return SE_CORRUPT;
    SE_TRY(policy_of(store, leaf->key, policy));
    if (!sweep->trim_only)
        SE_TRY(bury_expired(store, leaf, sweep, now_us));
    SE_TRY(se_record_trim(store, leaf, &policy->retention, now_us, sweep->pressure, &walk,
                          &alone));
    *walked += UINT64_MAX - walk;
    if (!alone || sweep->trim_only)
        return SE_OK;
    const se_record *head = se_record_at(store, se_load_relaxed(&leaf->head));
    if (!head)
        return SE_CORRUPT;
    se_sequencer *seq = store->seq;
    if (head->version > se_load_relaxed(&seq->removed_horizon))
        se_store_release(&seq->removed_horizon, head->version);
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = leaf->key_size;
    memcpy(key, leaf->key, key_size);
    SE_TRY(se_index_remove(store, key, key_size));
    if (key_size == SE_RUN_ID_SIZE + 2 && key[SE_RUN_ID_SIZE] == SE_TAG_RUN)
        se_undo_bump_run_epoch(store);
    return SE_OK;
}

/* The keys of one step, noted before any of them is changed. */
static se_status gather(se_store *store, se_sweep *sweep, uint64_t *leaves, uint32_t *count) {
    se_iter iter;
    *count = 0;
    SE_TRY(se_iter_seek(&iter, store, sweep->key, sweep->key_size));
    for (;;) {
        uint64_t offset;
        SE_TRY(se_iter_next(&iter, &offset));
        if (offset == 0) {
            sweep->key_size = 0;
            return SE_OK;
        }
        const se_leaf *leaf = se_leaf_at(store, offset);
        if (!leaf)
            return SE_CORRUPT;
        if (*count == STEP_KEYS) {
            memcpy(sweep->key, leaf->key, leaf->key_size);
            sweep->key_size = leaf->key_size;
            return SE_OK;
        }
        leaves[(*count)++] = offset;
    }
}

static se_status change(se_store *store, se_sweep *sweep, const uint64_t *leaves, uint32_t count,
                        uint64_t now_us) {
    run_policy policy = {.known = false};
    uint64_t walked = 0;
    for (uint32_t index = 0; index < count; index++) {
        se_leaf *leaf = se_leaf_at(store, leaves[index]);
        if (!leaf)
            return SE_CORRUPT;
        if (walked > STEP_RECORDS) { /* the next step goes on here */
            memcpy(sweep->key, leaf->key, leaf->key_size);
            sweep->key_size = leaf->key_size;
            break;
        }
        SE_TRY(visit(store, sweep, leaf, &policy, now_us, &walked));
    }
    return SE_OK;
}

/* A step that changed anything is a commit: its tombstones, and the blocks that it retired, carry
 * the next version. */
static void conclude(se_store *store) {
    if (store->undo_count)
        se_store_release(&store->seq->commit_version,
                         se_load_relaxed(&store->seq->commit_version) + 1);
    se_undo_end(store);
}

/* Changes the gathered keys; all or nothing. */
static se_status change_all(se_store *store, se_sweep *sweep, const uint64_t *leaves,
                            uint32_t count, uint64_t now_us) {
    uint64_t buried = sweep->expired_count;
    store->deleting = true;
    se_status reserved = se_retire_reserve(store, (uint64_t)count * RETIRE_PER_KEY);
    if (reserved != SE_OK) {
        store->deleting = false;
        return reserved;
    }
    se_undo_begin(store, se_load_relaxed(&store->seq->commit_version) + 1);
    se_status status = change(store, sweep, leaves, count, now_us);
    store->deleting = false;
    if (status == SE_OK) {
        conclude(store);
        return SE_OK;
    }
    sweep->expired_count = buried;
    se_status undone = se_undo_rollback(store);
    return undone == SE_OK ? status : undone;
}

se_status se_sweep_step(se_store *store, se_sweep *sweep, uint64_t now_us, bool *done) {
    uint64_t leaves[STEP_KEYS];
    uint32_t count = 0;
    *done = false;
    SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
    se_horizon_update(store);
    se_status status = gather(store, sweep, leaves, &count);
    if (status == SE_OK)
        status = se_undo_reserve(store, STEP_KEYS * UNDO_PER_KEY + 64, STEP_KEYS * 4 + 64);
    if (status == SE_OK)
        status = change_all(store, sweep, leaves, count, now_us);
    if (status == SE_NEED_SPACE) { /* tombstones and new nodes need memory, trimming does not */
        sweep->trim_only = true;
        status = change_all(store, sweep, leaves, count, now_us);
        sweep->trim_only = false;
    }
    *done = status == SE_OK && sweep->key_size == 0;
    if (status == SE_OK)
        status = se_retire_free(store, 64 + STEP_KEYS * RETIRE_PER_KEY);
    sweep->visited += count;
    se_sequencer_finish(store);
    return status;
}

se_status se_sweep_all(se_store *store, uint64_t pressure, uint64_t now_us) {
    se_sweep sweep;
    bool done = false;
    memset(&sweep, 0, sizeof sweep);
    sweep.pressure = pressure;
    while (!done)
        SE_TRY(se_sweep_step(store, &sweep, now_us, &done));
    return SE_OK;
}

static se_status free_retired(se_store *store) {
    for (int round = 0; round < 1000; round++) {
        SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
        uint64_t before = se_arena_used(store);
        se_status status = se_retire_free(store, 1024);
        bool more = se_arena_used(store) != before;
        se_sequencer_finish(store);
        if (status != SE_OK || !more)
            return status;
    }
    return SE_OK;
}

/* The dead hold back what only they could see. */
static se_status reap_first(se_store *store) {
    SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
    (void)se_client_reap(store);
    se_sequencer_finish(store);
    return SE_OK;
}

se_status se_sweep_for_room(se_store *store, uint64_t need) {
    SE_TRY(reap_first(store));
    uint64_t first = se_arena_used(store);
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    uint64_t now_us = se_clock_real_us();
    uint64_t least = need > store->data_size / 16 ? need : store->data_size / 16;
    for (uint64_t quarter = 1; quarter <= 4; quarter++) {
        SE_TRY(se_sweep_all(store, newest / 4 * quarter + (quarter == 4) * 4, now_us));
        SE_TRY(free_retired(store));
        if (se_arena_used(store) + least <= first)
            break;
    }
    return SE_OK;
}

bool se_sweep_high_water(se_store *store) {
    uint64_t used = se_arena_used(store);
    if (used < store->data_size / 4 * 3)
        return false;
    return se_sweep_for_room(store, store->data_size / 8) == SE_OK;
}
