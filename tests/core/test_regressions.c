/* test_regressions.c - bugs that were found in the core, each as the shortest way to meet it. */
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>

#include "harness.h"

static se_store *store;
static se_session session;
static test_segments segments;

static void open_store(uint64_t map_size) {
    segments = test_segments_make();
    store = test_store_make(segments, map_size);
    REQUIRE(se_session_open(&session, store) == SE_OK);
}

static void close_store(void) {
    test_check(store);
    se_session_close(&session);
    test_store_free(store);
    test_segments_close(segments);
}

static void add_op(se_session *to, uint32_t kind, const char *name, const void *value,
                   uint32_t size, int64_t argument) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    REQUIRE(se_session_add(to, kind, key, key_size, value, size, 0, argument) == SE_OK);
}

/* A write set of so many puts that fails at its end, if "text" holds a string. */
static se_status fail_after_puts(int puts, uint32_t value_size) {
    static const char value[2048];
    char name[32];
    REQUIRE(se_session_begin(&session, test_run, se_clock_real_us(), 0) == SE_OK);
    for (int number = 0; number < puts; number++) {
        snprintf(name, sizeof name, "new:%06d", number);
        add_op(&session, SE_OP_PUT, name, value, value_size, 0);
    }
    add_op(&session, SE_OP_INCREMENT, "text", NULL, 0, 1);
    return test_submit(&session);
}

/* A write set of thousands of operations widened the retire ring and then failed. Rolling back put
 * the narrow ring in place again, and then pushed every block that had been taken into it: it ran
 * over, the process aborted with the sequencer in hand, and so did everybody who took over. */
