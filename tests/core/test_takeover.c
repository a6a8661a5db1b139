/* test_takeover.c - death of a holder that serves others, and of whoever mends after it.
 *
 * A client's increment waits in its queue. A child takes the sequencer to serve it and dies before
 * its k-th store; a second child takes over and dies before its j-th; then the client goes on. For
 * every pair (k, j) the increment has happened exactly once.
 */
#include "harness.h"
#include "kill.h"

#define MAP (UINT64_C(1) << 20)

static pid_t serve_in_child(se_store *store, uint64_t kill_at, se_word *stores) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        store->identity = se_process_identity((uint32_t)getpid());
        se_kill_count = 0;
        se_kill_at = kill_at;
        if (se_sequencer_try(store) == SE_OK) {
            se_sequencer_drain(store);
            se_sequencer_finish(store);
        }
        atomic_store(stores, se_kill_count);
        _exit(0);
    }
    return child;
}

static bool died(pid_t child) {
    int state;
    REQUIRE(waitpid(child, &state, 0) == child);
    REQUIRE(WIFEXITED(state) && (WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == 97));
    return WEXITSTATUS(state) == 97;
}

/* The client's request, left waiting because the sequencer is taken. */
static void leave_request(se_store *store, se_session *session) {
    uint8_t key[SE_KEY_MAX];
    uint32_t size = test_key(key, "counter");
    REQUIRE(se_session_begin(session, test_run, 1, 0) == SE_OK);
    REQUIRE(se_session_add(session, SE_OP_INCREMENT, key, size, NULL, 0, 0, 1) == SE_OK);
    REQUIRE(se_sequencer_try(store) == SE_OK);
    REQUIRE(se_session_submit(session) == SE_BUSY);
    se_sequencer_release(store);
}

static bool run_pair(se_word *stores, uint64_t first_at, uint64_t second_at, bool *first_died) {
    test_segments segments = test_segments_make();
    se_store *store = test_store_make(segments, MAP);
    se_session session;
    int64_t result;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(test_increment(&session, "counter", 1, &result) == SE_OK);
    leave_request(store, &session);
    *first_died = died(serve_in_child(store, first_at, stores));
    bool second_died = died(serve_in_child(store, second_at, stores));
    REQUIRE(test_finish(&session, SE_BUSY) == SE_OK);
    REQUIRE(se_session_first_result(&session) == 2);
    REQUIRE(test_increment(&session, "counter", 1, &result) == SE_OK && result == 3);
    test_check(store);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
    return second_died;
}

/* A request that nobody has taken up can be withdrawn, and then never happens. */
static void a_withdrawn_request_never_happens(void) {
    test_segments segments = test_segments_make();
    se_store *store = test_store_make(segments, MAP);
    se_session session;
    int64_t result;
    REQUIRE(se_session_open(&session, store) == SE_OK);
    leave_request(store, &session);
    REQUIRE(se_session_withdraw(&session) == SE_OK);
    REQUIRE(test_increment(&session, "counter", 5, &result) == SE_OK && result == 5);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

int main(void) {
    se_word *stores = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t pairs = 0;
    bool first_died = true;
    REQUIRE(stores != MAP_FAILED);
    a_withdrawn_request_never_happens();
    for (uint64_t first_at = 1; first_died; first_at++) {
        for (uint64_t second_at = 1;; second_at++) {
            test_context = first_at * 1000 + second_at;
            pairs++;
            if (!run_pair(stores, first_at, second_at, &first_died))
                break;
        }
    }
    REQUIRE(pairs > 500);
    printf("test_takeover: ok, %llu pairs of deaths\n", (unsigned long long)pairs);
    return 0;
}
