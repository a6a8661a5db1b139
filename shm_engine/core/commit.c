/* commit.c - the steps of a commit. */
#include "commit.h"

#include "arena.h"
#include "bell.h"
#include "client.h"
#include "erase.h"
#include "event.h"
#include "futex.h"
#include "index.h"
#include "join.h"
#include "msgpack.h"
#include "retire.h"
#include "sequencer.h"
#include "sweep.h"
#include "undo.h"
#include "walring.h"

#define TRIM_ON_WRITE_MAX 8u
#define TRIM_WALK_MAX 128u /* more than the commits between two updates of the horizon */
#define SPLIT_ROUNDS_MAX 64
#define JOIN_NS 5000000u
#define LOCK_BOUND_NS (UINT64_C(1000) * 1000000u)

/* The log that a write set appends to: read at its first APPEND, written behind its last. */
typedef struct {
    bool open;
    se_leaf *leaf;
    se_record *record;
    se_event_head head;
    uint8_t key[SE_EVENT_HEAD_KEY_SIZE];
} event_log;

typedef struct {
    se_store *store;
    se_slot *slot;
    uint8_t *area;
    uint64_t size;
    uint64_t op_count;
    uint64_t append_count;
    event_log log;
    uint64_t bells;
    uint64_t snapshot;
    uint64_t now_us;
    uint64_t version;
    uint64_t timestamp_us;
    const uint8_t *run; /* the registered run of this write set, or NULL */
    bool run_closed;
    bool searching; /* keys that the client has not found are looked for again */
    se_retention retention;
    bool changed;
    bool inserted;
    uint64_t detail;
    uint64_t op_index;
} commit;

static uint64_t op_size(const se_op *op) {
    return (sizeof(se_op) + op->key_size + op->value_size + 7) & ~UINT64_C(7);
}

static const uint8_t *op_key(const se_op *op) { return (const uint8_t *)(op + 1); }

static const uint8_t *op_value(const se_op *op) { return op_key(op) + op->key_size; }

/* The operation at *at, checked to lie within the write set; moves *at past it. */
static se_op *next_op(const commit *c, uint64_t *at) {
    if (*at > c->size || c->size - *at < sizeof(se_op))
        return NULL;
    se_op *op = (se_op *)(c->area + *at);
    uint64_t size = op_size(op);
    if (size > c->size - *at || op->key_size > SE_KEY_MAX || op->key_size <= SE_RUN_ID_SIZE ||
        op->value_size > SE_VALUE_ENCODED_MAX)
        return NULL;
    *at += size;
    return op;
}

/* Makes a new key where it is right that there is none. */
static bool may_create(const se_op *op) {
    return op->kind == SE_OP_PUT || op->kind == SE_OP_INCREMENT ||
           (op->kind == SE_OP_BUMP && op->argument <= 0);
}

/* Where the key is now: the hint if it still holds, else a look-up. A client that found nothing is
 * believed if the key is about to be made: the index refuses a key that it has (see attempt). */
static se_status find_leaf(const commit *c, const se_op *op, se_leaf **leaf) {
    se_store *store = c->store;
    *leaf = NULL;
    if (!op->leaf && !c->searching && may_create(op))
        return SE_OK;
    if (op->leaf) {
        se_leaf *hint = se_leaf_at(store, op->leaf);
        if (hint && hint->key_size == op->key_size &&
            memcmp(hint->key, op_key(op), op->key_size) == 0 &&
            se_load_relaxed(&hint->head) != SE_LEAF_REMOVED) {
            *leaf = hint;
            return SE_OK;
        }
    }
    uint64_t offset;
    SE_TRY(se_index_find(store, op_key(op), op->key_size, &offset));
    if (offset) {
        *leaf = se_leaf_at(store, offset);
        if (!*leaf)
            return SE_CORRUPT;
    }
    return SE_OK;
}

static se_status head_of(const commit *c, const se_leaf *leaf, se_record **head) {
    *head = NULL;
    if (!leaf)
        return SE_OK;
    *head = se_record_at(c->store, se_load_relaxed(&leaf->head));
    return *head ? SE_OK : SE_CORRUPT;
}

