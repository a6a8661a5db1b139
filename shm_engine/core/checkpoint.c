/* checkpoint.c - write a checkpoint beside running commits; name, list and remove checkpoints.
 *
 *     announce a snapshot -> [ pin, copy a few keys into a buffer, unpin, write full blocks ] ..
 *     -> end block -> sync -> read back -> rename -> sync the folder
 *
 * Why:        nothing is written to the disk under a pin, for that would hold back the memory that
 *             commits free. The snapshot is announced, so what it sees is not trimmed; what it does
 *             not see any more (older versions) may go meanwhile, and then the history is cut.
 * Used by:    coordinator: one thread at a time.
 * Shared:     reads the index under a pin; a slot and a snapshot entry of its own.
 * Invariants: K1 a step copies at most STEP_KEYS keys or, after the first record, `budget` bytes;
 *             K2 a history that is larger than a step goes on in the next one, which finds its
 *             place again by version, with twice the budget, so that walking there again costs no
 *             more in all than walking once; K3 removed_horizon is read when the walk is done: a tombstone
 *             that went before the walk came is at or below it.
 * Crash:      until the rename there is a .tmp file, which nobody reads.
 * Cost:       one copy of every byte, two passes of the checksum (writing and reading back); the
 *             disk is synced every SYNC_SIZE, so that the log's syncs do not wait for gigabytes.
 */
#include "checkpoint.h"

#include <errno.h>

#include "arena.h"
#include "checkpoint_read.h"
#include "client.h"
#include "crc32c.h"
#include "futex.h"
#include "index.h"
#include "record.h"
#include "wal.h"

#define BLOCK_SIZE (UINT64_C(256) << 10)
#define SYNC_SIZE (UINT64_C(16) << 20)
#define STEP_KEYS 256u
#define STEP_SIZE (UINT64_C(64) << 10)
#define BUDGET_MAX (UINT64_C(64) << 20)
#define SUFFIX ".ckpt"

typedef struct {
    se_store *store;
    uint32_t slot;
    uint64_t version;
    int fd;
    uint64_t at;     /* bytes of the file so far */
    uint64_t synced; /* of these */
    uint64_t number; /* blocks so far */
    uint32_t seed;
    uint8_t *bytes; /* the block that is being filled, its header included */
    uint64_t used;
    uint64_t room;
    uint32_t entries;
    uint8_t key[SE_KEY_MAX + 1]; /* the next step begins at or behind it */
    uint32_t key_size;
    bool more; /* within the records of that key: these were copied: */
    uint64_t last_version;
    uint64_t last_count; /* records of that very version */
    uint64_t budget;
    se_checkpoint_end totals;
    se_progress_call progress;
    void *context;
    se_iter iter;
} writer;

void se_checkpoint_name(uint64_t version, char name[SE_NAME_MAX]) {
    snprintf(name, SE_NAME_MAX, SE_CHECKPOINT_FOLDER "/%020llu" SUFFIX,
             (unsigned long long)version);
}

static se_status reserve(writer *w, uint64_t size) {
    if (SE_LIKELY(w->used + size <= w->room))
        return SE_OK;
    uint64_t room = w->room ? w->room : BLOCK_SIZE + 2 * STEP_SIZE;
    while (room < w->used + size)
        room *= 2;
    uint8_t *wider = realloc(w->bytes, room);
    if (!wider) {
        errno = ENOMEM;
        return SE_IO;
    }
    w->bytes = wider;
    w->room = room;
    return SE_OK;
}

static void put(writer *w, const void *bytes, uint64_t size) {
    memcpy(w->bytes + w->used, bytes, size);
    w->used += size;
}

