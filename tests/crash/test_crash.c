/* test_crash.c - the disk fails, or the machine stops, at every step that the files ever see.
 *
 * A child runs the workload with the log writer over a disk that fails at its n-th step. What then
 * lies in the folder is recovered, in every second run by a recovery that is cut off as well; the
 * store has to be a prefix of history, down to versions and old values, with everything in it that
 * was said to be on the disk. Commits go on behind it, and are recovered once more.
 *
 *     test_crash [EVERY [TIMES [HISTORY]]]        every EVERY-th step, in all modes and ways
 *     test_crash MODE FAULT AT SEED HISTORY       one run; a failure prints this line
 *
 * Where processes die but the machine goes on, the segments are still there: then the ring is
 * written to the log first, as the next open does, and nothing at all may be missing.
 */
#include <errno.h>

#include "faulty_io.h"
#include "history.h"
#include "log.h"
#include "recover.h"
#include "wal.h"

#define MAP (UINT64_C(16) << 20)
#define LATER 4u

static const uint8_t database_id[16] = "crash-test-files";
static const char *const mode_names[] = {"memory", "none", "buffered", "strict"};

typedef struct {
    const char *name;
    faulty_kind kind;
    int error;
    uint32_t times;
} way;

static const way ways[] = {
    {"die", FAULT_DIE, 0, 1},
    {"torn", FAULT_TORN, 0, 1},
    {"power", FAULT_POWER, 0, 3},
    {"eio", FAULT_ONCE, EIO, 1},
    {"enospc", FAULT_ALWAYS, ENOSPC, 1},
    {"dead", FAULT_ALWAYS, EIO, 1},
};
#define WAYS (sizeof ways / sizeof ways[0])

typedef struct {
    uint32_t mode;
    const way *way;
    uint64_t at; /* 0: nothing fails */
    uint32_t seed;
} scene;

static uint32_t history_seed = 5;
static uint32_t times = 1;
static history plan;
static progress *shared;
static char folder[64];
static int folder_fd;
static scene current;
static bool finished;

static void print_replay(void) {
    if (!finished && current.way)
        fprintf(stderr, "replay: test_crash %s %s %llu %u %u\n", mode_names[current.mode],
                current.way->name, (unsigned long long)current.at, current.seed, history_seed);
}

/* -- stores and folders -------------------------------------------------------------------- */

typedef struct {
    test_segments segments;
    se_store *store;
} holder;

static holder make_store(uint32_t mode) {
    holder made = {.segments = test_segments_make(), .store = calloc(1, sizeof(se_store))};
    se_options options = {.map_size = MAP, .max_clients = 8, .durability_kind = mode,
                          .flush_interval_ms = 1000, .max_pending_writes = 1000};
    memcpy(options.database_id, database_id, sizeof database_id);
    REQUIRE(made.store && se_store_create(made.store, made.segments.control_fd,
                                          made.segments.data_fd, &options) == SE_OK);
    return made;
}

static void free_store(holder made) {
    test_store_free(made.store);
    test_segments_close(made.segments);
}

static bool remove_entry(void *context, const char *entry) {
    char name[200];
    snprintf(name, sizeof name, "%s/%s", (const char *)context, entry);
    REQUIRE(unlinkat(folder_fd, name, 0) == 0);
    return true;
}

static bool remove_folder(void *context, const char *entry) {
    (void)context;
    char name[100];
    snprintf(name, sizeof name, "%.90s", entry);
    REQUIRE(se_io_each(folder_fd, name, remove_entry, name) == SE_OK);
    REQUIRE(unlinkat(folder_fd, name, AT_REMOVEDIR) == 0);
    return true;
}

static void empty_folder(void) {
    REQUIRE(se_io_each(folder_fd, ".", remove_folder, NULL) == SE_OK);
    REQUIRE(se_io_make_folder(folder_fd, SE_WAL_FOLDER) == SE_OK);
    REQUIRE(se_io_make_folder(folder_fd, SE_CHECKPOINT_FOLDER) == SE_OK);
}

