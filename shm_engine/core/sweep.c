/* sweep.c - walk, trim, remove, free. */
#include "sweep.h"

#include "client.h"
#include "erase.h"
#include "futex.h"
#include "index.h"
#include "retire.h"
#include "sequencer.h"
#include "undo.h"
#include "walring.h"

#define STEP_KEYS 32u
#define STEP_RECORDS 2048u
#define LOST_PLACES_MAX 8u
#define UNDO_PER_KEY 24u
#define RETIRE_PER_KEY 8u
#define ERASE_STEPS 4096u
#define LOCK_BOUND_NS (UINT64_C(200) * 1000000u)

typedef struct {
    uint8_t run[SE_RUN_ID_SIZE];
    bool known;
    uint64_t version; /* of the run's record, 0: it has none */
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
    policy->version = 0;
    policy->retention.kind = SE_RETAIN_DEFAULT;
    policy->retention.argument = 0;
    uint64_t offset;
    SE_TRY(se_index_find(store, run_key, sizeof run_key, &offset));
    const se_leaf *leaf = offset ? se_leaf_at(store, offset) : NULL;
    const se_record *head = leaf ? se_record_at(store, se_load_relaxed(&leaf->head)) : NULL;
    if (head)
        policy->version = head->version;
    if (head && !(head->flags & SE_RECORD_TOMBSTONE) &&
        head->value_size >= sizeof(se_run_record)) {
        const se_run_record *run = (const se_run_record *)head->value;
        policy->retention.kind = run->retention_kind;
        policy->retention.argument = run->retention_argument;
    }
    return SE_OK;
}

se_status se_sweep_bury(se_store *store, se_leaf *leaf, uint64_t now_us) {
    se_sequencer *seq = store->seq;
    uint64_t offset = se_load_relaxed(&leaf->head);
    const se_record *head = se_record_at(store, offset);
    if (!head)
        return SE_CORRUPT;
    uint64_t last = se_load_relaxed(&seq->last_timestamp);
    uint64_t tombstone;
    SE_TRY(se_record_make(store, offset, se_load_relaxed(&seq->commit_version) + 1,
                          now_us > last ? now_us : last, 0, SE_RECORD_TOMBSTONE, NULL, 0,
                          &tombstone));
    se_undo_store(store, &leaf->head, tombstone);
    se_ring_add(store, SE_FRAME_DELETE, leaf->key, leaf->key_size, NULL, 0, 0);
    se_undo_store(store, &seq->live_keys, se_load_relaxed(&seq->live_keys) - 1);
    if (head->expires_us)
        se_undo_store(store, &seq->ttl_keys, se_load_relaxed(&seq->ttl_keys) - 1);
    se_store_relaxed(&seq->last_timestamp, now_us > last ? now_us : last);
    return SE_OK;
}

/* A value that ran out, and that no snapshot may still see alive, becomes a tombstone: the sweep
 * hides nothing by this, for readers compare the time themselves. */
static se_status bury_expired(se_store *store, se_leaf *leaf, se_sweep *sweep, uint64_t now_us) {
    const se_sequencer *seq = store->seq;
    const se_record *head = se_record_at(store, se_load_relaxed(&leaf->head));
    if (!head)
        return SE_CORRUPT;
    if (sweep->unlogged || head->flags & SE_RECORD_TOMBSTONE || head->expires_us == 0 || head->expires_us > now_us ||
        head->version > se_load_relaxed(&seq->trim_effective))
        return SE_OK;
    SE_TRY(se_sweep_bury(store, leaf, now_us));
    sweep->expired_count++;
    return SE_OK;
}

/* Where an earlier step stopped in this history, if that record is still part of it: it is unless a
 * sweep changed anything, or the run's retention became one that commits apply (KeepLast of few). */
static void find_place(const se_store *store, se_sweep *sweep, uint64_t leaf,
                       const run_policy *policy) {
    bool same = sweep->place_leaf == leaf && sweep->place.record;
    if (!same || sweep->place_policy != policy->version ||
        sweep->place_serial != se_load_relaxed(&store->seq->sweep_serial)) {
        sweep->lost_places = same ? sweep->lost_places + 1 : 0;
        memset(&sweep->place, 0, sizeof sweep->place);
    }
    sweep->place_leaf = leaf;
    sweep->place_policy = policy->version;
}

/* Cuts the history; what is longer than *walk leaves its place, and the next step goes on there. */
static se_status trim(se_store *store, se_sweep *sweep, se_leaf *leaf, const run_policy *policy,
                      uint64_t now_us, uint64_t *walk, bool *alone) {
    find_place(store, sweep, (uint64_t)((uint8_t *)leaf - store->data), policy);
    if (sweep->lost_places > LOST_PLACES_MAX)
        *walk = UINT64_MAX; /* others sweep all the time: better a long step than no end */
    return se_record_trim(store, leaf, &policy->retention, now_us, sweep->pressure, walk,
                          &sweep->place, alone);
}

/* Of a run that was erased nothing stays, whatever the retention of its id may be. */
static bool is_buried_run(const se_store *store, const se_leaf *leaf) {
    if (leaf->key_size != SE_RUN_ID_SIZE + 2 || leaf->key[SE_RUN_ID_SIZE] != SE_TAG_RUN)
        return false;
    const se_record *head = se_record_at(store, se_load_relaxed(&leaf->head));
    return head && (head->flags & SE_RECORD_TOMBSTONE) != 0;
}

