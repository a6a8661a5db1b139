"""test_m3_plan_traces_runs.py - the in-mem plan, Epics 17 to 19, where traces and runs take part.

Why:        who has that plan in hand can tick it off here: each docstring names the story and its
            line. The depth is elsewhere; these are short. test_m3_plan.py has the rest.
Used by:    nothing else
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shm_engine import (
    ChainVerification,
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
)


@dataclass
class Faces:
    """The primitives over one database, and a run in it."""

    db: Database
    kv: KVStore
    log: EventLog
    cells: StateCell
    traces: TraceStore
    index: RunIndex
    run: RunId

    def held(self, run: RunId) -> tuple[int, int, int, int]:
        """How many keys, events, cells and traces the run has."""
        assert self.traces.count(run) == len(self.traces.list(run))
        return (
            len(self.kv.list(run)),
            self.log.len(run),
            len(self.cells.list(run)),
            self.traces.count(run),
        )

    def fill(self, run: RunId) -> str:
        """One of each in a run; the id of the trace."""
        self.kv.put(run, "key", 1)
        self.log.append(run, "event", 1)
        self.cells.init(run, "cell", 1)
        return self.traces.record(run, Thought("hm"), ["tag"])


def faces(db: Database) -> Faces:
    return Faces(
        db,
        KVStore(db),
        EventLog(db),
        StateCell(db),
        TraceStore(db),
        RunIndex(db),
        db.begin_run(),
    )


@pytest.fixture
def at() -> Iterator[Faces]:
    with Database.ephemeral(map_size=4 << 20) as db:
        yield faces(db)


def start_task(txn: Transaction) -> str:
    txn.kv_put("task/status", "running")
    txn.event_append("task_started", {"task_id": 1})
    txn.state_cas("workflow", 0, "step1")
    return txn.trace_record(Thought("Starting task"))


def fail_late(txn: Transaction) -> None:
    start_task(txn)
    raise ZeroDivisionError


# -- Epic 17: traces in a transaction ---------------------------------------------------------


def test_17_trace_record_in_a_transaction(at: Faces) -> None:
    """Story 190: trace_record() works in a transaction."""
    trace_id = at.db.transaction(at.run, lambda txn: txn.trace_record(ToolCall("search")))
    assert [trace.id for trace in at.traces.query_by_type(at.run, "ToolCall")] == [trace_id]
    assert at.traces.count(at.run) == 1


def test_17_trace_record_child_in_a_transaction(at: Faces) -> None:
    """Story 190: trace_record_child() works in a transaction, below a trace of the same one and
    below an older one; a parent that does not exist is NotFound."""
    older = at.traces.record(at.run, Thought("older"))
    with at.db.begin(at.run) as txn:
        top = txn.trace_record("top")
        below = [txn.trace_record_child(parent, "step") for parent in (top, older)]
        with pytest.raises(errors.NotFound):
            txn.trace_record_child("missing", "step")
    assert [trace.id for trace in at.traces.get_children(at.run, top)] == below[:1]
    assert [trace.id for trace in at.traces.get_children(at.run, older)] == below[1:]


def test_17_a_trace_and_a_key_are_written_together(at: Faces) -> None:
    """Story 190: cross-primitive atomicity (Trace + KV)."""
    with at.db.begin(at.run) as txn:
        txn.kv_put("last_trace", txn.trace_record("operation", {"n": 1}))
    found = at.traces.get(at.run, at.kv.get(at.run, "last_trace"))
    assert found is not None
    assert (found.trace_type, found.metadata) == (Custom("operation"), {"n": 1})


def test_17_neither_a_trace_nor_a_key_is_written_by_a_rollback(at: Faces) -> None:
    """Story 190: cross-primitive atomicity (Trace + KV)."""

    def work(txn: Transaction) -> None:
        txn.kv_put("last_trace", txn.trace_record("operation"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        at.db.transaction(at.run, work)
    assert at.held(at.run) == (0, 0, 0, 0)


# -- Epic 18: runs with all primitives --------------------------------------------------------


def test_18_full_run_lifecycle(at: Faces) -> None:
    """Story 196: create, use all primitives, complete, archive; all data stays accessible."""
    run = RunId.new()
    at.index.create_run(run)
    trace_id = at.fill(run)
    for change in (at.index.complete_run, at.index.archive_run):
        change(run)
        assert at.held(run) == (1, 1, 1, 1)
        assert at.traces.exists(run, trace_id)
        assert at.log.verify_chain(run) == ChainVerification(True, 1)
    found = at.index.get_run(run)
    assert found is not None
    assert found.status is RunStatus.ARCHIVED


def test_18_cascading_delete(at: Faces) -> None:
    """Story 196: delete_run() removes ALL data, and of that run alone."""
    other = at.db.begin_run()
    trace_id = at.fill(at.run)
    at.fill(other)
    at.index.delete_run(at.run)
    assert at.held(at.run) == (0, 0, 0, 0)
    assert at.traces.get(at.run, trace_id) is None
    assert at.traces.query_by_tag(at.run, "tag") == at.traces.get_roots(at.run) == []
    assert not at.index.exists(at.run)
    assert at.held(other) == (1, 1, 1, 1)


def test_18_run_forking(at: Faces) -> None:
    """Story 196: a parent's data is not visible to a child; get_child_runs() works."""
    at.fill(at.run)
    child = RunId.new()
    at.index.create_run_with_options(child, at.run)
    assert at.held(child) == (0, 0, 0, 0)
    assert [run.run_id for run in at.index.get_child_runs(at.run)] == [str(child)]
    at.kv.put(child, "key", 2)
    assert at.kv.get(at.run, "key") == 1


