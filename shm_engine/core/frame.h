/* frame.h - one commit in the log: the same bytes in the ring and in the file.
 *
 *     | size | crc32c | version | timestamp | unsynced | origin | operation | operation .. | 0..7 |
 *
 * Why:        the holder writes a frame into the ring inside the commit, as small as it can be;
 *             the log writer fills in `unsynced` and the checksum, and writes the very bytes.
 * Used by:    whoever reads a log; the log writer. The holder writes frames by walring.h.
 * Shared:     FORMAT.md, "Frame".
 * Errors:     bytes of a file are not trusted: a frame is used only after se_frame_check.
 */
#ifndef SE_FRAME_H
#define SE_FRAME_H

#include <stdbool.h>

#include "event.h"
#include "layout.h"
#include "status.h"

#define SE_FRAME_PUT 1u
#define SE_FRAME_DELETE 2u     /* a tombstone */
#define SE_FRAME_PUT_EXPIRES 3u /* 8 bytes expires_us stand before the key */
#define SE_FRAME_MAX (SE_REQUEST_MAX + SE_PAGE)
#define SE_FRAME_SKIP UINT32_MAX /* ring alone, as size: the next frame is at the ring's start */

typedef struct {
    uint32_t size; /* of the whole frame, a multiple of 8 */
    uint32_t crc;  /* crc32c of `size` and of all bytes from `version` on */
    se_word version;
    uint64_t timestamp_us;
    uint32_t unsynced; /* version - the newest version known to be synced when this was written */
    uint32_t origin;   /* slot << 20 | the low 20 bits of request_seq; upkeep: UINT32_MAX */
} se_frame;
_Static_assert(sizeof(se_frame) == 32, "frame");

typedef struct {
    uint8_t kind;
    uint8_t zero;
    uint16_t key_size;
    uint32_t value_size;
} se_frame_op;
_Static_assert(sizeof(se_frame_op) == 8, "frame operation");

/* The most bytes of a frame for a write set of so many bytes with so many events in it. */
static inline uint64_t se_frame_bound(uint64_t size, uint64_t append_count) {
    return sizeof(se_frame) + size + 8 + append_count * SE_EVENT_FRAME_MORE +
           (append_count ? SE_EVENT_FRAME_MORE : 0);
}

/* One operation as it is read back; pointers into the frame. */
typedef struct {
    uint32_t kind;
    uint32_t key_size;
    uint32_t value_size;
    uint64_t expires_us;
    const uint8_t *key;
    const uint8_t *value;
} se_frame_item;

/* The checksum that belongs into frame->crc; frame->size is already checked against the room. */
uint32_t se_frame_crc(const se_frame *frame);
/* Whether a whole and sound frame of at most `room` bytes begins here: size, checksum, version > 0,
 * and every operation within it and of a legal shape. */
bool se_frame_check(const void *bytes, uint64_t room);
/* The operation at *at (first: sizeof(se_frame)); moves *at past it. False: there is none left. The
 * frame has passed se_frame_check. */
bool se_frame_next(const se_frame *frame, uint64_t *at, se_frame_item *item);

#endif
