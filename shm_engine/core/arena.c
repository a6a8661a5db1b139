/* arena.c - take, give, grow, map ahead. */
#include "arena.h"

#include <sys/mman.h>

#include "join.h"
#include "undo.h"

#define SMALL_MAX 1024u
#define SMALL_CLASSES (SMALL_MAX / 16u)
#define LARGEST (UINT64_C(64) << 20) /* of the last class */
#define MAP_WINDOW (UINT64_C(1) << 20)
#define MAP_MARGIN (UINT64_C(256) << 10)
#define GROW_MIN (UINT64_C(1) << 20)
#define GROW_MAX (UINT64_C(4) << 20) /* about a millisecond */

uint32_t se_class_of(uint64_t size) {
    if (size <= SMALL_MAX)
        return size <= 16 ? 0 : (uint32_t)((size + 15) / 16 - 1);
    /* size in (1024 << k, 1024 << (k + 1)], in four steps */
    uint32_t doubling = 63u - (uint32_t)__builtin_clzll(size - 1) - 10u;
    uint64_t step = UINT64_C(256) << doubling;
    uint64_t quarter = (size - (UINT64_C(1024) << doubling) + step - 1) / step;
    return SMALL_CLASSES + doubling * 4 + (uint32_t)quarter - 1;
}

uint64_t se_class_size(uint32_t size_class) {
    if (size_class < SMALL_CLASSES)
        return ((uint64_t)size_class + 1) * 16;
    uint32_t doubling = (size_class - SMALL_CLASSES) / 4;
    uint64_t quarter = (size_class - SMALL_CLASSES) % 4 + 1;
    return (UINT64_C(1024) << doubling) + quarter * (UINT64_C(256) << doubling);
}

uint32_t se_class_within(uint64_t size) {
    if (size >= LARGEST)
        return SE_CLASS_COUNT - 1;
    uint32_t size_class = se_class_of(size);
    return se_class_size(size_class) > size ? size_class - 1 : size_class;
}

static se_status need_space(se_store *store, uint64_t size) {
    store->short_of = size;
    return SE_NEED_SPACE;
}

/* Free blocks that are too small for anybody's record. */
static void count_scraps(se_store *store, uint32_t size_class, uint64_t change) {
    se_word *scraps = &store->seq->arena_scraps;
    if (SE_UNLIKELY(size_class < SE_SCRAP_CLASSES))
        se_store_relaxed(scraps, se_load_relaxed(scraps) + change);
}

/* The reserve for deletes is counted over free blocks too, where the arena cannot grow. */
static bool would_touch_reserve(const se_store *store, uint64_t size) {
    const se_sequencer *seq = store->seq;
    if (SE_LIKELY(store->deleting || !se_load_relaxed(&seq->arena_exhausted)))
        return false;
    uint64_t left = se_load_acquire(&seq->arena_allocated) - se_load_relaxed(&seq->arena_bump) +
                    se_load_relaxed(&seq->arena_free) - se_load_relaxed(&seq->arena_scraps);
    return left < size + store->header->reserve_size;
}

se_status se_arena_take(se_store *store, uint64_t size, uint64_t *offset) {
    se_sequencer *seq = store->seq;
    uint32_t size_class = se_class_of(size);
    if (SE_UNLIKELY(size_class >= SE_CLASS_COUNT))
        return SE_TOO_LARGE;
    uint64_t full = se_class_size(size_class);
    uint64_t free_block = se_load_relaxed(&seq->free_head[size_class]);
    if (free_block) {
        if (SE_UNLIKELY(would_touch_reserve(store, full)))
            return need_space(store, full);
        const se_word *link = se_at(store, free_block, full);
        if (SE_UNLIKELY(!link))
            return SE_CORRUPT;
        se_undo_note_taken(store, (uint64_t)size_class << SE_BLOCK_CLASS_SHIFT | free_block);
        se_store_release(&seq->free_head[size_class], se_load_relaxed(link));
        se_store_relaxed(&seq->arena_free, se_load_relaxed(&seq->arena_free) - full);
        count_scraps(store, size_class, -full);
        *offset = free_block;
        return SE_OK;
    }
    uint64_t bump = se_load_relaxed(&seq->arena_bump);
    uint64_t reserve = store->deleting ? 0 : store->header->reserve_size;
    if (SE_UNLIKELY(bump + full + reserve > se_load_acquire(&seq->arena_allocated)))
        return need_space(store, full);
    se_undo_note_taken(store, (uint64_t)size_class << SE_BLOCK_CLASS_SHIFT | bump);
    se_store_release(&seq->arena_bump, bump + full);
    *offset = bump;
    return SE_OK;
}

