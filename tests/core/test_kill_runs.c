/* test_kill_runs.c - death in front of every store of appends, bumps and the erasing of a run.
 *
 * As test_kill.c, with what primitives need of the core: events whose sequence and hash are given
 * inside the commit, counted values, and a run whose keys go in steps. For every death: the log is a
 * sound chain of exactly the events that were committed, the counter counts them, the run is there
 * whole or for no reader at all, no block is lost or in two places; whoever comes next finishes the
 * erasing, and the rest of the workload runs to the same end.
 *
 *     test_kill_runs [FIRST [STEP]]
 */
#include "event.h"
#include "erase.h"
#include "harness.h"
#include "kill.h"
#include "reader.h"

#define STEPS 40
#define VICTIM_KEYS 36 /* more than a step of the erasing takes */

static const uint8_t victim[SE_RUN_ID_SIZE] = "victim of kill..";

typedef struct {
    uint64_t events;
    uint64_t counter;
    uint64_t victim_events; /* 0: the run is not there */
} model;

typedef struct {
    se_word done;
    se_word stores;
} progress;

enum { STEP_APPEND, STEP_APPEND_THREE, STEP_BUMP, STEP_FILL, STEP_ERASE };
static int steps[STEPS];

static void plan_steps(void) {
    srand(23);
    for (int at = 0; at < STEPS; at++) {
        int dice = rand() % 10;
        steps[at] = dice < 3   ? STEP_APPEND
                    : dice < 4 ? STEP_APPEND_THREE
                    : dice < 6 ? STEP_BUMP
                    : dice < 8 ? STEP_FILL
                               : STEP_ERASE;
    }
}

static void model_step(model *m, int kind) {
    switch (kind) {
    case STEP_APPEND:
        m->events++;
        break;
    case STEP_APPEND_THREE:
        m->events += 3;
        break;
    case STEP_BUMP:
        m->counter++;
        break;
    case STEP_FILL:
        m->victim_events++;
        break;
    default:
        m->victim_events = 0;
    }
}

static se_status add_event(se_session *session, const uint8_t *run, char type) {
    uint8_t key[SE_KEY_MAX];
    uint8_t value[SE_EVENT_CONTENT + 3] = {0};
    uint32_t key_size = se_event_head_key(key, run);
    value[SE_EVENT_CONTENT] = 0xa1;
    value[SE_EVENT_CONTENT + 1] = (uint8_t)type;
    value[SE_EVENT_CONTENT + 2] = 0x07;
    se_event_pack(value, sizeof value);
    return se_session_add(session, SE_OP_APPEND, key, key_size, value, sizeof value, 0, -1);
}

static se_status append(se_session *session, int count) {
    SE_TRY(se_session_begin(session, test_run, 1000, 0));
    for (int index = 0; index < count; index++)
        REQUIRE(add_event(session, test_run, (char)('a' + index)) == SE_OK);
    return test_submit(session);
}

static uint32_t cell_key(uint8_t *key) {
    memcpy(key, test_run, SE_RUN_ID_SIZE);
    memcpy(key + SE_RUN_ID_SIZE, "\x03" "cell", 6);
    return SE_RUN_ID_SIZE + 6;
}

static se_status bump(se_session *session) {
    uint8_t key[SE_KEY_MAX];
    uint8_t value[11] = {0x92, 0xcf, 0, 0, 0, 0, 0, 0, 0, 0, 0xc0};
    uint32_t key_size = cell_key(key);
    SE_TRY(se_session_begin(session, test_run, 1000, 0));
    SE_TRY(se_session_add(session, SE_OP_BUMP, key, key_size, value, sizeof value, 0, -1));
    return test_submit(session);
}

static uint32_t victim_key(uint8_t *key, int index) {
    memcpy(key, victim, SE_RUN_ID_SIZE);
    return SE_RUN_ID_SIZE +
           (uint32_t)sprintf((char *)key + SE_RUN_ID_SIZE, "\x01%c/%d", 'a' + index % 5, index) + 1;
}

