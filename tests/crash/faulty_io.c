/* faulty_io.c - the model of the disk, and io.h over it. */
#include "faulty_io.h"

/* The real one under other names. */
#define se_io_make_folder real_make_folder
#define se_io_open real_open
#define se_io_create real_create
#define se_io_reserve real_reserve
#define se_io_write real_write
#define se_io_read real_read
#define se_io_sync real_sync
#define se_io_truncate real_truncate
#define se_io_size real_size
#define se_io_rename real_rename
#define se_io_link real_link
#define se_io_remove real_remove
#define se_io_sync_folder real_sync_folder
#define se_io_each real_each
#define se_io_close real_close
#include "../../shm_engine/core/io.c"
#undef se_io_make_folder
#undef se_io_open
#undef se_io_create
#undef se_io_reserve
#undef se_io_write
#undef se_io_read
#undef se_io_sync
#undef se_io_truncate
#undef se_io_size
#undef se_io_rename
#undef se_io_link
#undef se_io_remove
#undef se_io_sync_folder
#undef se_io_each
#undef se_io_close
#undef SE_IO_H
#include "io.h"

#define SECTOR 512u
#define OBJECTS_MAX 4096u
#define NAMES_MAX 512u
#define OPS_MAX 4096u

enum { CLEAN = 0, DIRTY = 1, POISONED = 2 };

/* A file, whatever its names are. */
typedef struct {
    int fd;
    ino_t inode;
    uint8_t *synced; /* what a power cut cannot take */
    uint64_t synced_size;
    uint8_t *state; /* of each sector */
    uint64_t sectors;
    bool resized; /* since the last sync */
} object;

typedef struct {
    char name[SE_NAME_MAX];
    object *file;
} entry;

typedef struct {
    entry entries[NAMES_MAX];
    uint32_t count;
} names;

typedef struct {
    char from[SE_NAME_MAX]; /* empty: the file is new, or has a second name now */
    char to[SE_NAME_MAX];   /* empty: the name is gone */
    object *file;
} operation;

static struct {
    bool active;
    faulty_plan plan;
    int folder_fd;
    uint64_t steps;
    uint64_t random;
    object objects[OBJECTS_MAX];
    uint32_t object_count;
    names now;
    names durable;
    operation ops[OPS_MAX]; /* since `durable` */
    uint32_t op_count;
} disk;

static uint64_t draw(uint64_t below) {
    disk.random = disk.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (disk.random >> 33) % below;
}

static void require(bool condition, const char *what) {
    if (condition)
        return;
    fprintf(stderr, "faulty_io: %s, errno %d, step %llu\n", what, errno,
            (unsigned long long)disk.steps);
    abort();
}

/* -- the model ----------------------------------------------------------------------------- */

static void widen(object *file, uint64_t size) {
    uint64_t sectors = (size + SECTOR - 1) / SECTOR;
    if (sectors <= file->sectors)
        return;
    file->synced = realloc(file->synced, sectors * SECTOR);
    file->state = realloc(file->state, sectors);
    require(file->synced && file->state, "no memory");
    memset(file->synced + file->sectors * SECTOR, 0, (sectors - file->sectors) * SECTOR);
    memset(file->state + file->sectors, CLEAN, sectors - file->sectors);
    file->sectors = sectors;
}

static void mark(object *file, uint64_t from, uint64_t to) {
    widen(file, to);
    for (uint64_t sector = from / SECTOR; sector * SECTOR < to; sector++)
        file->state[sector] = DIRTY;
}

static void note_synced(object *file) {
    uint64_t size;
    size_t got;
    require(real_size(file->fd, &size) == SE_OK, "size");
    widen(file, size);
    for (uint64_t sector = 0; sector < file->sectors; sector++) {
        if (file->state[sector] != DIRTY)
            continue;
        memset(file->synced + sector * SECTOR, 0, SECTOR);
        require(real_read(file->fd, file->synced + sector * SECTOR, SECTOR, sector * SECTOR,
                          &got) == SE_OK,
                "read");
        file->state[sector] = CLEAN;
    }
    file->synced_size = size;
    file->resized = false;
}

static void note_poisoned(object *file) {
    for (uint64_t sector = 0; sector < file->sectors; sector++)
        file->state[sector] = file->state[sector] == DIRTY ? POISONED : file->state[sector];
}