static void make_folder(void) {
    snprintf(folder, sizeof folder, "%s/test_crash.XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    REQUIRE(mkdtemp(folder) != NULL);
    folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(folder_fd >= 0);
}

static void remove_all(void) {
    if (!finished) { /* what a failure left is kept */
        fprintf(stderr, "files: %s\n", folder);
        return;
    }
    REQUIRE(se_io_each(folder_fd, ".", remove_folder, NULL) == SE_OK);
    REQUIRE(rmdir(folder) == 0);
}

/* -- the workload -------------------------------------------------------------------------- */

/* Strict: after nearly every commit; buffered: now and then; else: twice. */
static bool drains_after(uint32_t mode, uint32_t step) {
    if (step == STEPS - 1)
        return true;
    return mode == SE_STRICT ? step % 3 != 1 : mode == SE_BUFFERED ? step % 7 == 6 : step == 50;
}

static se_status run_steps(uint32_t mode, se_store *store, se_session *session) {
    se_log *log = NULL;
    se_log_begin(store, 0);
    se_status status = se_log_open(store, folder_fd, &log);
    for (uint32_t step = 0; step < STEPS && status == SE_OK; step++) {
        (void)history_run(&plan, store, session, folder_fd, step, shared);
        if (drains_after(mode, step)) {
            status = se_log_drain(log);
            if (status == SE_OK)
                shared->acked = step + 1;
        }
    }
    if (log)
        se_log_close(log);
    return status;
}

/* In the child: to the end, or to the failure. */
static void run_workload(const scene *now, se_store *store) {
    se_session session;
    faulty_plan fault = {now->way->kind, now->way->error, now->at, now->seed, NULL};
    store->identity = se_process_identity((uint32_t)getpid());
    REQUIRE(se_session_open(&session, store) == SE_OK);
    faulty_begin(folder_fd, &fault);
    se_status status = run_steps(now->mode, store, &session);
    shared->failed = status != SE_OK;
    /* After a failure no commit is taken any more; a log that was never opened took none. */
    REQUIRE(status == SE_OK || se_load_relaxed(&store->seq->log_failed) || shared->done == 0);
    shared->steps = faulty_steps();
    if (now->seed % 2 == 0)
        faulty_power_cut();
    _exit(0);
}

static bool wait_for(pid_t child) {
    int state;
    REQUIRE(waitpid(child, &state, 0) == child);
    REQUIRE(WIFEXITED(state));
    REQUIRE(WEXITSTATUS(state) == 0 || WEXITSTATUS(state) == FAULTY_DIED);
    return WEXITSTATUS(state) == FAULTY_DIED;
}

/* The machine went on: the ring holds what the log does not. */
static void save_ring(se_store *store) {
    se_log *log;
    REQUIRE(se_sequencer_lock(store, 0) == SE_OK);
    se_sequencer_finish(store);
    REQUIRE(se_log_open(store, folder_fd, &log) == SE_OK);
    REQUIRE(se_log_drain(log) == SE_OK);
    se_log_close(log);
}

/* -- recovery ------------------------------------------------------------------------------ */

static void print_damage(se_status status, const se_damage *damage) {
    if (status != SE_OK)
        fprintf(stderr, "%s: %s at %llu: %s\n", se_status_text(status), damage->file,
                (unsigned long long)damage->offset, damage->reason);
}

static void recover(holder made, se_recovery *report) {
    uint8_t id[16];
    bool found;
    se_damage damage;
    se_recover_options options = {.salvage = false};
    se_status status = se_recover_identity(folder_fd, id, &found, &damage);
    print_damage(status, &damage);
    REQUIRE(status == SE_OK && (!found || memcmp(id, database_id, 16) == 0));
    status = se_recover(made.store, folder_fd, &options, report);
    print_damage(status, &report->damage);
    REQUIRE(status == SE_OK);
}

/* A recovery that is itself cut off. */
static void recover_in_child(const faulty_plan *fault, uint32_t mode) {
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        se_recovery report;
        se_recover_options options = {.salvage = false};
        holder made = make_store(mode);
        faulty_begin(folder_fd, fault);
        se_status status = se_recover(made.store, folder_fd, &options, &report);
        if (status != SE_OK && status != SE_IO)
            print_damage(status, &report.damage);
        REQUIRE(status == SE_OK || status == SE_IO);
        if (status == SE_IO && fault->seed % 2)
            faulty_power_cut();
        _exit(0);
    }
    (void)wait_for(child);
}

/* How many steps of the workload are in a store of this version. */
static uint32_t steps_at(uint64_t version) {
    uint32_t count = 0;
    while (count < shared->done && shared->version[count] <= version)
        count++;
    return count;
}

static void require_nothing_lost(uint64_t version, uint32_t promised) {
    for (uint32_t step = 0; step < promised; step++)
        REQUIRE(!history_is_logged(&plan, shared, step) || shared->version[step] <= version);
}

static void check_later(se_session *session, uint32_t upto) {
    char name[40];
    char got[64];
    for (uint32_t index = 0; index < upto; index++) {
        snprintf(name, sizeof name, "later/%u", index);
        REQUIRE(test_get(session, name, UINT64_MAX, got, sizeof got) == SE_OK);
        REQUIRE(strcmp(got, name) == 0);
    }
}

/* The log goes on behind what was recovered. */
static void go_on(holder made, uint64_t version, bool checkpoint) {
    se_log *log;
    se_session session;
    char name[40];
    se_log_begin(made.store, version);
    REQUIRE(se_log_open(made.store, folder_fd, &log) == SE_OK);
    REQUIRE(se_session_open(&session, made.store) == SE_OK);
    for (uint32_t index = 0; index < LATER; index++) {
        snprintf(name, sizeof name, "later/%u", index);
        REQUIRE(test_put(&session, name, name, (uint32_t)strlen(name)) == SE_OK);
        REQUIRE(se_log_drain(log) == SE_OK);
    }
    if (checkpoint) {
        se_checkpoint written;
        REQUIRE(se_checkpoint_write(made.store, folder_fd, NULL, NULL, &written) == SE_OK);
        REQUIRE(se_checkpoint_prune(folder_fd, written.version) == SE_OK);
    }
    se_session_close(&session);
    se_log_close(log);
}

