"""append.py - the append workload: every process puts events behind the same log.

Why:        The story of a run has one end, and all want to be next to write there. The engine
            gives out the sequence, hashes the event with the one before it (SHA-256) and enters it
            under its type, all inside the commit. LMDB appends plainly: under its write lock it
            reads the last key and puts the next one, without hashes and without an index, which
            is the cheapest log that it can keep.
Used by:    rounds.py
Invariants: the payloads of one process stand in the log in the order of its calls, each once
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgpack

from bench.peers import SEQ_FIRST, FloorStore, LmdbStore, ShmStore, Store, make_value
from bench.workload import Call, Lane, Loop, Tally, Workload, WrongAnswer
from shm_engine import EventLog

TYPE = "step"
_HASH_SIZE = 32


def key_of(sequence: int) -> bytes:
    """Return LMDB's key of an entry: big-endian, so that the order of keys is that of appends."""
    return sequence.to_bytes(8, "big")


def payloads(store: Store) -> Iterator[object]:
    """Yield what the log holds, in its order."""
    match store:
        case ShmStore():
            yield from (event.payload for event in EventLog(store.database).iter(store.run))
        case LmdbStore():
            with store.begin() as txn:
                yield from (msgpack.unpackb(data) for _, data in txn.cursor())
        case FloorStore():
            yield from (msgpack.unpackb(data) for data in store.data.values())


def length(store: Store) -> int:
    """Return how many entries the log says that it has."""
    match store:
        case ShmStore():
            return EventLog(store.database).len(store.run)
        case LmdbStore():
            entries: int = store.environment.stat()["entries"]
            return entries
        case FloorStore():
            return len(store.data)


class Append(Workload):
    name = "append"
    title = "append to one log, shm_engine's with a SHA-256 chain"
    bytes_per_call = 512

    def fill(self, store: Store, processes: int) -> None:
        """The log starts empty."""

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        found = []
        acknowledged, actual = sum(tally.calls for tally in tallies), length(store)
        if actual != acknowledged:
            found.append(f"the log has {actual} entries, {acknowledged} were acknowledged")
        if isinstance(store, ShmStore):
            chain = EventLog(store.database).verify_chain(store.run)
            if not chain.is_valid:
                found.append(f"the chain is broken: {chain.error}")
        return found + self._out_of_order(store, tallies)

    def _out_of_order(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        """Return a line for each payload that is missing, or stands where it should not."""
        found = []
        following = {str(make_value(tally.index)["agent"]): SEQ_FIRST for tally in tallies}
        for place, payload in enumerate(payloads(store)):
            agent = str(payload["agent"]) if isinstance(payload, dict) else ""
            wanted = following.get(agent, -1)
            seq = payload["seq"] if isinstance(payload, dict) else None
            if seq != wanted:
                found.append(f"entry {place} of {agent} holds {seq}, {wanted} was next")
            if isinstance(seq, int) and agent in following:
                following[agent] = seq + 1
        for tally in tallies:
            agent = str(make_value(tally.index)["agent"])
            if following[agent] != SEQ_FIRST + tally.calls:
                found.append(f"{agent} ends at {following[agent]}, after {tally.calls} appends")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        append, run, value = EventLog(store.database).append, store.run, make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                append(run, TYPE, value)

        return loop

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        begin, pack, value = store.begin, msgpack.Packer().pack, make_value(lane.index)
        number = int.from_bytes

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                data = pack(value)
                with begin(write=True) as txn:
                    cursor = txn.cursor()
                    sequence = number(cursor.key(), "big") + 1 if cursor.last() else 0
                    txn.put(sequence.to_bytes(8, "big"), data, append=True)

        return loop

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        held, pack, value = store.data, msgpack.Packer().pack, make_value(lane.index)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                value["seq"] = SEQ_FIRST + i
                held[f"{len(held)}"] = pack(value)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        append, run, value = EventLog(store.database).append, store.run, make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = -1

        def call(i: int) -> int:
            nonlocal newest
            packer()
            value["seq"] = SEQ_FIRST + i
            begin = clock()
            sequence, digest = append(run, TYPE, value)
            end = clock()
            if sequence <= newest or len(digest) != _HASH_SIZE:
                raise WrongAnswer(f"append gave {sequence} after {newest}, hash {digest!r}")
            newest = sequence
            note(end - begin)
            return end

        return call

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        begin_txn, value, number = store.begin, make_value(lane.index), int.from_bytes
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append
        newest = -1

        def call(i: int) -> int:
            nonlocal newest
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            begin = clock()
            data = pack(value)
            with begin_txn(write=True) as txn:
                cursor = txn.cursor()
                sequence = number(cursor.key(), "big") + 1 if cursor.last() else 0
                stored = txn.put(sequence.to_bytes(8, "big"), data, append=True)
            end = clock()
            if sequence <= newest or not stored:
                raise WrongAnswer(f"append gave {sequence} after {newest}, stored: {stored}")
            newest = sequence
            note(end - begin)
            return end

        return call

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        held, value = store.data, make_value(lane.index)
        packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            pack = packer().pack
            value["seq"] = SEQ_FIRST + i
            begin = clock()
            held[f"{len(held)}"] = pack(value)
            end = clock()
            if f"{len(held) - 1}" not in held:
                raise WrongAnswer(f"entry {len(held) - 1} is not there")
            note(end - begin)
            return end

        return call
