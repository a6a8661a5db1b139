/* recover.c - the newest sound checkpoint, the log behind it, and what is cut off. */
#include "recover.h"

#include <errno.h>
#include <stdarg.h>

#include "aside.h"
#include "commit.h"
#include "logscan.h"

#define TMP_SUFFIX ".tmp"
#define PROGRESS_FRAMES 4096u
#define NO_REACH UINT64_MAX

typedef struct {
    se_store *store; /* NULL: checks alone */
    int folder_fd;
    const se_recover_options *options;
    se_recovery *report;
    uint8_t id[16];
    uint64_t *list; /* log files, by first version */
    uint32_t count;
    uint32_t first;      /* nothing is missing before it */
    uint32_t next;       /* the log does not go on in this one; count: there is none */
    bool open;           /* `file` is the one that the log ends in */
    se_log_file file;
    uint64_t end;        /* of its frames */
    uint64_t checkpoint; /* everything up to this version is in the store already */
    uint64_t last;       /* newest version of the log so far */
    uint64_t bytes_done;
    uint64_t bytes_total;
    bool damaged; /* the log is */
    bool cut;     /* something is behind its end */
    uint32_t checkpoint_skipped; /* files, the newest ones */
    se_aside aside;
} recovery;

/* The newest version that is there. */
static uint64_t newest(const recovery *r) {
    return r->last > r->checkpoint ? r->last : r->checkpoint;
}

__attribute__((format(printf, 4, 5))) static void
note_damage(se_damage *damage, const char *file, uint64_t offset, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    snprintf(damage->file, sizeof damage->file, "%s", file);
    damage->offset = offset;
    vsnprintf(damage->reason, sizeof damage->reason, format, arguments);
    va_end(arguments);
}

static se_status show_progress(recovery *r, uint64_t done) {
    const se_recover_options *options = r->options;
    return !options->progress || options->progress(options->context, done, r->bytes_total)
               ? SE_OK
               : SE_CLOSED;
}

/* -- the checkpoint ------------------------------------------------------------------------ */

/* The version from which on the log is whole, as far as its first header tells. */
static se_status find_reach(const recovery *r, uint64_t *reach) {
    se_log_file file = {.bytes = NULL};
    *reach = NO_REACH;
    if (r->count == 0)
        return SE_OK;
    SE_TRY(se_log_peek(r->folder_fd, r->list[0], r->id, &file));
    if (file.verdict == SE_LOG_SOUND)
        *reach = file.header.previous_version;
    return SE_OK;
}

static void keep_checkpoint(recovery *r, const se_checkpoint *loaded) {
    r->checkpoint = loaded->version;
    r->report->checkpoint_version = loaded->version;
    r->report->checkpoint_bytes = loaded->size;
    r->report->last_timestamp_us = loaded->timestamp_us;
    r->report->keys = loaded->keys;
    r->report->lost_blocks = loaded->lost_blocks;
}

static se_status use_checkpoint(recovery *r, uint64_t version, bool salvage) {
    const se_recover_options *options = r->options;
    se_checkpoint loaded;
    memset(&loaded, 0, sizeof loaded);
    se_status status =
        r->store ? se_checkpoint_load(r->store, r->folder_fd, version, salvage,
                                      options->progress, options->context, &loaded)
                 : se_checkpoint_check(r->folder_fd, version, options->progress,
                                       options->context, &loaded);
    if (loaded.damage.file[0])
        r->report->damage = loaded.damage;
    if (status == SE_OK || (status == SE_DAMAGED && salvage && !r->store)) {
        loaded.version = version;
        keep_checkpoint(r, &loaded);
        return SE_OK;
    }
    return status;
}

/* Salvage: the newest one of which anything can be read. */
static se_status use_damaged(recovery *r, const uint64_t *list, uint32_t count) {
    for (uint32_t index = count; index-- > 0;) {
        se_checkpoint_header header;
        se_damage damage;
        memset(&damage, 0, sizeof damage);
        se_status status =
            se_checkpoint_read_header(r->folder_fd, list[index], &header, &damage);
        if (status == SE_OK && memcmp(header.database_id, r->id, 16) == 0)
            return use_checkpoint(r, list[index], true);
        if (status != SE_OK && status != SE_DAMAGED)
            return status;
    }
    return SE_OK;
}

