/* frame.c - reading frames: checksum, shape, operations. */
#include "frame.h"

#include "crc32c.h"
#include "msgpack.h"

#define KEY_MIN (SE_RUN_ID_SIZE + 2) /* run id, tag and the closing 0 */

static uint32_t crc_of(const uint8_t *bytes, uint32_t size) {
    uint32_t crc = se_crc32c(0, bytes, offsetof(se_frame, crc));
    return se_crc32c(crc, bytes + offsetof(se_frame, version), size - offsetof(se_frame, version));
}

uint32_t se_frame_crc(const se_frame *frame) {
    return crc_of((const uint8_t *)frame, frame->size);
}

/* The operation at `at`, before `end`; returns its size, or 0 if none can be there. */
static uint64_t read_op(const uint8_t *bytes, uint64_t at, uint64_t end, se_frame_item *item) {
    se_frame_op op;
    if (end - at < sizeof op)
        return 0;
    memcpy(&op, bytes + at, sizeof op);
    bool deletes = op.kind == SE_FRAME_DELETE;
    bool expires = op.kind == SE_FRAME_PUT_EXPIRES;
    if ((op.kind != SE_FRAME_PUT && !deletes && !expires) || op.zero != 0 ||
        op.key_size < KEY_MIN || op.key_size > SE_KEY_MAX || deletes != (op.value_size == 0) ||
        op.value_size > SE_VALUE_ENCODED_MAX)
        return 0;
    uint64_t head = sizeof op + (expires ? sizeof item->expires_us : 0);
    uint64_t size = head + op.key_size + op.value_size;
    if (size > end - at)
        return 0;
    item->kind = op.kind;
    item->key_size = op.key_size;
    item->value_size = op.value_size;
    item->expires_us = 0;
    if (expires)
        memcpy(&item->expires_us, bytes + at + sizeof op, sizeof item->expires_us);
    item->key = bytes + at + head;
    item->value = item->key + op.key_size;
    return size;
}

/* Every operation is legal and what is left behind the last one is padding. */
static bool is_in_shape(const uint8_t *bytes, uint64_t size) {
    uint64_t at = sizeof(se_frame);
    se_frame_item item;
    while (size - at >= 8) {
        uint64_t step = read_op(bytes, at, size, &item);
        if (step == 0)
            return false;
        at += step;
    }
    for (; at < size; at++)
        if (bytes[at] != 0)
            return false;
    return true;
}

bool se_frame_check(const void *bytes, uint64_t room) {
    uint32_t size;
    uint32_t crc;
    uint64_t version;
    const uint8_t *at = bytes;
    if (room < sizeof(se_frame))
        return false;
    memcpy(&size, at + offsetof(se_frame, size), sizeof size);
    memcpy(&crc, at + offsetof(se_frame, crc), sizeof crc);
    memcpy(&version, at + offsetof(se_frame, version), sizeof version);
    if (size < sizeof(se_frame) || size % 8 != 0 || size > SE_FRAME_MAX || size > room ||
        version == 0)
        return false;
    /* The shape first: it costs less than the checksum where the bytes are anything. */
    return is_in_shape(at, size) && crc_of(at, size) == crc;
}

bool se_frame_next(const se_frame *frame, uint64_t *at, se_frame_item *item) {
    SE_ASSERT(*at >= sizeof(se_frame) && *at <= frame->size);
    if (frame->size - *at < 8)
        return false;
    uint64_t size = read_op((const uint8_t *)frame, *at, frame->size, item);
    SE_ASSERT(size > 0);
    *at += size;
    return true;
}
