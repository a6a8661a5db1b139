"""test_primitives.py - keys, events, cells, traces and runs at once, against lists and dicts.

Why:        each primitive has tests of its own; here they meet, in any order, with transactions
            over all of them, runs that end and are deleted, and everybody dying in between. A
            failure prints the shortest sequence of calls that shows it.
Cost:       about half a minute; `--hypothesis-profile=default` draws new sequences
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm_engine import (
    ChainVerification,
    Database,
    EventLog,
    KVStore,
    RunId,
    RunIndex,
    RunStatus,
    Snapshot,
    StateCell,
    Trace,
    TraceOptions,
    TraceStore,
    TraceType,
    Transaction,
    coordinator,
    errors,
)
from tests.harness.durable import info_of, kill_coordinator, open_folder, stop_coordinator
from tests.harness.index import assert_indexes_agree
from tests.harness.traced import ALL_KINDS, UNKNOWN
from tests.harness.workers import wait_until
from tests.model.primitives import (
    Clock,
    RunInfo,
    RunModel,
    TraceModel,
    TransactionModel,
    outcome,
)

MIB = 1024 * 1024
NAMES = ["a", "ab", "b"]
EVENT_TYPES = ["t", "tu", "u"]
TAGS = ["x", "xy", "z"]
OWN_IDS = ["mine", "mine too", UNKNOWN]
STATUSES = list(RunStatus)
CHECK_ALL_EVERY = 8

handles = st.integers(0, 1)
slots = st.sampled_from([1, 1, 1, 0, 2])
names = st.sampled_from(NAMES)
types = st.sampled_from(EVENT_TYPES)
own_ids = st.sampled_from([None, None, *OWN_IDS])
kinds = st.integers(0, len(ALL_KINDS) - 1).map(lambda number: ALL_KINDS[number])
tags = st.lists(st.sampled_from(TAGS), max_size=3).map(tuple)
LARGE: list[Any] = ["x" * 300, b"z" * 9000, [1, {"a": [None]}], {}, None]
plain = st.one_of(
    st.integers(0, 9), st.integers(0, len(LARGE) - 1).map(lambda number: LARGE[number])
)
which = st.integers(0, 5)  # one of those that there are
# What a transaction may be asked, as a method of Transaction and of its model, with arguments.
parts = st.one_of(
    st.tuples(st.sampled_from(["kv_get", "kv_exists", "kv_delete"]), names),
    st.tuples(st.just("kv_put"), names, plain),
    st.tuples(st.just("kv_list"), st.sampled_from(["", "a", "b"])),
    st.tuples(st.just("event_append"), types, plain),
    st.tuples(st.just("event_read"), st.integers(0, 6)),
    st.tuples(st.just("state_read"), names),
    st.tuples(st.sampled_from(["state_init", "state_set"]), names, plain),
    st.tuples(st.just("state_cas"), names, st.integers(0, 2), plain),
    st.tuples(st.just("trace_record"), st.one_of(kinds, types), plain, tags),
    st.tuples(st.just("trace_record_child"), which, kinds, plain, tags),
)
# What others do meanwhile to the same run: a method of the machine, with arguments.
meddling = st.one_of(
    st.tuples(st.just("put"), names, plain),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("append"), types, plain),
    st.tuples(st.just("set"), names, plain),
    st.tuples(st.just("delete_cell"), names),
    st.tuples(st.just("record"), kinds, tags, plain),
)
scripts = st.lists(st.one_of(parts, parts, parts, meddling), min_size=1, max_size=7)
isolations = st.sampled_from(["snapshot", "snapshot", "serializable"])
endings = st.sampled_from(["commit", "commit", "commit", "roll back", "raise"])
changes = st.sampled_from([*STATUSES, RunStatus.ACTIVE, RunStatus.PAUSED, RunStatus.ACTIVE])


@dataclass
class HeldSnapshot:
    began: int
    snapshot: Snapshot
    content: list[dict[str, Any]]


@dataclass
class HeldTransaction:
    began: int
    handle: int
    slot: int
    transaction: Transaction
    model: TransactionModel


class Abort(Exception):
    """What the user's own code raises in a transaction."""


