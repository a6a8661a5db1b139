/* keeper.c - grow ahead, reap, sweep. */
#include "keeper.h"

#include <signal.h>

#include "arena.h"
#include "client.h"
#include "erase.h"
#include "futex.h"
#include "join.h"
#include "sequencer.h"
#include "retire.h"
#include "sweep.h"

#define AHEAD_MAX (UINT64_C(16) << 20)
#define GARBAGE_MIN (UINT64_C(4) << 20)
#define REAP_NS (UINT64_C(100) * 1000000u)
#define SWEEP_NS (UINT64_C(250) * 1000000u)
#define TTL_NS (UINT64_C(2000) * 1000000u)
#define STANDBY_NS (UINT64_C(250) * 1000000u)
#define JOIN_STEPS 8
#define ERASE_STEPS 128
#define TICK_NS (UINT64_C(20) * 1000000u)

struct se_keeper_thread {
    pthread_t thread;
    se_store *store;
    se_word32 stop;
};

/* Keeps as much backed memory ahead as a quarter of what is in use, within bounds. */
static se_status grow_ahead(se_store *store) {
    uint64_t bump = se_load_relaxed(&store->seq->arena_bump);
    uint64_t allocated = se_load_acquire(&store->seq->arena_allocated);
    uint64_t ahead = bump / 4;
    ahead = ahead < (UINT64_C(1) << 20) ? UINT64_C(1) << 20 : ahead > AHEAD_MAX ? AHEAD_MAX : ahead;
    se_status status = SE_OK;
    while (status == SE_OK && allocated - bump < ahead && allocated < store->data_size) {
        status = se_arena_grow(store, SE_GROW_AHEAD);
        allocated = se_load_acquire(&store->seq->arena_allocated);
    }
    return status == SE_FULL ? SE_OK : status;
}

static bool due(uint64_t *last_ns, uint64_t now_ns, uint64_t every_ns) {
    if (now_ns - *last_ns < every_ns)
        return false;
    *last_ns = now_ns;
    return true;
}

static se_status sweep_if_needed(se_keeper *keeper, se_store *store, uint64_t now_ns) {
    se_sequencer *seq = store->seq;
    uint64_t garbage = se_load_relaxed(&seq->garbage_size);
    uint64_t used = se_arena_used(store);
    if (se_sweep_high_water(store))
        return SE_OK;
    bool expiring = se_load_relaxed(&seq->ttl_keys) > 0 && due(&keeper->last_ttl_ns, now_ns, TTL_NS);
    if (!expiring && (garbage < GARBAGE_MIN || garbage < used / 4))
        return SE_OK;
    se_store_relaxed(&seq->garbage_size, 0);
    return se_sweep_all(store, 0, se_clock_real_us());
}

/* Whoever began to join free blocks may have died, or found memory in another way. */
static se_status go_on_joining(se_store *store) {
    se_status status = SE_OK;
    for (int step = 0; step < JOIN_STEPS && status == SE_OK && se_join_under_way(store); step++) {
        if (se_sequencer_try(store) != SE_OK)
            break;
        if (se_join_under_way(store))
            status = se_join_step(store);
        se_sequencer_finish(store);
    }
    return status;
}

se_status se_keeper_tick(se_keeper *keeper, se_store *store) {
    uint64_t now_ns = se_clock_ns();
    /* A forked child takes one for its handle and one to write. */
    se_client_prepare_next(store, 2, &keeper->prepared_slots);
    se_status status = grow_ahead(store);
    if (due(&keeper->last_reap_ns, now_ns, REAP_NS))
        (void)se_client_reap_try(store);
    if (due(&keeper->last_sweep_ns, now_ns, SWEEP_NS)) {
        se_status swept = sweep_if_needed(keeper, store, now_ns);
        status = status == SE_OK && swept != SE_BUSY ? swept : status;
    }
    if (status == SE_OK)
        status = go_on_joining(store);
    if (status == SE_OK) {
        se_status erased = se_erase_queued(store, ERASE_STEPS);
        status = erased == SE_CORRUPT ? erased : SE_OK;
    }
    if (se_load_relaxed(&store->seq->ring_head) != se_load_relaxed(&store->seq->ring_tail) &&
        se_sequencer_try(store) == SE_OK) {
        se_status freed = se_retire_free(store, 256);
        status = status == SE_OK ? freed : status;
        se_sequencer_finish(store);
    }
    return status;
}

void se_keeper_sleep(se_store *store, uint64_t bound_ns) {
    uint32_t seen = se_load_acquire_u32(&store->seq->keeper_bell);
    (void)se_futex_wait(&store->seq->keeper_bell, seen, bound_ns);
}

void se_keeper_ring(se_store *store) {
    atomic_fetch_add_explicit(&store->seq->keeper_bell, 1, memory_order_release);
    se_futex_wake(&store->seq->keeper_bell, 1 << 30);
}

/* The duties are this process's if nobody living has them. */
static bool is_keeper(se_store *store) {
    se_word *word = &store->seq->keeper_identity;
    uint64_t keeper = se_load_acquire(word);
    if (keeper == store->identity)
        return true;
    return !se_process_alive(keeper) && se_swap_if_equal(word, keeper, store->identity);
}

void se_keeper_resign(se_store *store) {
    (void)se_swap_if_equal(&store->seq->keeper_identity, store->identity, 0);
}

static void *run(void *argument) {
    se_keeper_thread *self = argument;
    se_keeper keeper;
    memset(&keeper, 0, sizeof keeper);
    while (!se_load_acquire_u32(&self->stop)) {
        bool mine = is_keeper(self->store);
        if (mine && se_keeper_tick(&keeper, self->store) == SE_CORRUPT)
            break;
        if (!se_load_acquire_u32(&self->stop))
            se_keeper_sleep(self->store, mine ? TICK_NS : STANDBY_NS);
    }
    se_keeper_resign(self->store);
    return NULL;
}

se_keeper_thread *se_keeper_start(se_store *store) {
    se_keeper_thread *self = calloc(1, sizeof *self);
    if (!self)
        return NULL;
    self->store = store;
    sigset_t all;
    sigset_t before;
    sigfillset(&all); /* signals belong to the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&self->thread, NULL, run, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        free(self);
        return NULL;
    }
    return self;
}

void se_keeper_stop(se_keeper_thread *self) {
    se_store_release_u32(&self->stop, 1);
    se_keeper_ring(self->store);
    pthread_join(self->thread, NULL);
    free(self);
}
