"""test_contention.py - several processes at the same keys: one winner, nothing half, exact sums."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from shm_engine.transaction import Transaction
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Method

RUN = RunId.DEFAULT
MAP_SIZE = 16 << 20
RACERS = 4
ROUNDS = 500
MANY = [f"many/{number:03}" for number in range(150)]


# -- one winner -------------------------------------------------------------------------------


def race(channel: Channel, number: int, database: Database, arrived: Tally) -> None:
    """Tries every round's key at the same moment as the others."""
    kv = KVStore(database)
    won = []
    channel.ready()
    for turn in range(ROUNDS):
        arrived[number] = turn + 1
        while min(arrived[other] for other in range(RACERS)) <= turn:
            os.sched_yield()
        if kv.cas(RUN, f"round/{turn}", None, number):
            won.append(turn)
    channel.send(won)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_key_is_created_by_exactly_one_racer(method: Method, crew: Crew, tally: Tally) -> None:
    crew.method = method
    with Database.ephemeral() as database:
        racers = crew.start_many(RACERS, race, database, tally)
        crew.release()
        winners: dict[int, int] = {}
        for number, racer in enumerate(racers):
            for turn in racer.receive():
                assert winners.setdefault(turn, number) == number
        kv = KVStore(database)
        assert winners == {turn: kv.get(RUN, f"round/{turn}") for turn in range(ROUNDS)}
        assert database.metrics().transactions_committed == ROUNDS
        assert database.metrics().conflicts == ROUNDS * (RACERS - 1)


def climb(channel: Channel, number: int, database: Database, wins: int) -> None:
    """Raises one number by compare-and-set until it has won that often."""
    kv = KVStore(database)
    tries = 0
    channel.ready()
    while wins:
        seen = kv.get_versioned(RUN, "height")
        assert seen is not None
        tries += 1
        if kv.cas(RUN, "height", seen.version, seen.value + 1):
            wins -= 1
    channel.send(tries)


def test_compare_and_set_of_one_key_loses_no_step(crew: Crew) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        kv.put(RUN, "height", 0)
        racers = crew.start_many(RACERS, climb, database, 400)
        crew.release()
        tries = sum(racer.receive() for racer in racers)
        assert kv.get(RUN, "height") == RACERS * 400
        metrics = database.metrics()
        assert metrics.transactions_committed == RACERS * 400 + 1
        assert metrics.conflicts == tries - RACERS * 400
        values = [found.value for found in kv.history(RUN, "height")]
        assert values == list(range(RACERS * 400, -1, -1))


# -- never half -------------------------------------------------------------------------------


def write_all(channel: Channel, number: int, database: Database) -> None:
    """Writes all keys in one commit, again and again; now and then it deletes them all."""
    kv = KVStore(database)
    channel.ready()
    turn = 0
    while not channel.is_told():
        turn += 1
        if turn % 7 == 0:
            kv.mdelete(RUN, MANY)
        else:
            kv.mset(RUN, {key: [number, turn] for key in MANY})


def read_all(channel: Channel, database: Database) -> None:
    """Looks at all keys in every way there is."""
    kv = KVStore(database)
    channel.ready()
    looks = 0
    seen = set()
    while not channel.is_told():
        together = kv.get_many(RUN, MANY)
        assert all(value == together[0] for value in together), together
        in_order = kv.scan(RUN, "many/")
        assert [key for key, _ in in_order] in ([], MANY)
        assert all(value == in_order[0][1] for _, value in in_order), in_order
        with database.snapshot() as snapshot:
            first = [snapshot.get(RUN, key) for key in MANY]
            again = dict(snapshot.scan_prefix(RUN, "many/"))
            assert all(value == first[0] for value in first), first
            assert again == ({} if first[0] is None else dict.fromkeys(MANY, first[0]))
        with database.begin(RUN) as txn:
            for key in txn.kv_list("many/"):
                assert txn.kv_get(key) == txn.kv_get(MANY[0])
        looks += 1
        seen.add(str(together[0]))
    channel.send((looks, len(seen)))


