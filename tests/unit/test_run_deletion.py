"""test_run_deletion.py - a deleted run is gone in every primitive, and its id may begin anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    Database,
    KVStore,
    RetentionPolicy,
    RunId,
    RunIndex,
    RunStats,
    RunStatus,
    errors,
    keys,
    runs,
)
from tests.harness.index import assert_indexes_agree, fill, ids, owned, reach
from tests.harness.refusal import refused as refused_call
from tests.harness.threads import in_threads

DEFAULT = RunId.DEFAULT


@pytest.fixture
def index() -> Iterator[RunIndex]:
    with Database.ephemeral() as db:
        yield RunIndex(db)
        if not db.closed:
            assert_indexes_agree(db)


@pytest.fixture
def db(index: RunIndex) -> Database:
    return index.database


def refused(index: RunIndex, kind: type[errors.Error], match: str | None = None) -> Any:
    return refused_call(index.database, kind, match)


# -- deleting ---------------------------------------------------------------------------------


def test_a_deleted_run_is_gone_with_all_that_it_owned(index: RunIndex, db: Database) -> None:
    """Story 195: delete_run() removes the metadata, all KV data, events, states and traces. Story
    196: test_cascading_delete."""
    keys_before = db.metrics().keys
    kept = RunId.new()
    fill(db, kept)
    kept_keys = db.metrics().keys - keys_before
    run = index.create_run_with_options(None, tags=["a", "b"], metadata={"a": 1}).run_id
    fill(db, run)
    assert all(owned(db, run).values())
    index.delete_run(run)
    assert index.get_run(run) is None
    assert not index.exists(run)
    assert not any(owned(db, run).values())
    assert owned(db, run).keys() == owned(db, kept).keys()
    assert KVStore(db).get(run, "k0") is None
    assert KVStore(db).history(run, "k0") == []
    assert db.engine.get_counted(run, keys.TAG_STATE, "cell0") is None
    assert all(owned(db, kept).values())
    counters = sum(
        db.engine.get(DEFAULT, keys.TAG_RUN, runs.count_of(status.number)) is not None
        for status in RunStatus
    )
    assert db.metrics().keys == keys_before + kept_keys + counters


def test_a_deleted_run_is_in_no_index(index: RunIndex) -> None:
    """Story 195: delete_run() removes all indices."""
    parent = index.create_run().run_id
    run = index.create_run_with_options(None, parent, ["a"]).run_id
    index.delete_run(run)
    assert index.list_runs() == ids(index.query_runs()) == [parent]
    assert index.query_by_tag("a") == index.get_child_runs(parent) == []
    assert ids(index.query_by_status("Active")) == [parent]
    assert index.get_stats() == RunStats(total_runs=1, active_runs=1)
    with refused(index, errors.NotFound):
        index.delete_run(run)


@pytest.mark.parametrize("status", RunStatus, ids=str)
def test_a_run_is_deleted_in_any_status_and_its_id_begins_anew(
    index: RunIndex, db: Database, status: RunStatus
) -> None:
    run = index.create_run_with_options(None, tags=["a"], metadata=1).run_id
    fill(db, run)
    reach(index, run, status)
    index.delete_run(run)
    assert index.count() == 0
    made = index.create_run(run)
    assert (made.status, made.tags, made.metadata) == (RunStatus.ACTIVE, [], None)
    assert not any(owned(db, run).values())
    assert db.engine.append(run, [("event", {})])[0][0] == 0
    fill(db, run)


def test_a_deleted_run_that_is_not_begun_again_may_be_written_to(
    index: RunIndex, db: Database
) -> None:
    run = index.create_run().run_id
    index.complete_run(run)
    index.delete_run(run)
    KVStore(db).put(run, "a", 1)
    assert KVStore(db).list(run) == ["a"]
    assert not index.exists(run)


def test_children_of_a_deleted_run_stay(index: RunIndex) -> None:
    parent = index.create_run().run_id
    child = index.create_run_with_options(None, parent)
    index.delete_run(parent)
    assert index.get_run(child.run_id) == child
    assert child.parent_run == parent
    assert index.get_child_runs(parent) == index.query_runs(parent_run=parent) == [child]
    with refused(index, errors.NotFound, "parent"):
        index.create_run_with_options(None, parent)


def test_an_open_snapshot_still_sees_a_deleted_run_and_keeps_its_id_taken(
    index: RunIndex, db: Database
) -> None:
    kv = KVStore(db)
    run = index.create_run_with_options(None, tags=["a"]).run_id
    kv.mset(run, {f"k{i}": i for i in range(100)})
    with db.snapshot() as snapshot:
        index.delete_run(run)
        assert kv.list(run) == []
        assert len(list(snapshot.scan_prefix(run))) == 100
        assert index.list_runs() == []
        assert index.get_run(run) is None
        writes: list[Callable[[], Any]] = [
            lambda: kv.put(run, "a", 1),
            lambda: kv.put(run, "k1", 1),
            lambda: kv.mset(run, {"a": 1}),
            lambda: db.transaction(run, lambda txn: txn.kv_put("a", 1)),
            lambda: db.engine.append(run, [("event", {})]),
            lambda: db.set_retention(run, RetentionPolicy.KeepAll),
        ]
        for write in writes:
            with refused(index, errors.RunError) as caught:
                write()
            assert (caught.value.run, caught.value.state) == (run, "Deleted")
        for create in (index.create_run, db.begin_run):
            with refused(index, errors.InvalidOperation, "was deleted, but a snapshot"):
                create(run)
        for change in (index.delete_run, index.complete_run, db.end_run):
            with refused(index, errors.NotFound, "was deleted"):
                change(run)
        with pytest.raises(errors.NotFound, match="parent"):
            index.create_run_with_options(None, run)
        assert len(list(snapshot.scan_prefix(run))) == 100
    index.create_run(run)
    kv.put(run, "a", 1)
    assert kv.list(run) == ["a"]


def test_a_transaction_begun_before_the_deletion_commits_nothing(
    index: RunIndex, db: Database
) -> None:
    kv = KVStore(db)
    run = index.create_run().run_id
    kv.put(run, "a", 1)
    txn = db.begin(run)
    assert txn.kv_get("a") == 1
    txn.kv_put("b", 2)
    index.delete_run(run)
    assert txn.kv_get("a") == 1
    with pytest.raises(errors.RunError, match="Deleted"):
        txn.commit()
    index.create_run(run)
    assert kv.list(run) == []


def test_of_many_who_delete_a_run_one_does(index: RunIndex, db: Database) -> None:
    for _ in range(10):
        run = index.create_run_with_options(None, tags=["a"]).run_id
        KVStore(db).mset(run, {f"k{i}": i for i in range(500)})

        def delete(number: int, run: str = run) -> bool:
            try:
                index.delete_run(run)
            except errors.NotFound:
                return False
            return True

        assert in_threads(4, delete).count(True) == 1
        assert KVStore(db).list(run) == []
        index.create_run(run)
        index.delete_run(run)
