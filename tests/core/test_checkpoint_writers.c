/* test_checkpoint_writers.c - a checkpoint holds what its snapshot saw, whoever writes meanwhile.
 *
 * Writers note what they did under which version; what the notes say of the snapshot's version is
 * what the loaded store has to say. Run under both sanitizers.
 */
#include "checkpoints.h"

#define MAP (UINT64_C(128) << 20)
#define WRITERS 2
#define KEYS 8000
#define WRITES_MAX 400000

typedef struct {
    uint64_t version;
    uint32_t key;
    int32_t number; /* -1: deleted */
} write_note;

static test_folder folder;
static test_database database;
static se_store *store;

static uint64_t word(const se_word *at) { return se_load_relaxed(at); }

static write_note *notes[WRITERS];
static se_word note_count[WRITERS];
static se_word stop;

/* Each writer has keys of its own, and notes what it did under which version. */
static void *write_keys(void *argument) {
    uintptr_t writer = (uintptr_t)argument;
    unsigned seed = (unsigned)writer + 5;
    se_session own;
    char name[32];
    char value[300];
    REQUIRE(se_session_open(&own, store) == SE_OK);
    uint32_t count = 0;
    for (; count < WRITES_MAX && !se_load_acquire(&stop); count++) {
        uint32_t key = (uint32_t)rand_r(&seed) % KEYS;
        bool gone = rand_r(&seed) % 5 == 0;
        snprintf(name, sizeof name, "w%u/%u", (unsigned)writer, key);
        int size = snprintf(value, sizeof value, "%u:%0*d", count, 10 + rand_r(&seed) % 200, 7);
        REQUIRE((gone ? test_delete(&own, name)
                      : test_put(&own, name, value, (uint32_t)size)) == SE_OK);
        notes[writer][count] = (write_note){se_session_reply_version(&own), key,
                                            gone ? -1 : (int32_t)count};
        se_store_release(&note_count[writer], count + 1);
    }
    se_session_close(&own);
    return NULL;
}

/* What the notes say of the snapshot is what the loaded store says. */
static void compare_with_notes(se_store *loaded, uint64_t version) {
    se_session reader;
    char name[32];
    char got[512];
    REQUIRE(se_session_open(&reader, loaded) == SE_OK);
    for (uint32_t writer = 0; writer < WRITERS; writer++) {
        int32_t *last = malloc(KEYS * sizeof *last);
        REQUIRE(last);
        memset(last, 0xff, KEYS * sizeof *last);
        uint64_t count = word(&note_count[writer]);
        for (uint64_t at = 0; at < count && notes[writer][at].version <= version; at++)
            last[notes[writer][at].key] = notes[writer][at].number;
        for (uint32_t key = 0; key < KEYS; key++) {
            snprintf(name, sizeof name, "w%u/%u", writer, key);
            se_status status = test_get(&reader, name, UINT64_MAX, got, sizeof got);
            REQUIRE(last[key] < 0 ? status == SE_NOT_FOUND : status == SE_OK);
            REQUIRE(last[key] < 0 || atoi(got) == last[key]);
        }
        free(last);
    }
    se_session_close(&reader);
}

static void checkpoints_beside_writers_hold_their_snapshot(uint8_t retention, uint64_t argument) {
#ifdef __SANITIZE_THREAD__
    enum { ROUNDS = 2 };
#else
    enum { ROUNDS = 8 };
#endif
    uint64_t versions[ROUNDS];
    uint64_t overlap = 0; /* commits that came while a checkpoint was written */
    pthread_t writers[WRITERS];
    se_session session;
    folder = test_folder_make();
    database = test_database_make(MAP);
    store = database.store;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(test_set_retention(&session, retention, argument) == SE_OK);
    se_keeper_thread *keeper = se_keeper_start(store);
    REQUIRE(keeper);
    se_store_release(&stop, 0);
    for (uintptr_t index = 0; index < WRITERS; index++) {
        notes[index] = malloc(WRITES_MAX * sizeof **notes);
        REQUIRE(notes[index]);
        se_store_release(&note_count[index], 0);
        REQUIRE(pthread_create(&writers[index], NULL, write_keys, (void *)index) == 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        se_checkpoint report;
        while (se_load_acquire(&note_count[0]) < (uint64_t)round * 3000 + 10000)
            sched_yield();
        REQUIRE(se_checkpoint_write(store, folder.fd, NULL, NULL, &report) == SE_OK);
        versions[round] = report.version;
        overlap += word(&store->seq->commit_version) - report.version;
        se_status swept = se_sweep_all(store, 0, se_clock_real_us());
        REQUIRE(swept == SE_OK || swept == SE_BUSY); /* the writers may keep it from its turn */
    }
    se_store_release(&stop, 1);
    for (int index = 0; index < WRITERS; index++)
        pthread_join(writers[index], NULL);
    se_keeper_stop(keeper);
    REQUIRE(se_snapshot_count(store) == 0 && overlap > 1000);
    for (int round = 0; round < ROUNDS; round++) {
        se_checkpoint report;
        test_database loaded = test_database_make(MAP);
        REQUIRE(se_checkpoint_load(loaded.store, folder.fd, versions[round], false, NULL, NULL,
                                   &report) == SE_OK);
        test_check(loaded.store);
        REQUIRE(word(&loaded.store->seq->commit_version) == versions[round]);
        compare_with_notes(loaded.store, versions[round]);
        if (retention == SE_RETAIN_ALL)
            test_same_content(store, loaded.store, versions[round]);
        test_database_free(&loaded);
    }
    for (int index = 0; index < WRITERS; index++)
        free(notes[index]);
    test_check(store);
    se_session_close(&session);
    test_database_free(&database);
    test_folder_remove(&folder);
}

int main(void) {
    checkpoints_beside_writers_hold_their_snapshot(SE_RETAIN_ALL, 0);
    checkpoints_beside_writers_hold_their_snapshot(SE_RETAIN_LAST, 1);
    printf("test_checkpoint_writers: ok\n");
    return 0;
}
