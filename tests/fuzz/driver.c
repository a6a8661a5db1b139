/* driver.c - a plain driver for fuzz targets: a corpus, mutated at random, so many times.
 *
 *     fuzz_log CORPUS [COUNT [SEED]]      a failure names the seed and the round
 *
 * With clang the target links against libFuzzer instead; this needs no more than a C compiler.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUTS_MAX 256u
#define SIZE_MAX_OF_INPUT ((size_t)1 << 16)

typedef struct {
    uint8_t *bytes;
    size_t size;
} input;

static input inputs[INPUTS_MAX];
static uint32_t input_count;
static uint64_t random_state;
static uint64_t seed;
static uint64_t round_number;
static int finished;

static uint32_t draw(uint32_t below) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % below;
}

static void print_replay(void) {
    if (!finished)
        fprintf(stderr, "fuzz: seed %llu, round %llu\n", (unsigned long long)seed,
                (unsigned long long)round_number);
}

/* For the sanitizers, which end the process without atexit. */
void __asan_on_error(void);
void __asan_on_error(void) { print_replay(); }

static int by_name(const void *one, const void *other) {
    return strcmp(*(char *const *)one, *(char *const *)other);
}

static void read_input(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    input *next = &inputs[input_count];
    next->bytes = malloc(SIZE_MAX_OF_INPUT);
    if (!file || !next->bytes) {
        fprintf(stderr, "fuzz: cannot read %s\n", path);
        exit(2);
    }
    next->size = fread(next->bytes, 1, SIZE_MAX_OF_INPUT, file);
    fclose(file);
    input_count++;
}

static void read_corpus(const char *path) {
    char *names[INPUTS_MAX];
    uint32_t count = 0;
    DIR *folder = opendir(path);
    const struct dirent *entry;
    while (folder && (entry = readdir(folder)) && count < INPUTS_MAX)
        if (entry->d_name[0] != '.')
            names[count++] = strdup(entry->d_name);
    if (folder)
        closedir(folder);
    if (count == 0) {
        fprintf(stderr, "fuzz: no corpus in %s\n", path);
        exit(2);
    }
    qsort(names, count, sizeof names[0], by_name); /* the seed has to mean the same everywhere */
    for (uint32_t index = 0; index < count; index++) {
        read_input(path, names[index]);
        free(names[index]);
    }
}

static void change_word(uint8_t *bytes, size_t size) {
    static const uint64_t values[] = {0, 1, 7, 8, 17, 18, 31, 32, 40, 1536, 1537, 4096,
                                      UINT32_MAX, UINT64_MAX, UINT64_C(1) << 25,
                                      (UINT64_C(1) << 25) + 1, UINT64_C(1) << 26,
                                      (UINT64_C(1) << 26) + 4096, UINT64_C(1) << 63};
    uint64_t value = draw(3) ? values[draw(sizeof values / sizeof values[0])] : size - draw(64);
    size_t width = (size_t)1 << draw(4);
    if (size < width)
        return;
    size_t at = draw((uint32_t)(size - width + 1));
    memcpy(bytes + (draw(2) ? at / width * width : at), &value, width);
}

/* Part of another input, or of this one, to some place. */
static size_t splice(uint8_t *bytes, size_t size) {
    const input *from = &inputs[draw(input_count)];
    if (from->size == 0)
        return size;
    size_t begin = draw((uint32_t)from->size) & ~(draw(2) ? (size_t)7 : 0);
    size_t length = 1 + draw((uint32_t)(from->size - begin));
    size_t at = draw((uint32_t)size + 1) & ~(draw(2) ? (size_t)7 : 0);
    if (at + length > SIZE_MAX_OF_INPUT)
        return size;
    memcpy(bytes + at, from->bytes + begin, length);
    return at + length > size ? at + length : size;
}

static size_t mutate(uint8_t *bytes, size_t size) {
    switch (draw(6)) {
    case 0:
        if (size > 0)
            bytes[draw((uint32_t)size)] ^= (uint8_t)(1u << draw(8));
        return size;
    case 1:
        if (size > 0)
            bytes[draw((uint32_t)size)] = (uint8_t)draw(256);
        return size;
    case 2:
        change_word(bytes, size);
        return size;
    case 3:
        return splice(bytes, size);
    case 4:
        return draw(4) ? size : draw((uint32_t)size + 1);
    default:
        if (size + 64 > SIZE_MAX_OF_INPUT)
            return size;
        memset(bytes + size, draw(2) ? 0 : (int)draw(256), 64);
        return size + draw(65);
    }
}

int main(int argc, char **argv) {
    static uint8_t bytes[SIZE_MAX_OF_INPUT];
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000;
    seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    if (argc < 2) {
        fprintf(stderr, "usage: %s CORPUS [COUNT [SEED]]\n", argv[0]);
        return 2;
    }
    read_corpus(argv[1]);
    atexit(print_replay);
    random_state = seed;
    for (uint32_t index = 0; index < input_count; index++)
        (void)LLVMFuzzerTestOneInput(inputs[index].bytes, inputs[index].size);
    for (round_number = 1; round_number <= count; round_number++) {
        const input *from = &inputs[draw(input_count)];
        size_t size = from->size;
        memcpy(bytes, from->bytes, size);
        for (uint32_t times = 1 + draw(6); times > 0; times--)
            size = mutate(bytes, size);
        (void)LLVMFuzzerTestOneInput(bytes, size);
    }
    for (uint32_t index = 0; index < input_count; index++)
        free(inputs[index].bytes);
    finished = 1;
    printf("%s: ok, %u inputs, %llu mutations, seed %llu\n", strrchr(argv[0], '/') + 1,
           input_count, (unsigned long long)count, (unsigned long long)seed);
    return 0;
}
