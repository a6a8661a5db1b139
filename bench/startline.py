"""startline.py - the start line: a barrier in shared memory that releases processes together.

Why:        A process that is measured while another still imports its modules has a core for
            itself. Each runner does everything that is not measured, says "ready", and waits;
            the parent names one moment of the common clock for all.

                word 0      heat: the number of the current run, written by the parent
                word 1      the moment of release (CLOCK_MONOTONIC, ns); 0 = the heat is called off
                word 2      the heat that word 1 belongs to, written after it
                word 3+k    the heat that runner k is ready for, written by runner k only
Used by:    crew.py (parent: open_heat, all_ready, release), the tasks in the workers (wait)
Ordering:   word 1 is written before word 2 and read after it; an aligned 8-byte store of CPython's
            memoryview is one machine store, and the bench runs where stores are seen in order or
            where the sleep between two polls lies between them
Errors:     CalledOff in the runners when another runner failed before the start
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from pathlib import Path

from bench.machine import scratch_folder
from bench.stats import NS_PER_MS, NS_PER_S

_HEAT, _RELEASE, _RELEASED, _READY = 0, 1, 2, 3
_LEAD_NS = 10 * NS_PER_MS
_SPIN_NS = NS_PER_MS // 2
_POLL_S = 0.0005


class CalledOff(Exception):
    """The heat was called off because another runner could not start."""


class StartLine:
    """A start line for up to `runners` processes; pass `path` to the runners."""

    def __init__(self, path: Path, runners: int, *, owner: bool) -> None:
        self.path = path
        self.runners = runners
        self._owner = owner
        size = 8 * (_READY + runners)
        with open(path, "r+b") as file:
            if owner:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, runners: int) -> StartLine:
        handle, name = tempfile.mkstemp(prefix="shm_engine-bench-line-", dir=scratch_folder())
        os.close(handle)
        return cls(Path(name), runners, owner=True)

    def close(self) -> None:
        """Unmap; the owner removes the file."""
        self._words.release()
        self._map.close()
        if self._owner:
            self.path.unlink(missing_ok=True)

    def open_heat(self) -> None:
        """Parent: begin a new heat; nobody is ready for it yet."""
        self._words[_HEAT] += 1

    def all_ready(self, count: int) -> bool:
        """Parent: tell whether the first `count` runners stand at the line."""
        heat = self._words[_HEAT]
        return all(self._words[_READY + index] == heat for index in range(count))

    def release(self) -> None:
        """Parent: let everybody go, a few milliseconds from now."""
        self._words[_RELEASE] = time.monotonic_ns() + _LEAD_NS
        self._words[_RELEASED] = self._words[_HEAT]

    def call_off(self) -> None:
        """Parent: send everybody home who waits for this heat."""
        self._words[_RELEASE] = 0
        self._words[_RELEASED] = self._words[_HEAT]

    def wait(self, index: int) -> int:
        """Runner: say "ready", wait for the release, return its moment in nanoseconds."""
        words = self._words
        heat = words[_HEAT]
        words[_READY + index] = heat
        while words[_RELEASED] != heat:
            time.sleep(_POLL_S)
        moment = words[_RELEASE]
        if moment == 0:
            raise CalledOff
        rest = moment - time.monotonic_ns() - _SPIN_NS
        if rest > 0:
            time.sleep(rest / NS_PER_S)
        while time.monotonic_ns() < moment:
            pass
        return moment
