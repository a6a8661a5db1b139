# _reading.pxi - part of _core.pyx: reads, scans, history, snapshots.

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
        cdef list found = [] if with_values else None
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
                                       found)
        except UnicodeDecodeError as error:
            raise damaged(error) from error
        finally:
            free(iter)
        return names, found

    cdef Py_ssize_t scan_batch(self, se_iter *iter, const uint8_t *prefix,
                               Py_ssize_t prefix_size, uint8_t *first, Py_ssize_t first_size,
                               Pin pin, uint64_t *left, list names, list found) except -1:
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
                if found is not None:
                    found.append(decode(record.value, record.value_size))
                left[0] -= 1
        finally:
            self.unpin(session)
        if status != SE_OK:
            self.fail(status)
        return 0

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

    def trim_horizon(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.trim_horizon)

    def version(self):
        self.check_open()
        return se_load_acquire(&self.store.seq.commit_version)