static bool is_live(const commit *c, const se_record *record) {
    return record && !se_record_dead(record, c->now_us);
}

/* What a snapshot could notice: not the tombstone by which a sweep buried a value that had run out
 * before, for readers compare the time themselves. */
static se_status check_unchanged(const commit *c, const se_record *head) {
    if (!head || head->version <= c->snapshot)
        return SE_OK;
    uint64_t prev = se_load_relaxed(&head->prev);
    if ((head->flags & SE_RECORD_TOMBSTONE) == 0 || prev <= SE_CUT)
        return SE_CONFLICT;
    const se_record *buried = se_record_at(c->store, prev);
    if (!buried)
        return SE_CORRUPT;
    bool ran_out = buried->expires_us != 0 && buried->expires_us <= head->timestamp_us;
    return ran_out && buried->version <= c->snapshot ? SE_OK : SE_CONFLICT;
}

static se_status check_range(commit *c, const se_op *op) {
    se_iter iter;
    uint64_t offset;
    SE_TRY(se_iter_seek(&iter, c->store, op_key(op), op->key_size));
    for (;;) {
        SE_TRY(se_iter_next(&iter, &offset));
        const se_leaf *leaf = offset ? se_leaf_at(c->store, offset) : NULL;
        if (!leaf || leaf->key_size < op->key_size ||
            memcmp(leaf->key, op_key(op), op->key_size) != 0)
            return offset && !leaf ? SE_CORRUPT : SE_OK;
        se_record *head;
        SE_TRY(head_of(c, leaf, &head));
        SE_TRY(check_unchanged(c, head));
    }
}

static se_status check_op(commit *c, const se_op *op) {
    if (op->kind == SE_OP_CHECK_RANGE)
        return check_range(c, op);
    if (op->kind != SE_OP_CHECK && op->kind != SE_OP_EXPECT)
        return SE_OK;
    se_leaf *leaf;
    se_record *head;
    SE_TRY(find_leaf(c, op, &leaf));
    SE_TRY(head_of(c, leaf, &head));
    if (op->kind == SE_OP_CHECK)
        return check_unchanged(c, head);
    uint64_t found = is_live(c, head) ? head->version : 0;
    if (found == (uint64_t)op->argument)
        return SE_OK;
    c->detail = found;
    return SE_MISMATCH;
}

static void count_change(commit *c, se_word *counter, bool was, bool is) {
    if (was != is)
        se_undo_store(c->store, counter, se_load_relaxed(counter) + (is ? 1 : UINT64_MAX));
}

/* live_keys counts heads that are no tombstones; what has run out counts until it is buried. */
static void count_heads(commit *c, const se_record *before, uint32_t flags, uint64_t expires_us) {
    se_sequencer *seq = c->store->seq;
    count_change(c, &seq->live_keys, before && (before->flags & SE_RECORD_TOMBSTONE) == 0,
                 (flags & SE_RECORD_TOMBSTONE) == 0);
    count_change(c, &seq->ttl_keys, before && before->expires_us != 0, expires_us != 0);
}

static bool is_run_key(const uint8_t *key, uint32_t key_size) {
    return key_size == SE_RUN_ID_SIZE + 2 && key[SE_RUN_ID_SIZE] == SE_TAG_RUN;
}

/* What is written under a key. */
typedef struct {
    const uint8_t *key;
    uint32_t key_size;
    uint32_t flags;
    uint64_t expires_us;
    const uint8_t *value;
    uint32_t value_size;
    uint64_t counter;    /* of BUMP, filled into the value; 0: it has none */
    se_event_head *head; /* of an event, which is put behind it; NULL: it is none */
} version_of;

static se_status link_new_key(commit *c, const version_of *new, uint64_t record) {
    se_store *store = c->store;
    uint64_t offset;
    SE_TRY(se_arena_take(store, se_leaf_size(new->key_size), &offset));
    se_leaf *leaf = se_at(store, offset, 16);
    if (!leaf)
        return SE_CORRUPT;
    /* A rollback marks the leaf removed: somebody may have found it, and would write into it. */
    se_store_relaxed(&leaf->head, SE_LEAF_REMOVED);
    se_undo_store(store, &leaf->head, record);
    leaf->key_size = (uint16_t)new->key_size;
    se_copy_private(leaf->key, new->key, new->key_size);
    c->inserted = true;
    SE_TRY(se_index_insert(store, new->key, new->key_size, offset));
    if (SE_UNLIKELY(is_run_key(new->key, new->key_size)))
        se_undo_bump_run_epoch(store);
    return SE_OK;
}

