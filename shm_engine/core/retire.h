/* retire.h - the ring of unlinked blocks that some reader may still see.
 *
 * Why:        a block that a commit unlinks stays readable until every pin is at the version of
 *             that commit or later. Blocks wait here in the order of their versions; the oldest are
 *             freed first. A trimmed history is one entry: the chain of its records is walked when
 *             it is freed, so that trimming costs the same however long the history was.
 * Used by:    the holder of the sequencer.
 * Shared:     ring_*, chain_next, safe_epoch -> FORMAT.md, "Retire ring"
 * Invariants: T1 epochs in the ring never fall; T2 an entry is freed only if its epoch is <=
 *             commit_version and <= every pin.
 * Crash:      pushes of a commit are undone by restoring ring_tail; the three steps of freeing are
 *             finished by se_retire_mend.
 */
#ifndef SE_RETIRE_H
#define SE_RETIRE_H

#include "store.h"

se_status se_retire_init(se_store *store);
/* How many pushes there is room for. */
uint64_t se_retire_room(const se_store *store);
/* Makes room for so many pushes, in a change of its own: a rollback of the change that needs them
 * pushes every block that it took. */
se_status se_retire_reserve(se_store *store, uint64_t need);
/* Inside a change: block was unlinked by it. */
se_status se_retire(se_store *store, uint64_t block);
/* Inside a rollback: block was taken by the change that is rolled back. Idempotent. */
se_status se_retire_after_rollback(se_store *store, uint64_t block);
/* After a death: finishes the freeing that was under way. */
se_status se_retire_mend(se_store *store);
/* Frees up to budget blocks; outside a change. */
se_status se_retire_free(se_store *store, uint32_t budget);

#endif
