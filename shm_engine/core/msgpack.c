/* msgpack.c - check, cut, integers. */
#include "msgpack.h"

#include <string.h>

static uint64_t read_big(const uint8_t *bytes, size_t size) {
    uint64_t value = 0;
    for (size_t index = 0; index < size; index++)
        value = value << 8 | bytes[index];
    return value;
}

typedef struct {
    uint64_t items; /* values left in this container */
    bool map;       /* every second one is a key */
} level;

enum token_kind { TOKEN_SCALAR, TOKEN_STRING, TOKEN_BINARY, TOKEN_ARRAY, TOKEN_MAP, TOKEN_BAD };

typedef struct {
    enum token_kind kind;
    size_t size; /* head and payload of scalars; head alone of containers */
    uint64_t count;
} token;

static token make(enum token_kind kind, size_t head, uint64_t count) {
    bool holds = kind == TOKEN_STRING || kind == TOKEN_BINARY;
    token result = {kind, head + (holds ? (size_t)count : 0), count};
    return result;
}

static token sized(enum token_kind kind, const uint8_t *at, size_t left, size_t width) {
    if (left < 1 + width)
        return make(TOKEN_BAD, 0, 0);
    return make(kind, 1 + width, read_big(at + 1, width));
}

static token read_token(const uint8_t *at, size_t left) {
    uint8_t first = at[0];
    if (first <= 0x7f || first >= 0xe0 || first == 0xc0 || first == 0xc2 || first == 0xc3)
        return make(TOKEN_SCALAR, 1, 0);
    if (first <= 0x8f)
        return make(TOKEN_MAP, 1, first & 0x0f);
    if (first <= 0x9f)
        return make(TOKEN_ARRAY, 1, first & 0x0f);
    if (first <= 0xbf)
        return make(TOKEN_STRING, 1, first & 0x1f);
    switch (first) {
    case 0xc4: case 0xc5: case 0xc6:
        return sized(TOKEN_BINARY, at, left, (size_t)1 << (first - 0xc4));
    case 0xca:
        return make(TOKEN_SCALAR, 5, 0);
    case 0xcb:
        return make(TOKEN_SCALAR, 9, 0);
    case 0xcf:
        if (left < 9 || at[1] & 0x80)
            return make(TOKEN_BAD, 0, 0);
        return make(TOKEN_SCALAR, 9, 0);
    case 0xcc: case 0xcd: case 0xce:
        return make(TOKEN_SCALAR, 1 + ((size_t)1 << (first - 0xcc)), 0);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3:
        return make(TOKEN_SCALAR, 1 + ((size_t)1 << (first - 0xd0)), 0);
    case 0xd9: case 0xda: case 0xdb:
        return sized(TOKEN_STRING, at, left, (size_t)1 << (first - 0xd9));
    case 0xdc: case 0xdd:
        return sized(TOKEN_ARRAY, at, left, (size_t)2 << (first - 0xdc));
    case 0xde: case 0xdf:
        return sized(TOKEN_MAP, at, left, (size_t)2 << (first - 0xde));
    default:
        return make(TOKEN_BAD, 0, 0);
    }
}

size_t se_msgpack_check(const uint8_t *bytes, size_t size, bool *binary) {
    level stack[SE_VALUE_DEPTH_MAX + 1];
    uint32_t depth = 0;
    size_t at = 0;
    stack[0].items = 1;
    stack[0].map = false;
    for (;;) {
        while (stack[depth].items == 0) {
            if (depth == 0)
                return at;
            depth--;
        }
        bool key = stack[depth].map && (stack[depth].items & 1) == 0;
        stack[depth].items--;
        if (depth == 0 && stack[0].items != 0)
            return 0;
        if (at >= size)
            return 0;
        token next = read_token(bytes + at, size - at);
        if (next.kind == TOKEN_BAD || next.size > size - at || (key && next.kind != TOKEN_STRING))
            return 0;
        at += next.size;
        if (next.kind == TOKEN_STRING || next.kind == TOKEN_BINARY) {
            if (next.count > SE_VALUE_BLOB_MAX)
                return 0;
            *binary |= next.kind == TOKEN_BINARY;
        } else if (next.kind != TOKEN_SCALAR) {
            if (next.count > SE_VALUE_ENTRIES_MAX || depth == SE_VALUE_DEPTH_MAX)
                return 0;
            depth++;
            stack[depth].map = next.kind == TOKEN_MAP;
            stack[depth].items = next.kind == TOKEN_MAP ? next.count * 2 : next.count;
        }
    }
}

bool se_msgpack_read_int(const uint8_t *bytes, size_t size, int64_t *value) {
    if (size == 0)
        return false;
    uint8_t first = bytes[0];
    if (first <= 0x7f || first >= 0xe0) {
        *value = (int8_t)first;
        return size == 1;
    }
    if (first >= 0xcc && first <= 0xcf) {
        size_t width = (size_t)1 << (first - 0xcc);
        if (size != 1 + width)
            return false;
        uint64_t big = read_big(bytes + 1, width);
        *value = (int64_t)big;
        return big <= INT64_MAX;
    }
    if (first >= 0xd0 && first <= 0xd3) {
        size_t width = (size_t)1 << (first - 0xd0);
        if (size != 1 + width)
            return false;
        uint64_t shift = 64 - 8 * width;
        *value = (int64_t)(read_big(bytes + 1, width) << shift) >> shift;
        return true;
    }
    return false;
}

static size_t write_big(uint8_t *bytes, uint8_t first, uint64_t value, size_t width) {
    bytes[0] = first;
    for (size_t index = 0; index < width; index++)
        bytes[1 + index] = (uint8_t)(value >> (8 * (width - 1 - index)));
    return 1 + width;
}

size_t se_msgpack_write_int(uint8_t *bytes, int64_t value) {
    uint64_t big = (uint64_t)value;
    if (value >= -32 && value <= 127) {
        bytes[0] = (uint8_t)value;
        return 1;
    }
    if (value >= 0) {
        if (value <= UINT8_MAX)
            return write_big(bytes, 0xcc, big, 1);
        if (value <= UINT16_MAX)
            return write_big(bytes, 0xcd, big, 2);
        return value <= UINT32_MAX ? write_big(bytes, 0xce, big, 4)
                                   : write_big(bytes, 0xcf, big, 8);
    }
    if (value >= INT8_MIN)
        return write_big(bytes, 0xd0, big, 1);
    if (value >= INT16_MIN)
        return write_big(bytes, 0xd1, big, 2);
    return value >= INT32_MIN ? write_big(bytes, 0xd2, big, 4) : write_big(bytes, 0xd3, big, 8);
}
