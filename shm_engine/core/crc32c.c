/* crc32c.c - Castagnoli's checksum: the CPU's instruction where there is one, else eight tables.
 *
 * Why:        the instruction needs three cycles for eight bytes but takes a new one each cycle,
 *             so long buffers are done in three strands side by side. The checksum of "A then B" is
 *             that of A moved over as many zeros as B has bytes, exclusive-or that of B; moving
 *             over a fixed number of zeros is four table look-ups.
 * Invariants: both ways give the same (tests/core/test_crc32c.c).
 */
#include "crc32c.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1u << 7)
#endif
#endif

#define POLYNOMIAL 0x82f63b78u /* 0x1edc6f41 reflected */
#define STRAND_LONG 4096u      /* bytes of one of three strands */
#define STRAND_SHORT 256u

typedef uint32_t (*crc_function)(uint32_t crc, const void *bytes, size_t size);

static uint32_t by_byte[8][256];   /* what a byte does to the checksum k bytes later */
static uint32_t over_long[4][256]; /* moves a checksum over STRAND_LONG zeros */
static uint32_t over_short[4][256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint64_t load_u64(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static void fill_over(uint32_t table[4][256], uint32_t zeros) {
    uint32_t bit_over[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (uint32_t step = 0; step < zeros; step++)
            crc = crc >> 8 ^ by_byte[0][crc & 255];
        bit_over[bit] = crc;
    }
    for (int part = 0; part < 4; part++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                crc ^= byte >> bit & 1 ? bit_over[part * 8 + bit] : 0;
            table[part][byte] = crc;
        }
    }
}

static void fill_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        by_byte[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int later = 1; later < 8; later++)
            by_byte[later][byte] =
                by_byte[later - 1][byte] >> 8 ^ by_byte[0][by_byte[later - 1][byte] & 255];
    fill_over(over_long, STRAND_LONG);
    fill_over(over_short, STRAND_SHORT);
}

uint32_t se_crc32c_by_tables(uint32_t crc, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    pthread_once(&once, fill_tables);
    crc = ~crc;
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t word = load_u64(at) ^ crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= by_byte[7 - byte][word >> (8 * byte) & 255];
    }
    while (size-- > 0)
        crc = crc >> 8 ^ by_byte[0][(crc ^ *at++) & 255];
    return ~crc;
}

#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define STEP_U64(crc, word) ((uint32_t)__builtin_ia32_crc32di((crc), (word)))
#define STEP_U8(crc, byte) __builtin_ia32_crc32qi((crc), (byte))
static int has_instruction(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
#else
#define WITH_INSTRUCTION /* the assembler is told at each instruction */
static inline uint32_t step_u64(uint32_t crc, uint64_t word) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
static inline uint32_t step_u8(uint32_t crc, uint8_t byte) {
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}
#define STEP_U64(crc, word) step_u64((crc), (word))
#define STEP_U8(crc, byte) step_u8((crc), (byte))
static int has_instruction(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

static inline uint32_t move_over(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^
           table[3][crc >> 24];
}

/* Three strands of `strand` bytes each. */
WITH_INSTRUCTION static inline uint32_t three_strands(uint32_t crc, const uint8_t *at,
                                                      size_t strand, uint32_t table[4][256]) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t step = 0; step < strand; step += 8) {
        crc = STEP_U64(crc, load_u64(at + step));
        second = STEP_U64(second, load_u64(at + strand + step));
        third = STEP_U64(third, load_u64(at + 2 * strand + step));
    }
    return move_over(table, move_over(table, crc) ^ second) ^ third;
}

WITH_INSTRUCTION static uint32_t by_instruction(uint32_t crc, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    crc = ~crc;
    for (; size >= 3 * STRAND_LONG; size -= 3 * STRAND_LONG, at += 3 * STRAND_LONG)
        crc = three_strands(crc, at, STRAND_LONG, over_long);
    for (; size >= 3 * STRAND_SHORT; size -= 3 * STRAND_SHORT, at += 3 * STRAND_SHORT)
        crc = three_strands(crc, at, STRAND_SHORT, over_short);
    for (; size >= 8; size -= 8, at += 8)
        crc = STEP_U64(crc, load_u64(at));
    while (size-- > 0)
        crc = STEP_U8(crc, *at++);
    return ~crc;
}
#else
static int has_instruction(void) { return 0; }
#define by_instruction se_crc32c_by_tables
#endif

static uint32_t choose(uint32_t crc, const void *bytes, size_t size);
static _Atomic crc_function chosen = choose;

static uint32_t choose(uint32_t crc, const void *bytes, size_t size) {
    pthread_once(&once, fill_tables);
    crc_function best = has_instruction() ? by_instruction : se_crc32c_by_tables;
    atomic_store_explicit(&chosen, best, memory_order_release);
    return best(crc, bytes, size);
}

uint32_t se_crc32c(uint32_t crc, const void *bytes, size_t size) {
    return atomic_load_explicit(&chosen, memory_order_acquire)(crc, bytes, size);
}
