/* sequencer.c - take, drain, release, recover. */
#include "sequencer.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "arena.h"
#include "bell.h"
#include "client.h"
#include "commit.h"
#include "futex.h"
#include "log.h"
#include "retire.h"
#include "undo.h"

/* Tells the client, and sets a slot free whose owner left in the meantime. */
static void acknowledge(se_store *store, se_slot *slot, uint32_t index, uint32_t number) {
    /* From IDLE on the slot may have another owner, whose request has another number. */
    se_store_relaxed_u32(&slot->request_state, SE_REQUEST_IDLE);
    se_store_release_u32(&slot->reply_seq, number);
    se_fence_full();
    if (se_load_relaxed_u32(&slot->parked)) {
        se_store_relaxed_u32(&slot->parked, 0);
        se_futex_wake(&slot->reply_seq, 1);
    }
    if (SE_UNLIKELY(se_load_relaxed(&slot->kind) == SE_SLOT_ORPHAN))
        se_client_drop_orphan(store, index);
}

/* Requests that the dead holder had taken: done ones are acknowledged, the others wait again. */
static void mend_requests(se_store *store) {
    for (uint32_t index = 0; index < store->header->max_clients; index++) {
        se_slot *slot = &store->slots[index];
        uint32_t number = se_load_relaxed_u32(&slot->request_seq);
        if (se_load_acquire_u32(&slot->request_state) != SE_REQUEST_TAKEN) {
            if (se_load_relaxed(&slot->kind) == SE_SLOT_ORPHAN)
                se_client_drop_orphan(store, index);
            continue;
        }
        if (se_load_relaxed(&slot->outcome_seq) == number) {
            acknowledge(store, slot, index, number);
            continue;
        }
        se_store_release_u32(&slot->request_state, SE_REQUEST_PENDING);
        se_fetch_or(&store->seq->pending[index / 64], UINT64_C(1) << (index % 64));
    }
}

static se_status recover(se_store *store) {
    /* A change and a freeing are never under way together; a change may have widened the ring. */
    if (se_undo_adopt(store))
        SE_TRY(se_undo_rollback(store));
    SE_TRY(se_retire_mend(store));
    SE_TRY(se_arena_recount(store));
    mend_requests(store);
    se_word *counter = &store->seq->recoveries;
    se_store_relaxed(counter, se_load_relaxed(counter) + 1);
    store->changed_bells = UINT64_MAX; /* the dead holder may have rung none of its own */
    return SE_OK;
}

se_status se_sequencer_try(se_store *store) {
    pthread_mutex_t *mutex = &store->seq->mutex;
    int rc = pthread_mutex_trylock(mutex);
    if (SE_UNLIKELY(rc != 0)) {
        if (rc == EBUSY || rc == EAGAIN)
            return SE_BUSY;
        if (rc != EOWNERDEAD)
            return SE_CORRUPT;
        se_status status = recover(store);
        if (status != SE_OK) {
            pthread_mutex_unlock(mutex); /* not made consistent: nobody gets it again */
            return status;
        }
        pthread_mutex_consistent(mutex);
    }
    se_store_relaxed(&store->seq->owner_pid, (uint32_t)store->identity);
    store->undo_count = 0;
    store->taken_count = 0;
    return SE_OK;
}

se_status se_sequencer_lock(se_store *store, uint64_t bound_ns) {
    uint64_t start_ns = se_clock_ns();
    for (;;) {
        se_status status = se_sequencer_try(store);
        if (status != SE_BUSY || se_clock_ns() - start_ns >= bound_ns)
            return status;
        struct timespec pause = {0, 50000};
        nanosleep(&pause, NULL);
    }
}

void se_sequencer_release(se_store *store) {
    se_store_relaxed(&store->seq->owner_pid, 0);
    pthread_mutex_unlock(&store->seq->mutex);
}

uint32_t se_sequencer_owner(const se_store *store) {
    return (uint32_t)se_load_relaxed(&store->seq->owner_pid);
}

void se_sequencer_serve(se_store *store, uint32_t index) {
    se_slot *slot = &store->slots[index];
    uint32_t number = se_load_relaxed_u32(&slot->request_seq);
    if (se_load_relaxed_u32(&slot->reply_seq) == number)
        return;
    if (se_load_relaxed(&slot->outcome_seq) != number)
        se_commit_serve(store, slot, index);
    acknowledge(store, slot, index, number);
    store->commit_serial++;
}

void se_sequencer_drain(se_store *store) {
    uint32_t words = (store->header->max_clients + 63) / 64;
    for (uint32_t word = 0; word < words; word++) {
        uint64_t bits = se_load_acquire(&store->seq->pending[word]);
        if (bits == 0)
            continue;
        se_fetch_and(&store->seq->pending[word], ~bits);
        for (; bits; bits &= bits - 1) {
            uint32_t index = word * 64 + (uint32_t)__builtin_ctzll(bits);
            if (index < store->header->max_clients &&
                se_swap_if_equal_u32(&store->slots[index].request_state, SE_REQUEST_PENDING,
                                     SE_REQUEST_TAKEN))
                se_sequencer_serve(store, index);
        }
    }
}

bool se_sequencer_has_pending(const se_store *store) {
    uint32_t words = (store->header->max_clients + 63) / 64;
    for (uint32_t word = 0; word < words; word++) {
        if (se_load_acquire(&store->seq->pending[word]) != 0)
            return true;
    }
    return false;
}

/* Wakes one that waits, so that it takes the sequencer itself. */
static void wake_one_pending(se_store *store) {
    for (uint32_t word = 0; word * 64 < store->header->max_clients; word++) {
        uint64_t bits = se_load_acquire(&store->seq->pending[word]);
        if (bits) {
            se_futex_wake(&store->slots[word * 64 + (uint32_t)__builtin_ctzll(bits)].reply_seq, 1);
            return;
        }
    }
}

void se_sequencer_finish(se_store *store) {
    for (int round = 0;; round++) {
        uint64_t bells = store->changed_bells;
        store->changed_bells = 0;
        se_sequencer_release(store);
        se_fence_full();
        se_bell_ring(store, bells);
        se_log_notice(store);
        if (SE_LIKELY(!se_sequencer_has_pending(store)))
            return;
        if (round == 2) {
            wake_one_pending(store);
            return;
        }
        if (se_sequencer_try(store) != SE_OK)
            return; /* whoever has it now drains */
        se_sequencer_drain(store);
    }
}

void se_sequencer_advance(se_store *store) {
    uint64_t version = se_load_relaxed(&store->seq->commit_version);
    se_store_release(&store->seq->commit_version, version + 1);
}
