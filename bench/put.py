"""put.py - the put workload: each call writes one key in a commit of its own.

Why:        The plainest write. Every process cycles through its own 10,000 keys, which are there
            before the first call, so that each call is an update; processes share the store and
            its sequencer, not their keys.
Used by:    rounds.py, million.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgpack

from bench.peers import SEQ_FIRST, FloorStore, LmdbStore, ShmStore, Store, Value, make_value
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer, last_call


def key_of(owner: int, key: int) -> str:
    return f"put/{owner}/{key}"


class Put(Workload):
    name = "put"
    title = "put, a commit each"

    def fill(self, store: Store, processes: int) -> None:
        store.fill(self._initial(processes))

    def _initial(self, processes: int) -> Iterator[tuple[str, Value]]:
        for owner in range(processes):
            for key in range(self.keys):
                yield key_of(owner, key), self.expected(owner, key, 0)

    def expected(self, owner: int, key: int, calls: int) -> Value:
        """Return what the key must hold after so many calls of its owner."""
        value = make_value(owner)
        last = last_call(key, calls, self.keys)
        value["seq"] = SEQ_FIRST - 1 if last is None else SEQ_FIRST + last
        return value

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        for tally in tallies:
            for key in range(self.keys):
                expected = self.expected(tally.index, key, tally.calls)
                actual = store.read(key_of(tally.index, key))
                if actual != expected:
                    found.append(f"{key_of(tally.index, key)}: {actual!r}, wrote {expected!r}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        put, run, keys = store.kv.put, store.run, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                put(run, f"{prefix}{i % keys}", value)

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin, pack, keys = store.begin, msgpack.Packer().pack, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                key, data = f"{prefix}{i % keys}".encode(), pack(value)
                with begin(write=True) as txn:
                    txn.put(key, data)

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, pack, keys = store.data, msgpack.Packer().pack, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                held[f"{prefix}{i % keys}"] = pack(value)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        put, run, keys = store.kv.put, store.run, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            packer()  # the call encodes by itself; the new packer is paid for all the same
            value["seq"] = SEQ_FIRST + i
            key = f"{prefix}{i % keys}"
            begin = clock()
            version = put(run, key, value)
            end = clock()
            if version <= newest:
                raise WrongAnswer(f"put gave version {version} after {newest}")
            newest = version
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn, keys = store.begin, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            key = f"{prefix}{i % keys}"
            begin = clock()
            name, data = key.encode(), pack(value)
            with begin_txn(write=True) as txn:
                written = txn.put(name, data)
            end = clock()
            if not written:
                raise WrongAnswer(f"put of {key} was refused")
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, keys = store.data, self.keys
        prefix, value = key_of(lane.index, 0)[:-1], make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            key = f"{prefix}{i % keys}"
            begin = clock()
            held[key] = pack(value)
            end = clock()
            if key not in held:
                raise WrongAnswer(f"{key} is not there")
            note(end - begin)
            return end

        return call
