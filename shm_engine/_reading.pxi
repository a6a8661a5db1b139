# _reading.pxi - part of _core.pyx: reads, scans, history, snapshots.

@cython.no_gc_clear
cdef class _Walk:
    """A scan under way: where it is, and what it has found."""
    cdef _Reader reader
    cdef Pin pin
    cdef se_iter *iter
    cdef list names, found
    cdef int form
    cdef bint raw
    cdef uint64_t left
    cdef Py_ssize_t prefix_size, stop_size
    cdef uint8_t prefix[KEY_MAX]
    cdef uint8_t first[KEY_MAX + 1]
    cdef uint8_t stop[KEY_MAX]

    def __cinit__(self, _Reader reader, Pin pin, int form, bint raw):
        self.reader = reader
        self.pin = pin
        self.form = form
        self.raw = raw
        self.names = []
        self.found = None if form == SCAN_NAMES else []
        self.iter = <se_iter *> malloc(sizeof(se_iter))
        if self.iter == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.iter)

    cdef check(self):
        if not self.pin.open or self.pin.fork_count != se_fork_count or (
                self.pin.store is not self.reader):
            raise errors.InvalidState("The snapshot is closed, or belongs to the parent process.")

    cdef Py_ssize_t batch(self, Py_ssize_t size) except -1:
        """One pin's worth; returns the size of the key to go on with, 0 at the end."""
        cdef _Reader reader = self.reader
        cdef se_session *session = reader.session()
        cdef c_bool hidden = False
        cdef se_status status
        reader.pin(session)
        try:
            status = se_reader_hides(&reader.store, self.prefix, self.pin.version, &hidden)
            if hidden:
                return 0
            if status == SE_OK:
                status = se_iter_seek(self.iter, &reader.store, self.first, <uint32_t> size)
            if status == SE_OK:
                size = self.walk(&status)
        finally:
            reader.unpin(session)
        if status != SE_OK:
            reader.fail(status)
        return size

    cdef Py_ssize_t walk(self, se_status *status) except -1:
        cdef const se_record *record
        cdef se_leaf *leaf
        cdef uint64_t offset
        cdef int visited = 0
        while self.left > 0:
            status[0] = se_iter_next(self.iter, &offset)
            if status[0] != SE_OK or offset == 0:
                return 0
            leaf = se_leaf_at(&self.reader.store, offset)
            if leaf == NULL or leaf.key_size <= PREFIX_SIZE:
                status[0] = SE_CORRUPT
                return 0
            if leaf.key_size < self.prefix_size or memcmp(
                    leaf.key, self.prefix, self.prefix_size) != 0 or self.is_past(leaf):
                return 0
            if visited == SCAN_BATCH:
                memcpy(self.first, leaf.key, leaf.key_size)
                return leaf.key_size
            visited += 1
            status[0] = se_record_visible(&self.reader.store, leaf, self.pin.version, &record)
            if status[0] != SE_OK and status[0] != SE_TRIMMED:
                return 0
            if status[0] == SE_OK and record != NULL and not se_record_dead(record,
                                                                          self.pin.now_us):
                self.take(leaf, record)
            status[0] = SE_OK
        return 0

    cdef Py_ssize_t descend(self, Py_ssize_t start_size, list found, list places,
                            Py_ssize_t place) except -1:
        """The children of those from `place` on, as many as one pin allows; where to go on."""
        cdef _Reader reader = self.reader
        cdef se_session *session = reader.session()
        cdef se_status status = SE_OK
        cdef se_leaf *leaf
        cdef const se_record *record
        cdef uint64_t offset
        cdef c_bool hidden = False
        cdef int visited = 0
        reader.pin(session)
        try:
            status = se_reader_hides(&reader.store, self.prefix, self.pin.version, &hidden)
            while status == SE_OK and not hidden and place < len(found) and visited < SCAN_BATCH:
                memcpy(self.prefix + start_size, PyBytes_AS_STRING(<bytes> found[place]), 16)
                status = se_iter_seek(self.iter, &reader.store, self.prefix,
                                      <uint32_t> self.prefix_size)
                visited += 1
                while status == SE_OK:
                    status = se_iter_next(self.iter, &offset)
                    leaf = NULL if status != SE_OK or offset == 0 else se_leaf_at(&reader.store,
                                                                                  offset)
                    if leaf == NULL or leaf.key_size != self.prefix_size + 16 or memcmp(
                            leaf.key, self.prefix, self.prefix_size) != 0:
                        break
                    visited += 1
                    if se_record_visible(&reader.store, leaf, self.pin.version,
                                         &record) == SE_OK and record != NULL and (
                                             not se_record_dead(record, self.pin.now_us)):
                        found.append(PyBytes_FromStringAndSize(
                            <char *> leaf.key + self.prefix_size, 16))
                        places.append(place)
                place += 1
        finally:
            reader.unpin(session)
        if status != SE_OK:
            reader.fail(status)
        return len(found) if hidden else place

    cdef bint is_past(self, se_leaf *leaf):
        cdef Py_ssize_t shorter = min(<Py_ssize_t> leaf.key_size, self.stop_size)
        cdef int order
        if self.stop_size == 0:
            return False
        order = memcmp(leaf.key, self.stop, shorter)
        return order > 0 or (order == 0 and leaf.key_size >= self.stop_size)

    cdef take(self, se_leaf *leaf, const se_record *record):
        if self.raw:
            self.names.append(PyBytes_FromStringAndSize(<char *> leaf.key + PREFIX_SIZE,
                                                        leaf.key_size - PREFIX_SIZE))
        else:
            self.names.append(PyUnicode_DecodeUTF8(<char *> leaf.key + PREFIX_SIZE,
                                                   leaf.key_size - PREFIX_SIZE - 1, NULL))
        if self.form == SCAN_VALUES:
            self.found.append(decode(record.value, record.value_size))
        elif self.form == SCAN_RECORDS:
            self.found.append((decode(record.value, record.value_size), record.version,
                               record.timestamp_us))
        elif self.form == SCAN_BYTES:
            self.found.append((PyBytes_FromStringAndSize(<char *> record.value,
                                                         record.value_size),
                               record.version, record.timestamp_us))
        self.left -= 1


