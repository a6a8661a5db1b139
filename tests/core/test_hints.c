/* test_hints.c - what clients noted while a commit was half done, after its holder has died.
 *
 * A client looks keys up in its own time, and so may find what a commit that is under way has
 * linked in already. A child commits and dies before its k-th store; the client has looked its key
 * up while the dead one's words stood, and its own commit is then served. For every k the client's
 * commit is found afterwards, and stands on nothing that was rolled back.
 */
#include "harness.h"
#include "kill.h"

#define MAP (UINT64_C(1) << 20)
#define RING_FIRST 64u /* see retire.c: so that a short workload makes it grow */

static se_store *store;
static se_session session;
static test_segments segments;
static uint64_t deaths;

static void open_store(void) {
    segments = test_segments_make();
    store = test_store_make(segments, MAP);
    REQUIRE(se_session_open(&session, store) == SE_OK);
}

static void close_store(void) {
    test_check(store);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

/* Whether a child that does this died before its kill_at-th store. */
static bool dies_at(uint64_t kill_at, void (*work)(void)) {
    pid_t child = fork();
    int state;
    REQUIRE(child >= 0);
    test_context = kill_at;
    if (child == 0) {
        store->identity = se_process_identity((uint32_t)getpid());
        se_kill_count = 0;
        se_kill_at = kill_at;
        work();
        _exit(0);
    }
    REQUIRE(waitpid(child, &state, 0) == child);
    REQUIRE(WIFEXITED(state) && (WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == 97));
    deaths += WEXITSTATUS(state) == 97;
    return WEXITSTATUS(state) == 97;
}

/* Takes the sequencer as the next one would, which mends what the dead one left. */
static void take_over(void) {
    REQUIRE(se_sequencer_try(store) == SE_OK);
    (void)se_client_reap(store);
    se_sequencer_release(store);
}

static void add_op(uint32_t kind, const char *name, const char *value, int64_t argument) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    REQUIRE(se_session_add(&session, kind, key, key_size, value,
                           value ? (uint32_t)strlen(value) : 0, 0, argument) == SE_OK);
}

static void put_x(void) {
    se_session own;
    REQUIRE(se_session_open(&own, store) == SE_OK);
    REQUIRE(test_put(&own, "x", "old", 3) == SE_OK);
}

/* The dead one's leaf was found and noted, then unlinked by the rollback, but not marked: the next
 * put wrote into it, was acknowledged, and was never seen again. */
static void a_put_through_a_rolled_back_leaf_is_not_lost(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        char got[64];
        open_store();
        REQUIRE(test_put(&session, "first", "v", 1) == SE_OK);
        died = dies_at(at, put_x);
        REQUIRE(test_put(&session, "x", "new", 3) == SE_OK);
        REQUIRE(test_get(&session, "x", UINT64_MAX, got, 64) == SE_OK);
        REQUIRE(strcmp(got, "new") == 0);
        close_store();
    }
}

/* The same leaf, read: the client expected the key to be absent, which it was, and was told of a
 * version that never came to be. */
static void an_expectation_sees_nothing_that_was_rolled_back(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        char got[64];
        open_store();
        REQUIRE(test_put(&session, "first", "v", 1) == SE_OK);
        uint64_t version = se_session_reply_version(&session);
        died = dies_at(at, put_x);
        bool committed = se_load_acquire(&store->seq->commit_version) > version;
        REQUIRE(se_session_begin(&session, test_run, 1000, version) == SE_OK);
        add_op(SE_OP_CHECK, "x", NULL, 0);
        add_op(SE_OP_EXPECT, "x", NULL, 0);
        add_op(SE_OP_PUT, "x", "new", 0);
        REQUIRE(test_submit(&session) == (committed ? SE_CONFLICT : SE_OK));
        REQUIRE(test_get(&session, "x", UINT64_MAX, got, 64) == SE_OK);
        REQUIRE(strcmp(got, committed ? "old" : "new") == 0);
        close_store();
    }
}

static void add_hundred(void) {
    se_session own;
    REQUIRE(se_session_open(&own, store) == SE_OK);
    REQUIRE(test_increment(&own, "n", 100, NULL) == SE_OK);
}

static void an_increment_adds_to_nothing_that_was_rolled_back(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        int64_t result;
        open_store();
        REQUIRE(test_put(&session, "first", "v", 1) == SE_OK);
        uint64_t version = se_session_reply_version(&session);
        died = dies_at(at, add_hundred);
        bool committed = se_load_acquire(&store->seq->commit_version) > version;
        REQUIRE(test_increment(&session, "n", 1, &result) == SE_OK);
        REQUIRE(result == (committed ? 101 : 1));
        REQUIRE(test_increment(&session, "n", 1, &result) == SE_OK);
        REQUIRE(result == (committed ? 102 : 2));
        close_store();
    }
}

