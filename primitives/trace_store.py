"""trace_store.py - TraceStore, what agents did and thought, by run: recorded, and found again.

Why:        a trace is written once and read when something went wrong: by its id, by what it is
            about, by when it was, and as the tree of what led to what.
Used by:    any thread of any process that has the database open; holds no state of its own
Invariants: a trace and its entries in all indexes are one commit; an answer is taken from one
            snapshot, and in the order of time (trace_layout.py has the keys)
Errors:     those of each method; an error leaves nothing changed and the store usable
Cost:       record: one commit of 4 keys and one for each tag; a query its answer, never all traces
"""

from __future__ import annotations

import builtins
import gc
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from shm_engine import errors, keys, trace_layout, values
from shm_engine._core import NAMES, VALUES
from shm_engine.primitives.arguments import as_count, as_list, engine_of
from shm_engine.trace_layout import (
    BY_PARENT,
    RECORD,
    UUID_SIZE,
    Parent,
    add_trace,
    build,
    count_traces,
    listed_tags,
    locate,
    missing_parent,
    shown,
)
from shm_engine.traces import KIND_NAMES, Custom, Trace, TraceOptions, TraceTree, TraceType

if TYPE_CHECKING:
    from shm_engine._core import RunId, WriteSet
    from shm_engine.database import Database
    from shm_engine.engine import Pinned

__all__ = ["TraceStore"]

TAG: Final = keys.TAG_TRACE
BATCH: Final = 256  # records that are decoded and not yet made traces
TIME_END: Final = 2**48


