"""test_durable_handles.py - handles on a durable database in children, threads, other processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from shm_engine import coordinator
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from tests.harness.durable import (
    LOGGED,
    RUN,
    Writer,
    check_writers,
    info_of,
    keep_some_history,
    kill_coordinator,
    open_folder,
    reopen,
    stop_coordinator,
    wait_for_successor,
    write_on,
)
from tests.harness.tally import Tally
from tests.harness.workers import METHODS, Channel, Crew, Method, wait_until


@pytest.mark.parametrize("mode", LOGGED)
@pytest.mark.parametrize("method", METHODS)
def test_children_of_every_kind_commit_to_the_same_log(
    mode: str, method: Method, folder: Path, crew: Crew, tally: Tally
) -> None:
    with open_folder(folder, mode) as database:
        keep_some_history(database)
        workers = [crew.start(write_on, n, database, tally, method=method) for n in range(2)]
        crew.release(workers)
        wait_until(lambda: all(tally[2 * n + 1] > 20 for n in range(2)), "commits of both")
        for worker in workers:
            worker.send("stop")
            worker.join()
        check_writers(database, tally, range(2))
    with reopen(folder) as database:
        check_writers(database, tally, range(2))


@pytest.mark.parametrize("mode", LOGGED)
def test_threads_share_a_handle_and_their_syncs(mode: str, folder: Path, tally: Tally) -> None:
    with open_folder(folder, mode) as database:

        def write(number: int) -> None:
            for _ in range(50):
                Writer(number, tally).write(database)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert check_writers(database, tally, range(8)) == 400
        if mode == "strict":
            assert database.metrics().syncs < 400
    with reopen(folder) as database:
        check_writers(database, tally, range(8))


@pytest.mark.crash
@pytest.mark.parametrize("mode", LOGGED)
def test_a_handle_unpickled_while_the_coordinator_is_replaced_commits(
    mode: str, folder: Path, crew: Crew, tally: Tally
) -> None:
    with open_folder(folder, mode) as database:
        keep_some_history(database)
        for turn in range(3):
            dead = kill_coordinator(folder)
            worker = crew.start(write_on, turn, database, tally, method="forkserver")
            again = pickle.loads(pickle.dumps(database))
            assert KVStore(again).incr(RUN, "turn") == turn + 1
            crew.release([worker])
            wait_until(lambda turn=turn: tally[2 * turn + 1] > 5, "its commits")  # type: ignore[misc]
            worker.send("stop")
            worker.join()
            again.close()
            wait_for_successor(folder, dead)
        check_writers(database, tally, range(3))


@pytest.mark.crash
def test_a_successor_comes_where_only_forked_children_are_left(
    folder: Path, crew: Crew, tally: Tally
) -> None:
    with open_folder(folder, "strict") as database:
        keep_some_history(database)
        worker = crew.start(write_on, 0, database, tally, method="fork")
        crew.release([worker])
        wait_until(lambda: tally[1] > 3, "commits of the child")
    dead = kill_coordinator(folder)
    wait_for_successor(folder, dead)
    before = tally[1]
    wait_until(lambda: tally[1] > before + 3, "commits after the successor came")
    worker.send("stop")
    worker.join()
    with reopen(folder) as database:
        check_writers(database, tally, [0])


def close_together(channel: Channel, number: int, database: Database, tally: Tally) -> None:
    """Writes and closes at the same moment as the others."""
    Writer(number, tally).write(database)
    channel.ready()
    Writer(number, tally).write(database)
    database.close()
    channel.send(coordinator.read_info(Path(str(database.path))) is None)


@pytest.mark.parametrize("mode", LOGGED)
def test_many_that_close_at_once_leave_a_whole_database(
    mode: str, folder: Path, crew: Crew, tally: Tally
) -> None:
    with open_folder(folder, mode) as database:
        workers = crew.start_many(6, close_together, database, tally)
        for worker in workers:
            worker.expect("ready")
    for worker in workers:
        worker.release()
    closed = [worker.receive() for worker in workers]
    assert any(closed)
    for worker in workers:
        worker.join()
    assert coordinator.read_info(folder) is None
    with reopen(folder) as database:
        assert check_writers(database, tally, range(6)) == 12
        assert database.recovery is not None
        assert database.recovery.commits == 0


@pytest.mark.crash
def test_the_last_close_after_the_coordinators_death_saves_everything(folder: Path) -> None:
    for turn in range(3):
        with open_folder(folder, "buffered") as database:
            kv = KVStore(database)
            assert kv.get(RUN, "turn") == (turn or None)
            stopped = stop_coordinator(folder)
            kv.put(RUN, "turn", turn + 1)
            os.kill(stopped.pid, signal.SIGKILL)
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "turn") == 3


def interrupted_in_a_strict_commit(channel: Channel, folder: Path) -> None:
    """Ctrl-C comes while the commit waits for its sync, which comes only later."""
    with Database.open(folder) as database:
        kv = KVStore(database)
        channel.ready()
        try:
            kv.put(RUN, "interrupted", 1)
        except KeyboardInterrupt:
            channel.send(("interrupted", database.metrics().durable_version))
        channel.send(kv.put(RUN, "after", 2))
        channel.send((kv.get(RUN, "interrupted"), kv.get(RUN, "after")))


def test_ctrl_c_in_a_strict_commit_is_raised_after_it(folder: Path, crew: Crew) -> None:
    """The commit cannot be taken back, so the caller may not believe that it was."""
    with open_folder(folder, "strict") as database:
        worker = crew.start(interrupted_in_a_strict_commit, folder)
        stopped = stop_coordinator(folder)
        crew.release([worker])
        wait_until(lambda: database.metrics().version == 1, "the commit in memory")
        worker.signal(signal.SIGINT)
        assert not worker.connection.poll(0.2)
        os.kill(stopped.pid, signal.SIGCONT)
        what, durable = worker.receive()
        assert what == "interrupted"
        assert durable >= 1
        assert worker.receive() == 2
        assert worker.receive() == (1, 2)
        worker.join()


PROGRAM = """
    import sys
    from shm_engine import Database, KVStore, RunId
    database = Database.open(sys.argv[1], sys.argv[2], map_size=1 << 24)
    for number in range(100):
        KVStore(database).put(RunId.DEFAULT, "key", number)
    {end}
"""


@pytest.mark.parametrize("mode", ["no_durability", "strict"])
@pytest.mark.parametrize("end", ["pass", "database.close()", "del database", "sys.exit(3)"])
def test_a_program_that_ends_in_any_way_loses_nothing(mode: str, end: str, folder: Path) -> None:
    program = textwrap.dedent(PROGRAM).format(end=end)
    command = [sys.executable, "-c", program, str(folder), mode]
    subprocess.run(command, check=end != "sys.exit(3)", timeout=60)
    assert coordinator.read_info(folder) is None or end == "del database"
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "key") == 99


def test_a_program_that_is_aborted_loses_nothing(folder: Path) -> None:
    program = textwrap.dedent(PROGRAM).format(end="import os; os.abort()")
    command = [sys.executable, "-c", program, str(folder), "buffered"]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGABRT
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "key") == 99
        assert info_of(folder).is_alive()
