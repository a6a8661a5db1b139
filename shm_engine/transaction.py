"""transaction.py - Snapshot and Transaction: one consistent view, and changes made from it.

Why:        a transaction reads one snapshot, keeps what it writes to itself, and hands both what it
            read and what it writes to one commit, which checks and applies them together.
Used by:    any thread, one at a time; not shared between processes
Invariants: X1 reads see the snapshot and the transaction's own writes, nothing else
            X2 commit conflicts if a key that was read has changed since; blind writes never do
            X3 after commit or rollback every method raises InvalidState
            X4 keys that were written stand in `_writes` once each; events, states and traces stand
            in `_ops` in the order of the calls, and are carried out in that order
Errors:     an error leaves nothing written; the snapshot is let go in any case
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from shm_engine import _core, errors, events, keys, trace_layout, values
from shm_engine._core import RunId
from shm_engine.events import Event
from shm_engine.traces import Custom, TraceType
from shm_engine.versions import Version, Versioned

if TYPE_CHECKING:
    from types import TracebackType

    from shm_engine._core import WriteSet
    from shm_engine.engine import Engine, Name, Pinned

__all__ = ["ISOLATION_LEVELS", "Snapshot", "Transaction"]

ISOLATION_LEVELS: Final = ("snapshot", "serializable")
BATCH: Final = 1024
_DELETED: Final = object()


def scan_pinned(
    engine: Engine, run: RunId | str, prefix: str, pin: Pinned
) -> Iterator[tuple[str, Any]]:
    """The keys with the prefix and their values in order, in batches, at one snapshot."""
    after: str | None = None
    while True:
        names, found = engine.scan(run, keys.TAG_KV, prefix, pin, after, BATCH)
        yield from zip(names, found or (), strict=True)
        if len(names) < BATCH:
            return
        after = names[-1]


class Snapshot:
    """The database as it was at one version; made by `Database.snapshot`.

    Reads take no lock and wait for nobody; writers go on meanwhile. What a snapshot needs is not
    trimmed until it is closed, so keep it no longer than needed. Belongs to the process that made
    it: in a forked child its methods raise InvalidState.

    >>> import shm_engine
    >>> from shm_engine import Database, KVStore, RunId
    >>> with Database.ephemeral() as db:
    ...     kv = KVStore(db)
    ...     _ = kv.put(RunId.DEFAULT, "a", 1)
    ...     with db.snapshot() as snapshot:
    ...         _ = kv.put(RunId.DEFAULT, "a", 2)
    ...         snapshot.get(RunId.DEFAULT, "a"), kv.get(RunId.DEFAULT, "a")
    (1, 2)
    """

    __slots__ = ("_engine", "_pin")

    def __init__(self, engine: Engine, pin: Pinned) -> None:
        self._engine = engine
        self._pin = pin

    @property
    def version(self) -> int:
        """The newest commit that this snapshot sees."""
        return self._pin.version

    @property
    def closed(self) -> bool:
        """Whether it was closed; then reading raises InvalidState."""
        return self._pin.closed

    def get(self, run: RunId | str, key: str) -> Any:
        """The value of `key`, or None. Raises InvalidKey, WrongType (no str), InvalidState."""
        return self._engine.get(run, keys.TAG_KV, key, self._pin)

    def exists(self, run: RunId | str, key: str) -> bool:
        """Whether `key` has a value, None included."""
        return self._engine.get_record(run, keys.TAG_KV, key, self._pin) is not None

    def get_versioned(self, run: RunId | str, key: str) -> Versioned[Any] | None:
        """The value with its version and time, or None."""
        found = self._engine.get_record(run, keys.TAG_KV, key, self._pin)
        if found is None:
            return None
        return Versioned(found[0], Version.Txn(found[1]), found[2])

    def scan_prefix(self, run: RunId | str, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """All (key, value) whose key starts with `prefix`, in the order of their UTF-8 bytes."""
        return scan_pinned(self._engine, run, prefix, self._pin)

    def close(self) -> None:
        """Lets go of what only this snapshot needed; again does nothing."""
        self._pin.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"version {self.version}"
        return f"<Snapshot {state}>"


class Transaction:
    """Reads at one snapshot and writes that commit all or nothing; made by `Database.begin`.

    Args (of `Database.begin` and `Database.transaction`):
        isolation: "snapshot" guards each key that was read, found missing included;
            "serializable" guards the ranges that were scanned too, so that no key may appear.
        timeout: seconds from the beginning; after them every method and the commit raise
            TransactionTimeout, and nothing is written.

    Not thread-safe. Cost: reads as in `KVStore`, the commit about 0.1 us for each key beyond the
    first.
    """

    __slots__ = (
        "_cells",
        "_deadline",
        "_engine",
        "_events",
        "_guards",
        "_increments",
        "_log_length",
        "_ops",
        "_pin",
        "_ranges",
        "_read",
        "_serializable",
        "_state",
        "_traces",
        "_writes",
        "run",
    )

    def __init__(
        self,
        engine: Engine,
        run: RunId | str,
        isolation: str = "snapshot",
        timeout: float | None = None,
    ) -> None:
        if isolation not in ISOLATION_LEVELS:
            raise errors.ConstraintViolation(
                "isolation_unknown",
                f"Isolation {isolation!r} is unknown; use {' or '.join(ISOLATION_LEVELS)}.",
            )
        self.run = _core.to_run(run)
        self._engine = engine
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._serializable = isolation == "serializable"
        self._read: set[str] = set()
        self._ranges: set[str] = set()
        self._writes: dict[str, Any] = {}
        self._increments: dict[str, int] = {}
        self._guards: set[tuple[int, Name]] = set()  # what was read beside keys
        self._ops: WriteSet = engine.write_set(self.run)
        self._log_length = 0  # of the run's log in the snapshot, from the first event_append on
        self._events: list[bytes] = []  # packed, behind it
        self._cells: dict[str, tuple[bytes, int]] = {}  # packed value and version
        self._traces: dict[str, bytes] = {}  # UUIDs of own ones, which may be parents
        self._state = "active"
        self._pin: Pinned = engine.open_pin()

    @property
    def version(self) -> int:
        """The version of the snapshot that this transaction reads."""
        return self._pin.version

    @property
    def is_active(self) -> bool:
        """Whether it can still be used: neither committed nor rolled back."""
        return self._state == "active"

    def _check(self) -> None:
        if self._state != "active":
            raise errors.InvalidState(
                f"The transaction is {self._state}; begin another one to go on."
            )
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.rollback()
            raise errors.TransactionTimeout(
                "The transaction's time is over; nothing of it was written. Give it a longer "
                "timeout, or do less in it."
            )

    # -- keys ---------------------------------------------------------------------------------

    def kv_get(self, key: str) -> Any:
        """The value of `key` in this transaction, or None. Guards the key."""
        self._check()
        _check_kind(key)
        written = self._writes.get(key)
        if written is not None:
            return None if written is _DELETED else values.decode(written)
        delta = self._increments.get(key)
        missing = None if delta is None else 0
        found = self._engine.get(self.run, keys.TAG_KV, key, self._pin, missing)
        self._read.add(key)
        return found if delta is None else self._incremented(key, found, delta)

    def kv_exists(self, key: str) -> bool:
        """Whether `key` has a value in this transaction, None included. Guards the key."""
        self._check()
        _check_kind(key)
        written = self._writes.get(key)
        if written is not None:
            return written is not _DELETED
        found = self._engine.get_record(self.run, keys.TAG_KV, key, self._pin)
        self._read.add(key)
        return found is not None or key in self._increments

    def kv_put(self, key: str, value: Any) -> None:
        """Writes `value` under `key` at commit. Never conflicts by itself.

        The value is encoded at once: changing the object afterwards changes nothing here.
        Raises InvalidKey, WrongType, ConstraintViolation, SerializationError.
        """
        self._check()
        packed = self._engine.encode(value)
        self._engine.check_name(key)
        self._increments.pop(key, None)
        self._writes[key] = packed

    def kv_delete(self, key: str) -> bool:
        """Removes `key` at commit; whether it had a value in this transaction. Guards the key."""
        existed = self.kv_exists(key)
        self._increments.pop(key, None)
        self._writes[key] = _DELETED
        return existed

    def kv_incr(self, key: str, delta: int = 1) -> None:
        """Adds `delta` to the int under `key` at commit; a missing key counts as 0.

        The addition is done inside the commit: it never conflicts, however many processes add to
        the same key. The new value is not known before; `kv_get` reads (and guards) it.

        Raises:
            WrongType: the key holds no int (at commit), or delta is no int.
            ConstraintViolation: delta or the sum leaves the 64-bit signed range (at commit).
        """
        self._check()
        if type(delta) is not int:
            raise errors.WrongType("int", values.class_name(delta))
        self._engine.check_name(key)
        written = self._writes.get(key)
        if written is not None:
            base = 0 if written is _DELETED else values.decode(written)
            self._writes[key] = self._engine.encode(self._incremented(key, base, delta))
            return
        total = self._increments.get(key, 0) + delta
        self._engine.encode(total)
        self._increments[key] = total

    def kv_list(self, prefix: str | None = None) -> list[str]:
        """The keys with the prefix, in order, own writes included. Guards each of them."""
        return [key for key, _ in self.scan_prefix("" if prefix is None else prefix)]

    def scan_prefix(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(key, value) in order, own writes included, as they are at the first step.

        Guards each key that it yields; with isolation="serializable" the whole range.
        """
        self._check()
        self._engine.check_name(prefix, True)  # now, and not at the first step
        return self._scan(prefix)

    def _scan(self, prefix: str) -> Iterator[tuple[str, Any]]:
        self._check()
        self._ranges.add(prefix)
        own = sorted(
            (key for key in {**self._writes, **self._increments} if key.startswith(prefix)),
            key=lambda key: key.encode("utf-8"),
            reverse=True,
        )
        for key, value in scan_pinned(self._engine, self.run, prefix, self._pin):
            while own and own[-1].encode("utf-8") < key.encode("utf-8"):
                yield from self._own_item(own.pop())
            if own and own[-1] == key:
                yield from self._own_item(own.pop())
                continue
            self._read.add(key)
            yield key, value
        while own:
            yield from self._own_item(own.pop())

    get = kv_get
    put = kv_put
    delete = kv_delete
    exists = kv_exists
    incr = kv_incr
    list = kv_list

    def _own_item(self, key: str) -> Iterator[tuple[str, Any]]:
        if self._writes.get(key) is not _DELETED:
            yield key, self.kv_get(key)

    @staticmethod
    def _incremented(key: str, base: Any, delta: int) -> int:
        if type(base) is not int:
            raise errors.WrongType(
                "int",
                values.class_name(base),
                f"{key!r} holds {values.class_name(base)}, so it cannot be incremented.",
            )
        if not values.INT_MIN <= base + delta <= values.INT_MAX:
            raise errors.ConstraintViolation(
                "int_out_of_range",
                f"Incrementing {key!r} by {delta} would leave the 64-bit signed range.",
            )
        return base + delta

    # -- events -------------------------------------------------------------------------------

    def event_append(self, event_type: str, payload: Any) -> int:
        """Puts an event behind the run's log at commit; returns the sequence that it will have.

        If somebody else's append is committed first, the transaction conflicts (an append outside
        of transactions never does). Raises InvalidKey, WrongType, ConstraintViolation,
        SerializationError.
        """
        self._check()
        packed = self._engine.encode_event(event_type, payload)
        if not self._events:
            head = self._engine.get(self.run, keys.TAG_EVENT, events.HEAD, self._pin)
            self._log_length = 0 if head is None else events.head_of(head)[0]
        sequence = self._log_length + len(self._events)
        self._events.append(packed)
        self._ops.add(_core.OP_APPEND, keys.TAG_EVENT, events.HEAD, packed, 0, sequence)
        return sequence

    def event_read(self, sequence: int) -> Event | None:
        """The event with this sequence, an own one included, or None (which is guarded).

        An own event gets its time and its hashes at commit: here the time is now, the hashes are
        zero.
        """
        self._check()
        if type(sequence) is not int:
            kind = values.class_name(sequence)
            raise errors.WrongType("int", kind, f"sequence is a {kind}; give an int.")
        if not 0 <= sequence < events.SEQUENCE_MAX:
            return None
        place = sequence - self._log_length
        if 0 <= place < len(self._events):
            now_us = time.time_ns() // 1000
            _, _, event_type, payload = values.decode(self._events[place])
            stored = (events.GENESIS, events.GENESIS, event_type, payload)
            return events.make_event(sequence, stored, now_us)
        name = events.entry_name(sequence)
        found = self._engine.get_record(self.run, keys.TAG_EVENT, name, self._pin)
        if found is None:
            self._guards.add((keys.TAG_EVENT, name))
            return None
        return events.make_event(sequence, found[0], found[2])

    # -- state cells --------------------------------------------------------------------------

    def state_read(self, name: str) -> Any:
        """The value of the state cell in this transaction, or None. Guards the cell."""
        self._check()
        return self._cell(name)[0]

    def state_init(self, name: str, value: Any) -> int:
        """Makes the cell at commit; its version, 1. InvalidOperation if it exists already."""
        self._check()
        packed = self._engine.encode_counted(value)
        version = self._cell(name)[1]
        if version:
            raise errors.InvalidOperation(
                f"The state cell {name!r} exists already, at version {version}; change it with "
                f"state_cas() or state_set()."
            )
        return self._write_cell(name, packed, 1)

    def state_set(self, name: str, value: Any) -> int:
        """Writes the cell at commit, whatever it holds; the version that it will have. Guards the
        cell, for the version would be wrong if another write came first."""
        self._check()
        packed = self._engine.encode_counted(value)
        return self._write_cell(name, packed, self._cell(name)[1] + 1)

    def state_cas(self, name: str, expected_version: int, new_value: Any) -> int:
        """Writes the cell at commit if it is at `expected_version` in this transaction; the version
        that it will have. 0: if there is no such cell. Guards the cell.

        Raises:
            VersionMismatch, NotFound (no such cell): the whole transaction is rolled back.
        """
        self._check()
        if type(expected_version) is not int:
            kind = values.class_name(expected_version)
            raise errors.WrongType("int", kind, f"expected_version is a {kind}; give an int.")
        packed = self._engine.encode_counted(new_value)
        version = self._cell(name)[1]
        if version == expected_version:
            return self._write_cell(name, packed, version + 1)
        self.rollback()
        if version == 0:
            raise errors.NotFound(f"There is no state cell {name!r}; state_init() makes it.")
        raise errors.VersionMismatch(
            expected_version,
            version,
            f"The state cell {name!r} is at version {version}, not {expected_version}; nothing "
            f"of the transaction was written.",
        )

    def _cell(self, name: str) -> tuple[Any, int]:
        """The cell's value and version as this transaction sees it; 0: there is none."""
        _check_kind(name)
        own = self._cells.get(name)
        if own is not None:
            return values.decode(own[0])[1], own[1]
        found = self._engine.get_counted(self.run, keys.TAG_STATE, name, self._pin)
        self._guards.add((keys.TAG_STATE, name))
        return (None, 0) if found is None else (found[0], found[1])

    def _write_cell(self, name: str, packed: bytes, version: int) -> int:
        self._cells[name] = (packed, version)
        self._ops.add(_core.OP_BUMP, keys.TAG_STATE, name, packed, 0, -1)
        return version

    # -- traces -------------------------------------------------------------------------------

    def trace_record(
        self, trace_type: TraceType | str, metadata: Any = None, tags: Iterable[str] = ()
    ) -> str:
        """Records a trace without a parent at commit; its id, "trace-<uuid>".

        A str is the name of a `Custom` type. The trace's time is that of this call. It never
        conflicts.
        """
        self._check()
        kind = _custom(trace_type) if isinstance(trace_type, str) else trace_type
        trace_id, uuid = trace_layout.add_trace(self._ops, kind, tags, metadata)
        self._traces[trace_id] = uuid
        return trace_id

    def trace_record_child(
        self,
        parent_id: str,
        trace_type: TraceType | str,
        metadata: Any = None,
        tags: Iterable[str] = (),
    ) -> str:
        """The same below the trace with the id `parent_id`, an own one included; NotFound if this
        transaction sees none."""
        self._check()
        kind = _custom(trace_type) if isinstance(trace_type, str) else trace_type
        own = self._traces.get(parent_id) if type(parent_id) is str else None
        if own is not None:
            parent = trace_layout.Parent(parent_id, own, 0)
        else:
            found = trace_layout.locate(self._engine, self.run, parent_id, self._pin)
            if found is None:
                raise trace_layout.missing_parent(self.run, parent_id)
            parent = trace_layout.Parent(parent_id, found[0], found[2])
        trace_id, uuid = trace_layout.add_trace(self._ops, kind, tags, metadata, parent)
        self._traces[trace_id] = uuid
        return trace_id

    # -- ending -------------------------------------------------------------------------------

    def commit(self) -> int:
        """Makes all writes visible at once; returns their version.

        Without writes nothing is committed, nothing conflicts, and the snapshot's version comes
        back.

        Raises:
            TransactionConflict: a key that was read has changed since; run the whole again.
            TransactionTimeout, RunError (the run is not active), StorageFull, Unavailable.
        """
        self._check()
        try:
            if not self._writes and not self._increments and not self._ops:
                return self._pin.version
            self._finish_ops()
            return self._engine.commit(self.run, self._ops, self._pin.version)[0]
        except errors.TransactionConflict as conflict:
            self._end("rolled back")
            if isinstance(conflict.key, bytes):
                raise _conflict_beside_keys(conflict.key) from None
            raise
        except errors.VersionMismatch:
            self._end("rolled back")
            raise _conflict_beside_keys(b"") from None  # the parent of a trace
        except BaseException:
            self._end("rolled back")
            raise
        finally:
            if self._state == "active":
                self._end("committed")

    def _finish_ops(self) -> None:
        """The write set has events, states and traces; what was read and the keys are added."""
        add, tag = self._ops.add, keys.TAG_KV
        for key in self._read:
            add(_core.OP_CHECK, tag, key)
        for kind, name in self._guards:
            add(_core.OP_CHECK, kind, name)
        if self._serializable:
            for prefix in self._ranges:
                add(_core.OP_CHECK_RANGE, tag, prefix)
        for key, packed in self._writes.items():
            if packed is _DELETED:
                add(_core.OP_DELETE, tag, key)
            else:
                add(_core.OP_PUT, tag, key, packed)
        for key, delta in self._increments.items():
            add(_core.OP_INCREMENT, tag, key, None, 0, delta)
        if self._traces:
            trace_layout.count_traces(self._ops, len(self._traces))

    def rollback(self) -> None:
        """Drops all writes; after a commit or again it does nothing."""
        if self._state == "active":
            self._end("rolled back")

    def _end(self, state: str) -> None:
        self._state = state
        self._pin.close()
        self._writes.clear()
        self._increments.clear()
        self._events.clear()
        self._cells.clear()
        self._traces.clear()

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.rollback()
        elif self._state == "active":
            self.commit()

    def __repr__(self) -> str:
        writes = len(self._writes) + len(self._increments) + len(self._ops)
        return f"<Transaction {self._state}, {writes} writes>"


@functools.lru_cache(1024)
def _custom(name: str) -> Custom:
    """The type of a trace that was given by its name; the same few come again and again."""
    return Custom(name)


def _conflict_beside_keys(name: bytes) -> errors.TransactionConflict:
    """A conflict about what has no name that the caller would know."""
    if name == events.HEAD:
        text = "another event was appended to the run's log since this transaction began"
    else:
        text = "what this transaction read was changed by another commit since"
    return errors.TransactionConflict(None, f"{text}; run it again")


def _check_kind(key: str) -> None:
    """Refuses what is no str in the engine's words, before a dict finds it unhashable."""
    if type(key) is not str:
        kind = values.class_name(key)
        raise errors.WrongType("str", kind, f"A key is a str, not {kind}.")
