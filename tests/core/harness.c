/* harness.c - see harness.h. */
#include "harness.h"

uint64_t test_context;
const uint8_t test_run[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static int memory_file(const char *name) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    REQUIRE(fd >= 0);
    return fd;
}

test_segments test_segments_make(void) {
    test_segments segments = {memory_file("control"), memory_file("data")};
    return segments;
}

void test_segments_close(test_segments segments) {
    close(segments.control_fd);
    close(segments.data_fd);
}

se_store *test_store_make(test_segments segments, uint64_t map_size) {
    se_store *store = calloc(1, sizeof *store);
    se_options options = {.map_size = map_size, .max_clients = 16};
    REQUIRE(store);
    REQUIRE(se_store_create(store, segments.control_fd, segments.data_fd, &options) == SE_OK);
    return store;
}

void test_store_free(se_store *store) {
    se_store_detach(store);
    free(store);
}

uint32_t test_key(uint8_t *key, const char *name) {
    uint32_t size = (uint32_t)strlen(name);
    memcpy(key, test_run, 16);
    key[16] = 1;
    memcpy(key + 17, name, size + 1);
    return 17 + size + 1;
}

se_status test_submit(se_session *session) {
    return test_finish(session, se_session_submit(session));
}

se_status test_finish(se_session *session, se_status status) {
    for (;;) {
        if (status == SE_OK) {
            status = se_session_outcome(session);
            if (status != SE_NEED_SPACE)
                return status;
            status = se_session_repair(session);
        } else if (status == SE_BUSY) {
            status = se_session_wait(session, UINT64_C(10000000000));
        } else {
            return status;
        }
    }
}

static se_status one_op(se_session *session, uint32_t kind, const char *name, const void *value,
                        uint32_t size, int64_t argument) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    SE_TRY(se_session_begin(session, test_run, se_clock_real_us(), 0));
    se_status status =
        se_session_add(session, kind, key, key_size, value, size, 0, argument);
    if (status != SE_OK) {
        se_session_abandon(session);
        return status;
    }
    return test_submit(session);
}

se_status test_put(se_session *session, const char *name, const void *value, uint32_t size) {
    return one_op(session, SE_OP_PUT, name, value, size, 0);
}

se_status test_delete(se_session *session, const char *name) {
    return one_op(session, SE_OP_DELETE, name, NULL, 0, 0);
}

se_status test_increment(se_session *session, const char *name, int64_t delta, int64_t *result) {
    se_status status = one_op(session, SE_OP_INCREMENT, name, NULL, 0, delta);
    if (status == SE_OK && result)
        *result = se_session_first_result(session);
    return status;
}

se_status test_set_retention(se_session *session, uint8_t kind, uint64_t argument) {
    uint8_t key[18];
    se_run_record run = {.status = SE_RUN_ACTIVE, .retention_kind = kind,
                         .retention_argument = argument};
    memcpy(key, test_run, 16);
    key[16] = SE_TAG_RUN;
    key[17] = 0;
    SE_TRY(se_session_begin(session, test_run, se_clock_real_us(), 0));
    SE_TRY(se_session_add(session, SE_OP_PUT, key, 18, &run, sizeof run, 0, 0));
    return test_submit(session);
}

se_status test_get(se_session *session, const char *name, uint64_t snapshot, char *buffer,
                   uint32_t size) {
    uint8_t key[SE_KEY_MAX];
    uint32_t key_size = test_key(key, name);
    uint64_t offset;
    uint64_t epoch = se_session_pin(session);
    se_status status = se_index_find(session->store, key, key_size, &offset);
    const se_record *record = NULL;
    if (status == SE_OK && offset) {
        const se_leaf *leaf = se_leaf_at(session->store, offset);
        status = leaf ? se_record_visible(session->store, leaf,
                                          snapshot == UINT64_MAX ? epoch : snapshot, &record)
                      : SE_CORRUPT;
    }
    if (status == SE_OK && (!record || se_record_dead(record, se_clock_real_us())))
        status = SE_NOT_FOUND;
    if (status == SE_OK) {
        REQUIRE(record->value_size < size);
        memcpy(buffer, record->value, record->value_size);
        buffer[record->value_size] = 0;
    }
    se_session_unpin(session);
    return status;
}

/* One mark per 16 bytes of the arena: where a block begins, and that nothing overlaps it. */
typedef struct {
    se_store *store;
    uint8_t *marks;
    uint64_t marked;
    uint64_t live;
    uint64_t scraps;
} checker;

static void mark_block(checker *c, uint64_t block) {
    uint64_t offset = block & SE_BLOCK_OFFSET_MASK;
    uint64_t size = se_class_size((uint32_t)(block >> SE_BLOCK_CLASS_SHIFT));
    REQUIRE(offset % 16 == 0 && offset >= SE_PAGE);
    REQUIRE(offset + size <= se_load_relaxed(&c->store->seq->arena_bump));
    for (uint64_t at = offset / 16; at < (offset + size) / 16; at++) {
        REQUIRE(c->marks[at] == 0);
        c->marks[at] = 1;
    }
    c->marked += size;
}

