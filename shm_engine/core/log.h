/* log.h - the log writer: from the ring to the files, and who waits for it.
 *
 * Why:        files have one owner, a thread of the coordinator. It takes what commits left in the
 *             ring, writes it in large pieces, syncs once for all who wait, and says so.
 * Used by:    open, start, stop, drain, close: the coordinator. wait, notice: any client.
 * Shared:     progress, durable_version, wal_consumed, log_* -> FORMAT.md.
 * Invariants: O1 progress is published only when the bytes before it are where the mode wants them;
 *             O2 a failed write or sync is final: log_failed is set and nothing more is written.
 * Ordering:   progress, then durable_version, then wal_consumed, each released, then the bell. A
 *             waiter sets log_parked, full fence, looks again, sleeps; the writer changes the word
 *             waited for, full fence, looks at log_parked.
 * Crash:      the successor starts from progress and writes the same bytes again.
 * Errors:     SE_IO with errno; log_failure says which step failed on which file.
 */
#ifndef SE_LOG_H
#define SE_LOG_H

#include "store.h"

typedef struct se_log se_log;

/* The log of a new store goes on behind this version, in a file of its own. Before se_log_open. */
void se_log_begin(se_store *store, uint64_t version);
/* Takes the log up where progress says. folder_fd stays the caller's, and open. */
se_status se_log_open(se_store *store, int folder_fd, se_log **log);
/* Writes and syncs everything that is committed now, on this thread; not while started. */
se_status se_log_drain(se_log *log);
/* Runs the log writer on a thread of its own. */
se_status se_log_start(se_log *log);
/* Ends the thread after it has written and synced everything; again does nothing. */
se_status se_log_stop(se_log *log);
void se_log_close(se_log *log);

/* SE_OK: the version is durable. SE_BUSY: not within the bound. SE_READ_ONLY: never. */
se_status se_log_wait_durable(se_store *store, uint64_t version, uint64_t bound_ns);
/* SE_OK: the ring has been consumed beyond this position. SE_BUSY, SE_READ_ONLY as above. */
se_status se_log_wait_progress(se_store *store, uint64_t consumed, uint64_t bound_ns);
/* Asks for a sync up to this version. */
void se_log_want_sync(se_store *store, uint64_t version);
void se_log_ring(se_store *store);
/* Asks the coordinator for a checkpoint; *ticket is what se_log_wait_checkpoint waits for. */
void se_log_want_checkpoint(se_store *store, uint64_t *ticket);
se_status se_log_wait_checkpoint(se_store *store, uint64_t ticket, uint64_t bound_ns);
/* The coordinator's sign, while it writes a checkpoint, that it goes on. */
void se_log_tell_checkpoint(se_store *store);
/* The coordinator's answer to all requests up to the ticket: an errno, or 0. */
void se_log_answer_checkpoint(se_store *store, uint64_t ticket, int error);
/* Refuses all further commits with this errno and text. */
void se_log_fail(se_store *store, int error, const char *what, const char *name);

/* After a commit, with a full fence before: wakes a log writer that sleeps for lack of work. */
static inline void se_log_notice(se_store *store) {
    if (store->header->wal_ring_size != 0 &&
        SE_UNLIKELY(se_load_relaxed_u32(&store->seq->log_asleep) != 0))
        se_log_ring(store);
}

#endif
