"""test_isolation.py - what real processes saw and did obeys the isolation that they asked for.

Each records its transactions, and the checker infers from all of them what must not have happened.
Two histories with a fault on purpose show that it would be found.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from shm_engine.transaction import Transaction
from tests.harness.isolation import History, Level, Values, check, described
from tests.harness.recorder import RUN, Abandoned, KeyLists, Recorder, Session, recorded
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Worker, wait_until

MAP_SIZE = 32 << 20
WORKERS = 4
PROMISED: Mapping[str, Level] = {"snapshot": "guarded", "serializable": "serializable"}
KEYS_EACH = 5
TURNS_EACH = 40


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """Where the recorders write."""
    found = tmp_path / "histories"
    found.mkdir()
    return found


def opened(place: str, folder: Path) -> Database:
    """In memory alone, or in a folder. It keeps no history, so that only snapshots hold it."""
    if place == "ephemeral":
        database = Database.ephemeral(map_size=MAP_SIZE)
    else:
        database = Database.open(folder, Durability.of(place), map_size=MAP_SIZE)
    database.set_retention(RUN, RetentionPolicy.KeepLast(1))
    return database


def whole(histories: Path, database: Database) -> History:
    """What was recorded, and the lists as they are now that all have ended."""
    return recorded(histories, KeyLists().final(database))


# -- as they come -----------------------------------------------------------------------------


def act(session: Session, rng: random.Random, group: int) -> None:
    """A few operations on few keys, most of which are not there yet; one of ten is abandoned."""
    only_reads = rng.random() < 0.2
    for _ in range(rng.randint(1, 4)):
        chosen = group - (rng.random() < 0.2)
        key = f"{chosen}/{rng.randrange(KEYS_EACH)}"
        kind = rng.random()
        if kind < 0.3:
            session.scan(f"{chosen}/")
        elif kind < 0.6 or only_reads:
            session.read(key)
        else:
            session.append(key)
        if rng.random() < 0.3:
            os.sched_yield()
    if rng.random() < 0.1:
        raise Abandoned


def mix(
    channel: Channel,
    number: int,
    seed: int,
    database: Database,
    isolation: str,
    histories: Path,
    tally: Tally,
    turns: int | None,
) -> None:
    """So many transactions, or until told to stop; all move on to new keys together."""
    rng = random.Random(seed)
    recorder = Recorder(histories, number, KeyLists())
    counts: Counter[str] = Counter()
    channel.ready()
    while counts.total() != turns and not (turns is None and channel.is_told()):
        tally[number] += 1
        group = tally.total() // TURNS_EACH
        run = rng.choice([recorder.run, recorder.run_with_retry])
        counts[run(database, isolation, partial(act, rng=rng, group=group))] += 1
    channel.send(counts)
    database.close()


@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
@pytest.mark.parametrize(("place", "turns"), [("ephemeral", 400), ("strict", 150)])
def test_a_history_has_nothing_that_its_isolation_forbids(
    place: str,
    turns: int,
    isolation: str,
    folder: Path,
    histories: Path,
    crew: Crew,
    tally: Tally,
    rng: random.Random,
) -> None:
    with opened(place, folder) as database:
        for number in range(WORKERS):
            seed = rng.getrandbits(32)
            crew.start(mix, number, seed, database, isolation, histories, tally, turns)
        crew.release()
        counts: Counter[str] = Counter()
        for worker in crew.workers:
            counts += worker.receive()
        history = whole(histories, database)
    found = check(history, PROMISED[isolation])
    assert not found, described(found)
    assert counts["committed"] > counts["aborted"] > 0
    assert len(history.records) >= counts.total() == WORKERS * turns


def kill_while_it_waits(victim: Worker, view: SequencerView, workers: int) -> None:
    """When its commit lies before the sequencer, as do those of all others."""
    view.take()
    try:
        wait_until(lambda: view.waiting() == workers, "all want to commit")
        victim.kill()
    finally:
        view.give_back()


@pytest.mark.crash
@pytest.mark.parametrize(
    ("place", "isolation"), [("ephemeral", "serializable"), ("strict", "snapshot")]
)
def test_a_history_with_killed_processes_has_nothing_that_its_isolation_forbids(
    place: str,
    isolation: str,
    folder: Path,
    histories: Path,
    crew: Crew,
    tally: Tally,
    rng: random.Random,
) -> None:
    with opened(place, folder) as database:
        view = SequencerView(database)

        def hire(number: int) -> Worker:
            seed = rng.getrandbits(32)
            worker = crew.start(mix, number, seed, database, isolation, histories, tally, None)
            crew.release([worker])
            return worker

        first = hire(0)
        stop_in_the_middle(first, view, rng)
        first.kill()
        at_work = {number: hire(number) for number in range(1, 4)}
        for life in range(4, 12):
            crew.watch(at_work.values(), rng.uniform(0.0, 0.05))
            victim = at_work.pop(rng.choice(sorted(at_work)))
            if life % 2:
                kill_while_it_waits(victim, view, len(at_work) + 1)
            victim.kill()
            at_work[life] = hire(life)
        for worker in at_work.values():
            worker.send("stop")
            assert worker.receive().total() > 0
            worker.join()
        check_structure(database)
        history = whole(histories, database)
    found = check(history, PROMISED[isolation])
    assert not found, described(found)
    unknown = [one for one in history.records if one.status == "unknown"]
    assert 4 <= len(unknown) <= 9, "four died with a commit under way"


# -- step by step -----------------------------------------------------------------------------


def stand_in(
    channel: Channel,
    number: int,
    database: Database,
    isolation: str,
    histories: Path,
    look: Callable[[Session], bool],
) -> None:
    """Goes on duty if nobody is; the other one looks before either commits."""

    def body(session: Session) -> None:
        assert not look(session)
        channel.ready()
        session.append(f"duty/{number}")

    status = Recorder(histories, number, KeyLists()).run(database, isolation, body)
    channel.send(status)
    database.close()


def by_scan(session: Session) -> bool:
    """Whether anybody is on duty."""
    return bool(session.scan("duty/"))


def by_keys(session: Session) -> bool:
    """The same, asked one by one."""
    return any([session.read("duty/0"), session.read("duty/1")])


@pytest.mark.parametrize(
    ("isolation", "look", "both"),
    [
        ("snapshot", by_scan, True),
        ("snapshot", by_keys, False),
        ("serializable", by_scan, False),
        ("serializable", by_keys, False),
    ],
)
def test_two_who_look_and_then_insert_skew_only_where_no_range_is_guarded(
    isolation: str,
    look: Callable[[Session], bool],
    both: bool,
    histories: Path,
    crew: Crew,
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(2, stand_in, database, isolation, histories, look)
        crew.release()
        statuses = sorted(worker.receive() for worker in workers)
        history = whole(histories, database)
    assert statuses == (["committed"] * 2 if both else ["aborted", "committed"])
    found = check(history, PROMISED[isolation])
    assert not found, described(found)
    assert [one.name for one in check(history, "serializable")] == (["G2"] if both else [])


# -- faults that have to be found -------------------------------------------------------------


class CarelessLists(KeyLists):
    """Reads outside of the transaction, so that nothing is guarded: updates get lost."""

    def __init__(self, database: Database) -> None:
        self._kv = KVStore(database)

    def append(self, txn: Transaction, key: str, value: int) -> None:
        txn.kv_put(key, [*self.read(txn, key), value])

    def read(self, txn: Transaction, key: str) -> Values:
        return tuple(self._kv.get(RUN, key) or ())


def add_carelessly(channel: Channel, number: int, database: Database, histories: Path) -> None:
    """One append, which all have read for before any of them commits, and a look afterwards."""
    recorder = Recorder(histories, number, CarelessLists(database))

    def body(session: Session) -> None:
        session.append("x")
        channel.ready()

    assert recorder.run(database, "serializable", body) == "committed"
    recorder.run(database, "serializable", lambda session: session.read("x"))
    channel.send("done")
    database.close()


def test_an_update_that_is_lost_is_found(histories: Path, crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(2, add_carelessly, database, histories)
        for worker in workers:
            worker.expect("ready")
        for worker in workers:
            worker.release()
            worker.expect("done")
        history = whole(histories, database)
    for level in PROMISED.values():
        found = {one.name: one.transactions for one in check(history, level)}
        assert found["lost append"] == ("T0.0",)
        assert "incompatible orders" in found


def look_carelessly(channel: Channel, number: int, database: Database, histories: Path) -> None:
    """One moves both lists on, between the other's two reads."""
    recorder = Recorder(histories, number, CarelessLists(database))

    def body(session: Session) -> None:
        if number == 0:
            session.append("x")
            session.append("y")
        else:
            session.read("x")
            channel.ready()
            session.read("y")

    recorder.run(database, "snapshot", body)
    channel.send("done")
    database.close()


def test_a_read_of_two_moments_is_found(histories: Path, crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        reader = crew.start(look_carelessly, 1, database, histories)
        reader.expect("ready")
        crew.start(look_carelessly, 0, database, histories).expect("done")
        reader.release()
        reader.expect("done")
        history = whole(histories, database)
    for level in PROMISED.values():
        assert [one.name for one in check(history, level)] == ["G-single"]
