/* checkpoint_load.c - from a checkpoint to a store, in one pass and without a look-up.
 *
 *     keys in order: ab1 ab2 ac         open nodes before "ac": [branch 1: ..] [branch 2: 1 ..]
 *     "ac" shares one byte with "ab2":  the node at branch 2 can get no more children: it is
 *                                       made, in its final width, a child of the one above
 *
 * Why:        inserting key by key would walk from the root, widen and copy nodes, and retire the
 *             old ones. Keys come in byte order, so a node is complete when the first key comes
 *             that branches off above it: each is made once, as narrow as it can be.
 * Used by:    recovery, on a store that nobody else has.
 * Invariants: B1 branches rise along the open nodes; a node's children stand together on one
 *             stack, above those of the nodes over it; B2 nothing can be reached before the root is
 *             stored, which is the last change but for counters and the version.
 * Crash:      blocks are noted as taken in batches (SE_UPKEEP) and reachable only at the end: a
 *             store whose loading died or failed is thrown away with its segments.
 * Errors:     see checkpoint.h; SE_FULL: map_size or shared memory is too small.
 * Cost:       per key one block for the leaf, one per record, one node per 4 to 256 keys; memory is
 *             backed 16 MiB at a time.
 */
#include <errno.h>

#include "arena.h"
#include "checkpoint_read.h"
#include "erase.h"
#include "node.h"
#include "record.h"
#include "undo.h"

#define BATCH_TAKEN 8192u /* a new store has room for twice as many */
#define GROW_STEP (UINT64_C(16) << 20)

typedef struct {
    uint8_t byte;
    uint64_t child;
} child_entry;

/* A node of the newest key's path that may get more children. */
typedef struct {
    uint32_t branch;    /* position of the byte that tells its children apart */
    uint64_t first;     /* its first child on the stack of children */
} open_node;

/* What retention may let go is known when the run's record comes, behind the keys. */
typedef struct {
    uint8_t id[SE_RUN_ID_SIZE];
    uint64_t superseded; /* bytes of records that are no heads */
    bool trims;
} run_state;

typedef struct {
    se_store *store;
    open_node nodes[SE_KEY_MAX];
    uint32_t depth;
    child_entry *children;
    uint64_t child_count;
    uint64_t child_room;
    uint64_t leaf; /* of the newest key; 0: none yet */
    se_leaf *leaf_at;
    se_record *oldest; /* of the newest key, so far */
    uint32_t records_left;
    bool cut;
    bool more;
    bool is_run;
    bool is_erasure;
    run_state run;
    uint64_t live_keys;
    uint64_t ttl_keys;
    uint64_t garbage_size;
    uint64_t erasing_runs;
} loader;

/* Backs more of the arena after SE_NEED_SPACE: a large step, or what is left of the map. */
static se_status make_room(se_store *store) {
    uint64_t allocated = se_load_acquire(&store->seq->arena_allocated);
    uint64_t room = (store->data_size - allocated) & ~(uint64_t)(SE_PAGE - 1);
    uint64_t need = (store->short_of + SE_PAGE - 1) & ~(uint64_t)(SE_PAGE - 1);
    uint64_t step = need > GROW_STEP ? need : GROW_STEP < room ? GROW_STEP : room;
    if (room == 0)
        return SE_FULL;
    se_status status = se_arena_grow(store, step);
    return status == SE_FULL && step > need ? se_arena_grow(store, need) : status;
}

/* The notes of the blocks taken so far are dropped before there are too many. */
static void next_batch(se_store *store) {
    if (SE_UNLIKELY(store->taken_count >= BATCH_TAKEN)) {
        se_undo_end(store);
        se_undo_begin(store, SE_UPKEEP);
    }
}

static se_status make_leaf(se_store *store, const uint8_t *key, uint32_t key_size,
                           uint64_t *offset, se_leaf **made) {
    se_status status;
    next_batch(store);
    while ((status = se_arena_take(store, se_leaf_size(key_size), offset)) == SE_NEED_SPACE)
        SE_TRY(make_room(store));
    SE_TRY(status);
    se_leaf *leaf = se_at(store, *offset, se_class_size(se_class_of(se_leaf_size(key_size))));
    if (!leaf)
        return SE_CORRUPT;
    se_store_relaxed(&leaf->head, SE_LEAF_REMOVED);
    leaf->key_size = (uint16_t)key_size;
    se_copy_private(leaf->key, key, key_size);
    *made = leaf;
    return SE_OK;
}