static se_status put_record(writer *w, const se_record *record) {
    se_checkpoint_record head = {
        .version = record->version,
        .timestamp_us = record->timestamp_us,
        .expires_us = record->expires_us,
        .value_size = record->value_size,
        .flags = record->flags,
    };
    SE_TRY(reserve(w, sizeof head + head.value_size));
    put(w, &head, sizeof head);
    put(w, record->value, head.value_size);
    w->last_count = head.version == w->last_version ? w->last_count + 1 : 1;
    w->last_version = head.version;
    if (w->last_count > SE_OPS_MAX) /* no write set is so large: a chain that leads in a circle */
        return SE_CORRUPT;
    w->totals.records++;
    w->totals.bytes += head.value_size;
    if (head.timestamp_us > w->totals.timestamp_us)
        w->totals.timestamp_us = head.timestamp_us;
    return SE_OK;
}

/* The first record that is to be copied: visible, or behind those that were copied already.
 * SE_TRIMMED: it is gone. */
static se_status find_start(const writer *w, const se_leaf *leaf, const se_record **found) {
    *found = NULL;
    uint64_t offset = se_load_acquire(&leaf->head);
    if (offset == SE_LEAF_REMOVED)
        return w->more ? SE_TRIMMED : SE_OK;
    const se_record *record = se_record_at(w->store, offset);
    if (!record)
        return SE_CORRUPT;
    uint64_t limit = w->more ? w->last_version : w->version;
    uint64_t skip = w->more ? w->last_count : 0;
    while (record && (record->version > limit || (record->version == limit && skip > 0))) {
        skip -= record->version == limit;
        SE_TRY(se_record_older(w->store, record, &record));
    }
    *found = record;
    return record || !w->more ? SE_OK : SE_TRIMMED;
}

static void put_entry(writer *w, uint64_t at, uint32_t records, uint32_t flags,
                      uint32_t key_size) {
    se_checkpoint_key entry = {(uint16_t)key_size, (uint16_t)flags, records};
    memcpy(w->bytes + at, &entry, sizeof entry);
    w->entries++;
    w->more = (flags & SE_CHECKPOINT_MORE) != 0;
    if (!(flags & SE_CHECKPOINT_GOES_ON)) {
        w->totals.keys++;
        w->totals.bytes += key_size;
    }
}

/* The rest of a key's records went while the step before was written. */
static se_status put_cut(writer *w) {
    uint64_t at = w->used;
    SE_TRY(reserve(w, sizeof(se_checkpoint_key) + w->key_size));
    w->used += sizeof(se_checkpoint_key);
    put(w, w->key, w->key_size);
    put_entry(w, at, 0, SE_CHECKPOINT_GOES_ON | SE_CHECKPOINT_CUT, w->key_size);
    return SE_OK;
}

/* One key with its records, as far as the budget goes. */
static se_status put_key(writer *w, const se_leaf *leaf, uint64_t step_start) {
    uint32_t flags = w->more ? SE_CHECKPOINT_GOES_ON : 0;
    uint32_t records = 0;
    uint64_t at = w->used;
    const se_record *record;
    if (leaf->key_size < SE_RUN_ID_SIZE + 2)
        return SE_CORRUPT;
    se_status status = find_start(w, leaf, &record);
    if (status == SE_TRIMMED && w->more)
        return put_cut(w);
    if (status != SE_OK) /* an announced snapshot meets no cut */
        return status == SE_TRIMMED ? SE_CORRUPT : status;
    if (!record)
        return SE_OK;
    SE_TRY(reserve(w, sizeof(se_checkpoint_key) + leaf->key_size));
    w->used += sizeof(se_checkpoint_key);
    put(w, leaf->key, leaf->key_size);
    if (!w->more)
        w->last_count = 0;
    while (record && (records == 0 || w->used - step_start < w->budget)) {
        SE_TRY(put_record(w, record));
        records++;
        status = se_record_older(w->store, record, &record);
        if (status == SE_TRIMMED)
            flags |= SE_CHECKPOINT_CUT;
        else if (status != SE_OK)
            return status;
    }
    put_entry(w, at, records, record ? flags | SE_CHECKPOINT_MORE : flags, leaf->key_size);
    return SE_OK;
}

