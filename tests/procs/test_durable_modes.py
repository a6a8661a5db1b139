"""test_durable_modes.py - what each of the four modes promises, while nothing goes wrong."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness.durable import (
    LOGGED,
    RUN,
    kill_coordinator,
    kill_everything,
    open_folder,
    start_opener,
    stop_coordinator,
    wait_for_successor,
)
from tests.harness.shared import segment_names, segments_exist
from tests.harness.workers import Channel, Crew, wait_until

MEMORY = Durability.in_memory()
NEVER = Durability.buffered(flush_interval_ms=3_600_000, max_pending_writes=1_000_000_000)
LAP = 4 << 20  # of the ring, in a database of 64 MiB


# -- closing and opening again ----------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_what_was_written_is_there_after_the_last_close(mode: str, folder: Path) -> None:
    for turn in range(3):
        with open_folder(folder, mode) as database:
            kv = KVStore(database)
            assert database.durability == Durability.of(mode)
            assert (database.recovery is not None) == (turn > 0)
            assert kv.scan(RUN) == [(f"turn/{number}", number) for number in range(turn)]
            version = kv.put(RUN, f"turn/{turn}", turn)
            assert version == turn + 1
            names = segment_names(database)
        assert not segments_exist(names)
        assert coordinator.read_info(folder) is None


def test_in_memory_nothing_is_written_to_disk(folder: Path) -> None:
    with open_folder(folder, "in_memory") as database:
        KVStore(database).put(RUN, "key", 1)
        database.flush()
        database.checkpoint()
        metrics = database.metrics()
        assert (metrics.durable_version, metrics.log_bytes, metrics.syncs) == (0, 0, 0)
        assert database.recovery is None
    assert sorted(path.name for path in folder.iterdir()) == ["coordinator.lock"]


def test_the_mode_is_chosen_anew_by_each_first_open(folder: Path) -> None:
    for turn, mode in enumerate([*LOGGED, "buffered", "no_durability", "strict"]):
        with open_folder(folder, mode) as database:
            assert database.durability == Durability.of(mode)
            assert KVStore(database).incr(RUN, "turn") == turn + 1


def test_joining_adopts_the_mode_and_refuses_another(folder: Path) -> None:
    mode = Durability.buffered(flush_interval_ms=7, max_pending_writes=9)
    with open_folder(folder, mode) as database:
        with Database.open(folder) as joined, Database.open(folder, mode) as again:
            assert joined.durability == again.durability == mode
        assert pickle.loads(pickle.dumps(database)).durability == mode
        for other in (Durability.strict(), Durability.buffered(), MEMORY):
            with pytest.raises(errors.InvalidOperation, match="open as buffered"):
                Database.open(folder, other)


@pytest.mark.parametrize("mode", LOGGED)
def test_a_folder_with_a_log_is_refused_in_memory_and_left_as_it_is(
    mode: str, folder: Path
) -> None:
    with open_folder(folder, mode) as database:
        KVStore(database).put(RUN, "key", 1)
    for _ in range(2):
        with pytest.raises(errors.InvalidOperation, match="log on disk"):
            Database.open(folder, MEMORY)
        assert coordinator.read_info(folder) is None
    with Database.open(folder) as database:
        assert KVStore(database).get(RUN, "key") == 1


def test_a_folder_that_was_used_in_memory_may_get_a_log(folder: Path) -> None:
    with open_folder(folder, "in_memory") as database:
        KVStore(database).put(RUN, "key", 1)
    with open_folder(folder, "strict") as database:
        assert KVStore(database).get(RUN, "key") is None
        assert database.recovery is None or database.recovery.last_version == 0


# -- what readers see -------------------------------------------------------------------------


def put_and_say(channel: Channel, database: Database, stall_s: float) -> None:
    """One put, which may find the log writer silent; says how it ended."""
    database._engine.set_log_stall(stall_s)
    channel.ready()
    try:
        channel.send(KVStore(database).put(RUN, "key", "new"))
    except errors.Unavailable as error:
        channel.send((error.in_doubt, str(error)))


def test_readers_in_strict_see_only_what_is_durable(folder: Path, crew: Crew) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        kv.put(RUN, "key", "old")
        durable = database.metrics().version
        writer = crew.start(put_and_say, database, 30.0)
        stopped = stop_coordinator(folder)
        crew.release([writer])
        wait_until(lambda: database.metrics().version == durable + 1, "the commit in memory")
        assert database.metrics().durable_version == durable
        assert kv.get(RUN, "key") == "old"
        assert kv.get_many(RUN, ["key"]) == ["old"]
        assert kv.scan(RUN) == [("key", "old")]
        assert [entry.value for entry in kv.history(RUN, "key")] == ["old"]
        with database.snapshot() as snapshot:
            assert snapshot.version == durable
            assert snapshot.get(RUN, "key") == "old"
            os.kill(stopped.pid, signal.SIGCONT)
            assert writer.receive() == durable + 1
            assert snapshot.get(RUN, "key") == "old"
        assert kv.get(RUN, "key") == "new"
        assert database.metrics().durable_version == durable + 1


@pytest.mark.parametrize("mode", ["no_durability", "buffered"])
def test_readers_in_other_modes_see_what_is_committed(mode: str, folder: Path) -> None:
    with open_folder(folder, NEVER if mode == "buffered" else mode) as database:
        kv = KVStore(database)
        stopped = stop_coordinator(folder)
        for number in range(100):
            kv.put(RUN, "key", number)
            assert kv.get(RUN, "key") == number
        assert database.metrics().durable_version == 0
        assert database.metrics().log_ring_bytes > 0
        os.kill(stopped.pid, signal.SIGCONT)


# -- when it is synced ------------------------------------------------------------------------


def test_strict_is_durable_when_it_is_acknowledged(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        for number in range(20):
            version = kv.put(RUN, "key", number)
            assert database.metrics().durable_version >= version
        assert database.metrics().syncs >= 20
        kv.mset(RUN, {"a": 1, "b": 2})
        database.transaction(RUN, lambda txn: txn.kv_put("c", 3))
        kv.incr(RUN, "d")
        kv.delete(RUN, "a")
        metrics = database.metrics()
        assert metrics.durable_version == metrics.version == 24


def test_buffered_syncs_after_the_interval(folder: Path) -> None:
    mode = Durability.buffered(flush_interval_ms=30, max_pending_writes=1_000_000)
    with open_folder(folder, mode) as database:
        for _ in range(3):
            version = KVStore(database).incr(RUN, "key") and database.metrics().version
            took = wait_until(
                lambda version=version: database.metrics().durable_version >= version,  # type: ignore[misc]
                "the sync of the interval",
                5,
            )
            assert took > 0.001, "it was synced at once"


def test_buffered_syncs_after_the_number_of_commits(folder: Path) -> None:
    mode = Durability.buffered(flush_interval_ms=3_600_000, max_pending_writes=50)
    with open_folder(folder, mode) as database:
        kv = KVStore(database)
        for number in range(500):
            kv.put(RUN, "key", number)
        wait_until(lambda: database.metrics().durable_version >= 450, "syncs by count", 5)
        syncs = database.metrics().syncs
        kv.put(RUN, "key", "one more")
        assert 1 <= syncs <= 10
        assert database.metrics().durable_version <= 500


@pytest.mark.parametrize("mode", ["no_durability", "buffered"])
def test_flush_returns_when_everything_is_durable(mode: str, folder: Path) -> None:
    with open_folder(folder, NEVER if mode == "buffered" else mode) as database:
        kv = KVStore(database)
        other = pickle.loads(pickle.dumps(database))
        for turn in range(1, 6):
            KVStore(other).put(RUN, "other", turn)
            version = kv.put(RUN, "key", turn)
            assert database.metrics().durable_version < version
            database.flush()
            metrics = database.metrics()
            assert metrics.durable_version == version
            assert metrics.syncs == turn
            assert metrics.log_ring_bytes == 0
        database.flush()
        assert database.metrics().syncs == 5
        other.close()


def test_metrics_tell_of_the_log(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        for number in range(10):
            kv.put(RUN, f"key/{number}", b"v" * 100)
        metrics = database.metrics()
        assert 10 * 100 < metrics.log_bytes < 10 * 100 * 3
        assert metrics.checkpoint_version == metrics.checkpoint_bytes == 0
        database.checkpoint()
        metrics = database.metrics()
        assert metrics.checkpoint_version == 10
        assert metrics.checkpoint_bytes > 10 * 100
        assert metrics.log_bytes == 0


@pytest.mark.parametrize("mode", LOGGED[:2])
def test_the_log_goes_on_through_many_laps_of_its_ring(mode: str, folder: Path) -> None:
    """The log writer took the gap at the end of a lap for a write of a whole ring: it stood still
    for ever, and so did the next commit."""
    with open_folder(folder, mode) as database:
        kv = KVStore(database)
        written = 0
        while written < 5 * LAP:
            kv.mset(RUN, {f"key/{number}": b"v" * 1000 for number in range(50)})
            kv.mdelete(RUN, [f"key/{number}" for number in range(50)])
            written += 50_000
        version = database.metrics().version
    with Database.open(folder) as database:
        assert database.metrics().version >= version
        assert KVStore(database).list(RUN) == []


# -- what survives the death of every process -------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize("mode", ["in_memory", *LOGGED])
def test_what_survives_the_death_of_every_process(mode: str, folder: Path, crew: Crew) -> None:
    """The ring is in memory, so what is acknowledged survives in every mode with a log."""
    opener = crew.start(start_opener, folder, mode, {})
    opener.expect("open")
    writer = crew.start(write_some, folder, 200)
    crew.release([writer])
    version = writer.receive()
    if mode != "strict":
        stop_coordinator(folder)
    writer.send("more")
    version = writer.receive()
    kill_everything(folder, [opener, writer])
    wanted = "strict" if mode != "in_memory" else mode
    with open_folder(folder, wanted) as database:
        kv = KVStore(database)
        if mode == "in_memory":
            assert kv.list(RUN) == []
            return
        assert database.metrics().version == version
        assert [kv.get(RUN, f"key/{number}") for number in range(400)] == list(range(400))
        assert database.recovery is not None
        assert database.recovery.last_version == version
        assert database.recovery.cut_bytes == 0


def write_some(channel: Channel, folder: Path, count: int) -> None:
    """Writes `count` keys when told, again and again; says the newest version."""
    with Database.open(folder) as database:
        kv = KVStore(database)
        channel.ready()
        first = 0
        while True:
            for number in range(first, first + count):
                version = kv.put(RUN, f"key/{number}", number)
            first += count
            channel.send(version)
            channel.receive()


@pytest.mark.crash
def test_a_successor_keeps_the_mode_and_the_figures(folder: Path) -> None:
    mode = Durability.buffered(flush_interval_ms=11, max_pending_writes=13)
    with open_folder(folder, mode) as database:
        KVStore(database).put(RUN, "key", 1)
        database.flush()
        before = database.metrics()
        wait_for_successor(folder, kill_coordinator(folder))
        assert database.durability == mode
        assert database.metrics().durable_version == before.durable_version
        KVStore(database).put(RUN, "key", 2)
        database.flush()
        assert database.metrics().syncs > before.syncs
    assert coordinator.read_info(folder) is None
