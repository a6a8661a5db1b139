"""rmw.py - the read-modify-write workload: each call moves one unit between two accounts.

Why:        What a transaction costs that reads, decides and writes: two reads, two writes, one
            commit. The accounts are shared by all processes and picked at random (seeded), so
            that now and then two transactions meet; the engine then runs the function again,
            LMDB lets one writer in at a time.
Used by:    rounds.py
Invariants: R1 the sum of the balances never changes: nothing was written by half
            R2 the sum of the moves is twice the acknowledged calls: nothing was lost, nothing
               was done twice
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from bench.peers import FloorStore, LmdbStore, ShmStore, Store, Value, make_value
from bench.workload import KEYS, Call, Lane, Loop, Tally, Workload, WrongAnswer
from shm_engine import Transaction
from shm_engine.errors import TransactionConflict

BALANCE = 1_000_000
_PAIRS = 1 << 12
_MAX_RETRIES = 32


def account_of(number: int) -> str:
    return f"account/{number}"


def new_account() -> Value:
    """Return an account: the usual map, with the balance and the moves in place of two fields."""
    account = make_value(0)
    del account["seq"], account["step"]
    return {"balance": BALANCE, "moves": 0, **account}


def field(account: object, name: str) -> int:
    """Return an account's whole number; anything else is a wrong answer."""
    number = account.get(name) if isinstance(account, dict) else None
    if not isinstance(number, int):
        raise WrongAnswer(f"an account without {name}: {account!r}")
    return number


class Rmw(Workload):
    name = "rmw"
    title = "read-modify-write transaction"
    stretch = 64
    warm_calls = 1_000
    bytes_per_call = 512

    def __init__(self, keys: int = KEYS) -> None:
        super().__init__(keys)

    def fill(self, store: Store, processes: int) -> None:
        store.fill((account_of(number), new_account()) for number in range(self.keys))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        acknowledged = sum(tally.calls - tally.counts.get("refused", 0) for tally in tallies)
        accounts = [store.read(account_of(number)) for number in range(self.keys)]
        missing = [number for number, account in enumerate(accounts) if account is None]
        found = [f"{account_of(number)} is not there" for number in missing]
        present = [account for account in accounts if account is not None]
        balance = sum(field(account, "balance") for account in present)
        if balance != BALANCE * len(present):
            found.append(f"the balances add up to {balance}, not {BALANCE * len(present)}")
        moves = sum(field(account, "moves") for account in present)
        if moves != 2 * acknowledged:
            found.append(f"{moves} moves were written, {2 * acknowledged} were acknowledged")
        return found

    def _pairs(self, lane: Lane) -> list[tuple[str, str]]:
        """Return the accounts of call i, at i % _PAIRS, the same for every peer."""
        picker = random.Random(lane.index)
        picks = (picker.sample(range(self.keys), 2) for _ in range(_PAIRS))
        return [(account_of(source), account_of(target)) for source, target in picks]

    def _shm_move(self, store: ShmStore, lane: Lane) -> Callable[[str, str], None]:
        transaction, run = store.database.transaction, store.run
        tries = calls = refused = 0
        source_key = target_key = ""

        def move(txn: Transaction) -> None:
            nonlocal tries
            tries += 1
            source, target = txn.kv_get(source_key), txn.kv_get(target_key)
            transfer(source, target)
            txn.kv_put(source_key, source)
            txn.kv_put(target_key, target)

        def call(source: str, target: str) -> None:
            nonlocal calls, refused, source_key, target_key
            source_key, target_key = source, target
            calls += 1
            try:
                transaction(run, move, max_retries=_MAX_RETRIES)
            except TransactionConflict:
                refused += 1

        lane.reports.append(lambda: {"retries": tries - calls, "refused": refused})
        return call

    def _lmdb_move(self, store: LmdbStore) -> Callable[[str, str], None]:
        begin, pack, unpack = store.begin, msgpack.Packer().pack, msgpack.unpackb

        def call(source_key: str, target_key: str) -> None:
            source_name, target_name = source_key.encode(), target_key.encode()
            with begin(write=True) as txn:
                source, target = unpack(txn.get(source_name)), unpack(txn.get(target_name))
                transfer(source, target)
                txn.put(source_name, pack(source))
                txn.put(target_name, pack(target))

        return call

    def _floor_move(self, store: FloorStore) -> Callable[[str, str], None]:
        held, pack, unpack = store.data, msgpack.Packer().pack, msgpack.unpackb

        def call(source_key: str, target_key: str) -> None:
            source, target = unpack(held[source_key]), unpack(held[target_key])
            transfer(source, target)
            held[source_key], held[target_key] = pack(source), pack(target)

        return call

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        return _loop(self._shm_move(store, lane), self._pairs(lane))

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        return _loop(self._lmdb_move(store), self._pairs(lane))

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        return _loop(self._floor_move(store), self._pairs(lane))

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        return _clocked(self._shm_move(store, lane), self._pairs(lane), lane)

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        return _clocked(self._lmdb_move(store), self._pairs(lane), lane)

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        return _clocked(self._floor_move(store), self._pairs(lane), lane)


def transfer(source: Any, target: Any) -> None:
    """Move one unit, in place."""
    source["balance"] -= 1
    target["balance"] += 1
    source["moves"] += 1
    target["moves"] += 1


def _loop(move: Callable[[str, str], None], pairs: Sequence[tuple[str, str]]) -> Loop:
    def loop(first: int, last: int) -> None:
        for i in range(first, last):
            source, target = pairs[i % _PAIRS]
            move(source, target)

    return loop


def _clocked(
    move: Callable[[str, str], None], pairs: Sequence[tuple[str, str]], lane: Lane
) -> Call:
    packer, clock, note = msgpack.Packer, time.monotonic_ns, lane.waits_ns.append

    def call(i: int) -> int:
        packer()
        source, target = pairs[i % _PAIRS]
        begin = clock()
        move(source, target)
        end = clock()
        note(end - begin)
        return end

    return call
