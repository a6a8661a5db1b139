"""primitives.py - the model of a run: plain lists and dicts, and what a transaction makes of them.

Why:        the primitives are compared with something too plain to be wrong. Each write leaves the
            moment of it, so that a conflict is foretold exactly: what was read has a later moment.
Used by:    tests/model/test_primitives.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shm_engine import Custom, RunStatus, TraceType, errors

__all__ = ["Clock", "RunInfo", "RunModel", "TraceModel", "TransactionModel", "outcome"]

DELETED: Final = object()
HEAD: Final = ("head", 0)


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What it returned, or the class of the error."""
    try:
        return "returned", call()
    except errors.Error as error:
        return "raised", type(error)


@dataclass
class Clock:
    """Counts the changes of all runs."""

    now: int = 0

    def tick(self) -> int:
        self.now += 1
        return self.now


@dataclass(frozen=True)
class TraceModel:
    """A trace; `order` is its place among all traces, by the moment in which it was recorded."""

    order: int
    id: str
    kind: TraceType
    tags: tuple[str, ...]
    metadata: Any
    parent: str | None


@dataclass(frozen=True)
class RunInfo:
    """What the run index knows; `order` is the run's place among those that were created."""

    order: int
    status: RunStatus = RunStatus.ACTIVE
    tags: tuple[str, ...] = ()
    parent: int | None = None
    metadata: Any = None
    error: str | None = None


@dataclass
class RunModel:
    """What a run holds in each primitive; `moments` tells when what was changed last."""

    clock: Clock = field(compare=False)
    kv: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    cells: dict[str, tuple[Any, int]] = field(default_factory=dict)
    traces: dict[str, TraceModel] = field(default_factory=dict)
    moments: dict[tuple[str, Any], int] = field(default_factory=dict)

    def copy(self) -> RunModel:
        return RunModel(
            self.clock,
            dict(self.kv),
            list(self.events),
            dict(self.cells),
            dict(self.traces),
            dict(self.moments),
        )

    def touch(self, kind: str, name: Any) -> None:
        self.moments[kind, name] = self.clock.tick()

    # -- keys ---------------------------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        self.kv[key] = value
        self.touch("kv", key)

    def delete(self, key: str) -> bool:
        if key not in self.kv:
            return False
        del self.kv[key]
        self.touch("kv", key)
        return True

    # -- events -------------------------------------------------------------------------------

    def append(self, items: Iterable[tuple[str, Any]]) -> list[int]:
        sequences = []
        for item in items:
            sequences.append(len(self.events))
            self.touch("event", len(self.events))
            self.touch(*HEAD)
            self.events.append(item)
        return sequences

    # -- cells --------------------------------------------------------------------------------

    def version(self, name: str) -> int:
        return self.cells[name][1] if name in self.cells else 0

    def write_cell(self, name: str, value: Any, version: int) -> int:
        self.cells[name] = (value, version)
        self.touch("cell", name)
        return version

    def init(self, name: str, value: Any) -> int:
        if name in self.cells:
            raise errors.InvalidOperation("the cell exists")
        return self.write_cell(name, value, 1)

    def set(self, name: str, value: Any) -> int:
        return self.write_cell(name, value, self.version(name) + 1)

    def cas(self, name: str, expected: int, value: Any) -> int:
        actual = self.version(name)
        if actual == 0:
            raise errors.NotFound("no such cell")
        if actual != expected:
            raise errors.VersionMismatch(expected, actual, "another version")
        return self.write_cell(name, value, actual + 1)

    def transition(self, name: str, value: Any) -> tuple[Any, int]:
        if name not in self.cells:
            raise errors.NotFound("no such cell")
        before = self.cells[name][0]
        return before, self.set(name, value)

    def transition_or_init(self, name: str, value: Any) -> tuple[Any, int]:
        if name not in self.cells:
            self.init(name, "initial")
        return self.transition(name, value)

    def delete_cell(self, name: str) -> bool:
        if name not in self.cells:
            return False
        del self.cells[name]
        self.touch("cell", name)
        return True

    # -- traces -------------------------------------------------------------------------------

    def record(self, trace: TraceModel, own_id: str | None = None) -> str:
        if trace.parent is not None and trace.parent not in self.traces:
            raise errors.NotFound("no such parent")
        if own_id is not None and own_id in self.traces:
            raise errors.InvalidOperation("the id is taken")
        self.add_trace(trace)
        return trace.id

    def add_trace(self, trace: TraceModel) -> None:
        assert trace.id not in self.traces
        self.traces[trace.id] = trace
        self.clock.tick()

    def in_order(self) -> list[TraceModel]:
        return sorted(self.traces.values(), key=lambda trace: trace.order)