/* History that retention lets go: of bookkeeping, and in runs that chose one. */
static se_status trim_on_write(commit *c, const version_of *new, se_leaf *leaf,
                               const se_record *old) {
    se_sequencer *seq = c->store->seq;
    se_retention retention = {SE_RETAIN_DEFAULT, 0};
    if (se_is_bookkeeping(new->key, new->key_size))
        retention = (se_retention){SE_RETAIN_LAST, 1};
    else if (c->run && c->retention.kind >= SE_RETAIN_LAST &&
             memcmp(new->key, c->run, SE_RUN_ID_SIZE) == 0)
        retention = c->retention;
    if (retention.kind < SE_RETAIN_LAST)
        return SE_OK;
    uint64_t before = se_load_relaxed(&seq->trimmed_versions);
    bool measured = (c->store->commit_serial & 63) == 0;
    if (measured)
        se_horizon_update(c->store);
    /* Before the horizon has passed the old head there is nothing to cut near it. */
    bool near = measured || old->version <= se_load_relaxed(&seq->trim_effective);
    if (near && retention.kind == SE_RETAIN_LAST && retention.argument <= TRIM_ON_WRITE_MAX) {
        bool alone;
        uint64_t walk = TRIM_WALK_MAX;
        se_trim_place place = {0, 0};
        SE_TRY(se_record_trim(c->store, leaf, &retention, c->timestamp_us, 0, &walk, &place,
                              &alone));
    }
    if (se_load_relaxed(&seq->trimmed_versions) == before)
        se_store_relaxed(&seq->garbage_size, se_load_relaxed(&seq->garbage_size) +
                                                 sizeof(se_record) + old->value_size);
    return SE_OK;
}

static void log_version(const commit *c, const version_of *new, const uint8_t *value) {
    uint32_t kind = new->flags & SE_RECORD_TOMBSTONE ? SE_FRAME_DELETE
                    : new->expires_us                ? SE_FRAME_PUT_EXPIRES
                                                     : SE_FRAME_PUT;
    se_ring_add(c->store, kind, new->key, new->key_size, value, new->value_size,
                new->expires_us);
}

/* What only the commit knows, into the copy that no reader can reach yet: the request stays as it is,
 * for it may be served again. */
static void fill_in(const commit *c, const version_of *new, se_record *record) {
    if (new->head)
        se_event_chain(record->value, new->value_size, c->timestamp_us, new->head);
    if (new->counter)
        se_counted_write(record->value, new->counter);
}

static se_status write_record(commit *c, const version_of *new, se_leaf *leaf, se_record *head) {
    se_store *store = c->store;
    uint64_t offset;
    uint64_t prev = leaf ? se_load_relaxed(&leaf->head) : 0;
    SE_TRY(se_record_make(store, prev, c->version, c->timestamp_us, new->expires_us, new->flags,
                          new->value, new->value_size, &offset));
    se_record *record = se_record_at(store, offset);
    if (SE_UNLIKELY(!record))
        return SE_CORRUPT;
    fill_in(c, new, record);
    c->changed = true;
    c->bells |= se_bell_of(new->key, new->key_size);
    log_version(c, new, record->value);
    count_heads(c, head, new->flags, new->expires_us);
    if (SE_UNLIKELY(se_is_erase_key(new->key, new->key_size)))
        count_change(c, &store->seq->erasing_runs,
                     head && (head->flags & SE_RECORD_TOMBSTONE) == 0,
                     (new->flags & SE_RECORD_TOMBSTONE) == 0);
    if (!leaf)
        return link_new_key(c, new, offset);
    se_undo_store(store, &leaf->head, offset);
    return trim_on_write(c, new, leaf, head);
}

