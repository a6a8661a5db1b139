"""test_state_cell.py - what each method of StateCell does, and that a refused call does nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    Database,
    KVStore,
    RetentionPolicy,
    RunId,
    State,
    StateCell,
    errors,
    keys,
)
from shm_engine.primitives import state_cell
from tests.harness.labels import label
from tests.harness.refusal import assert_usable, refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
MIB = 1 << 20
NEVER = 2**63 - 1
HUGE = [0, -1, 2, NEVER, NEVER + 1, 2**64, 10**30, -(10**30)]


@pytest.fixture
def cells() -> Iterator[StateCell]:
    with Database.ephemeral() as db:
        yield StateCell(db)
        assert db.closed or db.metrics().snapshots == 0


def held(cells: StateCell, name: str, run: RunId = RUN) -> tuple[Any, int] | None:
    """Value and version."""
    state = cells.read(run, name)
    return None if state is None else (state.value, state.version)


def whole(cells: StateCell, run: RunId = RUN) -> list[Any]:
    return [(name, cells.read(run, name)) for name in cells.list(run)]


def add_one(state: State) -> tuple[int, int]:
    return state.value + 1, state.value


# -- init and reading -------------------------------------------------------------------------


def test_a_missing_cell_reads_as_none(cells: StateCell) -> None:
    assert cells.read(RUN, "a") is None
    assert not cells.exists(RUN, "a")
    assert cells.list(RUN) == []
    assert cells.delete(RUN, "a") is False
    assert cells.database.metrics().transactions_committed == 0


def test_init_makes_a_cell_at_version_1(cells: StateCell) -> None:
    before = time.time_ns() // 1_000_000
    assert cells.init(RUN, "a", {"n": 1}) == 1
    after = time.time_ns() // 1_000_000
    state = cells.read(RUN, "a")
    assert state is not None
    assert (state.value, state.version) == ({"n": 1}, 1)
    assert before <= state.updated_at <= after
    assert cells.exists(RUN, "a")


def test_init_of_an_existing_cell_is_refused_and_leaves_it_as_it_was(cells: StateCell) -> None:
    cells.init(RUN, "a", "first")
    cells.set(RUN, "a", "second")
    before = cells.read(RUN, "a")
    with refused(cells.database, errors.InvalidOperation, "'a' exists already, at version 2"):
        cells.init(RUN, "a", "third")
    assert cells.read(RUN, "a") == before


def test_a_cell_that_holds_none_exists(cells: StateCell) -> None:
    cells.init(RUN, "a", None)
    assert held(cells, "a") == (None, 1)
    assert cells.exists(RUN, "a")
    with refused(cells.database, errors.InvalidOperation):
        cells.init(RUN, "a", 1)


def test_list_gives_the_names_in_the_order_of_their_bytes(cells: StateCell) -> None:
    names = ["b", "a", "ab", "é", "日本", "🐚", "A", "a/b", " ", "\x01"]
    for name in names:
        cells.set(RUN, name, 1)
    cells.set(RUN, "gone", 1)
    cells.delete(RUN, "gone")
    assert cells.list(RUN) == sorted(names, key=lambda name: name.encode())


def test_list_has_no_bound(cells: StateCell) -> None:
    for number in range(2500):
        cells.set(RUN, f"c{number:05}", number)
    assert cells.list(RUN) == [f"c{number:05}" for number in range(2500)]


def test_cells_of_runs_and_keys_of_one_name_are_apart(cells: StateCell) -> None:
    other = cells.database.begin_run()
    cells.init(RUN, "a", 1)
    cells.init(other, "a", 2)
    cells.set(str(other), "a", 3)
    KVStore(cells.database).put(RUN, "a", 4)
    KVStore(cells.database).put(RUN, "b", 5)
    assert (held(cells, "a"), held(cells, "a", other)) == ((1, 1), (3, 2))
    assert cells.list(RUN) == ["a"]
    assert cells.delete(RUN, "a")
    assert KVStore(cells.database).get(RUN, "a") == 4
    assert held(cells, "a", other) == (3, 2)


def test_a_stateless_face_may_be_made_twice(cells: StateCell) -> None:
    StateCell(cells.database).init(RUN, "a", 1)
    assert cells.cas(RUN, "a", 1, 2) == 2
    assert held(StateCell(cells.database), "a") == (2, 2)


def test_a_state_is_an_immutable_tuple_with_names(cells: StateCell) -> None:
    cells.init(RUN, "a", 1)
    state = cells.read(RUN, "a")
    assert state is not None
    assert state[:2] == (1, 1)
    assert state == State(1, 1, state.updated_at)
    with pytest.raises(AttributeError):
        state.version = 2  # type: ignore[misc]


@pytest.mark.parametrize("policy", [RetentionPolicy.KeepAll, RetentionPolicy.KeepLast(1)], ids=str)
def test_versions_are_counted_whatever_history_is_kept(
    policy: RetentionPolicy, cells: StateCell
) -> None:
    cells.database.set_retention(RUN, policy)
    for expected in range(1, 30):
        assert cells.set(RUN, "a", expected) == expected
        cells.database._engine.sweep()
    assert held(cells, "a") == (29, 29)


# -- set and cas ------------------------------------------------------------------------------


def test_set_makes_a_missing_cell_at_1_and_counts_on_from_there(cells: StateCell) -> None:
    assert [cells.set(RUN, "a", value) for value in ("x", "y", "y")] == [1, 2, 3]
    assert held(cells, "a") == ("y", 3)


def test_cas_from_the_version_seen_gives_the_next(cells: StateCell) -> None:
    cells.init(RUN, "a", 0)
    for version in range(1, 20):
        assert cells.cas(RUN, "a", version, version) == version + 1
    assert held(cells, "a") == (19, 20)


@pytest.mark.parametrize("expected", HUGE)
def test_a_stale_cas_tells_both_versions_and_changes_nothing(
    expected: int, cells: StateCell
) -> None:
    for value in range(4):
        cells.set(RUN, "a", value)
    before = cells.read(RUN, "a")
    with refused(cells.database, errors.VersionMismatch, "at version 4") as caught:
        cells.cas(RUN, "a", expected, "new")
    assert isinstance(caught.value, errors.VersionMismatch)
    assert (caught.value.expected, caught.value.actual) == (expected, 4)
    assert caught.value.is_conflict()
    assert caught.value.is_retryable()
    assert cells.read(RUN, "a") == before


@pytest.mark.parametrize("expected", [1, *HUGE])
def test_a_cas_of_a_missing_cell_is_not_found_and_makes_none(
    expected: int, cells: StateCell
) -> None:
    with refused(cells.database, errors.NotFound, "no state cell 'a'") as caught:
        cells.cas(RUN, "a", expected, "new")
    assert caught.value.is_not_found()
    assert not caught.value.is_retryable()
    cells.set(RUN, "a", 1)
    cells.delete(RUN, "a")
    with refused(cells.database, errors.NotFound):
        cells.cas(RUN, "a", expected, "new")
    assert cells.list(RUN) == []


def test_of_many_threads_one_wins_each_version(cells: StateCell) -> None:
    cells.init(RUN, "a", None)

    def race(me: int) -> list[int]:
        won = []
        lost = []
        for version in range(1, 200):
            state = cells.wait(RUN, "a", version - 1, 10)
            assert state is not None
            try:
                cells.cas(RUN, "a", version, me)
                won.append(version)
            except errors.VersionMismatch as error:
                lost.append(error)
        assert all(error.actual > error.expected for error in lost)
        assert len(won) + len(lost) == 199
        return won

    winners = [version for won in in_threads(4, race) for version in won]
    assert sorted(winners) == list(range(1, 200))
    assert held(cells, "a") is not None
    assert cells.set(RUN, "a", 0) == 201


# -- delete -----------------------------------------------------------------------------------


def test_a_deleted_cell_is_gone_and_begins_at_1_again(cells: StateCell) -> None:
    for make in (cells.init, cells.set):
        for value in range(3):
            cells.set(RUN, "a", value)
        assert cells.delete(RUN, "a") is True
        assert cells.delete(RUN, "a") is False
        assert cells.read(RUN, "a") is None
        assert make(RUN, "a", "again") == 1
        assert held(cells, "a") == ("again", 1)
        cells.delete(RUN, "a")


def test_a_version_of_before_the_deletion_may_fit_again(cells: StateCell) -> None:
    """Versions say how often this cell was written; whoever deletes cells has to know that."""
    cells.init(RUN, "a", "old")
    cells.delete(RUN, "a")
    cells.init(RUN, "a", "new")
    assert cells.cas(RUN, "a", 1, "newer") == 2


# -- bad input --------------------------------------------------------------------------------


class Odd(str):
    pass


BAD_NAMES: dict[str, tuple[Any, type[errors.Error]]] = {
    "empty": ("", errors.InvalidKey),
    "1025 bytes": ("a" * 1025, errors.InvalidKey),
    "1026 bytes": ("é" * 513, errors.InvalidKey),
    "huge": ("a" * MIB, errors.InvalidKey),
    "NUL": ("a\0b", errors.InvalidKey),
    "surrogate": ("\udfff", errors.InvalidKey),
    "reserved": ("_strata/a", errors.InvalidKey),
    "int": (5, errors.WrongType),
    "None": (None, errors.WrongType),
    "bytes": (b"a", errors.WrongType),
    "list": (["a"], errors.WrongType),
    "subclass": (Odd("a"), errors.WrongType),
}
NAME_CALLS: dict[str, Callable[[StateCell, Any], Any]] = {
    "read": lambda cells, name: cells.read(RUN, name),
    "exists": lambda cells, name: cells.exists(RUN, name),
    "init": lambda cells, name: cells.init(RUN, name, 1),
    "set": lambda cells, name: cells.set(RUN, name, 1),
    "cas": lambda cells, name: cells.cas(RUN, name, 1, 1),
    "cas of no version": lambda cells, name: cells.cas(RUN, name, 0, 1),
    "transition": lambda cells, name: cells.transition(RUN, name, add_one),
    "transition_or_init": lambda cells, name: cells.transition_or_init(RUN, name, 1, add_one),
    "delete": lambda cells, name: cells.delete(RUN, name),
    "wait": lambda cells, name: cells.wait(RUN, name, timeout=0),
}


@pytest.mark.parametrize(("name", "kind"), BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("call", NAME_CALLS.values(), ids=NAME_CALLS)
def test_a_bad_name_is_refused_on_reads_too(
    call: Callable[[StateCell, Any], Any], name: Any, kind: type[errors.Error], cells: StateCell
) -> None:
    cells.init(RUN, "before", 1)
    before = whole(cells)
    with refused(cells.database, kind) as caught:
        call(cells, name)
    assert len(str(caught.value)) < 300
    assert whole(cells) == before


@pytest.mark.parametrize("name", ["a", "a" * 1024, "é" * 512, " ", "_strata", "a/b", "🐚"])
def test_a_name_is_any_text_of_1_to_1024_bytes(name: str, cells: StateCell) -> None:
    assert cells.init(RUN, name, 1) == 1
    assert cells.transition(RUN, name, add_one) == (1, 2)
    assert cells.list(RUN) == [name]
    assert cells.delete(RUN, name)


@pytest.mark.parametrize("run", [None, 5, b"default"], ids=label)
@pytest.mark.parametrize("call", NAME_CALLS.values(), ids=NAME_CALLS)
def test_what_names_no_run_is_refused(
    call: Callable[[StateCell, Any], Any], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database.ephemeral() as db:
        cells = StateCell(db)
        monkeypatch.setitem(globals(), "RUN", run)
        with refused(db, errors.WrongType, "run"):
            call(cells, "a")
        with refused(db, errors.WrongType, "run"):
            cells.list(run)


@pytest.mark.parametrize("call", NAME_CALLS.values(), ids=NAME_CALLS)
def test_a_closed_handle_refuses_every_call(call: Callable[[StateCell, Any], Any]) -> None:
    with Database.ephemeral() as db:
        cells = StateCell(db)
        cells.init(RUN, "a", 1)
    with pytest.raises(errors.Closed):
        call(cells, "a")
    with pytest.raises(errors.Closed):
        cells.list(RUN)
    with pytest.raises(errors.Closed):
        StateCell(db)


@pytest.mark.parametrize("database", [5, None, "db", object()], ids=lambda it: type(it).__name__)
def test_cells_are_made_of_a_database(database: Any) -> None:
    with pytest.raises(errors.WrongType, match="Database"):
        StateCell(database)


@pytest.mark.parametrize("version", [True, 1.0, "1", None, b"1"], ids=label)
def test_a_version_that_is_no_int_is_refused(version: Any, cells: StateCell) -> None:
    cells.init(RUN, "a", 1)
    for name in ("a", "missing"):
        with refused(cells.database, errors.WrongType, "expected_version"):
            cells.cas(RUN, name, version, 2)
        with refused(cells.database, errors.WrongType, "after_version"):
            cells.wait(RUN, name, version, 0)
    assert held(cells, "a") == (1, 1)


BAD_VALUES: dict[str, tuple[Any, type[errors.Error]]] = {
    "tuple": ((1,), errors.WrongType),
    "object": ([object()], errors.WrongType),
    "key": ({1: 2}, errors.WrongType),
    "large int": (2**63, errors.ConstraintViolation),
    "deep": ([], errors.ConstraintViolation),
    "surrogate": ("\ud800", errors.SerializationError),
    "long": (b"x" * (16 * MIB + 1), errors.ConstraintViolation),
}
BAD_VALUES["deep"][0].append(BAD_VALUES["deep"][0])


@pytest.mark.parametrize(("value", "kind"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_refused_and_changes_nothing(
    value: Any, kind: type[errors.Error], cells: StateCell
) -> None:
    cells.init(RUN, "a", 1)
    calls: list[Callable[[], Any]] = [
        lambda: cells.init(RUN, "new", value),
        lambda: cells.set(RUN, "a", value),
        lambda: cells.set(RUN, "new", value),
        lambda: cells.cas(RUN, "a", 1, value),
        lambda: cells.cas(RUN, "a", 0, value),
        lambda: cells.cas(RUN, "missing", 0, value),
        lambda: cells.transition(RUN, "a", lambda state: (value, None)),
        lambda: cells.transition_or_init(RUN, "new", value, add_one),
        lambda: cells.transition_or_init(RUN, "a", 0, lambda state: (value, None)),
    ]
    for call in calls:
        with refused(cells.database, kind):
            call()
    assert whole(cells) == [("a", cells.read(RUN, "a"))]
    assert held(cells, "a") == (1, 1)


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    0.5,
    math.nan,
    math.inf,
    "",
    "🐚",
    b"\0",
    [],
    {},
]


@pytest.mark.parametrize("value", VALUES, ids=label)
def test_every_kind_of_value_is_held(value: Any, cells: StateCell) -> None:
    cells.init(RUN, "a", value)
    cells.set(RUN, "a", [value])
    cells.cas(RUN, "a", 2, {"k": value})
    state = cells.read(RUN, "a")
    assert state is not None
    assert repr(state.value) == repr({"k": value})
    assert type(state.value["k"]) is type(value)


def test_the_depth_of_a_value_is_its_own(cells: StateCell) -> None:
    value: Any = 1
    for _ in range(128):
        value = [value]
    cells.init(RUN, "a", value)
    assert held(cells, "a") == (value, 1)
    with refused(cells.database, errors.ConstraintViolation, "128"):
        cells.set(RUN, "a", [value])


def two_parts(size: int) -> list[bytes]:
    """A value that has so many bytes when encoded."""
    each = size - 1 - 2 * 5
    return [b"x" * (each // 2), b"x" * (each - each // 2)]


def test_a_value_that_fits_with_its_counter_into_32_mib_is_held(cells: StateCell) -> None:
    assert cells.set(RUN, "a", two_parts(32 * MIB - 10)) == 1


@pytest.mark.parametrize("more", [1, 10])
def test_a_value_that_fits_only_without_its_counter_is_refused_in_words(
    more: int, cells: StateCell
) -> None:
    value = two_parts(32 * MIB - 10 + more)
    with refused(cells.database, errors.ConstraintViolation, "32 MiB"):
        cells.set(RUN, "a", value)
    with refused(cells.database, errors.ConstraintViolation, "32 MiB"):
        cells.database.transaction(RUN, lambda txn: txn.state_set("a", value))


# -- runs that take no writes -----------------------------------------------------------------


def test_a_completed_run_takes_no_write_and_can_be_read(cells: StateCell) -> None:
    run = cells.database.begin_run()
    cells.init(run, "a", 1)
    cells.database.end_run(run)
    before = whole(cells, run)
    calls: list[Callable[[], Any]] = [
        lambda: cells.init(run, "new", 1),
        lambda: cells.init(run, "a", 1),
        lambda: cells.set(run, "a", 1),
        lambda: cells.set(run, "new", 1),
        lambda: cells.cas(run, "a", 1, 2),
        lambda: cells.transition(run, "a", add_one),
        lambda: cells.transition_or_init(run, "a", 0, add_one),
        lambda: cells.transition_or_init(run, "new", 0, add_one),
        lambda: cells.delete(run, "a"),
    ]
    for call in calls:
        with refused(cells.database, errors.RunError, "Completed", runs=(run,)) as caught:
            call()
        assert isinstance(caught.value, errors.RunError)
        assert (str(caught.value.run), caught.value.state) == (str(run), "Completed")
    assert whole(cells, run) == before
    assert held(cells, "a", run) == (1, 1)


# -- transition -------------------------------------------------------------------------------


def test_transition_gives_the_result_and_the_new_version(cells: StateCell) -> None:
    cells.init(RUN, "a", 5)
    seen: list[State] = []

    def fn(state: State) -> tuple[int, str]:
        seen.append(state)
        return state.value * 2, "done"

    before = cells.read(RUN, "a")
    assert cells.transition(RUN, "a", fn) == ("done", 2)
    assert seen == [before]
    assert held(cells, "a") == (10, 2)


def test_transition_of_a_missing_cell_is_not_found_and_calls_nothing(cells: StateCell) -> None:
    def fn(state: State) -> tuple[int, int]:
        raise AssertionError(state)

    with refused(cells.database, errors.NotFound, "no state cell 'a'"):
        cells.transition(RUN, "a", fn)


class Mine(Exception):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        Mine,
        KeyboardInterrupt,
        SystemExit,
        StopIteration,
        errors.NotFound,
        errors.TransactionConflict,
    ],
)
def test_an_exception_of_the_function_comes_through_unchanged(
    kind: type[BaseException], cells: StateCell
) -> None:
    cells.init(RUN, "a", 1)
    before = cells.read(RUN, "a")
    raised = kind("mine")
    tries = []

    def fn(state: State) -> tuple[int, int]:
        tries.append(state)
        raise raised

    calls: list[Callable[[], Any]] = [
        lambda: cells.transition(RUN, "a", fn),
        lambda: cells.transition_or_init(RUN, "a", 0, fn),
    ]
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value is raised
    assert len(tries) == 2
    assert cells.read(RUN, "a") == before
    assert cells.set(RUN, "a", 2) == 2


def test_a_first_transition_whose_function_raises_leaves_the_initial_state(
    cells: StateCell,
) -> None:
    def fn(state: State) -> tuple[int, int]:
        raise Mine

    with pytest.raises(Mine):
        cells.transition_or_init(RUN, "a", 7, fn)
    assert held(cells, "a") == (7, 1)


@pytest.mark.parametrize("answer", [None, 5, (), (1,), (1, 2, 3), [1, 2], "ab", {1: 2, 3: 4}])
def test_a_function_that_returns_no_pair_is_refused(answer: Any, cells: StateCell) -> None:
    cells.init(RUN, "a", 1)
    with refused(cells.database, errors.WrongType, "pair"):
        cells.transition(RUN, "a", lambda state: answer)
    assert held(cells, "a") == (1, 1)


@pytest.mark.parametrize("fn", [None, 5, "fn", (1, 2)], ids=label)
def test_what_is_no_function_is_refused_before_anything_is_made(fn: Any, cells: StateCell) -> None:
    cells.init(RUN, "a", 1)
    for name in ("a", "new"):
        with refused(cells.database, errors.WrongType, "callable"):
            cells.transition(RUN, name, fn)
        with refused(cells.database, errors.WrongType, "callable"):
            cells.transition_or_init(RUN, name, 0, fn)
    assert cells.list(RUN) == ["a"]


def test_a_function_may_use_the_database(cells: StateCell) -> None:
    kv = KVStore(cells.database)
    cells.init(RUN, "a", 1)
    cells.init(RUN, "b", 10)

    def fn(state: State) -> tuple[int, int]:
        kv.incr(RUN, "calls")
        with cells.database.begin(RUN) as txn:
            txn.kv_put("inside", txn.state_read("a"))
        return state.value + 1, cells.transition(RUN, "b", add_one)[0]

    assert cells.transition(RUN, "a", fn) == (10, 2)
    assert (held(cells, "a"), held(cells, "b")) == ((2, 2), (11, 2))
    assert kv.scan(RUN) == [("calls", 1), ("inside", 1)]


def test_a_function_that_writes_the_cell_itself_is_called_again(cells: StateCell) -> None:
    cells.init(RUN, "a", 1)
    seen = []

    def fn(state: State) -> tuple[int, str]:
        seen.append((state.value, state.version))
        if len(seen) < 5:
            cells.set(RUN, "a", state.value * 10)
        return state.value + 1, "done"

    assert cells.transition(RUN, "a", fn) == ("done", 6)
    assert seen == [(1, 1), (10, 2), (100, 3), (1000, 4), (10_000, 5)]
    assert held(cells, "a") == (10_001, 6)


def test_a_cell_changed_each_time_gives_up_after_200_tries(
    cells: StateCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.init(RUN, "a", 0)
    pauses: list[int] = []
    monkeypatch.setattr(state_cell, "_pause", pauses.append)

    def fn(state: State) -> tuple[int, str]:
        cells.set(RUN, "a", state.value + 1)
        return -1, "never"

    with pytest.raises(errors.VersionMismatch, match="200 times") as caught:
        cells.transition(RUN, "a", fn)
    assert (caught.value.expected, caught.value.actual) == (200, 201)
    assert caught.value.is_retryable()
    assert held(cells, "a") == (200, 201)
    assert pauses == list(range(199))


def test_pauses_are_1_to_50_ms_after_a_few_tries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for attempt in range(200):
        state_cell._pause(attempt)
    assert 195 <= len(slept) < 200
    assert all(0.001 <= pause <= 0.050 for pause in slept)
    assert max(slept) > 0.025


@pytest.mark.parametrize("made_again", [False, True])
def test_a_cell_deleted_in_the_middle(made_again: bool, cells: StateCell) -> None:
    """Made again it is at the same version, which a cas cannot tell from the one it knew."""
    cells.set(RUN, "a", 1)
    cells.set(RUN, "a", 2)
    calls = []

    def fn(state: State) -> tuple[int, int]:
        calls.append(state.value)
        if len(calls) == 1:
            cells.delete(RUN, "a")
            if made_again:
                cells.init(RUN, "a", 50)
        return state.value + 1, state.value

    if made_again:
        assert cells.transition(RUN, "a", fn) == (50, 2)
        assert (held(cells, "a"), calls) == ((51, 2), [2, 50])
    else:
        with pytest.raises(errors.NotFound):
            cells.transition(RUN, "a", fn)
        assert (held(cells, "a"), calls) == (None, [2])


def test_transitions_of_eight_threads_lose_none(cells: StateCell) -> None:
    cells.init(RUN, "a", 0)
    results = in_threads(8, lambda _: [cells.transition(RUN, "a", add_one) for _ in range(25)])
    pairs = sorted(pair for some in results for pair in some)
    assert pairs == [(number, number + 2) for number in range(200)]
    assert held(cells, "a") == (200, 201)


# -- transition_or_init -----------------------------------------------------------------------


def test_transition_or_init_ends_at_2_where_there_was_none(cells: StateCell) -> None:
    seen: list[State] = []

    def fn(state: State) -> tuple[int, str]:
        seen.append(state)
        return state.value + 1, "done"

    assert cells.transition_or_init(RUN, "a", 10, fn) == ("done", 2)
    assert [(state.value, state.version) for state in seen] == [(10, 1)]
    assert held(cells, "a") == (11, 2)
    assert cells.transition_or_init(RUN, "a", 99, fn) == ("done", 3)
    assert held(cells, "a") == (12, 3)


def test_transition_or_init_makes_a_cell_that_is_deleted_in_the_middle_anew(
    cells: StateCell,
) -> None:
    cells.set(RUN, "a", 1)
    calls = []

    def fn(state: State) -> tuple[int, int]:
        calls.append(state.value)
        if len(calls) == 1:
            cells.delete(RUN, "a")
        return state.value + 1, state.value

    assert cells.transition_or_init(RUN, "a", 100, fn) == (100, 2)
    assert (held(cells, "a"), calls) == ((101, 2), [1, 100])


def test_a_not_found_of_the_function_itself_is_the_callers(cells: StateCell) -> None:
    def fn(state: State) -> tuple[int, int]:
        return cells.transition(RUN, "another", add_one)

    with pytest.raises(errors.NotFound, match="another"):
        cells.transition_or_init(RUN, "a", 1, fn)
    assert held(cells, "a") == (1, 1)


def test_a_not_found_of_a_function_that_deleted_its_cell_is_the_callers(cells: StateCell) -> None:
    """It was taken for the cell's: the cell was made anew and the function called, without end."""
    calls = []

    def fn(state: State) -> tuple[int, int]:
        calls.append(state)
        assert len(calls) < 5, "called again and again"
        cells.delete(RUN, "a")
        raise errors.NotFound("mine")

    with pytest.raises(errors.NotFound, match="mine"):
        cells.transition_or_init(RUN, "a", 1, fn)
    assert len(calls) == 1


