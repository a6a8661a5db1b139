/* log.c - collect, write, rotate, sync, publish; wait. */
#include "log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include "futex.h"
#include "keeper.h"
#include "wal.h"
#include "walring.h"

#define PIECE_MAX (UINT64_C(4) << 20)
#define POLL_NS 500000u
#define WRITE_EVERY_NS 5000000u
#define WRITE_PIECE (UINT64_C(128) << 10)
#define IDLE_NS (UINT64_C(500) * 1000000u)
#define GATHER_NS 120000u
#define LINGER_NS 100000u
#define SPIN_NS 300000u
#define SPIN_WAITERS 2u
#define CROWDED_NS 50000u
#define CROWDED_FOR_NS (UINT64_C(20) * 1000000u)

uint64_t se_wal_file_size = UINT64_C(16) << 20;

struct se_log {
    se_store *store;
    int folder_fd;
    int fd;
    uint64_t file_version;
    uint64_t file_size;
    uint64_t offset;   /* in the file, of what comes next */
    uint64_t position; /* in the ring: everything before it was handed to the file */
    uint64_t last_version;
    uint64_t synced_version; /* durable_version, as this writer knows it */
    uint64_t synced_frame;   /* of the newest frame that is synced: upkeep's versions leave none */
    const uint8_t *piece;    /* collected and not yet written: bytes of the ring */
    uint64_t piece_size;
    bool dirty;              /* written and not synced */
    uint64_t unsynced_files; /* files from this first version on were not synced either, 0: none */
    uint64_t pending_since_ns;
    pthread_t thread;
    bool started;
    se_word32 stopping;
};

static uint32_t mode_of(const se_log *log) { return log->store->header->durability_kind; }

/* -- spinning where nobody else needs the processor ----------------------------------------- */

static se_word crowded_until_ns; /* of this process */

/* Gives the processor away for a moment. False: others need it for longer than a wake-up takes, so
 * whoever waits should sleep; for a while after that it is not even tried. */
static bool yield_briefly(void) {
    uint64_t before_ns = se_clock_ns();
    if (before_ns < se_load_relaxed(&crowded_until_ns))
        return false;
    sched_yield();
    uint64_t after_ns = se_clock_ns();
    if (after_ns - before_ns < CROWDED_NS)
        return true;
    se_store_relaxed(&crowded_until_ns, after_ns + CROWDED_FOR_NS);
    return false;
}

/* -- what waiters see ---------------------------------------------------------------------- */

/* The bell changes after log_parked is cleared: who sets it anew before that sees another bell, and
 * does not sleep. The other way round that mark was wiped out, and its owner slept to the bound. */
static void tell(se_store *store) {
    se_sequencer *seq = store->seq;
    se_fence_full();
    bool parked = se_load_relaxed_u32(&seq->log_parked) != 0;
    if (parked)
        se_store_relaxed_u32(&seq->log_parked, 0);
    atomic_fetch_add_explicit(&seq->progress_bell, 1, memory_order_release);
    if (parked)
        se_futex_wake(&seq->progress_bell, 1 << 30);
}

void se_log_fail(se_store *store, int error, const char *what, const char *name) {
    se_sequencer *seq = store->seq;
    if (se_load_relaxed(&seq->log_failed) != 0)
        return;
    char reason[96];
    const char *text = strerror_r(error, reason, sizeof reason);
    snprintf(seq->log_failure, sizeof seq->log_failure, "%s of %s failed: %s", what, name, text);
    se_store_release(&seq->log_failed, (uint64_t)(error > 0 ? error : EIO));
    tell(store);
}

static se_status fail(se_log *log, se_status status, const char *what) {
    char name[SE_NAME_MAX];
    int error = errno;
    se_wal_name(log->file_version, name);
    if (status == SE_CORRUPT) {
        error = EUCLEAN;
        snprintf(name, sizeof name, "the ring at position %llu", (unsigned long long)log->position);
    }
    se_log_fail(log->store, error, what, name);
    errno = error;
    return status;
}

