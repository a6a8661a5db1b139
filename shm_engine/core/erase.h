/* erase.h - the keys of deleted runs go, in small steps.
 *
 *     delete_run: one commit marks the run's record DELETED and puts the run on the queue
 *                 readers see none of its keys (reader.h), writers are refused (commit.c)
 *     steps:      a few dozen keys each, unlinked and retired, once no snapshot needs them
 *     last step:  tombstones for the record and the queue's entry; the id may be used anew
 *
 * Why:        a run of a million keys is gone at once for every reader, and no writer waits longer
 *             than a step takes.
 * Used by:    whoever deleted the run; the keeper, when that process has died or a snapshot was in
 *             the way; a client whose commit found no memory; recovery.
 * Shared:     the queue, keys 0..0 | 05 01 'e' | run id; erasing_runs -> FORMAT.md, "Erasing a run"
 * Invariants: D2 a step is a change of its own; only the last one is logged (the keys of the run go
 *             when a replay comes to it); D3 no key goes while an announced snapshot is older than
 *             the mark.
 * Crash:      the mark and the queue's entry stay until the last step: whoever comes goes on.
 */
#ifndef SE_ERASE_H
#define SE_ERASE_H

#include "index.h"

#define SE_ERASE_KEY_SIZE (SE_RUN_ID_SIZE + 3 + SE_RUN_ID_SIZE)

typedef enum {
    SE_ERASE_MORE,   /* keys are left */
    SE_ERASE_WAITS,  /* for an older snapshot, or for the log */
    SE_ERASE_DONE    /* nothing is left, the record is gone */
} se_erase_state;

/* An entry of the queue. */
static inline bool se_is_erase_key(const uint8_t *key, uint32_t key_size) {
    static const uint8_t start[SE_RUN_ID_SIZE + 3] = {[SE_RUN_ID_SIZE] = SE_TAG_RUN,
                                                      [SE_RUN_ID_SIZE + 1] = SE_SPACE_BOOKKEEPING,
                                                      [SE_RUN_ID_SIZE + 2] = 'e'};
    return key_size == SE_ERASE_KEY_SIZE && memcmp(key, start, sizeof start) == 0;
}

/* One step for this run. SE_BUSY: the sequencer is taken. */
se_status se_erase_step(se_store *store, const uint8_t *run, se_erase_state *state);
/* Steps for all runs of the queue, at most so many. */
se_status se_erase_queued(se_store *store, uint32_t steps);
/* All keys of the run but its record, at once: nobody reads while the log is replayed. */
se_status se_erase_replayed(se_store *store, const uint8_t *run);

#endif
