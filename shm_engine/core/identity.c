/* identity.c - whose files a folder holds.
 *
 * Why:        every file carries the id of its database, so that files of two databases are never
 *             taken for one. A folder without a single sound header is either damaged, or its first
 *             log file was being made when the machine stopped.
 * Used by:    open, verify and repair, before recovery.
 * Errors:     SE_DAMAGED also with *found, where the headers disagree: the id is that of most.
 */
#include "checkpoint.h"
#include "logscan.h"
#include "recover.h"

#define IDS_MAX 8u

typedef struct {
    struct {
        uint8_t id[16];
        uint32_t files;
    } ids[IDS_MAX];
    uint32_t count;
    se_damage *damage;
} census;

static void note(se_damage *damage, const char *file, const char *reason) {
    if (damage->file[0])
        return;
    snprintf(damage->file, sizeof damage->file, "%s", file);
    snprintf(damage->reason, sizeof damage->reason, "%s", reason);
}

static void count_id(census *c, const uint8_t id[16], const char *file) {
    uint32_t index = 0;
    while (index < c->count && memcmp(c->ids[index].id, id, 16) != 0)
        index++;
    if (index == IDS_MAX)
        return;
    if (index == c->count) {
        memcpy(c->ids[index].id, id, 16);
        c->count++;
    }
    c->ids[index].files++;
    if (index > 0)
        note(c->damage, file, "it belongs to another database than the other files");
}

static se_status count_logs(census *c, int folder_fd, const uint64_t *list, uint32_t count) {
    static const uint8_t any[16];
    se_log_file file = {.bytes = NULL};
    for (uint32_t index = 0; index < count; index++) {
        SE_TRY(se_log_peek(folder_fd, list[index], any, &file));
        if (file.verdict == SE_LOG_FORMAT) {
            note(c->damage, file.name, "it has another format version or byte order");
            return SE_FORMAT;
        }
        if (file.header.magic != 0)
            count_id(c, file.header.database_id, file.name);
    }
    return SE_OK;
}

static se_status count_checkpoints(census *c, int folder_fd, const uint64_t *list,
                                   uint32_t count) {
    for (uint32_t index = 0; index < count; index++) {
        se_checkpoint_header header;
        se_damage damage = {.file = ""};
        char name[SE_NAME_MAX];
        se_status status = se_checkpoint_read_header(folder_fd, list[index], &header, &damage);
        se_checkpoint_name(list[index], name);
        if (status == SE_OK)
            count_id(c, header.database_id, name);
        else if (status == SE_FORMAT)
            note(c->damage, name, "it has another format version or byte order");
        if (status != SE_OK && status != SE_DAMAGED)
            return status;
    }
    return SE_OK;
}

/* No header is sound. Commits that were synced once, or behind a header that no crash leaves so,
 * are damage; anything else never was a database. */
static se_status look_for_commits(int folder_fd, const uint64_t *list, uint32_t count,
                                  se_damage *damage) {
    static const uint8_t any[16];
    se_log_file file = {.bytes = NULL};
    se_status status = SE_OK;
    for (uint32_t index = 0; index < count && status == SE_OK; index++) {
        se_log_rest rest;
        status = se_log_load(folder_fd, list[index], any, false, &file);
        if (status != SE_OK)
            break;
        se_log_search(&file, 0, 0, &rest);
        if (rest.synced || (rest.begun && file.verdict == SE_LOG_DAMAGED)) {
            note(damage, file.name, "the header is damaged, and commits stand behind it");
            status = SE_DAMAGED;
        }
    }
    se_log_free(&file);
    return status;
}

static se_status decide(census *c, int folder_fd, const uint64_t *logs, uint32_t log_count,
                        uint32_t checkpoint_count, uint8_t id[16], bool *found) {
    if (c->count == 0 && checkpoint_count == 0)
        return look_for_commits(folder_fd, logs, log_count, c->damage);
    if (c->count == 0) {
        note(c->damage, SE_CHECKPOINT_FOLDER, "no file has a sound header");
        return SE_DAMAGED;
    }
    uint32_t most = 0;
    for (uint32_t index = 1; index < c->count; index++)
        most = c->ids[index].files > c->ids[most].files ? index : most;
    memcpy(id, c->ids[most].id, 16);
    *found = true;
    return c->count == 1 ? SE_OK : SE_DAMAGED;
}

se_status se_recover_identity(int folder_fd, uint8_t database_id[16], bool *found,
                              se_damage *damage) {
    census c = {.damage = damage};
    uint64_t *logs = NULL;
    uint64_t *checkpoints = NULL;
    uint32_t log_count;
    uint32_t checkpoint_count;
    memset(damage, 0, sizeof *damage);
    memset(database_id, 0, 16);
    *found = false;
    SE_TRY(se_wal_list(folder_fd, &logs, &log_count));
    se_status status = se_checkpoint_list(folder_fd, &checkpoints, &checkpoint_count);
    if (status == SE_OK)
        status = count_checkpoints(&c, folder_fd, checkpoints, checkpoint_count);
    if (status == SE_OK)
        status = count_logs(&c, folder_fd, logs, log_count);
    if (status == SE_OK)
        status = decide(&c, folder_fd, logs, log_count, checkpoint_count, database_id, found);
    free(logs);
    free(checkpoints);
    return status;
}
