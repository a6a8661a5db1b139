"""test_store.py - the store, through several handles, against a dict with its history.

Why:        what a user can do in any order is tried in many orders, and each answer is compared
            with the model. A failure prints the shortest sequence of calls that shows it.
Cost:       about a minute; `--hypothesis-profile=default` draws new sequences
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm_engine import (
    Database,
    Durability,
    KVStore,
    RetentionPolicy,
    RunId,
    Snapshot,
    Transaction,
    Version,
    coordinator,
    errors,
    keys,
    values,
)
from tests.harness.durable import LOGGED, info_of, kill_coordinator, open_folder, stop_coordinator
from tests.harness.workers import wait_until
from tests.model.history import DELETED, Entry, RunModel, TransactionModel, added, ordered

T = TypeVar("T")
MIB = 1024 * 1024
RUN_INDEX_KEYS = ["by time", "by status", "counter"]  # of the one run that was begun
# They share prefixes, differ at the last of 1024 bytes, sort differently as text and as bytes.
NAMES = [
    *("a", "ab", "abc", "abd", "ab\x01", "a\x01", "\x01", "b", "_strata", "ab/c:d", " "),
    *("é", "e\u0301", "é\u0301", "\uffff", "🐚", "🐚🐚", "\U0010ffff"),
    *("k" * 1024, "k" * 1023 + "l", "k" * 1023, "k" * 500, "é" * 512),
]
HOT = ["a", "ab", "é", "n"]
PREFIXES = ["", "", "a", "ab", "k", "k" * 1023, "é", "🐚", "n", "d", "d1", "nothing"]

LARGE = ["x" * 300, "y" * 9000, b"z" * 70000, [1, {"a": [None]}], {}]


def one_of_many(options: list[T]) -> st.SearchStrategy[T]:
    """As sampled_from, without the options in its description: they are long."""
    return st.integers(0, len(options) - 1).map(lambda index: options[index])


hot = one_of_many(HOT)
# Mostly the same few, or no two calls would ever meet.
names = st.one_of(hot, hot, hot, one_of_many(NAMES), st.text("ab\x01é🐚", min_size=1, max_size=4))
prefixes = st.one_of(one_of_many(PREFIXES), names)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    one_of_many(LARGE),
)
keeps = st.sampled_from([None, None, 1, 1, 2, 3, 10])
runs = st.integers(0, 1)
handles = st.integers(0, 1)
deltas = st.one_of(st.integers(-3, 3), st.sampled_from([2**62, -(2**62), 2**63 - 1, -(2**63)]))
# What a transaction may be asked, as a method of Transaction and of its model, with arguments.
parts = st.one_of(
    st.tuples(st.just("kv_get"), names),
    st.tuples(st.just("kv_exists"), names),
    st.tuples(st.just("kv_put"), names, plain),
    st.tuples(st.just("kv_put"), names, st.integers(0, 9)),
    st.tuples(st.just("kv_delete"), names),
    st.tuples(st.just("kv_incr"), names, deltas),
    st.tuples(st.just("kv_incr"), one_of_many(["n", "na"]), st.just(1)),
    st.tuples(st.just("scan_prefix"), prefixes),
    st.tuples(st.just("scan_prefix"), st.sampled_from(["", "a"])),
    st.tuples(st.just("kv_list"), prefixes),
)
# What others do meanwhile: to a key that the transaction has read, or in a range.
meddling = st.tuples(
    st.sampled_from(["disturb", "haunt"]),
    st.integers(0, 1),
    st.sampled_from(["put", "delete", "incr"]),
)
# What `work` does one after the other: a method of the machine, with arguments.
commands = st.one_of(
    st.tuples(st.just("put_one"), handles, runs, hot, plain),
    st.tuples(st.just("put_far"), handles, runs, hot, st.integers(0, 9)),
    st.tuples(st.just("put_expired"), handles, runs, hot, plain),
    st.tuples(st.just("delete_one"), handles, runs, hot),
    st.tuples(st.just("increment"), handles, runs, hot, st.just(1)),
    st.tuples(st.just("retain"), handles, runs, keeps),
    st.tuples(st.just("clean"), handles),
    st.tuples(st.just("clean"), handles),
    st.tuples(st.just("hold"), handles),
    st.tuples(st.just("let_go")),
    st.tuples(st.just("check"), handles, runs, hot),
)
scripts = st.one_of(
    st.lists(st.one_of(parts, parts, meddling), max_size=8),
    st.tuples(
        st.tuples(st.sampled_from(["scan_prefix", "kv_list"]), st.sampled_from(["", "a", "é"])),
        st.tuples(st.just("kv_put"), st.just("n"), st.integers(0, 9)),
        st.tuples(st.just("haunt"), st.integers(0, 1), st.sampled_from(["put", "delete"])),
    ),
)


@dataclass
class HeldSnapshot:
    handle: int
    snapshot: Snapshot
    content: list[dict[str, Any]] = field(repr=False)


@dataclass
class HeldTransaction:
    handle: int
    run: int
    transaction: Transaction
    model: TransactionModel


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What it returned, or the class of the error."""
    try:
        return "returned", call()
    except errors.Error as error:
        return "raised", type(error)