def test_first_transitions_of_eight_threads_make_one_cell(cells: StateCell) -> None:
    for number in range(20):
        name = f"cell/{number}"
        in_threads(8, lambda _, name=name: cells.transition_or_init(RUN, name, 0, add_one))  # type: ignore[misc]
        assert held(cells, name) == (8, 9)


# -- damage -----------------------------------------------------------------------------------


def put_raw(cells: StateCell, stored: Any) -> None:
    """What no call of this class would write."""
    cells.database._engine.put(RUN, keys.TAG_STATE, "a", stored)


DAMAGED: list[Any] = [None, 5, "x", [], [1, 2], [0, 1], [2**40, 1, 2], {"a": 1}]
DAMAGE_CALLS: dict[str, Callable[[StateCell], Any]] = {
    "read": lambda cells: cells.read(RUN, "a"),
    "exists": lambda cells: cells.exists(RUN, "a"),
    "wait": lambda cells: cells.wait(RUN, "a", timeout=0),
    "transition": lambda cells: cells.transition(RUN, "a", add_one),
    "transition_or_init": lambda cells: cells.transition_or_init(RUN, "a", 0, add_one),
    "state_read": lambda cells: cells.database.transaction(RUN, lambda t: t.state_read("a")),
    "state_set": lambda cells: cells.database.transaction(RUN, lambda t: t.state_set("a", 1)),
}
DAMAGE_WRITES: dict[str, Callable[[StateCell], Any]] = {
    "init": lambda cells: cells.init(RUN, "a", 1),
    "set": lambda cells: cells.set(RUN, "a", 1),
    "cas": lambda cells: cells.cas(RUN, "a", 1, 1),
}


