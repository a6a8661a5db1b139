/* thread.h - which session a thread of this process uses.
 *
 * Why:        a slot belongs to one thread of one process. A thread finds its session in one
 *             comparison; a new thread gets one at first use; a thread that ends gives its slot
 *             back; a forked child starts with none.
 * Used by:    any thread. se_threads_close: with no thread of the process inside the store.
 */
#ifndef SE_THREAD_H
#define SE_THREAD_H

#include "session.h"

typedef struct {
    uint64_t threads_id; /* 0: nothing */
    uint64_t fork_count;
    se_session *session;
} se_thread_cache;

extern _Thread_local se_thread_cache se_thread_last;
/* Grows in every forked child. */
extern uint64_t se_fork_count;

/* Registers a store; the number is never used again in this process. */
uint64_t se_threads_open(se_store *store);
/* Gives all slots of this process back. */
void se_threads_close(uint64_t threads_id);
/* Whether another thread than this one is between submit and the outcome of a commit. */
bool se_threads_committing(uint64_t threads_id);
/* In a forked child: forgets the parent's sessions. */
void se_threads_after_fork(uint64_t threads_id);
se_status se_thread_session_slow(uint64_t threads_id, se_session **session);

static inline se_status se_thread_session(uint64_t threads_id, se_session **session) {
    if (SE_LIKELY(se_thread_last.threads_id == threads_id &&
                  se_thread_last.fork_count == se_fork_count)) {
        *session = se_thread_last.session;
        return SE_OK;
    }
    return se_thread_session_slow(threads_id, session);
}

#endif