static void publish_progress(se_log *log) {
    se_sequencer *seq = log->store->seq;
    uint64_t count = se_load_relaxed(&seq->progress_count) + 1;
    se_progress *progress = &seq->progress[count % 2];
    se_store_relaxed(&progress->position, log->position);
    se_store_relaxed(&progress->file_version, log->file_version);
    se_store_relaxed(&progress->file_offset, log->offset);
    se_store_relaxed(&progress->last_version, log->last_version);
    se_store_release(&seq->progress_count, count);
}

static void publish(se_log *log, uint64_t durable) {
    se_sequencer *seq = log->store->seq;
    publish_progress(log);
    if (durable > 0)
        log->synced_frame = log->last_version;
    if (durable > log->synced_version) {
        log->synced_version = durable;
        se_store_release(&seq->durable_version, durable);
    }
    se_store_release(&seq->wal_consumed, log->position);
    tell(log->store);
}

/* -- files --------------------------------------------------------------------------------- */

static se_status write_piece(se_log *log) {
    if (log->piece_size == 0)
        return SE_OK;
    se_status status = se_io_write(log->fd, log->piece, log->piece_size, log->offset);
    if (status != SE_OK)
        return fail(log, status, "The write");
    se_fetch_add(&log->store->seq->log_size, log->piece_size); /* a checkpoint subtracts */
    log->offset += log->piece_size;
    log->piece_size = 0;
    log->dirty = true;
    return SE_OK;
}

static se_status sync_named(const se_log *log, uint64_t file_version) {
    char name[SE_NAME_MAX];
    int fd;
    se_wal_name(file_version, name);
    se_status status = se_io_open(log->folder_fd, name, true, &fd);
    if (status != SE_OK) /* a checkpoint removed it meanwhile, which holds what it held */
        return errno == ENOENT ? SE_OK : status;
    status = se_io_sync(fd);
    se_io_close(fd);
    return status;
}

/* Files that were left without a sync (no_durability). */
static se_status sync_left_files(se_log *log) {
    uint64_t *list;
    uint32_t count;
    SE_TRY(se_wal_list(log->folder_fd, &list, &count));
    se_status status = se_io_sync_folder(log->folder_fd, SE_WAL_FOLDER);
    for (uint32_t index = 0; index < count && status == SE_OK; index++) {
        if (list[index] >= log->unsynced_files && list[index] < log->file_version)
            status = sync_named(log, list[index]);
    }
    free(list);
    return status;
}

static se_status sync_file(se_log *log) {
    se_status status = log->dirty ? se_io_sync(log->fd) : SE_OK;
    if (status == SE_OK && log->unsynced_files)
        status = sync_left_files(log);
    if (status != SE_OK)
        return fail(log, status, "The sync");
    log->dirty = false;
    log->unsynced_files = 0;
    return SE_OK;
}

static se_status create_file(se_log *log, uint64_t first_version, uint64_t frame_size) {
    const se_header *header = log->store->header;
    se_wal_header file = {
        .magic = SE_WAL_MAGIC,
        .format_version = SE_FORMAT_VERSION,
        .byte_order = SE_BYTE_ORDER,
        .first_version = first_version,
        .previous_version = log->last_version,
        .durable_version = log->synced_frame,
    };
    memcpy(file.database_id, header->database_id, sizeof file.database_id);
    uint64_t size = se_wal_file_size;
    if (size < SE_WAL_FIRST_FRAME + frame_size)
        size = SE_WAL_FIRST_FRAME + frame_size;
    log->file_version = first_version;
    se_status status = se_wal_create(log->folder_fd, &file, size,
                                     mode_of(log) != SE_NO_DURABILITY, &log->fd);
    if (status != SE_OK)
        return fail(log, status, "The creation");
    log->file_size = size;
    log->offset = SE_WAL_FIRST_FRAME;
    return SE_OK;
}

