/* node.h - the inner nodes of the index, in four widths.
 *
 *     meta | count | prefix, padded to 8 | keys or index | children
 *     4:   1 word of key bytes, 4 children      16:  2 words of key bytes, 16 children
 *     48:  256 bytes (place + 1 per key byte), 48 children      256: 256 children
 *
 * Why:        key bytes are read as whole words, so that a byte can be added under a reader without
 *             two sizes of access to one word. Nodes of 4 and 16 are not sorted: adding is
 *             appending, and a walk looks for the next larger byte.
 * Used by:    index.c only.
 */
#ifndef SE_NODE_H
#define SE_NODE_H

#include "arena.h"

#define SE_CHILD_LEAF UINT64_C(1)

typedef struct {
    se_node *node;
    uint64_t offset;
    uint32_t type;
    uint32_t prefix_size;
    se_word *keys;
    se_word *children;
} se_node_view;

uint32_t se_node_capacity(uint32_t type);
se_status se_node_open(const se_store *store, uint64_t offset, se_node_view *view);
uint32_t se_node_count(const se_node_view *view);
bool se_node_full(const se_node_view *view);
uint64_t se_node_block(const se_node_view *view);
/* The link under this byte, NULL if there is none. */
se_word *se_node_find(const se_node_view *view, uint8_t byte);
/* The link with the smallest byte >= from, NULL if there is none. */
se_word *se_node_next(const se_node_view *view, uint32_t from, uint32_t *byte);
/* A new node that no reader can reach yet. */
se_status se_node_make(se_store *store, uint32_t type, const uint8_t *prefix,
                       uint32_t prefix_size, uint64_t *offset, se_node_view *view);
/* A copy as another type, with another prefix, without one byte (-1: with all). */
se_status se_node_copy(se_store *store, const se_node_view *from, uint32_t type,
                       const uint8_t *prefix, uint32_t prefix_size, int without, uint64_t *offset,
                       se_node_view *view);
/* Adds a child: to a private node; to a node that readers see, inside a change. */
void se_node_fill(se_node_view *view, uint8_t byte, uint64_t child);
void se_node_add(se_store *store, se_node_view *view, uint8_t byte, uint64_t child);

#endif
