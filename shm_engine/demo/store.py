"""store.py - the demo's store: opened, deprived of its coordinator, opened again.

Why:        that a coordinator may be killed and that the disk holds everything is shown and not
            told: when three quarters of the files are done it is killed, and the time to its
            successor is taken while the agents go on; at the end the store is closed and opened
            again, so that what is checked came from its files.
Used by:    run.py; the main thread, and one that waits for the successor
Errors:     the engine's
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from shm_engine import coordinator
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.errors import Error

KILL_AT_SHARE = 0.75
POLL_S = 0.0005
SUCCESSOR_S = 20.0


@dataclass(slots=True)
class CoordinatorDeath:
    """The coordinator that was killed, and who came after it; versions are those of commits."""

    pid: int
    version: int
    successor_pid: int = 0
    after_ms: float = 0.0
    commits_meanwhile: int = 0


class DemoStore:
    """A database of this run's own; a context manager that leaves nothing behind."""

    def __init__(self, path: str | None, ephemeral: bool) -> None:
        """Opens it: in a new folder that goes afterwards, or at `path`, which stays."""
        self._is_kept = path is not None
        self.folder: Path | None = None
        self.recovery_s = 0.0
        if ephemeral:
            self.database = Database.ephemeral()
            self.is_shared = False
            return
        if path is None:
            self.folder = Path(tempfile.mkdtemp(prefix="shm-engine-demo-"))
        else:
            self.folder = Path(path).expanduser().absolute()
        try:
            self.database = Database.open(self.folder, Durability.buffered())
        except BaseException:
            self._remove()
            raise
        self.is_shared = self.database.metrics().handles > 1

    def __enter__(self) -> DemoStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.database.close()
        finally:
            self._remove()

    def _remove(self) -> None:
        if self.folder is not None and not self._is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_durable(self) -> bool:
        """Whether it has files."""
        return self.folder is not None

    def open_again(self) -> None:
        """Closes it and opens it from its files."""
        assert self.folder is not None
        self.database.close()
        started_s = time.monotonic()
        self.database = Database.open(self.folder, Durability.buffered())
        self.recovery_s = time.monotonic() - started_s


class Assassin:
    """Kills the store's coordinator once, and takes the time until another one serves."""

    def __init__(self, store: DemoStore, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._told = False
        self.death: CoordinatorDeath | None = None

    def watch(self, done: int, count: int) -> None:
        """Called now and then while the agents work."""
        if self.death is None and done >= count * KILL_AT_SHARE:
            self._kill()
        if self._thread is not None and not self._thread.is_alive():
            self._tell_once()

    def finish(self) -> None:
        """Kills it now if that has not been done, and waits for the successor."""
        if self.death is None:
            self._kill()
        if self._thread is not None:
            self._thread.join()
            self._tell_once()

    def stop(self) -> None:
        """Waits for nothing any more."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _kill(self) -> None:
        folder = self._store.folder
        if folder is None or self._store.is_shared:
            return
        info = coordinator.read_info(folder)
        if info is None or not info.is_alive():
            return
        version = self._store.database.metrics().version
        started_s = time.monotonic()
        os.kill(info.pid, signal.SIGKILL)
        self.death = CoordinatorDeath(info.pid, version)
        self._tell(f"Coordinator (pid {info.pid}) killed with SIGKILL at version {version:,}")
        self._thread = threading.Thread(
            target=self._time_successor, args=(folder, info, started_s), daemon=True
        )
        self._thread.start()

    def _time_successor(self, folder: Path, old: coordinator.Info, started_s: float) -> None:
        death = self.death
        assert death is not None
        while not self._is_over.wait(POLL_S) and time.monotonic() - started_s < SUCCESSOR_S:
            info = coordinator.read_info(folder)
            if info is None or info.identity == old.identity or not info.is_serving:
                continue
            death.after_ms = (time.monotonic() - started_s) * 1000
            with suppress(Error):
                death.commits_meanwhile = self._store.database.metrics().version - death.version
            death.successor_pid = info.pid
            return

    def _tell_once(self) -> None:
        death = self.death
        if self._told or death is None or not death.successor_pid:
            return
        self._told = True
        self._tell(
            f"Process {death.successor_pid} took over after {death.after_ms:,.0f} ms;"
            f" {death.commits_meanwhile:,} commits went on meanwhile"
        )

    def as_value(self) -> dict[str, Any] | None:
        """For the summary."""
        death = self.death
        if death is None:
            return None
        return {
            "pid": death.pid,
            "version": death.version,
            "successor_pid": death.successor_pid or None,
            "after_ms": round(death.after_ms, 3) if death.successor_pid else None,
            "commits_meanwhile": death.commits_meanwhile,
        }