/* Recovers, checks, goes on; at the end the power may go, and recovery and log have to have synced
 * all that they stand on, as if nothing had been before. */
static void recover_and_go_on(const scene *now, uint32_t promised) {
    se_recovery report;
    faulty_plan fault = {.kind = FAULT_NONE, .seed = now->seed + now->at,
                         .unsynced = SE_WAL_FOLDER};
    holder made = make_store(now->mode);
    faulty_begin(folder_fd, &fault);
    recover(made, &report);
    require_nothing_lost(report.last_version, promised);
    history_check(&plan, shared, made.store, steps_at(report.last_version), 0);
    REQUIRE(se_load_relaxed(&made.store->seq->commit_version) == report.last_version);
    REQUIRE(se_load_relaxed(&made.store->seq->durable_version) == report.last_version);
    go_on(made, report.last_version, now->at % 3 == 0);
    shared->recovered = report.last_version;
    if (now->at / 2 % 2)
        faulty_power_cut();
}

static void judge(const scene *now, uint32_t promised) {
    se_recovery again;
    if (now->at % 2) {
        faulty_plan fault = {now->at % 4 == 1 ? FAULT_POWER : now->at % 8 == 3 ? FAULT_DIE
                                                                                : FAULT_ONCE,
                             EIO, 1 + (now->at / 2 + now->seed) % 9, now->seed + now->at, NULL};
        recover_in_child(&fault, now->mode);
    }
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        recover_and_go_on(now, promised);
        _exit(0);
    }
    REQUIRE(!wait_for(child));
    holder made = make_store(now->mode);
    recover(made, &again);
    REQUIRE(again.last_version == shared->recovered + LATER && !again.cut_file[0]);
    history_check(&plan, shared, made.store, steps_at(shared->recovered), LATER);
    se_session session;
    REQUIRE(se_session_open(&session, made.store) == SE_OK);
    check_later(&session, LATER);
    se_session_close(&session);
    free_store(made);
}

/* Returns the steps of the disk if nothing failed. */
static uint64_t run_scene(const scene *now) {
    current = *now;
    test_context = now->at;
    empty_folder();
    memset(shared, 0, sizeof *shared);
    holder made = make_store(now->mode);
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        run_workload(now, made.store);
    bool died = wait_for(child);
    bool power = now->way->kind == FAULT_POWER || (!died && now->seed % 2 == 0);
    bool machine = power || now->seed % 2 == 0;
    uint32_t promised = shared->acked;
    if (!machine) {
        save_ring(made.store);
        promised = shared->done;
    }
    free_store(made);
    judge(now, promised);
    return shared->steps;
}

static uint64_t run_mode(uint32_t mode, uint64_t every) {
    scene now = {.mode = mode, .way = &ways[0], .seed = 1};
    uint64_t steps = run_scene(&now);
    uint64_t runs = 0;
    REQUIRE(shared->acked == STEPS);
    for (uint32_t index = 0; index < WAYS; index++) {
        for (uint64_t at = 1; at <= steps; at += every) {
            for (uint32_t time = 0; time < ways[index].times * times; time++, runs++) {
                now = (scene){mode, &ways[index], at, (uint32_t)at / 2 + time};
                (void)run_scene(&now);
            }
        }
    }
    printf("test_crash: %s, %llu steps of the disk, %llu crashes\n", mode_names[mode],
           (unsigned long long)steps, (unsigned long long)runs);
    return runs;
}

static void run_one(char **argv) {
    scene now = {.at = strtoull(argv[3], NULL, 10), .seed = (uint32_t)atoi(argv[4])};
    for (uint32_t mode = SE_NO_DURABILITY; mode <= SE_STRICT; mode++)
        now.mode = strcmp(argv[1], mode_names[mode]) == 0 ? mode : now.mode;
    for (uint32_t index = 0; index < WAYS; index++)
        now.way = strcmp(argv[2], ways[index].name) == 0 ? &ways[index] : now.way;
    REQUIRE(now.mode && now.way);
    (void)run_scene(&now);
}

int main(int argc, char **argv) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    se_wal_file_size = UINT64_C(32) << 10;
    bool one = argc == 6;
    uint64_t every = argc > 1 && !one ? strtoull(argv[1], NULL, 10) : 1;
    times = argc > 2 && !one ? (uint32_t)atoi(argv[2]) : 1;
    history_seed = argc > 3 ? (uint32_t)atoi(argv[argc - 1]) : 5;
    REQUIRE(every > 0 && times > 0);
    history_plan(&plan, history_seed);
    make_folder();
    atexit(remove_all);
    atexit(print_replay);
    if (one) {
        run_one(argv);
    } else {
        for (uint32_t mode = SE_NO_DURABILITY; mode <= SE_STRICT; mode++)
            (void)run_mode(mode, every);
    }
    finished = true;
    return 0;
}
