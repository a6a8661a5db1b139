"""test_trace_store.py - what TraceStore's methods do, and that a refused call does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from shm_engine import (
    Custom,
    Database,
    Decision,
    RunId,
    Thought,
    ToolCall,
    Trace,
    TraceOptions,
    TraceStore,
    TraceType,
    errors,
    keys,
    trace_ids,
    trace_layout,
)
from tests.format.tables import example
from tests.harness.labels import label
from tests.harness.refusal import refused
from tests.harness.threads import in_threads
from tests.harness.traced import ALL_KINDS, TAG, UNKNOWN, ids, now_ms, stored

RUN = RunId.DEFAULT
NO_NAMES = ["", "a\0b", "x" * 257, "ä" * 129, "\ud800"]
NO_IDS = ["", "a\0b", "x" * 1025, "\ud800", "_strata/x"]


@pytest.fixture
def traces() -> Iterator[TraceStore]:
    with Database.ephemeral() as db:
        yield TraceStore(db)


def entries(traces: TraceStore, letter: bytes) -> list[bytes]:
    return [name for name in stored(traces) if name[:2] == keys.BOOKKEEPING + letter]


# -- recording --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_KINDS, ids=label)
def test_a_trace_comes_back_as_it_was_recorded(traces: TraceStore, kind: TraceType) -> None:
    """Story 186: record() creates trace with generated ID. Story 188: get() returns trace by ID."""
    trace_id = traces.record(RUN, kind, ["b", "a"], {"k": [1]})
    found = traces.get(RUN, trace_id)
    assert found is not None
    assert found == Trace(trace_id, None, kind, found.timestamp, ["b", "a"], {"k": [1]})
    assert type(found) is Trace
    assert type(found.trace_type) is type(kind)
    assert traces.exists(RUN, trace_id)
    assert trace_id.startswith("trace-")
    assert len(trace_id) == 42


def test_a_trace_has_the_time_of_its_recording(traces: TraceStore) -> None:
    """Story 186: Trace has correct timestamp."""
    for own_id in (None, "mine"):
        before = now_ms()
        trace_id = traces.record_with_options(RUN, Thought("x"), TraceOptions(id=own_id))
        found = traces.get(RUN, trace_id)
        assert found is not None
        assert before <= found.timestamp <= now_ms()


def test_a_child_is_linked_to_its_parent(traces: TraceStore) -> None:
    """Story 186: record_child() links to parent."""
    parent = traces.record(RUN, Thought("a"))
    child = traces.record_child(RUN, parent, Thought("b"), ["t"], 5)
    found = traces.get(RUN, child)
    assert found is not None
    assert (found.parent_id, found.tags, found.metadata) == (parent, ["t"], 5)
    assert ids(traces.get_children(RUN, parent)) == [child]


@pytest.mark.parametrize("parent", [UNKNOWN, "step-1", *NO_IDS], ids=label)
def test_a_child_of_a_parent_that_does_not_exist_is_refused(
    traces: TraceStore, parent: str
) -> None:
    """Story 186: record_child() fails if parent doesn't exist."""
    traces.record(RUN, Thought("a"))
    before = stored(traces)
    with refused(traces.database, errors.NotFound, "does not exist in the run"):
        traces.record_child(RUN, parent, Thought("b"))
    with refused(traces.database, errors.NotFound):
        traces.record_with_options(RUN, Thought("b"), parent_id=parent)
    assert stored(traces) == before


def test_a_parent_of_another_run_does_not_exist(traces: TraceStore) -> None:
    parent = traces.record("default", Thought("a"))
    other = traces.database.begin_run()
    with pytest.raises(errors.NotFound):
        traces.record_child(other, parent, Thought("b"))
    assert stored(traces, other) == {}


