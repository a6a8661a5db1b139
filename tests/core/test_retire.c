/* test_retire.c - the retire ring where it cannot be widened, or where whoever widens it dies.
 *
 * Built with SE_KILL_POINTS: the ring begins with 64 entries, and deaths come in front of stores.
 */
#include "harness.h"
#include "kill.h"

static se_store *store;
static se_session session;
static se_session reader;
static test_segments segments;

static void open_store(uint64_t map_size) {
    segments = test_segments_make();
    store = test_store_make(segments, map_size);
    REQUIRE(se_session_open(&session, store) == SE_OK);
    REQUIRE(se_session_open(&reader, store) == SE_OK);
}

static void close_store(void) {
    test_check(store);
    se_session_close(&reader);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

static uint64_t retired(void) {
    return se_load_relaxed(&store->seq->ring_tail) - se_load_relaxed(&store->seq->ring_head);
}

static uint64_t left_in_arena(void) {
    return store->data_size - se_load_relaxed(&store->seq->arena_bump);
}

/* Pushes what rollbacks push, until there is room for so many. */
static void fill_ring(uint64_t room) {
    while (se_retire_room(store) > room) {
        uint64_t offset;
        REQUIRE(se_sequencer_lock(store, 0) == SE_OK);
        store->deleting = true;
        se_undo_begin(store, se_load_relaxed(&store->seq->commit_version) + 1);
        REQUIRE(se_arena_take(store, 16, &offset) == SE_OK);
        REQUIRE(se_undo_rollback(store) == SE_OK);
        store->deleting = false;
        se_sequencer_release(store);
    }
}

/* What a rollback took out of the arena is pushed into the ring, for a reader may stand on it; the
 * ring that was to be wider is such a block, too. Every death while it was made cost the old ring an
 * entry, and with a reader who stays, the one who mended the last of them ran over its end. */
static void deaths_while_the_ring_is_widened_do_not_fill_it(void) {
    open_store(UINT64_C(4) << 20);
    (void)se_session_pin(&reader);
    uint64_t capacity = se_load_relaxed(&store->seq->ring_capacity);
    fill_ring(0);
    uint64_t before = retired();
    for (uint64_t kill_at = 1;; kill_at++) {
        test_context = kill_at;
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            store->identity = se_process_identity((uint32_t)getpid());
            REQUIRE(se_sequencer_lock(store, 0) == SE_OK);
            se_kill_count = 0;
            se_kill_at = kill_at;
            _exit(se_retire_reserve(store, capacity) == SE_OK ? 0 : 1);
        }
        int state;
        REQUIRE(waitpid(child, &state, 0) == child);
        REQUIRE(WIFEXITED(state) && (WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == 97));
        REQUIRE(se_sequencer_lock(store, 0) == SE_OK);
        se_sequencer_finish(store);
        test_check(store);
        if (se_load_relaxed(&store->seq->ring_capacity) > capacity)
            break;
        REQUIRE(retired() == before);
    }
    REQUIRE(test_context > 60);
    se_session_unpin(&reader);
    close_store();
}

/* A full arena has no memory for a wider ring. Then nothing was trimmed, so that nothing became
 * free, and nothing that waited was freed: a commit was refused as if all memory were in use. */
static void a_full_ring_in_a_full_arena_empties_itself(void) {
    char name[32];
    char got[32];
    open_store(UINT64_C(1) << 20);
    uint64_t reserve = store->header->reserve_size;
    for (int number = 0; left_in_arena() > reserve + 512; number++) {
        snprintf(name, sizeof name, "key/%d", number % 400); /* history, as much as fits */
        REQUIRE(test_put(&session, name, "v", 1) == SE_OK);
    }
    for (int number = 0; left_in_arena() > 1200; number++) { /* what is kept for deletions, too */
        snprintf(name, sizeof name, "key/%d", number);
        REQUIRE(test_delete(&session, name) == SE_OK);
    }
    (void)se_session_pin(&reader);
    fill_ring(8);
    se_session_unpin(&reader);
    uint64_t start_ns = se_clock_ns();
    for (int number = 0; number < 400; number++) {
        snprintf(name, sizeof name, "key/%d", number % 200);
        REQUIRE(test_put(&session, name, "w", 1) == SE_OK);
    }
    REQUIRE(se_clock_ns() - start_ns < UINT64_C(1000000000));
    REQUIRE(test_get(&session, "key/7", UINT64_MAX, got, sizeof got) == SE_OK && got[0] == 'w');
    close_store();
}

int main(void) {
    deaths_while_the_ring_is_widened_do_not_fill_it();
    a_full_ring_in_a_full_arena_empties_itself();
    puts("test_retire: ok");
    return 0;
}