static se_status apply_delete(commit *c, se_op *op, se_leaf *leaf, se_record *head) {
    bool live = is_live(c, head);
    bool expired = head && !live && (head->flags & SE_RECORD_TOMBSTONE) == 0;
    op->result = live;
    if (op->argument ? (live || expired) && head->version == (uint64_t)op->argument : live) {
        version_of new = {.key = op_key(op), .key_size = op->key_size,
                          .flags = SE_RECORD_TOMBSTONE};
        return write_record(c, &new, leaf, head);
    }
    return SE_OK;
}

static version_of version_of_op(const se_op *op) {
    return (version_of){.key = op_key(op), .key_size = op->key_size, .expires_us = op->expires_us,
                        .value = op_value(op), .value_size = op->value_size};
}

static se_status apply_bump(commit *c, se_op *op, se_leaf *leaf, se_record *head) {
    uint64_t counter = 0;
    if (!se_counted_check(op_value(op), op->value_size))
        return SE_INVALID;
    if (is_live(c, head)) {
        if (!se_counted_check(head->value, head->value_size))
            return SE_CORRUPT;
        counter = se_counted_read(head->value);
        if (counter >= INT64_MAX)
            return SE_CORRUPT;
    }
    c->detail = counter;
    if (op->argument >= 0 && counter != (uint64_t)op->argument)
        return SE_MISMATCH;
    version_of new = version_of_op(op);
    new.counter = counter + 1;
    op->result = (int64_t)new.counter;
    return write_record(c, &new, leaf, head);
}

static se_status open_log(commit *c, const se_op *op, se_leaf *leaf, se_record *head) {
    event_log *log = &c->log;
    uint8_t key[SE_EVENT_HEAD_KEY_SIZE];
    if (op->key_size != se_event_head_key(key, op_key(op)) ||
        memcmp(op_key(op), key, sizeof key) != 0)
        return SE_INVALID;
    if (log->open)
        return memcmp(log->key, key, sizeof key) == 0 ? SE_OK : SE_INVALID;
    memset(&log->head, 0, sizeof log->head);
    if (is_live(c, head) && !se_event_read_head(head->value, head->value_size, &log->head))
        return SE_CORRUPT;
    memcpy(log->key, key, sizeof key);
    log->leaf = leaf;
    log->record = head;
    log->open = true;
    return SE_OK;
}

/* The event behind the newest one, and its entry under its type; the head follows in close_log. */
static se_status apply_append(commit *c, se_op *op, se_leaf *leaf, se_record *head) {
    static const uint8_t nil[1] = {0xc0};
    uint8_t key[SE_EVENT_TYPE_KEY_MAX];
    const uint8_t *type;
    uint32_t type_size;
    SE_TRY(open_log(c, op, leaf, head));
    se_event_head *at = &c->log.head;
    uint64_t sequence = at->next;
    c->detail = sequence;
    if (!se_event_check(op_value(op), op->value_size, &type, &type_size))
        return SE_INVALID;
    if (op->argument >= 0 && sequence != (uint64_t)op->argument)
        return SE_CONFLICT;
    version_of event = {.key = key, .key_size = se_event_key(key, c->log.key, sequence),
                        .value = op_value(op), .value_size = op->value_size, .head = at};
    SE_TRY(write_record(c, &event, NULL, NULL));
    version_of entry = {
        .key = key,
        .key_size = se_event_type_key(key, c->log.key, type, type_size, sequence),
        .value = nil,
        .value_size = sizeof nil};
    SE_TRY(write_record(c, &entry, NULL, NULL));
    /* The client may ask what the hash is; of the request, nothing that is needed again is lost. */
    se_copy_private((uint8_t *)op_value(op) + SE_EVENT_PREVIOUS, at->hash, SE_SHA256_SIZE);
    op->result = (int64_t)sequence;
    return SE_OK;
}

static se_status close_log(commit *c) {
    uint8_t value[SE_EVENT_HEAD_SIZE];
    if (SE_LIKELY(!c->log.open))
        return SE_OK;
    se_event_write_head(value, &c->log.head);
    version_of new = {.key = c->log.key, .key_size = sizeof c->log.key, .value = value,
                      .value_size = sizeof value};
    return write_record(c, &new, c->log.leaf, c->log.record);
}

