"""test_trace_queries.py - traces are found by what they are, in order, at one snapshot."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_engine import (
    Custom,
    Database,
    Durability,
    KVStore,
    RunId,
    Thought,
    Trace,
    TraceOptions,
    TraceStore,
    TraceTree,
    TraceType,
    errors,
    trace_layout,
)
from shm_engine._core import set_last_moment
from tests.harness.labels import label
from tests.harness.traced import ALL_KINDS, TAG, UNKNOWN, ids, now_ms
from tests.harness.workers import Channel, Crew

RUN = RunId.DEFAULT


@pytest.fixture
def traces() -> Iterator[TraceStore]:
    with Database.ephemeral() as db:
        yield TraceStore(db)


# -- reading ----------------------------------------------------------------------------------


def test_a_trace_that_does_not_exist_is_none(traces: TraceStore) -> None:
    for unknown in (UNKNOWN, "step-1", "trace-x"):
        assert traces.get(RUN, unknown) is None
        assert not traces.exists(RUN, unknown)
        assert traces.get_tree(RUN, unknown) is None
        assert traces.get_children(RUN, unknown) == []
    assert traces.count(RUN) == 0
    assert traces.list(RUN) == traces.get_roots(RUN) == traces.query_by_tag(RUN, "a") == []
    with pytest.raises(errors.NotFound, match="after"):
        traces.list(RUN, after=UNKNOWN)
    with pytest.raises(errors.NotFound, match="after"):
        traces.query_by_time(RUN, 0, 0, after="step-1")


def test_queries_by_type_take_a_name_a_kind_or_a_trace_type(traces: TraceStore) -> None:
    """Story 188: query_by_type() returns matching traces."""
    made = {one.type_name(): traces.record(RUN, one) for one in ALL_KINDS for _ in range(2)}
    for one in ALL_KINDS:
        found = traces.query_by_type(RUN, one.type_name())
        assert [trace.trace_type for trace in found] == [one, one]
        assert found[-1].id == made[one.type_name()]
        assert traces.query_by_type(RUN, one) == found
        if type(one) is not Custom:
            assert traces.query_by_type(RUN, type(one)) == found
    assert traces.query_by_type(RUN, "Tool") == traces.query_by_type(RUN, "ErrorTrace") == []
    for kind in (Custom, TraceType):
        with pytest.raises(errors.ConstraintViolation, match="name of the type"):
            traces.query_by_type(RUN, kind)


def test_queries_by_tag_match_the_whole_tag(traces: TraceStore) -> None:
    """Story 188: query_by_tag() returns matching traces."""
    one = traces.record(RUN, Thought("a"), ["x", "xy"])
    two = traces.record(RUN, Thought("b"), ["x"])
    assert ids(traces.query_by_tag(RUN, "x")) == [one, two]
    assert ids(traces.query_by_tag(RUN, "xy")) == [one]
    assert traces.query_by_tag(RUN, "y") == []
    assert traces.query_by_tag(traces.database.begin_run(), "x") == []


def test_queries_by_time_are_half_open(traces: TraceStore) -> None:
    """Story 188: query_by_time() returns traces in range."""
    start = now_ms() + 10_000
    made: list[str] = []
    last = 0
    for offset in (0, 0, 1, 5, 9, 10):
        if not made or offset > last:
            set_last_moment((start + offset) * 1000)
        last = offset
        made.append(traces.record(RUN, Thought(str(offset))))
    set_last_moment(0)
    times = [one.timestamp - start for one in traces.list(RUN)]
    assert times == [0, 0, 1, 5, 9, 10]
    for low in range(-1, 12):
        for high in range(-1, 12):
            found = traces.query_by_time(RUN, start + low, start + high)
            expected = [one for one, at in zip(made, times, strict=True) if low <= at < high]
            assert ids(found) == expected
    everything = [(0, 2**48), (-1, 2**63), (-(10**30), 10**30), (start, start + 11)]
    assert all(ids(traces.query_by_time(RUN, *bounds)) == made for bounds in everything)
    assert traces.query_by_time(RUN, 2**48, 2**60) == []
    assert traces.query_by_time(RUN, 5, -5) == []
    assert ids(traces.query_by_time(RUN, start, start + 10, limit=2, after=made[1])) == made[2:4]
    assert ids(traces.query_by_time(RUN, start + 5, start + 10, after=made[0])) == made[3:5]


def test_list_gives_all_and_count_how_many(traces: TraceStore) -> None:
    """Story 188: list() returns all IDs. count() returns correct count."""
    made = [traces.record(RUN, Thought(str(number))) for number in range(700)]
    assert ids(traces.list(RUN)) == made
    assert traces.count(RUN) == 700


def pages(query: Callable[..., list[Trace]], size: int) -> list[Trace]:
    found: list[Trace] = []
    while page := query(limit=size, after=found[-1].id if found else None):
        assert len(page) <= size
        found += page
    return found


def test_answers_are_those_of_a_model_in_order_and_page_by_page(traces: TraceStore) -> None:
    chosen = random.Random(17)
    model: list[Trace] = []
    other = traces.database.begin_run()
    for number in range(3_000):
        kind = chosen.choice([*ALL_KINDS, Custom(f"own{number % 3}"), Thought(str(number))])
        options = TraceOptions(
            id=f"id{number}" if chosen.random() < 0.2 else None,
            parent_id=chosen.choice(model).id if model and chosen.random() < 0.7 else None,
            tags=chosen.sample(["a", "b", "c", "cc"], chosen.randrange(4)),
            metadata=chosen.choice([None, number]),
        )
        made = traces.record_with_options(RUN, kind, options)
        found = traces.get(RUN, made)
        assert found is not None
        assert found.id == (options.id or made)
        assert found[1:3] == (options.parent_id, kind)
        assert found[4:] == (options.tags, options.metadata)
        model.append(found)
        if number % 5 == 0:
            traces.record(other, kind, options.tags)
    assert traces.count(RUN) == len(model)
    assert traces.list(RUN) == model
    for name in {one.trace_type.type_name() for one in model}:
        of_type = [one for one in model if one.trace_type.type_name() == name]
        assert traces.query_by_type(RUN, name) == of_type
    for tag in ("a", "b", "c", "cc"):
        assert traces.query_by_tag(RUN, tag) == [one for one in model if tag in one.tags]
    for parent in chosen.sample(model, 100):
        below = [one for one in model if one.parent_id == parent.id]
        assert traces.get_children(RUN, parent.id) == below
    roots = [one for one in model if one.parent_id is None]
    assert traces.get_roots(RUN) == roots
    assert sum(len(traces.get_tree(RUN, one.id) or ()) for one in roots) == len(model)
    for size in (1, 7, 256, 1_000):
        part = model[-50:] if size == 1 else model
        start = None if size > 1 else model[-51].id
        assert traces.list(RUN, after=start) == part
        assert pages(lambda **page: traces.get_roots(RUN, **page), size) == roots
        if size > 1:
            assert pages(lambda **page: traces.list(RUN, **page), size) == model
        found_a = pages(lambda **page: traces.query_by_tag(RUN, "a", **page), max(size, 5))
        assert found_a == traces.query_by_tag(RUN, "a")
    assert traces.list(RUN, limit=0) == traces.query_by_type(RUN, "Thought", limit=0) == []
    with pytest.raises(errors.ConstraintViolation, match="limit"):
        traces.list(RUN, limit=-1)
    assert traces.list(RUN, limit=10**30) == model


class Counting:
    """An engine that counts the keys that are read through it."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def scan(self, *arguments: Any) -> Any:
        found = self.engine.scan(*arguments)
        self.reads += len(found[0]) + 1
        return found

    def get_many(self, run: Any, tag: int, names: list[bytes], pin: Any) -> Any:
        self.reads += len(names)
        return self.engine.get_many(run, tag, names, pin)


