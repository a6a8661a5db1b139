/* logs.h - what the tests of the log's files share: frames and files made by hand. */
#ifndef LOGS_H
#define LOGS_H

#include "checkpoints.h"
#include "frame.h"
#include "logscan.h"
#include "recover.h"
#include "wal.h"

#define TEST_FRAME_MAX ((size_t)SE_FRAME_MAX + 64)

/* A frame being built, at an address that a frame may have. */
typedef struct {
    _Alignas(8) uint8_t *bytes;
    size_t size;
} test_frame;

void test_frame_begin(test_frame *frame);
void test_frame_add(test_frame *frame, uint32_t kind, const char *name, const void *value,
                    uint32_t size, uint64_t expires_us);
/* Padding, head and checksum. */
void test_frame_end(test_frame *frame, uint64_t version, uint32_t unsynced);
void test_frame_free(test_frame *frame);

/* A log of files in a folder. Each commit says of the one before it that it was synced, or, if not
 * `strict`, that nothing was. */
typedef struct {
    int folder_fd;
    bool strict;
    uint8_t id[16];
    int fd;
    uint64_t offset;
    uint64_t version; /* of the newest frame */
} test_log;

void test_log_begin(test_log *log, const test_folder *folder, bool strict);
/* The next file; its frames begin at `first`. */
void test_log_rotate(test_log *log, uint64_t first, uint64_t size);
void test_log_append(test_log *log, test_frame *frame, uint64_t version);
/* One commit: writes, deletes or lets run out one of a few keys, by its version. */
void test_log_commit(test_log *log, uint64_t version);
void test_log_end(test_log *log);

/* Into a new store; the caller frees it, whatever the outcome. */
test_database test_recover(const test_folder *folder, const se_recover_options *options,
                           se_recovery *report, se_status *status);
/* Requires success; frees the store. Returns the newest version. */
uint64_t test_recover_version(const test_folder *folder);
void test_print_damage(const se_damage *damage);

#endif
