/* checkpoint_read.c - check headers, blocks, entries and their order; find the way past damage.
 *
 * Invariants: C1 keys rise strictly and none is the beginning of another; C2 versions and times
 *             never rise along a key's records, and none is above the checkpoint's; C3 each block
 *             says where it stands, so what a scan finds after damage is a block of this very file.
 * Cost:       one pass over the bytes for the checksum, one over the entries (salvage: two).
 */
#include "checkpoint_read.h"

#include <errno.h>

#include "crc32c.h"
#include "msgpack.h"

#define SCAN_SIZE (UINT64_C(64) << 10)
#define KEY_MIN (SE_RUN_ID_SIZE + 2u)

/* What the entries so far mean for the next one. */
typedef struct {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size;     /* 0: there was none */
    bool more;             /* older records of that key have to follow */
    bool after_loss;       /* they may follow without their beginning */
    uint64_t version;      /* of the record before */
    uint64_t timestamp_us;
    se_checkpoint_end totals;
} progress_state;

typedef struct {
    const uint8_t *bytes;
    uint64_t size;
    uint64_t at;
    uint64_t version; /* no record is above it */
    progress_state *state;
    const se_checkpoint_sink *sink;
    const char *why;
} parser;

typedef struct {
    const se_checkpoint_source *source;
    const se_checkpoint_sink *sink;
    se_checkpoint *report;
    int fd;
    uint64_t size;
    uint64_t at;
    uint64_t number; /* of the block that comes next */
    uint32_t seed;
    uint8_t *bytes;
    uint64_t room;
    progress_state state;
    progress_state trial;
} reader;

se_status se_checkpoint_damaged(se_damage *damage, const char *file, uint64_t offset,
                                const char *reason) {
    if (damage->file[0] == 0) { /* the first one is the one to tell of */
        snprintf(damage->file, sizeof damage->file, "%s", file);
        snprintf(damage->reason, sizeof damage->reason, "%s", reason);
        damage->offset = offset;
    }
    return SE_DAMAGED;
}

uint32_t se_checkpoint_seed(const uint8_t *database_id, uint64_t version) {
    uint32_t crc = se_crc32c(0, database_id, 16);
    return se_crc32c(crc, &version, sizeof version);
}

static uint32_t common_bytes(const uint8_t *left, const uint8_t *right, uint32_t size) {
    uint32_t at = 0;
    for (; at + 8 <= size; at += 8) {
        uint64_t a;
        uint64_t b;
        memcpy(&a, left + at, 8);
        memcpy(&b, right + at, 8);
        if (a != b) /* little-endian: the first byte is the lowest */
            return at + (uint32_t)__builtin_ctzll(a ^ b) / 8;
    }
    while (at < size && left[at] == right[at])
        at++;
    return at;
}

static se_status bad(parser *p, const char *why) {
    p->why = why;
    return SE_DAMAGED;
}

static se_status parse_record(parser *p, bool dropped) {
    progress_state *state = p->state;
    se_checkpoint_record record;
    if (SE_UNLIKELY(p->size - p->at < sizeof record))
        return bad(p, "a record leaves its block");
    memcpy(&record, p->bytes + p->at, sizeof record);
    uint64_t left = p->size - p->at - sizeof record;
    if (SE_UNLIKELY(record.value_size > SE_VALUE_ENCODED_MAX || record.value_size > left))
        return bad(p, "a value leaves its block or is too large");
    if (SE_UNLIKELY(record.flags > SE_RECORD_TOMBSTONE ||
                    (record.value_size == 0) != (record.flags == SE_RECORD_TOMBSTONE)))
        return bad(p, "a record has impossible flags");
    if (SE_UNLIKELY(record.version == 0 || record.version > state->version ||
                    record.timestamp_us > state->timestamp_us))
        return bad(p, "a record's version or time is out of order");
    const uint8_t *value = p->bytes + p->at + sizeof record;
    p->at += sizeof record + record.value_size;
    state->version = record.version;
    state->timestamp_us = record.timestamp_us;
    if (SE_UNLIKELY(dropped))
        return SE_OK;
    state->totals.records++;
    state->totals.bytes += record.value_size;
    if (record.timestamp_us > state->totals.timestamp_us)
        state->totals.timestamp_us = record.timestamp_us;
    return p->sink ? p->sink->record(p->sink->context, &record, value) : SE_OK;
}