static object *object_of(int fd) {
    struct stat info;
    require(fstat(fd, &info) == 0, "fstat");
    for (uint32_t index = 0; index < disk.object_count; index++)
        if (disk.objects[index].inode == info.st_ino)
            return &disk.objects[index];
    require(disk.object_count < OBJECTS_MAX, "too many files");
    object *file = &disk.objects[disk.object_count++];
    memset(file, 0, sizeof *file);
    file->inode = info.st_ino;
    file->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* kept, so that the inode is not given out again */
    require(file->fd >= 0, "dup");
    return file;
}

static entry *find(names *list, const char *name) {
    for (uint32_t index = 0; index < list->count; index++)
        if (strcmp(list->entries[index].name, name) == 0)
            return &list->entries[index];
    return NULL;
}

static void forget(names *list, const char *name) {
    entry *gone = find(list, name);
    if (gone)
        *gone = list->entries[--list->count];
}

static void put(names *list, const char *name, object *file) {
    entry *there = find(list, name);
    if (!there) {
        require(list->count < NAMES_MAX, "too many names");
        there = &list->entries[list->count++];
        snprintf(there->name, sizeof there->name, "%s", name);
    }
    there->file = file;
}

static void apply(names *list, const operation *op) {
    if (op->from[0])
        forget(list, op->from);
    if (op->to[0])
        put(list, op->to, op->file);
}

static void note_operation(const char *from, const char *to, object *file) {
    require(disk.op_count < OPS_MAX, "too many folder operations");
    operation *op = &disk.ops[disk.op_count++];
    snprintf(op->from, sizeof op->from, "%s", from);
    snprintf(op->to, sizeof op->to, "%s", to);
    op->file = file;
    apply(&disk.now, op);
}

static bool is_in(const char *folder, const char *name) {
    size_t size = strlen(folder);
    if (!name[0])
        return false;
    if (strcmp(folder, ".") == 0)
        return strchr(name, '/') == NULL;
    return strncmp(name, folder, size) == 0 && name[size] == '/';
}

/* Everything up to the last operation in the folder; order is kept. */
static void note_folder_synced(const char *folder) {
    uint32_t upto = 0;
    for (uint32_t index = 0; index < disk.op_count; index++)
        if (is_in(folder, disk.ops[index].from) || is_in(folder, disk.ops[index].to))
            upto = index + 1;
    for (uint32_t index = 0; index < upto; index++)
        apply(&disk.durable, &disk.ops[index]);
    memmove(disk.ops, disk.ops + upto, (disk.op_count - upto) * sizeof disk.ops[0]);
    disk.op_count -= upto;
}

/* -- the power cut ------------------------------------------------------------------------- */

typedef struct {
    char name[SE_NAME_MAX];
    uint8_t *bytes;
    uint64_t size;
} remains;

static void remain(const entry *from, remains *left) {
    object *file = from->file;
    uint64_t size;
    size_t got;
    require(real_size(file->fd, &size) == SE_OK, "size");
    widen(file, size);
    uint64_t most = size > file->synced_size ? size : file->synced_size;
    left->bytes = calloc(1, most + SECTOR);
    require(left->bytes != NULL, "no memory");
    snprintf(left->name, sizeof left->name, "%s", from->name);
    uint64_t luck = draw(4); /* nothing, everything, any, or what came first */
    uint64_t first = draw(file->sectors + 1);
    left->size = !file->resized || luck == 1 || (luck > 1 && draw(2)) ? size : file->synced_size;
    for (uint64_t sector = 0; sector * SECTOR < left->size; sector++) {
        bool kept = luck == 1 || (luck == 2 && draw(2)) || (luck == 3 && sector < first);
        bool changed = sector < file->sectors && file->state[sector] != CLEAN;
        if (changed && (!kept || file->state[sector] == POISONED))
            memcpy(left->bytes + sector * SECTOR, file->synced + sector * SECTOR, SECTOR);
        else if (sector * SECTOR < size)
            require(real_read(file->fd, left->bytes + sector * SECTOR, SECTOR, sector * SECTOR,
                              &got) == SE_OK,
                    "read");
        else if (sector < file->sectors) /* a truncation that was lost */
            memcpy(left->bytes + sector * SECTOR, file->synced + sector * SECTOR, SECTOR);
    }
}

