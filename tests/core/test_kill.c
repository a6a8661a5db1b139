/* test_kill.c - death in front of every store to shared memory.
 *
 * A child runs a fixed workload and dies before its k-th store; the parent then uses the store as
 * the next client would. For every k: what was acknowledged is there, the step that was under way
 * is there wholly or not at all, no block is lost or in two places, and the rest of the workload
 * runs to the same end as if nobody had died.
 *
 *     test_kill [FIRST [STEP [full | join]]]     from store FIRST on, every STEP-th
 *
 * "full" has a small arena and keeps all history, so that the high-water rule, the cutting up of
 * free blocks and commits that find no memory come into it. "join" begins with an arena whose free
 * memory lies in the blocks of small records alone, and puts large ones.
 */
#include "harness.h"
#include "kill.h"

#define NAMES 80
#define BALLAST 184
#define SMALL 1400
static bool full;
static bool joining;

typedef struct {
    int64_t number[NAMES]; /* 0 absent, -1 the text, else an integer */
} model;

typedef struct {
    se_word done;      /* steps acknowledged */
    se_word stores;    /* of a run that nobody killed */
} progress;

static void name_of(int index, char *name) {
    /* Few long shared prefixes and one wide node: splits, merges and all four widths. */
    if (index < 60)
        snprintf(name, 40, "wide/%c", (char)(' ' + 1 + index));
    else
        snprintf(name, 40, "deep/%.*s/%d", (index - 60) % 7 * 3, "abcabcabcabcabcabcabc", index);
}

enum { STEP_PUT, STEP_DELETE, STEP_ADD, STEP_BATCH, STEP_SWEEP, STEP_EXPIRE, STEP_BIG };
typedef struct {
    int kind;
    int index;
} step;

#define STEPS 420
#define STEPS_JOINING 40
static step steps[STEPS];
static uint64_t step_count = STEPS;

/* Few large values, so that all of them fit, beside some small ones. */
static void plan_joining(void) {
    step_count = STEPS_JOINING;
    for (int at = 0; at < STEPS_JOINING; at++) {
        bool big = rand() % 2;
        steps[at].kind = big ? STEP_BIG : rand() % 4 ? STEP_PUT : STEP_DELETE;
        steps[at].index = big ? rand() % 5 : 5 + rand() % (NAMES - 5);
    }
}

static void plan_steps(void) {
    srand(11);
    if (joining) {
        plan_joining();
        return;
    }
    for (int at = 0; at < STEPS; at++) {
        int dice = rand() % 100;
        steps[at].index = at < 70 ? at : rand() % NAMES;
        steps[at].kind = at < 70      ? STEP_PUT
                         : dice < 30  ? STEP_PUT
                         : full       ? STEP_BIG
                         : dice < 58  ? STEP_DELETE
                         : dice < 72  ? STEP_ADD
                         : dice < 82  ? STEP_BATCH
                         : dice < 91  ? STEP_SWEEP
                         : dice < 96  ? STEP_EXPIRE
                                      : STEP_BIG;
    }
}

static void model_step(model *m, const step *s) {
    switch (s->kind) {
    case STEP_PUT:
    case STEP_BIG:
        m->number[s->index] = -1;
        break;
    case STEP_DELETE:
    case STEP_EXPIRE:
        m->number[s->index] = 0;
        break;
    case STEP_ADD:
        if (m->number[s->index] >= 0)
            m->number[s->index] += 5;
        break;
    case STEP_BATCH:
        for (int next = 0; next < 6; next++)
            m->number[(s->index + next * 13) % NAMES] = next % 3 ? -1 : 0;
        break;
    default:
        break;
    }
}

static se_status run_batch(se_session *session, int index) {
    uint8_t key[SE_KEY_MAX];
    char name[40];
    SE_TRY(se_session_begin(session, test_run, 1000, 0));
    for (int next = 0; next < 6; next++) {
        name_of((index + next * 13) % NAMES, name);
        uint32_t key_size = test_key(key, name);
        se_status status = se_session_add(session, next % 3 ? SE_OP_PUT : SE_OP_DELETE, key,
                                          key_size, "text", next % 3 ? 4 : 0, 0, 0);
        REQUIRE(status == SE_OK);
    }
    return test_submit(session);
}

/* A value whose time is over when it is written: a sweep makes it a tombstone. */
static se_status run_expire(se_session *session, const char *name) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    SE_TRY(se_session_begin(session, test_run, 1000, 0));
    SE_TRY(se_session_add(session, SE_OP_PUT, key, key_size, "text", 4, 1001, 0));
    return test_submit(session);
}