/* The store can be filled once, so where there is a choice each one is checked before. */
static se_status choose_checkpoint(recovery *r, const uint64_t *list, uint32_t count,
                                   uint64_t reach) {
    uint32_t index = count;
    se_damage first = {.file = ""};
    while (index > 0) {
        se_checkpoint checked;
        memset(&checked, 0, sizeof checked);
        se_status status =
            se_checkpoint_check(r->folder_fd, list[index - 1], r->options->progress,
                                r->options->context, &checked);
        if (status == SE_OK)
            break;
        if (status != SE_DAMAGED)
            return status;
        if (index == count) {
            r->report->skipped_checkpoint = list[index - 1];
            first = checked.damage;
        }
        index--;
    }
    r->report->damage = first;
    r->checkpoint_skipped = count - index;
    uint64_t candidate = index > 0 ? list[index - 1] : 0;
    if (index < count && reach > candidate) /* the log does not reach back to it */
        return r->options->salvage ? use_damaged(r, list, count) : SE_DAMAGED;
    return index > 0 ? use_checkpoint(r, candidate, false) : SE_OK;
}

static se_status load_checkpoint(recovery *r) {
    uint64_t *list;
    uint32_t count;
    uint64_t reach;
    SE_TRY(se_checkpoint_list(r->folder_fd, &list, &count));
    se_status status = find_reach(r, &reach);
    if (status == SE_OK && count > 0) {
        bool choice = count > 1 || reach == 0 || r->options->salvage;
        status = choice ? choose_checkpoint(r, list, count, reach)
                        : use_checkpoint(r, list[0], false);
    }
    free(list);
    return status;
}

/* -- the log ------------------------------------------------------------------------------- */

static se_status apply(recovery *r, const se_frame *frame, uint64_t at) {
    se_recovery *report = r->report;
    uint64_t version = se_load_relaxed(&frame->version);
    if (r->store) {
        se_status status = se_commit_replay(r->store, frame);
        if (status != SE_OK && status != SE_FULL && status != SE_IO) {
            note_damage(&report->damage, r->file.name, at, "commit %llu cannot be applied: %s",
                        (unsigned long long)version, se_status_text(status));
            return SE_DAMAGED;
        }
        SE_TRY(status);
    }
    report->commits++;
    report->log_bytes += frame->size;
    if (frame->timestamp_us > report->last_timestamp_us)
        report->last_timestamp_us = frame->timestamp_us;
    if (report->commits % PROGRESS_FRAMES == 0)
        return show_progress(r, r->bytes_done + at);
    return SE_OK;
}

/* Applies the frames of the file up to the first place where none goes on. */
static se_status replay_file(recovery *r) {
    uint64_t floor = r->file.first_version - 1;
    const se_frame *frame;
    r->end = SE_WAL_FIRST_FRAME;
    r->last = r->file.header.previous_version;
    while ((frame = se_log_frame(&r->file, r->end, r->last > floor ? r->last : floor)) != NULL) {
        uint64_t version = se_load_relaxed(&frame->version);
        if (version > r->checkpoint)
            SE_TRY(apply(r, frame, r->end));
        r->last = version;
        r->end += frame->size;
    }
    r->bytes_done += r->file.size;
    return show_progress(r, r->bytes_done);
}

/* The first file before which nothing is missing. */
static se_status find_first(recovery *r, bool *found) {
    *found = false;
    for (uint32_t index = 0; index < r->count && !*found; index++) {
        SE_TRY(se_log_peek(r->folder_fd, r->list[index], r->id, &r->file));
        if (r->file.verdict == SE_LOG_SOUND && r->file.header.previous_version <= r->checkpoint) {
            r->first = index;
            *found = true;
        }
    }
    return SE_OK;
}

