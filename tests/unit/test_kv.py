"""test_kv.py - what each method of KVStore does, and that a refused call does nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from shm_engine import Database, KVStore, RetentionPolicy, RunId, Version, Versioned, errors, keys
from tests.harness.labels import label
from tests.harness.refusal import contents, refused

RUN = RunId.DEFAULT
MAX = 2**63 - 1
MIN = -(2**63)


@pytest.fixture
def kv() -> Iterator[KVStore]:
    with Database.ephemeral() as db:
        yield KVStore(db)


def now_us() -> int:
    return time.time_ns() // 1000


def put_expiring(kv: KVStore, key: str, value: Any, expires_us: int) -> int:
    """A value with an end of its own choice, in the past too."""
    return kv.database._engine.put(RUN, keys.TAG_KV, key, value, expires_us)


def entries(kv: KVStore, key: str, **options: Any) -> list[tuple[int, Any, bool]]:
    return [
        (one.version.value, one.value, one.is_tombstone) for one in kv.history(RUN, key, **options)
    ]


# -- one key ----------------------------------------------------------------------------------


def test_a_put_is_read_back_and_replaced_by_the_next(kv: KVStore) -> None:
    first = kv.put(RUN, "a", 1)
    second = kv.put(RUN, "a", [1, {"b": None}])
    assert kv.get(RUN, "a") == [1, {"b": None}]
    assert second > first


def test_a_missing_key_reads_as_none_and_does_not_exist(kv: KVStore) -> None:
    assert kv.get(RUN, "a") is None
    assert kv.get_versioned(RUN, "a") is None
    assert not kv.exists(RUN, "a")
    assert kv.ttl(RUN, "a") is None
    assert kv.history(RUN, "a") == []
    assert kv.delete(RUN, "a") is False


def test_a_stored_none_exists(kv: KVStore) -> None:
    kv.put(RUN, "a", None)
    assert kv.get(RUN, "a") is None
    assert kv.exists(RUN, "a")
    assert kv.get_many_map(RUN, ["a", "b"]) == {"a": None}
    assert kv.list_with_values(RUN) == [("a", None)]
    found = kv.get_versioned(RUN, "a")
    assert found is not None
    assert found.is_null()


def test_a_versioned_value_has_the_version_of_its_commit_and_its_time(kv: KVStore) -> None:
    before = now_us()
    version = kv.put(RUN, "a", "x")
    found = kv.get_versioned(RUN, "a")
    assert found == Versioned("x", Version.Txn(version), found.timestamp if found else 0)
    assert found is not None
    assert before <= found.timestamp <= now_us()


def test_a_deleted_key_is_gone_until_it_is_put_again(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    assert kv.delete(RUN, "a") is True
    assert kv.delete(RUN, "a") is False
    assert not kv.exists(RUN, "a")
    assert kv.list(RUN) == []
    kv.put(RUN, "a", 2)
    assert kv.get(RUN, "a") == 2


def test_a_delete_of_what_is_missing_commits_nothing(kv: KVStore) -> None:
    before = contents(kv.database, RUN)
    kv.delete(RUN, "a")
    kv.mdelete(RUN, ["a", "b"])
    assert contents(kv.database, RUN) == before


def test_versions_rise_with_every_commit_over_all_keys_and_runs(kv: KVStore) -> None:
    other = kv.database.begin_run()
    versions = [kv.put(run, f"k{i}", i) for i in range(50) for run in (RUN, other)]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(
    "database", [5, None, "db", object()], ids=lambda value: type(value).__name__
)
def test_a_store_is_made_of_a_database(database: Any) -> None:
    with pytest.raises(errors.WrongType, match="Database"):
        KVStore(database)


# -- counters ---------------------------------------------------------------------------------


def test_incr_counts_from_0_and_returns_the_sum(kv: KVStore) -> None:
    assert kv.incr(RUN, "n") == 1
    assert kv.incr(RUN, "n", 41) == 42
    assert kv.incr(RUN, "n", -50) == -8
    assert kv.incr(RUN, "n", 0) == -8
    assert kv.get(RUN, "n") == -8
    assert len(kv.history(RUN, "n")) == 4


@pytest.mark.parametrize("bits", [5, 7, 8, 15, 16, 31, 32, 62])
def test_incr_crosses_the_widths_of_encoded_ints(bits: int, kv: KVStore) -> None:
    for sign in (1, -1):
        expected = sign * (2**bits - 2)
        kv.put(RUN, "n", expected)
        for _ in range(4):
            expected += sign
            assert kv.incr(RUN, "n", sign) == expected
            assert kv.get(RUN, "n") == expected


def test_incr_reaches_both_ends_of_64_bits_and_stays_there(kv: KVStore) -> None:
    for end, delta in ((MAX, 1), (MIN, -1)):
        kv.put(RUN, "n", end - delta)
        assert kv.incr(RUN, "n", delta) == end
        for beyond in (delta, end):
            with refused(kv.database, errors.ConstraintViolation, "64-bit") as caught:
                kv.incr(RUN, "n", beyond)
            assert isinstance(caught.value, errors.ConstraintViolation)
            assert caught.value.reason == "int_out_of_range"
        assert kv.get(RUN, "n") == end
        kv.put(RUN, "n", 0)
        assert kv.incr(RUN, "n", end) == end


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", "str"),
        ("x" * 300, "str"),
        (1.0, "float"),
        (True, "bool"),
        (None, "NoneType"),
        (b"\1", "bytes"),
        ([1], "list"),
        ([0] * 20, "list"),
        ({"n": 1}, "dict"),
        ({}, "dict"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_incr_of_what_is_no_int_names_the_type_and_leaves_it(
    value: Any, kind: str, kv: KVStore
) -> None:
    kv.put(RUN, "n", value)
    with refused(kv.database, errors.WrongType, f"'n' holds {kind}") as caught:
        kv.incr(RUN, "n")
    assert isinstance(caught.value, errors.WrongType)
    assert (caught.value.expected, caught.value.actual) == ("int", kind)


@pytest.mark.parametrize(
    "delta", [1.0, True, "1", None, [1]], ids=lambda value: type(value).__name__
)
def test_a_delta_is_an_int(delta: Any, kv: KVStore) -> None:
    with refused(kv.database, errors.WrongType, "int"):
        kv.incr(RUN, "n", delta)


@pytest.mark.parametrize("delta", [MAX + 1, MIN - 1, 10**5000], ids=["max+1", "min-1", "huge"])
def test_a_delta_fits_64_bits(delta: int, kv: KVStore) -> None:
    with refused(kv.database, errors.ConstraintViolation, "64 bits"):
        kv.incr(RUN, "n", delta)


# -- compare and set --------------------------------------------------------------------------


def test_cas_of_none_creates_a_missing_key_once(kv: KVStore) -> None:
    assert kv.cas(RUN, "a", None, 1) is True
    assert kv.cas(RUN, "a", None, 2) is False
    assert kv.get(RUN, "a") == 1
    kv.delete(RUN, "a")
    assert kv.cas(RUN, "a", None, 3) is True
    assert kv.get(RUN, "a") == 3


def test_cas_replaces_at_the_version_seen_and_at_no_other(kv: KVStore) -> None:
    first = kv.put(RUN, "a", 1)
    assert kv.cas(RUN, "a", first, 2) is True
    assert kv.cas(RUN, "a", first, 3) is False
    assert kv.cas(RUN, "a", first + 2, 3) is False
    found = kv.get_versioned(RUN, "a")
    assert found is not None
    assert kv.cas(RUN, "a", found.version, 4) is True
    assert kv.get(RUN, "a") == 4


def test_cas_with_the_version_of_a_deleted_value_fails(kv: KVStore) -> None:
    version = kv.put(RUN, "a", 1)
    kv.delete(RUN, "a")
    for expected in (version, version + 1, 2**64 - 1, 0, Version.Txn(0)):
        assert kv.cas(RUN, "a", expected, 2) is False
    assert not kv.exists(RUN, "a")


def test_a_cas_that_fails_changes_nothing(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    before = contents(kv.database, RUN)
    assert not kv.cas(RUN, "a", None, 2)
    assert not kv.cas(RUN, "b", 7, 2)
    assert contents(kv.database, RUN) == before


@pytest.mark.parametrize(
    "version", [Version.Sequence(1), Version.Counter(1), "1", 1.0, True, b"1", [1]], ids=label
)
def test_a_keys_version_is_a_txn(version: Any, kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    calls: list[Callable[[], Any]] = [
        lambda: kv.cas(RUN, "a", version, 2),
        lambda: kv.get_at(RUN, "a", version),
        lambda: kv.history(RUN, "a", before=version),
    ]
    for call in calls:
        with refused(kv.database, errors.WrongType, "Version.Txn"):
            call()


@pytest.mark.parametrize("version", [-1, 2**64, 10**5000], ids=["-1", "2**64", "huge"])
def test_a_version_fits_64_bits_without_sign(version: int, kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    calls: list[Callable[[], Any]] = [
        lambda: kv.cas(RUN, "a", version, 2),
        lambda: kv.get_at(RUN, "a", version),
        lambda: kv.history(RUN, "a", before=version),
    ]
    for call in calls:
        with refused(kv.database, errors.ConstraintViolation, "64-bit"):
            call()
    assert kv.get_at(RUN, "a", 2**64 - 1).value == 1
    assert kv.cas(RUN, "a", 2**64 - 1, 2) is False


# -- many keys --------------------------------------------------------------------------------


def test_get_many_keeps_order_and_duplicates(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    assert kv.get_many(RUN, ["b", "x", "a", "b"]) == [2, None, 1, 2]
    assert kv.get_many_map(RUN, ["b", "x", "a", "b"]) == {"b": 2, "a": 1}
    assert kv.get_many(RUN, []) == []
    assert kv.get_many_map(RUN, iter(["a"])) == {"a": 1}
    assert kv.get_many(RUN, (name for name in "ab")) == [1, 2]


def test_mset_is_one_commit_of_one_version(kv: KVStore) -> None:
    version = kv.mset(RUN, {f"k{i}": i for i in range(100)})
    assert kv.database.metrics().transactions_committed == 1
    for i in range(100):
        assert kv.get_versioned(RUN, f"k{i}").version == Version.Txn(version)  # type: ignore[union-attr]


@pytest.mark.parametrize("order", ["a a", "a b a", "b a b", "a b c c", "ä a b ä", "a ab abc b"])
def test_mset_writes_each_key_once_in_whatever_order_they_come(kv: KVStore, order: str) -> None:
    pairs = [(key, number) for number, key in enumerate(order.split())]
    version = kv.mset(RUN, pairs)
    assert dict(kv.scan(RUN)) == dict(pairs)
    for key in dict(pairs):
        assert [found.version.as_u64() for found in kv.history(RUN, key)] == [version]


def test_mset_takes_a_mapping_or_pairs_and_the_last_of_equal_keys_wins(kv: KVStore) -> None:
    kv.mset(RUN, [("a", 1), ("b", 2), ("a", 3)])
    assert kv.list_with_values(RUN) == [("a", 3), ("b", 2)]
    assert len(kv.history(RUN, "a")) == 1
    kv.mset(RUN, {"c": 4}.items())
    kv.mset(RUN, (pair for pair in [("d", 5)]))
    assert kv.list(RUN) == ["a", "b", "c", "d"]


def test_empty_batches_are_fine_and_commit_nothing(kv: KVStore) -> None:
    version = kv.put(RUN, "a", 1)
    before = contents(kv.database, RUN)
    assert kv.mset(RUN, {}) == kv.mset(RUN, []) == version
    assert kv.mdelete(RUN, []) == 0
    assert kv.get_many(RUN, []) == []
    assert contents(kv.database, RUN) == before


def test_mdelete_counts_what_existed_a_duplicate_once(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2, "c": 3})
    assert kv.mdelete(RUN, ["a", "x", "a", "c"]) == 2
    assert kv.list(RUN) == ["b"]
    assert kv.mdelete(RUN, iter(["a", "b"])) == 1


@pytest.mark.parametrize(
    "bad",
    [{"x": ()}, {"x": 2**63}, {"": 1}, {"a\0": 1}, {5: 1}],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("at", [0, 1, 500, 1000])
def test_one_bad_item_keeps_the_whole_batch_out(bad: dict[Any, Any], at: int, kv: KVStore) -> None:
    kv.put(RUN, "k5", "old")
    items: list[tuple[Any, Any]] = [(f"k{i}", i) for i in range(1000)]
    items[at:at] = bad.items()
    for batch in (items, dict(items)):
        with refused(kv.database, _kind_of(bad)):
            kv.mset(RUN, batch)
    assert kv.list_with_values(RUN) == [("k5", "old")]


def _kind_of(bad: dict[Any, Any]) -> type[errors.Error]:
    [(key, value)] = bad.items()
    if type(key) is not str or value == ():
        return errors.WrongType
    return errors.InvalidKey if value == 1 else errors.ConstraintViolation


@pytest.mark.parametrize(
    "names", ["abc", b"abc", 5, None, "", object()], ids=lambda value: type(value).__name__
)
def test_keys_in_bulk_are_an_iterable_and_no_str(names: Any, kv: KVStore) -> None:
    """A str is an iterable of str: mdelete("abc") would delete a, b and c."""
    kv.mset(RUN, {"a": 1, "b": 2, "c": 3})
    for call in (kv.get_many, kv.get_many_map, kv.mdelete):
        with refused(kv.database, errors.WrongType, "keys"):
            call(RUN, names)


@pytest.mark.parametrize(
    "items", ["ab", b"ab", 5, None, ["ab"], [("a",)], [("a", 1, 2)], [5], [None], {"ab"}], ids=label
)
def test_items_are_a_mapping_or_pairs(items: Any, kv: KVStore) -> None:
    with refused(kv.database, errors.WrongType, "items"):
        kv.mset(RUN, items)


def test_an_error_of_the_callers_iterable_comes_through_and_nothing_is_written(
    kv: KVStore,
) -> None:
    def failing() -> Iterator[Any]:
        yield ("a", 1)
        raise ZeroDivisionError

    before = contents(kv.database, RUN)
    for call in (kv.mset, kv.mdelete, kv.get_many):
        with pytest.raises(ZeroDivisionError):
            call(RUN, failing())
    assert contents(kv.database, RUN) == before


def test_a_batch_may_iterate_over_the_store_itself(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    kv.mset(RUN, (("copy:" + key, kv.get(RUN, key)) for key in kv.list(RUN)))
    assert kv.list_with_values(RUN, "copy:") == [("copy:a", 1), ("copy:b", 2)]
    assert kv.mdelete(RUN, (key for key in "ab" if kv.incr(RUN, key) > 2)) == 1
    assert kv.list_with_values(RUN) == [("a", 2), ("copy:a", 1), ("copy:b", 2)]


# -- ranges -----------------------------------------------------------------------------------


def test_scan_pages_through_all_keys_each_once(kv: KVStore) -> None:
    expected = [(f"k{i:04}", i) for i in range(2500)]
    kv.mset(RUN, expected)
    assert kv.scan(RUN) == expected
    assert kv.list_with_values(RUN, "k") == expected
    assert kv.list(RUN, "k00") == [f"k{i:04}" for i in range(100)]
    for size in (1, 7, 1023, 1024, 1025, 2500):
        pages: list[tuple[str, Any]] = []
        rounds = range(0, 70 if size == 1 else 2600, size)
        for _ in rounds:
            pages += kv.scan(RUN, "k", size, pages[-1][0] if pages else None)
        assert pages == expected[: len(rounds) * size]


def test_after_may_lie_before_within_and_behind_the_prefix(kv: KVStore) -> None:
    kv.mset(RUN, dict.fromkeys(["a", "b", "ba", "bb", "bb\x01", "c"], 0))
    for after, expected in {
        "a": ["b", "ba", "bb", "bb\x01"],
        "b": ["ba", "bb", "bb\x01"],
        "b\x01": ["ba", "bb", "bb\x01"],
        "bb": ["bb\x01"],
        "bb\x01": [],
        "bc": [],
        "c": [],
    }.items():
        assert [key for key, _ in kv.scan(RUN, "b", after=after)] == expected, after


def test_a_limit_of_0_is_empty_and_a_huge_one_is_no_limit(kv: KVStore) -> None:
    kv.mset(RUN, {"a": 1, "b": 2})
    for limit, count in ((0, 0), (1, 1), (2, 2), (3, 2), (2**70, 2), (None, 2)):
        assert len(kv.scan(RUN, limit=limit)) == count
        kv.put(RUN, "c", 0), kv.delete(RUN, "c")
    kv.put(RUN, "a", 3)
    for limit, count in ((0, 0), (1, 1), (2, 2), (3, 2), (2**70, 2), (None, 2)):
        assert len(kv.history(RUN, "a", limit=limit)) == count


@pytest.mark.parametrize(
    "limit", ["1", 1.0, True, [1], b"1"], ids=lambda value: type(value).__name__
)
def test_a_limit_is_an_int(limit: Any, kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    for call in (lambda: kv.scan(RUN, limit=limit), lambda: kv.history(RUN, "a", limit=limit)):
        with refused(kv.database, errors.WrongType, "limit"):
            call()


def test_a_limit_is_not_negative(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    for call in (lambda: kv.scan(RUN, limit=-1), lambda: kv.history(RUN, "a", limit=-(2**70))):
        with refused(kv.database, errors.ConstraintViolation, "limit"):
            call()


# -- the past ---------------------------------------------------------------------------------


def test_history_is_newest_first_with_deletions_in_it(kv: KVStore) -> None:
    first = kv.put(RUN, "a", 1)
    kv.put(RUN, "b", "another key")
    second = kv.put(RUN, "a", 2)
    kv.delete(RUN, "a")
    third = kv.put(RUN, "a", None)
    expected = [
        (third, None, False),
        (third - 1, None, True),
        (second, 2, False),
        (first, 1, False),
    ]
    assert entries(kv, "a") == expected
    assert entries(kv, "a", limit=2) == expected[:2]
    for index, (version, _, _) in enumerate(expected):
        assert entries(kv, "a", before=version) == expected[index + 1 :]
        assert (
            entries(kv, "a", before=Version.Txn(version + 1), limit=1)
            == expected[:4][index : index + 1]
        )


def test_history_has_one_time_per_commit_that_never_runs_backwards(kv: KVStore) -> None:
    for i in range(100):
        kv.put(RUN, "a", i)
    times = [entry.timestamp for entry in kv.history(RUN, "a")]
    assert times == sorted(times, reverse=True)


def test_get_at_gives_the_newest_at_or_before(kv: KVStore) -> None:
    versions = [kv.put(RUN, "a", i) for i in range(5)]
    between = kv.put(RUN, "b", 0)
    for i, version in enumerate(versions):
        found = kv.get_at(RUN, "a", version)
        assert (found.value, found.version) == (i, Version.Txn(version))
        assert kv.get_at(RUN, "a", Version.Txn(version)) == found
    assert kv.get_at(RUN, "a", between).value == 4
    assert kv.get_at(RUN, "a", 10**15).value == 4


def test_get_at_before_the_first_version_is_history_trimmed(kv: KVStore) -> None:
    kv.put(RUN, "b", 0)
    first = kv.put(RUN, "a", 1)
    for version in (0, first - 1):
        with refused(kv.database, errors.HistoryTrimmed) as caught:
            kv.get_at(RUN, "a", version)
        assert isinstance(caught.value, errors.HistoryTrimmed)
        assert caught.value.requested == Version.Txn(version)
        assert caught.value.earliest == Version.Txn(first)
        assert caught.value.is_not_found()


def test_get_at_a_deletion_or_of_a_key_that_never_was_is_key_not_found(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    kv.delete(RUN, "a")
    deleted = kv.database.metrics().version
    back = kv.put(RUN, "a", 2)
    assert kv.get_at(RUN, "a", back).value == 2
    for key in ("a", "never"):
        with refused(kv.database, errors.KeyNotFound, key):
            kv.get_at(RUN, key, deleted)


def test_keep_last_lets_old_versions_go_and_never_the_latest(kv: KVStore) -> None:
    kv.database.set_retention(RUN, RetentionPolicy.KeepLast(3))
    versions = [kv.put(RUN, "a", i) for i in range(20)]
    kv.database._engine.sweep()
    assert entries(kv, "a") == [(v, i, False) for i, v in enumerate(versions)][:-4:-1]
    with refused(kv.database, errors.HistoryTrimmed) as caught:
        kv.get_at(RUN, "a", versions[-4])
    assert isinstance(caught.value, errors.HistoryTrimmed)
    assert caught.value.earliest == Version.Txn(versions[-3])
    assert [kv.get_at(RUN, "a", version).value for version in versions[-3:]] == [17, 18, 19]


def test_a_trimmed_deletion_is_history_trimmed_before_it_and_not_found_after(kv: KVStore) -> None:
    kv.database.set_retention(RUN, RetentionPolicy.KeepLast(1))
    version = kv.put(RUN, "a", 1)
    kv.delete(RUN, "a")
    deleted = kv.database.metrics().version
    kv.database._engine.sweep()
    assert kv.history(RUN, "a") == []
    with refused(kv.database, errors.HistoryTrimmed):
        kv.get_at(RUN, "a", version)
    with refused(kv.database, errors.KeyNotFound):
        kv.get_at(RUN, "a", deleted)
    assert kv.cas(RUN, "a", None, 2)


# -- values with an end -----------------------------------------------------------------------


def test_a_value_is_there_until_its_microsecond_and_never_after(kv: KVStore) -> None:
    seen = 0
    for _ in range(20):
        expires = now_us() + 5000
        put_expiring(kv, "a", "x", expires)
        gone = 0
        while gone < 100:
            before = now_us()
            reads = [
                kv.get(RUN, "a") == "x",
                kv.exists(RUN, "a"),
                kv.get_versioned(RUN, "a") is not None,
                kv.list(RUN) == ["a"],
                kv.get_many(RUN, ["a"]) == ["x"],
            ]
            if now_us() < expires:
                assert all(reads)
                seen += 1
            elif before >= expires:
                assert not any(reads)
                gone += 1
        if seen:
            return
    pytest.fail("twenty puts took more than 5 ms each")


@pytest.mark.parametrize("ttl", [3600, 3600.0, timedelta(hours=1), timedelta.max, 10**13])
def test_a_value_with_a_far_end_is_there_and_says_what_is_left(
    ttl: timedelta | float, kv: KVStore
) -> None:
    wanted = ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl)
    kv.put_with_ttl(RUN, "a", 1, ttl)
    left = kv.ttl(RUN, "a")
    assert left is not None
    assert min(wanted, timedelta(days=100_000_000)) - timedelta(minutes=1) < left <= wanted
    assert kv.get(RUN, "a") == 1


def test_a_later_put_is_permanent_and_an_increment_keeps_the_time(kv: KVStore) -> None:
    kv.put_with_ttl(RUN, "a", 1, 3600)
    kv.incr(RUN, "a")
    assert kv.ttl(RUN, "a") is not None
    kv.put(RUN, "a", 2)
    assert kv.ttl(RUN, "a") is None
    kv.put_with_ttl(RUN, "a", 1, 3600)
    kv.delete(RUN, "a")
    kv.put(RUN, "a", 2)
    assert kv.ttl(RUN, "a") is None


def test_an_expired_value_counts_as_absent_for_every_write(kv: KVStore) -> None:
    version = put_expiring(kv, "a", 41, 1)
    assert kv.ttl(RUN, "a") is None
    assert kv.delete(RUN, "a") is False
    assert kv.mdelete(RUN, ["a"]) == 0
    assert kv.cas(RUN, "a", version, 2) is False
    assert kv.cas(RUN, "a", None, 3) is True
    put_expiring(kv, "a", 41, 1)
    assert kv.incr(RUN, "a") == 1
    assert kv.ttl(RUN, "a") is None
    put_expiring(kv, "a", 41, 1)
    assert kv.database.transaction(RUN, lambda txn: (txn.kv_get("a"), txn.kv_list())) == (None, [])


def test_an_expired_value_is_reclaimed_and_stays_in_the_history(kv: KVStore) -> None:
    before = kv.database.metrics().keys
    version = put_expiring(kv, "a", 41, 1)
    kv.database._engine.sweep()
    assert kv.database.metrics().keys == before
    assert entries(kv, "a")[-1] == (version, 41, False)
    assert entries(kv, "a")[0][2]
    assert kv.get_at(RUN, "a", version).value == 41


def test_a_snapshot_keeps_seeing_what_ended_after_it_was_opened(kv: KVStore) -> None:
    for _ in range(20):
        expires = now_us() + 5000
        put_expiring(kv, "a", "x", expires)
        with kv.database.snapshot() as snapshot:
            if snapshot._pin.now_us >= expires:
                continue  # this machine was busy
            while now_us() <= expires:
                pass
            assert kv.get(RUN, "a") is None
            kv.database._engine.sweep()
            assert snapshot.get(RUN, "a") == "x"
            assert list(snapshot.scan_prefix(RUN)) == [("a", "x")]
            return
    pytest.fail("twenty snapshots took more than 5 ms each to open")


@pytest.mark.parametrize(
    "ttl",
    [0, -1, 0.0, -0.0, timedelta(0), timedelta(-1), 1e-9],
    ids=lambda value: type(value).__name__,
)
def test_a_ttl_of_0_or_less_is_refused(ttl: timedelta | float, kv: KVStore) -> None:
    with refused(kv.database, errors.ConstraintViolation, "ttl"):
        kv.put_with_ttl(RUN, "a", 1, ttl)


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, 1e300, 10**400], ids=str)
def test_a_ttl_is_finite(ttl: float, kv: KVStore) -> None:
    with refused(kv.database, errors.ConstraintViolation, "ttl"):
        kv.put_with_ttl(RUN, "a", 1, ttl)


@pytest.mark.parametrize("ttl", ["5", None, True, [5], 5j], ids=label)
def test_a_ttl_is_a_duration(ttl: Any, kv: KVStore) -> None:
    with refused(kv.database, errors.WrongType, "ttl"):
        kv.put_with_ttl(RUN, "a", 1, ttl)


# -- transactions -----------------------------------------------------------------------------


def test_transaction_hands_on_to_the_database(kv: KVStore) -> None:
    kv.put(RUN, "a", 1)
    result = kv.transaction(RUN, lambda txn: (txn.put("b", txn.get("a")), txn.list("b"))[1])
    assert result == ["b"]
    assert kv.get(RUN, "b") == 1
    with pytest.raises(errors.WrongType, match="callable"):
        kv.transaction(RUN, 5)  # type: ignore[arg-type]
