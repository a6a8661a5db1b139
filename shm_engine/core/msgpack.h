/* msgpack.h - what the core must know of encoded values.
 *
 * Why:     values are msgpack, written and read by its Python library. The core checks the bytes of
 *          a new value in one pass (cheaper than walking Python objects), cuts a packed list into
 *          its items, and reads and writes integers for INCREMENT.
 * Used by: any thread. No shared state.
 * Source:  the msgpack specification (msgpack/spec.md).
 */
#ifndef SE_MSGPACK_H
#define SE_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SE_VALUE_DEPTH_MAX 128u
#define SE_VALUE_ENTRIES_MAX 1000000u
#define SE_VALUE_BLOB_MAX (16u << 20)
#define SE_VALUE_ENCODED_MAX (32u << 20)

/* The size of the first value in the buffer, 0 if it breaks a rule: nesting, sizes, keys that are no
 * strings, integers beyond 64 bits signed, extension types, bytes missing. *binary: it holds bytes. */
size_t se_msgpack_check(const uint8_t *bytes, size_t size, bool *binary);
/* True if the value is exactly one integer. */
bool se_msgpack_read_int(const uint8_t *bytes, size_t size, int64_t *value);
/* Writes the shortest form, as the library does; returns its size, at most 9. */
size_t se_msgpack_write_int(uint8_t *bytes, int64_t value);

#endif
