"""test_event_log.py - processes that write and follow one run's log, and some that die doing so."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from shm_engine import ChainVerification, Event
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.event_log import EventLog
from tests.harness.shared import SequencerView, check_structure, stop_in_the_middle
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, Method, Worker

RUN = RunId.DEFAULT
MAP_SIZE = 32 << 20
FOLLOW_S = 20.0
PAUSE_S = 0.0005
BATCH = 200
PLACES = ["ephemeral", "strict"]
END = "the end"


def opened(place: str, folder: Path) -> Database:
    """In memory alone, or in a folder."""
    if place == "ephemeral":
        return Database.ephemeral(map_size=MAP_SIZE)
    return Database.open(folder, Durability.of(place), map_size=MAP_SIZE)


def sound(log: EventLog) -> list[Event]:
    """All events; none is missing, and the chain is whole."""
    events = list(log.iter(RUN))
    assert [event.sequence for event in events] == list(range(len(events)))
    assert log.verify_chain(RUN) == ChainVerification(True, len(events))
    return events


def of_writer(events: Iterable[Event], number: int) -> list[Any]:
    """What one writer has put there, in the order of the log."""
    return [event.payload for event in events if event.event_type == f"w{number}"]


# -- writing ----------------------------------------------------------------------------------


def append_in_transaction(database: Database, kind: str, payload: int) -> int:
    """Tried until nobody else comes first."""
    return database.transaction_with_retry(
        RUN, lambda txn: txn.event_append(kind, payload), max_retries=10_000
    )


def append_some(channel: Channel, number: int, database: Database, count: int) -> None:
    """In turn one event, three in a batch, and one in a transaction."""
    log = EventLog(database)
    kind = f"w{number}"
    told: list[tuple[int, int]] = []
    written = 0
    channel.ready()
    while written < count:
        if written % 5 == 1:
            batch = log.append_batch(RUN, [(kind, written + place) for place in range(3)])
            told += [(sequence, written + place) for place, (sequence, _) in enumerate(batch)]
            written += 3
        elif written % 5 == 4:
            sequence = append_in_transaction(database, kind, written)
            told.append((sequence, written))
            written += 1
        else:
            told.append((log.append(RUN, kind, written)[0], written))
            written += 1
    channel.send(told)
    database.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_appends_of_four_processes_have_no_gap_no_duplicate_and_keep_each_ones_order(
    method: Method, crew: Crew
) -> None:
    crew.method = method
    count = 400
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(4, append_some, database, count)
        crew.release()
        told = [worker.receive() for worker in workers]
        for worker in workers:
            worker.join()
        log = EventLog(database)
        events = sound(log)
        assert len(events) == 4 * count
        for number in range(4):
            assert of_writer(events, number) == list(range(count))
            for sequence, payload in told[number]:
                assert (events[sequence].event_type, events[sequence].payload) == (
                    f"w{number}",
                    payload,
                )
            assert [event.payload for event in log.read_by_type(RUN, f"w{number}")] == list(
                range(count)
            )
        assert log.event_types(RUN) == [f"w{number}" for number in range(4)]
        check_structure(database)


def test_appends_outside_of_transactions_never_conflict(crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        workers = crew.start_many(4, append_only, database, 500)
        crew.release()
        for worker in workers:
            worker.join()
        assert len(sound(EventLog(database))) == 2000
        assert database.metrics().conflicts == 0


def append_only(channel: Channel, number: int, database: Database, count: int) -> None:
    """One after the other; how often it had to try is the engine's affair."""
    log = EventLog(database)
    channel.ready()
    for turn in range(count):
        log.append(RUN, f"w{number}", turn)
    database.close()


def append_on(
    channel: Channel, number: int, database: Database, tally: Tally, pause_s: float = 0.0
) -> None:
    """Without an end, in turn one event and three in one commit, noted before and after; with
    pauses, where the log would get too long to be looked at again and again."""
    log = EventLog(database)
    kind = f"w{number}"
    turn = 0
    channel.ready()
    while not channel.is_told():
        size = 3 if turn % 2 else 1
        tally[2 * number] += size
        if size == 1:
            log.append(RUN, kind, [turn, 0])
        else:
            log.append_batch(RUN, [(kind, [turn, place]) for place in range(3)])
        tally[2 * number + 1] += size
        turn += 1
        if pause_s:
            time.sleep(pause_s)
    database.close()


def check_writer(events: list[Event], number: int, tally: Tally) -> None:
    """Everything acknowledged is there, nothing that was not begun, and batches are whole."""
    found = of_writer(events, number)
    begun, acknowledged = tally[2 * number], tally[2 * number + 1]
    assert acknowledged <= len(found) <= begun <= acknowledged + 3
    expected = [
        [turn, place] for turn in range(len(found)) for place in range(3 if turn % 2 else 1)
    ]
    assert found == expected[: len(found)]
    assert len(found) % 4 in (0, 1), "a batch was torn"
    places = [event.sequence for event in events if event.event_type == f"w{number}"]
    for place in range(1, len(places) - 2, 4):
        assert places[place + 2] == places[place] + 2, "somebody came between a batch"


