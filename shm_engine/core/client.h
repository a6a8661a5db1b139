/* client.h - slots of threads and handles, pins, announced snapshots, the death of clients.
 *
 * Why:        what a thread reads must not be freed under it: it pins the epoch (the commit_version
 *             it saw) in its own slot. What a snapshot needs must not be trimmed: it is announced.
 *             A slot names its process by pid and start time, so the death of a process is told
 *             without doubt, also when the pid comes again.
 * Used by:    any thread; se_client_reap: the holder.
 * Shared:     slots, snapshots -> FORMAT.md
 * Ordering:   pin, full fence, then read: pairs with the fence in se_epoch_min. Announce, full
 *             fence, then check trim_horizon: pairs with se_horizon_update.
 * Crash:      pins, snapshots and requests of a dead process are cleared by se_client_reap.
 */
#ifndef SE_CLIENT_H
#define SE_CLIENT_H

#include "store.h"

/* SE_TOO_MANY: every slot is taken (the dead were cleared before saying so). */
se_status se_client_join(se_store *store, uint32_t kind, uint32_t *slot);
/* Backs the request areas of so many slots that join next: a thread that comes when no memory is
 * left can still delete. *last: the slots below it were done. */
void se_client_prepare_next(se_store *store, uint32_t wanted, uint32_t *last);
/* A slot whose request is in a holder's hands becomes an orphan: the holder frees it after. */
void se_client_leave(se_store *store, uint32_t slot);
void se_client_drop_orphan(se_store *store, uint32_t slot);
/* Handles of living processes, this one's included. */
uint32_t se_client_members(const se_store *store);
uint32_t se_client_count(const se_store *store, uint32_t kind);
/* Announced snapshots, of all processes. */
uint32_t se_snapshot_count(const se_store *store);
/* Clears what dead processes left; the holder only. Returns how many slots. */
uint32_t se_client_reap(se_store *store);
/* Clears slots of this very process from before it replaced its program (exec). */
void se_client_clear_own(se_store *store);
/* The same as reap, taking the sequencer if it is free. */
uint32_t se_client_reap_try(se_store *store);

/* The epoch up to which retired blocks may be freed. */
uint64_t se_epoch_min(const se_store *store);
/* What trimming may use from now on; the holder only. */
void se_horizon_update(se_store *store);

/* SE_TOO_MANY: every entry is taken. */
se_status se_snapshot_claim(se_store *store, uint32_t *entry);
void se_snapshot_release(se_store *store, uint32_t entry);
/* Announces the newest version. */
void se_snapshot_open(se_store *store, uint32_t entry, uint64_t *opened);
void se_snapshot_close(se_store *store, uint32_t entry);

static inline uint64_t se_pin(se_store *store, uint32_t slot) {
    uint64_t epoch = se_load_acquire(&store->seq->commit_version);
    se_store_relaxed(&store->slots[slot].pin, epoch + 1);
    se_fence_full();
    return epoch;
}
static inline void se_unpin(se_store *store, uint32_t slot) {
    se_store_release(&store->slots[slot].pin, 0);
}
/* What a reader sees who starts now: in strict mode nothing that a power cut could take back. */
static inline uint64_t se_visible_version(const se_store *store) {
    if (SE_UNLIKELY(store->header->durability_kind == SE_STRICT))
        return se_load_acquire(&store->seq->durable_version);
    return se_load_acquire(&store->seq->commit_version);
}

#endif
