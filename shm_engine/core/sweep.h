/* sweep.h - upkeep over all keys, in small steps.
 *
 * Why:        history that retention lets go, tombstones that nobody needs and values that ran out
 *             lie under keys that may never be written again; a walk in key order finds them. A
 *             step holds the sequencer for a few dozen keys or two thousand records, and the next
 *             one goes on in the middle of a history, if no other sweep came between.
 * Used by:    the keeper; a client whose commit found no memory.
 * Invariants: W1 a step is a change of its own (undo.h, SE_UPKEEP): a death in it is rolled back;
 *             W2 the latest version of a live key always stays.
 * Crash:      the cursor is private: the next sweep starts anew.
 */
#ifndef SE_SWEEP_H
#define SE_SWEEP_H

#include "record.h"

typedef struct {
    uint8_t key[SE_KEY_MAX]; /* the first key of the next step */
    uint32_t key_size;       /* 0: at the start */
    uint64_t pressure;       /* the high-water rule: history up to this version may go */
    uint64_t expired_count;
    uint64_t visited;
    bool trim_only; /* no memory is left: take none */
    bool unlogged;  /* no tombstones: the log cannot take them now */

    /* A history that is longer than a step walks; valid while nobody else can have cut it. */
    se_trim_place place;
    uint64_t place_leaf;
    uint64_t place_policy; /* version of the run's record, which names the retention */
    uint64_t place_serial; /* sweep_serial at the end of that step */
    uint32_t lost_places;  /* how often this history was begun anew */
} se_sweep;

/* A tombstone in front of a leaf's records, in the log too; a change is under way, and a frame. */
se_status se_sweep_bury(se_store *store, se_leaf *leaf, uint64_t now_us);
/* One step; *done when the walk has passed the last key. SE_BUSY: the sequencer is taken. */
se_status se_sweep_step(se_store *store, se_sweep *sweep, uint64_t now_us, bool *done);
/* A whole walk; bound_ns for each wait on the sequencer. */
se_status se_sweep_all(se_store *store, uint64_t pressure, uint64_t now_us);
/* Drops the oldest history, quarter by quarter, until so many bytes are free. */
se_status se_sweep_for_room(se_store *store, uint64_t need);
/* Frees what was retired, as far as nobody can see it any more. */
se_status se_sweep_retired(se_store *store);
/* Applies the high-water rule if the arena is past its mark; true if it did. */
bool se_sweep_high_water(se_store *store);

#endif