static void write_remains(const remains *left) {
    int fd;
    require(real_create(disk.folder_fd, left->name, &fd) == SE_OK, "create");
    require(real_write(fd, left->bytes, left->size, 0) == SE_OK, "write");
    real_close(fd);
    free(left->bytes);
}

void faulty_power_cut(void) {
    static remains left[NAMES_MAX];
    uint64_t luck = draw(4);
    uint32_t upto = luck == 0 ? 0 : luck == 1 ? disk.op_count : (uint32_t)draw(disk.op_count + 1);
    for (uint32_t index = 0; index < upto; index++)
        apply(&disk.durable, &disk.ops[index]);
    for (uint32_t index = 0; index < disk.durable.count; index++)
        remain(&disk.durable.entries[index], &left[index]);
    for (uint32_t index = 0; index < disk.now.count; index++)
        (void)real_remove(disk.folder_fd, disk.now.entries[index].name);
    for (uint32_t index = 0; index < disk.durable.count; index++)
        write_remains(&left[index]);
    disk.active = false;
}

/* -- steps --------------------------------------------------------------------------------- */

static void learn_file(const char *name) {
    int fd;
    require(real_open(disk.folder_fd, name, true, &fd) == SE_OK, "open");
    object *file = object_of(fd);
    uint64_t size;
    require(real_size(fd, &size) == SE_OK, "size");
    mark(file, 0, size);
    if (disk.plan.unsynced && is_in(disk.plan.unsynced, name))
        file->resized = true;
    else
        note_synced(file);
    put(&disk.now, name, file);
    put(&disk.durable, name, file);
    real_close(fd);
}

static bool learn_entry(void *context, const char *name) {
    char path[SE_NAME_MAX * 2];
    snprintf(path, sizeof path, "%s/%s", (const char *)context, name);
    learn_file(path);
    return true;
}

static bool learn_folder(void *context, const char *name) {
    (void)context;
    char folder[SE_NAME_MAX];
    snprintf(folder, sizeof folder, "%.90s", name);
    require(real_each(disk.folder_fd, folder, learn_entry, folder) == SE_OK, "list");
    return true;
}

void faulty_begin(int folder_fd, const faulty_plan *plan) {
    memset(&disk, 0, sizeof disk);
    disk.plan = *plan;
    disk.folder_fd = folder_fd;
    disk.random = plan->seed * 2 + 1;
    require(real_each(folder_fd, ".", learn_folder, NULL) == SE_OK, "list");
    disk.active = true;
}

void faulty_end(void) { disk.active = false; }

uint64_t faulty_steps(void) { return disk.steps; }

/* Whether the step is to be done at all; errno is set if not. */
static bool step(void) {
    if (!disk.active)
        return true;
    const faulty_plan *plan = &disk.plan;
    disk.steps++;
    bool here = disk.steps == plan->at;
    if (here && plan->kind == FAULT_DIE)
        _exit(FAULTY_DIED);
    if (here && plan->kind == FAULT_POWER && draw(2)) {
        faulty_power_cut();
        _exit(FAULTY_DIED);
    }
    if ((here && plan->kind == FAULT_ONCE) ||
        (plan->kind == FAULT_ALWAYS && plan->at != 0 && disk.steps >= plan->at)) {
        errno = plan->error;
        return false;
    }
    return true;
}

static void after_step(void) {
    if (!disk.active || disk.steps != disk.plan.at)
        return;
    if (disk.plan.kind == FAULT_POWER)
        faulty_power_cut();
    if (disk.plan.kind == FAULT_POWER || disk.plan.kind == FAULT_TORN)
        _exit(FAULTY_DIED);
}

static se_status finish(se_status status) {
    int error = errno;
    after_step();
    errno = error;
    return status;
}

se_status se_io_make_folder(int folder_fd, const char *name) {
    return step() ? finish(real_make_folder(folder_fd, name)) : SE_IO;
}

se_status se_io_open(int folder_fd, const char *name, bool writable, int *fd) {
    return real_open(folder_fd, name, writable, fd);
}

