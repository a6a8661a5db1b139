"""test_state_cell.py - processes that change the same cells, wait for one another, and die."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from shm_engine import State, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.state_cell import StateCell
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Method

RUN = RunId.DEFAULT
MAP_SIZE = 16 << 20
PLACES = ["ephemeral", "strict"]
WAIT_S = 20.0
RACERS = 4
ROUNDS = 200


def opened(place: str, folder: Path) -> Database:
    """In memory alone, or in a folder."""
    if place == "ephemeral":
        return Database.ephemeral(map_size=MAP_SIZE)
    return Database.open(folder, Durability.of(place), map_size=MAP_SIZE)


def held(database: Database, name: str) -> tuple[object, int]:
    """Value and version."""
    state = StateCell(database).read(RUN, name)
    assert state is not None
    return state.value, state.version


def add_one(state: State) -> tuple[int, int]:
    return state.value + 1, state.value


# -- counting ---------------------------------------------------------------------------------


def count_up(channel: Channel, number: int, database: Database, times: int) -> None:
    """So many transitions; which values it has found."""
    cells = StateCell(database)
    channel.ready()
    found = [cells.transition_or_init(RUN, "count", 0, add_one) for _ in range(times)]
    channel.send(found)
    database.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_transitions_of_four_processes_sum_exactly_and_each_has_its_version(
    method: Method, crew: Crew
) -> None:
    crew.method = method
    times = 250
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(4, count_up, database, times)
        crew.release()
        pairs = sorted(pair for worker in workers for pair in worker.receive())
        assert pairs == [(value, value + 2) for value in range(4 * times)]
        assert held(database, "count") == (4 * times, 4 * times + 1)
        for worker in workers:
            worker.join()
        check_structure(database)


def set_blindly(channel: Channel, number: int, database: Database, times: int) -> None:
    """Writes without looking; the versions that it was told."""
    cells = StateCell(database)
    channel.ready()
    channel.send([cells.set(RUN, "last", number) for _ in range(times)])
    database.close()


def test_every_set_of_four_processes_has_a_version_of_its_own_and_none_conflicts(
    crew: Crew,
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(4, set_blindly, database, 500)
        crew.release()
        told = [worker.receive() for worker in workers]
        assert sorted(version for some in told for version in some) == list(range(1, 2001))
        assert all(some == sorted(some) for some in told)
        value, version = held(database, "last")
        assert version == 2000
        assert told[int(str(value))][-1] == 2000
        assert database.metrics().conflicts == 0


# -- one winner -------------------------------------------------------------------------------


def race(channel: Channel, number: int, database: Database, arrived: Tally) -> None:
    """Tries every version at the same moment as the others."""
    cells = StateCell(database)
    won = []
    channel.ready()
    for turn in range(ROUNDS):
        arrived[number] = turn + 1
        while min(arrived[other] for other in range(RACERS)) <= turn:
            os.sched_yield()
        try:
            if turn == 0:
                cells.init(RUN, "prize", number)
            else:
                cells.cas(RUN, "prize", turn, number)
            won.append(turn)
        except (errors.VersionMismatch, errors.InvalidOperation):
            pass
    channel.send(won)
    database.close()


def test_every_version_has_exactly_one_winner(crew: Crew, tally: Tally) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        racers = crew.start_many(RACERS, race, database, tally)
        crew.release()
        winners: dict[int, int] = {}
        for number, racer in enumerate(racers):
            for turn in racer.receive():
                assert winners.setdefault(turn, number) == number
        assert sorted(winners) == list(range(ROUNDS))
        assert held(database, "prize") == (winners[ROUNDS - 1], ROUNDS)
        assert database.metrics().transactions_committed == ROUNDS


# -- waiting ----------------------------------------------------------------------------------


def wait_once(channel: Channel, database: Database, known: int) -> None:
    """Waits for a change; what it saw, and when."""
    channel.send("waits")
    state = StateCell(database).wait(RUN, "cell", known, WAIT_S)
    channel.send((state, time.monotonic()))
    database.close()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_waiting_process_wakes_on_a_change_by_another(
    method: Method, place: str, folder: Path, crew: Crew
) -> None:
    crew.method = method
    with opened(place, folder) as database:
        cells = StateCell(database)
        for known in range(2):
            waiter = crew.start(wait_once, database, known)
            waiter.expect("waits")
            changed = time.monotonic()
            assert cells.set(RUN, "cell", known) == known + 1
            state, woken = waiter.receive()
            assert state == cells.read(RUN, "cell")
            assert state.version == known + 1
            assert woken - changed < WAIT_S / 2
            waiter.join()


def play(channel: Channel, number: int, database: Database, turns: int) -> None:
    """Moves a cell on each time that it is this one's turn."""
    cells = StateCell(database)
    channel.ready()
    version = 0
    while version < turns:
        state = cells.wait(RUN, "ball", version, WAIT_S)
        assert state is not None
        version = state.version
        if version < turns and version % 2 == number:
            version = cells.cas(RUN, "ball", version, number)
    channel.send("over")
    database.close()


