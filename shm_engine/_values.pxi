# _values.pxi - part of _core.pyx: values on their way out, buffers on their way in.

cdef str packed_kind(uint64_t first):
    """The Python type of a packed value that is no int, from its first byte."""
    if first == 0xc0:
        return "NoneType"
    if first == 0xc2 or first == 0xc3:
        return "bool"
    if first == 0xcb:
        return "float"
    if 0xc4 <= first <= 0xc6:
        return "bytes"
    if 0xa0 <= first <= 0xbf or 0xd9 <= first <= 0xdb:
        return "str"
    return "list" if 0x90 <= first <= 0x9f or 0xdc <= first <= 0xdd else "dict"


cdef inline object take_over(PyObject *fresh):
    """A new reference from C as an object."""
    found = <object> fresh
    Py_DECREF(found)
    return found


cdef inline object decode(const uint8_t *data, uint32_t size):
    cdef PyObject *plain = se_codec_read(data, size)
    return decode_any(data, size) if plain == NULL else take_over(plain)


cdef object decode_any(const uint8_t *data, uint32_t size):
    """What codec.c does not take: unusual, or damaged."""
    try:
        return _unpackb(PyMemoryView_FromMemory(<char *> data, size, 0x100))
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(error) from error


cdef object damaged(error):
    """The error for stored bytes that do not decode; all that was stored did once."""
    return errors.Corruption("shared memory", None,
                             f"The database in shared memory holds damaged bytes ({error}); close "
                             f"all its handles and open it again.")


cdef struct _Ready:
    uint32_t kind, key_size, value_size
    uint64_t expires_us
    int64_t argument


cdef struct _Packed:
    const uint8_t *data
    uint32_t size
    uint8_t plain[PLAIN_MAX]


cdef struct _Counted:
    const uint8_t *data
    uint32_t size
    uint8_t plain[PLAIN_MAX + COUNTED_HEAD]


cdef class _Buffer:
    """Growing memory for encoded values on their way in."""
    cdef uint8_t *data
    cdef size_t used, room

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, size_t size) except -1:
        """Makes room for so many bytes more."""
        cdef size_t wider
        cdef uint8_t *data
        if self.used + size > self.room:
            wider = self.room * 2 if self.room * 2 > self.used + size else self.used + size + 4096
            data = <uint8_t *> realloc(self.data, wider)
            if data == NULL:
                raise MemoryError()
            self.data = data
            self.room = wider
        return 0

    cdef int add(self, const void *source, size_t size) except -1:
        self.reserve(size)
        memcpy(self.data + self.used, source, size)
        self.used += size
        return 0


# A garbage collection clears members before it frees, and freeing a Pin needs its store.
