"""test_transaction_traces.py - traces in a transaction: with all its writes, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from shm_engine import (
    Custom,
    Database,
    EventLog,
    KVStore,
    RunId,
    RunIndex,
    RunStatus,
    StateCell,
    Thought,
    ToolCall,
    TraceStore,
    Transaction,
    errors,
    keys,
)
from tests.harness.index import reach
from tests.harness.refusal import refused
from tests.harness.traced import ALL_KINDS, TAG, UNKNOWN, ids, now_ms, stored

RUN = RunId.DEFAULT
THOUGHT = Thought("hm")
Call = Callable[[Transaction], Any]


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral(map_size=16 << 20) as opened:
        yield opened
        assert opened.metrics().snapshots == 0


@pytest.fixture
def traces(db: Database) -> TraceStore:
    return TraceStore(db)


def whole(traces: TraceStore, run: RunId = RUN) -> tuple[int, list[str]]:
    """The counter and all ids; every key belongs to one of these traces or is the counter."""
    found = traces.list(run)
    count = traces.count(run)
    assert count == len(found)
    expected = 1 if found else 0
    for trace in found:
        expected += 3 + len(trace.tags)  # the record, its type, its parent or none, its tags
        assert trace in traces.query_by_type(run, trace.trace_type)
        for tag in trace.tags:
            assert trace in traces.query_by_tag(run, tag)
        if trace.parent_id is None:
            assert trace in traces.get_roots(run)
        else:
            assert trace in traces.get_children(run, trace.parent_id)
    assert len(stored(traces, run)) == expected
    return count, ids(found)


# -- recording --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.type_name())
def test_a_trace_of_every_kind_is_there_after_the_commit_and_not_before(
    kind: Any, db: Database, traces: TraceStore
) -> None:
    before = now_ms()
    with db.begin(RUN) as txn:
        trace_id = txn.trace_record(kind, {"n": 1}, ["a", "b", "a"])
        assert traces.get(RUN, trace_id) is None
        assert whole(traces) == (0, [])
    found = traces.get(RUN, trace_id)
    assert found is not None
    assert (found.id, found.parent_id, found.trace_type) == (trace_id, None, kind)
    assert (found.tags, found.metadata) == (["a", "b"], {"n": 1})
    assert before <= found.timestamp <= now_ms()
    assert whole(traces) == (1, [trace_id])


def test_a_str_is_the_name_of_a_custom_type(db: Database, traces: TraceStore) -> None:
    with db.begin(RUN) as txn:
        top = txn.trace_record("operation", None)
        below = txn.trace_record_child(top, "step", [1])
    assert [trace.trace_type for trace in traces.list(RUN)] == [Custom("operation"), Custom("step")]
    assert ids(traces.query_by_type(RUN, "step")) == [below]


@pytest.mark.parametrize("given", [["a"], ("a",), {"a": 1}, iter(["a"])], ids=type)
def test_tags_come_as_any_iterable(given: Any, db: Database, traces: TraceStore) -> None:
    with db.begin(RUN) as txn:
        trace_id = txn.trace_record(THOUGHT, tags=given)
    assert ids(traces.query_by_tag(RUN, "a")) == [trace_id]


def test_a_trace_is_below_one_of_the_same_transaction(db: Database, traces: TraceStore) -> None:
    with db.begin(RUN) as txn:
        top = txn.trace_record(THOUGHT)
        middle = txn.trace_record_child(top, THOUGHT)
        bottom = txn.trace_record_child(middle, THOUGHT, tags=["deep"])
        other = txn.trace_record_child(top, THOUGHT)
    tree = traces.get_tree(RUN, top)
    assert tree is not None
    walked = [(depth, trace.id) for depth, trace in tree.walk()]
    assert walked == [(0, top), (1, middle), (2, bottom), (1, other)]
    assert whole(traces) == (4, [top, middle, bottom, other])


@pytest.mark.parametrize("own_id", [None, "mine"])
def test_a_trace_is_below_one_that_was_there(
    own_id: str | None, db: Database, traces: TraceStore
) -> None:
    top = traces.record_with_options(RUN, THOUGHT, id=own_id)
    with db.begin(RUN) as txn:
        below = [txn.trace_record_child(top, THOUGHT) for _ in range(2)]
    assert ids(traces.get_children(RUN, top)) == below
    assert traces.count(RUN) == 3


def test_the_count_is_right_after_a_commit_of_several(db: Database, traces: TraceStore) -> None:
    traces.record(RUN, THOUGHT)
    with db.begin(RUN) as txn:
        for number in range(50):
            txn.trace_record(Custom("n", number), tags=[f"tag {number % 3}"])
        assert traces.count(RUN) == 1
    count, found = whole(traces)
    assert (count, len(found)) == (51, 51)
    assert len(traces.query_by_tag(RUN, "tag 0")) == 17


def test_transactions_that_only_record_never_conflict(db: Database, traces: TraceStore) -> None:
    top = traces.record(RUN, THOUGHT)
    first, second = db.begin(RUN), db.begin(RUN)
    found = [top]
    for txn in (first, second):
        found += [txn.trace_record(THOUGHT), txn.trace_record_child(top, THOUGHT)]
    found.append(traces.record(RUN, THOUGHT))
    second.commit()
    first.commit()
    assert whole(traces) == (6, found)


def test_a_trace_shares_its_commit_with_every_other_primitive(db: Database) -> None:
    before = db.metrics().transactions_committed
    with db.begin(RUN) as txn:
        txn.kv_put("key", 1)
        txn.event_append("t", 1)
        txn.state_set("cell", 1)
        txn.trace_record("operation")
    assert db.metrics().transactions_committed == before + 1


# -- parents that are not there ---------------------------------------------------------------


def test_a_parent_that_the_transaction_does_not_see_is_not_found(
    db: Database, traces: TraceStore
) -> None:
    """The transaction goes on, and holds nothing of the trace."""
    elsewhere = traces.record(RunId.new(), THOUGHT)
    with db.begin(RUN) as txn:
        kept = txn.trace_record(THOUGHT)
        later = traces.record(RUN, THOUGHT)
        for parent in (UNKNOWN, elsewhere, later, "", "mine"):
            with pytest.raises(errors.NotFound):
                txn.trace_record_child(parent, THOUGHT, tags=["lost"])
    assert whole(traces) == (2, [kept, later])
    assert traces.query_by_tag(RUN, "lost") == []


@pytest.mark.parametrize("parent", [None, 1, b"x", ["x"]])
def test_a_parent_that_is_no_str_is_a_wrong_type(
    parent: Any, db: Database, traces: TraceStore
) -> None:
    with db.begin(RUN) as txn:
        kept = txn.trace_record(THOUGHT)
        with pytest.raises(errors.WrongType):
            txn.trace_record_child(parent, THOUGHT)
    assert whole(traces) == (1, [kept])


def test_a_parent_that_has_gone_by_the_commit_is_a_conflict(
    db: Database, traces: TraceStore
) -> None:
    top = traces.record(RUN, THOUGHT)
    record = next(name for name in stored(traces) if name.startswith(keys.ENTRY))
    before = stored(traces).keys()
    txn = db.begin(RUN)
    txn.trace_record_child(top, THOUGHT)
    txn.kv_put("key", 1)
    db.engine.delete(RUN, TAG, record)
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    assert not txn.is_active
    assert stored(traces).keys() == before - {record}
    assert not KVStore(db).exists(RUN, "key")


def test_a_run_that_was_deleted_with_the_parent_refuses_the_commit(
    db: Database, traces: TraceStore
) -> None:
    """The transaction's own snapshot keeps the run from being begun anew under the same id."""
    run = db.begin_run()
    top = traces.record(run, THOUGHT)
    txn = db.begin(run)
    txn.trace_record_child(top, THOUGHT)
    RunIndex(db).delete_run(run)
    with pytest.raises(errors.RunError):
        txn.commit()
    assert traces.count(run) == 0
    assert traces.list(run) == []


