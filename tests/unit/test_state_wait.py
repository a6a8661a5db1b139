"""test_state_wait.py - StateCell.wait returns when the cell has changed, and not before."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from shm_engine import Database, RunId, State, StateCell, errors
from tests.harness.refusal import refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT


@pytest.fixture
def cells() -> Iterator[StateCell]:
    with Database.ephemeral() as db:
        yield StateCell(db)
        assert db.closed or db.metrics().snapshots == 0


def held(cells: StateCell, name: str) -> tuple[Any, int] | None:
    """Value and version."""
    state = cells.read(RUN, name)
    return None if state is None else (state.value, state.version)


def add_one(state: State) -> tuple[int, int]:
    return state.value + 1, state.value


# -- waiting ----------------------------------------------------------------------------------


def test_wait_returns_at_once_where_the_version_is_another(cells: StateCell) -> None:
    cells.set(RUN, "a", 1)
    state = cells.read(RUN, "a")
    assert cells.wait(RUN, "a") == cells.wait(RUN, "a", 0, 0) == state
    assert cells.wait(RUN, "a", 5) == cells.wait(RUN, "a", -1) == state
    assert cells.wait(RUN, "a", 10**30) == state
    cells.set(RUN, "a", 2)
    assert cells.wait(RUN, "a", after_version=1) == cells.read(RUN, "a")


@pytest.mark.parametrize("timeout", [0, 0.03, timedelta(milliseconds=30), 1e-9])
def test_wait_gives_none_when_its_time_is_over(timeout: Any, cells: StateCell) -> None:
    cells.set(RUN, "a", 1)
    least = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    for name, known in (("a", 1), ("missing", 0), ("missing", 7)):
        began = time.monotonic()
        assert cells.wait(RUN, name, known, timeout) is None
        assert least <= time.monotonic() - began < 5


BAD_TIMES: dict[str, tuple[Any, type[errors.Error]]] = {
    "negative": (-0.001, errors.ConstraintViolation),
    "nan": (math.nan, errors.ConstraintViolation),
    "inf": (math.inf, errors.ConstraintViolation),
    "huge": (10**30, errors.ConstraintViolation),
    "str": ("1", errors.WrongType),
    "bool": (True, errors.WrongType),
}


@pytest.mark.parametrize(("timeout", "kind"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_bad_timeout_is_refused(timeout: Any, kind: type[errors.Error], cells: StateCell) -> None:
    cells.set(RUN, "a", 1)
    for known in (0, 1):
        with refused(cells.database, kind, "timeout"):
            cells.wait(RUN, "a", known, timeout)


CHANGES: dict[str, Callable[[StateCell], Any]] = {
    "set": lambda cells: cells.set(RUN, "a", 2),
    "set of the same": lambda cells: cells.set(RUN, "a", 1),
    "cas": lambda cells: cells.cas(RUN, "a", 1, 2),
    "transition": lambda cells: cells.transition(RUN, "a", add_one),
    "transaction": lambda cells: cells.database.transaction(
        RUN, lambda txn: [txn.state_set("a", 2), txn.event_append("e", 1)]
    ),
}


@pytest.mark.parametrize("timeout", [None, 30, timedelta.max])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_wait_returns_when_a_thread_changes_the_cell(
    change: Callable[[StateCell], Any], timeout: Any, cells: StateCell
) -> None:
    cells.init(RUN, "a", 1)

    def wait() -> State | None:
        return cells.wait(RUN, "a", 1, timeout)

    found = in_threads(2, lambda me: change(cells) if me else wait())[0]
    assert found == cells.read(RUN, "a")
    assert found is not None
    assert found.version == 2


def test_wait_for_a_missing_cell_returns_when_it_is_made(cells: StateCell) -> None:
    found = in_threads(
        2, lambda me: cells.init(RUN, "a", 1) if me else cells.wait(RUN, "a", timeout=30)
    )
    assert found[0] == cells.read(RUN, "a")


def test_a_deletion_ends_no_wait_and_the_new_cell_does(cells: StateCell) -> None:
    cells.set(RUN, "a", 1)
    cells.set(RUN, "a", 2)
    cells.delete(RUN, "a")
    assert cells.wait(RUN, "a", 2, 0.01) is None
    assert cells.wait(RUN, "a", 0, 0.01) is None
    cells.init(RUN, "a", 3)
    assert cells.wait(RUN, "a", 2) == cells.read(RUN, "a")


def test_threads_that_wait_in_turn_pass_a_cell_to_and_fro(cells: StateCell) -> None:
    """No wake-up is lost: a lost one would cost a second each."""
    cells.init(RUN, "ball", 0)
    began = time.monotonic()

    def play(me: int) -> None:
        version = 1
        for _ in range(200):
            if version % 2 == me:
                version = cells.cas(RUN, "ball", version, me)
            else:
                state = cells.wait(RUN, "ball", version, 30)
                assert state is not None
                version = state.version

    in_threads(2, play)
    assert held(cells, "ball") in [(0, 201), (1, 201), (0, 200), (1, 200)]
    assert time.monotonic() - began < 20


def test_closing_the_handle_in_another_thread_ends_a_wait() -> None:
    with Database.ephemeral() as db:
        cells = StateCell(db)
        began = threading.Event()
        caught: list[BaseException] = []

        def wait() -> None:
            began.set()
            try:
                cells.wait(RUN, "a")
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert began.wait(10)
        db.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [type(error) for error in caught] == [errors.Closed]
