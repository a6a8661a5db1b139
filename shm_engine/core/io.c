/* io.c - the seam over POSIX files. */
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_MAX ((size_t)1 << 30) /* the kernel moves at most 2 GiB in one call */
#define ZEROS_SIZE ((size_t)64 << 10)

static se_status done(int rc) { return rc == 0 ? SE_OK : SE_IO; }

static int open_at(int folder_fd, const char *name, int flags) {
    int fd;
    do {
        fd = openat(folder_fd, name, flags | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

se_status se_io_make_folder(int folder_fd, const char *name) {
    return mkdirat(folder_fd, name, 0700) == 0 || errno == EEXIST ? SE_OK : SE_IO;
}

se_status se_io_open(int folder_fd, const char *name, bool writable, int *fd) {
    *fd = open_at(folder_fd, name, writable ? O_RDWR : O_RDONLY);
    return *fd < 0 ? SE_IO : SE_OK;
}

se_status se_io_create(int folder_fd, const char *name, int *fd) {
    *fd = open_at(folder_fd, name, O_RDWR | O_CREAT | O_TRUNC);
    return *fd < 0 ? SE_IO : SE_OK;
}

se_status se_io_write(int fd, const void *bytes, size_t size, uint64_t offset) {
    const uint8_t *at = bytes;
    while (size > 0) {
        ssize_t put = pwrite(fd, at, size < PIECE_MAX ? size : PIECE_MAX, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            errno = put < 0 ? errno : ENOSPC; /* a file takes nothing more and does not say why */
            return SE_IO;
        }
        at += put;
        offset += (uint64_t)put;
        size -= (size_t)put;
    }
    return SE_OK;
}

se_status se_io_read(int fd, void *bytes, size_t size, uint64_t offset, size_t *got) {
    uint8_t *at = bytes;
    *got = 0;
    while (*got < size) {
        size_t left = size - *got;
        ssize_t piece = pread(fd, at + *got, left < PIECE_MAX ? left : PIECE_MAX,
                              (off_t)(offset + *got));
        if (piece < 0 && errno == EINTR)
            continue;
        if (piece < 0)
            return SE_IO;
        if (piece == 0)
            break;
        *got += (size_t)piece;
    }
    return SE_OK;
}

/* For a file system that cannot reserve: writes zeros where the file ends before `size`. */
static se_status extend(int fd, uint64_t size) {
    uint64_t at;
    SE_TRY(se_io_size(fd, &at));
    uint8_t *zeros = calloc(1, ZEROS_SIZE);
    se_status status = zeros ? SE_OK : SE_IO;
    while (status == SE_OK && at < size) {
        size_t piece = size - at < ZEROS_SIZE ? (size_t)(size - at) : ZEROS_SIZE;
        status = se_io_write(fd, zeros, piece, at);
        at += piece;
    }
    int error = errno;
    free(zeros);
    errno = error;
    return status;
}

se_status se_io_reserve(int fd, uint64_t size) {
    int rc;
    /* Not posix_fallocate: the C library's substitute touches every block of the whole file. */
    do {
        rc = fallocate(fd, 0, 0, (off_t)size);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        return extend(fd, size);
    return done(rc);
}

/* fdatasync leaves out the times alone: the size, the blocks and the inode of a new file are needed
 * to read the bytes back, so they go with them. A name is the folder's business. */
se_status se_io_sync(int fd) {
    int rc;
    do {
        rc = fdatasync(fd);
    } while (rc != 0 && errno == EINTR);
    return done(rc);
}

se_status se_io_truncate(int fd, uint64_t size) {
    int rc;
    do {
        rc = ftruncate(fd, (off_t)size);
    } while (rc != 0 && errno == EINTR);
    return done(rc);
}

se_status se_io_size(int fd, uint64_t *size) {
    struct stat info;
    *size = 0;
    if (fstat(fd, &info) != 0)
        return SE_IO;
    *size = (uint64_t)info.st_size;
    return SE_OK;
}

se_status se_io_rename(int folder_fd, const char *from, const char *to) {
    return done(renameat(folder_fd, from, folder_fd, to));
}

se_status se_io_link(int folder_fd, const char *from, const char *to) {
    return done(linkat(folder_fd, from, folder_fd, to, 0));
}

se_status se_io_remove(int folder_fd, const char *name) {
    return done(unlinkat(folder_fd, name, 0));
}

se_status se_io_sync_folder(int folder_fd, const char *name) {
    int fd = open_at(folder_fd, name, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return SE_IO;
    int rc;
    do {
        rc = fsync(fd);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno == EINVAL) /* a file system whose folders need no sync */
        rc = 0;
    se_io_close(fd);
    return done(rc);
}

se_status se_io_each(int folder_fd, const char *name, se_io_visit visit, void *context) {
    int fd = open_at(folder_fd, name, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return errno == ENOENT ? SE_OK : SE_IO;
    DIR *folder = fdopendir(fd);
    if (!folder) {
        se_io_close(fd);
        return SE_IO;
    }
    const struct dirent *entry;
    bool more = true;
    errno = 0;
    while (more && (entry = readdir(folder)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            more = visit(context, entry->d_name);
        errno = 0;
    }
    int error = errno;
    closedir(folder);
    errno = error;
    return error ? SE_IO : SE_OK;
}

void se_io_close(int fd) {
    int error = errno;
    (void)close(fd); /* what had to last was synced before */
    errno = error;
}