@pytest.mark.crash
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_appender_leaves_a_whole_chain_and_all_that_it_was_told(
    place: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with opened(place, folder) as database:
        log = EventLog(database)
        at_work = crew.start_many(3, append_on, database, tally, PAUSE_S)
        crew.release()
        for life in range(3, 11):
            crew.watch(at_work, rng.uniform(0.0, 0.06))
            at_work.pop(rng.randrange(3)).kill()
            log.append(RUN, "test", life)
            assert log.verify_chain(RUN).error is None
            at_work.append(crew.start(append_on, life, database, tally, PAUSE_S))
            crew.release(at_work[-1:])
        for worker in at_work:
            worker.kill()
        events = sound(log)
        for number in range(11):
            check_writer(events, number, tally)
        assert [event.payload for event in log.read_by_type(RUN, "test")] == list(range(3, 11))
        check_structure(database)


def append_batches(channel: Channel, number: int, database: Database) -> None:
    """Most of its time is spent in commits."""
    log = EventLog(database)
    channel.ready()
    while not channel.is_told():
        log.append_batch(RUN, [(f"w{number}", place) for place in range(BATCH)])


@pytest.mark.crash
def test_an_appender_killed_in_the_middle_of_its_commit_leaves_nothing_of_it(
    crew: Crew, rng: random.Random
) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        log = EventLog(database)
        view = SequencerView(database)
        for number in range(6):
            writer = crew.start(append_batches, number, database)
            crew.release([writer])
            stop_in_the_middle(writer, view, rng)
            before = len(sound(log))
            writer.kill()
            log.append(RUN, "test", number)
            events = sound(log)
            assert len(events) in (before + 1, before + BATCH + 1)
            found = of_writer(events, number)
            assert found == list(range(BATCH)) * (len(found) // BATCH)
        assert database.metrics().recoveries == 6
        check_structure(database)


# -- following --------------------------------------------------------------------------------


def follow_to_the_end(channel: Channel, database: Database) -> None:
    """All events from the first on, up to the one that says so."""
    found: list[tuple[int, str, Any]] = []
    channel.ready()
    for event in EventLog(database).follow(RUN, after=-1, timeout=FOLLOW_S):
        found.append((event.sequence, event.event_type, event.payload))
        if event.event_type == END:
            break
    channel.send(found)
    database.close()


def check_follower(follower: Worker, log: EventLog) -> None:
    """It has got all there is, in order, each once."""
    expected = [(event.sequence, event.event_type, event.payload) for event in sound(log)]
    assert follower.receive() == expected
    follower.join()


@pytest.mark.parametrize(("place", "count"), [("ephemeral", 600), ("strict", 60)])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_follower_sees_every_event_of_three_processes_once_and_in_order(
    method: Method, place: str, count: int, folder: Path, crew: Crew
) -> None:
    crew.method = method
    with opened(place, folder) as database:
        log = EventLog(database)
        follower = crew.start(follow_to_the_end, database)
        workers = crew.start_many(3, append_some, database, count)
        crew.release()
        for worker in workers:
            worker.receive()
            worker.join()
        log.append(RUN, END, None)
        check_follower(follower, log)


@pytest.mark.crash
@pytest.mark.parametrize("place", PLACES)
def test_a_follower_goes_on_with_others_events_when_an_appender_is_killed(
    place: str, folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with opened(place, folder) as database:
        log = EventLog(database)
        follower = crew.start(follow_to_the_end, database)
        workers = [crew.start(append_on, 0, database, tally)]
        workers += [crew.start(append_on, n, database, tally, PAUSE_S) for n in (1, 2)]
        crew.release()
        stop_in_the_middle(workers[0], SequencerView(database), rng)
        workers[0].kill()
        crew.watch([follower, *workers[1:]], rng.uniform(0.05, 0.2))
        workers[1].kill()
        crew.watch([follower, workers[2]], rng.uniform(0.05, 0.2))
        workers[2].send("stop")
        workers[2].join()
        log.append(RUN, END, None)
        check_follower(follower, log)
        for number in range(3):
            check_writer(sound(log), number, tally)


def follow_until_told(channel: Channel, database: Database) -> None:
    """Says each event; ends by Ctrl-C."""
    try:
        channel.send("follows")
        for event in EventLog(database).follow(RUN, after=-1):
            channel.send(event.payload)
    except KeyboardInterrupt:
        channel.send("interrupted")
    database.close()


def test_a_sleeping_follower_is_woken_by_each_event_and_ended_by_an_interrupt(crew: Crew) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        log = EventLog(database)
        follower = crew.start(follow_until_told, database)
        follower.expect("follows")
        for number in range(50):
            log.append(RUN, "a", number)
            follower.expect(number)
        follower.signal(2)
        follower.expect("interrupted")
        follower.join()
        assert database.metrics().snapshots == 0
