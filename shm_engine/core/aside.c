/* aside.c - move, copy and link into damaged-<n>/. */
#include "aside.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_SIZE ((size_t)1 << 20)
#define FOLDERS_MAX 100000u

static bool exists(int folder_fd, const char *name) {
    int fd;
    if (se_io_open(folder_fd, name, false, &fd) != SE_OK)
        return errno != ENOENT;
    se_io_close(fd);
    return true;
}

static se_status make_folder(se_aside *aside) {
    char folder[sizeof aside->folder];
    if (aside->folder[0])
        return SE_OK;
    for (uint32_t number = 1; number < FOLDERS_MAX; number++) {
        snprintf(folder, sizeof folder, "damaged-%u", number);
        if (exists(aside->folder_fd, folder))
            continue;
        SE_TRY(se_io_make_folder(aside->folder_fd, folder));
        memcpy(aside->folder, folder, sizeof folder);
        return SE_OK;
    }
    errno = EEXIST;
    return SE_IO;
}

static se_status name_in(se_aside *aside, const char *name, char target[SE_NAME_MAX]) {
    const char *slash = strrchr(name, '/');
    SE_TRY(make_folder(aside));
    int size = snprintf(target, SE_NAME_MAX, "%s/%s", aside->folder, slash ? slash + 1 : name);
    if (size < 0 || size >= (int)SE_NAME_MAX) {
        errno = ENAMETOOLONG;
        return SE_IO;
    }
    return SE_OK;
}

se_status se_aside_move(se_aside *aside, const char *name) {
    char target[SE_NAME_MAX];
    SE_TRY(name_in(aside, name, target));
    SE_TRY(se_io_rename(aside->folder_fd, name, target));
    aside->files++;
    return SE_OK;
}

static se_status copy_bytes(int from, int to) {
    uint8_t *piece = malloc(PIECE_SIZE);
    se_status status = piece ? SE_OK : SE_IO;
    size_t got = PIECE_SIZE;
    for (uint64_t at = 0; status == SE_OK && got == PIECE_SIZE; at += got) {
        status = se_io_read(from, piece, PIECE_SIZE, at, &got);
        if (status == SE_OK && got > 0)
            status = se_io_write(to, piece, got, at);
    }
    int error = errno;
    free(piece);
    errno = error;
    return status == SE_OK ? se_io_sync(to) : status;
}

se_status se_aside_copy(se_aside *aside, const char *name) {
    char target[SE_NAME_MAX];
    int from;
    int to;
    SE_TRY(name_in(aside, name, target));
    SE_TRY(se_io_open(aside->folder_fd, name, false, &from));
    se_status status = se_io_create(aside->folder_fd, target, &to);
    if (status == SE_OK) {
        status = copy_bytes(from, to);
        se_io_close(to);
    }
    se_io_close(from);
    aside->files += status == SE_OK;
    return status;
}

se_status se_aside_keep(se_aside *aside, const char *name) {
    char target[SE_NAME_MAX];
    SE_TRY(name_in(aside, name, target));
    if (se_io_link(aside->folder_fd, name, target) != SE_OK)
        return se_aside_copy(aside, name); /* a file system without second names */
    aside->files++;
    return SE_OK;
}

se_status se_aside_sync(const se_aside *aside) {
    if (!aside->folder[0])
        return SE_OK;
    SE_TRY(se_io_sync_folder(aside->folder_fd, aside->folder));
    return se_io_sync_folder(aside->folder_fd, ".");
}
