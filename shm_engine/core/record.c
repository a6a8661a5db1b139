/* record.c - find the visible version, make one, trim the old ones. */
#include "record.h"

#include "retire.h"
#include "undo.h"

se_status se_record_older(const se_store *store, const se_record *record,
                          const se_record **older) {
    uint64_t prev = se_load_acquire(&record->prev);
    *older = NULL;
    if (prev == 0)
        return SE_OK;
    if (prev == SE_CUT)
        return SE_TRIMMED;
    const se_record *found = se_record_at(store, prev);
    if (SE_UNLIKELY(!found || !se_record_in_order(record, found)))
        return SE_CORRUPT;
    *older = found;
    return SE_OK;
}

se_status se_record_visible(const se_store *store, const se_leaf *leaf, uint64_t snapshot,
                            const se_record **found) {
    uint64_t offset = se_load_acquire(&leaf->head);
    *found = NULL;
    if (offset == SE_LEAF_REMOVED)
        return SE_TRIMMED; /* the caller looks the key up again */
    const se_record *record = se_record_at(store, offset);
    if (SE_UNLIKELY(!record))
        return SE_CORRUPT;
    while (SE_UNLIKELY(record->version > snapshot)) {
        SE_TRY(se_record_older(store, record, &record));
        if (!record)
            return SE_OK;
    }
    *found = record;
    return SE_OK;
}

se_status se_record_make(se_store *store, uint64_t prev, uint64_t version, uint64_t timestamp_us,
                         uint64_t expires_us, uint32_t flags, const void *value,
                         uint32_t value_size, uint64_t *offset) {
    SE_TRY(se_arena_take(store, sizeof(se_record) + value_size, offset));
    se_record *record = se_at(store, *offset, sizeof(se_record) + value_size);
    if (SE_UNLIKELY(!record))
        return SE_CORRUPT;
    se_store_relaxed(&record->prev, prev);
    record->version = version;
    record->timestamp_us = timestamp_us;
    record->expires_us = expires_us;
    record->value_size = value_size;
    record->flags = flags;
    se_copy_private(record->value, value, value_size);
    return SE_OK;
}

/* May everything behind this record go? kept: how many records there are up to it, itself included. */
static bool last_needed(const se_store *store, const se_record *record, uint64_t kept,
                        const se_retention *retention, uint64_t now_us, uint64_t pressure) {
    if (record->version > se_load_relaxed(&store->seq->trim_effective))
        return false;
    switch (retention->kind) {
    case SE_RETAIN_LAST:
        return kept >= retention->argument;
    case SE_RETAIN_FOR:
        return record->timestamp_us + retention->argument <= now_us;
    case SE_RETAIN_DEFAULT:
        return record->version <= pressure;
    default:
        return false;
    }
}

/* Nobody needs what is behind this record. */
static se_status cut_behind(se_store *store, se_record *record, uint64_t pressure) {
    se_sequencer *seq = store->seq;
    uint64_t prev = se_load_relaxed(&record->prev);
    if (prev <= SE_CUT)
        return SE_OK;
    const se_record *older = se_record_at(store, prev);
    if (!older)
        return SE_CORRUPT;
    se_undo_store(store, &record->prev, SE_CUT);
    SE_TRY(se_retire(store, se_record_block(prev, older) | SE_BLOCK_CHAIN));
    se_word *counter = pressure ? &seq->pressure_trimmed : &seq->trimmed_versions;
    se_store_relaxed(counter, se_load_relaxed(counter) + 1);
    return SE_OK;
}

se_status se_record_trim(se_store *store, se_leaf *leaf, const se_retention *retention,
                         uint64_t now_us, uint64_t pressure, uint64_t *walk, se_trim_place *place,
                         bool *alone) {
    se_trim_place at = *place;
    *alone = false;
    memset(place, 0, sizeof *place);
    if (retention->kind == SE_RETAIN_ALL || (retention->kind == SE_RETAIN_DEFAULT && !pressure))
        return SE_OK;
    if (!at.record) {
        at.record = se_load_relaxed(&leaf->head);
        at.kept = 1;
    }
    se_record *record = se_record_at(store, at.record);
    if (!record)
        return SE_CORRUPT;
    for (; *walk > 0; at.kept++, --*walk) {
        if (last_needed(store, record, at.kept, retention, now_us, pressure)) {
            *alone = at.kept == 1 && (record->flags & SE_RECORD_TOMBSTONE) != 0;
            return cut_behind(store, record, pressure);
        }
        at.record = se_load_relaxed(&record->prev);
        if (at.record <= SE_CUT)
            return SE_OK;
        se_record *older = se_record_at(store, at.record);
        if (!older || !se_record_in_order(record, older))
            return SE_CORRUPT;
        record = older;
    }
    *place = at;
    return SE_OK;
}
