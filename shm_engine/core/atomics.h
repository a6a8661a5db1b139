/* atomics.h - how shared words are read and written.
 *
 * Why:        the name of the accessor shows the order, so that a reviewer sees each pairing. In the
 *             build with SE_KILL_POINTS every store is counted, and the process can be made to die
 *             in front of the k-th: that is how "killed between any two stores" is tested.
 * Used by:    coordinator and clients, any thread.
 * Ordering:   release pairs with acquire on the same word; se_fence_full orders a store to one word
 *             before a load of another (pins against reclamation, snapshots against trimming).
 */
#ifndef SE_ATOMICS_H
#define SE_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef _Atomic uint64_t se_word;
typedef _Atomic uint32_t se_word32;

#ifdef SE_KILL_POINTS
void se_kill_point(void);
#define SE_STORE_POINT() se_kill_point()
#else
#define SE_STORE_POINT() ((void)0)
#endif

/* Checks our own logic, in release builds too; bytes of others give a status instead. */
#define SE_ASSERT(condition)                                                              \
    do {                                                                                  \
        if (__builtin_expect(!(condition), 0)) {                                          \
            fprintf(stderr, "shm_engine: %s:%d: broken invariant: %s\n", __FILE__,        \
                    __LINE__, #condition);                                                \
            abort();                                                                      \
        }                                                                                 \
    } while (0)

#define SE_LIKELY(x) __builtin_expect(!!(x), 1)
#define SE_UNLIKELY(x) __builtin_expect(!!(x), 0)

static inline uint64_t se_load_acquire(const se_word *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}
static inline uint64_t se_load_relaxed(const se_word *word) {
    return atomic_load_explicit(word, memory_order_relaxed);
}
static inline void se_store_release(se_word *word, uint64_t value) {
    SE_STORE_POINT();
    atomic_store_explicit(word, value, memory_order_release);
}
static inline void se_store_relaxed(se_word *word, uint64_t value) {
    SE_STORE_POINT();
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline uint32_t se_load_acquire_u32(const se_word32 *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}
static inline uint32_t se_load_relaxed_u32(const se_word32 *word) {
    return atomic_load_explicit(word, memory_order_relaxed);
}
static inline void se_store_release_u32(se_word32 *word, uint32_t value) {
    SE_STORE_POINT();
    atomic_store_explicit(word, value, memory_order_release);
}
static inline void se_store_relaxed_u32(se_word32 *word, uint32_t value) {
    SE_STORE_POINT();
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline int se_swap_if_equal(se_word *word, uint64_t expected, uint64_t value) {
    SE_STORE_POINT();
    return atomic_compare_exchange_strong_explicit(word, &expected, value, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}
static inline int se_swap_if_equal_u32(se_word32 *word, uint32_t expected, uint32_t value) {
    SE_STORE_POINT();
    return atomic_compare_exchange_strong_explicit(word, &expected, value, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}
static inline uint64_t se_fetch_or(se_word *word, uint64_t bits) {
    SE_STORE_POINT();
    return atomic_fetch_or_explicit(word, bits, memory_order_seq_cst);
}
static inline uint64_t se_fetch_and(se_word *word, uint64_t bits) {
    SE_STORE_POINT();
    return atomic_fetch_and_explicit(word, bits, memory_order_seq_cst);
}
static inline uint64_t se_fetch_add(se_word *word, uint64_t more) {
    SE_STORE_POINT();
    return atomic_fetch_add_explicit(word, more, memory_order_seq_cst);
}
static inline void se_fence_full(void) {
#if defined(__SANITIZE_THREAD__)
    /* The thread sanitizer does not follow fences; an exchange on a private word is one to the CPU. */
    static _Thread_local se_word fence_word;
    (void)atomic_exchange_explicit(&fence_word, 1, memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}
static inline void se_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
/* Copies bytes into memory that no reader can reach yet. */
static inline void se_copy_private(void *to, const void *from, size_t size) {
    SE_STORE_POINT();
    if (size > 0)
        memcpy(to, from, size);
}

#endif
