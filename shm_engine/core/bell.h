/* bell.h - who waits for a key to change, and is told without asking again and again.
 *
 *     watcher                                     whoever has committed
 *     set the key's bit in `watched`              commit_version = v
 *     full fence                                  full fence (sequencer.c, finish)
 *     look at the key: as wanted? done            bit set for a key that changed? clear it,
 *     sleep on the key's bell                     change the bell, wake all who sleep on it
 *
 * Why:        a commit must not pay for those who might wait. It notes one bit for each key that it
 *             changes in a word of its own process; only when a bit is watched is anybody woken.
 * Used by:    watch, wait: any client. note, ring: whoever holds or has just held the sequencer.
 * Shared:     `watched`, `bells` -> FORMAT.md, "Sequencer"
 * Invariants: B1 of watcher and committer at least one sees the other: no wake-up is lost (the two
 *             fences above); keys share bells, so a wake-up may be for nothing.
 * Crash:      a dead watcher leaves a bit, which costs one wake-up. A holder that dies behind its
 *             commit has rung nobody: the recovery rings all bells.
 */
#ifndef SE_BELL_H
#define SE_BELL_H

#include "store.h"

/* The bit of a key's bell. */
static inline uint64_t se_bell_of(const uint8_t *key, uint32_t key_size) {
    uint64_t last;
    uint64_t run;
    memcpy(&last, key + key_size - 8, 8); /* a key has 18 bytes and more */
    memcpy(&run, key + 8, 8);
    return UINT64_C(1) << (((last ^ run) * UINT64_C(0x9e3779b97f4a7c15)) >> 58);
}

static inline void se_bell_note(se_store *store, uint64_t bells) { store->changed_bells |= bells; }

void se_bell_ring_watched(se_store *store, uint64_t bells);
/* What was noted until the release of the sequencer; after it and a full fence. */
static inline void se_bell_ring(se_store *store, uint64_t bells) {
    if (SE_UNLIKELY(se_load_relaxed(&store->seq->watched) & bells))
        se_bell_ring_watched(store, bells);
}

/* Asks to be told of changes of the key from now on; what the bell shows. */
uint32_t se_bell_watch(se_store *store, uint64_t bell);
/* Sleeps until the bell shows something else, or for so long. */
void se_bell_wait(se_store *store, uint64_t bell, uint32_t seen, uint64_t bound_ns);

#endif
