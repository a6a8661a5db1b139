/* keeper.h - the duties of the coordinator that need no files.
 *
 * Why:        memory is backed ahead of need, dead clients are cleared, and old history goes, by
 *             somebody who is not in the middle of a commit: the coordinator process, or for
 *             ephemeral databases a thread of the opening process. Clients can do all of it
 *             themselves at need, so the keeper's death costs speed and nothing else.
 * Used by:    one thread at a time.
 */
#ifndef SE_KEEPER_H
#define SE_KEEPER_H

#include "store.h"

typedef struct {
    uint64_t last_reap_ns;
    uint64_t last_sweep_ns;
    uint64_t last_ttl_ns;
    uint32_t prepared_slots; /* request areas of slots below it were backed */
} se_keeper;

/* One round of duties. */
se_status se_keeper_tick(se_keeper *keeper, se_store *store);
/* Sleeps until the bell rings or the time is over. */
void se_keeper_sleep(se_store *store, uint64_t bound_ns);
void se_keeper_ring(se_store *store);

/* Lets another process have the duties, if they are this one's. */
void se_keeper_resign(se_store *store);

/* The thread of an ephemeral database: every process that has a handle runs one, and the first
 * living one does the duties. */
typedef struct se_keeper_thread se_keeper_thread;
se_keeper_thread *se_keeper_start(se_store *store);
void se_keeper_stop(se_keeper_thread *thread);

#endif
