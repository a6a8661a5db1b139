"""database.py - Database, the handle of one process on one database.

Why:        open(path) is all that a user does: it finds the database open and joins, or starts its
            coordinator. The handle finds its way into other processes by pickling, survives fork,
            and is safe to use from any thread.
Used by:    any thread of any process
Invariants: D1 while a living handle is a member, the segments stay; the last one to leave removes
            them (ephemeral) or waits until the coordinator has (folder)
            D2 closing twice does no harm; every other use after it raises Closed
Crash:      a killed process is found dead by pid and start time; its slots, pins and snapshots are
            cleared by the coordinator or by whoever needs a slot
"""

from __future__ import annotations

import atexit
import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import chain, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shm_engine import coordinator, errors, runs, values
from shm_engine._core import RunId, Store, process_alive, to_run
from shm_engine.durability import Durability
from shm_engine.metrics import DatabaseMetrics
from shm_engine.recovery import RecoveryReport
from shm_engine.retention import RetentionPolicy
from shm_engine.segments import MAP_SIZE_MIN, Segments, clear_leftovers, default_map_size
from shm_engine.transaction import Snapshot, Transaction

if TYPE_CHECKING:
    from types import TracebackType

    from shm_engine.engine import Engine

__all__ = ["Database", "DatabaseMetrics"]

T = TypeVar("T")
MAX_CLIENTS: Final = 256
RETRIES: Final = 3
BACKOFF_FIRST_S: Final = 0.010
BACKOFF_MAX_S: Final = 0.100
JOIN_TRIES: Final = 200
LEAVE_S: Final = 15.0
LEAVE_LOGGED_S: Final = 600.0
START_AGAIN_S: Final = 0.5
KINDS: Final = ("in_memory", "no_durability", "buffered", "strict")


