/* sequencer.h - the one place where commits happen, lent to whoever needs it.
 *
 *     client A: request -> try mutex -> taken: serve A, then everybody who is pending -> release
 *     client B: request -> try mutex -> busy: mark pending, wait for the reply (A serves B)
 *
 * Why:        a process that owned all commits would cost two context switches for each as soon as
 *             processes outnumber cores. Here the coordinator lends the sequencer: whoever finds it
 *             free drains all requests, with the one function se_sequencer_drain.
 * Used by:    coordinator and clients, any thread.
 * Shared:     se_sequencer, the slots' requests and replies -> FORMAT.md
 * Invariants: S1 only the holder of the mutex changes what lies behind it; S2 commit_version grows by
 *             one per commit and is the commit point; S3 a request is carried out at most once
 *             (outcome_seq); S4 timestamps never fall.
 * Ordering:   the release of commit_version publishes the commit; readers acquire it.
 * Crash:      before the commit point the next holder rolls back and the request stays pending;
 *             after it the next holder acknowledges. tests/core/test_kill.c dies at every store.
 */
#ifndef SE_SEQUENCER_H
#define SE_SEQUENCER_H

#include "store.h"

/* SE_BUSY: somebody holds it. SE_CORRUPT: a dead holder left what cannot be mended. */
se_status se_sequencer_try(se_store *store);
/* Waits, at most so long; for upkeep. */
se_status se_sequencer_lock(se_store *store, uint64_t bound_ns);
void se_sequencer_release(se_store *store);
/* Serves everybody whose pending bit is set. The holder. */
void se_sequencer_drain(se_store *store);
/* Serves one slot's request, if it is waiting. The holder. */
void se_sequencer_serve(se_store *store, uint32_t slot);
/* Releases; then serves who came in between, so that nobody waits on a free sequencer. */
void se_sequencer_finish(se_store *store);
bool se_sequencer_has_pending(const se_store *store);
/* Consumes a version without a commit, so that blocks retired by upkeep can be freed. The holder. */
void se_sequencer_advance(se_store *store);
/* The process that holds it now, 0 if nobody does. */
uint32_t se_sequencer_owner(const se_store *store);

#endif