class StoreMachine(RuleBasedStateMachine):
    """Two handles on one database, used in turn; two runs; snapshots and transactions held open."""

    def open(self) -> Database:
        return Database.ephemeral(map_size=64 * MIB)

    @initialize(keeps=st.tuples(keeps, keeps))
    def begin(self, keeps: tuple[int | None, int | None]) -> None:
        first = self.open()
        self.handles: list[Database] = [first, pickle.loads(pickle.dumps(first))]
        self.runs = [RunId.DEFAULT, first.begin_run()]
        self.models = [RunModel(), RunModel()]
        self.has_record = [False, True]
        self.last_version = first.metrics().version
        self.versions = [0, self.last_version]
        self.snapshots: list[HeldSnapshot] = []
        self.transactions: list[HeldTransaction] = []
        for run, keep in enumerate(keeps):
            if keep is not None:
                self.retain(0, run, keep)

    def teardown(self) -> None:
        for handle in getattr(self, "handles", []):
            handle.close()

    def kv(self, handle: int) -> KVStore:
        return KVStore(self.handles[handle])

    def committed(self, version: int) -> int:
        """Notes the version of a commit, which is above all before."""
        assert version > self.last_version
        self.last_version = version
        self.versions.append(version)
        return version

    def newest_version(self) -> int:
        return self.handles[0].metrics().version

    @rule(script=st.lists(commands, min_size=1, max_size=12))
    def work(self, script: list[tuple[Any, ...]]) -> None:
        """Several things in a row to the same few keys, which by themselves would rarely meet."""
        for call, *arguments in script:
            getattr(self, call)(*arguments)
        for run in (0, 1):
            for name in HOT:
                self.check(0, run, name)
            for held in self.snapshots:
                self.check_snapshot(held, run, HOT)

    def check(self, handle: int, run: int, name: str) -> None:
        """One key by every way of reading."""
        kv, live = self.kv(handle), self.models[run].live(name)
        assert values.strict_equal(kv.get(self.runs[run], name), self.models[run].value(name))
        assert kv.exists(self.runs[run], name) == (live is not None)
        found = kv.get_versioned(self.runs[run], name)
        assert (found and found.version) == (live and Version.Txn(live.version))
        assert (kv.ttl(self.runs[run], name) is not None) == (live is not None and live.has_end)
        self.check_history(handle, run, name)

    # -- single keys --------------------------------------------------------------------------

    @rule(handle=handles, run=runs, name=names, value=plain)
    def put(self, handle: int, run: int, name: str, value: Any) -> None:
        self.put_one(handle, run, name, value)

    def put_one(self, handle: int, run: int, name: str, value: Any) -> None:
        version = self.committed(self.kv(handle).put(self.runs[run], name, value))
        self.models[run].write(name, Entry(version, value))

    @rule(handle=handles, run=runs, name=names, value=plain)
    def put_with_a_far_end(self, handle: int, run: int, name: str, value: Any) -> None:
        self.put_far(handle, run, name, value)

    def put_far(self, handle: int, run: int, name: str, value: Any) -> None:
        found = self.kv(handle).put_with_ttl(self.runs[run], name, value, 10**6)
        self.models[run].write(name, Entry(self.committed(found), value, has_end=True))

    @rule(handle=handles, run=runs, name=names, value=plain)
    def put_what_has_run_out(self, handle: int, run: int, name: str, value: Any) -> None:
        self.put_expired(handle, run, name, value)

    def put_expired(self, handle: int, run: int, name: str, value: Any) -> None:
        engine = self.handles[handle]._engine
        version = self.committed(engine.put(self.runs[run], keys.TAG_KV, name, value, 1))
        self.models[run].write(name, Entry(version, value, expired=True))

    @rule(handle=handles, run=runs, name=names)
    def delete(self, handle: int, run: int, name: str) -> None:
        self.delete_one(handle, run, name)

    def delete_one(self, handle: int, run: int, name: str) -> None:
        existed = self.kv(handle).delete(self.runs[run], name)
        assert existed == (self.models[run].live(name) is not None)
        if existed:
            version = self.committed(self.newest_version_of(handle, run, name))
            self.models[run].write(name, Entry(version, None, is_tombstone=True))

    def newest_version_of(self, handle: int, run: int, name: str) -> int:
        """Of a key just deleted: the deletion is the newest, if it was not trimmed at once."""
        found = as_entries(self.kv(handle).history(self.runs[run], name, limit=1))
        return found[0].version if found else self.newest_version()

    @rule(handle=handles, run=runs, name=names, delta=deltas)
    def incr(self, handle: int, run: int, name: str, delta: int) -> None:
        self.increment(handle, run, name, delta)

    @rule(handle=handles, run=runs, name=st.sampled_from(["n", "na", "a"]))
    def count(self, handle: int, run: int, name: str) -> None:
        self.increment(handle, run, name, 1)

    def increment(self, handle: int, run: int, name: str, delta: int) -> None:
        before = self.models[run].live(name)
        expected = outcome(lambda: added(before and before.value if before else 0, delta))
        assert outcome(lambda: self.kv(handle).incr(self.runs[run], name, delta)) == expected
        if expected[0] == "returned":
            found = self.kv(handle).get_versioned(self.runs[run], name)
            assert found is not None
            has_end = before is not None and before.has_end
            version = self.committed(found.version.value)
            self.models[run].write(name, Entry(version, expected[1], has_end=has_end))

    @rule(handle=handles, run=runs, name=names, value=plain, data=st.data())
    def cas(self, handle: int, run: int, name: str, value: Any, data: st.DataObject) -> None:
        live = self.models[run].live(name)
        likely = [None, 0] if live is None else [None, live.version, live.version]
        expected = data.draw(st.sampled_from([*likely, *self.versions[-3:]]), "expected")
        if expected is not None and data.draw(st.booleans()):
            done = self.kv(handle).cas(self.runs[run], name, Version.Txn(expected), value)
        else:
            done = self.kv(handle).cas(self.runs[run], name, expected, value)
        assert done == (expected == (live and live.version))
        if done:
            found = self.kv(handle).get_versioned(self.runs[run], name)
            assert found is not None
            self.models[run].write(name, Entry(self.committed(found.version.value), value))

    # -- batches ------------------------------------------------------------------------------

    @rule(handle=handles, run=runs, items=st.dictionaries(names, plain, max_size=8))
    def mset(self, handle: int, run: int, items: dict[str, Any]) -> None:
        self.set_many(handle, run, items)

    @rule(handle=handles, run=runs, first=st.integers(0, 300), count=st.integers(1, 300))
    def mset_of_neighbours(self, handle: int, run: int, first: int, count: int) -> None:
        self.set_many(handle, run, {f"d{i}": i for i in range(first, first + count)})

    def set_many(self, handle: int, run: int, items: dict[str, Any]) -> None:
        version = self.kv(handle).mset(self.runs[run], items)
        if not items:
            assert version >= self.last_version
            return
        self.committed(version)
        for name, value in items.items():
            self.models[run].write(name, Entry(version, value))

    @rule(handle=handles, run=runs, chosen=st.lists(names, max_size=8))
    def mdelete(self, handle: int, run: int, chosen: list[str]) -> None:
        self.delete_many(handle, run, chosen)

    @rule(handle=handles, run=runs, step=st.integers(1, 5))
    def mdelete_of_neighbours(self, handle: int, run: int, step: int) -> None:
        visible = [name for name in self.models[run].visible() if name.startswith("d")]
        self.delete_many(handle, run, visible[::step])

    def delete_many(self, handle: int, run: int, chosen: list[str]) -> None:
        existing = {name for name in chosen if self.models[run].live(name)}
        assert self.kv(handle).mdelete(self.runs[run], chosen) == len(existing)
        if existing:
            version = self.committed(self.newest_version_of(handle, run, min(existing)))
            for name in existing:
                self.models[run].write(name, Entry(version, None, is_tombstone=True))

    # -- reading ------------------------------------------------------------------------------

    @rule(handle=handles, run=runs, name=names)
    def get(self, handle: int, run: int, name: str) -> None:
        self.check(handle, run, name)

    @rule(handle=handles, run=runs, chosen=st.lists(names, max_size=8))
    def get_many(self, handle: int, run: int, chosen: list[str]) -> None:
        visible = self.models[run].visible()
        found = self.kv(handle).get_many(self.runs[run], chosen)
        assert values.strict_equal(found, [visible.get(name) for name in chosen])
        by_name = {name: visible[name] for name in chosen if name in visible}
        assert values.strict_equal(self.kv(handle).get_many_map(self.runs[run], chosen), by_name)

    @rule(
        handle=handles,
        run=runs,
        prefix=prefixes,
        limit=st.one_of(st.none(), st.integers(0, 5), st.integers(0, 2000)),
        after=st.one_of(st.none(), names),
    )
    def scan(
        self, handle: int, run: int, prefix: str, limit: int | None, after: str | None
    ) -> None:
        visible = self.models[run].visible()
        expected = [(name, value) for name, value in visible.items() if name.startswith(prefix)]
        kv = self.kv(handle)
        assert kv.list(self.runs[run], prefix) == [name for name, _ in expected]
        assert equal_pairs(kv.list_with_values(self.runs[run], prefix), expected)
        if after is not None:
            expected = [pair for pair in expected if pair[0].encode() > after.encode()]
        assert equal_pairs(kv.scan(self.runs[run], prefix, limit, after), expected[:limit])

    # -- the past -----------------------------------------------------------------------------

    def known(self, run: int, data: st.DataObject) -> str:
        """A key that has a history, where there is one."""
        written = ordered(self.models[run].entries)
        return data.draw(st.sampled_from(written) if written else names, "name")

    @rule(handle=handles, run=runs, data=st.data())
    def history(self, handle: int, run: int, data: st.DataObject) -> None:
        name = self.known(run, data)
        limit = data.draw(st.one_of(st.none(), st.integers(0, 3)), "limit")
        before = data.draw(st.one_of(st.none(), st.sampled_from(self.versions)), "before")
        while True:
            whole = self.check_history(handle, run, name)
            found = as_entries(self.kv(handle).history(self.runs[run], name, limit, before))
            if self.check_history(handle, run, name) == whole:
                break  # and the coordinator did not trim or bury in between
        expected = [one for one in whole if before is None or one.version < before]
        assert found == expected[:limit]

    def check_history(self, handle: int, run: int, name: str) -> list[Entry]:
        found = self.kv(handle).history(self.runs[run], name)
        times = [one.timestamp for one in found]
        assert times == sorted(times, reverse=True)
        self.models[run].check_history(name, as_entries(found))
        return as_entries(found)

    @rule(handle=handles, run=runs, off=st.integers(-1, 1), data=st.data())
    def get_at(self, handle: int, run: int, off: int, data: st.DataObject) -> None:
        name = data.draw(names) if data.draw(st.integers(0, 3)) == 0 else self.known(run, data)
        model = self.models[run]
        own = [entry.version for entry in model.entries.get(name, [])]
        # How many there are may depend on the coordinator, so it must not decide what is drawn.
        likely = own[::-1] + self.versions[-2:]
        version = max(0, likely[data.draw(st.integers(0, 9)) % len(likely)] + off)
        self.check_history(handle, run, name)
        before = model.at(name, version)
        kind, found = outcome(lambda: self.kv(handle).get_at(self.runs[run], name, version))
        self.check_history(handle, run, name)
        # In between the coordinator may have buried or trimmed.
        for expected, may_be_missing in (before, model.at(name, version)):
            if kind == "returned":
                right = expected is not None and not expected.is_tombstone
                right = right and values.strict_equal(found.value, expected and expected.value)
                right = right and found.version == Version.Txn(expected.version if expected else 0)
            elif found is errors.HistoryTrimmed:
                right = may_be_missing
            else:
                assert found is errors.KeyNotFound
                gone = expected is None and name not in model.entries
                right = gone or model.may_be_gone(name) or bool(expected and expected.is_tombstone)
            if right:
                return
        raise AssertionError(f"{name!r} at {version}: {kind} {found}, expected {expected}")

    @rule(handle=handles, run=runs, keep=keeps)
    def set_retention(self, handle: int, run: int, keep: int | None) -> None:
        self.retain(handle, run, keep)

    def retain(self, handle: int, run: int, keep: int | None) -> None:
        policy = RetentionPolicy.KeepAll if keep is None else RetentionPolicy.KeepLast(keep)
        self.handles[handle].set_retention(self.runs[run], policy)
        assert self.handles[1 - handle].retention(self.runs[run]) == policy
        self.models[run].retain(keep)
        self.has_record[run] = True
        self.last_version = max(self.last_version, self.newest_version())

    @rule(handle=handles)
    def sweep(self, handle: int) -> None:
        self.clean(handle)

    def clean(self, handle: int) -> None:
        self.handles[handle]._engine.sweep()

    # -- snapshots ----------------------------------------------------------------------------

    @rule(handle=handles)
    def open_snapshot(self, handle: int) -> None:
        self.hold(handle)

    def hold(self, handle: int) -> None:
        snapshot = self.handles[handle].snapshot()
        assert snapshot.version >= self.last_version
        content = [model.visible() for model in self.models]
        self.snapshots.append(HeldSnapshot(handle, snapshot, content))
        self.versions.append(snapshot.version)

    def let_go(self) -> None:
        """Closes the oldest snapshot."""
        if self.snapshots:
            self.close(self.snapshots[0])

    @precondition(lambda self: self.snapshots)
    @rule(run=runs, prefix=prefixes, data=st.data())
    def read_snapshot(self, run: int, prefix: str, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.snapshots), "snapshot")
        self.check_snapshot(held, run, NAMES)
        self.scan_snapshot(held, run, prefix)

    def check_snapshot(self, held: HeldSnapshot, run: int, chosen: list[str]) -> None:
        content, snapshot = held.content[run], held.snapshot
        for name in chosen:
            found = snapshot.get_versioned(self.runs[run], name)
            assert (found is not None) == snapshot.exists(self.runs[run], name)
            assert (found is not None) == (name in content)
            assert values.strict_equal(snapshot.get(self.runs[run], name), content.get(name))
            assert found is None or found.version.value <= snapshot.version

    def scan_snapshot(self, held: HeldSnapshot, run: int, prefix: str) -> None:
        content = held.content[run]
        expected = [(name, value) for name, value in content.items() if name.startswith(prefix)]
        found = list(held.snapshot.scan_prefix(self.runs[run], prefix))
        assert equal_pairs(found, expected)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def close_snapshot(self, data: st.DataObject) -> None:
        self.close(data.draw(st.sampled_from(self.snapshots), "snapshot"))

    def close(self, held: HeldSnapshot) -> None:
        for run in (0, 1):
            self.check_snapshot(held, run, HOT)
            self.scan_snapshot(held, run, "")
        held.snapshot.close()
        self.snapshots.remove(held)

    # -- transactions -------------------------------------------------------------------------

    @rule(
        handle=handles,
        run=runs,
        serializable=st.booleans(),
        script=scripts,
        end=st.sampled_from(["commit", "commit", "commit", "roll back", "keep open"]),
        data=st.data(),
    )
    def transact(
        self,
        handle: int,
        run: int,
        serializable: bool,
        script: Sequence[tuple[Any, ...]],
        end: str,
        data: st.DataObject,
    ) -> None:
        isolation = "serializable" if serializable else "snapshot"
        transaction = self.handles[handle].begin(self.runs[run], isolation)
        model = TransactionModel(self.models[run].visible(), transaction.version, serializable)
        held = HeldTransaction(handle, run, transaction, model)
        self.transactions.append(held)
        self.follow(held, script, data)
        if end == "commit":
            self.commit(held)
        elif end == "roll back":
            self.roll_back(held)

    @precondition(lambda self: self.transactions)
    @rule(
        script=scripts,
        commit=st.booleans(),
        data=st.data(),
    )
    def go_on(self, script: Sequence[tuple[Any, ...]], commit: bool, data: st.DataObject) -> None:
        """One of those kept open is carried on, and ended."""
        held = data.draw(st.sampled_from(self.transactions), "transaction")
        self.follow(held, script, data)
        if commit:
            self.commit(held)
        else:
            self.roll_back(held)

    def follow(
        self, held: HeldTransaction, script: Sequence[tuple[Any, ...]], data: st.DataObject
    ) -> None:
        """Does the parts in the transaction and in its model, with others' writes in between."""
        for call, *arguments in script:
            if call in ("disturb", "haunt"):
                self.meddle(held, call, arguments, data)
                continue
            expected = outcome(lambda: getattr(held.model, call)(*arguments))  # noqa: B023
            found = outcome(lambda: getattr(held.transaction, call)(*arguments))  # noqa: B023
            assert found[0] == expected[0]
            if found[0] == "raised":
                assert found == expected
            elif call == "scan_prefix":
                assert equal_pairs(*drain(found[1], expected[1]))
            else:
                assert values.strict_equal(found[1], expected[1])

    def meddle(
        self, held: HeldTransaction, call: str, arguments: list[Any], data: st.DataObject
    ) -> None:
        """Changes what the transaction has read, or something in a range that it has scanned."""
        targets = held.model.read if call == "disturb" else held.model.ranges
        if targets:
            name = data.draw(st.sampled_from(ordered(targets)), "target")
            if call == "haunt":
                name = name[:500] + data.draw(st.sampled_from(["a", "z"]), "ending")
            handle, how = arguments
            self.change(handle, held.run, name, how)

    def change(self, handle: int, run: int, name: str, how: str) -> None:
        if how == "put":
            self.put_one(handle, run, name, "disturbed")
        elif how == "delete":
            self.delete_one(handle, run, name)
        else:
            self.increment(handle, run, name, 1)

    def commit(self, held: HeldTransaction) -> None:
        run = self.models[held.run]
        self.transactions.remove(held)
        kind, found = outcome(held.transaction.commit)
        if held.model.changed_since(run):
            assert (kind, found) == ("raised", errors.TransactionConflict)
            return
        if found is errors.TransactionConflict:
            assert held.model.may_be_disturbed(run)
            return
        expected = outcome(lambda: held.model.outcome(run))
        if expected[0] == "raised":
            assert (kind, found) == expected
            return
        assert kind == "returned"
        if not held.model.has_writes():
            assert found == held.transaction.version
            return
        changes = {
            name: value
            for name, value in expected[1].items()
            if value is not DELETED or run.live(name)
        }
        if not changes:
            assert found >= self.last_version
            return
        self.committed(found)
        for name, value in changes.items():
            kept = name in held.model.increments and run.live(name)
            has_end = bool(kept and kept.has_end)
            gone = value is DELETED
            run.write(name, Entry(found, None if gone else value, gone, has_end=has_end))

    def roll_back(self, held: HeldTransaction) -> None:
        self.transactions.remove(held)
        held.transaction.rollback()
        with pytest.raises(errors.InvalidState):
            held.transaction.kv_get("a")

    # -- handles ------------------------------------------------------------------------------

    @rule(handle=handles)
    def close_and_open_again(self, handle: int) -> None:
        old, other = self.handles[handle], self.handles[1 - handle]
        old.close()
        for snapshot in [one for one in self.snapshots if one.handle == handle]:
            with pytest.raises(errors.Closed):
                snapshot.snapshot.get(self.runs[0], "a")
            self.snapshots.remove(snapshot)
        for transaction in [one for one in self.transactions if one.handle == handle]:
            with pytest.raises(errors.Closed):
                transaction.transaction.kv_get("a name of no other step")
            self.transactions.remove(transaction)
        with contextlib.closing(pickle.loads(pickle.dumps(other))) as passing:
            self.handles[handle] = pickle.loads(pickle.dumps(passing))

    @invariant()
    def everything_is_there(self) -> None:
        if not hasattr(self, "handles"):
            return
        metrics = self.handles[0].metrics()
        assert metrics.handles == 2
        assert metrics.snapshots == len(self.snapshots) + len(self.transactions)
        readable = sum(len(model.visible()) for model in self.models) + sum(self.has_record)
        readable += len(RUN_INDEX_KEYS)
        expired = sum(len(model.expired()) for model in self.models)
        assert readable <= metrics.keys <= readable + expired

    def check_everything(self) -> None:
        for run, model in enumerate(self.models):
            expected = list(model.visible().items())
            for handle in (0, 1):
                assert equal_pairs(self.kv(handle).scan(self.runs[run]), expected)
            for name in ordered(model.entries):
                self.check_history(0, run, name)
            for held in self.snapshots:
                self.check_snapshot(held, run, NAMES)
                self.scan_snapshot(held, run, "")

    @rule()
    def look_at_everything(self) -> None:
        self.check_everything()