static se_status add_record(se_session *session, uint8_t status) {
    uint8_t key[SE_RUN_ID_SIZE + 2];
    se_run_record record = {.status = status};
    memcpy(key, victim, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = 0;
    return se_session_add(session, SE_OP_PUT, key, sizeof key, &record, sizeof record, 0, 0);
}

/* The run's record, its keys and an event, all in one commit. */
static se_status fill(se_session *session) {
    uint8_t key[SE_KEY_MAX];
    SE_TRY(se_session_begin(session, victim, 1000, 0));
    REQUIRE(add_record(session, SE_RUN_ACTIVE) == SE_OK);
    for (int index = 0; index < VICTIM_KEYS; index++) {
        uint32_t key_size = victim_key(key, index);
        REQUIRE(se_session_add(session, SE_OP_PUT, key, key_size, "text", 4, 0, 0) == SE_OK);
    }
    REQUIRE(add_event(session, victim, 'v') == SE_OK);
    return test_submit(session);
}

static se_status erase(se_store *store, se_session *session) {
    uint8_t key[SE_ERASE_KEY_SIZE] = {[SE_RUN_ID_SIZE] = SE_TAG_RUN,
                                      [SE_RUN_ID_SIZE + 1] = SE_SPACE_BOOKKEEPING,
                                      [SE_RUN_ID_SIZE + 2] = 'e'};
    se_erase_state state = SE_ERASE_MORE;
    memcpy(key + SE_RUN_ID_SIZE + 3, victim, SE_RUN_ID_SIZE);
    SE_TRY(se_session_begin(session, victim, 1000, 0));
    REQUIRE(add_record(session, SE_RUN_DELETED) == SE_OK);
    REQUIRE(se_session_add(session, SE_OP_PUT, key, sizeof key, "\xc0", 1, 0, 0) == SE_OK);
    SE_TRY(test_submit(session));
    while (state != SE_ERASE_DONE)
        SE_TRY(se_erase_step(store, victim, &state));
    return SE_OK;
}

static void run_from(se_store *store, se_session *session, progress *shared, uint64_t first) {
    for (uint64_t at = first; at < STEPS; at++) {
        se_status status = steps[at] == STEP_APPEND         ? append(session, 1)
                           : steps[at] == STEP_APPEND_THREE ? append(session, 3)
                           : steps[at] == STEP_BUMP         ? bump(session)
                           : steps[at] == STEP_FILL         ? fill(session)
                                                            : erase(store, session);
        REQUIRE(status == SE_OK);
        atomic_store(&shared->done, at + 1);
    }
}

/* A live record at the newest version, or NULL. Pinned by the caller. */
static const se_record *find(const se_store *store, const uint8_t *key, uint32_t key_size) {
    const se_record *record;
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    REQUIRE(se_reader_find(store, key, key_size, newest, &record) == SE_OK);
    return record && !(record->flags & SE_RECORD_TOMBSTONE) ? record : NULL;
}

/* How many events the log has; all of them are there and chained. */
static uint64_t count_events(const se_store *store, const uint8_t *run) {
    uint8_t key[SE_KEY_MAX];
    se_event_head head = {0};
    se_event_head at = {0};
    const se_record *record = find(store, key, se_event_head_key(key, run));
    if (!record)
        return 0;
    REQUIRE(se_event_read_head(record->value, record->value_size, &head));
    while (at.next < head.next) {
        uint8_t again[SE_EVENT_CONTENT + 3];
        const uint8_t *type;
        uint32_t type_size;
        record = find(store, key, se_event_key(key, run, at.next));
        REQUIRE(record && record->value_size == sizeof again);
        memcpy(again, record->value, sizeof again);
        REQUIRE(se_event_check(again, sizeof again, &type, &type_size));
        REQUIRE(find(store, key, se_event_type_key(key, run, type, type_size, at.next)));
        se_event_pack(again, sizeof again);
        se_event_chain(again, sizeof again, record->timestamp_us, &at);
        REQUIRE(memcmp(again, record->value, sizeof again) == 0);
    }
    REQUIRE(memcmp(at.hash, head.hash, sizeof at.hash) == 0);
    REQUIRE(!find(store, key, se_event_key(key, run, at.next)));
    return head.next;
}

static model state_of(se_session *session) {
    uint8_t key[SE_KEY_MAX];
    const se_store *store = session->store;
    model found = {0};
    (void)se_session_pin(session);
    found.events = count_events(store, test_run);
    const se_record *cell = find(store, key, cell_key(key));
    found.counter = cell ? se_counted_read(cell->value) : 0;
    found.victim_events = count_events(store, victim);
    int keys = 0;
    for (int index = 0; index < VICTIM_KEYS; index++)
        keys += find(store, key, victim_key(key, index)) != NULL;
    REQUIRE(keys == (found.victim_events ? VICTIM_KEYS : 0));
    se_session_unpin(session);
    return found;
}

static bool same(const model *left, const model *right) {
    return left->events == right->events && left->counter == right->counter &&
           left->victim_events == right->victim_events;
}

static model model_at(uint64_t done) {
    model m = {0};
    for (uint64_t at = 0; at < done; at++)
        model_step(&m, steps[at]);
    return m;
}

/* Returns the number of stores when nobody died, else 0. */
static uint64_t run_once(progress *shared, uint64_t kill_at) {
    test_segments segments = test_segments_make();
    se_store *store = test_store_make(segments, UINT64_C(2) << 20);
    atomic_store(&shared->done, 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        se_session session;
        store->identity = se_process_identity((uint32_t)getpid());
        se_kill_count = 0;
        se_kill_at = kill_at;
        REQUIRE(se_session_open(&session, store) == SE_OK);
        run_from(store, &session, shared, 0);
        atomic_store(&shared->stores, se_kill_count);
        _exit(0);
    }
    int state;
    REQUIRE(waitpid(child, &state, 0) == child);
    REQUIRE(WIFEXITED(state) && (WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == 97));
    bool died = WEXITSTATUS(state) == 97;

    uint64_t done = atomic_load(&shared->done);
    se_session session;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(se_sequencer_lock(store, 0) == SE_OK); /* mends what the dead one left */
    (void)se_client_reap(store);
    se_sequencer_finish(store);
    test_check(store);
    model before = model_at(done);
    model after = model_at(done + (done < STEPS));
    model found = state_of(&session);
    bool stands = same(&found, &before);
    REQUIRE(stands || same(&found, &after));
    REQUIRE(se_erase_queued(store, 1000) == SE_OK);
    REQUIRE(se_load_relaxed(&store->seq->erasing_runs) == 0);
    found = state_of(&session);
    REQUIRE(same(&found, stands ? &before : &after));
    run_from(store, &session, shared, stands ? done : done + (done < STEPS));
    test_check(store);
    after = model_at(STEPS);
    found = state_of(&session);
    REQUIRE(same(&found, &after));
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
    return died ? 0 : atomic_load(&shared->stores);
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t every = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    progress *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED && every > 0);
    plan_steps();
    uint64_t stores = run_once(shared, 0);
    REQUIRE(stores > 1000);
    uint64_t deaths = 0;
    for (uint64_t at = first; at <= stores; at += every) {
        test_context = at;
        REQUIRE(run_once(shared, at) == 0);
        deaths++;
    }
    printf("test_kill_runs: ok, %llu deaths in front of %llu stores\n", (unsigned long long)deaths,
           (unsigned long long)stores);
    return 0;
}
