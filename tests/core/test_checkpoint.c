/* test_checkpoint.c - what was written comes back, whatever it was; what is not needed goes. */
#include "checkpoints.h"
#include "wal.h"

#define MAP (UINT64_C(64) << 20)
#define HOUR_US UINT64_C(3600000000)

static test_folder folder;
static test_database database;
static se_session session;

static void open_all(uint64_t map_size) {
    folder = test_folder_make();
    database = test_database_make(map_size);
    REQUIRE(se_session_open(&session, database.store) == SE_OK);
}

static void close_all(void) {
    test_check(database.store);
    se_session_close(&session);
    test_database_free(&database);
    test_folder_remove(&folder);
}

static void put_until(const char *name, const char *value, uint64_t expires_us) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    REQUIRE(se_session_begin(&session, test_run, se_clock_real_us(), 0) == SE_OK);
    REQUIRE(se_session_add(&session, SE_OP_PUT, key, key_size, value, (uint32_t)strlen(value),
                           expires_us, 0) == SE_OK);
    REQUIRE(test_submit(&session) == SE_OK);
}

static uint64_t word(const se_word *at) { return se_load_relaxed(at); }

/* The loaded store is whole, counts what the other one counts, and takes commits. */
static void check_loaded(test_database *loaded) {
    const se_sequencer *left = database.store->seq;
    const se_sequencer *right = loaded->store->seq;
    se_session writer;
    char got[64];
    test_check(loaded->store);
    test_same_content(database.store, loaded->store, UINT64_MAX);
    REQUIRE(word(&left->live_keys) == word(&right->live_keys));
    REQUIRE(word(&left->ttl_keys) == word(&right->ttl_keys));
    REQUIRE(word(&left->commit_version) == word(&right->commit_version));
    REQUIRE(word(&left->commit_version) == word(&right->durable_version));
    REQUIRE(word(&left->removed_horizon) == word(&right->removed_horizon));
    REQUIRE(word(&left->last_timestamp) >= word(&right->last_timestamp));
    REQUIRE(se_arena_used(loaded->store) <= se_arena_used(database.store));
    REQUIRE(se_session_open(&writer, loaded->store) == SE_OK);
    REQUIRE(test_put(&writer, "added later", "x", 1) == SE_OK);
    REQUIRE(se_session_reply_version(&writer) == word(&left->commit_version) + 1);
    REQUIRE(test_get(&writer, "added later", UINT64_MAX, got, sizeof got) == SE_OK);
    REQUIRE(test_delete(&writer, "added later") == SE_OK);
    REQUIRE(se_sweep_all(loaded->store, 0, se_clock_real_us()) == SE_OK);
    test_check(loaded->store);
    se_session_close(&writer);
}

static void an_empty_store_comes_back_empty(void) {
    open_all(UINT64_C(1) << 20);
    test_database loaded = test_reloaded(database.store, &folder);
    REQUIRE(test_count_live(loaded.store) == 0);
    check_loaded(&loaded);
    test_database_free(&loaded);
    close_all();
}

/* Names of one to three random bytes make nodes of every width. */
static void random_name(char *name) {
    int size = 1 + rand() % 3;
    for (int index = 0; index < size; index++)
        name[index] = (char)(1 + rand() % 255);
    strcpy(name + size, rand() % 4 ? "" : "/the long end of a name that only few have");
}

static void random_steps(int steps) {
    char name[64];
    char value[3000];
    memset(value, 'v', sizeof value);
    for (int step = 0; step < steps; step++) {
        random_name(name);
        switch (rand() % 8) {
        case 0:
        case 1:
            REQUIRE(test_delete(&session, name) == SE_OK);
            break;
        case 2:
            put_until(name, "for an hour", se_clock_real_us() + HOUR_US);
            break;
        case 3:
            put_until(name, "gone at once", se_clock_real_us() + 1);
            break;
        default:
            REQUIRE(test_put(&session, name, value, 1 + (uint32_t)rand() % 100) == SE_OK);
        }
        if (rand() % 50 == 0)
            REQUIRE(test_put(&session, name, value, sizeof value) == SE_OK);
        if (step % 4000 == 3999)
            REQUIRE(se_sweep_all(database.store, 0, se_clock_real_us()) == SE_OK);
    }
}