@pytest.mark.parametrize("kill", [False, True], ids=["alive", "killed"])
def test_a_commit_of_many_keys_is_never_seen_half(
    kill: bool, crew: Crew, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        writers = crew.start_many(2, write_all, database)
        readers = [crew.start(read_all, database) for _ in range(2)]
        crew.release()
        for number in range(2, 10):
            crew.watch(writers + readers, rng.uniform(0.05, 0.25))
            if kill:
                writers.pop(rng.randrange(2)).kill()
                writers.append(crew.start(write_all, number, database))
                crew.release(writers[-1:])
        for worker in writers + readers:
            worker.send("stop")
        for reader in readers:
            looks, seen = reader.receive()
            assert looks > 10
            assert seen > 5
            reader.join()
        for writer in writers:
            writer.join()
        check_structure(database)


@pytest.mark.crash
def test_a_writer_killed_in_the_middle_of_a_commit_leaves_nothing_of_it(
    crew: Crew, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv = KVStore(database)
        view = SequencerView(database)
        for number in range(8):
            writer = crew.start(write_all, number, database)
            crew.release([writer])
            stop_in_the_middle(writer, view, rng)
            together = kv.get_many(RUN, MANY)
            assert all(value == together[0] for value in together), together
            writer.kill()
            assert kv.incr(RUN, "alive") == number + 1
            together = kv.get_many(RUN, MANY)
            assert all(value == together[0] for value in together), together
            assert database.metrics().recoveries == number + 1
        check_structure(database)


# -- snapshots --------------------------------------------------------------------------------


def stir(channel: Channel, number: int, database: Database) -> None:
    """Changes, adds and removes keys without an end."""
    kv = KVStore(database)
    rng = random.Random(number)
    channel.ready()
    while not channel.is_told():
        key = f"stirred/{rng.randrange(400):03}"
        choice = rng.random()
        if choice < 0.6:
            kv.put(RUN, key, [number, rng.getrandbits(30)])
        elif choice < 0.8:
            kv.delete(RUN, key)
        else:
            kv.mset(RUN, {f"stirred/{rng.randrange(400):03}": number for _ in range(20)})


@pytest.mark.parametrize("trimming", [False, True], ids=["KeepAll", "KeepLast1"])
def test_a_snapshot_stays_put_while_others_write(trimming: bool, crew: Crew) -> None:
    with Database.ephemeral(map_size=64 << 20) as database:
        kv = KVStore(database)
        if trimming:
            database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        kv.mset(RUN, {f"stirred/{number:03}": number for number in range(0, 400, 2)})
        writers = crew.start_many(2, stir, database)
        crew.release()
        contents = []
        for _ in range(6):
            with database.snapshot() as snapshot, database.begin(RUN) as txn:
                first = list(snapshot.scan_prefix(RUN))
                inside = dict(txn.scan_prefix())
                assert inside == {key: txn.kv_get(key) for key in inside}
                wait_for_commits(database, 2000)
                crew.watch(writers, 0)
                assert list(snapshot.scan_prefix(RUN)) == first
                assert dict(txn.scan_prefix()) == inside
                keys = [f"stirred/{number:03}" for number in range(400)]
                assert {
                    key: snapshot.get(RUN, key) for key in keys if snapshot.exists(RUN, key)
                } == (dict(first))
            contents.append(first)
        assert all(before != after for before, after in itertools.pairwise(contents))


def wait_for_commits(database: Database, count: int) -> None:
    """Returns when that many more commits have been made."""
    target = database.metrics().version + count
    while database.metrics().version < target:
        os.sched_yield()


# -- sums -------------------------------------------------------------------------------------


def count_up(channel: Channel, number: int, database: Database, tally: Tally, times: int) -> None:
    """Increments one shared counter in every way; notes each before and after."""
    kv = KVStore(database)

    def in_a_transaction(txn: Transaction) -> None:
        txn.kv_incr("sum")
        txn.kv_incr(f"own/{number:02}")

    channel.ready()
    for turn in range(times):
        tally[2 * number] += 1
        if turn % 4 == 3:
            database.transaction(RUN, in_a_transaction)
        else:
            kv.incr(RUN, "sum")
        tally[2 * number + 1] += 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_increments_of_four_processes_sum_exactly(
    method: Method, folder: Path, crew: Crew, tally: Tally
) -> None:
    crew.method = method
    with Database.open(folder, Durability.in_memory()) as database:
        workers = crew.start_many(4, count_up, database, tally, 5000)
        crew.release()
        for worker in workers:
            worker.join()
        kv = KVStore(database)
        assert kv.get(RUN, "sum") == 4 * 5000
        assert [kv.get(RUN, f"own/{number:02}") for number in range(4)] == [1250] * 4
        assert database.metrics().conflicts == 0


@pytest.mark.crash
def test_increments_of_killed_processes_are_counted_once(
    crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv = KVStore(database)
        at_work = crew.start_many(4, count_up, database, tally, 10**9)
        crew.release()
        for number in range(4, 20):
            crew.watch(at_work, rng.uniform(0.0, 0.06))
            at_work.pop(rng.randrange(4)).kill()
            at_work.append(crew.start(count_up, number, database, tally, 10**9))
            crew.release(at_work[-1:])
        for worker in at_work:
            worker.kill()
        total = kv.get(RUN, "sum")
        acknowledged = sum(tally[2 * number + 1] for number in range(20))
        begun = sum(tally[2 * number] for number in range(20))
        assert acknowledged <= total <= begun <= acknowledged + 20
        assert kv.incr(RUN, "sum") == total + 1
        check_structure(database)