def reads_of(traces: TraceStore, query: Callable[[TraceStore], object]) -> int:
    counting = Counting(traces.database.engine)
    one = TraceStore(traces.database)
    one._engine = counting  # type: ignore[assignment]
    query(one)
    return counting.reads


def test_a_query_costs_its_answer_and_not_the_log(traces: TraceStore) -> None:
    top = traces.record(RUN, Custom("rare"), ["rare"])
    for number in range(9):
        traces.record_child(RUN, top, Custom("rare"), ["rare"], number)
    last = traces.list(RUN)[-1]
    queries: list[Callable[[TraceStore], object]] = [
        lambda store: store.query_by_tag(RUN, "rare"),
        lambda store: store.query_by_type(RUN, "rare"),
        lambda store: store.query_by_time(RUN, 0, last.timestamp),
        lambda store: store.get_children(RUN, top),
        lambda store: store.get_tree(RUN, top),
        lambda store: store.list(RUN, limit=10),
        lambda store: store.query_by_tag(RUN, "often", limit=10),
        lambda store: store.get_roots(RUN, limit=10),
    ]
    for number in range(20):
        traces.record(RUN, Thought(str(number)), ["often"])
    few = [reads_of(traces, query) for query in queries]
    for number in range(3_000):
        traces.record_child(RUN, traces.record(RUN, Thought(str(number)), ["often"]), Thought("x"))
    assert [reads_of(traces, query) for query in queries] == few
    assert max(few) < 50


