"""runs.py - the run: its status, its record, its entries in the indexes, and how they change.

Why:        whether a run takes writes is asked inside every commit, so a run's record begins with
            what the core reads, and the rest is for people and programs. Which runs there are is
            asked from outside of any run, so the indexes stand under the nil run:

                run   | 05 | 00                           16 bytes for the core, then the details
                0..0  | 05 | 01 't' created run           all runs, in the order of their creation
                0..0  | 05 | 01 's' status created run    by status
                0..0  | 05 | 01 'g' tag 00 created run    by tag
                0..0  | 05 | 01 'p' parent created run    by parent
                0..0  | 05 | 01 'c' status                how many have it
                0..0  | 05 | 01 'e' run                   the core's queue of runs to erase

            created: microseconds, 8 bytes, big-endian. So each index is in the order of creation.
Used by:    database.py and primitives/run_index.py; any thread of any process; no state
Shared:     the run's record and these keys -> FORMAT.md, "Run record" and "Run indexes"
Invariants: N1 record, entries and counters change in one commit, which expects the record to be as
            it was read: they never disagree, at no snapshot (test_run_index)
            N2 no key is a prefix of another one (test_runs)
            N3 the default run is Active and has no entry (test_run_index)
Crash:      a deletion is its commit; what it leaves behind is erased by whoever comes (erase.h)
Errors:     those of each function; an error leaves nothing changed
Cost:       one commit of 3 to 6 keys and 2 for each tag that changes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from shm_engine import errors, keys, values
from shm_engine._core import BYTES, OP_DELETE, OP_EXPECT, OP_INCREMENT, OP_PUT, RunId
from shm_engine.retention import RetentionPolicy

if TYPE_CHECKING:
    from shm_engine.engine import Engine, Operation, Pinned

__all__ = [
    "BY_TIME",
    "TAG_BYTES_MAX",
    "CreateRunOptions",
    "RunMetadata",
    "RunQuery",
    "RunRecord",
    "RunStats",
    "RunStatus",
    "by_parent",
    "by_status",
    "by_tag",
    "change_metadata",
    "change_status",
    "change_tags",
    "checked_tags",
    "count_of",
    "create",
    "delete",
    "metadata_of",
    "pack",
    "read",
    "read_at",
    "retention_of",
    "set_retention",
    "unpack",
]

TAG_BYTES_MAX: Final = 256
BY_TIME: Final = keys.BOOKKEEPING + b"t"
INDEX_START: Final = RunId.DEFAULT.bytes + bytes([keys.TAG_RUN])
HEAD_SIZE: Final = len(keys.pack_run(keys.RUN_UNREGISTERED, None))
DETAILS: Final = 8
NOTHING: Final = b"\xc0"  # packed None


class RunStatus(Enum):
    """What a run is doing. Only an Active run takes writes; reading always works.

    Active goes to Completed, Failed, Cancelled, Paused or Archived; Paused to Active, Cancelled or
    Archived; Completed, Failed and Cancelled to Archived; Archived to nothing.

    >>> RunStatus.PAUSED.can_transition_to("Active"), RunStatus.PAUSED.can_transition_to("Failed")
    (True, False)
    >>> RunStatus.of("completed").as_str()
    'Completed'
    """

    ACTIVE = "Active"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    PAUSED = "Paused"
    ARCHIVED = "Archived"

    @classmethod
    def of(cls, status: RunStatus | str) -> RunStatus:
        """The member itself, or the one of that name: "Active", "active" or "ACTIVE".

        Raises:
            WrongType: it is neither a RunStatus nor a str.
            ConstraintViolation: no status has the name.
        """
        if isinstance(status, cls):
            return status
        if not isinstance(status, str):
            raise errors.WrongType("RunStatus or str", values.class_name(status))
        found = _SPELLINGS.get(status)
        if found is None:
            raise errors.ConstraintViolation(
                "status_unknown",
                f"No status is named {status[:40]!r}; there are {', '.join(_NAMES)}.",
            )
        return found

    @property
    def number(self) -> int:
        """As the run's record has it."""
        return _NUMBERS[self]

    def as_str(self) -> str:
        """The name of the status, such as "Active"."""
        return self._value_

    def is_terminal(self) -> bool:
        """Whether nothing follows: of Archived alone."""
        return self is RunStatus.ARCHIVED

    def is_finished(self) -> bool:
        """Whether the work is over: Completed, Failed or Cancelled."""
        return self in _FINISHED

    def can_transition_to(self, target: RunStatus | str) -> bool:
        """Whether a run may go from this status to that one; never to the one that it has."""
        return RunStatus.of(target) in _TRANSITIONS[self]

    def __str__(self) -> str:
        return self._value_


