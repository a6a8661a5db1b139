"""test_bench_engine.py - the bench's questions that only the engine is asked: what they check.

Why:        Each of them looks through its result for losses. Here every one of these looks is shown
            to find nothing where all is well, and a loss where one was planted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shm_engine
from bench import __main__ as command
from bench import erase, four, refusal, shelves, state, trace, wait
from bench.alone import EngineWorkload
from bench.peers import LMDB, SEQ_FIRST, SHM_ENGINE, Host, ShmStore, encode
from bench.progress import Progress
from bench.workload import CHECKED, HARNESSES, Lane, Limits, Tally, drive
from shm_engine import EventLog, RunId, StateCell, Transaction, events, keys

MAP_SIZE = 64 << 20
CALLS = 120
RECORDS = 300

needs_traces = pytest.mark.skipif(
    not hasattr(shm_engine, "TraceStore"), reason="there are no traces yet"
)
needs_runs = pytest.mark.skipif(
    not hasattr(shm_engine, "RunIndex"), reason="there is no index of runs yet"
)
needs_all_four = pytest.mark.skipif(
    not hasattr(Transaction, "trace_record"), reason="transactions record no traces yet"
)

WORKLOADS = [
    pytest.param(state.PutOne, id="put"),
    pytest.param(state.Cas, id="cas"),
    pytest.param(state.Transition, id="transition"),
    pytest.param(state.Shared, id="shared"),
    pytest.param(trace.Record, id="record", marks=needs_traces),
    pytest.param(lambda: four.Transactions(50), id="transaction", marks=needs_all_four),
]


@pytest.fixture
def store() -> Iterator[ShmStore]:
    with Host(SHM_ENGINE, MAP_SIZE) as host:
        assert isinstance(host.store, ShmStore)
        yield host.store


def run_here(workload: EngineWorkload, store: ShmStore, harness: str = "light") -> Tally:
    """Run a workload in this process, on a filled store."""
    workload.fill(store, 1)
    return drive(workload, harness, store, Lane(0), Limits(60.0, CALLS, 10), time.monotonic_ns)


# -- state cells, traces, four primitives ---------------------------------------------------------


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("make", WORKLOADS)
def test_a_run_loses_nothing(
    store: ShmStore, make: Callable[[], EngineWorkload], harness: str
) -> None:
    workload = make()
    tally = run_here(workload, store, harness)
    assert tally.calls == CALLS
    assert workload.losses(store, [tally]) == []
    if harness == CHECKED:
        assert len(tally.waits_ns) == 8 * tally.measured


@pytest.mark.parametrize("make", WORKLOADS)
def test_a_call_that_was_never_made_is_found(
    store: ShmStore, make: Callable[[], EngineWorkload]
) -> None:
    workload = make()
    tally = run_here(workload, store)
    assert workload.losses(store, [replace(tally, calls=tally.calls + 1)]) != []


def cells(store: ShmStore) -> StateCell:
    return StateCell(store.database)


def set_back(store: ShmStore, name: str) -> None:
    """Give the cell the version that it should have, and an older value."""
    found = cells(store).read(store.run, name)
    assert found is not None
    cells(store).delete(store.run, name)
    cells(store).init(store.run, name, state.value_of(0, 0))
    for _ in range(found.version - 1):
        cells(store).set(store.run, name, state.value_of(0, CALLS - 1))


PLANTED: list[Any] = [
    pytest.param(state.PutOne, lambda store: store.remove(state.name_of(0)), id="put"),
    pytest.param(
        state.Cas, lambda store: cells(store).delete(store.run, state.name_of(0)), id="cas, gone"
    ),
    pytest.param(state.Cas, lambda store: set_back(store, state.name_of(0)), id="cas, older"),
    pytest.param(
        state.Transition,
        lambda store: cells(store).set(store.run, state.name_of(0), state.value_of(0, CALLS)),
        id="transition, once too often",
    ),
    pytest.param(state.Shared, lambda store: set_back(store, state.SHARED), id="shared, older"),
    pytest.param(
        trace.Record,
        lambda store: trace.traces_of(store).record(store.run, trace_of(0), trace.tags_of(0)),
        id="record, twice",
        marks=needs_traces,
    ),
]


def trace_of(number: int) -> Any:
    from shm_engine import ToolCall

    return ToolCall(trace.TOOL, trace.arguments_of(number), "", 1)


@pytest.mark.parametrize(("make", "plant"), PLANTED)
def test_a_planted_loss_is_found(
    store: ShmStore, make: Callable[[], EngineWorkload], plant: Callable[[ShmStore], object]
) -> None:
    workload = make()
    tally = run_here(workload, store)
    plant(store)
    assert workload.losses(store, [tally]) != []


OF_FOUR: list[Any] = [
    pytest.param(lambda store, run: store.kv.delete(run, four.key_of(7)), id="a key is gone"),
    pytest.param(lambda store, run: store.kv.put(run, four.key_of(7), {"seq": 0}), id="older"),
    pytest.param(lambda store, run: cells(store).set(run, four.CELL, CALLS - 1), id="a write more"),
    pytest.param(
        lambda store, run: EventLog(store.database).append(run, four.TYPE, {"step": 0}),
        id="an event more",
    ),
    pytest.param(
        lambda store, run: trace.traces_of(store).record(run, trace_of(0)), id="a trace more"
    ),
]


@needs_all_four
@pytest.mark.parametrize("plant", OF_FOUR)
def test_what_one_of_the_four_has_more_or_less_is_found(
    store: ShmStore, plant: Callable[[ShmStore, RunId], object]
) -> None:
    workload = four.Transactions(50)
    tally = run_here(workload, store)
    plant(store, four.run_of(0))
    assert workload.losses(store, [tally]) != []


def test_a_trace_that_is_missing_is_named() -> None:
    class _Found:
        def __init__(self, number: int) -> None:
            self.trace_type = type("Call", (), {"arguments": {"call": number}})

    assert trace.numbers_wrong([_Found(1), _Found(0)], 2, "tag") == []
    assert "missing: [1]" in trace.numbers_wrong([_Found(0), _Found(2)], 3, "tag")[0]
    assert trace.numbers_wrong([_Found(0), _Found(0)], 1, "tag") != []


@needs_traces
def test_a_tree_with_a_node_too_few_or_too_many_is_found(store: ShmStore) -> None:
    trace.plant(store, 60)
    assert trace.tree_losses(store, 60) == []
    assert trace.tree_losses(store, 61) != []
    trace.traces_of(store).record_child(store.run, trace.node_of(5), trace_of(0))
    assert trace.tree_losses(store, 60) != []


@needs_traces
def test_a_filled_run_with_a_trace_too_few_or_too_many_is_found(store: ShmStore) -> None:
    trace.fill(store, 1_500)
    assert trace.fill_losses(store, 1_500) == []
    assert trace.fill_losses(store, 1_501) != []
    trace.traces_of(store).record(store.run, trace_of(0), ["block-1"])
    assert len(trace.fill_losses(store, 1_500)) == 2


@needs_traces
def test_the_tool_call_takes_100_bytes() -> None:
    call = [trace.TOOL, trace.arguments_of(1 << 16), trace.RESULT, trace.DURATION_MS]
    assert 95 <= len(encode(call)) <= 105


# -- queries --------------------------------------------------------------------------------------


SHELVES = [
    pytest.param("events"),
    pytest.param("traces", marks=needs_traces),
    pytest.param("runs", marks=needs_runs),
]


def filled(store: ShmStore, kind: str) -> list[shelves.Query]:
    shelf = shelves.SHELVES[kind]()
    return shelf.queries(store, RECORDS, shelf.fill(store, RECORDS))


@pytest.mark.parametrize("kind", SHELVES)
def test_every_query_of_a_shelf_finds_ten(store: ShmStore, kind: str) -> None:
    queries = filled(store, kind)
    assert shelves.losses(queries) == []
    for query in queries:
        assert query.count > 0
        assert {len(query.ask(k)) for k in range(query.count)} == {shelves.TEN}


def exchanged(query: shelves.Query) -> shelves.Query:
    """Return the query with another record for the last that it should find."""

    def wanted(k: int) -> list[int]:
        return [*query.wanted(k)[:-1], RECORDS]

    return replace(query, wanted=wanted)


@pytest.mark.parametrize("kind", SHELVES)
def test_an_answer_with_another_record_is_found(store: ShmStore, kind: str) -> None:
    for query in filled(store, kind):
        assert len(shelves.losses([exchanged(query)])) >= min(query.count, 3)


def test_an_event_that_a_query_misses_is_found(store: ShmStore) -> None:
    queries = filled(store, "events")
    assert store.database.engine.delete(store.run, keys.TAG_EVENT, events.entry_name(3))
    assert [loss.split(":")[0] for loss in shelves.losses(queries)] == ["type 3"]


@needs_runs
def test_a_run_that_a_query_misses_is_found(store: ShmStore) -> None:
    from shm_engine import RunIndex

    queries = filled(store, "runs")
    RunIndex(store.database).delete_run(shelves.run_id(shelves.ended(0, RECORDS)[3]))
    assert len(shelves.losses(queries)) == 2


# -- erasing, waiting, refusing -------------------------------------------------------------------


def test_what_is_left_of_an_erased_run_is_found(store: ShmStore) -> None:
    doomed = store.database.begin_run()
    erase.fill(store, doomed, 30)
    for i in range(20):
        store.write(f"writer/{i}", {"seq": SEQ_FIRST + i})
    assert erase.losses(store, doomed, 20) == ["30 keys of the run are left"]
    store.kv.mdelete(doomed, [f"doomed/{number}" for number in range(30)])
    assert erase.losses(store, doomed, 20) == []
    assert len(erase.losses(store, doomed, 21)) == 1
    store.remove("writer/7")
    assert len(erase.losses(store, doomed, 20)) == 1


def test_the_waits_of_a_time_are_those_that_overlap_with_it() -> None:
    ends, took = np.array([10, 30, 70, 90], np.uint64), np.array([5, 15, 35, 10], np.uint64)
    waits = erase.Waits(4, ends.tobytes(), took.tobytes())
    assert waits.between(20, 50).tolist() == [15, 35]
    assert waits.between(0, 100).tolist() == [5, 10, 15, 35]


def test_a_wake_that_was_missed_is_found() -> None:
    assert wait.losses("follow", [0, 1, 2], 3) == []
    assert "missing: [1]" in wait.losses("follow", [0, 2], 3)[0]
    assert wait.losses("follow", [1, 0, 2], 3) != []
    assert wait.losses("wait", [0, 1, 2], 2) != []


def test_a_put_that_is_missing_in_either_run_is_found(store: ShmStore) -> None:
    runs = (store.run, RunId.new())
    for run in runs:
        refusal.put_turn(store, run, 0)
    calls = refusal.TURN
    assert refusal.losses(store, runs, calls) == []
    assert len(refusal.losses(store, runs, calls + 1)) == 2
    store.kv.delete(runs[1], "refusal/5")
    assert len(refusal.losses(store, runs, calls)) == 1


def test_the_difference_is_the_median_of_the_pairs() -> None:
    turns = refusal.Turns([5.0, 90.0, 7.0], [4.0, 3.0, 5.0])
    assert turns.difference_ns() == 2.0


def test_a_word_is_shared_and_removed_by_who_made_it() -> None:
    with Progress.create() as ours:
        function, arguments = ours.__reduce__()
        with function(*arguments) as theirs:
            theirs.words[0] = 7
        assert ours.words[0] == 7
        assert ours.path.exists()
    assert not ours.path.exists()


# -- whole questions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        "state",
        "wait",
        "refusal",
        pytest.param("trace", marks=needs_traces),
        pytest.param("four", marks=needs_all_four),
        pytest.param("erase", marks=needs_runs),
    ],
)
def test_a_short_run_finds_nothing_lost_and_has_a_figure_for_every_goal(
    question: str, tmp_path: Path
) -> None:
    status = command.main(
        ["--short", question, "--seconds", "0.02", "--map-size", "64", "--processes", "1,2",
         "--output", str(tmp_path)]
    )  # fmt: skip
    assert status == command.OK
    [path] = tmp_path.glob(f"{question}-*.json")
    content = json.loads(path.read_text())
    assert (content["lost_writes"], content["losses"]) == (0, [])
    assert content["checks"] > 0
    assert all(goal["measured"] is not None for goal in content["goals"])


@pytest.mark.parametrize("question", ["state", "trace", "four", "queries", "erase", "wait"])
def test_a_question_that_only_the_engine_is_asked_says_so(question: str, tmp_path: Path) -> None:
    status = command.main(
        ["--short", question, "--peers", LMDB, "--no-plots", "--output", str(tmp_path)]
    )
    assert status == command.OK
    [path] = tmp_path.glob(f"{question}-*.json")
    content = json.loads(path.read_text())
    assert (content["checks"], content["figures"]) == (0, {})
    assert "only shm_engine" in content["notes"][0]
