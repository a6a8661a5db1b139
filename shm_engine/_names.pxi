# _names.pxi - part of _core.pyx: RunId, and keys made of run, tag and name.

@cython.total_ordering
cdef class RunId:
    """Names a run: 16 bytes, a UUID. ``RunId("default")`` is the nil UUID.

    >>> run = RunId.new()
    >>> RunId(str(run)) == run
    True
    >>> str(RunId.DEFAULT)
    'default'
    """
    cdef uint8_t raw[16]

    def __init__(self, name):
        if type(name) is RunId:
            memcpy(self.raw, (<RunId> name).raw, 16)
            return
        if not isinstance(name, str):
            raise errors.WrongType("RunId or str", values.class_name(name),
                                   f"A run is named by a RunId or its string, not by "
                                   f"{values.class_name(name)}.")
        if name == "default":
            memset(self.raw, 0, 16)
            return
        try:
            data = uuid.UUID(name).bytes
        except ValueError:
            raise errors.InvalidKey(
                f"{name!r} does not name a run: give the UUID that begin_run() returned, "
                f"or \"default\"."
            ) from None
        memcpy(self.raw, PyBytes_AS_STRING(data), 16)

    @staticmethod
    def new():
        """Makes a run id that nobody else has (random, UUID version 4)."""
        return RunId.from_bytes(uuid.uuid4().bytes)

    @staticmethod
    def from_bytes(data):
        """Makes the run id with these 16 bytes."""
        if type(data) is not bytes:
            raise errors.WrongType("bytes", values.class_name(data))
        if len(data) != 16:
            raise errors.InvalidKey(f"A run id has 16 bytes, not {len(data)}.")
        cdef RunId run = RunId.__new__(RunId)
        memcpy(run.raw, PyBytes_AS_STRING(data), 16)
        return run

    @property
    def bytes(self):
        return PyBytes_FromStringAndSize(<char *> self.raw, 16)

    def __str__(self):
        cdef int index
        for index in range(16):
            if self.raw[index]:
                return str(uuid.UUID(bytes=self.bytes))
        return "default"

    def __repr__(self):
        return f"RunId('{self}')"

    def __hash__(self):
        return hash(self.bytes)

    def __eq__(self, other):
        if type(other) is not RunId:
            return NotImplemented
        return memcmp(self.raw, (<RunId> other).raw, 16) == 0

    def __lt__(self, other):
        if type(other) is not RunId:
            return NotImplemented
        return memcmp(self.raw, (<RunId> other).raw, 16) < 0

    def __reduce__(self):
        return (RunId.from_bytes, (self.bytes,))


# The type's own dictionary: an extension type takes no new attributes from outside.
(<dict> (<PyTypeObject *> RunId).tp_dict)["DEFAULT"] = RunId("default")
PyType_Modified(RunId)


cdef RunId DEFAULT_RUN = RunId("default")


cdef RunId as_run(object run):
    if type(run) is RunId:
        return <RunId> run
    found = _runs.get(run) if type(run) is str else None
    if found is None:
        found = RunId(run)
        if len(_runs) < 4096:
            _runs[run] = found
    return <RunId> found


def to_run(run):
    """The RunId of a RunId or its string."""
    return as_run(run)


def plain_pairs(list pairs not None):
    """Two lists, names and values, of equal names the last; None unless all pairs are tuples of a
    str and a value. Names that rise differ, which saves a dict that would find it out."""
    cdef list names = []
    cdef list found = []
    cdef dict last
    cdef bint rising = True
    before = None
    for pair in pairs:
        if type(pair) is not tuple or len(<tuple> pair) != 2:
            return None
        name = (<tuple> pair)[0]
        if type(name) is not str:
            return None
        if rising and before is not None and PyUnicode_Compare(before, name) >= 0:
            rising = False
        before = name
        names.append(name)
        found.append((<tuple> pair)[1])
    if rising:
        return names, found
    last = dict(zip(names, found))
    return list(last), list(last.values())


cdef Py_ssize_t fill_key(uint8_t *key, RunId run, int tag, object name, bint prefix) except -1:
    """run id | tag | name | 0; a prefix has no terminator and may be empty. A name of bytes was made
    by a primitive and is taken as it is; with tag 0 it is the whole key."""
    cdef Py_ssize_t size
    cdef const char *text
    if type(name) is not str:
        if type(name) is bytes and tag in (0, SE_TAG_EVENT, SE_TAG_TRACE, SE_TAG_RUN):
            return fill_raw_key(key, run, tag, <bytes> name, prefix)
        raise errors.WrongType("str", values.class_name(name),
                               f"A key is a str, not {values.class_name(name)}.")
    try:
        text = PyUnicode_AsUTF8AndSize(name, &size)
    except UnicodeEncodeError:
        raise errors.InvalidKey(
            f"The key {name!a} holds a lone surrogate, which UTF-8 cannot write.") from None
    if size > NAME_MAX or (size == 0 and not prefix) or memchr(text, 0, size) != NULL or (
            size >= 8 and memcmp(text, b"_strata/", 8) == 0):
        refuse_name(name, size)
    memcpy(key, run.raw, 16)
    key[16] = <uint8_t> tag
    memcpy(key + PREFIX_SIZE, text, size)
    if prefix:
        return PREFIX_SIZE + size
    key[PREFIX_SIZE + size] = 0
    return PREFIX_SIZE + size + 1


def check_name(name, bint prefix=False):
    """Raises what a read or write of this name would; a prefix may be empty."""
    cdef uint8_t key[KEY_MAX]
    fill_key(key, DEFAULT_RUN, 1, name, prefix)


cdef Py_ssize_t fill_raw_key(uint8_t *key, RunId run, int tag, bytes name,
                             bint prefix) except -1:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t start = PREFIX_SIZE if tag else 0
    if start + size > KEY_MAX or start + size <= PREFIX_SIZE - prefix:
        raise errors.InternalError(f"A key of {start + size} bytes cannot be.")
    if tag:
        memcpy(key, run.raw, 16)
        key[16] = <uint8_t> tag
    memcpy(key + start, PyBytes_AS_STRING(name), size)
    return start + size


cdef refuse_name(name, Py_ssize_t size):
    short = name if len(name) <= 40 else name[:40] + "..."
    if size == 0:
        raise errors.InvalidKey("A key must not be empty: it has 1 to 1024 UTF-8 bytes.")
    if size > NAME_MAX:
        raise errors.InvalidKey(f"The key {short!r} has {size} UTF-8 bytes; at most 1024 are "
                                f"allowed.")
    if "\0" in name:
        raise errors.InvalidKey(f"The key {short!r} holds a NUL character, which keys must not.")
    raise errors.InvalidKey(f"The key {short!r} starts with \"_strata/\", which is reserved.")
