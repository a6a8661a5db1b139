# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""_core.pyx - the seam between Python objects and the shared memory of the C core.

Why:        a read is a look-up in mapped memory and a decode; a commit is a few stores. Everything
            between them and the caller's objects is here, and nothing else is.
Used by:    engine.py, database.py, coordinator.py; any thread that holds the interpreter lock
Invariants: K1 no pointer into shared memory leaves a function: values are decoded under the pin
            K2 no Python code runs between se_session_begin and the reply (a finalizer could begin
            another write set in the same session)
            K3 `busy` counts threads that have let the interpreter lock go inside the store: close
            waits for them
            K4 `inside` counts calls that are in the store while Python code may run (a value is
            decoded, a signal handled): close then leaves the mapping to __dealloc__
"""
import errno
import os
import time
import uuid

import msgpack

from shm_engine import errors, keys, values

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_Compare, PyUnicode_DecodeUTF8
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset

include "_declarations.pxi"

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    ctypedef struct PyTypeObject:
        void *tp_dict
    void PyType_Modified(type kind)

FORMAT_VERSION = SE_FORMAT_VERSION

cdef enum:
    KEY_MAX = 1536        # SE_KEY_MAX
    NAME_MAX = 1024
    PREFIX_SIZE = 17      # run id and type tag
    SCAN_BATCH = 1024
    WAIT_NS = 50000000
    ENCODED_MAX = 33554432
    PLAIN_MAX = 4096      # larger values are encoded by the library
    COUNTED_HEAD = 10     # what stands before a counted value: record.h
    EVENT_HEAD_MAX = 328  # what stands before a payload, at most: 69 + 3 + 256

    SCAN_NAMES = 0        # what a scan gives beside the names
    SCAN_VALUES = 1       # values
    SCAN_RECORDS = 2      # (value, version, timestamp_us)
    SCAN_BYTES = 3        # (packed value, version, timestamp_us)

cdef object _unpackb = msgpack.unpackb
cdef object _tuple_new = tuple.__new__
cdef object _Packer = msgpack.Packer
cdef dict _runs = {}

DEF_STALL_S = 5.0
WATCH_S = 1.0 # who waits looks again after so long: a handle may be closed meanwhile


include "_names.pxi"
include "_uuids.pxi"
include "_values.pxi"
include "_attachment.pxi"
include "_reading.pxi"
include "_writing.pxi"
include "_writeset.pxi"
include "_durable.pxi"
include "_logfile.pxi"


@cython.no_gc_clear
cdef class Store(_Durable):
    """One process's attachment to one database; see _core.pyi for the meaning of each method."""

    @staticmethod
    def create(int control_fd, int data_fd, *, uint64_t map_size, uint32_t max_clients,
               uint32_t durability_kind=0, uint32_t flush_interval_ms=0,
               uint64_t max_pending_writes=0, bytes database_id=b"", str folder=""):
        cdef Store self = Store.__new__(Store)
        cdef se_options options
        memset(&options, 0, sizeof(options))
        options.map_size = map_size
        # The coordinator's checkpoints need one, too.
        options.max_clients = min(max_clients + (durability_kind != SE_IN_MEMORY), 4096)
        options.durability_kind = durability_kind
        options.flush_interval_ms = flush_interval_ms
        options.max_pending_writes = max_pending_writes
        options.created_us = se_clock_real_us()
        if len(database_id) == 16:
            memcpy(options.database_id, PyBytes_AS_STRING(database_id), 16)
        path = os.fsencode(folder)
        if len(path) < sizeof(options.folder):
            memcpy(options.folder, PyBytes_AS_STRING(path), len(path))
        status = se_store_create(&self.store, control_fd, data_fd, &options)
        if status == SE_INVALID:
            raise errors.ConstraintViolation(
                f"map_size must be at least 1 MiB (it is {map_size}) and max_clients 1 to 4096 "
                f"(it is {max_clients}).")
        if status != SE_OK:
            self.fail_attach(status)
        self.begin()
        return self

    @staticmethod
    def attach(int control_fd, int data_fd):
        cdef Store self = Store.__new__(Store)
        cdef uint32_t found = 0
        status = se_store_attach(&self.store, control_fd, data_fd, &found)
        if status == SE_FORMAT:
            raise errors.FormatMismatch(
                f"The database in shared memory has format version {found}, byte order or sizes "
                f"that this build (format version {SE_FORMAT_VERSION}) does not read. Open it "
                f"with the build that made it, or close it there first.")
        if status == SE_INVALID:
            raise errors.Unavailable(
                "The database was opened in another PID namespace (another container): the death "
                "of its processes could not be told. Run both in one namespace.")
        if status != SE_OK:
            self.fail_attach(status)
        self.begin()
        return self

    cdef fail_attach(self, se_status status):
        code = errno.errorcode.get(_errno(), "")
        if status == SE_FULL:
            raise errors.StorageFull(
                "Shared memory has no room for the segments of a database. Free some of /dev/shm, "
                "or give a container more of it (--shm-size).")
        raise errors.IoError(f"Mapping shared memory failed ({code}: {os.strerror(_errno())}).")

    cdef begin(self):
        """Copies the descriptors: the caller closes its own ones, whatever comes between."""
        cdef list copies = []
        try:
            copies.append(os.dup(self.store.control_fd))
            copies.append(os.dup(self.store.data_fd))
        except OSError as error:
            for copy in copies:
                os.close(copy)
            se_store_detach(&self.store)
            raise errors.IoError(f"Mapping shared memory failed ({error}).") from error
        self.store.control_fd, self.store.data_fd = copies
        self.threads_id = se_threads_open(&self.store)
        self.fork_count = se_fork_count
        self.is_strict = self.store.header.durability_kind == SE_STRICT
        self.is_open = True
        self.is_mapped = True

    # -- upkeep and figures -------------------------------------------------------------------

    def sweep(self):
        """Trims what retention lets go, now, over all keys."""
        cdef se_status status
        self.check_fork()
        self.busy += 1
        with nogil:
            status = se_sweep_all(&self.store, 0, se_clock_real_us())
        self.busy -= 1
        if status != SE_OK:
            self.fail(SE_FULL if status == SE_NEED_SPACE else status)

    def set_timing(self, bint on):
        self.check_open()
        se_store_relaxed(&self.store.seq.section_update_ns, 0)
        se_store_relaxed(&self.store.seq.section_update_count, 0)
        se_store_relaxed(&self.store.seq.section_insert_ns, 0)
        se_store_relaxed(&self.store.seq.section_insert_count, 0)
        se_store_relaxed(&self.store.seq.timing, on)

    def set_stall(self, double seconds):
        """How long a commit waits for a silent holder before it raises Unavailable."""
        self.stall_s = seconds

    def figures(self):
        cdef se_sequencer *seq
        self.check_open()
        seq = self.store.seq
        updates = se_load_relaxed(&seq.section_update_count)
        inserts = se_load_relaxed(&seq.section_insert_count)
        return {
            "version": se_load_acquire(&seq.commit_version),
            "durable_version": (se_load_acquire(&seq.durable_version)
                                if self.store.header.wal_ring_size else 0),
            "log_bytes": se_load_relaxed(&seq.log_size),
            "log_ring_bytes": (se_load_relaxed(&seq.wal_tail)
                               - se_load_relaxed(&seq.wal_consumed)),
            "syncs": se_load_relaxed(&seq.syncs),
            "checkpoint_version": se_load_relaxed(&seq.checkpoint_version),
            "checkpoint_bytes": se_load_relaxed(&seq.checkpoint_size),
            "commits": se_load_relaxed(&seq.commits),
            "conflicts": se_load_relaxed(&seq.conflicts),
            "keys": se_load_relaxed(&seq.live_keys),
            "trimmed_versions": se_load_relaxed(&seq.trimmed_versions),
            "pressure_trimmed_versions": se_load_relaxed(&seq.pressure_trimmed),
            "recoveries": se_load_relaxed(&seq.recoveries),
            "reaped_clients": se_load_relaxed(&seq.reaped_clients),
            "clients": se_client_count(&self.store, SE_SLOT_THREAD),
            "handles": se_client_count(&self.store, SE_SLOT_MEMBER),
            "arena_used_bytes": se_arena_used(&self.store),
            "arena_allocated_bytes": se_load_relaxed(&seq.arena_allocated),
            "map_size_bytes": self.store.header.data_size,
            "snapshots": se_snapshot_count(&self.store),
            "retired_blocks": se_load_relaxed(&seq.ring_tail) - se_load_relaxed(&seq.ring_head),
            "section_update_ns": (se_load_relaxed(&seq.section_update_ns) / updates
                                  if updates else None),
            "section_insert_ns": (se_load_relaxed(&seq.section_insert_ns) / inserts
                                  if inserts else None),
        }

    def durability(self):
        self.check_open()
        return (self.store.header.durability_kind, self.store.header.flush_interval_ms,
                self.store.header.max_pending_writes)

    def map_size(self):
        self.check_open()
        return self.store.header.data_size