class TraceStore:
    """Traces, by run. Make as many as you like: `TraceStore(db)`.

    A trace has a type (`TraceType`), tags, metadata, perhaps a parent, and an id; it never changes,
    and goes with its run. A tag, as the name of a type, is a str of 1 to 256 UTF-8 bytes without
    NUL, else InvalidKey (WrongType if it is no str); metadata is any value, nested up to 127 deep.
    `run` is a RunId or its string; it need not be registered. Writes to a registered run that is
    not active raise RunError; a store without memory raises StorageFull; a closed handle Closed.

    Every list is in the order of time, which processes agree on as far as their clocks do. `limit`
    bounds how many come (0 and more; None for all), and `after`, the id of a trace, lets the list
    begin behind it: page by giving the last id of a page as `after` of the next. Each page is one
    snapshot; an `after` that does not exist is NotFound.

    >>> from shm_engine import Database, TraceStore, TraceType
    >>> with Database.ephemeral() as db:
    ...     traces = TraceStore(db)
    ...     run = db.begin_run()
    ...     top = traces.record(run, TraceType.Decision("which?", ["a", "b"], "b"), ["plan"])
    ...     call = TraceType.ToolCall("search", {"query": "b"}, result=[], duration_ms=150)
    ...     _ = traces.record_child(run, top, call, ["search", "external-api"])
    ...     for depth, trace in traces.get_tree(run, top).walk():
    ...         print(depth, trace.trace_type.type_name(), trace.tags)
    0 Decision ['plan']
    1 ToolCall ['search', 'external-api']
    """

    __slots__ = ("_commit", "_engine", "_write_set", "database")

    def __init__(self, database: Database) -> None:
        engine = engine_of(database)
        self.database = database
        self._engine = engine
        self._commit = engine.commit
        self._write_set = engine.write_set

    # -- recording ----------------------------------------------------------------------------

    def record(
        self,
        run: RunId | str,
        trace_type: TraceType,
        tags: Iterable[str] = (),
        metadata: Any = None,
    ) -> str:
        """Records a trace without a parent; returns its id, "trace-<uuid>".

        Equal tags are kept once. Raises WrongType, InvalidKey, ConstraintViolation or
        SerializationError for what cannot be stored, naming the field.
        """
        writes = self._write_set(run)
        trace_id, _ = add_trace(writes, trace_type, tags, metadata)
        count_traces(writes, 1)
        self._commit(run, writes, 0)
        return trace_id

    def record_child(
        self,
        run: RunId | str,
        parent_id: str,
        trace_type: TraceType,
        tags: Iterable[str] = (),
        metadata: Any = None,
    ) -> str:
        """As `record`, below the trace with the id `parent_id`; NotFound if there is none."""
        if parent_id is None:
            raise errors.WrongType("str", "NoneType", "A trace's id is a str, not NoneType.")
        return self._record(run, trace_type, None, parent_id, tags, metadata)

    def record_with_options(
        self,
        run: RunId | str,
        trace_type: TraceType,
        options: TraceOptions | None = None,
        *,
        id: str | None = None,
        parent_id: str | None = None,
        tags: Iterable[str] = (),
        metadata: Any = None,
    ) -> str:
        """As `record`, with `TraceOptions` or its fields as keywords; returns the id.

        The time of a trace with an id of one's own is that of its recording, too.

        Raises:
            InvalidOperation: the id exists; of any number of processes that record under the same
                one, exactly one succeeds. Or both options and keywords are given.
            InvalidKey: the id is no key of KVStore: 1 to 1024 UTF-8 bytes, no NUL, not starting
                with ``_strata/``.
            NotFound: the parent does not exist.
        """
        if options is None:
            return self._record(run, trace_type, id, parent_id, tags, metadata)
        if not isinstance(options, TraceOptions):
            raise errors.WrongType("TraceOptions", values.class_name(options))
        if id is not None or parent_id is not None or tags != () or metadata is not None:
            raise errors.InvalidOperation(
                "Keywords were given beside TraceOptions; put them into it."
            )
        return self._record(
            run, trace_type, options.id, options.parent_id, options.tags, options.metadata
        )

    def _record(
        self,
        run: RunId | str,
        trace_type: TraceType,
        own_id: str | None,
        parent_id: str | None,
        tags: Iterable[str],
        metadata: Any,
    ) -> str:
        tags = listed_tags(tags)
        while True:
            parent = None if parent_id is None else self._parent(run, parent_id)
            writes = self._write_set(run)
            trace_id, _ = add_trace(writes, trace_type, tags, metadata, parent, own_id)
            count_traces(writes, 1)
            try:
                self._commit(run, writes, 0)
            except errors.VersionMismatch:
                self._check_free(run, own_id)
            else:
                return trace_id

    def record_many(
        self, run: RunId | str, items: Iterable[tuple[TraceType, TraceOptions]]
    ) -> builtins.list[str]:
        """Records all in one commit, or none; returns their ids.

        An item may name an id that an earlier one was given as its parent. At most 1,048,576 keys
        and 64 MiB together, else ConstraintViolation. Raises as `record_with_options`.
        """
        wanted = [_checked(item) for item in as_list(items, "pairs of TraceType and TraceOptions")]
        while wanted:
            writes = self._write_set(run)
            ids = self._add_many(run, writes, wanted)
            try:
                self._commit(run, writes, 0)
            except errors.VersionMismatch:
                for _, options in wanted:
                    self._check_free(run, options.id)
            else:
                return ids
        return []

    def _add_many(
        self,
        run: RunId | str,
        writes: WriteSet,
        wanted: builtins.list[tuple[TraceType, TraceOptions]],
    ) -> builtins.list[str]:
        parents: dict[str, Parent] = {}
        given: set[str] = set()
        ids: builtins.list[str] = []
        for trace_type, options in wanted:
            parent = None
            if options.parent_id is not None:
                known = parents.get(options.parent_id) if type(options.parent_id) is str else None
                parent = known or self._parent(run, options.parent_id)
                parents[parent.id] = parent._replace(version=0)  # one expectation is enough
            trace_id, uuid = add_trace(
                writes, trace_type, options.tags, options.metadata, parent, options.id
            )
            if options.id is not None:
                if trace_id in given:
                    raise _taken(trace_id)
                given.add(trace_id)
                parents[trace_id] = Parent(trace_id, uuid, 0)
            ids.append(trace_id)
        count_traces(writes, len(wanted))
        return ids

    def _parent(self, run: RunId | str, parent_id: str) -> Parent:
        found = locate(self._engine, run, parent_id)
        if found is None:
            raise missing_parent(run, parent_id)
        return Parent(parent_id, found[0], found[2])

    def _check_free(self, run: RunId | str, own_id: str | None) -> None:
        """After a refused commit: raises if it was because of the id. Else a parent has gone since
        it was read, and looking for it again will tell."""
        if own_id is not None and self._is_taken(run, own_id):
            raise _taken(own_id)

    def _is_taken(self, run: RunId | str, own_id: str) -> bool:
        names = (trace_layout.by_id(own_id), trace_layout.record_of(own_id))
        return any(name and self._engine.get_record(run, TAG, name) for name in names)

    # -- one trace ----------------------------------------------------------------------------

    def get(self, run: RunId | str, trace_id: str) -> Trace | None:
        """The trace with this id, or None. Raises WrongType if the id is no str."""
        found = locate(self._engine, run, trace_id)
        return None if found is None else build(found[0], found[1])

    def exists(self, run: RunId | str, trace_id: str) -> bool:
        """Whether there is a trace with this id."""
        return locate(self._engine, run, trace_id) is not None

    def count(self, run: RunId | str) -> int:
        """How many traces the run has. Cost: one read."""
        count: int = self._engine.get(run, TAG, trace_layout.COUNT, None, 0)
        return count

    # -- lists --------------------------------------------------------------------------------

    def list(
        self, run: RunId | str, limit: int | None = None, after: str | None = None
    ) -> builtins.list[Trace]:
        """All traces of the run."""
        return self._between(run, 0, TIME_END, limit, after)

    def query_by_time(
        self,
        run: RunId | str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
        after: str | None = None,
    ) -> builtins.list[Trace]:
        """Those with ``start_ms <= timestamp < end_ms``, in milliseconds since 1970.

        Raises WrongType if one of them is no int.
        """
        for name, moment in (("start_ms", start_ms), ("end_ms", end_ms)):
            if type(moment) is not int:
                kind = values.class_name(moment)
                raise errors.WrongType(
                    "int", kind, f"{name} is an int, milliseconds since 1970, not {kind}."
                )
        return self._between(run, max(start_ms, 0), min(end_ms, TIME_END), limit, after)

    def query_by_type(
        self,
        run: RunId | str,
        trace_type: str | type[TraceType] | TraceType,
        limit: int | None = None,
        after: str | None = None,
    ) -> builtins.list[Trace]:
        """Those whose `TraceType.type_name` is this; also given as ToolCall or another class."""
        start = trace_layout.by_type(_type_name(trace_type))
        return self._indexed(run, start, limit, after)

    def query_by_tag(
        self, run: RunId | str, tag: str, limit: int | None = None, after: str | None = None
    ) -> builtins.list[Trace]:
        """Those with the tag."""
        return self._indexed(run, trace_layout.by_tag(tag), limit, after)

    def get_roots(
        self, run: RunId | str, limit: int | None = None, after: str | None = None
    ) -> builtins.list[Trace]:
        """Those without a parent."""
        return self._indexed(run, trace_layout.ROOTS, limit, after)

    def get_children(
        self,
        run: RunId | str,
        parent_id: str,
        limit: int | None = None,
        after: str | None = None,
    ) -> builtins.list[Trace]:
        """Those directly below the trace with this id; none if it does not exist."""
        bound = as_count(limit)
        with closing(self._engine.open_pin()) as pin:
            found = locate(self._engine, run, parent_id, pin)
            if found is None:
                return []
            return self._entries(run, BY_PARENT + found[0], pin, bound, after)

    def _between(
        self, run: RunId | str, start_ms: int, end_ms: int, limit: int | None, after: str | None
    ) -> builtins.list[Trace]:
        left = as_count(limit)
        traces: builtins.list[Trace] = []
        with closing(self._engine.open_pin()) as pin:
            begin = b"" if after is None else self._place(run, after, pin)
            if start_ms >= end_ms:
                return traces
            begin = RECORD + max(begin, start_ms.to_bytes(6, "big"))
            stop = RECORD + end_ms.to_bytes(6, "big") if end_ms < TIME_END else None
            while left is None or left > 0:
                size = BATCH if left is None else min(left, BATCH)
                names, found = self._engine.scan(run, TAG, RECORD, pin, begin, size, VALUES, stop)
                traces += [
                    build(name[1:], record) for name, record in zip(names, found or (), strict=True)
                ]
                if len(names) < size:
                    break
                begin = names[-1]
                left = None if left is None else left - size
        return traces

    def _indexed(
        self, run: RunId | str, start: bytes, limit: int | None, after: str | None
    ) -> builtins.list[Trace]:
        bound = as_count(limit)
        with closing(self._engine.open_pin()) as pin:
            return self._entries(run, start, pin, bound, after)

    def _entries(
        self, run: RunId | str, start: bytes, pin: Pinned, limit: int | None, after: str | None
    ) -> builtins.list[Trace]:
        """The traces of the entries of an index that begin so."""
        place = None if after is None else start + self._place(run, after, pin)
        names, _ = self._engine.scan(run, TAG, start, pin, place, limit, NAMES)
        return self._traces(run, [name[-UUID_SIZE:] for name in names], pin)

    def _traces(
        self, run: RunId | str, uuids: builtins.list[bytes], pin: Pinned
    ) -> builtins.list[Trace]:
        traces: builtins.list[Trace] = []
        for at in range(0, len(uuids), BATCH):
            part = uuids[at : at + BATCH]
            found = self._engine.get_many(run, TAG, [RECORD + uuid for uuid in part], pin)
            traces += map(build, part, found)
        return traces

    def _place(self, run: RunId | str, after: str, pin: Pinned) -> bytes:
        found = locate(self._engine, run, after, pin)
        if found is None:
            raise errors.NotFound(
                f"after is {shown(after)}, which is no trace of the run {run}; "
                "give the id of one that is."
            )
        return found[0]

    # -- trees --------------------------------------------------------------------------------

    def get_tree(self, run: RunId | str, root_id: str) -> TraceTree | None:
        """The trace with this id and all below it, however deep; None if it does not exist.

        It may be any trace, not only one without a parent. Cost: about 4 us for each of its
        traces; of others little.
        """
        with closing(self._engine.open_pin()) as pin:
            found = locate(self._engine, run, root_id, pin)
            if found is None:
                return None
            uuids, parents = self._engine.descend(run, TAG, trace_layout.BY_PARENT, found[0], pin)
            with _collector_held_back():
                trees = [TraceTree(trace) for trace in self._traces(run, uuids, pin)]
        for place in range(1, len(trees)):
            trees[parents[place]].children.append(trees[place])
        return trees[0]


