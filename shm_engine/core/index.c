/* index.c - the adaptive radix tree: find, insert, remove, walk. */
#include "index.h"

#include "node.h"
#include "retire.h"
#include "undo.h"

static bool leaf_has_key(const se_leaf *leaf, const uint8_t *key, uint32_t key_size) {
    return leaf->key_size == key_size && memcmp(leaf->key, key, key_size) == 0;
}

/* From the node or leaf `at`, above which the key's first `position` bytes are. */
static inline se_status find_from(const se_store *store, uint64_t at, uint32_t position,
                                  const uint8_t *key, uint32_t key_size, se_index_near *near,
                                  uint64_t *leaf) {
    *leaf = 0;
    while (at) {
        if (at & SE_CHILD_LEAF) {
            const se_leaf *candidate = se_leaf_at(store, at & ~SE_CHILD_LEAF);
            if (SE_UNLIKELY(!candidate))
                return SE_CORRUPT;
            if (leaf_has_key(candidate, key, key_size))
                *leaf = at & ~SE_CHILD_LEAF;
            return SE_OK;
        }
        se_node_view view;
        SE_TRY(se_node_open(store, at, &view));
        if (near) {
            near->node = at;
            near->position = position;
        }
        if (key_size - position <= view.prefix_size ||
            memcmp(view.node->prefix, key + position, view.prefix_size) != 0)
            return SE_OK;
        position += view.prefix_size;
        const se_word *child = se_node_find(&view, key[position]);
        if (!child)
            return SE_OK;
        at = se_load_acquire(child);
        position++;
    }
    return SE_OK;
}

se_status se_index_find(const se_store *store, const uint8_t *key, uint32_t key_size,
                        uint64_t *leaf) {
    return find_from(store, se_load_acquire(&store->seq->root), 0, key, key_size, NULL, leaf);
}

se_status se_index_find_near(const se_store *store, const uint8_t *key, uint32_t key_size,
                             se_index_near *near, uint64_t *leaf) {
    uint64_t at = near->node;
    uint32_t position = near->position;
    if (at == 0 || key_size <= position || memcmp(near->key, key, position) != 0) {
        at = se_load_acquire(&store->seq->root);
        position = 0;
    }
    near->key = key;
    return find_from(store, at, position, key, key_size, near, leaf);
}

static uint32_t common_size(const uint8_t *left, const uint8_t *right, uint32_t size) {
    uint32_t index = 0;
    while (index < size && left[index] == right[index])
        index++;
    return index;
}

/* A leaf stands where the new one should: a node over both takes its place. */
static se_status split_leaf(se_store *store, se_word *link, uint64_t old_child, const uint8_t *key,
                            uint32_t key_size, uint32_t position, uint64_t leaf) {
    const se_leaf *old = se_leaf_at(store, old_child & ~SE_CHILD_LEAF);
    if (!old)
        return SE_CORRUPT;
    uint32_t shorter = key_size < old->key_size ? key_size : old->key_size;
    if (shorter <= position)
        return SE_INVALID;
    uint32_t common = common_size(key + position, old->key + position, shorter - position);
    uint32_t branch = position + common;
    if (branch == shorter)
        return SE_INVALID;
    se_node_view view;
    uint64_t offset;
    SE_TRY(se_node_make(store, SE_NODE4, key + position, common, &offset, &view));
    se_node_fill(&view, old->key[branch], old_child);
    se_node_fill(&view, key[branch], leaf | SE_CHILD_LEAF);
    se_undo_store(store, link, offset);
    return SE_OK;
}

/* The key leaves a node within its prefix: a node over the common part takes its place. */
static se_status split_prefix(se_store *store, se_word *link, const se_node_view *old,
                              const uint8_t *key, uint32_t common, uint64_t leaf) {
    se_node_view shorter;
    se_node_view view;
    uint64_t shorter_offset;
    uint64_t offset;
    SE_TRY(se_node_copy(store, old, old->type, old->node->prefix + common + 1,
                        old->prefix_size - common - 1, -1, &shorter_offset, &shorter));
    SE_TRY(se_node_make(store, SE_NODE4, key, common, &offset, &view));
    se_node_fill(&view, old->node->prefix[common], shorter_offset);
    se_node_fill(&view, key[common], leaf | SE_CHILD_LEAF);
    se_undo_store(store, link, offset);
    return se_retire(store, se_node_block(old));
}

static se_status add_child(se_store *store, se_word *link, se_node_view *view, uint8_t byte,
                           uint64_t leaf) {
    if (SE_UNLIKELY(view->type == SE_NODE256 && se_node_full(view)))
        return SE_CORRUPT; /* and yet a byte has no child */
    if (!se_node_full(view)) {
        se_node_add(store, view, byte, leaf | SE_CHILD_LEAF);
        return SE_OK;
    }
    se_node_view wider;
    uint64_t offset;
    SE_TRY(se_node_copy(store, view, view->type + 1, view->node->prefix, view->prefix_size, -1,
                        &offset, &wider));
    se_node_fill(&wider, byte, leaf | SE_CHILD_LEAF);
    se_undo_store(store, link, offset);
    return se_retire(store, se_node_block(view));
}