/* The next file begins with this frame. All that came before is synced first, if the mode syncs. */
static se_status rotate(se_log *log, const se_frame *frame) {
    SE_TRY(write_piece(log));
    if (mode_of(log) != SE_NO_DURABILITY) {
        SE_TRY(sync_file(log));
        publish(log, log->last_version);
    } else if (!log->unsynced_files) {
        log->unsynced_files = log->file_version;
    }
    se_io_close(log->fd);
    log->fd = -1;
    SE_TRY(create_file(log, se_load_relaxed(&frame->version), frame->size));
    publish_progress(log);
    return SE_OK;
}

/* -- from the ring to the file ------------------------------------------------------------- */

static void complete(const se_log *log, se_frame *frame) {
    uint64_t version = se_load_relaxed(&frame->version);
    uint64_t behind = version - log->synced_frame;
    frame->unsynced = version < log->synced_frame ? 0
                      : behind > UINT32_MAX       ? UINT32_MAX
                                                  : (uint32_t)behind;
    frame->crc = se_frame_crc(frame);
}

/* Takes one frame: adds it to the piece that will be written next. */
static se_status take(se_log *log, se_frame *frame, uint64_t at) {
    complete(log, frame);
    bool follows = log->piece + log->piece_size == (const uint8_t *)frame;
    if (log->piece_size > 0 && (!follows || log->piece_size + frame->size > PIECE_MAX))
        SE_TRY(write_piece(log));
    if (log->offset + log->piece_size + frame->size > log->file_size &&
        log->offset + log->piece_size > SE_WAL_FIRST_FRAME)
        SE_TRY(rotate(log, frame));
    if (log->piece_size == 0)
        log->piece = (const uint8_t *)frame;
    log->piece_size += frame->size;
    log->position = at + frame->size;
    log->last_version = se_load_relaxed(&frame->version);
    return SE_OK;
}

/* Writes everything committed so far, but no more than half a ring at a time: whoever waits for room
 * gets some. The gap at the end of a lap counts for nothing, or a lap that was left early would never
 * be passed. *covered: the version up to which the file is complete. */
static se_status collect(se_log *log, uint64_t *covered) {
    se_store *store = log->store;
    uint64_t newest = se_load_acquire(&store->seq->commit_version);
    uint64_t taken = 0;
    for (;;) {
        uint64_t at = log->position;
        se_frame *frame;
        se_status status = se_ring_peek(store, &at, newest, &frame);
        if (status != SE_OK)
            return fail(log, status, "The reading");
        if (!frame || taken >= store->header->wal_ring_size / 2) {
            *covered = frame ? log->last_version : newest;
            return write_piece(log);
        }
        SE_TRY(take(log, frame, at));
        taken += frame->size;
    }
}

static se_status write_all(se_log *log) {
    uint64_t covered;
    SE_TRY(collect(log, &covered));
    publish(log, 0);
    return SE_OK;
}

static se_status sync_all(se_log *log) {
    se_sequencer *seq = log->store->seq;
    uint64_t covered;
    uint64_t before = log->synced_version;
    SE_TRY(collect(log, &covered));
    SE_TRY(sync_file(log));
    se_store_relaxed(&seq->sync_batch, covered > before ? covered - before : 0);
    se_store_relaxed(&seq->syncs, se_load_relaxed(&seq->syncs) + 1);
    publish(log, covered);
    return SE_OK;
}

se_status se_log_drain(se_log *log) {
    /* What living clients commit meanwhile would keep this going for ever. */
    uint64_t newest = se_load_acquire(&log->store->seq->commit_version);
    do
        SE_TRY(sync_all(log));
    while (log->synced_version < newest);
    return SE_OK;
}

/* -- the thread ---------------------------------------------------------------------------- */

static uint64_t pending_commits(const se_log *log) {
    uint64_t newest = se_load_acquire(&log->store->seq->commit_version);
    return newest > log->synced_version ? newest - log->synced_version : 0;
}

static uint64_t pending_bytes(const se_log *log) {
    return se_load_acquire(&log->store->seq->wal_tail) - log->position;
}

static bool sync_is_wanted(const se_log *log) {
    return se_load_acquire(&log->store->seq->sync_wanted) > log->synced_version;
}

static bool is_stopping(const se_log *log) { return se_load_acquire_u32(&log->stopping) != 0; }

