"""test_exit.py - processes that end in every way, with handles open and threads at work."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness.shared import segments_by, segments_exist
from tests.harness.workers import Channel, Crew, wait_until

RUN = RunId.DEFAULT
ROOT = Path(__file__).resolve().parents[2]
OPENINGS = {
    "ephemeral": "Database.ephemeral(map_size=1 << 26)",
    "folder": "Database.open(sys.argv[1], Durability.in_memory(), map_size=1 << 26)",
}
BEGINNING = """
import os, signal, sys, threading, time
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine._core import RunId
RUN = RunId.DEFAULT
database = {opening}
kv = KVStore(database)
kv.put(RUN, "key", 1)
print(database._segments.control, database._segments.data, flush=True)
"""


def run_to_the_end(opening: str, body: str, folder: Path) -> tuple[int, list[str], str]:
    """The exit code of a program that opens and does this, its segments, its complaints."""
    program = BEGINNING.format(opening=OPENINGS[opening]) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.replace("/", "").split(), done.stderr


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("del kv, database", 0),
        ("snapshot = database.snapshot(); txn = database.begin(RUN); txn.kv_put('a', 1)", 0),
        ("raise SystemExit", 0),
    ],
    ids=["the end", "exit", "forgotten", "open snapshot", "SystemExit"],
)
def test_a_process_that_forgets_to_close_leaves_nothing(
    opening: str, body: str, code: int, folder: Path
) -> None:
    found, names, complaints = run_to_the_end(opening, body, folder)
    assert (found, complaints) == (code, "")
    wait_until(lambda: not segments_exist(names), "the coordinator removed the segments", 5)
    assert coordinator.read_info(folder) is None


@pytest.mark.parametrize("opening", OPENINGS)
def test_daemon_threads_that_still_commit_at_the_end_do_no_harm(opening: str, folder: Path) -> None:
    body = """
        def work(number):
            turn = 0
            while True:
                turn += 1
                kv.mset(RUN, {f"{number}/{key}": turn for key in range(500)})
                kv.put(RUN, f"large/{number}", b"v" * 200_000)
                kv.scan(RUN, f"{number}/")
                kv.delete(RUN, f"large/{number}")
        for number in range(3):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        while database.metrics().version < 200:
            time.sleep(0.001)
    """
    for _ in range(3):
        code, names, complaints = run_to_the_end(opening, body, folder)
        assert code == 0, complaints
        assert "Fatal" not in complaints
        assert not segments_exist(names)
        assert coordinator.read_info(folder) is None


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_handle_closed_under_working_threads_gives_them_closed(
    opening: str, folder: Path
) -> None:
    body = """
        from shm_engine import errors
        ends = []
        def work(number):
            try:
                while True:
                    kv.mset(RUN, {f"{number}/{key}": "x" * 300 for key in range(300)})
                    with database.snapshot() as snapshot:
                        list(snapshot.scan_prefix(RUN))
                    with database.begin(RUN) as txn:
                        txn.kv_incr(f"sum/{number}")
            except errors.Closed:
                ends.append("closed")
            except BaseException as error:
                ends.append(repr(error))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while database.metrics().version < 100:
            time.sleep(0.001)
        database.close()
        for thread in threads:
            thread.join()
        assert ends == ["closed"] * 4, ends
    """
    for _ in range(2):
        code, names, complaints = run_to_the_end(opening, body, folder)
        assert (code, complaints) == (0, "")
        assert not segments_exist(names)


@pytest.mark.crash
@pytest.mark.parametrize(
    "end",
    ["os._exit(9)", "os.abort()", "os.kill(os.getpid(), signal.SIGKILL)"],
    ids=["_exit", "abort", "SIGKILL"],
)
def test_what_an_abrupt_end_leaves_is_gone_with_the_next_open(end: str, folder: Path) -> None:
    quiet = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    code, names, _ = run_to_the_end("ephemeral", quiet + end, folder)
    assert code != 0
    assert names  # another test's open may have removed them by now
    Database.ephemeral(map_size=1 << 20).close()
    assert not segments_exist(names)


def test_a_program_that_replaces_itself_leaves_the_database(folder: Path) -> None:
    """After exec the pid and the start time are the same, but the handle is gone."""
    with Database.open(folder, Durability.in_memory(), map_size=1 << 26) as database:
        assert database.metrics().handles == 1
        body = "os.execv('/bin/true', ['true'])"
        code, _, complaints = run_to_the_end("folder", body, folder)
        assert (code, complaints) == (0, "")
        assert KVStore(database).get(RUN, "key") == 1
    assert coordinator.read_info(folder) is None


# -- joining while the last one leaves --------------------------------------------------------


def join_what_comes(channel: Channel) -> None:
    """Unpickles handles and uses them; a handle that came too late is closed."""
    while (message := channel.receive()) != "end":
        try:
            with pickle.loads(message) as database:
                KVStore(database).put(RUN, "joined", 1)
                assert KVStore(database).get(RUN, "joined") == 1
        except errors.Closed:
            channel.send("closed")
        else:
            channel.send("joined")


@pytest.mark.parametrize("place", ["ephemeral", "folder"])
def test_joining_while_the_last_handle_closes_works_or_says_closed(
    place: str, folder: Path, crew: Crew, rng: random.Random
) -> None:
    joiner = crew.start(join_what_comes)
    before = segments_by(os.getpid())
    outcomes = []
    for _ in range(60 if place == "ephemeral" else 10):
        if place == "ephemeral":
            database = Database.ephemeral(map_size=1 << 20)
        else:
            database = Database.open(folder, Durability.in_memory(), map_size=1 << 20)
        joiner.send(pickle.dumps(database))
        for _ in range(rng.randrange(3000)):
            pass  # some tens of microseconds, so that closing comes at any moment of joining
        database.close()
        outcomes.append(joiner.receive())
        assert segments_by(os.getpid()) == before
    joiner.send("end")
    joiner.join()
    assert set(outcomes) <= {"joined", "closed"}
