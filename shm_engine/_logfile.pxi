# _logfile.pxi - part of _core.pyx: files of the log as bytes, for the command line.
#
# The bytes are the caller's own copy, so nothing here can be changed or taken away by a log writer.

cdef dict wal_header_dict(const se_wal_header *header):
    return {
        "database_id": PyBytes_FromStringAndSize(<const char *> header.database_id, 16),
        "first_version": header.first_version,
        "previous_version": header.previous_version,
        "durable_version": header.durable_version,
    }


def read_log_header(bytes content, uint64_t first_version):
    """(verdict, fields): "sound"; "format" (of another build); "unmade" (zeros, or the header of the
    older file that this one is to become); "damaged". The fields are empty if the checksum fails."""
    cdef se_wal_header header
    cdef uint64_t size = PyBytes_GET_SIZE(content)
    cdef se_status status
    memset(&header, 0, sizeof(header))
    status = se_wal_check_header(PyBytes_AS_STRING(content), size, first_version, &header)
    fields = wal_header_dict(&header) if header.magic != 0 else {}
    if status == SE_OK:
        return "sound", fields
    if status == SE_FORMAT:
        return "format", fields
    if header.magic == 0:
        return "damaged" if any(content[:sizeof(header)]) else "unmade", fields
    return "unmade" if header.first_version < first_version else "damaged", fields


def make_log_header(bytes database_id, uint64_t first_version, uint64_t previous_file):
    """The header that a log file of this name had, but for what it said to be synced (nothing).

    For a file that goes on right behind the version before its first one.
    """
    cdef se_wal_header header
    assert len(database_id) == 16
    memset(&header, 0, sizeof(header))
    header.magic = SE_WAL_MAGIC
    header.format_version = SE_FORMAT_VERSION
    header.byte_order = SE_BYTE_ORDER
    memcpy(header.database_id, PyBytes_AS_STRING(database_id), 16)
    header.first_version = first_version
    header.previous_version = first_version - 1
    header.previous_file = <uint32_t> previous_file
    header.crc = se_crc32c(0, &header, sizeof(header) - sizeof(header.crc))
    return PyBytes_FromStringAndSize(<const char *> &header, sizeof(header))


def read_frame(bytes content, uint64_t offset, uint64_t after):
    """The sound frame at `offset` (a multiple of 8) if its version is above `after`, else None.

    (size, version, timestamp_us, unsynced, origin, operations); an operation is (kind, expires_us,
    key, value), the key with run id, tag and closing zero.
    """
    cdef uint64_t size = PyBytes_GET_SIZE(content)
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(content)
    cdef const se_frame *frame
    cdef se_frame_item item
    cdef uint64_t at = sizeof(se_frame)
    cdef list operations = []
    if offset & 7 or offset >= size or not se_frame_check(data + offset, size - offset):
        return None
    frame = <const se_frame *> (data + offset)
    version = se_load_relaxed(&frame.version)
    if version <= after:
        return None
    while se_frame_next(frame, &at, &item):
        operations.append((
            item.kind, item.expires_us,
            PyBytes_FromStringAndSize(<const char *> item.key, item.key_size),
            PyBytes_FromStringAndSize(<const char *> item.value, item.value_size)))
    return frame.size, version, frame.timestamp_us, frame.unsynced, frame.origin, operations


def scan_frames(bytes content, uint64_t offset, uint64_t last, uint64_t above):
    """The frames from `offset` on that go on after `last`: (how many, how many above `above`, the
    newest version, its time, the offset behind the last one)."""
    cdef uint64_t size = PyBytes_GET_SIZE(content)
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(content)
    cdef const se_frame *frame
    cdef uint64_t frames = 0, newer = 0, time_us = 0, version
    with nogil:
        while offset < size and se_frame_check(data + offset, size - offset):
            frame = <const se_frame *> (data + offset)
            version = se_load_relaxed(&frame.version)
            if version <= last:
                break
            last = version
            time_us = frame.timestamp_us
            offset += frame.size
            frames += 1
            newer += version > above
    return frames, newer, last, time_us, offset


def find_frame(bytes content, uint64_t offset, uint64_t after):
    """The offset of the next sound frame above `after`, from `offset` on; None if there is none."""
    cdef uint64_t size = PyBytes_GET_SIZE(content)
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(content)
    cdef uint64_t at = (offset + 7) & ~<uint64_t> 7
    cdef bint found = False
    with nogil:
        while not found and at < size:
            found = (se_frame_check(data + at, size - at)
                     and se_load_relaxed(&(<const se_frame *> (data + at)).version) > after)
            if not found:
                at += 8
    return at if found else None


def check_checkpoint(int folder_fd, uint64_t version, progress=None):
    """Reads every byte of one checkpoint. Its figures; "damage" as in the report of a recovery."""
    cdef se_checkpoint report
    cdef se_status status
    cdef list state = [progress, None]
    memset(&report, 0, sizeof(report))
    with nogil:
        status = se_checkpoint_check(folder_fd, version, report_progress, <void *> state, &report)
    if state[1] is not None:
        raise state[1]
    if status != SE_OK and status != SE_DAMAGED:
        fail_files(status, &report.damage)
    return {"version": version, "keys": report.keys, "records": report.records,
            "size": report.size, "timestamp_us": report.timestamp_us,
            "damage": damage_dict(&report.damage)}
