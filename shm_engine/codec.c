/* codec.c - write and read plain values. */
#include "codec.h"

#include <stdbool.h>
#include <string.h>

#include "msgpack.h"

#define DEPTH_MAX 32
#define KEY_SIZE_MAX 32u
#define KEY_PLACES 512u

typedef struct {
    uint8_t *at;
    uint8_t *end;
} sink;

static inline bool has_room(const sink *out, size_t size) {
    return (size_t)(out->end - out->at) >= size;
}

static inline uint8_t *store_big(uint8_t *at, uint64_t value, size_t width) {
    for (size_t index = 0; index < width; index++)
        at[index] = (uint8_t)(value >> (8 * (width - 1 - index)));
    return at + width;
}

static inline uint64_t load_big(const uint8_t *at, size_t width) {
    uint64_t value = 0;
    for (size_t index = 0; index < width; index++)
        value = value << 8 | at[index];
    return value;
}

/* -- writing ----------------------------------------------------------------------------------- */

/* The head of a blob whose first form has an 8-bit size; the caller has room for 5 bytes. */
static inline void write_size(sink *out, uint8_t first, size_t size) {
    uint32_t form = size <= UINT8_MAX ? 0 : size <= UINT16_MAX ? 1 : 2;
    *out->at++ = (uint8_t)(first + form);
    out->at = store_big(out->at, size, (size_t)1 << form);
}

static inline void write_payload(sink *out, const void *bytes, size_t size) {
    memcpy(out->at, bytes, size);
    out->at += size;
}

static bool write_text(sink *out, PyObject *text) {
    Py_ssize_t size;
    const char *bytes;
    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        size = PyUnicode_GET_LENGTH(text);
        bytes = (const char *)PyUnicode_1BYTE_DATA(text);
    } else if (!(bytes = PyUnicode_AsUTF8AndSize(text, &size))) {
        PyErr_Clear();
        return false;
    }
    if (!has_room(out, (size_t)size + 5))
        return false;
    if (size < 32)
        *out->at++ = (uint8_t)(0xa0 | size);
    else
        write_size(out, 0xd9, (size_t)size);
    write_payload(out, bytes, (size_t)size);
    return true;
}

static bool write_bytes(sink *out, PyObject *value) {
    size_t size = (size_t)PyBytes_GET_SIZE(value);
    if (!has_room(out, size + 5))
        return false;
    write_size(out, 0xc4, size);
    write_payload(out, PyBytes_AS_STRING(value), size);
    return true;
}

static bool write_int(sink *out, PyObject *value) {
    int overflow;
    int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || !has_room(out, 9))
        return false;
    out->at += se_msgpack_write_int(out->at, number);
    return true;
}

static bool write_float(sink *out, PyObject *value) {
    double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    if (!has_room(out, 9))
        return false;
    memcpy(&bits, &number, sizeof bits);
    *out->at++ = 0xcb;
    out->at = store_big(out->at, bits, 8);
    return true;
}

static bool write_count(sink *out, uint8_t small, uint8_t large, size_t count) {
    if (!has_room(out, 3) || count > UINT16_MAX)
        return false;
    if (count < 16) {
        *out->at++ = (uint8_t)(small | count);
    } else {
        *out->at++ = large;
        out->at = store_big(out->at, count, 2);
    }
    return true;
}

static bool write_value(sink *out, PyObject *value, int depth);

static bool write_list(sink *out, PyObject *list, int depth) {
    Py_ssize_t count = PyList_GET_SIZE(list);
    if (depth == DEPTH_MAX || !write_count(out, 0x90, 0xdc, (size_t)count))
        return false;
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!write_value(out, PyList_GET_ITEM(list, index), depth + 1))
            return false;
    }
    return true;
}

static bool write_dict(sink *out, PyObject *dict, int depth) {
    Py_ssize_t position = 0;
    PyObject *key;
    PyObject *item;
    if (depth == DEPTH_MAX || !write_count(out, 0x80, 0xde, (size_t)PyDict_GET_SIZE(dict)))
        return false;
    while (PyDict_Next(dict, &position, &key, &item)) {
        if (!PyUnicode_CheckExact(key) || !write_text(out, key) ||
            !write_value(out, item, depth + 1))
            return false;
    }
    return true;
}

static bool write_value(sink *out, PyObject *value, int depth) {
    const PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type)
        return write_text(out, value);
    if (type == &PyLong_Type)
        return write_int(out, value);
    if (type == &PyDict_Type)
        return write_dict(out, value, depth);
    if (type == &PyList_Type)
        return write_list(out, value, depth);
    if (type == &PyFloat_Type)
        return write_float(out, value);
    if (type == &PyBytes_Type)
        return write_bytes(out, value);
    if (!has_room(out, 1))
        return false;
    if (value == Py_None)
        *out->at++ = 0xc0;
    else if (value == Py_True)
        *out->at++ = 0xc3;
    else if (value == Py_False)
        *out->at++ = 0xc2;
    else
        return false;
    return true;
}

size_t se_codec_write(PyObject *value, uint8_t *bytes, size_t room) {
    sink out = {bytes, bytes + room};
    return write_value(&out, value, 0) ? (size_t)(out.at - bytes) : 0;
}

/* -- reading ----------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} source;

static inline size_t left_in(const source *in) { return (size_t)(in->end - in->at); }

static PyObject *read_text(source *in, size_t size) {
    if (size > left_in(in))
        return NULL;
    const char *bytes = (const char *)in->at;
    in->at += size;
    return PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)size, NULL);
}

static PyObject *read_bytes(source *in, size_t size) {
    if (size > left_in(in))
        return NULL;
    const char *bytes = (const char *)in->at;
    in->at += size;
    return PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size);
}

/* Keys of maps come again and again: the last ones are kept, interned (as the library interns them)
 * and with their hash. Only what is pure ASCII is here, so that equal bytes are equal text. */