/* The file that follows on the newest version of the log. Where the checkpoint has all that is
 * missing, the next one that begins within it will do. */
static se_status find_follower(const recovery *r, uint32_t from, uint32_t *follower) {
    se_log_file file = {.bytes = NULL};
    uint32_t within = r->count;
    *follower = r->count;
    for (uint32_t index = from; index < r->count && *follower == r->count; index++) {
        SE_TRY(se_log_peek(r->folder_fd, r->list[index], r->id, &file));
        if (file.verdict != SE_LOG_SOUND)
            continue;
        if (file.header.previous_version == r->last)
            *follower = index;
        else if (file.header.previous_version <= r->checkpoint && within == r->count)
            within = index;
    }
    if (*follower == r->count && r->last <= r->checkpoint)
        *follower = within;
    return SE_OK;
}

static se_status replay_log(recovery *r) {
    bool found;
    SE_TRY(find_first(r, &found));
    r->next = found ? r->count : 0;
    r->last = 0;
    for (uint32_t index = r->first; found; index = r->next) {
        SE_TRY(se_log_load(r->folder_fd, r->list[index], r->id, !r->options->read_only, &r->file));
        if (r->file.verdict != SE_LOG_SOUND) { /* it was, a moment ago */
            errno = EBUSY;
            return SE_IO;
        }
        r->open = true;
        SE_TRY(replay_file(r));
        SE_TRY(find_follower(r, index + 1, &r->next));
        if (r->next == r->count) {
            r->next = index + 1;
            break;
        }
    }
    return SE_OK;
}

/* -- torn tail or damage ------------------------------------------------------------------- */

/* The log ends in the middle: where, and which later place says so. */
static void note_end(recovery *r, const char *where, const se_log_rest *rest) {
    bool inside = r->open && r->end < r->file.size;
    char name[SE_NAME_MAX];
    if (inside || r->next == r->count)
        memcpy(name, r->file.name, sizeof name);
    else
        se_wal_name(r->list[r->next], name);
    note_damage(&r->report->damage, name, inside ? r->end : 0,
                "the log ends here at version %llu, but %s says at %llu that %llu was synced",
                (unsigned long long)newest(r), where, (unsigned long long)rest->synced_at,
                (unsigned long long)rest->synced);
    r->damaged = true;
}

static void note_file(recovery *r, const char *name, const char *reason) {
    note_damage(&r->report->damage, name, 0, "%s", reason);
    r->damaged = true;
}

static void note_cut(recovery *r, const char *name, uint64_t offset, uint64_t bytes) {
    se_recovery *report = r->report;
    if (!report->cut_file[0]) {
        memcpy(report->cut_file, name, sizeof report->cut_file);
        report->cut_offset = offset;
    }
    report->cut_bytes += bytes;
}

/* A file behind the end of the log: what it says by its header, and what it holds. */
static se_status judge_later(recovery *r, uint32_t index, se_log_file *file) {
    se_log_rest rest;
    SE_TRY(se_log_load(r->folder_fd, r->list[index], r->id, false, file));
    se_log_search(file, 0, newest(r), &rest);
    if (file->verdict == SE_LOG_FORMAT) {
        note_damage(&r->report->damage, file->name, 0, "format version %u, byte order %08x",
                    file->header.format_version, file->header.byte_order);
        return SE_FORMAT;
    }
    uint64_t before = index > 0 ? r->list[index - 1] : 0;
    bool sound = file->verdict == SE_LOG_SOUND;
    bool gap = sound && file->header.previous_version > newest(r);
    if (rest.begun)
        note_cut(r, file->name, 0, rest.dirty_end);
    if (r->damaged)
        return SE_OK;
    if (rest.synced)
        note_end(r, file->name, &rest);
    else if (file->verdict == SE_LOG_FOREIGN)
        note_file(r, file->name, "it belongs to another database, or to a later place in the log");
    else if (file->verdict == SE_LOG_DAMAGED && rest.begun)
        note_file(r, file->name, "the header is damaged, and commits stand behind it");
    else if (gap && file->header.previous_file != (uint32_t)before)
        note_file(r, file->name, "a file of the log is missing in front of this one");
    else if (gap && index == 0)
        note_file(r, file->name, "commits are missing between the checkpoint and the log");
    return SE_OK;
}

