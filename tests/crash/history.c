/* history.c - plan, run, check. */
#include "history.h"

#include "checkpoint.h"

static uint64_t random_state;

static uint32_t draw(uint32_t below) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % below;
}

static void name_of(uint32_t key, char name[40]) {
    snprintf(name, 40, key % 3 ? "agent/%u" : "agent/%u/a longer name of a key", key);
}

static void fill_value(uint8_t *value, const change *what) {
    uint32_t word = what->step * 2654435761u + what->key * 40503u;
    for (uint32_t index = 0; index < what->size; index++) {
        value[index] = (uint8_t)(word >> 24);
        word = word * 1664525u + 1013904223u;
    }
}

/* -- plan ---------------------------------------------------------------------------------- */

static uint32_t value_size(void) {
    uint32_t dice = draw(100);
    return dice < 70 ? 1 + draw(200) : dice < 92 ? 1000 + draw(4000) : dice < 98 ? 20000 : 90000;
}

static void plan_commit(history *plan, uint32_t step, uint32_t *count, bool *live) {
    uint32_t ops = draw(4) ? 1 : 2 + draw(6);
    for (uint32_t op = 0; op < ops; op++) {
        SE_ASSERT(*count < CHANGES_MAX);
        change *next = &plan->changes[*count];
        next->step = step;
        next->key = draw(KEYS);
        bool deletes = live[next->key] && draw(4) == 0;
        bool expires = !deletes && draw(6) == 0;
        next->size = deletes ? 0 : value_size();
        next->expires_us = expires ? 1000 : draw(8) || deletes ? 0 : UINT64_C(1) << 60;
        live[next->key] = !deletes && !expires;
        (*count)++;
    }
}

void history_plan(history *plan, uint32_t seed) {
    bool live[KEYS] = {false};
    uint32_t count = 0;
    random_state = seed;
    memset(plan, 0, sizeof *plan);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t dice = draw(100);
        plan->first_change[step] = count;
        plan->kind[step] = step % 32 == 30 ? STEP_CHECKPOINT
                           : dice < 6      ? STEP_SWEEP
                           : dice < 30     ? STEP_ADVANCE
                                           : STEP_COMMIT;
        if (plan->kind[step] == STEP_COMMIT)
            plan_commit(plan, step, &count, live);
    }
    plan->first_change[STEPS] = count;
}

/* -- run ----------------------------------------------------------------------------------- */

static void run_commit(const history *plan, se_session *session, uint32_t step) {
    static uint8_t value[1 << 17];
    uint8_t key[SE_KEY_MAX];
    char name[40];
    REQUIRE(se_session_begin(session, test_run, se_clock_real_us(), 0) == SE_OK);
    for (uint32_t at = plan->first_change[step]; at < plan->first_change[step + 1]; at++) {
        const change *what = &plan->changes[at];
        name_of(what->key, name);
        uint32_t key_size = test_key(key, name);
        fill_value(value, what);
        REQUIRE(se_session_add(session, what->size ? SE_OP_PUT : SE_OP_DELETE, key, key_size,
                               value, what->size, what->expires_us, 0) == SE_OK);
    }
    REQUIRE(test_submit(session) == SE_OK);
}

static const se_leaf *leaf_of(se_store *store, uint32_t key_number) {
    uint8_t key[SE_KEY_MAX];
    char name[40];
    uint64_t offset;
    name_of(key_number, name);
    uint32_t key_size = test_key(key, name);
    REQUIRE(se_index_find(store, key, key_size, &offset) == SE_OK);
    return offset ? se_leaf_at(store, offset) : NULL;
}

static const se_record *head_of(se_store *store, const se_leaf *leaf) {
    return leaf ? se_record_at(store, se_load_relaxed(&leaf->head)) : NULL;
}