def test_options_give_id_parent_tags_and_metadata(traces: TraceStore) -> None:
    """Story 186: record_with_options() uses custom ID."""
    assert traces.record_with_options(RUN, Thought("a"), TraceOptions(id="top")) == "top"
    options = TraceOptions("below", "top", ("x", "y", "x"), {"m": None})
    assert traces.record_with_options(RUN, Thought("b"), options) == "below"
    found = traces.get(RUN, "below")
    assert found is not None
    assert found[:2] == ("below", "top")
    assert (found.tags, found.metadata) == (["x", "y"], {"m": None})
    by_keyword = traces.record_with_options(RUN, Thought("c"), parent_id="below", tags=["z"])
    assert by_keyword.startswith("trace-")
    assert ids(traces.get_children(RUN, "below")) == [by_keyword]
    assert ids(traces.list(RUN)) == ["top", "below", by_keyword]
    assert traces.record_with_options(RUN, Thought("d")) in ids(traces.get_roots(RUN))


def test_an_id_that_exists_is_refused(traces: TraceStore) -> None:
    traces.record_with_options(RUN, Thought("a"), id="top")
    made = traces.record(RUN, Thought("b"))
    before = stored(traces)
    for taken in ("top", made):
        with refused(traces.database, errors.InvalidOperation, "exists already"):
            traces.record_with_options(RUN, Thought("c"), TraceOptions(id=taken))
        with refused(traces.database, errors.InvalidOperation, "exists already"):
            traces.record_many(RUN, [(Thought("c"), TraceOptions(id=taken))])
    assert stored(traces) == before
    other = traces.database.begin_run()
    assert traces.record_with_options(other, Thought("a"), id="top") == "top"


def test_an_id_of_one_s_own_may_look_like_one_that_was_made(traces: TraceStore) -> None:
    assert traces.record_with_options(RUN, Thought("a"), id=UNKNOWN) == UNKNOWN
    found = traces.get(RUN, UNKNOWN)
    assert found is not None
    assert found.id == UNKNOWN
    child = traces.record_child(RUN, UNKNOWN, Thought("b"))
    assert ids(traces.list(RUN)) == [UNKNOWN, child]
    assert ids(traces.list(RUN, after=UNKNOWN)) == [child]
    with pytest.raises(errors.InvalidOperation):
        traces.record_with_options(RUN, Thought("c"), id=UNKNOWN)


def test_a_trace_with_an_id_of_its_own_has_no_second_one(traces: TraceStore) -> None:
    traces.record_with_options(RUN, Thought("a"), id="mine")
    (record,) = (name for name in stored(traces) if name[:1] == keys.ENTRY)
    inner = trace_ids.text_of(record[1:])
    assert not traces.exists(RUN, inner)
    assert traces.get(RUN, inner) is None
    assert traces.get_children(RUN, inner) == []


@pytest.mark.parametrize("own_id", ["x", "x" * 1024, "ä" * 512, "a/b c", "trace-", "n"], ids=label)
def test_ids_within_the_rules_for_keys_are_taken(traces: TraceStore, own_id: str) -> None:
    assert traces.record_with_options(RUN, Thought("a"), id=own_id) == own_id
    found = traces.get(RUN, own_id)
    assert found is not None
    assert found.id == own_id
    assert traces.record_child(RUN, own_id, Thought("b")) in ids(traces.get_children(RUN, own_id))


@pytest.mark.parametrize("own_id", NO_IDS, ids=label)
def test_an_id_that_breaks_the_rules_is_refused_and_found_nowhere(
    traces: TraceStore, own_id: str
) -> None:
    with refused(traces.database, errors.InvalidKey):
        traces.record_with_options(RUN, Thought("a"), id=own_id)
    assert stored(traces) == {}
    assert traces.get(RUN, own_id) is None
    assert traces.get_tree(RUN, own_id) is None
    assert traces.get_children(RUN, own_id) == []
    assert not traces.exists(RUN, own_id)


def test_no_trace_is_its_own_parent_or_ancestor(traces: TraceStore) -> None:
    """A parent has to be there before, and a trace never changes: so there are no cycles."""
    with refused(traces.database, errors.NotFound):
        traces.record_with_options(RUN, Thought("a"), id="a", parent_id="a")
    with refused(traces.database, errors.NotFound):
        traces.record_many(
            RUN,
            [
                (Thought("a"), TraceOptions(id="a", parent_id="b")),
                (Thought("b"), TraceOptions(id="b", parent_id="a")),
            ],
        )
    assert stored(traces) == {}
    traces.record_with_options(RUN, Thought("a"), id="a")
    with refused(traces.database, errors.InvalidOperation):
        traces.record_with_options(RUN, Thought("a"), id="a", parent_id="a")