static void put_on_list(se_store *store, uint64_t offset, uint64_t size) {
    se_word *head = &store->seq->free_head[se_class_of(size)];
    se_word *link = se_at(store, offset, size);
    SE_ASSERT(link);
    se_undo_store(store, link, se_load_relaxed(head));
    se_undo_store(store, head, offset);
    count_scraps(store, se_class_of(size), size);
}

#define SPLIT_PIECES_MAX 4096u /* two entries of the undo log each */

/* Cuts the first block of a list: pieces first, then what is left in blocks as large as fit. */
static se_status split_first(se_store *store, uint32_t from, uint64_t size, uint64_t *made) {
    se_word *head = &store->seq->free_head[from];
    uint64_t offset = se_load_relaxed(head);
    uint64_t left = se_class_size(from);
    const se_word *link = se_at(store, offset, left);
    if (!link)
        return SE_CORRUPT;
    se_undo_store(store, head, se_load_relaxed(link));
    count_scraps(store, from, -left);
    while (left > 0) {
        uint64_t piece = left >= size && *made < SPLIT_PIECES_MAX
                             ? size
                             : se_class_size(se_class_within(left));
        put_on_list(store, offset, piece);
        *made += piece == size;
        offset += piece;
        left -= piece;
    }
    return SE_OK;
}

se_status se_arena_split(se_store *store, uint64_t size, uint64_t wanted) {
    uint64_t made = 0;
    if (wanted > SPLIT_PIECES_MAX)
        wanted = SPLIT_PIECES_MAX;
    for (uint32_t from = SE_CLASS_COUNT - 1; from > se_class_of(size) && made < wanted; from--) {
        while (made < wanted && se_load_relaxed(&store->seq->free_head[from])) {
            se_undo_begin(store, SE_UPKEEP);
            se_status status = split_first(store, from, size, &made);
            if (status != SE_OK) {
                (void)se_undo_rollback(store);
                return status;
            }
            se_undo_end(store);
        }
    }
    return made ? SE_OK : SE_FULL;
}

