/* faulty_io.h - io.h over real files, with a disk that can fail at the n-th step.
 *
 * Why:        what a crash leaves behind is known for each call: a model remembers of every file
 *             what was synced, and of every folder which names were.
 * Steps:      make_folder, create, reserve, write, sync, truncate, rename, link, remove and
 *             sync_folder; counted from 1 after faulty_begin.
 * Power cut:  of each file, every 512-byte sector that was written since its last sync is there or
 *             not, and its size is the old or the new one. Names: folder operations are lost from
 *             some point on, in the order in which they were made (as in ext4's journal; but a sync
 *             of a file does not carry its name along, as POSIX has it, where ext4 is kinder).
 *             Folders themselves stay. A sync that failed takes the unwritten sectors with it: they
 *             can be read back, but no later sync writes them (as Linux does).
 * Used by:    one thread of one process, a forked child, which dies with FAULTY_DIED.
 */
#ifndef FAULTY_IO_H
#define FAULTY_IO_H

#include <stdbool.h>
#include <stdint.h>

#define FAULTY_DIED 97

typedef enum {
    FAULT_NONE,
    FAULT_DIE,    /* in front of the step */
    FAULT_TORN,   /* a write does some of its bytes, then death; other steps: done, then death */
    FAULT_POWER,  /* the step is done or not, and what was not synced is lost in part */
    FAULT_ONCE,   /* the step fails with `error` */
    FAULT_ALWAYS, /* so do all later ones */
} faulty_kind;

typedef struct {
    faulty_kind kind;
    int error;
    uint64_t at;
    uint64_t seed;
    const char *unsynced; /* what stands in this folder was never synced, its names excepted */
} faulty_plan;

/* What is in the folder now is taken as synced, but for `unsynced`. */
void faulty_begin(int folder_fd, const faulty_plan *plan);
/* From here on the disk is a good one. */
void faulty_end(void);
uint64_t faulty_steps(void);
/* The power goes now: the folder is left as the next start finds it. */
void faulty_power_cut(void);

#endif
