"""test_doubt.py - a commit in the hands of another process that stops in the middle of it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from shm_engine import errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.workers import Channel, Crew, Worker, wait_until

RUN = RunId.DEFAULT
THEIRS = [f"theirs/{number:03}" for number in range(200)]
OURS = [f"ours/{number:03}" for number in range(600)]
STALL_S = 0.25


@pytest.fixture
def database() -> Iterator[Database]:
    """A small one whose waiters soon lose patience."""
    with Database.ephemeral(map_size=16 << 20, max_clients=32) as opened:
        opened.set_retention(RUN, RetentionPolicy.KeepLast(1))
        opened._engine.set_stall(STALL_S)
        yield opened


def serve(channel: Channel, database: Database) -> None:
    """Commits in a loop, and so carries out what others wait for."""
    kv = KVStore(database)
    channel.ready()
    while not channel.is_told():
        kv.mset(RUN, dict.fromkeys(THEIRS, 0))


class Writer:
    """A thread of this process whose newest commit is in doubt."""

    def __init__(self, database: Database, ends: bool) -> None:
        self.kv = KVStore(database)
        self.turn = 0
        self.doubtful = threading.Event()
        self.go_on = threading.Event()
        self.error: errors.Unavailable | None = None
        self._ends = ends
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while self.error is None:
            self.turn += 1
            try:
                self.kv.mset(RUN, dict.fromkeys(OURS, self.turn))
            except errors.Unavailable as error:
                if error.in_doubt:
                    self.error = error
                else:
                    self.turn -= 1  # withdrawn
        self.doubtful.set()
        if not self._ends:
            self.go_on.wait()
            self.kv.mset(RUN, {"settled": True})

    def stop(self) -> None:
        """Lets the thread end, whatever it waits for."""
        self.go_on.set()
        self.thread.join()


@pytest.fixture
def writer(database: Database) -> Iterator[Callable[[bool], Writer]]:
    """Makes a writer and sees to its end."""
    made: list[Writer] = []

    def make(ends: bool) -> Writer:
        made.append(Writer(database, ends))
        return made[0]

    yield make
    for one in made:
        one.stop()


def put_in_doubt(database: Database, writer: Writer, crew: Crew, rng: random.Random) -> Worker:
    """Stops a process while it carries out the writer's commit; the writer has given up waiting."""
    holder = crew.start(serve, database)
    crew.release([holder])
    view = SequencerView(database)
    for _ in range(50):
        stop_in_the_middle(holder, view, rng, serving=os.getpid())
        if writer.doubtful.wait(10 * STALL_S):
            assert writer.error is not None
            assert f"Process {holder.pid} " in str(writer.error)
            assert not writer.error.is_retryable()
            return holder
        holder.resume()
    raise AssertionError("no commit was ever in doubt")


@pytest.mark.crash
@pytest.mark.parametrize("end", ["continued", "killed"])
def test_a_commit_in_doubt_is_decided_before_the_next_write_of_its_thread(
    end: str,
    database: Database,
    writer: Callable[[bool], Writer],
    crew: Crew,
    rng: random.Random,
) -> None:
    doubtful = writer(False)
    holder = put_in_doubt(database, doubtful, crew, rng)
    kv = KVStore(database)
    assert len(set(kv.get_many(RUN, OURS))) == 1
    if end == "killed":
        holder.kill()
    else:
        holder.resume()
    doubtful.stop()
    assert kv.get(RUN, "settled")
    found = set(kv.get_many(RUN, OURS))
    if end == "killed":  # a survivor may carry it out again, or drop it
        assert found in ({doubtful.turn}, {doubtful.turn - 1})
    else:
        assert found == {doubtful.turn}
    if end == "continued":
        holder.send("stop")
        holder.join()
    check_structure(database)