se_status se_index_insert(se_store *store, const uint8_t *key, uint32_t key_size, uint64_t leaf) {
    se_word *link = &store->seq->root;
    uint32_t position = 0;
    for (;;) {
        uint64_t at = se_load_relaxed(link);
        if (at == 0) {
            se_undo_store(store, link, leaf | SE_CHILD_LEAF);
            return SE_OK;
        }
        if (at & SE_CHILD_LEAF)
            return split_leaf(store, link, at, key, key_size, position, leaf);
        se_node_view view;
        SE_TRY(se_node_open(store, at, &view));
        uint32_t rest = key_size - position;
        uint32_t limit = view.prefix_size < rest ? view.prefix_size : rest;
        uint32_t common = common_size(view.node->prefix, key + position, limit);
        if (common == rest)
            return SE_INVALID;
        if (common < view.prefix_size)
            return split_prefix(store, link, &view, key + position, common, leaf);
        position += common;
        se_word *child = se_node_find(&view, key[position]);
        if (!child)
            return add_child(store, link, &view, key[position], leaf);
        link = child;
        position++;
    }
}

/* One child is left: it takes the node's place, with the node's prefix before its own. */
static se_status merge_last(se_store *store, se_word *link, const se_node_view *view,
                            uint8_t removed) {
    uint32_t byte = 0;
    const se_word *child = se_node_next(view, 0, &byte);
    if (child && byte == removed)
        child = se_node_next(view, byte + 1, &byte);
    if (!child)
        return SE_CORRUPT;
    uint64_t only = se_load_relaxed(child);
    if (!(only & SE_CHILD_LEAF)) {
        uint8_t prefix[SE_KEY_MAX];
        se_node_view below;
        se_node_view merged;
        SE_TRY(se_node_open(store, only, &below));
        uint32_t size = view->prefix_size + 1 + below.prefix_size;
        if (size > SE_KEY_MAX)
            return SE_CORRUPT;
        memcpy(prefix, view->node->prefix, view->prefix_size);
        prefix[view->prefix_size] = (uint8_t)byte;
        memcpy(prefix + view->prefix_size + 1, below.node->prefix, below.prefix_size);
        SE_TRY(se_node_copy(store, &below, below.type, prefix, size, -1, &only, &merged));
        SE_TRY(se_retire(store, se_node_block(&below)));
    }
    se_undo_store(store, link, only);
    return SE_OK;
}

static se_status drop_child(se_store *store, se_word *link, const se_node_view *view,
                            uint8_t byte) {
    uint32_t left = se_node_count(view) - 1;
    if (left == 1) {
        SE_TRY(merge_last(store, link, view, byte));
    } else {
        uint32_t type = view->type;
        if (type > SE_NODE4 && left <= se_node_capacity(type - 1) * 3 / 4)
            type--;
        se_node_view smaller;
        uint64_t offset;
        SE_TRY(se_node_copy(store, view, type, view->node->prefix, view->prefix_size, byte,
                            &offset, &smaller));
        se_undo_store(store, link, offset);
    }
    return se_retire(store, se_node_block(view));
}

se_status se_index_remove(se_store *store, const uint8_t *key, uint32_t key_size) {
    se_word *parent_link = NULL;
    se_word *link = &store->seq->root;
    se_node_view view = {0};
    uint32_t position = 0;
    for (;;) {
        uint64_t at = se_load_relaxed(link);
        if (at == 0)
            return SE_NOT_FOUND;
        if (at & SE_CHILD_LEAF) {
            se_leaf *leaf = se_leaf_at(store, at & ~SE_CHILD_LEAF);
            if (!leaf)
                return SE_CORRUPT;
            if (!leaf_has_key(leaf, key, key_size))
                return SE_NOT_FOUND;
            if (parent_link)
                SE_TRY(drop_child(store, parent_link, &view, key[position - 1]));
            else
                se_undo_store(store, link, 0);
            uint64_t head = se_load_relaxed(&leaf->head);
            const se_record *record = se_record_at(store, head);
            if (!record)
                return SE_CORRUPT;
            se_undo_store(store, &leaf->head, SE_LEAF_REMOVED);
            SE_TRY(se_retire(store, se_record_block(head, record) | SE_BLOCK_CHAIN));
            return se_retire(store, se_block(at & ~SE_CHILD_LEAF, se_leaf_size(key_size)));
        }
        SE_TRY(se_node_open(store, at, &view));
        if (key_size - position <= view.prefix_size ||
            memcmp(view.node->prefix, key + position, view.prefix_size) != 0)
            return SE_NOT_FOUND;
        position += view.prefix_size;
        parent_link = link;
        link = se_node_find(&view, key[position]);
        if (!link)
            return SE_NOT_FOUND;
        position++;
    }
}

static se_status push_frame(se_iter *iter, uint64_t node, uint32_t next) {
    if (iter->depth >= SE_KEY_MAX)
        return SE_CORRUPT;
    iter->stack[iter->depth].node = node;
    iter->stack[iter->depth].next = next;
    iter->depth++;
    return SE_OK;
}

