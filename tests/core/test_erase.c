/* test_erase.c - a run comes and goes under readers, and watchers are woken; under the sanitizers.
 *
 * One thread fills a run in one commit and deletes it in another, again and again, while the keeper
 * and others erase its keys. Readers announce a snapshot and count the run's keys: all or none, the
 * same twice. Another thread bumps a counter, and watchers must be told of every change: nobody who
 * has seen the newest value sleeps, and nobody sleeps longer than the next change takes.
 */
#include "bell.h"
#include "erase.h"
#include "harness.h"
#include "reader.h"

#define KEYS 70
#define LIVES 250
#define BUMPS 4000

static const uint8_t victim[SE_RUN_ID_SIZE] = "victim of erase.";
static se_store *store;
static se_word stop;
static se_word seen_whole;
static se_word seen_gone;
static se_word wakes;

static uint32_t victim_key(uint8_t *key, int index) {
    memcpy(key, victim, SE_RUN_ID_SIZE);
    return SE_RUN_ID_SIZE +
           (uint32_t)sprintf((char *)key + SE_RUN_ID_SIZE, "\x01%d/%d", index % 9, index) + 1;
}

static uint32_t cell_key(uint8_t *key) {
    memcpy(key, test_run, SE_RUN_ID_SIZE);
    memcpy(key + SE_RUN_ID_SIZE, "\x03" "cell", 6);
    return SE_RUN_ID_SIZE + 6;
}