_open_handles: weakref.WeakSet[Database] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the interpreter: segments of forgotten handles go too."""
    for handle in list(_open_handles):
        with suppress(Exception):
            handle.close()


atexit.register(_close_all)


class Database:
    """A handle on a database; made by `open`, `open_with_mode` or `ephemeral`.

    A context manager (closes), thread-safe, picklable to processes of the same user on the same
    machine (spawn, fork or forkserver), usable in a forked child.

    >>> from shm_engine import Database, KVStore
    >>> with Database.ephemeral() as db:
    ...     kv = KVStore(db)
    ...     run = db.begin_run()
    ...     with db.begin(run) as txn:
    ...         txn.kv_put("a", 1)
    ...         txn.kv_put("b", [1, 2])
    ...     kv.list_with_values(run)
    [('a', 1), ('b', [1, 2])]
    """

    def __init__(self) -> None:
        raise errors.InvalidOperation(
            "A Database is made by Database.open(path) or Database.ephemeral()."
        )

    _store: Store
    _path: Path | None
    _segments: Segments
    _options: coordinator.Options
    _watch: _Watch | None
    _recovery: RecoveryReport | None
    _owner_pid: int
    _closed: bool
    _closing: threading.Lock

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        durability: Durability | None = None,
        *,
        map_size: int | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> Database:
        """Opens the database in the folder `path`, or joins it if a process has it open.

        Args:
            path: A folder; made if it does not exist (its parents too), mode 0700.
            durability: What a commit survives, strict by default. Joining adopts the mode that the
                database has; asking for another one is InvalidOperation.
            map_size: The most bytes of shared memory for data, from 1 MiB on; by default the
                smaller of 16 GiB and half of /dev/shm. Only what is used is taken. Ignored when
                joining.
            max_clients: Slots, 2 to 4096; each thread and each handle takes one. Ignored when
                joining.

        Raises:
            InvalidOperation: the path is a file, is another user's, or cannot be written; or the
                mode differs; or the mode is in_memory and the folder holds a database with a log.
            Corruption: a file is damaged; the message names it, and what to do.
            StorageFull: /dev/shm has no room. Unavailable: no coordinator came up, or all slots
                are taken. FormatMismatch: another build has it open.

        Cost: joining about 2 ms, starting a coordinator about 150 ms.
        """
        wanted = Durability.strict() if durability is None else Durability.of(durability)
        options = _options(wanted, map_size, max_clients)
        folder = _folder_named(path)
        _prepare_folder(folder)
        return cls._join_folder(folder, options, wanted if durability is not None else None)

    @classmethod
    def open_with_mode(
        cls,
        path: str | os.PathLike[str],
        mode: Durability | str,
        *,
        map_size: int | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> Database:
        """`open` with the mode as second argument, a Durability or its name."""
        return cls.open(path, Durability.of(mode), map_size=map_size, max_clients=max_clients)

    @classmethod
    def ephemeral(cls, *, map_size: int | None = None, max_clients: int = MAX_CLIENTS) -> Database:
        """Makes a database without a folder and without a process of its own.

        The coordinator's duties run on a thread of this process. Other processes join through the
        pickled handle. It is gone when the last handle is closed or the last process that has one
        ends. Cost: about 1 ms. Raises StorageFull, ConstraintViolation.
        """
        options = _options(Durability.in_memory(), map_size, max_clients)
        clear_leftovers()
        segments = Segments.fresh()
        try:
            store = segments.create(
                map_size=options.map_size, max_clients=options.max_clients, durability_kind=0
            )
            store.join()
            store.start_keeper()
            return cls._make(store, None, segments, options)
        except BaseException:
            segments.unlink()
            raise

    @classmethod
    def _make(
        cls, store: Store, path: Path | None, segments: Segments, options: coordinator.Options
    ) -> Database:
        self = cls.__new__(cls)
        self._store = store
        self._path = path
        self._segments = segments
        self._options = options
        self._recovery = None
        self._owner_pid = os.getpid()
        self._closed = False
        self._closing = threading.Lock()
        self._watch = None
        if path is not None:
            _Watch(self)
        _open_handles.add(self)
        handle = weakref.ref(self)
        store.after_fork = lambda: _after_fork(handle)
        return self

    @classmethod
    def _join_folder(
        cls, folder: Path, options: coordinator.Options, wanted: Durability | None
    ) -> Database:
        recovery: RecoveryReport | None = None
        for _ in range(JOIN_TRIES):
            info = coordinator.read_info(folder)
            if info is None or not info.is_alive():
                # A living database keeps its mode when its coordinator has died.
                left = info is not None and info.segments.exist()
                if info is not None and left:
                    # Its coordinator may live in another container: then this raises.
                    with suppress(errors.Closed, errors.FormatMismatch):
                        info.segments.attach().close()
                if not (left and coordinator.start(folder, None).found):
                    recovery = coordinator.start(folder, options).recovery or recovery
                continue
            if not info.is_serving:
                coordinator.start(folder, options)  # returns when the recovery is over
                continue
            try:
                store = info.segments.attach()
            except errors.Closed:
                coordinator.wait_for_end(info.identity, LEAVE_S)
                continue
            if not coordinator.is_of(store, folder):
                store.close()
                recovery = coordinator.start(folder, options).recovery or recovery
                continue
            if store.join():
                self = cls._make(store, folder, info.segments, options)
                self._check_mode(wanted)
                self._recovery = recovery
                if recovery is not None:
                    recovery.warn(folder)
                return self
            store.close()
            coordinator.wait_for_end(info.identity, LEAVE_S)
        raise errors.Unavailable(f"{folder} was closed by others each time it was about to open.")

    def _check_mode(self, wanted: Durability | None) -> None:
        if wanted is not None and wanted != self.durability:
            found = self.durability
            self.close()
            raise errors.InvalidOperation(
                f"The database is open as {found}, so it cannot be joined as {wanted}. Leave the "
                f"mode out to adopt the one it has, or close it everywhere first."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return _rejoin, (self._path, self._segments, self._options)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The folder, None for an ephemeral database."""
        return self._path

    @property
    def is_ephemeral(self) -> bool:
        """Whether it has no folder."""
        return self._path is None

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    @property
    def durability(self) -> Durability:
        """The mode of the database."""
        self._check_open()
        kind, interval_ms, writes = self._store.durability()
        return Durability(KINDS[kind], interval_ms, writes)

    @property
    def engine(self) -> Engine:
        """What the primitives stand on."""
        self._check_open()
        return self._store

    @property
    def _engine(self) -> Store:
        return self._store

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Closed("The database handle is closed; open the database again.")

    def metrics(self) -> DatabaseMetrics:
        """Figures of the whole database. Cost: about 10 us."""
        self._check_open()
        figures = self._store.figures()
        committed, aborted = figures.pop("commits"), figures["conflicts"]
        total = committed + aborted
        return DatabaseMetrics(
            transactions_committed=committed,
            transactions_aborted=aborted,
            transactions_active=figures["snapshots"],
            commit_rate=committed / total if total else 1.0,
            operations=total,
            **figures,
        )

    # -- runs ---------------------------------------------------------------------------------

    def begin_run(self, run_id: RunId | str | None = None) -> RunId:
        """Registers an active run and returns its id; a new one if none is given.

        `RunIndex` gives it a parent, tags and metadata, and finds it again. Raises InvalidOperation
        if the run exists already.
        """
        self._check_open()
        run = RunId.new() if run_id is None else to_run(run_id)
        runs.create(self._store, run, runs.CreateRunOptions())
        return run

    def end_run(self, run_id: RunId | str) -> None:
        """Completes an active run: from then on it takes no writes; reading goes on.

        Raises NotFound for a run that was never begun, InvalidStatusTransition for one that has
        ended, ConstraintViolation for the default run.
        """
        self._check_open()
        runs.change_status(self._store, to_run(run_id), runs.RunStatus.COMPLETED)

    def set_retention(self, run_id: RunId | str, policy: RetentionPolicy) -> None:
        """Decides how much history the run's keys keep, from now on and for what there is.

        KeepLast and KeepFor are applied as keys are written and by the coordinator's sweeps; the
        latest version always stays, and so does what an open snapshot needs. A run that never chose
        keeps everything until the arena is three quarters full; then the oldest history goes first.
        """
        self._check_open()
        if not isinstance(policy, RetentionPolicy):
            raise errors.WrongType("RetentionPolicy", values.class_name(policy))
        runs.set_retention(self._store, to_run(run_id), policy)

    def retention(self, run_id: RunId | str) -> RetentionPolicy:
        """The run's retention, KeepAll if it never chose."""
        self._check_open()
        return runs.retention_of(self._store, to_run(run_id))

    # -- transactions -------------------------------------------------------------------------

    def begin(
        self,
        run: RunId | str,
        isolation: str = "snapshot",
        timeout: timedelta | float | None = None,
    ) -> Transaction:
        """A transaction as a context manager: commits at the end, rolls back on an exception."""
        self._check_open()
        return Transaction(self._store, run, isolation, _seconds(timeout))

    def transaction(
        self,
        run: RunId | str,
        fn: Callable[[Transaction], T],
        *,
        max_retries: int = 0,
        timeout: timedelta | float | None = None,
        isolation: str = "snapshot",
    ) -> T:
        """Calls ``fn(txn)``, commits, and returns what it returned.

        Args:
            run: Whose keys the transaction is about.
            fn: Called once; with `max_retries` again after each conflict, on a new snapshot. An
                exception that it raises rolls back and comes through unchanged.
            max_retries: How often a conflict is tried again, after 10 ms, then 20, ... 100, with
                jitter.
            timeout: Seconds for all tries together.
            isolation: "snapshot" or "serializable", see `Transaction`.

        Raises:
            TransactionConflict: a key that was read changed, in the last try too.
            TransactionTimeout: the time is over; nothing was written.
        """
        self._check_open()
        if not callable(fn):
            raise errors.WrongType("a callable", values.class_name(fn))
        _check_int("max_retries", max_retries)
        if max_retries < 0:
            raise errors.ConstraintViolation(
                "max_retries", f"max_retries is {values.printable(max_retries)}; give 0 or more."
            )
        seconds = _seconds(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        for attempt in range(max_retries + 1):
            left = None if deadline is None else deadline - time.monotonic()
            txn = Transaction(self._store, run, isolation, left)
            try:
                result = fn(txn)
                if txn.is_active:
                    txn.commit()
                return result
            except errors.TransactionConflict:
                if attempt == max_retries:
                    raise
            finally:
                txn.rollback()
            pause = min(BACKOFF_FIRST_S * 2**attempt, BACKOFF_MAX_S) * random.uniform(0.5, 1.0)
            if deadline is not None and time.monotonic() + pause >= deadline:
                raise errors.TransactionTimeout(
                    f"The transaction conflicted {attempt + 1} times and its time is over; "
                    f"nothing was written."
                )
            time.sleep(pause)
        raise errors.InternalError("A transaction ended without an outcome.")

    def transaction_with_retry(
        self,
        run: RunId | str,
        fn: Callable[[Transaction], T],
        *,
        max_retries: int = RETRIES,
        timeout: timedelta | float | None = None,
        isolation: str = "snapshot",
    ) -> T:
        """`transaction` that tries again, three times if nothing else is said."""
        return self.transaction(
            run, fn, max_retries=max_retries, timeout=timeout, isolation=isolation
        )

    def snapshot(self) -> Snapshot:
        """The database as it is now, to read from at leisure. Close it; a context manager."""
        self._check_open()
        return Snapshot(self._store, self._store.open_pin())

    # -- upkeep and end -----------------------------------------------------------------------

    def flush(self) -> None:
        """Returns when everything committed so far, by any process, is on the disk.

        In every mode with a log (no_durability too) that takes one sync; in memory nothing happens.
        Cost: a sync, 0.1 to 10 ms. Raises IoError if the log could not be written, Unavailable
        if no coordinator answers.
        """
        self._check_open()
        self._store.flush()

    def checkpoint(self) -> None:
        """Has the whole database written to one file, so that the next open has less to replay.

        Commits go on meanwhile. Log files that it makes superfluous are removed. The coordinator
        does this by itself when the log has grown, and when the last handle closes. In memory
        nothing happens. Raises IoError if it could not be written; nothing is lost then.
        """
        self._check_open()
        if self._store.is_logged():
            self._store.checkpoint()

    @property
    def recovery(self) -> RecoveryReport | None:
        """What this handle's opening read from the files; None if the database was open already,
        is new, or keeps no log."""
        return self._recovery

    def close(self) -> None:
        """Gives this handle back; closing again does nothing.

        The last handle of a folder returns when the coordinator has left. In another process (after
        fork or pickling) close affects that process's handle alone.
        """
        self._close(wait=True)

    def __del__(self) -> None:
        # A handle that was only dropped must not keep the database open.
        if not getattr(self, "_closed", True):
            with suppress(Exception):
                self._close(wait=False)

    def _close(self, wait: bool) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        _open_handles.discard(self)
        try:
            if self._watch is not None and self._owner_pid == os.getpid():
                self._watch.stop()
        finally:  # Ctrl-C may end any of the waits, but not keep the database open
            if self._path is None:
                self._leave_ephemeral()
            else:
                self._leave_folder(self._path, wait)

    def _leave_ephemeral(self) -> None:
        try:
            self._store.leave()
            with suppress(errors.Closed):
                if self._store.try_leave_last():
                    self._segments.unlink()
        finally:
            self._store.close()

    def _leave_folder(self, path: Path, wait: bool) -> None:
        try:
            self._store.leave()
            bound = LEAVE_LOGGED_S if self._store.is_logged() else LEAVE_S
            self._wait_for_coordinator(path, bound if wait else 0.0)
        except errors.Closed:
            pass  # a forked child that came too late to join
        finally:
            self._store.close()

    def _wait_for_coordinator(self, path: Path, seconds: float) -> None:
        """Returns when it has left, or does not have to."""
        deadline = time.monotonic() + seconds
        while self._store.members() == 0 and time.monotonic() < deadline:
            info = coordinator.read_info(path)
            if info is None or info.segments != self._segments:
                break
            if info.stays and info.is_alive():
                with suppress(errors.Error):  # the ring keeps it, and the coordinator says why
                    self._store.flush()
                break
            if not info.is_alive():
                self._end_without_coordinator(path)
                break
            coordinator.wait_for_end(info.identity, 0.25)

    def _end_without_coordinator(self, path: Path) -> None:
        if not self._store.is_logged():
            coordinator.cleanup(path)
            return
        with suppress(errors.Error):  # then the next open does it, and says what is wrong
            coordinator.start(path, None)

    def __enter__(self) -> Database:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "ephemeral" if self._path is None else str(self._path)
        return f"<Database {where}{', closed' if self._closed else ''}>"


class _Watch:
    """Waits for the coordinator's death and brings up its successor.

    A daemon thread that sleeps in the kernel; the file lock elects one of many.
    """

    def __init__(self, database: Database) -> None:
        self._database = weakref.ref(database)
        self._stopped_itself = False
        self._pipe: list[int] = []
        self._thread = threading.Thread(target=self._run, name="shm_engine-watch", daemon=True)
        database._watch = self  # whose end ends this, also if Ctrl-C comes in the next lines
        self._pipe.extend(chain.from_iterable(starmap(os.pipe, [()])))  # no moment between the two
        self._stop_reading, self._stop_writing = self._pipe
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        if self._thread is threading.current_thread():
            self._stopped_itself = True  # it dropped the last reference to the handle
            return
        if self._thread.is_alive():
            os.write(self._stop_writing, b"x")
            self._thread.join()
        self.abandon()  # one that has yet to begin finds the handle closed, and ends

    def abandon(self) -> None:
        """Lets go of the pipe; a forked child has no such thread."""
        list(map(os.close, self._pipe))

    def _run(self) -> None:
        while self._watch_once():
            pass
        if self._stopped_itself:
            self.abandon()

    def _watch_once(self) -> bool:
        database = self._database()
        if database is None or database.closed or database.path is None:
            return False
        folder, segments = database.path, database._segments
        del database
        if self._stopped_itself:
            return False
        info = coordinator.read_info(folder)
        if info is None or info.segments != segments:
            return False
        if self._is_stopped_before_the_end_of(info) or not segments.exist():
            return False
        try:
            return coordinator.start(folder, None).found
        except errors.Error:
            return not coordinator.is_readable(self._stop_reading, START_AGAIN_S)

    def _is_stopped_before_the_end_of(self, info: coordinator.Info) -> bool:
        """Sleeps until the coordinator has died, or this handle closes."""
        try:
            descriptor = os.pidfd_open(info.pid)
        except OSError:
            return False
        try:
            poll = select.poll()
            poll.register(self._stop_reading, select.POLLIN)
            poll.register(descriptor, select.POLLIN)
            ready = poll.poll() if process_alive(info.identity) else []
        finally:
            os.close(descriptor)
        return any(number == self._stop_reading for number, _ in ready)


def _after_fork(handle: weakref.ref[Database]) -> None:
    """The first use in a forked child: threads did not come along."""
    database = handle()
    if database is None or database._closed:
        return
    database._owner_pid = os.getpid()
    if database._watch is not None:
        database._watch.abandon()
        _Watch(database)


def _rejoin(path: Path | None, segments: Segments, options: coordinator.Options) -> Database:
    """Unpickles a handle: joins the very database that it was open on."""
    if path is not None:
        info = coordinator.read_info(path)
        if info is not None and info.is_alive() and info.is_serving:
            segments = info.segments
    store = segments.attach()
    if not store.join():
        store.close()
        raise errors.Closed("The database was closed before this process could join it.")
    if path is None:
        store.start_keeper()  # stands by, in case the process that has the duties ends
    return Database._make(store, path, segments, options)


def _seconds(duration: timedelta | float | None) -> float | None:
    return None if duration is None else values.as_timedelta(duration, "timeout").total_seconds()


def _options(durability: Durability, map_size: int | None, max_clients: int) -> coordinator.Options:
    size = default_map_size() if map_size is None else map_size
    _check_int("map_size", size)
    _check_int("max_clients", max_clients)
    if not MAP_SIZE_MIN <= size <= 1 << 46:
        raise errors.ConstraintViolation(
            "map_size",
            f"map_size is {values.printable(size)}; give 1 MiB (1048576) to 64 TiB.",
        )
    if not 2 <= max_clients <= 4096:
        raise errors.ConstraintViolation(
            "max_clients",
            f"max_clients is {values.printable(max_clients)}; give 2 to 4096: the handle takes a "
            f"slot, and so does each thread that uses it.",
        )
    return coordinator.Options(
        size,
        max_clients,
        KINDS.index(durability.kind),
        durability.flush_interval_ms,
        durability.max_pending_writes,
    )


def _check_int(name: str, number: int) -> None:
    if type(number) is not int:
        kind = values.class_name(number)
        raise errors.WrongType("int", kind, f"{name} is a {kind}; give an int.")


def _folder_named(path: str | os.PathLike[str]) -> Path:
    """The path of a database's folder, absolute."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        kind = values.class_name(path)
        raise errors.WrongType(
            "str or os.PathLike", kind, f"A database's folder is named by a str, not by {kind}."
        )
    if not os.fspath(path):
        raise errors.InvalidOperation("The path is empty, so it names no folder.")
    try:
        folder = Path(path).expanduser().absolute()
        folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_folder(path, error) from error
    return folder


def _prepare_folder(folder: Path) -> None:
    """Makes the folder if it is missing, and sees that a database may live in it."""
    try:
        _make_folder(folder)
        found = folder.stat()
    except FileExistsError:
        raise errors.InvalidOperation(
            f"{str(folder)!r} is a file; a database is a folder. Name another path."
        ) from None
    except (OSError, ValueError) as error:
        raise _no_folder(folder, error) from error
    if found.st_uid != os.geteuid():
        raise errors.InvalidOperation(
            f"{str(folder)!r} belongs to user {found.st_uid}, not to you ({os.geteuid()}). A "
            f"database is used by the processes of one user."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise errors.InvalidOperation(
            f"{str(folder)!r} cannot be written; the database keeps files there."
        )


def _make_folder(folder: Path) -> None:
    """With its parents; a power cut does not take the name of one that was made."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        with suppress(OSError):  # a parent that may be entered, but not read
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _no_folder(path: str | os.PathLike[str], error: Exception) -> errors.InvalidOperation:
    return errors.InvalidOperation(f"{str(path)!r} cannot be a database's folder: {error}.")
