"""test_stop.py - SIGSTOP of whoever holds the sequencer, and Ctrl-C in the middle of commits."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from shm_engine import coordinator, errors, keys
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Worker, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
MANY = [f"many/{number:03}" for number in range(300)]
MAP_SIZE = 32 << 20


def set_many(channel: Channel, database: Database) -> None:
    """Writes all keys in one commit, until told to stop."""
    kv = KVStore(database)
    channel.ready()
    turn = 0
    while not channel.is_told():
        turn += 1
        kv.mset(RUN, dict.fromkeys(MANY, turn))
    channel.send(turn)


def take_and_stop(channel: Channel, database: Database) -> None:
    """Holds the sequencer for certain: takes it, and stands still until it is continued."""
    view = SequencerView(database)
    channel.ready()
    view.take()
    os.kill(os.getpid(), signal.SIGSTOP)
    view.give_back()


def stopped_holder(crew: Crew, database: Database) -> Worker:
    """A process that was stopped while it held the sequencer and did nothing else."""
    worker = crew.start(take_and_stop, database)
    crew.release([worker])
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    assert SequencerView(database).owner() == worker.pid
    return worker


# -- a stopped holder -------------------------------------------------------------------------


def test_a_stopped_holder_blocks_commits_and_the_waiter_names_it(
    crew: Crew, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(8))
        kv = KVStore(database)
        view = SequencerView(database)
        database._engine.set_stall(0.5)
        worker = crew.start(set_many, database)
        crew.release([worker])
        for number in range(4):
            kv.put(RUN, "mine", number)
            stop_in_the_middle(worker, view, rng)
            started = time.monotonic()
            with pytest.raises(errors.Unavailable, match=f"Process {worker.pid} ") as caught:
                kv.put(RUN, "mine", "never written")
            assert 0.5 <= time.monotonic() - started < 2
            assert caught.value.is_retryable()
            # Reading goes on, and sees nothing of the commit that stands half done.
            assert kv.get(RUN, "mine") == number
            assert len(set(kv.get_many(RUN, MANY))) == 1
            assert len(kv.scan(RUN, "many/")) in (0, len(MANY))
            worker.resume()
            kv.put(RUN, "after", number)
            assert kv.get(RUN, "mine") == number
            assert [found.value for found in kv.history(RUN, "mine")] == list(range(number, -1, -1))
        worker.send("stop")
        turns = worker.receive()
        assert kv.get(RUN, MANY[0]) == turns
        assert database.metrics().recoveries == 0
        check_structure(database)


def test_every_kind_of_write_is_withdrawn_and_works_afterwards(crew: Crew) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        version = kv.put(RUN, "key", 1)
        database._engine.set_stall(0.05)
        worker = stopped_holder(crew, database)
        txn = database.begin(RUN)
        txn.kv_put("key", "never written")
        writes = [
            lambda: kv.put(RUN, "key", "never written"),
            lambda: kv.put_with_ttl(RUN, "key", "never written", 60),
            lambda: kv.delete(RUN, "key"),
            lambda: kv.incr(RUN, "key"),
            lambda: kv.cas(RUN, "key", version, "never written"),
            lambda: kv.mset(RUN, {"key": "never written", "other": "never written"}),
            lambda: kv.mdelete(RUN, ["key"]),
            lambda: database.begin_run(),
            lambda: database.set_retention(RUN, RetentionPolicy.KeepLast(1)),
            txn.commit,
        ]
        for write in writes:
            with pytest.raises(errors.Unavailable, match=f"Process {worker.pid} "):
                write()
        assert kv.scan(RUN) == [("key", 1)]
        worker.resume()
        worker.join()
        database._engine.set_stall(5.0)
        assert kv.incr(RUN, "key") == 2
        assert kv.scan(RUN) == [("key", 2)]
        assert len(kv.history(RUN, "key")) == 2
        assert database.metrics().version == version + 1
        assert database.retention(RUN) == RetentionPolicy.KeepAll


@pytest.mark.crash
def test_those_who_wait_for_a_stopped_holder_go_on_when_it_is_killed(
    crew: Crew, tally: Tally
) -> None:
    with Database.ephemeral() as database:
        worker = stopped_holder(crew, database)
        waiters = crew.start_many(2, count_up, database, tally, 100)
        crew.release(waiters)
        wait_until(lambda: SequencerView(database).waiting() == 2, "both wait")
        worker.kill()
        for waiter in waiters:
            waiter.join()
        assert KVStore(database).get(RUN, "sum") == 200
        assert database.metrics().recoveries == 1


def count_up(channel: Channel, number: int, database: Database, tally: Tally, times: int) -> None:
    """Increments that often; a Ctrl-C is noted, and the counting goes on."""
    kv = KVStore(database)
    begun, done, interrupted = 4 * number, 4 * number + 1, 4 * number + 2
    channel.ready()
    while True:
        try:
            while tally[done] < times:
                tally[begun] += 1
                kv.incr(RUN, "sum")
                tally[done] += 1
            return
        except KeyboardInterrupt:
            tally[interrupted] += 1


def test_the_waiters_of_a_holder_that_is_continued_lose_nothing(crew: Crew, tally: Tally) -> None:
    with Database.ephemeral() as database:
        worker = stopped_holder(crew, database)
        waiters = crew.start_many(3, count_up, database, tally, 100)
        crew.release(waiters)
        wait_until(lambda: SequencerView(database).waiting() == 3, "all wait")
        worker.resume()
        for waiter in [*waiters, worker]:
            waiter.join()
        assert KVStore(database).get(RUN, "sum") == 300


def test_a_full_store_with_a_stopped_holder_gives_an_error_and_no_crash(
    crew: Crew, rng: random.Random
) -> None:
    """The wait for the sequencer inside the search for memory ended the write set twice, and an
    assertion ended the process."""
    with Database.ephemeral(map_size=2 << 20) as database:
        kv = KVStore(database)
        database.set_retention(RUN, RetentionPolicy.KeepAll)
        written = 0
        with pytest.raises(errors.StorageFull):  # noqa: PT012
            while True:
                written += 1
                kv.put(RUN, f"key/{written:05}", b"v" * 1000)
        database._engine.set_stall(0.3)
        worker = crew.start(hold_again_and_again, database, rng.getrandbits(32))
        crew.release([worker])
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            with pytest.raises((errors.StorageFull, errors.Unavailable)):
                kv.put(RUN, "one more", b"v" * 1000)
        worker.send("stop")
        worker.join()
        with pytest.raises(errors.StorageFull, match="map_size"):
            kv.put(RUN, "one more", b"v" * 1000)
        assert kv.get(RUN, "one more") is None
        assert kv.delete(RUN, "key/00001")


def hold_again_and_again(channel: Channel, database: Database, seed: int) -> None:
    """Holds the sequencer for long, lets it go for short."""
    rng = random.Random(seed)
    view = SequencerView(database)
    channel.ready()
    while not channel.is_told():
        view.take()
        time.sleep(rng.choice([0.0, 0.01, 0.35]))
        view.give_back()
        time.sleep(rng.uniform(0.0, 0.001))


def test_a_stopped_reader_blocks_nobody(crew: Crew) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        kv.mset(RUN, dict.fromkeys(MANY, 0))
        reader = crew.start(read_and_stop, database)
        os.waitid(os.P_PID, reader.pid, os.WSTOPPED | os.WNOWAIT)
        for turn in range(1, 50):
            kv.mset(RUN, dict.fromkeys(MANY, turn))
        kv.mdelete(RUN, MANY)
        reader.resume()
        assert reader.receive() == [0] * len(MANY)
        reader.join()


def read_and_stop(channel: Channel, database: Database) -> None:
    """Stands still in the middle of a read, with the pin that protects what it looks at."""
    pin = database._engine.open_pin()

    def names_with_a_stop() -> list[str]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return MANY[100:]

    first = database.engine.get_many(RUN, keys.TAG_KV, MANY[:100], pin)
    rest = database.engine.get_many(
        RUN, keys.TAG_KV, (name for part in [names_with_a_stop] for name in part()), pin
    )
    pin.close()
    channel.send(first + rest)


def test_a_stopped_coordinator_stops_no_work(folder: Path, crew: Crew, tally: Tally) -> None:
    with Database.open(folder, MEMORY) as database:
        info = coordinator.read_info(folder)
        assert info is not None
        os.kill(info.pid, signal.SIGSTOP)
        try:
            if SequencerView(database).owner() == info.pid:
                pytest.skip("it was stopped while it held the sequencer, which is another test")
            workers = crew.start_many(2, count_up, database, tally, 2000)
            crew.release(workers)
            for worker in workers:
                worker.join()
            with Database.open(folder) as joined:
                kv = KVStore(joined)
                assert kv.get(RUN, "sum") == 4000
                for number in range(3000):
                    kv.put(RUN, f"key/{number}", b"v" * 2000)  # the arena grows without it
        finally:
            os.kill(info.pid, signal.SIGCONT)


# -- Ctrl-C -----------------------------------------------------------------------------------


def test_ctrl_c_in_a_commit_loop_leaves_the_counts_exact(
    crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        workers = crew.start_many(2, count_up, database, tally, 10**9)
        crew.release(workers)
        sent = 0
        for _ in range(60):
            crew.watch(workers, rng.uniform(0.0, 0.01))
            wait_until_counting(tally)
            workers[0].signal(signal.SIGINT)
            sent += 1
            wait_until(lambda sent=sent: tally[2] == sent, "the interrupt was raised", 5)  # type: ignore[misc]
        wait_until_counting(tally)
        for worker in workers:
            worker.kill()
        acknowledged = tally[1] + tally[5]
        total = kv.get(RUN, "sum")
        # A commit whose acknowledgement the interrupt cut off may have been made.
        assert acknowledged <= total <= acknowledged + sent + 2
        assert total <= tally[0] + tally[4]


def wait_until_counting(tally: Tally) -> None:
    """Returns when the first worker has counted on."""
    before = tally[1]
    wait_until(lambda: tally[1] > before, "counting after an interrupt", 5)


def test_ctrl_c_ends_the_wait_for_a_stopped_holder_and_writes_nothing(crew: Crew) -> None:
    with Database.ephemeral() as database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        holder = stopped_holder(crew, database)
        waiter = crew.start(wait_for_the_holder, database)
        crew.release([waiter])
        wait_until(SequencerView(database).waiting, "the write waits")
        waiter.signal(signal.SIGINT)
        assert waiter.receive(2.0) == "interrupted"
        holder.resume()
        holder.join()
        waiter.expect("written")
        waiter.join()
        assert [found.value for found in kv.history(RUN, "key")] == [2, 1]


def wait_for_the_holder(channel: Channel, database: Database) -> None:
    """Writes, is interrupted, and writes again."""
    kv = KVStore(database)
    channel.ready()
    try:
        kv.put(RUN, "key", "never written")
    except KeyboardInterrupt:
        channel.send("interrupted")
    kv.put(RUN, "key", 2)
    channel.send("written")


def test_ctrl_c_in_large_commits_leaves_none_half_done(
    crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        database.set_retention(RUN, RetentionPolicy.KeepLast(8))
        kv = KVStore(database)
        worker = crew.start(set_many_although_interrupted, database, tally)
        crew.release([worker])
        for sent in range(1, 41):
            wait_until_counting(tally)
            crew.watch([worker], rng.uniform(0.0, 0.01))
            worker.signal(signal.SIGINT)
            wait_until(lambda sent=sent: tally[2] == sent, "the interrupt was raised", 5)  # type: ignore[misc]
            assert len(set(kv.get_many(RUN, MANY))) == 1
        wait_until_counting(tally)
        worker.send("stop")
        worker.join()
        found = kv.get_many(RUN, MANY)
        assert found == [found[0]] * len(MANY)
        assert tally[1] <= found[0] <= tally[1] + 40
        assert database.metrics().recoveries == 0
        wait_until(lambda: database.metrics().snapshots == 0, "all snapshots were closed", 2)
        check_structure(database)


def set_many_although_interrupted(channel: Channel, database: Database, tally: Tally) -> None:
    """Counts up with all keys at once, in a transaction, whatever is thrown at it."""
    channel.ready()
    while True:
        try:
            while not channel.is_told():
                with database.begin(RUN) as txn:
                    turn = (txn.kv_get(MANY[0]) or 0) + 1
                    for key in MANY:
                        txn.kv_put(key, turn)
                tally[1] += 1
            return
        except KeyboardInterrupt:
            tally[2] += 1


@pytest.mark.parametrize("place", ["ephemeral", "folder"])
def test_ctrl_c_kills_no_coordinator(place: str, folder: Path, crew: Crew) -> None:
    """A terminal sends Ctrl-C to all processes of its group; the coordinator is not in it."""
    leader = crew.start(lead_a_group, place, folder)
    group = leader.receive()
    os.killpg(group, signal.SIGINT)
    leader.expect("interrupted")
    leader.expect(1)
    if place == "folder":
        info = coordinator.read_info(folder)
        assert info is not None
        assert info.is_alive()
        assert os.getpgid(info.pid) != group
        assert os.getsid(info.pid) == os.getpgid(info.pid)
    leader.send("stop")
    leader.join()


def lead_a_group(channel: Channel, place: str, folder: Path) -> None:
    """Opens as the leader of a process group of its own."""
    os.setpgid(0, 0)
    database = Database.ephemeral() if place == "ephemeral" else Database.open(folder, MEMORY)
    with database:
        kv = KVStore(database)
        kv.put(RUN, "key", 1)
        try:
            channel.send(os.getpgid(0))
            signal.pause()
        except KeyboardInterrupt:
            channel.send("interrupted")
        channel.send(kv.get(RUN, "key"))
        channel.receive()


def test_a_signal_handler_may_use_the_store_that_it_interrupts(crew: Crew) -> None:
    """Handlers run between bytecodes, also while a thread waits for a commit."""
    with Database.ephemeral() as database:
        worker = crew.start(count_in_a_handler, database)
        crew.release([worker])
        for _ in range(50):
            worker.signal(signal.SIGUSR1)
            worker.expect("handled")
        worker.send("stop")
        main, handled = worker.receive()
        kv = KVStore(database)
        assert handled == 50
        assert kv.get(RUN, "sum") == main + handled


def count_in_a_handler(channel: Channel, database: Database) -> None:
    """Increments in a loop and, whenever it is asked to, in a signal handler."""
    kv = KVStore(database)
    handled = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        kv.incr(RUN, "sum")
        handled += 1
        channel.send("handled")

    signal.signal(signal.SIGUSR1, handle)
    channel.ready()
    main = 0
    while not channel.is_told():
        kv.incr(RUN, "sum")
        main += 1
    channel.send((main, handled))


def test_threads_and_signals_together_count_exactly(crew: Crew) -> None:
    with Database.ephemeral() as database:
        worker = crew.start(count_in_threads, database)
        crew.release([worker])
        for _ in range(20):
            worker.signal(signal.SIGUSR1)
        worker.join()
        assert KVStore(database).get(RUN, "sum") == 4 * 2000


def count_in_threads(channel: Channel, database: Database) -> None:
    """Four threads count while signals arrive."""
    kv = KVStore(database)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)

    def count() -> None:
        for _ in range(2000):
            kv.incr(RUN, "sum")

    channel.ready()
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
