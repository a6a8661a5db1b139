/* io.h - the one seam to the disk.
 *
 * Why:        every write, sync, rename, truncate and removal of the log, the checkpoints and the
 *             recovery goes through these few calls, so that a twin (tests/crash/faulty_io.c) can
 *             die, fail, tear or forget what was not synced at the n-th of them.
 * Used by:    coordinator; any thread. Names are relative to the database's folder.
 * Errors:     SE_IO with errno; a short write is finished or an error, never silent.
 * Cost:       one system call each, but for se_io_write, which goes on after a short one.
 */
#ifndef SE_IO_H
#define SE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define SE_NAME_MAX 96u /* "checkpoint/" and 20 digits, with room */

/* folder_fd: of the database's folder. */
se_status se_io_make_folder(int folder_fd, const char *name);
/* Opens an existing file for reading and writing, or for reading alone. */
se_status se_io_open(int folder_fd, const char *name, bool writable, int *fd);
/* Makes an empty file, mode 0600, in place of one of that name. */
se_status se_io_create(int folder_fd, const char *name, int *fd);
/* Reserves disk space for [0, size); the bytes read as zero where nothing was written. */
se_status se_io_reserve(int fd, uint64_t size);
se_status se_io_write(int fd, const void *bytes, size_t size, uint64_t offset);
/* *got < size only at the end of the file. */
se_status se_io_read(int fd, void *bytes, size_t size, uint64_t offset, size_t *got);
/* The bytes, and what is needed to read them back, are on the disk. */
se_status se_io_sync(int fd);
se_status se_io_truncate(int fd, uint64_t size);
se_status se_io_size(int fd, uint64_t *size);
se_status se_io_rename(int folder_fd, const char *from, const char *to);
/* A second name for a file. */
se_status se_io_link(int folder_fd, const char *from, const char *to);
se_status se_io_remove(int folder_fd, const char *name);
/* Makes creations, renames and removals in the named folder last ("." is the database's own). */
se_status se_io_sync_folder(int folder_fd, const char *name);
/* Names every entry of a folder, but for "." and ".."; visit returns false to stop. A folder that
 * is not there has no entries. */
typedef bool (*se_io_visit)(void *context, const char *entry);
se_status se_io_each(int folder_fd, const char *name, se_io_visit visit, void *context);
/* errno is kept. */
void se_io_close(int fd);

#endif