def process_identity(uint32_t pid):
    """start time << 32 | pid, 0 if the process is dead (a zombie is)."""
    return se_process_identity(pid)


def encode_plain(value):
    """The packed value if codec.c takes it, else None (for tests: against the library)."""
    cdef uint8_t plain[PLAIN_MAX]
    cdef size_t size = se_codec_write(value, plain, PLAIN_MAX)
    return PyBytes_FromStringAndSize(<char *> plain, size) if size else None


def decode_plain(bytes data not None, default=None):
    """The value if codec.c takes the bytes, else the default (for tests: against the library)."""
    cdef PyObject *plain = se_codec_read(<uint8_t *> PyBytes_AS_STRING(data),
                                         PyBytes_GET_SIZE(data))
    return default if plain == NULL else take_over(plain)


def process_alive(uint64_t identity):
    """Whether the process of this identity still runs."""
    return bool(se_process_alive(identity))


cdef extern from "errno.h":
    int errno_value "errno"


cdef int _errno() noexcept:
    return errno_value


OP_PUT = SE_OP_PUT
OP_DELETE = SE_OP_DELETE
OP_CHECK = SE_OP_CHECK
OP_EXPECT = SE_OP_EXPECT
OP_INCREMENT = SE_OP_INCREMENT
OP_CHECK_RANGE = SE_OP_CHECK_RANGE
OP_APPEND = SE_OP_APPEND
OP_BUMP = SE_OP_BUMP

NAMES = SCAN_NAMES
VALUES = SCAN_VALUES
RECORDS = SCAN_RECORDS
BYTES = SCAN_BYTES
