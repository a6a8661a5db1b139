/* test_wal.c - a small log of three files, cut at every byte and with every byte changed.
 *
 * Whatever the bytes are: recovery refuses, or gives a prefix of history, to the value. In a strict
 * log no commit but the last one can go unnoticed. Then the decoder of frames, byte by byte.
 */
#include "logs.h"

#define FILES 3u
#define COMMITS 4u /* of a file */
#define LAST (FILES * COMMITS)
#define MAP (UINT64_C(4) << 20)

static test_folder folder;
static test_database whole;
static bool strict;

typedef struct {
    char name[SE_NAME_MAX];
    uint8_t *bytes;
    size_t size;
    size_t end; /* of the last frame */
} kept_file;

static kept_file kept[FILES];

static void make_log(void) {
    test_log log;
    folder = test_folder_make();
    test_log_begin(&log, &folder, strict);
    for (uint32_t file = 0; file < FILES; file++) {
        test_log_rotate(&log, file * COMMITS + 1, 5120);
        for (uint32_t commit = 1; commit <= COMMITS; commit++)
            test_log_commit(&log, file * COMMITS + commit);
        se_wal_name(file * COMMITS + 1, kept[file].name);
        kept[file].bytes = test_file_read(&folder, kept[file].name, &kept[file].size);
        kept[file].end = log.offset;
    }
    test_log_end(&log);
    se_recover_options options = {.read_only = true};
    se_recovery report;
    se_status status;
    whole = test_recover(&folder, &options, &report, &status);
    REQUIRE(status == SE_OK && report.last_version == LAST && report.commits == LAST);
    REQUIRE(!report.cut_file[0] && !report.damage.file[0]);
}

static void restore(void) {
    for (uint32_t file = 0; file < FILES; file++)
        test_file_write(&folder, kept[file].name, kept[file].bytes, kept[file].size);
}

static void end_log(void) {
    restore();
    test_database_free(&whole);
    for (uint32_t file = 0; file < FILES; file++)
        free(kept[file].bytes);
    test_folder_remove(&folder);
}

/* Refused, or a prefix; returns its newest version, or LAST + 1. `most` commits may be missing. */
static uint64_t require_prefix(uint64_t most) {
    se_recover_options options = {.salvage = false};
    se_recovery report;
    se_recovery again;
    se_status status;
    test_database database = test_recover(&folder, &options, &report, &status);
    if (status != SE_OK) {
        REQUIRE(status == SE_DAMAGED || status == SE_FORMAT);
        REQUIRE(report.damage.file[0] && report.damage.reason[0]);
        test_database_free(&database);
        return LAST + 1;
    }
    uint64_t version = report.last_version;
    REQUIRE(version <= LAST && version + most >= LAST);
    test_check(database.store);
    test_same_content(database.store, whole.store, version);
    test_database_free(&database);
    database = test_recover(&folder, &options, &again, &status); /* changes nothing any more */
    REQUIRE(status == SE_OK && again.last_version == version && !again.cut_file[0]);
    test_same_content(database.store, whole.store, version);
    test_database_free(&database);
    return version;
}

static bool means_nothing(const kept_file *file, size_t at) {
    return (at >= sizeof(se_wal_header) && at < SE_WAL_FIRST_FRAME) || at >= file->end;
}

static void every_changed_byte_is_refused_or_leaves_a_prefix(void) {
    for (uint32_t file = 0; file < FILES; file++) {
        const kept_file *changed = &kept[file];
        for (size_t at = 0; at < changed->size; at++) {
            if (means_nothing(changed, at) && at % 256 != 100)
                continue;
            uint8_t *bytes = malloc(changed->size);
            REQUIRE(bytes);
            memcpy(bytes, changed->bytes, changed->size);
            bytes[at] ^= (uint8_t)(1u << at % 8);
            test_context = file * 100000 + at;
            restore();
            test_file_write(&folder, changed->name, bytes, changed->size);
            free(bytes);
            uint64_t version = require_prefix(strict ? 1 : LAST);
            if (means_nothing(changed, at))
                REQUIRE(version == LAST);
            else if (at < sizeof(se_wal_header))
                REQUIRE(version == LAST + 1);
            else
                REQUIRE(version != LAST);
        }
    }
}

/* Nothing tells that the last file was longer, so there a prefix is all that can be asked. */
static void every_cut_is_refused_or_leaves_a_prefix(void) {
    for (uint32_t file = 0; file < FILES; file++) {
        for (size_t size = 0; size <= kept[file].size; size++) {
            if (means_nothing(&kept[file], size) && size % 256 != 100)
                continue;
            test_context = file * 100000 + size;
            restore();
            test_file_write(&folder, kept[file].name, kept[file].bytes, size);
            uint64_t version = require_prefix(strict && file + 1 < FILES ? 0 : LAST);
            if (size >= kept[file].end)
                REQUIRE(version == LAST);
            else if (strict && file + 1 < FILES)
                REQUIRE(version == LAST + 1);
            else
                REQUIRE(version < LAST);
        }
    }
}

static void checks_alone_change_no_file(void) {
    se_recover_options options = {.read_only = true};
    se_recovery report;
    for (size_t cut = SE_WAL_FIRST_FRAME; cut < kept[FILES - 1].end; cut += 24) {
        restore();
        test_file_write(&folder, kept[FILES - 1].name, kept[FILES - 1].bytes, cut);
        test_file_write(&folder, SE_WAL_SPARE, "spare", 5);
        REQUIRE(se_recover(NULL, folder.fd, &options, &report) == SE_OK);
        REQUIRE(report.last_version >= LAST - COMMITS && report.last_version < LAST);
        REQUIRE(test_folder_has(&folder, SE_WAL_SPARE));
        size_t size;
        free(test_file_read(&folder, kept[FILES - 1].name, &size));
        REQUIRE(size == cut);
    }
    REQUIRE(se_io_remove(folder.fd, SE_WAL_SPARE) == SE_OK);
}

