/* recover.h - from the files of a folder to a store.
 *
 *     newest sound checkpoint -> frames above its version, file by file -> the torn tail is cut
 *
 * Why:        a commit is in the store again if and only if all before it are. Where the log stops
 *             making sense, two things may have happened: writes that were never synced did not all
 *             reach the disk (the tail: cut off), or bytes that were synced have changed (damage:
 *             nothing is opened). Every frame and file header says up to which version everything
 *             was synced when it was written; a sound one that lies behind the bad place and calls
 *             it synced tells damage from a torn tail.
 * Used by:    coordinator before it serves; verify and repair.
 * Invariants: V1 the result is a prefix of history; V2 running it again changes nothing; V3 after
 *             it, all that it read is synced, no frame is left behind the last one replayed, and
 *             neither is a file without frames or the spare one (tests/crash).
 * Crash:      at any step, the next recovery comes to the same result.
 * Errors:     SE_DAMAGED with report->damage; SE_IO with errno; SE_FULL: map_size is too small.
 */
#ifndef SE_RECOVER_H
#define SE_RECOVER_H

#include "checkpoint.h"
#include "wal.h"

typedef struct {
    bool salvage;   /* goes on where it can after damage, keeps what it drops aside */
    bool read_only; /* changes no file */
    se_progress_call progress;
    void *context;
} se_recover_options;

typedef struct {
    uint64_t checkpoint_version; /* 0: there was none */
    uint64_t checkpoint_bytes;
    uint64_t skipped_checkpoint; /* a newer one that is damaged, 0: none */
    uint64_t commits;            /* replayed from the log */
    uint64_t log_bytes;          /* of their frames */
    uint64_t last_version;
    uint64_t last_timestamp_us;
    uint64_t keys;
    char cut_file[SE_NAME_MAX]; /* where the torn tail began; empty: there was none */
    uint64_t cut_offset;
    uint64_t cut_bytes;   /* bytes that were not zero, up to the last of them */
    uint64_t lost_blocks; /* salvage: of the checkpoint */
    char aside[SE_NAME_MAX]; /* salvage: the folder where the damaged files went; empty: none did */
    uint32_t aside_files;
    se_damage damage; /* also where salvage or an older checkpoint got past it */
} se_recovery;

/* Whether the folder holds a database's files, and its id. SE_DAMAGED: headers disagree or none is
 * sound. */
se_status se_recover_identity(int folder_fd, uint8_t database_id[16], bool *found,
                              se_damage *damage);
/* Fills an empty store that nobody else uses yet. store NULL (with read_only): checks alone. */
se_status se_recover(se_store *store, int folder_fd, const se_recover_options *options,
                     se_recovery *report);

#endif
