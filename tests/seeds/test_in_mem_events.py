"""test_in_mem_events.py - the EventLog examples of the in-mem page, typed line by line.

Why:        who comes from that page should be able to type what it shows, in Python form: snake
            case, None for no option, an exception for an error, a plain value for a Value.
Used by:    nothing else; each test is one example, in the order of the page
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shm_engine import ChainVerification, Database, Event, EventLog, RunId, keys
from shm_engine.events import entry_name


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def event_log(db: Database) -> EventLog:
    return EventLog(db)


@pytest.fixture
def run_id(db: Database) -> RunId:
    return db.begin_run()


def test_the_fields_of_an_event(event_log: EventLog, run_id: RunId) -> None:
    event_log.append(run_id, "user_action", None)
    event = event_log.read(run_id, 0)
    assert isinstance(event, Event)
    assert event.sequence == 0
    assert event.event_type == "user_action"
    assert event.payload is None
    assert type(event.timestamp) is int
    assert len(event.prev_hash) == len(event.hash) == 32


def test_the_fields_of_a_verification(event_log: EventLog, run_id: RunId) -> None:
    verification = event_log.verify_chain(run_id)
    assert isinstance(verification, ChainVerification)
    assert verification.is_valid
    assert verification.length == 0
    assert verification.first_invalid is None
    assert verification.error is None


def test_append(event_log: EventLog, run_id: RunId) -> None:
    seq, hash = event_log.append(
        run_id,
        "user_action",
        {
            "action": "login",
            "user_id": "123",
        },
    )
    assert f"Event {seq} with hash {hash.hex()}".startswith("Event 0 with hash ")
    assert len(hash) == 32


def test_read(event_log: EventLog, run_id: RunId) -> None:
    event_log.append(run_id, "user_action", {"action": "login"})
    told = []
    if (event := event_log.read(run_id, 0)) is not None:
        told.append(f"First event: {event.event_type} - {event.payload}")
    assert told == ["First event: user_action - {'action': 'login'}"]
    assert event_log.read(run_id, 1) is None


def test_read_range(event_log: EventLog, run_id: RunId) -> None:
    for number in range(150):
        event_log.append(run_id, f"type{number % 2}", number)
    events = event_log.read_range(run_id, 0, 100)
    told = [f"{event.sequence}: {event.event_type}" for event in events]
    assert told[:2] == ["0: type0", "1: type1"]
    assert len(told) == 100


def test_head_len_and_is_empty(event_log: EventLog, run_id: RunId) -> None:
    assert event_log.head(run_id) is None
    assert event_log.is_empty(run_id)
    event_log.append(run_id, "a", 1)
    event_log.append(run_id, "b", 2)
    head = event_log.head(run_id)
    assert head is not None
    assert (head.event_type, head.payload) == ("b", 2)
    assert event_log.len(run_id) == 2
    assert not event_log.is_empty(run_id)


def test_read_by_type(event_log: EventLog, run_id: RunId) -> None:
    for kind in ("user_login", "user_logout", "user_login"):
        event_log.append(run_id, kind, {})
    login_events = event_log.read_by_type(run_id, "user_login")
    assert [event.sequence for event in login_events] == [0, 2]


def test_event_types(event_log: EventLog, run_id: RunId) -> None:
    for kind in ("user_login", "user_logout", "user_login"):
        event_log.append(run_id, kind, {})
    assert event_log.event_types(run_id) == ["user_login", "user_logout"]


def test_verify_chain(db: Database, event_log: EventLog, run_id: RunId) -> None:
    def tell() -> str:
        verification = event_log.verify_chain(run_id)
        if verification.is_valid:
            return f"Chain valid with {verification.length} events"
        return f"Chain invalid at event {verification.first_invalid}"

    for number in range(3):
        event_log.append(run_id, "a", number)
    assert tell() == "Chain valid with 3 events"
    db.engine.delete(run_id, keys.TAG_EVENT, entry_name(1))
    assert tell() == "Chain invalid at event 1"
