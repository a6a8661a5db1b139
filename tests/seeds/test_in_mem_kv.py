"""test_in_mem_kv.py - the Database and KVStore examples of the in-mem page, typed line by line.

Why:        who comes from that page should be able to type what it shows, in Python form: snake
            case, None for no option, an exception for an error, a plain value for a Value.
Used by:    nothing else; each test is one example, in the order of the page
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from shm_engine import Database, Durability, KVStore, RunId, errors


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def kv(db: Database) -> KVStore:
    return KVStore(db)


@pytest.fixture
def run_id(db: Database) -> RunId:
    return db.begin_run()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- Database ---------------------------------------------------------------------------------


def test_open_is_strict_by_default_and_keeps_what_was_put(tmp_path: Path) -> None:
    with Database.open(tmp_path / "my-database") as db:
        assert db.durability == Durability.strict()
        KVStore(db).put("default", "key", "value")
    with Database.open(tmp_path / "my-database") as db:
        assert KVStore(db).get("default", "key") == "value"


def test_open_with_mode_in_memory(tmp_path: Path) -> None:
    with Database.open_with_mode(tmp_path / "data", Durability.in_memory()) as db:
        assert db.durability == Durability.in_memory()
        assert db.path == tmp_path / "data"
        run_id = db.begin_run()
        KVStore(db).put(run_id, "key", "value")
        assert KVStore(db).get(run_id, "key") == "value"


@pytest.mark.parametrize(
    "mode",
    [
        Durability.buffered(flush_interval_ms=100, max_pending_writes=1000),
        Durability.strict(),
    ],
    ids=str,
)
def test_open_with_mode_of_a_log(mode: Durability, tmp_path: Path) -> None:
    with Database.open_with_mode(tmp_path / "data", mode) as db:
        assert db.durability == mode
        KVStore(db).put("default", "key", "value")
        db.flush()
        assert db.metrics().durable_version == db.metrics().version


def test_begin_run_gives_an_id_that_prints_as_a_uuid(db: Database) -> None:
    run_id = db.begin_run()
    assert str(uuid.UUID(str(run_id))) == str(run_id)
    assert f"Run ID: {run_id}" == f"Run ID: {uuid.UUID(bytes=run_id.bytes)}"


def test_end_run(db: Database, run_id: RunId) -> None:
    db.end_run(run_id)
    with pytest.raises(errors.InvalidStatusTransition) as caught:
        db.end_run(run_id)
    assert (caught.value.from_, caught.value.to) == ("Completed", "Completed")


def test_transaction_commits_and_gives_the_closures_result(
    db: Database, kv: KVStore, run_id: RunId
) -> None:
    def work(txn):  # type: ignore[no-untyped-def]
        txn.kv_put("key1", "value1")
        txn.kv_put("key2", 42)
        return "success"

    assert db.transaction(run_id, work) == "success"
    assert kv.get_many(run_id, ["key1", "key2"]) == ["value1", 42]


def test_transaction_rolls_back_on_an_error(db: Database, kv: KVStore, run_id: RunId) -> None:
    def work(txn):  # type: ignore[no-untyped-def]
        txn.kv_put("key1", "value1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        db.transaction(run_id, work)
    assert kv.get(run_id, "key1") is None


# -- Value ------------------------------------------------------------------------------------


def test_every_kind_of_value(kv: KVStore, run_id: RunId) -> None:
    v1 = "hello"
    v2 = 42
    v3 = [1, 2]
    v4 = {"name": "Alice", "age": 30}
    for index, value in enumerate([None, True, v1, v2, 2.5, b"bytes", v3, v4]):
        kv.put(run_id, f"v{index}", value)
        assert kv.get(run_id, f"v{index}") == value
        assert type(kv.get(run_id, f"v{index}")) is type(value)


# -- KVStore ----------------------------------------------------------------------------------


def test_get(kv: KVStore, run_id: RunId) -> None:
    kv.put(run_id, "user:123:name", "Alice")
    found = []
    for key in ("user:123:name", "user:123:missing"):
        match kv.get(run_id, key):
            case str(name):
                found.append(f"Name: {name}")
            case None:
                found.append("Not found")
            case _:
                found.append("Unexpected type")
    assert found == ["Name: Alice", "Not found"]


def test_put_creates_and_overwrites(kv: KVStore, run_id: RunId) -> None:
    kv.put(run_id, "user:123:name", "Bob")
    kv.put(run_id, "user:123:name", "Alice")
    kv.put(run_id, "user:123:age", 30)
    assert kv.list_with_values(run_id) == [("user:123:age", 30), ("user:123:name", "Alice")]


def test_put_with_ttl(kv: KVStore, run_id: RunId) -> None:
    kv.put_with_ttl(run_id, "session:abc", "session-data", timedelta(seconds=3600))
    assert kv.get(run_id, "session:abc") == "session-data"
    left = kv.ttl(run_id, "session:abc")
    assert left is not None
    assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)


def test_delete_tells_whether_the_key_was_there(kv: KVStore, run_id: RunId) -> None:
    kv.put(run_id, "user:123:name", "Alice")
    assert kv.delete(run_id, "user:123:name") is True
    assert kv.delete(run_id, "user:123:name") is False


def test_exists(kv: KVStore, run_id: RunId) -> None:
    assert not kv.exists(run_id, "user:123")
    kv.put(run_id, "user:123", {})
    assert kv.exists(run_id, "user:123")


def test_get_many_keeps_the_order_of_the_keys(kv: KVStore, run_id: RunId) -> None:
    kv.mset(run_id, {"key1": 1, "key3": 3})
    assert kv.get_many(run_id, ["key3", "key2", "key1"]) == [3, None, 1]


def test_get_many_map_leaves_missing_keys_out(kv: KVStore, run_id: RunId) -> None:
    kv.mset(run_id, {"key1": 1, "key3": 3})
    found = kv.get_many_map(run_id, ["key1", "key2", "key3"])
    assert found == {"key1": 1, "key3": 3}


def test_list_with_and_without_a_prefix(kv: KVStore, run_id: RunId) -> None:
    kv.mset(run_id, {"user:2": "b", "user:1": "a", "task:1": "t"})
    assert kv.list(run_id, None) == ["task:1", "user:1", "user:2"]
    assert kv.list(run_id, "user:") == ["user:1", "user:2"]


def test_list_with_values(kv: KVStore, run_id: RunId) -> None:
    kv.mset(run_id, {"user:2": "b", "user:1": "a", "task:1": "t"})
    assert kv.list_with_values(run_id, "user:") == [("user:1", "a"), ("user:2", "b")]
    assert len(kv.list_with_values(run_id, None)) == 3


def test_transaction_of_the_store_has_get_put_delete_and_list(kv: KVStore, run_id: RunId) -> None:
    kv.put(run_id, "account:balance", 50)

    def deposit(txn):  # type: ignore[no-untyped-def]
        balance = txn.get("account:balance") or 0
        txn.put("account:balance", balance + 100)
        txn.put("account:last_updated", now_ms())
        return balance + 100

    assert kv.transaction(run_id, deposit) == 150
    assert kv.get(run_id, "account:balance") == 150

    def close(txn):  # type: ignore[no-untyped-def]
        return [txn.delete(key) for key in txn.list("account:")], txn.list(None)

    assert kv.transaction(run_id, close) == ([True, True], [])


# -- concurrency ------------------------------------------------------------------------------


def test_the_database_is_shared_by_threads_with_a_run_each(db: Database) -> None:
    runs: list[RunId] = []

    def work(i: int) -> None:
        run_id = db.begin_run()
        runs.append(run_id)
        kv = KVStore(db)
        for j in range(1000):
            kv.put(run_id, f"key-{i}-{j}", j)
        db.end_run(run_id)

    handles = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for handle in handles:
        handle.start()
    for handle in handles:
        handle.join()
    kv = KVStore(db)
    assert sorted(len(kv.list(run_id)) for run_id in runs) == [1000] * 4
    for run_id in runs:
        with pytest.raises(errors.RunError):
            kv.put(run_id, "late", 1)


def test_the_first_committer_wins(db: Database, kv: KVStore, run_id: RunId) -> None:
    kv.put(run_id, "counter", 1)
    first, second = db.begin(run_id), db.begin(run_id)
    for txn in (first, second):
        txn.kv_put("counter", txn.kv_get("counter") + 1)
    first.commit()
    with pytest.raises(errors.TransactionConflict):
        second.commit()
    assert kv.get(run_id, "counter") == 2


def test_errors_are_told_apart_by_class_and_code(kv: KVStore, run_id: RunId) -> None:
    outcomes = []
    for call in (
        lambda: kv.get_at(run_id, "missing", 1),
        lambda: kv.put(run_id, "", 1),
        lambda: kv.incr(run_id, "text"),
    ):
        kv.put(run_id, "text", "x")
        try:
            call()
        except errors.KeyNotFound:
            outcomes.append("not found")
        except errors.Error as error:
            outcomes.append(error.code)
    assert outcomes == ["not found", "InvalidKey", "WrongType"]
