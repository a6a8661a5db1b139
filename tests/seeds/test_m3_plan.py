"""test_m3_plan.py - the criteria of the in-mem plan, Epics 13, 15, 16 and 19, one by one.

Why:        who has that plan in hand can tick it off here: each docstring names the story and its
            line. The depth is elsewhere; these are short. Traces and the run index have their own
            places.
Used by:    nothing else
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shm_engine
from shm_engine import (
    ChainVerification,
    Database,
    Event,
    EventLog,
    KVStore,
    RunId,
    State,
    StateCell,
    Transaction,
    errors,
    keys,
)
from shm_engine.events import GENESIS, HEAD, entry_name
from shm_engine.primitives import state_cell
from tests.format.reader import Reader
from tests.harness.tamper import StoredLog, in_segment


@dataclass
class Faces:
    """The primitives over one database, and a run in it."""

    db: Database
    kv: KVStore
    log: EventLog
    cells: StateCell
    run: RunId


def faces(db: Database) -> Faces:
    return Faces(db, KVStore(db), EventLog(db), StateCell(db), db.begin_run())


@pytest.fixture
def at() -> Iterator[Faces]:
    with Database.ephemeral(map_size=4 << 20) as db:
        yield faces(db)


def stored_keys(at: Faces, tag: int) -> list[bytes]:
    """The names of the run's keys of one primitive, as they lie in memory."""
    prefix = at.run.bytes + bytes([tag])
    reader = Reader.of(at.db._segments)
    return [key[len(prefix) :] for key, _ in reader.leaves() if key.startswith(prefix)]


# -- Epic 13: foundation ----------------------------------------------------------------------


def test_13_primitives_are_importable_and_stateless() -> None:
    """Story 166: the crate compiles; the primitives are facades that hold the database alone."""
    for name in ("KVStore", "EventLog", "Event", "StateCell", "State"):
        assert name in shm_engine.__all__
        assert getattr(shm_engine, name).__name__ == name


def test_13_type_tags() -> None:
    """Story 166: TypeTag has all 5 primitive values, Vector is reserved, and none conflicts."""
    tags = [keys.TAG_KV, keys.TAG_EVENT, keys.TAG_STATE, keys.TAG_TRACE, keys.TAG_RUN]
    assert tags == [1, 2, 3, 4, 5]
    assert keys.TAG_VECTOR == 0x10
    found = [value for name, value in vars(keys).items() if name.startswith("TAG_")]
    assert len(found) == len(set(found))


def test_13_keys_of_each_primitive(at: Faces) -> None:
    """Story 167: new_kv, new_event (big-endian), new_event_meta and new_state make their keys."""
    at.kv.put(at.run, "user", 1)
    at.cells.init(at.run, "cell", 1)
    at.log.append_batch(at.run, [("t", None)] * 258)
    assert stored_keys(at, keys.TAG_KV) == [b"user\0"]
    assert stored_keys(at, keys.TAG_STATE) == [b"cell\0"]
    events = stored_keys(at, keys.TAG_EVENT)
    assert events[0] == HEAD
    sequences = [name for name in events if name.startswith(keys.ENTRY)]
    assert sequences == [keys.ENTRY + number.to_bytes(8, "big") for number in range(258)]


def test_13_keys_with_same_inputs_are_equal_and_sort_correctly() -> None:
    """Story 167: keys with the same inputs are equal; keys sort correctly."""
    assert entry_name(5) == entry_name(5) != entry_name(6)
    names = [entry_name(number) for number in (0, 1, 255, 256, 65_536, 2**63, 2**64 - 1)]
    assert names == sorted(names)


def test_13_extensions_are_methods_of_the_transaction() -> None:
    """Story 168: the extensions compile, and can be used without importing anything else."""
    for name in ["kv_get", "kv_put", "kv_delete", "event_append", "event_read"]:
        assert callable(getattr(Transaction, name))
    for name in ["state_read", "state_cas", "state_set"]:
        assert callable(getattr(Transaction, name))


# -- Epic 15: EventLog ------------------------------------------------------------------------


def test_15_an_event_is_stored_and_read_back_equal(at: Faces) -> None:
    """Story 174: the Event structure serializes and deserializes; EventLog::new() works."""
    payload = {"list": [1, 2.5, None, True], "bytes": b"\0", "text": "é"}
    sequence, digest = EventLog(at.db).append(at.run, "type", payload)
    event = at.log.read(at.run, sequence)
    assert event is not None
    assert event == Event(0, "type", payload, event.timestamp, GENESIS, digest, event.timestamp_us)