static void add_record(se_session *session, uint8_t status) {
    uint8_t key[SE_RUN_ID_SIZE + 2];
    se_run_record record = {.status = status};
    memcpy(key, victim, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = 0;
    REQUIRE(se_session_add(session, SE_OP_PUT, key, sizeof key, &record, sizeof record, 0, 0) ==
            SE_OK);
}

static void fill(se_session *session) {
    uint8_t key[SE_KEY_MAX];
    REQUIRE(se_session_begin(session, victim, 1000, 0) == SE_OK);
    add_record(session, SE_RUN_ACTIVE);
    for (int index = 0; index < KEYS; index++) {
        uint32_t key_size = victim_key(key, index);
        REQUIRE(se_session_add(session, SE_OP_PUT, key, key_size, "text", 4, 0, 0) == SE_OK);
    }
    REQUIRE(test_submit(session) == SE_OK);
}

static void delete_run(se_session *session) {
    uint8_t key[SE_ERASE_KEY_SIZE] = {[SE_RUN_ID_SIZE] = SE_TAG_RUN,
                                      [SE_RUN_ID_SIZE + 1] = SE_SPACE_BOOKKEEPING,
                                      [SE_RUN_ID_SIZE + 2] = 'e'};
    memcpy(key + SE_RUN_ID_SIZE + 3, victim, SE_RUN_ID_SIZE);
    REQUIRE(se_session_begin(session, victim, 1000, 0) == SE_OK);
    add_record(session, SE_RUN_DELETED);
    REQUIRE(se_session_add(session, SE_OP_PUT, key, sizeof key, "\xc0", 1, 0, 0) == SE_OK);
    REQUIRE(test_submit(session) == SE_OK);
}

static void *live_and_die(void *unused) {
    se_session session;
    (void)unused;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    for (int life = 0; life < LIVES; life++) {
        fill(&session);
        delete_run(&session);
        se_erase_state state = SE_ERASE_MORE;
        while (state != SE_ERASE_DONE) {
            se_status status = se_erase_step(store, victim, &state);
            REQUIRE(status == SE_OK || status == SE_BUSY);
        }
    }
    se_session_close(&session);
    return NULL;
}

static int count_keys(uint64_t snapshot) {
    uint8_t key[SE_KEY_MAX];
    int count = 0;
    for (int index = 0; index < KEYS; index++) {
        const se_record *record;
        uint32_t key_size = victim_key(key, index);
        se_status status = se_reader_find(store, key, key_size, snapshot, &record);
        REQUIRE(status == SE_OK);
        count += record != NULL && !(record->flags & SE_RECORD_TOMBSTONE);
    }
    return count;
}

static void *read_victim(void *unused) {
    se_session session;
    uint32_t entry;
    (void)unused;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(se_snapshot_claim(store, &entry) == SE_OK);
    while (!se_load_acquire(&stop)) {
        uint64_t snapshot;
        se_snapshot_open(store, entry, &snapshot);
        (void)se_session_pin(&session);
        int count = count_keys(snapshot);
        REQUIRE(count == 0 || count == KEYS);
        REQUIRE(count_keys(snapshot) == count);
        se_session_unpin(&session);
        se_snapshot_close(store, entry);
        atomic_fetch_add_explicit(count ? &seen_whole : &seen_gone, 1, memory_order_relaxed);
    }
    se_snapshot_release(store, entry);
    se_session_close(&session);
    return NULL;
}

static uint64_t read_counter(se_session *session) {
    uint8_t key[SE_KEY_MAX];
    const se_record *record;
    uint32_t key_size = cell_key(key);
    (void)se_session_pin(session);
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    REQUIRE(se_reader_find(store, key, key_size, newest, &record) == SE_OK);
    uint64_t counter = record ? se_counted_read(record->value) : 0;
    se_session_unpin(session);
    return counter;
}

static void *watch_counter(void *unused) {
    se_session session;
    uint8_t key[SE_KEY_MAX];
    uint64_t bell = se_bell_of(key, cell_key(key));
    uint64_t known = 0;
    (void)unused;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    while (known < BUMPS) {
        uint32_t seen = se_bell_watch(store, bell);
        uint64_t counter = read_counter(&session);
        REQUIRE(counter >= known);
        if (counter == known) {
            uint64_t before = se_clock_ns();
            se_bell_wait(store, bell, seen, UINT64_C(60) * 1000000000u);
            REQUIRE(se_clock_ns() - before < UINT64_C(50) * 1000000000u);
            atomic_fetch_add_explicit(&wakes, 1, memory_order_relaxed);
        }
        known = counter;
    }
    se_session_close(&session);
    return NULL;
}

static void *bump_counter(void *unused) {
    se_session session;
    uint8_t key[SE_KEY_MAX];
    uint8_t value[11] = {0x92, 0xcf, 0, 0, 0, 0, 0, 0, 0, 0, 0xc0};
    uint32_t key_size = cell_key(key);
    (void)unused;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    for (int count = 0; count < BUMPS; count++) {
        REQUIRE(se_session_begin(&session, test_run, 1000, 0) == SE_OK);
        REQUIRE(se_session_add(&session, SE_OP_BUMP, key, key_size, value, sizeof value, 0, -1) ==
                SE_OK);
        REQUIRE(test_submit(&session) == SE_OK);
        if (count % 16 == 0)
            usleep(200); /* so that the watchers come to sleep */
    }
    se_session_close(&session);
    return NULL;
}

int main(void) {
    test_segments segments = test_segments_make();
    pthread_t threads[6];
    void *(*bodies[6])(void *) = {live_and_die,  bump_counter,  read_victim,
                                  read_victim, watch_counter, watch_counter};
    store = test_store_make(segments, UINT64_C(16) << 20);
    se_keeper_thread *keeper = se_keeper_start(store);
    REQUIRE(keeper);
    for (int index = 0; index < 6; index++)
        REQUIRE(pthread_create(&threads[index], NULL, bodies[index], NULL) == 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    se_store_release(&stop, 1);
    for (int index = 2; index < 6; index++)
        pthread_join(threads[index], NULL);
    se_keeper_stop(keeper);
    test_check(store);
    REQUIRE(se_load_relaxed(&store->seq->erasing_runs) == 0);
    REQUIRE(se_load_relaxed(&seen_gone) > 0 && se_load_relaxed(&wakes) > 0);
    printf("test_erase: ok, %llu times whole, %llu times gone, %llu wake-ups\n",
           (unsigned long long)se_load_relaxed(&seen_whole),
           (unsigned long long)se_load_relaxed(&seen_gone),
           (unsigned long long)se_load_relaxed(&wakes));
    test_store_free(store);
    test_segments_close(segments);
    return 0;
}
