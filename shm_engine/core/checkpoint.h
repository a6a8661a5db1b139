/* checkpoint.h - the whole store in one file: checkpoint/<version, 20 digits>.ckpt.
 *
 *     | header | block: checksums, keys with all their versions | block | .. | end block: totals |
 *
 * Why:        the log would grow for ever and take ever longer to replay. Written from an announced
 *             snapshot, in short pins, while commits go on; a history is as retention left it.
 * Used by:    coordinator (write, prune), recovery (load), command line (check).
 * Shared:     FORMAT.md, "Checkpoint".
 * Invariants: P1 a file with its final name was synced and read back whole; P2 older checkpoints
 *             and log files go only after that; P3 what is known only when the last key was written
 *             (totals, the newest time, the horizon of removed tombstones) stands in the end block,
 *             so a file without one is not whole.
 * Crash:      a file aside (.tmp) is removed by the next recovery.
 * Errors:     bytes of a file are not trusted: SE_DAMAGED with file, offset and reason.
 */
#ifndef SE_CHECKPOINT_H
#define SE_CHECKPOINT_H

#include "io.h"
#include "store.h"

#define SE_CHECKPOINT_FOLDER "checkpoint"
#define SE_CHECKPOINT_MAGIC UINT64_C(0x315f54504b434553) /* "SECKPT_1" */
#define SE_CHECKPOINT_BLOCK 0x4b424553u                  /* "SEBK" */
#define SE_CHECKPOINT_KEYS 1u
#define SE_CHECKPOINT_END 2u
#define SE_CHECKPOINT_CUT 1u     /* older records of the key were trimmed */
#define SE_CHECKPOINT_MORE 2u    /* the next entry has older records of the same key */
#define SE_CHECKPOINT_GOES_ON 4u /* this is such an entry */

/* The first 64 bytes of the file. */
typedef struct {
    uint64_t magic;
    uint32_t format_version;
    uint32_t byte_order;
    uint8_t database_id[16];
    uint64_t version; /* of the snapshot; the file's name */
    uint64_t created_us;
    uint8_t zero[12];
    uint32_t crc; /* of the bytes before it */
} se_checkpoint_header;
_Static_assert(sizeof(se_checkpoint_header) == 64, "checkpoint header");

/* Stands before each block. Its checksum covers the file's identity and the block's own place, so
 * neither a block of another checkpoint nor the copy of one within a value is taken for one. */
typedef struct {
    uint32_t magic;
    uint32_t kind;
    uint64_t offset; /* of this header in the file */
    uint64_t number; /* blocks before it */
    uint32_t size;   /* bytes behind this header, a multiple of 8 */
    uint32_t entries;
    uint32_t crc;        /* of the bytes behind this header */
    uint32_t header_crc; /* of database_id and version, then of the bytes before it */
} se_checkpoint_block;
_Static_assert(sizeof(se_checkpoint_block) == 40, "checkpoint block");

/* The key and the records follow, newest first, with no padding between. */
typedef struct {
    uint16_t key_size;
    uint16_t flags;
    uint32_t records;
} se_checkpoint_key;
_Static_assert(sizeof(se_checkpoint_key) == 8, "checkpoint key");

/* The value follows. */
typedef struct {
    uint64_t version;
    uint64_t timestamp_us;
    uint64_t expires_us;
    uint32_t value_size;
    uint32_t flags; /* SE_RECORD_TOMBSTONE */
} se_checkpoint_record;
_Static_assert(sizeof(se_checkpoint_record) == 32, "checkpoint record");

/* The content of the end block. */
typedef struct {
    uint64_t keys;
    uint64_t records;
    uint64_t bytes;           /* of keys and values */
    uint64_t timestamp_us;    /* of the newest record */
    uint64_t removed_horizon; /* see se_sequencer */
} se_checkpoint_end;
_Static_assert(sizeof(se_checkpoint_end) == 40, "checkpoint end");

/* Where and why bytes are not what they should be; file is empty if there is no damage. */
typedef struct {
    char file[SE_NAME_MAX];
    uint64_t offset;
    char reason[160];
} se_damage;

typedef struct {
    uint64_t version;
    uint64_t timestamp_us; /* of the newest record: no later commit is older */
    uint64_t removed_horizon;
    uint64_t keys;
    uint64_t records;
    uint64_t size;        /* bytes of the file */
    uint64_t lost_blocks; /* salvage alone */
    se_damage damage;
} se_checkpoint;

/* Called now and then; may be NULL. Returning false stops the work (SE_CLOSED). */
typedef bool (*se_progress_call)(void *context, uint64_t done_bytes, uint64_t total_bytes);

void se_checkpoint_name(uint64_t version, char name[SE_NAME_MAX]);
/* Versions of the checkpoints in the folder, rising; *list is the caller's to free. */
se_status se_checkpoint_list(int folder_fd, uint64_t **list, uint32_t *count);
/* Writes, syncs, reads back, renames, syncs the folder. Commits go on meanwhile. Takes a slot and a
 * snapshot entry while it walks. */
se_status se_checkpoint_write(se_store *store, int folder_fd, se_progress_call progress,
                              void *context, se_checkpoint *report);
/* The header alone: whose checkpoint it is. SE_DAMAGED; SE_FORMAT: another version, byte order. */
se_status se_checkpoint_read_header(int folder_fd, uint64_t version, se_checkpoint_header *header,
                                    se_damage *damage);
/* Reads every byte, checks every checksum, order and chain. */
se_status se_checkpoint_check(int folder_fd, uint64_t version, se_progress_call progress,
                              void *context, se_checkpoint *report);
/* Fills an empty store that nobody else uses yet, commit_version and last_timestamp included; the
 * database_id in its header has to be the file's. After any error the store is to be thrown away.
 * salvage: leaves damaged blocks out, and counts them. SE_FULL: map_size is too small. */
se_status se_checkpoint_load(se_store *store, int folder_fd, uint64_t version, bool salvage,
                             se_progress_call progress, void *context, se_checkpoint *report);
/* Removes older checkpoints, and log files all of whose commits are <= version; keeps one of the
 * files as the spare. */
se_status se_checkpoint_prune(int folder_fd, uint64_t version);

#endif
