/* test_recover.c - files that are missing, foreign, older, too many; checkpoints that are damaged;
 * and what salvage keeps.
 */
#include "logs.h"

static test_folder folder;
static test_log log_files;
static se_recovery report;
static const se_recover_options open_options = {.salvage = false};
static const se_recover_options salvage_options = {.salvage = true};

/* Versions first .. last, in a file of their own. */
static void add_file(uint64_t first, uint64_t last) {
    test_log_rotate(&log_files, first, 8192);
    for (uint64_t version = first; version <= last; version++)
        test_log_commit(&log_files, version);
}

static void begin(bool strict) {
    folder = test_folder_make();
    test_log_begin(&log_files, &folder, strict);
}

/* 1 .. 4, 5 .. 8, 9 .. 12. */
static void begin_three(bool strict) {
    begin(strict);
    add_file(1, 4);
    add_file(5, 8);
    add_file(9, 12);
}

static void drop(const char *name) { (void)unlinkat(folder.fd, name, 0); }

static void end(void) {
    if (log_files.fd >= 0)
        test_log_end(&log_files);
    for (int number = 1; number < 4; number++) {
        char path[100];
        snprintf(path, sizeof path, "rm -rf %s/damaged-%d", folder.path, number);
        REQUIRE(system(path) == 0);
    }
    test_folder_remove(&folder);
}

static se_status recover(const se_recover_options *options) {
    se_status status;
    test_database database = test_recover(&folder, options, &report, &status);
    if (status == SE_OK) {
        test_check(database.store);
        REQUIRE(report.last_version == se_load_relaxed(&database.store->seq->commit_version));
    }
    test_database_free(&database);
    return status;
}

static uint64_t recovered(void) {
    se_status status = recover(&open_options);
    if (status != SE_OK)
        test_print_damage(&report.damage);
    REQUIRE(status == SE_OK);
    return report.last_version;
}

static void require_damage(const char *file, const char *reason) {
    REQUIRE(recover(&open_options) == SE_DAMAGED);
    if (strcmp(report.damage.file, file) != 0 || !strstr(report.damage.reason, reason))
        test_print_damage(&report.damage);
    REQUIRE(strcmp(report.damage.file, file) == 0 && strstr(report.damage.reason, reason));
}

#define FILE_1 "wal/00000000000000000001.wal"
#define FILE_5 "wal/00000000000000000005.wal"
#define FILE_9 "wal/00000000000000000009.wal"
#define FILE_13 "wal/00000000000000000013.wal"

static void change(const char *name, size_t at, size_t size, uint64_t value) {
    int fd;
    REQUIRE(se_io_open(folder.fd, name, true, &fd) == SE_OK);
    REQUIRE(se_io_write(fd, &value, size, at) == SE_OK);
    se_io_close(fd);
}

static void change_header(const char *name, size_t at, size_t size, uint64_t value) {
    se_wal_header header;
    size_t got;
    int fd;
    REQUIRE(se_io_open(folder.fd, name, true, &fd) == SE_OK);
    REQUIRE(se_io_read(fd, &header, sizeof header, 0, &got) == SE_OK);
    memcpy((uint8_t *)&header + at, &value, size);
    header.crc = se_crc32c(0, &header, offsetof(se_wal_header, crc));
    REQUIRE(se_io_write(fd, &header, sizeof header, 0) == SE_OK);
    se_io_close(fd);
}

/* -- files --------------------------------------------------------------------------------- */

static void an_empty_folder_is_an_empty_database(void) {
    uint8_t id[16];
    bool found;
    se_damage damage;
    begin(true);
    REQUIRE(se_recover_identity(folder.fd, id, &found, &damage) == SE_OK && !found);
    REQUIRE(recovered() == 0 && !report.cut_file[0]);
    test_file_write(&folder, FILE_1, "", 0);
    REQUIRE(se_recover_identity(folder.fd, id, &found, &damage) == SE_OK && !found);
    REQUIRE(recovered() == 0 && !report.cut_file[0] && !test_folder_has(&folder, FILE_1));
    end();
}