/* Sleeps until a commit rings. */
static void sleep_idle(se_log *log) {
    se_sequencer *seq = log->store->seq;
    uint32_t seen = se_load_acquire_u32(&seq->log_bell);
    se_store_release_u32(&seq->log_asleep, 1);
    se_fence_full();
    if (pending_bytes(log) == 0 && !sync_is_wanted(log) && !is_stopping(log))
        (void)se_futex_wait(&seq->log_bell, seen, IDLE_NS);
    se_store_release_u32(&seq->log_asleep, 0);
}

/* Sleeps for a time; a bell that somebody rings on purpose ends it. */
static void sleep_for(se_log *log, uint64_t ns) {
    uint32_t seen = se_load_acquire_u32(&log->store->seq->log_bell);
    if (!is_stopping(log))
        (void)se_futex_wait(&log->store->seq->log_bell, seen, ns);
}

/* Strict: as many as the last sync released come again at once; those who are on their way share
 * this one. Lets them have the processor meanwhile. */
static void gather(se_log *log) {
    uint64_t expected = se_load_relaxed(&log->store->seq->sync_batch);
    uint64_t start_ns = se_clock_ns();
    while (pending_commits(log) < expected && se_clock_ns() - start_ns < GATHER_NS &&
           yield_briefly()) {
    }
}

/* Strict: the next commit of one who was released comes within microseconds, a wake-up takes more. */
static bool linger(const se_log *log) {
    uint64_t start_ns = se_clock_ns();
    while (pending_bytes(log) == 0) {
        if (se_clock_ns() - start_ns > LINGER_NS || is_stopping(log) || !yield_briefly())
            return false;
    }
    return true;
}

static se_status strict_round(se_log *log) {
    if (pending_bytes(log) == 0 && pending_commits(log) == 0 && !linger(log)) {
        sleep_idle(log);
        return SE_OK;
    }
    gather(log);
    return sync_all(log);
}

static bool sync_is_due(const se_log *log, uint64_t now_ns) {
    const se_header *header = log->store->header;
    return pending_commits(log) >= header->max_pending_writes ||
           pending_bytes(log) > header->wal_ring_soft / 2 ||
           now_ns - log->pending_since_ns >= (uint64_t)header->flush_interval_ms * 1000000u;
}

static bool write_is_due(const se_log *log, uint64_t now_ns) {
    /* Soon enough to find the frames in the processor's cache. */
    return now_ns - log->pending_since_ns >= WRITE_EVERY_NS || pending_bytes(log) > WRITE_PIECE;
}

/* The file may stay behind what is committed; what the mode bounds is for how long. */
static se_status relaxed_round(se_log *log) {
    bool syncs = mode_of(log) != SE_NO_DURABILITY;
    if (!sync_is_wanted(log) && (syncs ? pending_commits(log) : pending_bytes(log)) == 0) {
        log->pending_since_ns = 0;
        sleep_idle(log);
        return SE_OK;
    }
    uint64_t now_ns = se_clock_ns();
    if (log->pending_since_ns == 0)
        log->pending_since_ns = now_ns;
    if (sync_is_wanted(log) || (syncs && sync_is_due(log, now_ns))) {
        log->pending_since_ns = 0;
        return sync_all(log);
    }
    if (!syncs && write_is_due(log, now_ns)) {
        log->pending_since_ns = 0;
        return write_all(log);
    }
    sleep_for(log, POLL_NS);
    return SE_OK;
}

/* Where nobody waits for it, the log writer takes the processor from nobody: whoever it stopped might
 * hold the sequencer, and all others would wait for that one. */
static void stay_in_the_background(void) {
    struct sched_param none = {.sched_priority = 0};
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
}

static void *run(void *argument) {
    se_log *log = argument;
    se_status status = SE_OK;
    if (mode_of(log) != SE_STRICT)
        stay_in_the_background();
    while (status == SE_OK && !is_stopping(log))
        status = mode_of(log) == SE_STRICT ? strict_round(log) : relaxed_round(log);
    return NULL;
}

