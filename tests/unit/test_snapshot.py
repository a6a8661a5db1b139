"""test_snapshot.py - a snapshot stays put, costs nothing closed, and there are 4096 at most."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import Database, KVStore, RetentionPolicy, RunId, Snapshot, Version, errors
from tests.harness.refusal import assert_usable, contents, refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
SNAPSHOTS_MAX = 4096

READS: dict[str, Callable[[Snapshot], Any]] = {
    "get": lambda it: it.get(RUN, "a"),
    "exists": lambda it: it.exists(RUN, "a"),
    "get_versioned": lambda it: it.get_versioned(RUN, "a"),
    "scan_prefix": lambda it: list(it.scan_prefix(RUN)),
}
each_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


@pytest.fixture
def kv() -> Iterator[KVStore]:
    with Database.ephemeral() as db:
        yield KVStore(db)


def seen(snapshot: Snapshot, run: RunId = RUN) -> list[Any]:
    """All that a snapshot shows of a run, by every way of reading."""
    listed = list(snapshot.scan_prefix(run))
    for key, value in listed:
        assert snapshot.get(run, key) == value
        assert snapshot.exists(run, key)
        found = snapshot.get_versioned(run, key)
        assert found is not None
        assert found.value == value
        assert found.version <= Version.Txn(snapshot.version)
    return listed


def test_it_sees_all_up_to_its_version_and_nothing_after(kv: KVStore) -> None:
    version = kv.mset(RUN, {"a": 1, "b": 2, "c": 3})
    with kv.database.snapshot() as snapshot:
        assert snapshot.version == version
        kv.put(RUN, "a", [10])
        kv.delete(RUN, "b")
        kv.put(RUN, "d", 4)
        kv.incr(RUN, "c")
        assert seen(snapshot) == [("a", 1), ("b", 2), ("c", 3)]
        assert not snapshot.exists(RUN, "d")
        assert snapshot.get(RUN, "d") is None
        assert snapshot.get_versioned(RUN, "d") is None
    assert kv.list_with_values(RUN) == [("a", [10]), ("c", 4), ("d", 4)]


def test_it_covers_all_runs(kv: KVStore) -> None:
    runs = [kv.database.begin_run() for _ in range(3)]
    for run in runs:
        kv.put(run, "a", str(run))
    with kv.database.snapshot() as snapshot:
        for run in runs:
            kv.put(run, "a", None)
            kv.put(run, "b", None)
        assert [seen(snapshot, run) for run in runs] == [[("a", str(run))] for run in runs]


def test_the_past_that_it_needs_outlives_retention_sweeps_and_deletion(kv: KVStore) -> None:
    db = kv.database
    db.set_retention(RUN, RetentionPolicy.KeepLast(1))
    held: list[tuple[Snapshot, list[Any]]] = []
    for turn in range(20):
        kv.mset(RUN, {f"k{i}": [turn, i] for i in range(turn % 3, 10)})
        kv.mdelete(RUN, [f"k{turn % 10}"])
        held.append((db.snapshot(), kv.list_with_values(RUN)))
        for _ in range(10):
            kv.incr(RUN, "n")
        db._engine.sweep()
    for snapshot, expected in held[::2] + held[1::2]:
        found = [pair for pair in seen(snapshot) if pair[0] != "n"]
        assert found == [pair for pair in expected if pair[0] != "n"]
        snapshot.close()
        db._engine.sweep()
    assert all(len(kv.history(RUN, key)) == 1 for key in kv.list(RUN))


def test_what_only_it_needed_is_trimmed_after_it_closed(kv: KVStore) -> None:
    kv.database.set_retention(RUN, RetentionPolicy.KeepLast(1))
    kv.put(RUN, "a", 1)
    with kv.database.snapshot():
        for i in range(100):
            kv.put(RUN, "a", i)
        kv.database._engine.sweep()
        assert len(kv.history(RUN, "a")) > 1
    kv.database._engine.sweep()
    assert len(kv.history(RUN, "a")) == 1


def test_a_scan_goes_on_over_many_batches_while_everything_changes(kv: KVStore) -> None:
    expected = [(f"k{i:05}", i) for i in range(4000)]
    kv.mset(RUN, expected)
    with kv.database.snapshot() as snapshot:
        found = []
        for position, pair in enumerate(snapshot.scan_prefix(RUN, "k")):
            if position % 500 == 0:
                kv.mdelete(RUN, [f"k{i:05}" for i in range(position, position + 1500)])
                kv.put(RUN, f"k{position:05}+", "new")
            found.append(pair)
        assert found == expected
        assert len(list(snapshot.scan_prefix(RUN, "k001"))) == 100
        assert list(snapshot.scan_prefix(RUN, "x")) == []


def test_threads_may_share_a_snapshot(kv: KVStore) -> None:
    kv.mset(RUN, {f"k{i}": i for i in range(200)})
    with kv.database.snapshot() as snapshot:
        expected = seen(snapshot)

        def read_and_write(number: int) -> None:
            for i in range(20):
                kv.put(RUN, f"k{i}", f"thread {number}")
                assert seen(snapshot) == expected

        in_threads(8, read_and_write)


def test_opening_and_closing_commit_nothing(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    before = contents(kv.database, RUN)
    for _ in range(10_000):
        kv.database.snapshot().close()
    assert contents(kv.database, RUN) == before


# -- its end ----------------------------------------------------------------------------------


@each_read
def test_a_closed_snapshot_reads_no_more_and_closes_twice(
    read: Callable[[Snapshot], Any], kv: KVStore
) -> None:
    kv.put(RUN, "a", 1)
    snapshot = kv.database.snapshot()
    read(snapshot)
    assert "version" in repr(snapshot)
    snapshot.close()
    snapshot.close()
    assert snapshot.closed
    assert repr(snapshot) == "<Snapshot closed>"
    assert snapshot.version == 1
    with refused(kv.database, errors.InvalidState, "closed"):
        read(snapshot)


def test_a_scan_of_a_snapshot_that_closed_meanwhile_stops_with_an_error(kv: KVStore) -> None:
    kv.mset(RUN, {f"k{i:05}": i for i in range(3000)})
    snapshot = kv.database.snapshot()
    scan = snapshot.scan_prefix(RUN)
    assert next(scan) == ("k00000", 0)
    snapshot.close()
    with refused(kv.database, errors.InvalidState):
        list(scan)


@each_read
def test_after_the_handle_is_closed_a_snapshot_is_closed_too(
    read: Callable[[Snapshot], Any], kv: KVStore
) -> None:
    kv.put(RUN, "a", 1)
    snapshot = kv.database.snapshot()
    kv.database.close()
    with pytest.raises(errors.Closed):
        read(snapshot)
    snapshot.close()


@each_read
def test_a_snapshot_reads_in_no_other_handle(read: Callable[[Snapshot], Any], kv: KVStore) -> None:
    rebuild, arguments = kv.database.__reduce__()
    with rebuild(*arguments) as second, kv.database.snapshot() as snapshot:
        foreign = Snapshot(second._engine, snapshot._pin)
        with pytest.raises(errors.InvalidState):
            read(foreign)


def test_in_a_forked_child_the_parents_snapshot_is_no_longer_valid(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    with kv.database.snapshot() as snapshot:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                snapshot.get(RUN, "a")
            except errors.InvalidState:
                snapshot.close()
                with kv.database.snapshot() as own:
                    code = 0 if own.get(RUN, "a") == 1 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert snapshot.get(RUN, "a") == 1


def test_it_does_not_pickle(kv: KVStore) -> None:
    import pickle

    with kv.database.snapshot() as snapshot, pytest.raises(TypeError):
        pickle.dumps(snapshot)


# -- too many ---------------------------------------------------------------------------------


def test_too_many_snapshots_are_unavailable_until_one_closes(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    held = [kv.database.snapshot() for _ in range(SNAPSHOTS_MAX)]
    calls: list[Callable[[], Any]] = [
        kv.database.snapshot,
        lambda: kv.database.begin(RUN),
        lambda: kv.transaction(RUN, lambda txn: None),
        lambda: kv.list(RUN),
        lambda: kv.get_many(RUN, ["a"]),
    ]
    for call in calls:
        with pytest.raises(errors.Unavailable, match="4096") as caught:
            call()
        assert caught.value.is_retryable()
    assert kv.get(RUN, "a") == 1
    assert kv.put(RUN, "a", 2)
    assert kv.database.metrics().snapshots == SNAPSHOTS_MAX
    held.pop().close()
    assert kv.list(RUN) == ["a", "b"]
    for snapshot in held:
        assert snapshot.get(RUN, "a") == 1
        snapshot.close()
    assert kv.database.metrics().snapshots == 0
    assert_usable(kv.database)
