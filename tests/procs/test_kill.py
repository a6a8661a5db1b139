"""test_kill.py - SIGKILL of a worker, of the opener, of the coordinator, of everything at once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from shm_engine.segments import clear_leftovers
from tests.harness.durable import info_of, kill_coordinator
from tests.harness.shared import (
    SequencerView,
    check_structure,
    segment_names,
    segments_by,
    segments_exist,
    stop_in_the_middle,
)
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Method, Worker, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
MANY = [f"many/{number:03}" for number in range(200)]
MAP_SIZE = 32 << 20
pytestmark = pytest.mark.crash


def count_up(channel: Channel, number: int, database: Database, tally: Tally) -> None:
    """Increments one shared counter without an end, noting each before and after."""
    kv = KVStore(database)
    channel.ready()
    while not channel.is_told():
        tally[2 * number] += 1
        kv.incr(RUN, "sum")
        tally[2 * number + 1] += 1


def check_sum(kv: KVStore, tally: Tally) -> None:
    """What was acknowledged is there, and at most one more for each that was killed."""
    begun = sum(tally[number] for number in range(0, len(tally), 2))
    acknowledged = sum(tally[number] for number in range(1, len(tally), 2))
    assert acknowledged <= (kv.get(RUN, "sum") or 0) <= begun


def wait_for_successor(folder: Path, dead: coordinator.Info) -> coordinator.Info:
    """The next coordinator, which has to be there within a second."""
    wait_until(
        lambda: (info := coordinator.read_info(folder)) and info.pid != dead.pid,
        "a successor of the coordinator",
        SUCCESSOR_S,
    )
    return info_of(folder)


SUCCESSOR_S = 1.0


# -- a worker ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_next_write_follows_at_once_when_a_holder_is_killed(
    method: Method, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.open(folder, MEMORY, map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv = KVStore(database)
        view = SequencerView(database)
        for number in range(5):
            worker = crew.start(set_many, database, method="fork")
            crew.release([worker])
            stop_in_the_middle(worker, view, rng)
            worker.kill()
            took = wait_until(lambda: kv.incr(RUN, "next"), "a write after the death")
            assert took < 0.5
            assert len({str(value) for value in kv.get_many(RUN, MANY)}) == 1
            assert database.metrics().recoveries == number + 1
        check_structure(database)
        late = crew.start(count_up, 0, database, tally, method=method)
        crew.release([late])
        wait_until(lambda: tally[1] > 100, "work after five deaths")


def set_many(channel: Channel, database: Database) -> None:
    """Writes all keys in one commit, without an end."""
    kv = KVStore(database)
    channel.ready()
    turn = 0
    while True:
        turn += 1
        kv.mset(RUN, {key: [os.getpid(), turn] for key in MANY})


def test_what_a_killed_worker_had_open_is_given_back(folder: Path, crew: Crew) -> None:
    with Database.open(folder, MEMORY) as database:
        worker = crew.start(hold_everything, database)
        worker.expect("holding")
        before = database.metrics()
        assert (before.handles, before.snapshots) == (3, 2)
        assert before.clients >= 2
        worker.kill()
        wait_until(lambda: database.metrics().handles == 1, "the dead worker's slots are free", 2)
        after = database.metrics()
        assert after.snapshots == 0
        assert after.reaped_clients >= 3


def hold_everything(channel: Channel, database: Database) -> None:
    """Two handles, a snapshot, a transaction."""
    second = Database.open(str(database.path))
    KVStore(second).put(RUN, "a", 1)
    KVStore(database).put(RUN, "b", 1)
    snapshot = second.snapshot()
    txn = database.begin(RUN)
    txn.kv_put("never", 1)
    channel.send("holding")
    channel.receive()
    snapshot.close()


# -- the opener -------------------------------------------------------------------------------


def open_ephemeral(channel: Channel) -> None:
    """Makes a database, hands the handle to the test, and works on."""
    with Database.ephemeral() as database:
        KVStore(database).put(RUN, "from the opener", 1)
        channel.send(database)
        kv = KVStore(database)
        while not channel.is_told():
            kv.incr(RUN, "opener")


def test_an_ephemeral_database_outlives_its_killed_opener(
    crew: Crew, tally: Tally, rng: random.Random
) -> None:
    opener = crew.start(open_ephemeral, method="forkserver")
    database = opener.receive()
    names = segment_names(database)
    with database:
        kv = KVStore(database)
        workers = crew.start_many(2, count_up, database, tally)
        crew.release(workers)
        crew.watch(workers, rng.uniform(0.02, 0.05))
        opener.kill()
        before = tally.total()
        wait_until(lambda: tally.total() > before + 1000, "work without the opener")
        late = crew.start(count_up, 2, database, tally, method="forkserver")
        crew.release([late])
        wait_until(lambda: tally[5] > 100, "work of one that joined after the opener's death")
        for worker in [*workers, late]:
            worker.send("stop")
            worker.join()
        check_sum(kv, tally)
        assert kv.get(RUN, "from the opener") == 1
        assert segments_exist(names)
    assert not segments_exist(names)


def open_folder(channel: Channel, folder: Path) -> None:
    """Opens, which starts the coordinator, and writes until it is killed."""
    database = Database.open(folder, MEMORY)
    kv = KVStore(database)
    channel.ready()
    while True:
        channel.send(kv.incr(RUN, "opener"))


def test_a_folder_database_outlives_its_killed_opener(folder: Path, crew: Crew) -> None:
    opener = crew.start(open_folder, folder, method="spawn")
    crew.release([opener])
    acknowledged = [opener.receive() for _ in range(10)][-1]
    with Database.open(folder) as database:
        opener.kill()
        assert KVStore(database).get(RUN, "opener") >= acknowledged
        assert info_of(folder).is_alive()


def test_a_folder_whose_only_process_was_killed_opens_afresh(folder: Path, crew: Crew) -> None:
    """The coordinator leaves as soon as it finds its last client dead; until then it may be
    joined, and then the data is still there."""
    opener = crew.start(open_folder, folder)
    crew.release([opener])
    opener.receive()
    info = info_of(folder)
    opener.kill()
    assert coordinator.wait_for_end(info.identity, 5)
    assert segments_by(info.pid) == []
    with Database.open(folder, MEMORY) as database:
        assert KVStore(database).get(RUN, "opener") is None


# -- the coordinator --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_coordinator_that_dies_gets_a_successor_and_nobody_loses_anything(
    number: signal.Signals, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.open(folder, MEMORY, map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(2))
        kv = KVStore(database)
        kv.put(RUN, "early", [1, 2, 3])
        workers = crew.start_many(2, count_up, database, tally)
        crew.release(workers)
        names = segment_names(database)
        for _ in range(3):
            crew.watch(workers, rng.uniform(0.0, 0.05))
            info = info_of(folder)
            os.kill(info.pid, number)
            assert coordinator.wait_for_end(info.identity, 10)
            before = tally.total()
            wait_until(lambda before=before: tally.total() > before + 200, "commits meanwhile")  # type: ignore[misc]
            successor = wait_for_successor(folder, info)
            assert successor.segments == info.segments
            with Database.open(folder) as joined:
                assert KVStore(joined).get(RUN, "early") == [1, 2, 3]
                assert segment_names(joined) == names
        for worker in workers:
            worker.send("stop")
            worker.join()
        check_sum(kv, tally)
        assert kv.get(RUN, "early") == [1, 2, 3]
        check_structure(database)


def test_a_coordinator_killed_in_the_middle_of_a_sweep_leaves_a_whole_store(
    folder: Path, crew: Crew, rng: random.Random
) -> None:
    with Database.open(folder, MEMORY, map_size=8 << 20) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(9))  # too many to trim on writing
        kv = KVStore(database)
        view = SequencerView(database)
        kv.mset(RUN, dict.fromkeys([*SWEPT, "alive"], 0))
        writer = crew.start(make_garbage, database)
        crew.release([writer])
        for number in range(2):
            info = info_of(folder)
            kill_while_it_holds(info.pid, view, rng)
            wait_for_successor(folder, info)
            assert kv.incr(RUN, "alive") == number + 1
            assert database.metrics().recoveries == number + 1
        writer.send("stop")
        turns = writer.receive()
        assert kv.get_many(RUN, SWEPT) == [turns] * len(SWEPT)
        history = [found.value for found in kv.history(RUN, SWEPT[0])]
        assert history == list(range(turns, turns - len(history), -1))
        check_structure(database)


SWEPT = [f"swept/{number:04}" for number in range(2000)]


def make_garbage(channel: Channel, database: Database) -> None:
    """Overwrites so many keys that the coordinator sweeps all the time."""
    kv = KVStore(database)
    channel.ready()
    turn = 0
    while not channel.is_told():
        turn += 1
        kv.mset(RUN, dict.fromkeys(SWEPT, turn))
    channel.send(turn)


def kill_while_it_holds(pid: int, view: SequencerView, rng: random.Random) -> None:
    """Kills a process that is no child of this one, at a moment when it holds the sequencer."""
    for _ in range(5000):
        time.sleep(rng.uniform(0.0, 0.003))  # a random moment; nothing waits for it
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it stands")
        if view.owner() == pid:
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("the coordinator was never stopped while it held the sequencer")


def test_an_open_right_after_the_coordinators_death_joins_the_living_data(
    folder: Path, crew: Crew
) -> None:
    with Database.open(folder, MEMORY) as database:
        KVStore(database).put(RUN, "early", 1)
        names = segment_names(database)
        for turn in range(3):
            dead = kill_coordinator(folder)
            opened = Database.open(folder) if turn % 2 else Database.open(folder, MEMORY)
            with opened:
                assert segment_names(opened) == names
                assert KVStore(opened).incr(RUN, "turn") == turn + 1
                assert info_of(folder).pid != dead.pid
            assert KVStore(database).get(RUN, "early") == 1


def test_a_handle_unpickled_while_there_is_no_coordinator_joins(
    folder: Path, crew: Crew, tally: Tally
) -> None:
    with Database.open(folder, MEMORY) as database:
        kill_coordinator(folder)
        worker = crew.start(count_up, 0, database, tally, method="forkserver")
        crew.release([worker])
        wait_until(lambda: tally[1] > 10, "work of one that joined without a coordinator")
        worker.send("stop")
        worker.join()
        check_sum(KVStore(database), tally)


def test_a_successor_comes_where_only_forked_children_are_left(folder: Path, crew: Crew) -> None:
    """A forked child had no thread that watches the coordinator, so nobody replaced it."""
    with Database.open(folder, MEMORY) as database:
        child = crew.start(use_and_wait, database, method="fork")
        child.expect("used")
    dead = kill_coordinator(folder)
    wait_for_successor(folder, dead)
    child.send("again")
    child.expect("used")
    child.join()


def use_and_wait(channel: Channel, database: Database) -> None:
    """Uses the inherited handle before and after the test says so."""
    KVStore(database).put(RUN, "a", 1)
    channel.send("used")
    channel.receive()
    assert KVStore(database).get(RUN, "a") == 1
    channel.send("used")
    database.close()


def test_a_watch_whose_successor_dies_before_it_answers_starts_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll for the pause before the next try still held the closed descriptor of the dead
    coordinator, which ended the watch, and closing the handle then failed with a broken pipe."""
    start = coordinator.start
    failures: list[Any] = []

    def fail_twice(*arguments: Any) -> coordinator.Started:
        if len(failures) < 2:
            failures.append(arguments)
            raise errors.Unavailable("The coordinator ended without an answer.")
        return start(*arguments)

    with Database.open(folder, MEMORY, map_size=MAP_SIZE) as database:
        monkeypatch.setattr(coordinator, "start", fail_twice)
        dead = kill_coordinator(folder)
        wait_until(lambda: info_of(folder).pid != dead.pid, "a successor", 5)
        assert len(failures) == 2
        assert KVStore(database).incr(RUN, "key") == 1


