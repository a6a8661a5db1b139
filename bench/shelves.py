"""shelves.py - the shelves: stores with many records, of which every question finds ten.

Why:        Whether a query costs its answer, and not the store, shows when the answer stays the
            same while the store grows. So every type, tag and parent has ten records, spread over
            the whole time of the filling, and ten at a time lie alone in their milliseconds. There
            are as many such tens as fit: asked one after the other they are not in the caches.

                record n of N     group n % (N / 10): its type, its tag, its parent
                window            10 records written between two ticks of the milliseconds
Used by:    queries.py: the parent fills, the worker asks
Invariants: every record carries its number n, so that an answer can be compared with what was
            written (`losses`)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers import BATCH, ShmStore
from bench.stats import NS_PER_MS
from shm_engine import EventLog, RunId, keys
from shm_engine._core import BYTES

TEN = 10
_WINDOWS_MAX = 50
_CHECKED = 200
ENDS = ("Completed", "Failed", "Cancelled", "Paused", "Archived")
"""The statuses that ten runs each have; all others are active."""


@dataclass(frozen=True)
class Window:
    """Ten records, from number `first` on, alone in start_ms <= time < end_ms."""

    start_ms: int
    end_ms: int
    first: int


@dataclass(frozen=True)
class Query:
    """One kind of question: `ask(k)` for k below `count` must find the numbers `wanted(k)`."""

    name: str
    count: int
    ask: Callable[[int], Sequence[Any]]
    number: Callable[[Any], int]
    wanted: Callable[[int], list[int]]


def losses(queries: Iterable[Query]) -> list[str]:
    """Ask up to 200 questions of each kind; return a line for each answer that is not the ten."""
    found = []
    for query in queries:
        for k in range(0, query.count, max(1, query.count // _CHECKED)):
            numbers = sorted(query.number(each) for each in query.ask(k))
            if numbers != query.wanted(k):
                found.append(f"{query.name} {k}: found {numbers}, wrote {query.wanted(k)}")
    return found


def next_millisecond() -> int:
    """Wait until the clock of the records has ticked; return the millisecond that has begun."""
    before = time.time_ns() // NS_PER_MS
    while (now := time.time_ns() // NS_PER_MS) <= before:
        time.sleep(0.0001)
    return now


def fill_in_windows(records: int, write: Callable[[range], None]) -> list[Window]:
    """Write the records 0 to `records` - 1 in their order, in blocks and in windows."""
    count = min(_WINDOWS_MAX, records // 100)
    apart = records // count
    windows = []
    for first in range(0, count * apart, apart):
        alone = first + apart - TEN
        _in_blocks(range(first, alone), write)
        start_ms = next_millisecond()
        write(range(alone, alone + TEN))
        windows.append(Window(start_ms, next_millisecond(), alone))
    _in_blocks(range(count * apart, records), write)
    return windows


def _in_blocks(numbers: range, write: Callable[[range], None]) -> None:
    for first in range(0, len(numbers), BATCH):
        write(numbers[first : first + BATCH])


def _walk(store: ShmStore, run: RunId, tag: int) -> None:
    """Read everything that stands behind a tag, bookkeeping included."""
    engine, after = store.database.engine, None
    pin = engine.open_pin()
    try:
        while True:
            names, _ = engine.scan(run, tag, b"", pin, after, BATCH, BYTES)
            if len(names) < BATCH:
                return
            after = names[-1]
    finally:
        pin.close()


def _group(k: int, groups: int) -> list[int]:
    return [k + groups * place for place in range(TEN)]


class Events:
    """Events of one run: ten of each type."""

    name = "events"

    def fill(self, store: ShmStore, records: int) -> list[Window]:
        groups = records // TEN
        log, run = EventLog(store.database), store.run

        def write(numbers: range) -> None:
            log.append_batch(run, [(f"kind-{n % groups}", n) for n in numbers])

        return fill_in_windows(groups * TEN, write)

    def touch(self, store: ShmStore, records: int) -> None:
        _walk(store, store.run, keys.TAG_EVENT)

    def queries(self, store: ShmStore, records: int, windows: Sequence[Window]) -> list[Query]:
        groups, run, log = records // TEN, store.run, EventLog(store.database)

        def by_type(k: int) -> Sequence[Any]:
            return log.read_by_type(run, f"kind-{k}")

        def by_time(k: int) -> Sequence[Any]:
            return log.read_by_time(run, windows[k].start_ms, windows[k].end_ms)

        return [
            Query("type", groups, by_type, _payload, lambda k: _group(k, groups)),
            Query("time", len(windows), by_time, _payload, lambda k: _window(windows[k])),
        ]


def _payload(event: Any) -> int:
    number: int = event.payload
    return number


def _metadata(record: Any) -> int:
    number: int = record.metadata
    return number


def _window(window: Window) -> list[int]:
    return list(range(window.first, window.first + TEN))


class Traces:
    """Traces of one run: a parent for each group, and ten below it with a type and a tag."""

    name = "traces"

    def fill(self, store: ShmStore, records: int) -> list[Window]:
        from shm_engine import Custom, Thought, TraceOptions, TraceStore

        groups = records // (TEN + 1)
        record_many, run = TraceStore(store.database).record_many, store.run

        def write_parents(numbers: range) -> None:
            record_many(run, [(Thought("all"), TraceOptions(id=f"parent-{g}")) for g in numbers])

        def write(numbers: range) -> None:
            record_many(
                run,
                [
                    (
                        Custom(f"kind-{n % groups}"),
                        TraceOptions(None, f"parent-{n % groups}", [f"tag-{n % groups}"], n),
                    )
                    for n in numbers
                ],
            )

        _in_blocks(range(groups), write_parents)
        return fill_in_windows(groups * TEN, write)

    def touch(self, store: ShmStore, records: int) -> None:
        _walk(store, store.run, keys.TAG_TRACE)

    def queries(self, store: ShmStore, records: int, windows: Sequence[Window]) -> list[Query]:
        from shm_engine import TraceStore

        groups, run, traces = records // (TEN + 1), store.run, TraceStore(store.database)

        def by_time(k: int) -> Sequence[Any]:
            found: Sequence[Any] = traces.query_by_time(run, windows[k].start_ms, windows[k].end_ms)
            return found

        def wanted(k: int) -> list[int]:
            return _group(k, groups)

        asks: dict[str, Callable[[int], Sequence[Any]]] = {
            "type": lambda k: traces.query_by_type(run, f"kind-{k}"),
            "tag": lambda k: traces.query_by_tag(run, f"tag-{k}"),
            "parent": lambda k: traces.get_children(run, f"parent-{k}"),
        }
        return [
            *(Query(name, groups, ask, _metadata, wanted) for name, ask in asks.items()),
            Query("time", len(windows), by_time, _metadata, lambda k: _window(windows[k])),
        ]


def run_id(number: int) -> RunId:
    return RunId.from_bytes(b"queries/" + number.to_bytes(8, "big"))


class Runs:
    """Runs of one database: ten with each tag; ten of each status that is not active."""

    name = "runs"

    def fill(self, store: ShmStore, records: int) -> list[Window]:
        from shm_engine import RunIndex

        groups, runs = records // TEN, RunIndex(store.database)
        for n in range(groups * TEN):
            runs.create_run_with_options(run_id(n), None, [f"tag-{n % groups}"], n)
        ends = {
            "Completed": runs.complete_run,
            "Failed": lambda run: runs.fail_run(run, "no answer"),
            "Cancelled": runs.cancel_run,
            "Paused": runs.pause_run,
            "Archived": self._archive(runs),
        }
        for k, status in enumerate(ENDS):
            for number in ended(k, groups * TEN):
                ends[status](run_id(number))
        return []

    @staticmethod
    def _archive(runs: Any) -> Callable[[RunId], None]:
        def archive(run: RunId) -> None:
            runs.complete_run(run)
            runs.archive_run(run)

        return archive

    def touch(self, store: ShmStore, records: int) -> None:
        _walk(store, RunId.DEFAULT, keys.TAG_RUN)
        for number in range(records):
            store.database.engine.get_run_record(run_id(number))

    def queries(self, store: ShmStore, records: int, windows: Sequence[Window]) -> list[Query]:
        from shm_engine import RunIndex

        groups, runs = records // TEN, RunIndex(store.database)
        return [
            Query(
                "status",
                len(ENDS),
                lambda k: runs.query_by_status(ENDS[k]),
                _metadata,
                lambda k: ended(k, groups * TEN),
            ),
            Query(
                "tag",
                groups,
                lambda k: runs.query_by_tag(f"tag-{k}"),
                _metadata,
                lambda k: _group(k, groups),
            ),
        ]


def ended(k: int, records: int) -> list[int]:
    """Return the ten numbers of the runs that get the k-th status, spread over all."""
    apart = records // (TEN * len(ENDS))
    return [(place * len(ENDS) + k) * apart for place in range(TEN)]


Shelf = Events | Traces | Runs
SHELVES: dict[str, type[Shelf]] = {kind.name: kind for kind in (Events, Traces, Runs)}