static void run_sweep(se_store *store, uint32_t step, progress *shared) {
    uint64_t before = se_load_acquire(&store->seq->commit_version);
    REQUIRE(se_sweep_all(store, 0, se_clock_real_us()) == SE_OK);
    for (uint32_t key = 0; key < KEYS; key++) {
        const se_record *head = head_of(store, leaf_of(store, key));
        if (head && head->version > before)
            shared->buried[step] |= UINT64_C(1) << key;
    }
}

se_status history_run(const history *plan, se_store *store, se_session *session, int folder_fd,
                      uint32_t step, progress *shared) {
    se_status status = SE_OK;
    switch (plan->kind[step]) {
    case STEP_COMMIT:
        run_commit(plan, session, step);
        break;
    case STEP_SWEEP:
        run_sweep(store, step, shared);
        break;
    case STEP_ADVANCE:
        REQUIRE(se_sequencer_lock(store, UINT64_C(1000000000)) == SE_OK);
        se_sequencer_advance(store);
        se_sequencer_finish(store);
        break;
    case STEP_CHECKPOINT: {
        se_checkpoint written;
        memset(&written, 0, sizeof written);
        shared->version[step] = se_load_acquire(&store->seq->commit_version);
        shared->done = step + 1;
        status = se_checkpoint_write(store, folder_fd, NULL, NULL, &written);
        if (status == SE_OK)
            status = se_checkpoint_prune(folder_fd, written.version);
        break;
    }
    }
    shared->version[step] = se_load_acquire(&store->seq->commit_version);
    shared->done = step + 1;
    return status;
}

bool history_is_logged(const history *plan, const progress *shared, uint32_t step) {
    return plan->kind[step] == STEP_COMMIT || shared->buried[step] != 0;
}

/* -- check --------------------------------------------------------------------------------- */

static void check_record(const progress *shared, const se_record *record, const change *what) {
    static uint8_t value[1 << 17];
    REQUIRE(record->version == shared->version[what->step]);
    REQUIRE(record->value_size == what->size);
    REQUIRE(record->expires_us == what->expires_us);
    REQUIRE(((record->flags & SE_RECORD_TOMBSTONE) != 0) == (what->size == 0));
    fill_value(value, what);
    REQUIRE(memcmp(record->value, value, what->size) == 0);
}

/* Newest first. */
static uint32_t changes_of(const history *plan, const progress *shared, uint32_t key,
                           uint32_t count, change *list) {
    uint32_t found = 0;
    for (uint32_t step = count; step-- > 0;) {
        if (shared->buried[step] >> key & 1)
            list[found++] = (change){.step = step, .key = key};
        for (uint32_t at = plan->first_change[step + 1]; at-- > plan->first_change[step];)
            if (plan->changes[at].key == key)
                list[found++] = plan->changes[at];
    }
    return found;
}

/* Every version of the key, as far as the log and the checkpoint have to have it. */
static bool check_key(const history *plan, const progress *shared, se_store *store, uint32_t key,
                      uint32_t count) {
    static change list[CHANGES_MAX + STEPS];
    uint32_t found = changes_of(plan, shared, key, count, list);
    const se_leaf *leaf = leaf_of(store, key);
    REQUIRE((leaf != NULL) == (found > 0));
    const se_record *record = head_of(store, leaf);
    uint64_t timestamp_us = UINT64_MAX;
    for (uint32_t index = 0; index < found; index++) {
        REQUIRE(record != NULL && record->timestamp_us <= timestamp_us);
        timestamp_us = record->timestamp_us;
        check_record(shared, record, &list[index]);
        REQUIRE(se_record_older(store, record, &record) == SE_OK);
    }
    REQUIRE(record == NULL);
    return found > 0 && list[0].size > 0;
}

void history_check(const history *plan, const progress *shared, se_store *store, uint32_t count,
                   uint32_t extra) {
    uint64_t live = extra;
    test_check(store);
    for (uint32_t key = 0; key < KEYS; key++)
        live += check_key(plan, shared, store, key, count);
    REQUIRE(test_count_live(store) == live);
}
