"""event_log.py - EventLog, what happened in a run, each event sealed to the one before it.

Why:        agents of many processes write one story. Who comes when is decided inside the commit,
            so that nobody conflicts, nothing is missing, and no caller tries again.
Used by:    any thread of any process that has the database open; holds no state of its own
Invariants: sequences of a run are 0, 1, 2, ... in commit order; an event never changes
            (tests/unit/test_event_log, tests/procs/test_event_log)
Errors:     those of each method; an error leaves nothing changed and the log usable
Cost:       append about one put and a SHA-256 of the payload; a read about one get; queries their
            answer
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

from shm_engine import errors, events, keys, values
from shm_engine._core import BYTES, NAMES, RECORDS, RunId, to_run
from shm_engine.events import ChainVerification, Event
from shm_engine.primitives.arguments import as_count, as_int, as_list, as_seconds, engine_of

if TYPE_CHECKING:
    from shm_engine.database import Database

__all__ = ["EventLog"]

TAG: Final = keys.TAG_EVENT
BATCH: Final = 1024


class EventLog:
    """The events of each run. Make as many as you like: `EventLog(db)`.

    An event has a type (1 to 256 UTF-8 bytes without NUL; else InvalidKey) and a payload (any value
    of the engine; else WrongType, ConstraintViolation or SerializationError, naming the place).
    `run` is a RunId or its string; it need not be registered. Appends to a registered run that is
    not active raise RunError. Every append is atomic, visible to every process when the call
    returns, and as durable as the database's mode says.

    >>> from shm_engine import Database, EventLog
    >>> with Database.ephemeral() as db:
    ...     log = EventLog(db)
    ...     run = db.begin_run()
    ...     _ = log.append(run, "tool_call", {"tool": "search"})
    ...     sequence, digest = log.append(run, "tool_result", ["a", "b"])
    ...     sequence, log.len(run), log.read(run, 0).payload, log.verify_chain(run).is_valid
    (1, 2, {'tool': 'search'}, True)
    """

    __slots__ = ("_append", "_engine", "database")

    def __init__(self, database: Database) -> None:
        engine = engine_of(database)
        self.database = database
        self._engine = engine
        self._append = engine.append_one

    # -- appending ----------------------------------------------------------------------------

    def append(self, run: RunId | str, event_type: str, payload: Any) -> tuple[int, bytes]:
        """Puts an event behind the run's log; its sequence and its hash (32 bytes).

        Any number of processes append to one run without conflicts, gaps or retries.
        """
        return self._append(run, event_type, payload)

    def append_batch(
        self, run: RunId | str, items: Iterable[tuple[str, Any]]
    ) -> list[tuple[int, bytes]]:
        """Puts events, pairs of type and payload, one behind the other in one commit.

        All of them or none; nobody else's event comes between. Cost: about half of single appends.
        """
        pairs: list[Any] = as_list(items, "pairs of type and payload")
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                kind = values.class_name(pair)
                raise errors.WrongType(
                    "pairs of type and payload",
                    kind,
                    f"Each event is a pair (type, payload); one of them is {kind}.",
                )
        return self._engine.append(run, pairs)

    def update(self, run: RunId | str, sequence: int, payload: Any) -> NoReturn:
        """Raises InvalidOperation: an event never changes."""
        raise errors.InvalidOperation(
            f"Event {sequence!r} cannot be changed: a log only grows. Append an event that "
            f"corrects it."
        )

    def delete(self, run: RunId | str, sequence: int) -> NoReturn:
        """Raises InvalidOperation: an event stays as long as its run."""
        raise errors.InvalidOperation(
            f"Event {sequence!r} cannot be deleted: a log only grows. RunIndex.delete_run removes "
            f"a run with all that it has."
        )

    # -- reading ------------------------------------------------------------------------------

    def read(self, run: RunId | str, sequence: int) -> Event | None:
        """The event with this sequence, or None."""
        if not 0 <= as_int("sequence", sequence) < events.SEQUENCE_MAX:
            return None
        found = self._engine.get_record(run, TAG, events.entry_name(sequence))
        return None if found is None else events.make_event(sequence, found[0], found[2])

    def read_range(self, run: RunId | str, start: int, end: int) -> list[Event]:
        """The events from `start` on and before `end`, in order, from one snapshot."""
        first = min(max(0, as_int("start", start)), events.SEQUENCE_MAX)
        stop = min(as_int("end", end), events.SEQUENCE_MAX)
        return list(self._range(run, first, stop)) if first < stop else []

    def read_by_time(self, run: RunId | str, start_ms: int, end_ms: int) -> list[Event]:
        """The events with start_ms <= timestamp < end_ms, in order. Cost: the answer, and a few
        reads to find its ends: times never fall with the sequence."""
        start = self._first_at(run, as_int("start_ms", start_ms))
        end = self._first_at(run, as_int("end_ms", end_ms))
        return self.read_range(run, start, end)

    def head(self, run: RunId | str) -> Event | None:
        """The newest event, or None."""
        length = self.len(run)
        return self.read(run, length - 1) if length else None

    def len(self, run: RunId | str) -> int:
        """How many events the run has: the sequence of the next one."""
        found = self._engine.get(run, TAG, events.HEAD)
        return 0 if found is None else events.head_of(found)[0]

    def is_empty(self, run: RunId | str) -> bool:
        """Whether the run has no events."""
        return self.len(run) == 0

    def iter(self, run: RunId | str) -> Iterator[Event]:
        """All events in order, from one snapshot, which is kept from the first step to the last."""
        return self._range(to_run(run), 0, events.SEQUENCE_MAX)

    def _range(self, run: RunId | str, start: int, end: int) -> Iterator[Event]:
        pin = self._engine.open_pin()
        try:
            after = events.entry_name(start - 1) if start else None
            while start < end:
                names, found = self._engine.scan(
                    run, TAG, keys.ENTRY, pin, after, min(BATCH, end - start), RECORDS
                )
                for name, (stored, _, timestamp_us) in zip(names, found or (), strict=True):
                    if (sequence := events.sequence_of(name)) >= end:
                        return
                    yield events.make_event(sequence, stored, timestamp_us)
                if builtins.len(names) < BATCH:
                    return
                after = names[-1]
                start = events.sequence_of(names[-1]) + 1
        finally:
            pin.close()

    def _first_at(self, run: RunId | str, time_ms: int) -> int:
        """The sequence of the first event at or after this time, the length if there is none."""
        low, high = 0, self.len(run)
        while low < high:
            middle = (low + high) // 2
            event = self.read(run, middle)
            if event is not None and event.timestamp < time_ms:
                low = middle + 1
            else:
                high = middle
        return low

    # -- by type ------------------------------------------------------------------------------

    def read_by_type(
        self,
        run: RunId | str,
        event_type: str,
        limit: int | None = None,
        after: int | None = None,
    ) -> list[Event]:
        """The events of one type in order, at most `limit`, with sequences above `after`.

        Cost: the answer, however long the log is.
        """
        prefix = events.type_prefix(event_type)
        behind = None
        if after is not None and as_int("after", after) >= 0:
            behind = prefix + min(after, events.SEQUENCE_MAX).to_bytes(8, "big")
        pin = self._engine.open_pin()
        try:
            names, _ = self._engine.scan(run, TAG, prefix, pin, behind, as_count(limit), NAMES)
            sequences = [events.sequence_of(name) for name in names]
            found = self._engine.get_many(
                run, TAG, map(events.entry_name, sequences), pin, None, RECORDS
            )
        finally:
            pin.close()
        return [
            events.make_event(sequence, stored[0], stored[2])
            for sequence, stored in zip(sequences, found, strict=True)
            if stored is not None
        ]

    def event_types(self, run: RunId | str) -> list[str]:
        """The types that the run's events have, sorted by their bytes. Cost: about a read each."""
        found: list[str] = []
        after = None
        pin = self._engine.open_pin()
        try:
            while True:
                names, _ = self._engine.scan(run, TAG, events.TYPES, pin, after, 1, NAMES)
                if not names:
                    return found
                prefix = names[0][:-8]
                found.append(prefix[builtins.len(events.TYPES) : -1].decode("utf-8"))
                after = prefix + events.SEQUENCE_MAX.to_bytes(8, "big")
        finally:
            pin.close()

    # -- waiting ------------------------------------------------------------------------------

    def follow(
        self, run: RunId | str, after: int | None = None, timeout: float | None = None
    ) -> Iterator[Event]:
        """Events as they are committed, by any process, in order; sleeps while there is none.

        Args:
            after: Begin behind this sequence; -1: with the first; None: with what comes now.
            timeout: End when no event has come for so many seconds; None: never.

        A sleeping follower costs nothing; it wakes some 50 us after the commit (in strict mode:
        after the sync). Closing the database's handle in another thread ends it with Closed.

        >>> from shm_engine import Database, EventLog
        >>> with Database.ephemeral() as db:
        ...     log = EventLog(db)
        ...     _ = log.append_batch("default", [("a", 1), ("b", 2)])
        ...     [event.payload for event in log.follow("default", after=-1, timeout=0)]
        [1, 2]
        """
        seconds = as_seconds("timeout", timeout)
        start = self.len(run) if after is None else max(0, as_int("after", after) + 1)
        return self._follow(to_run(run), start, seconds)

    def _follow(self, run: RunId | str, start: int, timeout: float | None) -> Iterator[Event]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            watched = self._engine.watch(run, TAG, events.HEAD)
            came = self.read_range(run, start, start + BATCH)
            if came:
                yield from came
                start = came[-1].sequence + 1
                deadline = None if timeout is None else time.monotonic() + timeout
                continue
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            self._engine.wait_for(watched, left)

    # -- the chain ----------------------------------------------------------------------------

    def verify_chain(self, run: RunId | str) -> ChainVerification:
        """Computes every hash anew and compares; finds the first event that is missing, was changed
        or stands in another's place, however it came there. From one snapshot.

        Cost: O(events), a SHA-256 in Python for each.
        """
        pin = self._engine.open_pin()
        try:
            head = self._engine.get(run, TAG, events.HEAD, pin)
            length, newest = (0, events.GENESIS) if head is None else events.head_of(head)
            sequence, last, error = self._check_events(run, pin)
        finally:
            pin.close()
        if error is None and sequence < length:
            error = f"Missing event at sequence {sequence}"
        elif error is None and sequence > length:
            sequence = length
            error = f"Unexpected event at sequence {sequence}"
        elif error is None and last != newest:
            sequence -= 1
            error = f"Hash mismatch at sequence {sequence}"
        if error is None:
            return ChainVerification(True, length)
        return ChainVerification(False, length, sequence, error)

    def _check_events(self, run: RunId | str, pin: Any) -> tuple[int, bytes, str | None]:
        """How many are sound from the first on, the hash of the last, and what comes then."""
        sequence, previous, after = 0, events.GENESIS, None
        while True:
            names, found = self._engine.scan(run, TAG, keys.ENTRY, pin, after, BATCH, BYTES)
            for name, (stored, _, timestamp_us) in zip(names, found or (), strict=True):
                if events.sequence_of(name) != sequence:
                    return sequence, previous, f"Missing event at sequence {sequence}"
                error = events.chain_error(sequence, stored, timestamp_us, previous)
                if error is not None:
                    return sequence, previous, error
                sequence, previous = sequence + 1, stored[37:69]
            if builtins.len(names) < BATCH:
                return sequence, previous, None
            after = names[-1]