# -- nothing of what was rolled back ----------------------------------------------------------


def some(txn: Transaction) -> str:
    top = txn.trace_record(THOUGHT, tags=["a"])
    return txn.trace_record_child(top, ToolCall("t"), {"n": 1}, ["b"])


def test_nothing_is_there_after_a_rollback(db: Database, traces: TraceStore) -> None:
    txn = db.begin(RUN)
    trace_id = some(txn)
    txn.rollback()
    assert not traces.exists(RUN, trace_id)
    assert stored(traces) == {}


def test_nothing_is_there_after_an_exception(db: Database, traces: TraceStore) -> None:
    def work(txn: Transaction) -> None:
        some(txn)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.transaction(RUN, work)
    assert stored(traces) == {}


def test_nothing_is_there_after_a_conflict(db: Database, traces: TraceStore) -> None:
    txn = db.begin(RUN)
    assert txn.kv_get("key") is None
    some(txn)
    KVStore(db).put(RUN, "key", 1)
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    assert stored(traces) == {}


def test_nothing_is_there_after_a_stale_cas(db: Database, traces: TraceStore) -> None:
    StateCell(db).init(RUN, "cell", 1)
    txn = db.begin(RUN)
    some(txn)
    with pytest.raises(errors.VersionMismatch):
        txn.state_cas("cell", 7, 2)
    assert not txn.is_active
    assert stored(traces) == {}