def test_equal_tags_are_kept_once_in_their_order(traces: TraceStore) -> None:
    trace_id = traces.record(RUN, Thought("a"), ("b", "a", "b", "c", "a"))
    found = traces.get(RUN, trace_id)
    assert found is not None
    assert found.tags == ["b", "a", "c"]
    assert len(entries(traces, b"g")) == 3
    assert ids(traces.query_by_tag(RUN, "b")) == [trace_id]
    for tags in ({"one"}, (tag for tag in ["one"]), {"one": 1}):
        traces.record_child(RUN, trace_id, Thought("b"), tags)
    assert len(traces.query_by_tag(RUN, "one")) == 3


class Word(str):
    """A str that is none, to the engine."""


@pytest.mark.parametrize("tags", ["ab", b"ab", 5, None, "", [1], [["a"]], [Word("a")]], ids=label)
def test_tags_of_the_wrong_type_are_refused(traces: TraceStore, tags: Any) -> None:
    traces.record_with_options(RUN, Thought("a"), id="top", tags=["a"])
    before = stored(traces)
    for call in (
        lambda: traces.record(RUN, Thought("a"), tags),
        lambda: traces.record_child(RUN, "top", Thought("a"), tags),
        lambda: traces.record_with_options(RUN, Thought("a"), TraceOptions(tags=tags)),
        lambda: traces.record_many(RUN, [(Thought("a"), TraceOptions(tags=tags))]),
    ):
        with refused(traces.database, errors.WrongType):
            call()
    assert stored(traces) == before


@pytest.mark.parametrize("name", NO_NAMES, ids=label)
def test_a_tag_or_type_that_breaks_the_rules_is_an_invalid_key(
    traces: TraceStore, name: str
) -> None:
    with refused(traces.database, errors.InvalidKey):
        traces.record(RUN, Thought("a"), ["good", name])
    assert stored(traces) == {}
    with refused(traces.database, errors.InvalidKey):
        traces.query_by_tag(RUN, name)
    with refused(traces.database, errors.InvalidKey):
        traces.query_by_type(RUN, name)


class Own(ToolCall):
    """A kind that the store does not know."""

    __slots__ = ()