static void a_failing_batch_of_thousands_is_rolled_back(void) {
    char got[64];
    open_store(UINT64_C(64) << 20);
    REQUIRE(test_put(&session, "text", "\xa1x", 2) == SE_OK);
    uint64_t version = se_session_reply_version(&session);
    for (int round = 0; round < 3; round++) {
        REQUIRE(fail_after_puts(3000, 1) == SE_WRONG_TYPE);
        REQUIRE(se_session_reply_op(&session) == 3000);
        test_check(store);
    }
    REQUIRE(test_get(&session, "new:000000", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_put(&session, "text", "y", 1) == SE_OK);
    REQUIRE(se_session_reply_version(&session) > version);
    close_store();
}

/* The same for a batch that finds no memory half-way. */
static void a_batch_that_does_not_fit_is_rolled_back(void) {
    char got[64];
    open_store(UINT64_C(4) << 20);
    REQUIRE(test_put(&session, "text", "\xa1x", 2) == SE_OK);
    REQUIRE(fail_after_puts(5000, 1000) == SE_FULL);
    test_check(store);
    REQUIRE(test_get(&session, "new:000000", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    REQUIRE(fail_after_puts(10, 1000) == SE_WRONG_TYPE);
    REQUIRE(test_put(&session, "text", "y", 1) == SE_OK);
    close_store();
}

/* What a rollback retires carries the next version, and none came while every write set failed: a
 * retry loop on an idle database ate the arena, until every put was refused. */
static void failing_write_sets_leak_nothing(uint64_t map_size, bool kept) {
    se_keeper keeper;
    memset(&keeper, 0, sizeof keeper);
    open_store(map_size);
    REQUIRE(test_put(&session, "text", "\xa1x", 2) == SE_OK);
    uint64_t before = se_arena_used(store);
    for (int count = 0; count < 10000; count++) {
        test_context = (uint64_t)count;
        REQUIRE(fail_after_puts(1, 1000) == SE_WRONG_TYPE);
        if (kept && count % 100 == 0)
            (void)se_keeper_tick(&keeper, store);
        REQUIRE(!kept || se_arena_used(store) < before + (UINT64_C(256) << 10));
    }
    REQUIRE(test_put(&session, "other", "text", 4) == SE_OK);
    for (int tick = 0; tick < 8; tick++)
        REQUIRE(se_keeper_tick(&keeper, store) == SE_OK);
    REQUIRE(se_arena_used(store) < before + (UINT64_C(16) << 10));
    REQUIRE(se_load_relaxed(&store->seq->ring_head) == se_load_relaxed(&store->seq->ring_tail));
    close_store();
}

static se_status put_at(uint64_t now_us, uint32_t size) {
    static const char value[64];
    REQUIRE(se_session_begin(&session, test_run, now_us, 0) == SE_OK);
    add_op(&session, SE_OP_PUT, "long", value, size, 0);
    return test_submit(&session);
}

/* The walk over a key's history gave up after 4096 records, so it never reached the first that
 * may go where retention keeps more than that: such a store ran full with garbage. */
static void a_long_history_is_trimmed(uint8_t kind, uint64_t argument) {
    char got[64];
    uint64_t now_us = se_clock_real_us();
    open_store(UINT64_C(4) << 20);
    REQUIRE(test_set_retention(&session, kind, argument) == SE_OK);
    for (int count = 1; count <= 60000; count++) {
        test_context = (uint64_t)count;
        now_us += 200; /* 5000 in a second */
        REQUIRE(put_at(now_us, 20) == SE_OK);
        if (count % 1000 == 0)
            REQUIRE(se_sweep_all(store, 0, now_us) == SE_OK);
    }
    uint64_t newest = se_session_reply_version(&session);
    REQUIRE(se_load_relaxed(&store->seq->trimmed_versions) >= 50);
    REQUIRE(se_load_relaxed(&store->seq->pressure_trimmed) == 0);
    (void)se_session_pin(&session);
    uint8_t key[SE_KEY_MAX];
    uint64_t leaf;
    REQUIRE(se_index_find(store, key, test_key(key, "long"), &leaf) == SE_OK && leaf);
    const se_record *record =
        se_record_at(store, se_load_relaxed(&se_leaf_at(store, leaf)->head));
    int kept = 0;
    while (record) {
        kept++;
        se_status status = se_record_older(store, record, &record);
        REQUIRE(status == SE_OK || status == SE_TRIMMED);
        if (status == SE_TRIMMED)
            break;
    }
    se_session_unpin(&session);
    REQUIRE(kept >= 5000 && kept <= 5100);
    REQUIRE(test_get(&session, "long", newest, got, 64) == SE_OK);
    REQUIRE(test_get(&session, "long", newest / 2, got, 64) == SE_TRIMMED);
    close_store();
}

/* The same walk made the high-water rule pass over its first three quarters where one key had most
 * of the history, and then drop all of it. */
static void the_high_water_rule_drops_no_more_than_it_needs(void) {
    char got[64];
    open_store(UINT64_C(4) << 20);
    uint64_t now_us = se_clock_real_us();
    while (se_load_relaxed(&store->seq->pressure_trimmed) == 0)
        REQUIRE(put_at(now_us, 20) == SE_OK);
    uint64_t newest = se_session_reply_version(&session);
    REQUIRE(newest > 20000);
    REQUIRE(test_get(&session, "long", newest / 10, got, 64) == SE_TRIMMED);
    REQUIRE(test_get(&session, "long", newest / 10 * 6, got, 64) == SE_OK);
    close_store();
}

static void limit_descriptors(rlim_t count) {
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = count < limit.rlim_max ? count : limit.rlim_max;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* A process that had no descriptor left could not read /proc, and took that for the death of all
 * others: it set their slots and pins free while they read. */
static void without_descriptors_nobody_is_taken_for_dead(void) {
    int ready[2];
    int go[2];
    char byte = 1;
    open_store(UINT64_C(4) << 20);
    REQUIRE(pipe(ready) == 0 && pipe(go) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        se_session other;
        uint32_t entry;
        uint64_t version;
        close(go[1]); /* so that the parent's end, also by a failure, is this one's */
        store->identity = se_process_identity((uint32_t)getpid());
        REQUIRE(se_session_open(&other, store) == SE_OK);
        (void)se_session_pin(&other);
        REQUIRE(se_snapshot_claim(store, &entry) == SE_OK);
        se_snapshot_open(store, entry, &version);
        REQUIRE(write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1);
        _exit(0);
    }
    REQUIRE(read(ready[0], &byte, 1) == 1);
    uint64_t identity = se_process_identity((uint32_t)child);
    REQUIRE(se_client_count(store, SE_SLOT_THREAD) == 2);
    limit_descriptors(0);
    REQUIRE(dup(0) < 0 && errno == EMFILE);
    REQUIRE(se_client_reap_try(store) == 0);
    REQUIRE(se_process_alive(identity));
    REQUIRE(se_client_count(store, SE_SLOT_THREAD) == 2 && se_snapshot_count(store) == 1);
    REQUIRE(write(go[1], &byte, 1) == 1);
    REQUIRE(waitpid(child, NULL, 0) == child);
    REQUIRE(se_client_reap_try(store) == 1); /* a real death is told without descriptors too */
    REQUIRE(se_client_count(store, SE_SLOT_THREAD) == 1 && se_snapshot_count(store) == 0);
    limit_descriptors(RLIM_INFINITY);
    for (int end = 0; end < 2; end++) {
        close(ready[end]);
        close(go[end]);
    }
    close_store();
}

/* A process whose own identity could not be read "claimed" slots and entries for 0, which is free:
 * the next one took them too. */
static void who_cannot_name_itself_claims_nothing(void) {
    uint32_t entry;
    open_store(UINT64_C(4) << 20);
    uint64_t identity = store->identity;
    se_session other;
    store->identity = 0;
    REQUIRE(se_session_open(&other, store) == SE_IO);
    REQUIRE(se_snapshot_claim(store, &entry) == SE_IO);
    store->identity = identity;
    REQUIRE(se_snapshot_claim(store, &entry) == SE_OK);
    se_snapshot_release(store, entry);
    close_store();
}

static void submit_put_unserved(se_session *client, const char *name) {
    REQUIRE(se_session_begin(client, test_run, 1000, 0) == SE_OK);
    add_op(client, SE_OP_PUT, name, name, (uint32_t)strlen(name), 0);
    REQUIRE(se_session_submit(client) == SE_BUSY);
}

static void take_request(const se_session *client) {
    se_slot *slot = &store->slots[client->slot];
    REQUIRE(se_swap_if_equal_u32(&slot->request_state, SE_REQUEST_PENDING, SE_REQUEST_TAKEN));
}

/* A thread ended while a stopped holder was carrying out its request. Its slot was free at once,
 * the next thread wrote its write set into it, and the holder, going on, committed what lay there
 * instead of what it had been given. */
static void a_slot_in_a_holders_hands_is_not_used_again(void) {
    char got[64];
    se_session leaving;
    se_session next;
    open_store(UINT64_C(4) << 20);
    REQUIRE(se_session_open(&leaving, store) == SE_OK);
    REQUIRE(se_sequencer_try(store) == SE_OK);
    submit_put_unserved(&leaving, "given");
    take_request(&leaving);
    REQUIRE(se_session_withdraw(&leaving) == SE_IN_DOUBT);
    se_session_close(&leaving);
    REQUIRE(se_session_open(&next, store) == SE_OK);
    REQUIRE(next.slot != leaving.slot);
    REQUIRE(se_session_begin(&next, test_run, 1000, 0) == SE_OK);
    add_op(&next, SE_OP_PUT, "never", "never", 5, 0);
    se_sequencer_serve(store, leaving.slot); /* the holder goes on */
    se_sequencer_finish(store);
    se_session_abandon(&next);
    REQUIRE(test_get(&next, "given", UINT64_MAX, got, 64) == SE_OK && strcmp(got, "given") == 0);
    REQUIRE(test_get(&next, "never", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    REQUIRE(se_client_count(store, SE_SLOT_ORPHAN) == 0);
    REQUIRE(se_load_relaxed(&store->slots[leaving.slot].identity) == 0);
    se_session_close(&next);
    close_store();
}

/* Its neighbour: what nobody had taken up goes with the thread, and is not committed later. */
static void a_request_that_nobody_took_leaves_with_its_thread(void) {
    char got[64];
    se_session leaving;
    open_store(UINT64_C(4) << 20);
    REQUIRE(se_session_open(&leaving, store) == SE_OK);
    REQUIRE(se_sequencer_try(store) == SE_OK);
    submit_put_unserved(&leaving, "left");
    se_session_close(&leaving);
    REQUIRE(se_load_relaxed(&store->slots[leaving.slot].identity) == 0);
    se_sequencer_drain(store);
    se_sequencer_finish(store);
    REQUIRE(test_get(&session, "left", UINT64_MAX, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_put(&session, "other", "text", 4) == SE_OK);
    close_store();
}

/* A request in doubt can turn out refused because a run was registered meanwhile: it is sent again
 * or withdrawn, and each ends the write set once. */
static void a_stale_request_is_sent_again_or_withdrawn_once(void) {
    char got[64];
    for (int again = 0; again < 2; again++) {
        se_session client;
        open_store(UINT64_C(4) << 20);
        REQUIRE(se_session_open(&client, store) == SE_OK);
        REQUIRE(se_sequencer_try(store) == SE_OK);
        submit_put_unserved(&client, "stale");
        take_request(&client);
        REQUIRE(se_session_withdraw(&client) == SE_IN_DOUBT);
        se_store_release(&store->seq->run_epoch, se_load_relaxed(&store->seq->run_epoch) + 1);
        se_sequencer_serve(store, client.slot);
        se_sequencer_finish(store);
        REQUIRE(se_session_wait(&client, 1000000) == SE_OK);
        REQUIRE(se_session_outcome(&client) == SE_NEED_SPACE);
        if (again) {
            REQUIRE(se_session_repair(&client) == SE_OK);
            REQUIRE(se_session_outcome(&client) == SE_OK);
        } else {
            client.repairing = true;
            REQUIRE(se_session_withdraw(&client) == SE_OK);
        }
        REQUIRE(!client.waiting && client.pin_depth == 0);
        REQUIRE((test_get(&session, "stale", UINT64_MAX, got, 64) == SE_OK) == (again == 1));
        REQUIRE(test_put(&client, "after", "text", 4) == SE_OK);
        se_session_close(&client);
        close_store();
    }
}

static uint64_t versions_of(const char *name) {
    uint8_t key[SE_KEY_MAX];
    uint64_t leaf;
    uint64_t count = 0;
    (void)se_session_pin(&session);
    REQUIRE(se_index_find(store, key, test_key(key, name), &leaf) == SE_OK && leaf);
    const se_record *record = se_record_at(store, se_load_relaxed(&se_leaf_at(store, leaf)->head));
    se_status status = SE_OK;
    for (; record && status == SE_OK; count++)
        status = se_record_older(store, record, &record);
    REQUIRE(status == SE_OK || status == SE_TRIMMED);
    se_session_unpin(&session);
    return count;
}

/* A sweep walked a history of 100,000 versions whole, with the sequencer in hand all the while. Now
 * a step looks at some two thousand records, and the next one goes on there; if another sweep comes
 * between, from the start, and if others come all the time, in one long step again. */
static void a_long_history_is_walked_in_steps(uint64_t disturb_every) {
    enum { VERSIONS = 60000, KEPT = 40000 };
    uint64_t steps = 0;
    bool done = false;
    se_sweep sweep;
    open_store(UINT64_C(64) << 20);
    REQUIRE(test_put(&session, "before", "text", 4) == SE_OK);
    for (int number = 0; number < VERSIONS; number++)
        REQUIRE(test_put(&session, "long", "text", 4) == SE_OK);
    REQUIRE(test_put(&session, "then", "text", 4) == SE_OK);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, KEPT) == SE_OK);
    memset(&sweep, 0, sizeof sweep);
    for (; !done; steps++) {
        REQUIRE(se_sweep_step(store, &sweep, 2000, &done) == SE_OK);
        REQUIRE(test_put(&session, "long", "newer", 5) == SE_OK);
        if (disturb_every && steps % disturb_every == 0) {
            REQUIRE(test_delete(&session, "then") == SE_OK);
            REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, KEPT) == SE_OK);
        }
    }
    REQUIRE(disturb_every ? steps > 8 && steps < 20 : steps > KEPT / 2100 && steps < KEPT / 2000 + 4);
    uint64_t left = versions_of("long");
    REQUIRE(left >= KEPT && left < KEPT + 2 * steps);
    REQUIRE(test_put(&session, "then", "text", 4) == SE_OK);
    REQUIRE(se_sweep_all(store, 0, 2000) == SE_OK);
    REQUIRE(versions_of("long") == KEPT);
    close_store();
}

/* Two sweeps at once: what one cuts, the other must not cut again. */
static void two_sweeps_share_a_long_history(void) {
    enum { VERSIONS = 20000, KEPT = 9000 };
    bool done[2] = {false, false};
    se_sweep sweeps[2];
    open_store(UINT64_C(16) << 20);
    for (int number = 0; number < VERSIONS; number++)
        REQUIRE(test_put(&session, "long", "text", 4) == SE_OK);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, KEPT) == SE_OK);
    memset(sweeps, 0, sizeof sweeps);
    for (int turn = 0; !done[0] || !done[1]; turn++) {
        int which = turn % 3 == 0;
        if (!done[which])
            REQUIRE(se_sweep_step(store, &sweeps[which], 2000, &done[which]) == SE_OK);
        test_check(store);
    }
    REQUIRE(versions_of("long") == KEPT);
    /* Of few that are kept each commit cuts; a place from before is worth nothing then. */
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 8000) == SE_OK);
    memset(sweeps, 0, sizeof sweeps);
    REQUIRE(se_sweep_step(store, &sweeps[0], 2000, &done[0]) == SE_OK && !done[0]);
    REQUIRE(test_set_retention(&session, SE_RETAIN_LAST, 2) == SE_OK);
    for (int number = 0; number < 200; number++)
        REQUIRE(test_put(&session, "long", "text", 4) == SE_OK);
    while (!done[0])
        REQUIRE(se_sweep_step(store, &sweeps[0], 2000, &done[0]) == SE_OK);
    REQUIRE(versions_of("long") == 2);
    close_store();
}

int main(void) {
    a_long_history_is_walked_in_steps(0);
    a_long_history_is_walked_in_steps(1);
    two_sweeps_share_a_long_history();
    a_failing_batch_of_thousands_is_rolled_back();
    a_batch_that_does_not_fit_is_rolled_back();
    failing_write_sets_leak_nothing(UINT64_C(8) << 20, true);
    failing_write_sets_leak_nothing(UINT64_C(8) << 20, false);
    failing_write_sets_leak_nothing(UINT64_C(1) << 20, false);
    a_long_history_is_trimmed(SE_RETAIN_LAST, 5000);
    a_long_history_is_trimmed(SE_RETAIN_FOR, 1000000);
    the_high_water_rule_drops_no_more_than_it_needs();
    without_descriptors_nobody_is_taken_for_dead();
    who_cannot_name_itself_claims_nothing();
    a_slot_in_a_holders_hands_is_not_used_again();
    a_request_that_nobody_took_leaves_with_its_thread();
    a_stale_request_is_sent_again_or_withdrawn_once();
    puts("test_regressions: ok");
    return 0;
}
