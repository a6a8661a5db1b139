/* test_rollbacks.c - commits that fail while others read, under the thread sanitizer.
 *
 * One thread submits write sets that fail at their end; their values must never be seen. Two write
 * keys of their own and read them back: no put that was acknowledged is lost through a leaf that a
 * failing write set had linked. One reads at announced snapshots, twice each, and sees the same. In
 * a store with little memory the writers also run out of it, and large free blocks are cut up.
 */
#include "harness.h"

#define KEYS 200
#define WRITERS 2
#define VALUE_MAX 6000
#define REFUSED_MAX 4 /* each may have waited a second for readers */

static se_store *store;
static se_word stop;
static se_word failures;
static se_word refused;
static se_word compared;
static bool tight;
static int steps;

static void name_of(int number, char *name) { snprintf(name, 32, "key/%d/%d", number % 7, number); }

static uint32_t value_of(int number, int serial, unsigned *seed, char *value) {
    char piece[32];
    uint32_t size = 0;
    int piece_size = snprintf(piece, sizeof piece, "%d:%d;", number, serial);
    uint32_t repeats = 1 + rand_r(seed) % (tight ? 300 : 20);
    for (uint32_t repeat = 0; repeat < repeats && size + 32 < VALUE_MAX; repeat++) {
        memcpy(value + size, piece, (size_t)piece_size);
        size += (uint32_t)piece_size;
    }
    return size;
}

/* The value is one that was written for this key, whole; gives its serial number. */
static int check_value(const char *value, int number) {
    int found;
    int serial;
    REQUIRE(sscanf(value, "%d:%d;", &found, &serial) == 2 && found == number);
    size_t piece = (size_t)(strchr(value, ';') - value) + 1;
    for (const char *at = value; *at; at += piece)
        REQUIRE(strncmp(at, value, piece) == 0);
    return serial;
}

/* Of all writers' keys these are one's own; 0: deleted or never written. */
static void check_own(se_session *session, int number, int serial) {
    char name[32];
    char got[VALUE_MAX + 32];
    name_of(number, name);
    se_status status = test_get(session, name, UINT64_MAX, got, sizeof got);
    while (status == SE_TRIMMED) /* the leaf went between the look-up and the reading */
        status = test_get(session, name, UINT64_MAX, got, sizeof got);
    REQUIRE(status == (serial ? SE_OK : SE_NOT_FOUND));
    REQUIRE(!serial || check_value(got, number) == serial);
}

static void *write_own_keys(void *argument) {
    se_session session;
    int self = (int)(uintptr_t)argument;
    unsigned seed = (unsigned)self + 1;
    int serials[KEYS] = {0};
    char name[32];
    char value[VALUE_MAX];
    REQUIRE(se_session_open(&session, store) == SE_OK);
    for (int step = 1; step <= steps && se_load_relaxed(&refused) < REFUSED_MAX; step++) {
        int number = (int)(rand_r(&seed) % (KEYS / WRITERS)) * WRITERS + self;
        name_of(number, name);
        bool put = rand_r(&seed) % 3 != 0;
        se_status status = SE_OK;
        if (put)
            status = test_put(&session, name, value, value_of(number, step, &seed, value));
        else
            status = test_delete(&session, name);
        REQUIRE(status == SE_OK || (tight && status == SE_FULL));
        if (status == SE_OK)
            serials[number] = put ? step : 0;
        else
            atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
        check_own(&session, number, serials[number]);
    }
    for (int number = self; number < KEYS; number += WRITERS)
        check_own(&session, number, serials[number]);
    se_session_close(&session);
    return NULL;
}

/* Puts, deletes and new keys, and at the end an increment of a text. */
static void *fail_to_commit(void *argument) {
    se_session session;
    unsigned seed = (unsigned)(uintptr_t)argument;
    char name[40];
    uint8_t key[SE_KEY_MAX];
    static const char value[VALUE_MAX] = "never to be seen";
    REQUIRE(se_session_open(&session, store) == SE_OK);
    for (int round = 0; !se_load_acquire(&stop); round++) {
        int ops = !tight && round % 100 == 50 ? 1200 : 1 + (int)(rand_r(&seed) % 20);
        REQUIRE(se_session_begin(&session, test_run, se_clock_real_us(), 0) == SE_OK);
        for (int op = 0; op < ops; op++) {
            unsigned dice = rand_r(&seed);
            uint32_t kind = dice % 4 ? SE_OP_PUT : SE_OP_DELETE;
            uint32_t size = kind == SE_OP_PUT ? 17 + dice / 4 % (ops > 100 ? 20 : 400) : 0;
            name_of((int)(rand_r(&seed) % KEYS), name);
            if (dice % 11 == 0)
                strcat(name, "/new");
            uint32_t key_size = test_key(key, name);
            REQUIRE(se_session_add(&session, kind, key, key_size, value, size, 0, 0) == SE_OK);
        }
        uint32_t key_size = test_key(key, "text");
        REQUIRE(se_session_add(&session, SE_OP_INCREMENT, key, key_size, NULL, 0, 0, 1) == SE_OK);
        se_status status = test_submit(&session);
        REQUIRE(status == SE_WRONG_TYPE || (tight && status == SE_FULL));
        atomic_fetch_add_explicit(&failures, 1, memory_order_relaxed);
    }
    se_session_close(&session);
    return NULL;
}

