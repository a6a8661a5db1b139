/* aside.h - the folder damaged-<n>/, where salvage puts what it cannot use.
 *
 * Why:        repair goes on without some bytes, but never destroys them: somebody may still read
 *             something out of them.
 * Used by:    recovery, one thread.
 * Crash:      each file is in its place or aside, or (copied, linked) in both; the next salvage
 *             takes a new folder for what is left.
 */
#ifndef SE_ASIDE_H
#define SE_ASIDE_H

#include "io.h"

typedef struct {
    int folder_fd;
    char folder[SE_NAME_MAX]; /* empty: not made yet */
    uint32_t files;
} se_aside;

/* The file, "wal/..." or "checkpoint/...", goes away from its place. */
se_status se_aside_move(se_aside *aside, const char *name);
/* A copy; the file stays. */
se_status se_aside_copy(se_aside *aside, const char *name);
/* Keeps the bytes also when the file is removed from its place; the file stays. */
se_status se_aside_keep(se_aside *aside, const char *name);
/* Names and bytes are on the disk. */
se_status se_aside_sync(const se_aside *aside);

#endif