_NAMES: Final = [status.value for status in RunStatus]
_SPELLINGS: Final = {
    spelling: status
    for status in RunStatus
    for spelling in (status.value, status.value.lower(), status.name)
}
_OF_NUMBER: Final = {
    number: _SPELLINGS[name]
    for number, name in keys.RUN_STATUS_NAMES.items()
    if number != keys.RUN_DELETED
}
_NUMBERS: Final = {status: number for number, status in _OF_NUMBER.items()}
_FINISHED: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})
_ONLY_ARCHIVED: Final = frozenset({RunStatus.ARCHIVED})
_TRANSITIONS: Final[dict[RunStatus, frozenset[RunStatus]]] = {
    RunStatus.ACTIVE: frozenset(RunStatus) - {RunStatus.ACTIVE},
    RunStatus.PAUSED: frozenset({RunStatus.ACTIVE, RunStatus.CANCELLED, RunStatus.ARCHIVED}),
    RunStatus.COMPLETED: _ONLY_ARCHIVED,
    RunStatus.FAILED: _ONLY_ARCHIVED,
    RunStatus.CANCELLED: _ONLY_ARCHIVED,
    RunStatus.ARCHIVED: frozenset(),
}


@dataclass(frozen=True)
class RunMetadata:
    """What is known of a run, as it was when it was read; changing the run makes a new one.

    Attributes:
        name: The name that it was created with, its id if there was none.
        run_id: Its id, the string of a RunId.
        parent_run: The id of the run that it was forked from, or None. That run may be deleted.
        status: A RunStatus.
        created_at, updated_at: Milliseconds since 1970.
        completed_at: The same, of its end as Completed, Failed or Cancelled; else None.
        tags: Each once, in the order in which they were added.
        metadata: Any value; the user's own.
        error: What `fail_run` was told, or None.

    >>> RunMetadata("nightly", str(RunId.DEFAULT)).status.as_str()
    'Active'
    """

    name: str
    run_id: str
    parent_run: str | None = None
    status: RunStatus = RunStatus.ACTIVE
    created_at: int = 0
    updated_at: int = 0
    completed_at: int | None = None
    tags: list[str] = field(default_factory=list)
    metadata: Any = None
    error: str | None = None


@dataclass(frozen=True)
class RunQuery:
    """Which runs `RunIndex.query_runs` is to find: those that meet all that is not None.

    Attributes:
        status: A RunStatus or its name.
        tags: All of these.
        created_after, created_before: Milliseconds since 1970; both exclude the moment itself.
        parent_run: Of this run.
        limit: At most so many, the oldest ones.
        include_archived: Archived ones too; asking for the status Archived says so as well.

    >>> RunQuery(status="Failed", tags=["nightly"], limit=10).include_archived
    False
    """

    status: RunStatus | str | None = None
    tags: Iterable[str] | None = None
    created_after: int | None = None
    created_before: int | None = None
    parent_run: RunId | str | None = None
    limit: int | None = None
    include_archived: bool = False


@dataclass(frozen=True)
class RunStats:
    """How many runs there are, and how many have which status; the default run is not counted.

    >>> RunStats(total_runs=2, active_runs=1, failed_runs=1).completed_runs
    0
    """

    total_runs: int = 0
    active_runs: int = 0
    completed_runs: int = 0
    failed_runs: int = 0
    cancelled_runs: int = 0
    paused_runs: int = 0
    archived_runs: int = 0


@dataclass(frozen=True)
class CreateRunOptions:
    """How `RunIndex.create_run_with_options` is to create a run.

    Attributes:
        run_id: A RunId or its string; None makes a new one.
        parent_run: The run that it is forked from; it must exist.
        tags: Any number, each a str of 1 to 256 UTF-8 bytes without NUL.
        metadata: Any value.
        name: For people, under the same rule as a tag; None: the id's string.

    >>> CreateRunOptions(tags=["nightly"]).metadata is None
    True
    """

    run_id: RunId | str | None = None
    parent_run: RunId | str | None = None
    tags: Iterable[str] = ()
    metadata: Any = None
    name: str | None = None


