/* session.h - one thread's side of reading and committing.
 *
 * Why:        a thread looks keys up in its own time, writes them into its own request area with the
 *             leaves it found, and submits; the critical section then has little left to do. The
 *             pin taken at the first look-up keeps those leaves alive until the reply.
 * Used by:    the one thread that owns it.
 * Invariants: N1 pins nest: the outermost one counts; N2 a request that could not be withdrawn stays
 *             with the session, and the next one waits for it first.
 * Errors:     SE_BUSY from submit and wait is not a failure: call wait again, or withdraw.
 */
#ifndef SE_SESSION_H
#define SE_SESSION_H

#include "index.h"

typedef struct {
    se_store *store;
    uint32_t slot;
    uint32_t pin_depth;
    uint64_t pin_epoch;
    uint64_t area_backed; /* bytes of the request area backed by memory */
    uint64_t used;
    uint64_t op_count;
    uint64_t append_count;
    bool waiting; /* submitted, not replied */
    uint64_t short_since_ns; /* since when this write set has found no memory, 0: it has not */
    uint32_t repairs;        /* how often it was submitted again after room was made */
    uint32_t last_tries;     /* how often when nothing more could be done */
    uint64_t joins;          /* stretches whose free blocks were joined for it since then */
    bool repairing; /* replied that memory is short, and not submitted again yet */
    bool committing; /* the caller's: between submit and the outcome */
    uint8_t run[SE_RUN_ID_SIZE];
    bool run_known;
    uint64_t run_leaf;
    uint64_t run_epoch;
    se_index_near near; /* where the last key of the write set was found */
} se_session;

se_status se_session_open(se_session *session, se_store *store);
void se_session_close(se_session *session);
uint64_t se_session_pin(se_session *session);
void se_session_unpin(se_session *session);

/* Starts a write set of this run. */
se_status se_session_begin(se_session *session, const uint8_t *run, uint64_t now_us,
                           uint64_t snapshot);
/* Adds an operation. SE_TOO_LARGE, SE_FULL: the write set is given up. */
se_status se_session_add(se_session *session, uint32_t kind, const uint8_t *key,
                         uint32_t key_size, const void *value, uint32_t value_size,
                         uint64_t expires_us, int64_t argument);
void se_session_abandon(se_session *session);
/* SE_OK: the reply is there. */
se_status se_session_submit(se_session *session);
se_status se_session_wait(se_session *session, uint64_t bound_ns);
/* SE_OK: withdrawn and ended, nothing was or will be done. SE_BUSY: the reply is there. SE_IN_DOUBT. */
se_status se_session_withdraw(se_session *session);
/* The status of the reply; ends the write set, except for SE_NEED_SPACE: then se_session_repair. */
se_status se_session_outcome(se_session *session);
/* Finds memory, or the run's record, and submits again. SE_OK: a reply is there. SE_BUSY: wait. Any
 * other status is the outcome. May take long: it may sweep all keys. */
se_status se_session_repair(se_session *session);
uint64_t se_session_reply_version(const se_session *session);
uint64_t se_session_reply_timestamp(const se_session *session);
uint64_t se_session_reply_detail(const se_session *session);
uint64_t se_session_reply_op(const se_session *session);
/* What the first operation gave back; how many of a kind gave something. */
int64_t se_session_first_result(const se_session *session);
/* What the APPEND at *at (first: 0) gave: the event's sequence and its hash; moves *at past it. */
uint64_t se_session_next_event(const se_session *session, uint64_t *at, const uint8_t **hash);
uint64_t se_session_count_results(const se_session *session, uint32_t kind);

#endif
