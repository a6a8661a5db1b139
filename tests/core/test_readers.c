/* test_readers.c - readers, writers and the keeper on one mapping, under the thread sanitizer.
 *
 * Every value repeats its key, so a reader that reached memory which was given to another key, or a
 * half-written record, sees it. Deletes, new keys, trimming, sweeps and reuse of blocks go on all
 * the while.
 */
#include "harness.h"

#define KEYS 300
#define READERS 2
#define WRITES 30000

static se_store *store;
static se_word stop;
static se_word reads;

static void name_of(int number, char *name) { snprintf(name, 32, "key/%d/%d", number % 7, number); }

static void *write_keys(void *argument) {
    se_session session;
    unsigned seed = (unsigned)(uintptr_t)argument;
    char name[32];
    char value[400];
    REQUIRE(se_session_open(&session, store) == SE_OK);
    for (int step = 0; step < WRITES; step++) {
        int number = (int)(rand_r(&seed) % KEYS);
        name_of(number, name);
        if (rand_r(&seed) % 4 == 0) {
            REQUIRE(test_delete(&session, name) == SE_OK);
            continue;
        }
        uint32_t size = 0;
        uint32_t repeats = 1 + rand_r(&seed) % 20;
        for (uint32_t repeat = 0; repeat < repeats; repeat++)
            size += (uint32_t)snprintf(value + size, 20, "%d;", number);
        REQUIRE(test_put(&session, name, value, size) == SE_OK);
    }
    se_session_close(&session);
    return NULL;
}

static void check_value(const char *value, int number) {
    char piece[20];
    size_t size = (size_t)snprintf(piece, sizeof piece, "%d;", number);
    for (const char *at = value; *at; at += size)
        REQUIRE(strncmp(at, piece, size) == 0);
}

static void scan_once(se_session *session) {
    se_iter *iter = malloc(sizeof *iter);
    char copy[512];
    uint64_t epoch = se_session_pin(session);
    REQUIRE(iter && se_iter_seek(iter, store, test_run, 16) == SE_OK);
    for (;;) {
        uint64_t offset;
        const se_record *record;
        REQUIRE(se_iter_next(iter, &offset) == SE_OK);
        if (!offset)
            break;
        const se_leaf *leaf = se_leaf_at(store, offset);
        REQUIRE(leaf);
        se_status status = se_record_visible(store, leaf, epoch, &record);
        REQUIRE(status == SE_OK || status == SE_TRIMMED);
        if (status != SE_OK || !record || leaf->key[16] != 1 || record->flags)
            continue;
        memcpy(copy, record->value, record->value_size);
        copy[record->value_size] = 0;
        check_value(copy, atoi(strrchr((const char *)leaf->key, '/') + 1));
    }
    se_session_unpin(session);
    free(iter);
}

static void *read_keys(void *argument) {
    se_session session;
    unsigned seed = (unsigned)(uintptr_t)argument;
    char name[32];
    char got[512];
    REQUIRE(se_session_open(&session, store) == SE_OK);
    while (!se_load_acquire(&stop)) {
        int number = (int)(rand_r(&seed) % KEYS);
        name_of(number, name);
        se_status status = test_get(&session, name, UINT64_MAX, got, sizeof got);
        REQUIRE(status == SE_OK || status == SE_NOT_FOUND || status == SE_TRIMMED);
        if (status == SE_OK)
            check_value(got, number);
        if (rand_r(&seed) % 500 == 0)
            scan_once(&session);
        atomic_fetch_add_explicit(&reads, 1, memory_order_relaxed);
    }
    se_session_close(&session);
    return NULL;
}

int main(void) {
    test_segments segments = test_segments_make();
    pthread_t writers[2];
    pthread_t readers[READERS];
    se_session session;
    store = test_store_make(segments, UINT64_C(16) << 20);
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    se_keeper_thread *keeper = se_keeper_start(store);
    REQUIRE(keeper);
    for (uintptr_t index = 0; index < READERS; index++)
        REQUIRE(pthread_create(&readers[index], NULL, read_keys, (void *)(index + 11)) == 0);
    for (uintptr_t index = 0; index < 2; index++)
        REQUIRE(pthread_create(&writers[index], NULL, write_keys, (void *)(index + 1)) == 0);
    for (int round = 0; round < 30; round++) {
        se_status status = se_sweep_all(store, 0, se_clock_real_us());
        REQUIRE(status == SE_OK || status == SE_BUSY);
    }
    for (int index = 0; index < 2; index++)
        pthread_join(writers[index], NULL);
    se_store_release(&stop, 1);
    for (int index = 0; index < READERS; index++)
        pthread_join(readers[index], NULL);
    se_keeper_stop(keeper);
    test_check(store);
    REQUIRE(se_arena_used(store) < UINT64_C(4) << 20);
    printf("test_readers: ok, %llu reads\n", (unsigned long long)se_load_acquire(&reads));
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
    return 0;
}
