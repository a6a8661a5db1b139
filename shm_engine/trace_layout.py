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
Used by:    primitives/trace_store.py and whoever adds a trace to a larger commit; no state but what
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
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shm_engine import errors, keys, values
from shm_engine._core import OP_EXPECT, OP_INCREMENT, OP_PUT
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
    from shm_engine.engine import Engine, Operation

__all__ = [
    "BY_PARENT",
    "COUNT",
    "COUNT_ONE",
    "RECORD",
    "ROOTS",
    "UUID_SIZE",
    "Parent",
    "build",
    "by_id",
    "by_tag",
    "by_type",
    "count_operation",
    "has_own_id",
    "listed_tags",
    "plan_trace",
    "record_of",
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
COUNT_ONE: Final = (OP_INCREMENT, TAG, COUNT, None, 0, 1)


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


def plan_trace(
    engine: Engine,
    trace_type: TraceType,
    tags: Iterable[str] = (),
    metadata: Any = None,
    parent: Parent | None = None,
    own_id: str | None = None,
) -> tuple[str, bytes, list[Operation]]:
    """What a commit has to do to add a trace; its id, its UUID and the operations.

    The counter is left to the caller, who may add several traces in one commit: `COUNT_ONE`, or
    `count_operation`. The commit raises VersionMismatch if the parent is gone or the id is taken.

    Raises:
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
    uuid = new_uuid()
    ops: list[Operation] = []
    parent_id, below = None, ROOTS
    if parent is not None:
        parent_id, below = parent.id, BY_PARENT + parent.uuid
        if parent.version:
            ops.append((OP_EXPECT, TAG, RECORD + parent.uuid, None, 0, parent.version))
    if own_id is not None:
        ops += _own_id_operations(engine, own_id, uuid)
    try:
        packed = engine.encode([number, contents, names, metadata, parent_id, own_id])
    except errors.Error as error:
        _explain(trace_type, metadata, error)
        raise
    ops += (
        (OP_PUT, TAG, RECORD + uuid, packed, 0, 0),
        (OP_PUT, TAG, below + uuid, NOTHING, 0, 0),
        (OP_PUT, TAG, (_types.get(name) or by_type(name)) + uuid, NOTHING, 0, 0),
    )
    for start in starts:
        ops.append((OP_PUT, TAG, start + uuid, NOTHING, 0, 0))
    return text_of(uuid) if own_id is None else own_id, uuid, ops


def count_operation(count: int) -> Operation:
    """What adds to the counter of traces in the commit that adds so many."""
    return OP_INCREMENT, TAG, COUNT, None, 0, count


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
    for tag in listed_tags(tags):
        start = _tags.get(tag) if type(tag) is str else None
        starts.append(start or by_tag(tag))
        names.append(tag)
    if len(names) > 1 and len(set(names)) < len(names):
        return list(dict.fromkeys(names)), list(dict.fromkeys(starts))
    return names, starts


def _own_id_operations(engine: Engine, own_id: str, uuid: bytes) -> list[Operation]:
    """What gives a trace an id that no other one has, and refuses it if one does."""
    engine.check_name(own_id)
    name = BY_ID + own_id.encode() + b"\0"
    ops: list[Operation] = [(OP_EXPECT, TAG, name, None, 0, 0)]
    made_before = record_of(own_id)
    if made_before is not None:
        ops.append((OP_EXPECT, TAG, made_before, None, 0, 0))
    ops.append((OP_PUT, TAG, name, UUID_HEAD + uuid, 0, 0))
    return ops


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