class Faces:
    """The primitives over one handle."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.kv = KVStore(db)
        self.log = EventLog(db)
        self.cells = StateCell(db)
        self.traces = TraceStore(db)
        self.index = RunIndex(db)


class PrimitivesMachine(RuleBasedStateMachine):
    """Two handles on one database, used in turn; the default run and two others, of which the
    second one is not registered at first; snapshots and transactions held open."""

    def open(self) -> Database:
        return Database.ephemeral(map_size=64 * MIB)

    @initialize()
    def begin(self) -> None:
        self.join(self.open())
        self.runs = [RunId.DEFAULT, self.faces[0].db.begin_run(), RunId.new()]
        self.clock = Clock()
        self.models = [RunModel(self.clock) for _ in self.runs]
        self.index: dict[int, RunInfo] = {1: RunInfo(0)}
        self.deleted_at: dict[int, int] = {}  # runs that something open still needs
        self.order = 1  # of the next run or trace
        self.steps = 0
        self.touched: set[int] = set()
        self.snapshots: list[HeldSnapshot] = []
        self.transactions: list[HeldTransaction] = []

    def join(self, first: Database) -> None:
        self.faces = [Faces(first), Faces(pickle.loads(pickle.dumps(first)))]

    def teardown(self) -> None:
        for at in getattr(self, "faces", []):
            at.db.close()

    def next_order(self) -> int:
        self.order += 1
        return self.order

    # -- writes to a run ----------------------------------------------------------------------

    def is_writable(self, slot: int) -> bool:
        if slot in self.deleted_at:
            return False
        return slot not in self.index or self.index[slot].status is RunStatus.ACTIVE

    def write(
        self, slot: int, call: Callable[[], Any], change: Callable[[RunModel, Any], Any]
    ) -> None:
        """Does it in the store and, with what came back, in the model, and compares."""
        found = outcome(call)
        new = self.models[slot].copy()
        expected = outcome(lambda: change(new, found[1]))
        self.touched.add(slot)
        if self.is_writable(slot):
            assert found == expected
            if found[0] == "returned":
                self.models[slot] = new
        elif expected[0] == "raised" or new == self.models[slot]:
            assert found in (expected, ("raised", errors.RunError))
        else:
            assert found == ("raised", errors.RunError)

    @rule(handle=handles, slot=slots, todo=meddling)
    def write_one(self, handle: int, slot: int, todo: tuple[Any, ...]) -> None:
        call, *arguments = todo
        getattr(self, call)(handle, slot, *arguments)

    def put(self, handle: int, slot: int, key: str, value: Any) -> None:
        kv, run = self.faces[handle].kv, self.runs[slot]
        self.write(slot, lambda: kv.put(run, key, value) and None, lambda m, _: m.put(key, value))

    def delete(self, handle: int, slot: int, key: str) -> None:
        kv, run = self.faces[handle].kv, self.runs[slot]
        self.write(slot, lambda: kv.delete(run, key), lambda m, _: m.delete(key))

    def append(self, handle: int, slot: int, event_type: str, payload: Any) -> None:
        log, run = self.faces[handle].log, self.runs[slot]
        self.write(
            slot,
            lambda: log.append(run, event_type, payload)[0],
            lambda m, _: m.append([(event_type, payload)])[0],
        )

    @rule(handle=handles, slot=slots, items=st.lists(st.tuples(types, plain), max_size=4))
    def append_batch(self, handle: int, slot: int, items: list[tuple[str, Any]]) -> None:
        log, run = self.faces[handle].log, self.runs[slot]
        self.write(
            slot,
            lambda: [sequence for sequence, _ in log.append_batch(run, items)],
            lambda m, _: m.append(items),
        )

    def set(self, handle: int, slot: int, name: str, value: Any) -> None:
        cells, run = self.faces[handle].cells, self.runs[slot]
        self.write(slot, lambda: cells.set(run, name, value), lambda m, _: m.set(name, value))

    def delete_cell(self, handle: int, slot: int, name: str) -> None:
        cells, run = self.faces[handle].cells, self.runs[slot]
        self.write(slot, lambda: cells.delete(run, name), lambda m, _: m.delete_cell(name))

    @rule(handle=handles, slot=slots, name=names, value=plain)
    def init(self, handle: int, slot: int, name: str, value: Any) -> None:
        cells, run = self.faces[handle].cells, self.runs[slot]
        self.write(slot, lambda: cells.init(run, name, value), lambda m, _: m.init(name, value))

    @rule(handle=handles, slot=slots, name=names, off=st.sampled_from([0, 0, -1, 1]), value=plain)
    def cas(self, handle: int, slot: int, name: str, off: int, value: Any) -> None:
        cells, run = self.faces[handle].cells, self.runs[slot]
        expected = self.models[slot].version(name) + off
        self.write(
            slot,
            lambda: cells.cas(run, name, expected, value),
            lambda m, _: m.cas(name, expected, value),
        )

    @rule(handle=handles, slot=slots, name=names, value=plain, make=st.booleans())
    def transition(self, handle: int, slot: int, name: str, value: Any, make: bool) -> None:
        cells, run = self.faces[handle].cells, self.runs[slot]
        if make:
            self.write(
                slot,
                lambda: cells.transition_or_init(run, name, "initial", lambda s: (value, s.value)),
                lambda m, _: m.transition_or_init(name, value),
            )
        else:
            self.write(
                slot,
                lambda: cells.transition(run, name, lambda s: (value, s.value)),
                lambda m, _: m.transition(name, value),
            )

    def record(
        self, handle: int, slot: int, kind: TraceType, tags: tuple[str, ...], metadata: Any
    ) -> None:
        traces, run, order = self.faces[handle].traces, self.runs[slot], self.next_order()
        kept = tuple(dict.fromkeys(tags))
        self.write(
            slot,
            lambda: traces.record(run, kind, tags, metadata),
            lambda m, found: m.record(TraceModel(order, found, kind, kept, metadata, None)),
        )

    def known_trace(self, traces: list[str], number: int) -> str:
        """One of these, or one that does not exist."""
        return [UNKNOWN, *traces][number % (len(traces) + 1)]

    @rule(handle=handles, slot=slots, kind=kinds, tags=tags, parent=which, own_id=own_ids)
    def record_child(
        self,
        handle: int,
        slot: int,
        kind: TraceType,
        tags: tuple[str, ...],
        parent: int,
        own_id: str | None,
    ) -> None:
        traces, run, order = self.faces[handle].traces, self.runs[slot], self.next_order()
        parent_id = self.known_trace(list(self.models[slot].traces), parent)
        kept = tuple(dict.fromkeys(tags))
        options = TraceOptions(id=own_id, parent_id=parent_id, tags=tags)

        def call() -> str:
            if own_id is None:
                return traces.record_child(run, parent_id, kind, tags)
            return traces.record_with_options(run, kind, options)

        self.write(
            slot,
            call,
            lambda m, found: m.record(
                TraceModel(order, own_id or found, kind, kept, None, parent_id), own_id
            ),
        )

    @rule(handle=handles, slot=slots, kind=kinds, own_id=st.one_of(st.none(), which))
    def record_with_an_id(
        self, handle: int, slot: int, kind: TraceType, own_id: int | None
    ) -> None:
        """Also an id that the store made for another trace."""
        traces, run, order = self.faces[handle].traces, self.runs[slot], self.next_order()
        known = [*OWN_IDS, *self.models[slot].traces]
        chosen = "new" if own_id is None else known[-1 - own_id % len(known)]
        self.write(
            slot,
            lambda: traces.record_with_options(run, kind, id=chosen, tags=["own"]),
            lambda m, _: m.record(TraceModel(order, chosen, kind, ("own",), None, None), chosen),
        )

    # -- the runs themselves ------------------------------------------------------------------

    def change_run(self, slot: int, call: Callable[[], Any], expected: RunInfo | type) -> None:
        """Does it in the store, and compares with what the run is to be, or the error."""
        kind, found = outcome(call)
        if isinstance(expected, type):
            assert (kind, found) == ("raised", expected)
        else:
            assert kind == "returned", found
            self.index[slot] = expected
            self.check_metadata(slot, found)
        self.touched.add(slot)

    def known_run(self, slot: int) -> type | None:
        """The error that changing the run gives, if it does."""
        if slot == 0:
            return errors.ConstraintViolation
        return None if slot in self.index else errors.NotFound

    @rule(
        handle=handles,
        slot=st.sampled_from([1, 2, 2, 0]),
        parent=st.sampled_from([None, None, 0, 1, 2]),
        tags=tags,
        metadata=plain,
    )
    def create(
        self, handle: int, slot: int, parent: int | None, tags: tuple[str, ...], metadata: Any
    ) -> None:
        index, run = self.faces[handle].index, self.runs[slot]
        expected: RunInfo | type
        if slot == 0 or slot in self.index or slot in self.deleted_at:
            expected = errors.InvalidOperation
        elif parent is not None and parent != 0 and parent not in self.index:
            expected = errors.NotFound
        else:
            kept = tuple(dict.fromkeys(tags))
            expected = RunInfo(self.next_order(), RunStatus.ACTIVE, kept, parent, metadata)
        above = None if parent is None else self.runs[parent]
        self.change_run(
            slot, lambda: index.create_run_with_options(run, above, tags, metadata), expected
        )

    @rule(handle=handles, slot=slots, status=changes)
    def change_status(self, handle: int, slot: int, status: RunStatus) -> None:
        index, run = self.faces[handle].index, self.runs[slot]
        expected: RunInfo | type | None = self.known_run(slot)
        if expected is None:
            info = self.index[slot]
            expected = errors.InvalidStatusTransition
            if info.status.can_transition_to(status):
                error = "it broke" if status is RunStatus.FAILED else info.error
                expected = replace(info, status=status, error=error)
        calls: dict[RunStatus, Callable[[], Any]] = {
            RunStatus.ACTIVE: lambda: index.resume_run(run),
            RunStatus.COMPLETED: lambda: index.complete_run(run),
            RunStatus.FAILED: lambda: index.fail_run(run, "it broke"),
            RunStatus.CANCELLED: lambda: index.cancel_run(run),
            RunStatus.PAUSED: lambda: index.pause_run(run),
            RunStatus.ARCHIVED: lambda: index.archive_run(run),
        }
        self.change_run(slot, calls[status], expected)

    @rule(handle=handles, slot=slots, tags=tags, add=st.booleans())
    def change_tags(self, handle: int, slot: int, tags: tuple[str, ...], add: bool) -> None:
        index, run = self.faces[handle].index, self.runs[slot]
        expected: RunInfo | type | None = self.known_run(slot)
        if expected is None:
            info = self.index[slot]
            kept = tuple(dict.fromkeys((*info.tags, *tags)))
            if not add:
                kept = tuple(tag for tag in info.tags if tag not in tags)
            expected = replace(info, tags=kept)
        change = index.add_tags if add else index.remove_tags
        self.change_run(slot, lambda: change(run, tags), expected)

    @rule(handle=handles, slot=slots, metadata=plain)
    def change_metadata(self, handle: int, slot: int, metadata: Any) -> None:
        index, run = self.faces[handle].index, self.runs[slot]
        expected: RunInfo | type | None = self.known_run(slot)
        if expected is None:
            expected = replace(self.index[slot], metadata=metadata)
        self.change_run(slot, lambda: index.update_metadata(run, metadata), expected)

    @rule(handle=handles, slot=slots)
    def delete_run(self, handle: int, slot: int) -> None:
        """All that is open is older; while something is, the run takes no writes."""
        found = outcome(lambda: self.faces[handle].index.delete_run(self.runs[slot]))
        error = self.known_run(slot)
        assert found == (("returned", None) if error is None else ("raised", error))
        self.touched.add(slot)
        if error is None:
            del self.index[slot]
            self.models[slot] = RunModel(self.clock)
            self.deleted_at[slot] = self.clock.tick()
            self.settle()

    def settle(self) -> None:
        """Lets what was deleted be erased, where nothing open needs it any more."""
        began = [held.began for held in self.snapshots]
        began += [held.began for held in self.transactions]
        for slot, moment in list(self.deleted_at.items()):
            if all(one >= moment for one in began):
                erase = partial(self.faces[0].db.engine.erase, self.runs[slot])
                wait_until(erase, "the run is erased")  # a checkpoint may need it for a moment
                del self.deleted_at[slot]

    # -- snapshots ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < 2)
    @rule(handle=handles)
    def hold(self, handle: int) -> None:
        content = [dict(model.kv) for model in self.models]
        self.snapshots.append(
            HeldSnapshot(self.clock.now, self.faces[handle].db.snapshot(), content)
        )

    @precondition(lambda self: self.snapshots)
    @rule(number=which)
    def let_go(self, number: int) -> None:
        held = self.snapshots.pop(number % len(self.snapshots))
        self.check_snapshot(held)
        held.snapshot.close()
        self.settle()

    def check_snapshot(self, held: HeldSnapshot) -> None:
        for run, content in zip(self.runs, held.content, strict=True):
            assert list(held.snapshot.scan_prefix(run, "")) == sorted(content.items())
            for name in NAMES:
                assert held.snapshot.get(run, name) == content.get(name)
                assert held.snapshot.exists(run, name) == (name in content)

    # -- transactions -------------------------------------------------------------------------

    def open_transaction(self, handle: int, slot: int, isolation: str) -> HeldTransaction:
        model = TransactionModel(
            self.models[slot].copy(), self.clock.now, isolation == "serializable"
        )
        transaction = self.faces[handle].db.begin(self.runs[slot], isolation)
        held = HeldTransaction(self.clock.now, handle, slot, transaction, model)
        self.transactions.append(held)
        return held

    def play(self, held: HeldTransaction, script: list[tuple[Any, ...]]) -> None:
        """The script, of which some is others' doing; ends early where the store ends it."""
        for call, *arguments in script:
            if not hasattr(TransactionModel, call):
                getattr(self, call)(1 - held.handle, held.slot, *arguments)
            else:
                self.ask(held, call, arguments)
            if held.model.is_over:
                return

    def ask(self, held: HeldTransaction, call: str, arguments: list[Any]) -> None:
        txn, model = held.transaction, held.model
        if call == "trace_record_child":
            traces = [*self.models[held.slot].traces, *model.traces]
            arguments[0] = self.known_trace(traces[::-1], arguments[0])
        model.orders = self.next_order()
        found = outcome(lambda: getattr(txn, call)(*arguments))
        model.given = found[1]
        if call == "event_read" and found[1] is not None:
            found = found[0], (found[1].event_type, found[1].payload)
        assert outcome(lambda: getattr(model, call)(*arguments)) == found
        assert txn.is_active != model.is_over
        if model.is_over:
            self.drop(held)

    def drop(self, held: HeldTransaction) -> None:
        self.transactions.remove(held)
        self.settle()

    def end(self, held: HeldTransaction, how: str) -> None:
        if how == "commit":
            self.commit(held)
        elif how == "roll back":
            held.transaction.rollback()
        else:
            with suppress(Abort), held.transaction:
                raise Abort
        assert not held.transaction.is_active
        self.touched.add(held.slot)
        self.drop(held)

    def commit(self, held: HeldTransaction) -> None:
        """It fails if and only if something read has changed, or the run takes no writes."""
        model, run = held.model, self.models[held.slot]
        expected: set[type | None] = set()
        if model.has_writes() and model.conflicts(run):
            expected.add(errors.TransactionConflict)
        if model.has_writes() and not self.is_writable(held.slot):
            expected.add(errors.RunError)
        kind, found = outcome(held.transaction.commit)
        if expected:
            assert kind == "raised"
            assert found in expected
        else:
            assert kind == "returned", found
            model.apply(run)

    @rule(handle=handles, slot=slots, isolation=isolations, script=scripts, how=endings)
    def transact(
        self, handle: int, slot: int, isolation: str, script: list[tuple[Any, ...]], how: str
    ) -> None:
        held = self.open_transaction(handle, slot, isolation)
        self.play(held, script)
        if not held.model.is_over:
            self.end(held, how)

    @precondition(lambda self: len(self.transactions) < 2)
    @rule(handle=handles, slot=slots, isolation=isolations)
    def start(self, handle: int, slot: int, isolation: str) -> None:
        self.open_transaction(handle, slot, isolation)

    @precondition(lambda self: self.transactions)
    @rule(number=which, script=scripts)
    def go_on(self, number: int, script: list[tuple[Any, ...]]) -> None:
        self.play(self.transactions[number % len(self.transactions)], script)

    @precondition(lambda self: self.transactions)
    @rule(number=which, how=endings)
    def finish(self, number: int, how: str) -> None:
        self.end(self.transactions[number % len(self.transactions)], how)

    # -- everything ---------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "faces"):
            return
        self.steps += 1
        if self.steps % CHECK_ALL_EVERY == 0:
            self.check_everything()
        else:
            for slot in self.touched:
                self.check_run(self.faces[self.steps % 2], slot)
        self.touched.clear()

    @rule()
    def check_everything(self) -> None:
        for number, at in enumerate(self.faces):
            for slot in range(len(self.runs)):
                if slot % 2 == number:
                    self.check_run(at, slot)
        self.check_index(self.faces[self.steps % 2])
        for held in self.snapshots:
            self.check_snapshot(held)

    def check_run(self, at: Faces, slot: int) -> None:
        run, model = self.runs[slot], self.models[slot]
        assert at.kv.scan(run) == sorted(model.kv.items())
        cells = [(name, at.cells.read(run, name)) for name in at.cells.list(run)]
        assert [(name, (cell.value, cell.version)) for name, cell in cells if cell] == sorted(
            model.cells.items()
        )
        self.check_events(at, run, model)
        self.check_traces(at, run, model)

    def check_events(self, at: Faces, run: RunId, model: RunModel) -> None:
        found = list(at.log.iter(run))
        assert [event.sequence for event in found] == list(range(len(model.events)))
        assert [(event.event_type, event.payload) for event in found] == model.events
        assert at.log.len(run) == len(model.events)
        assert at.log.head(run) == (found[-1] if found else None)
        assert at.log.verify_chain(run) == ChainVerification(True, len(model.events))
        assert at.log.event_types(run) == sorted({name for name, _ in model.events})
        for event_type in EVENT_TYPES:
            expected = [event for event in found if event.event_type == event_type]
            assert at.log.read_by_type(run, event_type) == expected

    def check_traces(self, at: Faces, run: RunId, model: RunModel) -> None:
        traces, known = at.traces, model.in_order()
        found = traces.list(run)
        assert [as_model(trace) for trace in found] == [replace(one, order=0) for one in known]
        assert traces.count(run) == len(known)
        by_id = {trace.id: trace for trace in found}

        def those(chosen: list[TraceModel]) -> list[Trace]:
            return [by_id[one.id] for one in chosen]

        for name in sorted({one.kind.type_name() for one in known} | {"Thought", "none"}):
            expected = those([one for one in known if one.kind.type_name() == name])
            assert traces.query_by_type(run, name) == expected
        for tag in [*TAGS, "own"]:
            assert traces.query_by_tag(run, tag) == those([one for one in known if tag in one.tags])
        assert traces.get_roots(run) == those([one for one in known if one.parent is None])
        for one in known:
            assert traces.get(run, one.id) == by_id[one.id]
            children = those([other for other in known if other.parent == one.id])
            assert traces.get_children(run, one.id) == children
        walked = 0
        for root in traces.get_roots(run):
            tree = traces.get_tree(run, root.id)
            assert tree is not None
            assert [trace for _, trace in tree.walk()] == list(self.walk(root.id, model, by_id))
            walked += len(tree)
        assert walked == len(known)
        assert traces.get(run, UNKNOWN) == by_id.get(UNKNOWN)

    def walk(self, top: str, model: RunModel, by_id: dict[str, Trace]) -> list[Trace]:
        below = [one.id for one in model.in_order() if one.parent == top]
        return [by_id[top], *(trace for one in below for trace in self.walk(one, model, by_id))]

    def check_metadata(self, slot: int, found: Any) -> None:
        info = self.index[slot]
        assert found.run_id == found.name == str(self.runs[slot])
        assert (found.status, tuple(found.tags)) == (info.status, info.tags)
        assert (found.metadata, found.error) == (info.metadata, info.error)
        assert found.parent_run == (None if info.parent is None else str(self.runs[info.parent]))
        assert found.created_at <= found.updated_at

    def check_index(self, at: Faces) -> None:
        known = sorted(self.index, key=lambda slot: self.index[slot].order)

        infos = [(str(self.runs[slot]), self.index[slot]) for slot in known]
        index = at.index
        assert index.list_runs() == [name for name, _ in infos]
        assert assert_indexes_agree(at.db) == len(known)
        for slot in (1, 2):
            found = index.get_run(self.runs[slot])
            assert (found is not None) == (slot in self.index)
            if found is not None:
                self.check_metadata(slot, found)
        statuses = [info.status for info in self.index.values()]
        stats = index.get_stats()
        assert stats.total_runs == index.count() == len(known)
        for status in STATUSES:
            counted = getattr(stats, f"{status.as_str().lower()}_runs")
            assert counted == statuses.count(status)
            expected = [name for name, info in infos if info.status is status]
            assert [one.run_id for one in index.query_by_status(status)] == expected
        for tag in TAGS:
            expected = [name for name, info in infos if tag in info.tags]
            assert [one.run_id for one in index.query_by_tag(tag)] == expected
        for slot, run in enumerate(self.runs):
            expected = [name for name, info in infos if info.parent == slot]
            assert [one.run_id for one in index.get_child_runs(run)] == expected
        shown = [name for name, info in infos if info.status is not RunStatus.ARCHIVED]
        assert [one.run_id for one in index.query_runs()] == shown