static se_status apply_increment(commit *c, se_op *op, se_leaf *leaf, se_record *head) {
    int64_t value = 0;
    uint64_t expires_us = 0;
    if (is_live(c, head)) {
        expires_us = head->expires_us;
        if (!se_msgpack_read_int(head->value, head->value_size, &value)) {
            c->detail = head->value_size ? head->value[0] : 0;
            return SE_WRONG_TYPE;
        }
    }
    c->detail = (uint64_t)value;
    if (__builtin_add_overflow(value, op->argument, &op->result))
        return SE_OVERFLOW;
    uint8_t encoded[9];
    uint32_t size = (uint32_t)se_msgpack_write_int(encoded, op->result);
    version_of new = {.key = op_key(op), .key_size = op->key_size, .expires_us = expires_us,
                      .value = encoded, .value_size = size};
    return write_record(c, &new, leaf, head);
}

static bool is_check(const se_op *op) {
    return op->kind == SE_OP_CHECK || op->kind == SE_OP_EXPECT || op->kind == SE_OP_CHECK_RANGE;
}

static se_status apply_op(commit *c, se_op *op) {
    se_leaf *leaf;
    se_record *head;
    if (is_check(op))
        return SE_OK;
    SE_TRY(find_leaf(c, op, &leaf));
    SE_TRY(head_of(c, leaf, &head));
    switch (op->kind) {
    case SE_OP_PUT: {
        version_of new = version_of_op(op);
        return write_record(c, &new, leaf, head);
    }
    case SE_OP_DELETE:
        return apply_delete(c, op, leaf, head);
    case SE_OP_INCREMENT:
        return apply_increment(c, op, leaf, head);
    case SE_OP_APPEND:
        return apply_append(c, op, leaf, head);
    case SE_OP_BUMP:
        return apply_bump(c, op, leaf, head);
    default:
        return SE_INVALID;
    }
}

static void use_run(commit *c, const se_leaf *leaf, const se_record *head) {
    if ((head->flags & SE_RECORD_TOMBSTONE) || head->value_size < sizeof(se_run_record))
        return;
    const se_run_record *run = (const se_run_record *)head->value;
    c->run = leaf->key;
    c->run_closed = run->status > SE_RUN_ACTIVE;
    c->detail = run->status;
    c->retention.kind = run->retention_kind;
    c->retention.argument = run->retention_argument;
}

/* The status and retention of the run, if it is registered. */
static se_status open_run(commit *c) {
    se_store *store = c->store;
    uint64_t epoch = se_load_relaxed(&c->slot->request_run_epoch);
    uint64_t offset = se_load_relaxed(&c->slot->request_run_leaf);
    if (epoch != se_load_relaxed(&store->seq->run_epoch))
        return SE_STALE_RUN;
    if (!offset)
        return SE_OK;
    const se_leaf *leaf = se_leaf_at(store, offset);
    if (!leaf || leaf->key_size != SE_RUN_ID_SIZE + 2 ||
        se_load_relaxed(&leaf->head) == SE_LEAF_REMOVED)
        return SE_STALE_RUN;
    se_record *head;
    SE_TRY(head_of(c, leaf, &head));
    use_run(c, leaf, head);
    return SE_OK;
}

static se_status each_op(commit *c, se_status (*visit)(commit *, se_op *)) {
    uint64_t at = 0;
    for (uint64_t index = 0; index < c->op_count; index++) {
        c->op_index = index;
        se_op *op = next_op(c, &at);
        if (!op)
            return SE_INVALID;
        SE_TRY(visit(c, op));
    }
    return SE_OK;
}

static se_status check_one(commit *c, se_op *op) { return check_op(c, op); }

/* Ends a run, or chooses its retention: both help a full store. */
static bool is_remedy(const se_op *op) {
    if (op->kind != SE_OP_PUT || !is_run_key(op_key(op), op->key_size) ||
        op->value_size < sizeof(se_run_record))
        return false;
    se_run_record run; /* in a request it may lie at any address */
    memcpy(&run, op_value(op), sizeof run);
    return run.status > SE_RUN_ACTIVE || run.retention_kind != SE_RETAIN_DEFAULT;
}

