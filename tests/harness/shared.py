"""shared.py - what tests look up in /dev/shm, and the sequencer as seen from outside.

Why:        some claims are about the segments themselves: that none is left, and what happens when
            the process that holds the sequencer is stopped or dies. To hold it for certain, a
            process takes the mutex of the control segment with its own hands.
Shared:     reads owner_pid, pending and the slots' requests, takes and gives back the mutex ->
            FORMAT.md, "Sequencer" and "Slot"
Used by:    the tests in tests/procs
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shm_engine.primitives.kv import KVStore
from tests.format import tables
from tests.format.reader import Reader

if TYPE_CHECKING:
    import random

    from shm_engine.database import Database
    from tests.harness.workers import Worker

__all__ = [
    "FOLDER",
    "SequencerView",
    "check_structure",
    "segment_names",
    "segments_by",
    "segments_exist",
    "stop_in_the_middle",
]

FOLDER: Final = Path("/dev/shm")
PAGE: Final = 4096
MAP_SIZE_MAX: Final = 64 << 20
HEADER: Final = tables.structs()["se_header"]
SEQUENCER: Final = tables.structs()["se_sequencer"]
SLOT: Final = tables.structs()["se_slot"]
SLOT_SIZE: Final = tables.struct_sizes()["se_slot"]
REQUEST_TAKEN: Final = 2


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


def _field(data: bytes | mmap.mmap, base: int, row: tables.Row) -> int:
    start = base + row.offset
    return int.from_bytes(data[start : start + row.size], "little")


class SequencerView:
    """The header, the sequencer and the slots, mapped a second time."""

    def __init__(self, database: Database) -> None:
        descriptor = os.open(FOLDER / segment_names(database)[0], os.O_RDWR)
        try:
            head = os.pread(descriptor, PAGE, 0)
            self._slots = _field(head, 0, HEADER["slots_offset"])
            self._slot_count = _field(head, 0, HEADER["max_clients"])
            self._map = mmap.mmap(descriptor, self._slots + self._slot_count * SLOT_SIZE)
        finally:
            os.close(descriptor)
        self._owner = ctypes.c_uint64.from_buffer(self._map, PAGE + SEQUENCER["owner_pid"].offset)
        self._mutex = ctypes.byref(ctypes.c_char.from_buffer(self._map, PAGE))
        self._libc = ctypes.CDLL(None)

    def owner(self) -> int:
        """The process that holds the sequencer, 0 for none."""
        return self._owner.value

    def waiting(self) -> int:
        """How many requests wait for whoever holds the sequencer."""
        start = PAGE + SEQUENCER["pending"].offset
        bits = self._map[start : start + SEQUENCER["pending"].size]
        return int.from_bytes(bits, "little").bit_count()

    def taken_up(self, pid: int) -> int:
        """How many requests of this process are in the holder's hands."""
        count = 0
        for base in range(self._slots, self._slots + self._slot_count * SLOT_SIZE, SLOT_SIZE):
            owner = _field(self._map, base, SLOT["identity"]) & 0xFFFFFFFF
            state = _field(self._map, base, SLOT["request_state"])
            count += owner == pid and state == REQUEST_TAKEN
        return count

    def take(self) -> None:
        """Holds the sequencer from now on, for this thread."""
        assert self._libc.pthread_mutex_lock(self._mutex) == 0
        self._owner.value = os.getpid()

    def give_back(self) -> None:
        """Lets it go."""
        self._owner.value = 0
        assert self._libc.pthread_mutex_unlock(self._mutex) == 0


def check_structure(database: Database) -> None:
    """Every block of the arena is in exactly one place, and all of it obeys FORMAT.md.

    Nobody commits meanwhile. For small maps: it copies the whole data segment.
    """
    assert database.metrics().map_size_bytes <= MAP_SIZE_MAX
    # The engine, not this reader, mends what a killed holder left. Any request does that; one that
    # changes nothing needs no memory, and waits for the sequencer longer than a sweep does.
    KVStore(database).delete("default", "no such key")
    view = SequencerView(database)
    view.take()
    try:
        reader = Reader.of(database._segments)
        assert reader.is_quiet()
        reader.blocks()
    finally:
        view.give_back()


def stop_in_the_middle(
    worker: Worker, view: SequencerView, rng: random.Random, serving: int = 0
) -> None:
    """Stops a worker that commits in a loop, at a moment when it holds the sequencer; with
    `serving` at one when it carries out a request of that process."""
    for _ in range(5000):
        time.sleep(rng.uniform(0.0, 0.003))  # a random moment; nothing waits for it
        worker.stop()
        if view.owner() == worker.pid and (not serving or view.taken_up(serving)):
            return
        worker.resume()
    raise AssertionError("the worker was never stopped while it held the sequencer")