se_status se_io_create(int folder_fd, const char *name, int *fd) {
    if (!step())
        return SE_IO;
    bool there = disk.active && find(&disk.now, name) != NULL;
    se_status status = real_create(folder_fd, name, fd);
    if (status == SE_OK && disk.active) {
        object *file = object_of(*fd);
        file->resized = true;
        if (there)
            mark(file, 0, file->sectors * SECTOR);
        else
            note_operation("", name, file);
    }
    return finish(status);
}

se_status se_io_reserve(int fd, uint64_t size) {
    uint64_t before;
    if (!step())
        return SE_IO;
    if (disk.active && real_size(fd, &before) == SE_OK && before < size)
        object_of(fd)->resized = true;
    return finish(real_reserve(fd, size));
}

/* Some sectors of the piece, or its beginning. */
static void tear(int fd, const uint8_t *bytes, size_t size, uint64_t offset) {
    if (draw(2)) {
        require(real_write(fd, bytes, draw(size + 1), offset) == SE_OK, "write");
        return;
    }
    for (size_t at = 0; at < size;) {
        size_t piece = SECTOR - (offset + at) % SECTOR;
        piece = piece < size - at ? piece : size - at;
        if (draw(2))
            require(real_write(fd, bytes + at, piece, offset + at) == SE_OK, "write");
        at += piece;
    }
}

se_status se_io_write(int fd, const void *bytes, size_t size, uint64_t offset) {
    if (!step())
        return SE_IO;
    if (!disk.active)
        return real_write(fd, bytes, size, offset);
    object *file = object_of(fd);
    uint64_t before;
    require(real_size(fd, &before) == SE_OK, "size");
    if (disk.plan.kind == FAULT_TORN && disk.steps == disk.plan.at) {
        tear(fd, bytes, size, offset);
        _exit(FAULTY_DIED);
    }
    file->resized = file->resized || offset + size > before;
    mark(file, offset, offset + size);
    return finish(real_write(fd, bytes, size, offset));
}

se_status se_io_read(int fd, void *bytes, size_t size, uint64_t offset, size_t *got) {
    return real_read(fd, bytes, size, offset, got);
}

se_status se_io_sync(int fd) {
    if (!step()) {
        int error = errno;
        note_poisoned(object_of(fd));
        errno = error;
        return SE_IO;
    }
    if (disk.active)
        note_synced(object_of(fd));
    return finish(SE_OK);
}

se_status se_io_truncate(int fd, uint64_t size) {
    if (!step())
        return SE_IO;
    if (disk.active) {
        object *file = object_of(fd);
        file->resized = true;
        if (size < file->sectors * SECTOR)
            mark(file, size, file->sectors * SECTOR); /* zeros, if it grows again */
    }
    return finish(real_truncate(fd, size));
}

se_status se_io_size(int fd, uint64_t *size) { return real_size(fd, size); }

static se_status note_if_done(se_status status, const char *from, const char *to,
                              const char *named) {
    int error = errno;
    if (status == SE_OK && disk.active) {
        entry *file = find(&disk.now, named);
        require(file != NULL, "a name that the model does not know");
        note_operation(from, to, file->file);
    }
    errno = error;
    return finish(status);
}

se_status se_io_rename(int folder_fd, const char *from, const char *to) {
    return step() ? note_if_done(real_rename(folder_fd, from, to), from, to, from) : SE_IO;
}

se_status se_io_link(int folder_fd, const char *from, const char *to) {
    return step() ? note_if_done(real_link(folder_fd, from, to), "", to, from) : SE_IO;
}

se_status se_io_remove(int folder_fd, const char *name) {
    return step() ? note_if_done(real_remove(folder_fd, name), name, "", name) : SE_IO;
}

se_status se_io_sync_folder(int folder_fd, const char *name) {
    if (!step())
        return SE_IO;
    if (!disk.active)
        return real_sync_folder(folder_fd, name);
    struct stat info;
    if (fstatat(folder_fd, name, &info, 0) != 0)
        return finish(SE_IO);
    note_folder_synced(name);
    return finish(SE_OK);
}

se_status se_io_each(int folder_fd, const char *name, se_io_visit visit, void *context) {
    return real_each(folder_fd, name, visit, context);
}

void se_io_close(int fd) { real_close(fd); }