/* A run that is not active is told before anything else; its own record may always change. Deletes
 * and remedies may use the reserve, and what the indexes over runs need for them. */
static se_status survey_one(commit *c, se_op *op) {
    if (is_check(op))
        return SE_OK;
    bool of_runs = op_key(op)[SE_RUN_ID_SIZE] == SE_TAG_RUN;
    if (SE_UNLIKELY(c->run_closed && !of_runs))
        return SE_RUN_CLOSED;
    bool of_index = of_runs && se_is_bookkeeping(op_key(op), op->key_size);
    bool takes = op->kind != SE_OP_DELETE && !of_index && !is_remedy(op);
    if (takes)
        c->store->deleting = false;
    c->append_count += op->kind == SE_OP_APPEND;
    return SE_OK;
}

/* How many keys it may write at most. */
static uint64_t key_count(const commit *c) {
    return c->op_count + 2 * c->append_count + (c->append_count > 0);
}

static se_status prepare(commit *c) {
    se_store *store = c->store;
    if (c->size > store->header->request_size || c->op_count > SE_OPS_MAX)
        return SE_INVALID;
    SE_TRY(open_run(c));
    store->deleting = true;
    SE_TRY(each_op(c, survey_one));
    if (se_frame_bound(c->size, c->append_count) > SE_FRAME_MAX)
        return SE_INVALID;
    SE_TRY(each_op(c, check_one));
    SE_TRY(se_undo_reserve(store, key_count(c) * 12 + 64, key_count(c) * 4 + 32));
    return SE_OK;
}

static void count_time(commit *c, uint64_t start_ns) {
    se_sequencer *seq = c->store->seq;
    se_word *sum = c->inserted ? &seq->section_insert_ns : &seq->section_update_ns;
    se_word *count = c->inserted ? &seq->section_insert_count : &seq->section_update_count;
    se_store_relaxed(sum, se_load_relaxed(sum) + se_clock_ns() - start_ns);
    se_store_relaxed(count, se_load_relaxed(count) + c->op_count);
}

static void count_one(se_word *counter) {
    se_store_relaxed(counter, se_load_relaxed(counter) + 1);
}

static void reply(const commit *c, se_status status) {
    se_store_relaxed(&c->slot->reply_status, (uint64_t)status);
    se_store_relaxed(&c->slot->reply_version, c->version);
    se_store_relaxed(&c->slot->reply_timestamp, c->timestamp_us);
    se_store_relaxed(&c->slot->reply_detail, c->detail);
    se_store_relaxed(&c->slot->reply_op, c->op_index);
}

static void publish(commit *c) {
    se_store *store = c->store;
    uint32_t number = se_load_relaxed_u32(&c->slot->request_seq);
    reply(c, SE_OK);
    se_undo_store(store, &c->slot->outcome_seq, number);
    se_ring_end(store, c->version, c->timestamp_us,
                (uint32_t)(c->slot - store->slots) << 20 | (number & 0xfffff));
    se_store_relaxed(&store->seq->last_timestamp, c->timestamp_us);
    se_store_release(&store->seq->commit_version, c->version); /* the commit point */
    se_undo_end(store);
    se_bell_note(store, c->bells);
    count_one(&store->seq->commits);
}

static se_status attempt_once(commit *c) {
    c->changed = false;
    c->inserted = false;
    c->log.open = false;
    c->bells = 0;
    SE_TRY(se_retire_reserve(c->store, key_count(c) * 4 + 16));
    SE_TRY(se_ring_begin(c->store, se_frame_bound(c->size, c->append_count)));
    se_undo_begin(c->store, c->version);
    se_status status = each_op(c, apply_op);
    if (status == SE_OK)
        status = close_log(c);
    if (status == SE_OK && c->changed) {
        publish(c);
        return SE_OK;
    }
    se_status undone = se_undo_rollback(c->store);
    return undone == SE_OK ? status : undone;
}

/* Steps c to f; nothing stays of it unless the answer is SE_OK and the commit changed something. A
 * key that has come since the client looked for it, or that the write set makes twice, is found in
 * the second try. */
