/* history.h - the workload of the crash tests, and what each prefix of it leaves behind.
 *
 * Why:        after a crash the store has to be some prefix of what was committed, to the byte and
 *             to the version; so every change of every step is known beforehand.
 */
#ifndef HISTORY_H
#define HISTORY_H

#include "../core/harness.h"

#define KEYS 30u /* a sweep takes them in one step, with one version */
#define STEPS 96u
#define CHANGES_MAX 1024u

typedef enum {
    STEP_COMMIT,     /* the changes of the step, as one write set */
    STEP_SWEEP,      /* makes tombstones of what has run out */
    STEP_ADVANCE,    /* a version without a commit */
    STEP_CHECKPOINT, /* written, and what it makes superfluous removed */
} step_kind;

typedef struct {
    uint32_t step;
    uint32_t key;
    uint32_t size; /* of the value; 0: deleted */
    uint64_t expires_us;
} change;

/* Written by the process that runs the workload, read by the one that judges. */
typedef struct {
    uint32_t done;  /* steps carried out in memory */
    uint32_t acked; /* steps that were said to be on the disk */
    uint64_t steps; /* of the disk */
    uint64_t version[STEPS]; /* commit_version after each step */
    uint64_t buried[STEPS];  /* of a sweep: the keys, as bits */
    bool failed;        /* the disk failed, and it was noticed */
    uint64_t recovered; /* version that the first whole recovery came to */
} progress;

typedef struct {
    step_kind kind[STEPS];
    uint32_t first_change[STEPS + 1];
    change changes[CHANGES_MAX];
} history;

void history_plan(history *plan, uint32_t seed);
/* Carries out one step; errors of the disk are returned. */
se_status history_run(const history *plan, se_store *store, se_session *session, int folder_fd,
                      uint32_t step, progress *shared);
/* Whether a step leaves something in the log. */
bool history_is_logged(const history *plan, const progress *shared, uint32_t step);
/* The store is what steps 0 .. count - 1 leave, and `extra` live keys of others. */
void history_check(const history *plan, const progress *shared, se_store *store, uint32_t count,
                   uint32_t extra);

#endif
