# _writeset.pxi - part of _core.pyx: WriteSet, what one commit is to do.

@cython.no_gc_clear
cdef class WriteSet:
    """The operations of one commit to one run, encoded as they are added."""
    cdef _Writer writer
    cdef RunId run
    cdef _Buffer ready # one _Ready each, then its key and its value
    cdef list names    # of the keys, for errors

    def __len__(self):
        return len(self.names)

    cpdef add(self, int kind, int tag, name, bytes packed=None, uint64_t expires_us=0,
              int64_t argument=0):
        """An operation; `packed` is its value, which PUT, APPEND and BUMP have."""
        cdef uint8_t key[KEY_MAX]
        cdef _Ready op
        op.kind = kind
        op.key_size = <uint32_t> fill_key(key, self.run, tag, name, kind == SE_OP_CHECK_RANGE)
        op.value_size = 0 if packed is None else <uint32_t> PyBytes_GET_SIZE(packed)
        op.expires_us = expires_us
        op.argument = argument
        self.ready.add(&op, sizeof(op))
        self.ready.add(key, op.key_size)
        if op.value_size:
            self.ready.add(PyBytes_AS_STRING(packed), op.value_size)
        self.names.append(name)

    def add_entry(self, int tag, bytes start not None, bytes end not None, value, list indexes):
        """PUT of the value under start + end, and of nil under each of the indexes + end. If the
        value cannot be encoded, nothing is added."""
        cdef size_t before = self.ready.used
        cdef _Ready op
        cdef size_t size
        cdef uint8_t *data
        memset(&op, 0, sizeof(op))
        op.kind = SE_OP_PUT
        self.add_key(&op, tag, start, end)
        try:
            self.ready.reserve(PLAIN_MAX)
            data = self.ready.data + self.ready.used
            size = se_codec_write(value, data, PLAIN_MAX)
            if size > 0:
                self.ready.used += size
            else:
                alone = self.writer.encode_any(value)
                size = PyBytes_GET_SIZE(alone)
                self.ready.add(PyBytes_AS_STRING(alone), size)
        except BaseException:
            self.ready.used = before
            raise
        op.value_size = <uint32_t> size
        memcpy(self.ready.data + before, &op, sizeof(op))
        self.names.append(start)
        op.value_size = 1
        for index in indexes:
            self.add_key(&op, tag, index, end)
            self.ready.add(b"\xc0", 1)
            self.names.append(index)

    cdef int add_key(self, _Ready *op, int tag, bytes start, bytes end) except -1:
        cdef uint8_t key[PREFIX_SIZE]
        cdef Py_ssize_t size = PyBytes_GET_SIZE(start) + PyBytes_GET_SIZE(end)
        if size == 0 or PREFIX_SIZE + size > KEY_MAX:
            raise errors.InternalError(f"A key of {PREFIX_SIZE + size} bytes cannot be.")
        memcpy(key, self.run.raw, 16)
        key[16] = <uint8_t> tag
        op.key_size = <uint32_t> (PREFIX_SIZE + size)
        self.ready.add(op, sizeof(op[0]))
        self.ready.add(key, PREFIX_SIZE)
        self.ready.add(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        return self.ready.add(PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end))
