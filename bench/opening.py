"""opening.py - the question how long it takes until a database can be used.

Why:        An agent pool starts many processes; what each of them waits for is counted here.

                ephemeral   Database.ephemeral() in this process
                attach      a pickled handle in another process, up to its first answer
                start       Database.open(folder) with no coordinator there: one is started
                join        Database.open(folder) in another process, up to its first answer
                join_full   the same when the store holds many keys: it must not take longer
Used by:    __main__.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.crew import Crew, Place, Task
from bench.machine import scratch_folder
from bench.options import Options
from bench.peers import SHM_ENGINE, Host, ShmTicket, attach, make_value
from bench.results import Answer
from bench.stats import NS_PER_MS
from shm_engine import Database, Durability, KVStore, RunId

_KEY = "opening/first"

Opened = TypeVar("Opened")


def timed(open_it: Callable[[], Opened]) -> tuple[Opened, float]:
    """Return what was opened, and the milliseconds that it took."""
    begin = time.monotonic_ns()
    opened = open_it()
    return opened, (time.monotonic_ns() - begin) / NS_PER_MS


def join(place: Place, path: Path, run: RunId) -> tuple[float, object]:
    """Worker: open the folder as a later process does, read one key, leave; time and value."""

    def open_it() -> tuple[Database, object]:
        database = Database.open(path, durability=Durability.in_memory())
        return database, KVStore(database).get(run, _KEY)

    (database, value), took_ms = timed(open_it)
    database.close()
    return took_ms, value


def first_answer(place: Place, sent_ns: int, ticket: ShmTicket) -> tuple[float, object]:
    """Worker: use a handle that came through a pipe; the clock started before it was pickled."""
    store = attach(ticket)
    value = store.read(_KEY)
    took_ms = (time.monotonic_ns() - sent_ns) / NS_PER_MS
    store.close()
    return took_ms, value


class _Notes:
    """Collects what was timed, and whether the key that was written first was found."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.found: dict[str, list[float]] = {}

    def time(self, kind: str, took_ms: float) -> None:
        self.found.setdefault(kind, []).append(took_ms)
        self.answer.rounds.append({"kind": kind, "ms": took_ms})

    def check(self, kind: str, took_ms: float, value: object) -> None:
        self.time(kind, took_ms)
        self.answer.checks += 1
        if value != make_value(0):
            self.answer.losses.append(f"{kind}: {_KEY} held {value!r}")


def ask(name: str, options: Options) -> Answer:
    """Open, attach, start and join, over and over, and report the milliseconds."""
    answer = Answer(name)
    if SHM_ENGINE not in options.peers:
        answer.notes.append("only shm_engine is opened")
        return answer
    notes = _Notes(answer)
    keys = options.count(1_000_000, 20_000)
    with Crew(1) as crew:
        for _ in range(options.count(20, 3)):
            database, took_ms = timed(lambda: Database.ephemeral(map_size=options.map_size))
            database.close()
            notes.time("ephemeral_ms", took_ms)
        _attach(crew, options, notes)
        for _ in range(options.count(10, 2)):
            _start_and_join(crew, 0, options.count(3, 1), options, notes)
        _start_and_join(crew, keys, options.count(10, 2), options, notes)
    for kind, samples in notes.found.items():
        answer.add(kind, "ms", samples)
    return answer.finish()


def _attach(crew: Crew, options: Options, notes: _Notes) -> None:
    with Host(SHM_ENGINE, options.map_size) as host:
        host.store.write(_KEY, make_value(0))
        crew.run([Task(first_answer, (time.monotonic_ns(), host.ticket))])  # imports the engine
        for _ in range(options.count(20, 3)):
            task = Task(first_answer, (time.monotonic_ns(), host.ticket))
            notes.check("attach_ms", *crew.run([task])[0])


def _start_and_join(crew: Crew, keys: int, joins: int, options: Options, notes: _Notes) -> None:
    """Start a coordinator on a fresh folder, join it from the crew, leave."""
    with tempfile.TemporaryDirectory(prefix="shm_engine-bench-open-", dir=scratch_folder()) as top:
        path = Path(top) / "store"
        database, took_ms = timed(
            lambda: Database.open(
                path, durability=Durability.in_memory(), map_size=options.map_size
            )
        )
        with database:
            notes.time("start_ms", took_ms)
            run, store = database.begin_run(), KVStore(database)
            store.put(run, _KEY, make_value(0))
            for first in range(0, keys, 1000):
                store.mset(run, {f"full/{first + i}": make_value(0) for i in range(1000)})
            kind = "join_full_ms" if keys else "join_ms"
            for _ in range(joins):
                notes.check(kind, *crew.run([Task(join, (path, run))])[0])