static void run_step(se_store *store, se_session *session, const step *s) {
    static const char big[5000];
    char name[40];
    se_status status = SE_OK;
    name_of(s->index, name);
    switch (s->kind) {
    case STEP_PUT:
        status = test_put(session, name, "text", 4);
        break;
    case STEP_BIG:
        status = test_put(session, name, big, sizeof big);
        break;
    case STEP_DELETE:
        status = test_delete(session, name);
        break;
    case STEP_ADD:
        status = test_increment(session, name, 5, NULL);
        status = status == SE_WRONG_TYPE ? SE_OK : status;
        break;
    case STEP_BATCH:
        status = run_batch(session, s->index);
        break;
    case STEP_EXPIRE:
        status = run_expire(session, name);
        break;
    default:
        status = se_sweep_all(store, 0, 2000);
        break;
    }
    REQUIRE(status == SE_OK);
}

static void run_from(se_store *store, se_session *session, progress *shared, uint64_t first) {
    for (uint64_t at = first; at < step_count; at++) {
        run_step(store, session, &steps[at]);
        atomic_store(&shared->done, at + 1);
    }
}

static bool state_is(se_session *session, const model *m) {
    char name[40];
    static char got[8192];
    for (int index = 0; index < NAMES; index++) {
        name_of(index, name);
        se_status status = test_get(session, name, UINT64_MAX, got, sizeof got);
        REQUIRE(status == SE_OK || status == SE_NOT_FOUND);
        if ((status == SE_OK) != (m->number[index] != 0))
            return false;
        int64_t value = 0;
        bool number = status == SE_OK &&
                      se_msgpack_read_int((const uint8_t *)got, strlen(got) ? strlen(got) : 1,
                                          &value) && m->number[index] > 0;
        if (m->number[index] > 0 && (!number || value != m->number[index]))
            return false;
    }
    return true;
}

static void model_at(model *m, uint64_t done) {
    memset(m, 0, sizeof *m);
    for (uint64_t at = 0; at < done; at++)
        model_step(m, &steps[at]);
}

/* Values that stay, and behind them the blocks of many small records that were trimmed. */
static void fill_with_small(se_store *store, se_session *session) {
    static const char big[5000];
    char name[40];
    for (int index = 0; index < BALLAST; index++) {
        snprintf(name, sizeof name, "ballast/%d", index);
        REQUIRE(test_put(session, name, big, sizeof big) == SE_OK);
    }
    for (int index = 0; index < SMALL; index++) {
        snprintf(name, sizeof name, "small/%d", index % 30);
        REQUIRE(test_put(session, name, "text", 4) == SE_OK);
    }
    REQUIRE(test_set_retention(session, SE_RETAIN_LAST, 1) == SE_OK);
    uint64_t used;
    do {
        used = se_arena_used(store);
        REQUIRE(se_sweep_all(store, 0, 2000) == SE_OK);
    } while (se_arena_used(store) != used);
    REQUIRE(used + SMALL * UINT64_C(40) < se_load_relaxed(&store->seq->arena_bump));
}

/* Returns the number of stores when nobody died, else 0. */
static uint64_t run_once(progress *shared, uint64_t kill_at) {
    test_segments segments = test_segments_make();
    se_store *store = test_store_make(segments, full || joining ? UINT64_C(1) << 20 : UINT64_C(2) << 20);
    se_session first;
    REQUIRE(se_session_open(&first, store) == SE_OK);
    if (joining)
        fill_with_small(store, &first);
    else if (!full)
        REQUIRE(test_set_retention(&first, SE_RETAIN_LAST, 1) == SE_OK);
    se_session_close(&first);
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
    model before;
    model after;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(se_sequencer_lock(store, 0) == SE_OK); /* mends what the dead one left */
    (void)se_client_reap(store);
    REQUIRE(se_client_count(store, SE_SLOT_THREAD) == 1);
    se_sequencer_finish(store);
    test_check(store);
    model_at(&before, done);
    model_at(&after, done + (done < step_count));
    bool stands = state_is(&session, &before);
    REQUIRE(stands || state_is(&session, &after));
    bool adds = done < step_count && steps[done].kind == STEP_ADD;
    uint64_t next = stands && !(adds && state_is(&session, &after)) ? done : done + 1;
    run_from(store, &session, shared, next);
    test_check(store);
    model_at(&after, step_count);
    REQUIRE(state_is(&session, &after));
    REQUIRE(!full || se_load_relaxed(&store->seq->pressure_trimmed) > 0);
    REQUIRE(!joining || se_load_relaxed(&store->seq->join_count) > 0);
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
    full = argc > 3 && strcmp(argv[3], "full") == 0;
    joining = argc > 3 && strcmp(argv[3], "join") == 0;
    plan_steps();
    uint64_t stores = run_once(shared, 0);
    REQUIRE(stores > 1000);
    uint64_t deaths = 0;
    for (uint64_t at = first; at <= stores; at += every) {
        test_context = at; /* a failure says: replay with test_kill AT 1000000 */
        REQUIRE(run_once(shared, at) == 0);
        deaths++;
    }
    printf("test_kill: ok, %llu deaths in front of %llu stores\n", (unsigned long long)deaths,
           (unsigned long long)stores);
    return 0;
}
