/* record.h - versions of a key, and which one a reader sees.
 *
 *     leaf.head -> version 9 -> version 7 -> version 4 -> CUT (older ones were trimmed)
 *
 * Why:        every write makes a new record in front of the chain; a reader at snapshot s takes
 *             the first with version <= s. Nothing published is ever changed, but for a prev that
 *             becomes SE_CUT when nobody needs what is behind it.
 * Used by:    se_record_visible: any pinned thread. The rest: the holder.
 * Invariants: R1 versions fall along prev; R2 the newest record <= trim_effective is kept.
 * Errors:     SE_TRIMMED and SE_NOT_FOUND are never confused: a chain that ends in a cut does not
 *             say "absent".
 */
#ifndef SE_RECORD_H
#define SE_RECORD_H

#include "arena.h"
#include "msgpack.h"
#include "store.h"

typedef struct {
    uint32_t kind; /* SE_RETAIN_* */
    uint64_t argument;
} se_retention;

static inline se_record *se_record_at(const se_store *store, uint64_t offset) {
    se_record *record = se_at(store, offset, sizeof(se_record));
    if (SE_UNLIKELY(!record || record->value_size > SE_VALUE_ENCODED_MAX ||
                    record->value_size > store->data_size - offset - sizeof(se_record)))
        return NULL;
    return record;
}

/* R1: without it a damaged prev could make a chain that never ends. */
static inline bool se_record_in_order(const se_record *record, const se_record *older) {
    return older->version <= record->version && older != record;
}

static inline uint64_t se_record_block(uint64_t offset, const se_record *record) {
    return se_block(offset, sizeof(se_record) + record->value_size);
}

static inline se_leaf *se_leaf_at(const se_store *store, uint64_t offset) {
    se_leaf *leaf = se_at(store, offset, 16);
    if (SE_UNLIKELY(!leaf || leaf->key_size > SE_KEY_MAX ||
                    offset + SE_LEAF_KEY_OFFSET + leaf->key_size > store->data_size))
        return NULL;
    return leaf;
}

static inline uint64_t se_leaf_size(uint32_t key_size) {
    return SE_LEAF_KEY_OFFSET + (uint64_t)key_size;
}

/* Keys whose history nobody reads: heads, counters, entries of an index. */
static inline bool se_is_bookkeeping(const uint8_t *key, uint32_t key_size) {
    uint8_t tag = key[SE_RUN_ID_SIZE];
    return key_size > SE_RUN_ID_SIZE + 2 && key[SE_RUN_ID_SIZE + 1] == SE_SPACE_BOOKKEEPING &&
           (tag == SE_TAG_EVENT || tag == SE_TAG_TRACE || tag == SE_TAG_RUN);
}

/* The status in a run's own record; a tombstone has none. */
static inline uint8_t se_record_run_status(const se_record *record) {
    return record->value_size < sizeof(se_run_record) ? SE_RUN_UNREGISTERED : record->value[0];
}

/* A counted value: 92 | cf counter, big-endian | value, which is a MessagePack list of two. */
static inline bool se_counted_check(const uint8_t *value, uint32_t size) {
    return size > 10 && value[0] == 0x92 && value[1] == 0xcf;
}

static inline uint64_t se_counted_read(const uint8_t *value) {
    uint64_t counter;
    memcpy(&counter, value + 2, 8);
    return __builtin_bswap64(counter);
}

static inline void se_counted_write(uint8_t *value, uint64_t counter) {
    counter = __builtin_bswap64(counter);
    memcpy(value + 2, &counter, 8);
}

/* Deleted, or run out at now_us. */
static inline bool se_record_dead(const se_record *record, uint64_t now_us) {
    return (record->flags & SE_RECORD_TOMBSTONE) != 0 ||
           (record->expires_us != 0 && record->expires_us <= now_us);
}

/* The newest record with version <= snapshot, tombstones included. *found NULL: there is none. */
se_status se_record_visible(const se_store *store, const se_leaf *leaf, uint64_t snapshot,
                            const se_record **found);
/* The next older one of a record; NULL with SE_OK: it was the first, with SE_TRIMMED: cut. */
se_status se_record_older(const se_store *store, const se_record *record, const se_record **older);
/* Takes a block and fills it; not linked yet. */
se_status se_record_make(se_store *store, uint64_t prev, uint64_t version, uint64_t timestamp_us,
                         uint64_t expires_us, uint32_t flags, const void *value,
                         uint32_t value_size, uint64_t *offset);
/* Where a walk along a chain stopped. */
typedef struct {
    uint64_t record; /* the next one to look at; 0: begin at the head */
    uint64_t kept;   /* how many records there are up to it, itself included */
} se_trim_place;

/* Cuts what retention and trim_effective let go. Inside a change.
 * pressure: 0, or the version up to which the high-water rule drops history of SE_RETAIN_DEFAULT.
 * *walk: the most records to look at; on return, how many are left of it.
 * *place: where to begin; where to go on, or all zero when the walk came to its end.
 * *alone: the head is a tombstone with nothing behind it that anybody needs: the leaf may go. */
se_status se_record_trim(se_store *store, se_leaf *leaf, const se_retention *retention,
                         uint64_t now_us, uint64_t pressure, uint64_t *walk, se_trim_place *place,
                         bool *alone);

#endif
