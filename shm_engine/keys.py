"""keys.py - what the first bytes of every key mean, and the run's own record.

Why:        the index is ordered by bytes: run id (16) | type tag (1) | name | 0. So all that
            belongs to a run lies together, and within it all of one primitive, in the order of
            the names. A primitive's own keys are bytes: behind the tags of events, traces and
            runs stands a byte that tells bookkeeping from entries.
Used by:    every layer; any thread; nothing here holds state
Invariants: P1 a user's name holds no NUL, so the terminator makes no key a prefix of another
            (tests/unit/test_keys)
"""

from __future__ import annotations

import struct
from typing import Final

from shm_engine import errors
from shm_engine.retention import RetentionPolicy

__all__ = [
    "BOOKKEEPING",
    "ENTRY",
    "NAME_BYTES_MAX",
    "RUN_ACTIVE",
    "RUN_DELETED",
    "RUN_RECORD",
    "RUN_STATUS_NAMES",
    "RUN_UNREGISTERED",
    "TAG_EVENT",
    "TAG_JSON",
    "TAG_KV",
    "TAG_RUN",
    "TAG_STATE",
    "TAG_TRACE",
    "TAG_VECTOR",
    "pack_run",
    "unpack_run",
]

NAME_BYTES_MAX: Final = 1024

TAG_KV: Final = 0x01
TAG_EVENT: Final = 0x02
TAG_STATE: Final = 0x03
TAG_TRACE: Final = 0x04
TAG_RUN: Final = 0x05
TAG_JSON: Final = 0x06
TAG_VECTOR: Final = 0x10

BOOKKEEPING: Final = b"\x01"  # heads, counters, entries of indexes: their history is not kept
ENTRY: Final = b"\x02"  # what is written once
RUN_RECORD: Final = b"\x00"  # behind TAG_RUN, the run's own record

RUN_UNREGISTERED: Final = 0
RUN_ACTIVE: Final = 1
RUN_DELETED: Final = 7
RUN_STATUS_NAMES: Final = {
    RUN_ACTIVE: "Active",
    2: "Completed",
    3: "Failed",
    4: "Cancelled",
    5: "Paused",
    6: "Archived",
    RUN_DELETED: "Deleted",
}

_RECORD: Final = struct.Struct("<BB6xQ")
_RETENTION_KINDS: Final = {"KeepAll": 1, "KeepLast": 2, "KeepFor": 3}
_RETENTION_NAMES: Final = {number: name for name, number in _RETENTION_KINDS.items()}


def pack_run(status: int, retention: RetentionPolicy | None) -> bytes:
    """The run's record as the core reads it (FORMAT.md, "Run record"); None: never chosen.

    >>> unpack_run(pack_run(RUN_ACTIVE, RetentionPolicy.KeepLast(3)))
    (1, RetentionPolicy.KeepLast(3))
    """
    if retention is None:
        return _RECORD.pack(status, 0, 0)
    return _RECORD.pack(status, _RETENTION_KINDS[retention.kind], retention.amount)


def unpack_run(record: bytes) -> tuple[int, RetentionPolicy | None]:
    """The status and the retention of a run's record."""
    if len(record) < _RECORD.size:
        raise errors.Corruption("shared memory", 0, "A run's record is cut off.")
    status, kind, amount = _RECORD.unpack_from(record)
    if (kind and kind not in _RETENTION_NAMES) or status not in (0, *RUN_STATUS_NAMES):
        raise errors.Corruption("shared memory", 0, "A run's record holds unknown numbers.")
    if kind == 0:
        return status, None
    try:
        return status, RetentionPolicy.of(_RETENTION_NAMES[kind], amount)
    except errors.ConstraintViolation as error:
        raise errors.Corruption("shared memory", 0, f"A run's record: {error}") from error
