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

static const struct {
    uint32_t capacity;
    uint32_t key_words;
} se_node_widths[5] = {{0, 0}, {4, 1}, {16, 2}, {48, 32}, {256, 0}};

uint32_t se_node_capacity(uint32_t type);
bool se_node_full(const se_node_view *view);
uint64_t se_node_block(const se_node_view *view);
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

static inline uint64_t se_node_size(uint32_t type, uint32_t prefix_size) {
    return sizeof(se_node) + ((prefix_size + 7u) & ~7u) +
           8u * (se_node_widths[type].key_words + (uint64_t)se_node_widths[type].capacity);
}

static inline void se_node_find_parts(se_node_view *view) {
    view->keys = (se_word *)(view->node->prefix + ((view->prefix_size + 7u) & ~7u));
    view->children = view->keys + se_node_widths[view->type].key_words;
}

static inline se_status se_node_open(const se_store *store, uint64_t offset, se_node_view *view) {
    view->node = se_at(store, offset, sizeof(se_node));
    if (SE_UNLIKELY(!view->node))
        return SE_CORRUPT;
    uint64_t meta = se_load_relaxed(&view->node->meta);
    view->offset = offset;
    view->type = (uint32_t)(meta & 0xff);
    view->prefix_size = (uint32_t)(meta >> 8);
    if (SE_UNLIKELY(view->type - 1u > 3u || view->prefix_size > SE_KEY_MAX ||
                    offset + se_node_size(view->type, view->prefix_size) > store->data_size))
        return SE_CORRUPT;
    se_node_find_parts(view);
    return SE_OK;
}

static inline uint32_t se_node_count(const se_node_view *view) {
    uint64_t count = se_load_acquire(&view->node->count);
    uint32_t capacity = se_node_widths[view->type].capacity;
    return count > capacity ? capacity : (uint32_t)count;
}

/* The link under this byte, NULL if there is none. */
static inline se_word *se_node_find(const se_node_view *view, uint8_t byte) {
    const uint64_t low = UINT64_C(0x0101010101010101);
    const uint64_t high = UINT64_C(0x8080808080808080);
    if (view->type == SE_NODE256)
        return se_load_relaxed(&view->children[byte]) ? &view->children[byte] : NULL;
    if (view->type == SE_NODE48) {
        uint32_t place = (uint8_t)(se_load_acquire(&view->keys[byte / 8]) >> (byte % 8 * 8));
        return place == 0 || place > 48 ? NULL : &view->children[place - 1];
    }
    uint32_t count = se_node_count(view);
    for (uint32_t word = 0; word * 8 < count; word++) {
        uint64_t differs = se_load_relaxed(&view->keys[word]) ^ (low * byte);
        uint64_t equal = (differs - low) & ~differs & high;
        if (equal) { /* the lowest mark is exact */
            uint32_t place = word * 8 + (uint32_t)__builtin_ctzll(equal) / 8;
            if (place < count)
                return &view->children[place];
        }
    }
    return NULL;
}

#endif
