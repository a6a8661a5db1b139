"""scan.py - the scan workload: each call reads 1,000 keys in order, with their values.

Why:        What ordered reading costs: one snapshot, one range, a list of (key, value) with the
            key as a string and the value decoded, which is what every peer is asked to return.
Used by:    rounds.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

import msgpack

from bench.batch import SUFFIXES
from bench.peers import (
    BATCH,
    SEQ_FIRST,
    FloorStore,
    LmdbStore,
    ShmStore,
    Store,
    Value,
    make_value,
)
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer


def group_of(group: int) -> str:
    return f"scan/{group}/"


class Scan(Workload):
    name = "scan"
    title = f"scan of {BATCH} with values"
    stretch = 1
    warm_calls = 10
    bytes_per_call = 0

    def __init__(self, keys: int = 10 * BATCH) -> None:
        super().__init__(keys)
        self.groups = max(1, keys // BATCH)

    def fill(self, store: Store, processes: int) -> None:
        store.fill(self._initial())

    def _initial(self) -> Iterator[tuple[str, Value]]:
        for group in range(self.groups):
            for number, suffix in enumerate(SUFFIXES):
                value = make_value(group)
                value["seq"] = SEQ_FIRST + number
                yield group_of(group) + suffix, value

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        for key, expected in self._initial():
            actual = store.read(key)
            if actual != expected:
                found.append(f"{key}: {actual!r}, wrote {expected!r}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        scan, run, groups, start = store.kv.scan, store.run, self.groups, lane.index

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                scan(run, group_of(i % groups), BATCH)

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin, unpack, groups, start = store.begin, msgpack.unpackb, self.groups, lane.index

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                with begin() as txn:
                    cursor = txn.cursor()
                    cursor.set_range(group_of(i % groups).encode())
                    [(key.decode(), unpack(data)) for key, data in islice(cursor, BATCH)]

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, unpack, groups, start = store.data, msgpack.unpackb, self.groups, lane.index
        ordered = store.ordered

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                [(key, unpack(held[key])) for key in ordered(group_of(i % groups), BATCH)]

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        scan, run, groups, start = store.kv.scan, store.run, self.groups, lane.index
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            prefix = group_of((i + start) % groups)
            begin = clock()
            found = scan(run, prefix, BATCH)
            end = clock()
            check(prefix, found)
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn, groups, start = store.begin, self.groups, lane.index
        unpack, clock, note = msgpack.unpackb, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            prefix = group_of((i + start) % groups)
            begin = clock()
            with begin_txn() as txn:
                cursor = txn.cursor()
                cursor.set_range(prefix.encode())
                found = [(key.decode(), unpack(data)) for key, data in islice(cursor, BATCH)]
            end = clock()
            check(prefix, found)
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, ordered, groups, start = store.data, store.ordered, self.groups, lane.index
        unpack, clock, note = msgpack.unpackb, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            prefix = group_of((i + start) % groups)
            begin = clock()
            found = [(key, unpack(held[key])) for key in ordered(prefix, BATCH)]
            end = clock()
            check(prefix, found)
            note(end - begin)
            return end

        return call


def check(prefix: str, found: Sequence[tuple[str, object]]) -> None:
    """Raise WrongAnswer unless the group came whole: its count, its ends, its last value."""
    if len(found) != BATCH:
        raise WrongAnswer(f"scan of {prefix} gave {len(found)} of {BATCH} keys")
    (first, _), (last, value) = found[0], found[-1]
    if first != prefix + SUFFIXES[0] or last != prefix + SUFFIXES[-1]:
        raise WrongAnswer(f"scan of {prefix} went from {first} to {last}")
    if not isinstance(value, dict) or value["seq"] != SEQ_FIRST + BATCH - 1:
        raise WrongAnswer(f"scan of {prefix} ended with {value!r}")
