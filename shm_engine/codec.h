/* codec.h - plain values to msgpack bytes and back, without a call of the msgpack library.
 *
 * Why:        the library's call, its bytes object and the pass that checks it cost more than the
 *             engine's share of a read or a commit. Most values are small and plain; those are
 *             written and read here, and whatever else comes is left to the library, which stays
 *             the reference: what these functions give is byte for byte and value for value what it
 *             gives, or nothing at all (tests/unit/test_codec.py).
 * Used by:    _core.pyx; threads that hold the interpreter lock.
 * Errors:     neither leaves an exception set: 0 and NULL say "ask the library", which finds the
 *             value, or the error, again.
 * Cost:       O(bytes); se_codec_write runs no Python code, se_codec_read may collect garbage.
 */
#ifndef SE_CODEC_H
#define SE_CODEC_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>

/* The size of the encoded value, 0 if it is not plain or needs more than `room` bytes. What is
 * written needs no check: only exact types are taken, and no limit of msgpack.h but that of the
 * blob's size, which `room` must keep, can be passed. */
size_t se_codec_write(PyObject *value, uint8_t *bytes, size_t room);
/* A new reference to the one value that the bytes are; NULL: they are not plain. */
PyObject *se_codec_read(const uint8_t *bytes, size_t size);

#endif
