/* walring.c - append, make room, read. */
#include "walring.h"

#include "futex.h"
#include "log.h"
#include "undo.h"

static uint8_t *ring_at(const se_store *store, uint64_t position) {
    return store->control + store->header->wal_ring_offset +
           position % store->header->wal_ring_size;
}

/* Where a frame of so many bytes would begin. */
static uint64_t start_of(const se_store *store, uint64_t tail, uint64_t consumed, uint64_t bound) {
    uint64_t size = store->header->wal_ring_size;
    uint64_t place = tail % size;
    uint64_t next_lap = tail - place + size;
    bool close_behind = tail - consumed <= store->header->wal_ring_soft / 2;
    bool fits_next = next_lap + bound <= consumed + size;
    if (place + bound > size)
        return next_lap; /* of a ring that is empty: a frame takes half of it at most */
    if (place >= store->header->wal_ring_soft && close_behind && fits_next)
        return next_lap;
    /* No memory for more pages: the ring has to do with those that it has. */
    if (place + bound > se_load_relaxed(&store->seq->wal_backed) &&
        se_load_relaxed(&store->seq->wal_exhausted) && fits_next)
        return next_lap;
    return tail;
}

se_status se_ring_begin(se_store *store, uint64_t bound) {
    store->frame_start = store->frame_at = UINT64_MAX;
    if (!se_ring_exists(store))
        return SE_OK;
    se_sequencer *seq = store->seq;
    if (SE_UNLIKELY(se_load_acquire(&seq->log_failed) != 0))
        return SE_READ_ONLY;
    uint64_t size = store->header->wal_ring_size;
    uint64_t tail = se_load_relaxed(&seq->wal_tail);
    uint64_t consumed = se_load_acquire(&seq->wal_consumed);
    uint64_t start = start_of(store, tail, consumed, bound);
    if (SE_UNLIKELY(start + bound > consumed + size ||
                    start % size + bound > se_load_acquire(&seq->wal_backed)))
        return SE_NEED_LOG;
    if (SE_UNLIKELY(start != tail && tail % size != 0)) {
        uint32_t skip = SE_FRAME_SKIP;
        se_copy_private(ring_at(store, tail), &skip, sizeof skip);
    }
    store->frame_start = start;
    store->frame_at = start + sizeof(se_frame);
    return SE_OK;
}

void se_ring_add(se_store *store, uint32_t kind, const uint8_t *key, uint32_t key_size,
                 const void *value, uint32_t value_size, uint64_t expires_us) {
    if (store->frame_at == UINT64_MAX)
        return;
    uint8_t *to = ring_at(store, store->frame_at);
    se_frame_op op = {.kind = (uint8_t)kind, .key_size = (uint16_t)key_size,
                      .value_size = value_size};
    memcpy(to, &op, sizeof op);
    to += sizeof op;
    if (kind == SE_FRAME_PUT_EXPIRES) {
        memcpy(to, &expires_us, sizeof expires_us);
        to += sizeof expires_us;
        store->frame_at += sizeof expires_us;
    }
    memcpy(to, key, key_size);
    se_copy_private(to + key_size, value, value_size);
    store->frame_at += sizeof op + key_size + value_size;
}

void se_ring_end(se_store *store, uint64_t version, uint64_t timestamp_us, uint32_t origin) {
    if (store->frame_at == UINT64_MAX || store->frame_at == store->frame_start + sizeof(se_frame))
        return;
    se_frame *frame = (se_frame *)ring_at(store, store->frame_start);
    uint64_t used = store->frame_at - store->frame_start;
    uint64_t size = (used + 7) & ~UINT64_C(7);
    memset((uint8_t *)frame + used, 0, size - used);
    frame->crc = 0;
    frame->timestamp_us = timestamp_us;
    frame->unsynced = 0;
    frame->origin = origin;
    /* The log writer may stand here with a tail that a rollback has taken back: it must not find the
     * size of this frame with the version of whatever lay here before. */
    se_store_relaxed(&frame->version, version);
    se_store_release_u32((se_word32 *)&frame->size, (uint32_t)size);
    store->frame_at = UINT64_MAX;
    se_undo_store(store, &store->seq->wal_tail, store->frame_start + size);
}

