/* logs.c - see logs.h. */
#include "logs.h"

#define MAP (UINT64_C(4) << 20)

void test_frame_begin(test_frame *frame) {
    frame->bytes = malloc(TEST_FRAME_MAX);
    REQUIRE(frame->bytes);
    frame->size = sizeof(se_frame);
    memset(frame->bytes, 0, sizeof(se_frame));
}

static void add_bytes(test_frame *frame, const void *bytes, size_t size) {
    REQUIRE(frame->size + size <= TEST_FRAME_MAX);
    if (size > 0)
        memcpy(frame->bytes + frame->size, bytes, size);
    frame->size += size;
}

void test_frame_add(test_frame *frame, uint32_t kind, const char *name, const void *value,
                    uint32_t size, uint64_t expires_us) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    se_frame_op op = {.kind = (uint8_t)kind, .key_size = (uint16_t)key_size, .value_size = size};
    add_bytes(frame, &op, sizeof op);
    if (kind == SE_FRAME_PUT_EXPIRES)
        add_bytes(frame, &expires_us, sizeof expires_us);
    add_bytes(frame, key, key_size);
    add_bytes(frame, value, size);
}

void test_frame_end(test_frame *frame, uint64_t version, uint32_t unsynced) {
    static const uint8_t zeros[8];
    add_bytes(frame, zeros, (8 - frame->size % 8) % 8);
    se_frame *head = (se_frame *)frame->bytes;
    head->size = (uint32_t)frame->size;
    se_store_relaxed(&head->version, version);
    head->timestamp_us = 1000000 + version;
    head->unsynced = unsynced;
    head->origin = 7;
    head->crc = se_frame_crc(head);
}

void test_frame_free(test_frame *frame) { free(frame->bytes); }

void test_log_begin(test_log *log, const test_folder *folder, bool strict) {
    memset(log, 0, sizeof *log);
    log->folder_fd = folder->fd;
    log->strict = strict;
    log->fd = -1;
}

void test_log_rotate(test_log *log, uint64_t first, uint64_t size) {
    se_wal_header header = {.first_version = first, .previous_version = log->version,
                            .durable_version = log->strict ? log->version : 0};
    memcpy(header.database_id, log->id, 16);
    if (log->fd >= 0)
        se_io_close(log->fd);
    REQUIRE(se_wal_create(log->folder_fd, &header, size, false, &log->fd) == SE_OK);
    log->offset = SE_WAL_FIRST_FRAME;
}

void test_log_append(test_log *log, test_frame *frame, uint64_t version) {
    uint64_t synced = log->strict ? log->version : 0;
    test_frame_end(frame, version, (uint32_t)(version - synced));
    REQUIRE(se_io_write(log->fd, frame->bytes, frame->size, log->offset) == SE_OK);
    log->offset += frame->size;
    log->version = version;
}

void test_log_commit(test_log *log, uint64_t version) {
    test_frame frame;
    char name[16];
    char value[64];
    snprintf(name, sizeof name, "key%llu", (unsigned long long)(version % 4));
    uint32_t size = (uint32_t)snprintf(value, sizeof value, "value %llu%.*s",
                                       (unsigned long long)version, (int)(version % 9),
                                       ".........");
    test_frame_begin(&frame);
    if (version % 6 == 5)
        test_frame_add(&frame, SE_FRAME_DELETE, name, NULL, 0, 0);
    else if (version % 6 == 3)
        test_frame_add(&frame, SE_FRAME_PUT_EXPIRES, name, value, size, UINT64_C(1) << 60);
    else
        test_frame_add(&frame, SE_FRAME_PUT, name, value, size, 0);
    if (version % 4 == 1)
        test_frame_add(&frame, SE_FRAME_PUT, "both", value, size, 0);
    test_log_append(log, &frame, version);
    test_frame_free(&frame);
}

void test_log_end(test_log *log) {
    se_io_close(log->fd);
    log->fd = -1;
}

test_database test_recover(const test_folder *folder, const se_recover_options *options,
                           se_recovery *report, se_status *status) {
    test_database database = test_database_make(MAP);
    *status = se_recover(database.store, folder->fd, options, report);
    return database;
}

void test_print_damage(const se_damage *damage) {
    fprintf(stderr, "%s at %llu: %s\n", damage->file, (unsigned long long)damage->offset,
            damage->reason);
}

uint64_t test_recover_version(const test_folder *folder) {
    se_recover_options options = {.salvage = false};
    se_recovery report;
    se_status status;
    test_database database = test_recover(folder, &options, &report, &status);
    if (status != SE_OK)
        test_print_damage(&report.damage);
    REQUIRE(status == SE_OK);
    REQUIRE(se_load_relaxed(&database.store->seq->commit_version) == report.last_version);
    REQUIRE(se_load_relaxed(&database.store->seq->durable_version) == report.last_version);
    test_check(database.store);
    test_database_free(&database);
    return report.last_version;
}