def equal_pairs(found: list[tuple[str, Any]], expected: list[tuple[str, Any]]) -> bool:
    """Whether both hold the same keys and strictly equal values in the same order."""
    return values.strict_equal([list(pair) for pair in found], [list(pair) for pair in expected])


def drain(*pairs: Iterable[tuple[str, Any]]) -> list[list[tuple[str, Any]]]:
    """The items of each up to its end; an error on the way stands as the last item."""
    drained: list[list[tuple[str, Any]]] = []
    for iterable in pairs:
        drained.append([])
        try:
            for pair in iterable:
                drained[-1].append(pair)
        except errors.Error as error:
            drained[-1].append((error.code, None))
    return drained


def as_entries(found: list[Any]) -> list[Entry]:
    return [Entry(one.version.value, one.value, one.is_tombstone) for one in found]


class FolderMachine(StoreMachine):
    """The same on a database in a folder, with a coordinator process of its own."""

    def open(self) -> Database:
        self.folder = tempfile.TemporaryDirectory()
        return Database.open(Path(self.folder.name), Durability.in_memory(), map_size=64 * MIB)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()


class DurableMachine(StoreMachine):
    """The same on a database with a log, which is closed, loses its coordinator, and loses all."""

    def open(self) -> Database:
        self.folder = tempfile.TemporaryDirectory()
        return open_folder(Path(self.folder.name), "buffered")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @precondition(lambda self: hasattr(self, "handles"))
    @rule(mode=st.sampled_from(LOGGED))
    def reopen(self, mode: str) -> None:
        """Everybody closes; whoever comes next may choose another mode."""
        self.forget_what_is_open()
        for handle in self.handles:
            handle.close()
        self.come_back(mode)

    @precondition(lambda self: hasattr(self, "handles"))
    @rule(mode=st.sampled_from(LOGGED))
    def kill_all(self, mode: str) -> None:
        """The log is behind, nobody closes it, and nobody is left: the state of a mass death."""
        self.forget_what_is_open()
        self.await_successor()
        stopped = stop_coordinator(Path(self.folder.name))
        for handle in self.handles:
            handle._close(wait=False)
        os.kill(stopped.pid, signal.SIGKILL)
        assert coordinator.wait_for_end(stopped.identity, 10)
        self.come_back(mode)

    @precondition(lambda self: hasattr(self, "handles"))
    @rule()
    def kill_the_coordinator(self) -> None:
        """What is open stays open, and a successor comes some time."""
        self.await_successor()
        kill_coordinator(Path(self.folder.name))

    def await_successor(self) -> None:
        """One of two deaths in a row has to be that of a living coordinator."""
        folder = Path(self.folder.name)
        wait_until(lambda: info_of(folder).is_alive(), "a successor")

    @precondition(lambda self: hasattr(self, "handles"))
    @rule(handle=handles, flush=st.booleans())
    def save(self, handle: int, flush: bool) -> None:
        if flush:
            self.handles[handle].flush()
        else:
            self.handles[handle].checkpoint()

    def forget_what_is_open(self) -> None:
        for held in list(self.snapshots):
            self.close(held)
        for held_transaction in list(self.transactions):
            self.roll_back(held_transaction)

    def come_back(self, mode: str) -> None:
        """Everything is as it was; what was trimmed since the last checkpoint may be back."""
        written = [
            one.version
            for model in self.models
            for found in model.entries.values()
            for one in found
        ]
        first = open_folder(Path(self.folder.name), mode)
        self.handles = [first, pickle.loads(pickle.dumps(first))]
        for model in self.models:
            model.cut.clear()
        # Versions that upkeep took are in no file, so they may be given out again.
        assert self.newest_version() >= max(written, default=0)
        self.last_version = self.newest_version()
        self.check_everything()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=400, stateful_step_count=50, suppress_health_check=list(HealthCheck)
)
TestFolder = FolderMachine.TestCase
TestFolder.settings = settings(
    max_examples=10, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)
TestDurable = DurableMachine.TestCase
TestDurable.settings = settings(
    max_examples=12, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