# -- the record -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's record, decoded. One of 16 bytes has a status and a retention alone, and no entry."""

    status: int
    retention: RetentionPolicy | None = None
    name: str | None = None
    parent: bytes | None = None
    created_us: int = 0
    updated_us: int = 0
    completed_us: int | None = None
    tags: tuple[str, ...] = ()
    error: str | None = None
    metadata: Any = None
    has_details: bool = True

    @property
    def is_registered(self) -> bool:
        """Whether there is such a run: it was begun, and not deleted."""
        return self.status in _OF_NUMBER

    @property
    def is_deleted(self) -> bool:
        """Whether it is being erased."""
        return self.status == keys.RUN_DELETED

    @property
    def has_entries(self) -> bool:
        """Whether the indexes know it."""
        return self.is_registered and self.has_details


def pack(record: RunRecord, encode: Callable[[Any], bytes] = values.encode) -> bytes:
    """The bytes of a record: what the core reads, then one msgpack array.

    Raises what `encode` does, and ConstraintViolation if all of it together is too large.

    >>> pack(RunRecord(status=1, has_details=False)).hex()
    '01000000000000000000000000000000'
    """
    head = keys.pack_run(record.status, record.retention)
    if not record.has_details:
        return head
    details = [
        record.name,
        record.parent,
        record.created_us,
        record.updated_us,
        record.completed_us,
        list(record.tags),
        record.error,
    ]
    # Spliced, so that the user's value may be as deep as any other.
    array = bytes([0x90 + DETAILS]) + encode(details)[1:] + encode(record.metadata)
    if len(head) + len(array) > values.ENCODED_BYTES_MAX:
        raise errors.ConstraintViolation(
            "value_too_large",
            f"The run's metadata, tags and error have {len(array):,} bytes encoded; 32 MiB are "
            f"allowed.",
        )
    return head + array


def unpack(record: bytes) -> RunRecord:
    """The record of these bytes. Raises Corruption."""
    status, retention = keys.unpack_run(record)
    if len(record) == HEAD_SIZE:
        return RunRecord(status, retention, has_details=False)
    try:
        details = values.decode(memoryview(record)[HEAD_SIZE:])
    except errors.SerializationError as error:
        raise _damaged() from error
    if not _are_details(details):
        raise _damaged()
    name, parent, created_us, updated_us, completed_us, tags, text, metadata = details
    return RunRecord(
        status,
        retention,
        name,
        parent,
        created_us,
        updated_us,
        completed_us,
        tuple(tags),
        text,
        metadata,
    )


def _are_details(found: Any) -> bool:
    if type(found) is not list or len(found) != DETAILS:
        return False
    name, parent, created_us, updated_us, completed_us, tags, error, _ = found
    moments = [created_us, updated_us, 0 if completed_us is None else completed_us]
    return (
        all(text is None or type(text) is str for text in (name, error))
        and (parent is None or (type(parent) is bytes and len(parent) == len(RunId.DEFAULT.bytes)))
        and all(type(moment) is int and 0 <= moment <= values.INT_MAX for moment in moments)
        and type(tags) is list
        and all(type(tag) is str for tag in tags)
    )


def _damaged() -> errors.Corruption:
    return errors.Corruption("shared memory", 0, "A run's record holds damaged bytes.")


def metadata_of(run: RunId, record: RunRecord) -> RunMetadata:
    """What users are shown of a run that is registered."""
    return RunMetadata(
        name=str(run) if record.name is None else record.name,
        run_id=str(run),
        parent_run=None if record.parent is None else str(RunId.from_bytes(record.parent)),
        status=_OF_NUMBER[record.status],
        created_at=record.created_us // 1000,
        updated_at=record.updated_us // 1000,
        completed_at=None if record.completed_us is None else record.completed_us // 1000,
        tags=list(record.tags),
        metadata=record.metadata,
        error=record.error,
    )


def read(engine: Engine, run: RunId) -> tuple[RunRecord | None, int]:
    """The run's newest record and its version; None and 0 if there is none."""
    found = engine.get_run_record(run)
    return (None, 0) if found is None else (unpack(found[0]), found[1])


def read_at(engine: Engine, run: RunId, pin: Pinned) -> RunRecord | None:
    """The run's record at a snapshot."""
    found = engine.scan(run, keys.TAG_RUN, keys.RUN_RECORD, pin, None, 1, BYTES)[1]
    return unpack(found[0][0]) if found else None


# -- the indexes ------------------------------------------------------------------------------


def by_status(status: int) -> bytes:
    """What the names of the entries of a status begin with."""
    return keys.BOOKKEEPING + b"s" + bytes([status])


def by_tag(tag: str) -> bytes:
    """The same for a tag that was checked."""
    return keys.BOOKKEEPING + b"g" + tag.encode() + b"\0"


def by_parent(parent: bytes) -> bytes:
    """The same for the children of a run."""
    return keys.BOOKKEEPING + b"p" + parent