static void mark_chain(checker *c, uint64_t offset) {
    uint64_t newer = UINT64_MAX;
    while (offset > SE_CUT) {
        const se_record *record = se_record_at(c->store, offset);
        REQUIRE(record && record->version <= newer);
        newer = record->version;
        mark_block(c, se_record_block(offset, record));
        offset = se_load_relaxed(&record->prev);
    }
}

static void mark_tree(checker *c, uint64_t child, const uint8_t *path, uint32_t path_size) {
    if (child & SE_CHILD_LEAF) {
        const se_leaf *leaf = se_leaf_at(c->store, child & ~SE_CHILD_LEAF);
        REQUIRE(leaf && leaf->key_size >= path_size);
        REQUIRE(memcmp(leaf->key, path, path_size) == 0);
        mark_block(c, se_block(child & ~SE_CHILD_LEAF, se_leaf_size(leaf->key_size)));
        uint64_t head = se_load_relaxed(&leaf->head);
        REQUIRE(head != SE_LEAF_REMOVED);
        const se_record *record = se_record_at(c->store, head);
        REQUIRE(record->version <= se_load_relaxed(&c->store->seq->commit_version));
        c->live += (record->flags & SE_RECORD_TOMBSTONE) == 0;
        mark_chain(c, head);
        return;
    }
    se_node_view view;
    REQUIRE(se_node_open(c->store, child, &view) == SE_OK);
    mark_block(c, se_node_block(&view));
    uint8_t below[SE_KEY_MAX];
    memcpy(below, path, path_size);
    memcpy(below + path_size, view.node->prefix, view.prefix_size);
    uint32_t count = 0;
    uint32_t byte = 0;
    for (se_word *link = se_node_next(&view, 0, &byte); link;
         link = byte < 255 ? se_node_next(&view, byte + 1, &byte) : NULL) {
        below[path_size + view.prefix_size] = (uint8_t)byte;
        mark_tree(c, se_load_relaxed(link), below, path_size + view.prefix_size + 1);
        count++;
    }
    REQUIRE(count == se_node_count(&view) && count >= 2);
}

static void mark_retired(checker *c) {
    se_sequencer *seq = c->store->seq;
    uint64_t capacity = se_load_relaxed(&seq->ring_capacity);
    uint64_t offset = se_load_relaxed(&seq->ring_offset);
    se_retired *ring = se_at(c->store, offset, capacity * sizeof *ring);
    uint64_t before = 0;
    REQUIRE(ring);
    mark_block(c, se_block(offset, capacity * sizeof *ring));
    for (uint64_t at = se_load_relaxed(&seq->ring_head); at != se_load_relaxed(&seq->ring_tail);
         at++) {
        uint64_t block = se_load_relaxed(&ring[at & (capacity - 1)].block);
        uint64_t epoch = se_load_relaxed(&ring[at & (capacity - 1)].epoch);
        REQUIRE(epoch >= before);
        before = epoch;
        if (block & SE_BLOCK_CHAIN)
            mark_chain(c, block & SE_BLOCK_OFFSET_MASK);
        else
            mark_block(c, block);
    }
}

/* The lists of free blocks, and those of blocks that are being joined. */
static uint64_t mark_free(checker *c) {
    se_sequencer *seq = c->store->seq;
    uint64_t size = 0;
    for (uint32_t list = 0; list < SE_CLASS_COUNT + 1 + SE_JOIN_WINDOWS; list++) {
        uint32_t size_class = list < SE_CLASS_COUNT ? list
                                                    : (uint32_t)se_load_relaxed(&seq->join_class);
        bool marked = list > SE_CLASS_COUNT;
        uint64_t block = marked ? se_load_relaxed(&seq->join_head[list - SE_CLASS_COUNT - 1])
                         : list < SE_CLASS_COUNT ? se_load_relaxed(&seq->free_head[list])
                                                 : se_load_relaxed(&seq->join_rest);
        while (block) {
            if (marked)
                size_class = (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
            uint64_t offset = block & SE_BLOCK_OFFSET_MASK;
            mark_block(c, (uint64_t)size_class << SE_BLOCK_CLASS_SHIFT | offset);
            size += se_class_size(size_class);
            c->scraps += se_scrap_size(size_class);
            block = se_load_relaxed((se_word *)se_at(c->store, offset, 16));
        }
    }
    return size;
}

static checker check_all(se_store *store) {
    checker c = {.store = store};
    se_sequencer *seq = store->seq;
    uint64_t bump = se_load_relaxed(&seq->arena_bump);
    c.marks = calloc(1, bump / 16 + 1);
    REQUIRE(c.marks);
    REQUIRE(bump <= se_load_relaxed(&seq->arena_allocated));
    if (se_load_relaxed(&seq->root))
        mark_tree(&c, se_load_relaxed(&seq->root), (const uint8_t *)"", 0);
    mark_retired(&c);
    uint64_t free_size = mark_free(&c);
    REQUIRE(free_size == se_load_relaxed(&seq->arena_free));
    REQUIRE(c.scraps == se_load_relaxed(&seq->arena_scraps));
    REQUIRE(c.marked == bump - SE_PAGE); /* nothing is lost */
    free(c.marks);
    c.marks = NULL;
    return c;
}

uint64_t test_count_live(se_store *store) { return check_all(store).live; }

void test_check(se_store *store) {
    checker c = check_all(store);
    REQUIRE(c.live == se_load_relaxed(&store->seq->live_keys));
}