static void a_deleted_file_is_damage_but_for_the_last(void) {
    for (int strict = 0; strict < 2; strict++) {
        begin_three(strict);
        drop(FILE_1);
        require_damage(FILE_5, strict ? "was synced" : "missing");
        end();
        begin_three(strict);
        drop(FILE_5);
        require_damage(strict ? FILE_1 : FILE_9, strict ? "was synced" : "a file of the log is");
        end();
        begin_three(strict);
        drop(FILE_9);
        REQUIRE(recovered() == 8 && !report.cut_file[0]);
        end();
    }
}

static void a_file_that_was_being_made_is_no_damage(void) {
    static const uint8_t zeros[8192];
    for (size_t size = 0; size <= sizeof zeros; size += 4096) {
        begin_three(true);
        test_file_write(&folder, FILE_13, zeros, size);
        REQUIRE(recovered() == 12 && !report.cut_file[0] && !test_folder_has(&folder, FILE_13));
        end();
    }
    begin_three(true);
    test_log_rotate(&log_files, 13, 8192); /* a header and no frame */
    REQUIRE(recovered() == 12 && !report.cut_file[0] && !test_folder_has(&folder, FILE_13));
    end();
}

/* Behind the end stand frames of the file's former life, sound to the last bit. */
static void frames_of_an_older_file_are_not_the_log(void) {
    begin_three(true);
    size_t size;
    uint8_t *old = test_file_read(&folder, FILE_9, &size);
    test_file_write(&folder, SE_WAL_SPARE, old, size);
    free(old);
    test_log_rotate(&log_files, 13, 8192);
    REQUIRE(recovered() == 12 && !report.cut_file[0]);
    test_file_write(&folder, SE_WAL_SPARE, "older", 5);
    test_log_rotate(&log_files, 13, 8192);
    test_log_commit(&log_files, 13);
    REQUIRE(recovered() == 13 && !report.cut_file[0]);
    REQUIRE(!test_folder_has(&folder, SE_WAL_SPARE));
    end();
    begin_three(false);
    old = test_file_read(&folder, FILE_5, &size);
    test_file_write(&folder, SE_WAL_SPARE, old, size);
    free(old);
    test_log_rotate(&log_files, 13, 8192);
    test_log_commit(&log_files, 13); /* as long as the frame that it covers, or not */
    test_log_commit(&log_files, 14);
    REQUIRE(recovered() == 14 && !report.cut_file[0]);
    REQUIRE(recovered() == 14 && !report.cut_file[0]);
    end();
}

static void a_file_of_another_database_is_damage(void) {
    uint8_t id[16];
    bool found;
    se_damage damage;
    begin_three(true);
    change_header(FILE_9, offsetof(se_wal_header, database_id), 8, 1234);
    REQUIRE(se_recover_identity(folder.fd, id, &found, &damage) == SE_DAMAGED && found);
    REQUIRE(strcmp(damage.file, FILE_9) == 0 && id[0] == 0);
    end();
}

static void a_file_under_a_wrong_name_is_damage(void) {
    begin_three(false);
    REQUIRE(se_io_rename(folder.fd, FILE_9, "wal/00000000000000000006.wal") == SE_OK);
    require_damage("wal/00000000000000000006.wal", "to a later place");
    end();
    begin_three(true);
    REQUIRE(se_io_rename(folder.fd, FILE_9, "wal/00000000000000000010.wal") == SE_OK);
    require_damage(FILE_5, "was synced");
    end();
}

