"""test_in_mem_transactions.py - Transactions, Error and Thread Safety of the in-mem page.

Why:        who comes from that page should be able to type what it shows, in Python form. Traces
            have their own place.
Used by:    nothing else; each test is one example, in the order of the page
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_engine import Database, EventLog, KVStore, RunId, StateCell, Transaction, errors


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def run_id(db: Database) -> RunId:
    return db.begin_run()


# -- transactions -----------------------------------------------------------------------------


def test_a_transaction_over_several_primitives(db: Database, run_id: RunId) -> None:
    def work(txn):  # type: ignore[no-untyped-def]
        # KV operations
        txn.kv_put("key", "value")
        value = txn.kv_get("key")

        # Event operations
        seq = txn.event_append("my_event", None)

        # State operations
        txn.state_set("counter", 1)
        state = txn.state_read("counter")
        return value, seq, state

    assert db.transaction(run_id, work) == ("value", 0, 1)
    assert KVStore(db).get(run_id, "key") == "value"
    assert EventLog(db).len(run_id) == 1
    assert StateCell(db).exists(run_id, "counter")


def test_the_kv_methods_of_a_transaction(db: Database, run_id: RunId) -> None:
    with db.begin(run_id) as txn:
        assert txn.kv_get("key") is None
        txn.kv_put("key", 1)
        txn.kv_delete("key")
        assert txn.kv_get("key") is None


def test_the_event_methods_of_a_transaction(db: Database, run_id: RunId) -> None:
    with db.begin(run_id) as txn:
        sequence = txn.event_append("my_event", {"n": 1})
        event = txn.event_read(sequence)
        assert event is not None
        assert event.payload == {"n": 1}
        assert txn.event_read(sequence + 1) is None


def test_the_state_methods_of_a_transaction(db: Database, run_id: RunId) -> None:
    with db.begin(run_id) as txn:
        assert txn.state_read("cell") is None
        assert txn.state_set("cell", "a") == 1
        assert txn.state_cas("cell", 1, "b") == 2
        assert txn.state_read("cell") == "b"
    with pytest.raises(errors.VersionMismatch):
        db.transaction(run_id, lambda txn: txn.state_cas("cell", 1, "c"))


# -- errors -----------------------------------------------------------------------------------


def test_every_common_error_of_the_page_has_its_class(
    db: Database, run_id: RunId, tmp_path: Path
) -> None:
    kv, cells = KVStore(db), StateCell(db)
    version = kv.put(run_id, "old", 1)
    cells.init(run_id, "cell", 1)
    ended = db.begin_run()
    db.end_run(ended)

    def conflict() -> None:
        with db.begin(run_id) as txn:
            txn.kv_put("mine", txn.kv_get("old"))
            kv.put(run_id, "old", 2)

    raised: dict[str, tuple[Callable[[], Any], type[errors.Error]]] = {
        "Serialization": (lambda: kv.put(run_id, "key", "\ud800"), errors.SerializationError),
        "KeyNotFound": (lambda: kv.get_at(run_id, "missing", version), errors.KeyNotFound),
        "InvalidOperation": (lambda: cells.init(run_id, "cell", 1), errors.InvalidOperation),
        "TransactionConflict": (conflict, errors.TransactionConflict),
        "InvalidStatusTransition": (lambda: db.end_run(ended), errors.InvalidStatusTransition),
        "VersionMismatch": (lambda: cells.cas(run_id, "cell", 9, 1), errors.VersionMismatch),
    }
    for name, (call, kind) in raised.items():
        with pytest.raises(kind) as caught:
            call()
        assert isinstance(caught.value, errors.Error), name
        assert caught.value.message
    assert issubclass(errors.IoError, errors.Error)
    assert issubclass(errors.Corruption, errors.Error)


def test_errors_are_matched_by_class(db: Database, run_id: RunId) -> None:
    state_cell = StateCell(db)
    state_cell.init(run_id, "counter", 0)

    def handle(expected_ver: int, new_value: Any) -> str:
        try:
            version = state_cell.cas(run_id, "counter", expected_ver, new_value)
        except errors.VersionMismatch as error:
            return f"Conflict: expected {error.expected} but was {error.actual}"
        return f"Updated to version {version}"

    assert handle(1, "new") == "Updated to version 2"
    assert handle(1, "new") == "Conflict: expected 1 but was 2"
    with pytest.raises(errors.WrongType):
        handle(2, object())


# -- thread safety ----------------------------------------------------------------------------


def test_threads_use_all_primitives_of_a_run_of_their_own(tmp_path: Path) -> None:
    with Database.open_with_mode(tmp_path / "data", "buffered", map_size=64 << 20) as db:
        runs: dict[int, RunId] = {}

        def work(i: int) -> None:
            run_id = runs[i] = db.begin_run()
            kv, log, cells = KVStore(db), EventLog(db), StateCell(db)
            for j in range(200):
                kv.put(run_id, f"key-{i}-{j}", j)
                assert log.append(run_id, "step", j)[0] == j
                assert cells.set(run_id, "last", j) == j + 1
            db.end_run(run_id)

        handles = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for handle in handles:
            handle.start()
        for handle in handles:
            handle.join()
        assert len(runs) == 4
        for run_id in runs.values():
            assert len(KVStore(db).list(run_id)) == EventLog(db).len(run_id) == 200
            with pytest.raises(errors.RunError):
                EventLog(db).append(run_id, "late", 1)


def test_the_first_committer_wins_in_every_primitive(db: Database, run_id: RunId) -> None:
    works: list[Callable[[Transaction], Any]] = [
        lambda txn: txn.kv_put("counter", (txn.kv_get("counter") or 0) + 1),
        lambda txn: txn.state_set("counter", (txn.state_read("counter") or 0) + 1),
        lambda txn: txn.event_append("counted", None),
    ]
    for work in works:
        first, second = db.begin(run_id), db.begin(run_id)
        for txn in (first, second):
            work(txn)
        first.commit()
        with pytest.raises(errors.TransactionConflict):
            second.commit()
    assert KVStore(db).get(run_id, "counter") == 1
    assert EventLog(db).len(run_id) == 1
