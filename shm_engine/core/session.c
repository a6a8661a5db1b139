/* session.c - build, submit, wait, withdraw. */
#include "session.h"

#include <errno.h>
#include <sched.h>

#include "arena.h"
#include "client.h"
#include "futex.h"
#include "index.h"
#include "join.h"
#include "keeper.h"
#include "sequencer.h"
#include "sweep.h"
#include "walring.h"

#define AREA_FIRST SE_REQUEST_FIRST
#define AREA_KEEP (UINT64_C(1) << 20)
#define SPIN_ROUNDS 12
#define SPIN_STEPS 40
#define YIELD_ROUNDS 6
#define RING_MARGIN (UINT64_C(8) << 20)
#define RING_STEP (UINT64_C(1) << 20)
#define ASK_AGAIN_NS 10000000u
#define PARK_NS 1000000u
#define REPAIRS_MAX 8u
#define LAST_TRIES 2u
#define LOG_WAIT_NS 10000000u
#define PATIENCE_NS (UINT64_C(3000) * 1000000u)

se_status se_session_open(se_session *session, se_store *store) {
    memset(session, 0, sizeof *session);
    session->store = store;
    return se_client_join(store, SE_SLOT_THREAD, &session->slot);
}

void se_session_close(se_session *session) { se_client_leave(session->store, session->slot); }

uint64_t se_session_pin(se_session *session) {
    if (session->pin_depth++ == 0)
        session->pin_epoch = se_pin(session->store, session->slot);
    return session->pin_epoch;
}

void se_session_unpin(se_session *session) {
    SE_ASSERT(session->pin_depth > 0);
    if (--session->pin_depth == 0)
        se_unpin(session->store, session->slot);
}

static se_slot *slot_of(const se_session *session) {
    return &session->store->slots[session->slot];
}

static bool replied(const se_session *session) {
    const se_slot *slot = slot_of(session);
    return se_load_acquire_u32(&slot->reply_seq) == se_load_relaxed_u32(&slot->request_seq);
}

