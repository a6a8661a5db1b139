/* test_log.c - the log writer takes up what another one left, whatever a checkpoint removed meanwhile.
 *
 * A writer is taken to be dead when its log is closed without being stopped; what counts is what it
 * published. Deaths at each step of the disk are in tests/crash; here are the meetings of two.
 *
 * Two calls are wrapped by the linker: a test removes a file at that very moment, or has no memory.
 */
#include <sys/stat.h>

#include "checkpoints.h"
#include "log.h"
#include "recover.h"
#include "wal.h"
#include "walring.h"

#define MAP (UINT64_C(8) << 20)

static const uint8_t database_id[16] = "test of the log";

se_status __real_se_io_sync_folder(int folder_fd, const char *name);
se_status __wrap_se_io_sync_folder(int folder_fd, const char *name);

static uint64_t remove_at_sync; /* a log file that goes when the folder is synced */
static unsigned root_syncs;

se_status __wrap_se_io_sync_folder(int folder_fd, const char *name) {
    if (remove_at_sync) {
        char file[SE_NAME_MAX];
        se_wal_name(remove_at_sync, file);
        REQUIRE(se_io_remove(folder_fd, file) == SE_OK);
        remove_at_sync = 0;
    }
    root_syncs += strcmp(name, ".") == 0;
    return __real_se_io_sync_folder(folder_fd, name);
}

se_status __real_se_back_with_memory(int fd, uint64_t offset, uint64_t size);
se_status __wrap_se_back_with_memory(int fd, uint64_t offset, uint64_t size);

static bool no_memory;

se_status __wrap_se_back_with_memory(int fd, uint64_t offset, uint64_t size) {
    return no_memory ? SE_FULL : __real_se_back_with_memory(fd, offset, size);
}

typedef struct {
    test_folder folder;
    test_segments segments;
    se_store *store;
    se_session session;
    se_log *log;
} scene;

static se_store *make_store(test_segments segments, uint32_t mode) {
    se_options options = {.map_size = MAP, .max_clients = 4, .durability_kind = mode,
                          .flush_interval_ms = 1000, .max_pending_writes = 1000};
    se_store *store = calloc(1, sizeof *store);
    REQUIRE(store);
    memcpy(options.database_id, database_id, sizeof database_id);
    REQUIRE(se_store_create(store, segments.control_fd, segments.data_fd, &options) == SE_OK);
    return store;
}

static void begin(scene *s, uint32_t mode) {
    memset(s, 0, sizeof *s);
    s->folder = test_folder_make();
    s->segments = test_segments_make();
    s->store = make_store(s->segments, mode);
    se_log_begin(s->store, 0);
    REQUIRE(se_log_open(s->store, s->folder.fd, &s->log) == SE_OK);
    REQUIRE(se_session_open(&s->session, s->store) == SE_OK);
}

static void end(scene *s) {
    se_log_close(s->log);
    se_session_close(&s->session);
    test_store_free(s->store);
    test_segments_close(s->segments);
    test_folder_remove(&s->folder);
}

static void put(scene *s, const char *name) {
    REQUIRE(test_put(&s->session, name, "text", 4) == SE_OK);
}

static uint64_t newest(const scene *s) {
    return se_load_relaxed(&s->store->seq->commit_version);
}

/* The writer dies; another one takes the log up. */
static void succeed(scene *s) {
    se_log_close(s->log);
    REQUIRE(se_log_open(s->store, s->folder.fd, &s->log) == SE_OK);
}

/* A writer makes the next file, and dies before it says so. */
static void make_unused(scene *s, uint64_t previous) {
    se_wal_header header = {.first_version = previous + 1, .previous_version = previous,
                            .durable_version = 0};
    int fd;
    memcpy(header.database_id, database_id, sizeof database_id);
    REQUIRE(se_wal_create(s->folder.fd, &header, se_wal_file_size, true, &fd) == SE_OK);
    se_io_close(fd);
}

static void checkpoint(scene *s) {
    se_checkpoint report;
    REQUIRE(se_checkpoint_write(s->store, s->folder.fd, NULL, NULL, &report) == SE_OK);
    REQUIRE(se_checkpoint_prune(s->folder.fd, report.version) == SE_OK);
}

/* What the files say: so many live keys. */
static void recovers(scene *s, uint64_t keys) {
    test_segments segments = test_segments_make();
    se_store *again = make_store(segments, SE_STRICT);
    se_recover_options options = {.salvage = false};
    se_recovery report;
    se_status status = se_recover(again, s->folder.fd, &options, &report);
    if (status != SE_OK)
        fprintf(stderr, "%s at %llu: %s\n", report.damage.file,
                (unsigned long long)report.damage.offset, report.damage.reason);
    REQUIRE(status == SE_OK);
    REQUIRE(report.keys == keys);
    REQUIRE(report.last_version == newest(s));
    test_check(again);
    test_store_free(again);
    test_segments_close(segments);
}

