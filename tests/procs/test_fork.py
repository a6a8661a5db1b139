"""test_fork.py - a process that forks while it has a database open, and what the child may do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness.shared import segment_names, segments_exist
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
PLACES = ["ephemeral", "folder"]


@pytest.fixture(params=PLACES)
def opened(request: pytest.FixtureRequest, folder: Path) -> Database:
    """An open database of either kind."""
    return Database.ephemeral() if request.param == "ephemeral" else Database.open(folder, MEMORY)


def count(channel: Channel, number: int, database: Database, times: int) -> None:
    """Increments the shared counter and one of its own."""
    kv = KVStore(database)
    channel.ready()
    for _ in range(times):
        kv.incr(RUN, "sum")
        kv.incr(RUN, f"own/{number}")


def test_a_child_takes_slots_of_its_own_and_its_increments_count(
    opened: Database, crew: Crew
) -> None:
    with opened as database:
        kv = KVStore(database)
        kv.put(RUN, "from the parent", [1])
        before = database.metrics()
        children = crew.start_many(3, count, database, 1000)
        crew.release()
        for _ in range(1000):
            kv.incr(RUN, "sum")
        for child in children:
            child.join()
        assert kv.get(RUN, "sum") == 4000
        assert [kv.get(RUN, f"own/{number}") for number in range(3)] == [1000] * 3
        wait_until(lambda: database.metrics().handles == before.handles, "the children left", 2)
        wait_until(lambda: database.metrics().clients == before.clients, "the children left", 2)
        assert kv.get(RUN, "from the parent") == [1]


def test_a_childs_first_use_makes_it_a_client(crew: Crew) -> None:
    with Database.ephemeral() as database:
        KVStore(database).put(RUN, "key", 1)
        child = crew.start(use_step_by_step, database)
        child.expect("not used yet")
        assert (database.metrics().handles, database.metrics().clients) == (1, 1)
        child.send("use it")
        child.expect(1)
        assert (database.metrics().handles, database.metrics().clients) == (2, 2)
        child.send("close it")
        child.expect("closed")
        assert (database.metrics().handles, database.metrics().clients) == (1, 1)
        child.join()
        assert KVStore(database).incr(RUN, "key") == 2


def use_step_by_step(channel: Channel, database: Database) -> None:
    """Does one step each time the test says so."""
    channel.send("not used yet")
    channel.receive()
    channel.send(KVStore(database).get(RUN, "key"))
    channel.receive()
    database.close()
    channel.send("closed")
    for use in (database.metrics, lambda: KVStore(database).get(RUN, "key")):
        with pytest.raises(errors.Closed):
            use()


@pytest.mark.parametrize("used", [True, False], ids=["used", "not used"])
def test_close_in_the_child_leaves_the_parents_handle_open(
    opened: Database, used: bool, crew: Crew
) -> None:
    with opened as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        for _ in range(3):
            crew.start(close_at_once, database, used).join()
        assert kv.incr(RUN, "key") == 2
        assert segments_exist(segment_names(database))
        crew.start(close_at_once, database, True).join()
        assert kv.incr(RUN, "key") == 3


def close_at_once(channel: Channel, database: Database, used: bool) -> None:
    """Closes an inherited handle, before its first use or after it, and twice."""
    if used:
        assert KVStore(database).exists(RUN, "key")
    database.close()
    database.close()
    with pytest.raises(errors.Closed):
        database.snapshot()


def test_a_child_that_ends_without_close_leaves_the_parents_handle_open(
    opened: Database,
) -> None:
    with opened as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 0)
        for end in (lambda: os._exit(0), lambda: None):  # abruptly; through the interpreter's end
            status = run_in_a_fork(lambda: kv.incr(RUN, "key"), end)
            assert status == 0
        assert kv.get(RUN, "key") == 2


def run_in_a_fork(body: Callable[[], object], end: Callable[[], object]) -> int:
    """Forks by hand; the child's exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            end()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_snapshot_and_a_transaction_of_the_parent_are_not_the_childs(crew: Crew) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        with database.snapshot() as snapshot, database.begin(RUN) as txn:
            txn.kv_put("key", "by the parent")
            child = crew.start(use_what_is_not_mine, database, snapshot, txn)
            child.join()
            kv.put(RUN, "key", 2)
            assert snapshot.get(RUN, "key") == 1
            assert database.metrics().snapshots == 2
            assert txn.kv_get("key") == "by the parent"
        assert kv.get(RUN, "key") == "by the parent"
        assert database.metrics().snapshots == 0


def use_what_is_not_mine(
    channel: Channel, database: Database, snapshot: object, txn: object
) -> None:
    """Reads through the parent's snapshot, before and after the handle's own first use."""
    for _ in range(2):
        with pytest.raises(errors.InvalidState):
            snapshot.get(RUN, "key")  # type: ignore[attr-defined]
        with pytest.raises(errors.InvalidState):
            txn.kv_get("other")  # type: ignore[attr-defined]
        assert KVStore(database).get(RUN, "key") == 1
    snapshot.close()  # type: ignore[attr-defined]
    txn.rollback()  # type: ignore[attr-defined]


def test_grandchildren_are_clients_of_their_own(opened: Database, crew: Crew) -> None:
    with opened as database:
        crew.start(count_in_generations, database, 4).join()
        assert KVStore(database).get(RUN, "sum") == 400


def count_in_generations(channel: Channel, database: Database, generations: int) -> None:
    """Counts, forks, and waits for the child that does the same."""
    kv = KVStore(database)
    for _ in range(50):
        kv.incr(RUN, "sum")
    if generations > 1:
        code = run_in_a_fork(
            lambda: count_in_generations(channel, database, generations - 1), lambda: None
        )
        assert code == 0
    for _ in range(50):
        kv.incr(RUN, "sum")


