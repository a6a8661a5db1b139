"""test_traces.py - the kinds of traces, their ids, and trees of any depth."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shm_engine
from shm_engine import (
    Custom,
    Decision,
    ErrorTrace,
    Query,
    Thought,
    ToolCall,
    Trace,
    TraceOptions,
    TraceTree,
    TraceType,
    errors,
    trace_ids,
)
from shm_engine._core import set_last_moment
from tests.harness.labels import label
from tests.harness.threads import in_threads
from tests.harness.workers import Channel, Crew

MAX = 2**63 - 1
DEEP = 100_000
KINDS: list[tuple[type[Any], str, dict[str, Any]]] = [
    (
        ToolCall,
        "ToolCall",
        {"tool_name": "search", "arguments": {"q": ["x"]}, "result": [], "duration_ms": 150},
    ),
    (
        Decision,
        "Decision",
        {"question": "which?", "options": ("a", "b"), "chosen": "a", "reasoning": "near"},
    ),
    (Query, "Query", {"query_type": "vector", "query": "cats", "results_count": 0}),
    (Thought, "Thought", {"content": "hm", "confidence": 0.5}),
    (ErrorTrace, "Error", {"error_type": "Io", "message": "disk full", "recoverable": True}),
    (Custom, "deploy", {"name": "deploy", "data": b"\x00"}),
]
KIND_IDS = [kind.__name__ for kind, _, _ in KINDS]


@pytest.fixture
def crew() -> Iterator[Crew]:
    found = Crew()
    yield found
    found.disband()


# -- kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "fields"), KINDS, ids=KIND_IDS)
def test_type_name_is_the_page_s_or_a_custom_s_own(
    kind: type[Any], name: str, fields: dict[str, Any]
) -> None:
    """Story 185: type_name() returns correct names."""
    assert kind(**fields).type_name() == name


@pytest.mark.parametrize(("kind", "name", "fields"), KINDS, ids=KIND_IDS)
def test_a_kind_comes_back_equal_from_pickle_copy_and_repr(
    kind: type[Any], name: str, fields: dict[str, Any]
) -> None:
    """Story 185: TraceType variants serialize/deserialize."""
    one = kind(**fields)
    for other in (
        pickle.loads(pickle.dumps(one)),
        copy.copy(one),
        copy.deepcopy(one),
        dataclasses.replace(one),
        eval(repr(one), {kind.__name__: kind}),
    ):
        assert other == one
        assert type(other) is kind
        assert {key: getattr(other, key) for key in fields} == fields


@pytest.mark.parametrize(("kind", "name", "fields"), KINDS, ids=KIND_IDS)
def test_a_kind_is_made_by_position_too_and_is_frozen_and_slotted(
    kind: type[Any], name: str, fields: dict[str, Any]
) -> None:
    one = kind(*fields.values())
    assert one == kind(**fields)
    assert kind.__match_args__ == tuple(fields)
    assert not hasattr(one, "__dict__")
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field, None)
    with pytest.raises((AttributeError, TypeError)):
        one.unknown = 1


def test_kinds_are_reached_from_the_base_and_differ_from_each_other() -> None:
    assert TraceType.ToolCall is ToolCall
    assert TraceType.Decision is Decision
    assert TraceType.Query is Query
    assert TraceType.Thought is Thought
    assert TraceType.Error is ErrorTrace
    assert TraceType.Custom is Custom
    assert all(issubclass(kind, TraceType) for kind, _, _ in KINDS)
    made = [kind(**fields) for kind, _, fields in KINDS]
    assert [a == b for a in made for b in made].count(True) == len(made)
    with pytest.raises(errors.WrongType, match="one of ToolCall, Decision"):
        TraceType()


def test_defaults_are_those_of_the_page() -> None:
    assert ToolCall("a") == ToolCall("a", None, None, None)
    assert Decision("a") == Decision("a", [], "", None)
    assert Query("a", "b").results_count is None
    assert Thought("a").confidence is None
    assert ErrorTrace("a", "b").recoverable is False
    assert Custom("a").data is None


def test_options_are_a_tuple_whatever_they_came_as() -> None:
    assert Decision("a", ["x", "y"]) == Decision("a", ("x", "y"))
    assert hash(Decision("a", ["x"])) == hash(Decision("a", ("x",)))


class Word(str):
    """A str that is none, to the engine."""


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ToolCall(5), "ToolCall.tool_name"),  # type: ignore[arg-type]
        (lambda: ToolCall(Word("a")), "ToolCall.tool_name"),
        (lambda: ToolCall("a", (1,)), "ToolCall.arguments"),
        (lambda: ToolCall("a", {"x": [{1: 2}]}), "ToolCall.arguments"),
        (lambda: ToolCall("a", None, {1, 2}), "ToolCall.result"),
        (lambda: ToolCall("a", duration_ms=True), "ToolCall.duration_ms"),
        (lambda: ToolCall("a", duration_ms=1.0), "ToolCall.duration_ms"),  # type: ignore[arg-type]
        (lambda: Decision(None), "Decision.question"),  # type: ignore[arg-type]
        (lambda: Decision("a", "xy"), "Decision.options"),
        (lambda: Decision("a", {"x"}), "Decision.options"),  # type: ignore[arg-type]
        (lambda: Decision("a", ["x", 1]), r"Decision.options\[1\]"),  # type: ignore[list-item]
        (lambda: Decision("a", chosen=None), "Decision.chosen"),  # type: ignore[arg-type]
        (lambda: Decision("a", reasoning=b"x"), "Decision.reasoning"),  # type: ignore[arg-type]
        (lambda: Query(None, "b"), "Query.query_type"),  # type: ignore[arg-type]
        (lambda: Query("a", ["b"]), "Query.query"),  # type: ignore[arg-type]
        (lambda: Query("a", "b", "3"), "Query.results_count"),  # type: ignore[arg-type]
        (lambda: Query("a", "b", False), "Query.results_count"),
        (lambda: Thought(b"a"), "Thought.content"),  # type: ignore[arg-type]
        (lambda: Thought("a", True), "Thought.confidence"),
        (lambda: Thought("a", "0.5"), "Thought.confidence"),  # type: ignore[arg-type]
        (lambda: ErrorTrace(1, "b"), "ErrorTrace.error_type"),  # type: ignore[arg-type]
        (lambda: ErrorTrace("a", None), "ErrorTrace.message"),  # type: ignore[arg-type]
        (lambda: ErrorTrace("a", "b", 1), "ErrorTrace.recoverable"),  # type: ignore[arg-type]
        (lambda: Custom(None), "Custom.name"),  # type: ignore[arg-type]
        (lambda: Custom("a", object()), "Custom.data"),
    ],
)
def test_a_wrong_type_is_refused_and_its_field_named(
    make: Callable[[], TraceType], field: str
) -> None:
    with pytest.raises(errors.WrongType, match=f"^{field}") as caught:
        make()
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ToolCall("a", duration_ms=-1), "ToolCall.duration_ms"),
        (lambda: ToolCall("a", duration_ms=MAX + 1), "ToolCall.duration_ms"),
        (lambda: ToolCall("a", 2**63), "ToolCall.arguments"),
        (lambda: Query("a", "b", -1), "Query.results_count"),
        (lambda: Query("a", "b", 10**5000), "Query.results_count"),
        (lambda: Thought("a", 2**64), "Thought.confidence"),
    ],
)
def test_a_number_beyond_its_bounds_is_refused_and_its_field_named(
    make: Callable[[], TraceType], field: str
) -> None:
    with pytest.raises(errors.ConstraintViolation, match=f"^{field}"):
        make()


def test_numbers_at_their_bounds_are_taken_and_not_converted() -> None:
    assert ToolCall("a", duration_ms=MAX).duration_ms == MAX
    assert Query("a", "b", 0).results_count == 0
    confidence = Thought("a", 1).confidence
    assert (confidence, type(confidence)) == (1, int)
    assert Thought("a", float("inf")).confidence == float("inf")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 257, "ä" * 129, "\ud800", "y" * 60 + "\0"])
def test_a_custom_name_that_breaks_the_rules_is_an_invalid_key(name: str) -> None:
    with pytest.raises(errors.InvalidKey, match=r"^Custom\.name"):
        Custom(name)


@pytest.mark.parametrize("name", ["x", "x" * 256, "ä" * 128, " ", "_strata/x", "a/b"])
def test_a_custom_name_within_the_rules_is_taken(name: str) -> None:
    assert Custom(name).type_name() == name


def test_every_name_is_exported() -> None:
    for name in ("TraceStore", "Trace", "TraceTree", "TraceType", "TraceOptions", *KIND_IDS):
        assert name in shm_engine.__all__
        assert getattr(shm_engine, name).__name__ == name


# -- ids --------------------------------------------------------------------------------------


def test_an_id_is_a_uuid_of_version_7_with_the_time_at_its_head() -> None:
    before = time.time_ns() // 10**6
    made = trace_ids.new_uuid()
    after = time.time_ns() // 10**6
    text = trace_ids.text_of(made)
    found = uuid.UUID(text.removeprefix("trace-"))
    assert (found.bytes, found.version, found.variant) == (made, 7, uuid.RFC_4122)
    assert before <= trace_ids.time_of(made) <= after
    assert trace_ids.time_of(made) == int.from_bytes(made[:6], "big")
    assert trace_ids.parse_id(text) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "trace-",
        "0190163d-8694-739b-aea5-966c26f8ad91",
        "trace-0190163D-8694-739b-aea5-966c26f8ad91",
        "trace-0190163d-8694-439b-aea5-966c26f8ad91",
        "trace-0190163d-8694-739b-cea5-966c26f8ad91",
        "trace-0190163d-8694-739b-aea5-966c26f8ad9",
        "trace-0190163d-8694-739b-aea5-966c26f8ad91\n",
        "trace-0190163d-8694-739b-aea5966c26f8ad91--",
        "trace-\u0660190163d-8694-739b-aea5-966c26f8ad91",
    ],
    ids=label,
)
def test_what_is_not_quite_an_id_is_none(text: str) -> None:
    assert trace_ids.parse_id(text) is None


def test_ids_rise_in_the_order_in_which_they_are_made() -> None:
    made = [trace_ids.new_uuid() for _ in range(20_000)]
    assert made == sorted(set(made))
    texts = [trace_ids.text_of(one) for one in made]
    assert texts == sorted(set(texts))


def test_ids_rise_even_when_the_clock_is_set_back() -> None:
    ahead_us = time.time_ns() // 1000 + 3_600_000_000
    set_last_moment(ahead_us)
    try:
        made = [trace_ids.new_uuid() for _ in range(5_000)]
    finally:
        set_last_moment(0)
    assert made == sorted(set(made))
    assert {trace_ids.time_of(one) for one in made} <= {
        ahead_us // 1000 + step for step in (0, 1, 2)
    }
    assert trace_ids.time_of(trace_ids.new_uuid()) < ahead_us // 1000


def test_ids_of_all_threads_differ_and_rise_within_each() -> None:
    made = in_threads(4, lambda _: [trace_ids.new_uuid() for _ in range(5_000)])
    for one in made:
        assert one == sorted(one)
    together = [one for several in made for one in several]
    assert len(set(together)) == len(together)
    assert len({one[:8] for one in together}) == len(together)


def test_random_bits_are_never_used_twice_and_spread_over_all_of_them() -> None:
    tails = [trace_ids.new_uuid()[8:] for _ in range(5_000)]
    assert len(set(tails)) == len(tails)
    numbers = [int.from_bytes(tail, "big") for tail in tails]
    for bit in range(62):
        ones = sum(number >> bit & 1 for number in numbers)
        assert 2_000 < ones < 3_000, f"bit {bit} is set {ones} times of 5,000"
    assert {number >> 62 for number in numbers} == {0b10}


def test_a_user_s_seed_makes_no_id_come_again() -> None:
    tails = []
    for _ in range(2):
        random.seed(1)
        tails += [trace_ids.new_uuid()[8:] for _ in range(100)]
    assert len(set(tails)) == 200


def tell_ids(channel: Channel, count: int) -> None:
    channel.send([trace_ids.new_uuid() for _ in range(count)])


def test_forked_children_do_not_repeat_the_random_bits_of_their_parent(crew: Crew) -> None:
    """The parent has bits in store that the children inherit."""
    made = [trace_ids.new_uuid()]
    workers = [crew.start(tell_ids, 1_000) for _ in range(3)]
    made += [trace_ids.new_uuid() for _ in range(1_000)]
    for worker in workers:
        made += worker.receive()
        worker.join()
    assert len({one[8:] for one in made}) == len(made) == 4_001


def test_a_signal_handler_makes_ids_while_its_thread_makes_one() -> None:
    """Each signal is asked for when the one before has been dealt with, so handlers hardly nest."""
    made: list[bytes] = []

    def handler(*_: object) -> None:
        made.append(trace_ids.new_uuid())
        signal.setitimer(signal.ITIMER_REAL, 0.0002)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        own = [trace_ids.new_uuid() for _ in range(30_000)]
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert made
    assert own == sorted(own)
    assert len({*own, *made}) == len(own) + len(made)


# -- traces and trees -------------------------------------------------------------------------


def trace(number: int, parent: int | None = None) -> Trace:
    above = None if parent is None else f"t{parent}"
    return Trace(f"t{number}", above, Thought(f"{number}"), number, ["tag"], {"n": number})


def chain(depth: int) -> TraceTree:
    tree = TraceTree(trace(depth))
    for number in range(depth - 1, 0, -1):
        tree = TraceTree(trace(number), [tree])
    return tree


def wide() -> TraceTree:
    return TraceTree(
        trace(1),
        [TraceTree(trace(2, 1), [TraceTree(trace(3, 2)), TraceTree(trace(4, 2))]), chain(3)],
    )


def test_a_trace_is_a_tuple_with_names_and_comes_back_from_pickle() -> None:
    """Story 185: Trace struct serializes/deserializes."""
    one = trace(1, 0)
    assert one._fields == ("id", "parent_id", "trace_type", "timestamp", "tags", "metadata")
    assert tuple(one) == ("t1", "t0", Thought("1"), 1, ["tag"], {"n": 1})
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_options_are_frozen_and_have_defaults() -> None:
    assert TraceOptions() == TraceOptions(None, None, (), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TraceOptions().id = "x"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(TraceOptions("a", "b", ["c"], 1))).tags == ["c"]


def test_a_tree_is_walked_from_the_top_and_counts_its_traces() -> None:
    tree = wide()
    assert tree.root is tree.trace
    assert [(depth, one.id) for depth, one in tree.walk()] == [
        (0, "t1"),
        (1, "t2"),
        (2, "t3"),
        (2, "t4"),
        (1, "t1"),
        (2, "t2"),
        (3, "t3"),
    ]
    assert len(tree) == 7
    assert bool(TraceTree(trace(1)))
    assert repr(tree) == "<TraceTree t1, 7 traces>"


def test_trees_are_equal_if_all_in_them_is() -> None:
    assert wide() == wide()
    assert wide() != chain(3)
    assert wide() != "tree"
    shorter = wide()
    shorter.children[0].children.pop()
    assert shorter != wide()
    other = wide()
    other.children[0].children[1].trace = trace(9)
    assert other != wide()
    moved = wide()
    moved.children.append(moved.children[0].children.pop())
    assert len(moved) == len(wide())
    assert moved != wide()
    with pytest.raises(TypeError):
        hash(wide())


def test_trees_come_back_from_pickle_and_copy() -> None:
    tree = wide()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(tree, protocol)) == tree
    assert copy.deepcopy(tree) == tree == copy.copy(tree)
    assert copy.deepcopy(tree).children[0] is not tree.children[0]


def test_a_tree_100_000_deep_is_compared_shown_pickled_and_deleted() -> None:
    tree = chain(DEEP)
    assert len(tree) == DEEP
    assert repr(tree) == f"<TraceTree t1, {DEEP} traces>"
    again = pickle.loads(pickle.dumps(tree))
    assert again == tree
    deepest = max(depth for depth, _ in tree.walk())
    assert deepest == DEEP - 1
    del tree
    again.children.clear()
    assert len(again) == 1
    deep = chain(5_000)
    assert copy.deepcopy(deep) == deep


def give_back(channel: Channel) -> None:
    channel.send((os.getpid(), channel.receive()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_traces_and_trees_go_to_other_processes_and_back(crew: Crew, method: Any) -> None:
    worker = crew.start(give_back, method=method)
    sent = (wide(), trace(1), [kind(**fields) for kind, _, fields in KINDS], chain(2_000))
    worker.send(sent)
    pid, found = worker.receive()
    worker.join()
    assert pid != os.getpid()
    assert found == sent
