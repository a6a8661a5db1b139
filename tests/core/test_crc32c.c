/* test_crc32c.c - the checksum against its standard, and its two ways against each other. */
#include "harness.h"
#include "crc32c.h"

#define SIZE (UINT64_C(1) << 16)

static uint8_t bytes[SIZE];

static uint32_t both(const void *from, size_t size) {
    uint32_t crc = se_crc32c(0, from, size);
    REQUIRE(crc == se_crc32c_by_tables(0, from, size));
    return crc;
}

/* RFC 3720, appendix B.4. */
static void the_vectors_of_the_standard(void) {
    static const uint8_t read_command[48] = {
        0x01, 0xc0, 0, 0, 0,    0, 0, 0, 0, 0, 0,    0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 4, 0,
        0,    0,    0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 2,    0, 0, 0, 0, 0, 0, 0};
    uint8_t block[32];
    REQUIRE(both("", 0) == 0);
    REQUIRE(both("123456789", 9) == 0xe3069283);
    memset(block, 0, sizeof block);
    REQUIRE(both(block, 32) == 0x8a9136aa);
    memset(block, 0xff, sizeof block);
    REQUIRE(both(block, 32) == 0x62a8ab43);
    for (uint8_t index = 0; index < 32; index++)
        block[index] = index;
    REQUIRE(both(block, 32) == 0x46dd794e);
    for (uint8_t index = 0; index < 32; index++)
        block[index] = 31 - index;
    REQUIRE(both(block, 32) == 0x113fdb5c);
    REQUIRE(both(read_command, 48) == 0xd9963a56);
}

static void both_ways_agree_at_every_length_and_offset(void) {
    for (size_t size = 0; size < 3000; size++)
        (void)both(bytes + size % 17, size);
    for (size_t size = 12200; size < 12400; size++) /* around three long strands */
        (void)both(bytes + size % 17, size);
    (void)both(bytes + 1, SIZE - 1);
}

static void pieces_give_the_same_as_the_whole(void) {
    uint32_t whole = se_crc32c(0, bytes, 9000);
    for (size_t cut = 0; cut <= 9000; cut += 7) {
        REQUIRE(se_crc32c(se_crc32c(0, bytes, cut), bytes + cut, 9000 - cut) == whole);
        uint32_t mixed = se_crc32c_by_tables(se_crc32c(0, bytes, cut), bytes + cut, 9000 - cut);
        REQUIRE(mixed == whole);
    }
}

int main(void) {
    uint32_t word = 1;
    for (size_t at = 0; at < SIZE; at++) {
        word = word * 1664525u + 1013904223u;
        bytes[at] = (uint8_t)(word >> 24);
    }
    the_vectors_of_the_standard();
    both_ways_agree_at_every_length_and_offset();
    pieces_give_the_same_as_the_whole();
    printf("test_crc32c: ok\n");
    return 0;
}
