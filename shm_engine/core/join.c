/* join.c - begin, gather, rebuild. */
#include "join.h"

#include "arena.h"
#include "sequencer.h"
#include "undo.h"

#ifdef SE_KILL_POINTS
#define WINDOW UINT64_C(4096) /* so that a short workload has several of everything */
#define GATHER_BLOCKS 96u
#else
#define WINDOW (UINT64_C(256) << 10)
#define GATHER_BLOCKS 8192u
#endif
#define UNIT 16u
#define WINDOW_UNITS (WINDOW / UNIT)
#define STRETCH (WINDOW * SE_JOIN_WINDOWS)
/* An entry for each block gathered, or each run between blocks in use, and for the lists' heads. */
#define UNDO_MAX ((GATHER_BLOCKS > WINDOW_UNITS / 2 ? GATHER_BLOCKS : WINDOW_UNITS / 2) + 1024u)
#define LOCK_BOUND_NS (UINT64_C(200) * 1000000u)

/* The lists as the step leaves them; stored at its end, each head once. */
typedef struct {
    se_store *store;
    uint64_t from;
    uint64_t free_head[SE_CLASS_COUNT];
    uint64_t join_head[SE_JOIN_WINDOWS];
    uint64_t lowered; /* bytes by which the bump pointer falls */
    uint64_t scraps;  /* what arena_scraps becomes */
} join;

static void load(join *j, se_store *store) {
    const se_sequencer *seq = store->seq;
    j->store = store;
    j->from = se_load_relaxed(&seq->join_from);
    j->lowered = 0;
    j->scraps = se_load_relaxed(&seq->arena_scraps);
    for (uint32_t index = 0; index < SE_CLASS_COUNT; index++)
        j->free_head[index] = se_load_relaxed(&seq->free_head[index]);
    for (uint32_t index = 0; index < SE_JOIN_WINDOWS; index++)
        j->join_head[index] = se_load_relaxed(&seq->join_head[index]);
}

static void store_changed(se_store *store, se_word *word, uint64_t value) {
    if (se_load_relaxed(word) != value)
        se_undo_store(store, word, value);
}

static void store_heads(const join *j) {
    se_sequencer *seq = j->store->seq;
    for (uint32_t index = 0; index < SE_CLASS_COUNT; index++)
        store_changed(j->store, &seq->free_head[index], j->free_head[index]);
    for (uint32_t index = 0; index < SE_JOIN_WINDOWS; index++)
        store_changed(j->store, &seq->join_head[index], j->join_head[index]);
}

static uint64_t block_word(uint32_t size_class, uint64_t offset) {
    return (uint64_t)size_class << SE_BLOCK_CLASS_SHIFT | offset;
}

/* Moves what begins in the stretch to its window; the others keep their order and go back. */
static se_status gather_list(join *j, uint32_t size_class, uint64_t *rest, uint64_t *budget) {
    se_store *store = j->store;
    uint64_t first_kept = 0;
    se_word *last_kept = NULL;
    for (; *rest && *budget; --*budget) {
        uint64_t block = *rest;
        se_word *link = se_at(store, block, se_class_size(size_class));
        if (!link)
            return SE_CORRUPT;
        *rest = se_load_relaxed(link);
        uint64_t window = (block - j->from) / WINDOW; /* below the stretch: a huge number */
        if (window < SE_JOIN_WINDOWS) {
            store_changed(store, link, j->join_head[window]);
            j->join_head[window] = block_word(size_class, block);
            continue;
        }
        if (last_kept)
            store_changed(store, last_kept, block);
        else
            first_kept = block;
        last_kept = link;
    }
    if (last_kept) {
        store_changed(store, last_kept, j->free_head[size_class]);
        j->free_head[size_class] = first_kept;
    }
    return SE_OK;
}

