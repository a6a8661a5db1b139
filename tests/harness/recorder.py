"""recorder.py - Recorder, one process's transactions in a file that outlives it.

Why:        whether a killed process's last transaction happened is unknown, but what it would have
            done must be known. So it is written down in front of the commit, and its end behind it:

                began  body(session): every operation is noted  | commit |  ended
                                                        note "unknown"    note "committed"

            Whoever dies before the first note has tried no commit; what it appended must never be
            seen, and if it is, the checker calls it a garbage read.
Used by:    the workers of the tests in tests/procs write; the test reads
Invariants: R1 `began` is taken before the snapshot can be, `ended` after the acknowledgement: more
            order in real time than there was is never claimed
Cost:       two writes to a file for each transaction
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from shm_engine import errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.transaction import Transaction
from tests.harness.isolation import Append, History, Operation, Read, Record, Scan, Status, Values

__all__ = ["RUN", "Abandoned", "KeyLists", "Recorder", "Register", "Session", "recorded"]

RUN: Final = RunId.DEFAULT
LENGTH_SIZE: Final = 4
VALUES_EACH: Final = 1_000_000


class Abandoned(Exception):
    """A body gives up on purpose."""


class Register(Protocol):
    """Lists in a database, under names, whatever they are made of.

    `blind`: appending reads nothing, so that two who append at the same time do not conflict.
    """

    blind: bool

    def append(self, txn: Transaction, key: str, value: int) -> None:
        """Puts the value at the end of the list."""

    def read(self, txn: Transaction, key: str) -> Values:
        """The list as the transaction sees it."""

    def scan(self, txn: Transaction, prefix: str) -> Mapping[str, Values]:
        """All lists that there are under names with the prefix."""

    def final(self, database: Database) -> Mapping[str, Values]:
        """All lists as they are now, read without a transaction."""


class KeyLists:
    """Lists as values of keys."""

    blind = False

    def append(self, txn: Transaction, key: str, value: int) -> None:
        txn.kv_put(key, [*(txn.kv_get(key) or ()), value])

    def read(self, txn: Transaction, key: str) -> Values:
        return tuple(txn.kv_get(key) or ())

    def scan(self, txn: Transaction, prefix: str) -> Mapping[str, Values]:
        return {key: tuple(found) for key, found in txn.scan_prefix(prefix)}

    def final(self, database: Database) -> Mapping[str, Values]:
        return {key: tuple(found) for key, found in KVStore(database).scan(RUN)}


class Session:
    """What a body gets: operations on lists, each noted."""

    def __init__(self, recorder: Recorder, txn: Transaction) -> None:
        self._recorder = recorder
        self._txn = txn
        self.operations: list[Operation] = []

    def append(self, key: str) -> None:
        """A value that nobody else appends."""
        register, value = self._recorder.register, self._recorder.next_value()
        self.operations.append(Append(key, value, register.blind))
        register.append(self._txn, key, value)

    def read(self, key: str) -> Values:
        """The list of the key."""
        found = self._recorder.register.read(self._txn, key)
        self.operations.append(Read(key, found))
        return found

    def scan(self, prefix: str) -> Mapping[str, Values]:
        """The lists under keys with the prefix."""
        found = self._recorder.register.scan(self._txn, prefix)
        self.operations.append(Scan(prefix, found))
        return found


class Recorder:
    """Runs and records the transactions of one process; `process` is a number of its own."""

    def __init__(self, folder: Path, process: int, register: Register) -> None:
        self.register = register
        self._process = process
        self._value = process * VALUES_EACH
        self._attempts = 0
        self._path = folder / f"{process:04}"

    def next_value(self) -> int:
        """One that no process has appended yet."""
        self._value += 1
        return self._value

    def run(self, database: Database, isolation: str, body: Callable[[Session], object]) -> Status:
        """One transaction by `Database.begin`; what became of it."""
        began = time.monotonic_ns()
        session = None
        try:
            with database.begin(RUN, isolation) as txn:
                session = Session(self, txn)
                body(session)
                self._note("unknown", session, began)
            status: Status = "committed"
        except (Abandoned, errors.TransactionConflict):
            status = "aborted"
        assert session is not None
        self._end(status, session, began)
        return status

    def run_with_retry(
        self,
        database: Database,
        isolation: str,
        body: Callable[[Session], object],
        max_retries: int = 3,
    ) -> Status:
        """By `Database.transaction`, each try being a transaction; what became of the last."""
        session: Session | None = None
        began = time.monotonic_ns()
        earliest = began  # of the next try: it begins behind the commit of the one before it

        def attempt(txn: Transaction) -> None:
            nonlocal session, began, earliest
            if session is not None:
                self._end("aborted", session, began)
            session, began = Session(self, txn), earliest
            body(session)
            self._note("unknown", session, began)
            earliest = time.monotonic_ns()

        try:
            database.transaction(RUN, attempt, isolation=isolation, max_retries=max_retries)
            status: Status = "committed"
        except (Abandoned, errors.TransactionConflict):
            status = "aborted"
        assert session is not None
        self._end(status, session, began)
        return status

    def _end(self, status: Status, session: Session, began: int) -> None:
        self._note(status, session, began, time.monotonic_ns())
        self._attempts += 1

    def _note(self, status: Status, session: Session, began: int, ended: int | None = None) -> None:
        name = f"T{self._process}.{self._attempts}"
        record = Record(name, self._process, status, tuple(session.operations), began, ended)
        packed = pickle.dumps(record)
        with self._path.open("ab", buffering=0) as file:
            file.write(len(packed).to_bytes(LENGTH_SIZE, "little") + packed)


def recorded(folder: Path, final: Mapping[str, Values]) -> History:
    """What all recorders of the folder wrote; a note that a kill tore does not count."""
    records: list[Record] = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        notes: dict[str, Record] = {}
        while len(data) >= LENGTH_SIZE:
            size = int.from_bytes(data[:LENGTH_SIZE], "little")
            packed, data = data[LENGTH_SIZE : LENGTH_SIZE + size], data[LENGTH_SIZE + size :]
            if len(packed) == size:
                record: Record = pickle.loads(packed)
                notes[record.id] = record
        records += notes.values()
    return History(records, final)
