/* test_msgpack.c - the checker of encoded values: what is valid, what is not, any bytes at all. */
#include "harness.h"

static size_t check(const char *bytes, size_t size, bool *binary) {
    *binary = false;
    uint8_t *copy = malloc(size ? size : 1); /* exact, so that the sanitizer sees an overrun */
    memcpy(copy, bytes, size);
    size_t found = se_msgpack_check(copy, size, binary);
    free(copy);
    return found;
}

#define VALID(text) REQUIRE(check(text, sizeof text - 1, &binary) == sizeof text - 1)
#define INVALID(text) REQUIRE(check(text, sizeof text - 1, &binary) == 0)

static void every_kind_is_told(void) {
    bool binary;
    VALID("\xc0");
    VALID("\xc2");
    VALID("\x7f");
    VALID("\xe0");
    VALID("\xcf\x7f\xff\xff\xff\xff\xff\xff\xff");
    INVALID("\xcf\x80\x00\x00\x00\x00\x00\x00\x00"); /* beyond 64 bits signed */
    VALID("\xcb\x00\x00\x00\x00\x00\x00\x00\x00");
    VALID("\xa3xyz");
    INVALID("\xa3xy");
    VALID("\xd9\x01x");
    VALID("\x92\x01\x02");
    INVALID("\x92\x01");
    VALID("\x81\xa1k\x01");
    INVALID("\x81\x01\x01"); /* a key that is no string */
    VALID("\x82\xa1k\x81\xa1q\xc0\xa1l\x90");
    INVALID("\xc1");
    INVALID("\xd4\x01\x00"); /* an extension */
    INVALID("\xc7\x01\x01\x00");
    INVALID("\xdd\xff\xff\xff\xff");
    INVALID("\xc6\xff\xff\xff\xff");
    VALID("\xc4\x01x");
    REQUIRE(binary);
    REQUIRE(check("\x01\x02", 2, &binary) == 1); /* the first value only */
    REQUIRE(check("", 0, &binary) == 0);
}

static void nesting_ends_at_128(void) {
    char bytes[200];
    bool binary;
    memset(bytes, '\x91', sizeof bytes);
    bytes[128] = '\xc0';
    REQUIRE(check(bytes, 129, &binary) == 129);
    bytes[128] = '\x91';
    bytes[129] = '\xc0';
    REQUIRE(check(bytes, 130, &binary) == 0);
}

static void integers_come_back(void) {
    static const int64_t edges[] = {0,         1,         127,       128,        255,
                                    256,       65535,     65536,     4294967295, 4294967296,
                                    INT64_MAX, INT64_MIN, INT32_MIN, -1,         -32,
                                    -33,       -128,      -129,      -32768,     -32769};
    for (size_t index = 0; index < sizeof edges / sizeof *edges; index++) {
        uint8_t bytes[9];
        int64_t back;
        bool binary = false;
        size_t size = se_msgpack_write_int(bytes, edges[index]);
        REQUIRE(se_msgpack_check(bytes, size, &binary) == size);
        REQUIRE(se_msgpack_read_int(bytes, size, &back) && back == edges[index]);
        REQUIRE(!se_msgpack_read_int(bytes, size - 1, &back));
    }
}

static void any_bytes_are_safe(void) {
    char bytes[64];
    bool binary;
    srand(3);
    for (int round = 0; round < 300000; round++) {
        size_t size = (size_t)rand() % sizeof bytes;
        for (size_t index = 0; index < size; index++)
            bytes[index] = (char)rand();
        REQUIRE(check(bytes, size, &binary) <= size);
    }
}

int main(void) {
    every_kind_is_told();
    nesting_ends_at_128();
    integers_come_back();
    any_bytes_are_safe();
    puts("test_msgpack: ok");
    return 0;
}