def count_of(status: int) -> bytes:
    """The name of the counter of the runs that have the status."""
    return keys.BOOKKEEPING + b"c" + bytes([status])


def _entries(run: RunId, record: RunRecord | None) -> dict[bytes, None]:
    """The whole keys of a run's entries, in their order."""
    if record is None or not record.has_entries:
        return {}
    prefixes = [BY_TIME, by_status(record.status), *map(by_tag, record.tags)]
    if record.parent is not None:
        prefixes.append(by_parent(record.parent))
    end = record.created_us.to_bytes(8, "big") + run.bytes
    return {INDEX_START + prefix + end: None for prefix in prefixes}


def _record_key(run: RunId) -> bytes:
    return run.bytes + bytes([keys.TAG_RUN]) + keys.RUN_RECORD


def _operations(
    engine: Engine, run: RunId, before: RunRecord | None, version: int, after: RunRecord
) -> list[Operation]:
    """The one commit that takes a run from the record that was read to another one."""
    key = _record_key(run)
    old, new = _entries(run, before), _entries(run, after)
    ops: list[Operation] = [
        (OP_EXPECT, 0, key, None, 0, version),
        (OP_PUT, 0, key, pack(after, engine.encode), 0, 0),
    ]
    ops.extend((OP_DELETE, 0, entry, None, 0, 0) for entry in old if entry not in new)
    ops.extend((OP_PUT, 0, entry, NOTHING, 0, 0) for entry in new if entry not in old)
    was = before.status if before is not None and before.has_entries else None
    now = after.status if after.has_entries else None
    for status, delta in ((was, -1), (now, 1)):
        if status is not None and was != now:
            ops.append((OP_INCREMENT, 0, INDEX_START + count_of(status), None, 0, delta))
    if after.is_deleted:
        queued = INDEX_START + keys.BOOKKEEPING + b"e" + run.bytes
        ops.append((OP_PUT, 0, queued, NOTHING, 0, 0))
    return ops


# -- changes ----------------------------------------------------------------------------------


def create(engine: Engine, run: RunId, options: CreateRunOptions) -> RunMetadata:
    """Registers an active run; the id in `options` is ignored. A retention that was chosen before
    stays.

    Raises:
        InvalidOperation: the run exists, or was deleted while a snapshot is open that needs it.
        NotFound: the parent does not exist.
        InvalidKey, WrongType, ConstraintViolation, SerializationError: of name, tags, metadata.
    """
    tags = checked_tags(options.tags)
    parent = None if options.parent_run is None else RunId(options.parent_run)
    if options.name is not None:
        _check_text(options.name, "name")
    while True:
        before, version = read(engine, run)
        if run == RunId.DEFAULT or (before is not None and before.is_registered):
            raise errors.InvalidOperation(f"The run {run} exists already; choose another id.")
        if before is not None and before.is_deleted:
            if engine.erase(run):
                continue
            raise errors.InvalidOperation(
                f"The run {run} was deleted, but a snapshot or a transaction that is older still "
                f"reads its keys; close that and try again, or choose another id."
            )
        now = time.time_ns() // 1000
        after = RunRecord(
            status=keys.RUN_ACTIVE,
            retention=None if before is None else before.retention,
            name=options.name,
            parent=None if parent is None else parent.bytes,
            created_us=now,
            updated_us=now,
            tags=tags,
            metadata=options.metadata,
        )
        ops = _operations(engine, run, before, version, after)
        if parent is not None:
            ops[:0] = _expect_parent(engine, parent)
        if _commit(engine, run, ops):
            return metadata_of(run, after)


def _expect_parent(engine: Engine, parent: RunId) -> list[Operation]:
    """So that it exists in the moment of the commit, too."""
    if parent == RunId.DEFAULT:
        return []
    record, version = read(engine, parent)
    if record is None or not record.is_registered:
        raise errors.NotFound(f"The parent run {parent} does not exist; create it first.")
    return [(OP_EXPECT, 0, _record_key(parent), None, 0, version)]


def _commit(engine: Engine, run: RunId, ops: list[Operation]) -> bool:
    """False: somebody else has changed the run; read it again."""
    try:
        engine.commit(run, ops, 0)
    except errors.VersionMismatch:
        return False
    return True