static PyObject *key_places[KEY_PLACES];

static inline uint32_t key_place(const uint8_t *bytes, size_t size) {
    uint64_t head = 0;
    uint64_t tail = 0;
    if (size >= 8) {
        memcpy(&head, bytes, 8);
        memcpy(&tail, bytes + size - 8, 8);
    } else if (size >= 4) {
        memcpy(&head, bytes, 4);
        memcpy(&tail, bytes + size - 4, 4);
    } else if (size > 0) {
        head = bytes[0] | (uint64_t)bytes[size / 2] << 8;
        tail = bytes[size - 1];
    }
    uint64_t mixed = (head ^ (tail << 23 | tail >> 41) ^ size) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(mixed >> 55) & (KEY_PLACES - 1);
}

/* Past the head of a text; SIZE_MAX: something else, or cut off. */
static inline size_t read_text_size(source *in) {
    if (in->at == in->end)
        return SIZE_MAX;
    uint8_t first = *in->at++;
    if ((first & 0xe0) == 0xa0)
        return first & 0x1f;
    size_t width = first >= 0xd9 && first <= 0xdb ? (size_t)1 << (first - 0xd9) : 0;
    if (width == 0 || width > left_in(in))
        return SIZE_MAX;
    in->at += width;
    return load_big(in->at - width, width);
}

static PyObject *read_key(source *in) {
    size_t size = read_text_size(in);
    if (size > left_in(in))
        return NULL;
    const uint8_t *bytes = in->at;
    PyObject **place = size <= KEY_SIZE_MAX ? &key_places[key_place(bytes, size)] : NULL;
    PyObject *key = place ? *place : NULL;
    if (key && (size_t)PyUnicode_GET_LENGTH(key) == size &&
        memcmp(PyUnicode_1BYTE_DATA(key), bytes, size) == 0) {
        in->at += size;
        Py_INCREF(key);
        return key;
    }
    key = read_text(in, size);
    if (!key)
        return NULL;
    PyUnicode_InternInPlace(&key);
    if (place && PyUnicode_IS_COMPACT_ASCII(key)) {
        PyObject *before = *place;
        Py_INCREF(key);
        *place = key;
        Py_XDECREF(before);
    }
    return key;
}

static PyObject *read_value(source *in, int depth);

static PyObject *read_map(source *in, size_t count, int depth) {
    if (depth == DEPTH_MAX || count > left_in(in) / 2)
        return NULL;
    PyObject *map = PyDict_New();
    for (; map && count > 0; count--) {
        PyObject *key = read_key(in);
        PyObject *item = key ? read_value(in, depth + 1) : NULL;
        if (!item || PyDict_SetItem(map, key, item) != 0)
            Py_CLEAR(map);
        Py_XDECREF(key);
        Py_XDECREF(item);
    }
    return map;
}

static PyObject *read_array(source *in, size_t count, int depth) {
    if (depth == DEPTH_MAX || count > left_in(in))
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t index = 0; list && index < count; index++) {
        PyObject *item = read_value(in, depth + 1);
        if (item)
            PyList_SET_ITEM(list, (Py_ssize_t)index, item);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* What has `width` bytes after its first one, read as a number. */
static PyObject *read_wide(source *in, uint8_t first, size_t width, int depth) {
    if (width > left_in(in))
        return NULL;
    uint64_t big = load_big(in->at, width);
    in->at += width;
    switch (first) {
    case 0xc4: case 0xc5: case 0xc6:
        return read_bytes(in, big);
    case 0xcb: {
        double number;
        memcpy(&number, &big, sizeof number);
        return PyFloat_FromDouble(number);
    }
    case 0xcc: case 0xcd: case 0xce: case 0xcf:
        return PyLong_FromUnsignedLongLong(big);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: {
        uint32_t shift = 64 - 8 * (uint32_t)width;
        return PyLong_FromLongLong((int64_t)(big << shift) >> shift);
    }
    case 0xd9: case 0xda: case 0xdb:
        return read_text(in, big);
    case 0xdc: case 0xdd:
        return read_array(in, big, depth);
    default:
        return read_map(in, big, depth);
    }
}

/* How many bytes follow each first byte from 0xc0 on before the payload; 0: not read here (32-bit
 * floats and extensions, which the engine never writes). */
static const uint8_t widths[32] = {0, 0, 0, 0, 1, 2, 4, 0, 0, 0, 0, 8, 1, 2, 4, 8,
                                   1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4};

static PyObject *read_value(source *in, int depth) {
    if (in->at == in->end)
        return NULL;
    uint8_t first = *in->at++;
    if (first <= 0x7f || first >= 0xe0)
        return PyLong_FromLong((int8_t)first);
    if (first <= 0x8f)
        return read_map(in, first & 0x0f, depth);
    if (first <= 0x9f)
        return read_array(in, first & 0x0f, depth);
    if (first <= 0xbf)
        return read_text(in, first & 0x1f);
    size_t width = widths[first - 0xc0];
    if (width)
        return read_wide(in, first, width, depth);
    PyObject *found = first == 0xc0 ? Py_None : first == 0xc2 ? Py_False : Py_True;
    if (first != 0xc0 && first != 0xc2 && first != 0xc3)
        return NULL;
    Py_INCREF(found);
    return found;
}

PyObject *se_codec_read(const uint8_t *bytes, size_t size) {
    source in = {bytes, bytes + size};
    PyObject *value = read_value(&in, 0);
    if (value && in.at == in.end)
        return value;
    Py_XDECREF(value);
    PyErr_Clear();
    return NULL;
}