@pytest.mark.parametrize("stored", DAMAGED, ids=label)
@pytest.mark.parametrize("call", DAMAGE_CALLS.values(), ids=DAMAGE_CALLS)
def test_reading_a_damaged_cell_is_corruption_and_deleting_it_helps(
    call: Callable[[StateCell], Any], stored: Any, cells: StateCell
) -> None:
    put_raw(cells, stored)
    with pytest.raises(errors.Corruption):
        call(cells)
    assert_usable(cells.database)
    assert cells.list(RUN) == ["a"]
    assert cells.delete(RUN, "a")
    assert cells.init(RUN, "a", 1) == 1


@pytest.mark.parametrize("call", DAMAGE_WRITES.values(), ids=DAMAGE_WRITES)
def test_writing_a_damaged_cell_is_corruption(
    call: Callable[[StateCell], Any], cells: StateCell
) -> None:
    put_raw(cells, 5)
    with pytest.raises(errors.Corruption):
        call(cells)
    assert cells.list(RUN) == ["a"]


def test_a_counter_at_the_end_of_64_bits_never_goes_round(cells: StateCell) -> None:
    put_raw(cells, [NEVER, "kept"])
    assert held(cells, "a") == ("kept", NEVER)
    with pytest.raises(errors.Error):
        cells.set(RUN, "a", 1)
    assert held(cells, "a") == ("kept", NEVER)
