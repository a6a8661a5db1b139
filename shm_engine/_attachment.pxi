# _attachment.pxi - part of _core.pyx: Pin, and the life and errors of a Store.

@cython.no_gc_clear
cdef class Pin:
    """An announced snapshot: what it sees is not trimmed until it is closed."""
    cdef _Attachment store
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
cdef class _Attachment:
    """One process's attachment to one database; see _core.pyi for the meaning of each method."""
    cdef se_store store
    cdef se_keeper_thread *thread
    cdef se_keeper *keeper
    cdef uint64_t threads_id
    cdef uint64_t fork_count
    cdef uint32_t member
    cdef bint is_open, is_member, is_mapped, is_strict
    cdef bint is_leaving # writes no more
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
        se_fence_full() # of the two, one sees the other: this the phase, or who leaves the slot
        if se_load_acquire_u32(&self.store.seq.phase) != SE_PHASE_SERVING:
            se_client_leave(&self.store, slot)
            return False
        self.member = slot
        self.is_member = True
        return True

    def leave(self):
        """Gives the handle's slot back, when no other thread is within a commit; none begins from
        now on. Behind the last member the coordinator goes, and with it whoever writes the log."""
        self.is_leaving = True
        if self.is_open and self.is_member and self.fork_count == se_fork_count:
            try:
                while se_threads_committing(self.threads_id):
                    time.sleep(0.0002)
            finally:
                self.is_member = False
                se_client_leave(&self.store, self.member)
                se_keeper_ring(&self.store)

    cdef object closed_error(self):
        return errors.Closed("The database handle is closed; open the database again.")

    def try_leave_last(self):
        """The coordinator's: stops taking members if there are none; True if it did."""
        self.check_open()
        if se_client_members(&self.store) or not se_swap_if_equal_u32(
                &self.store.seq.phase, SE_PHASE_SERVING, SE_PHASE_LEAVING):
            return False
        se_fence_full()
        if se_client_members(&self.store):
            se_swap_if_equal_u32(&self.store.seq.phase, SE_PHASE_LEAVING, SE_PHASE_SERVING)
            return False
        return True

    def is_deserted(self):
        """A successor's: whether nobody lives here; then nobody can join any more either, also
        somebody who found the dead coordinator alive a moment ago."""
        if self.try_leave_last():
            return True
        se_fence_full()
        return (se_load_acquire_u32(&self.store.seq.phase) == SE_PHASE_LEAVING
                and se_client_members(&self.store) == 0)

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
        self.give_back()
        self.idle_entries = []
        self.entries = []
        free(self.keeper)
        self.keeper = NULL
        if self.inside == 0:
            self.unmap()

    cdef give_back(self):
        """What others see of this process, but for the slots of its threads."""
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

    cdef unmap(self):
        self.is_mapped = False
        se_threads_close(self.threads_id)
        os.close(self.store.control_fd)
        os.close(self.store.data_fd)
        se_store_detach(&self.store)

    def __dealloc__(self):
        # Handles close; one whose making or closing was interrupted is only dropped.
        if self.is_mapped:
            self.give_back()
            self.unmap()
        free(self.keeper)

    cdef int check_open(self) except -1:
        if not self.is_open:
            raise self.closed_error()
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

    cdef uint32_t slots(self):
        """How many there are for clients."""
        return self.store.header.max_clients - (self.store.header.wal_ring_size != 0)

    cdef fail(self, se_status status):
        if status == SE_FULL:
            raise errors.StorageFull(
                f"The database has no shared memory left ({se_arena_used(&self.store)} of "
                f"{self.store.header.data_size} bytes are in use) and no history that may go. "
                f"Reads and deletes still work (deletes of few keys at a time). Open it with a "
                f"larger map_size, choose a retention policy, or give /dev/shm more room "
                f"(--shm-size in a container).")
        if status == SE_TOO_MANY:
            raise errors.Unavailable(
                f"All {self.slots()} client slots are taken by living threads. "
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
        if status == SE_READ_ONLY:
            raise errors.IoError(
                f"The database takes no writes: {text_of(self.store.seq.log_failure)}. Reads go on. "
                f"Remove the cause, close all handles and open it again: what was acknowledged is "
                f"kept.")
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

    cdef put_entry_back(self, Pin pin):
        if self.is_open and pin.fork_count == se_fork_count:
            se_snapshot_close(&self.store, pin.entry)
            self.idle_entries.append(pin.entry)
