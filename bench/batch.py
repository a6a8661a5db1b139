"""batch.py - the batch workload: each call writes 1,000 keys in one commit.

Why:        What many writes cost when they share a commit. Every process writes its ten groups of
            1,000 keys in turn, in key order, which is what LMDB likes best; LMDB gets its bulk
            call, `putmulti`, on values that were encoded before it takes the write lock.
Used by:    rounds.py
Invariants: all keys of a group carry the number of the last call that wrote the group: a batch is
            there whole or not at all
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgpack

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
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer, last_call

SUFFIXES = tuple(f"{number:04d}" for number in range(BATCH))
NAMES = tuple(suffix.encode() for suffix in SUFFIXES)


def group_of(owner: int, group: int) -> str:
    return f"batch/{owner}/{group}/"


class Batch(Workload):
    name = "batch"
    title = f"batch of {BATCH} in one commit"
    stretch = 1
    warm_calls = 10
    bytes_per_call = 256 * BATCH

    def __init__(self, keys: int = 10 * BATCH) -> None:
        super().__init__(keys)
        self.groups = max(1, keys // BATCH)

    def fill(self, store: Store, processes: int) -> None:
        store.fill(self._initial(processes))

    def _initial(self, processes: int) -> Iterator[tuple[str, Value]]:
        for owner in range(processes):
            for group in range(self.groups):
                value = self.expected(owner, group, 0)
                for suffix in SUFFIXES:
                    yield group_of(owner, group) + suffix, value

    def expected(self, owner: int, group: int, calls: int) -> Value:
        value = make_value(owner)
        last = last_call(group, calls, self.groups)
        value["seq"] = SEQ_FIRST - 1 if last is None else SEQ_FIRST + last
        return value

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        for tally in tallies:
            for group in range(self.groups):
                expected = self.expected(tally.index, group, tally.calls)
                prefix = group_of(tally.index, group)
                for suffix in SUFFIXES:
                    actual = store.read(prefix + suffix)
                    if actual != expected:
                        found.append(f"{prefix}{suffix}: {actual!r}, wrote {expected!r}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        mset, run, groups = store.kv.mset, store.run, self.groups
        owner, value = lane.index, make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                prefix = group_of(owner, i % groups)
                mset(run, [(prefix + suffix, value) for suffix in SUFFIXES])

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin, pack, groups = store.begin, msgpack.Packer().pack, self.groups
        owner, value = lane.index, make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                prefix = group_of(owner, i % groups).encode()
                items = [(prefix + name, pack(value)) for name in NAMES]
                with begin(write=True) as txn:
                    txn.cursor().putmulti(items)

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, pack, groups = store.data, msgpack.Packer().pack, self.groups
        owner, value = lane.index, make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                prefix = group_of(owner, i % groups)
                held.update([(prefix + suffix, pack(value)) for suffix in SUFFIXES])

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        mset, run, groups = store.kv.mset, store.run, self.groups
        owner, value = lane.index, make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            packer()
            value["seq"] = SEQ_FIRST + i
            prefix = group_of(owner, i % groups)
            begin = clock()
            version = mset(run, [(prefix + suffix, value) for suffix in SUFFIXES])
            end = clock()
            if version <= newest:
                raise WrongAnswer(f"mset gave version {version} after {newest}")
            newest = version
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn, groups = store.begin, self.groups
        owner, value = lane.index, make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            prefix = group_of(owner, i % groups).encode()
            begin = clock()
            items = [(prefix + name, pack(value)) for name in NAMES]
            with begin_txn(write=True) as txn:
                consumed, _ = txn.cursor().putmulti(items)
            end = clock()
            if consumed != BATCH:
                raise WrongAnswer(f"putmulti took {consumed} of {BATCH}")
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, groups = store.data, self.groups
        owner, value = lane.index, make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            prefix = group_of(owner, i % groups)
            begin = clock()
            held.update([(prefix + suffix, pack(value)) for suffix in SUFFIXES])
            end = clock()
            if prefix + SUFFIXES[-1] not in held:
                raise WrongAnswer(f"{prefix}{SUFFIXES[-1]} is not there")
            note(end - begin)
            return end

        return call