static se_status attempt(commit *c) {
    se_status status = attempt_once(c);
    if (SE_UNLIKELY(status == SE_INVALID && !c->searching)) {
        c->searching = true;
        status = attempt_once(c);
    }
    return status;
}

/* Blocks on their way to being joined are on no free list: what is refused meanwhile is not refused
 * for lack of memory. */
static se_status attempt_when_joined(commit *c) {
    se_store *store = c->store;
    se_status status = attempt(c);
    if (SE_LIKELY(status != SE_NEED_SPACE || !se_join_under_way(store)))
        return status;
    uint64_t start_ns = se_clock_ns();
    while (se_join_under_way(store) && se_clock_ns() - start_ns < JOIN_NS)
        SE_TRY(se_join_step(store));
    return attempt(c);
}

/* Where the arena cannot grow any more, larger free blocks are cut up. */
static se_status attempt_with_splits(commit *c) {
    se_store *store = c->store;
    uint64_t used = se_arena_used(store);
    se_status status = attempt_when_joined(c);
    for (int round = 0; status == SE_NEED_SPACE && round < SPLIT_ROUNDS_MAX; round++) {
        if (!se_load_relaxed(&store->seq->arena_exhausted))
            break;
        if (se_arena_split(store, store->short_of, c->op_count) != SE_OK)
            break;
        status = attempt(c);
    }
    if (status == SE_NEED_SPACE)
        c->detail = used; /* less than this means that room was made */
    return status;
}

void se_commit_serve(se_store *store, se_slot *slot, uint32_t index) {
    se_sequencer *seq = store->seq;
    bool timing = se_load_relaxed(&seq->timing) != 0;
    uint64_t start_ns = timing ? se_clock_ns() : 0;
    uint64_t last = se_load_relaxed(&seq->last_timestamp);
    commit c = {
        .store = store,
        .slot = slot,
        .area = se_request_area(store, index),
        .size = se_load_relaxed(&slot->request_size),
        .op_count = se_load_relaxed(&slot->request_ops),
        .snapshot = se_load_relaxed(&slot->request_snapshot),
        .now_us = se_load_relaxed(&slot->request_now_us),
        .version = se_load_relaxed(&seq->commit_version) + 1,
    };
    c.timestamp_us = c.now_us > last ? c.now_us : last;
    se_status status = prepare(&c);
    if (status == SE_OK)
        status = attempt_with_splits(&c);
    store->deleting = false;
    if (status != SE_OK || !c.changed) {
        c.version--;
        reply(&c, status);
        if (status == SE_CONFLICT || status == SE_MISMATCH)
            count_one(&seq->conflicts);
    }
    (void)se_retire_free(store, 4 + (uint32_t)c.op_count * 2);
    if (timing && status == SE_OK)
        count_time(&c, start_ns);
}

/* -- replay -------------------------------------------------------------------------------- */

static se_status find_run_of(commit *c, const uint8_t *key) {
    uint8_t run_key[SE_RUN_ID_SIZE + 2];
    uint64_t offset;
    memcpy(run_key, key, SE_RUN_ID_SIZE);
    run_key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    run_key[SE_RUN_ID_SIZE + 1] = 0;
    SE_TRY(se_index_find(c->store, run_key, sizeof run_key, &offset));
    const se_leaf *leaf = offset ? se_leaf_at(c->store, offset) : NULL;
    se_record *head;
    SE_TRY(head_of(c, leaf, &head));
    if (head)
        use_run(c, leaf, head);
    return SE_OK;
}

static se_status replay_item(commit *c, const se_frame_item *item) {
    uint64_t offset;
    se_record *head;
    SE_TRY(se_index_find(c->store, item->key, item->key_size, &offset));
    se_leaf *leaf = offset ? se_leaf_at(c->store, offset) : NULL;
    SE_TRY(head_of(c, leaf, &head));
    version_of new = {.key = item->key,
                      .key_size = item->key_size,
                      .flags = item->kind == SE_FRAME_DELETE ? SE_RECORD_TOMBSTONE : 0,
                      .expires_us = item->expires_us,
                      .value = item->value,
                      .value_size = item->value_size};
    return write_record(c, &new, leaf, head);
}