def test_a_handle_closes_well_although_its_watch_has_given_up(folder: Path) -> None:
    with Database.open(folder, MEMORY, map_size=MAP_SIZE) as database:
        info = info_of(folder)
        (folder / "coordinator.json").unlink()
        os.kill(info.pid, signal.SIGKILL)
        assert coordinator.wait_for_end(info.identity, 10)
        watch = database._watch
        assert watch is not None
        watch._thread.join(5)
        assert not watch._thread.is_alive()
        assert KVStore(database).incr(RUN, "key") == 1
    clear_leftovers()
    assert segments_by(info.pid) == []


def test_the_last_close_after_the_coordinators_death_leaves_nothing(folder: Path) -> None:
    with Database.open(folder, MEMORY) as database:
        names = segment_names(database)
        dead = kill_coordinator(folder)
    assert not segments_exist(names)
    info = coordinator.read_info(folder)
    assert info is None or (info.pid != dead.pid and not info.is_alive())


# -- everything -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["coordinator first", "workers first"])
def test_after_the_death_of_all_the_next_open_starts_afresh(
    order: str, folder: Path, crew: Crew, rng: random.Random
) -> None:
    for _ in range(2):
        workers: list[Worker] = [crew.start(open_folder, folder) for _ in range(2)]
        crew.release(workers)
        for worker in workers:
            worker.receive()
        info = info_of(folder)
        if order == "coordinator first":
            os.kill(info.pid, signal.SIGKILL)
        for worker in workers:
            worker.kill()
        if order == "workers first":
            os.kill(info.pid, signal.SIGKILL)
        assert coordinator.wait_for_end(info.identity, 5)
        successor = coordinator.read_info(folder)
        with Database.open(folder, MEMORY) as database:
            assert KVStore(database).list(RUN) == []
            assert database.metrics().version == 0
            assert not segments_exist([info.control.strip("/"), info.data.strip("/")])
            assert segment_names(database)[0] != info.control.strip("/")
        assert segments_by(info.pid) == []
        if successor is not None:
            assert segments_by(successor.pid) == []


# -- zombies ----------------------------------------------------------------------------------


def test_an_unreaped_process_is_dead(folder: Path, crew: Crew) -> None:
    with Database.open(folder, MEMORY, max_clients=8) as database:
        worker = crew.start(hold_everything, database)
        worker.expect("holding")
        worker.kill_unreaped()
        wait_until(lambda: database.metrics().handles == 1, "the zombie's slots are free", 2)
        assert database.metrics().snapshots == 0
    assert coordinator.read_info(folder) is None


def test_a_zombie_that_was_the_last_client_keeps_no_coordinator(folder: Path, crew: Crew) -> None:
    opener = crew.start(open_folder, folder)
    crew.release([opener])
    opener.receive()
    info = info_of(folder)
    opener.kill_unreaped()
    assert coordinator.wait_for_end(info.identity, 5)


def test_a_zombie_that_held_the_sequencer_holds_nothing(crew: Crew, rng: random.Random) -> None:
    with Database.ephemeral() as database:
        view = SequencerView(database)
        worker = crew.start(set_many, database)
        crew.release([worker])
        stop_in_the_middle(worker, view, rng)
        worker.kill_unreaped()
        assert KVStore(database).incr(RUN, "next") == 1
        assert database.metrics().recoveries == 1