@pytest.mark.crash
@pytest.mark.parametrize("end", ["continued", "killed"])
def test_the_slot_of_a_thread_that_ended_in_doubt_is_not_anothers_before_it_is_settled(
    end: str,
    database: Database,
    writer: Callable[[bool], Writer],
    crew: Crew,
    rng: random.Random,
) -> None:
    """The next owner of the slot wrote its request over the one that was being carried out."""
    doubtful = writer(True)
    holder = put_in_doubt(database, doubtful, crew, rng)
    doubtful.thread.join()
    kv = KVStore(database)
    written: list[int] = []

    def write_late(number: int) -> None:
        key = f"late/{number}"
        while True:
            try:
                written.append(kv.mset(RUN, {key: number, f"{key}/again": "x" * 5000}))
                return
            except errors.Unavailable:
                continue  # withdrawn: what is pending was never taken up

    threads = [threading.Thread(target=write_late, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: SequencerView(database).waiting() >= 3, "the late ones wait")
    if end == "killed":
        holder.kill()
    else:
        holder.resume()
    for thread in threads:
        thread.join()
    assert len(set(written)) == 3
    for number in range(3):
        assert kv.get(RUN, f"late/{number}") == number
        assert kv.get(RUN, f"late/{number}/again") == "x" * 5000
    found = set(kv.get_many(RUN, OURS))
    assert len(found) == 1
    assert found <= {doubtful.turn - 1, doubtful.turn}
    if end == "continued":
        holder.send("stop")
        holder.join()
    check_structure(database)


@pytest.mark.crash
def test_a_handle_may_be_closed_while_a_commit_is_in_doubt(
    database: Database, crew: Crew, rng: random.Random
) -> None:
    """The process that is in doubt closes and ends; the others find all of it or nothing."""
    process = crew.start(doubt_and_close, database)
    crew.release([process])
    holder = crew.start(serve, database)
    crew.release([holder])
    view = SequencerView(database)
    while True:
        stop_in_the_middle(holder, view, rng, serving=process.pid)
        outcome, turn = process.receive()
        if outcome == "in doubt":
            break
        holder.resume()
        process.send("again")
    process.join()
    holder.resume()
    kv = KVStore(database)
    kv.put(RUN, "after", 1)
    found = set(kv.get_many(RUN, OURS))
    assert len(found) == 1
    assert found <= {turn - 1, turn}
    holder.send("stop")
    holder.join()
    wait_until(lambda: database.metrics().handles == 1, "its slots are free", 2)
    check_structure(database)


def doubt_and_close(channel: Channel, database: Database) -> None:
    """Writes until a commit is in doubt, tells so, closes and ends."""
    kv = KVStore(database)
    database._engine.set_stall(STALL_S)
    channel.ready()
    turn = 0
    while True:
        turn += 1
        try:
            kv.mset(RUN, dict.fromkeys(OURS, turn))
        except errors.Unavailable as error:
            if error.in_doubt:
                break
            turn -= 1
            channel.send(("withdrawn", turn))
            assert channel.receive() == "again"
    database.close()
    channel.send(("in doubt", turn))


@pytest.mark.crash
def test_ctrl_c_ends_the_wait_for_a_commit_in_doubt(
    database: Database, crew: Crew, rng: random.Random
) -> None:
    """The interrupt was taken from Python and then dropped."""
    process = crew.start(doubt_and_be_interrupted, database)
    crew.release([process])
    holder = crew.start(serve, database)
    crew.release([holder])
    view = SequencerView(database)
    while True:
        stop_in_the_middle(holder, view, rng, serving=process.pid)
        if process.receive() == "in doubt":
            break
        holder.resume()
        process.send("again")
    process.send("write again")
    process.expect("writing again")
    process.signal(signal.SIGINT)
    holder.resume()
    process.expect("interrupted")
    process.join()
    holder.send("stop")
    holder.join()


def doubt_and_be_interrupted(channel: Channel, database: Database) -> None:
    """Has a commit in doubt, writes again, and is interrupted in the wait for the first."""
    kv = KVStore(database)
    database._engine.set_stall(STALL_S)
    channel.ready()
    while True:
        try:
            kv.mset(RUN, dict.fromkeys(OURS, 1))
        except errors.Unavailable as error:
            if error.in_doubt:
                break
            channel.send("withdrawn")
            assert channel.receive() == "again"
    channel.send("in doubt")
    channel.receive()
    database._engine.set_stall(20)
    try:
        channel.send("writing again")
        while True:
            kv.put(RUN, "again", 1)
    except KeyboardInterrupt:
        channel.send("interrupted")