static se_status replay_items(commit *c, const se_frame *frame) {
    uint64_t at = sizeof(se_frame);
    se_frame_item item;
    while (se_frame_next(frame, &at, &item)) {
        if (at == sizeof(se_frame) || !c->run)
            SE_TRY(find_run_of(c, item.key));
        SE_TRY(replay_item(c, &item));
    }
    return SE_OK;
}

static uint64_t count_items(const se_frame *frame) {
    uint64_t at = sizeof(se_frame);
    uint64_t count = 0;
    se_frame_item item;
    while (se_frame_next(frame, &at, &item))
        count++;
    return count;
}

/* All of the frame, or nothing. */
static se_status replay_once(commit *c, const se_frame *frame) {
    se_store *store = c->store;
    se_sequencer *seq = store->seq;
    c->run = NULL;
    c->retention.kind = SE_RETAIN_DEFAULT;
    SE_TRY(se_undo_reserve(store, c->op_count * 12 + 64, c->op_count * 4 + 32));
    SE_TRY(se_retire_reserve(store, c->op_count * 4 + 16));
    se_undo_begin(store, c->version);
    se_status status = replay_items(c, frame);
    if (status != SE_OK) {
        se_status undone = se_undo_rollback(store);
        return undone == SE_OK ? status : undone;
    }
    se_store_relaxed(&seq->last_timestamp, c->timestamp_us);
    se_store_relaxed(&seq->durable_version, c->version); /* it comes from the disk */
    se_store_release(&seq->commit_version, c->version);
    se_undo_end(store);
    return SE_OK;
}

/* Memory for a frame of so many bytes: more of it, larger blocks cut up, or history given up. */
static se_status replay_find_memory(se_store *store, uint64_t need, uint64_t op_count) {
    uint64_t wanted = (need * 2 + op_count * 256 + SE_GROW_AHEAD) & ~(uint64_t)(SE_PAGE - 1);
    if (se_arena_grow(store, wanted) == SE_OK)
        return SE_OK;
    SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
    se_status status = se_arena_split(store, store->short_of, op_count);
    se_sequencer_release(store);
    if (status == SE_OK)
        return SE_OK;
    uint64_t before = se_arena_used(store);
    SE_TRY(se_sweep_for_room(store, need));
    return se_arena_used(store) < before ? SE_OK : SE_FULL;
}

/* A run that was erased in front of this frame: its keys went without a word in the log. */
static se_status replay_erasures(se_store *store, const se_frame *frame) {
    uint64_t at = sizeof(se_frame);
    se_frame_item item;
    while (se_frame_next(frame, &at, &item))
        if (item.kind == SE_FRAME_DELETE && se_is_erase_key(item.key, item.key_size))
            SE_TRY(se_erase_replayed(store, item.key + SE_RUN_ID_SIZE + 3));
    return SE_OK;
}

se_status se_commit_replay(se_store *store, const se_frame *frame) {
    uint64_t version = se_load_relaxed(&frame->version);
    store->replaying = true;
    if (SE_UNLIKELY(se_load_relaxed(&store->seq->erasing_runs) != 0)) {
        se_status erased = replay_erasures(store, frame);
        if (erased != SE_OK) {
            store->replaying = false;
            return erased;
        }
    }
    commit c = {.store = store, .version = version, .timestamp_us = frame->timestamp_us,
                .now_us = frame->timestamp_us, .op_count = count_items(frame)};
    se_status status = SE_NEED_SPACE;
    while (status == SE_NEED_SPACE) {
        status = se_sequencer_lock(store, LOCK_BOUND_NS);
        if (status != SE_OK)
            break;
        store->frame_at = UINT64_MAX;
        status = replay_once(&c, frame);
        (void)se_retire_free(store, 4 + (uint32_t)c.op_count * 2);
        se_sequencer_release(store);
        if (status == SE_NEED_SPACE) {
            se_status found = replay_find_memory(store, frame->size, c.op_count);
            status = found == SE_OK ? SE_NEED_SPACE : found;
        }
    }
    store->replaying = false;
    return status;
}
