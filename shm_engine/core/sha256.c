/* sha256.c - the compression function, and what stands around it. */
#include "sha256.h"

#include <string.h>

/* The rounds depend on each other: vectors make them slower. */
#pragma GCC optimize("no-tree-vectorize", "no-tree-slp-vectorize")

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t rotate(uint32_t word, int bits) {
    return (word >> bits) | (word << (32 - bits));
}

static inline uint32_t load_big(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, 4);
    return __builtin_bswap32(word);
}

static inline void store_big(uint8_t *bytes, uint32_t word) {
    word = __builtin_bswap32(word);
    memcpy(bytes, &word, 4);
}

/* One round; the roles of the eight words move by one from round to round. */
#define ROUND(a, b, c, d, e, f, g, h, t)                                                   \
    do {                                                                                   \
        uint32_t sum1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +               \
                        ((e & f) ^ (~e & g)) + constants[t] + schedule[(t) & 15];          \
        uint32_t sum2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +                   \
                        ((a & b) ^ (a & c) ^ (b & c));                                     \
        d += sum1;                                                                         \
        h = sum1 + sum2;                                                                   \
    } while (0)

#define EXTEND(t)                                                                          \
    do {                                                                                   \
        uint32_t early = schedule[((t) + 1) & 15];                                         \
        uint32_t late = schedule[((t) + 14) & 15];                                         \
        schedule[(t) & 15] += (rotate(early, 7) ^ rotate(early, 18) ^ (early >> 3)) +      \
                              schedule[((t) + 9) & 15] +                                   \
                              (rotate(late, 17) ^ rotate(late, 19) ^ (late >> 10));        \
    } while (0)

#define EIGHT_ROUNDS(t)                                                                    \
    do {                                                                                   \
        ROUND(a, b, c, d, e, f, g, h, t);                                                  \
        ROUND(h, a, b, c, d, e, f, g, t + 1);                                              \
        ROUND(g, h, a, b, c, d, e, f, t + 2);                                              \
        ROUND(f, g, h, a, b, c, d, e, t + 3);                                              \
        ROUND(e, f, g, h, a, b, c, d, t + 4);                                              \
        ROUND(d, e, f, g, h, a, b, c, t + 5);                                              \
        ROUND(c, d, e, f, g, h, a, b, t + 6);                                              \
        ROUND(b, c, d, e, f, g, h, a, t + 7);                                              \
    } while (0)

static inline __attribute__((always_inline)) void take_block(se_sha256 *state,
                                                             const uint8_t *block) {
    uint32_t schedule[16];
    for (int index = 0; index < 16; index++)
        schedule[index] = load_big(block + 4 * index);
    uint32_t *word = state->word;
    uint32_t a = word[0], b = word[1], c = word[2], d = word[3];
    uint32_t e = word[4], f = word[5], g = word[6], h = word[7];
    EIGHT_ROUNDS(0);
    EIGHT_ROUNDS(8);
    for (int t = 16; t < 64; t += 16) {
        for (int index = 0; index < 16; index++)
            EXTEND(index);
        EIGHT_ROUNDS(t);
        EIGHT_ROUNDS(t + 8);
    }
    word[0] += a, word[1] += b, word[2] += c, word[3] += d;
    word[4] += e, word[5] += f, word[6] += g, word[7] += h;
}

static void compress_anywhere(se_sha256 *state, const uint8_t *block) {
    take_block(state, block);
}

#if defined(__x86_64__)
/* Rotations and and-not with three operands: a little more than half the time. */
__attribute__((target("bmi,bmi2"))) static void compress_bmi(se_sha256 *state,
                                                             const uint8_t *block) {
    take_block(state, block);
}

static void compress(se_sha256 *state, const uint8_t *block) {
    if (__builtin_cpu_supports("bmi2") && __builtin_cpu_supports("bmi"))
        compress_bmi(state, block);
    else
        compress_anywhere(state, block);
}
#else
static void compress(se_sha256 *state, const uint8_t *block) { compress_anywhere(state, block); }
#endif

void se_sha256_begin(se_sha256 *state) {
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(state->word, first, sizeof first);
}

uint64_t se_sha256_add_padded(se_sha256 *state, const uint8_t *bytes, uint64_t size) {
    uint64_t whole = size & ~(uint64_t)(SE_SHA256_BLOCK - 1);
    for (uint64_t at = 0; at < whole; at += SE_SHA256_BLOCK)
        compress(state, bytes + at);
    if (whole == size)
        return size;
    uint8_t last[SE_SHA256_BLOCK] = {0};
    memcpy(last, bytes + whole, size - whole);
    compress(state, last);
    return whole + SE_SHA256_BLOCK;
}

void se_sha256_end(se_sha256 *state, const uint8_t *bytes, uint32_t size, uint64_t message_size,
                   uint8_t *digest) {
    uint8_t last[SE_SHA256_BLOCK] = {0};
    memcpy(last, bytes, size);
    last[size] = 0x80;
    store_big(last + 56, (uint32_t)(message_size >> 29));
    store_big(last + 60, (uint32_t)(message_size << 3));
    compress(state, last);
    se_sha256_save(state, digest);
}

void se_sha256_save(const se_sha256 *state, uint8_t *bytes) {
    for (int index = 0; index < 8; index++)
        store_big(bytes + 4 * index, state->word[index]);
}

void se_sha256_restore(se_sha256 *state, const uint8_t *bytes) {
    for (int index = 0; index < 8; index++)
        state->word[index] = load_big(bytes + 4 * index);
}