static void serve_others(void) {
    if (se_sequencer_try(store) == SE_OK) {
        se_sequencer_drain(store);
        se_sequencer_finish(store);
    }
}

/* The client's increment, left waiting because the sequencer is taken. */
static void leave_increment(void) {
    REQUIRE(test_increment(&session, "n", 5, NULL) == SE_OK);
    REQUIRE(se_sequencer_try(store) == SE_OK);
    REQUIRE(se_session_begin(&session, test_run, 1000, 0) == SE_OK);
    add_op(SE_OP_INCREMENT, "n", NULL, 1);
    REQUIRE(se_session_submit(&session) == SE_BUSY);
    se_sequencer_release(store);
}

/* The holder committed a request and died before it said so. The next one let the request wait
 * again, and the client could withdraw it: "nothing was written", and the retry wrote twice. */
static void what_was_committed_cannot_be_withdrawn(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        int64_t result;
        open_store();
        leave_increment();
        uint64_t version = se_load_acquire(&store->seq->commit_version);
        died = dies_at(at, serve_others);
        bool committed = se_load_acquire(&store->seq->commit_version) > version;
        take_over(); /* as the keeper does, which serves nobody */
        se_status status = se_session_withdraw(&session);
        REQUIRE(committed ? status == SE_BUSY || status == SE_IN_DOUBT : status == SE_OK);
        if (committed) {
            REQUIRE(se_session_wait(&session, 0) == SE_OK);
            REQUIRE(se_session_outcome(&session) == SE_OK);
            REQUIRE(se_session_first_result(&session) == 6);
        }
        REQUIRE(test_increment(&session, "n", 10, &result) == SE_OK);
        REQUIRE(result == (committed ? 16 : 15));
        close_store();
    }
}

/* The client leaves after the holder's death, which may have been in the middle of its request:
 * its slot comes free, and the request has happened once or not at all. */
static void a_slot_comes_free_whose_holder_and_owner_are_gone(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        int64_t result;
        open_store();
        leave_increment();
        died = dies_at(at, serve_others);
        uint32_t slot = session.slot;
        se_session_close(&session);
        take_over();
        REQUIRE(se_session_open(&session, store) == SE_OK);
        REQUIRE(test_put(&session, "other", "v", 1) == SE_OK); /* serves who waits */
        REQUIRE(test_increment(&session, "n", 10, &result) == SE_OK);
        REQUIRE(result == 15 || result == 16);
        REQUIRE(se_client_count(store, SE_SLOT_ORPHAN) == 0);
        REQUIRE(se_client_count(store, SE_SLOT_THREAD) == 1);
        REQUIRE(slot == session.slot || se_load_relaxed(&store->slots[slot].identity) == 0);
        close_store();
    }
}

