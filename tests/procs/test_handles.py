"""test_handles.py - handles that are pickled to other processes, and how many there may be."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from shm_engine import errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness.shared import segment_names, segments_exist
from tests.harness.workers import METHODS, Channel, Crew, Method, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()


@pytest.fixture(params=["ephemeral", "folder"])
def opened(request: pytest.FixtureRequest, folder: Path) -> Database:
    """An open database of either kind."""
    return Database.ephemeral() if request.param == "ephemeral" else Database.open(folder, MEMORY)


def count(channel: Channel, database: Database, times: int) -> None:
    """Increments with the handle that came as an argument."""
    kv = KVStore(database)
    for _ in range(times):
        kv.incr(RUN, "sum")
    channel.send((database.is_ephemeral, str(database.path), database.durability.kind))


@pytest.mark.parametrize("method", METHODS)
def test_a_handle_travels_in_the_arguments_of_a_process(
    method: Method, opened: Database, crew: Crew
) -> None:
    with opened as database:
        workers = [crew.start(count, database, 200, method=method) for _ in range(2)]
        for worker in workers:
            assert worker.receive() == (
                database.is_ephemeral,
                str(database.path),
                "in_memory",
            )
            worker.join()
        assert KVStore(database).get(RUN, "sum") == 400


_database: Database | None = None


def set_up(database: Database) -> None:
    """The initializer of a pool's processes."""
    global _database
    _database = database


def pool_task(number: int) -> int:
    """Counts once with the handle of the initializer."""
    assert _database is not None
    with _database.begin(RUN) as txn:
        txn.kv_put(f"task/{number:03}", number)
    return KVStore(_database).incr(RUN, "sum")


@pytest.mark.parametrize("method", METHODS)
def test_a_handle_travels_in_the_initializer_of_a_pool(method: Method, opened: Database) -> None:
    with opened as database:
        context = multiprocessing.get_context(method)
        with context.Pool(2, set_up, (database,)) as pool:
            assert sorted(pool.map(pool_task, range(40))) == list(range(1, 41))
            pool.close()
            pool.join()
        kv = KVStore(database)
        assert [value for _, value in kv.scan(RUN, "task/")] == list(range(40))
        wait_until(lambda: database.metrics().handles == 1, "the pool's slots are free", 2)


def task_with_its_own_handle(database: Database, number: int) -> int:
    """A handle for every task: each pickling makes one, and each is closed."""
    with database:
        return KVStore(database).incr(RUN, "sum", number)


def test_a_handle_travels_with_each_task_of_an_executor(opened: Database) -> None:
    with opened as database:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            futures = [
                executor.submit(task_with_its_own_handle, database, number) for number in range(30)
            ]
            assert max(future.result() for future in futures) == sum(range(30))
            assert database.metrics().handles == 1
        assert KVStore(database).get(RUN, "sum") == sum(range(30))


def test_a_handle_is_handed_on_from_child_to_child(opened: Database, crew: Crew) -> None:
    with opened as database:
        middle = crew.start(hand_back, database, method="forkserver")
        returned = middle.receive()
        with returned:
            assert KVStore(returned).incr(RUN, "sum") == 2
            last = crew.start(count, returned, 10, method="forkserver")
            last.receive()
            last.join()
        middle.send("end")
        middle.join()
        assert KVStore(database).get(RUN, "sum") == 12


def hand_back(channel: Channel, database: Database) -> None:
    """Sends the handle that it was given back through a pipe."""
    KVStore(database).incr(RUN, "sum")
    channel.send(database)
    channel.receive()


def test_a_handle_pickled_in_the_same_process_is_another_one(opened: Database) -> None:
    with opened as database:
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(database, protocol))
            assert copy is not database
            assert KVStore(copy).incr(RUN, "sum") == KVStore(database).get(RUN, "sum")
            copy.close()
        assert KVStore(database).get(RUN, "sum") == pickle.HIGHEST_PROTOCOL - 1


