/* test_checkpoint_damage.c - no byte of a checkpoint can change, and no rule be broken, unseen.
 *
 * Small files are forged here, block by block and apart from the code that writes real ones, so
 * that every checksum fits and only the rule in question is broken.
 */
#include "checkpoints.h"

#define MAP (UINT64_C(1) << 20)
#define VERSION 9u
#define FILE_NAME "checkpoint/00000000000000000009.ckpt"

static test_folder folder;

typedef struct {
    uint8_t bytes[1 << 16];
    uint64_t size;
    uint64_t block_at;
    uint32_t entries;
    uint64_t number;
    se_checkpoint_end totals;
    uint8_t id[16];
    uint32_t format_version;
    uint32_t byte_order;
    uint64_t version;
} forged;

static void add(forged *f, const void *bytes, uint64_t size) {
    REQUIRE(f->size + size <= sizeof f->bytes);
    memcpy(f->bytes + f->size, bytes, size);
    f->size += size;
}

static void seal_header(forged *f) {
    se_checkpoint_header header = {.magic = SE_CHECKPOINT_MAGIC,
                                   .format_version = f->format_version,
                                   .byte_order = f->byte_order,
                                   .version = f->version,
                                   .created_us = 77};
    memcpy(header.database_id, f->id, 16);
    header.crc = se_crc32c(0, &header, 60);
    memcpy(f->bytes, &header, sizeof header);
}

static void begin(forged *f) {
    memset(f, 0, sizeof *f);
    f->format_version = SE_FORMAT_VERSION;
    f->byte_order = SE_BYTE_ORDER;
    f->version = VERSION;
    f->size = sizeof(se_checkpoint_header);
    f->block_at = f->size;
    f->size += sizeof(se_checkpoint_block);
    seal_header(f);
}

static void seal_block(forged *f, uint32_t kind) {
    se_checkpoint_block block = {.magic = SE_CHECKPOINT_BLOCK,
                                 .kind = kind,
                                 .offset = f->block_at,
                                 .number = f->number++,
                                 .entries = f->entries};
    uint8_t id_and_version[24];
    while (f->size % 8)
        f->bytes[f->size++] = 0;
    block.size = (uint32_t)(f->size - f->block_at - sizeof block);
    block.crc = se_crc32c(0, f->bytes + f->block_at + sizeof block, block.size);
    memcpy(id_and_version, f->id, 16);
    memcpy(id_and_version + 16, &f->version, 8);
    block.header_crc = se_crc32c(se_crc32c(0, id_and_version, 24), &block, 36);
    memcpy(f->bytes + f->block_at, &block, sizeof block);
    f->block_at = f->size;
    f->size += sizeof block;
    f->entries = 0;
}

static void finish(forged *f) {
    add(f, &f->totals, sizeof f->totals);
    seal_block(f, SE_CHECKPOINT_END);
    f->size -= sizeof(se_checkpoint_block);
}

static void key_raw(forged *f, const char *name, uint32_t flags, uint32_t records) {
    uint8_t key[SE_KEY_MAX];
    uint32_t size = test_key(key, name);
    se_checkpoint_key entry = {(uint16_t)size, (uint16_t)flags, records};
    add(f, &entry, sizeof entry);
    add(f, key, size);
    f->entries++;
    if (!(flags & SE_CHECKPOINT_GOES_ON)) {
        f->totals.keys++;
        f->totals.bytes += size;
    }
}

/* Times are ten times the versions. An empty value: a tombstone. */
static void record(forged *f, uint64_t version, const char *value) {
    uint32_t size = (uint32_t)strlen(value);
    se_checkpoint_record head = {version, version * 10, 0, size, size ? 0 : SE_RECORD_TOMBSTONE};
    add(f, &head, sizeof head);
    add(f, value, size);
    f->totals.records++;
    f->totals.bytes += size;
    if (version * 10 > f->totals.timestamp_us)
        f->totals.timestamp_us = version * 10;
}

static void key(forged *f, const char *name, uint64_t version, const char *value) {
    key_raw(f, name, 0, 1);
    record(f, version, value);
}