static void everything_comes_back(uint8_t retention, uint64_t argument) {
    open_all(MAP);
    srand(11);
    REQUIRE(test_set_retention(&session, retention, argument) == SE_OK);
    random_steps(30000);
    for (int round = 0; round < 50; round++)
        REQUIRE(test_put(&session, "long", "value", 1 + (uint32_t)round % 5) == SE_OK);
    REQUIRE(se_sweep_all(database.store, 0, se_clock_real_us()) == SE_OK);
    REQUIRE(retention == SE_RETAIN_ALL || word(&database.store->seq->trimmed_versions) > 1000);
    REQUIRE(argument != 1 || word(&database.store->seq->removed_horizon) > 0);
    test_database loaded = test_reloaded(database.store, &folder);
    uint64_t garbage = word(&loaded.store->seq->garbage_size);
    REQUIRE(retention == SE_RETAIN_ALL ? garbage == 0 : garbage > 0);
    check_loaded(&loaded);
    test_database_free(&loaded);
    close_all();
}

/* A history longer than many steps, and one write set that wrote a key more than once. */
static void long_histories_come_back(void) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, "counter");
    char value[300];
    open_all(MAP);
    memset(value, 'h', sizeof value);
    REQUIRE(test_put(&session, "before", "b", 1) == SE_OK);
    for (int64_t step = 0; step < 40000; step++)
        REQUIRE(test_increment(&session, "counter", 1, NULL) == SE_OK);
    REQUIRE(se_session_begin(&session, test_run, se_clock_real_us(), 0) == SE_OK);
    for (uint8_t item = 0; item < 100; item++)
        REQUIRE(se_session_add(&session, SE_OP_INCREMENT, key, key_size, NULL, 0, 0, 7) == SE_OK);
    REQUIRE(test_submit(&session) == SE_OK);
    for (int step = 0; step < 3000; step++)
        REQUIRE(test_put(&session, "d", value, sizeof value) == SE_OK);
    test_database loaded = test_reloaded(database.store, &folder);
    check_loaded(&loaded);
    test_database_free(&loaded);
    close_all();
}

static void the_largest_values_come_back(void) {
    uint32_t size = SE_VALUE_ENCODED_MAX;
    uint8_t *value = malloc(size);
    REQUIRE(value);
    open_all(UINT64_C(256) << 20);
    for (int round = 0; round < 3; round++) {
        memset(value, 'a' + round, size);
        REQUIRE(test_put(&session, "large", value, size) == SE_OK);
        REQUIRE(test_put(&session, "small", value, 10) == SE_OK);
    }
    free(value);
    test_database loaded = test_reloaded(database.store, &folder);
    check_loaded(&loaded);
    test_database_free(&loaded);
    close_all();
}

static void a_map_that_is_too_small_is_full(void) {
    char name[32];
    char value[500];
    se_checkpoint report;
    open_all(MAP);
    memset(value, 'x', sizeof value);
    for (int number = 0; number < 6000; number++) {
        snprintf(name, sizeof name, "key:%d", number);
        REQUIRE(test_put(&session, name, value, sizeof value) == SE_OK);
    }
    REQUIRE(se_checkpoint_write(database.store, folder.fd, NULL, NULL, &report) == SE_OK);
    uint64_t version = report.version;
    int full = 0;
    for (uint64_t size = UINT64_C(1) << 20; size <= UINT64_C(6) << 20; size += 300 << 10) {
        test_database small = test_database_make(size);
        se_status status = se_checkpoint_load(small.store, folder.fd, version, false, NULL, NULL,
                                              &report);
        REQUIRE(status == SE_FULL || (status == SE_OK && size > UINT64_C(3500) << 10));
        full += status == SE_FULL;
        if (status == SE_OK)
            test_same_content(database.store, small.store, UINT64_MAX);
        test_database_free(&small);
    }
    REQUIRE(full > 5 && full < 16);
    close_all();
}