/* Whether the entry may stand behind the one before. *common: see the sink. */
static se_status check_order(parser *p, const se_checkpoint_key *entry, const uint8_t *key,
                             uint32_t *common, bool *dropped) {
    progress_state *state = p->state;
    uint32_t shorter = entry->key_size < state->key_size ? entry->key_size : state->key_size;
    *common = common_bytes(key, state->key, shorter);
    *dropped = false;
    if (SE_UNLIKELY(entry->flags & SE_CHECKPOINT_GOES_ON)) {
        bool same = entry->key_size == state->key_size && *common == shorter;
        *dropped = state->after_loss;
        return *dropped || (state->more && same) ? SE_OK
                                                 : bad(p, "a key goes on that did not begin");
    }
    if (SE_UNLIKELY(state->more))
        return bad(p, "a key's older records are missing");
    if (SE_UNLIKELY(state->key_size && (*common == shorter || key[*common] < state->key[*common])))
        return bad(p, "keys are out of order");
    return SE_OK;
}

static void begin_entry(progress_state *state, const se_checkpoint_key *entry, const uint8_t *key,
                        uint64_t version, bool dropped) {
    if (!(entry->flags & SE_CHECKPOINT_GOES_ON) || dropped) {
        state->version = version;
        state->timestamp_us = UINT64_MAX;
    }
    state->after_loss = dropped;
    if (dropped)
        return;
    state->more = (entry->flags & SE_CHECKPOINT_MORE) != 0;
    if (entry->flags & SE_CHECKPOINT_GOES_ON)
        return;
    memcpy(state->key, key, entry->key_size);
    state->key_size = entry->key_size;
    state->totals.keys++;
    state->totals.bytes += entry->key_size;
}

static se_status parse_entry(parser *p) {
    const uint32_t cut_and_more = SE_CHECKPOINT_CUT | SE_CHECKPOINT_MORE;
    se_checkpoint_key entry;
    if (SE_UNLIKELY(p->size - p->at < sizeof entry))
        return bad(p, "a key leaves its block");
    memcpy(&entry, p->bytes + p->at, sizeof entry);
    p->at += sizeof entry;
    if (SE_UNLIKELY(entry.key_size < KEY_MIN || entry.key_size > SE_KEY_MAX ||
                    entry.key_size > p->size - p->at))
        return bad(p, "a key's size is impossible");
    if (SE_UNLIKELY(entry.flags > (cut_and_more | SE_CHECKPOINT_GOES_ON) ||
                    (entry.flags & cut_and_more) == cut_and_more))
        return bad(p, "a key has impossible flags");
    if (SE_UNLIKELY(entry.records == 0 &&
                    entry.flags != (SE_CHECKPOINT_GOES_ON | SE_CHECKPOINT_CUT)))
        return bad(p, "a key has no records");
    const uint8_t *key = p->bytes + p->at;
    uint32_t common;
    bool dropped;
    SE_TRY(check_order(p, &entry, key, &common, &dropped));
    p->at += entry.key_size;
    begin_entry(p->state, &entry, key, p->version, dropped);
    if (p->sink && !dropped)
        SE_TRY(p->sink->key(p->sink->context, &entry, key, common));
    for (uint32_t index = 0; index < entry.records; index++)
        SE_TRY(parse_record(p, dropped));
    return SE_OK;
}

static se_status parse_block(parser *p, uint32_t entries) {
    for (uint32_t index = 0; index < entries; index++)
        SE_TRY(parse_entry(p));
    if (p->size - p->at >= 8)
        return bad(p, "bytes are left behind the last key");
    for (; p->at < p->size; p->at++) {
        if (p->bytes[p->at] != 0)
            return bad(p, "bytes are left behind the last key");
    }
    return SE_OK;
}