/* Makes the topmost open node. prefix_start: where the bytes begin that its keys share and that no
 * node above it has. */
static se_status make_node(loader *l, uint32_t prefix_start, uint64_t *child) {
    const open_node *top = &l->nodes[l->depth - 1];
    uint64_t count = l->child_count - top->first;
    uint32_t type = SE_NODE4;
    while (se_node_capacity(type) < count)
        type++;
    se_node_view view;
    uint64_t offset;
    se_status status;
    next_batch(l->store);
    while ((status = se_node_make(l->store, type, l->leaf_at->key + prefix_start,
                                  top->branch - prefix_start, &offset, &view)) == SE_NEED_SPACE)
        SE_TRY(make_room(l->store));
    SE_TRY(status);
    for (uint64_t index = top->first; index < l->child_count; index++)
        se_node_fill(&view, l->children[index].byte, l->children[index].child);
    l->child_count = top->first;
    l->depth--;
    *child = offset;
    return SE_OK;
}

static se_status push_child(loader *l, uint64_t child) {
    if (SE_UNLIKELY(l->child_count == l->child_room)) {
        uint64_t room = l->child_room ? l->child_room * 2 : 4096;
        child_entry *wider = realloc(l->children, room * sizeof *wider);
        if (!wider) {
            errno = ENOMEM;
            return SE_IO;
        }
        l->children = wider;
        l->child_room = room;
    }
    l->children[l->child_count].byte = l->leaf_at->key[l->nodes[l->depth - 1].branch];
    l->children[l->child_count].child = child;
    l->child_count++;
    return SE_OK;
}

/* The newest key's leaf, with every open node below `branch` made, as a child for there. */
static se_status close_nodes(loader *l, uint32_t branch, bool all, uint64_t *child) {
    *child = l->leaf | SE_CHILD_LEAF;
    while (l->depth > 0 && (all || l->nodes[l->depth - 1].branch > branch)) {
        SE_TRY(push_child(l, *child));
        uint32_t above = all ? 0 : branch + 1;
        if (l->depth > 1 && (all || l->nodes[l->depth - 2].branch > branch))
            above = l->nodes[l->depth - 2].branch + 1;
        SE_TRY(make_node(l, above, child));
    }
    return SE_OK;
}

/* The newest key gets its place in the tree: the next one branches off at `branch`. */
static se_status place_leaf(loader *l, uint32_t branch) {
    uint64_t child;
    SE_TRY(close_nodes(l, branch, false, &child));
    if (l->depth == 0 || l->nodes[l->depth - 1].branch < branch) {
        SE_ASSERT(l->depth < SE_KEY_MAX);
        l->nodes[l->depth].branch = branch;
        l->nodes[l->depth].first = l->child_count;
        l->depth++;
    }
    return push_child(l, child);
}

static void end_run(loader *l) {
    if (l->run.trims)
        l->garbage_size += l->run.superseded;
    memset(&l->run, 0, sizeof l->run);
}

static se_status take_key(void *context, const se_checkpoint_key *entry, const uint8_t *key,
                          uint32_t common) {
    loader *l = context;
    l->records_left = entry->records;
    l->cut = (entry->flags & SE_CHECKPOINT_CUT) != 0;
    l->more = (entry->flags & SE_CHECKPOINT_MORE) != 0;
    if (SE_UNLIKELY(entry->flags & SE_CHECKPOINT_GOES_ON)) {
        SE_ASSERT(l->oldest);
        if (entry->records == 0)
            se_store_relaxed(&l->oldest->prev, SE_CUT);
        return SE_OK;
    }
    if (l->leaf)
        SE_TRY(place_leaf(l, common));
    SE_TRY(make_leaf(l->store, key, entry->key_size, &l->leaf, &l->leaf_at));
    l->oldest = NULL;
    if (SE_UNLIKELY(memcmp(l->run.id, key, SE_RUN_ID_SIZE) != 0)) {
        end_run(l);
        memcpy(l->run.id, key, SE_RUN_ID_SIZE);
    }
    l->is_erasure = se_is_erase_key(key, entry->key_size);
    l->is_run = entry->key_size == SE_RUN_ID_SIZE + 2 && key[SE_RUN_ID_SIZE] == SE_TAG_RUN;
    return SE_OK;
}

