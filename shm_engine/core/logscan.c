/* logscan.c - reads a log file, finds what lies behind its end. */
#include "logscan.h"

#include <errno.h>

static bool is_zero(const uint8_t *bytes, uint64_t size) {
    for (uint64_t at = 0; at < size; at++)
        if (bytes[at] != 0)
            return false;
    return true;
}

/* A header is written within one sector, so a crash leaves a whole one or what was there before:
 * nothing, zeros, or the header that the file had under an older name. */
static void judge_header(se_log_file *file, const uint8_t *bytes, uint64_t size,
                         const uint8_t id[16]) {
    static const uint8_t none[16];
    se_wal_header *header = &file->header;
    se_status status = se_wal_check_header(bytes, size, file->first_version, header);
    bool ours = memcmp(id, none, 16) == 0 || memcmp(id, header->database_id, 16) == 0;
    uint64_t shown = size < sizeof *header ? size : sizeof *header;
    if (status == SE_FORMAT)
        file->verdict = SE_LOG_FORMAT;
    else if (header->magic == 0)
        file->verdict = is_zero(bytes, shown) ? SE_LOG_UNMADE : SE_LOG_DAMAGED;
    else if (!ours || header->first_version > file->first_version)
        file->verdict = SE_LOG_FOREIGN;
    else if (header->first_version < file->first_version)
        file->verdict = SE_LOG_UNMADE;
    else
        file->verdict = status == SE_OK ? SE_LOG_SOUND : SE_LOG_DAMAGED;
}

static void begin(se_log_file *file, uint64_t first_version) {
    file->first_version = first_version;
    se_wal_name(first_version, file->name);
    file->size = 0;
    memset(&file->header, 0, sizeof file->header);
}

se_status se_log_peek(int folder_fd, uint64_t first_version, const uint8_t id[16],
                      se_log_file *file) {
    uint8_t bytes[sizeof file->header];
    size_t got = 0;
    int fd;
    begin(file, first_version);
    SE_TRY(se_io_open(folder_fd, file->name, false, &fd));
    se_status status = se_io_read(fd, bytes, sizeof bytes, 0, &got);
    se_io_close(fd);
    if (status == SE_OK)
        judge_header(file, bytes, got, id);
    return status;
}

static se_status make_room(se_log_file *file, uint64_t size) {
    if (size <= file->room)
        return SE_OK;
    free(file->bytes);
    file->room = 0;
    file->bytes = size < SIZE_MAX ? malloc((size_t)size) : NULL;
    if (!file->bytes) {
        errno = ENOMEM;
        return SE_IO;
    }
    file->room = size;
    return SE_OK;
}

static se_status read_whole(se_log_file *file, int fd, bool sync) {
    uint64_t size;
    size_t got;
    if (sync)
        SE_TRY(se_io_sync(fd));
    SE_TRY(se_io_size(fd, &size));
    SE_TRY(make_room(file, size > 0 ? size : 1));
    SE_TRY(se_io_read(fd, file->bytes, (size_t)size, 0, &got));
    file->size = got;
    return SE_OK;
}

se_status se_log_load(int folder_fd, uint64_t first_version, const uint8_t id[16], bool sync,
                      se_log_file *file) {
    int fd;
    begin(file, first_version);
    SE_TRY(se_io_open(folder_fd, file->name, false, &fd));
    se_status status = read_whole(file, fd, sync);
    se_io_close(fd);
    if (status == SE_OK)
        judge_header(file, file->bytes, file->size, id);
    return status;
}

void se_log_free(se_log_file *file) {
    free(file->bytes);
    file->bytes = NULL;
    file->room = 0;
}

const se_frame *se_log_frame(const se_log_file *file, uint64_t at, uint64_t last) {
    SE_ASSERT(at % 8 == 0);
    if (at >= file->size || !se_frame_check(file->bytes + at, file->size - at))
        return NULL;
    const se_frame *frame = (const se_frame *)(file->bytes + at);
    return se_load_relaxed(&frame->version) > last ? frame : NULL;
}

/* The words that a frame begins with, if it could be one above `good`. */
typedef struct {
    uint32_t size;
    uint64_t version;
    uint32_t unsynced;
} frame_head;

static bool read_head(const se_log_file *file, uint64_t at, uint64_t good, frame_head *head) {
    uint64_t room = file->size - at;
    if (room < sizeof(se_frame))
        return false;
    memcpy(&head->version, file->bytes + at + offsetof(se_frame, version), sizeof head->version);
    memcpy(&head->size, file->bytes + at, sizeof head->size);
    memcpy(&head->unsynced, file->bytes + at + offsetof(se_frame, unsynced),
           sizeof head->unsynced);
    return head->version > good && head->size >= sizeof(se_frame) && head->size % 8 == 0 &&
           head->size <= SE_FRAME_MAX;
}

static void note_synced(se_log_rest *rest, uint64_t good, uint64_t synced, uint64_t at) {
    if (synced > good && synced > rest->synced) {
        rest->synced = synced;
        rest->synced_at = at;
    }
}

void se_log_search(const se_log_file *file, uint64_t from, uint64_t good, se_log_rest *rest) {
    bool whole = from < SE_WAL_FIRST_FRAME;
    uint64_t at = whole ? SE_WAL_FIRST_FRAME : (from + 7) & ~UINT64_C(7);
    frame_head head;
    memset(rest, 0, sizeof *rest);
    rest->dirty_end = file->size;
    while (rest->dirty_end > from && file->bytes[rest->dirty_end - 1] == 0)
        rest->dirty_end--;
    if (whole && file->verdict != SE_LOG_FOREIGN)
        note_synced(rest, good, file->header.durable_version, 0);
    rest->begun = !whole && at < file->size && read_head(file, at, good, &head);
    while (at < rest->dirty_end) {
        if (!read_head(file, at, good, &head) ||
            !se_frame_check(file->bytes + at, file->size - at)) {
            at += 8;
            continue;
        }
        rest->begun = true;
        if (head.unsynced != UINT32_MAX && head.unsynced < head.version)
            note_synced(rest, good, head.version - head.unsynced, at);
        at += head.size; /* what a sound frame holds is a value, not the log */
    }
}
