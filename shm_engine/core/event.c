/* event.c - pack, chain, heads, keys. */
#include "event.h"

static void store_big(uint8_t *bytes, uint64_t number) {
    number = __builtin_bswap64(number);
    memcpy(bytes, &number, 8);
}

static uint64_t load_big(const uint8_t *bytes) {
    uint64_t number;
    memcpy(&number, bytes, 8);
    return __builtin_bswap64(number);
}

void se_event_pack(uint8_t *value, uint32_t size) {
    SE_ASSERT(size > SE_EVENT_CONTENT);
    se_sha256 state;
    memset(value, 0, SE_EVENT_CONTENT);
    value[0] = 0x94;
    value[SE_EVENT_PREVIOUS - 2] = value[SE_EVENT_HASH - 2] = 0xc4;
    value[SE_EVENT_PREVIOUS - 1] = value[SE_EVENT_HASH - 1] = SE_SHA256_SIZE;
    se_sha256_begin(&state);
    (void)se_sha256_add_padded(&state, value + SE_EVENT_CONTENT, size - SE_EVENT_CONTENT);
    se_sha256_save(&state, value + SE_EVENT_HASH);
}

bool se_event_check(const uint8_t *value, uint32_t size, const uint8_t **type,
                    uint32_t *type_size) {
    if (size < SE_EVENT_CONTENT + 3 || value[0] != 0x94 || value[1] != 0xc4 ||
        value[2] != SE_SHA256_SIZE || value[SE_EVENT_HASH - 2] != 0xc4 ||
        value[SE_EVENT_HASH - 1] != SE_SHA256_SIZE)
        return false;
    const uint8_t *at = value + SE_EVENT_CONTENT;
    uint32_t head = at[0] == 0xd9 ? 2 : at[0] == 0xda ? 3 : 1;
    *type_size = head == 1 ? at[0] & 0x1fu : head == 2 ? at[1] : (uint32_t)at[1] << 8 | at[2];
    if ((head == 1 && (at[0] & 0xe0) != 0xa0) || *type_size == 0 ||
        *type_size > SE_EVENT_TYPE_MAX || SE_EVENT_CONTENT + head + *type_size >= size ||
        memchr(at + head, 0, *type_size) != NULL)
        return false;
    *type = at + head;
    return true;
}

void se_event_chain(uint8_t *value, uint32_t size, uint64_t timestamp_us, se_event_head *head) {
    se_sha256 state;
    uint8_t last[SE_SHA256_SIZE + 16];
    uint64_t content = (size - SE_EVENT_CONTENT + SE_SHA256_BLOCK - 1) & ~(uint64_t)(SE_SHA256_BLOCK - 1);
    memcpy(last, head->hash, SE_SHA256_SIZE);
    store_big(last + SE_SHA256_SIZE, head->next);
    store_big(last + SE_SHA256_SIZE + 8, timestamp_us);
    se_sha256_restore(&state, value + SE_EVENT_HASH);
    memcpy(value + SE_EVENT_PREVIOUS, head->hash, SE_SHA256_SIZE);
    se_sha256_end(&state, last, sizeof last, content + sizeof last, head->hash);
    memcpy(value + SE_EVENT_HASH, head->hash, SE_SHA256_SIZE);
    head->next++;
}

bool se_event_read_head(const uint8_t *value, uint32_t size, se_event_head *head) {
    if (size != SE_EVENT_HEAD_SIZE || value[0] != 0x92 || value[1] != 0xcf || value[10] != 0xc4 ||
        value[11] != SE_SHA256_SIZE)
        return false;
    head->next = load_big(value + 2);
    memcpy(head->hash, value + 12, SE_SHA256_SIZE);
    return true;
}

void se_event_write_head(uint8_t *value, const se_event_head *head) {
    value[0] = 0x92;
    value[1] = 0xcf;
    store_big(value + 2, head->next);
    value[10] = 0xc4;
    value[11] = SE_SHA256_SIZE;
    memcpy(value + 12, head->hash, SE_SHA256_SIZE);
}

static uint8_t *begin_key(uint8_t *key, const uint8_t *run, uint8_t space) {
    memcpy(key, run, SE_RUN_ID_SIZE);
    key[SE_RUN_ID_SIZE] = SE_TAG_EVENT;
    key[SE_RUN_ID_SIZE + 1] = space;
    return key + SE_RUN_ID_SIZE + 2;
}

uint32_t se_event_head_key(uint8_t *key, const uint8_t *run) {
    *begin_key(key, run, SE_SPACE_BOOKKEEPING) = 'h';
    return SE_EVENT_HEAD_KEY_SIZE;
}

uint32_t se_event_key(uint8_t *key, const uint8_t *run, uint64_t sequence) {
    store_big(begin_key(key, run, SE_SPACE_ENTRY), sequence);
    return SE_EVENT_KEY_SIZE;
}

uint32_t se_event_type_key(uint8_t *key, const uint8_t *run, const uint8_t *type,
                           uint32_t type_size, uint64_t sequence) {
    uint8_t *at = begin_key(key, run, SE_SPACE_BOOKKEEPING);
    *at++ = 't';
    memcpy(at, type, type_size);
    at[type_size] = 0;
    store_big(at + type_size + 1, sequence);
    return (uint32_t)(at - key) + type_size + 1 + 8;
}
