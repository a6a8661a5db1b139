/* store.c - create, attach and detach the two segments; who a process is. */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena.h"
#include "client.h"
#include "retire.h"

#define SE_UNDO_FIRST 16384u
#define SE_TAKEN_FIRST 16384u
#define SE_ARENA_FIRST (UINT64_C(512) << 10)

static uint64_t page_up(uint64_t size) {
    return (size + SE_PAGE - 1) & ~(uint64_t)(SE_PAGE - 1);
}

/* Where the parts of the control segment lie for so many clients. */
static void plan(se_header *header, uint32_t max_clients, bool logged) {
    header->max_clients = max_clients;
    header->snapshot_count = SE_SNAPSHOT_COUNT;
    header->slots_offset = 2 * SE_PAGE;
    header->snapshots_offset =
        page_up(header->slots_offset + (uint64_t)max_clients * sizeof(se_slot));
    header->undo_offset =
        page_up(header->snapshots_offset + (uint64_t)SE_SNAPSHOT_COUNT * sizeof(se_snapshot));
    header->taken_offset = page_up(header->undo_offset + SE_UNDO_MAX * sizeof(se_undo_entry));
    header->requests_offset = page_up(header->taken_offset + SE_TAKEN_MAX * sizeof(se_word));
    header->request_size = SE_REQUEST_MAX;
    header->control_size = header->requests_offset + max_clients * SE_REQUEST_MAX;
    header->wal_ring_offset = logged ? header->control_size : 0;
    header->wal_ring_size = logged ? SE_RING_SIZE : 0;
    header->control_size += header->wal_ring_size;
}

uint64_t se_store_control_size(uint32_t max_clients, bool logged) {
    se_header header;
    plan(&header, max_clients, logged);
    return header.control_size;
}

se_status se_back_with_memory(int fd, uint64_t offset, uint64_t size) {
    int rc;
    do {
        rc = posix_fallocate(fd, (off_t)offset, (off_t)size);
    } while (rc == EINTR);
    if (rc == 0)
        return SE_OK;
    errno = rc;
    return rc == ENOSPC || rc == ENOMEM ? SE_FULL : SE_IO;
}

void se_release_memory(int fd, uint64_t offset, uint64_t size) {
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
}

/* -1: there is no such process; 0: could not be read (no descriptor is left, say); 1: text is. */
static int read_process(uint32_t pid, char *text, size_t size) {
    char path[40];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? -1 : 0;
    ssize_t got = read(fd, text, size - 1);
    int error = errno;
    close(fd);
    if (got <= 0)
        return got < 0 && error != ESRCH ? 0 : -1;
    text[got] = 0;
    return 1;
}

/* State, number of threads and start time, behind the name, which may hold anything. */
static uint64_t identity_in(char *text, uint32_t pid) {
    char *field = strrchr(text, ')');
    if (!field || field[1] != ' ')
        return 0;
    field += 2;
    bool ended = *field == 'Z' || *field == 'X';
    uint64_t threads = 0;
    for (int index = 3; index < 22; index++) {
        if (index == 20)
            threads = strtoull(field, NULL, 10);
        field = strchr(field, ' ');
        if (!field)
            return 0;
        field++;
    }
    if (ended && threads < 2) /* a first thread may end before the others */
        return 0;
    uint64_t start = strtoull(field, NULL, 10);
    return (uint64_t)(uint32_t)(start + 1) << 32 | pid;
}

uint64_t se_process_identity(uint32_t pid) {
    char text[1024];
    return read_process(pid, text, sizeof text) == 1 ? identity_in(text, pid) : 0;
}

bool se_process_alive(uint64_t identity) {
    char text[1024];
    uint32_t pid = (uint32_t)identity;
    if (identity == 0)
        return false;
    int found = read_process(pid, text, sizeof text);
    if (found == 0) /* what cannot be told dead is alive */
        return kill((pid_t)pid, 0) == 0 || errno != ESRCH;
    return found == 1 && identity_in(text, pid) == identity;
}

static uint64_t pid_namespace(void) {
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? (uint64_t)info.st_ino : 0;
}

static se_status map_segments(se_store *store, int control_fd, int data_fd) {
    store->control_fd = control_fd;
    store->data_fd = data_fd;
    void *control = mmap(NULL, store->control_size, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_NORESERVE, control_fd, 0);
    if (control == MAP_FAILED)
        return SE_IO;
    void *data = mmap(NULL, store->data_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                      data_fd, 0);
    if (data == MAP_FAILED) {
        int error = errno;
        munmap(control, store->control_size);
        errno = error;
        return SE_IO;
    }
    (void)madvise(control, store->control_size, MADV_DONTDUMP);
    (void)madvise(data, store->data_size, MADV_DONTDUMP);
    store->control = control;
    store->data = data;
    store->header = control;
    store->seq = (se_sequencer *)(store->control + SE_PAGE);
    store->identity = se_process_identity((uint32_t)getpid());
    return SE_OK;
}

static void find_parts(se_store *store) {
    const se_header *header = store->header;
    store->slots = (se_slot *)(store->control + header->slots_offset);
    store->snapshots = (se_snapshot *)(store->control + header->snapshots_offset);
    store->undo = (se_undo_entry *)(store->control + header->undo_offset);
    store->taken = (se_word *)(store->control + header->taken_offset);
}

static se_status back_control(se_store *store, const se_header *layout) {
    SE_TRY(se_back_with_memory(store->control_fd, 0,
                               layout->undo_offset + SE_UNDO_FIRST * sizeof(se_undo_entry)));
    SE_TRY(se_back_with_memory(store->control_fd, layout->taken_offset,
                               SE_TAKEN_FIRST * sizeof(se_word)));
    if (layout->wal_ring_size == 0)
        return SE_OK;
    return se_back_with_memory(store->control_fd, layout->wal_ring_offset,
                               SE_RING_FIRST + SE_PAGE); /* see walring.c */
}

