"""coordinator.py - the process that looks after one database; python -m shm_engine.coordinator.

Why:        memory is made ready ahead of need, dead clients are cleared, the log is written and the
            folder is owned by a process that no terminal and no agent takes with it. It is started
            by the first open and leaves when the last handle has gone.
Used by:    itself; clients use start, read_info and successor
Shared:     coordinator.json and coordinator.lock in the folder
Invariants: C1 one coordinator per folder: it holds coordinator.lock for its whole life
            C2 it leaves only with no member in the segments, and nobody joins one that is leaving
            C3 segments with a log are removed only after the files hold all that they hold
Crash:      the lock is free, coordinator.json names a dead process: the next client to notice
            starts a successor, which takes the living segments over. If nobody lives in them, the
            next open writes their ring to the log first, and then recovers from the files.
Errors:     the starter reads lines of JSON from a pipe: progress, then ready or the error
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import filelock

from shm_engine import errors
from shm_engine._core import FORMAT_VERSION, identity_of_files, process_alive, process_identity
from shm_engine.recovery import ProgressLine, RecoveryReport
from shm_engine.segments import FOLDER as SHARED_FOLDER
from shm_engine.segments import INFO_FILE, Segments, clear_leftovers

if TYPE_CHECKING:
    from shm_engine._core import Store

__all__ = [
    "INFO_FILE",
    "Ended",
    "Info",
    "Options",
    "Started",
    "cleanup",
    "is_of",
    "main",
    "read_info",
    "start",
    "wait_for_end",
]

LOCK_FILE: Final = "coordinator.lock"
TICK_S: Final = 0.05
FIRST_MEMBER_S: Final = 10.0
START_S: Final = 20.0
LOCK_S: Final = 5.0
LOOK_S: Final = 0.01
SERVING: Final = "serving"
ANOTHER: Final = "another serves"
NOTHING: Final = "nothing to take over"
LOG_CHECKPOINT_MAX: Final = 64 << 20
LOG_CHECKPOINT_MIN: Final = 4 << 20
PROGRESS_S: Final = 0.1
CHECKPOINT_AGAIN_S: Final = 5.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the first open decides for everybody."""

    map_size: int
    max_clients: int
    durability_kind: int = 0
    flush_interval_ms: int = 0
    max_pending_writes: int = 0


@dataclass(frozen=True, slots=True)
class Info:
    """The content of coordinator.json."""

    pid: int
    identity: int
    control: str
    data: str
    format_version: int
    started_us: int
    stays: bool = False

    @property
    def is_serving(self) -> bool:
        """False while it saves what others left, or recovers from the files: none joins yet."""
        return self.control != "" and self.started_us != 0

    @property
    def segments(self) -> Segments:
        """The segments of the database."""
        return Segments(self.control, self.data)

    def is_alive(self) -> bool:
        """Whether this coordinator still runs."""
        return process_alive(self.identity)


def read_info(folder: Path) -> Info | None:
    """What coordinator.json says, None without one (or one that was cut off)."""
    try:
        fields = json.loads((folder / INFO_FILE).read_text("utf-8"))
        stays = fields.get("stays", False) is True
        known = {name: fields[name] for name in Info.__slots__ if name != "stays"}
        return Info(**known, stays=stays)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_info(folder: Path, info: Info) -> None:
    aside = folder / f"{INFO_FILE}.{os.getpid()}"
    aside.write_text(json.dumps(asdict(info), indent=2) + "\n", "utf-8")
    aside.rename(folder / INFO_FILE)


def is_of(store: Store, folder: Path) -> bool:
    """Whether the segments are this very folder's: a copy of it names those of the original."""
    home = store.folder()
    try:
        return not home or os.path.samefile(home, folder)
    except OSError:
        return True  # it was renamed since


def is_readable(descriptor: int, seconds: float) -> bool:
    """Waits that long for something to read, or for the end of it."""
    poll = select.poll()  # select() knows descriptors up to 1023 only
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def wait_for_end(identity: int, seconds: float) -> bool:
    """Waits until the process has ended, without polling where the kernel can tell."""
    try:
        descriptor = os.pidfd_open(identity & 0xFFFFFFFF)
    except OSError:
        return not process_alive(identity)
    try:
        if not process_alive(identity):
            return True
        return is_readable(descriptor, seconds)
    finally:
        os.close(descriptor)


