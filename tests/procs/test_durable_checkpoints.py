"""test_durable_checkpoints.py - checkpoints, disk use, and opening again: nothing changes by it."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from shm_engine import errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness.durable import (
    LOGGED,
    RUN,
    Content,
    check_writers,
    content_of,
    info_of,
    keep_some_history,
    kill_coordinator,
    open_folder,
    reopen,
    wait_for_successor,
    write_on,
)
from tests.harness.tally import Tally
from tests.harness.workers import Crew, wait_until

MIB = 1 << 20
NAMES = [f"name/{number:02}" for number in range(24)]
FAST = Durability.no_durability()


def files_of(folder: Path) -> dict[str, int]:
    """The database's files, and their sizes."""
    found = {}
    for part in ("wal", "checkpoint"):
        for path in (folder / part).iterdir():
            found[f"{part}/{path.name}"] = path.stat().st_size
    return found


def disk_use(folder: Path) -> int:
    """Bytes in blocks."""
    use = 0
    for path in [*folder.glob("wal/*"), *folder.glob("checkpoint/*")]:
        with suppress(FileNotFoundError):  # removed meanwhile
            use += path.stat().st_blocks * 512
    return use


# -- opening again changes nothing ------------------------------------------------------------


def write_at_random(database: Database, runs: list[RunId], rng: random.Random, count: int) -> None:
    """All kinds of writes: values of all types, deletes, increments, ends, transactions."""
    kv = KVStore(database)
    for _ in range(count):
        run, name = rng.choice(runs), rng.choice(NAMES)
        kind = rng.randrange(7)
        if kind == 0:
            kv.delete(run, name)
        elif kind == 1:
            kv.put(run, name, rng.randrange(100))
            kv.incr(run, name, rng.randrange(-5, 5))
        elif kind == 2:
            kv.put_with_ttl(run, name, "ends some day", timedelta(days=rng.randrange(1, 9)))
        elif kind == 3:
            kv.mset(run, {rng.choice(NAMES): [rng.random(), None, b"\0" * 9] for _ in range(3)})
        elif kind == 4:

            def several(txn: object, run: RunId = run, name: str = name) -> None:
                txn.kv_put(name, {"a": [1, {"b": "é"}]})  # type: ignore[attr-defined]
                txn.kv_delete(rng.choice(NAMES))  # type: ignore[attr-defined]

            database.transaction(run, several)
        elif kind == 5:
            kv.put(run, name, "x" * rng.randrange(3000))
        else:
            kv.cas(run, name, None, "was absent")


def all_runs(database: Database) -> list[RunId]:
    """Four, each with its own retention; the last has ended."""
    names = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)]
    runs = [RunId.DEFAULT, *(RunId(name) for name in names)]
    if database.metrics().version == 0:
        for run in runs[1:]:
            database.begin_run(run)
        database.set_retention(runs[1], RetentionPolicy.KeepLast(2))
        database.set_retention(runs[2], RetentionPolicy.KeepLast(1))
    return runs


@pytest.mark.parametrize("mode", LOGGED)
def test_opening_again_shows_everything_exactly_as_it_was(
    mode: str, folder: Path, rng: random.Random
) -> None:
    before: Content | None = None
    for turn in range(6):
        with open_folder(folder, mode) as database:
            runs = all_runs(database)
            if before is not None:
                before.check(content_of(database, runs, NAMES))
            write_at_random(database, runs[: 4 - (turn > 2)], rng, 60 if turn % 2 else 150)
            if turn == 2:
                database.end_run(runs[3])
            if turn > 2:
                with pytest.raises(errors.RunError):
                    KVStore(database).put(runs[3], "late", 1)
            if turn == 4:
                database.checkpoint()
            database._engine.sweep()  # what retention lets go is gone now, not in between
            before = content_of(database, runs, NAMES)


@pytest.mark.slow
def test_a_hundred_openings_change_nothing(folder: Path, rng: random.Random) -> None:
    with open_folder(folder, FAST) as database:
        runs = all_runs(database)
        write_at_random(database, runs, rng, 300)
        database._engine.sweep()
        before = content_of(database, runs, NAMES)
    with reopen(folder):
        pass
    files = files_of(folder)
    for turn in range(100):
        with reopen(folder) as database:
            if turn % 10 == 9:
                before.check(content_of(database, runs, NAMES))
            assert database.metrics().version == before.figures[0]
        assert files_of(folder) == files
    with reopen(folder) as database:
        version = KVStore(database).put(RUN, "one more", 1)
        assert version == before.figures[0] + 1


@pytest.mark.crash
def test_deaths_and_openings_in_turns_change_nothing(folder: Path, rng: random.Random) -> None:
    with open_folder(folder, FAST) as database:
        runs = all_runs(database)
        write_at_random(database, runs, rng, 200)
        database._engine.sweep()
        before = content_of(database, runs, NAMES)
        for turn in range(4):
            wait_for_successor(folder, kill_coordinator(folder))
            before.check(content_of(database, runs, NAMES))
            if turn % 2:
                database.checkpoint()
    with reopen(folder) as database:
        before.check(content_of(database, runs, NAMES))


