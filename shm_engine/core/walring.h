/* walring.h - the log's ring in shared memory.
 *
 *     position: 0 ............ consumed ===== frames ===== tail ............ consumed + size
 *                              ^ the log writer frees      ^ the holder appends
 *
 * Why:        a commit is in the log at the moment it happens, whoever carries it out and whoever
 *             dies after; the files are the log writer's alone, and it comes when it can. A ring
 *             whose writer keeps up is used from its start again after wal_ring_soft bytes, so that
 *             it stays in the cache and takes no more memory than that.
 * Used by:    begin, add, end: the holder inside a change. back, wait: any client, outside.
 *             peek: the log writer.
 * Shared:     wal_tail, wal_backed, wal_consumed, the ring -> FORMAT.md, "WAL ring".
 * Invariants: G1 a frame lies before wal_tail if and only if its commit happened or is under way;
 *             G2 nothing between consumed and tail is written over; G3 every page that is written
 *             was backed before.
 * Ordering:   commit_version is released after wal_tail; the log writer acquires it first, and takes
 *             no frame above it: none of these can be rolled back. wal_consumed is released after
 *             the log writer's last look at the bytes.
 * Crash:      wal_tail moves through the undo log; bytes behind it mean nothing.
 */
#ifndef SE_WALRING_H
#define SE_WALRING_H

#include "frame.h"
#include "store.h"

static inline bool se_ring_exists(const se_store *store) {
    return store->header->wal_ring_size != 0;
}

/* Room for a frame of at most so many bytes. SE_NEED_LOG: there is none now; SE_READ_ONLY. Without a
 * log nothing happens, here and in the next two. */
se_status se_ring_begin(se_store *store, uint64_t bound);
/* An operation of the frame that was begun. */
void se_ring_add(se_store *store, uint32_t kind, const uint8_t *key, uint32_t key_size,
                 const void *value, uint32_t value_size, uint64_t expires_us);
/* Closes the frame and moves the tail, if anything was added. */
void se_ring_end(se_store *store, uint64_t version, uint64_t timestamp_us, uint32_t origin);

/* Makes what SE_NEED_LOG lacked for a frame of so many bytes possible: backs pages (SE_OK), or waits
 * for the log writer (SE_OK: it has moved; SE_BUSY: not within the bound). SE_READ_ONLY, SE_FULL. */
se_status se_ring_make_room(se_store *store, uint64_t bound, uint64_t bound_ns);
/* The first frame at or behind *position, which is moved to it, if it belongs to a commit up to
 * `newest`; NULL: there is none. SE_CORRUPT: bytes that cannot be. */
se_status se_ring_peek(const se_store *store, uint64_t *position, uint64_t newest,
                       se_frame **frame);

#endif
