/* wal.h - one file of the log: wal/<first version, 20 digits>.wal.
 *
 *     | header, checksummed | 0 .. 4096 | frame | frame | frame | zeros, or older frames |
 *
 * Why:        a file is reserved ahead and may be an older one used again, so its end is not where
 *             the bytes end: versions rise from frame to frame, and what does not continue them is
 *             not there.
 * Used by:    the log writer (creates), recovery and the command line (read).
 * Shared:     FORMAT.md, "Log file".
 * Invariants: W1 frames of a file have versions >= first_version, rising; W2 a file is created only
 *             when everything up to its previous_version is in the files before it; W3 a file that
 *             is used again holds only versions <= previous_version (recovery removes the spare
 *             one, because versions that it cuts off are given out again).
 * Crash:      a file gets its name when its header is written. Not synced, the name may outlive the
 *             header: then zeros or the header of the older file stand there.
 */
#ifndef SE_WAL_H
#define SE_WAL_H

#include "frame.h"
#include "io.h"

#define SE_WAL_MAGIC UINT64_C(0x31474f4c41574553) /* "SEWALOG1" */
#define SE_WAL_FOLDER "wal"
#define SE_WAL_SPARE "wal/spare"
#define SE_WAL_RETIRED "wal/retired" /* on its way from a log file to the spare one; see prune */
#define SE_WAL_FIRST_FRAME 4096u

/* Bytes reserved for a new file, 16 MiB (log.c); tests make it small. */
extern uint64_t se_wal_file_size;

typedef struct {
    uint64_t magic;
    uint32_t format_version;
    uint32_t byte_order;
    uint8_t database_id[16];
    uint64_t first_version;    /* its name */
    uint64_t previous_version; /* of the newest commit before this file */
    uint64_t durable_version;  /* known to be synced when the file was made */
    uint32_t previous_file;    /* low 32 bits of the first_version of the file before; 0: none */
    uint32_t crc;              /* crc32c of the bytes before it */
} se_wal_header;
_Static_assert(sizeof(se_wal_header) == 64, "log file header");

void se_wal_name(uint64_t first_version, char name[SE_NAME_MAX]);
/* first_version of every log file in the folder, rising; *list is the caller's to free. */
se_status se_wal_list(int folder_fd, uint64_t **list, uint32_t *count);
/* Makes the file, from the spare one if there is one, `size` bytes long, with its header, in place
 * of one of that name; the header and the name are synced if `sync`. Of *header it takes the id and
 * the three versions, and fills in the rest. */
se_status se_wal_create(int folder_fd, const se_wal_header *header, uint64_t size, bool sync,
                        int *fd);
/* SE_DAMAGED: not a sound header of this file; SE_FORMAT: another format version or byte order. */
se_status se_wal_read_header(int fd, uint64_t first_version, se_wal_header *header);
/* The same for the bytes that a file begins with. *header is filled if the checksum fits, even if
 * it is the header of another file (SE_DAMAGED); else it is zero. */
se_status se_wal_check_header(const void *bytes, uint64_t size, uint64_t first_version,
                              se_wal_header *header);

#endif
