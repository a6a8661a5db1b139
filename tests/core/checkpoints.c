/* checkpoints.c - see checkpoints.h. */
#include "checkpoints.h"

#include <dirent.h>

static test_folder current; /* one at a time */

static void empty_folder(int folder_fd, const char *name) {
    int fd = openat(folder_fd, name, O_RDONLY | O_DIRECTORY);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    if (!folder)
        return;
    while ((entry = readdir(folder)))
        (void)unlinkat(fd, entry->d_name, 0);
    closedir(folder);
    (void)unlinkat(folder_fd, name, AT_REMOVEDIR);
}

/* Also where a REQUIRE ends the program: the folder lies in memory. */
static void remove_current(void) {
    if (!current.path[0])
        return;
    empty_folder(current.fd, "checkpoint");
    empty_folder(current.fd, "wal");
    close(current.fd);
    (void)rmdir(current.path);
    current.path[0] = 0;
}

test_folder test_folder_make(void) {
    static bool registered;
    test_folder folder;
    REQUIRE(!current.path[0]);
    snprintf(folder.path, sizeof folder.path, "/dev/shm/se_checkpoint_XXXXXX");
    REQUIRE(mkdtemp(folder.path));
    folder.fd = open(folder.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(folder.fd >= 0);
    current = folder;
    if (!registered)
        atexit(remove_current);
    registered = true;
    REQUIRE(se_io_make_folder(folder.fd, "checkpoint") == SE_OK);
    REQUIRE(se_io_make_folder(folder.fd, "wal") == SE_OK);
    return folder;
}

void test_folder_remove(test_folder *folder) {
    char path[sizeof folder->path];
    memcpy(path, folder->path, sizeof path);
    remove_current();
    REQUIRE(access(path, F_OK) != 0);
}

bool test_folder_has(const test_folder *folder, const char *name) {
    return faccessat(folder->fd, name, F_OK, 0) == 0;
}

void test_file_write(const test_folder *folder, const char *name, const void *bytes, size_t size) {
    int fd = openat(folder->fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    REQUIRE(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    close(fd);
}

uint8_t *test_file_read(const test_folder *folder, const char *name, size_t *size) {
    int fd;
    uint64_t length;
    REQUIRE(se_io_open(folder->fd, name, false, &fd) == SE_OK);
    REQUIRE(se_io_size(fd, &length) == SE_OK);
    uint8_t *bytes = malloc(length + 1);
    REQUIRE(bytes && se_io_read(fd, bytes, length, 0, size) == SE_OK && *size == length);
    se_io_close(fd);
    return bytes;
}

test_database test_database_make(uint64_t map_size) {
    test_database database;
    database.segments = test_segments_make();
    database.store = test_store_make(database.segments, map_size);
    return database;
}

void test_database_free(test_database *database) {
    test_store_free(database->store);
    test_segments_close(database->segments);
}

test_database test_reloaded(se_store *store, const test_folder *folder) {
    se_checkpoint written;
    se_checkpoint loaded;
    se_status status = se_checkpoint_write(store, folder->fd, NULL, NULL, &written);
    if (status != SE_OK)
        fprintf(stderr, "status %d: %s\n", status, written.damage.reason);
    REQUIRE(status == SE_OK);
    test_database database = test_database_make(store->data_size);
    status = se_checkpoint_load(database.store, folder->fd, written.version, false, NULL, NULL,
                                &loaded);
    if (status != SE_OK)
        fprintf(stderr, "status %d: %s\n", status, loaded.damage.reason);
    REQUIRE(status == SE_OK);
    REQUIRE(loaded.keys == written.keys && loaded.records == written.records);
    REQUIRE(loaded.size == written.size && loaded.timestamp_us == written.timestamp_us);
    REQUIRE(loaded.lost_blocks == 0 && loaded.damage.file[0] == 0);
    return database;
}

/* The next leaf with a record at or below the limit, and that record. */
static const se_leaf *next_leaf(se_iter *iter, uint64_t limit, const se_record **record) {
    for (;;) {
        uint64_t offset;
        REQUIRE(se_iter_next(iter, &offset) == SE_OK);
        if (!offset)
            return NULL;
        const se_leaf *leaf = se_leaf_at(iter->store, offset);
        REQUIRE(leaf && se_record_visible(iter->store, leaf, limit, record) == SE_OK);
        if (*record)
            return leaf;
    }
}

static void same_record(const se_record *left, const se_record *right) {
    REQUIRE(left->version == right->version && left->timestamp_us == right->timestamp_us);
    REQUIRE(left->expires_us == right->expires_us && left->flags == right->flags);
    REQUIRE(left->value_size == right->value_size);
    REQUIRE(memcmp(left->value, right->value, left->value_size) == 0);
}

void test_same_content(se_store *left, se_store *right, uint64_t limit) {
    se_iter *one = malloc(sizeof *one);
    se_iter *other = malloc(sizeof *other);
    REQUIRE(one && se_iter_seek(one, left, test_run, 0) == SE_OK);
    REQUIRE(other && se_iter_seek(other, right, test_run, 0) == SE_OK);
    for (;;) {
        const se_record *a = NULL;
        const se_record *b = NULL;
        const se_leaf *first = next_leaf(one, limit, &a);
        const se_leaf *second = next_leaf(other, limit, &b);
        REQUIRE(!first == !second);
        if (!first)
            break;
        REQUIRE(first->key_size == second->key_size);
        REQUIRE(memcmp(first->key, second->key, first->key_size) == 0);
        while (a && b) {
            same_record(a, b);
            se_status end_a = se_record_older(left, a, &a);
            se_status end_b = se_record_older(right, b, &b);
            REQUIRE(end_a == end_b && (end_a == SE_OK || end_a == SE_TRIMMED));
        }
        REQUIRE(!a && !b);
    }
    free(one);
    free(other);
}

void test_nothing_invented(se_store *store, se_store *whole) {
    se_iter *iter = malloc(sizeof *iter);
    REQUIRE(iter && se_iter_seek(iter, store, test_run, 0) == SE_OK);
    const se_record *record;
    const se_leaf *leaf;
    while ((leaf = next_leaf(iter, UINT64_MAX, &record))) {
        uint64_t offset;
        const se_record *other;
        REQUIRE(se_index_find(whole, leaf->key, leaf->key_size, &offset) == SE_OK && offset);
        REQUIRE(se_record_visible(whole, se_leaf_at(whole, offset), UINT64_MAX, &other) == SE_OK);
        for (;;) {
            REQUIRE(other);
            same_record(record, other);
            se_status end = se_record_older(store, record, &record);
            se_status end_whole = se_record_older(whole, other, &other);
            if (record)
                continue;
            /* A history may end early, but then it says so. */
            REQUIRE(end == SE_TRIMMED || (end_whole == SE_OK && !other));
            break;
        }
    }
    free(iter);
}