static se_status gather(join *j) {
    se_sequencer *seq = j->store->seq;
    uint64_t size_class = se_load_relaxed(&seq->join_class);
    uint64_t rest = se_load_relaxed(&seq->join_rest);
    uint64_t budget = GATHER_BLOCKS;
    while (size_class < SE_CLASS_COUNT && budget > 0) {
        if (!rest) {
            rest = j->free_head[size_class];
            j->free_head[size_class] = 0;
        }
        SE_TRY(gather_list(j, (uint32_t)size_class, &rest, &budget));
        size_class += rest == 0;
    }
    store_changed(j->store, &seq->join_class, size_class);
    store_changed(j->store, &seq->join_rest, rest);
    return SE_OK;
}

/* In blocks as large as fit, behind one another. */
static se_status put_run(join *j, uint64_t start, uint64_t end, uint64_t *head_of_window) {
    while (start < end) {
        uint32_t size_class = se_class_within(end - start);
        uint64_t *head = head_of_window ? head_of_window : &j->free_head[size_class];
        se_word *link = se_at(j->store, start, se_class_size(size_class));
        if (!link)
            return SE_CORRUPT;
        store_changed(j->store, link, *head);
        *head = head_of_window ? block_word(size_class, start) : start;
        j->scraps += se_scrap_size(size_class);
        start += se_class_size(size_class);
    }
    return SE_OK;
}

/* A run of free bytes between blocks in use, or up to the window's end or beyond. */
static se_status end_run(join *j, uint64_t window, uint64_t start, uint64_t end) {
    se_word *bump = &j->store->seq->arena_bump;
    if (end == se_load_relaxed(bump)) {
        se_undo_store(j->store, bump, start);
        j->lowered = end - start;
        return SE_OK;
    }
    uint64_t target = (end - j->from) / WINDOW;
    bool carried = target > window && target < SE_JOIN_WINDOWS;
    return put_run(j, start, end, carried ? &j->join_head[target] : NULL);
}

typedef struct {
    uint64_t base;
    uint64_t limit;
    uint64_t start; /* of the run that other windows' ends make, or base */
    uint64_t end;   /* of the block that goes beyond the limit, or limit */
    uint64_t bits[WINDOW_UNITS / 64];
} window_map;

/* Which bytes of the window are free. */
static se_status map_window(join *j, uint64_t window, window_map *map) {
    uint64_t below = 0;
    uint64_t steps = 2 * WINDOW_UNITS;
    memset(map, 0, sizeof *map);
    map->base = j->from + window * WINDOW;
    map->limit = map->base + WINDOW;
    map->start = map->base;
    map->end = map->limit;
    for (uint64_t block = j->join_head[window]; block;) {
        uint64_t offset = block & SE_BLOCK_OFFSET_MASK;
        uint32_t size_class = (uint32_t)(block >> SE_BLOCK_CLASS_SHIFT);
        uint64_t size = se_class_size(size_class);
        const se_word *link = se_at(j->store, offset, size);
        if (!link || steps-- == 0 || offset >= map->limit)
            return SE_CORRUPT;
        j->scraps -= se_scrap_size(size_class);
        if (offset < map->base)
            below += offset + size < map->base ? size : map->base - offset;
        map->start = offset < map->start ? offset : map->start;
        map->end = offset + size > map->end ? offset + size : map->end;
        uint64_t at = offset > map->base ? (offset - map->base) / UNIT : 0;
        for (; at < WINDOW_UNITS && map->base + at * UNIT < offset + size; at++)
            map->bits[at / 64] |= UINT64_C(1) << (at % 64);
        block = se_load_relaxed(link);
    }
    return below == map->base - map->start ? SE_OK : SE_CORRUPT;
}

static se_status rebuild(join *j, uint64_t window) {
    window_map map;
    SE_TRY(map_window(j, window, &map));
    j->join_head[window] = 0;
    uint64_t run = map.start < map.base ? map.start : 0;
    for (uint64_t at = 0; at < WINDOW_UNITS; at++) {
        bool is_free = map.bits[at / 64] >> (at % 64) & 1;
        uint64_t offset = map.base + at * UNIT;
        if (is_free && !run)
            run = offset;
        if (is_free || !run)
            continue;
        SE_TRY(end_run(j, window, run, offset));
        run = 0;
    }
    return run ? end_run(j, window, run, map.end) : SE_OK;
}