static se_status damaged(reader *r, uint64_t offset, const char *why) {
    return se_checkpoint_damaged(&r->report->damage, r->source->name, offset, why);
}

/* Damage outside salvage; in salvage what was wrong is noted and the work goes on. */
static se_status lose(reader *r, uint64_t offset, const char *why, uint64_t blocks) {
    (void)damaged(r, offset, why);
    if (!r->source->salvage)
        return SE_DAMAGED;
    r->report->lost_blocks += blocks;
    r->state.more = false;
    r->state.after_loss = true;
    if (r->sink)
        r->sink->lost(r->sink->context);
    return SE_OK;
}

static se_status get(reader *r, void *bytes, uint64_t size, uint64_t offset, const char **why) {
    size_t got;
    se_status status = se_io_read(r->fd, bytes, size, offset, &got);
    *why = status == SE_OK ? "the file ends here" : "the disk could not be read here";
    if (status != SE_OK && !r->source->salvage)
        return status;
    return status == SE_OK && got == size ? SE_OK : SE_DAMAGED;
}

static se_status check_header(const se_checkpoint_header *header, uint64_t version,
                              const uint8_t *database_id, const char **why) {
    static const uint8_t zero[sizeof header->zero];
    bool sound = header->crc == se_crc32c(0, header, offsetof(se_checkpoint_header, crc));
    *why = "the header's checksum is wrong";
    if (header->magic == SE_CHECKPOINT_MAGIC &&
        ((sound && !se_file_version_known(header->format_version)) ||
         header->byte_order == __builtin_bswap32(SE_BYTE_ORDER)))
        return SE_FORMAT;
    if (!sound)
        return SE_DAMAGED;
    *why = "the header is not that of a checkpoint";
    if (header->magic != SE_CHECKPOINT_MAGIC || header->byte_order != SE_BYTE_ORDER ||
        memcmp(header->zero, zero, sizeof zero) != 0)
        return SE_DAMAGED;
    *why = "the header has another version than the file's name";
    if (header->version != version)
        return SE_DAMAGED;
    *why = "the checkpoint belongs to another database";
    return !database_id || memcmp(header->database_id, database_id, 16) == 0 ? SE_OK : SE_DAMAGED;
}

static se_status read_header(reader *r, se_checkpoint_header *header) {
    const se_checkpoint_source *source = r->source;
    const char *why;
    se_status status = get(r, header, sizeof *header, 0, &why);
    if (status == SE_OK)
        status = check_header(header, source->version, source->database_id, &why);
    if (status == SE_OK) {
        r->seed = se_checkpoint_seed(header->database_id, header->version);
        return SE_OK;
    }
    if (status != SE_DAMAGED)
        return status;
    (void)damaged(r, 0, why);
    if (!source->salvage || !source->database_id)
        return SE_DAMAGED;
    r->seed = se_checkpoint_seed(source->database_id, source->version);
    return SE_OK;
}

static bool is_block(const reader *r, const se_checkpoint_block *block, uint64_t offset) {
    return block->magic == SE_CHECKPOINT_BLOCK && block->offset == offset &&
           block->header_crc ==
               se_crc32c(r->seed, block, offsetof(se_checkpoint_block, header_crc));
}

/* Looks for the next block header behind a bad one: only one that names its own place counts. */
static se_status scan(reader *r, se_checkpoint_block *block) {
    const uint64_t step = SCAN_SIZE - sizeof *block;
    uint64_t at = r->at + 8;
    if (r->room < SCAN_SIZE) {
        free(r->bytes);
        r->bytes = malloc(SCAN_SIZE);
        r->room = r->bytes ? SCAN_SIZE : 0;
        if (!r->bytes)
            return SE_IO;
    }
    for (; at + sizeof *block <= r->size; at += step & ~UINT64_C(7)) {
        uint64_t size = r->size - at < SCAN_SIZE ? r->size - at : SCAN_SIZE;
        const char *why;
        if (get(r, r->bytes, size, at, &why) != SE_OK)
            continue;
        for (uint64_t place = 0; place + sizeof *block <= size; place += 8) {
            memcpy(block, r->bytes + place, sizeof *block);
            if (is_block(r, block, at + place)) {
                r->at = at + place;
                return SE_OK;
            }
        }
    }
    return SE_NOT_FOUND;
}