static se_status put_run_record(se_session *by, uint8_t status) {
    uint8_t key[SE_RUN_ID_SIZE + 2];
    se_run_record record = {.status = status};
    memcpy(key, test_run, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = 0;
    SE_TRY(se_session_begin(by, test_run, 1000, 0));
    SE_TRY(se_session_add(by, SE_OP_PUT, key, sizeof key, &record, sizeof record, 0, 0));
    return test_submit(by);
}

static void begin_run(void) {
    se_session own;
    REQUIRE(se_session_open(&own, store) == SE_OK);
    REQUIRE(put_run_record(&own, SE_RUN_ACTIVE) == SE_OK);
}

/* Clients note the run's record together with a number that changes when runs come and go. The
 * rollback wound that number back, and it came again for another registration: who had noted it in
 * between wrote into a run that was closed. */
static void a_closed_run_takes_no_write_prepared_over_a_rolled_back_one(void) {
    bool died = true;
    for (uint64_t at = 1; died; at++) {
        se_session other;
        char got[64];
        open_store();
        REQUIRE(se_session_open(&other, store) == SE_OK);
        REQUIRE(test_put(&session, "first", "v", 1) == SE_OK);
        died = dies_at(at, begin_run);
        session.run_known = false;
        REQUIRE(se_session_begin(&session, test_run, 1000, 0) == SE_OK);
        add_op(SE_OP_PUT, "x", "x", 0);
        REQUIRE(put_run_record(&other, SE_RUN_ACTIVE + 1) == SE_OK);
        REQUIRE(test_submit(&session) == SE_RUN_CLOSED);
        REQUIRE(test_get(&session, "x", UINT64_MAX, got, 64) == SE_NOT_FOUND);
        se_session_close(&other);
        close_store();
    }
}

static void overwrite(const char *name, const void *value, uint32_t size) {
    REQUIRE(test_put(&session, name, value, size) == SE_OK);
    REQUIRE(se_sweep_all(store, 0, 2000) == SE_OK);
}

/* Free memory that the wider ring will be made of: zeros, or entries that look half freed. */
static void prepare_memory(bool used_before) {
    static se_word words[504]; /* with the head of a record: one block of 4096 bytes */
    if (!used_before)
        return;
    uint64_t first = se_block(SE_PAGE, RING_FIRST * sizeof(se_retired)) | SE_BLOCK_FREEING;
    for (size_t index = 0; index < sizeof words / sizeof *words; index++)
        atomic_store(&words[index], first);
    overwrite("k", words, sizeof words);
    overwrite("k", "v", 1);
    for (int round = 0; round < 3; round++)
        overwrite("k", "v", 1);
}

static void put_twenty(void) {
    se_session own;
    char name[32];
    uint8_t key[SE_KEY_MAX];
    REQUIRE(se_session_open(&own, store) == SE_OK);
    REQUIRE(se_session_begin(&own, test_run, 1000, 0) == SE_OK);
    for (int number = 0; number < 20; number++) {
        snprintf(name, sizeof name, "n%d", number);
        uint32_t size = test_key(key, name);
        REQUIRE(se_session_add(&own, SE_OP_PUT, key, size, "v", 1, 0, 0) == SE_OK);
    }
    REQUIRE(test_submit(&own) == SE_OK);
    se_session_close(&own);
}

/* True while the death was before the end of the widening. */
static bool die_while_the_ring_is_widened(uint64_t position, uint64_t at, bool used_before) {
    se_session reader;
    open_store();
    se_sequencer *seq = store->seq;
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 1) == SE_OK);
    prepare_memory(used_before);
    for (int round = 0; round < 4; round++)
        REQUIRE(se_sweep_all(store, 0, 2000) == SE_OK);
    REQUIRE(se_load_relaxed(&seq->ring_head) == se_load_relaxed(&seq->ring_tail));
    se_store_relaxed(&seq->ring_head, RING_FIRST + position);
    se_store_relaxed(&seq->ring_tail, RING_FIRST + position);
    overwrite("k", "v", 1);
    REQUIRE(se_session_open(&reader, store) == SE_OK);
    (void)se_session_pin(&reader); /* from here on entries stay */
    for (int round = 0; round < 3; round++)
        overwrite("k", "v", 1);
    uint64_t head = se_load_relaxed(&seq->ring_head);
    REQUIRE(se_load_relaxed(&seq->ring_tail) > head);
    REQUIRE(se_load_relaxed(&seq->ring_capacity) == RING_FIRST);
    bool died = dies_at(at, put_twenty);
    test_context = position * 1000 + at;
    take_over();
    bool widened = se_load_relaxed(&seq->ring_capacity) != RING_FIRST;
    REQUIRE(died || widened);
    REQUIRE(se_load_relaxed(&seq->ring_head) == head);
    test_check(store);
    se_session_unpin(&reader);
    se_session_close(&reader);
    put_twenty();
    for (int round = 0; round < 4; round++)
        REQUIRE(se_sweep_all(store, 0, 2000) == SE_OK);
    REQUIRE(se_load_relaxed(&seq->ring_head) == se_load_relaxed(&seq->ring_tail));
    close_store();
    return !widened;
}

/* The holder died between the stores of the ring's new place and of its new size. Whoever mended
 * read the new ring with the old size, at an entry that nobody had written, and took it for one
 * that was being freed: the oldest entry was lost, or a block in use was given away. It shows only
 * where the head lies differently in the two sizes. */
static void a_death_while_the_ring_is_widened_loses_no_entry(void) {
    for (uint64_t position = 0; position < 2 * RING_FIRST; position += 3) {
        bool used_before = position >= RING_FIRST;
        uint64_t at = 8; /* joining and beginning store this often, and nothing of interest */
        while (die_while_the_ring_is_widened(position, at, used_before))
            at++;
        REQUIRE(at > 20);
    }
}

int main(void) {
    a_put_through_a_rolled_back_leaf_is_not_lost();
    an_expectation_sees_nothing_that_was_rolled_back();
    an_increment_adds_to_nothing_that_was_rolled_back();
    what_was_committed_cannot_be_withdrawn();
    a_slot_comes_free_whose_holder_and_owner_are_gone();
    a_closed_run_takes_no_write_prepared_over_a_rolled_back_one();
    a_death_while_the_ring_is_widened_loses_no_entry();
    REQUIRE(deaths > 500);
    printf("test_hints: ok, %llu deaths\n", (unsigned long long)deaths);
    return 0;
}
