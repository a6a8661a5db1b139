"""get.py - the get workload: each call reads one key and decodes its value.

Why:        The plainest read. All processes read the same 10,000 keys in the same order, each
            from a place of its own.
Used by:    rounds.py, million.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgpack

from bench.peers import SEQ_FIRST, FloorStore, LmdbStore, ShmStore, Store, Value, make_value
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer

PREFIX = "get/"
_APART = 2_503
"""How many keys lie between the places where two neighbours start."""


def value_of(key: int) -> Value:
    value = make_value(0)
    value["seq"] = SEQ_FIRST + key
    return value


class Get(Workload):
    name = "get"
    title = "get and decode"
    bytes_per_call = 0

    def fill(self, store: Store, processes: int) -> None:
        store.fill((f"{PREFIX}{key}", value_of(key)) for key in range(self.keys))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        for key in range(self.keys):
            actual = store.read(f"{PREFIX}{key}")
            if actual != value_of(key):
                found.append(f"{PREFIX}{key}: {actual!r}, wrote {value_of(key)!r}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        get, run, keys, start = store.kv.get, store.run, self.keys, lane.index * _APART

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                get(run, f"{PREFIX}{i % keys}")

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin, unpack, keys, start = store.begin, msgpack.unpackb, self.keys, lane.index * _APART

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                with begin() as txn:
                    unpack(txn.get(f"{PREFIX}{i % keys}".encode()))

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, unpack, keys, start = store.data, msgpack.unpackb, self.keys, lane.index * _APART

        def loop(first: int, last: int) -> None:
            for i in range(first + start, last + start):
                unpack(held[f"{PREFIX}{i % keys}"])

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        get, run, keys, start = store.kv.get, store.run, self.keys, lane.index * _APART
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            number = (i + start) % keys
            key = f"{PREFIX}{number}"
            begin = clock()
            value = get(run, key)
            end = clock()
            if not isinstance(value, dict) or value["seq"] != SEQ_FIRST + number:
                raise WrongAnswer(f"get of {key} gave {value!r}")
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn, keys, start = store.begin, self.keys, lane.index * _APART
        unpack, clock, note = msgpack.unpackb, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            number = (i + start) % keys
            key = f"{PREFIX}{number}"
            begin = clock()
            with begin_txn() as txn:
                value = unpack(txn.get(key.encode()))
            end = clock()
            if not isinstance(value, dict) or value["seq"] != SEQ_FIRST + number:
                raise WrongAnswer(f"get of {key} gave {value!r}")
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, keys, start = store.data, self.keys, lane.index * _APART
        unpack, clock, note = msgpack.unpackb, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            number = (i + start) % keys
            key = f"{PREFIX}{number}"
            begin = clock()
            value = unpack(held[key])
            end = clock()
            if not isinstance(value, dict) or value["seq"] != SEQ_FIRST + number:
                raise WrongAnswer(f"get of {key} gave {value!r}")
            note(end - begin)
            return end

        return call