/* The next window that holds anything; behind the last one the stretch is done. */
static se_status rebuild_next(join *j) {
    se_store *store = j->store;
    se_sequencer *seq = store->seq;
    uint64_t window = se_load_relaxed(&seq->join_window);
    while (window < SE_JOIN_WINDOWS && !j->join_head[window])
        window++;
    if (window < SE_JOIN_WINDOWS) {
        SE_TRY(rebuild(j, window));
        store_changed(store, &seq->join_window, window + 1);
        return SE_OK;
    }
    store_changed(store, &seq->join_next, j->from);
    store_changed(store, &seq->join_count, se_load_relaxed(&seq->join_count) + 1);
    store_changed(store, &seq->join_from, 0);
    return SE_OK;
}

/* Stretches follow one another from the arena's end down, so that the bump pointer can fall. */
static void begin(join *j) {
    se_store *store = j->store;
    se_sequencer *seq = store->seq;
    uint64_t bump = se_load_relaxed(&seq->arena_bump);
    uint64_t end = se_load_relaxed(&seq->join_next);
    if (end <= SE_PAGE || end > bump)
        end = bump;
    j->from = end > STRETCH + SE_PAGE ? end - STRETCH : SE_PAGE;
    store_changed(store, &seq->join_class, 0);
    store_changed(store, &seq->join_window, 0);
    store_changed(store, &seq->join_from, j->from);
}

static se_status step(join *j) {
    const se_sequencer *seq = j->store->seq;
    if (!j->from)
        begin(j);
    if (j->from < SE_PAGE || j->from % UNIT || j->from >= j->store->data_size)
        return SE_CORRUPT;
    SE_TRY(se_load_relaxed(&seq->join_class) < SE_CLASS_COUNT ? gather(j) : rebuild_next(j));
    store_heads(j);
    return SE_OK;
}

se_status se_join_step(se_store *store) {
    se_sequencer *seq = store->seq;
    join j;
    SE_TRY(se_undo_reserve(store, UNDO_MAX, 0));
    load(&j, store);
    se_undo_begin(store, SE_UPKEEP);
    se_status status = step(&j);
    if (status != SE_OK) {
        se_status undone = se_undo_rollback(store);
        return undone == SE_OK ? status : undone;
    }
    se_undo_end(store);
    se_store_relaxed(&seq->arena_scraps, j.scraps);
    if (j.lowered)
        se_store_relaxed(&seq->arena_free, se_load_relaxed(&seq->arena_free) - j.lowered);
    return SE_OK;
}

bool se_join_under_way(const se_store *store) {
    return se_load_relaxed(&store->seq->join_from) != 0;
}

uint64_t se_join_stretches(const se_store *store) {
    return (se_load_relaxed(&store->seq->arena_bump) + STRETCH - 1) / STRETCH;
}

se_status se_join_stretch(se_store *store) {
    se_sequencer *seq = store->seq;
    uint64_t done = se_load_relaxed(&seq->join_count);
    uint64_t steps = store->data_size / UNIT / GATHER_BLOCKS + 2 * SE_JOIN_WINDOWS;
    while (se_load_relaxed(&seq->join_count) == done && steps-- > 0) {
        SE_TRY(se_sequencer_lock(store, LOCK_BOUND_NS));
        se_status status = se_join_step(store);
        se_sequencer_finish(store);
        SE_TRY(status);
    }
    return SE_OK;
}

se_status se_join_recount(const se_store *store, se_free_count *count) {
    const se_sequencer *seq = store->seq;
    uint32_t size_class = (uint32_t)se_load_relaxed(&seq->join_class) % SE_CLASS_COUNT;
    SE_TRY(se_arena_count(store, se_load_relaxed(&seq->join_rest), &size_class, count));
    for (uint32_t window = 0; window < SE_JOIN_WINDOWS; window++)
        SE_TRY(se_arena_count(store, se_load_relaxed(&seq->join_head[window]), NULL, count));
    return SE_OK;
}
