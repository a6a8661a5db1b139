/* futex.h - parking on a 32-bit shared word (Linux). */
#ifndef SE_FUTEX_H
#define SE_FUTEX_H

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

/* Sleeps while the word has this value, at most so long; 0, or -1 with errno. */
static inline long se_futex_wait(se_word32 *word, uint32_t value, uint64_t bound_ns) {
    struct timespec bound = {(time_t)(bound_ns / 1000000000u), (long)(bound_ns % 1000000000u)};
    return syscall(SYS_futex, word, FUTEX_WAIT, value, &bound, NULL, 0);
}

static inline void se_futex_wake(se_word32 *word, int count) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

static inline uint64_t se_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t se_clock_real_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

#endif
