"""queries.py - the question whether a query costs its answer, however much there is.

Why:        An index that is walked further than the answer shows only in a large store. The stores
            stand side by side with 1 k, 100 k and 1 M records; each question finds ten in each
            (shelves.py), and the time for it must not grow. What it may grow by is told apart:

                scattered   another ten each time: their memory is in no cache in a large store
                same        the same ten again and again: what the index itself costs

            The worker has walked through the stores before, as an agent that runs for long has
            been everywhere: the page faults of the first touch are in neither figure.
Used by:    __main__.py
Cost:       up to 1.5 GiB of /dev/shm, and a minute and a half for filling
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.alone import of_engine
from bench.crew import Crew, Place, Task
from bench.options import Options
from bench.peers import SHM_ENGINE, Host, Ticket, attach
from bench.results import Answer, engine_is_asked
from bench.shelves import SHELVES, TEN, Query, Window, losses
from bench.stats import NS_PER_US, ratios
from bench.workload import WrongAnswer

_STRIDE = 611_953
"""A prime: k * stride % count comes to every ten once before it comes back."""
SCATTERED, SAME = "scattered", "same"
_WARM = 10
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Side:
    """One store: how many records it has, and its windows."""

    records: int
    ticket: Ticket
    windows: list[Window]

    @property
    def size(self) -> str:
        return f"{self.records // 1000}k"


Found = dict[tuple[str, str], float]
"""The microseconds of each query, asked in each way."""


def ask_in_turns(
    place: Place, kind: str, sides: Sequence[Side], calls: int, rounds: int
) -> list[list[Found]]:
    """Worker: touch all stores, then ask each in every round; return round by round."""
    shelf = SHELVES[kind]()
    stores = [of_engine(attach(side.ticket)) for side in sides]
    try:
        asked = []
        for store, side in zip(stores, sides, strict=True):
            shelf.touch(store, side.records)
            asked.append(shelf.queries(store, side.records, side.windows))
        return [
            [_time_all(queries, calls, number * calls) for queries in asked]
            for number in range(rounds)
        ]
    finally:
        for store in stores:
            store.close()


def _time_all(queries: Sequence[Query], calls: int, first: int) -> Found:
    return {
        (query.name, way): time_query(query, calls, first * stride, stride)
        for query in queries
        for way, stride in ((SAME, 0), (SCATTERED, _STRIDE))
    }


def time_query(query: Query, calls: int, first: int, stride: int) -> float:
    """Ask so often, after a tenth of it to warm; return the microseconds of one query."""
    ask, count = query.ask, query.count
    for i in range(calls // _WARM):
        ask((first - (i + 1) * stride) % count)
    asked = [(first + i * stride) % count for i in range(calls)]
    found = 0
    begin = time.monotonic_ns()
    for k in asked:
        found += len(ask(k))
    took_ns = time.monotonic_ns() - begin
    if found != TEN * calls:
        raise WrongAnswer(f"{calls} queries by {query.name} found {found} records")
    return took_ns / calls / NS_PER_US


def ask(name: str, options: Options) -> Answer:
    """Fill a shelf of each kind in three sizes, ask in turns, compare round by round."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    sizes = (1_000, 10_000) if options.short else (1_000, 100_000, 1_000_000)
    with Crew(1) as crew:
        for kind in SHELVES:
            _measure(crew, answer, kind, sizes, options)
    answer.notes.append("where scattered grows more than same, the difference is cache misses")
    return answer.finish()


def _measure(crew: Crew, answer: Answer, kind: str, sizes: Sequence[int], options: Options) -> None:
    with ExitStack() as stack:
        sides, stores = [], []
        for records in sizes:
            host = stack.enter_context(Host(SHM_ENGINE, options.map_size))
            stores.append(of_engine(host.store))
            windows = SHELVES[kind]().fill(stores[-1], records)
            sides.append(Side(records, host.ticket, windows))
        calls = options.count(2_000, 100)
        task = Task(ask_in_turns, (kind, sides, calls, options.rounds))
        [found] = crew.run([task], timeout_s=_TIMEOUT_S)
        for store, side in zip(stores, sides, strict=True):
            queries = SHELVES[kind]().queries(store, side.records, side.windows)
            answer.checks += 1
            answer.losses.extend(f"{kind}, {side.size}, {loss}" for loss in losses(queries))
    for number, of_round in enumerate(found):
        for side, took_us in zip(sides, of_round, strict=True):
            answer.rounds.append(
                {
                    "round": number,
                    "kind": kind,
                    "records": side.records,
                    "us": {f"{query}, {way}": us for (query, way), us in took_us.items()},
                }
            )
    _figures(answer, kind, sides, found)


def _figures(
    answer: Answer, kind: str, sides: Sequence[Side], found: Sequence[Sequence[Found]]
) -> None:
    for query, way in found[0][0]:
        columns = [
            [of_round[place][query, way] for of_round in found] for place in range(len(sides))
        ]
        for side, took_us in zip(sides, columns, strict=True):
            answer.add(f"{kind}.{query}.{way}.{side.size}_us", "us", took_us)
        growth = ratios(columns[-1], columns[0])
        answer.add(f"{kind}.{query}.{way}.growth", f"x {sides[0].size}", growth)