def test_15_an_empty_log_begins_at_the_genesis_hash(at: Faces) -> None:
    """Story 174: the default of the log's metadata has the genesis hash."""
    at.log.append(at.run, "type", None)
    event = at.log.head(at.run)
    assert event is not None
    assert event.prev_hash == bytes(32)


def test_15_append_returns_0_first_and_increments(at: Faces) -> None:
    """Story 175: append() returns sequence 0 for the first event; append() increments sequence."""
    assert [at.log.append(at.run, "t", None)[0] for _ in range(3)] == [0, 1, 2]


def test_15_append_chains_hashes(at: Faces) -> None:
    """Story 175: append() chains hashes correctly."""
    digests = [at.log.append(at.run, "t", number)[1] for number in range(3)]
    assert [event.prev_hash for event in at.log.iter(at.run)] == [GENESIS, *digests[:2]]


def test_15_parallel_appends_serialize(at: Faces) -> None:
    """Story 175: parallel appends serialize (no sequence gaps)."""
    threads = [
        threading.Thread(target=lambda: [at.log.append(at.run, "t", n) for n in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.sequence for event in at.log.iter(at.run)] == list(range(200))


def test_15_the_hash_is_deterministic(at: Faces) -> None:
    """Story 175: the same inputs, of which the time is one, give the same hash."""
    at.log.append(at.run, "t", {"a": 1})
    with in_segment(at.db) as tampering:
        stored = StoredLog(tampering, at.run)
        before = stored.hash_of(0)
        stored.reseal(0)
        assert stored.hash_of(0) == before
        stored.move_time(0, 1)
        stored.reseal(0)
        assert stored.hash_of(0) != before


def test_15_read(at: Faces) -> None:
    """Story 176: read() returns the event by sequence, and None for an invalid one."""
    at.log.append_batch(at.run, [("t", 0), ("t", 1)])
    event = at.log.read(at.run, 1)
    assert event is not None
    assert event.payload == 1
    assert at.log.read(at.run, 2) is None


def test_15_read_range_is_in_order(at: Faces) -> None:
    """Story 176: read_range() returns events in order."""
    at.log.append_batch(at.run, [("t", number) for number in range(5)])
    assert [event.payload for event in at.log.read_range(at.run, 1, 4)] == [1, 2, 3]


def test_15_head_len_and_is_empty(at: Faces) -> None:
    """Story 176: head() returns the latest event and None for an empty log; len(); is_empty()."""
    assert (at.log.head(at.run), at.log.len(at.run), at.log.is_empty(at.run)) == (None, 0, True)
    at.log.append_batch(at.run, [("t", 0), ("t", 1)])
    assert at.log.head(at.run) == at.log.read(at.run, 1)
    assert (at.log.len(at.run), at.log.is_empty(at.run)) == (2, False)


def test_15_verify_chain_of_a_correct_and_of_an_empty_log(at: Faces) -> None:
    """Story 177: verify_chain() returns valid for a correct chain and for an empty log."""
    assert at.log.verify_chain(at.run) == ChainVerification(True, 0, None, None)
    at.log.append_batch(at.run, [("t", 0), ("t", 1)])
    assert at.log.verify_chain(at.run) == ChainVerification(True, 2, None, None)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("missing", "Missing event at sequence 1"),
        ("prev_hash", "prev_hash mismatch at sequence 1"),
        ("hash", "Hash mismatch at sequence 1"),
    ],
)
def test_15_verify_chain_detects(what: str, error: str, at: Faces) -> None:
    """Story 177: verify_chain() detects a missing event, a prev_hash mismatch, hash corruption."""
    at.log.append_batch(at.run, [("t", number) for number in range(3)])
    if what == "missing":
        at.db.engine.delete(at.run, keys.TAG_EVENT, entry_name(1))
    else:
        with in_segment(at.db) as tampering:
            StoredLog(tampering, at.run).flip(1, 3 if what == "prev_hash" else 37)
    assert at.log.verify_chain(at.run) == ChainVerification(False, 3, 1, error)


def test_15_read_by_type(at: Faces) -> None:
    """Story 178: read_by_type() returns matching events, and an empty list for no matches."""
    at.log.append_batch(at.run, [("a", 0), ("b", 1), ("a", 2)])
    assert [event.payload for event in at.log.read_by_type(at.run, "a")] == [0, 2]
    assert at.log.read_by_type(at.run, "c") == []


def test_15_iter_is_in_sequence_order(at: Faces) -> None:
    """Story 178: iter() returns events in sequence order."""
    at.log.append_batch(at.run, [("t", number) for number in range(300)])
    assert [event.sequence for event in at.log.iter(at.run)] == list(range(300))