@pytest.mark.parametrize(
    "call",
    [
        lambda traces: traces.record(RUN, "operation"),
        lambda traces: traces.record(RUN, ToolCall),
        lambda traces: traces.record(RUN, Own("x")),
        lambda traces: traces.record(RUN, None),
        lambda traces: traces.record(5, Thought("a")),
        lambda traces: traces.record_child(RUN, 5, Thought("a")),
        lambda traces: traces.record_child(RUN, None, Thought("a")),
        lambda traces: traces.record_child(RUN, b"top", Thought("a")),
        lambda traces: traces.record_with_options(RUN, Thought("a"), {"id": "x"}),
        lambda traces: traces.record_with_options(RUN, Thought("a"), id=5),
        lambda traces: traces.record_with_options(RUN, Thought("a"), parent_id=["top"]),
        lambda traces: traces.record_many(RUN, "ab"),
        lambda traces: traces.record_many(RUN, 5),
        lambda traces: traces.record_many(RUN, [Thought("a")]),
        lambda traces: traces.record_many(RUN, [(Thought("a"), {"id": "x"})]),
        lambda traces: traces.record_many(RUN, [(Thought("a"), TraceOptions(None, 5))]),  # type: ignore[arg-type]
        lambda traces: traces.record_many(RUN, [(Thought("a"), TraceOptions()), (5, 5)]),
        lambda traces: traces.get(RUN, 5),
        lambda traces: traces.exists(RUN, None),
        lambda traces: traces.get_tree(RUN, b"x"),
        lambda traces: traces.get_children(RUN, ToolCall),
        lambda traces: traces.query_by_type(RUN, 5),
        lambda traces: traces.query_by_type(RUN, str),
        lambda traces: traces.query_by_tag(RUN, ["a"]),
        lambda traces: traces.query_by_time(RUN, 0.5, 1),
        lambda traces: traces.query_by_time(RUN, 0, True),
        lambda traces: traces.list(RUN, limit="1"),
        lambda traces: traces.list(RUN, limit=True),
        lambda traces: traces.list(RUN, after=5),
        lambda traces: traces.get_roots(RUN, limit=1.0),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused(
    traces: TraceStore, call: Callable[[Any], object]
) -> None:
    traces.record_with_options(RUN, Thought("a"), id="top")
    before = stored(traces)
    with refused(traces.database, errors.WrongType):
        call(traces)
    assert stored(traces) == before


@pytest.mark.parametrize("database", [5, None, "db", object()], ids=label)
def test_a_store_is_made_of_a_database(database: Any) -> None:
    with pytest.raises(errors.WrongType, match="Database"):
        TraceStore(database)


def test_options_and_keywords_do_not_go_together(traces: TraceStore) -> None:
    with refused(traces.database, errors.InvalidOperation, "beside TraceOptions"):
        traces.record_with_options(RUN, Thought("a"), TraceOptions(), id="x")


def test_metadata_and_fields_that_cannot_be_stored_are_named(traces: TraceStore) -> None:
    changed: list[Any] = []
    kind = ToolCall("a", changed)
    changed.append((1, 2))
    with refused(traces.database, errors.WrongType, r"^ToolCall\.arguments: tuple at \$\[0\]"):
        traces.record(RUN, kind)
    with refused(traces.database, errors.WrongType, r"^metadata: set at \$\.x"):
        traces.record(RUN, Thought("a"), metadata={"x": set()})
    with refused(traces.database, errors.ConstraintViolation, "^metadata: "):
        traces.record(RUN, Thought("a"), metadata=2**63)
    with refused(traces.database, errors.SerializationError, r"^Decision\.options: "):
        traces.record(RUN, Decision("a", ["\ud800"]))
    assert stored(traces) == {}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_payloads_at_their_limits_are_stored_and_beyond_refused(traces: TraceStore) -> None:
    largest = "x" * (16 << 20)
    for kind in (Custom("deep", nested(126)), Custom("large", largest), Thought(largest)):
        found = traces.get(RUN, traces.record(RUN, kind, metadata=nested(127)))
        assert found is not None
        assert found.trace_type == kind
    before = stored(traces).keys()
    with refused(traces.database, errors.ConstraintViolation, "trace as a whole.*128 containers"):
        traces.record(RUN, Custom("deep", nested(127)))
    with refused(traces.database, errors.ConstraintViolation, "trace as a whole.*32 MiB"):
        traces.record(RUN, ToolCall("large", largest, largest))
    with refused(traces.database, errors.ConstraintViolation, r"^Thought\.content"):
        traces.record(RUN, Thought(largest + "x"))
    assert stored(traces).keys() == before


# -- indexes ----------------------------------------------------------------------------------


def test_every_index_has_its_entry_after_one_commit(traces: TraceStore) -> None:
    """Story 187: Type index created. Tag indices created (multiple tags). Parent index created.
    Time index created. All indices atomic with trace write."""
    traces.record_with_options(RUN, Thought("a"), id="top", tags=["x", "y"])
    engine = traces.database.engine
    (record,) = (name for name in stored(traces) if name[:1] == keys.ENTRY)
    top = record[1:]
    assert stored(traces).keys() == {
        record,  # which is the index by time, too
        b"\x01yThought\0" + top,
        b"\x01gx\0" + top,
        b"\x01gy\0" + top,
        b"\x01p" + bytes(16) + top,
        b"\x01itop\0",
        b"\x01n",
    }
    versions = {engine.get_record(RUN, TAG, name)[1] for name in stored(traces)}  # type: ignore[index]
    assert len(versions) == 1
    traces.record_child(RUN, "top", Custom("deploy"))
    assert len(stored(traces)) == 7 + 3
    assert {name[2:18] for name in entries(traces, b"p")} == {bytes(16), top}
    assert stored(traces)[b"\x01n"] == b"\x02"


def test_a_record_is_as_the_format_shows_it(traces: TraceStore) -> None:
    traces.record_with_options(RUN, Thought("hm", 0.5), id="step-1", tags=["draft"])
    (record,) = (value for name, value in stored(traces).items() if name[:1] == keys.ENTRY)
    assert record == example("trace")


def test_no_key_is_a_prefix_of_another_one(traces: TraceStore) -> None:
    names = ["n", "n0", "p", "y", "a", "ab", "a" * 256, "\x01", "trace"]
    for name in names:
        traces.record_with_options(RUN, Custom(name), id=name, tags=names)
        traces.record_child(RUN, name, Custom(name), names)
    found = sorted(stored(traces))
    assert len(found) == 18 * (3 + len(names)) + len(names) + 1
    assert not any(later.startswith(name) for name, later in pairwise(found))


def test_a_closed_run_takes_no_trace_and_nothing_of_it_is_written(traces: TraceStore) -> None:
    run = traces.database.begin_run()
    parent = traces.record(run, Thought("a"), ["x"])
    traces.database.end_run(run)
    before = stored(traces, run)
    for call in (
        lambda: traces.record(run, Thought("b"), ["x", "y"]),
        lambda: traces.record_child(run, parent, Thought("b")),
        lambda: traces.record_with_options(run, Thought("b"), TraceOptions(id="mine")),
        lambda: traces.record_many(run, [(Thought("b"), TraceOptions())] * 3),
    ):
        with refused(traces.database, errors.RunError, "Completed", runs=(run,)):
            call()
    assert stored(traces, run) == before
    assert traces.count(run) == 1
    assert ids(traces.list(run)) == ids(traces.query_by_tag(run, "x")) == [parent]


def test_a_closed_handle_refuses_everything() -> None:
    db = Database.ephemeral()
    traces = TraceStore(db)
    trace_id = traces.record(RUN, Thought("a"))
    db.close()
    for call in (
        lambda: traces.record(RUN, Thought("a")),
        lambda: traces.record_child(RUN, trace_id, Thought("a")),
        lambda: traces.get(RUN, trace_id),
        lambda: traces.get(RUN, "mine"),
        lambda: traces.count(RUN),
        lambda: traces.list(RUN),
        lambda: traces.query_by_tag(RUN, "a"),
        lambda: traces.get_tree(RUN, trace_id),
        lambda: TraceStore(db),
    ):
        with pytest.raises(errors.Closed):
            call()


def test_a_full_store_takes_no_part_of_a_trace() -> None:
    with Database.ephemeral(map_size=2 << 20) as db:
        traces = TraceStore(db)

        def fill() -> None:
            for _ in range(10_000):
                traces.record(RUN, Thought("x" * 500), ["a", "b"])

        with pytest.raises(errors.StorageFull):
            fill()
        count = traces.count(RUN)
        assert len(traces.list(RUN)) == count > 100
        assert len(traces.query_by_tag(RUN, "b")) == len(traces.get_roots(RUN)) == count


# -- several in one commit --------------------------------------------------------------------


def test_many_are_recorded_in_one_commit(traces: TraceStore) -> None:
    outside = traces.record(RUN, Thought("outside"))
    before = traces.database.metrics().transactions_committed
    made = traces.record_many(
        RUN,
        [
            (Thought("a"), TraceOptions(id="a", tags=["t"])),
            (Thought("b"), TraceOptions(id="b", parent_id="a")),
            (Thought("c"), TraceOptions(parent_id="b", metadata=3)),
            (Thought("d"), TraceOptions(parent_id=outside)),
            (Thought("e"), TraceOptions(parent_id=outside)),
        ],
    )
    assert traces.database.metrics().transactions_committed == before + 1
    assert made[:2] == ["a", "b"]
    assert ids(traces.list(RUN)) == [outside, *made]
    assert traces.count(RUN) == 6
    tree = traces.get_tree(RUN, "a")
    assert tree is not None
    assert [(depth, one.id) for depth, one in tree.walk()] == [(0, "a"), (1, "b"), (2, made[2])]
    assert ids(traces.get_children(RUN, outside)) == made[3:]


def test_of_many_with_one_that_is_wrong_none_is_recorded(traces: TraceStore) -> None:
    good = (Thought("a"), TraceOptions(id="a"))
    bad: list[tuple[Any, type[errors.Error]]] = [
        ((Thought("b"), TraceOptions(id="a")), errors.InvalidOperation),
        ((Thought("b"), TraceOptions(parent_id="x")), errors.NotFound),
        ((Thought("b"), TraceOptions(id="")), errors.InvalidKey),
        ((Thought("b"), TraceOptions(metadata=())), errors.WrongType),
    ]
    for item, kind in bad:
        with refused(traces.database, kind):
            traces.record_many(RUN, [good, item])
    with refused(traces.database, errors.ConstraintViolation, "write set"):
        traces.record_many(RUN, [(Thought("a"), TraceOptions())] * 360_000)
    assert stored(traces) == {}


def test_of_none_nothing_is_committed(traces: TraceStore) -> None:
    before = traces.database.metrics().transactions_committed
    assert traces.record_many(RUN, []) == []
    assert traces.database.metrics().transactions_committed == before
    assert traces.count(RUN) == 0


# -- between reading and the commit -----------------------------------------------------------


def before_the_commit(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Lets others act between the planning of a trace and its commit, each step once."""
    left = list(steps)
    plan = trace_layout.add_trace

    def planned(*arguments: Any) -> Any:
        found = plan(*arguments)
        if left:
            left.pop(0)()
        return found

    monkeypatch.setattr("shm_engine.primitives.trace_store.add_trace", planned)


def erase(traces: TraceStore, trace_id: str) -> None:
    """Takes the record away, as the deletion of a run would."""
    name = trace_layout.record_of(trace_id)
    assert name is not None
    assert traces.database.engine.delete(RUN, TAG, name)


def test_a_parent_that_goes_before_the_commit_is_noticed(
    traces: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in (
        lambda parent: traces.record_child(RUN, parent, Thought("b"), (tag for tag in "xy")),
        lambda parent: traces.record_many(RUN, [(Thought("b"), TraceOptions(None, parent))] * 2),
    ):
        parent = traces.record(RUN, Thought("a"))
        before = stored(traces)
        before_the_commit(monkeypatch, lambda parent=parent: erase(traces, parent))  # type: ignore[misc]
        with pytest.raises(errors.NotFound, match="does not exist"):
            record(parent)
        assert before.items() - stored(traces).items() == {
            (trace_layout.record_of(parent), before[trace_layout.record_of(parent)])  # type: ignore[index]
        }
        monkeypatch.undo()


def test_a_parent_that_was_replaced_before_the_commit_is_read_again(
    traces: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try still has its tags, which came from an iterator."""
    parent = traces.record(RUN, Thought("a"))
    name = trace_layout.record_of(parent)
    assert name is not None
    engine = traces.database.engine
    record = engine.get(RUN, TAG, name)
    before_the_commit(monkeypatch, lambda: engine.put(RUN, TAG, name, record))
    child = traces.record_child(RUN, parent, Thought("b"), (tag for tag in "xy"))
    found = traces.get(RUN, child)
    assert found is not None
    assert found.tags == ["x", "y"]
    assert traces.count(RUN) == 2
    monkeypatch.undo()
    before_the_commit(monkeypatch, lambda: engine.put(RUN, TAG, name, record))
    options = TraceOptions(None, parent, (tag for tag in "xy"))
    (child,) = traces.record_many(RUN, [(Thought("b"), options)])
    assert len(traces.query_by_tag(RUN, "y")) == 2


def test_an_id_that_is_taken_before_the_commit_is_refused(
    traces: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TraceStore(traces.database)
    before_the_commit(
        monkeypatch, lambda: other.record_with_options(RUN, Thought("other"), id="mine")
    )
    with pytest.raises(errors.InvalidOperation, match="exists already"):
        traces.record_with_options(RUN, Thought("own"), id="mine")
    assert [one.trace_type for one in traces.list(RUN)] == [Thought("other")]
    assert traces.count(RUN) == 1


def test_of_threads_with_the_same_id_exactly_one_succeeds(traces: TraceStore) -> None:
    def work(number: int) -> int:
        own = TraceStore(traces.database)
        won = 0
        for step in range(200):
            try:
                own.record_with_options(RUN, Custom(f"by{number}"), id=f"step-{step}")
                won += 1
            except errors.InvalidOperation:
                pass
        return won

    assert sum(in_threads(4, work)) == traces.count(RUN) == len(traces.list(RUN)) == 200