/* -- open and close ------------------------------------------------------------------------ */

void se_log_begin(se_store *store, uint64_t version) {
    se_sequencer *seq = store->seq;
    se_store_relaxed(&seq->progress[0].position, 0);
    se_store_relaxed(&seq->progress[0].file_version, version + 1);
    se_store_relaxed(&seq->progress[0].file_offset, SE_WAL_FIRST_FRAME);
    se_store_relaxed(&seq->progress[0].last_version, version);
    se_store_release(&seq->progress_count, 0);
    se_store_release(&seq->durable_version, version);
}

/* Files that a predecessor made and died before it used them. Not one of them may stay: a checkpoint
 * takes a file for superfluous by the name of the next one. */
static se_status remove_unused(se_log *log) {
    uint64_t *list;
    uint32_t count;
    bool removed = false;
    SE_TRY(se_wal_list(log->folder_fd, &list, &count));
    se_status status = SE_OK;
    while (count-- > 0 && list[count] > log->file_version && status == SE_OK) {
        char name[SE_NAME_MAX];
        se_wal_name(list[count], name);
        status = se_io_remove(log->folder_fd, name);
        removed = true;
    }
    free(list);
    return removed && status == SE_OK ? se_io_sync_folder(log->folder_fd, SE_WAL_FOLDER) : status;
}

static se_status open_file(se_log *log) {
    se_status status = remove_unused(log);
    if (status != SE_OK)
        return fail(log, status, "The removal of what follows");
    if (log->offset == SE_WAL_FIRST_FRAME) /* nothing counts in it, if it is there at all */
        return create_file(log, log->file_version, 0);
    char name[SE_NAME_MAX];
    se_wal_name(log->file_version, name);
    status = se_io_open(log->folder_fd, name, true, &log->fd);
    if (status == SE_IO && errno == ENOENT) /* the next file was made, and a checkpoint removed it */
        return create_file(log, log->last_version + 1, 0);
    if (status == SE_OK)
        status = se_io_size(log->fd, &log->file_size);
    return status == SE_OK ? SE_OK : fail(log, status, "The opening");
}

se_status se_log_open(se_store *store, int folder_fd, se_log **opened) {
    se_sequencer *seq = store->seq;
    const se_progress *progress = &seq->progress[se_load_acquire(&seq->progress_count) % 2];
    se_log *log = calloc(1, sizeof *log);
    *opened = NULL;
    if (!log)
        return SE_IO;
    log->store = store;
    log->folder_fd = folder_fd;
    log->fd = -1;
    log->position = se_load_relaxed(&progress->position);
    log->file_version = se_load_relaxed(&progress->file_version);
    log->offset = se_load_relaxed(&progress->file_offset);
    log->last_version = se_load_relaxed(&progress->last_version);
    log->synced_version = se_load_relaxed(&seq->durable_version);
    /* To say too little is safe: recovery would take a claim that is too bold for damage. */
    log->synced_frame = log->synced_version >= log->last_version ? log->last_version : 0;
    se_status status = se_io_make_folder(folder_fd, SE_WAL_FOLDER);
    if (status == SE_OK)
        status = se_io_sync_folder(folder_fd, "."); /* without its name no file in it is found */
    status = status == SE_OK ? open_file(log) : fail(log, status, "The making of the folder");
    if (status != SE_OK) {
        se_log_close(log);
        return status;
    }
    log->dirty = true; /* a predecessor may have written without a sync */
    log->unsynced_files = mode_of(log) == SE_NO_DURABILITY;
    *opened = log;
    return SE_OK;
}

se_status se_log_start(se_log *log) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all); /* signals belong to the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&log->thread, NULL, run, log);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = rc;
    log->started = rc == 0;
    return rc == 0 ? SE_OK : SE_IO;
}

se_status se_log_stop(se_log *log) {
    if (log->started) {
        se_store_release_u32(&log->stopping, 1);
        se_log_ring(log->store);
        pthread_join(log->thread, NULL);
        log->started = false;
    }
    if (se_load_acquire(&log->store->seq->log_failed) != 0)
        return SE_READ_ONLY;
    SE_TRY(se_log_drain(log));
    /* What was reserved is given back; a failure costs disk space, nothing else. */
    (void)se_io_truncate(log->fd, log->offset);
    return SE_OK;
}