static void another_format_is_named(void) {
    uint8_t id[16];
    bool found;
    se_damage damage;
    begin_three(true);
    change_header(FILE_9, offsetof(se_wal_header, format_version), 4, SE_FORMAT_VERSION + 1);
    REQUIRE(recover(&open_options) == SE_FORMAT && strcmp(report.damage.file, FILE_9) == 0);
    REQUIRE(recover(&salvage_options) == SE_FORMAT && test_folder_has(&folder, FILE_9));
    REQUIRE(se_recover_identity(folder.fd, id, &found, &damage) == SE_FORMAT);
    end();
    begin_three(true);
    change(FILE_1, 0, 8, __builtin_bswap64(SE_WAL_MAGIC));
    change(FILE_1, 12, 4, __builtin_bswap32(SE_BYTE_ORDER));
    REQUIRE(recover(&open_options) == SE_FORMAT);
    end();
}

static void versions_may_have_gaps(void) {
    begin(true);
    add_file(1, 2);
    test_log_commit(&log_files, 7);
    add_file(20, 22);
    test_log_commit(&log_files, 40);
    REQUIRE(recovered() == 40 && report.commits == 7);
    add_file(UINT64_C(1) << 40, (UINT64_C(1) << 40) + 1);
    REQUIRE(recovered() == (UINT64_C(1) << 40) + 1 && report.commits == 9);
    end();
}

static void a_frame_of_64_mib_is_read(void) {
    test_frame frame;
    static uint8_t value[SE_VALUE_ENCODED_MAX];
    begin(true);
    test_log_rotate(&log_files, 1, 8192);
    test_log_commit(&log_files, 1);
    test_frame_begin(&frame);
    test_frame_add(&frame, SE_FRAME_PUT, "one", value, SE_VALUE_ENCODED_MAX, 0);
    test_frame_add(&frame, SE_FRAME_PUT, "two", value, SE_VALUE_ENCODED_MAX, 0);
    test_log_append(&log_files, &frame, 2);
    REQUIRE(frame.size > SE_REQUEST_MAX && frame.size <= SE_FRAME_MAX);
    test_log_commit(&log_files, 3);
    se_recover_options options = {.read_only = true};
    REQUIRE(se_recover(NULL, folder.fd, &options, &report) == SE_OK && report.last_version == 3);
    REQUIRE(recover(&open_options) == SE_FULL);
    REQUIRE(test_folder_has(&folder, FILE_1));
    test_frame_free(&frame);
    end();
}

/* A successor may have to write a file again that has a later name than the last one. */
static void a_file_that_was_passed_over_does_no_harm(void) {
    begin(true);
    add_file(1, 4);
    test_log_rotate(&log_files, 5, 8192); /* never used */
    int fd;
    REQUIRE(se_io_open(folder.fd, FILE_1, true, &fd) == SE_OK);
    se_io_close(log_files.fd);
    log_files.fd = fd;
    log_files.offset = 0;
    const size_t size_of_four = 4096;
    se_log_file file = {.bytes = NULL};
    REQUIRE(se_log_load(folder.fd, 1, log_files.id, false, &file) == SE_OK);
    uint64_t last = 0;
    log_files.offset = size_of_four;
    for (const se_frame *frame; (frame = se_log_frame(&file, log_files.offset, last));) {
        last = se_load_relaxed(&frame->version);
        log_files.offset += frame->size;
    }
    se_log_free(&file);
    test_log_commit(&log_files, 5);
    test_log_commit(&log_files, 6);
    add_file(7, 9);
    REQUIRE(recovered() == 9 && !report.cut_file[0]);
    end();
}

/* -- checkpoints --------------------------------------------------------------------------- */

/* A checkpoint of what the log holds now. */
static void add_checkpoint(void) {
    se_checkpoint written;
    se_status status;
    se_recover_options options = {.read_only = true};
    test_database database = test_recover(&folder, &options, &report, &status);
    REQUIRE(status == SE_OK);
    REQUIRE(se_checkpoint_write(database.store, folder.fd, NULL, NULL, &written) == SE_OK);
    REQUIRE(written.version == log_files.version);
    test_database_free(&database);
}

#define CHECKPOINT_4 "checkpoint/00000000000000000004.ckpt"
#define CHECKPOINT_8 "checkpoint/00000000000000000008.ckpt"
#define CHECKPOINT_12 "checkpoint/00000000000000000012.ckpt"