/* Where the next step begins: at this key if it has more records, else right behind it. */
static void remember(writer *w, const se_leaf *leaf) {
    memcpy(w->key, leaf->key, leaf->key_size);
    w->key[leaf->key_size] = 0; /* the smallest key behind it is one byte longer */
    w->key_size = leaf->key_size + !w->more;
    if (!w->more)
        w->budget = STEP_SIZE;
    else if (w->budget < BUDGET_MAX)
        w->budget *= 2;
}

static bool is_continued(const writer *w, const se_leaf *leaf) {
    return leaf && leaf->key_size == w->key_size && memcmp(leaf->key, w->key, w->key_size) == 0;
}

/* One step, pinned. */
static se_status copy_keys(writer *w, bool *done) {
    uint64_t start = w->used;
    SE_TRY(se_iter_seek(&w->iter, w->store, w->key, w->key_size));
    for (uint32_t keys = 0;; keys++) {
        uint64_t offset;
        SE_TRY(se_iter_next(&w->iter, &offset));
        const se_leaf *leaf = offset ? se_leaf_at(w->store, offset) : NULL;
        if (offset && !leaf)
            return SE_CORRUPT;
        if (w->more && !is_continued(w, leaf))
            SE_TRY(put_cut(w));
        *done = !leaf;
        if (!leaf)
            return SE_OK;
        SE_TRY(put_key(w, leaf, start));
        if (w->more || keys + 1 == STEP_KEYS || w->used - start >= STEP_SIZE) {
            remember(w, leaf);
            return SE_OK;
        }
    }
}

static se_status sync_some(writer *w) {
    if (w->at - w->synced < SYNC_SIZE)
        return SE_OK;
    w->synced = w->at;
    return se_io_sync(w->fd);
}

/* Writes the block with its header; the next one begins empty. */
static se_status write_block(writer *w, uint32_t kind) {
    se_checkpoint_block block = {
        .magic = SE_CHECKPOINT_BLOCK,
        .kind = kind,
        .offset = w->at,
        .number = w->number,
        .entries = w->entries,
    };
    uint64_t padding = -w->used & 7;
    SE_TRY(reserve(w, padding));
    memset(w->bytes + w->used, 0, padding);
    w->used += padding;
    uint64_t size = w->used - sizeof block;
    if (size > UINT32_MAX)
        return SE_TOO_LARGE;
    block.size = (uint32_t)size;
    block.crc = se_crc32c(0, w->bytes + sizeof block, size);
    block.header_crc = se_crc32c(w->seed, &block, offsetof(se_checkpoint_block, header_crc));
    memcpy(w->bytes, &block, sizeof block);
    SE_TRY(se_io_write(w->fd, w->bytes, w->used, w->at));
    w->at += w->used;
    w->number++;
    w->used = sizeof block;
    w->entries = 0;
    return sync_some(w);
}

static bool goes_on(const writer *w) {
    uint64_t total = se_arena_used(w->store);
    return !w->progress || w->progress(w->context, w->at, total > w->at ? total : w->at);
}

static se_status write_keys(writer *w) {
    bool done = false;
    while (!done) {
        (void)se_pin(w->store, w->slot);
        se_status status = copy_keys(w, &done);
        se_unpin(w->store, w->slot);
        SE_TRY(status);
        if (w->used >= BLOCK_SIZE || (done && w->entries > 0)) {
            SE_TRY(write_block(w, SE_CHECKPOINT_KEYS));
            if (!goes_on(w))
                return SE_CLOSED;
        }
    }
    return SE_OK;
}

static se_status write_header(writer *w) {
    se_checkpoint_header header = {
        .magic = SE_CHECKPOINT_MAGIC,
        .format_version = SE_FORMAT_VERSION,
        .byte_order = SE_BYTE_ORDER,
        .version = w->version,
        .created_us = se_clock_real_us(),
    };
    memcpy(header.database_id, w->store->header->database_id, sizeof header.database_id);
    header.crc = se_crc32c(0, &header, offsetof(se_checkpoint_header, crc));
    w->seed = se_checkpoint_seed(header.database_id, header.version);
    SE_TRY(se_io_write(w->fd, &header, sizeof header, 0));
    w->at = sizeof header;
    return SE_OK;
}

