"""test_in_mem_states.py - the StateCell examples of the in-mem page, typed line by line.

Why:        who comes from that page should be able to type what it shows, in Python form. Where the
            page says that init gives 0, its own system gave 1, and so does this one.
Used by:    nothing else; each test is one example, in the order of the page
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from shm_engine import Database, RunId, State, StateCell, errors


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def state_cell(db: Database) -> StateCell:
    return StateCell(db)


@pytest.fixture
def run_id(db: Database) -> RunId:
    return db.begin_run()


def test_the_fields_of_a_state(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.init(run_id, "counter", 0)
    state = state_cell.read(run_id, "counter")
    assert isinstance(state, State)
    assert state.value == 0
    assert state.version == 1
    assert abs(state.updated_at - time.time_ns() // 1_000_000) < 10_000


def test_init_only_if_it_does_not_exist(state_cell: StateCell, run_id: RunId) -> None:
    assert state_cell.init(run_id, "counter", 0) == 1
    with pytest.raises(errors.InvalidOperation):
        state_cell.init(run_id, "counter", 0)


def test_read(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.init(run_id, "counter", 0)
    told = []
    if (state := state_cell.read(run_id, "counter")) is not None:
        told.append(f"Counter: {state.value} (version {state.version})")
    assert told == ["Counter: 0 (version 1)"]
    assert state_cell.read(run_id, "missing") is None


def test_exists_delete_and_list(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.set(run_id, "b", 1)
    state_cell.set(run_id, "a", 1)
    assert state_cell.exists(run_id, "a")
    assert state_cell.list(run_id) == ["a", "b"]
    assert state_cell.delete(run_id, "a") is True
    assert state_cell.delete(run_id, "a") is False
    assert not state_cell.exists(run_id, "a")
    assert state_cell.list(run_id) == ["b"]


def test_set_creates_if_needed_and_gives_the_new_version(
    state_cell: StateCell, run_id: RunId
) -> None:
    version = state_cell.set(run_id, "status", "active")
    assert version == 1
    assert state_cell.set(run_id, "status", "idle") == 2


def test_cas(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.init(run_id, "counter", 0)
    state = state_cell.read(run_id, "counter")
    assert state is not None
    current = state.value if type(state.value) is int else 0
    told = []
    for _ in range(2):
        try:
            new_version = state_cell.cas(run_id, "counter", state.version, current + 1)
            told.append(f"Updated to version {new_version}")
        except errors.VersionMismatch:
            told.append("Conflict - retry needed")
    assert told == ["Updated to version 2", "Conflict - retry needed"]


def test_transition(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.init(run_id, "counter", 7)

    def increment(state):  # type: ignore[no-untyped-def]
        current = state.value if type(state.value) is int else 0
        return current + 1, current

    old_value, new_version = state_cell.transition(run_id, "counter", increment)
    told = f"Incremented from {old_value} to version {new_version}"
    assert told == "Incremented from 7 to version 2"


def test_transition_or_init(state_cell: StateCell, run_id: RunId) -> None:
    for expected in (0, 1):
        old, version = state_cell.transition_or_init(
            run_id,
            "counter",
            0,  # the initial value if it does not exist
            lambda state: (state.value + 1, state.value),
        )
        assert (old, version) == (expected, expected + 2)


# -- errors -----------------------------------------------------------------------------------


def test_a_version_mismatch_tells_both_versions(state_cell: StateCell, run_id: RunId) -> None:
    state_cell.init(run_id, "counter", 0)
    told = []
    for expected_ver, new_value in ((1, "a"), (1, "b")):
        try:
            version = state_cell.cas(run_id, "counter", expected_ver, new_value)
            told.append(f"Updated to version {version}")
        except errors.VersionMismatch as error:
            told.append(f"Conflict: expected {error.expected} but was {error.actual}")
    assert told == ["Updated to version 2", "Conflict: expected 1 but was 2"]
    with pytest.raises(errors.NotFound):
        state_cell.cas(run_id, "missing", 1, 1)


# -- thread safety ----------------------------------------------------------------------------


def test_threads_share_the_database_and_count_in_one_cell(db: Database, run_id: RunId) -> None:
    def work() -> None:
        state_cell = StateCell(db)
        for _ in range(100):
            state_cell.transition_or_init(
                run_id, "counter", 0, lambda state: (state.value + 1, None)
            )

    handles = [threading.Thread(target=work) for _ in range(4)]
    for handle in handles:
        handle.start()
    for handle in handles:
        handle.join()
    state = StateCell(db).read(run_id, "counter")
    assert state is not None
    assert (state.value, state.version) == (400, 401)