def test_a_conflict_is_tried_again_and_recorded_once(db: Database, traces: TraceStore) -> None:
    log, tries = EventLog(db), []

    def work(txn: Transaction) -> str:
        tries.append(txn.event_append("t", None))
        if len(tries) == 1:
            log.append(RUN, "other", None)
        return some(txn)

    last = db.transaction(RUN, work, max_retries=1)
    assert tries == [0, 1]
    assert traces.exists(RUN, last)
    assert whole(traces)[0] == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda txn: txn.trace_record("late"),
        lambda txn: txn.trace_record_child(UNKNOWN, "late"),
    ],
    ids=["trace_record", "trace_record_child"],
)
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_finished_transaction_records_nothing(
    ending: str, call: Call, db: Database, traces: TraceStore
) -> None:
    txn = db.begin(RUN)
    getattr(txn, ending)()
    with pytest.raises(errors.InvalidState):
        call(txn)
    assert stored(traces) == {}


# -- errors in the middle ---------------------------------------------------------------------


BAD: dict[str, tuple[type[errors.Error], dict[str, Any]]] = {
    "no type": (errors.WrongType, {"trace_type": 1}),
    "none": (errors.WrongType, {"trace_type": None}),
    "a class": (errors.WrongType, {"trace_type": Thought}),
    "an empty name": (errors.InvalidKey, {"trace_type": ""}),
    "a long name": (errors.InvalidKey, {"trace_type": "x" * 257}),
    "NUL in a name": (errors.InvalidKey, {"trace_type": "a\0b"}),
    "a surrogate": (errors.InvalidKey, {"trace_type": "\ud800"}),
    "metadata": (errors.WrongType, {"metadata": {"a": {1, 2}}}),
    "deep within": (errors.WrongType, {"metadata": ["x" * 100_000, object()]}),
    "an int too large": (errors.ConstraintViolation, {"metadata": 2**64}),
    "metadata's text": (errors.SerializationError, {"metadata": "\ud800"}),
    "too large": (errors.ConstraintViolation, {"metadata": bytes((16 << 20) + 1)}),
    "one str for tags": (errors.WrongType, {"tags": "abc"}),
    "no tags": (errors.WrongType, {"tags": 3}),
    "a tag": (errors.WrongType, {"tags": ["fine", 3]}),
    "an empty tag": (errors.InvalidKey, {"tags": ["fine", ""]}),
}