/* Filled until nothing more goes in: the checkpoint fits into a map of the same size. */
static void a_full_store_fits_into_its_own_size(void) {
    char name[32];
    char value[500];
    open_all(UINT64_C(3) << 20);
    memset(value, 'x', sizeof value);
    se_status status = SE_OK;
    for (int number = 0; status == SE_OK; number++) {
        snprintf(name, sizeof name, "key:%d", number);
        status = test_put(&session, name, value, 1 + (uint32_t)number % 400);
    }
    REQUIRE(status == SE_FULL);
    for (int number = 0; number < 500; number++) {
        snprintf(name, sizeof name, "key:%d", number);
        REQUIRE(test_delete(&session, name) == SE_OK);
    }
    test_database loaded = test_reloaded(database.store, &folder);
    test_check(loaded.store);
    test_same_content(database.store, loaded.store, UINT64_MAX);
    test_database_free(&loaded);
    close_all();
}

/* Between two blocks: everything but the newest versions goes. */
static bool forget_history(void *context, uint64_t done, uint64_t total) {
    (void)done;
    (void)total;
    if (++*(int *)context > 1)
        return true;
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    REQUIRE(se_sweep_all(database.store, 0, se_clock_real_us()) == SE_OK);
    return true;
}

/* The rest of a history, or the whole key, goes while its beginning is written. */
static void history_trimmed_under_way_ends_in_a_cut(bool deleted) {
    char value[3000];
    char got[4096];
    int calls = 0;
    se_checkpoint report;
    open_all(MAP);
    memset(value, 'h', sizeof value);
    REQUIRE(test_put(&session, "before", "b", 1) == SE_OK);
    for (int step = 0; step < 500; step++)
        REQUIRE(test_put(&session, "long", value, sizeof value) == SE_OK);
    uint64_t newest = se_session_reply_version(&session);
    REQUIRE(test_put(&session, "longer", "l", 1) == SE_OK);
    if (deleted)
        REQUIRE(test_delete(&session, "long") == SE_OK);
    uint64_t version = se_session_reply_version(&session);
    REQUIRE(se_checkpoint_write(database.store, folder.fd, forget_history, &calls, &report) ==
            SE_OK);
    REQUIRE(report.version == version && report.records < 300 && report.keys == 3);
    test_database loaded = test_database_make(MAP);
    REQUIRE(se_checkpoint_load(loaded.store, folder.fd, version, false, NULL, NULL, &report) ==
            SE_OK);
    test_check(loaded.store);
    se_session reader;
    REQUIRE(se_session_open(&reader, loaded.store) == SE_OK);
    REQUIRE(test_get(&reader, "long", newest, got, sizeof got) == SE_OK);
    REQUIRE(test_get(&reader, "long", version, got, sizeof got) ==
            (deleted ? SE_NOT_FOUND : SE_OK));
    REQUIRE(test_get(&reader, "long", newest - 50, got, sizeof got) == SE_OK);
    REQUIRE(test_get(&reader, "long", newest - 400, got, sizeof got) == SE_TRIMMED);
    REQUIRE(test_get(&reader, "longer", version, got, sizeof got) == SE_OK);
    se_session_close(&reader);
    test_database_free(&loaded);
    close_all();
}

static bool stop_at_once(void *context, uint64_t done, uint64_t total) {
    REQUIRE(done <= total);
    ++*(int *)context;
    return false;
}

