"""incr.py - the increment workload: every process adds one to the same counter.

Why:        The hardest contention there is: one word that all want. The engine adds at commit,
            so that no caller retries; LMDB reads and writes eight bytes under its write lock,
            which is the cheapest form it has; the floor decodes, adds and encodes.
Used by:    rounds.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgpack

from bench.peers import FloorStore, LmdbStore, ShmStore, Store
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer

KEY = "incr/counter"
_NAME = KEY.encode()


class Incr(Workload):
    name = "incr"
    title = "increment of one shared counter"
    bytes_per_call = 160

    def fill(self, store: Store, processes: int) -> None:
        """The counter starts missing, which counts as 0."""

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        acknowledged = sum(tally.calls for tally in tallies)
        actual = store.read_count(KEY)
        if actual == acknowledged:
            return []
        return [f"{KEY} is {actual} after {acknowledged} acknowledged increments"]

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        incr, run = store.kv.incr, store.run

        def loop(first: int, last: int) -> None:
            for _ in range(first, last):
                incr(run, KEY)

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin = store.begin

        def loop(first: int, last: int) -> None:
            for _ in range(first, last):
                with begin(write=True) as txn:
                    data = txn.get(_NAME)
                    count = int.from_bytes(data, "little") if data else 0
                    txn.put(_NAME, (count + 1).to_bytes(8, "little"))

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, pack, unpack = store.data, msgpack.Packer().pack, msgpack.unpackb
        held[KEY] = pack(0)

        def loop(first: int, last: int) -> None:
            for _ in range(first, last):
                held[KEY] = pack(unpack(held[KEY]) + 1)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        incr, run = store.kv.incr, store.run
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            packer()
            begin = clock()
            count = incr(run, KEY)
            end = clock()
            if count <= newest:
                raise WrongAnswer(f"incr gave {count} after {newest}")
            newest = count
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn = store.begin
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            packer()
            begin = clock()
            with begin_txn(write=True) as txn:
                data = txn.get(_NAME)
                count = (int.from_bytes(data, "little") if data else 0) + 1
                txn.put(_NAME, count.to_bytes(8, "little"))
            end = clock()
            if count <= newest:
                raise WrongAnswer(f"the counter went from {newest} to {count}")
            newest = count
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, unpack = store.data, msgpack.unpackb
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        held[KEY] = packer().pack(0)
        newest = 0

        def call(i: int) -> int:
            nonlocal newest
            pack = packer().pack
            begin = clock()
            count = unpack(held[KEY]) + 1
            held[KEY] = pack(count)
            end = clock()
            if count <= newest:
                raise WrongAnswer(f"the counter went from {newest} to {count}")
            newest = count
            note(end - begin)
            return end

        return call
