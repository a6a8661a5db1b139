# _uuids.pxi - part of _core.pyx: UUIDs of version 7, which sort by when they were made.
#
#     ms since 1970 (48 bits) | 7 (4) | fraction of the ms (12) | 10 (2) | random (62)
#
# The moment is one number of 60 bits, counted in 1/4096 ms. Those of one process rise strictly, also
# when the clock is set back. The interpreter lock guards what is here; no other code runs between
# reading and writing it, but where random bytes are fetched, and that changes nothing but them.
# Source: RFC 9562, sections 5.7 and 6.2 (method 3).

cdef enum:
    RANDOM_SIZE = 4096

cdef uint64_t _last_moment = 0
cdef uint8_t _random_bytes[RANDOM_SIZE]
cdef size_t _random_left = 0
cdef const char *_HEX = b"0123456789abcdef"


def forget_random():
    """In a forked child: what is left of the random bytes is the parent's."""
    global _random_left
    _random_left = 0


def set_last_moment(uint64_t time_us):
    """UUIDs rise from this time on, whatever the clock says (for tests: a clock that is set)."""
    global _last_moment
    _last_moment = (time_us << 12) // 1000


def new_uuid():
    """A new UUID, 16 bytes."""
    global _last_moment, _random_left
    cdef uint8_t raw[16]
    cdef uint64_t head, moment
    cdef int index
    if _random_left < 8:
        fresh = os.urandom(RANDOM_SIZE)
        memcpy(_random_bytes, PyBytes_AS_STRING(fresh), RANDOM_SIZE)
        _random_left = RANDOM_SIZE
    _random_left -= 8
    moment = (se_clock_real_us() << 12) // 1000
    if moment <= _last_moment:
        moment = _last_moment + 1
    _last_moment = moment
    head = (moment >> 12) << 16 | 0x7000 | (moment & 0xfff)
    for index in range(8):
        raw[index] = <uint8_t> (head >> (56 - 8 * index))
    memcpy(raw + 8, _random_bytes + _random_left, 8)
    raw[8] = (raw[8] & 0x3f) | 0x80
    return PyBytes_FromStringAndSize(<char *> raw, 16)


def trace_text(bytes uuid not None):
    """"trace-" and the UUID as text."""
    cdef char text[42]
    cdef const uint8_t *raw = <const uint8_t *> PyBytes_AS_STRING(uuid)
    cdef int index, at = 6
    memcpy(text, b"trace-", 6)
    if PyBytes_GET_SIZE(uuid) != 16:
        raise ValueError("a UUID has 16 bytes")
    for index in range(16):
        if index in (4, 6, 8, 10):
            text[at] = b"-"
            at += 1
        text[at] = _HEX[raw[index] >> 4]
        text[at + 1] = _HEX[raw[index] & 15]
        at += 2
    return PyUnicode_DecodeUTF8(text, 42, NULL)