static void stopped_work_leaves_nothing_behind(void) {
    uint64_t *list;
    uint32_t count;
    int calls = 0;
    se_checkpoint report;
    open_all(MAP);
    for (int round = 0; round < 10; round++)
        REQUIRE(test_put(&session, "a", "value", 5) == SE_OK);
    REQUIRE(se_checkpoint_write(database.store, folder.fd, stop_at_once, &calls, &report) ==
            SE_CLOSED);
    REQUIRE(calls == 1 && se_snapshot_count(database.store) == 0);
    REQUIRE(!test_folder_has(&folder, "checkpoint/00000000000000000010.ckpt.tmp"));
    REQUIRE(se_checkpoint_list(folder.fd, &list, &count) == SE_OK && count == 0);
    free(list);
    REQUIRE(se_checkpoint_write(database.store, folder.fd, NULL, NULL, &report) == SE_OK);
    test_database loaded = test_database_make(MAP);
    REQUIRE(se_checkpoint_load(loaded.store, folder.fd, report.version, false, stop_at_once,
                               &calls, &report) == SE_CLOSED);
    test_database_free(&loaded);
    close_all();
}

static void touch(const char *name) { test_file_write(&folder, name, "x", 1); }

static void make_log_file(uint64_t first_version) {
    char name[SE_NAME_MAX];
    se_wal_name(first_version, name);
    touch(name);
}

static bool has_log_file(uint64_t first_version) {
    char name[SE_NAME_MAX];
    se_wal_name(first_version, name);
    return test_folder_has(&folder, name);
}

static void pruning_keeps_what_is_needed(void) {
    uint64_t *list;
    uint32_t count;
    open_all(UINT64_C(1) << 20);
    touch("checkpoint/00000000000000000004.ckpt");
    touch("checkpoint/00000000000000000100.ckpt");
    touch("checkpoint/00000000000000000200.ckpt");
    touch("checkpoint/00000000000000000300.ckpt.tmp");
    touch("checkpoint/99999999999999999999.ckpt");
    touch("checkpoint/5.ckpt");
    REQUIRE(se_checkpoint_list(folder.fd, &list, &count) == SE_OK && count == 3);
    REQUIRE(list[0] == 4 && list[1] == 100 && list[2] == 200);
    free(list);
    for (uint64_t first = 1; first <= 151; first += 50)
        make_log_file(first);
    REQUIRE(se_checkpoint_prune(folder.fd, 99) == SE_OK); /* version 100 is in the second file */
    REQUIRE(!has_log_file(1) && has_log_file(51) && has_log_file(101));
    REQUIRE(test_folder_has(&folder, SE_WAL_SPARE));
    REQUIRE(!test_folder_has(&folder, "checkpoint/00000000000000000004.ckpt"));
    REQUIRE(test_folder_has(&folder, "checkpoint/00000000000000000100.ckpt"));
    REQUIRE(se_checkpoint_prune(folder.fd, 100) == SE_OK);
    REQUIRE(!has_log_file(51) && has_log_file(101) && has_log_file(151));
    REQUIRE(test_folder_has(&folder, "checkpoint/00000000000000000100.ckpt"));
    REQUIRE(se_checkpoint_prune(folder.fd, 100000) == SE_OK); /* the newest file always stays */
    REQUIRE(!has_log_file(101) && has_log_file(151));
    REQUIRE(!test_folder_has(&folder, "checkpoint/00000000000000000200.ckpt"));
    close_all();
}

int main(void) {
    an_empty_store_comes_back_empty();
    everything_comes_back(SE_RETAIN_ALL, 0);
    everything_comes_back(SE_RETAIN_LAST, 3);
    everything_comes_back(SE_RETAIN_LAST, 1);
    long_histories_come_back();
    the_largest_values_come_back();
    a_map_that_is_too_small_is_full();
    a_full_store_fits_into_its_own_size();
    history_trimmed_under_way_ends_in_a_cut(false);
    history_trimmed_under_way_ends_in_a_cut(true);
    stopped_work_leaves_nothing_behind();
    pruning_keeps_what_is_needed();
    printf("test_checkpoint: ok\n");
    return 0;
}