def as_model(trace: Trace) -> TraceModel:
    return TraceModel(
        0, trace.id, trace.trace_type, tuple(trace.tags), trace.metadata, trace.parent_id
    )


def coordinators_of(folder: Path) -> int:
    """How many processes serve the folder, or find out that another one does."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            count += b"shm_engine.coordinator" in words and os.fsencode(folder) in words
    return count


class DurableMachine(PrimitivesMachine):
    """The same on a database with a log, which is closed, loses its coordinator, and loses all."""

    def open(self) -> Database:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.is_orphaned = False
        return open_folder(self.path, "buffered")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @precondition(lambda self: hasattr(self, "faces"))
    @rule(
        what=st.sampled_from(["reopen", "kill_all"]),
        mode=st.sampled_from(["buffered", "strict"]),
        slot=slots,
        script=st.lists(st.one_of(parts, meddling), max_size=12),
    )
    def upset(self, what: str, mode: str, slot: int, script: list[tuple[Any, ...]]) -> None:
        """Loses all processes after a transaction, which takes long: so it is one rule."""
        self.await_its_starters()
        held = self.open_transaction(0, slot, "snapshot")
        self.play(held, script)
        if not held.model.is_over:
            self.end(held, "commit")
        getattr(self, what)(mode)

    def reopen(self, mode: str) -> None:
        """Everybody closes; whoever comes next may choose another mode."""
        self.forget_what_is_open()
        for at in self.faces:
            at.db.close()
        self.come_back(mode)

    def kill_all(self, mode: str) -> None:
        """The log is behind, nobody closes it, and nobody is left: the state of a mass death."""
        self.forget_what_is_open()
        self.await_successor()
        stopped = stop_coordinator(self.path)
        for at in self.faces:
            at.db._close(wait=False)
        os.kill(stopped.pid, signal.SIGKILL)
        assert coordinator.wait_for_end(stopped.identity, 10)
        self.come_back(mode)

    @precondition(lambda self: hasattr(self, "faces"))
    @rule()
    def kill_the_coordinator(self) -> None:
        """What is open stays open, and a successor comes some time."""
        self.await_successor()
        kill_coordinator(self.path)
        self.is_orphaned = True

    def await_its_starters(self) -> None:
        """Each handle starts a successor and waits for its answer, also when it is closed; a
        coordinator that is stopped meanwhile would hold it up for as long as a start may take."""
        if self.is_orphaned:
            self.await_successor()
            wait_until(lambda: coordinators_of(self.path) == 1, "one coordinator")
            self.faces[0].db.flush()
            self.is_orphaned = False

    def await_successor(self) -> None:
        """One of two deaths in a row has to be that of a living coordinator."""
        wait_until(lambda: info_of(self.path).is_alive(), "a successor")

    @precondition(lambda self: hasattr(self, "faces"))
    @rule(handle=handles, flush=st.booleans())
    def save(self, handle: int, flush: bool) -> None:
        db = self.faces[handle].db
        if flush:
            db.flush()
        else:
            db.checkpoint()

    def forget_what_is_open(self) -> None:
        """The runs that were deleted meanwhile are left to whoever comes next."""
        for held in self.snapshots:
            held.snapshot.close()
        for held_transaction in self.transactions:
            held_transaction.transaction.rollback()
        self.snapshots.clear()
        self.transactions.clear()

    def come_back(self, mode: str) -> None:
        self.join(open_folder(self.path, mode))
        self.settle()
        self.check_everything()


TestPrimitives = PrimitivesMachine.TestCase
TestPrimitives.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
TestDurablePrimitives = DurableMachine.TestCase
TestDurablePrimitives.settings = settings(
    max_examples=18,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
