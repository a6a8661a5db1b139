"""shared.py - what tests look up in /dev/shm, and the sequencer as seen from outside.

Why:        some claims are about the segments themselves: that none is left, and what happens when
            the process that holds the sequencer is stopped or dies. To hold it for certain, a
            process takes the mutex of the control segment with its own hands.
Shared:     reads owner_pid and pending, takes and gives back the mutex -> FORMAT.md, "Sequencer"
Used by:    the tests in tests/procs
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

    from shm_engine.database import Database
    from tests.harness.workers import Worker

__all__ = [
    "FOLDER",
    "SequencerView",
    "segment_names",
    "segments_by",
    "segments_exist",
    "stop_in_the_middle",
]

FOLDER: Final = Path("/dev/shm")
PAGE: Final = 4096
PENDING: Final = 704  # offset and size of se_sequencer.pending
PENDING_SIZE: Final = 512
MUTEX_SIZE: Final = {"aarch64": 48}.get(platform.machine(), 40)


def segment_names(database: Database) -> list[str]:
    """The file names of the database's segments."""
    found = database._segments
    return [found.control.lstrip("/"), found.data.lstrip("/")]


def segments_by(pid: int) -> list[str]:
    """The segments that this process made and that still have a name."""
    return sorted(path.name for path in FOLDER.glob(f"shm_engine.*.{pid}.*"))


def segments_exist(names: list[str]) -> bool:
    """Whether any of these still has a name."""
    return any((FOLDER / name).exists() for name in names)


class SequencerView:
    """The sequencer's page, mapped a second time."""

    def __init__(self, database: Database) -> None:
        descriptor = os.open(FOLDER / segment_names(database)[0], os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 2 * PAGE)
        finally:
            os.close(descriptor)
        self._owner = ctypes.c_uint64.from_buffer(self._map, PAGE + MUTEX_SIZE)
        self._mutex = ctypes.byref(ctypes.c_char.from_buffer(self._map, PAGE))
        self._libc = ctypes.CDLL(None)

    def owner(self) -> int:
        """The process that holds the sequencer, 0 for none."""
        return self._owner.value

    def waiting(self) -> int:
        """How many requests wait for whoever holds the sequencer."""
        bits = self._map[PAGE + PENDING : PAGE + PENDING + PENDING_SIZE]
        return int.from_bytes(bits, "little").bit_count()

    def take(self) -> None:
        """Holds the sequencer from now on, for this thread."""
        assert self._libc.pthread_mutex_lock(self._mutex) == 0
        self._owner.value = os.getpid()

    def give_back(self) -> None:
        """Lets it go."""
        self._owner.value = 0
        assert self._libc.pthread_mutex_unlock(self._mutex) == 0


def stop_in_the_middle(worker: Worker, view: SequencerView, rng: random.Random) -> None:
    """Stops a worker that commits in a loop, at a moment when it holds the sequencer."""
    for _ in range(2000):
        time.sleep(rng.uniform(0.0, 0.003))  # a random moment; nothing waits for it
        worker.stop()
        if view.owner() == worker.pid:
            return
        worker.resume()
    raise AssertionError("the worker was never stopped while it held the sequencer")