static se_status visit(se_store *store, se_sweep *sweep, se_leaf *leaf, run_policy *policy,
                       uint64_t now_us, uint64_t *walk) {
    bool alone = false;
    if (SE_UNLIKELY(leaf->key_size <= SE_RUN_ID_SIZE))
        return SE_CORRUPT;
    SE_TRY(policy_of(store, leaf->key, policy));
    run_policy bookkeeping = {.retention = {SE_RETAIN_LAST, 1}};
    if (se_is_bookkeeping(leaf->key, leaf->key_size) || is_buried_run(store, leaf))
        policy = &bookkeeping;
    if (!sweep->trim_only)
        SE_TRY(bury_expired(store, leaf, sweep, now_us));
    SE_TRY(trim(store, sweep, leaf, policy, now_us, walk, &alone));
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

static void stop_at(se_sweep *sweep, const se_leaf *leaf) {
    memcpy(sweep->key, leaf->key, leaf->key_size);
    sweep->key_size = leaf->key_size;
}

static se_status change(se_store *store, se_sweep *sweep, const uint64_t *leaves, uint32_t count,
                        uint64_t now_us) {
    run_policy policy = {.known = false};
    uint64_t walk = STEP_RECORDS;
    for (uint32_t index = 0; index < count; index++) {
        se_leaf *leaf = se_leaf_at(store, leaves[index]);
        if (!leaf)
            return SE_CORRUPT;
        if (walk == 0 || walk > STEP_RECORDS) { /* the next step goes on here */
            stop_at(sweep, leaf);
            break;
        }
        SE_TRY(visit(store, sweep, leaf, &policy, now_us, &walk));
        if (sweep->place.record) {
            stop_at(sweep, leaf);
            break;
        }
    }
    return SE_OK;
}

/* A step that changed anything is a commit: its tombstones, and the blocks that it retired, carry
 * the next version. A replay has the versions of the log alone. */
static void conclude(se_store *store) {
    se_sequencer *seq = store->seq;
    if (store->undo_count)
        se_store_relaxed(&seq->sweep_serial, se_load_relaxed(&seq->sweep_serial) + 1);
    if (store->undo_count && !store->replaying) {
        uint64_t version = se_load_relaxed(&seq->commit_version) + 1;
        se_ring_end(store, version, se_load_relaxed(&seq->last_timestamp), UINT32_MAX);
        se_store_release(&seq->commit_version, version);
    }
    se_undo_end(store);
}

/* Changes the gathered keys; all or nothing. */
static se_status change_all(se_store *store, se_sweep *sweep, const uint64_t *leaves,
                            uint32_t count, uint64_t now_us) {
    uint64_t buried = sweep->expired_count;
    store->deleting = true;
    uint64_t pushes = (uint64_t)count * (sweep->trim_only ? 1 : RETIRE_PER_KEY);
    se_status reserved = se_retire_reserve(store, pushes);
    if (reserved != SE_OK) {
        store->deleting = false;
        return reserved;
    }
    /* Tombstones are logged; where that cannot be, values that ran out stay a little longer. */
    uint64_t frame = sizeof(se_frame) + count * (sizeof(se_frame_op) + SE_KEY_MAX) + 8;
    sweep->unlogged = store->replaying || se_ring_begin(store, frame) != SE_OK;
    se_undo_begin(store, se_load_relaxed(&store->seq->commit_version) + 1);
    se_status status = change(store, sweep, leaves, count, now_us);
    store->deleting = false;
    if (status == SE_OK) {
        conclude(store);
        sweep->place_serial = se_load_relaxed(&store->seq->sweep_serial);
        return SE_OK;
    }
    sweep->expired_count = buried;
    memset(&sweep->place, 0, sizeof sweep->place);
    se_status undone = se_undo_rollback(store);
    return undone == SE_OK ? status : undone;
}

/* Tombstones and new nodes need memory, and so does a wider ring; trimming as many keys as the ring
 * has room for needs none. */
static se_status trim_alone(se_store *store, se_sweep *sweep, const uint64_t *leaves,
                            uint32_t count, uint64_t now_us) {
    uint64_t room = se_retire_room(store);
    if (room == 0)
        return SE_NEED_SPACE;
    if (room < count) {
        count = (uint32_t)room;
        const se_leaf *next = se_leaf_at(store, leaves[count]);
        if (!next)
            return SE_CORRUPT;
        stop_at(sweep, next);
    }
    sweep->trim_only = true;
    se_status status = change_all(store, sweep, leaves, count, now_us);
    sweep->trim_only = false;
    return status;
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
    if (status == SE_NEED_SPACE)
        status = trim_alone(store, sweep, leaves, count, now_us);
    *done = status == SE_OK && sweep->key_size == 0;
    if (status == SE_OK || status == SE_NEED_SPACE) {
        se_status freed = se_retire_free(store, 64 + STEP_KEYS * RETIRE_PER_KEY);
        status = freed == SE_OK ? status : freed;
    }
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

se_status se_sweep_retired(se_store *store) {
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
    SE_TRY(se_erase_queued(store, ERASE_STEPS));
    uint64_t first = se_arena_used(store);
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    uint64_t now_us = se_clock_real_us();
    uint64_t least = need > store->data_size / 16 ? need : store->data_size / 16;
    for (uint64_t quarter = 1; quarter <= 4; quarter++) {
        uint64_t pressure = newest / 4 * quarter + (quarter == 4) * 4;
        se_status swept = se_sweep_all(store, pressure, now_us);
        if (swept != SE_OK && swept != SE_NEED_SPACE)
            return swept;
        SE_TRY(se_sweep_retired(store)); /* what the ring then has room for, the next quarter trims */
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
