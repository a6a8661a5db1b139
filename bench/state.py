"""state.py - the question what a state cell costs beyond a key, and when all want the same one.

Why:        A cell counts its writes and compares before it writes, inside the commit, so `cas`
            should cost about a put; a `transition` reads and calls back as well. Both change a
            cell that nobody else wants, beside a put of the same map under one key. With more
            processes all add to one cell: there somebody always comes too late and tries again.

                put          put(run, key, map)                       one key for each process
                cas          cas(run, cell, version, map)             one cell for each process
                transition   transition(run, cell, seq of the map + 1)      the same
                shared       transition, all processes on one cell; retries are counted
Used by:    __main__.py
Invariants: a cell's version is 1 + its acknowledged writes, and so is the number that it holds
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgpack

from bench.alone import EngineWorkload, Entry, add_ratio, measure, of_engine
from bench.options import Options
from bench.peers import SEQ_FIRST, ShmStore, Store, Value, make_value
from bench.results import Answer, engine_is_asked
from bench.workload import Call, Lane, Loop, Tally, WrongAnswer
from shm_engine import State, StateCell
from shm_engine.errors import VersionMismatch

SHARED = "state/shared"


def name_of(owner: int) -> str:
    return f"state/{owner}"


def value_of(owner: int, calls: int) -> Value:
    """Return what a key or cell holds after so many calls of its owner."""
    value = make_value(owner)
    value["seq"] = SEQ_FIRST - 1 + calls
    return value


class PutOne(EngineWorkload):
    name = "put"
    title = "put of one key"

    def fill(self, store: Store, processes: int) -> None:
        store.fill((name_of(owner), value_of(owner, 0)) for owner in range(processes))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        for tally in tallies:
            expected = value_of(tally.index, tally.calls)
            actual = store.read(name_of(tally.index))
            if actual != expected:
                found.append(f"{name_of(tally.index)}: {actual!r}, wrote {expected!r}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        put, run, name = store.kv.put, store.run, name_of(lane.index)
        value = make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                put(run, name, value)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        put, run, name = store.kv.put, store.run, name_of(lane.index)
        value, packer = make_value(lane.index), msgpack.Packer
        clock, note = time.monotonic_ns, lane.waits_ns.append
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            packer()
            value["seq"] = SEQ_FIRST + i
            begin = clock()
            version = put(run, name, value)
            end = clock()
            if version <= newest:
                raise WrongAnswer(f"put gave version {version} after {newest}")
            newest = version
            note(end - begin)
            return end

        return call


class Cells(EngineWorkload):
    """What the workloads on cells have in common: they start at version 1, and are counted."""

    def fill(self, store: Store, processes: int) -> None:
        engine = of_engine(store)
        for owner in range(processes):
            StateCell(engine.database).init(engine.run, name_of(owner), value_of(owner, 0))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        return [
            loss
            for tally in tallies
            for loss in cell_losses(store, name_of(tally.index), tally.index, tally.calls)
        ]


def cell_losses(store: Store, name: str, owner: int, writes: int) -> list[str]:
    """Return what is wrong with a cell that was written so often."""
    engine = of_engine(store)
    state, expected = StateCell(engine.database).read(engine.run, name), value_of(owner, writes)
    if state is None:
        return [f"{name} is not there"]
    found = []
    if state.version != writes + 1:
        found.append(f"{name} is at version {state.version} after {writes} acknowledged writes")
    if state.value != expected:
        found.append(f"{name}: {state.value!r}, wrote {expected!r}")
    return found


class Cas(Cells):
    name = "cas"
    title = "cas of a cell of one's own"

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        cas, run, name = StateCell(store.database).cas, store.run, name_of(lane.index)
        value, version = make_value(lane.index), 1

        def loop(first: int, last: int) -> None:
            nonlocal version
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                version = cas(run, name, version, value)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        cas, run, name = StateCell(store.database).cas, store.run, name_of(lane.index)
        value, packer, version = make_value(lane.index), msgpack.Packer, 1
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            nonlocal version
            packer()
            value["seq"] = SEQ_FIRST + i
            begin = clock()
            found = cas(run, name, version, value)
            end = clock()
            if found != version + 1:
                raise WrongAnswer(f"cas gave version {found} after {version}")
            version = found
            note(end - begin)
            return end

        return call


def add_one(state: State) -> tuple[Value, None]:
    """Return the map with its number one higher."""
    value: Value = state.value
    value["seq"] = state.value["seq"] + 1
    return value, None


class Transition(Cells):
    name = "transition"
    title = "transition of a cell of one's own"

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        transition, run = StateCell(store.database).transition, store.run
        name = name_of(lane.index)

        def loop(first: int, last: int) -> None:
            for _ in range(first, last):
                transition(run, name, add_one)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        transition, run = StateCell(store.database).transition, store.run
        name, packer, version = name_of(lane.index), msgpack.Packer, 1
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            nonlocal version
            packer()
            begin = clock()
            _, found = transition(run, name, add_one)
            end = clock()
            if found != version + 1:
                raise WrongAnswer(f"transition gave version {found} after {version}")
            version = found
            note(end - begin)
            return end

        return call


class Shared(EngineWorkload):
    name = "shared"
    title = "transition of one cell by all"

    def fill(self, store: Store, processes: int) -> None:
        engine = of_engine(store)
        StateCell(engine.database).init(engine.run, SHARED, value_of(0, 0))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        acknowledged = sum(tally.calls - tally.counts["refused"] for tally in tallies)
        return cell_losses(store, SHARED, 0, acknowledged)

    def _transition(self, store: ShmStore, lane: Lane) -> Callable[[], int]:
        """Return a transition without arguments; it returns the version, 0 if it was refused."""
        transition, run = StateCell(store.database).transition, store.run
        calls = tries = refused = 0

        def add(state: State) -> tuple[Value, None]:
            nonlocal tries
            tries += 1
            return add_one(state)

        def call() -> int:
            nonlocal calls, refused
            calls += 1
            try:
                return transition(run, SHARED, add)[1]
            except VersionMismatch:
                refused += 1
                return 0

        lane.reports.append(lambda: {"retries": tries - calls, "refused": refused})
        return call

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        transition = self._transition(store, lane)

        def loop(first: int, last: int) -> None:
            for _ in range(first, last):
                transition()

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        transition, packer, newest = self._transition(store, lane), msgpack.Packer, 1
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            nonlocal newest
            packer()
            begin = clock()
            version = transition()
            end = clock()
            if version and version <= newest:
                raise WrongAnswer(f"transition gave version {version} after {newest}")
            newest = version or newest
            note(end - begin)
            return end

        return call


def ask(name: str, options: Options) -> Answer:
    """Measure put, cas and transition beside each other, then transitions of one cell by all."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    entries: list[Entry] = [(PutOne(), 1), (Cas(), 1), (Transition(), 1)]
    entries += [(Shared(), processes) for processes in options.processes if processes > 1]
    measure(answer, entries, options)
    for harness in options.harnesses:
        for kind in ("cas", "transition"):
            add_ratio(answer, harness, kind, "put")
    return answer.finish()