static se_status find_run(se_session *session) {
    se_store *store = session->store;
    uint8_t key[SE_RUN_ID_SIZE + 2];
    memcpy(key, session->run, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    key[SE_RUN_ID_SIZE + 1] = 0;
    session->run_epoch = se_load_acquire(&store->seq->run_epoch);
    SE_TRY(se_index_find(store, key, sizeof key, &session->run_leaf));
    session->run_known = true;
    return SE_OK;
}

se_status se_session_begin(se_session *session, const uint8_t *run, uint64_t now_us,
                           uint64_t snapshot) {
    se_slot *slot = slot_of(session);
    SE_ASSERT(!session->waiting);
    session->used = 0;
    session->op_count = 0;
    session->append_count = 0;
    session->short_since_ns = 0;
    session->repairs = 0;
    session->joins = 0;
    session->near.node = 0;
    session->last_tries = 0;
    (void)se_session_pin(session);
    bool same = session->run_known && memcmp(session->run, run, SE_RUN_ID_SIZE) == 0 &&
                session->run_epoch == se_load_acquire(&session->store->seq->run_epoch);
    if (!same) {
        memcpy(session->run, run, SE_RUN_ID_SIZE);
        se_status status = find_run(session);
        if (status != SE_OK) {
            se_session_unpin(session);
            return status;
        }
    }
    se_store_relaxed(&slot->request_now_us, now_us);
    se_store_relaxed(&slot->request_snapshot, snapshot);
    return SE_OK;
}

void se_session_abandon(se_session *session) {
    session->used = 0;
    session->op_count = 0;
    se_session_unpin(session);
}

static se_status area_reserve(se_session *session, uint64_t need) {
    if (SE_LIKELY(need <= session->area_backed))
        return SE_OK;
    se_store *store = session->store;
    if (need > store->header->request_size)
        return SE_TOO_LARGE;
    uint64_t wider = session->area_backed ? session->area_backed : AREA_FIRST;
    while (wider < need)
        wider *= 2;
    SE_TRY(se_back_with_memory(store->control_fd,
                               (uint64_t)(se_request_area(store, session->slot) - store->control),
                               wider));
    session->area_backed = wider;
    return SE_OK;
}

se_status se_session_add(se_session *session, uint32_t kind, const uint8_t *key,
                         uint32_t key_size, const void *value, uint32_t value_size,
                         uint64_t expires_us, int64_t argument) {
    se_store *store = session->store;
    uint64_t size = (sizeof(se_op) + key_size + (uint64_t)value_size + 7) & ~UINT64_C(7);
    uint64_t append_count = session->append_count + (kind == SE_OP_APPEND);
    if (session->op_count >= SE_OPS_MAX ||
        se_frame_bound(session->used + size, append_count) > SE_FRAME_MAX)
        return SE_TOO_LARGE;
    SE_TRY(area_reserve(session, session->used + size));
    session->append_count = append_count;
    se_op *op = (se_op *)(se_request_area(store, session->slot) + session->used);
    op->kind = (uint8_t)kind;
    op->flags = 0;
    op->key_size = (uint16_t)key_size;
    op->value_size = value_size;
    op->leaf = 0;
    op->expires_us = expires_us;
    op->argument = argument;
    op->result = 0;
    memcpy(op + 1, key, key_size);
    if (kind != SE_OP_CHECK_RANGE) /* the key in the area stays there for the next look-up */
        SE_TRY(se_index_find_near(store, (const uint8_t *)(op + 1), key_size, &session->near,
                                  &op->leaf));
    if (value_size)
        memcpy((uint8_t *)(op + 1) + key_size, value, value_size);
    session->used += size;
    session->op_count++;
    return SE_OK;
}

/* With the sequencer in hand: my request first, then the others'. */
static void serve_all(se_session *session) {
    se_store *store = session->store;
    uint64_t bit = UINT64_C(1) << (session->slot % 64);
    se_word *pending = &store->seq->pending[session->slot / 64];
    if (se_load_relaxed(pending) & bit)
        se_fetch_and(pending, ~bit);
    if (!replied(session))
        se_sequencer_serve(store, session->slot);
    if (se_sequencer_has_pending(store))
        se_sequencer_drain(store);
    se_sequencer_finish(store);
}

static se_status send(se_session *session) {
    se_slot *slot = slot_of(session);
    se_store_relaxed(&slot->request_size, session->used);
    se_store_relaxed(&slot->request_ops, session->op_count);
    se_store_relaxed(&slot->request_run_leaf, session->run_leaf);
    se_store_relaxed(&slot->request_run_epoch, session->run_epoch);
    se_store_relaxed_u32(&slot->request_seq, se_load_relaxed_u32(&slot->request_seq) + 1);
    se_store_release_u32(&slot->request_state, SE_REQUEST_PENDING);
    session->waiting = true;
    se_status status = se_sequencer_try(session->store);
    if (SE_LIKELY(status == SE_OK)) {
        serve_all(session);
        return SE_OK;
    }
    if (status == SE_BUSY)
        se_fetch_or(&session->store->seq->pending[session->slot / 64],
                    UINT64_C(1) << (session->slot % 64));
    return status;
}

/* Where the system has no memory left, asking for it at each commit would cost more than the commit:
 * freed blocks may still do, and the keeper asks on. */
static void grow_ahead(se_store *store) {
    if (se_load_relaxed(&store->seq->arena_exhausted)) {
        uint64_t now_ns = se_clock_ns();
        if (now_ns - se_load_relaxed(&store->asked_ns) < ASK_AGAIN_NS)
            return;
        atomic_store_explicit(&store->asked_ns, now_ns, memory_order_relaxed);
    }
    (void)se_arena_grow(store, SE_GROW_AHEAD);
}

se_status se_session_submit(se_session *session) {
    se_store *store = session->store;
    uint64_t margin = store->header->reserve_size + (UINT64_C(256) << 10) + session->used * 2;
    uint64_t bump = se_load_relaxed(&store->seq->arena_bump);
    uint64_t allocated = se_load_acquire(&store->seq->arena_allocated);
    if (SE_UNLIKELY(bump + RING_MARGIN > allocated &&
                    bump > se_load_relaxed(&store->rung_bump) + RING_STEP)) {
        /* The keeper sleeps, and this goes faster than it expects. */
        atomic_store_explicit(&store->rung_bump, bump, memory_order_relaxed);
        se_keeper_ring(store);
    }
    if (SE_UNLIKELY(bump + margin > allocated))
        grow_ahead(store);
    se_arena_map_ahead(store);
    return send(session);
}

static bool spin(se_session *session, int steps) {
    for (int step = 0; step < steps; step++) {
        if (replied(session))
            return true;
        se_pause();
    }
    return false;
}

se_status se_session_wait(se_session *session, uint64_t bound_ns) {
    if (session->repairing)
        return se_session_repair(session);
    se_slot *slot = slot_of(session);
    uint64_t start_ns = se_clock_ns();
    for (int round = 0;; round++) {
        if (spin(session, SPIN_STEPS))
            return SE_OK;
        se_status status = se_sequencer_try(session->store);
        if (status == SE_OK) {
            serve_all(session);
            return SE_OK;
        }
        if (status != SE_BUSY)
            return status;
        if (round < SPIN_ROUNDS)
            continue;
        if (round < SPIN_ROUNDS + YIELD_ROUNDS) {
            sched_yield();
            continue;
        }
        uint32_t seen = se_load_acquire_u32(&slot->reply_seq);
        se_store_relaxed_u32(&slot->parked, 1);
        se_fence_full();
        if (!replied(session)) {
            long rc = se_futex_wait(&slot->reply_seq, seen, PARK_NS);
            if (rc != 0 && errno == EINTR)
                return SE_BUSY;
        }
        se_store_relaxed_u32(&slot->parked, 0);
        if (se_clock_ns() - start_ns > bound_ns)
            return replied(session) ? SE_OK : SE_BUSY;
    }
}

static void finish(se_session *session) {
    session->waiting = false;
    se_session_unpin(session);
}

se_status se_session_withdraw(se_session *session) {
    se_slot *slot = slot_of(session);
    if (session->repairing) {
        session->repairing = false;
        finish(session);
        return SE_OK;
    }
    if (replied(session))
        return SE_BUSY;
    if (!se_swap_if_equal_u32(&slot->request_state, SE_REQUEST_PENDING, SE_REQUEST_IDLE))
        return replied(session) ? SE_BUSY : SE_IN_DOUBT;
    se_fetch_and(&session->store->seq->pending[session->slot / 64],
                 ~(UINT64_C(1) << (session->slot % 64)));
    finish(session);
    return SE_OK;
}

/* Enough may be free, in pieces that are too small: then no history has to go for it. */
static bool may_join(const se_session *session, uint64_t need) {
    const se_store *store = session->store;
    return se_load_relaxed(&store->seq->arena_free) >= need &&
           session->joins < se_join_stretches(store);
}

static se_status join_free_blocks(se_session *session) {
    bool whole = !se_join_under_way(session->store);
    se_status status = se_join_stretch(session->store);
    session->joins += whole && status == SE_OK;
    return status;
}

/* What the refused attempts had taken themselves is free again only now, and cut up for the next. */
static se_status try_last(se_session *session, uint64_t need) {
    if (session->last_tries++ == LAST_TRIES)
        return SE_FULL;
    return session->joins == 0 && may_join(session, need) ? join_free_blocks(session) : SE_OK;
}

/* Shared memory is used up: joins free blocks; if that does not do, frees what retention and the high-water rule let go. SE_BUSY: what was
 * freed waits for a reader, which is a matter of moments unless that process is stopped. */
static se_status make_room(se_session *session, uint64_t need) {
    se_store *store = session->store;
    uint64_t refused = se_load_relaxed(&slot_of(session)->reply_detail);
    uint64_t now_ns = se_clock_ns();
    if (session->short_since_ns == 0)
        session->short_since_ns = now_ns;
    bool patient = now_ns - session->short_since_ns < PATIENCE_NS;
    /* The pin would hold back what is freed; the leaves found are looked up again. */
    se_session_unpin(session);
    bool join = patient && may_join(session, need + store->header->reserve_size);
    bool again = !join && session->last_tries > 0; /* there is nothing more that could go */
    se_status status = join    ? join_free_blocks(session)
                       : again ? se_sweep_retired(store)
                               : se_sweep_for_room(store, need);
    (void)se_session_pin(session);
    if (join)
        return status;
    if (status != SE_OK && status != SE_NEED_SPACE) /* the sweep itself may have found no memory */
        return status;
    if (se_arena_used(store) < refused && (patient || session->repairs < REPAIRS_MAX)) {
        session->repairs++;
        session->joins = 0;
        return SE_OK;
    }
    if (!patient || se_load_relaxed(&store->seq->ring_head) ==
                        se_load_relaxed(&store->seq->ring_tail))
        return try_last(session, need);
    struct timespec pause = {0, 500000};
    nanosleep(&pause, NULL);
    return SE_BUSY;
}

static void forget_hints(se_session *session) {
    uint8_t *area = se_request_area(session->store, session->slot);
    for (uint64_t at = 0; at < session->used;) {
        se_op *op = (se_op *)(area + at);
        op->leaf = 0;
        at += (sizeof(se_op) + op->key_size + (uint64_t)op->value_size + 7) & ~UINT64_C(7);
    }
    session->run_known = false;
}

static se_status find_memory(se_session *session) {
    se_store *store = session->store;
    uint64_t keys = session->op_count + 2 * session->append_count;
    uint64_t need = session->used * 2 + keys * 256 + (UINT64_C(64) << 10);
    if (se_arena_grow(store, (need + SE_PAGE - 1) & ~(uint64_t)(SE_PAGE - 1)) == SE_OK)
        return SE_OK;
    se_status status = make_room(session, session->used + keys * 64);
    forget_hints(session);
    return status;
}

/* The pin would hold back memory for as long as the disk takes. */
static se_status find_log_room(se_session *session) {
    se_session_unpin(session);
    se_status status = se_ring_make_room(
        session->store, se_frame_bound(session->used, session->append_count), LOG_WAIT_NS);
    (void)se_session_pin(session);
    forget_hints(session);
    return status;
}

se_status se_session_repair(se_session *session) {
    uint64_t lack = se_load_relaxed(&slot_of(session)->reply_status);
    se_status status = lack == SE_NEED_SPACE ? find_memory(session)
                       : lack == SE_NEED_LOG ? find_log_room(session)
                                             : SE_OK;
    if (status == SE_OK)
        status = find_run(session);
    session->repairing = status == SE_BUSY;
    if (status == SE_BUSY)
        return status;
    if (status == SE_OK)
        return send(session);
    finish(session);
    return status;
}

/* A large write set's area is given back, but for a part that is worth keeping. */
static void trim_area(se_session *session) {
    se_store *store = session->store;
    uint64_t area = (uint64_t)(se_request_area(store, session->slot) - store->control);
    session->area_backed = AREA_KEEP;
    se_release_memory(store->control_fd, area + AREA_KEEP,
                      store->header->request_size - AREA_KEEP);
}

se_status se_session_outcome(se_session *session) {
    se_status status = (se_status)se_load_relaxed(&slot_of(session)->reply_status);
    if (SE_UNLIKELY(status == SE_NEED_SPACE || status == SE_STALE_RUN || status == SE_NEED_LOG))
        return SE_NEED_SPACE;
    finish(session);
    if (SE_UNLIKELY(session->area_backed > AREA_KEEP && session->used < AREA_FIRST))
        trim_area(session);
    return status;
}

uint64_t se_session_reply_version(const se_session *session) {
    return se_load_relaxed(&slot_of(session)->reply_version);
}

uint64_t se_session_reply_timestamp(const se_session *session) {
    return se_load_relaxed(&slot_of(session)->reply_timestamp);
}

uint64_t se_session_reply_detail(const se_session *session) {
    return se_load_relaxed(&slot_of(session)->reply_detail);
}

uint64_t se_session_reply_op(const se_session *session) {
    return se_load_relaxed(&slot_of(session)->reply_op);
}

int64_t se_session_first_result(const se_session *session) {
    return ((const se_op *)se_request_area(session->store, session->slot))->result;
}

uint64_t se_session_next_event(const se_session *session, uint64_t *at, const uint8_t **hash) {
    const uint8_t *area = se_request_area(session->store, session->slot);
    const se_op *op = (const se_op *)(area + *at);
    SE_ASSERT(op->kind == SE_OP_APPEND && *at < session->used);
    *hash = (const uint8_t *)(op + 1) + op->key_size + SE_EVENT_PREVIOUS;
    *at += (sizeof(se_op) + op->key_size + (uint64_t)op->value_size + 7) & ~UINT64_C(7);
    return (uint64_t)op->result;
}

uint64_t se_session_count_results(const se_session *session, uint32_t kind) {
    const uint8_t *area = se_request_area(session->store, session->slot);
    uint64_t count = 0;
    for (uint64_t at = 0; at < session->used;) {
        const se_op *op = (const se_op *)(area + at);
        count += op->kind == kind && op->result != 0;
        at += (sizeof(se_op) + op->key_size + (uint64_t)op->value_size + 7) & ~UINT64_C(7);
    }
    return count;
}
