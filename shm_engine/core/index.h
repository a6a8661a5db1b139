/* index.h - the ordered index: an adaptive radix tree of leaves.
 *
 *     root -> node(prefix "…run id…|01|user:") -> '1' -> leaf "…user:1\0"
 *                                                '2' -> leaf "…user:2\0"
 *
 * Why:        keys come out in byte order, lookups cost the key's length and not the number of
 *             keys, and a change touches one node. Nodes have 4, 16, 48 or 256 places and hold
 *             their whole compressed prefix. A child is added in place with one release store; any
 *             other change replaces the node by a copy and swings the parent's pointer.
 * Used by:    find, seek, next: any pinned thread. insert, remove: the holder, inside a change.
 * Shared:     root, nodes, leaves -> FORMAT.md, "Index"
 * Invariants: I1 no key is a prefix of another (keys.py ends each with a terminator); I2 a reader
 *             in a replaced node still finds every leaf that its snapshot may see: what is missing
 *             there is newer; I3 a child's pointer is 0, or a node, or a leaf | 1.
 * Ordering:   count and child pointers are released after what they publish; readers acquire them.
 * Source:     Leis, Kemper, Neumann: The Adaptive Radix Tree (ICDE 2013).
 */
#ifndef SE_INDEX_H
#define SE_INDEX_H

#include "record.h"

/* *leaf: its offset, 0 if there is none. */
se_status se_index_find(const se_store *store, const uint8_t *key, uint32_t key_size,
                        uint64_t *leaf);

/* Where the last look-up of a run of them ended; zero at first. */
typedef struct {
    const uint8_t *key; /* it stays where it is until the next look-up */
    uint64_t node;      /* the last node on its way, 0: none */
    uint32_t position;  /* how many bytes of the key are above it */
} se_index_near;

/* The same for keys of which many begin like the one before: such a one starts at the node where that
 * one ended. All within one pin: the node may have been replaced meanwhile, so a leaf that was added
 * after the pin may be missed. */
se_status se_index_find_near(const se_store *store, const uint8_t *key, uint32_t key_size,
                             se_index_near *near, uint64_t *leaf);
/* Links a leaf under a key that se_index_find has not found. SE_INVALID: breaks I1. */
se_status se_index_insert(se_store *store, const uint8_t *key, uint32_t key_size, uint64_t leaf);
/* Unlinks and retires the leaf; a reader on it sees SE_LEAF_REMOVED. */
se_status se_index_remove(se_store *store, const uint8_t *key, uint32_t key_size);

typedef struct {
    uint64_t node;
    uint32_t next;
} se_iter_frame;

/* An ordered walk within one pin. About 24 KiB: keep it off small stacks. */
typedef struct {
    const se_store *store;
    uint64_t pending;
    const uint8_t *bound; /* the leaf's key before, at first the caller's */
    uint32_t bound_size;
    int least_order; /* of the next key to the bound */
    uint32_t depth;
    se_iter_frame stack[SE_KEY_MAX];
} se_iter;

/* Stands in front of the first key >= the given one, which stays as it is until that is met. */
se_status se_iter_seek(se_iter *iter, const se_store *store, const uint8_t *key,
                       uint32_t key_size);
/* *leaf: the next one in byte order, 0 at the end. */
se_status se_iter_next(se_iter *iter, uint64_t *leaf);

#endif
