/* checkpoints.h - what the tests of checkpoints share: folders, and two stores compared. */
#ifndef CHECKPOINTS_H
#define CHECKPOINTS_H

#include "checkpoint.h"
#include "crc32c.h"
#include "harness.h"

typedef struct {
    char path[64];
    int fd;
} test_folder;

test_folder test_folder_make(void);
/* With everything in it. */
void test_folder_remove(test_folder *folder);
bool test_folder_has(const test_folder *folder, const char *name);
void test_file_write(const test_folder *folder, const char *name, const void *bytes, size_t size);
/* The whole file; the caller's to free. */
uint8_t *test_file_read(const test_folder *folder, const char *name, size_t *size);

/* A store with its segments. */
typedef struct {
    test_segments segments;
    se_store *store;
} test_database;

test_database test_database_make(uint64_t map_size);
void test_database_free(test_database *database);
/* Writes a checkpoint and loads it into a new store of the same map size. */
test_database test_reloaded(se_store *store, const test_folder *folder);
/* Requires the same keys with the same records, as far as records have version <= limit. */
void test_same_content(se_store *left, se_store *right, uint64_t limit);
/* Requires that whatever the store holds stands in the other one, too: keys, records, values. */
void test_nothing_invented(se_store *store, se_store *whole);

#endif
