# _writing.pxi - part of _core.pyx: encoding, write sets, waiting, commits.

cdef const char *event_type_text(event_type, Py_ssize_t *size) except NULL:
    """The UTF-8 bytes of an event's type, checked."""
    cdef const char *text
    if type(event_type) is not str:
        raise errors.WrongType("str", values.class_name(event_type),
                               f"An event type is a str, not {values.class_name(event_type)}.")
    try:
        text = PyUnicode_AsUTF8AndSize(event_type, size)
    except UnicodeEncodeError:
        raise errors.InvalidKey(
            f"The event type {event_type!a} holds a lone surrogate, which UTF-8 cannot write."
        ) from None
    if size[0] == 0:
        raise errors.InvalidKey("An event type must not be empty: it has 1 to 256 UTF-8 bytes.")
    if size[0] > SE_EVENT_TYPE_MAX:
        raise errors.InvalidKey(f"The event type {event_type[:40]!r}... has {size[0]} UTF-8 bytes; "
                                f"at most {SE_EVENT_TYPE_MAX} are allowed.")
    if memchr(text, 0, size[0]) != NULL:
        raise errors.InvalidKey(f"The event type {event_type[:40]!r} holds a NUL character, which "
                                f"it must not.")
    return text


cdef size_t write_event_type(uint8_t *data, const char *text, Py_ssize_t size) noexcept:
    """The type of a packed event; how many bytes there are with it."""
    cdef size_t head = SE_EVENT_CONTENT + 1
    data += SE_EVENT_CONTENT
    if size < 32:
        data[0] = <uint8_t> (0xa0 | size)
    elif size < 256:
        head += 1
        data[0] = 0xd9
        data[1] = <uint8_t> size
    else:
        head += 2
        data[0] = 0xda
        data[1] = <uint8_t> (size >> 8)
        data[2] = <uint8_t> (size & 255)
    memcpy(data + head - SE_EVENT_CONTENT, text, size)
    return head + size


cdef size_t pack_plain_event(event_type, payload, uint8_t *plain) except? 0:
    """An event without its place in the chain, if codec.c takes the payload; else 0."""
    cdef Py_ssize_t type_size
    cdef const char *text = event_type_text(event_type, &type_size)
    cdef size_t head = write_event_type(plain, text, type_size)
    cdef size_t size = se_codec_write(payload, plain + head, PLAIN_MAX)
    if size == 0:
        return 0
    se_event_pack(plain, <uint32_t> (head + size))
    return head + size


cdef bint is_refusal(se_status status) noexcept:
    """Whether the holder refused because of what it found in the store."""
    return status in (SE_CONFLICT, SE_MISMATCH, SE_WRONG_TYPE, SE_OVERFLOW, SE_RUN_CLOSED)