def test_versions_and_times_go_on_where_they_were(folder: Path) -> None:
    newest = (0, 0)
    for _ in range(4):
        with open_folder(folder, "buffered") as database:
            kv = KVStore(database)
            kv.put(RUN, "key", 1)
            found = kv.get_versioned(RUN, "key")
            assert found is not None
            assert found.version.value == newest[0] + 1
            assert found.timestamp >= newest[1]
            newest = (found.version.value, found.timestamp)


def test_what_runs_out_while_the_database_is_closed_is_gone(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        kv.put_with_ttl(RUN, "soon", 1, 0.05)
        kv.put_with_ttl(RUN, "late", 1, 3600)
    wait_until_past = threading.Event()
    wait_until_past.wait(0.06)  # the value's own time, not another process's
    for _ in range(2):
        with reopen(folder) as database:
            kv = KVStore(database)
            assert kv.get(RUN, "soon") is None
            assert kv.get(RUN, "late") == 1
            left = kv.ttl(RUN, "late")
            assert left is not None
            assert timedelta(minutes=59) < left < timedelta(hours=1)


# -- when there is one, and what it removes ---------------------------------------------------


def test_a_checkpoint_on_demand_holds_everything_and_replaces_the_log(folder: Path) -> None:
    with open_folder(folder, "buffered") as database:
        kv = KVStore(database)
        for turn in range(3):
            for number in range(10):  # too little for one that comes by itself
                kv.put(RUN, f"large/{number}", bytes([turn]) * MIB)
            database.checkpoint()
            metrics = database.metrics()
            assert metrics.checkpoint_version >= 10 * (turn + 1)
            names = files_of(folder)
            assert [name for name in names if name.startswith("checkpoint/")] == [
                f"checkpoint/{metrics.version:020}.ckpt"
            ]
            assert len([name for name in names if name.endswith(".wal")]) <= 2
    with reopen(folder) as database:
        assert database.recovery is not None
        assert database.recovery.commits == 0
        assert database.recovery.checkpoint_version >= 30


def test_a_checkpoint_comes_when_the_log_has_grown(folder: Path) -> None:
    with open_folder(folder, FAST) as database:
        kv = KVStore(database)
        for turn in range(1, 4):
            before = database.metrics().checkpoint_version
            for number in range(40):
                kv.put(RUN, f"large/{number % 8}", bytes([turn]) * MIB)
            wait_until(
                lambda before=before: database.metrics().checkpoint_version > before,  # type: ignore[misc]
                "a checkpoint without being asked",
            )


def test_the_last_close_writes_one_and_the_next_open_replays_nothing(folder: Path) -> None:
    with open_folder(folder, "buffered") as database, reopen(folder) as other:
        version = KVStore(database).put(RUN, "key", 1)
        other.close()
        assert not list((folder).glob("checkpoint/*.ckpt"))
    assert [path.name for path in folder.glob("checkpoint/*")] == [f"{version:020}.ckpt"]
    with reopen(folder) as database:
        assert database.recovery is not None
        assert (database.recovery.commits, database.recovery.keys) == (0, 1)
    # Nothing was written meanwhile, so there is no reason for another one.
    assert [path.name for path in folder.glob("checkpoint/*")] == [f"{version:020}.ckpt"]


def test_overwriting_for_ever_takes_a_bounded_part_of_the_disk(folder: Path) -> None:
    """Sixteen times the map, of which one tenth is in use."""
    with open_folder(folder, FAST) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(1))
        kv = KVStore(database)
        most = 0
        for number in range(8000):
            kv.put(RUN, f"key/{number % 48}", [number, b"v" * 128_000])
            if number % 50 == 0:
                most = max(most, disk_use(folder))
        # How far the log runs ahead of a checkpoint is a matter of the disk; 1 GB is written.
        assert most < 500 * MIB
        database.checkpoint()
        assert disk_use(folder) < 64 * MIB
        assert database.metrics().checkpoint_bytes < 24 * MIB  # of 6 MiB in use
    with reopen(folder) as database:
        found = {value[0] for _, value in KVStore(database).scan(RUN)}
        assert found == set(range(7952, 8000))


@pytest.mark.crash
@pytest.mark.parametrize("mode", LOGGED)
def test_commits_go_on_during_checkpoints_and_each_holds_one_moment(
    mode: str, folder: Path, crew: Crew, tally: Tally
) -> None:
    with open_folder(folder, mode) as database:
        keep_some_history(database)
        kv = KVStore(database)
        kv.mset(RUN, {f"ballast/{number:04}": b"v" * 8000 for number in range(2000)})
        workers = crew.start_many(3, write_on, database, tally)
        crew.release(workers)
        slowest = 0
        for _ in range(5):
            before = tally.total()
            database.checkpoint()
            slowest = max(slowest, tally.total() - before)
        assert slowest > 0, "nobody committed during five checkpoints"
        assert info_of(folder).is_alive()
        for worker in workers:
            worker.kill()
    with reopen(folder) as database:
        check_writers(database, tally, range(3))
        assert len(KVStore(database).list(RUN, "ballast/")) == 2000


def test_many_who_ask_at_once_share_a_few(folder: Path) -> None:
    with open_folder(folder, "buffered") as database:
        KVStore(database).put(RUN, "key", 1)
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                database.checkpoint()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert database.metrics().checkpoint_version == 1