/* The whole file, but for syncing it. The snapshot is announced. */
static se_status write_file(writer *w) {
    SE_TRY(write_header(w));
    SE_TRY(reserve(w, BLOCK_SIZE));
    w->used = sizeof(se_checkpoint_block);
    w->budget = STEP_SIZE;
    SE_TRY(write_keys(w));
    w->totals.removed_horizon = se_load_acquire(&w->store->seq->removed_horizon);
    if (w->totals.removed_horizon > w->version)
        return SE_CORRUPT;
    put(w, &w->totals, sizeof w->totals);
    return write_block(w, SE_CHECKPOINT_END);
}

static se_status write_snapshot(writer *w, int folder_fd, uint32_t snapshot, char *name,
                                char *aside) {
    se_snapshot_open(w->store, snapshot, &w->version);
    se_checkpoint_name(w->version, name);
    snprintf(aside, SE_NAME_MAX, SE_CHECKPOINT_FOLDER "/%020llu" SUFFIX ".tmp",
             (unsigned long long)w->version);
    SE_TRY(se_io_create(folder_fd, aside, &w->fd));
    se_status status = write_file(w);
    se_snapshot_close(w->store, snapshot); /* before the slow part */
    if (status == SE_OK)
        status = se_io_sync(w->fd);
    int error = errno;
    se_io_close(w->fd);
    errno = error;
    return status;
}

/* Joins for the time of the walk. aside: empty if no file was made. */
static se_status write_aside(writer *w, int folder_fd, char *name, char *aside) {
    uint32_t snapshot;
    SE_TRY(se_client_join(w->store, SE_SLOT_THREAD, &w->slot));
    se_status status = se_snapshot_claim(w->store, &snapshot);
    if (status == SE_OK) {
        status = write_snapshot(w, folder_fd, snapshot, name, aside);
        int error = errno;
        se_snapshot_release(w->store, snapshot);
        errno = error;
    }
    se_client_leave(w->store, w->slot);
    return status;
}

/* What the file says when it is read back is what was meant to be written. */
static se_status read_back(const writer *w, int folder_fd, const char *aside,
                           se_checkpoint *report) {
    se_checkpoint_source source = {.folder_fd = folder_fd, .name = aside, .version = w->version,
                                   .database_id = w->store->header->database_id};
    SE_TRY(se_checkpoint_read(&source, NULL, report));
    if (report->size != w->at || report->keys != w->totals.keys ||
        report->records != w->totals.records)
        return se_checkpoint_damaged(&report->damage, aside, 0, "not what was written");
    return SE_OK;
}

se_status se_checkpoint_write(se_store *store, int folder_fd, se_progress_call progress,
                              void *context, se_checkpoint *report) {
    char name[SE_NAME_MAX] = "";
    char aside[SE_NAME_MAX] = "";
    memset(report, 0, sizeof *report);
    SE_TRY(se_io_make_folder(folder_fd, SE_CHECKPOINT_FOLDER));
    SE_TRY(se_io_sync_folder(folder_fd, "."));
    writer *w = calloc(1, sizeof *w);
    if (!w) {
        errno = ENOMEM;
        return SE_IO;
    }
    w->store = store;
    w->progress = progress;
    w->context = context;
    se_status status = write_aside(w, folder_fd, name, aside);
    if (status == SE_OK)
        status = read_back(w, folder_fd, aside, report);
    if (status == SE_OK)
        status = se_io_rename(folder_fd, aside, name);
    if (status == SE_OK)
        status = se_io_sync_folder(folder_fd, SE_CHECKPOINT_FOLDER);
    int error = errno;
    if (status != SE_OK && aside[0])
        (void)se_io_remove(folder_fd, aside); /* after the rename there is none */
    free(w->bytes);
    free(w);
    errno = error;
    return status;
}

