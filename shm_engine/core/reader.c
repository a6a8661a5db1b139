/* reader.c - hides, find. */
#include "reader.h"

se_status se_reader_hides(const se_store *store, const uint8_t *key, uint64_t snapshot,
                          bool *hidden) {
    uint8_t run_key[SE_RUN_ID_SIZE + 2];
    uint64_t offset;
    const se_record *record;
    *hidden = false;
    if (SE_LIKELY(se_load_acquire(&store->seq->erasing_runs) == 0) ||
        key[SE_RUN_ID_SIZE] == SE_TAG_RUN)
        return SE_OK;
    memcpy(run_key, key, SE_RUN_ID_SIZE);
    run_key[SE_RUN_ID_SIZE] = SE_TAG_RUN;
    run_key[SE_RUN_ID_SIZE + 1] = 0;
    SE_TRY(se_index_find(store, run_key, sizeof run_key, &offset));
    const se_leaf *leaf = offset ? se_leaf_at(store, offset) : NULL;
    if (!leaf)
        return offset ? SE_CORRUPT : SE_OK;
    SE_TRY(se_record_visible(store, leaf, snapshot, &record));
    if (!record)
        return SE_OK;
    *hidden = se_record_run_status(record) == SE_RUN_DELETED;
    return SE_OK;
}

se_status se_reader_find(const se_store *store, const uint8_t *key, uint32_t key_size,
                         uint64_t snapshot, const se_record **record) {
    bool hidden;
    uint64_t offset;
    *record = NULL;
    SE_TRY(se_reader_hides(store, key, snapshot, &hidden));
    if (hidden)
        return SE_OK;
    SE_TRY(se_index_find(store, key, key_size, &offset));
    if (!offset)
        return SE_OK;
    const se_leaf *leaf = se_leaf_at(store, offset);
    if (!leaf)
        return SE_CORRUPT;
    return se_record_visible(store, leaf, snapshot, record);
}
