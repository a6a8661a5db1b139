/* client.c - join, leave, reap; pins and snapshots. */
#include "client.h"

#include "sequencer.h"

static void raise_to(se_word *word, uint64_t value) {
    uint64_t now = se_load_acquire(word);
    while (now < value && !se_swap_if_equal(word, now, value))
        now = se_load_acquire(word);
}

static uint32_t slot_high(const se_store *store) {
    uint64_t high = se_load_acquire(&store->seq->slot_high);
    return high < store->header->max_clients ? (uint32_t)high : store->header->max_clients;
}

static uint32_t snapshot_high(const se_store *store) {
    uint64_t high = se_load_acquire(&store->seq->snapshot_high);
    return high < store->header->snapshot_count ? (uint32_t)high : store->header->snapshot_count;
}

/* The last slot of a database with a log is its coordinator's: a checkpoint must not fail because
 * clients have taken all of them. */
static uint32_t slots_for(const se_store *store) {
    bool reserved = store->header->wal_ring_size != 0 &&
                    se_load_relaxed(&store->seq->keeper_identity) != store->identity;
    return store->header->max_clients - reserved;
}

static se_status claim_slot(se_store *store, uint32_t kind, uint32_t *slot) {
    uint32_t slots = slots_for(store);
    for (uint32_t index = 0; index < slots; index++) {
        se_slot *candidate = &store->slots[index];
        if (se_load_relaxed(&candidate->identity) != 0 ||
            !se_swap_if_equal(&candidate->identity, 0, store->identity))
            continue;
        raise_to(&store->seq->slot_high, index + 1);
        se_store_release(&candidate->kind, kind);
        *slot = index;
        return SE_OK;
    }
    return SE_TOO_MANY;
}

se_status se_client_join(se_store *store, uint32_t kind, uint32_t *slot) {
    if (store->identity == 0)
        return SE_IO; /* no /proc: deaths could not be told */
    se_status status = claim_slot(store, kind, slot);
    if (status == SE_TOO_MANY && se_client_reap_try(store) > 0)
        status = claim_slot(store, kind, slot);
    return status;
}

void se_client_prepare_next(se_store *store, uint32_t wanted, uint32_t *last) {
    for (uint32_t index = 0; index < store->header->max_clients && wanted > 0; index++) {
        if (se_load_relaxed(&store->slots[index].identity) != 0)
            continue;
        wanted--;
        if (index < *last)
            continue;
        if (se_back_with_memory(store->control_fd,
                                store->header->requests_offset +
                                    (uint64_t)index * store->header->request_size,
                                SE_REQUEST_FIRST) != SE_OK)
            return;
        *last = index + 1;
    }
}

static void clear_slot(se_slot *slot) {
    se_store_release_u32(&slot->request_state, SE_REQUEST_IDLE);
    se_store_release(&slot->pin, 0);
    se_store_release_u32(&slot->parked, 0);
    se_store_release(&slot->kind, 0);
    se_store_release(&slot->identity, 0);
}

void se_client_drop_orphan(se_store *store, uint32_t slot) {
    /* The owner and the holder may both come here; one of them wins. */
    if (se_swap_if_equal(&store->slots[slot].kind, SE_SLOT_ORPHAN, 0))
        clear_slot(&store->slots[slot]);
}

void se_client_leave(se_store *store, uint32_t index) {
    se_slot *slot = &store->slots[index];
    (void)se_swap_if_equal_u32(&slot->request_state, SE_REQUEST_PENDING, SE_REQUEST_IDLE);
    if (SE_LIKELY(se_load_acquire_u32(&slot->request_state) == SE_REQUEST_IDLE)) {
        clear_slot(slot);
        return;
    }
    se_store_release(&slot->kind, SE_SLOT_ORPHAN);
    se_fence_full();
    if (se_load_acquire_u32(&slot->request_state) == SE_REQUEST_IDLE)
        se_client_drop_orphan(store, index);
}

/* The last process asked about, so that its many slots cost one look into /proc. */
typedef struct {
    uint64_t identity;
    bool alive;
} liveness;

static bool owner_alive(const se_store *store, uint64_t identity, liveness *last) {
    if (identity == store->identity)
        return true;
    if (identity != last->identity) {
        last->identity = identity;
        last->alive = se_process_alive(identity);
    }
    return last->alive;
}

uint32_t se_client_members(const se_store *store) {
    uint32_t count = 0;
    uint32_t high = slot_high(store);
    liveness last = {0, false};
    for (uint32_t index = 0; index < high; index++) {
        const se_slot *slot = &store->slots[index];
        uint64_t identity = se_load_acquire(&slot->identity);
        uint64_t kind = se_load_acquire(&slot->kind);
        if (identity && kind != SE_SLOT_THREAD && kind != SE_SLOT_ORPHAN &&
            owner_alive(store, identity, &last))
            count++; /* kind 0: is just joining */
    }
    return count;
}

