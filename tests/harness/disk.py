"""disk.py - Disk, a disk that fails when a test says so, for the coordinators that it starts.

Why:        a test of a failing disk, or of a death between two file operations, has to name the
            moment. The coordinator is started with a library in front of the C library's file
            calls; both map the same small file, in which the test says what happens and when.
Used by:    the tests in tests/procs; the fixture `disk`
Shared:     the plan -> tests/harness/disk_faults.c
Errors:     whatever the compiler says
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

__all__ = ["ALL", "Action", "Disk", "Kind", "compiled"]

SOURCE: Final = Path(__file__).with_name("disk_faults.c")
VARIABLE: Final = "SHM_ENGINE_TEST_DISK"
SIZE: Final = 128
PLAN: Final = struct.Struct("<5Q")
SEEN, ACTED, MATCH = 40, 48, 56


class Kind(IntFlag):
    """What the coordinator does with a file."""

    WRITE = 1
    SYNC = 2
    RENAME = 4
    REMOVE = 8
    RESERVE = 16


class Action(IntEnum):
    """What happens instead, or before."""

    COUNT = 0
    FAIL = 1
    KILL = 2
    STOP = 3


ALL: Final = Kind(31)


def compiled() -> Path:
    """The library, made once and again when its source changes."""
    folder = Path(tempfile.gettempdir()) / f"shm_engine-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = SOURCE.stat().st_mtime_ns
    library = folder / f"disk_faults-{stamp}-{sysconfig.get_platform()}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes ask at once
        if not library.exists():
            aside = library.with_suffix(".tmp")
            command = ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
            subprocess.run([*command, "-o", aside, SOURCE, "-ldl"], check=True)
            aside.rename(library)
    return library


class Disk:
    """One plan; `environment` is what a coordinator needs to follow it."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(SIZE))
        self.environment: Final = {"LD_PRELOAD": str(compiled()), VARIABLE: str(path)}
        with path.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), SIZE)

    def _arm(self, action: int, kinds: Kind, first: int, count: int, code: int, match: str) -> None:
        self.heal()
        self._plan[MATCH:SIZE] = match.encode().ljust(SIZE - MATCH, b"\0")
        self._plan[SEEN:MATCH] = bytes(MATCH - SEEN)
        whole = PLAN.pack(action, kinds, first, count, code)
        self._plan[8:SEEN] = whole[8:]
        self._plan[0:8] = whole[:8]  # the action last

    def heal(self) -> None:
        """From now on nothing happens."""
        self._plan[0:8] = bytes(8)

    def count(self, kinds: Kind = ALL, match: str = "") -> None:
        """Only counts, from 0."""
        self._arm(Action.STOP, kinds, 1 << 62, 0, 0, match)

    def fail(
        self,
        kinds: Kind,
        *,
        first: int = 1,
        count: int = 0,
        code: int = errno.EIO,
        match: str = "",
    ) -> None:
        """The first such operation from now on (or the n-th) fails, and so do all (or so many)."""
        self._arm(Action.FAIL, kinds, first, count, code, match)

    def kill(self, first: int = 1, kinds: Kind = ALL, match: str = "") -> None:
        """Whoever comes to the n-th such operation dies before it."""
        self._arm(Action.KILL, kinds, first, 1, 0, match)

    def stop(self, first: int = 1, kinds: Kind = ALL, match: str = "") -> None:
        """Whoever comes to the n-th such operation stops before it."""
        self._arm(Action.STOP, kinds, first, 1, 0, match)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._plan[offset : offset + 8], "little")

    @property
    def seen(self) -> int:
        """How many operations of the plan's kinds there were since it was made."""
        return self._word(SEEN)

    @property
    def acted(self) -> int:
        """How many of them failed, or killed or stopped somebody."""
        return self._word(ACTED)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Coordinators that this process starts meanwhile use this disk."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
