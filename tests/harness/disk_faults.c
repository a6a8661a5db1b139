/* disk_faults.c - a disk that fails, or a process that dies, at a file operation that a test names.
 *
 * Why:        the n-th write, sync, rename or removal is the moment that a test is about, and only the
 *             process itself comes by it for certain. Loaded in front of the C library (LD_PRELOAD)
 *             into the coordinator; a mapped file that the test writes says what to do and when.
 * Used by:    tests/harness/disk.py
 * Shared:     `plan`, 128 bytes of the file named by SHM_ENGINE_TEST_DISK, layout as in disk.py
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, REMOVE = 8, RESERVE = 16 };
enum { NOTHING = 0, FAIL = 1, KILL = 2, STOP = 3 };

typedef struct {
    _Atomic uint64_t action;
    uint64_t kinds;
    uint64_t first; /* of the operations that match: the first one that is acted upon, from 1 */
    uint64_t count; /* how many from there on, 0: all */
    uint64_t error;
    _Atomic uint64_t seen;
    _Atomic uint64_t acted;
    char match[72]; /* part of the path, within a folder called "database" */
} plan;

static plan *the_plan;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("SHM_ENGINE_TEST_DISK");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    the_plan = mapped == MAP_FAILED ? NULL : mapped;
}

/* Whether the operation fails instead of being carried out; errno is set then. */
static int intervene(uint64_t kind, const char *path) {
    if (!the_plan || the_plan->action == NOTHING || !(the_plan->kinds & kind) ||
        !strstr(path, the_plan->match))
        return 0;
    uint64_t number = ++the_plan->seen;
    if (number < the_plan->first ||
        (the_plan->count && number >= the_plan->first + the_plan->count))
        return 0;
    uint64_t action = the_plan->action;
    the_plan->acted++;
    if (action == KILL)
        kill(getpid(), SIGKILL);
    if (action == STOP)
        kill(getpid(), SIGSTOP);
    errno = (int)the_plan->error;
    return action == FAIL;
}

static int intervene_fd(uint64_t kind, int fd) {
    char link[32];
    char path[4096];
    if (!the_plan || the_plan->action == NOTHING)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    /* As the *at calls name it; what the test's own folders are called must not match. */
    const char *inside = strstr(path, "/database/");
    return intervene(kind, inside ? inside + strlen("/database/") : path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
    return intervene_fd(WRITE, fd) ? -1 : REAL(pwrite)(fd, bytes, size, offset);
}
int fdatasync(int fd) { return intervene_fd(SYNC, fd) ? -1 : REAL(fdatasync)(fd); }
int fsync(int fd) { return intervene_fd(SYNC, fd) ? -1 : REAL(fsync)(fd); }
int renameat(int old_fd, const char *from, int new_fd, const char *to) {
    return intervene(RENAME, to) ? -1 : REAL(renameat)(old_fd, from, new_fd, to);
}
int rename(const char *from, const char *to) {
    return intervene(RENAME, to) ? -1 : REAL(rename)(from, to);
}
int unlinkat(int fd, const char *path, int flags) {
    return intervene(REMOVE, path) ? -1 : REAL(unlinkat)(fd, path, flags);
}
int unlink(const char *path) { return intervene(REMOVE, path) ? -1 : REAL(unlink)(path); }
int shm_unlink(const char *name) { return intervene(REMOVE, name) ? -1 : REAL(shm_unlink)(name); }
int fallocate(int fd, int mode, off_t offset, off_t size) {
    return intervene_fd(RESERVE, fd) ? -1 : REAL(fallocate)(fd, mode, offset, size);
}
int ftruncate(int fd, off_t size) {
    return intervene_fd(RESERVE, fd) ? -1 : REAL(ftruncate)(fd, size);
}
