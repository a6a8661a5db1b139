"""wait.py - the question how long somebody who sleeps is asleep after what he waits for.

Why:        Agents wait for each other by `EventLog.follow` and `StateCell.wait`. Both sleep in the
            kernel, so the price is that of waking a process. One process writes its clock and
            waits until the other has answered, and a while longer, so that it sleeps again.

                waker     pause | append(clock) .......... | pause | append(clock) ...
                sleeper   asleep       | clock - clock, word + 1 | asleep
Used by:    __main__.py
Invariants: every event and every version is seen, in order, once
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator

import numpy as np

from bench.alone import of_engine
from bench.crew import Crew, Place, Task
from bench.options import Options
from bench.peers import SHM_ENGINE, Host, ShmStore, ShmTicket, attach
from bench.progress import Progress
from bench.results import Answer, engine_is_asked
from bench.rounds import column
from bench.stats import waits
from shm_engine import EventLog, StateCell

FOLLOW, WAIT = "follow", "wait"
CELL = "wait/cell"
_PAUSE_S = 0.001
_POLL_S = 0.0001
_TIMEOUT_S = 30.0


def _followed(store: ShmStore) -> Iterator[tuple[int, int]]:
    for event in EventLog(store.database).follow(store.run, after=-1, timeout=_TIMEOUT_S):
        yield event.sequence, event.payload


def _waited(store: ShmStore) -> Iterator[tuple[int, int]]:
    cells, version = StateCell(store.database), 0
    while True:
        state = cells.wait(store.run, CELL, version, timeout=_TIMEOUT_S)
        if state is None:
            return
        version = state.version
        yield version - 1, state.value


_SLEEPERS = {FOLLOW: _followed, WAIT: _waited}


def _writer(store: ShmStore, kind: str) -> Callable[[int], object]:
    if kind == FOLLOW:
        append, run = EventLog(store.database).append, store.run
        return lambda clock_ns: append(run, "tick", clock_ns)
    cells = StateCell(store.database)
    return lambda clock_ns: cells.set(store.run, CELL, clock_ns)


def sleep(
    place: Place, ticket: ShmTicket, kind: str, count: int, word: Progress
) -> tuple[list[int], bytes]:
    """Worker 0: be woken so often; return what was seen, and how long after it was written."""
    store, words = of_engine(attach(ticket)), word.words
    clock, seen, late_ns = time.monotonic_ns, [], array("Q")
    try:
        place.line.wait(place.index)
        for number, written_ns in _SLEEPERS[kind](store):
            late_ns.append(clock() - written_ns)
            seen.append(number)
            words[0] = len(seen)
            if len(seen) == count:
                break
        return seen, late_ns.tobytes()
    finally:
        store.close()
        word.close()


def wake(place: Place, ticket: ShmTicket, kind: str, count: int, word: Progress) -> int:
    """Worker 1: write so often, each time when the other sleeps again; return the writes."""
    store, words = of_engine(attach(ticket)), word.words
    write, clock = _writer(store, kind), time.monotonic_ns
    try:
        place.line.wait(place.index)
        for number in range(count):
            deadline = time.monotonic() + _TIMEOUT_S
            while words[0] < number:
                if time.monotonic() > deadline:
                    return number
                time.sleep(_POLL_S)
            time.sleep(_PAUSE_S)
            write(clock())
        return count
    finally:
        store.close()
        word.close()


def losses(kind: str, seen: list[int], writes: int) -> list[str]:
    """Return a line if the sleeper did not see every write once and in order."""
    if seen == list(range(writes)):
        return []
    missing = sorted(set(range(writes)) - set(seen))
    return [f"{kind}: {len(seen)} of {writes} writes were seen; missing: {missing[:5]}"]


def ask(name: str, options: Options) -> Answer:
    """Wake a follower and a waiter over and over; report the percentiles of their lateness."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    count = options.count(1_000, 50)
    with Crew(2) as crew:
        for number in range(options.rounds):
            for kind in _SLEEPERS:
                _round(crew, kind, count, number, answer, options)
    for kind in _SLEEPERS:
        for measure in ("p50_us", "p99_us"):
            answer.add(f"{SHM_ENGINE}.{kind}.{measure}", "us", column(answer, measure, kind=kind))
    return answer.finish()


def _round(
    crew: Crew, kind: str, count: int, number: int, answer: Answer, options: Options
) -> None:
    with Host(SHM_ENGINE, options.map_size) as host, Progress.create() as word:
        tasks = [Task(task, (host.ticket, kind, count, word)) for task in (sleep, wake)]
        (seen, late_ns), writes = crew.run(tasks, together=True)
    answer.checks += 1
    answer.losses.extend(losses(kind, seen, writes))
    late = waits([np.frombuffer(late_ns, dtype=np.uint64)])
    answer.rounds.append(
        {
            "round": number,
            "kind": kind,
            "wakes": late.count,
            "p50_us": late.p50_us,
            "p99_us": late.p99_us,
            "worst_us": late.worst_us,
        }
    )