# -- the starter's side -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a start: `found` is false if there was nothing to take over; `recovery` is
    None if another coordinator serves, or there were no files."""

    found: bool
    recovery: RecoveryReport | None = None


def start(folder: Path, options: Options | None) -> Started:
    """Starts a coordinator and waits until it serves, or another one does.

    Args:
        options: For a new database. None: only a living one, whose coordinator has died, is taken
            over; if nobody lives in it any more, what its ring still holds is saved.

    Raises:
        Unavailable: none came up in time.
        StorageFull, FormatMismatch, Corruption, IoError: what it found.
    """
    readable, writable = os.pipe()
    command = [sys.executable, "-m", "shm_engine.coordinator", str(folder), str(writable)]
    try:
        process = subprocess.Popen(
            [*command, json.dumps(options and asdict(options))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writable,),
            start_new_session=True,
            env=_environment(),
            cwd="/",
        )
    except OSError as error:
        os.close(readable)
        raise errors.Unavailable(f"No coordinator could be started: {error}.") from error
    finally:
        os.close(writable)
    process.wait()  # only until it has put itself under init
    answer = _read_answer(readable, folder)
    if not answer:
        raise errors.Unavailable(
            f"The coordinator of {folder} ended without an answer (exit code "
            f"{process.returncode}). Run `{sys.executable} -c 'import shm_engine.coordinator'` "
            f"to see why."
        )
    if answer.get("error") == "Corruption":
        message = answer["message"].replace("repair` on it", f"repair {folder}`")
        raise errors.Corruption(answer["file"], answer["offset"], message)
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    recovery = answer.get("recovery")
    return Started(answer["state"] != NOTHING, recovery and RecoveryReport(**recovery))


def _environment() -> dict[str, str]:
    """The child has to find this very package, wherever it was imported from."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package_root + (os.pathsep + path if path else "")}


def _read_answer(readable: int, folder: Path) -> dict[str, Any]:
    """The last line; lines of progress before it give it more time."""
    deadline = time.monotonic() + START_S
    data = b""
    progress = ProgressLine(f"shm_engine: recovering {folder}")
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        while (left := deadline - time.monotonic()) > 0 and is_readable(readable, left):
            chunk = pipe.read(4096)
            if not chunk:
                break
            *lines, data = (data + chunk).split(b"\n")
            for line in lines:
                answer: dict[str, Any] = json.loads(line)
                if "progress" not in answer:
                    progress.end()
                    return answer
                if answer["progress"][1]:
                    progress.show(*answer["progress"])
                deadline = time.monotonic() + START_S
    progress.end()
    return {}


