/* fuzz_log.c - bytes of a log file, of any kind, through everything that reads them.
 *
 * The input is a log file without its page of header. It is read as it is, and with the checksum
 * of its first frame made to fit, so that what is behind the checksum is reached as well. Nothing
 * may be read outside of the input (the sanitizers see that), and what is sound has to hold
 * together.
 */
#include "fuzz.h"

#include "../core/harness.h"
#include "frame.h"
#include "logscan.h"

static void walk_frame(const se_frame *frame) {
    uint64_t at = sizeof(se_frame);
    uint64_t bytes = 0;
    se_frame_item item;
    while (se_frame_next(frame, &at, &item)) {
        REQUIRE(item.key >= (const uint8_t *)frame + sizeof(se_frame));
        REQUIRE(item.value + item.value_size <= (const uint8_t *)frame + frame->size);
        REQUIRE((item.kind == SE_FRAME_DELETE) == (item.value_size == 0));
        for (uint32_t index = 0; index < item.key_size; index++)
            bytes += item.key[index];
        for (uint32_t index = 0; index < item.value_size; index++)
            bytes += item.value[index];
    }
    REQUIRE(frame->size - at < 8 && bytes < UINT64_MAX);
}

/* All frames from `at` on, and what is said behind them. */
static void walk_file(se_log_file *file, uint64_t good) {
    const se_frame *frame;
    uint64_t last = good;
    uint64_t at = SE_WAL_FIRST_FRAME;
    while ((frame = se_log_frame(file, at, last)) != NULL) {
        uint64_t version = se_load_relaxed(&frame->version);
        REQUIRE(version > last && frame->size <= file->size - at);
        walk_frame(frame);
        last = version;
        at += frame->size;
    }
    se_log_rest rest;
    se_log_search(file, at, last, &rest);
    REQUIRE(rest.synced == 0 || (rest.synced > last && rest.begun && rest.synced_at >= at));
    REQUIRE(rest.dirty_end >= at || at > file->size);
    se_log_search(file, 0, good, &rest);
    REQUIRE(rest.synced == 0 || rest.synced > good);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    se_log_file file = {.first_version = 1, .size = SE_WAL_FIRST_FRAME + size};
    file.bytes = calloc(1, file.size); /* as long as it says, so that one byte more is seen */
    REQUIRE(file.bytes);
    if (size > 0)
        memcpy(file.bytes + SE_WAL_FIRST_FRAME, data, size);
    walk_file(&file, 0);
    walk_file(&file, 40);
    se_wal_header header;
    (void)se_wal_check_header(data, size, 1, &header);
    se_frame *first = (se_frame *)(file.bytes + SE_WAL_FIRST_FRAME);
    if (size >= sizeof(se_frame) && first->size >= sizeof(se_frame) && first->size <= size) {
        first->crc = se_frame_crc(first);
        walk_file(&file, 0);
    }
    free(file.bytes);
    return 0;
}
