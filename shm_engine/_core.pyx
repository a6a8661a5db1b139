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
from cpython.unicode cimport PyUnicode_DecodeUTF8
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
    SMALL_VALUE = 8192    # up to here copying costs less than a memoryview

cdef object _unpackb = msgpack.unpackb
cdef object _Packer = msgpack.Packer
cdef dict _runs = {}

DEF_STALL_S = 5.0


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


cdef Py_ssize_t fill_key(uint8_t *key, RunId run, int tag, object name, bint prefix) except -1:
    """run id | tag | name | 0; a prefix has no terminator and may be empty."""
    cdef Py_ssize_t size
    cdef const char *text
    if type(name) is not str:
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


cdef object decode(const uint8_t *data, uint32_t size):
    try:
        if size <= SMALL_VALUE:
            return _unpackb(PyBytes_FromStringAndSize(<const char *> data, size))
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
    const char *value
    uint64_t expires_us
    int64_t argument


cdef class _Buffer:
    """Growing memory for encoded values on their way in or out."""
    cdef uint8_t *data
    cdef size_t used, room

    def __dealloc__(self):
        free(self.data)

    cdef int add(self, const void *source, size_t size) except -1:
        cdef size_t wider
        cdef uint8_t *data
        if self.used + size > self.room:
            wider = self.room * 2 if self.room * 2 > self.used + size else self.used + size + 4096
            data = <uint8_t *> realloc(self.data, wider)
            if data == NULL:
                raise MemoryError()
            self.data = data
            self.room = wider
        memcpy(self.data + self.used, source, size)
        self.used += size
        return 0


# A garbage collection clears members before it frees, and freeing a Pin needs its store.
@cython.no_gc_clear
cdef class Pin:
    """An announced snapshot: what it sees is not trimmed until it is closed."""
    cdef Store store
    cdef uint32_t entry
    cdef uint64_t fork_count
    cdef bint open
    cdef readonly uint64_t version
    cdef readonly uint64_t now_us

    def close(self):
        """Lets trimming have what only this snapshot needed; again does nothing."""
        if self.open:
            self.open = False
            self.store.put_entry_back(self)

    def __dealloc__(self):
        if self.open:
            self.store.put_entry_back(self)

    @property
    def closed(self):
        return not self.open


