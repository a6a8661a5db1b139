/* join.h - free neighbours become one block again.
 *
 * Why:        a block is cut for the first thing that it holds. An arena that was full of small
 *             records once is a heap of small free blocks afterwards, and nothing larger fits. Free
 *             blocks carry no mark, and their lists no order, so that a block's neighbour cannot be
 *             found from the block. Joining therefore goes by stretches of the arena, each in steps
 *             of a millisecond:
 *
 *                 free lists --gather--> windows of the stretch --rebuild--> free lists
 *
 *             Gathering goes through all free lists once; what begins in the stretch moves to the
 *             list of its window (256 KiB). Rebuilding marks a window's free bytes in a bitmap and
 *             puts its runs back in blocks as large as fit; a run that reaches the window's end goes
 *             to the next one first, and one that reaches the arena's end lowers the bump pointer.
 * Used by:    the holder; a client whose commit found no memory; the keeper goes on with what such
 *             a client left
 * Shared:     join_*, free_head, arena_bump, the links of free blocks -> FORMAT.md, "Free blocks"
 * Invariants: J1 between two steps each free block is on one list: its class's, join_rest or a
 *             window's; J2 a step is a change of its own (SE_UPKEEP) and takes no block
 *             (tests/core/test_kill.c dies before every store of it)
 * Crash:      a step is rolled back; whoever is short of memory next, or the keeper, goes on
 * Errors:     SE_CORRUPT: a list leaves the arena
 * Cost:       a step 8192 blocks or one window, about a millisecond; a stretch (32 MiB) each free
 *             block of the arena once
 */
#ifndef SE_JOIN_H
#define SE_JOIN_H

#include "arena.h"

/* One step; begins a stretch if none is under way. For the holder, outside a change. */
se_status se_join_step(se_store *store);
bool se_join_under_way(const se_store *store);
/* Takes the sequencer for each step until a stretch is done. SE_BUSY: somebody has it. */
se_status se_join_stretch(se_store *store);
/* How many stretches there are. */
uint64_t se_join_stretches(const se_store *store);
/* Adds what lies on the lists of joining; after a death. */
se_status se_join_recount(const se_store *store, se_free_count *count);

#endif