/* The version in a checkpoint's name: 20 digits and the suffix, nothing else. */
static bool version_in(const char *name, uint64_t *version) {
    *version = 0;
    for (int index = 0; index < 20; index++) {
        if (name[index] < '0' || name[index] > '9' ||
            __builtin_mul_overflow(*version, 10, version) ||
            __builtin_add_overflow(*version, (uint64_t)(name[index] - '0'), version))
            return false;
    }
    return strcmp(name + 20, SUFFIX) == 0;
}

static int compare_versions(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

typedef struct {
    uint64_t *list;
    uint32_t count;
    uint32_t room;
    bool failed;
} listing;

static bool note_checkpoint(void *context, const char *entry) {
    listing *found = context;
    uint64_t version;
    if (!version_in(entry, &version))
        return true;
    if (found->count == found->room) {
        found->room = found->room ? found->room * 2 : 16;
        uint64_t *wider = realloc(found->list, found->room * sizeof *wider);
        found->failed = !wider;
        if (!wider)
            return false;
        found->list = wider;
    }
    found->list[found->count++] = version;
    return true;
}

se_status se_checkpoint_list(int folder_fd, uint64_t **list, uint32_t *count) {
    listing found = {.list = NULL};
    *list = NULL;
    *count = 0;
    se_status status = se_io_each(folder_fd, SE_CHECKPOINT_FOLDER, note_checkpoint, &found);
    if (status != SE_OK || found.failed) {
        int error = found.failed ? ENOMEM : errno;
        free(found.list);
        errno = error;
        return SE_IO;
    }
    if (found.count > 1)
        qsort(found.list, found.count, sizeof *found.list, compare_versions);
    *list = found.list;
    *count = found.count;
    return SE_OK;
}

static se_status prune_checkpoints(int folder_fd, uint64_t version) {
    uint64_t *list;
    uint32_t count;
    bool removed = false;
    SE_TRY(se_checkpoint_list(folder_fd, &list, &count));
    se_status status = SE_OK;
    for (uint32_t index = 0; index < count && list[index] < version && status == SE_OK; index++) {
        char name[SE_NAME_MAX];
        se_checkpoint_name(list[index], name);
        status = se_io_remove(folder_fd, name);
        removed = true;
    }
    free(list);
    return removed && status == SE_OK ? se_io_sync_folder(folder_fd, SE_CHECKPOINT_FOLDER)
                                      : status;
}

/* The log writer makes its next file under the spare one's name, perhaps at this moment: so a file
 * becomes the spare one only where there is none, and loses its own name before. */
static se_status retire_log_file(int folder_fd, uint64_t first_version) {
    char name[SE_NAME_MAX];
    se_wal_name(first_version, name);
    SE_TRY(se_io_rename(folder_fd, name, SE_WAL_RETIRED));
    /* Where there is a spare one, or the file system has no links, the file just goes. */
    (void)se_io_link(folder_fd, SE_WAL_RETIRED, SE_WAL_SPARE);
    return se_io_remove(folder_fd, SE_WAL_RETIRED);
}

/* Oldest first, so that what is left has no gap wherever this ends. */
static se_status prune_log(int folder_fd, uint64_t version) {
    uint64_t *list;
    uint32_t count;
    bool removed = false;
    SE_TRY(se_wal_list(folder_fd, &list, &count));
    /* Left behind by a death: it may be a second name of the spare file or of a newer one. */
    (void)se_io_remove(folder_fd, SE_WAL_RETIRED);
    se_status status = SE_OK;
    for (uint32_t index = 0; index + 1 < count && status == SE_OK; index++) {
        if (list[index + 1] - 1 > version)
            break;
        status = retire_log_file(folder_fd, list[index]);
        removed = true;
    }
    free(list);
    return removed && status == SE_OK ? se_io_sync_folder(folder_fd, SE_WAL_FOLDER) : status;
}

se_status se_checkpoint_prune(int folder_fd, uint64_t version) {
    SE_TRY(prune_checkpoints(folder_fd, version));
    return prune_log(folder_fd, version);
}
