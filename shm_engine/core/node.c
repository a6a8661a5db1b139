/* node.c - the four widths of inner nodes. */
#include "node.h"

#include "undo.h"

#define BYTES_LOW UINT64_C(0x0101010101010101)
#define BYTES_HIGH UINT64_C(0x8080808080808080)

static const struct {
    uint32_t capacity;
    uint32_t key_words;
} widths[5] = {{0, 0}, {4, 1}, {16, 2}, {48, 32}, {256, 0}};

uint32_t se_node_capacity(uint32_t type) { return widths[type].capacity; }

static uint64_t node_size(uint32_t type, uint32_t prefix_size) {
    return sizeof(se_node) + ((prefix_size + 7u) & ~7u) +
           8u * (widths[type].key_words + (uint64_t)widths[type].capacity);
}

static void find_parts(se_node_view *view) {
    view->keys = (se_word *)(view->node->prefix + ((view->prefix_size + 7u) & ~7u));
    view->children = view->keys + widths[view->type].key_words;
}

se_status se_node_open(const se_store *store, uint64_t offset, se_node_view *view) {
    view->node = se_at(store, offset, sizeof(se_node));
    if (SE_UNLIKELY(!view->node))
        return SE_CORRUPT;
    uint64_t meta = se_load_relaxed(&view->node->meta);
    view->offset = offset;
    view->type = (uint32_t)(meta & 0xff);
    view->prefix_size = (uint32_t)(meta >> 8);
    if (SE_UNLIKELY(view->type - 1u > 3u || view->prefix_size > SE_KEY_MAX ||
                    offset + node_size(view->type, view->prefix_size) > store->data_size))
        return SE_CORRUPT;
    find_parts(view);
    return SE_OK;
}

uint32_t se_node_count(const se_node_view *view) {
    uint64_t count = se_load_acquire(&view->node->count);
    return count > widths[view->type].capacity ? widths[view->type].capacity : (uint32_t)count;
}

bool se_node_full(const se_node_view *view) {
    return se_node_count(view) == widths[view->type].capacity;
}

uint64_t se_node_block(const se_node_view *view) {
    return se_block(view->offset, node_size(view->type, view->prefix_size));
}

static uint8_t key_byte(const se_node_view *view, uint32_t place) {
    return (uint8_t)(se_load_relaxed(&view->keys[place / 8]) >> (place % 8 * 8));
}

static uint64_t with_byte(uint64_t word, uint32_t place, uint8_t byte) {
    uint32_t shift = place % 8 * 8;
    return (word & ~(UINT64_C(0xff) << shift)) | (uint64_t)byte << shift;
}

se_word *se_node_find(const se_node_view *view, uint8_t byte) {
    if (view->type == SE_NODE256)
        return se_load_relaxed(&view->children[byte]) ? &view->children[byte] : NULL;
    if (view->type == SE_NODE48) {
        uint32_t place =
            (uint8_t)(se_load_acquire(&view->keys[byte / 8]) >> (byte % 8 * 8));
        return place == 0 || place > 48 ? NULL : &view->children[place - 1];
    }
    uint32_t count = se_node_count(view);
    for (uint32_t word = 0; word * 8 < count; word++) {
        uint64_t differs = se_load_relaxed(&view->keys[word]) ^ (BYTES_LOW * byte);
        uint64_t equal = (differs - BYTES_LOW) & ~differs & BYTES_HIGH;
        if (equal) { /* the lowest mark is exact */
            uint32_t place = word * 8 + (uint32_t)__builtin_ctzll(equal) / 8;
            if (place < count)
                return &view->children[place];
        }
    }
    return NULL;
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
    uint64_t size = node_size(type, prefix_size);
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
    find_parts(view);
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
