"""test_versions.py - the order and identity of versions, and what a versioned value answers."""

from __future__ import annotations

import copy
import doctest
import itertools
import pickle
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_engine import versions
from shm_engine.errors import ConstraintViolation, WrongType
from shm_engine.versions import U64_MAX, Version, Versioned
from tests.harness.labels import label

KINDS = [Version.Txn, Version.Sequence, Version.Counter]
numbers = st.integers(0, U64_MAX)
any_version = st.builds(lambda kind, n: kind(n), st.sampled_from(KINDS), numbers)

# For each value: the as_ method that gives it back, and the is_ method that is true of it.
VALUES: list[tuple[Any, str, str]] = [
    (True, "as_bool", "is_bool"),
    (False, "as_bool", "is_bool"),
    (0, "as_int", "is_int"),
    (1, "as_int", "is_int"),
    (0.0, "as_float", "is_float"),
    ("", "as_str", "is_string"),
    (b"", "as_bytes", "is_bytes"),
    ([], "as_array", "is_array"),
    ({}, "as_object", "is_object"),
]
AS_METHODS = {name for _, name, _ in VALUES}
IS_METHODS = {name for _, _, name in VALUES} | {"is_null"}


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(versions).failed == 0


@given(any_version, any_version)
def test_the_kind_decides_before_the_number(a: Version, b: Version) -> None:
    order_a = (KINDS.index(type(a)), a.as_u64())
    order_b = (KINDS.index(type(b)), b.as_u64())
    assert (a < b, a <= b, a == b, a >= b, a > b, a != b) == (
        order_a < order_b,
        order_a <= order_b,
        order_a == order_b,
        order_a >= order_b,
        order_a > order_b,
        order_a != order_b,
    )


@given(numbers)
def test_kinds_are_never_equal_and_never_one_entry_of_a_set(n: int) -> None:
    for a, b in itertools.combinations([kind(n) for kind in KINDS], 2):
        assert a != b
    assert len({kind(n) for kind in KINDS}) == 3
    assert len({Version.Txn(n), Version.Txn(n)}) == 1


@given(any_version)
def test_a_version_comes_back_from_pickle_copy_and_repr(version: Version) -> None:
    for back in (
        pickle.loads(pickle.dumps(version)),
        copy.deepcopy(version),
        eval(repr(version), {"Version": Version}),
    ):
        assert type(back) is type(version)
        assert back == version
        assert hash(back) == hash(version)


def test_a_version_is_equal_to_nothing_else() -> None:
    others: list[object] = [3, "3", (0, 3), ("Txn", 3), None]
    for other in others:
        assert Version.Txn(3) != other
    with pytest.raises(TypeError):
        _ = Version.Txn(3) < 4  # type: ignore[operator]


@given(any_version)
def test_increment_keeps_the_kind_and_saturates(version: Version) -> None:
    following = version.saturating_increment()
    assert type(following) is type(version)
    assert following.as_u64() == min(version.as_u64() + 1, U64_MAX)
    assert type(version)(U64_MAX).saturating_increment() == type(version)(U64_MAX)


@given(any_version)
def test_each_version_is_of_exactly_one_kind(version: Version) -> None:
    asked = [version.is_txn(), version.is_sequence(), version.is_counter()]
    assert asked == [type(version) is kind for kind in KINDS]
    assert isinstance(version, Version)
    assert version.kind == type(version).__name__
    assert version.is_zero() == (version.as_u64() == 0)
    assert int(version) == version.value == version.as_u64()


def test_a_plain_number_becomes_a_commit_version() -> None:
    assert Version(7) == Version.Txn(7)
    assert type(Version(7)) is Version.Txn


@pytest.mark.parametrize("kind", [Version, *KINDS])
def test_numbers_beyond_64_bits_and_other_types_are_refused(kind: type[Version]) -> None:
    for number in (-1, U64_MAX + 1, 10**5000):
        with pytest.raises(ConstraintViolation):
            kind(number)
    others: list[Any] = [1.0, True, "1", None]
    for other in others:
        with pytest.raises(WrongType):
            kind(other)


def test_a_version_cannot_be_changed() -> None:
    version = Version.Txn(1)
    with pytest.raises(AttributeError):
        version.value = 2
    with pytest.raises(AttributeError):
        del version.value
    with pytest.raises(AttributeError):
        version.other = 2
    assert version == Version.Txn(1)


@pytest.mark.parametrize(("value", "as_name", "is_name"), VALUES, ids=label)
def test_only_the_methods_of_its_own_type_answer_for_a_value(
    value: Any, as_name: str, is_name: str
) -> None:
    entry = Versioned(value, Version.Txn(1), 0)
    assert getattr(entry, as_name)() is value
    for name in AS_METHODS - {as_name}:
        assert getattr(entry, name)() is None, name
    for name in IS_METHODS:
        assert getattr(entry, name)() == (name == is_name), name
    assert entry.into_value() is value


def test_a_stored_none_is_null_and_a_delete_is_not() -> None:
    stored = Versioned(None, Version.Txn(1), 0)
    deleted = Versioned(None, Version.Txn(1), 0, is_tombstone=True)
    assert stored.is_null()
    assert not stored.is_tombstone
    assert not deleted.is_null()
    assert deleted.is_tombstone
    assert stored != deleted


def test_age_is_the_time_since_the_commit_and_never_negative() -> None:
    now_us = time.time_ns() // 1000
    hour_us = 3_600_000_000
    old = Versioned("x", Version.Txn(1), now_us - hour_us)
    assert timedelta(hours=1) <= old.age() < timedelta(hours=2)
    assert old.is_older_than(timedelta(minutes=59))
    assert old.is_older_than(3599)
    assert not old.is_older_than(timedelta(hours=2))
    assert Versioned("x", Version.Txn(1), now_us + hour_us).age() == timedelta(0)


def test_versioned_values_are_equal_if_all_fields_are() -> None:
    first = Version.Txn(1)

    def entry(
        value: object = (1,), version: Version = first, time_us: int = 5
    ) -> Versioned[object]:
        return Versioned(value, version, time_us)

    assert entry() == entry()
    assert entry() != entry(value=(2,))
    assert entry() != entry(version=Version.Counter(1))
    assert entry() != entry(time_us=6)
    assert entry() != (1,)
    with pytest.raises(TypeError):
        hash(entry())


def test_a_versioned_value_comes_back_from_pickle_and_shows_its_fields() -> None:
    entry = Versioned({"a": [1]}, Version.Sequence(4), 99, is_tombstone=False)
    back = pickle.loads(pickle.dumps(entry))
    assert back == entry
    assert back.version == Version.Sequence(4)
    assert repr(entry) == "Versioned({'a': [1]}, Version.Sequence(4), timestamp=99)"