static void the_file_of_a_dead_writer_was_removed(uint32_t mode) {
    scene s;
    begin(&s, mode);
    put(&s, "one");
    put(&s, "two");
    REQUIRE(se_log_drain(s.log) == SE_OK);
    make_unused(&s, newest(&s));
    checkpoint(&s); /* its own file is superfluous by the name of the next one */
    REQUIRE(!test_folder_has(&s.folder, "wal/00000000000000000001.wal"));
    put(&s, "three");
    succeed(&s);
    REQUIRE(se_log_drain(s.log) == SE_OK);
    recovers(&s, 3);
    end(&s);
}

/* A version that leaves no frame moved the next file's name on. */
static void an_unused_file_does_not_stay(uint32_t mode) {
    scene s;
    begin(&s, mode);
    put(&s, "one");
    REQUIRE(se_log_drain(s.log) == SE_OK);
    make_unused(&s, newest(&s) + 3);
    succeed(&s);
    for (unsigned at = 0; at < 8; at++)
        put(&s, "two");
    REQUIRE(se_log_drain(s.log) == SE_OK);
    checkpoint(&s);
    put(&s, "three");
    REQUIRE(se_log_drain(s.log) == SE_OK);
    recovers(&s, 3);
    end(&s);
}

/* A checkpoint removes a file that the log writer is about to sync. */
static void a_file_goes_while_it_is_to_be_synced(void) {
    scene s;
    uint64_t whole = se_wal_file_size;
    se_wal_file_size = SE_WAL_FIRST_FRAME + 512;
    begin(&s, SE_NO_DURABILITY);
    for (unsigned at = 0; at < 20; at++) {
        char name[8];
        snprintf(name, sizeof name, "%u", at);
        put(&s, name);
        if (at == 9)
            REQUIRE(se_log_drain(s.log) == SE_OK);
    }
    succeed(&s); /* who knows of no file whether it was synced */
    remove_at_sync = 1;
    REQUIRE(se_log_drain(s.log) == SE_OK);
    REQUIRE(remove_at_sync == 0 && se_load_relaxed(&s.store->seq->log_failed) == 0);
    end(&s);
    se_wal_file_size = whole;
}

/* A power cut takes folders that nobody synced the names of. */
static void names_of_folders_are_synced(void) {
    scene s;
    root_syncs = 0;
    begin(&s, SE_STRICT);
    REQUIRE(root_syncs == 1);
    put(&s, "one");
    REQUIRE(se_log_drain(s.log) == SE_OK);
    checkpoint(&s);
    REQUIRE(root_syncs == 2);
    end(&s);
}

/* Room for the mark at the end of what is backed, too: it is written within a commit. */
static void a_page_behind_the_ring_is_backed(void) {
    scene s;
    begin(&s, SE_STRICT);
    for (unsigned round = 0; round < 2; round++) {
        uint64_t backed = se_load_relaxed(&s.store->seq->wal_backed);
        struct stat before;
        struct stat after;
        REQUIRE(fstat(s.segments.control_fd, &before) == 0);
        s.store->control[s.store->header->wal_ring_offset + backed] = 1;
        REQUIRE(fstat(s.segments.control_fd, &after) == 0);
        REQUIRE(after.st_blocks == before.st_blocks);
        REQUIRE(se_ring_make_room(s.store, backed + 4096, 0) == SE_OK);
        REQUIRE(se_load_relaxed(&s.store->seq->wal_backed) > backed);
    }
    end(&s);
}

/* Where no more pages are to be had, the next frame goes to the ring's start at once. */
static void a_ring_that_cannot_grow_is_used_again(void) {
    scene s;
    uint64_t bound = 100 << 10;
    begin(&s, SE_STRICT);
    static const char big[200 << 10];
    REQUIRE(test_put(&s.session, "one", big, sizeof big) == SE_OK);
    REQUIRE(se_log_drain(s.log) == SE_OK);
    REQUIRE(se_sequencer_lock(s.store, 0) == SE_OK);
    REQUIRE(se_ring_begin(s.store, bound) == SE_NEED_LOG);
    se_sequencer_finish(s.store);
    no_memory = true;
    REQUIRE(se_ring_make_room(s.store, bound, 0) == SE_OK);
    REQUIRE(se_sequencer_lock(s.store, 0) == SE_OK);
    REQUIRE(se_ring_begin(s.store, bound) == SE_OK);
    REQUIRE(s.store->frame_start == s.store->header->wal_ring_size);
    se_sequencer_finish(s.store);
    REQUIRE(se_ring_make_room(s.store, UINT64_C(1) << 20, 0) == SE_FULL);
    no_memory = false;
    REQUIRE(se_ring_make_room(s.store, UINT64_C(1) << 20, 0) == SE_OK);
    end(&s);
}

int main(void) {
    static const uint32_t modes[] = {SE_NO_DURABILITY, SE_BUFFERED, SE_STRICT};
    for (unsigned index = 0; index < 3; index++) {
        test_context = modes[index];
        the_file_of_a_dead_writer_was_removed(modes[index]);
        an_unused_file_does_not_stay(modes[index]);
    }
    a_file_goes_while_it_is_to_be_synced();
    names_of_folders_are_synced();
    a_page_behind_the_ring_is_backed();
    a_ring_that_cannot_grow_is_used_again();
    printf("test_log: ok\n");
    return 0;
}