@cython.no_gc_clear
cdef class Store:
    """One process's attachment to one database; see _core.pyi for the meaning of each method."""
    cdef se_store store
    cdef se_keeper_thread *thread
    cdef se_keeper *keeper
    cdef uint64_t threads_id
    cdef uint64_t fork_count
    cdef uint32_t member
    cdef bint is_open, is_member, is_mapped
    cdef int busy, inside
    cdef list entries      # snapshot entries that this process has claimed
    cdef list idle_entries # those of them that no open Pin uses
    cdef object packer, pack
    cdef bint packing
    cdef double stall_s
    cdef public object after_fork # called in a forked child, when it first uses the store
    cdef object __weakref__

    def __cinit__(self):
        self.entries = []
        self.idle_entries = []
        self.packer = _Packer(strict_types=True, autoreset=True)
        self.pack = self.packer.pack
        self.stall_s = DEF_STALL_S

    @staticmethod
    def create(int control_fd, int data_fd, *, uint64_t map_size, uint32_t max_clients,
               uint32_t durability_kind=0, uint32_t flush_interval_ms=0,
               uint64_t max_pending_writes=0):
        cdef Store self = Store.__new__(Store)
        cdef se_options options
        memset(&options, 0, sizeof(options))
        options.map_size = map_size
        options.max_clients = max_clients
        options.durability_kind = durability_kind
        options.flush_interval_ms = flush_interval_ms
        options.max_pending_writes = max_pending_writes
        options.created_us = se_clock_real_us()
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
        self.threads_id = se_threads_open(&self.store)
        self.fork_count = se_fork_count
        self.is_open = True
        self.is_mapped = True

    # -- membership and lifecycle -------------------------------------------------------------

    def join(self):
        """Takes a member slot; False if the coordinator is leaving (then nothing is taken)."""
        cdef uint32_t slot
        self.check_fork()
        if self.is_member:
            return True
        status = se_client_join(&self.store, SE_SLOT_MEMBER, &slot)
        if status != SE_OK:
            self.fail(status)
        if se_load_acquire_u32(&self.store.seq.phase) != SE_PHASE_SERVING:
            se_client_leave(&self.store, slot)
            return False
        self.member = slot
        self.is_member = True
        return True

    def leave(self):
        if self.is_open and self.is_member and self.fork_count == se_fork_count:
            self.is_member = False
            se_client_leave(&self.store, self.member)
            se_keeper_ring(&self.store)

    def try_leave_last(self):
        """The coordinator's: stops taking members if there are none; True if it did."""
        self.check_open()
        if se_client_members(&self.store) or not se_swap_if_equal_u32(
                &self.store.seq.phase, SE_PHASE_SERVING, SE_PHASE_LEAVING):
            return False
        if se_client_members(&self.store):
            se_swap_if_equal_u32(&self.store.seq.phase, SE_PHASE_LEAVING, SE_PHASE_SERVING)
            return False
        return True

    def members(self):
        self.check_open()
        return se_client_members(&self.store)

    def was_joined(self):
        """Whether anybody has ever taken a slot."""
        self.check_open()
        return se_load_acquire(&self.store.seq.slot_high) > 0

    def start_keeper(self):
        """Does the coordinator's duties on a thread of this process, inside C."""
        self.thread = se_keeper_start(&self.store)
        if self.thread == NULL:
            raise errors.Unavailable("The thread that looks after the database did not start.")

    def serve(self):
        """Takes the coordinator's duties, and members again if a dead one was about to leave."""
        self.check_open()
        se_swap_if_equal_u32(&self.store.seq.phase, SE_PHASE_LEAVING, SE_PHASE_SERVING)
        se_store_relaxed(&self.store.seq.keeper_identity, self.store.identity)

    def keep(self, double seconds):
        """One round of the coordinator's duties, then a sleep until the bell rings."""
        cdef uint64_t bound = <uint64_t> (seconds * 1e9)
        cdef se_status status
        self.check_open()
        if self.keeper == NULL:
            self.keeper = <se_keeper *> calloc(1, 64)
        self.busy += 1
        with nogil:
            status = se_keeper_tick(self.keeper, &self.store)
            if bound:
                se_keeper_sleep(&self.store, bound)
        self.busy -= 1
        if status == SE_CORRUPT:
            self.fail(status)

    def ring(self):
        self.check_open()
        se_keeper_ring(&self.store)

    def close(self):
        """Gives all slots of this process back and unmaps; again does nothing."""
        if not self.is_open:
            return
        self.is_open = False
        while self.busy > 0 and self.fork_count == se_fork_count:
            time.sleep(0.0002)
        if self.fork_count == se_fork_count:
            for entry in self.entries:
                se_snapshot_release(&self.store, entry)
            if self.is_member:
                self.is_member = False
                se_client_leave(&self.store, self.member)
                se_keeper_ring(&self.store)
            if self.thread != NULL:
                with nogil:
                    se_keeper_stop(self.thread)
        self.thread = NULL
        self.idle_entries = []
        self.entries = []
        free(self.keeper)
        self.keeper = NULL
        if self.inside == 0:
            self.unmap()

    cdef unmap(self):
        self.is_mapped = False
        se_threads_close(self.threads_id)
        os.close(self.store.control_fd)
        os.close(self.store.data_fd)
        se_store_detach(&self.store)

    def __dealloc__(self):
        # Handles close; an attachment that is only dropped leaves its slots to the reaper.
        if self.thread != NULL and self.fork_count == se_fork_count:
            se_keeper_stop(self.thread)
        if self.is_mapped:
            self.unmap()
        free(self.keeper)

    cdef int check_open(self) except -1:
        if not self.is_open:
            raise errors.Closed("The database handle is closed; open the database again.")
        return 0

    cdef int check_fork(self) except -1:
        """A forked child starts with no slots of its own."""
        self.check_open()
        if self.fork_count == se_fork_count:
            return 0
        identity = se_process_identity(<uint32_t> os.getpid())
        if identity == 0:
            raise errors.IoError("/proc could not be read (are all descriptors in use?), so this "
                                 "forked process cannot join the database.")
        was_member = self.is_member
        had_thread = self.thread != NULL
        self.fork_count = se_fork_count
        self.is_member = False
        self.thread = NULL
        self.busy = 0
        self.inside = 0
        self.idle_entries = []
        self.entries = []
        self.store.identity = identity
        self.store.mapped_to = 0
        se_threads_after_fork(self.threads_id)
        if was_member and not self.join():
            self.is_open = False
            raise errors.Closed("The database was closed by the parent process.")
        if had_thread:
            self.start_keeper()
        if self.after_fork is not None:
            self.after_fork()
        return 0

    cdef se_session *session(self) except NULL:
        cdef se_session *session
        cdef se_status status
        if not self.is_open or self.fork_count != se_fork_count:
            self.check_fork()
        status = se_thread_session(self.threads_id, &session)
        if status != SE_OK:
            self.fail(status)
        return session

    # -- errors -------------------------------------------------------------------------------

    cdef fail(self, se_status status):
        if status == SE_FULL:
            raise errors.StorageFull(
                f"The database has no shared memory left ({se_arena_used(&self.store)} of "
                f"{self.store.header.data_size} bytes are in use) and no history that may go. "
                f"Reads and deletes still work. Open it with a larger map_size, choose a "
                f"retention policy, or give /dev/shm more room (--shm-size in a container).")
        if status == SE_TOO_MANY:
            raise errors.Unavailable(
                f"All {self.store.header.max_clients} client slots are taken by living threads. "
                f"Close handles that are not needed, or open the database with a larger "
                f"max_clients.")
        if status == SE_TOO_LARGE:
            raise errors.ConstraintViolation(
                "write_set_too_large",
                f"The write set is too large: a commit holds at most {SE_OPS_MAX} operations and "
                f"{SE_REQUEST_MAX >> 20} MiB. Split it into several.")
        if status == SE_CORRUPT:
            raise errors.Corruption("shared memory", 0,
                                    "The database in shared memory holds impossible values; close "
                                    "all its handles and open it again.")
        if status == SE_CLOSED:
            self.check_open()
        name = se_status_exception(status).decode() or "InternalError"
        raise getattr(errors, name)(se_status_text(status).decode())

    cdef fail_commit(self, se_session *session, se_status status, names):
        detail = se_session_reply_detail(session)
        index = se_session_reply_op(session)
        name = names[index] if index < len(names) else "?"
        if status == SE_CONFLICT:
            raise errors.TransactionConflict(name)
        if status == SE_MISMATCH:
            raise errors.VersionMismatch(None, detail, f"{name!r} is at version {detail} now.")
        if status == SE_WRONG_TYPE:
            kind = packed_kind(detail)
            raise errors.WrongType("int", kind,
                                   f"{name!r} holds {kind}, so it cannot be incremented.")
        if status == SE_OVERFLOW:
            raise errors.ConstraintViolation(
                "int_out_of_range",
                f"Incrementing {name!r} would leave the 64-bit signed range; its value stays.")
        if status == SE_RUN_CLOSED:
            state = keys.RUN_STATUS_NAMES.get(detail, f"status {detail}")
            run = str(RunId.from_bytes(PyBytes_FromStringAndSize(<char *> session.run, 16)))
            raise errors.RunError(run, state, f"The run {run} is {state}, so it takes no writes; "
                                  f"reads still work.")
        self.fail(status)

    # -- reading ------------------------------------------------------------------------------

    cdef void pin(self, se_session *session) noexcept:
        self.inside += 1
        se_session_pin(session)

    cdef void unpin(self, se_session *session) noexcept:
        se_session_unpin(session)
        self.inside -= 1

    cdef se_status find(self, se_session *session, const uint8_t *key, uint32_t size,
                        uint64_t snapshot, const se_record **record) noexcept nogil:
        """The newest record <= snapshot; SE_TRIMMED if only a newer snapshot can tell."""
        cdef uint64_t leaf
        cdef se_leaf *found
        cdef se_status status = se_index_find(&self.store, key, size, &leaf)
        record[0] = NULL
        if status != SE_OK or leaf == 0:
            return status
        found = se_leaf_at(&self.store, leaf)
        if found == NULL:
            return SE_CORRUPT
        return se_record_visible(&self.store, found, snapshot, record)

    cdef se_status find_now(self, se_session *session, const uint8_t *key, uint32_t size,
                            const se_record **record) noexcept nogil:
        """The newest committed record; the caller has pinned. A cut means: take a newer snapshot."""
        cdef se_status status
        cdef int tries
        for tries in range(1000000):
            status = self.find(session, key, size, se_load_acquire(&self.store.seq.commit_version),
                               record)
            if status != SE_TRIMMED:
                return status
        return SE_CORRUPT

    cdef se_status lookup(self, se_session *session, const uint8_t *key, uint32_t size, Pin pin,
                          const se_record **record):
        cdef se_status status
        if pin is None:
            return self.find_now(session, key, size, record)
        if not pin.open or pin.fork_count != se_fork_count or pin.store is not self:
            raise errors.InvalidState("The snapshot is closed, or belongs to the parent process.")
        status = self.find(session, key, size, pin.version, record)
        if status == SE_TRIMMED: # the leaf went, with a tombstone that this snapshot sees
            record[0] = NULL
            status = SE_OK
        return status

    def get(self, run, int tag, name, Pin pin=None, default=None):
        cdef uint8_t key[KEY_MAX]
        cdef const se_record *record
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        cdef se_session *session = self.session()
        cdef se_status status
        self.pin(session)
        try:
            status = self.lookup(session, key, <uint32_t> size, pin, &record)
            if status != SE_OK:
                self.fail(status)
            if record == NULL or (record.flags & SE_RECORD_TOMBSTONE) or (
                    record.expires_us and record.expires_us <= (
                        se_clock_real_us() if pin is None else pin.now_us)):
                return default
            return decode(record.value, record.value_size)
        finally:
            self.unpin(session)

    def get_record(self, run, int tag, name, Pin pin=None):
        """(value, version, timestamp_us, expires_us), or None."""
        cdef uint8_t key[KEY_MAX]
        cdef const se_record *record
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        cdef se_session *session = self.session()
        self.pin(session)
        try:
            status = self.lookup(session, key, <uint32_t> size, pin, &record)
            if status != SE_OK:
                self.fail(status)
            if record == NULL or se_record_dead(
                    record, se_clock_real_us() if pin is None else pin.now_us):
                return None
            return (decode(record.value, record.value_size), record.version, record.timestamp_us,
                    record.expires_us)
        finally:
            self.unpin(session)

    def get_many(self, run, int tag, names, Pin pin not None, default=None):
        cdef uint8_t key[KEY_MAX]
        cdef const se_record *record
        cdef RunId run_id = as_run(run)
        cdef list found = []
        cdef Py_ssize_t size
        cdef se_session *session = self.session()
        self.pin(session)
        try:
            for name in names:
                size = fill_key(key, run_id, tag, name, False)
                status = self.lookup(session, key, <uint32_t> size, pin, &record)
                if status != SE_OK:
                    self.fail(status)
                if record == NULL or se_record_dead(record, pin.now_us):
                    found.append(default)
                else:
                    found.append(decode(record.value, record.value_size))
        finally:
            self.unpin(session)
        return found

    def scan(self, run, int tag, prefix, Pin pin not None, after=None, limit=None,
             bint with_values=True):
        """(names, values) in byte order; values is None without them."""
        cdef uint8_t key[KEY_MAX]
        cdef uint8_t first[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t prefix_size = fill_key(key, run_id, tag, prefix, True)
        cdef Py_ssize_t size = prefix_size
        cdef uint64_t left = (<uint64_t> -1) if limit is None else max(0, limit)
        cdef _Buffer buffer = _Buffer() if with_values else None
        cdef list names = []
        cdef se_iter *iter
        memcpy(first, key, prefix_size)
        if after is not None:
            size = fill_key(first, run_id, tag, after, False)
            if memcmp(first, key, min(size, prefix_size)) < 0:
                memcpy(first, key, prefix_size)
                size = prefix_size
            else:
                first[size - 1] = 1 # behind the terminator: the next key
        if not pin.open or pin.fork_count != se_fork_count or pin.store is not self:
            raise errors.InvalidState("The snapshot is closed, or belongs to the parent process.")
        iter = <se_iter *> malloc(sizeof(se_iter))
        if iter == NULL:
            raise MemoryError()
        try:
            while left > 0 and size > 0:
                size = self.scan_batch(iter, key, prefix_size, first, size, pin, &left, names,
                                       buffer)
        except UnicodeDecodeError as error:
            raise damaged(error) from error
        finally:
            free(iter)
        return names, self.decode_all(buffer, names) if with_values else None

    cdef Py_ssize_t scan_batch(self, se_iter *iter, const uint8_t *prefix,
                               Py_ssize_t prefix_size, uint8_t *first, Py_ssize_t first_size,
                               Pin pin, uint64_t *left, list names, _Buffer buffer) except -1:
        """One pin's worth; returns the size of the key to go on with, 0 at the end."""
        cdef const se_record *record
        cdef se_leaf *leaf
        cdef uint64_t offset
        cdef se_status status
        cdef int visited = 0
        cdef se_session *session = self.session()
        self.pin(session)
        try:
            status = se_iter_seek(iter, &self.store, first, <uint32_t> first_size)
            while status == SE_OK and left[0] > 0:
                status = se_iter_next(iter, &offset)
                if status != SE_OK or offset == 0:
                    break
                leaf = se_leaf_at(&self.store, offset)
                if leaf == NULL:
                    status = SE_CORRUPT
                    break
                if leaf.key_size < prefix_size or memcmp(leaf.key, prefix, prefix_size) != 0:
                    return 0
                if visited == SCAN_BATCH:
                    memcpy(first, leaf.key, leaf.key_size)
                    return leaf.key_size
                visited += 1
                status = se_record_visible(&self.store, leaf, pin.version, &record)
                if status == SE_TRIMMED:
                    status = SE_OK
                    continue
                if status != SE_OK or record == NULL or se_record_dead(record, pin.now_us):
                    continue
                if leaf.key_size <= PREFIX_SIZE:
                    status = SE_CORRUPT
                    break
                names.append(PyUnicode_DecodeUTF8(<char *> leaf.key + PREFIX_SIZE,
                                                  leaf.key_size - PREFIX_SIZE - 1, NULL))
                if buffer is not None:
                    buffer.add(record.value, record.value_size)
                left[0] -= 1
        finally:
            self.unpin(session)
        if status != SE_OK:
            self.fail(status)
        return 0

    cdef list decode_all(self, _Buffer buffer, list names):
        """All values in one call of the decoder: an array's head is put in front."""
        cdef uint8_t head[8]
        cdef size_t head_size
        cdef uint8_t *joined
        if not names:
            return []
        head_size = se_msgpack_write_array(head, <uint32_t> len(names))
        data = PyBytes_FromStringAndSize(NULL, head_size + buffer.used)
        joined = <uint8_t *> PyBytes_AS_STRING(data)
        memcpy(joined, head, head_size)
        memcpy(joined + head_size, buffer.data, buffer.used)
        try:
            return _unpackb(data)
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged(error) from error

    def history(self, run, int tag, name, limit=None, before=None):
        """([(value, version, timestamp_us, is_tombstone)], cut), newest first."""
        cdef uint8_t key[KEY_MAX]
        cdef const se_record *record
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        cdef uint64_t left = (<uint64_t> -1) if limit is None else max(0, limit)
        cdef uint64_t bound = (<uint64_t> -1) if before is None else before
        cdef list found = []
        cdef se_status status
        cdef se_session *session = self.session()
        self.pin(session)
        try:
            status = self.find_now(session, key, <uint32_t> size, &record)
            while status == SE_OK and record != NULL and left > 0:
                if record.version < bound:
                    dead = (record.flags & SE_RECORD_TOMBSTONE) != 0
                    found.append((None if dead else decode(record.value, record.value_size),
                                  record.version, record.timestamp_us, dead))
                    left -= 1
                status = se_record_older(&self.store, record, &record)
        finally:
            self.unpin(session)
        if status != SE_OK and status != SE_TRIMMED:
            self.fail(status)
        return found, status == SE_TRIMMED

    def get_at(self, run, int tag, name, uint64_t version):
        """(value, version, timestamp_us, is_tombstone), or the oldest version kept (0: none)."""
        cdef uint8_t key[KEY_MAX]
        cdef const se_record *record
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        cdef se_session *session = self.session()
        cdef uint64_t earliest = 0
        cdef se_status status
        self.pin(session)
        try:
            status = self.find_now(session, key, <uint32_t> size, &record)
            while status == SE_OK and record != NULL:
                if record.version <= version:
                    dead = (record.flags & SE_RECORD_TOMBSTONE) != 0
                    return (None if dead else decode(record.value, record.value_size),
                            record.version, record.timestamp_us, dead)
                earliest = record.version
                status = se_record_older(&self.store, record, &record)
        finally:
            self.unpin(session)
        if status != SE_OK and status != SE_TRIMMED:
            self.fail(status)
        if earliest == 0 and version < se_load_acquire(&self.store.seq.removed_horizon):
            return <object> (se_load_acquire(&self.store.seq.removed_horizon))
        return earliest

    # -- snapshots ----------------------------------------------------------------------------

    def open_pin(self):
        """Announces the newest version."""
        cdef Pin pin = Pin.__new__(Pin)
        cdef uint32_t entry
        cdef se_status status
        if not self.is_open or self.fork_count != se_fork_count:
            self.check_fork()
        if self.idle_entries:
            entry = self.idle_entries.pop()
        else:
            status = se_snapshot_claim(&self.store, &entry)
            if status != SE_OK:
                raise errors.Unavailable("4096 snapshots and transactions are open; close some.")
            self.entries.append(entry)
        pin.store = self
        pin.entry = entry
        pin.fork_count = se_fork_count
        pin.now_us = se_clock_real_us()
        se_snapshot_open(&self.store, entry, &pin.version)
        pin.open = True
        return pin

    cdef put_entry_back(self, Pin pin):
        if self.is_open and pin.fork_count == se_fork_count:
            se_snapshot_close(&self.store, pin.entry)
            self.idle_entries.append(pin.entry)

    def trim_horizon(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.trim_horizon)

    def version(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.commit_version)

    # -- writing ------------------------------------------------------------------------------

    def check_name(self, name, bint prefix=False):
        """Raises what a read or write of this name would; a prefix may be empty."""
        cdef uint8_t key[KEY_MAX]
        self.check_open()
        fill_key(key, <RunId> DEFAULT_RUN, 0, name, prefix)

    cpdef bytes encode(self, value):
        """The packed value, or the precise error of values.explain."""
        cdef c_bool binary = False
        cdef bytes packed
        try:
            if self.packing: # a finalizer that runs inside the packer brings its own
                packed = values.encode(value)
            else:
                self.packing = True
                try:
                    packed = self.pack(value)
                finally:
                    self.packing = False
        except errors.Error:
            raise
        except Exception as error:
            self.renew_packer()
            values.explain(value)
            raise errors.SerializationError(f"The value cannot be encoded: {error}.") from error
        size = PyBytes_GET_SIZE(packed)
        if size > 4194304:
            self.renew_packer()
        if size > ENCODED_MAX or se_msgpack_check(<uint8_t *> PyBytes_AS_STRING(packed), size,
                                               &binary) != <size_t> size:
            values.explain(value)
            raise errors.SerializationError("The value cannot be encoded.")
        if binary and type(value) is not bytes:
            values.check(value) # bytes are fine, what packs like them is not
        return packed

    cdef se_status finish(self, se_session *session) except? SE_BUSY:
        """Submits and waits; the status of the reply."""
        self.inside += 1
        try:
            return self.submit_and_wait(session)
        finally:
            session.committing = False
            self.inside -= 1

    cdef se_status submit_and_wait(self, se_session *session) except? SE_BUSY:
        cdef se_status status
        cdef uint64_t started
        cdef object interrupt = None
        cdef bint large = session.used > 65536
        session.committing = True
        if large:
            self.busy += 1
            with nogil:
                status = se_session_submit(session)
            self.busy -= 1
        else:
            status = se_session_submit(session)
        if status == SE_OK:
            status = se_session_outcome(session)
            if status != SE_NEED_SPACE:
                return status
        started = se_clock_ns()
        while status == SE_BUSY or status == SE_NEED_SPACE:
            self.busy += 1
            with nogil:
                if status == SE_NEED_SPACE:
                    status = se_session_repair(session)
                else:
                    status = se_session_wait(session, WAIT_NS)
                if status == SE_OK:
                    status = se_session_outcome(session)
            self.busy -= 1
            if status == SE_BUSY:
                interrupt = self.wait_on(session, started) or interrupt
        if interrupt is not None:
            raise interrupt
        if session.waiting:
            se_session_withdraw(session)
        return status

    cdef wait_on(self, se_session *session, uint64_t started):
        """Between waits: Ctrl-C, and a bound on the holder's silence. A request that nobody has
        taken up is withdrawn and the error raised; one that was is waited for, and an interrupt is
        returned, to be raised after it."""
        cdef se_status status
        try:
            PyErr_CheckSignals()
        except BaseException as interrupt:
            if se_session_withdraw(session) == SE_OK:
                raise
            return interrupt
        if (se_clock_ns() - started) * 1e-9 < self.stall_s:
            return None
        owner = se_sequencer_owner(&self.store)
        status = se_session_withdraw(session)
        if status == SE_OK:
            raise errors.Unavailable(
                f"Process {owner} has held the sequencer for {self.stall_s:g} s and does not let "
                f"go (is it stopped?). Nothing was written; continue or kill that process, then "
                f"try again.")
        if status == SE_IN_DOUBT:
            raise errors.Unavailable(
                f"Process {owner} stopped while it carried out this very commit: whether it "
                f"happened will be known when that process goes on or dies. The next write of this "
                f"thread waits for that.", in_doubt=True)
        return None

    cdef add(self, se_session *session, int kind, const uint8_t *key, Py_ssize_t size,
             bytes packed, uint64_t expires_us, int64_t argument):
        cdef se_status status
        cdef uint32_t value_size = 0 if packed is None else <uint32_t> PyBytes_GET_SIZE(packed)
        status = se_session_add(session, kind, key, <uint32_t> size,
                                NULL if packed is None else PyBytes_AS_STRING(packed), value_size,
                                expires_us, argument)
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)

    cdef se_session *start(self, RunId run, uint64_t snapshot) except NULL:
        cdef se_session *session = self.session()
        if session.committing:
            raise errors.InvalidOperation(
                "This thread is in the middle of a commit: a signal handler or finalizer that runs "
                "meanwhile may read, but not write.")
        if session.waiting:
            self.settle(session)
        cdef se_status status = se_session_begin(session, run.raw, se_clock_real_us(), snapshot)
        if status != SE_OK:
            self.fail(status)
        return session

    cdef settle(self, se_session *session):
        """A request that an interrupted call left in another's hands is waited for first."""
        session.committing = True
        self.inside += 1
        try:
            self.wait_for_reply(session)
        finally:
            session.committing = False
            self.inside -= 1

    cdef wait_for_reply(self, se_session *session):
        cdef uint64_t started = se_clock_ns()
        cdef se_status status = SE_BUSY
        cdef object interrupt = None
        while status == SE_BUSY or status == SE_NEED_SPACE:
            self.busy += 1
            with nogil:
                status = se_session_wait(session, WAIT_NS)
                if status == SE_OK:
                    status = se_session_outcome(session)
            self.busy -= 1
            if status == SE_NEED_SPACE: # it was refused, and nobody waits for it any more
                session.repairing = True
                status = se_session_withdraw(session)
            elif status == SE_BUSY:
                interrupt = self.wait_on(session, started) or interrupt
        if interrupt is not None:
            raise interrupt

    def put(self, run, int tag, name, value, uint64_t expires_us=0):
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef bytes packed = self.encode(value)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_PUT, key, size, packed, expires_us, 0)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        return se_session_reply_version(session)

    def delete(self, run, int tag, name):
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_DELETE, key, size, None, 0, 0)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        return se_session_first_result(session) != 0

    def increment(self, run, int tag, name, int64_t delta):
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_INCREMENT, key, size, None, 0, delta)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        return se_session_first_result(session)

    def compare_and_set(self, run, int tag, name, uint64_t expected, value):
        """The new version, or None if the key is at another version (0: absent)."""
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef bytes packed = self.encode(value)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_EXPECT, key, size, None, 0, <int64_t> expected)
        self.add(session, SE_OP_PUT, key, size, packed, 0, 0)
        status = self.finish(session)
        if status == SE_MISMATCH:
            return None
        if status != SE_OK:
            self.fail_commit(session, status, (name, name))
        return se_session_reply_version(session)

    def put_many(self, run, int tag, dict items):
        """All in one commit; the keys and values are checked before anything is written."""
        cdef RunId run_id = as_run(run)
        cdef list names = list(items)
        cdef list found = list(items.values())
        cdef _Buffer sizes = _Buffer()
        cdef bytes packed = self.encode_all(found, sizes)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add_many(session, run_id, tag, names, packed, sizes)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, names)
        return se_session_reply_version(session)

    cdef bytes encode_all(self, list found, _Buffer sizes):
        """The packed values one behind the other, and the size of each (32 bits) in sizes."""
        cdef bytes packed = self.encode_list(found)
        cdef size_t left = PyBytes_GET_SIZE(packed)
        cdef const uint8_t *at = <const uint8_t *> PyBytes_AS_STRING(packed)
        cdef size_t size
        cdef uint32_t size_32
        cdef uint8_t head[8]
        cdef size_t head_size = se_msgpack_write_array(head, <uint32_t> len(found))
        cdef c_bool binary = False
        cdef Py_ssize_t index
        if left > 0:
            at += head_size
            left -= head_size
            for index in range(len(found)):
                size = se_msgpack_check(at, left, &binary)
                if size == 0 or size > ENCODED_MAX or (binary and type(found[index]) is not bytes):
                    break
                binary = False
                size_32 = <uint32_t> size
                sizes.add(&size_32, 4)
                at += size
                left -= size
            else:
                return packed[head_size:]
        # Something breaks a rule, or might: one by one, so that the error names it.
        sizes.used = 0
        alone = [self.encode(value) for value in found]
        for packed in alone:
            size_32 = <uint32_t> PyBytes_GET_SIZE(packed)
            sizes.add(&size_32, 4)
        return b"".join(alone)

    cdef bytes encode_list(self, list found):
        """All values in one call of the encoder; a value it refuses is then told by itself."""
        cdef bytes packed
        if self.packing:
            return b""
        self.packing = True
        try:
            packed = self.pack(found)
        except Exception:
            self.renew_packer()
            return b""
        finally:
            self.packing = False
        if PyBytes_GET_SIZE(packed) > 4194304:
            self.renew_packer() # its buffer would stay that large
        return packed

    cdef renew_packer(self):
        self.packer = _Packer(strict_types=True, autoreset=True)
        self.pack = self.packer.pack

    cdef int add_many(self, se_session *session, RunId run, int tag, list names, bytes packed,
                      _Buffer sizes) except -1:
        cdef uint8_t key[KEY_MAX]
        cdef Py_ssize_t index, size
        cdef const uint8_t *at = <const uint8_t *> PyBytes_AS_STRING(packed)
        cdef uint32_t value_size
        cdef se_status status
        try:
            for index in range(len(names)):
                size = fill_key(key, run, tag, names[index], False)
                memcpy(&value_size, sizes.data + 4 * index, 4)
                status = se_session_add(session, SE_OP_PUT, key, <uint32_t> size, at, value_size,
                                        0, 0)
                if status != SE_OK:
                    self.fail(status)
                at += value_size
        except BaseException:
            se_session_abandon(session)
            raise
        return 0

    def delete_many(self, run, int tag, names):
        """How many of them existed; one commit."""
        return self.commit(run, [(SE_OP_DELETE, tag, name, None, 0, 0)
                                 for name in dict.fromkeys(names)], 0)[1]

    def commit(self, run, ops, uint64_t snapshot):
        """ops: (kind, tag, name, packed value or None, expires_us, argument); gives (version,
        how many keys it deleted, timestamp_us)."""
        cdef _Buffer ready = _Buffer() # one _Ready each, then its key
        cdef _Ready op
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size, index
        cdef size_t at = 0
        cdef se_session *session
        cdef se_status status = SE_OK
        cdef list names = []
        cdef list packed_values = []
        cdef bytes packed
        for kind, tag, name, packed, expires_us, argument in ops:
            op.kind = kind
            op.key_size = <uint32_t> fill_key(key, run_id, tag, name, op.kind == SE_OP_CHECK_RANGE)
            op.expires_us = expires_us
            op.argument = argument
            op.value = NULL if packed is None else PyBytes_AS_STRING(packed)
            op.value_size = 0 if packed is None else <uint32_t> PyBytes_GET_SIZE(packed)
            ready.add(&op, sizeof(op))
            ready.add(key, op.key_size)
            packed_values.append(packed) # keeps the bytes that op.value points into
            names.append(name)
        session = self.start(run_id, snapshot)
        while status == SE_OK and at < ready.used: # no Python code runs in here
            memcpy(&op, ready.data + at, sizeof(op))
            at += sizeof(op)
            status = se_session_add(session, op.kind, ready.data + at, op.key_size, op.value,
                                    op.value_size, op.expires_us, op.argument)
            at += op.key_size
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, names)
        return (se_session_reply_version(session),
                se_session_count_results(session, SE_OP_DELETE),
                se_session_reply_timestamp(session))

    def put_run_record(self, run, bytes record not None, expected=None):
        """The run's own record: status and retention, read inside every commit of the run.

        None if expected is given and the record is at another version (0: absent)."""
        cdef uint8_t key[18]
        cdef RunId run_id = as_run(run)
        cdef uint64_t version = 0 if expected is None else expected
        cdef se_session *session
        cdef se_status status
        memcpy(key, run_id.raw, 16)
        key[16] = 5
        key[17] = 0
        session = self.start(run_id, 0)
        if expected is not None:
            self.add(session, SE_OP_EXPECT, key, 18, None, 0, <int64_t> version)
        self.add(session, SE_OP_PUT, key, 18, record, 0, 0)
        status = self.finish(session)
        if status == SE_MISMATCH:
            return None
        if status != SE_OK:
            self.fail_commit(session, status, (str(run_id),) * 2)
        return se_session_reply_version(session)

    def get_run_record(self, run):
        cdef uint8_t key[18]
        cdef RunId run_id = as_run(run)
        cdef const se_record *record
        cdef se_session *session = self.session()
        memcpy(key, run_id.raw, 16)
        key[16] = 5
        key[17] = 0
        self.pin(session)
        try:
            status = self.find_now(session, key, 18, &record)
            if status != SE_OK:
                self.fail(status)
            if record == NULL or record.flags & SE_RECORD_TOMBSTONE:
                return None
            return (PyBytes_FromStringAndSize(<char *> record.value, record.value_size),
                    record.version)
        finally:
            self.unpin(session)

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
            self.fail(status)

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