static se_status judge(recovery *r) {
    se_log_rest rest;
    if (r->open) {
        se_log_search(&r->file, r->end, newest(r), &rest);
        r->cut = rest.dirty_end > r->end;
        if (rest.begun)
            note_cut(r, r->file.name, r->end, rest.dirty_end - r->end);
        if (rest.synced)
            note_end(r, r->file.name, &rest);
    }
    se_log_file file = {.bytes = NULL};
    se_status status = SE_OK;
    for (uint32_t index = r->next; index < r->count && status == SE_OK; index++)
        status = judge_later(r, index, &file);
    se_log_free(&file);
    return status;
}

/* A file without a frame goes as a whole: the next one gets its name by the next commit, and two
 * that go on behind the same version must not stand side by side. */
static void give_up_empty(recovery *r) {
    if (!r->open || r->end > SE_WAL_FIRST_FRAME)
        return;
    SE_ASSERT(r->next > 0);
    r->open = false;
    r->cut = false;
    r->next--;
    while (r->list[r->next] != r->file.first_version)
        r->next--;
}

/* A damaged checkpoint says by its name what was committed and synced. */
static void judge_checkpoint(recovery *r) {
    uint64_t skipped = r->report->skipped_checkpoint;
    if (skipped > newest(r) && !r->damaged) {
        r->damaged = true; /* report->damage is the checkpoint's */
        r->cut = false;
    }
}

/* -- the end ------------------------------------------------------------------------------- */

/* Newest first, so that at each moment what is left is the beginning of the log. */
static se_status drop_later(recovery *r) {
    char name[SE_NAME_MAX];
    for (uint32_t index = r->count; index-- > r->next;) {
        se_wal_name(r->list[index], name);
        SE_TRY(r->damaged ? se_aside_move(&r->aside, name) : se_io_remove(r->folder_fd, name));
    }
    if (r->next == r->count)
        return SE_OK;
    SE_TRY(se_aside_sync(&r->aside));
    return se_io_sync_folder(r->folder_fd, SE_WAL_FOLDER);
}

static se_status cut_tail(recovery *r) {
    int fd;
    if (!r->open || !r->cut)
        return SE_OK;
    if (r->damaged) {
        SE_TRY(se_aside_copy(&r->aside, r->file.name));
        SE_TRY(se_aside_sync(&r->aside));
    }
    SE_TRY(se_io_open(r->folder_fd, r->file.name, true, &fd));
    se_status status = se_io_truncate(fd, r->end);
    if (status == SE_OK)
        status = se_io_sync(fd);
    se_io_close(fd);
    return status;
}

/* The damaged checkpoint that was used stays in its place until the next one is written. */
static se_status put_checkpoints_aside(recovery *r) {
    uint64_t *list;
    uint32_t count;
    char name[SE_NAME_MAX];
    if (!r->options->salvage || r->checkpoint_skipped == 0)
        return SE_OK;
    SE_TRY(se_checkpoint_list(r->folder_fd, &list, &count));
    se_status status = SE_OK;
    for (uint32_t index = count; index-- > 0 && status == SE_OK;) {
        if (index + r->checkpoint_skipped < count)
            break;
        se_checkpoint_name(list[index], name);
        status = list[index] == r->checkpoint ? se_aside_keep(&r->aside, name)
                                              : se_aside_move(&r->aside, name);
    }
    free(list);
    return status == SE_OK ? se_aside_sync(&r->aside) : status;
}

typedef struct {
    int folder_fd;
    se_status status;
} removal;