static int compare_keys(const uint8_t *left, uint32_t left_size, const uint8_t *right,
                        uint32_t right_size) {
    uint32_t shorter = left_size < right_size ? left_size : right_size;
    int order = memcmp(left, right, shorter);
    return order ? order : (left_size > right_size) - (left_size < right_size);
}

se_status se_iter_seek(se_iter *iter, const se_store *store, const uint8_t *key,
                       uint32_t key_size) {
    iter->store = store;
    iter->pending = 0;
    iter->bound = key;
    iter->bound_size = key_size;
    iter->least_order = 0;
    iter->depth = 0;
    uint64_t at = se_load_acquire(&store->seq->root);
    uint32_t position = 0;
    while (at) {
        if (at & SE_CHILD_LEAF) {
            const se_leaf *leaf = se_leaf_at(store, at & ~SE_CHILD_LEAF);
            if (!leaf)
                return SE_CORRUPT;
            if (compare_keys(leaf->key, leaf->key_size, key, key_size) >= 0)
                iter->pending = at & ~SE_CHILD_LEAF;
            return SE_OK;
        }
        se_node_view view;
        SE_TRY(se_node_open(store, at, &view));
        uint32_t rest = key_size - position;
        uint32_t limit = view.prefix_size < rest ? view.prefix_size : rest;
        int order = memcmp(view.node->prefix, key + position, limit);
        if (order > 0 || (order == 0 && rest <= view.prefix_size))
            return push_frame(iter, at, 0);
        if (order < 0)
            return SE_OK;
        position += view.prefix_size;
        uint8_t byte = key[position++];
        SE_TRY(push_frame(iter, at, (uint32_t)byte + 1));
        const se_word *child = se_node_find(&view, byte);
        at = child ? se_load_acquire(child) : 0;
    }
    return SE_OK;
}

/* A place that a rolled-back commit had used may have been given to another byte between reading
 * the byte and reading the child. Goes back to the first frame whose link has changed, if any. */
static se_status return_to_change(se_iter *iter, uint64_t child) {
    for (uint32_t depth = iter->depth; depth-- > 0;) {
        const se_iter_frame *frame = &iter->stack[depth];
        se_node_view view;
        SE_TRY(se_node_open(iter->store, frame->node, &view));
        const se_word *link = frame->next ? se_node_find(&view, (uint8_t)(frame->next - 1)) : NULL;
        if (!link || se_load_acquire(link) != child) {
            iter->depth = depth + 1;
            return SE_OK;
        }
        child = frame->node;
    }
    return SE_CORRUPT;
}

/* Keys only rise, from the one that was sought: else damage could make a walk that never ends.
 * *leaf stays 0 if the walk was led astray by a change and goes on. */
static se_status yield_leaf(se_iter *iter, uint64_t offset, uint64_t *leaf) {
    const se_leaf *found = se_leaf_at(iter->store, offset);
    if (SE_UNLIKELY(!found))
        return SE_CORRUPT;
    if (SE_UNLIKELY(compare_keys(found->key, found->key_size, iter->bound, iter->bound_size) <
                    iter->least_order))
        return return_to_change(iter, offset | SE_CHILD_LEAF);
    iter->bound = found->key;
    iter->bound_size = found->key_size;
    iter->least_order = 1;
    *leaf = offset;
    return SE_OK;
}

/* The walk comes to all of them: their cache misses may as well be waited for at once. */
static void fetch_children(const se_iter *iter, uint64_t node) {
    se_node_view view;
    if (se_node_open(iter->store, node, &view) != SE_OK || view.type > SE_NODE16)
        return;
    uint32_t count = se_node_count(&view);
    for (uint32_t place = 0; place < count; place++) {
        uint64_t child = se_load_relaxed(&view.children[place]) & ~SE_CHILD_LEAF;
        if (child < iter->store->data_size)
            __builtin_prefetch(iter->store->data + child);
    }
}

se_status se_iter_next(se_iter *iter, uint64_t *leaf) {
    *leaf = 0;
    if (iter->pending) {
        uint64_t pending = iter->pending;
        iter->pending = 0;
        return yield_leaf(iter, pending, leaf);
    }
    while (iter->depth > 0) {
        se_iter_frame *frame = &iter->stack[iter->depth - 1];
        se_node_view view;
        SE_TRY(se_node_open(iter->store, frame->node, &view));
        uint32_t byte = 0;
        const se_word *link = frame->next < 256 ? se_node_next(&view, frame->next, &byte) : NULL;
        uint64_t child = link ? se_load_acquire(link) : 0;
        if (!link) {
            iter->depth--;
            continue;
        }
        frame->next = byte + 1;
        if (child & SE_CHILD_LEAF) {
            SE_TRY(yield_leaf(iter, child & ~SE_CHILD_LEAF, leaf));
            if (*leaf)
                return SE_OK;
        } else if (child) {
            fetch_children(iter, child);
            SE_TRY(push_frame(iter, child, 0));
        }
    }
    return SE_OK;
}