uint32_t se_client_count(const se_store *store, uint32_t kind) {
    uint32_t count = 0;
    uint32_t high = slot_high(store);
    for (uint32_t index = 0; index < high; index++)
        count += se_load_relaxed(&store->slots[index].identity) != 0 &&
                 se_load_relaxed(&store->slots[index].kind) == kind;
    return count;
}

uint32_t se_snapshot_count(const se_store *store) {
    uint32_t count = 0;
    uint32_t snapshots = snapshot_high(store);
    for (uint32_t index = 0; index < snapshots; index++)
        count += se_load_relaxed(&store->snapshots[index].version) != SE_NO_SNAPSHOT;
    return count;
}

uint32_t se_client_reap(se_store *store) {
    uint32_t reaped = 0;
    uint32_t high = slot_high(store);
    uint32_t snapshots = snapshot_high(store);
    liveness last = {0, false};
    for (uint32_t index = 0; index < high; index++) {
        se_slot *slot = &store->slots[index];
        uint64_t identity = se_load_acquire(&slot->identity);
        if (!identity || owner_alive(store, identity, &last))
            continue;
        clear_slot(slot);
        reaped++;
    }
    for (uint32_t index = 0; index < snapshots; index++) {
        se_snapshot *entry = &store->snapshots[index];
        uint64_t identity = se_load_acquire(&entry->identity);
        if (!identity || owner_alive(store, identity, &last))
            continue;
        se_snapshot_release(store, index);
    }
    se_word *counter = &store->seq->reaped_clients;
    se_store_relaxed(counter, se_load_relaxed(counter) + reaped);
    return reaped;
}

void se_client_clear_own(se_store *store) {
    if (se_sequencer_lock(store, UINT64_C(100) * 1000000u) != SE_OK)
        return;
    uint32_t high = slot_high(store);
    uint32_t snapshots = snapshot_high(store);
    for (uint32_t index = 0; index < high; index++) {
        if (se_load_acquire(&store->slots[index].identity) == store->identity)
            clear_slot(&store->slots[index]);
    }
    for (uint32_t index = 0; index < snapshots; index++) {
        if (se_load_acquire(&store->snapshots[index].identity) == store->identity)
            se_snapshot_release(store, index);
    }
    se_sequencer_finish(store);
}

uint32_t se_client_reap_try(se_store *store) {
    if (se_sequencer_try(store) != SE_OK)
        return 0;
    uint32_t reaped = se_client_reap(store);
    se_sequencer_release(store);
    return reaped;
}

uint64_t se_epoch_min(const se_store *store) {
    uint64_t least = se_load_relaxed(&store->seq->commit_version);
    se_fence_full();
    uint32_t high = slot_high(store);
    for (uint32_t index = 0; index < high; index++) {
        const se_slot *slot = &store->slots[index];
        if (se_load_acquire(&slot->identity) == 0)
            continue; /* what a thread read before it left is behind it */
        uint64_t pin = se_load_acquire(&slot->pin);
        if (pin && pin - 1 < least)
            least = pin - 1;
    }
    return least;
}

void se_horizon_update(se_store *store) {
    se_sequencer *seq = store->seq;
    uint64_t horizon = se_visible_version(store);
    se_store_relaxed(&seq->trim_horizon, horizon);
    se_fence_full();
    uint32_t snapshots = snapshot_high(store);
    for (uint32_t index = 0; index < snapshots; index++) {
        uint64_t version = se_load_acquire(&store->snapshots[index].version);
        if (version < horizon)
            horizon = version;
    }
    if (horizon > se_load_relaxed(&seq->trim_effective))
        se_store_release(&seq->trim_effective, horizon);
}

se_status se_snapshot_claim(se_store *store, uint32_t *entry) {
    if (store->identity == 0)
        return SE_IO;
    for (uint32_t index = 0; index < store->header->snapshot_count; index++) {
        se_snapshot *candidate = &store->snapshots[index];
        if (se_load_relaxed(&candidate->identity) == 0 &&
            se_swap_if_equal(&candidate->identity, 0, store->identity)) {
            raise_to(&store->seq->snapshot_high, index + 1);
            *entry = index;
            return SE_OK;
        }
    }
    return SE_TOO_MANY;
}

void se_snapshot_release(se_store *store, uint32_t entry) {
    se_store_release(&store->snapshots[entry].version, SE_NO_SNAPSHOT);
    se_store_release(&store->snapshots[entry].identity, 0);
}

void se_snapshot_open(se_store *store, uint32_t entry, uint64_t *opened) {
    do {
        *opened = se_visible_version(store);
        se_store_relaxed(&store->snapshots[entry].version, *opened);
        se_fence_full();
    } while (se_load_acquire(&store->seq->trim_horizon) > *opened);
}

void se_snapshot_close(se_store *store, uint32_t entry) {
    se_store_release(&store->snapshots[entry].version, SE_NO_SNAPSHOT);
}
