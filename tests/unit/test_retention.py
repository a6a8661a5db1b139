"""test_retention.py - the three policies, their bounds and the two fields that store them."""

from __future__ import annotations

import copy
import datetime
import doctest
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_engine import retention
from shm_engine.errors import ConstraintViolation, WrongType
from shm_engine.retention import RetentionPolicy
from shm_engine.values import INT_MAX
from tests.harness.labels import label

POLICIES: list[RetentionPolicy] = [
    RetentionPolicy.KeepAll,
    RetentionPolicy.KeepLast(1),
    RetentionPolicy.KeepLast(INT_MAX),
    RetentionPolicy.KeepFor(0.000001),
    RetentionPolicy.KeepFor(timedelta(days=7)),
]


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(retention).failed == 0


def test_policies_are_equal_only_to_themselves() -> None:
    for i, left in enumerate(POLICIES):
        for j, right in enumerate(POLICIES):
            assert (left == right) == (i == j)
    assert len(set(POLICIES)) == len(POLICIES)
    assert RetentionPolicy.KeepLast(1) != RetentionPolicy.KeepFor(0.000001)


@pytest.mark.parametrize("policy", POLICIES, ids=label)
def test_a_policy_comes_back_from_its_fields_pickle_copy_and_repr(policy: RetentionPolicy) -> None:
    assert RetentionPolicy.of(policy.kind, policy.amount) == policy
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
    names = {"RetentionPolicy": RetentionPolicy, "datetime": datetime}
    assert eval(repr(policy), names) == policy


@given(
    st.timedeltas(
        min_value=timedelta(microseconds=1), max_value=INT_MAX // 10**6 * timedelta(seconds=1)
    )
)
def test_keep_for_keeps_its_duration_to_the_microsecond(duration: timedelta) -> None:
    policy = RetentionPolicy.KeepFor(duration)
    assert policy.duration == duration
    assert policy.amount == duration // timedelta(microseconds=1)


def test_seconds_and_timedelta_make_the_same_policy() -> None:
    assert RetentionPolicy.KeepFor(90) == RetentionPolicy.KeepFor(timedelta(minutes=1.5))
    assert RetentionPolicy.KeepFor(0.25).amount == 250_000


def test_keep_all_is_one_instance_called_or_not() -> None:
    assert RetentionPolicy.KeepAll() is RetentionPolicy.KeepAll
    assert pickle.loads(pickle.dumps(RetentionPolicy.KeepAll)) is RetentionPolicy.KeepAll


@pytest.mark.parametrize("n", [0, -1, 2**63, 10**5000], ids=range(4))
def test_a_count_out_of_bounds_is_refused(n: int) -> None:
    with pytest.raises(ConstraintViolation):
        RetentionPolicy.KeepLast(n)


@pytest.mark.parametrize("n", [1.0, True, "1", None])
def test_a_count_that_is_no_int_is_refused(n: object) -> None:
    with pytest.raises(WrongType):
        RetentionPolicy.KeepLast(n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "duration", [0, -1, timedelta(0), timedelta(days=-1), timedelta.max, 1e-9, 1e300]
)
def test_a_duration_out_of_bounds_is_refused(duration: timedelta | float) -> None:
    with pytest.raises(ConstraintViolation):
        RetentionPolicy.KeepFor(duration)


def test_an_unknown_policy_is_refused() -> None:
    for kind, amount in [("KeepLast", 0), ("KeepFor", 0), ("KeepFor", 10**5000), ("KeepAll", 1)]:
        with pytest.raises(ConstraintViolation):
            RetentionPolicy.of(kind, amount)
    with pytest.raises(ConstraintViolation, match="KeepSome"):
        RetentionPolicy.of("KeepSome", 1)
    with pytest.raises(WrongType):
        RetentionPolicy.of("KeepLast", 1.0)  # type: ignore[arg-type]
    with pytest.raises(WrongType):
        RetentionPolicy()


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RetentionPolicy.KeepLast(1).amount = 2
