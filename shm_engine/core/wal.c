/* wal.c - names, headers and the making of log files. */
#include "wal.h"

#include <errno.h>

#include "crc32c.h"

#define DIGITS 20u
#define SUFFIX ".wal"

void se_wal_name(uint64_t first_version, char name[SE_NAME_MAX]) {
    snprintf(name, SE_NAME_MAX, SE_WAL_FOLDER "/%020llu" SUFFIX,
             (unsigned long long)first_version);
}

typedef struct {
    uint64_t *list;
    uint32_t count;
    uint32_t room;
    se_status status;
} listing;

/* 0: not the name of a log file. */
static uint64_t version_in(const char *entry) {
    uint64_t version = 0;
    if (strlen(entry) != DIGITS + strlen(SUFFIX) || strcmp(entry + DIGITS, SUFFIX) != 0)
        return 0;
    for (uint32_t index = 0; index < DIGITS; index++) {
        uint64_t digit = (uint64_t)(entry[index] - '0');
        if (digit > 9 || __builtin_mul_overflow(version, UINT64_C(10), &version) ||
            __builtin_add_overflow(version, digit, &version))
            return 0;
    }
    return version;
}

static bool note_file(void *context, const char *entry) {
    listing *files = context;
    uint64_t version = version_in(entry);
    if (version == 0)
        return true;
    if (files->count == files->room) {
        uint32_t room = files->room ? files->room * 2 : 64;
        uint64_t *wider = realloc(files->list, room * sizeof *wider);
        if (!wider) {
            files->status = SE_IO;
            return false;
        }
        files->list = wider;
        files->room = room;
    }
    files->list[files->count++] = version;
    return true;
}

static int compare(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one;
    uint64_t b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

se_status se_wal_list(int folder_fd, uint64_t **list, uint32_t *count) {
    listing files = {.status = SE_OK};
    *list = NULL;
    *count = 0;
    se_status status = se_io_each(folder_fd, SE_WAL_FOLDER, note_file, &files);
    if (status == SE_OK)
        status = files.status;
    if (status != SE_OK) {
        int error = files.status != SE_OK ? ENOMEM : errno;
        free(files.list);
        errno = error;
        return status;
    }
    if (files.count > 0)
        qsort(files.list, files.count, sizeof *files.list, compare);
    *list = files.list;
    *count = files.count;
    return SE_OK;
}

static uint32_t crc_of(const se_wal_header *header) {
    return se_crc32c(0, header, offsetof(se_wal_header, crc));
}

/* Fills in what the caller need not know. The file before is named, so that one that is deleted is
 * not taken for commits that never reached the disk. */
static se_status seal(int folder_fd, se_wal_header *header) {
    uint64_t *list;
    uint32_t count;
    SE_TRY(se_wal_list(folder_fd, &list, &count));
    header->previous_file = 0;
    for (uint32_t index = 0; index < count && list[index] < header->first_version; index++)
        header->previous_file = (uint32_t)list[index];
    free(list);
    header->magic = SE_WAL_MAGIC;
    header->format_version = SE_FORMAT_VERSION;
    header->byte_order = SE_BYTE_ORDER;
    header->crc = crc_of(header);
    return SE_OK;
}

/* The spare file, or a new one under its name: the final name comes when the header is there. */
static se_status open_spare(int folder_fd, int *fd) {
    se_status status = se_io_open(folder_fd, SE_WAL_SPARE, true, fd);
    if (status == SE_IO && errno == ENOENT)
        status = se_io_create(folder_fd, SE_WAL_SPARE, fd);
    return status;
}

static se_status fill_new(int folder_fd, int fd, const se_wal_header *header, uint64_t size,
                          bool sync) {
    uint8_t page[SE_WAL_FIRST_FRAME] = {0};
    char name[SE_NAME_MAX];
    se_wal_header sealed = *header;
    SE_TRY(seal(folder_fd, &sealed));
    memcpy(page, &sealed, sizeof sealed);
    uint64_t had;
    SE_TRY(se_io_size(fd, &had));
    if (had > size) /* where it ends decides which commit begins the next file */
        SE_TRY(se_io_truncate(fd, size));
    SE_TRY(se_io_reserve(fd, size));
    SE_TRY(se_io_write(fd, page, sizeof page, 0));
    if (sync)
        SE_TRY(se_io_sync(fd));
    se_wal_name(header->first_version, name);
    SE_TRY(se_io_rename(folder_fd, SE_WAL_SPARE, name));
    return sync ? se_io_sync_folder(folder_fd, SE_WAL_FOLDER) : SE_OK;
}

se_status se_wal_create(int folder_fd, const se_wal_header *header, uint64_t size, bool sync,
                        int *fd) {
    SE_ASSERT(header->first_version > header->previous_version);
    SE_ASSERT(header->durable_version <= header->previous_version);
    SE_ASSERT(size >= SE_WAL_FIRST_FRAME);
    *fd = -1;
    int made;
    SE_TRY(open_spare(folder_fd, &made));
    se_status status = fill_new(folder_fd, made, header, size, sync);
    if (status != SE_OK) {
        int error = errno;
        se_io_close(made);
        /* On a full disk the half reserved file must not take the rest of it. */
        (void)se_io_remove(folder_fd, SE_WAL_SPARE);
        errno = error;
        return status;
    }
    *fd = made;
    return SE_OK;
}

/* Legal in itself: what no crash and no older file can leave behind is refused. */
static bool is_legal(const se_wal_header *header) {
    return header->first_version > header->previous_version &&
           header->durable_version <= header->previous_version;
}

se_status se_wal_check_header(const void *bytes, uint64_t size, uint64_t first_version,
                              se_wal_header *header) {
    se_wal_header read;
    memset(header, 0, sizeof *header);
    if (size < sizeof read)
        return SE_DAMAGED;
    memcpy(&read, bytes, sizeof read);
    if (read.magic == __builtin_bswap64(SE_WAL_MAGIC) &&
        read.byte_order == __builtin_bswap32(SE_BYTE_ORDER))
        return SE_FORMAT;
    if (read.magic != SE_WAL_MAGIC || read.crc != crc_of(&read))
        return SE_DAMAGED;
    *header = read;
    if (!se_file_version_known(read.format_version) || read.byte_order != SE_BYTE_ORDER)
        return SE_FORMAT;
    return is_legal(&read) && read.first_version == first_version ? SE_OK : SE_DAMAGED;
}

se_status se_wal_read_header(int fd, uint64_t first_version, se_wal_header *header) {
    uint8_t bytes[sizeof *header];
    size_t got;
    memset(header, 0, sizeof *header);
    SE_TRY(se_io_read(fd, bytes, sizeof bytes, 0, &got));
    return se_wal_check_header(bytes, got, first_version, header);
}