static void count_head(loader *l, const se_checkpoint_record *record, const uint8_t *value) {
    bool live = (record->flags & SE_RECORD_TOMBSTONE) == 0;
    l->live_keys += live;
    l->erasing_runs += live && l->is_erasure;
    l->ttl_keys += record->expires_us != 0;
    if (SE_UNLIKELY(l->is_run && live && record->value_size >= sizeof(se_run_record))) {
        se_run_record run;
        memcpy(&run, value, sizeof run);
        l->run.trims = run.retention_kind >= SE_RETAIN_LAST;
    }
}

static se_status take_record(void *context, const se_checkpoint_record *record,
                             const uint8_t *value) {
    loader *l = context;
    se_store *store = l->store;
    uint64_t offset;
    se_status status;
    l->records_left--;
    uint64_t prev = l->cut && l->records_left == 0 ? SE_CUT : 0;
    next_batch(store);
    while ((status = se_record_make(store, prev, record->version, record->timestamp_us,
                                    record->expires_us, record->flags, value, record->value_size,
                                    &offset)) == SE_NEED_SPACE)
        SE_TRY(make_room(store));
    SE_TRY(status);
    se_arena_map_ahead(store);
    if (l->oldest) {
        l->run.superseded += sizeof(se_record) + record->value_size;
        se_store_relaxed(&l->oldest->prev, offset);
    } else {
        count_head(l, record, value);
        se_store_relaxed(&l->leaf_at->head, offset);
    }
    l->oldest = se_record_at(store, offset);
    return l->oldest ? SE_OK : SE_CORRUPT;
}

static void take_loss(void *context) {
    loader *l = context;
    if (l->more && l->oldest)
        se_store_relaxed(&l->oldest->prev, SE_CUT);
    l->more = false;
}

/* The last nodes, then the root: from here on everything can be reached. */
static se_status publish(loader *l, const se_checkpoint *report) {
    se_sequencer *seq = l->store->seq;
    uint64_t root = 0;
    if (l->leaf)
        SE_TRY(close_nodes(l, 0, true, &root));
    end_run(l);
    se_undo_store(l->store, &seq->root, root);
    se_undo_store(l->store, &seq->live_keys, l->live_keys);
    se_undo_store(l->store, &seq->ttl_keys, l->ttl_keys);
    se_undo_store(l->store, &seq->garbage_size, l->garbage_size);
    se_undo_store(l->store, &seq->erasing_runs, l->erasing_runs);
    se_undo_store(l->store, &seq->removed_horizon, report->removed_horizon);
    se_undo_store(l->store, &seq->last_timestamp, report->timestamp_us);
    se_undo_end(l->store);
    se_store_release(&seq->commit_version, report->version);
    se_store_release(&seq->durable_version, report->version);
    /* Chains may end in cuts, and nobody has announced a snapshot that would keep more. */
    se_store_release(&seq->trim_horizon, report->version);
    se_store_release(&seq->trim_effective, report->version);
    return SE_OK;
}

se_status se_checkpoint_load(se_store *store, int folder_fd, uint64_t version, bool salvage,
                             se_progress_call progress, void *context, se_checkpoint *report) {
    SE_ASSERT(se_load_relaxed(&store->seq->root) == 0);
    SE_ASSERT(se_load_relaxed(&store->seq->commit_version) == 0);
    char name[SE_NAME_MAX];
    loader *l = calloc(1, sizeof *l);
    if (!l) {
        errno = ENOMEM;
        return SE_IO;
    }
    l->store = store;
    se_checkpoint_name(version, name);
    se_checkpoint_source source = {.folder_fd = folder_fd, .name = name, .version = version,
                                   .database_id = store->header->database_id, .salvage = salvage,
                                   .progress = progress, .context = context};
    se_checkpoint_sink sink = {l, take_key, take_record, take_loss};
    store->deleting = true; /* what filled a map to its reserve fits into one of the same size */
    se_undo_begin(store, SE_UPKEEP);
    se_status status = se_checkpoint_read(&source, &sink, report);
    if (status == SE_OK)
        status = publish(l, report);
    else
        se_undo_end(store);
    store->deleting = false;
    int error = errno;
    free(l->children);
    free(l);
    errno = error;
    return status;
}
