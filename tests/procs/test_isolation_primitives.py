"""test_isolation_primitives.py - histories of events and cells obey the isolation asked for, too.

As in test_isolation, but the lists lie in the event log, in state cells, or in all primitives at
once; a fault on purpose shows that it would be found.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.event_log import EventLog
from shm_engine.transaction import Transaction
from tests.harness.isolation import Level, Values, check, described
from tests.harness.recorder import RUN, Abandoned, Recorder, Register, Session, recorded
from tests.harness.registers import CellLists, EventLists, MixedLists
from tests.harness.shared import check_structure
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Worker

MAP_SIZE = 32 << 20
WORKERS = 3
PROMISED: Mapping[str, Level] = {"snapshot": "guarded", "serializable": "serializable"}
NAMES = [str(number) for number in range(6)]
TURNS_EACH = 30
REGISTERS: Mapping[str, Register] = {
    "events": EventLists(),
    "cells": CellLists(NAMES),
    "mixed": MixedLists(NAMES),
}


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """Where the recorders write."""
    found = tmp_path / "histories"
    found.mkdir()
    return found


def opened(place: str, folder: Path) -> Database:
    """In memory alone, or in a folder."""
    if place == "ephemeral":
        return Database.ephemeral(map_size=MAP_SIZE)
    return Database.open(folder, Durability.of(place), map_size=MAP_SIZE)


def act(session: Session, rng: random.Random, group: int) -> None:
    """A few operations on few lists; one of ten is abandoned."""
    only_reads = rng.random() < 0.2
    for _ in range(rng.randint(1, 4)):
        chosen = group - (rng.random() < 0.2)
        key = f"{chosen}/{rng.choice(NAMES)}"
        kind = rng.random()
        if kind < 0.2:
            session.scan(f"{chosen}/")
        elif kind < 0.5 or only_reads:
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
    kind: str,
    isolation: str,
    histories: Path,
    tally: Tally,
    turns: int | None,
) -> None:
    """So many transactions, or until told to stop; all move on to new lists together."""
    rng = random.Random(seed)
    recorder = Recorder(histories, number, REGISTERS[kind])
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
@pytest.mark.parametrize(("place", "turns"), [("ephemeral", 100), ("strict", 40)])
@pytest.mark.parametrize("kind", REGISTERS)
def test_a_history_of_other_primitives_has_nothing_that_its_isolation_forbids(
    kind: str,
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
            crew.start(mix, number, seed, database, kind, isolation, histories, tally, turns)
        crew.release()
        counts: Counter[str] = Counter()
        for worker in crew.workers:
            counts += worker.receive()
        history = recorded(histories, REGISTERS[kind].final(database))
    found = check(history, PROMISED[isolation])
    assert not found, described(found)
    assert counts.total() == WORKERS * turns
    assert counts["committed"] > counts["aborted"] > 0


@pytest.mark.crash
@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
def test_a_history_of_all_primitives_with_killed_processes_has_nothing_forbidden(
    isolation: str,
    histories: Path,
    crew: Crew,
    tally: Tally,
    rng: random.Random,
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:

        def hire(number: int) -> Worker:
            seed = rng.getrandbits(32)
            arguments = (seed, database, "mixed", isolation, histories, tally, None)
            worker = crew.start(mix, number, *arguments)
            crew.release([worker])
            return worker

        at_work = {number: hire(number) for number in range(WORKERS)}
        for life in range(WORKERS, WORKERS + 6):
            crew.watch(at_work.values(), rng.uniform(0.0, 0.04))
            at_work.pop(rng.choice(sorted(at_work))).kill()
            at_work[life] = hire(life)
        for worker in at_work.values():
            worker.send("stop")
            assert worker.receive().total() > 0
            worker.join()
        check_structure(database)
        history = recorded(histories, REGISTERS["mixed"].final(database))
    found = check(history, PROMISED[isolation])
    assert not found, described(found)


# -- a fault that has to be found -------------------------------------------------------------


class CarelessEvents(EventLists):
    """Reads the log as it is now, and not as it was when the transaction began."""

    def __init__(self, database: Database) -> None:
        self._log = EventLog(database)

    def read(self, txn: Transaction, key: str) -> Values:
        return tuple(event.payload for event in self._log.read_by_type(RUN, key))


def look_carelessly(channel: Channel, number: int, database: Database, histories: Path) -> None:
    """One moves both lists on, between the other's two reads."""
    recorder = Recorder(histories, number, CarelessEvents(database))

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


def test_a_read_of_two_moments_of_the_log_is_found(histories: Path, crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        reader = crew.start(look_carelessly, 1, database, histories)
        reader.expect("ready")
        crew.start(look_carelessly, 0, database, histories).expect("done")
        reader.release()
        reader.expect("done")
        history = recorded(histories, EventLists().final(database))
    for level in PROMISED.values():
        assert [one.name for one in check(history, level)] == ["G-single"]