@contextmanager
def _collector_held_back() -> Iterator[None]:
    """A growing tree, which has no cycles, would be gone through again and again: that took as long
    as making it. Another thread's garbage waits for these milliseconds."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _type_name(trace_type: str | type[TraceType] | TraceType) -> str:
    if isinstance(trace_type, TraceType):
        return trace_type.type_name()
    if isinstance(trace_type, type) and issubclass(trace_type, TraceType):
        name = KIND_NAMES.get(trace_type)
        if name is None or trace_type is Custom:
            raise errors.ConstraintViolation(
                "type_without_name",
                f"Traces are not found by {trace_type.__name__}; give the name of the type.",
            )
        return name
    return trace_type


def _checked(item: Any) -> tuple[TraceType, TraceOptions]:
    if (
        not isinstance(item, tuple | list)
        or len(item) != 2
        or not isinstance(item[1], TraceOptions)
    ):
        raise errors.WrongType(
            "pair of TraceType and TraceOptions",
            values.class_name(item),
            "The items are pairs (trace_type, TraceOptions); one of them is not.",
        )
    trace_type, options = item
    return trace_type, replace(options, tags=listed_tags(options.tags))


def _taken(own_id: str) -> errors.InvalidOperation:
    return errors.InvalidOperation(
        f"The trace {shown(own_id)} exists already; choose another id, or leave it out."
    )