/* -- frames -------------------------------------------------------------------------------- */

static void a_frame_is_read_back(void) {
    test_frame frame;
    test_frame_begin(&frame);
    test_frame_add(&frame, SE_FRAME_PUT, "one", "value", 5, 0);
    test_frame_add(&frame, SE_FRAME_DELETE, "two", NULL, 0, 0);
    test_frame_add(&frame, SE_FRAME_PUT_EXPIRES, "three", "x", 1, 12345);
    test_frame_end(&frame, 77, 3);
    REQUIRE(se_frame_check(frame.bytes, frame.size) && se_frame_check(frame.bytes, UINT64_MAX));
    se_frame_item item;
    uint64_t at = sizeof(se_frame);
    const se_frame *head = (const se_frame *)frame.bytes;
    REQUIRE(se_frame_next(head, &at, &item) && item.kind == SE_FRAME_PUT);
    REQUIRE(item.value_size == 5 && memcmp(item.value, "value", 5) == 0 && item.expires_us == 0);
    REQUIRE(item.key_size == 21 && memcmp(item.key + 17, "one", 4) == 0);
    REQUIRE(se_frame_next(head, &at, &item) && item.kind == SE_FRAME_DELETE);
    REQUIRE(item.value_size == 0);
    REQUIRE(se_frame_next(head, &at, &item) && item.kind == SE_FRAME_PUT_EXPIRES);
    REQUIRE(item.expires_us == 12345 && item.value_size == 1 && *item.value == 'x');
    REQUIRE(!se_frame_next(head, &at, &item));
    test_frame_free(&frame);
}

static void no_byte_of_a_frame_changes_unseen(void) {
    test_frame frame;
    test_frame_begin(&frame);
    test_frame_add(&frame, SE_FRAME_PUT, "one", "value", 5, 0);
    test_frame_end(&frame, 77, 3);
    for (size_t at = 0; at < frame.size; at++) {
        for (uint32_t bit = 0; bit < 8; bit++) {
            frame.bytes[at] ^= (uint8_t)(1u << bit);
            REQUIRE(!se_frame_check(frame.bytes, frame.size));
            frame.bytes[at] ^= (uint8_t)(1u << bit);
        }
    }
    for (size_t room = 0; room < frame.size; room++)
        REQUIRE(!se_frame_check(frame.bytes, room));
    REQUIRE(se_frame_check(frame.bytes, frame.size));
    test_frame_free(&frame);
}

/* The checksum fits; what is inside breaks one rule. */
static bool is_sound_with(size_t at, size_t size, uint64_t value) {
    test_frame frame;
    test_frame_begin(&frame);
    test_frame_add(&frame, SE_FRAME_PUT, "one", "value", 5, 0);
    test_frame_add(&frame, SE_FRAME_DELETE, "two", NULL, 0, 0);
    test_frame_end(&frame, 77, 3);
    memcpy(frame.bytes + at, &value, size);
    se_frame *head = (se_frame *)frame.bytes;
    if (head->size <= frame.size)
        head->crc = se_frame_crc(head);
    bool sound = se_frame_check(frame.bytes, frame.size);
    test_frame_free(&frame);
    return sound;
}

static void a_frame_that_breaks_a_rule_is_refused(void) {
    size_t first = sizeof(se_frame);
    size_t second = first + sizeof(se_frame_op) + 21 + 5;
    REQUIRE(is_sound_with(24, 4, 9));
    REQUIRE(!is_sound_with(0, 4, 24));
    REQUIRE(!is_sound_with(0, 4, 36));
    REQUIRE(!is_sound_with(8, 8, 0));
    REQUIRE(!is_sound_with(first, 1, 0));
    REQUIRE(!is_sound_with(first, 1, 4));
    REQUIRE(!is_sound_with(first + 1, 1, 1));
    REQUIRE(!is_sound_with(first + 2, 2, 17));
    REQUIRE(!is_sound_with(first + 2, 2, SE_KEY_MAX + 1));
    REQUIRE(!is_sound_with(first + 4, 4, 0));
    REQUIRE(!is_sound_with(first + 4, 4, UINT32_MAX));
    REQUIRE(!is_sound_with(second, 1, SE_FRAME_PUT));
    REQUIRE(!is_sound_with(second + 4, 4, 1));
    REQUIRE(!is_sound_with(second + sizeof(se_frame_op) + 21, 1, 1)); /* padding */
}

static void run(const char *name, void (*test)(void)) {
    make_log();
    test();
    end_log();
    printf("test_wal: ok %s%s\n", name, strict ? ", strict" : "");
}
#define RUN(test) run(#test, test)

int main(void) {
    a_frame_is_read_back();
    no_byte_of_a_frame_changes_unseen();
    a_frame_that_breaks_a_rule_is_refused();
    for (int mode = 0; mode < 2; mode++) {
        strict = mode == 1;
        RUN(every_changed_byte_is_refused_or_leaves_a_prefix);
        RUN(every_cut_is_refused_or_leaves_a_prefix);
        RUN(checks_alone_change_no_file);
    }
    return 0;
}