/* Everything at one version: how many keys, and a sum over their values. */
static uint64_t sum_at(se_session *session, se_iter *iter, uint64_t version) {
    char copy[VALUE_MAX + 32];
    uint64_t sum = 0;
    (void)se_session_pin(session);
    REQUIRE(se_iter_seek(iter, store, test_run, 16) == SE_OK);
    for (;;) {
        uint64_t offset;
        const se_record *record;
        REQUIRE(se_iter_next(iter, &offset) == SE_OK);
        if (!offset)
            break;
        const se_leaf *leaf = se_leaf_at(store, offset);
        REQUIRE(leaf);
        se_status status = se_record_visible(store, leaf, version, &record);
        REQUIRE(status == SE_OK || status == SE_TRIMMED);
        if (status != SE_OK || !record || leaf->key[16] != 1 || record->flags ||
            strncmp((const char *)leaf->key + 17, "key/", 4) != 0)
            continue;
        memcpy(copy, record->value, record->value_size);
        copy[record->value_size] = 0;
        int number = atoi(strrchr((const char *)leaf->key, '/') + 1);
        sum = sum * 31 + (uint64_t)check_value(copy, number) * KEYS + (uint64_t)number;
    }
    se_session_unpin(session);
    return sum;
}

static void *read_at_snapshots(void *argument) {
    se_session session;
    se_iter *iter = malloc(sizeof *iter);
    uint32_t entry;
    (void)argument;
    REQUIRE(iter && se_session_open(&session, store) == SE_OK);
    REQUIRE(se_snapshot_claim(store, &entry) == SE_OK);
    while (!se_load_acquire(&stop)) {
        uint64_t version;
        se_snapshot_open(store, entry, &version);
        uint64_t first = sum_at(&session, iter, version);
        uint64_t second = sum_at(&session, iter, version);
        REQUIRE(first == second);
        se_snapshot_close(store, entry);
        atomic_fetch_add_explicit(&compared, 1, memory_order_relaxed);
    }
    se_snapshot_release(store, entry);
    se_session_close(&session);
    free(iter);
    return NULL;
}

static void run_all(uint64_t map_size) {
    test_segments segments = test_segments_make();
    pthread_t writers[WRITERS];
    pthread_t failing;
    pthread_t reader;
    se_session session;
    store = test_store_make(segments, map_size);
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    REQUIRE(test_put(&session, "text", "\xa1x", 2) == SE_OK);
    se_store_release(&stop, 0);
    se_keeper_thread *keeper = se_keeper_start(store);
    REQUIRE(keeper);
    REQUIRE(pthread_create(&failing, NULL, fail_to_commit, (void *)7) == 0);
    REQUIRE(pthread_create(&reader, NULL, read_at_snapshots, NULL) == 0);
    for (uintptr_t index = 0; index < WRITERS; index++)
        REQUIRE(pthread_create(&writers[index], NULL, write_own_keys, (void *)index) == 0);
    for (int index = 0; index < WRITERS; index++)
        pthread_join(writers[index], NULL);
    se_store_release(&stop, 1);
    pthread_join(failing, NULL);
    pthread_join(reader, NULL);
    se_keeper_stop(keeper);
    test_check(store);
    REQUIRE(!tight || se_load_relaxed(&store->seq->arena_exhausted));
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

int main(void) {
    steps = 3000;
    run_all(UINT64_C(16) << 20);
    REQUIRE(se_load_relaxed(&refused) == 0);
    tight = true;
    steps = 800;
    run_all(UINT64_C(1) << 20);
    REQUIRE(se_load_relaxed(&failures) > 100 && se_load_relaxed(&compared) > 10);
    printf("test_rollbacks: ok, %llu failures, %llu snapshots, %llu without memory\n",
           (unsigned long long)se_load_relaxed(&failures),
           (unsigned long long)se_load_relaxed(&compared),
           (unsigned long long)se_load_relaxed(&refused));
    return 0;
}
