"""erase.py - the question what others notice while a run with a million keys is erased.

Why:        Deleting a run is one commit, but its memory is given back key by key. That must go in
            steps that are short enough for somebody who writes meanwhile. One process erases; the
            other puts into another run all the time and notes every wait. Afterwards it goes on
            for as long again, undisturbed, which tells what the machine itself does to it.

                eraser   fill 1,000,000 keys       | delete_run |           |
                writer             put put put put | put ...    | put ...   | stop
                                                   |<- disturbed->|<- quiet ->|
Used by:    __main__.py
Invariants: R1 afterwards nothing of the run is left; R2 every put of the writer is there
Cost:       the run's memory, about 250 MiB of /dev/shm. How long a single step is cannot be seen
            from Python; the writer's longest wait bounds it
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

import numpy as np

from bench.alone import of_engine
from bench.crew import Crew, Place, Task
from bench.options import Options
from bench.peers import BATCH, SEQ_FIRST, SHM_ENGINE, Host, ShmStore, ShmTicket, attach, make_value
from bench.progress import Progress
from bench.results import Answer, engine_is_asked
from bench.stats import NS_PER_MS, NS_PER_US, percentile
from shm_engine import KVStore, RetentionPolicy, RunId

_KEYS = 1_000
_AHEAD_S = 0.02
_WORKING, _STOP = 0, 1
_TIMEOUT_S = 120.0
_UNITS = {
    "total_ms": "ms",
    "key_ns": "ns for each key",
    "worst_ms": "ms",
    "quiet_worst_ms": "ms",
    "p99_us": "us",
    "quiet_p99_us": "us",
}


@dataclass(frozen=True)
class Waits:
    """What the writer saw: its puts in all, and when each one ended and how long it took."""

    writes: int
    ends_ns: bytes
    waits_ns: bytes

    def between(self, begin_ns: int, end_ns: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Return the waits, sorted, of the puts that overlap with this time."""
        ends = np.frombuffer(self.ends_ns, dtype=np.uint64)
        waits = np.frombuffer(self.waits_ns, dtype=np.uint64)
        found = waits[(ends >= begin_ns) & (ends - waits <= end_ns)]
        found.sort()
        return found


@dataclass(frozen=True)
class Erasure:
    begin_ns: int
    end_ns: int
    stop_ns: int


def write_on(place: Place, ticket: ShmTicket, word: Progress) -> Waits:
    """Worker 0: put without a pause until the word says stop."""
    store = of_engine(attach(ticket))
    put, run, value = store.kv.put, store.run, make_value(0)
    ends, waits, clock, words = array("Q"), array("Q"), time.monotonic_ns, word.words
    writes = 0
    try:
        place.line.wait(place.index)
        while words[0] != _STOP:
            value["seq"] = SEQ_FIRST + writes
            begin = clock()
            put(run, f"writer/{writes % _KEYS}", value)
            end = clock()
            ends.append(end)
            waits.append(end - begin)
            writes += 1
        return Waits(writes, ends.tobytes(), waits.tobytes())
    finally:
        store.close()
        word.close()


def erase(place: Place, ticket: ShmTicket, doomed: RunId, word: Progress) -> Erasure:
    """Worker 1: delete the run while the other writes; wait as long again; say stop."""
    from shm_engine import RunIndex

    store = of_engine(attach(ticket))
    clock = time.monotonic_ns
    try:
        runs = RunIndex(store.database)
        place.line.wait(place.index)
        time.sleep(_AHEAD_S)
        begin = clock()
        runs.delete_run(doomed)
        end = clock()
        time.sleep((end - begin) / 1e9)
        return Erasure(begin, end, clock())
    finally:
        word.words[0] = _STOP
        store.close()
        word.close()


def fill(store: ShmStore, run: RunId, keys: int) -> None:
    value = make_value(0)
    for first in range(0, keys, BATCH):
        numbers = range(first, min(first + BATCH, keys))
        store.kv.mset(run, {f"doomed/{number}": value for number in numbers})


def losses(store: ShmStore, doomed: RunId, writes: int) -> list[str]:
    """Return what is left of the run, and which puts of the writer are not there."""
    left = len(KVStore(store.database).list(doomed))
    found = [f"{left} keys of the run are left"] if left else []
    for i in range(max(0, writes - _KEYS), writes):
        value = store.read(f"writer/{i % _KEYS}")
        seq = value["seq"] - SEQ_FIRST if isinstance(value, dict) else None
        if seq != i:
            found.append(f"writer/{i % _KEYS} holds {seq}, {i} was acknowledged")
    return found


def ask(name: str, options: Options) -> Answer:
    """Erase a run in every round; report how long it took and what the writer waited."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    keys = options.count(1_000_000, 20_000)
    found: dict[str, list[float]] = {}
    with Crew(2) as crew:
        for number in range(options.rounds):
            record = _round(crew, keys, options, answer)
            answer.rounds.append({"round": number, "keys": keys, **record})
            for key, sample in record.items():
                found.setdefault(key, []).append(sample)
    for key, samples in found.items():
        answer.add(f"{SHM_ENGINE}.{key}", _UNITS[key], samples)
    return answer.finish()


def _round(crew: Crew, keys: int, options: Options, answer: Answer) -> dict[str, float]:
    with Host(SHM_ENGINE, options.map_size) as host, Progress.create() as word:
        store = of_engine(host.store)
        store.database.set_retention(store.run, RetentionPolicy.KeepLast(1))
        doomed = store.database.begin_run()
        fill(store, doomed, keys)
        tasks = [
            Task(write_on, (host.ticket, word)),
            Task(erase, (host.ticket, doomed, word)),
        ]
        waits, times = crew.run(tasks, together=True, timeout_s=_TIMEOUT_S)
        answer.checks += 1
        answer.losses.extend(losses(store, doomed, waits.writes))
    disturbed = waits.between(times.begin_ns, times.end_ns)
    quiet = waits.between(times.end_ns, times.stop_ns)
    took_ns = times.end_ns - times.begin_ns
    return {
        "total_ms": took_ns / NS_PER_MS,
        "key_ns": took_ns / keys,
        "worst_ms": float(disturbed[-1]) / NS_PER_MS,
        "quiet_worst_ms": float(quiet[-1]) / NS_PER_MS,
        "p99_us": percentile(disturbed, 0.99) / NS_PER_US,
        "quiet_p99_us": percentile(quiet, 0.99) / NS_PER_US,
    }
