/* node.c - the four widths of inner nodes. */
#include "node.h"

#include "undo.h"

uint32_t se_node_capacity(uint32_t type) { return se_node_widths[type].capacity; }

bool se_node_full(const se_node_view *view) {
    return se_node_count(view) == se_node_widths[view->type].capacity;
}

uint64_t se_node_block(const se_node_view *view) {
    return se_block(view->offset, se_node_size(view->type, view->prefix_size));
}

static uint8_t key_byte(const se_node_view *view, uint32_t place) {
    return (uint8_t)(se_load_relaxed(&view->keys[place / 8]) >> (place % 8 * 8));
}

static uint64_t with_byte(uint64_t word, uint32_t place, uint8_t byte) {
    uint32_t shift = place % 8 * 8;
    return (word & ~(UINT64_C(0xff) << shift)) | (uint64_t)byte << shift;
}

static se_word *next_unsorted(const se_node_view *view, uint32_t from, uint32_t *byte) {
    uint32_t count = se_node_count(view);
    uint32_t best = 256;
    se_word *link = NULL;
    for (uint32_t place = 0; place < count; place++) {
        uint32_t candidate = key_byte(view, place);
        if (candidate >= from && candidate < best) {
            best = candidate;
            link = &view->children[place];
        }
    }
    *byte = best;
    return link;
}

se_word *se_node_next(const se_node_view *view, uint32_t from, uint32_t *byte) {
    if (view->type <= SE_NODE16)
        return next_unsorted(view, from, byte);
    for (uint32_t candidate = from; candidate < 256; candidate++) {
        if (view->type == SE_NODE48 && candidate % 8 == 0 &&
            se_load_relaxed(&view->keys[candidate / 8]) == 0) {
            candidate += 7;
            continue;
        }
        se_word *link = se_node_find(view, (uint8_t)candidate);
        if (link) {
            *byte = candidate;
            return link;
        }
    }
    return NULL;
}

se_status se_node_make(se_store *store, uint32_t type, const uint8_t *prefix,
                       uint32_t prefix_size, uint64_t *offset, se_node_view *view) {
    uint64_t size = se_node_size(type, prefix_size);
    SE_TRY(se_arena_take(store, size, offset));
    view->node = se_at(store, *offset, size);
    if (!view->node)
        return SE_CORRUPT;
    SE_STORE_POINT();
    memset((void *)view->node, 0, size);
    se_store_relaxed(&view->node->meta, type | (uint64_t)prefix_size << 8);
    se_copy_private(view->node->prefix, prefix, prefix_size);
    view->offset = *offset;
    view->type = type;
    view->prefix_size = prefix_size;
    se_node_find_parts(view);
    return SE_OK;
}

void se_node_fill(se_node_view *view, uint8_t byte, uint64_t child) {
    uint32_t count = se_node_count(view);
    if (view->type == SE_NODE256) {
        se_store_relaxed(&view->children[byte], child);
    } else {
        uint32_t key_place = view->type == SE_NODE48 ? byte : count;
        uint8_t key = view->type == SE_NODE48 ? (uint8_t)(count + 1) : byte;
        se_word *keys = &view->keys[key_place / 8];
        se_store_relaxed(&view->children[count], child);
        se_store_relaxed(keys, with_byte(se_load_relaxed(keys), key_place, key));
    }
    se_store_relaxed(&view->node->count, count + 1);
}

void se_node_add(se_store *store, se_node_view *view, uint8_t byte, uint64_t child) {
    uint32_t count = se_node_count(view);
    if (view->type == SE_NODE256) {
        se_undo_store(store, &view->children[byte], child);
    } else if (view->type == SE_NODE48) {
        /* The place is free, but a reader that saw a dead commit may look there. */
        se_word *keys = &view->keys[byte / 8];
        se_store_release(&view->children[count], child);
        se_undo_store(store, keys,
                      with_byte(se_load_relaxed(keys), byte, (uint8_t)(count + 1)));
    } else {
        se_word *keys = &view->keys[count / 8];
        se_store_release(&view->children[count], child);
        se_store_relaxed(keys, with_byte(se_load_relaxed(keys), count, byte));
    }
    se_undo_store(store, &view->node->count, count + 1);
}

se_status se_node_copy(se_store *store, const se_node_view *from, uint32_t type,
                       const uint8_t *prefix, uint32_t prefix_size, int without, uint64_t *offset,
                       se_node_view *view) {
    SE_TRY(se_node_make(store, type, prefix, prefix_size, offset, view));
    uint32_t byte = 0;
    for (se_word *link = se_node_next(from, 0, &byte); link;
         link = byte < 255 ? se_node_next(from, byte + 1, &byte) : NULL) {
        if ((int)byte == without)
            continue;
        if (se_node_full(view))
            return SE_CORRUPT; /* more children than its count said */
        se_node_fill(view, (uint8_t)byte, se_load_relaxed(link));
    }
    return SE_OK;
}
