"""registers.py - EventLists, CellLists and MixedLists: the recorder's lists in other primitives.

Why:        what isolation promises holds over all primitives together, so histories are made of
            lists that lie in events, in state cells, and in all of them at once.

                EventLists    the payloads of one event type, in the order of the log
                CellLists     a cell's value
                MixedLists    by the last digit of the key: a key, a cell, or events

Used by:    tests/procs/test_isolation_primitives
Cost:       a read of events reads the whole log: keep histories short, or start a new run
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shm_engine.database import Database
from shm_engine.primitives.event_log import EventLog
from shm_engine.primitives.state_cell import StateCell
from shm_engine.transaction import Transaction
from tests.harness.isolation import Values
from tests.harness.recorder import RUN, KeyLists, Register

__all__ = ["CellLists", "EventLists", "MixedLists"]


def _gathered(pairs: Iterator[tuple[str, int]]) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for kind, value in pairs:
        found[kind] = (*found.get(kind, ()), value)
    return found


class EventLists:
    """Lists as the events of one type. Appending conflicts with every other append to the run, and
    reading ends at an event that is not there, which is guarded: more than lists would need."""

    blind = False

    def append(self, txn: Transaction, key: str, value: int) -> None:
        txn.event_append(key, value)

    def read(self, txn: Transaction, key: str) -> Values:
        return self._all(txn).get(key, ())

    def scan(self, txn: Transaction, prefix: str) -> Mapping[str, Values]:
        return {key: found for key, found in self._all(txn).items() if key.startswith(prefix)}

    def final(self, database: Database) -> Mapping[str, Values]:
        log = EventLog(database)
        assert log.verify_chain(RUN).is_valid
        return _gathered((event.event_type, event.payload) for event in log.iter(RUN))

    def _all(self, txn: Transaction) -> dict[str, Values]:
        return _gathered(self._events(txn))

    @staticmethod
    def _events(txn: Transaction) -> Iterator[tuple[str, int]]:
        sequence = 0
        while (event := txn.event_read(sequence)) is not None:
            yield event.event_type, event.payload
            sequence += 1


class CellLists:
    """Lists as values of state cells. A transaction cannot list cells: a scan asks for each of
    `names` behind the prefix."""

    blind = False

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def append(self, txn: Transaction, key: str, value: int) -> None:
        found = [*(txn.state_read(key) or ()), value]
        assert txn.state_set(key, found) == len(found), "a cell's version is its list's length"

    def read(self, txn: Transaction, key: str) -> Values:
        return tuple(txn.state_read(key) or ())

    def scan(self, txn: Transaction, prefix: str) -> Mapping[str, Values]:
        found = {prefix + name: self.read(txn, prefix + name) for name in self._names}
        return {key: values for key, values in found.items() if values}

    def final(self, database: Database) -> Mapping[str, Values]:
        cells = StateCell(database)
        found: dict[str, Values] = {}
        for name in cells.list(RUN):
            state = cells.read(RUN, name)
            assert state is not None
            assert state.version == len(state.value)
            found[name] = tuple(state.value)
        return found


class MixedLists:
    """Lists of all three kinds."""

    blind = False

    def __init__(self, names: Sequence[str]) -> None:
        cells = CellLists([name for name in names if self._kind(name) == 1])
        self._parts: Sequence[Register] = (KeyLists(), cells, EventLists())

    @staticmethod
    def _kind(key: str) -> int:
        return int(key[-1]) % 3

    def append(self, txn: Transaction, key: str, value: int) -> None:
        self._parts[self._kind(key)].append(txn, key, value)

    def read(self, txn: Transaction, key: str) -> Values:
        return self._parts[self._kind(key)].read(txn, key)

    def scan(self, txn: Transaction, prefix: str) -> Mapping[str, Values]:
        return {key: found for part in self._parts for key, found in part.scan(txn, prefix).items()}

    def final(self, database: Database) -> Mapping[str, Values]:
        return {key: found for part in self._parts for key, found in part.final(database).items()}