@cython.no_gc_clear
cdef class _Reader(_Attachment):
    """What reads."""

    cdef void pin(self, se_session *session) noexcept:
        self.inside += 1
        se_session_pin(session)

    cdef void unpin(self, se_session *session) noexcept:
        se_session_unpin(session)
        self.inside -= 1

    cdef se_status find(self, se_session *session, const uint8_t *key, uint32_t size,
                        uint64_t snapshot, const se_record **record) noexcept nogil:
        """The newest record <= snapshot; SE_TRIMMED if only a newer snapshot can tell."""
        return se_reader_find(&self.store, key, size, snapshot, record)

    cdef se_status find_now(self, se_session *session, const uint8_t *key, uint32_t size,
                            const se_record **record) noexcept nogil:
        """The newest record that may be seen; the caller has pinned. A cut means: take a newer snapshot."""
        cdef se_status status
        cdef int tries
        for tries in range(1000000):
            status = self.find(session, key, size, se_visible_version(&self.store), record)
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

    def get_many(self, run, int tag, names, Pin pin not None, default=None,
                 int form=SCAN_VALUES):
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
                elif form == SCAN_RECORDS:
                    found.append((decode(record.value, record.value_size), record.version,
                                  record.timestamp_us))
                else:
                    found.append(decode(record.value, record.value_size))
        finally:
            self.unpin(session)
        return found

    def get_counted(self, run, int tag, name, Pin pin=None):
        """(value, counter, timestamp_us) of a counted value, or None."""
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
            if not se_counted_check(record.value, record.value_size):
                raise damaged("no counter")
            return (decode(record.value + COUNTED_HEAD, record.value_size - COUNTED_HEAD),
                    se_counted_read(record.value), record.timestamp_us)
        finally:
            self.unpin(session)

    def scan(self, run, int tag, prefix, Pin pin not None, after=None, limit=None,
             int form=SCAN_VALUES, stop=None):
        """(names, found) in byte order: for each key its value, or what `form` asks for; with
        SCAN_NAMES found is None. Names of a prefix of bytes are bytes: all behind run and tag.
        Before `stop`, a name of bytes."""
        cdef uint8_t key[KEY_MAX]
        cdef _Walk walk = _Walk(self, pin, form, type(prefix) is bytes)
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size
        walk.prefix_size = fill_key(walk.prefix, run_id, tag, prefix, True)
        walk.left = (<uint64_t> -1) if limit is None else max(0, limit)
        size = walk.prefix_size
        memcpy(walk.first, walk.prefix, size)
        if after is not None:
            size = fill_key(key, run_id, tag, after, False)
            if memcmp(key, walk.prefix, min(size, walk.prefix_size)) < 0:
                size = walk.prefix_size
            else:
                memcpy(walk.first, key, size)
                if walk.raw:
                    walk.first[size] = 0 # no key begins with another one
                    size += 1
                else:
                    walk.first[size - 1] = 1 # behind the terminator: the next key
        if stop is not None:
            walk.stop_size = fill_key(walk.stop, run_id, tag, stop, False)
        walk.check()
        try:
            while walk.left > 0 and size > 0:
                size = walk.batch(size)
        except UnicodeDecodeError as error:
            raise damaged(error) from error
        return walk.names, walk.found

    def descend(self, run, int tag, bytes start not None, bytes root not None, Pin pin not None):
        """All that hangs below `root` by keys start + parent + child, both of 16 bytes: the
        children, breadth first, and for each the place of its parent, 0 being the root."""
        cdef _Walk walk = _Walk(self, pin, SCAN_NAMES, True)
        cdef Py_ssize_t start_size = fill_key(walk.prefix, as_run(run), tag, start, True)
        cdef list found = [root]
        cdef list places = [-1]
        cdef Py_ssize_t place = 0
        walk.prefix_size = start_size + 16
        walk.check()
        while place < len(found):
            place = walk.descend(start_size, found, places, place)
        return found, places

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

    # -- waiting ------------------------------------------------------------------------------

    def watch(self, run, int tag, name):
        """Asks to be woken when the key changes; what `wait_for` takes. Look at the key after it:
        what was committed before is visible now, what comes later wakes."""
        cdef uint8_t key[KEY_MAX]
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        cdef uint64_t bell
        self.check_fork()
        bell = se_bell_of(key, <uint32_t> size)
        seen = se_bell_watch(&self.store, bell)
        if self.is_strict: # nobody sees what is not durable yet
            self.wait_durable(se_load_acquire(&self.store.seq.commit_version))
        return bell, seen

    cdef wait_durable(self, uint64_t version, bint refused=False):
        raise NotImplementedError

    def wait_for(self, watched, double seconds):
        """Sleeps until the key, or one that shares its bell, has changed; at most so long."""
        cdef uint64_t bell = watched[0]
        cdef uint32_t seen = watched[1]
        cdef uint64_t bound = <uint64_t> (min(max(seconds, 0.0), WATCH_S) * 1e9)
        self.check_open()
        self.busy += 1
        with nogil:
            se_bell_wait(&self.store, bell, seen, bound)
        self.busy -= 1
        PyErr_CheckSignals()
        self.check_open()

    def trim_horizon(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.trim_horizon)

    def version(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.commit_version)