/* The block header at r->at, or in salvage the next sound one. SE_NOT_FOUND: none is left. */
static se_status next_block(reader *r, se_checkpoint_block *block) {
    const char *why;
    if (r->at == r->size) {
        SE_TRY(lose(r, r->at, "the file ends without its end block", 1));
        return SE_NOT_FOUND;
    }
    se_status status = get(r, block, sizeof *block, r->at, &why);
    if (status != SE_OK && status != SE_DAMAGED)
        return status;
    if (status == SE_OK && is_block(r, block, r->at) && block->number == r->number)
        return SE_OK;
    uint64_t before = r->at;
    uint64_t expected = r->number;
    SE_TRY(lose(r, before, status == SE_OK ? "no sound block header" : why, 0));
    status = scan(r, block);
    uint64_t lost = status == SE_OK && block->number > expected ? block->number - expected : 1;
    r->report->lost_blocks += lost;
    if (status == SE_OK)
        r->number = block->number;
    return status;
}

static se_status read_payload(reader *r, const se_checkpoint_block *block, const char **why) {
    if (block->size > r->room) {
        free(r->bytes);
        r->room = 0;
        r->bytes = malloc(block->size);
        if (!r->bytes) {
            errno = ENOMEM;
            return SE_IO;
        }
        r->room = block->size;
    }
    SE_TRY(get(r, r->bytes, block->size, r->at + sizeof *block, why));
    *why = "a block's checksum is wrong";
    return se_crc32c(0, r->bytes, block->size) == block->crc ? SE_OK : SE_DAMAGED;
}

static se_status run_parser(reader *r, const se_checkpoint_block *block, progress_state *state,
                            const se_checkpoint_sink *sink, const char **why, uint64_t *at) {
    parser p = {.bytes = r->bytes, .size = block->size, .version = r->source->version,
                .state = state, .sink = sink};
    se_status status = parse_block(&p, block->entries);
    *why = p.why;
    *at = r->at + sizeof *block + p.at;
    return status;
}

static se_status take_keys(reader *r, const se_checkpoint_block *block) {
    const char *why = "";
    uint64_t at = r->at;
    se_status status = read_payload(r, block, &why);
    if (status == SE_OK && r->source->salvage) {
        r->trial = r->state;
        status = run_parser(r, block, &r->trial, NULL, &why, &at);
    }
    if (status == SE_OK)
        status = run_parser(r, block, &r->state, r->sink, &why, &at);
    return status == SE_DAMAGED ? lose(r, at, why, 1) : status;
}

static bool same_totals(const se_checkpoint_end *left, const se_checkpoint_end *right) {
    return left->keys == right->keys && left->records == right->records &&
           left->bytes == right->bytes && left->timestamp_us == right->timestamp_us;
}

static se_status take_end(reader *r, const se_checkpoint_block *block) {
    const char *why = "";
    se_checkpoint_end end;
    se_status status = read_payload(r, block, &why);
    if (status == SE_DAMAGED)
        return lose(r, r->at, why, 1);
    SE_TRY(status);
    memcpy(&end, r->bytes, sizeof end);
    if (r->state.more)
        return lose(r, r->at, "the last key's older records are missing", 0);
    if (end.removed_horizon > r->source->version)
        return lose(r, r->at, "the horizon of removed keys is above the version", 0);
    if (r->report->lost_blocks == 0 && !same_totals(&end, &r->state.totals))
        return lose(r, r->at, "the totals are not those of the blocks", 0);
    if (r->at + sizeof *block + block->size != r->size)
        return lose(r, r->at + sizeof *block + block->size, "bytes behind the end block", 0);
    if (end.timestamp_us > r->state.totals.timestamp_us)
        r->state.totals.timestamp_us = end.timestamp_us;
    r->state.totals.removed_horizon = end.removed_horizon;
    return SE_OK;
}

