/* logscan.h - one log file as it is found on the disk, read whole.
 *
 *     | header | sound frames, rising .. | end | torn, zeros, or frames of an older file |
 *
 * Why:        where the frames end, either a crash cut them off or bytes that were on the disk have
 *             changed. The file alone tells: each sound frame and header behind that place says up
 *             to which version everything was synced when it was written.
 * Used by:    recovery and the command line; one thread.
 * Errors:     bytes of a file are not trusted. SE_IO with errno: the file cannot be read (ENOMEM:
 *             it is larger than memory).
 * Cost:       one read of the file; the search behind the end looks at every eighth byte.
 */
#ifndef SE_LOGSCAN_H
#define SE_LOGSCAN_H

#include "wal.h"

/* What the header says of its file. */
typedef enum {
    SE_LOG_SOUND,   /* the header of this file */
    SE_LOG_UNMADE,  /* none, or that of the older file: it never reached the disk */
    SE_LOG_DAMAGED, /* bytes that no crash leaves there */
    SE_LOG_FOREIGN, /* sound, but of another database, or of a later file */
    SE_LOG_FORMAT   /* of another format version or byte order */
} se_log_verdict;

typedef struct {
    uint64_t first_version; /* by its name */
    char name[SE_NAME_MAX];
    se_log_verdict verdict;
    se_wal_header header; /* zero unless its checksum fits */
    uint8_t *bytes;
    uint64_t size;
    uint64_t room; /* of bytes, kept from file to file */
} se_log_file;

/* The file's header alone. id: of the database. */
se_status se_log_peek(int folder_fd, uint64_t first_version, const uint8_t id[16],
                      se_log_file *file);
/* Header and content. sync: what is read is on the disk afterwards. */
se_status se_log_load(int folder_fd, uint64_t first_version, const uint8_t id[16], bool sync,
                      se_log_file *file);
void se_log_free(se_log_file *file);

/* The sound frame at `at` if it goes on after version `last`, else NULL. */
const se_frame *se_log_frame(const se_log_file *file, uint64_t at, uint64_t last);

/* What stands behind the end of the log. */
typedef struct {
    bool begun;         /* a sound frame above `good`, or at the very place what looks like one */
    uint64_t synced;    /* the newest version above `good` that is said to be synced, 0: none */
    uint64_t synced_at; /* where that is said; 0: in the file's header */
    uint64_t dirty_end; /* behind the last byte that is not zero */
} se_log_rest;

/* Looks through [from, size); `good` is the newest version that is there. from = 0: the whole file,
 * with what its header says. */
void se_log_search(const se_log_file *file, uint64_t from, uint64_t good, se_log_rest *rest);

#endif
