/* test_engine.c - the core used as one process uses it: index, versions, retention, reclamation. */
#include "harness.h"

#define MAP (UINT64_C(64) << 20)

static se_store *store;
static se_session session;
static test_segments segments;

static void open_store(uint64_t map_size) {
    segments = test_segments_make();
    store = test_store_make(segments, map_size);
    REQUIRE(se_session_open(&session, store) == SE_OK);
}

static void close_store(void) {
    test_check(store);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

static void a_put_is_read_back_and_overwritten(void) {
    char got[64];
    open_store(MAP);
    REQUIRE(test_get(&session, "a", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_put(&session, "a", "one", 3) == SE_OK);
    uint64_t first = se_session_reply_version(&session);
    REQUIRE(test_put(&session, "a", "two", 3) == SE_OK);
    REQUIRE(test_get(&session, "a", UINT64_MAX, got, 64) == SE_OK && strcmp(got, "two") == 0);
    REQUIRE(test_get(&session, "a", first, got, 64) == SE_OK && strcmp(got, "one") == 0);
    REQUIRE(test_get(&session, "a", first - 1, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_delete(&session, "a") == SE_OK);
    REQUIRE(test_get(&session, "a", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    uint64_t version = se_session_reply_version(&session);
    REQUIRE(test_delete(&session, "a") == SE_OK);
    REQUIRE(se_session_reply_version(&session) == version);
    close_store();
}

/* Random keys against a sorted array of flags; every width of node is reached. */
static void many_keys_come_back_in_order(void) {
    enum { KEYS = 20000 };
    static uint8_t present[KEYS];
    char name[32];
    char got[64];
    open_store(MAP);
    srand(7);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    for (int step = 0; step < 60000; step++) {
        int number = rand() % KEYS;
        snprintf(name, sizeof name, "%x-%d", (unsigned)number * 2654435761u, number);
        if (rand() % 3) {
            REQUIRE(test_put(&session, name, name, (uint32_t)strlen(name)) == SE_OK);
            present[number] = 1;
        } else {
            REQUIRE(test_delete(&session, name) == SE_OK);
            present[number] = 0;
        }
        if (step % 20000 == 10000)
            REQUIRE(se_sweep_all(store, 0, se_clock_real_us()) == SE_OK);
    }
    uint64_t expected = 0;
    for (int number = 0; number < KEYS; number++) {
        snprintf(name, sizeof name, "%x-%d", (unsigned)number * 2654435761u, number);
        se_status status = test_get(&session, name, UINT64_MAX, got, 64);
        REQUIRE(status == (present[number] ? SE_OK : SE_NOT_FOUND));
        REQUIRE(!present[number] || strcmp(got, name) == 0);
        expected += present[number];
    }
    REQUIRE(test_count_live(store) == expected + 1); /* and the run's record */
    static se_iter iter;
    uint8_t last[SE_KEY_MAX];
    uint32_t last_size = 0;
    uint64_t walked = 0;
    (void)se_session_pin(&session);
    REQUIRE(se_iter_seek(&iter, store, test_run, 16) == SE_OK);
    for (;;) {
        uint64_t offset;
        REQUIRE(se_iter_next(&iter, &offset) == SE_OK);
        if (!offset)
            break;
        const se_leaf *leaf = se_leaf_at(store, offset);
        uint32_t shorter = last_size < leaf->key_size ? last_size : leaf->key_size;
        REQUIRE(memcmp(last, leaf->key, shorter) <= 0);
        memcpy(last, leaf->key, leaf->key_size);
        last_size = leaf->key_size;
        walked++;
    }
    se_session_unpin(&session);
    REQUIRE(walked >= expected + 1);
    close_store();
}

static void removing_every_key_leaves_nothing(void) {
    char name[32];
    open_store(MAP);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    for (int number = 0; number < 5000; number++) {
        snprintf(name, sizeof name, "key:%05d", number);
        REQUIRE(test_put(&session, name, "value", 5) == SE_OK);
    }
    uint64_t full = se_arena_used(store);
    for (int number = 0; number < 5000; number++) {
        snprintf(name, sizeof name, "key:%05d", number);
        REQUIRE(test_delete(&session, name) == SE_OK);
    }
    for (int round = 0; round < 3; round++)
        REQUIRE(se_sweep_all(store, 0, se_clock_real_us()) == SE_OK);
    for (int round = 0; round < 200; round++)
        REQUIRE(test_put(&session, "last", "value", 5) == SE_OK);
    REQUIRE(test_count_live(store) == 2);
    REQUIRE(se_arena_used(store) < full / 4);
    close_store();
}

static void steady_overwriting_stays_bounded(void) {
    char value[200];
    open_store(UINT64_C(8) << 20);
    memset(value, 'x', sizeof value);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    for (int step = 0; step < 200000; step++)
        REQUIRE(test_put(&session, step & 1 ? "one" : "two", value, sizeof value) == SE_OK);
    REQUIRE(se_load_relaxed(&store->seq->arena_bump) < UINT64_C(1) << 20);
    close_store();
}

/* KeepAll by default: past the high-water mark the oldest history goes, the latest stays. */
static void a_full_arena_drops_the_oldest_history(void) {
    char value[200];
    char got[256];
    open_store(UINT64_C(4) << 20);
    memset(value, 'x', sizeof value);
    for (int step = 0; step < 100000; step++)
        REQUIRE(test_put(&session, step & 1 ? "one" : "two", value, sizeof value) == SE_OK);
    REQUIRE(se_load_relaxed(&store->seq->pressure_trimmed) > 0);
    REQUIRE(test_get(&session, "one", UINT64_MAX, got, 256) == SE_OK);
    REQUIRE(test_get(&session, "one", 1, got, 256) == SE_TRIMMED ||
            test_get(&session, "one", 1, got, 256) == SE_NOT_FOUND);
    close_store();
}

static void a_full_arena_refuses_puts_and_takes_deletes(void) {
    char name[32];
    char value[1000];
    open_store(UINT64_C(4) << 20);
    memset(value, 'x', sizeof value);
    se_status status = SE_OK;
    int count = 0;
    for (; status == SE_OK; count++) {
        snprintf(name, sizeof name, "key:%d", count);
        status = test_put(&session, name, value, sizeof value);
    }
    REQUIRE(status == SE_FULL && count > 2000);
    test_check(store);
    for (int number = 0; number < count - 1; number += 2) {
        snprintf(name, sizeof name, "key:%d", number);
        REQUIRE(test_delete(&session, name) == SE_OK);
    }
    REQUIRE(test_put(&session, "again", value, sizeof value) == SE_OK);
    close_store();
}

static void increments_count_and_refuse(void) {
    int64_t result;
    open_store(MAP);
    for (int64_t step = 1; step <= 70000; step++)
        REQUIRE(test_increment(&session, "n", 1, &result) == SE_OK && result == step);
    REQUIRE(test_increment(&session, "n", INT64_MAX, &result) == SE_OVERFLOW);
    REQUIRE(test_increment(&session, "n", INT64_MIN, &result) == SE_OK);
    REQUIRE(result == INT64_MIN + 70000);
    REQUIRE(test_put(&session, "s", "\xa1x", 2) == SE_OK);
    REQUIRE(test_increment(&session, "s", 1, &result) == SE_WRONG_TYPE);
    close_store();
}

static void announced_snapshots_hold_trimming_back(void) {
    char got[64];
    uint32_t entry;
    uint64_t version;
    open_store(MAP);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    REQUIRE(test_put(&session, "a", "old", 3) == SE_OK);
    REQUIRE(se_snapshot_claim(store, &entry) == SE_OK);
    se_snapshot_open(store, entry, &version);
    for (int step = 0; step < 1000; step++)
        REQUIRE(test_put(&session, "a", "new", 3) == SE_OK);
    REQUIRE(se_sweep_all(store, 0, se_clock_real_us()) == SE_OK);
    REQUIRE(test_get(&session, "a", version, got, 64) == SE_OK && strcmp(got, "old") == 0);
    se_snapshot_close(store, entry);
    REQUIRE(se_sweep_all(store, 0, se_clock_real_us()) == SE_OK);
    REQUIRE(test_get(&session, "a", version, got, 64) == SE_TRIMMED);
    se_snapshot_release(store, entry);
    close_store();
}

static void a_prefix_of_a_key_is_refused(void) {
    uint8_t key[64];
    open_store(MAP);
    REQUIRE(test_put(&session, "abc", "x", 1) == SE_OK);
    uint32_t size = test_key(key, "abc");
    for (int longer = 0; longer < 2; longer++) {
        REQUIRE(se_session_begin(&session, test_run, 1, 0) == SE_OK);
        key[size] = 'z';
        REQUIRE(se_session_add(&session, SE_OP_PUT, key, longer ? size + 1 : size - 1, "y", 1, 0,
                               0) == SE_OK);
        REQUIRE(test_submit(&session) == SE_INVALID);
    }
    close_store();
}

static void size_classes_cover_every_size(void) {
    for (uint64_t size = 1; size < 200000; size++) {
        uint64_t full = se_class_size(se_class_of(size));
        REQUIRE(full >= size && full % 16 == 0);
        REQUIRE(size <= 16 || full - size < (size < 1024 ? 16 : size / 3));
        REQUIRE(se_class_of(full) == se_class_of(size));
    }
    REQUIRE(se_class_of(UINT64_C(64) << 20) < SE_CLASS_COUNT);
}

int main(void) {
    a_put_is_read_back_and_overwritten();
    many_keys_come_back_in_order();
    removing_every_key_leaves_nothing();
    steady_overwriting_stays_bounded();
    a_full_arena_drops_the_oldest_history();
    a_full_arena_refuses_puts_and_takes_deletes();
    increments_count_and_refuse();
    announced_snapshots_hold_trimming_back();
    a_prefix_of_a_key_is_refused();
    size_classes_cover_every_size();
    puts("test_engine: ok");
    return 0;
}