/* Sizes and kind; the header's checksum is right. */
static se_status take_block(reader *r, const se_checkpoint_block *block) {
    bool end = block->kind == SE_CHECKPOINT_END;
    const char *why = NULL;
    if (!end && block->kind != SE_CHECKPOINT_KEYS)
        why = "a block of unknown kind";
    else if (block->size % 8 || (end && block->size != sizeof(se_checkpoint_end)) ||
             end != (block->entries == 0))
        why = "a block of an impossible size";
    else if (block->size > r->size - r->at - sizeof *block)
        why = "a block is cut off by the end of the file";
    se_status status = why   ? lose(r, r->at, why, 1)
                       : end ? take_end(r, block)
                             : take_keys(r, block);
    r->number = block->number + 1;
    r->at += sizeof *block + block->size;
    if (r->at > r->size)
        r->at = r->size;
    return status;
}

static se_status read_blocks(reader *r) {
    se_checkpoint_block block;
    block.kind = SE_CHECKPOINT_KEYS;
    r->at = sizeof(se_checkpoint_header);
    if (r->at > r->size)
        r->at = r->size;
    while (block.kind != SE_CHECKPOINT_END) {
        se_status status = next_block(r, &block);
        if (status == SE_NOT_FOUND)
            break;
        SE_TRY(status);
        SE_TRY(take_block(r, &block));
        if (r->source->progress && !r->source->progress(r->source->context, r->at, r->size))
            return SE_CLOSED;
    }
    return SE_OK;
}

static void tell(reader *r) {
    se_checkpoint *report = r->report;
    const se_checkpoint_end *totals = &r->state.totals;
    report->timestamp_us = totals->timestamp_us;
    report->keys = totals->keys;
    report->records = totals->records;
    /* What was lost must not be taken for what never was. */
    report->removed_horizon =
        report->damage.file[0] ? r->source->version : totals->removed_horizon;
}

static se_status read_open(reader *r) {
    se_checkpoint_header header;
    SE_TRY(se_io_size(r->fd, &r->size));
    r->report->size = r->size;
    SE_TRY(read_header(r, &header));
    SE_TRY(read_blocks(r));
    tell(r);
    /* Not one block was found: salvage of such a file would be an empty database. */
    return r->number == 0 ? SE_DAMAGED : SE_OK;
}

se_status se_checkpoint_read(const se_checkpoint_source *source, const se_checkpoint_sink *sink,
                             se_checkpoint *report) {
    memset(report, 0, sizeof *report);
    report->version = source->version;
    reader *r = calloc(1, sizeof *r);
    if (!r) {
        errno = ENOMEM;
        return SE_IO;
    }
    r->source = source;
    r->sink = sink;
    r->report = report;
    se_status status = se_io_open(source->folder_fd, source->name, false, &r->fd);
    if (status == SE_OK) {
        status = read_open(r);
        int error = errno;
        se_io_close(r->fd);
        errno = error;
    }
    free(r->bytes);
    free(r);
    return status;
}

se_status se_checkpoint_read_header(int folder_fd, uint64_t version, se_checkpoint_header *header,
                                    se_damage *damage) {
    char name[SE_NAME_MAX];
    int fd;
    size_t got;
    const char *why = "the file ends within its header";
    memset(damage, 0, sizeof *damage);
    se_checkpoint_name(version, name);
    SE_TRY(se_io_open(folder_fd, name, false, &fd));
    se_status status = se_io_read(fd, header, sizeof *header, 0, &got);
    if (status == SE_OK)
        status = got < sizeof *header ? SE_DAMAGED : check_header(header, version, NULL, &why);
    se_io_close(fd);
    return status == SE_DAMAGED ? se_checkpoint_damaged(damage, name, 0, why) : status;
}

se_status se_checkpoint_check(int folder_fd, uint64_t version, se_progress_call progress,
                              void *context, se_checkpoint *report) {
    char name[SE_NAME_MAX];
    se_checkpoint_name(version, name);
    se_checkpoint_source source = {.folder_fd = folder_fd, .name = name, .version = version,
                                   .progress = progress, .context = context};
    return se_checkpoint_read(&source, NULL, report);
}