static void save(const forged *f) { test_file_write(&folder, FILE_NAME, f->bytes, f->size); }

/* Loads into a new store, which is the caller's if wanted; both ways of reading must agree. */
static se_status load(bool salvage, se_checkpoint *report, test_database *kept) {
    test_database database = test_database_make(MAP);
    se_checkpoint checked;
    se_status status =
        se_checkpoint_load(database.store, folder.fd, VERSION, salvage, NULL, NULL, report);
    se_status check = se_checkpoint_check(folder.fd, VERSION, NULL, NULL, &checked);
    REQUIRE(salvage || check == status);
    if (status == SE_DAMAGED) {
        REQUIRE(strcmp(report->damage.file, FILE_NAME) == 0 && report->damage.reason[0]);
        REQUIRE(salvage || strcmp(checked.damage.reason, report->damage.reason) == 0);
    }
    if (kept)
        *kept = database;
    else
        test_database_free(&database);
    return status;
}

/* Three blocks: plain keys; a history over two blocks; a cut, a tombstone, an expiry. */
static void forge_sample(forged *f) {
    begin(f);
    key(f, "a", 3, "one");
    key(f, "ab", 1, "a value of some length, so that the block is not tiny");
    key_raw(f, "b", SE_CHECKPOINT_MORE, 2);
    record(f, 8, "newest");
    record(f, 7, "older");
    seal_block(f, SE_CHECKPOINT_KEYS);
    key_raw(f, "b", SE_CHECKPOINT_GOES_ON, 2);
    record(f, 4, "");
    record(f, 2, "first");
    key(f, "c", 5, "in the middle");
    seal_block(f, SE_CHECKPOINT_KEYS);
    key_raw(f, "d", SE_CHECKPOINT_CUT, 1);
    record(f, 9, "cut behind");
    key(f, "e", 6, "");
    key_raw(f, "f", 0, 1);
    se_checkpoint_record expiring = {6, 60, 12345, 1, 0};
    add(f, &expiring, sizeof expiring);
    add(f, "x", 1);
    f->totals.records++;
    f->totals.bytes++;
    seal_block(f, SE_CHECKPOINT_KEYS);
    f->totals.removed_horizon = 2;
    finish(f);
}

