# _durable.pxi - part of _core.pyx: the log, recovery and checkpoints.

LOG_STALL_S = 30.0


cdef dict damage_dict(const se_damage *damage):
    """None-like ({}) without damage."""
    if damage.file[0] == 0:
        return {}
    return {"file": text_of(damage.file), "offset": damage.offset,
            "reason": text_of(damage.reason)}


cdef str text_of(const char *text):
    return (<bytes> text).decode("utf-8", "replace")


cdef c_bool report_progress(void *context, uint64_t done, uint64_t total) noexcept with gil:
    """The C core's way to call(done bytes, all bytes); what it raises ends the work."""
    cdef list state = <list> context
    if state[0] is None:
        return True
    try:
        state[0](done, total)
    except BaseException as error:
        state[1] = error
        return False
    return True


cdef c_bool tell_of_progress(void *context, uint64_t done, uint64_t total) noexcept nogil:
    """Lets those who wait for a checkpoint see that it goes on."""
    se_log_tell_checkpoint(<se_store *> context)
    return True


cdef class _Durable(_Writer):
    """What a database with a log does beyond one in memory."""
    cdef se_log *log
    cdef double log_stall_s

    def __cinit__(self):
        self.log_stall_s = LOG_STALL_S

    def set_log_stall(self, double seconds):
        """How long a strict commit waits for its sync before it raises Unavailable."""
        self.log_stall_s = seconds

    # -- clients ------------------------------------------------------------------------------

    cdef wait_durable(self, uint64_t version, bint refused=False):
        """Returns when the version is durable. An interrupt is raised only after it: the commit
        cannot be taken back. refused: it is that of others, which the write was refused for."""
        cdef se_status status
        cdef uint64_t started = se_clock_ns()
        cdef object interrupt = None
        while True:
            self.busy += 1
            with nogil:
                status = se_log_wait_durable(&self.store, version, WAIT_NS)
            self.busy -= 1
            if status == SE_OK:
                break
            if status == SE_READ_ONLY and refused:
                self.fail(status)
            if status == SE_READ_ONLY:
                raise errors.IoError(
                    f"{self.log_failure()}. Whether the commit lasts will be known when the "
                    f"database is opened again; until then readers do not see it.")
            try:
                PyErr_CheckSignals()
            except BaseException as error:
                interrupt = error
            if (se_clock_ns() - started) * 1e-9 > self.log_stall_s:
                if refused:
                    raise errors.Unavailable(
                        f"The write was refused because of another commit, which no coordinator has "
                        f"synced for {self.log_stall_s:g} s (is it stopped, or the disk?). Nothing "
                        f"was written; try again.")
                raise errors.Unavailable(
                    f"The commit is in the log's ring, but no coordinator has synced it for "
                    f"{self.log_stall_s:g} s (is it stopped, or the disk?). It becomes visible "
                    f"when that goes on; do not make it again.", in_doubt=True)
        if interrupt is not None:
            raise interrupt

    cdef str log_failure(self):
        return text_of(self.store.seq.log_failure)

    def is_log_failed(self):
        """Whether a write or sync of the log has failed: the database is read-only then."""
        self.check_open()
        return se_load_acquire(&self.store.seq.log_failed) != 0

    def is_logged(self):
        self.check_open()
        return self.store.header.wal_ring_size != 0

    def has_log(self):
        """Whether the ring may hold what the files do not: nothing is lost by removing others."""
        self.check_open()
        return (self.store.header.wal_ring_size != 0
                and se_load_acquire(&self.store.seq.progress[0].file_version) != 0)

    def is_saved(self):
        """Whether the files hold everything that was committed."""
        self.check_open()
        return (se_load_acquire(&self.store.seq.durable_version)
                >= se_load_acquire(&self.store.seq.commit_version))

    def flush(self):
        """Returns when everything committed before is durable."""
        self.check_fork()
        if self.store.header.wal_ring_size == 0:
            return
        version = se_load_acquire(&self.store.seq.commit_version)
        if se_load_acquire(&self.store.seq.durable_version) >= version:
            return
        self.inside += 1
        try:
            se_log_want_sync(&self.store, version)
            self.wait_durable(version)
        finally:
            self.inside -= 1

    def checkpoint(self):
        """Has the coordinator write a checkpoint; its version when it is there."""
        cdef uint64_t ticket
        cdef se_status status = SE_BUSY
        cdef uint64_t heard = se_clock_ns()
        cdef uint32_t bell, last
        self.check_fork()
        self.inside += 1
        try:
            last = se_load_acquire_u32(&self.store.seq.checkpoint_bell)
            se_log_want_checkpoint(&self.store, &ticket)
            while status == SE_BUSY:
                self.busy += 1
                with nogil:
                    status = se_log_wait_checkpoint(&self.store, ticket, WAIT_NS)
                self.busy -= 1
                PyErr_CheckSignals()
                bell = se_load_acquire_u32(&self.store.seq.checkpoint_bell)
                if bell != last:
                    last, heard = bell, se_clock_ns()
                elif status == SE_BUSY and (se_clock_ns() - heard) * 1e-9 > self.log_stall_s:
                    raise errors.Unavailable(
                        f"No coordinator has gone on with the checkpoint for {self.log_stall_s:g} s "
                        f"(is it stopped, or the disk?). Nothing is lost: the log holds everything.")
        finally:
            self.inside -= 1
        self.check_open()
        failed = se_load_relaxed(&self.store.seq.checkpoint_failed)
        if failed:
            raise errors.IoError(f"The checkpoint could not be written: {os.strerror(failed)}. "
                                 f"The log goes on, so nothing is lost.")
        return se_load_relaxed(&self.store.seq.checkpoint_version)

    # -- the coordinator ----------------------------------------------------------------------

    def recover(self, int folder_fd, bint salvage=False, progress=None):
        """Fills this new store from the files; a report as a dict. Raises Corruption."""
        cdef se_recover_options options
        cdef se_recovery report
        cdef se_status status
        cdef list state = [progress, None]
        memset(&options, 0, sizeof(options))
        options.salvage = salvage
        options.progress = report_progress
        options.context = <void *> state
        self.busy += 1
        with nogil:
            status = se_recover(&self.store, folder_fd, &options, &report)
        self.busy -= 1
        if state[1] is not None:
            raise state[1]
        if status != SE_OK:
            fail_files(status, &report.damage)
        return recovery_dict(&report)

    def open_log(self, int folder_fd, fresh=None, bint retry=False):
        """Takes the log up; fresh: the version behind which a new one begins; retry: although a
        write had failed, because nobody lives here any more who was told so."""
        cdef se_status status
        if retry:
            se_store_relaxed(&self.store.seq.log_failed, 0)
        if fresh is not None:
            se_log_begin(&self.store, <uint64_t> fresh)
        with nogil:
            status = se_log_open(&self.store, folder_fd, &self.log)
        if status != SE_OK:
            self.fail_log(status)

    def start_log(self):
        status = se_log_start(self.log)
        if status != SE_OK:
            self.fail_log(status)

    def drain_log(self):
        """Writes and syncs what the ring holds, on this thread."""
        cdef se_status status
        with nogil:
            status = se_log_drain(self.log)
        if status != SE_OK:
            self.fail_log(status)

    def stop_log(self):
        """Ends the log writer; False if the log could not be written to its end."""
        cdef se_status status
        if self.log == NULL:
            return self.store.header.wal_ring_size == 0
        with nogil:
            status = se_log_stop(self.log)
        se_log_close(self.log)
        self.log = NULL
        return status == SE_OK

    def mend(self):
        """Rolls back what a dead holder left; the coordinator's, when nobody lives here."""
        cdef se_status status
        with nogil:
            status = se_sequencer_lock(&self.store, 1000000000)
            if status == SE_OK:
                se_sequencer_finish(&self.store)
        if status != SE_OK:
            self.fail(status)

    def checkpoint_is_wanted(self):
        """The newest request's number, or 0."""
        self.check_open()
        wanted = se_load_acquire(&self.store.seq.checkpoint_wanted)
        return wanted if wanted > se_load_acquire(&self.store.seq.checkpoint_done) else 0

    def answer_checkpoint(self, uint64_t ticket, int error):
        se_log_answer_checkpoint(&self.store, ticket, error)

    def write_checkpoint(self, int folder_fd):
        """Writes one and removes what it replaces; a dict of its figures."""
        cdef se_checkpoint report
        cdef se_status status
        cdef list state = [None, None]
        self.check_open()
        cdef uint64_t before = se_load_relaxed(&self.store.seq.log_size)
        self.busy += 1
        with nogil:
            status = se_checkpoint_write(&self.store, folder_fd, tell_of_progress, &self.store,
                                         &report)
            if status == SE_OK:
                status = se_checkpoint_prune(folder_fd, report.version)
        self.busy -= 1
        if status != SE_OK:
            fail_files(status, &report.damage)
        se_store_relaxed(&self.store.seq.checkpoint_version, report.version)
        se_store_relaxed(&self.store.seq.checkpoint_size, report.size)
        se_fetch_add(&self.store.seq.log_size, -before)
        return {"version": report.version, "keys": report.keys, "records": report.records,
                "size": report.size}

    def log_sizes(self):
        """(bytes of log since the checkpoint, bytes of the checkpoint, its version)."""
        self.check_open()
        return (se_load_relaxed(&self.store.seq.log_size),
                se_load_relaxed(&self.store.seq.checkpoint_size),
                se_load_relaxed(&self.store.seq.checkpoint_version))

    def note_checkpoint(self, uint64_t version, uint64_t size, uint64_t log_size):
        """What recovery found."""
        se_store_relaxed(&self.store.seq.checkpoint_version, version)
        se_store_relaxed(&self.store.seq.checkpoint_size, size)
        se_store_relaxed(&self.store.seq.log_size, log_size)

    def progress(self):
        """How far the log has come: (first version of the file, offset in it, newest version)."""
        cdef const se_progress *progress
        self.check_open()
        while True:
            count = se_load_acquire(&self.store.seq.progress_count)
            progress = &self.store.seq.progress[count % 2]
            found = (se_load_relaxed(&progress.file_version),
                     se_load_relaxed(&progress.file_offset),
                     se_load_relaxed(&progress.last_version))
            if se_load_acquire(&self.store.seq.progress_count) == count:
                return found

    def keeper(self):
        """The identity of who does the coordinator's duties, 0 if nobody ever did."""
        self.check_open()
        return se_load_acquire(&self.store.seq.keeper_identity)

    def failure(self):
        """What failed when the log could not be written; "" if nothing did."""
        return self.log_failure() if self.is_log_failed() else ""

    def folder(self):
        """The folder of a database with a log, "" without, or where the path is too long."""
        self.check_open()
        return os.fsdecode(<bytes> self.store.header.folder)

    cdef fail_log(self, se_status status):
        code = _errno()
        if se_load_acquire(&self.store.seq.log_failed) != 0:
            raise errors.IoError(f"{self.log_failure()}.")
        fail_files(status, NULL, code)