void se_log_close(se_log *log) {
    if (log->fd >= 0)
        se_io_close(log->fd);
    free(log);
}

/* -- clients ------------------------------------------------------------------------------- */

void se_log_ring(se_store *store) {
    se_store_relaxed_u32(&store->seq->log_asleep, 0);
    atomic_fetch_add_explicit(&store->seq->log_bell, 1, memory_order_release);
    se_futex_wake(&store->seq->log_bell, 1);
}

void se_log_want_sync(se_store *store, uint64_t version) {
    se_word *wanted = &store->seq->sync_wanted;
    uint64_t now = se_load_acquire(wanted);
    while (now < version && !se_swap_if_equal(wanted, now, version))
        now = se_load_acquire(wanted);
    se_log_ring(store);
}

/* SE_OK as soon as the word has come so far. */
static se_status wait_until(se_store *store, const se_word *word, uint64_t wanted,
                            uint64_t bound_ns) {
    se_sequencer *seq = store->seq;
    uint64_t start_ns = se_clock_ns();
    bool few = se_load_relaxed(&seq->sync_batch) <= SPIN_WAITERS;
    for (;;) {
        if (se_load_acquire(word) >= wanted)
            return SE_OK;
        if (se_load_acquire(&seq->log_failed) != 0)
            return SE_READ_ONLY;
        uint64_t waited_ns = se_clock_ns() - start_ns;
        if (waited_ns > bound_ns)
            return SE_BUSY;
        if (few && waited_ns < SPIN_NS && yield_briefly())
            continue;
        uint32_t seen = se_load_acquire_u32(&seq->progress_bell);
        se_store_relaxed_u32(&seq->log_parked, 1);
        se_fence_full();
        if (se_load_acquire(word) >= wanted || se_load_acquire(&seq->log_failed) != 0)
            continue;
        if (se_futex_wait(&seq->progress_bell, seen, bound_ns - waited_ns) != 0 &&
            errno == EINTR)
            return SE_BUSY;
    }
}

se_status se_log_wait_durable(se_store *store, uint64_t version, uint64_t bound_ns) {
    return wait_until(store, &store->seq->durable_version, version, bound_ns);
}

se_status se_log_wait_progress(se_store *store, uint64_t consumed, uint64_t bound_ns) {
    se_log_ring(store);
    return wait_until(store, &store->seq->wal_consumed, consumed + 1, bound_ns);
}

void se_log_want_checkpoint(se_store *store, uint64_t *ticket) {
    *ticket = atomic_fetch_add_explicit(&store->seq->checkpoint_wanted, 1, memory_order_seq_cst) + 1;
    se_keeper_ring(store);
}

se_status se_log_wait_checkpoint(se_store *store, uint64_t ticket, uint64_t bound_ns) {
    se_sequencer *seq = store->seq;
    uint32_t seen = se_load_acquire_u32(&seq->checkpoint_bell);
    if (se_load_acquire(&seq->checkpoint_done) < ticket)
        (void)se_futex_wait(&seq->checkpoint_bell, seen, bound_ns);
    return se_load_acquire(&seq->checkpoint_done) < ticket ? SE_BUSY : SE_OK;
}

void se_log_tell_checkpoint(se_store *store) {
    atomic_fetch_add_explicit(&store->seq->checkpoint_bell, 1, memory_order_release);
}

void se_log_answer_checkpoint(se_store *store, uint64_t ticket, int error) {
    se_sequencer *seq = store->seq;
    se_store_relaxed(&seq->checkpoint_failed, (uint64_t)error);
    se_store_release(&seq->checkpoint_done, ticket);
    atomic_fetch_add_explicit(&seq->checkpoint_bell, 1, memory_order_release);
    se_futex_wake(&seq->checkpoint_bell, 1 << 30);
}
