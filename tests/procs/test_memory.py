"""test_memory.py - memory stays bounded under steady overwriting, with dead readers and without."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shm_engine import errors, keys
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness.shared import check_structure
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Worker, wait_until

RUN = RunId.DEFAULT
KEYS = 50
VALUE = b"v" * 1000
LIVE = KEYS * 1200
MIB = 1 << 20
TURNS = 150


def overwrite(channel: Channel, number: int, database: Database, tally: Tally, times: int) -> None:
    """Overwrites the same few keys, that many times in all; deletes one now and then."""
    kv = KVStore(database)
    rng = random.Random(number)
    kv.get(RUN, "key/00")  # a forked child joins with its first use
    channel.ready()
    for turn in range(times):
        key = f"key/{rng.randrange(KEYS):02}"
        if turn % 50 == 49:
            kv.delete(RUN, key)
        else:
            kv.put(RUN, key, VALUE)
        tally[number] += 1


def hold_on(channel: Channel, database: Database) -> None:
    """Keeps a snapshot and stands in the middle of a read, which pins what it may see."""
    snapshot = database.snapshot()

    def names() -> Iterator[str]:
        yield "key/00"
        channel.send("holding")
        signal.pause()

    pin = database._engine.open_pin()
    database.engine.get_many(RUN, keys.TAG_KV, names(), pin)
    snapshot.close()


def most_used(database: Database, workers: list[Worker]) -> int:
    """The most memory in use while they work."""
    most = 0
    left = list(workers)
    while left:
        most = max(most, database.metrics().arena_used_bytes)
        left = [worker for worker in left if worker.process.exitcode is None]
        for worker in left[:1]:
            worker.process.join(0.005)
    for worker in workers:
        worker.join()
    return most


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("closed", [False, True], ids=["with opener", "opener closed"])
def test_overwriting_runs_in_bounded_memory(
    writers: int, closed: bool, crew: Crew, tally: Tally
) -> None:
    """Three times the map's size is written. A writer that is descheduled holds back what was
    replaced meanwhile; when all are done, nothing is held back."""
    opener = crew.start(open_and_hand_out, 16 * MIB)
    with opener.receive() as database:
        if closed:
            opener.send("close")
            opener.join()
        workers = [
            crew.start(overwrite, number, database, tally, 45000 // writers)
            for number in range(writers)
        ]
        crew.release(workers)
        most = most_used(database, workers)
        if writers == 1:
            assert most < LIVE + 2 * MIB
        wait_until(
            lambda: database.metrics().arena_used_bytes < LIVE + MIB, "all garbage was freed"
        )
        assert database.metrics().trimmed_versions > 1000
        assert database.metrics().pressure_trimmed_versions == 0


@pytest.mark.crash
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_dead_reader_holds_nothing_back(reaped: bool, crew: Crew, tally: Tally) -> None:
    with Database.ephemeral(map_size=16 * MIB) as database:
        KVStore(database).put(RUN, "key/00", VALUE)
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        reader = crew.start(hold_on, database)
        reader.expect("holding")
        assert database.metrics().snapshots == 2
        if reaped:
            reader.kill()
        else:
            reader.kill_unreaped()
        workers = crew.start_many(3, overwrite, database, tally, 10000)
        crew.release(workers)
        for worker in workers:
            worker.join()
        wait_until(lambda: database.metrics().snapshots == 0, "the dead reader's snapshots went")
        database._engine.sweep()
        wait_until(
            lambda: database.metrics().arena_used_bytes < LIVE + MIB, "its history was freed"
        )
        check_structure(database)


@pytest.mark.crash
def test_a_living_reader_fills_the_store_and_its_death_makes_room(crew: Crew, tally: Tally) -> None:
    with Database.ephemeral(map_size=4 * MIB) as database:
        kv = KVStore(database)
        kv.put(RUN, "key/00", 0)
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        reader = crew.start(hold_on, database)
        reader.expect("holding")
        written = fill(kv, KEYS)
        assert written > 1000
        assert kv.get(RUN, "key/01") == VALUE
        assert kv.delete(RUN, "key/01")
        assert kv.get(RUN, "key/01") is None
        reader.kill()
        wait_until(lambda: can_put(kv), "room after the reader's death", 2.0)
        for turn in range(5000):
            kv.put(RUN, f"key/{turn % KEYS:02}", VALUE)
        check_structure(database)


def fill(kv: KVStore, count: int) -> int:
    """Overwrites so many keys until the store is full; how many values it took."""
    written = 0
    try:
        while True:
            kv.put(RUN, f"key/{written % count:02}", VALUE)
            written += 1
    except errors.StorageFull:
        return written


def can_put(kv: KVStore) -> bool:
    """Whether there is room for a value."""
    try:
        kv.put(RUN, "key/01", VALUE)
    except errors.StorageFull:
        return False
    return True


@pytest.mark.crash
def test_a_dead_reader_holds_nothing_back_where_the_opener_is_dead_too(
    crew: Crew, tally: Tally
) -> None:
    """Nobody looks after an ephemeral database whose opener was killed: a snapshot of another
    dead process kept all history for ever, and the store filled up under KeepLast(1)."""
    opener = crew.start(open_and_hand_out, 4 * MIB)
    with opener.receive() as database:
        reader = crew.start(hold_on, database)
        reader.expect("holding")
        opener.kill()
        reader.kill()
        workers = crew.start_many(2, overwrite, database, tally, 10000)
        crew.release(workers)
        for worker in workers:
            worker.join()
        assert database.metrics().snapshots == 0


def open_and_hand_out(channel: Channel, map_size: int) -> None:
    """Makes a database, hands the handle to the test, and stays until it is told to close."""
    with Database.ephemeral(map_size=map_size) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        channel.send(database)
        channel.receive()


# -- the high-water rule ----------------------------------------------------------------------


def test_the_high_water_rule_keeps_writes_going_where_retention_was_never_chosen(
    crew: Crew, tally: Tally
) -> None:
    with Database.ephemeral(map_size=4 * MIB) as database:
        kv = KVStore(database)
        kv.put(RUN, "untouched", "still here")
        workers = crew.start_many(3, overwrite, database, tally, 6000)
        crew.release()
        for worker in workers:
            worker.join()
        metrics = database.metrics()
        assert metrics.pressure_trimmed_versions > 0
        assert metrics.trimmed_versions == 0
        assert kv.get(RUN, "untouched") == "still here"
        assert {value for _, value in kv.scan(RUN, "key/")} == {VALUE}
        assert max(len(kv.history(RUN, f"key/{number:02}")) for number in range(KEYS)) > 1
        check_structure(database)


def is_swept_down_to(database: Database, size: int) -> bool:
    """Sweeps; whether no more is in use."""
    database._engine.sweep()
    return database.metrics().arena_used_bytes < size


@pytest.mark.parametrize("size", [100, 1000, 100_000])
def test_memory_that_small_values_gave_back_takes_large_ones(size: int) -> None:
    """The high-water rule let a burst of small values go on until all of the arena was cut into
    their blocks; then nothing larger fitted any more, for ever, in a store that was empty."""
    with Database.ephemeral(map_size=4 * MIB) as database:
        kv = KVStore(database)
        for turn in range(150_000):
            kv.put(RUN, f"key/{turn % KEYS:02}", turn)
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        kv.mdelete(RUN, kv.list(RUN))  # what stays is not moved, and would lie in the way
        wait_until(lambda: is_swept_down_to(database, MIB // 4), "it is empty")
        for number in range(2 * MIB // (size + 100)):
            kv.put(RUN, f"larger/{number:05}", b"v" * size)
        check_structure(database)


def test_history_that_was_chosen_is_kept_to_the_last_byte(crew: Crew) -> None:
    with Database.ephemeral(map_size=4 * MIB) as database:
        kv = KVStore(database)
        database.set_retention(RUN, RetentionPolicy.KeepAll)
        written = fill(kv, 1)
        history = kv.history(RUN, "key/00")
        assert [found.value for found in history] == [VALUE] * written
        assert database.metrics().trimmed_versions == 0
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        wait_until(lambda: can_put(kv), "room after the choice")


def write_batches(channel: Channel, number: int, database: Database, snapshots: bool) -> None:
    """Four threads that overwrite their own keys in commits of many."""
    kv = KVStore(database)
    kv.list(RUN)
    channel.ready()

    def write(thread: int, turn: int) -> bool:
        batch = {f"{number}/{thread}/{key}": [turn, "x" * 250] for key in range(300)}
        try:
            kv.mset(RUN, batch)
        except errors.StorageFull:
            return False
        return True

    def work(thread: int) -> None:
        for turn in range(TURNS):
            if snapshots:  # those of others may hold so much history that there is no room now
                wait_until(lambda turn=turn: write(thread, turn), "room for a batch")  # type: ignore[misc]
                with database.snapshot() as snapshot:
                    prefix = f"{number}/{thread}/"
                    assert sum(1 for _ in snapshot.scan_prefix(RUN, prefix)) == 300
            else:
                assert write(thread, turn), f"no room in turn {turn}"
            kv.incr(RUN, f"turns/{number}/{thread}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("snapshots", [False, True], ids=["writing", "writing and reading"])
@pytest.mark.parametrize("retention", ["never chosen", "KeepLast(1)"])
def test_batches_in_a_small_map_find_room_for_ever(
    retention: str, snapshots: bool, processes: int, crew: Crew
) -> None:
    """A sweep that needed a wider ring of retired blocks, which there was no memory for, ended a
    write set twice, and an assertion ended the process. What lives is a third of the map."""
    with Database.ephemeral(map_size=4 * MIB) as database:
        if retention != "never chosen":
            database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        workers = crew.start_many(processes, write_batches, database, snapshots)
        crew.release()
        for worker in workers:
            worker.join()
        kv = KVStore(database)
        threads = 4 * processes
        assert [value for _, value in kv.scan(RUN, "turns/")] == [TURNS] * threads
        batches = kv.scan(RUN, "0/") + kv.scan(RUN, "1/")
        assert len(batches) == threads * 300
        assert {value[0] for _, value in batches} == {TURNS - 1}
        check_structure(database)