cdef fail_files(se_status status, const se_damage *damage, int code=0):
    if code == 0:
        code = _errno()
    if status == SE_DAMAGED and damage != NULL:
        name, reason = text_of(damage.file), text_of(damage.reason)
        raise errors.Corruption(
            name, damage.offset,
            f"{name} is damaged at byte {damage.offset}: {reason}. Nothing was opened or changed. "
            f"Keep a copy of the folder, then run `shm-engine repair` on it.")
    if status == SE_FORMAT:
        raise errors.FormatMismatch(
            f"{text_of(damage.file) if damage != NULL else 'A file'} has another format version or "
            f"byte order than this build reads (format version {SE_FORMAT_VERSION}). Open it with "
            f"the build that made it.")
    if status == SE_FULL:
        raise errors.StorageFull(
            "The database's data does not fit into map_size. Open it with a larger map_size, or give "
            "/dev/shm more room (--shm-size in a container).")
    if status == SE_IO:
        raise errors.IoError(f"The database's files could not be read or written: "
                             f"{os.strerror(code)} ({errno.errorcode.get(code, code)}).", code)
    raise getattr(errors, se_status_exception(status).decode() or "InternalError")(
        se_status_text(status).decode())


cdef dict recovery_dict(const se_recovery *report):
    return {
        "checkpoint_version": report.checkpoint_version,
        "checkpoint_bytes": report.checkpoint_bytes,
        "skipped_checkpoint": report.skipped_checkpoint,
        "commits": report.commits,
        "log_bytes": report.log_bytes,
        "last_version": report.last_version,
        "keys": report.keys,
        "cut_file": text_of(report.cut_file),
        "cut_offset": report.cut_offset,
        "cut_bytes": report.cut_bytes,
        "lost_blocks": report.lost_blocks,
        "aside": text_of(report.aside),
        "aside_files": report.aside_files,
        "damage": damage_dict(&report.damage),
    }