def test_18_transitions_are_enforced_across_all_operations(at: Faces) -> None:
    """Story 196: status transitions are enforced across all operations."""
    at.fill(at.run)
    at.index.complete_run(at.run)
    for write in (
        lambda: at.kv.put(at.run, "key", 2),
        lambda: at.log.append(at.run, "event", 2),
        lambda: at.cells.set(at.run, "cell", 2),
        lambda: at.traces.record(at.run, Thought("late")),
        lambda: at.db.transaction(at.run, lambda txn: txn.trace_record("late")),
    ):
        with pytest.raises(errors.RunError):
            write()
    with pytest.raises(errors.InvalidStatusTransition):
        at.index.resume_run(at.run)
    assert at.held(at.run) == (1, 1, 1, 1)


# -- Epic 19: integration ---------------------------------------------------------------------


def test_19_kv_event_state_trace_atomic(at: Faces) -> None:
    """Story 197: all 4 primitives work in a single transaction."""
    before = at.db.metrics().transactions_committed
    trace_id = at.db.transaction(at.run, start_task)
    assert at.db.metrics().transactions_committed == before + 1
    assert at.held(at.run) == (1, 1, 1, 1)
    found = at.traces.get(at.run, trace_id)
    assert found is not None
    assert found.trace_type == Thought("Starting task")


def test_19_cross_primitive_rollback(at: Faces) -> None:
    """Story 197: rollback affects all primitives: of an exception, and of a CAS with the wrong
    version."""
    with pytest.raises(ZeroDivisionError):
        at.db.transaction(at.run, fail_late)
    assert at.held(at.run) == (0, 0, 0, 0)
    at.cells.init(at.run, "workflow", "step0")
    with pytest.raises(errors.VersionMismatch):
        at.db.transaction(at.run, start_task)
    assert at.held(at.run) == (0, 0, 1, 0)
    state = at.cells.read(at.run, "workflow")
    assert state is not None
    assert (state.value, state.version) == ("step0", 1)


def test_19_all_extensions_compose(at: Faces) -> None:
    """Story 197: the extensions compose correctly: one's result is another one's value."""

    def work(txn: Transaction) -> str:
        sequence = txn.event_append("started", None)
        trace_id = txn.trace_record("work", {"event": sequence})
        txn.state_set("current", trace_id)
        txn.kv_put(f"event/{sequence}", txn.state_read("current"))
        return trace_id

    trace_id = at.db.transaction(at.run, work)
    assert at.kv.get(at.run, "event/0") == trace_id
    found = at.traces.get(at.run, trace_id)
    assert found is not None
    assert found.metadata == {"event": 0}


def test_19_trace_store_isolation(at: Faces) -> None:
    """Story 198: different runs have independent traces."""
    run1, run2 = RunId.new(), RunId.new()
    first, second = (at.traces.record(run, Thought("hm"), ["tag"]) for run in (run1, run2))
    for run, own, foreign in ((run1, first, second), (run2, second, first)):
        assert [trace.id for trace in at.traces.list(run)] == [own]
        assert at.traces.get(run, foreign) is None
        with pytest.raises(errors.NotFound):
            at.traces.record_child(run, foreign, Thought("lost"))


def test_19_cross_run_query_isolation(at: Faces) -> None:
    """Story 198: queries only return data from the specified run."""
    other = at.db.begin_run()
    top = at.traces.record(at.run, Thought("hm"), ["tag"])
    at.traces.record_child(at.run, top, ToolCall("search"), ["tag"])
    assert at.traces.query_by_type(other, "Thought") == []
    assert at.traces.query_by_tag(other, "tag") == []
    assert at.traces.query_by_time(other, 0, 2**47) == []
    assert at.traces.get_roots(other) == at.traces.get_children(other, top) == []
    assert at.traces.get_tree(other, top) is None
    assert at.traces.count(other) == 0


def test_19_trace_indices_survive_recovery(tmp_path: Path) -> None:
    """Story 199: TraceStore's indices work after recovery."""
    run = RunId(str(uuid.UUID(int=7)))
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        traces = TraceStore(db)
        top = traces.record(run, Thought("hm"), ["tag"])
        below = traces.record_child(run, top, ToolCall("search"))
        before = traces.list(run)
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        traces = TraceStore(db)
        assert traces.list(run) == before
        assert traces.count(run) == 2
        assert traces.query_by_type(run, "Thought") == traces.query_by_tag(run, "tag") == before[:1]
        assert traces.get_roots(run) == before[:1]
        assert [trace.id for trace in traces.get_children(run, top)] == [below]
        newer = traces.record(run, Thought("later"))
        assert [trace.id for trace in traces.list(run)] == [top, below, newer]


def test_19_run_status_survives_recovery(tmp_path: Path) -> None:
    """Story 199: RunIndex's status is preserved after recovery."""
    done, going = RunId.new(), RunId.new()
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        index = RunIndex(db)
        index.create_run_with_options(done, None, ["tag"], {"n": 1})
        index.create_run_with_options(going, done)
        index.update_status(done, RunStatus.COMPLETED)
        before = [index.get_run(run) for run in (done, going)]
    with Database.open(tmp_path / "data", map_size=8 << 20) as db:
        index = RunIndex(db)
        assert [index.get_run(run) for run in (done, going)] == before
        assert index.query_by_status(RunStatus.COMPLETED) == before[:1]
        assert index.query_by_tag("tag") == before[:1]
        assert index.get_child_runs(done) == before[1:]
        assert index.list_runs() == [str(done), str(going)]
        with pytest.raises(errors.RunError):
            KVStore(db).put(done, "key", 1)
        KVStore(db).put(going, "key", 1)
