"""test_bank.py - money is moved while the movers are killed, and none of it is lost or made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from shm_engine.transaction import Transaction
from tests.harness.shared import check_structure
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Method, Worker

RUN = RunId.DEFAULT
ACCOUNTS = [f"account/{number:02}" for number in range(12)]
EACH = 100
TOTAL = EACH * len(ACCOUNTS)
RETRIES = 1000
MAP_SIZE = 16 << 20


def move_money(channel: Channel, number: int, seed: int, database: Database, tally: Tally) -> None:
    """Transfers until told to stop; each counts itself in the same transaction."""
    rng = random.Random(seed)
    channel.ready()
    while not channel.is_told():
        source, target = rng.sample(ACCOUNTS, 2)
        amount = rng.randint(1, EACH)

        def transfer(txn: Transaction, source: str, target: str, amount: int) -> None:
            left = txn.kv_get(source)
            if left >= amount:
                txn.kv_put(source, left - amount)
                txn.kv_put(target, txn.kv_get(target) + amount)
            txn.kv_incr(f"moved/{number:02}")

        database.transaction_with_retry(
            RUN,
            lambda txn, chosen=(source, target, amount): transfer(txn, *chosen),  # type: ignore[misc]
            max_retries=RETRIES,
        )
        tally[number] += 1


def balances(kv: KVStore) -> list[int]:
    """All of one snapshot."""
    found: list[int] = kv.get_many(RUN, ACCOUNTS)
    return found


@pytest.mark.crash
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("place", ["ephemeral", "folder"])
def test_the_total_stays_while_workers_are_killed(
    method: Method, place: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    crew.method = method
    memory = Durability.in_memory()
    if place == "ephemeral":
        database = Database.ephemeral(map_size=MAP_SIZE)
    else:
        database = Database.open(folder, memory, map_size=MAP_SIZE)
    with database:
        kv = KVStore(database)
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv.mset(RUN, dict.fromkeys(ACCOUNTS, EACH))

        def hire(number: int) -> Worker:
            seed = rng.getrandbits(32)
            worker = crew.start(move_money, number, seed, database, tally)
            crew.release([worker])
            return worker

        at_work = {number: hire(number) for number in range(3)}
        for life in range(3, 13):
            crew.watch(at_work.values(), rng.uniform(0.0, 0.12))
            victim = rng.choice(sorted(at_work))
            at_work.pop(victim).kill()
            assert sum(balances(kv)) == TOTAL
            at_work[life] = hire(life)
        for worker in at_work.values():
            worker.send("stop")
            worker.join()
        assert sum(balances(kv)) == TOTAL
        assert min(balances(kv)) >= 0
        for number in range(13):
            counted = kv.get(RUN, f"moved/{number:02}") or 0
            killed = number not in at_work
            assert tally[number] <= counted <= tally[number] + killed
        assert tally.total() > 0
        check_structure(database)
