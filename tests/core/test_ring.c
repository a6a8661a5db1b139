/* test_ring.c - the log says the same as the store, whoever dies where.
 *
 * A child commits into a store with a small log ring and, between commits, plays the log writer:
 * it takes frames from the ring and appends them to a log in shared memory. It dies in front of its
 * k-th store. The parent mends, takes what the ring still holds, and replays the whole log into an
 * empty store: every key must have the same history there, version by version. For every k.
 *
 *     test_ring [FIRST [STEP]]
 */
#include "harness.h"
#include "kill.h"
#include "log.h"
#include "walring.h"

#define NAMES 24
#define STEPS 130
#define RING 16384u
#define LOG_MAX (UINT64_C(4) << 20)

typedef struct {
    se_word done;     /* steps acknowledged */
    se_word stores;   /* of a run that nobody killed */
    se_word position; /* of the ring: what comes before it is in the log */
    se_word log_size;
    se_word wraps;
    uint8_t log[LOG_MAX];
} shared_log;

static void name_of(unsigned index, char *name) { snprintf(name, 32, "key/%u", index % NAMES); }

static void consume(se_store *store, shared_log *shared) {
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    for (;;) {
        uint64_t at = atomic_load(&shared->position);
        uint64_t before = at;
        se_frame *frame;
        REQUIRE(se_ring_peek(store, &at, newest, &frame) == SE_OK);
        if (!frame)
            return;
        uint64_t size = atomic_load(&shared->log_size);
        REQUIRE(size + frame->size <= LOG_MAX);
        atomic_fetch_add(&shared->wraps, at != before);
        frame->crc = se_frame_crc(frame);
        memcpy(shared->log + size, frame, frame->size);
        atomic_store(&shared->log_size, size + frame->size);
        atomic_store(&shared->position, at + frame->size);
        se_store_release(&store->seq->wal_consumed, at + frame->size);
    }
}

static void run_step(se_session *session, unsigned at) {
    static const char big[3000];
    uint8_t key[SE_KEY_MAX];
    char name[32];
    se_status status = SE_OK;
    unsigned dice = (at * 2654435761u) >> 16;
    name_of(dice >> 4, name);
    switch (at % 8) {
    case 0:
        status = test_put(session, name, big, 1 + dice % (sizeof big - 1));
        break;
    case 1:
        status = test_delete(session, name);
        break;
    case 2:
        status = test_increment(session, name, 3, NULL);
        status = status == SE_WRONG_TYPE ? SE_OK : status;
        break;
    case 3: /* a value whose time is over: a sweep makes it a tombstone */
        REQUIRE(se_session_begin(session, test_run, 1000, 0) == SE_OK);
        REQUIRE(se_session_add(session, SE_OP_PUT, key, test_key(key, name), "x", 1, 1001, 0) ==
                SE_OK);
        status = test_submit(session);
        break;
    case 4:
        REQUIRE(se_session_begin(session, test_run, 1000, 0) == SE_OK);
        for (unsigned next = 0; next < 5; next++) {
            name_of(dice + next * 5, name);
            REQUIRE(se_session_add(session, next % 3 ? SE_OP_PUT : SE_OP_DELETE, key,
                                   test_key(key, name), "text", next % 3 ? 4 : 0, 0, 0) == SE_OK);
        }
        status = test_submit(session);
        break;
    case 5:
        status = se_sweep_all(session->store, 0, 2000);
        break;
    case 6: { /* refused half-way: what it wrote into the ring means nothing */
        REQUIRE(test_put(session, "text", "\xa1x", 2) == SE_OK);
        REQUIRE(se_session_begin(session, test_run, 1000, 0) == SE_OK);
        name_of(dice, name);
        REQUIRE(se_session_add(session, SE_OP_PUT, key, test_key(key, name), "no", 2, 0, 0) ==
                SE_OK);
        REQUIRE(se_session_add(session, SE_OP_INCREMENT, key, test_key(key, "text"), NULL, 0, 0,
                               1) == SE_OK);
        REQUIRE(test_submit(session) == SE_WRONG_TYPE);
        break;
    }
    default:
        status = test_put(session, name, "value", 5);
        break;
    }
    REQUIRE(status == SE_OK);
}

static void run_from(se_session *session, shared_log *shared, uint64_t first) {
    for (uint64_t at = first; at < STEPS; at++) {
        run_step(session, (unsigned)at);
        atomic_store(&shared->done, at + 1);
        if (at % 3 == 2)
            consume(session->store, shared);
    }
}

