"""test_durability.py - the four modes, their limits and their equality."""

from __future__ import annotations

import copy
import doctest
import pickle
from dataclasses import FrozenInstanceError

import pytest

from shm_engine import durability
from shm_engine.durability import Durability
from shm_engine.errors import ConstraintViolation, WrongType
from tests.harness.labels import label

MODES = [
    Durability.in_memory(),
    Durability.no_durability(),
    Durability.buffered(),
    Durability.buffered(20, 7),
    Durability.strict(),
]


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(durability).failed == 0


def test_modes_are_equal_only_to_themselves() -> None:
    for i, left in enumerate(MODES):
        for j, right in enumerate(MODES):
            assert (left == right) == (i == j)
    assert len(set(MODES)) == len(MODES)


@pytest.mark.parametrize("mode", MODES, ids=label)
def test_a_mode_comes_back_from_pickle_copy_and_repr(mode: Durability) -> None:
    assert pickle.loads(pickle.dumps(mode)) == copy.deepcopy(mode) == mode
    assert eval(repr(mode), {"Durability": Durability}) == mode


def test_buffered_has_the_documented_defaults() -> None:
    mode = Durability.buffered()
    assert (mode.flush_interval_ms, mode.max_pending_writes) == (100, 1000)


@pytest.mark.parametrize("mode", MODES, ids=label)
def test_of_takes_a_mode_and_its_name_in_either_spelling(mode: Durability) -> None:
    assert Durability.of(mode) is mode
    spelled = "".join(part.capitalize() for part in mode.kind.split("_"))
    assert Durability.of(mode.as_str()).kind == Durability.of(spelled).kind == mode.kind


def test_an_unknown_mode_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConstraintViolation, match=r"'fast'.*in_memory, no_durability, buffered"):
        Durability.of("fast")
    with pytest.raises(WrongType):
        Durability.of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limits", [(0, 1), (1, 0), (-1, 1), (2**32, 1), (1, 10**5000)], ids=range(5)
)
def test_limits_out_of_bounds_are_refused(limits: tuple[int, int]) -> None:
    with pytest.raises(ConstraintViolation):
        Durability.buffered(*limits)


@pytest.mark.parametrize("limit", [1.0, True, "1", None])
def test_limits_that_are_no_int_are_refused(limit: object) -> None:
    with pytest.raises(WrongType):
        Durability.buffered(limit, 1)  # type: ignore[arg-type]
    with pytest.raises(WrongType):
        Durability.buffered(1, limit)  # type: ignore[arg-type]


def test_limits_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(ConstraintViolation):
        Durability("strict", 100, 1000)


def test_a_mode_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Durability.strict().kind = "buffered"  # type: ignore[misc]