static void frames_in_the_checkpoint_are_not_applied_again(void) {
    begin(true);
    add_file(1, 4);
    add_file(5, 8);
    add_checkpoint();
    REQUIRE(recovered() == 8 && report.commits == 0 && report.checkpoint_version == 8);
    test_log_commit(&log_files, 9);
    add_file(10, 12);
    REQUIRE(recovered() == 12 && report.commits == 4);
    drop(FILE_1);
    REQUIRE(recovered() == 12 && report.commits == 4);
    end();
}

static void a_checkpoint_may_be_newer_than_the_log(void) {
    begin_three(false);
    add_checkpoint();
    drop(FILE_9);
    REQUIRE(recovered() == 12 && report.commits == 0);
    drop(FILE_1);
    REQUIRE(recovered() == 12);
    log_files.version = 12;
    add_file(13, 15);
    REQUIRE(recovered() == 15 && report.commits == 3);
    drop(FILE_5);
    REQUIRE(recovered() == 15);
    drop(FILE_13);
    REQUIRE(recovered() == 12);
    end();
}

static void commits_missing_behind_the_checkpoint_are_damage(void) {
    begin(false);
    add_file(1, 4);
    add_checkpoint();
    add_file(5, 8);
    add_file(9, 12);
    drop(FILE_1);
    REQUIRE(recovered() == 12);
    drop(FILE_5);
    require_damage(FILE_9, "missing");
    end();
}

static void an_older_checkpoint_does_if_the_log_reaches_back_to_it(void) {
    begin(true);
    add_file(1, 4);
    add_checkpoint();
    add_file(5, 8);
    add_checkpoint();
    add_file(9, 12);
    change(CHECKPOINT_8, 100, 1, 0xee);
    REQUIRE(recovered() == 12 && report.checkpoint_version == 4 && report.commits == 8);
    REQUIRE(report.skipped_checkpoint == 8);
    REQUIRE(strcmp(report.damage.file, CHECKPOINT_8) == 0);
    drop(FILE_1);
    REQUIRE(recovered() == 12);
    drop(FILE_5);
    require_damage(CHECKPOINT_8, "");
    end();
}

static void no_checkpoint_is_needed_if_the_log_is_whole(void) {
    begin_three(true);
    add_checkpoint();
    change(CHECKPOINT_12, 100, 1, 0xee);
    REQUIRE(recovered() == 12 && report.checkpoint_version == 0 && report.commits == 12);
    drop(FILE_9); /* the checkpoint's name says what is missing now */
    require_damage(CHECKPOINT_12, "");
    end();
}

static void half_written_checkpoints_are_removed(void) {
    begin_three(true);
    test_file_write(&folder, CHECKPOINT_12 ".tmp", "half", 4);
    se_recover_options options = {.read_only = true};
    REQUIRE(recover(&options) == SE_OK && test_folder_has(&folder, CHECKPOINT_12 ".tmp"));
    REQUIRE(recovered() == 12 && !test_folder_has(&folder, CHECKPOINT_12 ".tmp"));
    end();
}

/* -- salvage ------------------------------------------------------------------------------- */

static void salvage_keeps_the_sound_prefix_and_every_byte(void) {
    size_t before;
    size_t after;
    begin_three(true);
    uint8_t *whole = test_file_read(&folder, FILE_5, &before);
    change(FILE_5, 4096 + 40, 1, 0xee);
    free(whole);
    whole = test_file_read(&folder, FILE_5, &before);
    REQUIRE(recover(&open_options) == SE_DAMAGED);
    REQUIRE(test_folder_has(&folder, FILE_9) && !report.aside[0]);
    REQUIRE(recover(&salvage_options) == SE_OK);
    REQUIRE(report.last_version == 4 && report.damage.file[0] && report.aside_files == 2);
    REQUIRE(strcmp(report.aside, "damaged-1") == 0);
    uint8_t *kept = test_file_read(&folder, "damaged-1/00000000000000000005.wal", &after);
    REQUIRE(after == before && memcmp(whole, kept, after) == 0);
    REQUIRE(test_folder_has(&folder, "damaged-1/00000000000000000009.wal"));
    REQUIRE(!test_folder_has(&folder, FILE_9) && !test_folder_has(&folder, FILE_5));
    free(whole);
    free(kept);
    REQUIRE(recovered() == 4 && !report.damage.file[0]);
    end();
}

