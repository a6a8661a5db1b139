"""test_durable_limits.py - a full ring, a stopped coordinator, a small /dev/shm, large values."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shm_engine import errors
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness import private_shm
from tests.harness.durable import LOGGED, RUN, open_folder, reopen, stop_coordinator
from tests.harness.shared import FOLDER, check_structure
from tests.harness.workers import Channel, Crew, wait_until

MIB = 1 << 20
RING = 128 * MIB


@contextmanager
def coordinator_stopped(folder: Path) -> Iterator[None]:
    """Stands meanwhile."""
    info = stop_coordinator(folder)
    try:
        yield
    finally:
        os.kill(info.pid, signal.SIGCONT)


# -- a coordinator that stands ----------------------------------------------------------------


def test_strict_calls_that_find_the_coordinator_stopped_say_so_after_a_bound(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        kv.put(RUN, "key", "early")
        database._engine.set_log_stall(0.2)
        with coordinator_stopped(folder):
            with pytest.raises(errors.Unavailable, match=r"has synced it for 0\.2 s") as put:
                kv.put(RUN, "key", "late")
            assert put.value.in_doubt
            assert kv.get(RUN, "key") == "early"
            with pytest.raises(errors.Unavailable, match="stopped"):
                database.transaction(RUN, lambda txn: txn.kv_put("other", 1))
            with pytest.raises(errors.Unavailable, match="stopped"):
                database.checkpoint()
            with pytest.raises(errors.Unavailable, match="stopped"):
                database.flush()
        wait_until(lambda: kv.get(RUN, "key") == "late", "the commit in doubt shows", 5)
        assert kv.get(RUN, "other") == 1
        assert kv.put(RUN, "key", "again") == database.metrics().durable_version
        database.checkpoint()


@pytest.mark.parametrize("mode", LOGGED[:2])
def test_flush_and_checkpoint_say_so_after_a_bound_in_other_modes(mode: str, folder: Path) -> None:
    with open_folder(folder, mode) as database:
        kv = KVStore(database)
        database._engine.set_log_stall(0.2)
        with coordinator_stopped(folder):
            kv.put(RUN, "key", 1)
            with pytest.raises(errors.Unavailable, match="stopped"):
                database.flush()
            with pytest.raises(errors.Unavailable, match="stopped"):
                database.checkpoint()
            assert kv.get(RUN, "key") == 1
        database.flush()
        database.checkpoint()


@pytest.mark.parametrize("mode", LOGGED[:2])
def test_writers_wait_for_a_full_ring_get_an_error_after_a_bound_and_lose_nothing(
    mode: str, folder: Path
) -> None:
    with open_folder(folder, mode, map_size=256 * MIB) as database:
        kv = KVStore(database)
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        database._engine.set_stall(0.3)
        written = 0
        with coordinator_stopped(folder):
            refused: errors.Unavailable | None = None
            while refused is None:
                try:
                    kv.put(RUN, "key", [written + 1, b"v" * MIB])
                    written += 1
                except errors.Unavailable as error:
                    refused = error
            assert "ring has been full for 0.3 s" in str(refused)
            assert not refused.in_doubt
            assert written > 50, "the ring holds 128 MiB"
            assert kv.get(RUN, "key")[0] == written
            with pytest.raises(errors.Unavailable, match="ring"):
                kv.put(RUN, "other", b"v" * MIB)
            assert database.metrics().log_ring_bytes <= RING
        version = kv.put(RUN, "other", "goes on")
        assert kv.get(RUN, "key")[0] == written
        database.flush()
        assert database.metrics().durable_version >= version
    with reopen(folder, map_size=256 * MIB) as database:
        kv = KVStore(database)
        assert kv.get(RUN, "key")[0] == written
        assert kv.get(RUN, "other") == "goes on"


def test_a_writer_that_waits_for_the_ring_goes_on_with_the_coordinator(
    folder: Path, crew: Crew
) -> None:
    with open_folder(folder, "buffered", map_size=256 * MIB) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        with coordinator_stopped(folder):
            writer = crew.start(fill_ring, database)
            writer.expect("waits soon")
            assert KVStore(database).get(RUN, "large") is not None  # readers are held up by nothing
        assert writer.receive() == 200
        writer.join()
        assert KVStore(database).get(RUN, "large")[0] == 199


def fill_ring(channel: Channel, database: Database) -> None:
    """More than the ring holds."""
    kv = KVStore(database)
    database._engine.set_stall(30.0)
    for number in range(200):
        if number == 100:
            channel.send("waits soon")
        kv.put(RUN, "large", [number, b"v" * MIB])
    channel.send(200)
    database.close()


# -- size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_the_largest_values_and_write_sets_come_back(mode: str, folder: Path) -> None:
    value = b"0123456789abcdef" * MIB  # 16 MiB
    small = b"v" * 700
    with open_folder(folder, mode, map_size=512 * MIB) as database:
        kv = KVStore(database)
        for number in range(3):
            kv.put(RUN, f"large/{number}", value)
        kv.mset(RUN, {f"three/{number}": value for number in range(3)})
        kv.mset(RUN, {f"many/{number:05}": small for number in range(70_000)})
        version = database.metrics().version
        with pytest.raises(errors.ConstraintViolation, match="write set"):
            kv.mset(RUN, {f"four/{number}": value for number in range(4)})
        assert database.metrics().version == version
        kv.mdelete(RUN, [f"three/{number}" for number in range(3)])
    with reopen(folder, map_size=512 * MIB) as database:
        kv = KVStore(database)
        assert all(kv.get(RUN, f"large/{number}") == value for number in range(3))
        assert kv.list(RUN, "three/") == kv.list(RUN, "four/") == []
        assert len(kv.list(RUN, "many/")) == 70_000
        assert kv.get(RUN, "many/69999") == small
        assert database.metrics().version == version + 1


def test_a_map_that_is_too_small_for_the_files_is_an_error_and_changes_nothing(
    folder: Path,
) -> None:
    with open_folder(folder, map_size=64 * MIB) as database:
        for number in range(20):
            KVStore(database).put(RUN, f"large/{number}", b"v" * MIB)
    for _ in range(2):
        with pytest.raises(errors.StorageFull, match="larger map_size"):
            open_folder(folder, map_size=4 * MIB)
    with reopen(folder) as database:
        assert len(KVStore(database).list(RUN)) == 20


@pytest.mark.parametrize("mode", LOGGED)
def test_as_many_threads_as_there_are_slots_commit(mode: str, folder: Path) -> None:
    """The slots are all taken: a checkpoint has to do without one of them."""
    with open_folder(folder, mode, max_clients=9) as database:
        kv = KVStore(database)
        gate = threading.Barrier(9)
        outcomes: list[object] = []

        def commit(number: int) -> None:
            for turn in range(20):
                kv.put(RUN, f"key/{number}", turn)
            gate.wait()  # all hold their slots
            gate.wait()
            outcomes.append(kv.get(RUN, f"key/{number}"))

        threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        gate.wait()
        with pytest.raises(errors.Unavailable, match="max_clients"):
            kv.put(RUN, "no slot", 1)
        database.flush()
        try:
            database.checkpoint()
        finally:
            gate.wait()
            for thread in threads:
                thread.join()
        assert outcomes == [19] * 8
    with reopen(folder) as database:
        assert len(KVStore(database).list(RUN)) == 8


# -- a small /dev/shm -------------------------------------------------------------------------


def in_a_small_shm(
    channel: Channel, body: Callable[..., object], size: int, *arguments: object
) -> None:
    """Runs the body where /dev/shm has that much room."""
    private_shm.enter(size)
    body(*arguments)


@pytest.mark.skipif(
    private_shm.SKIP_VARIABLE in os.environ,
    reason=f"{private_shm.SKIP_VARIABLE} is set: no mount namespaces here",
)
@pytest.mark.parametrize("mode", LOGGED)
def test_a_small_shm_takes_writes_until_it_is_full_and_all_come_back(
    mode: str, folder: Path, crew: Crew
) -> None:
    crew.start(in_a_small_shm, fill_a_small_shm, 12 * MIB, folder, mode).join(60)


def put_some(kv: KVStore, first: int, count: int) -> bool:
    """So many keys in one commit; False: there was no room."""
    try:
        kv.mset(RUN, {f"key/{number:06}": b"v" * 1000 for number in range(first, first + count)})
    except errors.StorageFull:
        return False
    return True


def fill_a_small_shm(folder: Path, mode: str) -> None:
    """The ring and the arena share what there is."""
    per_commit = 20
    with open_folder(folder, mode) as database:
        kv = KVStore(database)
        written = 0
        while put_some(kv, written * per_commit, per_commit):
            written += 1
        assert written * per_commit > 2000
        assert len(kv.list(RUN)) == written * per_commit
        for number in range(100):
            assert kv.delete(RUN, f"key/{number:06}")
        for turn in range(200):  # many laps of whatever ring there is room for
            kv.put(RUN, "key/000200", [turn, b"v" * 500])
        check_structure(database)
    assert [path for path in FOLDER.iterdir() if path.name.startswith("shm_engine")] == []
    with reopen(folder) as database:
        kv = KVStore(database)
        assert len(kv.list(RUN)) == written * per_commit - 100
        assert kv.get(RUN, "key/000200")[0] == 199
