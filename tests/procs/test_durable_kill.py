"""test_durable_kill.py - SIGKILL of the coordinator, of writers, of everything, at any moment.

Nothing that was acknowledged may be missing afterwards, and nothing may be torn.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.segments import clear_leftovers
from tests.harness.disk import Disk, Kind
from tests.harness.durable import (
    LOGGED,
    RUN,
    Writer,
    check_writers,
    info_of,
    join_and_write,
    keep_some_history,
    kill_coordinator,
    kill_everything,
    open_folder,
    reopen,
    start_opener,
    stop_coordinator,
    wait_for_successor,
    write_on,
)
from tests.harness.shared import FOLDER, check_structure, segments_by
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Worker, wait_until

WRITERS = 4
pytestmark = pytest.mark.crash


def end(workers: list[Worker]) -> None:
    """Tells them to stop, and waits for a good end."""
    for worker in workers:
        worker.send("stop")
    for worker in workers:
        worker.join()


# -- the coordinator --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_commits_go_on_when_the_coordinator_is_killed_and_none_is_lost(
    mode: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with open_folder(folder, mode) as database:
        keep_some_history(database)
        workers = crew.start_many(WRITERS, write_on, database, tally)
        crew.release(workers)
        for _ in range(3):
            crew.watch(workers, rng.uniform(0.0, 0.1))
            dead = kill_coordinator(folder)
            before = [tally[2 * number + 1] for number in range(WRITERS)]
            successor = wait_for_successor(folder, dead)
            assert successor.segments == dead.segments
            wait_until(
                lambda before=before: all(  # type: ignore[misc]
                    tally[2 * number + 1] > before[number] + 5 for number in range(WRITERS)
                ),
                "commits of every writer after the death",
            )
        end(workers)
        check_writers(database, tally, range(WRITERS))
        check_structure(database)
        version = database.metrics().version
    with reopen(folder) as database:
        assert database.metrics().version >= version
        check_writers(database, tally, range(WRITERS))


def commit_once(channel: Channel, number: int, database: Database) -> None:
    """One strict commit; says its version, or what it was told instead."""
    database._engine.set_log_stall(20.0)
    channel.ready()
    channel.send(KVStore(database).put(RUN, f"key/{number}", number))


def test_strict_commits_that_wait_learn_their_outcome_from_the_successor(
    folder: Path, crew: Crew
) -> None:
    with open_folder(folder, "strict") as database:
        before = database.metrics().version
        workers = crew.start_many(WRITERS, commit_once, database)
        stopped = stop_coordinator(folder)
        crew.release(workers)
        wait_until(lambda: database.metrics().version == before + WRITERS, "all in memory")
        assert database.metrics().durable_version == before
        assert KVStore(database).list(RUN) == []
        os.kill(stopped.pid, signal.SIGKILL)
        versions = [worker.receive(10) for worker in workers]
        assert sorted(versions) == list(range(before + 1, before + WRITERS + 1))
        assert database.metrics().durable_version == before + WRITERS
        assert KVStore(database).list(RUN) == [f"key/{number}" for number in range(WRITERS)]


def test_a_coordinator_killed_again_and_again_at_its_file_operations_loses_nothing(
    folder: Path, crew: Crew, tally: Tally, disk: Disk, rng: random.Random
) -> None:
    with open_folder(folder, "strict") as database:
        keep_some_history(database)
        workers = crew.start_many(2, write_on, database, tally)
        crew.release(workers)
        for _ in range(6):
            info = info_of(folder)
            disk.kill(rng.randrange(1, 60))
            wait_for_successor_after(info, folder)
            disk.heal()
        end(workers)
        check_writers(database, tally, range(2))
    with reopen(folder) as database:
        check_writers(database, tally, range(2))


def wait_for_successor_after(info: coordinator.Info, folder: Path) -> None:
    """Until the disk has killed this one, and another serves."""
    assert coordinator.wait_for_end(info.identity, 20), "the disk has killed nobody"
    wait_for_successor(folder, info)


# -- in the middle of what the coordinator does with files -------------------------------------


def write_and_rotate(database: Database, turn: int) -> None:
    """Enough for the next log file."""
    kv = KVStore(database)
    for number in range(20):
        kv.put(RUN, f"large/{number}", bytes([turn]) * (1 << 20))


@pytest.mark.parametrize("mode", ["no_durability", "strict"])
def test_a_coordinator_that_dies_in_a_rotation_loses_nothing(
    mode: str, folder: Path, disk: Disk
) -> None:
    steps = [
        (Kind.RESERVE, "wal/spare"),
        (Kind.WRITE, "wal/spare"),
        (Kind.RENAME, "wal/0"),
        (Kind.WRITE, "wal/0"),
    ]
    if mode == "strict":
        steps += [(Kind.SYNC, "wal/spare"), (Kind.SYNC, "wal/0")]
    with open_folder(folder, mode) as database:
        for turn, (kind, match) in enumerate(steps):
            info = info_of(folder)
            disk.kill(1, kind, match)
            write_and_rotate(database, turn)
            database.flush()
            assert disk.acted == 1, f"no {kind!r} of {match}"
            assert not info.is_alive()
            wait_until(lambda: info_of(folder).is_alive(), "a successor", 5)
            assert KVStore(database).get(RUN, "large/7") == bytes([turn]) * (1 << 20)
        last = len(steps) - 1
    with reopen(folder) as database:
        kv = KVStore(database)
        assert [kv.get(RUN, f"large/{number}")[0] for number in range(20)] == [last] * 20


def test_a_coordinator_that_dies_in_a_checkpoint_loses_nothing(folder: Path, disk: Disk) -> None:
    """At each of its file operations; the request is answered by the successor."""
    number = 0
    with open_folder(folder, "buffered") as database:
        kv = KVStore(database)
        kv.mset(RUN, {f"key/{number}": b"v" * 50_000 for number in range(50)})
        while disk.acted or number == 0:
            number += 1
            version = kv.put(RUN, "turn", number)
            database.flush()
            disk.kill(number, match="checkpoint")
            database.checkpoint()
            assert database.metrics().checkpoint_version == version
            wait_until(lambda: info_of(folder).is_alive(), "a successor", 5)
        disk.heal()
        assert number > 5
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "turn") == number
        assert len(list((folder / "checkpoint").iterdir())) == 1


def leave_a_full_ring(folder: Path, crew: Crew, tally: Tally, mode: str = "buffered") -> int:
    """Kills everything at a moment when the log is far behind; how many commits it holds."""
    opener = crew.start(start_opener, folder, mode, {})
    opener.expect("open")
    worker = crew.start(write_a_number, folder, tally)
    crew.release([worker])
    worker.send(300)
    worker.expect("written")
    stop_coordinator(folder)
    worker.send(300)
    worker.expect("written")
    kill_everything(folder, [opener, worker])
    return tally[1]


def write_a_number(channel: Channel, folder: Path, tally: Tally) -> None:
    """Commits as many as it is told, the first half flushed."""
    with reopen(folder) as database:
        writer = Writer(0, tally)
        writer.tally[0] = writer.tally[1] = KVStore(database).get(RUN, writer.key) or 0
        channel.ready()
        while True:
            for _ in range(channel.receive()):
                writer.write(database)
            channel.send("written")


def opened_although_killed(folder: Path) -> Database | None:
    """An open during which the coordinator may die."""
    try:
        return reopen(folder)
    except errors.Unavailable:
        return None


def test_a_death_at_any_file_operation_of_saving_the_ring_and_recovering_loses_nothing(
    folder: Path, crew: Crew, tally: Tally, disk: Disk, rng: random.Random
) -> None:
    leave_a_full_ring(folder, crew, tally)
    disk.count()
    with reopen(folder) as database:
        check_writers(database, tally, [0])
        steps = disk.seen
    assert steps > 10
    for number in [1, steps, *rng.sample(range(2, steps), 6)]:
        before = leave_a_full_ring(folder, crew, tally)
        assert tally[0] == before
        disk.kill(number)
        database_or_none = opened_although_killed(folder)
        if database_or_none is not None:
            check_writers(database_or_none, tally, [0])
        assert disk.acted == 1, f"{number} of {steps}"
        disk.heal()
        with reopen(folder) as database:
            assert check_writers(database, tally, [0]) == before
            check_structure(database)
            if database_or_none is not None:
                database_or_none.close()


def test_recoveries_that_die_one_after_the_other_come_to_the_same_end(
    folder: Path, crew: Crew, tally: Tally, disk: Disk
) -> None:
    before = leave_a_full_ring(folder, crew, tally)
    for number in range(1, 40):
        disk.kill(number)
        database = opened_although_killed(folder)
        if database is not None:
            disk.heal()
            with database:
                assert check_writers(database, tally, [0]) == before
            break
        assert disk.acted == 1
    else:
        raise AssertionError("it was never recovered")


def test_a_death_at_any_file_operation_of_the_last_close_loses_nothing(
    folder: Path, disk: Disk
) -> None:
    steps, number = 1, 0
    while number < steps:
        with open_folder(folder, "buffered") as database:
            kv = KVStore(database)
            assert kv.incr(RUN, "turn") == number + 1
            version = database.metrics().version
            kv.put(RUN, "key", [number] * 100)
            if number == 0:
                disk.count()
            else:
                disk.kill(number)
        if number == 0:
            steps = disk.seen
            assert steps > 5
        else:
            assert disk.acted == 1
        disk.heal()
        number += 1
        with reopen(folder) as database:
            assert KVStore(database).get(RUN, "key") == [number - 1] * 100
            assert database.metrics().version == version + 1


def controls_of(folder: Path) -> set[str]:
    """The control segments that were made for this folder: their header says so."""
    found = set()
    for path in FOLDER.glob("shm_engine.*.c"):
        with suppress(FileNotFoundError), path.open("rb") as control:
            if os.fsencode(folder) + b"\0" in control.read(4096):
                found.add(f"/{path.name}")
    return found


def test_segments_of_a_recovery_that_was_killed_do_not_stay(folder: Path, disk: Disk) -> None:
    """Made, recovered into, and never named by coordinator.json: nobody will ever look there."""
    with open_folder(folder, "buffered") as database:
        KVStore(database).put(RUN, "key", 1)
    with disk.in_use():
        disk.count(Kind.RENAME, "coordinator.json")
        with open_folder(folder, "buffered"):
            last = disk.seen
        assert controls_of(folder) == set()
        disk.kill(last, Kind.RENAME, "coordinator.json")
        with pytest.raises(errors.Unavailable):
            open_folder(folder, "buffered")
        disk.heal()
    assert len(controls_of(folder)) == 1
    clear_leftovers()
    with open_folder(folder, "buffered") as database:
        assert controls_of(folder) == {database._segments.control}
        assert KVStore(database).get(RUN, "key") == 1


# -- everything -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_after_the_death_of_all_the_next_open_finds_what_was_acknowledged(
    mode: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    numbers = range(WRITERS)
    for turn in range(3):
        opener = crew.start(start_opener, folder, mode, {})
        opener.expect("open")
        for number in numbers:  # whatever was begun and not acknowledged may have happened
            tally[2 * number] = tally[2 * number + 1] = found(folder, f"writer/{number}")
        workers = crew.start_many(WRITERS, join_and_write, folder, tally)
        crew.release(workers)
        crew.watch(workers, rng.uniform(0.05, 0.2))
        victims = [opener, *workers]
        rng.shuffle(victims)
        if turn == 1:
            os.kill(info_of(folder).pid, signal.SIGKILL)
        kill_everything(folder, victims)
        with reopen(folder) as database:
            check_writers(database, tally, numbers)
            check_structure(database)


def found(folder: Path, key: str) -> int:
    with reopen(folder) as database:
        return KVStore(database).get(RUN, key) or 0


def test_a_ring_that_was_left_survives_the_opens_of_other_databases(
    folder: Path, crew: Crew, tally: Tally
) -> None:
    before = leave_a_full_ring(folder, crew, tally)
    Database.ephemeral(map_size=1 << 20).close()
    clear_leftovers()
    with open_folder(folder.with_name("other"), "in_memory"):
        pass
    with reopen(folder) as database:
        assert check_writers(database, tally, [0]) == before


def test_a_ring_of_a_folder_with_a_long_or_strange_name_survives_other_opens(
    tmp_path: Path, crew: Crew, tally: Tally
) -> None:
    long = tmp_path / "/".join("long" * 50 for _ in range(6))
    strange = Path(os.fsdecode(os.fsencode(tmp_path / "strange") + b"\xff\xc3"))
    for folder in (long, strange):
        tally[0] = tally[1] = 0
        before = leave_a_full_ring(folder, crew, tally)
        clear_leftovers()
        with reopen(folder) as database:
            assert check_writers(database, tally, [0]) == before


def test_the_ring_of_a_folder_that_is_gone_is_kept_for_a_day(
    tmp_path: Path, crew: Crew, tally: Tally
) -> None:
    """The folder may have been renamed: the next open of it asks for the ring."""
    folder = tmp_path / "gone"
    leave_a_full_ring(folder, crew, tally)
    info = info_of(folder)
    shutil.rmtree(folder)
    clear_leftovers()
    left = segments_by(info.pid)
    assert len(left) == 2
    yesterday = time.time() - 25 * 3600
    for name in left:
        os.utime(Path("/dev/shm") / name, (yesterday, yesterday))
    clear_leftovers()
    assert segments_by(info.pid) == []


# -- for some seconds, at random --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", LOGGED)
def test_random_kills_of_workers_and_coordinators_lose_nothing(
    mode: str, folder: Path, crew: Crew, tmp_path: Path, rng: random.Random
) -> None:
    """Whoever comes in place of a dead writer has a key of its own: the last commit of the dead one
    may still happen."""
    tally = Tally(tmp_path / "many", 4096)
    until = time.monotonic() + 4.0
    begun = deaths = 0

    def start_writer() -> Worker:
        nonlocal begun
        begun += 1
        return crew.start(join_and_write, begun - 1, folder, tally)

    while time.monotonic() < until:
        opener = crew.start(start_opener, folder, mode, {})
        opener.expect("open")
        workers = [start_writer() for _ in range(WRITERS)]
        crew.release(workers)
        for _ in range(rng.randrange(4)):
            time.sleep(rng.uniform(0.0, 0.05))  # a random moment; nothing waits for it
            victim = rng.randrange(WRITERS + 1)
            deaths += 1
            if victim == WRITERS:
                os.kill(info_of(folder).pid, signal.SIGKILL)
                continue
            workers[victim].kill()
            workers[victim] = start_writer()
            crew.release([workers[victim]])
        if rng.randrange(3):
            kill_everything(folder, [opener, *workers])
        else:
            end(workers)
            opener.send("close")
            opener.join()
        with reopen(folder) as database:
            check_writers(database, tally, range(begun))
            check_structure(database)
    print(f"{deaths} deaths, {begun} writers")


# -- two that open while it recovers ----------------------------------------------------------


def open_and_count(channel: Channel, folder: Path) -> None:
    """Opens, however long that takes; says what it finds."""
    with reopen(folder) as database:
        channel.send(KVStore(database).get(RUN, "writer/0"))


def test_whoever_opens_during_a_long_recovery_waits_for_its_end(
    folder: Path, crew: Crew, tally: Tally, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one gave up after the time that a coordinator has to start in."""
    before = leave_a_full_ring(folder, crew, tally)
    disk.stop(1, Kind.RESERVE, "wal/spare")  # the log's next file, when all is recovered
    first = crew.start(open_and_count, folder)
    wait_until(lambda: disk.acted, "the first one recovers")
    stopped = info_of(folder)
    assert not stopped.is_serving
    monkeypatch.setattr(coordinator, "START_S", 0.5)
    opened: list[object] = []

    def open_too() -> None:
        with reopen(folder) as database:
            opened.append(check_writers(database, tally, [0]))

    second = threading.Thread(target=open_too)
    second.start()
    second.join(1.5)
    assert second.is_alive(), "it did not wait"
    os.kill(stopped.pid, signal.SIGCONT)
    second.join(20)
    assert opened == [before]
    assert first.receive() == before
    first.join()
