"""test_transaction.py - one snapshot, own writes, conflicts exactly where a read has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from shm_engine import Database, KVStore, RetentionPolicy, RunId, Transaction, errors, keys
from tests.harness.labels import label
from tests.harness.refusal import assert_usable, contents, refused
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
MAX = 2**63 - 1
Step = Callable[[Transaction], Any]
Write = Callable[[KVStore], Any]


def steps(*parts: Step) -> Step:
    """One step that does the parts in order and gives what the last one gave."""
    return lambda txn: [part(txn) for part in parts][-1]


@pytest.fixture
def kv() -> Iterator[KVStore]:
    with Database.ephemeral() as db:
        yield KVStore(db)
        assert db.closed or db.metrics().snapshots == 0


@pytest.fixture
def db(kv: KVStore) -> Database:
    return kv.database


# -- what it sees -----------------------------------------------------------------------------


def test_it_sees_its_snapshot_and_its_own_writes_and_others_see_neither(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    with kv.database.begin(RUN) as txn:
        kv.put(RUN, "b", 20)
        kv.put(RUN, "c", 30)
        txn.kv_put("a", [1])
        assert (txn.kv_get("a"), txn.kv_exists("c"), txn.kv_list()) == ([1], False, ["a", "b"])
        assert kv.get(RUN, "a") == 1
        assert txn.kv_delete("a") is True
        assert (txn.kv_get("a"), txn.kv_exists("a"), txn.kv_list()) == (None, False, ["b"])
        assert txn.kv_delete("a") is False
        txn.rollback()
    assert kv.list_with_values(RUN) == [("a", 1), ("b", 20), ("c", 30)]


def test_put_after_delete_is_a_put_and_delete_after_put_a_delete(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    with kv.database.begin(RUN) as txn:
        txn.kv_delete("a")
        txn.kv_put("a", 3)
        txn.kv_put("b", 4)
        txn.kv_delete("b")
        txn.kv_put("c", 5)
        txn.kv_delete("c")
        assert list(txn.scan_prefix()) == [("a", 3)]
    assert kv.list_with_values(RUN) == [("a", 3)]


def test_a_scan_merges_own_writes_in_order(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 1, "c": 1, "é": 1, "x": 1})
    with kv.database.begin(RUN) as txn:
        for key in ("", "a0", "b", "d", "z", "é2", "€", "🐚", "\x01"):
            if key:
                txn.kv_put(key, 2)
        txn.kv_delete("c")
        txn.kv_incr("x")
        txn.kv_incr("new")
        expected = {"a": 1, "a0": 2, "b": 2, "d": 2, "new": 1, "x": 2, "z": 2, "é": 1, "é2": 2}
        expected |= {"€": 2, "🐚": 2, "\x01": 2}
        ordered = sorted(expected.items(), key=lambda item: item[0].encode())
        assert list(txn.scan_prefix()) == ordered
        assert txn.kv_list("é") == ["é", "é2"]
        assert txn.list() == txn.list(None) == [key for key, _ in ordered]
        assert txn.kv_list("none") == []
    assert kv.list_with_values(RUN) == ordered


def test_a_scan_over_several_batches_merges_and_stays_at_its_snapshot(kv: KVStore) -> None:
    kv.mset(RUN, {f"k{i:05}": i for i in range(0, 5000, 2)})
    with kv.database.begin(RUN) as txn:
        for i in range(1, 5000, 500):
            txn.kv_put(f"k{i:05}", i)
        seen: list[int] = []
        for key, value in txn.scan_prefix("k"):
            if len(seen) % 1000 == 0:
                kv.put(RUN, f"k{len(seen):05}x", "later")
            assert key == f"k{value:05}"
            seen.append(value)
        assert seen == sorted([*range(0, 5000, 2), *range(1, 5000, 500)])
        txn.rollback()


def test_a_scan_given_up_half_way_lets_go(kv: KVStore) -> None:
    kv.mset(RUN, {f"k{i:05}": i for i in range(3000)})
    with kv.database.begin(RUN) as txn:
        scan = txn.scan_prefix()
        assert next(scan) == ("k00000", 0)
        del scan
        kv.put(RUN, "k02999", "changed, but not yet reached")
        txn.kv_put("a", 1)


def test_a_value_is_encoded_when_it_is_put(kv: KVStore) -> None:
    with kv.database.begin(RUN) as txn:
        value = [1]
        txn.kv_put("a", value)
        value.append(2)
    assert kv.get(RUN, "a") == [1]


def bury(kv: KVStore, key: str) -> None:
    """A sweep puts a tombstone where a value has run out."""
    assert kv.put(RUN, "later", 0)  # the sweep is to have something that it may not remove yet
    kv.database._engine.sweep()
    assert [one.is_tombstone for one in kv.history(RUN, key)] == [True, False]


def put_expired(kv: KVStore, key: str) -> None:
    kv.database._engine.put(RUN, keys.TAG_KV, key, "was", 1)


@pytest.mark.parametrize("scan", [False, True])
def test_a_value_that_a_sweep_buries_was_absent_before_and_is_no_conflict(
    kv: KVStore, scan: bool
) -> None:
    """The tombstone is newer than the transaction, but it changes nothing for anybody."""
    put_expired(kv, "gone")
    with kv.database.begin(RUN, isolation="serializable") as txn:
        if scan:
            assert txn.kv_list("gone") == []
        else:
            assert txn.kv_get("gone") is None
        txn.kv_put("mine", 1)
        bury(kv, "gone")
    assert kv.get(RUN, "mine") == 1


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_value_put_where_one_was_buried_is_a_conflict(
    kv: KVStore, scan: bool, deleted: bool
) -> None:
    put_expired(kv, "gone")
    txn = kv.database.begin(RUN, isolation="serializable")
    assert txn.kv_list("gone") == [] if scan else txn.kv_get("gone") is None
    txn.kv_put("mine", 1)
    bury(kv, "gone")
    kv.put(RUN, "gone", "back")
    if deleted:
        kv.delete(RUN, "gone")
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    assert kv.get(RUN, "mine") is None


def test_a_delete_of_a_living_value_that_would_run_out_is_a_conflict(kv: KVStore) -> None:
    kv.put_with_ttl(RUN, "key", "value", 3600)
    txn = kv.database.begin(RUN, isolation="serializable")
    assert txn.kv_get("key") == "value"
    txn.kv_put("mine", 1)
    kv.delete(RUN, "key")
    with pytest.raises(errors.TransactionConflict):
        txn.commit()


def test_expired_values_are_absent_and_a_put_makes_them_permanent(kv: KVStore) -> None:
    kv.database._engine.put(RUN, keys.TAG_KV, "a", 1, 1)
    kv.put_with_ttl(RUN, "b", 1, 3600)
    with kv.database.begin(RUN) as txn:
        assert txn.kv_get("a") is None
        assert not txn.kv_exists("a")
        assert txn.kv_delete("a") is False
        txn.kv_incr("a")
        txn.kv_put("b", 2)
    assert kv.list_with_values(RUN) == [("a", 1), ("b", 2)]
    assert kv.ttl(RUN, "b") is None


def test_a_transaction_belongs_to_one_run(kv: KVStore) -> None:
    other = kv.database.begin_run()
    kv.put(other, "a", "other")
    with kv.database.begin(RUN) as txn:
        assert txn.run == RUN
        assert txn.kv_get("a") is None
        txn.kv_put("a", 1)
        assert txn.kv_list() == ["a"]
    assert (kv.get(RUN, "a"), kv.get(other, "a")) == (1, "other")


# -- what it commits --------------------------------------------------------------------------


def test_a_commit_is_one_version_for_all_it_wrote(kv: KVStore) -> None:
    first = kv.mset(RUN, {"a": 1, "b": 1, "n": 1})
    txn = kv.database.begin(RUN)
    txn.kv_put("a", 2)
    txn.kv_delete("b")
    txn.kv_incr("n", 5)
    txn.kv_put("c", 3)
    version = txn.commit()
    assert version > first
    for key in "abcn":
        assert kv.history(RUN, key)[0].version.value == version
    assert kv.list_with_values(RUN) == [("a", 2), ("c", 3), ("n", 6)]
    assert kv.database.metrics().transactions_committed == 2


def test_a_commit_without_writes_gives_its_snapshots_version_and_counts_as_none(
    kv: KVStore,
) -> None:
    version = kv.put(RUN, "a", 1)
    before = contents(kv.database, RUN)
    txn = kv.database.begin(RUN)
    assert (txn.version, txn.kv_get("a")) == (version, 1)
    assert txn.commit() == version
    assert contents(kv.database, RUN) == before


def test_a_transaction_of_many_keys_commits_whole(kv: KVStore) -> None:
    with kv.database.begin(RUN) as txn:
        for i in range(20_000):
            txn.kv_put(f"k{i}", i)
    assert len(kv.list(RUN)) == 20_000
    with kv.database.begin(RUN) as txn:
        for key in txn.kv_list():
            txn.kv_delete(key)
    assert kv.list(RUN) == []


# -- conflicts --------------------------------------------------------------------------------

READS: dict[str, Step] = {
    "kv_get": lambda txn: txn.kv_get("a"),
    "kv_exists": lambda txn: txn.kv_exists("a"),
    "kv_delete": lambda txn: txn.kv_delete("a"),
    "kv_list": lambda txn: txn.kv_list(),
    "scan_prefix": lambda txn: list(txn.scan_prefix("a")),
    "kv_incr and kv_get": steps(lambda txn: txn.kv_incr("a"), lambda txn: txn.kv_get("a")),
    "kv_get and kv_put": steps(lambda txn: txn.kv_get("a"), lambda txn: txn.kv_put("a", 3)),
}
CHANGES: dict[str, Write] = {
    "put": lambda kv: kv.put(RUN, "a", 2),
    "put of the same": lambda kv: kv.put(RUN, "a", 1),
    "delete": lambda kv: kv.delete(RUN, "a"),
    "incr": lambda kv: kv.incr(RUN, "a"),
    "mset": lambda kv: kv.mset(RUN, {"z": 1, "a": 2}),
    "delete and put back": lambda kv: (kv.delete(RUN, "a"), kv.put(RUN, "a", 1)),
    "transaction": lambda kv: kv.transaction(RUN, lambda txn: txn.kv_put("a", 2)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_key_that_was_read_and_has_changed_is_a_conflict(
    read: Step, change: Write, kv: KVStore
) -> None:
    kv.put(RUN, "a", 1)
    txn = kv.database.begin(RUN)
    read(txn)
    txn.kv_put("mine", 1)
    change(kv)
    before = contents(kv.database, RUN)
    with pytest.raises(errors.TransactionConflict, match="'a'") as caught:
        txn.commit()
    assert caught.value.key == "a"
    assert caught.value.is_retryable()
    assert caught.value.is_conflict()
    assert not txn.is_active
    assert contents(kv.database, RUN)[0] == before[0]
    assert kv.database.metrics().transactions_aborted == 1
    assert_usable(kv.database)


MISSING_READS: dict[str, Step] = {
    "kv_get": lambda txn: txn.kv_get("a"),
    "kv_exists": lambda txn: txn.kv_exists("a"),
    "kv_delete": lambda txn: txn.kv_delete("a"),
}


@pytest.mark.parametrize("read", MISSING_READS.values(), ids=MISSING_READS)
@pytest.mark.parametrize("deleted", [False, True], ids=["never there", "deleted"])
def test_a_key_found_missing_is_guarded_too(read: Step, deleted: bool, kv: KVStore) -> None:
    if deleted:
        kv.put(RUN, "a", 1)
        kv.delete(RUN, "a")
    txn = kv.database.begin(RUN)
    read(txn)
    txn.kv_put("mine", 1)
    kv.put(RUN, "a", 1)
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    assert kv.list(RUN) == ["a"]


def blind_put(txn: Transaction) -> None:
    txn.kv_put("a", 5)


NO_CONFLICTS: dict[str, Step] = {
    "blind put": blind_put,
    "increment": lambda txn: txn.kv_incr("a", 10),
    "own write read": steps(blind_put, lambda txn: (txn.kv_get("a"), txn.kv_exists("a"))),
    "own write deleted": steps(blind_put, lambda txn: txn.kv_delete("a")),
    "other keys read": steps(lambda txn: (txn.kv_get("b"), txn.kv_list("b")), blind_put),
    "scan with own write": steps(blind_put, lambda txn: txn.kv_list("a")),
}


@pytest.mark.parametrize("step", NO_CONFLICTS.values(), ids=NO_CONFLICTS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_blind_writes_never_conflict_and_the_later_wins(
    step: Step, change: Write, kv: KVStore
) -> None:
    kv.mset(RUN, {"a": 1, "b": 1})
    with kv.database.begin(RUN) as txn:
        step(txn)
        txn.kv_put("mine", 1)
        change(kv)
        theirs = kv.get(RUN, "a")
    expected = {
        NO_CONFLICTS["increment"]: 10 + (theirs or 0),
        NO_CONFLICTS["own write deleted"]: None,
    }.get(step, 5)
    assert kv.get(RUN, "a") == expected
    assert kv.get(RUN, "mine") == 1


def test_a_transaction_that_only_read_always_commits(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    with kv.database.begin(RUN, isolation="serializable") as txn:
        assert txn.kv_list() == ["a"]
        kv.mset(RUN, {"a": 2, "b": 2})
        assert txn.kv_get("a") == 1


def test_a_delete_of_what_is_missing_is_no_change_to_others(kv: KVStore) -> None:
    with kv.database.begin(RUN) as txn:
        assert txn.kv_get("a") is None
        txn.kv_put("mine", 1)
        kv.delete(RUN, "a")
        assert not kv.cas(RUN, "a", 7, 1)
    assert kv.get(RUN, "mine") == 1


def test_of_two_that_read_and_write_the_same_the_first_to_commit_wins(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    first, second = kv.database.begin(RUN), kv.database.begin(RUN)
    for txn in (first, second):
        txn.kv_put("a", txn.kv_get("a") + 1)
    second.commit()
    with pytest.raises(errors.TransactionConflict):
        first.commit()
    assert kv.get(RUN, "a") == 2


def test_write_skew_is_a_conflict_for_reads_are_guarded(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 1})
    first, second = kv.database.begin(RUN), kv.database.begin(RUN)
    assert first.kv_get("a") + first.kv_get("b") == second.kv_get("a") + second.kv_get("b") == 2
    first.kv_put("a", 0)
    second.kv_put("b", 0)
    first.commit()
    with pytest.raises(errors.TransactionConflict):
        second.commit()
    assert kv.get_many(RUN, ["a", "b"]) == [0, 1]


@pytest.mark.parametrize(
    ("prefix", "change", "phantom"),
    [
        ("a", lambda kv: kv.put(RUN, "a5", 0), True),
        ("", lambda kv: kv.put(RUN, "z", 0), True),
        ("a", lambda kv: kv.put(RUN, "b", 0), False),
        ("a", lambda kv: kv.put(RUN, "A", 0), False),
        ("a", lambda kv: kv.transaction(RUN, lambda txn: txn.kv_incr("ax")), True),
        ("none", lambda kv: kv.put(RUN, "none1", 0), True),
        ("a", lambda kv: kv.delete(RUN, "missing"), False),
        ("a", lambda kv: (kv.put(RUN, "a5", 0), kv.delete(RUN, "a5")), True),
    ],
)
@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
def test_only_serializable_guards_the_range(
    prefix: str, change: Write, phantom: bool, isolation: str, kv: KVStore
) -> None:
    kv.mset(RUN, {"a1": 1, "a2": 2, "b1": 3})
    txn = kv.database.begin(RUN, isolation)
    txn.kv_list(prefix)
    txn.kv_put("mine", isolation)
    change(kv)
    if phantom and isolation == "serializable":
        with pytest.raises(errors.TransactionConflict) as caught:
            txn.commit()
        assert caught.value.key == prefix
    else:
        txn.commit()


def test_own_writes_into_a_scanned_range_are_no_phantoms(kv: KVStore) -> None:
    kv.put(RUN, "a1", 1)
    with kv.database.begin(RUN, isolation="serializable") as txn:
        for key in txn.kv_list("a"):
            txn.kv_put(key + "copy", txn.kv_get(key))
            txn.kv_delete(key)
    assert kv.list(RUN) == ["a1copy"]


def test_a_sweep_that_trims_what_was_read_is_no_conflict(kv: KVStore) -> None:
    kv.database.set_retention(RUN, RetentionPolicy.KeepLast(1))
    kv.put(RUN, "gone", 1)
    kv.delete(RUN, "gone")
    for i in range(5):
        kv.put(RUN, "a", i)
    with kv.database.begin(RUN, isolation="serializable") as txn:
        assert (txn.kv_get("gone"), txn.kv_list()) == (None, ["a"])
        txn.kv_put("b", 1)
        kv.database._engine.sweep()
    assert kv.list(RUN) == ["a", "b"]


def put(key: str, value: Any) -> Step:
    return lambda txn: txn.kv_put(key, value)


def incr(key: str, delta: int = 1) -> Step:
    return lambda txn: txn.kv_incr(key, delta)


# -- increments -------------------------------------------------------------------------------


def test_increments_add_up_over_what_the_transaction_did_before(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 1, "c": 1})
    with kv.database.begin(RUN) as txn:
        txn.kv_incr("a")
        txn.kv_incr("a", 4)
        txn.kv_put("b", 10)
        txn.kv_incr("b", -3)
        txn.kv_delete("c")
        txn.kv_incr("c", 7)
        txn.kv_incr("d")
        txn.kv_incr("e", 5)
        txn.kv_put("e", 0)
        txn.kv_incr("f", 5)
        txn.kv_delete("f")
        assert [txn.kv_get(key) for key in "abcdef"] == [6, 7, 7, 1, 0, None]
        assert [txn.kv_exists(key) for key in "abcdef"] == [True] * 5 + [False]
    assert kv.list_with_values(RUN) == [("a", 6), ("b", 7), ("c", 7), ("d", 1), ("e", 0)]


@pytest.mark.parametrize("value", ["text", 1.5, None, True, [1]], ids=label)
def test_an_increment_of_no_int_fails_the_whole_commit(value: Any, kv: KVStore) -> None:
    kv.put(RUN, "a", value)
    txn = kv.database.begin(RUN)
    txn.kv_put("mine", 1)
    txn.kv_incr("a")
    with pytest.raises(errors.WrongType, match="'a' holds"):
        txn.kv_get("a")
    txn.rollback()
    with refused(kv.database, errors.WrongType, "'a' holds"):
        kv.transaction(RUN, steps(put("mine", 1), incr("a")))
    with refused(kv.database, errors.WrongType, "'own' holds"):
        kv.transaction(RUN, steps(put("own", value), incr("own")))


def test_an_increment_beyond_64_bits_fails_the_whole_commit(kv: KVStore) -> None:
    kv.put(RUN, "a", MAX)
    over: list[Step] = [
        incr("a"),
        steps(incr("a"), lambda txn: txn.kv_get("a")),
        steps(put("own", MAX), incr("own")),
        steps(incr("new", MAX), incr("new")),
        incr("new", MAX + 1),
    ]
    for step in over:
        with refused(kv.database, errors.ConstraintViolation, "64") as caught:
            kv.transaction(RUN, steps(put("mine", 1), step))
        assert isinstance(caught.value, errors.ConstraintViolation)
        assert caught.value.reason == "int_out_of_range"
    kv.transaction(RUN, steps(incr("a", 1), incr("a", -1)))
    assert kv.get(RUN, "a") == MAX


def test_increments_from_eight_threads_are_all_counted_and_nobody_retries(kv: KVStore) -> None:
    def count(_: int) -> None:
        for _ in range(200):
            with kv.database.begin(RUN) as txn:
                txn.kv_incr("n")
                txn.kv_incr("m", 2)

    in_threads(8, count)
    assert kv.get_many(RUN, ["n", "m"]) == [1600, 3200]
    assert kv.database.metrics().transactions_aborted == 0


# -- the end ----------------------------------------------------------------------------------

USES: dict[str, Step] = {
    "kv_get": lambda txn: txn.kv_get("a"),
    "kv_put": lambda txn: txn.kv_put("a", 1),
    "kv_delete": lambda txn: txn.kv_delete("a"),
    "kv_exists": lambda txn: txn.kv_exists("a"),
    "kv_incr": lambda txn: txn.kv_incr("a"),
    "kv_list": lambda txn: txn.kv_list(),
    "scan_prefix": lambda txn: txn.scan_prefix(),
    "get": lambda txn: txn.get("a"),
    "put": lambda txn: txn.put("a", 1),
    "delete": lambda txn: txn.delete("a"),
    "list": lambda txn: txn.list(),
    "commit": lambda txn: txn.commit(),
}
ENDS: dict[str, tuple[Step, str]] = {
    "commit": (lambda txn: txn.commit(), "committed"),
    "rollback": (lambda txn: txn.rollback(), "rolled back"),
    "both": (steps(lambda txn: txn.commit(), lambda txn: txn.rollback()), "committed"),
    "exit": (lambda txn: txn.__exit__(None, None, None), "committed"),
}


@pytest.mark.parametrize(("end", "state"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_finished_transaction_refuses_every_use(
    use: Step, end: Step, state: str, kv: KVStore
) -> None:
    kv.put(RUN, "a", 0)
    txn = kv.database.begin(RUN)
    txn.kv_put("b", 1)
    scan = txn.scan_prefix()
    end(txn)
    with refused(kv.database, errors.InvalidState, state):
        use(txn)
    with refused(kv.database, errors.InvalidState):
        next(scan)
    txn.rollback()
    assert not txn.is_active
    assert kv.exists(RUN, "b") == (state == "committed")
    assert state in repr(txn)


def test_a_failed_commit_ends_the_transaction(kv: KVStore) -> None:
    txn = kv.database.begin(RUN)
    txn.kv_get("a")
    txn.kv_put("b", 1)
    kv.put(RUN, "a", 1)
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    with refused(kv.database, errors.InvalidState, "rolled back"):
        txn.commit()


class Mine(Exception):
    pass


@pytest.mark.parametrize(
    "kind", [Mine, KeyboardInterrupt, SystemExit, GeneratorExit, errors.KeyNotFound, StopIteration]
)
def test_an_exception_rolls_back_and_comes_through_unchanged(
    kind: type[BaseException], kv: KVStore
) -> None:
    raised = kind("mine")

    def fail(txn: Transaction) -> None:
        txn.kv_put("a", 1)
        raise raised

    before = contents(kv.database, RUN)
    calls: list[Callable[[], Any]] = [
        lambda: kv.database.transaction(RUN, fail),
        lambda: kv.database.transaction_with_retry(RUN, fail, timeout=60),
        lambda: kv.transaction(RUN, fail),
    ]
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value is raised
    with pytest.raises(kind) as caught, kv.database.begin(RUN) as txn:
        fail(txn)
    assert caught.value is raised
    del caught, txn
    assert contents(kv.database, RUN) == before
    assert_usable(kv.database)


def test_a_closure_may_end_its_transaction_itself(kv: KVStore) -> None:
    assert kv.transaction(RUN, steps(put("a", 1), lambda txn: txn.commit(), lambda txn: 5)) == 5
    kv.transaction(RUN, steps(put("b", 1), lambda txn: txn.rollback()))
    assert kv.list(RUN) == ["a"]
    with refused(kv.database, errors.InvalidState):
        kv.transaction(RUN, lambda txn: (txn.commit(), txn.commit()))


def test_a_closure_that_uses_the_store_directly_is_another_writer(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)

    def write_what_was_read(txn: Transaction) -> None:
        txn.kv_get("a")
        kv.put(RUN, "a", 2)
        txn.kv_put("b", txn.kv_get("a"))

    with pytest.raises(errors.TransactionConflict):
        kv.transaction(RUN, write_what_was_read)
    assert kv.list_with_values(RUN) == [("a", 2)]
    kv.transaction(RUN, lambda txn: txn.kv_put("b", kv.put(RUN, "c", 1) and kv.get(RUN, "c")))
    assert kv.list_with_values(RUN) == [("a", 2), ("b", 1), ("c", 1)]


def test_transactions_nest_as_independent_ones(kv: KVStore) -> None:
    def outer(txn: Transaction) -> None:
        txn.kv_put("outer", 1)
        kv.transaction(RUN, lambda inner: inner.kv_put("inner", inner.kv_get("outer")))
        raise Mine

    with pytest.raises(Mine):
        kv.transaction(RUN, outer)
    assert kv.list_with_values(RUN) == [("inner", None)]


def test_a_closure_that_closes_the_handle_has_nothing_committed(kv: KVStore) -> None:
    other = kv.database.__reduce__()
    with other[0](*other[1]) as db:
        with pytest.raises(errors.Closed):
            kv.transaction(RUN, steps(put("a", 1), lambda txn: kv.database.close()))
        assert KVStore(db).list(RUN) == []
        assert_usable(db)


def test_a_dropped_transaction_lets_its_snapshot_go(kv: KVStore) -> None:
    kv.database.begin(RUN).kv_put("a", 1)
    assert kv.database.metrics().transactions_active == 0
    assert kv.list(RUN) == []


def test_a_write_to_an_ended_run_is_refused_at_the_commit_and_reads_go_on(kv: KVStore) -> None:
    run = kv.database.begin_run()
    kv.put(run, "a", 1)
    txn = kv.database.begin(run)
    txn.kv_put("a", 2)
    kv.database.end_run(run)
    with pytest.raises(errors.RunError, match="Completed") as caught:
        txn.commit()
    assert (caught.value.run, caught.value.state) == (str(run), "Completed")
    assert kv.transaction(run, lambda txn: (txn.kv_get("a"), txn.kv_list())) == (1, ["a"])
    for write in (lambda txn: txn.kv_incr("n"), lambda txn: txn.kv_delete("a")):
        with refused(kv.database, errors.RunError, runs=(run,)):
            kv.transaction(run, write)


# -- time and tries ---------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_after_its_time_every_use_is_a_timeout_and_nothing_is_written(
    use: Step, kv: KVStore
) -> None:
    for timeout in (0, -1, timedelta(0), 1e-9):
        with refused(kv.database, errors.TransactionTimeout):
            txn = kv.database.begin(RUN, timeout=timeout)
            use(txn)
        with refused(kv.database, errors.InvalidState):
            use(txn)


def test_time_that_runs_out_before_the_commit_writes_nothing(kv: KVStore) -> None:
    def slow(txn: Transaction) -> None:
        txn.kv_put("a", 1)
        began = time.monotonic()
        while time.monotonic() < began + 0.02:
            pass

    with refused(kv.database, errors.TransactionTimeout):
        kv.database.transaction(RUN, slow, timeout=0.02)
    kv.database.transaction(RUN, lambda txn: txn.kv_put("a", 1), timeout=timedelta(seconds=60))
    assert kv.get(RUN, "a") == 1


def test_the_closures_own_error_is_told_rather_than_the_timeout(kv: KVStore) -> None:
    def slow(txn: Transaction) -> None:
        raise Mine

    with pytest.raises(Mine):
        kv.database.transaction(RUN, slow, timeout=0)


def conflicting(kv: KVStore, calls: list[int], times: int) -> Step:
    """Conflicts the first `times` times that it is called."""

    def step(txn: Transaction) -> int:
        calls.append(txn.version)
        txn.kv_put("mine", txn.kv_get("a"))
        if len(calls) <= times:
            kv.incr(RUN, "a")
        return len(calls)

    return step


def test_transaction_tries_once_and_with_retry_four_times(kv: KVStore) -> None:
    db = kv.database
    tries: list[tuple[Callable[[Step], Any], int]] = [
        (lambda step: db.transaction(RUN, step), 1),
        (lambda step: kv.transaction(RUN, step), 1),
        (lambda step: db.transaction(RUN, step, max_retries=2), 3),
        (lambda step: db.transaction_with_retry(RUN, step), 4),
        (lambda step: db.transaction_with_retry(RUN, step, max_retries=0), 1),
    ]
    for call, expected in tries:
        calls: list[int] = []
        with pytest.raises(errors.TransactionConflict):
            call(conflicting(kv, calls, 99))
        assert len(calls) == expected
        assert calls == sorted(set(calls)), "each try has a new snapshot"
        assert not kv.exists(RUN, "mine")
        calls = []
        assert call(conflicting(kv, calls, expected - 1)) == expected
        assert kv.delete(RUN, "mine")


def test_only_conflicts_are_tried_again(kv: KVStore) -> None:
    calls: list[int] = []

    def fail(txn: Transaction) -> None:
        calls.append(1)
        raise errors.VersionMismatch(1, 2)

    def fail_at_commit(txn: Transaction) -> None:
        calls.append(2)
        txn.incr("text")

    with pytest.raises(errors.VersionMismatch):
        kv.database.transaction_with_retry(RUN, fail)
    kv.put(RUN, "text", "x")
    with pytest.raises(errors.WrongType):
        kv.database.transaction_with_retry(RUN, fail_at_commit)
    assert calls == [1, 2]


def test_tries_wait_longer_each_time_and_no_longer_than_the_timeout(kv: KVStore) -> None:
    began = time.monotonic()
    with pytest.raises(errors.TransactionConflict):
        kv.database.transaction_with_retry(RUN, conflicting(kv, [], 99))
    waited = time.monotonic() - began
    assert waited >= (0.010 + 0.020 + 0.040) / 2
    calls: list[int] = []
    with pytest.raises(errors.TransactionTimeout):
        kv.database.transaction(RUN, conflicting(kv, calls, 10**6), max_retries=10**6, timeout=0.2)
    assert 1 <= len(calls) <= 20
    assert not kv.exists(RUN, "mine")


def test_read_modify_write_from_eight_threads_loses_nothing(kv: KVStore) -> None:
    def transfer(_: int) -> None:
        for i in range(50):

            def move(txn: Transaction, i: int = i) -> None:
                source, target = f"account {i % 3}", f"account {(i + 1) % 3}"
                txn.kv_put(source, txn.kv_get(source) - 1)
                txn.kv_put(target, txn.kv_get(target) + 1)
                txn.kv_put("moved", txn.kv_get("moved") + 1)

            kv.database.transaction(RUN, move, max_retries=10_000)

    kv.mset(RUN, {"account 0": 100, "account 1": 100, "account 2": 100, "moved": 0})
    in_threads(8, transfer)
    assert kv.get(RUN, "moved") == 400
    assert sum(value for _, value in kv.scan(RUN, "account")) == 300


# -- wrong arguments --------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["", "Snapshot", "read committed", None, 5, ["snapshot"]])
def test_an_unknown_isolation_is_refused_by_name(isolation: Any, db: Database) -> None:
    for call in (
        lambda: db.begin(RUN, isolation),
        lambda: db.transaction(RUN, lambda txn: None, isolation=isolation),
        lambda: db.transaction_with_retry(RUN, lambda txn: None, isolation=isolation),
    ):
        with refused(db, errors.ConstraintViolation, "snapshot or serializable"):
            call()


def test_wrong_kinds_of_arguments_are_told_before_anything_runs(db: Database) -> None:
    def never(txn: Transaction) -> None:
        pytest.fail("was called")

    wrong: list[tuple[Callable[[], Any], type[errors.Error], str]] = [
        (lambda: db.transaction(RUN, None), errors.WrongType, "callable"),  # type: ignore[arg-type]
        (lambda: db.transaction_with_retry(RUN, 5), errors.WrongType, "callable"),  # type: ignore[arg-type]
        (lambda: db.transaction(RUN, never, timeout="1"), errors.WrongType, "timeout"),  # type: ignore[arg-type]
        (lambda: db.begin(RUN, timeout=[1]), errors.WrongType, "timeout"),  # type: ignore[arg-type]
        (lambda: db.begin(RUN, timeout=True), errors.WrongType, "timeout"),
        (lambda: db.begin(RUN, timeout=float("nan")), errors.ConstraintViolation, "timeout"),
        (lambda: db.begin(RUN, timeout=10**400), errors.ConstraintViolation, "timeout"),
        (lambda: db.transaction(RUN, never, max_retries=-1), errors.ConstraintViolation, "-1"),
        (lambda: db.transaction(RUN, never, max_retries="3"), errors.WrongType, "max_retries"),  # type: ignore[arg-type]
        (lambda: db.transaction(RUN, never, max_retries=1.0), errors.WrongType, "max_retries"),  # type: ignore[arg-type]
        (lambda: db.transaction(RUN, never, max_retries=True), errors.WrongType, "max_retries"),
    ]
    for call, kind, said in wrong:
        with refused(db, kind, said):
            call()