@dataclass
class TransactionModel:
    """A view of the run, what was written over it, and what was read of it.

    Attributes:
        given: The id that the store gave to the trace that is recorded next.
        orders: The place of that trace.
        is_over: A call has ended the transaction.
    """

    view: RunModel
    began: int
    serializable: bool
    given: Any = None
    orders: int = 0
    is_over: bool = False
    guards: set[tuple[str, Any]] = field(default_factory=set)
    prefixes: set[str] = field(default_factory=set)
    keys: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    cells: dict[str, tuple[Any, int]] = field(default_factory=dict)
    traces: dict[str, TraceModel] = field(default_factory=dict)

    def kv_get(self, key: str) -> Any:
        if key in self.keys:
            return None if self.keys[key] is DELETED else self.keys[key]
        self.guards.add(("kv", key))
        return self.view.kv.get(key)

    def kv_exists(self, key: str) -> bool:
        if key in self.keys:
            return self.keys[key] is not DELETED
        self.guards.add(("kv", key))
        return key in self.view.kv

    def kv_put(self, key: str, value: Any) -> None:
        self.keys[key] = value

    def kv_delete(self, key: str) -> bool:
        existed = self.kv_exists(key)
        self.keys[key] = DELETED
        return existed

    def kv_list(self, prefix: str) -> list[str]:
        self.prefixes.add(prefix)
        names = {*self.view.kv, *self.keys}
        return [name for name in sorted(names) if name.startswith(prefix) and self._listed(name)]

    def _listed(self, name: str) -> bool:
        return self.keys.get(name) is not DELETED and self.kv_exists(name)

    def event_append(self, event_type: str, payload: Any) -> int:
        self.guards.add(HEAD)
        self.events.append((event_type, payload))
        return len(self.view.events) + len(self.events) - 1

    def event_read(self, sequence: int) -> tuple[str, Any] | None:
        known = self.view.events + self.events
        if sequence < len(known):
            return known[sequence]
        self.guards.add(("event", sequence))
        return None

    def _cell(self, name: str) -> tuple[Any, int]:
        if name in self.cells:
            return self.cells[name]
        self.guards.add(("cell", name))
        return self.view.cells.get(name, (None, 0))

    def state_read(self, name: str) -> Any:
        return self._cell(name)[0]

    def state_init(self, name: str, value: Any) -> int:
        if self._cell(name)[1]:
            raise errors.InvalidOperation("the cell exists")
        return self.state_set(name, value)

    def state_set(self, name: str, value: Any) -> int:
        version = self._cell(name)[1] + 1
        self.cells[name] = (value, version)
        return version

    def state_cas(self, name: str, expected: int, value: Any) -> int:
        actual = self._cell(name)[1]
        if actual == expected:
            return self.state_set(name, value)
        self.is_over = True
        if actual == 0:
            raise errors.NotFound("no such cell")
        raise errors.VersionMismatch(expected, actual, "another version")

    def trace_record(self, kind: TraceType | str, metadata: Any, tags: tuple[str, ...]) -> str:
        return self._record(kind, metadata, tags, None)

    def trace_record_child(
        self, parent: str, kind: TraceType | str, metadata: Any, tags: tuple[str, ...]
    ) -> str:
        if parent not in self.traces and parent not in self.view.traces:
            raise errors.NotFound("no such parent")
        return self._record(kind, metadata, tags, parent)

    def _record(
        self, kind: TraceType | str, metadata: Any, tags: tuple[str, ...], parent: str | None
    ) -> str:
        if isinstance(kind, str):
            kind = Custom(kind)
        tags = tuple(dict.fromkeys(tags))
        trace = TraceModel(self.orders, self.given, kind, tags, metadata, parent)
        self.traces[self.given] = trace
        return trace.id

    # -- ending -------------------------------------------------------------------------------

    def has_writes(self) -> bool:
        return bool(self.keys or self.events or self.cells or self.traces)

    def conflicts(self, run: RunModel) -> bool:
        """Whether something that was read has changed since, so that the commit has to fail."""
        changed = {what for what, moment in run.moments.items() if moment > self.began}
        if changed & self.guards:
            return True
        names = [name for kind, name in changed if kind == "kv"]
        return self.serializable and any(name.startswith(tuple(self.prefixes)) for name in names)

    def apply(self, run: RunModel) -> None:
        """What a commit makes of the run as it is now."""
        for key, value in self.keys.items():
            if value is DELETED:
                run.delete(key)
            else:
                run.put(key, value)
        run.append(self.events)
        for name, (value, version) in self.cells.items():
            run.write_cell(name, value, version)
        for trace in self.traces.values():
            run.add_trace(replace(trace))
