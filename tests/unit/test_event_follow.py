"""test_event_follow.py - EventLog.follow gives every event once, in order, and then ends."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from shm_engine import Database, Event, EventLog, RunId, errors
from tests.harness.refusal import refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT


@pytest.fixture
def log() -> Iterator[EventLog]:
    with Database.ephemeral() as db:
        yield EventLog(db)
        assert db.closed or db.metrics().snapshots == 0


def payloads(events: list[Event]) -> list[Any]:
    return [event.payload for event in events]


def fill(log: EventLog, count: int) -> None:
    """Events with their sequence as payload."""
    log.append_batch(RUN, [("t", number) for number in range(count)])


# -- following --------------------------------------------------------------------------------


def followed(log: EventLog, **options: Any) -> list[Any]:
    """What there is now."""
    return payloads(list(log.follow(RUN, timeout=0, **options)))


def test_a_follower_that_does_not_wait_gives_what_is_there(log: EventLog) -> None:
    assert followed(log) == followed(log, after=-1) == []
    fill(log, 4)
    assert followed(log, after=-1) == [0, 1, 2, 3]
    assert followed(log, after=-(10**30)) == [0, 1, 2, 3]
    assert followed(log, after=1) == [2, 3]
    assert followed(log, after=3) == followed(log) == []
    assert followed(log, after=4) == followed(log, after=10**30) == []


def test_after_none_begins_with_what_comes_after_the_call(log: EventLog) -> None:
    fill(log, 2)
    following = log.follow(RUN, timeout=0)
    log.append(RUN, "t", "new")
    assert payloads(list(following)) == ["new"]


def test_a_follower_may_begin_behind_what_is_not_there_yet(log: EventLog) -> None:
    following = log.follow(RUN, after=2, timeout=0)
    fill(log, 5)
    assert payloads(list(following)) == [3, 4]


def test_a_follower_goes_on_where_it_was(log: EventLog) -> None:
    fill(log, 2500)
    following = log.follow(RUN, after=-1, timeout=0)
    assert next(following).payload == 0
    log.append(RUN, "t", 2500)
    assert payloads(list(following)) == list(range(1, 2501))


def test_a_followers_time_begins_anew_with_each_event(log: EventLog) -> None:
    fill(log, 1)
    following = log.follow(RUN, after=-1, timeout=0.2)
    assert next(following).payload == 0
    began = time.monotonic()
    while time.monotonic() - began < 0.3:  # longer than the time: it is the caller's, not the log's
        pass
    log.append(RUN, "t", 1)
    assert next(following).payload == 1
    began = time.monotonic()
    assert list(following) == []
    assert 0.2 <= time.monotonic() - began < 5


@pytest.mark.parametrize("timeout", [timedelta(milliseconds=30), 0.03])
def test_a_follower_ends_when_nothing_came_for_so_long(timeout: Any, log: EventLog) -> None:
    began = time.monotonic()
    assert list(log.follow(RUN, timeout=timeout)) == []
    assert 0.03 <= time.monotonic() - began < 5


BAD_TIMES: dict[str, tuple[Any, type[errors.Error]]] = {
    "negative": (-1, errors.ConstraintViolation),
    "negative span": (timedelta(seconds=-1), errors.ConstraintViolation),
    "nan": (math.nan, errors.ConstraintViolation),
    "inf": (math.inf, errors.ConstraintViolation),
    "huge": (10**30, errors.ConstraintViolation),
    "str": ("1", errors.WrongType),
    "bool": (True, errors.WrongType),
}


@pytest.mark.parametrize(("timeout", "kind"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_bad_timeout_is_refused_by_the_call_itself(
    timeout: Any, kind: type[errors.Error], log: EventLog
) -> None:
    with refused(log.database, kind, "timeout"):
        log.follow(RUN, timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 30, timedelta.max])
def test_a_sleeping_follower_sees_what_a_thread_appends(timeout: Any, log: EventLog) -> None:
    def follow(_: int) -> list[Any]:
        return payloads(list(itertools.islice(log.follow(RUN, -1, timeout), 60)))

    def append(_: int) -> None:
        for number in range(20):
            log.append(RUN, "a", number)
            log.append_batch(RUN, [("b", number), ("c", number)])

    found = in_threads(2, lambda me: (follow, append)[me](me))[0]
    assert found == [number for number in range(20) for _ in range(3)]


def test_followers_of_other_runs_see_nothing_of_this_one(log: EventLog) -> None:
    other = log.database.begin_run()
    following = log.follow(other, after=-1, timeout=0.05)
    fill(log, 3)
    assert list(following) == []


def test_closing_the_handle_in_another_thread_ends_a_sleeping_follower() -> None:
    with Database.ephemeral() as db:
        log = EventLog(db)
        log.append(RUN, "a", 1)
        following = log.follow(RUN, after=-1)
        began = threading.Event()
        caught: list[BaseException] = []

        def follow() -> None:
            try:
                for _ in following:
                    began.set()
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        assert began.wait(10)
        db.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [type(error) for error in caught] == [errors.Closed]


def append_and_follow_on(log: EventLog, name: str) -> None:
    for number in itertools.count():
        log.append(RUN, name, number)
        list(log.follow(RUN, log.len(RUN) - 5, timeout=0))


def test_closing_the_handle_under_threads_that_write_and_follow_leaves_a_whole_chain() -> None:
    with Database.ephemeral() as other:
        for _ in range(10):
            rejoin = other.__reduce__()
            db: Database = rejoin[0](*rejoin[1])
            log = EventLog(db)
            started = threading.Barrier(4)

            def use(me: int, log: EventLog = log, started: threading.Barrier = started) -> None:
                started.wait()
                if me == 3:
                    log.append(RUN, "a", "last")
                    log.database.close()
                    return
                with pytest.raises(errors.Closed):
                    append_and_follow_on(log, f"t{me}")

            in_threads(4, use)
        found = EventLog(other).verify_chain(RUN)
        assert found.error is None
        assert found.length >= 10


def test_a_follower_of_a_run_that_ends_stays_until_its_time_is_over(log: EventLog) -> None:
    run = log.database.begin_run()
    log.append(run, "a", 1)
    following = log.follow(run, after=-1, timeout=0.01)
    log.database.end_run(run)
    assert payloads(list(following)) == [1]
