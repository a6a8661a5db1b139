/* test_sha256.c - the examples of FIPS 180, padding, and the state that is saved between blocks. */
#include "harness.h"
#include "sha256.h"

static void require_digest(const uint8_t *digest, const char *expected) {
    char text[2 * SE_SHA256_SIZE + 1];
    for (uint32_t index = 0; index < SE_SHA256_SIZE; index++)
        sprintf(text + 2 * index, "%02x", digest[index]);
    REQUIRE(strcmp(text, expected) == 0);
}

static void short_messages(void) {
    se_sha256 state;
    uint8_t digest[SE_SHA256_SIZE];
    se_sha256_begin(&state);
    se_sha256_end(&state, (const uint8_t *)"", 0, 0, digest);
    require_digest(digest, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    se_sha256_begin(&state);
    se_sha256_end(&state, (const uint8_t *)"abc", 3, 3, digest);
    require_digest(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void a_million_letters(void) {
    static uint8_t letters[1000000];
    se_sha256 state;
    uint8_t digest[SE_SHA256_SIZE];
    memset(letters, 'a', sizeof letters);
    se_sha256_begin(&state);
    REQUIRE(se_sha256_add_padded(&state, letters, sizeof letters) == sizeof letters);
    se_sha256_end(&state, letters, 0, sizeof letters, digest);
    require_digest(digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* Zeros up to a block are the same as a message that has them, and so is a state that was saved. */
static void padding_and_saving(void) {
    uint8_t message[SE_SHA256_BLOCK * 4] = {0};
    uint8_t saved[SE_SHA256_SIZE];
    uint8_t digest[SE_SHA256_SIZE];
    uint8_t expected[SE_SHA256_SIZE];
    for (uint32_t size = 0; size <= SE_SHA256_BLOCK * 3; size++) {
        se_sha256 state;
        uint64_t whole = (size + SE_SHA256_BLOCK - 1) / SE_SHA256_BLOCK * SE_SHA256_BLOCK;
        memset(message, 7, size);
        se_sha256_begin(&state);
        REQUIRE(se_sha256_add_padded(&state, message, size) == whole);
        se_sha256_save(&state, saved);
        se_sha256_restore(&state, saved);
        se_sha256_end(&state, (const uint8_t *)"tail", 4, whole + 4, digest);
        se_sha256_begin(&state);
        REQUIRE(se_sha256_add_padded(&state, message, whole) == whole);
        se_sha256_end(&state, (const uint8_t *)"tail", 4, whole + 4, expected);
        REQUIRE(memcmp(digest, expected, sizeof digest) == 0);
    }
}

int main(void) {
    short_messages();
    a_million_letters();
    padding_and_saving();
    printf("test_sha256: ok\n");
    return 0;
}