# -- threads ----------------------------------------------------------------------------------


def test_a_fork_while_other_threads_commit_hangs_nobody(opened: Database, crew: Crew) -> None:
    with opened as database:
        kv = KVStore(database)
        stop = threading.Event()
        committed = [0, 0]

        def commit(number: int) -> None:
            while not stop.is_set():
                kv.mset(RUN, {f"many/{number}/{key}": committed[number] for key in range(200)})
                kv.incr(RUN, "sum")
                committed[number] += 1

        threads = [threading.Thread(target=commit, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(25):
                child = crew.start(count, 0, database, 20)
                crew.release([child])
                child.join(10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert kv.get(RUN, "sum") == sum(committed) + 25 * 20
        assert database.metrics().recoveries == 0


def test_a_fork_while_another_thread_waits_inside_a_commit_leaves_the_child_free_to_close(
    crew: Crew,
) -> None:
    """The count of threads inside the store came along in the fork, and close waited for threads
    that the child does not have."""
    with Database.ephemeral() as database:
        kv = KVStore(database)
        stop = threading.Event()

        def write_large() -> None:
            while not stop.is_set():
                kv.put(RUN, "large", b"v" * 3_000_000)  # lets the interpreter lock go

        thread = threading.Thread(target=write_large)
        thread.start()
        try:
            for _ in range(30):
                child = crew.start(close_at_once, database, False)
                child.join(10)
        finally:
            stop.set()
            thread.join()


def test_a_child_forked_by_a_thread_of_a_pool_works(opened: Database, crew: Crew) -> None:
    with opened as database, ThreadPoolExecutor(2) as pool:
        kv = KVStore(database)

        def fork_and_count(number: int) -> int:
            kv.incr(RUN, "sum")
            return run_in_a_fork(lambda: [kv.incr(RUN, "sum") for _ in range(50)], lambda: None)

        assert list(pool.map(fork_and_count, range(8))) == [0] * 8
        assert kv.get(RUN, "sum") == 8 * 51


def test_a_childs_own_pool_of_threads_works(opened: Database, crew: Crew) -> None:
    with opened as database:
        crew.start(count_in_a_pool, database).join()
        assert KVStore(database).get(RUN, "sum") == 1000


def count_in_a_pool(channel: Channel, database: Database) -> None:
    """Counts in the main thread and in four others."""
    kv = KVStore(database)
    kv.incr(RUN, "sum", 0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: kv.incr(RUN, "sum"), range(1000)))


# -- after the parent -------------------------------------------------------------------------


def test_an_inherited_handle_that_the_parent_closed_before_the_fork_is_closed(
    opened: Database, crew: Crew
) -> None:
    opened.close()
    crew.start(expect_closed, opened).join()


def expect_closed(channel: Channel, database: Database) -> None:
    """Every use says so; closing again does no harm."""
    assert database.closed
    for use in (database.metrics, database.snapshot, lambda: KVStore(database)):
        with pytest.raises(errors.Closed):
            use()
    database.close()


def test_an_inherited_handle_first_used_after_the_last_close_is_closed(
    opened: Database, crew: Crew
) -> None:
    """Until its first use a child is no client, so the last close takes the data with it."""
    with opened as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        child = crew.start(use_when_told, database, kv)
    child.send("use it")
    child.expect("closed")
    child.join()


def use_when_told(channel: Channel, database: Database, kv: KVStore) -> None:
    """First use when the parent is gone."""
    channel.receive()
    for _ in range(2):
        with pytest.raises(errors.Closed):
            kv.get(RUN, "key")
        with pytest.raises(errors.Closed):
            kv.put(RUN, "key", 1)
    channel.send("closed")
    database.close()


def test_a_child_that_used_its_handle_keeps_the_data_when_the_parent_closes(
    opened: Database, folder: Path, crew: Crew
) -> None:
    with opened as database:
        names = segment_names(database)
        KVStore(database).put(RUN, "key", 1)
        child = crew.start(use_step_by_step, database)
        child.expect("not used yet")
        child.send("use it")
        child.expect(1)
    assert segments_exist(names)
    child.send("close it")
    child.expect("closed")
    child.join()
    wait_until(lambda: not segments_exist(names), "the last close removed the segments", 2)
    assert coordinator.read_info(folder) is None


def test_the_fork_of_a_process_with_many_handles_costs_the_parent_none(crew: Crew) -> None:
    databases = [Database.ephemeral(map_size=1 << 20) for _ in range(10)]
    try:
        for number, database in enumerate(databases):
            KVStore(database).put(RUN, "key", number)
        started = time.monotonic()
        crew.start(close_every_second, databases).join()
        assert time.monotonic() - started < 10
        for number, database in enumerate(databases):
            assert KVStore(database).incr(RUN, "key", 0) == number + (number % 2) * 100
    finally:
        for database in databases:
            database.close()


def close_every_second(channel: Channel, databases: list[Database]) -> None:
    """Uses half of the inherited handles and closes the others."""
    for number, database in enumerate(databases):
        if number % 2:
            KVStore(database).incr(RUN, "key", 100)
        else:
            database.close()


def test_children_that_are_forked_and_killed_in_a_row_lose_no_slot(
    crew: Crew, tally: Tally
) -> None:
    with Database.ephemeral(max_clients=8) as database:
        kv = KVStore(database)
        for _ in range(30):
            child = crew.start(count, 0, database, 10**9)
            crew.release([child])
            wait_until(lambda: kv.exists(RUN, "sum"), "the child counts")
            kv.delete(RUN, "sum")
            child.kill()
        kv.put(RUN, "key", 1)
        assert kv.get(RUN, "key") == 1