def test_15_events_in_a_transaction_of_several_primitives(at: Faces) -> None:
    """Story 179: event_append() and event_read() work in a cross-primitive transaction."""
    with at.db.begin(at.run) as txn:
        txn.kv_put("key", 1)
        sequence = txn.event_append("t", 5)
        event = txn.event_read(sequence)
        assert event is not None
        assert event.payload == 5
    assert (at.kv.get(at.run, "key"), at.log.len(at.run)) == (1, 1)


def test_15_the_log_is_append_only(at: Faces) -> None:
    """Story 179: update() and delete() return an error; the append-only invariant is enforced."""
    at.log.append(at.run, "t", "original")
    before = list(at.log.iter(at.run))
    with pytest.raises(errors.InvalidOperation):
        at.log.update(at.run, 0, "changed")
    assert list(at.log.iter(at.run)) == before


def test_15_no_event_can_be_deleted(at: Faces) -> None:
    """Story 179: delete() returns an error."""
    at.log.append(at.run, "t", "original")
    with pytest.raises(errors.InvalidOperation):
        at.log.delete(at.run, 0)
    assert at.log.len(at.run) == 1


# -- Epic 16: StateCell -----------------------------------------------------------------------


def test_16_a_state_is_stored_and_read_back_equal(at: Faces) -> None:
    """Story 180: the State structure serializes and deserializes; StateCell::new() works."""
    value = {"list": [1, 2.5, None, True], "bytes": b"\0", "text": "é"}
    StateCell(at.db).init(at.run, "cell", value)
    state = at.cells.read(at.run, "cell")
    assert state is not None
    assert state == State(value, 1, state.updated_at)


def test_16_init(at: Faces) -> None:
    """Story 181: init() creates a new cell with version 1, and fails if the cell exists."""
    assert at.cells.init(at.run, "cell", 1) == 1
    with pytest.raises(errors.InvalidOperation):
        at.cells.init(at.run, "cell", 2)


def test_16_read(at: Faces) -> None:
    """Story 181: read() returns the state with its version, and None if it does not exist."""
    at.cells.init(at.run, "cell", 1)
    state = at.cells.read(at.run, "cell")
    assert state is not None
    assert (state.value, state.version) == (1, 1)
    assert at.cells.read(at.run, "missing") is None


def test_16_delete_exists_and_list(at: Faces) -> None:
    """Story 181: delete() removes the cell; exists() is right; list() returns all cell names."""
    for name in ("b", "a", "c"):
        at.cells.init(at.run, name, 1)
    at.cells.delete(at.run, "b")
    assert [at.cells.exists(at.run, name) for name in "abc"] == [True, False, True]
    assert at.cells.list(at.run) == ["a", "c"]


def test_16_cas(at: Faces) -> None:
    """Story 182: cas() succeeds when the version matches, fails when not, increments the version,
    and fails on a cell that does not exist."""
    at.cells.init(at.run, "cell", 1)
    assert at.cells.cas(at.run, "cell", 1, 2) == 2
    with pytest.raises(errors.VersionMismatch):
        at.cells.cas(at.run, "cell", 1, 3)
    with pytest.raises(errors.NotFound):
        at.cells.cas(at.run, "missing", 1, 3)


def test_16_set(at: Faces) -> None:
    """Story 182: set() always succeeds, increments the version, creates the cell if needed."""
    assert [at.cells.set(at.run, "cell", value) for value in range(3)] == [1, 2, 3]


def test_16_transition_without_a_conflict(at: Faces) -> None:
    """Story 183: transition() succeeds on the first try, and returns the closure's result."""
    at.cells.init(at.run, "cell", 1)
    assert at.cells.transition(at.run, "cell", lambda state: (2, "result")) == ("result", 2)


def test_16_transition_retries_and_calls_the_closure_again(at: Faces) -> None:
    """Story 183: transition() retries on a conflict; the closure is called several times."""
    at.cells.init(at.run, "cell", 0)
    calls: list[State] = []

    def fn(state: State) -> tuple[int, None]:
        calls.append(state)
        if len(calls) < 3:
            at.cells.set(at.run, "cell", 10 * len(calls))
        return state.value + 1, None

    at.cells.transition(at.run, "cell", fn)
    assert [state.value for state in calls] == [0, 10, 20]
    state = at.cells.read(at.run, "cell")
    assert state is not None
    assert (state.value, state.version) == (21, 4)