def test_an_answer_is_of_one_snapshot(traces: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded after the snapshot was opened is not in the answer."""
    top = traces.record(RUN, Thought("top"), ["t"])
    child = traces.record_child(RUN, top, Thought("child"), ["t"])
    engine = traces.database.engine
    writer = TraceStore(traces.database)

    class Late(Counting):
        def open_pin(self) -> Any:
            pin = self.engine.open_pin()
            writer.record_child(RUN, child, Thought("late"), ["t"])
            return pin

    traces._engine = Late(engine)  # type: ignore[assignment]
    for round_ in range(2, 6):
        seen = [
            ids(traces.list(RUN)),
            ids(traces.query_by_tag(RUN, "t")),
            ids(traces.query_by_type(RUN, "Thought")),
            [one.id for _, one in (traces.get_tree(RUN, top) or TraceTree(None)).walk()],  # type: ignore[arg-type]
        ]
        counts = [len(one) for one in seen]
        first = 2 + 4 * (round_ - 2)
        assert counts == [first, first + 1, first + 2, first + 3]


# -- trees ------------------------------------------------------------------------------------


def test_children_are_the_direct_ones(traces: TraceStore) -> None:
    """Story 189: get_children() returns direct children, and empty for leaf trace."""
    top = traces.record(RUN, Thought("top"))
    below = [traces.record_child(RUN, top, Thought(str(number))) for number in range(5)]
    leaf = traces.record_child(RUN, below[0], Thought("leaf"))
    assert ids(traces.get_children(RUN, top)) == below
    assert ids(traces.get_children(RUN, below[0])) == [leaf]
    assert traces.get_children(RUN, leaf) == []
    assert ids(traces.get_children(RUN, top, limit=2, after=below[1])) == below[2:4]


def test_a_tree_has_the_shape_in_which_it_was_recorded(traces: TraceStore) -> None:
    """Story 189: get_tree() builds correct hierarchy."""
    top = traces.record(RUN, Thought("top"))
    other = traces.record(RUN, Thought("other"))
    left = traces.record_child(RUN, top, Thought("left"))
    traces.record_child(RUN, other, Thought("not here"))
    right = traces.record_with_options(RUN, Thought("right"), id="right", parent_id=top)
    deep = traces.record_child(RUN, left, Thought("deep"))
    deeper = traces.record_child(RUN, right, Thought("deeper"))
    later = traces.record_child(RUN, left, Thought("later"))
    tree = traces.get_tree(RUN, top)
    assert tree is not None
    assert [(depth, one.id) for depth, one in tree.walk()] == [
        (0, top),
        (1, left),
        (2, deep),
        (2, later),
        (1, "right"),
        (2, deeper),
    ]
    assert all(traces.get(RUN, one.id) == one for _, one in tree.walk())
    assert traces.get_tree(RUN, "right") == tree.children[1]
    assert ids(traces.get_roots(RUN)) == [top, other]


def test_a_tree_may_be_of_any_depth_and_width(traces: TraceStore) -> None:
    """Story 189: get_tree() handles deep nesting."""
    batch = [
        (Thought(""), TraceOptions(id=f"{number}", parent_id=f"{number - 1}" if number else None))
        for number in range(20_000)
    ]
    traces.record_many(RUN, batch)
    traces.record_many(RUN, [(Thought(""), TraceOptions(parent_id="100"))] * 20_000)
    tree = traces.get_tree(RUN, "0")
    assert tree is not None
    assert len(tree) == 40_000
    assert max(depth for depth, _ in tree.walk()) == 19_999
    assert pickle.loads(pickle.dumps(tree)) == tree


# -- other processes and files ----------------------------------------------------------------


def record_and_read(channel: Channel, db: Database, parent: str) -> None:
    traces = TraceStore(db)
    channel.ready()
    made = [traces.record_child(RUN, parent, Thought(str(n)), ["t"]) for n in range(300)]
    channel.send((made, traces.get_tree(RUN, parent)))


def test_processes_record_below_one_parent_without_losing_any(traces: TraceStore) -> None:
    parent = traces.record(RUN, Thought("top"))
    crew = Crew()
    try:
        workers = [crew.start(record_and_read, traces.database, parent) for _ in range(3)]
        crew.release()
        made: list[str] = []
        for worker in workers:
            own, tree = worker.receive()
            made += own
            assert set(own) <= {one.id for _, one in tree.walk()}
            worker.join()
    finally:
        crew.disband()
    assert sorted(ids(traces.get_children(RUN, parent))) == sorted(made)
    assert ids(traces.query_by_tag(RUN, "t")) == ids(traces.get_children(RUN, parent))
    assert traces.count(RUN) == 901


def test_traces_are_there_after_the_database_was_opened_again(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db", Durability.buffered()) as db:
        traces = TraceStore(db)
        top = traces.record_with_options(RUN, ALL_KINDS[1], id="top", tags=["x"])
        for kind in ALL_KINDS:
            traces.record_child(RUN, top, kind, ["y"], {"m": 1})
        before = (traces.list(RUN), traces.get_tree(RUN, top), traces.count(RUN))
    with Database.open(tmp_path / "db") as db:
        traces = TraceStore(db)
        assert (traces.list(RUN), traces.get_tree(RUN, top), traces.count(RUN)) == before
        assert len(traces.query_by_tag(RUN, "y")) == len(ALL_KINDS)
        assert traces.record_child(RUN, top, Thought("later")) > before[0][-1].id


def test_the_example_of_the_page_can_be_typed(
    traces: TraceStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = traces.database.begin_run()
    trace_id = traces.record(
        run_id,
        TraceType.ToolCall(
            tool_name="search",
            arguments="query",
            result=[],
            duration_ms=150,
        ),
        ["search", "external-api"],
        None,
    )
    parent = traces.record(run_id, TraceType.Decision("which?"), [], None)
    child = traces.record_child(run_id, parent, TraceType.ToolCall("search"), [], None)
    tool_calls = traces.query_by_type(run_id, "ToolCall")
    assert ids(tool_calls) == [trace_id, child]

    def print_tree(tree: TraceTree, depth: int) -> None:
        print("{}{}".format("  " * depth, tree.trace.id))
        for below in tree.children:
            print_tree(below, depth + 1)

    if tree := traces.get_tree(run_id, parent):
        print_tree(tree, 0)
    assert capsys.readouterr().out == f"{parent}\n  {child}\n"


def test_traces_and_keys_do_not_meet(traces: TraceStore) -> None:
    kv = KVStore(traces.database)
    traces.record_with_options(RUN, Thought("a"), id="a", tags=["a"])
    kv.put(RUN, "a", 1)
    assert kv.list_with_values(RUN) == [("a", 1)]
    assert traces.count(RUN) == 1


def test_floats_that_are_no_numbers_come_back(traces: TraceStore) -> None:
    found = traces.get(RUN, traces.record(RUN, Thought("a", math.nan), metadata=-math.inf))
    assert found is not None
    assert isinstance(found.trace_type, Thought)
    assert math.isnan(found.trace_type.confidence or 0)
    assert found.metadata == -math.inf


@pytest.mark.parametrize(
    "record",
    [
        None,
        5,
        [],
        [1, 2, 3],
        [99, ["x"], [], None, None, None],
        [[], ["x"], [], None, None, None],
        [4, ["x"], [], None, None, None],
        [2, ["a", 5, "b", None], [], None, None, None],
        [4, None, [], None, None, None],
    ],
    ids=label,
)
def test_a_damaged_record_is_corruption(traces: TraceStore, record: Any) -> None:
    trace_id = traces.record(RUN, Thought("a"))
    name = trace_layout.record_of(trace_id)
    assert name is not None
    traces.database.engine.put(RUN, TAG, name, record)
    for call in (
        lambda: traces.get(RUN, trace_id),
        lambda: traces.list(RUN),
        lambda: traces.get_roots(RUN),
        lambda: traces.get_tree(RUN, trace_id),
    ):
        with pytest.raises(errors.Corruption, match="damaged"):
            call()