def _change(engine: Engine, run: RunId, decide: Callable[[RunRecord], RunRecord]) -> RunMetadata:
    """Replaces the record by what `decide` makes of it; the same object changes nothing."""
    if run == RunId.DEFAULT:
        raise errors.ConstraintViolation(
            "default_run",
            "The default run is always there and Active; it cannot be changed, ended or deleted. "
            "Begin a run of its own.",
        )
    while True:
        before, version = read(engine, run)
        if before is None or not before.is_registered:
            raise errors.NotFound(
                f"The run {run} was deleted."
                if before is not None and before.is_deleted
                else f"The run {run} was never begun; begin_run or create_run registers it."
            )
        after = decide(before)
        if after is before or _commit(
            engine, run, _operations(engine, run, before, version, after)
        ):
            return metadata_of(run, before if after.is_deleted else after)


def _updated(record: RunRecord, **changes: Any) -> RunRecord:
    now = max(time.time_ns() // 1000, record.updated_us)
    return replace(record, updated_us=now, has_details=True, **changes)


def change_status(
    engine: Engine, run: RunId, target: RunStatus, error: str | None = None
) -> RunMetadata:
    """Takes the run to another status.

    Raises InvalidStatusTransition, NotFound; ConstraintViolation for the default run.
    """

    def decide(record: RunRecord) -> RunRecord:
        status = _OF_NUMBER[record.status]
        if not status.can_transition_to(target):
            raise errors.InvalidStatusTransition(status.as_str(), target.as_str())
        after = _updated(record, status=target.number)
        if target.is_finished():
            after = replace(after, completed_us=after.updated_us)
        return after if error is None else replace(after, error=error)

    return _change(engine, run, decide)


def change_tags(
    engine: Engine, run: RunId, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> RunMetadata:
    """Adds tags that the run does not have yet, and takes away those that it has."""
    more, less = checked_tags(add), frozenset(checked_tags(remove))

    def decide(record: RunRecord) -> RunRecord:
        tags = tuple(tag for tag in dict.fromkeys((*record.tags, *more)) if tag not in less)
        return record if tags == record.tags else _updated(record, tags=tags)

    return _change(engine, run, decide)


def change_metadata(engine: Engine, run: RunId, metadata: Any) -> RunMetadata:
    """Replaces the user's metadata, and nothing else."""
    return _change(engine, run, lambda record: _updated(record, metadata=metadata))


def delete(engine: Engine, run: RunId) -> bool:
    """Deletes the run and all that it owns, in one commit for every reader; then erases its keys.

    Returns whether they are gone; False: a snapshot needs them, and the keeper goes on later.
    """
    _change(engine, run, lambda _: RunRecord(keys.RUN_DELETED, has_details=False))
    return engine.erase(run)


def set_retention(engine: Engine, run: RunId, policy: RetentionPolicy) -> None:
    """Chooses how much history the run keeps; it need not be registered. Raises RunError if it is
    being erased."""
    while True:
        found = engine.get_run_record(run)
        record, version = (b"", 0) if found is None else found
        status = keys.unpack_run(record)[0] if found else keys.RUN_UNREGISTERED
        if status == keys.RUN_DELETED:
            raise errors.RunError(str(run), keys.RUN_STATUS_NAMES[status])
        chosen = keys.pack_run(status, policy) + record[HEAD_SIZE:]
        if engine.put_run_record(run, chosen, version) is not None:
            return


def retention_of(engine: Engine, run: RunId) -> RetentionPolicy:
    """How much history the run keeps, KeepAll if it never chose."""
    found = engine.get_run_record(run)
    policy = keys.unpack_run(found[0])[1] if found else None
    return RetentionPolicy.KeepAll if policy is None else policy


# -- arguments --------------------------------------------------------------------------------


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Each tag once, in this order. Raises WrongType, InvalidKey.

    >>> checked_tags(["a", "b", "a"])
    ('a', 'b')
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        kind = values.class_name(tags)
        raise errors.WrongType(
            "an iterable of tags", kind, f"The tags come as a list or the like, not as {kind}."
        )
    found = list(tags)
    for tag in found:
        _check_text(tag, "tag")
    return tuple(dict.fromkeys(found))


def _check_text(text: str, what: str) -> None:
    if type(text) is not str:
        kind = values.class_name(text)
        raise errors.WrongType("str", kind, f"A run's {what} is a str, not {kind}.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise errors.InvalidKey(
            f"The {what} {text[:40]!a} holds a lone surrogate, which UTF-8 cannot write."
        ) from None
    if not 1 <= size <= TAG_BYTES_MAX:
        raise errors.InvalidKey(
            f"The {what} {text[:40]!r} has {size} UTF-8 bytes; it has 1 to {TAG_BYTES_MAX}."
        )
    if "\0" in text:
        raise errors.InvalidKey(f"The {what} {text[:40]!r} holds a NUL character.")