static void a_sound_file_is_loaded(void) {
    forged f;
    se_checkpoint report;
    test_database database;
    char got[64];
    se_session session;
    forge_sample(&f);
    save(&f);
    REQUIRE(load(false, &report, &database) == SE_OK);
    REQUIRE(report.keys == 7 && report.records == 10 && report.version == VERSION);
    REQUIRE(report.timestamp_us == 90 && report.removed_horizon == 2 && report.size == f.size);
    REQUIRE(se_load_relaxed(&database.store->seq->live_keys) == 6);
    REQUIRE(se_load_relaxed(&database.store->seq->ttl_keys) == 1);
    REQUIRE(se_session_open(&session, database.store) == SE_OK);
    REQUIRE(test_get(&session, "b", 9, got, 64) == SE_OK && strcmp(got, "newest") == 0);
    REQUIRE(test_get(&session, "b", 7, got, 64) == SE_OK && strcmp(got, "older") == 0);
    REQUIRE(test_get(&session, "b", 6, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_get(&session, "b", 3, got, 64) == SE_OK && strcmp(got, "first") == 0);
    REQUIRE(test_get(&session, "b", 1, got, 64) == SE_NOT_FOUND);
    REQUIRE(test_get(&session, "d", 8, got, 64) == SE_TRIMMED);
    REQUIRE(test_get(&session, "f", 9, got, 64) == SE_NOT_FOUND);
    se_session_close(&session);
    test_check(database.store);
    test_database_free(&database);
}

/* One database that a file was loaded into, to compare with. */
static test_database whole;

static void salvage_invents_nothing(const forged *f) {
    se_checkpoint report;
    test_database salvaged;
    test_file_write(&folder, FILE_NAME, f->bytes, f->size);
    se_status status = load(true, &report, &salvaged);
    REQUIRE(status == SE_OK || status == SE_FORMAT || status == SE_DAMAGED);
    if (status == SE_OK) {
        REQUIRE(report.damage.file[0] && report.removed_horizon == VERSION);
        test_check(salvaged.store);
        test_nothing_invented(salvaged.store, whole.store);
        REQUIRE(report.keys >= 2 || report.lost_blocks >= 2);
    }
    test_database_free(&salvaged);
}

static void every_changed_byte_is_seen(void) {
    static const uint8_t changes[] = {0xff, 0x01, 0x80};
    static forged f;
    forge_sample(&f);
    for (uint64_t at = 0; at < f.size; at++) {
        test_context = at;
        for (size_t change = 0; change < sizeof changes; change++) {
            se_checkpoint report;
            f.bytes[at] ^= changes[change];
            save(&f);
            se_status status = load(false, &report, NULL);
            REQUIRE(status == SE_DAMAGED || status == SE_FORMAT);
            if (change == 0)
                salvage_invents_nothing(&f);
            f.bytes[at] ^= changes[change];
        }
    }
}

static void every_missing_end_is_seen(void) {
    static forged f;
    forge_sample(&f);
    uint64_t size = f.size;
    for (f.size = 0; f.size < size; f.size++) {
        se_checkpoint report;
        test_context = f.size;
        save(&f);
        REQUIRE(load(false, &report, NULL) == SE_DAMAGED);
        if (f.size > 500)
            salvage_invents_nothing(&f);
    }
    f.bytes[f.size++] = 0; /* and what is too much */
    se_checkpoint report;
    save(&f);
    REQUIRE(load(false, &report, NULL) == SE_DAMAGED);
    test_context = 0;
}

/* Where the blocks of the sample begin. */
static uint32_t find_blocks(const forged *f, uint64_t *offsets) {
    uint32_t count = 0;
    uint64_t at = sizeof(se_checkpoint_header);
    while (at < f->size) {
        se_checkpoint_block block;
        memcpy(&block, f->bytes + at, sizeof block);
        offsets[count++] = at;
        at += sizeof block + block.size;
    }
    return count;
}

/* header: its header is damaged and not its content. */
static void losing_a_block_keeps_the_others(bool header) {
    static const uint64_t keys_left[4] = {4, 6, 4, 7};
    static forged f;
    uint64_t offsets[8];
    forge_sample(&f);
    REQUIRE(find_blocks(&f, offsets) == 4);
    for (uint32_t block = 0; block < 4; block++) {
        se_checkpoint report;
        test_database database;
        char got[64];
        se_session session;
        uint64_t at = offsets[block] + (header ? 9 : sizeof(se_checkpoint_block) + 3);
        test_context = block;
        f.bytes[at] ^= 0x10;
        save(&f);
        f.bytes[at] ^= 0x10;
        REQUIRE(load(true, &report, &database) == SE_OK);
        REQUIRE(report.lost_blocks == 1 && report.damage.offset >= offsets[block]);
        /* The first one loses "b", whose older versions must not pass for the newest. */
        REQUIRE(report.keys == keys_left[block]);
        test_check(database.store);
        test_nothing_invented(database.store, whole.store);
        REQUIRE(se_session_open(&session, database.store) == SE_OK);
        se_status b = test_get(&session, "b", 9, got, 64);
        REQUIRE(block == 0 ? b == SE_NOT_FOUND : b == SE_OK && strcmp(got, "newest") == 0);
        if (block == 1)
            REQUIRE(test_get(&session, "b", 4, got, 64) == SE_TRIMMED);
        se_session_close(&session);
        test_database_free(&database);
    }
    test_context = 0;
}

/* A value that holds a whole block, checksums and all: a scan must not take it for one. */
static void a_block_within_a_value_is_no_block(void) {
    static forged inner;
    static forged f;
    static char value[4096];
    se_checkpoint report;
    test_database database;
    begin(&inner);
    key(&inner, "invented", 9, "never written");
    seal_block(&inner, SE_CHECKPOINT_KEYS);
    begin(&f);
    for (int shift = 0; shift < 8; shift++) { /* at every alignment */
        char name[16];
        snprintf(name, sizeof name, "%d", shift);
        memset(value, 0, sizeof value);
        memcpy(value + shift, inner.bytes + 64, 200);
        key_raw(&f, name, 0, 1);
        se_checkpoint_record head = {1, 10, 0, 300, 0};
        add(&f, &head, sizeof head);
        add(&f, value, 300);
        f.totals.records++;
    }
    seal_block(&f, SE_CHECKPOINT_KEYS);
    key(&f, "z", 9, "true");
    seal_block(&f, SE_CHECKPOINT_KEYS);
    finish(&f);
    f.bytes[64 + 8]++; /* the first header */
    save(&f);
    REQUIRE(load(true, &report, &database) == SE_OK);
    REQUIRE(report.keys == 1 && report.lost_blocks == 1);
    test_database_free(&database);
}

static void expect(const forged *f, se_status expected, const char *reason) {
    se_checkpoint report;
    save(f);
    se_status status = load(false, &report, NULL);
    if (status != expected || (reason && !strstr(report.damage.reason, reason))) {
        fprintf(stderr, "status %d: %s, not %d: %s\n", status, report.damage.reason, expected,
                reason);
        exit(1);
    }
}

static void headers_of_others_are_refused(void) {
    static forged f;
    forge_sample(&f);
    f.format_version = SE_FORMAT_VERSION + 1;
    seal_header(&f);
    expect(&f, SE_FORMAT, NULL);
    forge_sample(&f);
    f.byte_order = 0x04030201;
    seal_header(&f);
    expect(&f, SE_FORMAT, NULL);
    forge_sample(&f);
    f.version = VERSION + 1;
    seal_header(&f);
    expect(&f, SE_DAMAGED, "file's name");
    forge_sample(&f);
    se_checkpoint_header header;
    se_damage damage;
    save(&f);
    REQUIRE(se_checkpoint_read_header(folder.fd, VERSION, &header, &damage) == SE_OK);
    REQUIRE(header.version == VERSION && header.created_us == 77);
    f.id[3] = 1;
    seal_header(&f); /* load compares with the store's id, check cannot */
    save(&f);
    se_checkpoint report;
    test_database database = test_database_make(MAP);
    REQUIRE(se_checkpoint_load(database.store, folder.fd, VERSION, false, NULL, NULL, &report) ==
            SE_DAMAGED);
    REQUIRE(strstr(report.damage.reason, "another database"));
    test_database_free(&database);
    REQUIRE(se_checkpoint_check(folder.fd, VERSION, NULL, NULL, &report) == SE_DAMAGED);
    REQUIRE(strstr(report.damage.reason, "block header")); /* whose checksum begins with the id */
    f.bytes[0] ^= 1;
    save(&f);
    REQUIRE(se_checkpoint_read_header(folder.fd, VERSION, &header, &damage) == SE_DAMAGED);
    REQUIRE(se_checkpoint_read_header(folder.fd, VERSION + 1, &header, &damage) == SE_IO);
}

static void end_file(forged *f, const char *reason) {
    seal_block(f, SE_CHECKPOINT_KEYS);
    finish(f);
    expect(f, SE_DAMAGED, reason);
}

static void broken_keys_are_refused(void) {
    static forged f;
    begin(&f);
    key(&f, "b", 1, "x");
    key(&f, "a", 1, "x");
    end_file(&f, "keys are out of order");
    begin(&f);
    key(&f, "a", 1, "x");
    key(&f, "a", 1, "x");
    end_file(&f, "keys are out of order");
    begin(&f);
    key_raw(&f, "a", SE_CHECKPOINT_MORE | SE_CHECKPOINT_CUT, 1);
    record(&f, 1, "x");
    end_file(&f, "impossible flags");
    begin(&f);
    key_raw(&f, "a", 8, 1);
    record(&f, 1, "x");
    end_file(&f, "impossible flags");
    begin(&f);
    key_raw(&f, "a", 0, 0);
    end_file(&f, "no records");
    begin(&f);
    key_raw(&f, "a", SE_CHECKPOINT_GOES_ON, 1);
    record(&f, 1, "x");
    end_file(&f, "did not begin");
    begin(&f);
    key_raw(&f, "a", SE_CHECKPOINT_MORE, 1);
    record(&f, 1, "x");
    key(&f, "b", 1, "x");
    end_file(&f, "older records are missing");
    begin(&f);
    key_raw(&f, "a", SE_CHECKPOINT_MORE, 1);
    record(&f, 1, "x");
    key_raw(&f, "b", SE_CHECKPOINT_GOES_ON, 1);
    record(&f, 1, "x");
    end_file(&f, "did not begin");
    begin(&f);
    key_raw(&f, "a", SE_CHECKPOINT_MORE, 1);
    record(&f, 1, "x");
    end_file(&f, "older records are missing");
    se_checkpoint_key entry = {17, 0, 1};
    begin(&f);
    add(&f, &entry, sizeof entry);
    add(&f, test_run, 16);
    add(&f, "", 1);
    f.entries++;
    record(&f, 1, "x");
    end_file(&f, "key's size");
}

static void broken_record(uint64_t version, uint64_t timestamp_us, uint32_t size, uint32_t flags,
                          const char *reason) {
    static forged f;
    se_checkpoint_record bad = {version, timestamp_us, 0, size, flags};
    begin(&f);
    key_raw(&f, "a", 0, 2);
    record(&f, 5, "x");
    add(&f, &bad, sizeof bad);
    add(&f, "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", size < 40 ? size : 40);
    f.totals.records++;
    f.totals.bytes += size;
    end_file(&f, reason);
}

static void broken_records_are_refused(void) {
    broken_record(6, 50, 1, 0, "out of order");
    broken_record(0, 50, 1, 0, "out of order");
    broken_record(4, 51, 1, 0, "out of order");
    broken_record(4, 40, 1, SE_RECORD_TOMBSTONE, "flags");
    broken_record(4, 40, 0, 0, "flags");
    broken_record(4, 40, 1, 2, "flags");
    broken_record(4, 40, 60, 0, "leaves its block");
    broken_record(4, 40, UINT32_MAX, 0, "leaves its block");
    static forged f;
    begin(&f);
    key(&f, "a", VERSION + 1, "x");
    end_file(&f, "out of order");
    begin(&f);
    key_raw(&f, "a", 0, 3); /* one more than there are */
    record(&f, 5, "x");
    record(&f, 5, "same version, as one write set may do");
    end_file(&f, "leaves its block");
}

static void broken_blocks_are_refused(void) {
    static forged f;
    begin(&f);
    key(&f, "a", 1, "x");
    f.entries = 2;
    end_file(&f, "leaves its block");
    begin(&f);
    key(&f, "a", 1, "x");
    f.entries = 0;
    end_file(&f, "impossible size");
    begin(&f);
    key(&f, "a", 1, "x");
    add(&f, "12345678", 8);
    end_file(&f, "bytes are left");
    begin(&f);
    key(&f, "a", 1, "x");
    f.number = 1;
    end_file(&f, "no sound block header");
    begin(&f);
    key(&f, "a", 1, "x");
    seal_block(&f, 3);
    finish(&f);
    expect(&f, SE_DAMAGED, "unknown kind");
    begin(&f);
    key(&f, "a", 1, "x");
    f.totals.keys++;
    end_file(&f, "totals");
    begin(&f);
    key(&f, "a", 1, "x");
    f.totals.removed_horizon = VERSION + 1;
    end_file(&f, "horizon");
}

int main(void) {
    static forged f;
    se_checkpoint report;
    folder = test_folder_make();
    a_sound_file_is_loaded();
    forge_sample(&f);
    save(&f);
    REQUIRE(load(false, &report, &whole) == SE_OK);
    every_changed_byte_is_seen();
    every_missing_end_is_seen();
    losing_a_block_keeps_the_others(false);
    losing_a_block_keeps_the_others(true);
    a_block_within_a_value_is_no_block();
    headers_of_others_are_refused();
    broken_keys_are_refused();
    broken_records_are_refused();
    broken_blocks_are_refused();
    test_database_free(&whole);
    test_folder_remove(&folder);
    printf("test_checkpoint_damage: ok\n");
    return 0;
}
