/* arena.h - blocks of memory in the data segment.
 *
 * Why:        a bump pointer over memory that was backed beforehand, and one free list per size
 *             class; freed blocks are used first. Classes go in steps of 16 bytes to 1 KiB, then
 *             four to a doubling, so at most a fifth of a large block is wasted.
 * Used by:    se_arena_take, se_arena_give: the holder. se_arena_grow, se_arena_map_ahead: anyone,
 *             outside the critical section.
 * Invariants: A1 a block is on one free list, or in the retire ring, or noted as taken, or reachable
 *             (tests/core/check.c counts them); A2 nothing lies beyond arena_allocated.
 * Crash:      the allocator's words are never wound back; a block noted as taken that is still at
 *             the head of its list, or above the bump pointer, was not taken.
 */
#ifndef SE_ARENA_H
#define SE_ARENA_H

#include "store.h"

#define SE_GROW_AHEAD (UINT64_C(64) << 10)
#define SE_BLOCK_CLASS_SHIFT 57
#define SE_BLOCK_CHAIN (UINT64_C(1) << 56)
#define SE_BLOCK_FREEING (UINT64_C(1) << 55)
#define SE_BLOCK_OFFSET_MASK (SE_BLOCK_FREEING - 1)

uint32_t se_class_of(uint64_t size);
uint64_t se_class_size(uint32_t size_class);
/* The largest class whose blocks fit into so many bytes, which are at least 16. */
uint32_t se_class_within(uint64_t size);

static inline uint64_t se_block(uint64_t offset, uint64_t size) {
    return (uint64_t)se_class_of(size) << SE_BLOCK_CLASS_SHIFT | offset;
}

/* Smaller blocks hold no record: not even a deletion can use them. */
#define SE_SCRAP_CLASSES 2u
_Static_assert(sizeof(se_record) > SE_SCRAP_CLASSES * 16, "a tombstone is no scrap");

static inline uint64_t se_scrap_size(uint32_t size_class) {
    return size_class < SE_SCRAP_CLASSES ? (size_class + 1) * UINT64_C(16) : 0;
}

typedef struct {
    uint64_t free_size;
    uint64_t scraps_size;
} se_free_count;

/* SE_NEED_SPACE: nothing that fits; the caller rolls back, grows the arena and tries again. */
se_status se_arena_take(se_store *store, uint64_t size, uint64_t *offset);
/* Cuts larger free blocks into blocks of this size, about as many as wanted; a change of its own.
 * SE_FULL: no larger block is free. */
se_status se_arena_split(se_store *store, uint64_t size, uint64_t wanted);
/* Puts a block on its free list; no reader may see it any more. Idempotent at the list's head. */
se_status se_arena_give(se_store *store, uint64_t block);
bool se_arena_was_taken(const se_store *store, uint64_t block);
/* Backs at least so many more bytes with memory; SE_FULL: map_size or shared memory is used up. */
se_status se_arena_grow(se_store *store, uint64_t need);
/* Keeps pages mapped a little ahead of the bump pointer, so that no fault comes under the lock. */
void se_arena_map_ahead(se_store *store);
/* Bytes in blocks that are in use or retired. */
uint64_t se_arena_used(const se_store *store);
/* Counts arena_free and arena_scraps anew; after a death. */
se_status se_arena_recount(se_store *store);
/* Adds the blocks of one list: of this class, or of block words (NULL). */
se_status se_arena_count(const se_store *store, uint64_t block, const uint32_t *size_class,
                         se_free_count *count);

#endif