def check_files(int folder_fd, progress=None, bint salvage=False):
    """Reads every byte of the files as a recovery would, or a repair, and changes nothing; the
    report, and "opens": whether it would come through."""
    cdef se_recover_options options
    cdef se_recovery report
    cdef se_status status
    cdef list state = [progress, None]
    memset(&options, 0, sizeof(options))
    options.read_only = True
    options.salvage = salvage
    options.progress = report_progress
    options.context = <void *> state
    with nogil:
        status = se_recover(NULL, folder_fd, &options, &report)
    if state[1] is not None:
        raise state[1]
    if status != SE_OK and status != SE_DAMAGED:
        fail_files(status, &report.damage)
    return recovery_dict(&report) | {"opens": status == SE_OK}


def identity_of_files(int folder_fd, bint salvage=False):
    """The database's id, None if the folder holds no files of one. Raises Corruption; salvage: the
    id that most files agree on, if any does."""
    cdef uint8_t database_id[16]
    cdef c_bool found = False
    cdef se_damage damage
    memset(&damage, 0, sizeof(damage))
    status = se_recover_identity(folder_fd, database_id, &found, &damage)
    if status != SE_OK and not (salvage and status == SE_DAMAGED):
        fail_files(status, &damage)
    return PyBytes_FromStringAndSize(<char *> database_id, 16) if found else None
