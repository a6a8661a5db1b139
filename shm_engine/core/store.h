/* store.h - one process's mapping of one database.
 *
 * Why:     both segments are mapped at any address, so everything shared is an offset; this struct
 *          turns offsets into pointers and holds what is private to the process.
 * Used by: coordinator and clients. The struct may be used by all threads of the process.
 * Errors:  bytes in the segments are not trusted: se_at gives NULL for what cannot be there.
 */
#ifndef SE_STORE_H
#define SE_STORE_H

#include <stdbool.h>

#include "layout.h"
#include "status.h"

typedef struct se_store {
    uint8_t *control;
    uint8_t *data;
    uint64_t control_size;
    uint64_t data_size;
    int control_fd;
    int data_fd;
    se_header *header;
    se_sequencer *seq;
    se_slot *slots;
    se_snapshot *snapshots;
    se_undo_entry *undo;
    se_word *taken;
    se_word mapped_to;      /* arena bytes whose pages this process has mapped ahead */
    se_word rung_bump;      /* the bump pointer when this process last rang the keeper's bell */
    se_word asked_ns;       /* when this process last asked for memory in vain */
    uint64_t identity;      /* of this process */
    uint64_t undo_count;    /* the holder's private copies of the shared counts */
    uint64_t taken_count;
    uint64_t commit_serial; /* commits drained here, paces the upkeep */
    uint64_t changed_bells; /* the holder's: bells of keys that changed, not rung yet */
    uint64_t short_of;      /* the block size that the last SE_NEED_SPACE was about */
    bool deleting;          /* the request being served may use the reserve */
    bool replaying;         /* the log is being replayed: no reader, no versions of its own */
    uint64_t frame_start;   /* of the frame being written into the WAL ring, a position */
    uint64_t frame_at;      /* where its next operation goes; UINT64_MAX: none is begun */
} se_store;

typedef struct {
    uint64_t map_size;
    uint32_t max_clients;
    uint32_t durability_kind;
    uint32_t flush_interval_ms;
    uint64_t max_pending_writes;
    uint64_t created_us;
    uint8_t database_id[16];
    char folder[1024];
} se_options;

/* Bytes that the control segment needs (sparse). */
uint64_t se_store_control_size(uint32_t max_clients, bool logged);
/* Lays out two empty segments. SE_FULL: shared memory has no room; SE_IO: errno says. */
se_status se_store_create(se_store *store, int control_fd, int data_fd, const se_options *options);
/* Maps two existing ones. SE_FORMAT: *found is the version (0: no database of ours at all). */
se_status se_store_attach(se_store *store, int control_fd, int data_fd, uint32_t *found);
void se_store_detach(se_store *store);
/* start time << 32 | pid: a pid that comes again is another process. 0: no such process, or dead. */
uint64_t se_process_identity(uint32_t pid);
bool se_process_alive(uint64_t identity);
/* Backs [offset, offset + size) of a segment with memory, now and not at a later fault. */
se_status se_back_with_memory(int fd, uint64_t offset, uint64_t size);
/* Gives memory back to the system; the bytes read as zero from then on. */
void se_release_memory(int fd, uint64_t offset, uint64_t size);

static inline void *se_at(const se_store *store, uint64_t offset, uint64_t size) {
    if (SE_UNLIKELY(offset < SE_PAGE || size > store->data_size ||
                    offset > store->data_size - size || (offset & 7)))
        return NULL;
    return store->data + offset;
}

static inline se_word *se_ref_word(const se_store *store, uint64_t ref) {
    if (ref & SE_REF_DATA)
        return (se_word *)se_at(store, ref & ~SE_REF_DATA, 8);
    if (SE_UNLIKELY(ref > store->control_size - 8 || (ref & 7)))
        return NULL;
    return (se_word *)(store->control + ref);
}

static inline uint64_t se_ref_of(const se_store *store, const se_word *word) {
    const uint8_t *at = (const uint8_t *)word;
    if (at >= store->data && at < store->data + store->data_size)
        return (uint64_t)(at - store->data) | SE_REF_DATA;
    return (uint64_t)(at - store->control);
}

static inline uint8_t *se_request_area(const se_store *store, uint32_t slot) {
    return store->control + store->header->requests_offset + slot * store->header->request_size;
}

#endif