static se_store *make_logged(test_segments segments) {
    se_store *store = calloc(1, sizeof *store);
    se_options options = {.map_size = UINT64_C(2) << 20, .max_clients = 4,
                          .durability_kind = SE_NO_DURABILITY};
    REQUIRE(store);
    REQUIRE(se_store_create(store, segments.control_fd, segments.data_fd, &options) == SE_OK);
    store->header->wal_ring_size = RING; /* so that a short workload wraps, both ways */
    store->header->wal_ring_soft = RING / 2;
    se_log_begin(store, 0);
    return store;
}

static const se_record *head_of(const se_store *store, const se_leaf *leaf) {
    return se_record_at(store, se_load_relaxed(&((se_leaf *)leaf)->head));
}

static void same_history(const se_store *store, const se_leaf *leaf, const se_store *other,
                         const se_leaf *twin) {
    const se_record *record = head_of(store, leaf);
    const se_record *again = head_of(other, twin);
    while (record && again) {
        REQUIRE(record->version == again->version && record->flags == again->flags);
        REQUIRE(record->timestamp_us == again->timestamp_us);
        REQUIRE(record->expires_us == again->expires_us);
        REQUIRE(record->value_size == again->value_size);
        REQUIRE(memcmp(record->value, again->value, record->value_size) == 0);
        REQUIRE(se_record_older(store, record, &record) == SE_OK);
        REQUIRE(se_record_older(other, again, &again) == SE_OK);
    }
    REQUIRE(!record && !again);
}

static uint64_t compare(const se_store *store, const se_store *other) {
    static se_iter iter;
    uint64_t offset;
    uint64_t count = 0;
    REQUIRE(se_iter_seek(&iter, store, (const uint8_t *)"", 0) == SE_OK);
    for (;;) {
        REQUIRE(se_iter_next(&iter, &offset) == SE_OK);
        if (!offset)
            return count;
        const se_leaf *leaf = se_leaf_at(store, offset);
        uint64_t twin;
        REQUIRE(se_index_find(other, leaf->key, leaf->key_size, &twin) == SE_OK && twin);
        same_history(store, leaf, other, se_leaf_at(other, twin));
        count++;
    }
}

static void check_replay(se_store *store, const shared_log *shared) {
    test_segments segments = test_segments_make();
    se_store *again = test_store_make(segments, UINT64_C(2) << 20);
    uint64_t size = atomic_load(&((shared_log *)shared)->log_size);
    uint64_t at = 0;
    while (at < size) {
        const se_frame *frame = (const se_frame *)(shared->log + at);
        REQUIRE(se_frame_check(frame, size - at));
        REQUIRE(se_commit_replay(again, frame) == SE_OK);
        at += frame->size;
    }
    REQUIRE(compare(store, again) == compare(again, store));
    REQUIRE(se_load_relaxed(&store->seq->live_keys) == se_load_relaxed(&again->seq->live_keys));
    test_check(again);
    test_store_free(again);
    test_segments_close(segments);
}

/* Returns the number of stores when nobody died, else 0. */
static uint64_t run_once(shared_log *shared, uint64_t kill_at) {
    test_segments segments = test_segments_make();
    se_store *store = make_logged(segments);
    se_session session;
    memset(shared, 0, offsetof(shared_log, log));
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        store->identity = se_process_identity((uint32_t)getpid());
        se_kill_count = 0;
        se_kill_at = kill_at;
        REQUIRE(se_session_open(&session, store) == SE_OK);
        run_from(&session, shared, 0);
        atomic_store(&shared->stores, se_kill_count);
        _exit(0);
    }
    int state;
    REQUIRE(waitpid(child, &state, 0) == child);
    REQUIRE(WIFEXITED(state) && (WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == 97));
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(se_sequencer_lock(store, 0) == SE_OK);
    (void)se_client_reap(store);
    se_sequencer_finish(store);
    consume(store, shared);
    check_replay(store, shared);
    /* The step under way may have happened; doing it again is one more commit, and no harm. */
    run_from(&session, shared, atomic_load(&shared->done));
    consume(store, shared);
    check_replay(store, shared);
    test_check(store);
    REQUIRE(atomic_load(&shared->wraps) > 2);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
    return WEXITSTATUS(state) == 97 ? 0 : atomic_load(&shared->stores);
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t every = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    shared_log *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED && every > 0);
    uint64_t stores = run_once(shared, 0);
    uint64_t deaths = 0;
    REQUIRE(stores > 1000);
    for (uint64_t at = first; at <= stores; at += every) {
        test_context = at; /* a failure says: replay with test_ring AT 1000000 */
        REQUIRE(run_once(shared, at) == 0);
        deaths++;
    }
    printf("test_ring: ok, %llu deaths in front of %llu stores\n", (unsigned long long)deaths,
           (unsigned long long)stores);
    return 0;
}