/* One page more than wal_backed says: the mark that ends a lap may come right behind it, and is
 * written within a commit, where no page may be missing. */
static se_status back_between(se_store *store, uint64_t from, uint64_t to) {
    uint64_t size = store->header->wal_ring_size;
    uint64_t end = to + SE_PAGE < size ? to + SE_PAGE : size;
    return se_back_with_memory(store->control_fd, store->header->wal_ring_offset + from, end - from);
}

static se_status back_to(se_store *store, uint64_t need) {
    se_sequencer *seq = store->seq;
    uint64_t backed = se_load_acquire(&seq->wal_backed);
    uint64_t wider = backed + (UINT64_C(1) << 20);
    if (wider < need)
        wider = (need + SE_PAGE - 1) & ~(uint64_t)(SE_PAGE - 1);
    if (wider > store->header->wal_ring_size)
        wider = store->header->wal_ring_size;
    se_status status = back_between(store, backed, wider);
    if (status == SE_FULL && wider > need) { /* perhaps there is just enough */
        wider = (need + SE_PAGE - 1) & ~(uint64_t)(SE_PAGE - 1);
        status = back_between(store, backed, wider);
    }
    se_store_release(&seq->wal_exhausted, status != SE_OK);
    if (status == SE_OK)
        (void)se_swap_if_equal(&seq->wal_backed, backed, wider);
    return status;
}

se_status se_ring_make_room(se_store *store, uint64_t bound, uint64_t bound_ns) {
    se_sequencer *seq = store->seq;
    if (se_load_acquire(&seq->log_failed) != 0)
        return SE_READ_ONLY;
    uint64_t size = store->header->wal_ring_size;
    uint64_t tail = se_load_acquire(&seq->wal_tail);
    uint64_t consumed = se_load_acquire(&seq->wal_consumed);
    uint64_t start = start_of(store, tail, consumed, bound);
    if (start % size + bound > se_load_acquire(&seq->wal_backed)) {
        se_status status = back_to(store, start % size + bound);
        if (status != SE_FULL)
            return status;
        /* Now it has to do with the pages that it has; waiting for the log writer is the last resort. */
        start = start_of(store, tail, consumed, bound);
        if (start % size + bound > se_load_acquire(&seq->wal_backed) && tail == consumed)
            return SE_FULL;
    }
    if (start % size + bound <= se_load_acquire(&seq->wal_backed) &&
        start + bound <= consumed + size) {
        return SE_OK;
    }
    return se_log_wait_progress(store, consumed, bound_ns);
}

se_status se_ring_peek(const se_store *store, uint64_t *position, uint64_t newest,
                       se_frame **found) {
    uint64_t size = store->header->wal_ring_size;
    uint64_t tail = se_load_acquire(&store->seq->wal_tail);
    uint64_t at = *position;
    *found = NULL;
    for (;;) {
        if (at >= tail)
            return SE_OK;
        se_frame *frame = (se_frame *)ring_at(store, at);
        uint64_t left = size - at % size;
        if (se_load_acquire_u32((se_word32 *)&frame->size) == SE_FRAME_SKIP) {
            at += left;
            continue;
        }
        if (left < sizeof(se_frame))
            return SE_CORRUPT;
        if (se_load_relaxed(&frame->version) > newest)
            return SE_OK; /* its commit may still be rolled back, so nothing else is looked at */
        if (frame->size < sizeof(se_frame) || frame->size > left || (frame->size & 7))
            return SE_CORRUPT;
        *position = at;
        *found = frame;
        return SE_OK;
    }
}