bool se_arena_was_taken(const se_store *store, uint64_t block) {
    uint64_t offset = block & SE_BLOCK_OFFSET_MASK;
    uint32_t size_class = (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
    return se_load_relaxed(&store->seq->free_head[size_class]) != offset &&
           se_load_relaxed(&store->seq->arena_bump) > offset;
}

se_status se_arena_give(se_store *store, uint64_t block) {
    se_sequencer *seq = store->seq;
    uint64_t offset = block & SE_BLOCK_OFFSET_MASK;
    uint32_t size_class = (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
    uint64_t full = se_class_size(size_class);
    uint64_t head = se_load_relaxed(&seq->free_head[size_class]);
    if (head == offset)
        return SE_OK;
    se_word *link = se_at(store, offset, full);
    if (SE_UNLIKELY(!link))
        return SE_CORRUPT;
    se_store_relaxed(link, head);
    se_store_release(&seq->free_head[size_class], offset);
    se_store_relaxed(&seq->arena_free, se_load_relaxed(&seq->arena_free) + full);
    count_scraps(store, size_class, full);
    return SE_OK;
}

static se_status grow_by(se_store *store, uint64_t allocated, uint64_t size) {
    se_word *end = &store->seq->arena_allocated;
    SE_TRY(se_back_with_memory(store->data_fd, allocated, size));
    for (uint64_t now = allocated; now < allocated + size;) {
        if (se_swap_if_equal(end, now, allocated + size))
            break;
        now = se_load_acquire(end);
    }
    return SE_OK;
}

se_status se_arena_grow(se_store *store, uint64_t need) {
    se_sequencer *seq = store->seq;
    uint64_t allocated = se_load_acquire(&seq->arena_allocated);
    uint64_t room = store->data_size - allocated;
    uint64_t step = allocated / 8;
    step = step < GROW_MIN ? GROW_MIN : step > GROW_MAX ? GROW_MAX : step;
    step = step < need ? need : step;
    se_status status = SE_FULL;
    for (; status == SE_FULL; step = step / 4 < need ? need : step / 4) {
        uint64_t size = (step < room ? step : room) & ~(uint64_t)(SE_PAGE - 1);
        if (size < need || size == 0)
            break;
        status = grow_by(store, allocated, size);
        if (step == need)
            break;
    }
    if (se_load_relaxed(&seq->arena_exhausted) != (status == SE_FULL))
        se_store_relaxed(&seq->arena_exhausted, status == SE_FULL);
    return status;
}

static void map_pages(se_store *store, uint64_t from, uint64_t to) {
#ifdef MADV_POPULATE_WRITE
    if (madvise(store->data + from, to - from, MADV_POPULATE_WRITE) == 0)
        return;
#endif
    for (uint64_t page = from; page < to; page += SE_PAGE)
        (void)atomic_fetch_add_explicit((se_word *)(store->data + page), 0, memory_order_relaxed);
}

void se_arena_map_ahead(se_store *store) {
    uint64_t bump = se_load_relaxed(&store->seq->arena_bump);
    uint64_t mapped = se_load_relaxed(&store->mapped_to);
    if (SE_LIKELY(bump + MAP_MARGIN <= mapped))
        return;
    uint64_t allocated = se_load_acquire(&store->seq->arena_allocated);
    uint64_t from = mapped > bump ? mapped : bump & ~(uint64_t)(SE_PAGE - 1);
    uint64_t to = from + MAP_WINDOW < allocated ? from + MAP_WINDOW : allocated;
    if (from >= to)
        return;
    atomic_store_explicit(&store->mapped_to, to, memory_order_relaxed);
    map_pages(store, from, to);
}

uint64_t se_arena_used(const se_store *store) {
    uint64_t bump = se_load_relaxed(&store->seq->arena_bump);
    uint64_t free_size = se_load_relaxed(&store->seq->arena_free);
    return free_size > bump ? 0 : bump - free_size;
}

se_status se_arena_count(const se_store *store, uint64_t block, const uint32_t *size_class,
                         se_free_count *count) {
    uint64_t steps = store->data_size / 16;
    while (block) {
        uint32_t class_here = size_class ? *size_class : (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
        uint64_t size = se_class_size(class_here);
        const se_word *link = se_at(store, block & SE_BLOCK_OFFSET_MASK, size);
        if (!link || steps-- == 0)
            return SE_CORRUPT;
        count->free_size += size;
        count->scraps_size += se_scrap_size(class_here);
        block = se_load_relaxed(link);
    }
    return SE_OK;
}

se_status se_arena_recount(se_store *store) {
    se_sequencer *seq = store->seq;
    se_free_count count = {0, 0};
    for (uint32_t size_class = 0; size_class < SE_CLASS_COUNT; size_class++)
        SE_TRY(se_arena_count(store, se_load_relaxed(&seq->free_head[size_class]), &size_class,
                              &count));
    SE_TRY(se_join_recount(store, &count));
    se_store_relaxed(&seq->arena_free, count.free_size);
    se_store_relaxed(&seq->arena_scraps, count.scraps_size);
    return SE_OK;
}