static void init_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

/* As much as a busy second of a slow disk, but not more than the data may take. */
static uint64_t ring_soft(uint64_t data_size) {
    uint64_t soft = data_size / 16;
    return soft < SE_RING_FIRST ? SE_RING_FIRST : soft > SE_RING_SOFT_MAX ? SE_RING_SOFT_MAX : soft;
}

se_status se_store_create(se_store *store, int control_fd, int data_fd,
                          const se_options *options) {
    se_header layout;
    memset(&layout, 0, sizeof layout);
    memset(store, 0, sizeof *store);
    if (options->max_clients == 0 || options->max_clients > SE_CLIENTS_MAX)
        return SE_INVALID;
    plan(&layout, options->max_clients, options->durability_kind != SE_IN_MEMORY);
    store->control_size = layout.control_size;
    store->data_size = page_up(options->map_size);
    if (store->data_size < 2 * SE_ARENA_FIRST)
        return SE_INVALID;
    if (ftruncate(control_fd, (off_t)store->control_size) != 0 ||
        ftruncate(data_fd, (off_t)store->data_size) != 0)
        return SE_IO;
    SE_TRY(map_segments(store, control_fd, data_fd));
    se_status status = back_control(store, &layout);
    if (status == SE_OK)
        status = se_back_with_memory(data_fd, 0, SE_ARENA_FIRST);
    if (status != SE_OK) {
        se_store_detach(store);
        return status;
    }
    layout.format_version = SE_FORMAT_VERSION;
    layout.byte_order = SE_BYTE_ORDER;
    layout.data_size = store->data_size;
    layout.pid_namespace = pid_namespace();
    layout.created_us = options->created_us;
    layout.reserve_size = store->data_size / 64 < (256u << 10) ? store->data_size / 64 : 256u << 10;
    layout.durability_kind = options->durability_kind;
    layout.flush_interval_ms = options->flush_interval_ms;
    layout.max_pending_writes = options->max_pending_writes;
    layout.wal_ring_soft = ring_soft(store->data_size);
    memcpy(layout.database_id, options->database_id, sizeof layout.database_id);
    memcpy(layout.folder, options->folder, sizeof layout.folder);
    layout.folder[sizeof layout.folder - 1] = 0;
    *store->header = layout;
    find_parts(store);
    init_mutex(&store->seq->mutex);
    for (uint32_t index = 0; index < SE_SNAPSHOT_COUNT; index++)
        se_store_relaxed(&store->snapshots[index].version, SE_NO_SNAPSHOT);
    se_store_relaxed(&store->seq->undo_allocated, SE_UNDO_FIRST);
    se_store_relaxed(&store->seq->taken_allocated, SE_TAKEN_FIRST);
    se_store_relaxed(&store->seq->arena_bump, SE_PAGE);
    se_store_relaxed(&store->seq->arena_allocated, SE_ARENA_FIRST);
    se_store_relaxed(&store->seq->wal_backed, layout.wal_ring_size ? SE_RING_FIRST : 0);
    se_store_relaxed_u32(&store->seq->phase, SE_PHASE_SERVING);
    uint32_t prepared = 0;
    se_client_prepare_next(store, 4, &prepared);
    status = se_retire_init(store);
    if (status != SE_OK) {
        se_store_detach(store);
        return status;
    }
    atomic_thread_fence(memory_order_release);
    store->header->magic = SE_MAGIC;
    return SE_OK;
}

se_status se_store_attach(se_store *store, int control_fd, int data_fd, uint32_t *found) {
    struct stat control_info;
    struct stat data_info;
    se_header header;
    memset(store, 0, sizeof *store);
    *found = 0;
    if (fstat(control_fd, &control_info) != 0 || fstat(data_fd, &data_info) != 0)
        return SE_IO;
    if (pread(control_fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
        header.magic != SE_MAGIC)
        return SE_FORMAT;
    *found = header.format_version;
    se_header expected;
    memset(&expected, 0, sizeof expected);
    if (header.format_version != SE_FORMAT_VERSION || header.byte_order != SE_BYTE_ORDER ||
        header.max_clients == 0 || header.max_clients > SE_CLIENTS_MAX)
        return SE_FORMAT;
    plan(&expected, header.max_clients, header.durability_kind != SE_IN_MEMORY);
    if (header.control_size != expected.control_size ||
        header.slots_offset != expected.slots_offset ||
        header.snapshots_offset != expected.snapshots_offset ||
        header.snapshot_count != expected.snapshot_count ||
        header.undo_offset != expected.undo_offset ||
        header.taken_offset != expected.taken_offset ||
        header.requests_offset != expected.requests_offset ||
        header.request_size != expected.request_size ||
        header.wal_ring_offset != expected.wal_ring_offset ||
        header.wal_ring_size != expected.wal_ring_size ||
        (uint64_t)control_info.st_size != header.control_size ||
        (uint64_t)data_info.st_size != header.data_size || header.data_size < 2 * SE_ARENA_FIRST)
        return SE_FORMAT;
    if (header.pid_namespace != pid_namespace())
        return SE_INVALID; /* pids would mean other processes: no death could be told */
    store->control_size = header.control_size;
    store->data_size = header.data_size;
    SE_TRY(map_segments(store, control_fd, data_fd));
    find_parts(store);
    return SE_OK;
}

void se_store_detach(se_store *store) {
    if (store->control)
        munmap(store->control, store->control_size);
    if (store->data)
        munmap(store->data, store->data_size);
    store->control = NULL;
    store->data = NULL;
    store->header = NULL;
    store->seq = NULL;
}