@pytest.mark.parametrize("below", ["a root", "below an own one", "below a stored one"])
@pytest.mark.parametrize("what", BAD)
def test_a_caught_error_leaves_no_half_trace_in_the_transaction(
    what: str, below: str, db: Database, traces: TraceStore
) -> None:
    """The rest commits, with the indexes and the counter of just that."""
    kind, wrong = BAD[what]
    stored_top = traces.record(RUN, THOUGHT)
    arguments = {"trace_type": THOUGHT, "metadata": None, "tags": ["lost"], **wrong}
    with db.begin(RUN) as txn:
        own_top = txn.trace_record(THOUGHT, tags=["kept"])
        record: Callable[..., str] = txn.trace_record
        if below != "a root":
            parent = own_top if below == "below an own one" else stored_top
            record = partial(txn.trace_record_child, parent)
        with pytest.raises(kind) as caught:
            record(**arguments)
        assert type(caught.value) is kind
        assert txn.is_active
        txn.kv_put("key", 1)
        last = txn.trace_record_child(own_top, THOUGHT)
    assert whole(traces) == (3, [stored_top, own_top, last])
    assert traces.query_by_tag(RUN, "lost") == traces.query_by_tag(RUN, "fine") == []
    assert ids(traces.get_children(RUN, own_top)) == [last]
    assert KVStore(db).get(RUN, "key") == 1


@pytest.mark.parametrize("what", BAD)
def test_a_transaction_of_which_every_call_failed_writes_nothing(
    what: str, db: Database, traces: TraceStore
) -> None:
    kind, wrong = BAD[what]
    before = db.metrics()
    with db.begin(RUN) as txn:
        with pytest.raises(kind):
            txn.trace_record(**{"trace_type": THOUGHT, **wrong})
        assert txn.is_active
    after = db.metrics()
    assert (after.version, after.transactions_committed) == (
        before.version,
        before.transactions_committed,
    )
    assert stored(traces) == {}


def test_a_failed_child_of_a_stored_trace_makes_no_commit(db: Database, traces: TraceStore) -> None:
    """A transaction without writes commits nothing, and does so in a run that takes none."""
    run = db.begin_run()
    top = traces.record(run, THOUGHT)
    db.end_run(run)
    before = db.metrics().transactions_committed
    with db.begin(run) as txn, pytest.raises(errors.WrongType):
        txn.trace_record_child(top, THOUGHT, object())
    assert db.metrics().transactions_committed == before


def test_an_error_of_the_callers_own_iterable_comes_through(
    db: Database, traces: TraceStore
) -> None:
    def broken() -> Iterator[str]:
        yield "lost"
        raise ZeroDivisionError

    with db.begin(RUN) as txn:
        kept = txn.trace_record(THOUGHT)
        with pytest.raises(ZeroDivisionError):
            txn.trace_record(THOUGHT, tags=broken())
    assert whole(traces) == (1, [kept])


def test_what_changes_after_the_call_changes_nothing(db: Database, traces: TraceStore) -> None:
    metadata, tags = {"n": 1}, ["a"]
    with db.begin(RUN) as txn:
        trace_id = txn.trace_record(THOUGHT, metadata, tags)
        metadata["n"] = 2
        tags.append("b")
    found = traces.get(RUN, trace_id)
    assert found is not None
    assert (found.metadata, found.tags) == ({"n": 1}, ["a"])


# -- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [one for one in RunStatus if one is not RunStatus.ACTIVE])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_run_that_is_not_active_refuses_the_commit(
    when: str, status: RunStatus, db: Database, traces: TraceStore
) -> None:
    run = db.begin_run()
    top = traces.record(run, THOUGHT)
    if when == "before":
        reach(RunIndex(db), run, status)
    txn = db.begin(run)
    txn.trace_record(THOUGHT)
    txn.trace_record_child(top, THOUGHT)
    if when == "meanwhile":
        reach(RunIndex(db), run, status)
    with pytest.raises(errors.RunError) as caught:
        txn.commit()
    assert caught.value.run == str(run)
    assert whole(traces, run) == (1, [top])


def test_a_run_that_was_paused_and_resumed_takes_the_commit(
    db: Database, traces: TraceStore
) -> None:
    run = db.begin_run()
    index = RunIndex(db)
    with db.begin(run) as txn:
        trace_id = txn.trace_record(THOUGHT)
        index.pause_run(run)
        index.resume_run(run)
    assert whole(traces, run) == (1, [trace_id])


def test_an_unknown_parent_is_refused_and_the_database_stays_as_it_was(db: Database) -> None:
    with refused(db, errors.NotFound):
        db.transaction(RUN, lambda txn: txn.trace_record_child(UNKNOWN, "step"))