def test_a_handle_unpickled_after_the_last_close_is_closed(opened: Database) -> None:
    with opened as database:
        pickled = pickle.dumps(database)
    with pytest.raises(errors.Closed):
        pickle.loads(pickled)
    with pytest.raises(errors.Closed):
        pickle.dumps(database)


def test_a_process_that_joined_keeps_the_data_when_the_opener_closes(
    opened: Database, crew: Crew
) -> None:
    with opened as database:
        names = segment_names(database)
        KVStore(database).put(RUN, "key", [1, 2])
        worker = crew.start(read_when_told, database, method="forkserver")
        worker.expect("joined")
    assert segments_exist(names)
    worker.send("read")
    worker.expect([1, 2])
    worker.join()
    wait_until(lambda: not segments_exist(names), "the last close removed the segments", 2)


def read_when_told(channel: Channel, database: Database) -> None:
    """Reads after the opener is gone."""
    with database:
        channel.send("joined")
        channel.receive()
        channel.send(KVStore(database).get(RUN, "key"))


# -- too many clients -------------------------------------------------------------------------


def take_slots(channel: Channel, database: Database) -> None:
    """A member's slot and a thread's; or the error that there is none."""
    try:
        KVStore(database).put(RUN, "key", 1)
    except errors.Unavailable as error:
        channel.send(("refused", str(error), error.is_retryable()))
        return
    channel.send(("joined", "", False))
    channel.receive()


def test_one_client_too_many_is_refused_until_another_one_leaves(crew: Crew) -> None:
    with Database.ephemeral(max_clients=8) as database:
        KVStore(database).put(RUN, "key", 0)  # two slots; three more processes make eight
        workers = [crew.start(take_slots, database) for _ in range(3)]
        assert [worker.receive()[0] for worker in workers] == ["joined"] * 3
        late = crew.start(take_slots, database)
        outcome, message, retryable = late.receive()
        late.join()
        assert (outcome, retryable) == ("refused", True)
        assert "All 8 client slots" in message
        assert "max_clients" in message
        assert KVStore(database).get(RUN, "key") == 1  # those who are in go on
        workers[0].send("leave")
        workers[0].join()
        after = crew.start(take_slots, database)
        assert after.receive()[0] == "joined"


@pytest.mark.crash
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_the_slots_of_a_killed_process_are_there_for_the_next_at_once(
    reaped: bool, crew: Crew
) -> None:
    with Database.ephemeral(max_clients=6) as database:
        KVStore(database).put(RUN, "key", 0)
        workers = [crew.start(take_slots, database) for _ in range(2)]
        assert [worker.receive()[0] for worker in workers] == ["joined"] * 2
        for turn in range(4):
            if reaped:
                workers.pop(0).kill()
            else:
                workers.pop(0).kill_unreaped()
            workers.append(crew.start(take_slots, database))
            assert workers[-1].receive()[0] == "joined", f"turn {turn}"


def test_threads_give_their_slots_back(crew: Crew) -> None:
    with Database.ephemeral(max_clients=4) as database:
        kv = KVStore(database)
        kv.put(RUN, "sum", 0)
        for _ in range(50):
            thread = threading.Thread(target=kv.incr, args=(RUN, "sum"))
            thread.start()
            thread.join()
        assert kv.get(RUN, "sum") == 50
        # join() returns a moment before the thread has wholly ended.
        wait_until(lambda: database.metrics().clients <= 2, "the slots of ended threads")


def test_a_folder_that_is_full_of_clients_refuses_open_and_goes_on(
    folder: Path, crew: Crew
) -> None:
    with Database.open(folder, MEMORY, max_clients=2) as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        for _ in range(3):
            with pytest.raises(errors.Unavailable, match="max_clients"):
                Database.open(folder)
            with pytest.raises(errors.Unavailable, match="max_clients"):
                pickle.loads(pickle.dumps(database))
        assert kv.get(RUN, "key") == 1
        assert kv.put(RUN, "key", 2) > 0
