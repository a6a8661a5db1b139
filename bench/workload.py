"""workload.py - what the workloads have in common: two harnesses, a report, a check.

Why:        A workload is a loop of calls, written out for each peer: a shared helper would cost a
            Python call per operation, which is more than the engine does. What is around the
            loops (deadline, warming, reporting) is written once, here.

                light     loop(first, last): build a key, encode, call; the clock is read once
                          per stretch of calls, a quarter of a millisecond
                checked   call(i): as light, with a new Packer, a check of the answer, and the
                          clock read before and after the store's call
Used by:    put.py, get.py, incr.py, batch.py, scan.py, rmw.py, append.py; alone.py; rounds.py
Invariants: R1 calls made while warming are acknowledged writes as well, and are checked for
            R2 call i of process p writes what (i, p) say, so that the last value of every key
               follows from the number of calls alone (`last_call`)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.peers import FloorStore, LmdbStore, ShmStore, Store

Loop = Callable[[int, int], None]
Call = Callable[[int], int]
Advance = Callable[[int, int, int], tuple[int, int]]
"""(first call, last call, moment to stop at) -> (next call, the moment it stopped)"""

LIGHT = "light"
CHECKED = "checked"
HARNESSES = (LIGHT, CHECKED)

KEYS = 10_000
_NEVER_NS = (1 << 63) - 1


class WrongAnswer(Exception):
    """A peer answered something else than what was written."""


@dataclass
class Lane:
    """One process in one run: who it is, and what it counts and clocks on the way."""

    index: int
    waits_ns: array[int] = field(default_factory=lambda: array("Q"))
    reports: list[Callable[[], dict[str, int]]] = field(default_factory=list)
    """Asked at the end of a run for what the loop counted (retries, refused)."""


@dataclass(frozen=True)
class Limits:
    """When a process stops: after so many seconds, or before so many calls (memory)."""

    seconds: float
    calls: int
    warm_calls: int


@dataclass(frozen=True)
class Tally:
    """What one process reports: `calls` is everything acknowledged, `measured` the timed part."""

    index: int
    calls: int
    measured: int
    begin_ns: int
    end_ns: int
    waits_ns: bytes
    counts: dict[str, int]
    losses: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


class Workload(ABC):
    """One workload; the loops get an open store and the lane of their process."""

    name: str
    title: str
    stretch: int = 256
    warm_calls: int = 4_000
    bytes_per_call: int = 256
    """What a call takes from the arena at most, when every version is kept."""

    def __init__(self, keys: int = KEYS) -> None:
        self.keys = keys

    @abstractmethod
    def fill(self, store: Store, processes: int) -> None:
        """Write what must be there before the first call."""

    @abstractmethod
    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        """Return one line for each acknowledged write that the store does not show."""

    @abstractmethod
    def shm_light(self, store: ShmStore, lane: Lane) -> Loop: ...

    @abstractmethod
    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop: ...

    @abstractmethod
    def floor_light(self, store: FloorStore, lane: Lane) -> Loop: ...

    @abstractmethod
    def shm_checked(self, store: ShmStore, lane: Lane) -> Call: ...

    @abstractmethod
    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call: ...

    @abstractmethod
    def floor_checked(self, store: FloorStore, lane: Lane) -> Call: ...

    def light(self, store: Store, lane: Lane) -> Loop:
        match store:
            case ShmStore():
                return self.shm_light(store, lane)
            case LmdbStore():
                return self.lmdb_light(store, lane)
            case FloorStore():
                return self.floor_light(store, lane)

    def checked(self, store: Store, lane: Lane) -> Call:
        match store:
            case ShmStore():
                return self.shm_checked(store, lane)
            case LmdbStore():
                return self.lmdb_checked(store, lane)
            case FloorStore():
                return self.floor_checked(store, lane)


def last_call(key: int, calls: int, keys: int) -> int | None:
    """Return the last i < calls with i % keys == key, or None where there is none."""
    if calls <= key:
        return None
    return calls - 1 - (calls - 1 - key) % keys


def drive(
    workload: Workload,
    harness: str,
    store: Store,
    lane: Lane,
    limits: Limits,
    wait: Callable[[], int],
) -> Tally:
    """Warm up, wait for the release, run until the limits, report.

    `wait` returns the moment of release; the run ends `limits.seconds` after it.
    """
    run = _run_light if harness == LIGHT else _run_checked
    warm = min(limits.warm_calls, limits.calls // 2)
    advance = run(workload, store, lane)
    warmed, _ = advance(0, warm, _NEVER_NS)
    del lane.waits_ns[:]
    begin = wait()
    calls, end = advance(warmed, limits.calls, begin + int(limits.seconds * 1e9))
    if calls == warmed:
        raise WrongAnswer(f"no room for a measured call: {limits.calls} calls are allowed in all")
    return Tally(
        index=lane.index,
        calls=calls,
        measured=calls - warmed,
        begin_ns=begin,
        end_ns=end,
        waits_ns=lane.waits_ns.tobytes(),
        counts={name: n for report in lane.reports for name, n in report().items()},
    )


def _run_light(workload: Workload, store: Store, lane: Lane) -> Advance:
    loop = workload.light(store, lane)
    stretch = workload.stretch
    clock = time.monotonic_ns

    def advance(call: int, last: int, until_ns: int) -> tuple[int, int]:
        end = 0
        while end < until_ns and call < last:
            after = min(call + stretch, last)
            loop(call, after)
            call = after
            end = clock()
        return call, end

    return advance


def _run_checked(workload: Workload, store: Store, lane: Lane) -> Advance:
    clocked = workload.checked(store, lane)

    def advance(call: int, last: int, until_ns: int) -> tuple[int, int]:
        end = 0
        while end < until_ns and call < last:
            end = clocked(call)
            call += 1
        return call, end

    return advance
