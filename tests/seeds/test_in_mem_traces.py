"""test_in_mem_traces.py - the TraceStore examples of the in-mem page, typed line by line.

Why:        who comes from that page should be able to type what it shows, in Python form: the
            variants of TraceType are called, an option that is absent is left out.
Used by:    nothing else; each test is one example or one method, in the order of the page
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from shm_engine import Database, RunId, Trace, TraceStore, TraceTree, TraceType, errors


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def trace(db: Database) -> TraceStore:
    return TraceStore(db)


@pytest.fixture
def run_id(db: Database) -> RunId:
    return db.begin_run()


def thought(text: str) -> TraceType:
    return TraceType.Thought(content=text)


# -- types ------------------------------------------------------------------------------------


def test_the_variants_of_a_trace_type_and_their_fields(trace: TraceStore, run_id: RunId) -> None:
    variants: dict[str, TraceType] = {
        "ToolCall": TraceType.ToolCall(
            tool_name="search", arguments="query", result=[], duration_ms=150
        ),
        "Decision": TraceType.Decision(
            question="Which?", options=["a", "b"], chosen="a", reasoning="cheaper"
        ),
        "Query": TraceType.Query(query_type="vector", query="cats", results_count=3),
        "Thought": TraceType.Thought(content="hm", confidence=0.5),
        "Error": TraceType.Error(error_type="Timeout", message="too slow", recoverable=True),
        "Custom": TraceType.Custom(name="Custom", data={"n": 1}),
    }
    for name, variant in variants.items():
        trace_id = trace.record(run_id, variant, [], None)
        found = trace.get(run_id, trace_id)
        assert found is not None
        assert found.trace_type == variant
        assert [each.id for each in trace.query_by_type(run_id, name)] == [trace_id]


def test_what_is_optional_may_be_absent(trace: TraceStore, run_id: RunId) -> None:
    variants: list[TraceType] = [
        TraceType.ToolCall(tool_name="search", arguments="query", result=None, duration_ms=None),
        TraceType.Decision(question="Which?", options=[], chosen="a", reasoning=None),
        TraceType.Query(query_type="vector", query="cats", results_count=None),
        TraceType.Thought(content="hm", confidence=None),
    ]
    for variant in variants:
        found = trace.get(run_id, trace.record(run_id, variant, [], None))
        assert found is not None
        assert found.trace_type == variant


def test_the_fields_of_a_trace(trace: TraceStore, run_id: RunId) -> None:
    parent = trace.record(run_id, thought("first"), [], None)
    trace_id = trace.record_child(run_id, parent, thought("then"), ["tag"], {"n": 1})
    found = trace.get(run_id, trace_id)
    assert isinstance(found, Trace)
    assert found.id == trace_id
    assert found.id.startswith("trace-")
    assert len(found.id) == len("trace-") + 36
    assert found.parent_id == parent
    assert found.trace_type == thought("then")
    assert abs(found.timestamp - time.time_ns() // 1_000_000) < 10_000
    assert found.tags == ["tag"]
    assert found.metadata == {"n": 1}


# -- recording --------------------------------------------------------------------------------


def test_record(trace: TraceStore, run_id: RunId) -> None:
    trace_id = trace.record(
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
    found = trace.get(run_id, trace_id)
    assert found is not None
    assert found.tags == ["search", "external-api"]
    assert found.parent_id is None
    assert found.metadata is None


def test_record_child(trace: TraceStore, run_id: RunId) -> None:
    parent = trace.record(
        run_id, TraceType.Decision(question="Which?", options=["a"], chosen="a"), [], None
    )
    child = trace.record_child(
        run_id, parent, TraceType.ToolCall(tool_name="a", arguments=None), [], None
    )
    found = trace.get(run_id, child)
    assert found is not None
    assert found.parent_id == parent
    with pytest.raises(errors.NotFound):
        trace.record_child(run_id, "missing", thought("lost"), [], None)


# -- reading ----------------------------------------------------------------------------------


def test_get_and_exists(trace: TraceStore, run_id: RunId) -> None:
    trace_id = trace.record(run_id, thought("hm"), [], None)
    assert trace.exists(run_id, trace_id)
    assert trace.get(run_id, trace_id) is not None
    assert not trace.exists(run_id, "missing")
    assert trace.get(run_id, "missing") is None


def test_list_and_count(trace: TraceStore, run_id: RunId) -> None:
    assert (trace.list(run_id), trace.count(run_id)) == ([], 0)
    recorded = [trace.record(run_id, thought(text), [], None) for text in "abc"]
    assert [each.id for each in trace.list(run_id)] == recorded
    assert trace.count(run_id) == 3


# -- queries ----------------------------------------------------------------------------------


def test_query_by_type(trace: TraceStore, run_id: RunId) -> None:
    trace.record(run_id, thought("hm"), [], None)
    call = TraceType.ToolCall(tool_name="search", arguments=None)
    recorded = [trace.record(run_id, call, [], None) for _ in range(2)]
    tool_calls = trace.query_by_type(run_id, "ToolCall")
    assert [each.id for each in tool_calls] == recorded
    assert trace.query_by_type(run_id, "Decision") == []


def test_query_by_tag(trace: TraceStore, run_id: RunId) -> None:
    first = trace.record(run_id, thought("a"), ["search", "slow"], None)
    second = trace.record(run_id, thought("b"), ["search"], None)
    assert [each.id for each in trace.query_by_tag(run_id, "search")] == [first, second]
    assert [each.id for each in trace.query_by_tag(run_id, "slow")] == [first]
    assert trace.query_by_tag(run_id, "fast") == []


def test_query_by_time(trace: TraceStore, run_id: RunId) -> None:
    found = trace.get(run_id, trace.record(run_id, thought("hm"), [], None))
    assert found is not None
    start_ms = found.timestamp
    assert trace.query_by_time(run_id, start_ms, start_ms + 1) == [found]
    assert trace.query_by_time(run_id, start_ms + 1, start_ms + 2) == []
    assert trace.query_by_time(run_id, start_ms - 1, start_ms) == []


def test_get_children(trace: TraceStore, run_id: RunId) -> None:
    parent = trace.record(run_id, thought("top"), [], None)
    children = [trace.record_child(run_id, parent, thought(text), [], None) for text in "ab"]
    trace.record_child(run_id, children[0], thought("below"), [], None)
    assert [each.id for each in trace.get_children(run_id, parent)] == children
    assert trace.get_children(run_id, children[1]) == []


# -- trees ------------------------------------------------------------------------------------


def test_get_tree(trace: TraceStore, run_id: RunId) -> None:
    root_trace_id = trace.record(run_id, thought("top"), [], None)
    child = trace.record_child(run_id, root_trace_id, thought("middle"), [], None)
    grandchild = trace.record_child(run_id, child, thought("bottom"), [], None)
    printed: list[str] = []

    def print_tree(tree: TraceTree, depth: int) -> None:
        printed.append(f"{'  ' * depth}{tree.trace.id}")
        for child in tree.children:
            print_tree(child, depth + 1)

    if (tree := trace.get_tree(run_id, root_trace_id)) is not None:
        print_tree(tree, 0)
    assert printed == [root_trace_id, f"  {child}", f"    {grandchild}"]
    assert trace.get_tree(run_id, "missing") is None


def test_get_roots(trace: TraceStore, run_id: RunId) -> None:
    roots = [trace.record(run_id, thought(text), [], None) for text in "ab"]
    trace.record_child(run_id, roots[0], thought("below"), [], None)
    assert [each.id for each in trace.get_roots(run_id)] == roots


# -- transactions -----------------------------------------------------------------------------


def test_a_transaction_over_all_primitives(db: Database, trace: TraceStore, run_id: RunId) -> None:
    def work(txn):  # type: ignore[no-untyped-def]
        # KV operations
        txn.kv_put("key", "value")
        value = txn.kv_get("key")

        # Event operations
        seq = txn.event_append("my_event", None)

        # State operations
        txn.state_set("counter", 1)
        state = txn.state_read("counter")

        # Trace operations
        trace_id = txn.trace_record("operation", None)
        return value, seq, state, trace_id

    *others, trace_id = db.transaction(run_id, work)
    assert others == ["value", 0, 1]
    assert [each.id for each in trace.query_by_type(run_id, "operation")] == [trace_id]


def test_the_trace_methods_of_a_transaction(db: Database, trace: TraceStore, run_id: RunId) -> None:
    def work(txn):  # type: ignore[no-untyped-def]
        txn.kv_put("key", "value")
        trace_id = txn.trace_record("operation", None)
        return trace_id, txn.trace_record_child(trace_id, "step", {"n": 1})

    trace_id, child = db.transaction(run_id, work)
    assert [each.id for each in trace.query_by_type(run_id, "operation")] == [trace_id]
    assert [each.metadata for each in trace.get_children(run_id, trace_id)] == [{"n": 1}]
    assert trace.exists(run_id, child)
