"""trace_layout.py - how a trace stands in the store: its keys, its record, the commit that adds it.

Why:        traces are asked for by id, time, type, tag and parent, and an answer must cost what it
            gives. So one commit writes the record and an entry in each index. Behind run and tag:

                02 uuid               the record: [kind, [fields], tags, metadata, parent, own id]
                01 'y' type 00 uuid   nil, by the name of the type
                01 'g' tag 00 uuid    nil, for each tag
                01 'p' parent uuid    nil, by the parent's UUID; of roots, 16 zero bytes
                01 'i' own id 00      the UUID: only of traces that were given an id
                01 'n'                how many traces there are

            A UUID begins with the time, so every index, and the records themselves, lie in the
            order of time.
Used by:    primitives/trace_store.py, transaction.py; any thread of any process; no state but what
            names look like in bytes
Shared:     the keys above -> FORMAT.md, "Traces"
Invariants: L1 record, entries and counter are written in one commit, and never again
            (test_trace_store)
            L2 no key is a prefix of another one: names hold no NUL, a UUID has 16 bytes
            (test_trace_store)
            L3 a parent is there in the moment of the commit, and its child was not before: there
            are no cycles (test_trace_store)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shm_engine import errors, keys, values
from shm_engine._core import OP_EXPECT, OP_INCREMENT, OP_PUT, check_name
from shm_engine.trace_ids import new_uuid, parse_id, text_of, time_of
from shm_engine.traces import (
    FILLERS,
    KINDS,
    Decision,
    Trace,
    TraceType,
    check_value,
    short_name,
)

if TYPE_CHECKING:
    from shm_engine._core import RunId, WriteSet
    from shm_engine.engine import Engine, Pinned

__all__ = [
    "BY_PARENT",
    "COUNT",
    "RECORD",
    "ROOTS",
    "UUID_SIZE",
    "Parent",
    "add_trace",
    "build",
    "by_id",
    "by_tag",
    "by_type",
    "count_traces",
    "listed_tags",
    "locate",
    "missing_parent",
    "record_of",
    "shown",
]

TAG: Final = keys.TAG_TRACE
RECORD: Final = keys.ENTRY
BY_TYPE: Final = keys.BOOKKEEPING + b"y"
BY_TAG: Final = keys.BOOKKEEPING + b"g"
BY_PARENT: Final = keys.BOOKKEEPING + b"p"
BY_ID: Final = keys.BOOKKEEPING + b"i"
COUNT: Final = keys.BOOKKEEPING + b"n"
UUID_SIZE: Final = 16
RECORD_LENGTH: Final = 6
NO_PARENT: Final = bytes(UUID_SIZE)
ROOTS: Final = BY_PARENT + NO_PARENT
NOTHING: Final = b"\xc0"  # packed None
UUID_HEAD: Final = b"\xc4\x10"  # of 16 packed bytes
NAMES_KEPT: Final = 4096
DECISION: Final = 2  # of KINDS


def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


_FIELDS: Final[dict[type[TraceType], tuple[int, Callable[[Any], tuple[Any, ...]]]]] = {
    kind: (number, attrgetter(*_field_names(kind))) for number, kind in KINDS.items()
}
_MAKERS: Final = {number: (kind, FILLERS[kind]) for number, kind in KINDS.items()}
_new: Final = object.__new__
_new_tuple: Final[Callable[[type[Trace], tuple[Any, ...]], Trace]] = tuple.__new__
_set_options: Final = Decision.__dict__["options"].__set__
# The starts of index entries, by type name and by tag: the same few come again and again.
_types: Final[dict[str, bytes]] = {}
_tags: Final[dict[str, bytes]] = {}


class Parent(NamedTuple):
    """The trace that a new one belongs to."""

    id: str
    uuid: bytes
    version: int
    """Of its record, which is expected to be there still; 0 if the same commit writes it."""


def by_type(name: str) -> bytes:
    """How the entries of a type begin; raises InvalidKey or WrongType if no type has the name."""
    found = _types.get(name) if type(name) is str else None
    return found or _start(_types, BY_TYPE, "A trace's type", name)


def by_tag(tag: str) -> bytes:
    """How the entries of a tag begin; raises InvalidKey or WrongType if it is none."""
    found = _tags.get(tag) if type(tag) is str else None
    return found or _start(_tags, BY_TAG, "A trace's tag", tag)


def _start(known: dict[str, bytes], index: bytes, what: str, name: str) -> bytes:
    start = index + short_name(what, name) + b"\0"
    if len(known) < NAMES_KEPT:
        known[name] = start
    return start


def by_id(own_id: str) -> bytes | None:
    """The key of an id that a caller chose; None if it can be no id."""
    try:
        encoded = own_id.encode()
    except UnicodeEncodeError:
        return None
    if not 0 < len(encoded) <= keys.NAME_BYTES_MAX or b"\0" in encoded:
        return None
    return BY_ID + encoded + b"\0"


def record_of(trace_id: str) -> bytes | None:
    """The key of the record with an id that was made; None if it was not."""
    uuid = parse_id(trace_id)
    return None if uuid is None else RECORD + uuid


# -- writing ----------------------------------------------------------------------------------


def add_trace(
    writes: WriteSet,
    trace_type: TraceType,
    tags: Iterable[str] = (),
    metadata: Any = None,
    parent: Parent | None = None,
    own_id: str | None = None,
) -> tuple[str, bytes]:
    """Adds to a write set what makes a trace; its id and its UUID.

    The counter is left to the caller, who may add several traces in one commit: `count_traces`. The
    commit raises VersionMismatch if the parent is gone or the id is taken.

    Raises (then nothing was added):
        WrongType: trace_type is no TraceType, tags no iterable of str, own_id no str, or a field or
            metadata holds what cannot be stored.
        InvalidKey: a tag or own_id breaks the rules for names.
        ConstraintViolation, SerializationError: a field, metadata or the whole cannot be stored.
    """
    found = _FIELDS.get(type(trace_type))
    if found is None:
        raise _no_kind(trace_type)
    number, contents_of = found
    contents = list(contents_of(trace_type))
    if number == DECISION:
        contents[1] = list(contents[1])
    name = trace_type.type_name()
    names, starts = _checked_tags(tags)
    starts.append(_types.get(name) or by_type(name))
    uuid = new_uuid()
    parent_id = None
    if parent is None:
        starts.append(ROOTS)
    else:
        parent_id = parent.id
        starts.append(BY_PARENT + parent.uuid)
    if own_id is not None:
        check_name(own_id)
    record = [number, contents, names, metadata, parent_id, own_id]
    try:
        writes.add_entry(TAG, RECORD, uuid, record, starts)
    except errors.Error as error:
        _explain(trace_type, metadata, error)
        raise
    if parent is not None and parent.version:
        writes.add(OP_EXPECT, TAG, RECORD + parent.uuid, None, 0, parent.version)
    if own_id is not None:
        _add_own_id(writes, own_id, uuid)
    return text_of(uuid) if own_id is None else own_id, uuid


def count_traces(writes: WriteSet, count: int) -> None:
    """Adds to the counter of traces, in the commit that adds so many."""
    writes.add(OP_INCREMENT, TAG, COUNT, None, 0, count)


def listed_tags(tags: Iterable[str]) -> list[str] | tuple[str, ...]:
    """The tags as a list or tuple, not looked at yet; raises WrongType for a single str."""
    if type(tags) is list or type(tags) is tuple:
        return tags
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        kind = values.class_name(tags)
        raise errors.WrongType(
            "an iterable of str", kind, f"The tags come as a list or the like, not as {kind}."
        )
    return list(tags)


def _checked_tags(tags: Iterable[str]) -> tuple[list[str], list[bytes]]:
    """The tags, each once and in their order, and how the entries of each begin."""
    names: list[str] = []
    starts: list[bytes] = []
    if type(tags) is tuple and not tags:
        return names, starts
    for tag in listed_tags(tags):
        start = _tags.get(tag) if type(tag) is str else None
        starts.append(start or by_tag(tag))
        names.append(tag)
    if len(names) > 1 and len(set(names)) < len(names):
        return list(dict.fromkeys(names)), list(dict.fromkeys(starts))
    return names, starts


def _add_own_id(writes: WriteSet, own_id: str, uuid: bytes) -> None:
    """What gives a trace an id that no other one has, and refuses it if one does."""
    name = BY_ID + own_id.encode() + b"\0"
    writes.add(OP_EXPECT, TAG, name)
    made_before = record_of(own_id)
    if made_before is not None:
        writes.add(OP_EXPECT, TAG, made_before)
    writes.add(OP_PUT, TAG, name, UUID_HEAD + uuid)


def _no_kind(found: object) -> errors.WrongType:
    kind = values.class_name(found)
    return errors.WrongType(
        "TraceType",
        kind,
        f"A trace's type is {', '.join(kind.__name__ for kind in _FIELDS)}, not {kind}.",
    )


def _explain(trace_type: TraceType, metadata: Any, error: errors.Error) -> None:
    """Raises what is wrong with one field; else the error is said to be about the whole."""
    kind = type(trace_type)
    contents = _FIELDS[kind][1](trace_type)
    for name, value in zip(_field_names(kind), contents, strict=True):
        check_value(f"{kind.__name__}.{name}", list(value) if type(value) is tuple else value)
    check_value("metadata", metadata)
    error.message = (
        f"The trace as a whole, a list of [kind, [fields], tags, metadata, ..]: {error.message}"
    )
    error.args = (error.message,)


# -- reading ----------------------------------------------------------------------------------


def locate(
    engine: Engine, run: RunId | str, trace_id: str, pin: Pinned | None = None
) -> tuple[bytes, Any, int] | None:
    """UUID, record and version of the trace with this id; None if there is none. WrongType."""
    if type(trace_id) is not str:
        kind = values.class_name(trace_id)
        raise errors.WrongType("str", kind, f"A trace's id is a str, not {kind}.")
    uuid = parse_id(trace_id)
    if uuid is not None:
        found = engine.get_record(run, TAG, RECORD + uuid, pin)
        if found is not None and not has_own_id(found[0]):
            return uuid, found[0], found[1]
    name = by_id(trace_id)
    if name is None:
        return None
    if pin is not None:
        return _locate_own(engine, run, name, pin)
    with closing(engine.open_pin()) as now:
        return _locate_own(engine, run, name, now)


def _locate_own(
    engine: Engine, run: RunId | str, name: bytes, pin: Pinned
) -> tuple[bytes, Any, int] | None:
    uuid = engine.get(run, TAG, name, pin)
    if uuid is None:
        return None
    found = engine.get_record(run, TAG, RECORD + uuid, pin)
    return None if found is None else (uuid, found[0], found[1])


def missing_parent(run: RunId | str, parent_id: str) -> errors.NotFound:
    """The error for a parent that does not exist."""
    return errors.NotFound(
        f"The parent {shown(parent_id)} does not exist in the run {run}; record it first."
    )


def shown(trace_id: str) -> str:
    """An id as messages quote it."""
    return ascii(trace_id if len(trace_id) <= 60 else trace_id[:57] + "...")


def build(uuid: bytes, record: Any) -> Trace:
    """The trace with this UUID and this record; raises Corruption if it is none."""
    try:
        number, contents, tags, metadata, parent_id, own_id = record
        kind, fill = _MAKERS[number]
        trace_type = _new(kind)
        fill(trace_type, contents)
        if number == DECISION:
            _set_options(trace_type, tuple(contents[1]))
    except (KeyError, TypeError, ValueError) as error:
        raise errors.Corruption(
            "shared memory",
            None,
            f"The record of {text_of(uuid)} in shared memory is damaged; close all handles of the "
            f"database and open it again.",
        ) from error
    if own_id is None:
        own_id = text_of(uuid)
    return _new_tuple(Trace, (own_id, parent_id, trace_type, time_of(uuid), tags, metadata))


def has_own_id(record: Any) -> bool:
    """Whether the trace was given an id, so that it is not found by its UUID."""
    return type(record) is list and len(record) == RECORD_LENGTH and record[5] is not None
