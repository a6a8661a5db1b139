"""coordinator.py - the process that looks after one database; python -m shm_engine.coordinator.

Why:        memory is made ready ahead of need, dead clients are cleared and the folder is owned by
            a process that no terminal and no agent takes with it. It is started by the first open
            and leaves when the last handle has gone.
Used by:    itself; clients use start, read_info and successor
Shared:     coordinator.json and coordinator.lock in the folder
Invariants: C1 one coordinator per folder: it holds coordinator.lock for its whole life
            C2 it leaves only with no member in the segments, and nobody joins one that is leaving
Crash:      the lock is free, coordinator.json names a dead process: the next client to notice
            starts a successor, which takes the living segments over
Errors:     the starter reads one line of JSON from a pipe: ready, or the error
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import filelock

from shm_engine import errors
from shm_engine._core import FORMAT_VERSION, process_alive, process_identity
from shm_engine.segments import Segments, clear_leftovers

if TYPE_CHECKING:
    from shm_engine._core import Store

__all__ = ["Info", "Options", "cleanup", "main", "read_info", "start", "wait_for_end"]

INFO_FILE: Final = "coordinator.json"
LOCK_FILE: Final = "coordinator.lock"
TICK_S: Final = 0.05
FIRST_MEMBER_S: Final = 10.0
START_S: Final = 20.0
LOCK_S: Final = 15.0
LOOK_S: Final = 0.01
SERVING: Final = "serving"
ANOTHER: Final = "another serves"
NOTHING: Final = "nothing to take over"


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
        return Info(**{name: fields[name] for name in Info.__slots__})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_info(folder: Path, info: Info) -> None:
    aside = folder / f"{INFO_FILE}.{os.getpid()}"
    aside.write_text(json.dumps(asdict(info), indent=2) + "\n", "utf-8")
    aside.rename(folder / INFO_FILE)


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


def start(folder: Path, options: Options | None) -> bool:
    """Starts a coordinator and waits until it serves, or another one does.

    Args:
        options: For a new database. None: only a living one, whose coordinator has died, is taken
            over; False if nobody lives in it any more.

    Raises:
        Unavailable: none came up in time.
        StorageFull, FormatMismatch, IoError: what it found.
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
    answer = _read_answer(readable)
    if not answer:
        raise errors.Unavailable(
            f"The coordinator of {folder} ended without an answer (exit code "
            f"{process.returncode}). Run `{sys.executable} -c 'import shm_engine.coordinator'` "
            f"to see why."
        )
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return bool(answer["state"] != NOTHING)


def _environment() -> dict[str, str]:
    """The child has to find this very package, wherever it was imported from."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package_root + (os.pathsep + path if path else "")}


def _read_answer(readable: int) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    data = b""
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        while not data.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
            if not is_readable(readable, left):
                break
            chunk = pipe.read(4096)
            if not chunk:
                break
            data += chunk
    answer: dict[str, Any] = json.loads(data) if data else {}
    return answer


# -- the coordinator's side -------------------------------------------------------------------


class Coordinator:
    """One coordinator, from taking the folder over to leaving it."""

    def __init__(self, folder: Path, options: Options | None) -> None:
        self._folder = folder
        self._options = options
        self._stopping = False
        self._lock = filelock.FileLock(folder / LOCK_FILE)

    def take_over(self) -> str:
        """Holds the lock and serves, unless another coordinator does or there is nothing to do."""
        if not self._wait_for_lock():
            return ANOTHER
        found = self._adopt() or self._create()
        if found is None:
            self._lock.release()
            return NOTHING
        self._segments, self._store = found
        identity = process_identity(os.getpid())
        _write_info(
            self._folder,
            Info(
                os.getpid(),
                identity,
                self._segments.control,
                self._segments.data,
                FORMAT_VERSION,
                time.time_ns() // 1000,
            ),
        )
        return SERVING

    def _wait_for_lock(self) -> bool:
        """Takes the lock; False as soon as its holder serves, or if it never comes to that."""
        deadline = time.monotonic() + LOCK_S
        while time.monotonic() < deadline:
            try:
                self._lock.acquire(timeout=LOOK_S, poll_interval=0.002)
            except filelock.Timeout:
                # Its holder serves, or is just starting, or is just leaving.
                info = read_info(self._folder)
                if info is not None and info.is_alive():
                    return False
            else:
                return True
        return False

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
        if store.members() > 0:
            return info.segments, store
        store.close()
        info.segments.unlink()
        return None

    def _create(self) -> tuple[Segments, Store] | None:
        if self._options is None:
            return None
        clear_leftovers()
        segments = Segments.fresh()
        return segments, segments.create(**asdict(self._options))

    def serve(self) -> None:
        """Does the duties until the last handle has gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        patience = time.monotonic() + FIRST_MEMBER_S
        self._store.serve()
        while not self._stopping:
            self._store.keep(TICK_S)
            expected = self._store.was_joined() or time.monotonic() > patience
            if expected and self._store.try_leave_last():
                break
        self.leave()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def leave(self) -> None:
        """Removes what is no longer used; living clients keep it and start a successor."""
        if not self._stopping or self._store.try_leave_last():
            self._segments.unlink()
            (self._folder / INFO_FILE).unlink(missing_ok=True)
        self._store.close()
        self._lock.release()


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
            members = store.members()
            store.close()
            if members > 0:
                return
        info.segments.unlink()
        (folder / INFO_FILE).unlink(missing_ok=True)
    except errors.Error:
        return  # the next open looks again, and says what is wrong
    finally:
        lock.release()


def _answer(descriptor: int, **fields: str) -> None:
    os.write(descriptor, json.dumps(fields).encode() + b"\n")
    os.close(descriptor)


def main(arguments: list[str]) -> int:
    """FOLDER, the descriptor to answer on, options as JSON (null: only take over)."""
    folder, descriptor = Path(arguments[0]), int(arguments[1])
    if os.fork() != 0:
        os._exit(0)  # the starter reaps this one; the other belongs to init
    options = json.loads(arguments[2])
    coordinator = Coordinator(folder, options and Options(**options))
    try:
        state = coordinator.take_over()
    except errors.Error as error:
        _answer(descriptor, error=type(error).__name__, message=str(error))
        return 1
    except OSError as error:
        _answer(descriptor, error="IoError", message=f"{folder}: {error}")
        return 1
    _answer(descriptor, state=state)
    if state == SERVING:
        coordinator.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
