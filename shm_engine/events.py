"""events.py - Event and ChainVerification, and how a run's log lies under its keys.

Why:        EventLog and Transaction both read and write events; what an event is stands here once.
            Sequence, time and hash are given by the engine, inside the commit (core/event.h).
Used by:    event_log.py, transaction.py; any thread; instances are immutable
Shared:     FORMAT.md, "Event"

    run | TAG_EVENT | ENTRY       sequence                   [prev_hash, hash, type, payload]
    run | TAG_EVENT | BOOKKEEPING 'h'                        [next sequence, hash of the newest]
    run | TAG_EVENT | BOOKKEEPING 't' type 0 sequence        None
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shm_engine import errors, keys, values

__all__ = ["GENESIS", "ChainVerification", "Event"]

GENESIS: Final = bytes(32)
HEAD: Final = keys.BOOKKEEPING + b"h"
TYPES: Final = keys.BOOKKEEPING + b"t"
SEQUENCE_MAX: Final = 2**64 - 1
_HASHES: Final = 69  # bytes of a packed event before its type: list, prev_hash, hash
_BLOCK: Final = 64


class Event(NamedTuple):
    """One event of a run's log. A tuple with names; equal where all fields are.

    Attributes:
        sequence: Its place in the run's log, from 0, without gaps.
        event_type: What the caller named it, 1 to 256 UTF-8 bytes.
        payload: Any value of the engine.
        timestamp: When it was committed, milliseconds since 1970; never falls with the sequence.
        prev_hash: Hash of the event before it; 32 zero bytes for the first.
        hash: SHA-256 over content, place, time and prev_hash (FORMAT.md, "Event").
        timestamp_us: The time in full, microseconds since 1970, as it is hashed.

    >>> from shm_engine import Database, EventLog
    >>> with Database.ephemeral() as db:
    ...     log = EventLog(db)
    ...     _ = log.append("default", "started", {"agent": 7})
    ...     event = log.head("default")
    >>> event.sequence, event.event_type, event.payload, event.prev_hash == bytes(32)
    (0, 'started', {'agent': 7}, True)
    """

    sequence: int
    event_type: str
    payload: Any
    timestamp: int
    prev_hash: bytes
    hash: bytes
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class ChainVerification:
    """What `EventLog.verify_chain` found.

    Attributes:
        is_valid: Whether every event is there, in its place and as it was appended.
        length: Events that the log should have.
        first_invalid: Sequence of the first one that is wrong, None if none is.
        error: "Missing event at sequence N", "prev_hash mismatch at sequence N", "Hash mismatch at
            sequence N", or "Unexpected event at sequence N" behind the log's end; None if all is
            well.

    >>> ChainVerification(True, 3)
    ChainVerification(is_valid=True, length=3, first_invalid=None, error=None)
    """

    is_valid: bool
    length: int
    first_invalid: int | None = None
    error: str | None = None


def entry_name(sequence: int) -> bytes:
    """The name of an event's key."""
    return keys.ENTRY + sequence.to_bytes(8, "big")


def sequence_of(name: bytes) -> int:
    """The sequence at the end of a key: of an event, or of its entry under its type."""
    return int.from_bytes(name[-8:], "big")


def type_prefix(event_type: str) -> bytes:
    """What the entries of all events of one type begin with. Raises InvalidKey, WrongType."""
    if type(event_type) is not str:
        kind = values.class_name(event_type)
        raise errors.WrongType("str", kind, f"An event type is a str, not {kind}.")
    try:
        name = event_type.encode("utf-8")
    except UnicodeEncodeError:
        raise errors.InvalidKey(
            f"The event type {event_type!a} holds a lone surrogate, which UTF-8 cannot write."
        ) from None
    if not 1 <= len(name) <= 256 or b"\0" in name:
        raise errors.InvalidKey(
            f"The event type {event_type[:40]!r} has {len(name)} UTF-8 bytes, or a NUL; give 1 to "
            f"256 bytes without one."
        )
    return TYPES + name + b"\0"


def head_of(stored: Any) -> tuple[int, bytes]:
    """(next sequence, hash of the newest event) of the value under a log's head. Corruption."""
    if (
        type(stored) is list
        and len(stored) == 2
        and type(stored[0]) is int
        and stored[0] > 0
        and type(stored[1]) is bytes
        and len(stored[1]) == len(GENESIS)
    ):
        return stored[0], stored[1]
    raise errors.Corruption("shared memory", 0, "The head of a run's log is no head.")


def make_event(sequence: int, stored: Any, timestamp_us: int) -> Event:
    """The event that lies under a key as `stored`."""
    prev_hash, digest, event_type, payload = stored
    return Event(
        sequence, event_type, payload, timestamp_us // 1000, prev_hash, digest, timestamp_us
    )


def chain_error(sequence: int, stored: bytes, timestamp_us: int, previous: bytes) -> str | None:
    """What is wrong with a packed event that stands behind one with the hash `previous`.

    Source: FORMAT.md, "Event"; written from it alone, as a check on the core.
    """
    if len(stored) <= _HASHES or (stored[:3], stored[35:37]) != (b"\x94\xc4\x20", b"\xc4\x20"):
        return f"Hash mismatch at sequence {sequence}"
    if stored[3:35] != previous:
        return f"prev_hash mismatch at sequence {sequence}"
    content = stored[_HASHES:]
    message = b"".join(
        (
            content,
            bytes(-len(content) % _BLOCK),
            previous,
            sequence.to_bytes(8, "big"),
            timestamp_us.to_bytes(8, "big"),
        )
    )
    if hashlib.sha256(message).digest() != stored[37:69]:
        return f"Hash mismatch at sequence {sequence}"
    return None