@pytest.mark.parametrize(("place", "turns"), [("ephemeral", 400), ("strict", 60)])
def test_two_processes_that_pass_a_cell_to_and_fro_lose_no_wake_up(
    place: str, turns: int, folder: Path, crew: Crew
) -> None:
    """A lost one would cost a second, for a sleeper looks by itself that often."""
    with opened(place, folder) as database:
        players = crew.start_many(2, play, database, turns)
        crew.release()
        began = time.monotonic()
        StateCell(database).init(RUN, "ball", None)
        for player in players:
            player.expect("over")
        assert time.monotonic() - began < 10
        assert held(database, "ball")[1] == turns


def test_all_who_wait_for_one_cell_wake(crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        waiters = [crew.start(wait_once, database, 0) for _ in range(4)]
        for waiter in waiters:
            waiter.expect("waits")
        StateCell(database).init(RUN, "cell", "go")
        for waiter in waiters:
            state, _ = waiter.receive()
            assert (state.value, state.version) == ("go", 1)


def wait_for_an_interrupt(channel: Channel, cells: StateCell) -> None:
    """Made before the fork, used in the child; Ctrl-C ends the wait."""
    try:
        channel.send(cells.init(RUN, "child", 1))
        cells.wait(RUN, "cell")
    except KeyboardInterrupt:
        channel.send("interrupted")
    channel.send(cells.set(RUN, "child", 2))
    cells.database.close()


def test_an_interrupt_ends_a_wait_and_the_cells_stay_usable(crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        waiter = crew.start(wait_for_an_interrupt, StateCell(database))
        waiter.expect(1)
        waiter.signal(2)
        waiter.expect("interrupted")
        waiter.expect(2)
        waiter.join()
        assert held(database, "child") == (2, 2)


# -- deaths -----------------------------------------------------------------------------------


def count_on(channel: Channel, number: int, database: Database, tally: Tally) -> None:
    """Transitions without an end, noted before and after."""
    cells = StateCell(database)
    channel.ready()
    while not channel.is_told():
        tally[2 * number] += 1
        cells.transition(RUN, "count", add_one)
        tally[2 * number + 1] += 1
    database.close()


@pytest.mark.crash
@pytest.mark.parametrize("place", PLACES)
def test_transitions_of_killed_processes_count_once_or_not_at_all(
    place: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with opened(place, folder) as database:
        cells = StateCell(database)
        cells.init(RUN, "count", 0)
        at_work = crew.start_many(3, count_on, database, tally)
        crew.release()
        for life in range(3, 11):
            crew.watch(at_work, rng.uniform(0.0, 0.06))
            at_work.pop(rng.randrange(3)).kill()
            state = cells.read(RUN, "count")
            assert state is not None
            assert state.version == state.value + 1
            at_work.append(crew.start(count_on, life, database, tally))
            crew.release(at_work[-1:])
        for worker in at_work:
            worker.kill()
        value, version = held(database, "count")
        assert version == int(str(value)) + 1
        begun = sum(tally[2 * number] for number in range(11))
        acknowledged = sum(tally[2 * number + 1] for number in range(11))
        assert acknowledged <= int(str(value)) <= begun <= acknowledged + 11
        assert cells.transition(RUN, "count", add_one) == (value, version + 1)
        check_structure(database)


@pytest.mark.crash
def test_a_process_killed_in_the_middle_of_its_write_leaves_the_cell_and_wakes_nobody_wrongly(
    crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        cells = StateCell(database)
        cells.init(RUN, "count", 0)
        view = SequencerView(database)
        for number in range(5):
            writer = crew.start(count_on, number, database, tally)
            crew.release([writer])
            stop_in_the_middle(writer, view, rng)
            before = cells.read(RUN, "count")
            assert before is not None
            writer.kill()
            after = cells.wait(RUN, "count", before.version, 0.05)
            assert after is None or after.version == before.version + 1
            version = cells.set(RUN, "count", before.value)
            assert version in (before.version + 1, before.version + 2)
            cells.delete(RUN, "count")
            cells.init(RUN, "count", 0)
        check_structure(database)