static bool remove_tmp(void *context, const char *entry) {
    removal *self = context;
    char name[SE_NAME_MAX];
    size_t size = strlen(entry);
    size_t suffix = strlen(TMP_SUFFIX);
    if (size < suffix || size > SE_NAME_MAX - sizeof SE_CHECKPOINT_FOLDER - 1 ||
        strcmp(entry + size - suffix, TMP_SUFFIX) != 0)
        return true;
    snprintf(name, sizeof name, SE_CHECKPOINT_FOLDER "/%.80s", entry);
    self->status = se_io_remove(self->folder_fd, name);
    return self->status == SE_OK;
}

static se_status remove_spare(int folder_fd) {
    se_status status = se_io_remove(folder_fd, SE_WAL_SPARE);
    return status == SE_OK || errno == ENOENT ? SE_OK : status;
}

static se_status sync_if_there(int folder_fd, const char *name) {
    se_status status = se_io_sync_folder(folder_fd, name);
    return status == SE_OK || errno == ENOENT ? SE_OK : status;
}

static se_status finish_files(recovery *r) {
    SE_TRY(drop_later(r));
    SE_TRY(cut_tail(r));
    SE_TRY(put_checkpoints_aside(r));
    removal tmp = {.folder_fd = r->folder_fd, .status = SE_OK};
    SE_TRY(se_io_each(r->folder_fd, SE_CHECKPOINT_FOLDER, remove_tmp, &tmp));
    SE_TRY(tmp.status);
    SE_TRY(remove_spare(r->folder_fd));
    SE_TRY(sync_if_there(r->folder_fd, SE_WAL_FOLDER));
    SE_TRY(sync_if_there(r->folder_fd, SE_CHECKPOINT_FOLDER));
    return se_io_sync_folder(r->folder_fd, ".");
}

static void finish_store(recovery *r) {
    se_recovery *report = r->report;
    report->last_version = newest(r);
    if (!r->store)
        return;
    se_sequencer *seq = r->store->seq;
    SE_ASSERT(se_load_relaxed(&seq->commit_version) <= report->last_version);
    if (se_load_relaxed(&seq->last_timestamp) < report->last_timestamp_us)
        se_store_relaxed(&seq->last_timestamp, report->last_timestamp_us);
    report->last_timestamp_us = se_load_relaxed(&seq->last_timestamp);
    se_store_relaxed(&seq->durable_version, report->last_version);
    se_store_release(&seq->commit_version, report->last_version);
    report->keys = se_load_relaxed(&seq->live_keys);
}

static se_status carry_out(recovery *r) {
    uint64_t size = 0;
    SE_TRY(se_wal_list(r->folder_fd, &r->list, &r->count));
    for (uint32_t index = 0; index < r->count; index++) {
        char name[SE_NAME_MAX];
        int fd;
        se_wal_name(r->list[index], name);
        SE_TRY(se_io_open(r->folder_fd, name, false, &fd));
        se_status status = se_io_size(fd, &size);
        se_io_close(fd);
        SE_TRY(status);
        r->bytes_total += size;
    }
    SE_TRY(load_checkpoint(r));
    SE_TRY(replay_log(r));
    SE_TRY(judge(r));
    judge_checkpoint(r);
    give_up_empty(r);
    if (r->damaged && !r->options->salvage)
        return SE_DAMAGED;
    if (!r->options->read_only)
        SE_TRY(finish_files(r));
    finish_store(r);
    return SE_OK;
}

se_status se_recover(se_store *store, int folder_fd, const se_recover_options *options,
                     se_recovery *report) {
    recovery r = {.store = store, .folder_fd = folder_fd, .options = options, .report = report};
    bool found;
    memset(report, 0, sizeof *report);
    r.aside.folder_fd = folder_fd;
    if (store)
        memcpy(r.id, store->header->database_id, sizeof r.id);
    else
        SE_TRY(se_recover_identity(folder_fd, r.id, &found, &report->damage));
    se_status status = carry_out(&r);
    int error = errno;
    memcpy(report->aside, r.aside.folder, sizeof report->aside);
    report->aside_files = r.aside.files;
    se_log_free(&r.file);
    free(r.list);
    errno = error;
    return status;
}
