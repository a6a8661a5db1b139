"""test_delete_run.py - a run is deleted at once for every process, whoever dies meanwhile.

One commit takes a run of 20,000 keys from all readers; its keys go later, in steps, by whoever is
left. So each test looks at both: what readers see, and that in the end no key is left.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from shm_engine import errors, runs
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.run_index import RunIndex
from shm_engine.transaction import Snapshot
from tests.harness.durable import LOGGED, MAP_SIZE, kill_everything, open_folder, reopen
from tests.harness.index import assert_indexes_agree, fill, owned
from tests.harness.workers import Channel, Crew, wait_until

KEYS: Final = 20_000
BATCH: Final = 5_000
LAST: Final = f"k{KEYS - 1:06}"
DOOMED: Final = RunId("11111111-1111-4111-8111-111111111111")
OTHER: Final = RunId("22222222-2222-4222-8222-222222222222")


def prepare(database: Database) -> int:
    """A run that stays, and the one to delete; how many keys there are without that one."""
    index, kv = RunIndex(database), KVStore(database)
    if not index.exists(OTHER):
        index.create_run(OTHER)
        kv.put(OTHER, "sum", 0)
        fill(database, OTHER)
    alone = database.metrics().keys
    index.create_run_with_options(DOOMED, OTHER, ["doomed"], {"keys": KEYS})
    for first in range(0, KEYS, BATCH):
        kv.mset(DOOMED, {f"k{i:06}": i for i in range(first, first + BATCH)})
    fill(database, DOOMED)
    return alone


def count_of(snapshot: Snapshot) -> int:
    """How many of the first keys a snapshot sees: all or none of them, in every way of asking."""
    names = [name for name, _ in snapshot.scan_prefix(DOOMED) if len(name) == len(LAST)]
    assert len(names) in (0, KEYS), f"{len(names)} of {KEYS} keys are left"
    assert snapshot.exists(DOOMED, LAST) == snapshot.exists(DOOMED, "k000000") == bool(names)
    return len(names)


def assert_whole(database: Database) -> None:
    """As `prepare` left it."""
    found = RunIndex(database).get_run(DOOMED)
    assert found is not None
    assert found.metadata == {"keys": KEYS}
    assert all(owned(database, DOOMED).values())
    with database.snapshot() as snapshot:
        assert count_of(snapshot) == KEYS
    assert_indexes_agree(database)


def assert_gone(database: Database) -> None:
    """For every reader, whether its keys are gone or not."""
    index = RunIndex(database)
    assert index.get_run(DOOMED) is None
    assert str(DOOMED) not in index.list_runs()
    assert index.query_by_tag("doomed") == index.get_child_runs(OTHER) == []
    assert not any(owned(database, DOOMED).values())
    assert KVStore(database).get_many(DOOMED, ["k000000", LAST]) == [None, None]
    assert all(owned(database, OTHER).values())
    assert_indexes_agree(database)


def wait_for_erasure(database: Database, alone: int) -> None:
    """Until no key of the run is left; then its id may be used anew."""
    wait_until(lambda: database.metrics().keys == alone, "all keys of the run are erased")
    index = RunIndex(database)
    assert index.create_run(DOOMED).tags == []
    assert KVStore(database).list(DOOMED) == []
    index.delete_run(DOOMED)
    assert database.metrics().keys == alone


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Database]:
    database = (
        Database.ephemeral(map_size=MAP_SIZE) if kind == "ephemeral" else open_folder(folder, kind)
    )
    with database:
        yield database


# -- readers and writers ----------------------------------------------------------------------


def read_on(channel: Channel, _: int, database: Database) -> None:
    """Looks at the run until told; says how often all of it was there, and how often nothing."""
    engine = database.engine
    looks: Counter[int] = Counter()
    channel.ready()
    while not channel.is_told():
        with database.snapshot() as snapshot:
            count = count_of(snapshot)
            record = runs.read_at(engine, DOOMED, snapshot._pin)
            assert (record is not None and record.is_registered) == (count > 0)
            assert count_of(snapshot) == count
        assert count == 0 or looks[0] == 0, "the run came back"
        looks[count] += 1
        assert_indexes_agree(database)
    channel.send(looks)


def write_on(channel: Channel, database: Database) -> None:
    """Counts up in another run until told; says how far it came."""
    kv = KVStore(database)
    channel.ready()
    count = 0
    while not channel.is_told():
        count = kv.incr(OTHER, "sum")
    channel.send(count)


@pytest.mark.parametrize("kind", ["ephemeral", "buffered"])
def test_readers_of_other_processes_see_all_of_a_deleted_run_or_nothing(
    kind: str, folder: Path, crew: Crew
) -> None:
    with opened(kind, folder) as database:
        kv = KVStore(database)
        alone = prepare(database)
        readers = crew.start_many(2, read_on, database)
        writer = crew.start(write_on, database)
        crew.release()
        wait_until(lambda: kv.get(OTHER, "sum") > 20, "the writer writes")
        crew.watch(crew.workers, 0.1)
        RunIndex(database).delete_run(DOOMED)
        assert_gone(database)
        written = kv.get(OTHER, "sum")
        crew.watch(crew.workers, 0.1)
        wait_until(lambda: kv.get(OTHER, "sum") > written + 20, "the writer writes on")
        for worker in (*readers, writer):
            worker.send("stop")
        for reader in readers:
            looks = reader.receive()
            assert looks[KEYS] > 0
            assert looks[0] > 0
        assert writer.receive() == kv.get(OTHER, "sum")
        wait_for_erasure(database, alone)


def hold_a_snapshot(channel: Channel, database: Database) -> None:
    """Opens one and keeps it until told, looking at the run before, between and after."""
    kv = KVStore(database)
    with database.snapshot() as snapshot:
        assert count_of(snapshot) == KEYS
        channel.ready()
        assert count_of(snapshot) == KEYS
        assert kv.list(DOOMED) == []
        with pytest.raises(errors.RunError, match="Deleted"):
            kv.put(DOOMED, "new", 1)
        channel.ready()
        assert count_of(snapshot) == KEYS
    channel.send("closed")
    channel.receive()


@pytest.mark.parametrize("kind", ["ephemeral", "in_memory", "strict"])
def test_an_open_snapshot_reads_on_and_the_keeper_finishes_when_it_is_closed(
    kind: str, folder: Path, crew: Crew
) -> None:
    with opened(kind, folder) as database:
        index, kv = RunIndex(database), KVStore(database)
        alone = prepare(database)
        holder = crew.start(hold_a_snapshot, database)
        holder.expect("ready")
        before = database.metrics().keys
        index.delete_run(DOOMED)
        holder.release()
        holder.expect("ready")
        assert_gone(database)
        assert database.metrics().keys > before - 20, "keys went that a snapshot needs"
        with pytest.raises(errors.RunError, match="Deleted"):
            kv.put(DOOMED, "k000000", 1)
        with pytest.raises(errors.InvalidOperation, match="still reads its keys"):
            index.create_run(DOOMED)
        for i in range(100):
            kv.put(OTHER, f"goes on {i}", i)
        holder.release()
        holder.expect("closed")
        wait_for_erasure(database, alone + 100)
        holder.send("end")


# -- deaths -----------------------------------------------------------------------------------


def delete_it(channel: Channel, database: Database) -> None:
    """Deletes the run once it is released."""
    index = RunIndex(database)
    channel.ready()
    index.delete_run(DOOMED)
    channel.send("deleted")
    channel.receive()


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["ephemeral", "buffered"])
def test_a_deleter_that_is_killed_in_the_middle_leaves_nothing_behind(
    kind: str, folder: Path, crew: Crew
) -> None:
    interrupted = 0
    with opened(kind, folder) as database:
        index = RunIndex(database)
        for _ in range(30):
            alone = prepare(database)
            full = database.metrics().keys
            deleter = crew.start(delete_it, database)
            crew.release([deleter])
            while database.metrics().keys > full - 50:  # no pause: the whole takes milliseconds
                pass
            deleter.kill()
            interrupted += database.metrics().keys > alone
            assert index.get_run(DOOMED) is None
            assert_gone(database)
            wait_for_erasure(database, alone)
            if interrupted == 2:
                return
    raise AssertionError("no deleter was killed in the middle")


@pytest.mark.crash
def test_a_deleter_that_is_killed_at_any_moment_has_deleted_all_or_nothing(
    folder: Path, crew: Crew, rng: random.Random
) -> None:
    with opened("ephemeral", folder) as database:
        for _ in range(8):
            alone = prepare(database)
            deleter = crew.start(delete_it, database)
            crew.release([deleter])
            time.sleep(rng.uniform(0.0, 0.004))  # a random moment; nothing waits for it
            deleter.kill()
            if RunIndex(database).exists(DOOMED):
                assert_whole(database)
                RunIndex(database).delete_run(DOOMED)
            assert_gone(database)
            wait_for_erasure(database, alone)


# -- what is on the disk ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_a_deleted_run_is_still_gone_after_the_next_open(mode: str, folder: Path) -> None:
    with open_folder(folder, mode) as database:
        alone = prepare(database)
        RunIndex(database).delete_run(DOOMED)
    for _ in range(2):
        with reopen(folder) as database:
            assert_gone(database)
            assert database.metrics().keys == alone
    with reopen(folder) as database:
        wait_for_erasure(database, alone)
        prepare(database)
        assert_whole(database)
    with reopen(folder) as database:
        assert_whole(database)


def open_and_delete(channel: Channel, folder: Path, mode: str) -> None:
    """The only process that has the database open."""
    database = open_folder(folder, mode)
    alone = prepare(database)
    database.flush()
    channel.send(alone)
    channel.ready()
    RunIndex(database).delete_run(DOOMED)
    channel.send("deleted")
    channel.receive()


@pytest.mark.crash
@pytest.mark.parametrize("mode", LOGGED)
def test_when_all_are_killed_during_a_deletion_the_run_is_whole_or_gone(
    mode: str, folder: Path, crew: Crew, rng: random.Random
) -> None:
    for bound_s in (0.001, 0.03, 0.001, 0.03):
        worker = crew.start(open_and_delete, folder, mode)
        alone = worker.receive()
        crew.release([worker])
        time.sleep(rng.uniform(0.0, bound_s))  # a random moment; nothing waits for it
        acknowledged = worker.connection.poll(0)
        kill_everything(folder, [worker])
        with reopen(folder) as database:
            index = RunIndex(database)
            if index.exists(DOOMED):
                assert not acknowledged
                assert_whole(database)
                index.delete_run(DOOMED)
            assert_gone(database)
            wait_for_erasure(database, alone)


def delete_and_wait(channel: Channel, folder: Path, mode: str, checkpoint: bool) -> None:
    """Deletes under an open snapshot; what is left to do is in the log, or in a checkpoint."""
    database = open_folder(folder, mode)
    alone = prepare(database)
    with database.snapshot() as snapshot:
        RunIndex(database).delete_run(DOOMED)
        if checkpoint:
            database.checkpoint()
        else:
            database.flush()
        assert count_of(snapshot) == KEYS
        channel.send((alone, database.metrics().keys))
        channel.receive()
        database.close()  # with the snapshot
    channel.send("closed")


@pytest.mark.crash
@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("checkpoint", [True, False], ids=["checkpoint", "log"])
@pytest.mark.parametrize("mode", ["buffered", "strict"])
def test_an_erasure_that_was_pending_is_finished_by_the_next_open(
    mode: str, checkpoint: bool, end: str, folder: Path, crew: Crew
) -> None:
    worker = crew.start(delete_and_wait, folder, mode, checkpoint)
    alone, left = worker.receive()
    assert left > alone + KEYS, "nothing was pending"
    if end == "close":
        worker.send("close")
        worker.expect("closed")
        worker.join()
    else:
        kill_everything(folder, [worker])
    with reopen(folder) as database:
        assert_gone(database)
        with pytest.raises(errors.NotFound):
            RunIndex(database).complete_run(DOOMED)
        wait_for_erasure(database, alone)
    with reopen(folder) as database:
        assert_gone(database)
        assert database.metrics().keys == alone
        prepare(database)
        assert_whole(database)