# -- the coordinator's side -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """How a coordinator left: the newest version, the newest checkpoint's, how many handles live
    on, and what failed if the log could not be written."""

    version: int
    checkpoint_version: int
    handles: int
    failure: str


class Coordinator:
    """One coordinator, from taking the folder over to leaving it."""

    def __init__(
        self,
        folder: Path,
        options: Options | None,
        progress: Progress | None = None,
        *,
        salvage: bool = False,
        stay: bool = False,
    ) -> None:
        """
        Args:
            salvage: Recover from damaged files what is sound.
            stay: Serve until a signal comes, and not only until the last handle has gone.
        """
        self._folder = folder
        self._options = options
        self._progress = progress
        self._salvage = salvage
        self._stay = stay
        self._stopping = False
        self._left = False
        self._lock = filelock.FileLock(folder / LOCK_FILE)
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._checkpointing: threading.Thread | None = None
        self._not_before = 0.0  # a checkpoint that failed is not tried at each tick
        self.recovery: RecoveryReport | None = None

    @property
    def store(self) -> Store:
        """What it looks after, from `take_over` to `leave`."""
        return self._store

    def take_over(self) -> str:
        """Holds the lock and serves, unless another coordinator does or there is nothing to do."""
        if not self._wait_for_lock():
            return ANOTHER
        try:
            found = self._adopt() or self._create()
        except BaseException:
            self._lock.release()
            raise
        if found is None:
            self._lock.release()
            return NOTHING
        self._segments, self._store = found
        self._write_info(self._segments)
        return SERVING

    def _write_info(self, segments: Segments, *, serving: bool = True) -> None:
        _write_info(
            self._folder,
            Info(
                os.getpid(),
                process_identity(os.getpid()),
                segments.control,
                segments.data,
                FORMAT_VERSION,
                time.time_ns() // 1000 if serving else 0,
                self._stay,
            ),
        )

    def _wait_for_lock(self) -> bool:
        """Takes the lock; False as soon as its holder serves."""
        deadline = time.monotonic() + LOCK_S
        while time.monotonic() < deadline:
            try:
                self._lock.acquire(timeout=LOOK_S, poll_interval=0.002)
            except filelock.Timeout:
                # Its holder serves, or is just starting, or is just leaving.
                info = read_info(self._folder)
                if info is not None and info.is_alive():
                    if info.is_serving:
                        return False
                    deadline = time.monotonic() + LOCK_S  # it recovers
                    if self._progress is not None:
                        self._progress(0, 0)  # who waits for this one has to wait on
            else:
                return True
        raise errors.Unavailable(
            f"{self._folder / LOCK_FILE} is held by a process that does not serve here. Is the "
            f"database open in another container? It is shared within one PID namespace and one "
            f"{SHARED_FOLDER} alone."
        )

    def _adopt(self) -> tuple[Segments, Store] | None:
        """The segments of a dead coordinator, if anybody still lives in them."""
        info = read_info(self._folder)
        if info is None or not info.segments.exist():
            return None
        try:
            store = info.segments.attach()
        except errors.FormatMismatch as error:
            # Whether anybody lives in them cannot be told, so they are not taken away.
            raise errors.FormatMismatch(
                f"{error} If no process uses it any more, remove /dev/shm{info.segments.control} "
                f"and /dev/shm{info.segments.data}."
            ) from error
        if not is_of(store, self._folder):
            store.close()
            return None
        if not store.is_deserted():
            if store.is_logged() and not store.is_log_failed():
                with suppress(errors.IoError):  # the database is read-only then, and says why
                    store.open_log(self._folder_fd)
            return info.segments, store
        try:
            self._save_ring(info.segments, store)
        finally:
            store.close()
        info.segments.unlink()
        (self._folder / INFO_FILE).unlink(missing_ok=True)
        return None

    def _save_ring(self, segments: Segments, store: Store) -> None:
        """All processes were killed, or the disk failed: what the ring holds goes to the log."""
        if not store.is_logged():
            return
        self._write_info(segments, serving=False)  # others wait meanwhile
        store.mend()
        store.open_log(self._folder_fd, retry=True)
        try:
            store.drain_log()
        finally:
            store.stop_log()

    def _create(self) -> tuple[Segments, Store] | None:
        if self._options is None:
            return None
        clear_leftovers()
        segments = Segments.fresh()
        database_id = identity_of_files(self._folder_fd, self._salvage)
        if self._options.durability_kind == 0:
            if database_id is not None:
                raise errors.InvalidOperation(
                    f"{self._folder} holds a database with a log on disk, which in_memory would "
                    f"leave out. Open it with another mode, or name another folder."
                )
            return segments, segments.create(**asdict(self._options))
        store = segments.create(
            **asdict(self._options),
            database_id=database_id or os.urandom(16),
            folder=str(self._folder),
        )
        try:
            self._write_info(Segments("", ""), serving=False)  # others wait meanwhile
            self._recover(store, database_id)
        except BaseException:
            store.close()
            segments.unlink()
            (self._folder / INFO_FILE).unlink(missing_ok=True)
            raise
        return segments, store

    def _recover(self, store: Store, database_id: bytes | None) -> None:
        begin = time.monotonic()
        figures = store.recover(self._folder_fd, self._salvage, self._progress)
        figures["seconds"] = time.monotonic() - begin
        if database_id is not None or self._salvage:
            self.recovery = RecoveryReport.of(figures)
        store.note_checkpoint(
            figures["checkpoint_version"], figures["checkpoint_bytes"], figures["log_bytes"]
        )
        store.open_log(self._folder_fd, fresh=figures["last_version"])

    def repair(self) -> dict[str, int] | None:
        """Recovers what is sound, writes a checkpoint of it and leaves; its figures.

        None: another coordinator serves. Whoever opens meanwhile waits for its end.

        Raises:
            InvalidOperation: somebody has the database open.
        """
        if not self._wait_for_lock():
            return None
        try:
            if (found := self._adopt()) is not None:
                found[1].stop_log()
                found[1].close()
                raise errors.InvalidOperation(f"{self._folder} is open; close it everywhere first.")
            made = self._create()
            assert made is not None
            segments, self._store = made
            try:
                figures = self._store.write_checkpoint(self._folder_fd)
                saved = self._store.stop_log()
            finally:
                self._store.close()
                segments.unlink()
                (self._folder / INFO_FILE).unlink(missing_ok=True)
            if not saved:
                raise errors.IoError(f"The log of {self._folder} could not be written.")
            return figures
        finally:
            self._lock.release()

    def serve(self, ready: Callable[[], None] | None = None) -> Ended:
        """Does the duties until the last handle has gone, or a signal comes.

        One that stays leaves without a signal only when the log has failed and nobody is left who
        was told so. `ready` is called when everything runs.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        patience = time.monotonic() + FIRST_MEMBER_S
        self._store.serve()
        if self._store.is_logged() and not self._store.is_log_failed():
            self._store.start_log()
        if ready is not None:
            ready()
        while not self._stopping:
            self._store.keep(TICK_S)
            self._checkpoint_if_due()
            expected = self._store.was_joined() or time.monotonic() > patience
            if self._stay:
                expected = self._store.is_log_failed()
            if expected and self._store.try_leave_last():
                self._left = True
                break
        if self._stay and not self._left:
            self._wait_for_checkpoint()
            self._checkpoint_at_end()  # even if clients stay, who go on without this one
        return self.leave()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _checkpoint_if_due(self) -> None:
        if not self._store.is_logged() or (
            self._checkpointing is not None and self._checkpointing.is_alive()
        ):
            return
        ticket = self._store.checkpoint_is_wanted()
        log, checkpoint, _ = self._store.log_sizes()
        most = max(LOG_CHECKPOINT_MIN, min(LOG_CHECKPOINT_MAX, self._store.map_size() // 4))
        due = log > max(most, checkpoint) and time.monotonic() >= self._not_before
        if ticket or (due and not self._store.is_log_failed()):
            self._checkpointing = threading.Thread(target=self._checkpoint, args=(ticket,))
            self._checkpointing.start()

    def _checkpoint(self, ticket: int) -> None:
        code = 0
        try:
            self._store.write_checkpoint(self._folder_fd)
        except errors.Error as error:
            code = getattr(error, "errno", None) or errno.EIO
            self._not_before = time.monotonic() + CHECKPOINT_AGAIN_S
        if ticket:
            self._store.answer_checkpoint(ticket, code)

    def leave(self) -> Ended:
        """Removes what is no longer used; living clients keep it and start a successor."""
        self._wait_for_checkpoint()
        last = self._left or self._store.try_leave_last()
        saved = self._store.stop_log()
        if last and saved:
            self._checkpoint_at_end()
            self._segments.unlink()
            with suppress(FileNotFoundError):  # by now another database may have the path
                os.unlink(INFO_FILE, dir_fd=self._folder_fd)
        figures = self._store.figures()
        ended = Ended(
            figures["version"],
            self._store.log_sizes()[2],
            self._store.members(),
            self._store.failure(),
        )
        self._store.close()
        self._lock.release()
        return ended

    def _wait_for_checkpoint(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.join()

    def _checkpoint_at_end(self) -> None:
        """So that the next open has nothing to replay. The log holds everything if it fails."""
        if not self._store.is_logged():
            return
        version = self._store.figures()["version"]
        if not self._store.is_log_failed() and version > self._store.log_sizes()[2]:
            self._checkpoint(self._store.checkpoint_is_wanted())


def cleanup(folder: Path) -> None:
    """Removes segments and coordinator.json after a coordinator that died with nobody left."""
    lock = filelock.FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return  # a coordinator is at work, it does this itself
    try:
        info = read_info(folder)
        if info is None or info.is_alive():
            return
        if info.segments.exist():
            store = info.segments.attach()
            keep = store.members() > 0 or store.is_logged()
            store.close()
            if keep:
                return
        info.segments.unlink()
        (folder / INFO_FILE).unlink(missing_ok=True)
    except errors.Error:
        return  # the next open looks again, and says what is wrong
    finally:
        lock.release()


def _answer(descriptor: int, **fields: Any) -> None:
    with suppress(BrokenPipeError):  # who started it has ended meanwhile
        os.write(descriptor, json.dumps(fields).encode() + b"\n")
    os.close(descriptor)


def _progress_to(descriptor: int) -> Progress:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_S:
            last = now
            with suppress(BrokenPipeError):
                os.write(descriptor, json.dumps({"progress": [done, total]}).encode() + b"\n")

    return tell


def main(arguments: list[str]) -> int:
    """FOLDER, the descriptor to answer on, options as JSON (null: only take over)."""
    folder, descriptor = Path(arguments[0]), int(arguments[1])
    if os.fork() != 0:
        os._exit(0)  # the starter reaps this one; the other belongs to init
    options = json.loads(arguments[2])
    try:
        coordinator = Coordinator(folder, options and Options(**options), _progress_to(descriptor))
        state = coordinator.take_over()
    except errors.Corruption as error:
        _answer(
            descriptor,
            error="Corruption",
            message=str(error),
            file=error.file,
            offset=error.offset,
        )
        return 1
    except errors.Error as error:
        _answer(descriptor, error=type(error).__name__, message=str(error))
        return 1
    except OSError as error:
        _answer(descriptor, error="IoError", message=f"{folder}: {error}")
        return 1
    recovery = coordinator.recovery
    _answer(descriptor, state=state, recovery=recovery and asdict(recovery))
    if state == SERVING:
        coordinator.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