@cython.no_gc_clear
cdef class _Writer(_Reader):
    """What writes."""

    def check_name(self, name, bint prefix=False):
        """Raises what a read or write of this name would; a prefix may be empty."""
        self.check_open()
        check_name(name, prefix)

    cpdef bytes encode(self, value):
        """The packed value, or the precise error of values.explain."""
        cdef uint8_t plain[PLAIN_MAX]
        cdef size_t size = se_codec_write(value, plain, PLAIN_MAX)
        if size > 0:
            return PyBytes_FromStringAndSize(<char *> plain, size)
        return self.encode_any(value)

    cdef bytes encode_to(self, value, _Packed *packed):
        """Encodes a value; what is returned keeps packed.data alive."""
        cdef bytes alone
        packed.size = <uint32_t> se_codec_write(value, packed.plain, PLAIN_MAX)
        packed.data = packed.plain
        if packed.size > 0:
            return None
        alone = self.encode_any(value)
        packed.size = <uint32_t> PyBytes_GET_SIZE(alone)
        packed.data = <const uint8_t *> PyBytes_AS_STRING(alone)
        return alone

    cdef bytes encode_any(self, value):
        """What codec.c does not take: large, unusual, or wrong."""
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
        cdef se_status status
        self.inside += 1
        try:
            status = self.submit_and_wait(session)
            if self.is_strict and (status == SE_OK or is_refusal(status)):
                # A refusal is because of a commit, too, that a power cut could take back.
                self.wait_durable(se_session_reply_version(session), status != SE_OK)
            return status
        finally:
            session.committing = False
            self.inside -= 1

    cdef se_status submit_and_wait(self, se_session *session) except? SE_BUSY:
        cdef se_status status
        cdef uint64_t started
        cdef object interrupt = None
        cdef bint large = session.used > 65536
        if self.is_leaving: # looked at and marked in one step: leave() waits for what is marked
            se_session_abandon(session)
            raise self.closed_error()
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
                if self.is_leaving and se_session_withdraw(session) == SE_OK:
                    raise interrupt or self.closed_error()
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
        repairing = session.repairing
        status = se_session_withdraw(session)
        if status == SE_OK and repairing:
            raise errors.Unavailable(
                f"The log's ring has been full for {self.stall_s:g} s: no coordinator writes it to "
                f"disk (is it stopped, or the disk?). Nothing was written; try again.")
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
             const _Packed *packed, uint64_t expires_us, int64_t argument):
        cdef se_status status
        status = se_session_add(session, kind, key, <uint32_t> size,
                                NULL if packed == NULL else packed.data,
                                0 if packed == NULL else packed.size, expires_us, argument)
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
        cdef _Packed packed
        kept = self.encode_to(value, &packed)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_PUT, key, size, &packed, expires_us, 0)
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
        self.add(session, SE_OP_DELETE, key, size, NULL, 0, 0)
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
        self.add(session, SE_OP_INCREMENT, key, size, NULL, 0, delta)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        return se_session_first_result(session)

    def compare_and_set(self, run, int tag, name, uint64_t expected, value):
        """The new version, or None if the key is at another version (0: absent)."""
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef _Packed packed
        kept = self.encode_to(value, &packed)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add(session, SE_OP_EXPECT, key, size, NULL, 0, <int64_t> expected)
        self.add(session, SE_OP_PUT, key, size, &packed, 0, 0)
        status = self.finish(session)
        if status == SE_MISMATCH:
            return None
        if status != SE_OK:
            self.fail_commit(session, status, (name, name))
        return se_session_reply_version(session)

    cdef Py_ssize_t pack_counted(self, value, _Buffer packed) except -1:
        """The value with room for its counter in front."""
        cdef uint8_t *data
        cdef size_t size
        packed.reserve(COUNTED_HEAD + PLAIN_MAX)
        size = se_codec_write(value, packed.data + packed.used + COUNTED_HEAD, PLAIN_MAX)
        if size == 0:
            alone = self.encode_any(value)
            size = PyBytes_GET_SIZE(alone)
            if COUNTED_HEAD + size > ENCODED_MAX:
                raise errors.ConstraintViolation(
                    "value_too_large",
                    f"The value has {size} bytes encoded, and 10 are added; {ENCODED_MAX >> 20} "
                    f"MiB are allowed together.")
            packed.reserve(COUNTED_HEAD + size)
            memcpy(packed.data + packed.used + COUNTED_HEAD, PyBytes_AS_STRING(alone), size)
        data = packed.data + packed.used
        data[0] = 0x92
        data[1] = 0xcf
        se_counted_write(data, 0)
        packed.used += COUNTED_HEAD + size
        return COUNTED_HEAD + size

    def encode_counted(self, value):
        """What `commit` takes for OP_BUMP."""
        cdef _Counted packed
        kept = self.encode_counted_to(value, &packed)
        return PyBytes_FromStringAndSize(<char *> packed.data, packed.size)

    def bump(self, run, int tag, name, value, int64_t expected=-1):
        """Writes a counted value; its new counter. Unless the counter is the expected one (0: no
        value) nothing is written, and -1 - what it is comes back."""
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef _Counted packed
        kept = self.encode_counted_to(value, &packed)
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        status = se_session_add(session, SE_OP_BUMP, key, <uint32_t> size, packed.data,
                                packed.size, 0, expected)
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status == SE_MISMATCH:
            return -1 - <int64_t> se_session_reply_detail(session)
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        return se_session_first_result(session)

    def try_transition(self, run, int tag, name, fn, state_type):
        """Writes what ``fn(state)`` makes of a counted value, if it is still the same then:
        (result, counter); None if there is none; a list of both counters if it changed."""
        cdef uint8_t key[KEY_MAX]
        cdef RunId run_id = as_run(run)
        cdef Py_ssize_t size = fill_key(key, run_id, tag, name, False)
        cdef uint64_t found, counter = 0
        cdef _Counted packed
        cdef se_session *session
        cdef se_status status
        if not callable(fn):
            raise errors.WrongType("a callable", values.class_name(fn))
        state = self.read_state(key, size, state_type, &counter)
        if state is None:
            return None
        answer = fn(state)
        if type(answer) is not tuple or len(<tuple> answer) != 2:
            kind = values.class_name(answer)
            raise errors.WrongType(
                "(new value, result)", kind,
                f"A transition returns the pair (new value, result), not {kind}.")
        kept = self.encode_counted_to((<tuple> answer)[0], &packed)
        session = self.start(run_id, 0)
        status = se_session_add(session, SE_OP_BUMP, key, <uint32_t> size, packed.data,
                                packed.size, 0, <int64_t> counter)
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status == SE_MISMATCH:
            found = se_session_reply_detail(session)
            return [counter, found] if found else None
        if status != SE_OK:
            self.fail_commit(session, status, (name,))
        counter = <uint64_t> se_session_first_result(session)
        return (<tuple> answer)[1], counter

    cdef object read_state(self, const uint8_t *key, Py_ssize_t size, state_type,
                           uint64_t *counter):
        """The state of a counted value as it is now, or None."""
        cdef const se_record *record
        cdef se_session *session = self.session()
        self.pin(session)
        try:
            status = self.find_now(session, key, <uint32_t> size, &record)
            if status != SE_OK:
                self.fail(status)
            if record == NULL or se_record_dead(record, se_clock_real_us()):
                return None
            if not se_counted_check(record.value, record.value_size):
                raise damaged("no counter")
            counter[0] = se_counted_read(record.value)
            value = decode(record.value + COUNTED_HEAD, record.value_size - COUNTED_HEAD)
            return _tuple_new(state_type, (value, counter[0], record.timestamp_us // 1000))
        finally:
            self.unpin(session)

    def read_counted(self, run, int tag, name, state_type):
        """The counted value as a state_type of (value, counter, milliseconds), or None."""
        cdef uint8_t key[KEY_MAX]
        cdef uint64_t counter
        cdef Py_ssize_t size = fill_key(key, as_run(run), tag, name, False)
        return self.read_state(key, size, state_type, &counter)

    cdef object encode_counted_to(self, value, _Counted *packed):
        """As pack_counted, on the stack; what is returned keeps packed.data alive."""
        cdef _Buffer large
        cdef size_t size = se_codec_write(value, packed.plain + COUNTED_HEAD, PLAIN_MAX)
        if size > 0:
            packed.plain[0] = 0x92
            packed.plain[1] = 0xcf
            se_counted_write(packed.plain, 0)
            packed.data = packed.plain
            packed.size = <uint32_t> (COUNTED_HEAD + size)
            return None
        large = _Buffer()
        packed.size = <uint32_t> self.pack_counted(value, large)
        packed.data = large.data
        return large

    cdef Py_ssize_t pack_event(self, event_type, payload, _Buffer packed) except -1:
        """An event without its place in the chain, behind what is in the buffer."""
        cdef uint8_t *data
        cdef size_t head, size
        cdef Py_ssize_t type_size
        text = event_type_text(event_type, &type_size)
        packed.reserve(EVENT_HEAD_MAX + PLAIN_MAX)
        head = write_event_type(packed.data + packed.used, text, type_size)
        size = se_codec_write(payload, packed.data + packed.used + head, PLAIN_MAX)
        if size == 0:
            alone = self.encode_any(payload)
            size = PyBytes_GET_SIZE(alone)
            packed.reserve(head + size)
            memcpy(packed.data + packed.used + head, PyBytes_AS_STRING(alone), size)
        size += head
        if size > ENCODED_MAX:
            raise errors.ConstraintViolation(
                "value_too_large",
                f"The event has {size} bytes encoded; {ENCODED_MAX >> 20} MiB are allowed.")
        se_event_pack(packed.data + packed.used, <uint32_t> size)
        packed.used += size
        return size

    def encode_event(self, event_type, payload):
        """What `commit` takes for OP_APPEND."""
        cdef uint8_t plain[EVENT_HEAD_MAX + PLAIN_MAX]
        cdef _Buffer packed
        cdef size_t size = pack_plain_event(event_type, payload, plain)
        if size > 0:
            return PyBytes_FromStringAndSize(<char *> plain, size)
        packed = _Buffer()
        self.pack_event(event_type, payload, packed)
        return PyBytes_FromStringAndSize(<char *> packed.data, packed.used)

    def append_one(self, run, event_type, payload):
        """An event behind the run's log: (sequence, hash)."""
        cdef uint8_t plain[EVENT_HEAD_MAX + PLAIN_MAX]
        cdef uint8_t key[KEY_MAX]
        cdef uint8_t digest[32]
        cdef RunId run_id = as_run(run)
        cdef size_t size = pack_plain_event(event_type, payload, plain)
        cdef uint32_t key_size = se_event_head_key(key, run_id.raw)
        cdef uint64_t sequence, place = 0
        cdef const uint8_t *found
        cdef se_status status
        if size == 0:
            return self.append(run, ((event_type, payload),))[0]
        cdef se_session *session = self.start(run_id, 0)
        status = se_session_add(session, SE_OP_APPEND, key, key_size, plain, <uint32_t> size, 0,
                                -1)
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, ())
        sequence = se_session_next_event(session, &place, &found)
        memcpy(digest, found, 32) # before objects are made: that can run other code
        return sequence, PyBytes_FromStringAndSize(<char *> digest, 32)

    def append(self, run, events):
        """Events, pairs of type and payload, behind the run's log in one commit: [(sequence, hash)]."""
        cdef _Buffer packed = _Buffer()
        cdef _Buffer sizes = _Buffer()
        cdef _Buffer made = _Buffer()
        cdef RunId run_id = as_run(run)
        cdef uint8_t key[KEY_MAX]
        cdef uint32_t size, key_size
        cdef size_t index, count, at = 0
        cdef uint64_t place = 0, sequence
        cdef const uint8_t *digest
        cdef se_status status = SE_OK
        for event_type, payload in events:
            size = <uint32_t> self.pack_event(event_type, payload, packed)
            sizes.add(&size, 4)
        count = sizes.used // 4
        if count == 0:
            return []
        made.reserve(40 * count)
        key_size = se_event_head_key(key, run_id.raw)
        cdef se_session *session = self.start(run_id, 0)
        for index in range(count): # no Python code runs in here
            memcpy(&size, sizes.data + 4 * index, 4)
            status = se_session_add(session, SE_OP_APPEND, key, key_size, packed.data + at, size,
                                    0, -1)
            if status != SE_OK:
                break
            at += size
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, ())
        for index in range(count): # all of it before objects are made: that can run other code
            sequence = se_session_next_event(session, &place, &digest)
            memcpy(made.data + 40 * index, &sequence, 8)
            memcpy(made.data + 40 * index + 8, digest, 32)
        cdef list found = []
        for index in range(count):
            memcpy(&sequence, made.data + 40 * index, 8)
            found.append((sequence,
                          PyBytes_FromStringAndSize(<char *> made.data + 40 * index + 8, 32)))
        return found

    def erase(self, run):
        """Takes the keys of a deleted run away, in steps; False if an older snapshot needs them:
        then the keeper does it later. An interruption leaves the rest to the keeper, too."""
        cdef RunId run_id = as_run(run)
        cdef uint8_t raw[16]
        cdef se_erase_state state = SE_ERASE_MORE
        cdef se_status status = SE_OK
        cdef int step
        memcpy(raw, run_id.raw, 16)
        self.check_fork()
        while state == SE_ERASE_MORE:
            self.check_open()
            self.busy += 1
            with nogil:
                for step in range(64):
                    status = se_erase_step(&self.store, raw, &state)
                    if status == SE_BUSY:
                        continue
                    if status == SE_NEED_SPACE and se_arena_grow(&self.store, 1048576) == SE_OK:
                        continue
                    if status != SE_OK or state != SE_ERASE_MORE:
                        break
            self.busy -= 1
            if status == SE_NEED_SPACE:
                return False
            if status != SE_OK and status != SE_BUSY:
                self.fail(status)
            PyErr_CheckSignals()
        return state == SE_ERASE_DONE

    def put_many(self, run, int tag, list names not None, list found not None):
        """All in one commit; the keys, each there once, and their values are checked before
        anything is written."""
        cdef RunId run_id = as_run(run)
        cdef _Buffer sizes = _Buffer()
        cdef _Buffer packed = self.encode_all(found, sizes)
        if len(names) != len(found):
            raise ValueError("as many names as values")
        cdef se_session *session = self.start(run_id, 0)
        cdef se_status status
        self.add_many(session, run_id, tag, names, packed, sizes)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, names)
        return se_session_reply_version(session)

    cdef _Buffer encode_all(self, list found, _Buffer sizes):
        """The packed values one behind the other, and the size of each (32 bits) in sizes."""
        cdef _Buffer packed = _Buffer()
        cdef uint32_t size
        cdef bytes alone
        for value in found:
            packed.reserve(PLAIN_MAX)
            size = <uint32_t> se_codec_write(value, packed.data + packed.used, PLAIN_MAX)
            if size > 0:
                packed.used += size
            else:
                alone = self.encode_any(value)
                size = <uint32_t> PyBytes_GET_SIZE(alone)
                packed.add(PyBytes_AS_STRING(alone), size)
            sizes.add(&size, 4)
        return packed

    cdef renew_packer(self):
        self.packer = _Packer(strict_types=True, autoreset=True)
        self.pack = self.packer.pack

    cdef int add_many(self, se_session *session, RunId run, int tag, list names, _Buffer packed,
                      _Buffer sizes) except -1:
        cdef uint8_t key[KEY_MAX]
        cdef Py_ssize_t index, size
        cdef const uint8_t *at = packed.data
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

    def write_set(self, run):
        """An empty one, for `commit`."""
        cdef WriteSet made = WriteSet.__new__(WriteSet)
        made.writer = self
        made.run = as_run(run)
        made.ready = _Buffer()
        made.names = []
        return made

    def commit(self, run, ops, uint64_t snapshot):
        """ops: a WriteSet, or tuples of what its `add` takes; gives (version, how many keys it
        deleted, timestamp_us)."""
        cdef WriteSet writes
        cdef _Ready op
        cdef size_t at = 0
        cdef uint8_t *data
        cdef se_session *session
        cdef se_status status = SE_OK
        if type(ops) is WriteSet:
            writes = <WriteSet> ops
        else:
            writes = self.write_set(run)
            for kind, tag, name, packed, expires_us, argument in ops:
                writes.add(kind, tag, name, packed, expires_us, argument)
        session = self.start(writes.run, snapshot)
        while status == SE_OK and at < writes.ready.used: # no Python code runs in here
            data = writes.ready.data + at
            memcpy(&op, data, sizeof(op))
            data += sizeof(op)
            status = se_session_add(session, op.kind, data, op.key_size, data + op.key_size,
                                    op.value_size, op.expires_us, op.argument)
            at += sizeof(op) + op.key_size + op.value_size
        if status != SE_OK:
            se_session_abandon(session)
            self.fail(status)
        status = self.finish(session)
        if status != SE_OK:
            self.fail_commit(session, status, writes.names)
        return (se_session_reply_version(session),
                se_session_count_results(session, SE_OP_DELETE),
                se_session_reply_timestamp(session))

    def put_run_record(self, run, bytes record not None, expected=None):
        """The run's own record: status and retention, read inside every commit of the run.

        None if expected is given and the record is at another version (0: absent)."""
        cdef uint8_t key[18]
        cdef RunId run_id = as_run(run)
        cdef uint64_t version = 0 if expected is None else expected
        cdef _Packed packed
        cdef se_session *session
        packed.data = <const uint8_t *> PyBytes_AS_STRING(record)
        packed.size = <uint32_t> PyBytes_GET_SIZE(record)
        cdef se_status status
        memcpy(key, run_id.raw, 16)
        key[16] = 5
        key[17] = 0
        session = self.start(run_id, 0)
        if expected is not None:
            self.add(session, SE_OP_EXPECT, key, 18, NULL, 0, <int64_t> version)
        self.add(session, SE_OP_PUT, key, 18, &packed, 0, 0)
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