def test_16_transition_fails_after_max_retries(at: Faces, monkeypatch: pytest.MonkeyPatch) -> None:
    """Story 183: transition() fails after max retries."""
    monkeypatch.setattr(state_cell, "_pause", lambda attempt: None)
    at.cells.init(at.run, "cell", 0)
    with pytest.raises(errors.VersionMismatch):
        at.cells.transition(
            at.run, "cell", lambda state: (at.cells.set(at.run, "cell", state.version), None)
        )


def test_16_cells_in_a_transaction(at: Faces) -> None:
    """Story 184: state_read(), state_cas() and state_set() work in a transaction."""
    with at.db.begin(at.run) as txn:
        assert txn.state_set("cell", "a") == 1
        assert txn.state_cas("cell", 1, "b") == 2
        assert txn.state_read("cell") == "b"
    state = at.cells.read(at.run, "cell")
    assert state is not None
    assert (state.value, state.version) == ("b", 2)


def test_16_a_cell_and_a_key_are_written_together_or_not(at: Faces) -> None:
    """Story 184: cross-primitive atomicity (StateCell + KV)."""
    with at.db.begin(at.run) as txn:
        txn.kv_put("key", 1)
        txn.state_set("cell", 1)

    def fail(txn: Transaction) -> None:
        txn.kv_put("key", 2)
        txn.state_set("cell", 2 // 0)

    with pytest.raises(ZeroDivisionError):
        at.db.transaction(at.run, fail)
    state = at.cells.read(at.run, "cell")
    assert state is not None
    assert (at.kv.get(at.run, "key"), state.value) == (1, 1)


# -- Epic 19: integration ---------------------------------------------------------------------


def start_task(txn: Transaction) -> None:
    txn.kv_put("task/status", "running")
    txn.event_append("task_started", {"task_id": 1})
    txn.state_cas("workflow", 0, "step1")


def test_19_kv_event_state_atomic(at: Faces) -> None:
    """Story 197: the primitives work in a single transaction (traces elsewhere)."""
    at.db.transaction(at.run, start_task)
    event = at.log.head(at.run)
    state = at.cells.read(at.run, "workflow")
    assert at.kv.get(at.run, "task/status") == "running"
    assert event is not None
    assert (event.event_type, event.payload) == ("task_started", {"task_id": 1})
    assert state is not None
    assert (state.value, state.version) == ("step1", 1)


def test_19_cross_primitive_rollback(at: Faces) -> None:
    """Story 197: rollback affects all primitives."""
    at.cells.init(at.run, "workflow", "step0")
    with pytest.raises(errors.VersionMismatch):
        at.db.transaction(at.run, start_task)
    assert at.kv.list(at.run) == []
    assert at.log.is_empty(at.run)
    state = at.cells.read(at.run, "workflow")
    assert state is not None
    assert state.value == "step0"


def test_19_extensions_compose(at: Faces) -> None:
    """Story 197: the extensions compose in one transaction."""

    def work(txn: Transaction) -> list[Any]:
        txn.kv_put("key", 1)
        return [txn.event_append("t", None), txn.state_set("cell", 1), txn.kv_get("key")]

    assert at.db.transaction(at.run, work) == [0, 1, 1]


def test_19_run_isolation(at: Faces) -> None:
    """Story 198: KV, EventLog and StateCell isolation; queries respect run boundaries."""
    run1, run2 = RunId.new(), RunId.new()
    for number, run in enumerate((run1, run2), 1):
        at.kv.put(run, "key", number)
        at.log.append(run, f"type{number}", number)
        at.cells.init(run, "cell", number)
    for number, run in enumerate((run1, run2), 1):
        assert at.kv.get(run, "key") == number
        assert [(event.sequence, event.payload) for event in at.log.iter(run)] == [(0, number)]
        assert at.log.event_types(run) == [f"type{number}"]
        assert at.log.read_by_type(run, f"type{3 - number}") == []
        state = at.cells.read(run, "cell")
        assert state is not None
        assert (state.value, at.cells.list(run)) == (number, ["cell"])


def test_19_primitives_survive_recovery(tmp_path: Path) -> None:
    """Story 199: KV data, the EventLog's chain and StateCell versions survive recovery."""
    run = RunId(str(uuid.UUID(int=7)))
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        KVStore(db).put(run, "key", "value")
        EventLog(db).append(run, "event1", 1)
        EventLog(db).append(run, "event2", 2)
        StateCell(db).init(run, "cell", "initial")
        StateCell(db).cas(run, "cell", 1, "new")
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        assert KVStore(db).get(run, "key") == "value"
        assert EventLog(db).verify_chain(run) == ChainVerification(True, 2)
        state = StateCell(db).read(run, "cell")
        assert state is not None
        assert (state.value, state.version) == ("new", 2)
