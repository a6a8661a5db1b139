/* bell.c - watch, wait, ring. */
#include "bell.h"

#include "futex.h"

static se_word32 *bell_word(se_store *store, uint64_t bell) {
    return &store->seq->bells[__builtin_ctzll(bell)];
}

void se_bell_ring_watched(se_store *store, uint64_t bells) {
    uint64_t due = se_load_relaxed(&store->seq->watched) & bells;
    for (; due; due &= due - 1) {
        uint64_t bell = due & -due;
        if (!(se_fetch_and(&store->seq->watched, ~bell) & bell))
            continue; /* somebody else rings it */
        se_word32 *word = bell_word(store, bell);
        atomic_fetch_add_explicit(word, 1, memory_order_release);
        se_futex_wake(word, 1 << 30);
    }
}

uint32_t se_bell_watch(se_store *store, uint64_t bell) {
    uint32_t seen = se_load_acquire_u32(bell_word(store, bell));
    (void)se_fetch_or(&store->seq->watched, bell); /* a full fence, too */
    return seen;
}

void se_bell_wait(se_store *store, uint64_t bell, uint32_t seen, uint64_t bound_ns) {
    (void)se_futex_wait(bell_word(store, bell), seen, bound_ns);
}