static void salvage_cuts_within_a_file(void) {
    begin_three(true);
    uint64_t second = 4096;
    se_log_file file = {.bytes = NULL};
    REQUIRE(se_log_load(folder.fd, 5, log_files.id, false, &file) == SE_OK);
    second += se_log_frame(&file, 4096, 0)->size;
    se_log_free(&file);
    change(FILE_5, second + 40, 1, 0xee);
    REQUIRE(recover(&salvage_options) == SE_OK && report.last_version == 5);
    REQUIRE(test_folder_has(&folder, "damaged-1/00000000000000000005.wal"));
    REQUIRE(test_folder_has(&folder, FILE_5) && !test_folder_has(&folder, FILE_9));
    REQUIRE(recovered() == 5 && !report.damage.file[0]);
    REQUIRE(recover(&salvage_options) == SE_OK && !report.aside[0]);
    end();
}

static void salvage_takes_what_is_left_of_a_checkpoint(void) {
    begin(true);
    add_file(1, 4);
    add_file(5, 8);
    add_checkpoint();
    drop(FILE_1);
    drop(FILE_5);
    log_files.version = 8;
    add_file(9, 12);
    change(CHECKPOINT_8, 120, 1, 0xee);
    require_damage(CHECKPOINT_8, "");
    REQUIRE(recover(&salvage_options) == SE_OK);
    REQUIRE(report.last_version == 12 && report.lost_blocks == 1 && report.commits == 4);
    REQUIRE(test_folder_has(&folder, "damaged-1/00000000000000000008.ckpt"));
    REQUIRE(test_folder_has(&folder, CHECKPOINT_8)); /* until there is a new one */
    end();
}

static void salvage_without_any_sound_file_leaves_an_empty_store(void) {
    begin(true);
    add_file(1, 4);
    change(FILE_1, 3, 1, 0xee);
    require_damage(FILE_1, "");
    REQUIRE(recover(&salvage_options) == SE_OK && report.last_version == 0);
    REQUIRE(test_folder_has(&folder, "damaged-1/00000000000000000001.wal"));
    REQUIRE(recovered() == 0);
    end();
}

#define RUN(test) (test(), printf("test_recover: ok %s\n", #test))

int main(void) {
    RUN(an_empty_folder_is_an_empty_database);
    RUN(a_deleted_file_is_damage_but_for_the_last);
    RUN(a_file_that_was_being_made_is_no_damage);
    RUN(frames_of_an_older_file_are_not_the_log);
    RUN(a_file_of_another_database_is_damage);
    RUN(a_file_under_a_wrong_name_is_damage);
    RUN(another_format_is_named);
    RUN(versions_may_have_gaps);
    RUN(a_frame_of_64_mib_is_read);
    RUN(a_file_that_was_passed_over_does_no_harm);
    RUN(frames_in_the_checkpoint_are_not_applied_again);
    RUN(a_checkpoint_may_be_newer_than_the_log);
    RUN(commits_missing_behind_the_checkpoint_are_damage);
    RUN(an_older_checkpoint_does_if_the_log_reaches_back_to_it);
    RUN(no_checkpoint_is_needed_if_the_log_is_whole);
    RUN(half_written_checkpoints_are_removed);
    RUN(salvage_keeps_the_sound_prefix_and_every_byte);
    RUN(salvage_cuts_within_a_file);
    RUN(salvage_takes_what_is_left_of_a_checkpoint);
    RUN(salvage_without_any_sound_file_leaves_an_empty_store);
    return 0;
}
