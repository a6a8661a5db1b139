"""test_errors.py - the tree of errors, their fields, and their way to another process."""

from __future__ import annotations

import copy
import doctest
import multiprocessing
import pickle

import pytest

from shm_engine import errors
from shm_engine.versions import Version

TREE = {
    "NotFound": "Error",
    "KeyNotFound": "NotFound",
    "HistoryTrimmed": "NotFound",
    "WrongType": "Error",
    "InvalidKey": "Error",
    "InvalidPath": "Error",
    "ConstraintViolation": "Error",
    "Conflict": "Error",
    "TransactionConflict": "Conflict",
    "VersionMismatch": "Conflict",
    "TransactionTimeout": "Conflict",
    "InvalidOperation": "Error",
    "InvalidStatusTransition": "InvalidOperation",
    "InvalidState": "InvalidOperation",
    "Closed": "InvalidOperation",
    "RunError": "Error",
    "StorageError": "Error",
    "StorageFull": "StorageError",
    "Corruption": "StorageError",
    "FormatMismatch": "StorageError",
    "IoError": "StorageError",
    "Unavailable": "StorageError",
    "SerializationError": "Error",
    "InternalError": "Error",
}

# One of each, with the fields that it has to keep.
EXAMPLES: list[tuple[errors.Error, dict[str, object]]] = [
    (errors.Error("m"), {}),
    (errors.NotFound("m"), {}),
    (errors.KeyNotFound("m"), {}),
    (
        errors.HistoryTrimmed(Version.Txn(3), Version.Txn(8)),
        {"requested": Version.Txn(3), "earliest": Version.Txn(8)},
    ),
    (errors.WrongType("int", "str"), {"expected": "int", "actual": "str"}),
    (errors.InvalidKey("m"), {}),
    (errors.InvalidPath("m"), {}),
    (errors.ConstraintViolation("value_too_large", "m"), {"reason": "value_too_large"}),
    (errors.Conflict("m"), {}),
    (errors.TransactionConflict("k"), {"key": "k"}),
    (errors.VersionMismatch(None, Version.Counter(4)), {"actual": Version.Counter(4)}),
    (errors.TransactionTimeout("m"), {}),
    (errors.InvalidOperation("m"), {}),
    (errors.InvalidStatusTransition("Archived", "Active"), {"from_": "Archived", "to": "Active"}),
    (errors.InvalidState("m"), {}),
    (errors.Closed("m"), {}),
    (errors.RunError("r", "Paused"), {"run": "r", "state": "Paused"}),
    (errors.StorageError("m"), {}),
    (errors.StorageFull("m"), {}),
    (errors.Corruption("wal/1.wal", 64), {"file": "wal/1.wal", "offset": 64}),
    (errors.FormatMismatch("m"), {}),
    (errors.IoError("m"), {}),
    (errors.Unavailable("m", in_doubt=True), {"in_doubt": True}),
    (errors.SerializationError("m"), {}),
    (errors.InternalError("m"), {}),
]
each_example = pytest.mark.parametrize(
    ("error", "fields"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(errors).failed == 0


def test_the_tree_is_the_documented_one() -> None:
    found = {
        cls.__name__: cls.__bases__[0].__name__
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.Error) and cls is not errors.Error
    }
    assert found == TREE
    assert set(errors.__all__) == {*TREE, "Error"}
    assert {type(error).__name__ for error, _ in EXAMPLES} == set(errors.__all__)


@each_example
def test_the_code_is_the_name_of_the_class(error: errors.Error, fields: dict[str, object]) -> None:
    assert error.code == type(error).__name__


@each_example
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_error_comes_back_whole(
    error: errors.Error, fields: dict[str, object], protocol: int
) -> None:
    for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(back) is type(error)
        assert str(back) == back.message == error.message != ""
        assert back.args == error.args
        assert vars(back) == vars(error)
        for name, value in fields.items():
            assert getattr(back, name) == value


def _fail() -> None:
    raise errors.VersionMismatch(Version.Txn(1), Version.Txn(2))


def test_an_error_keeps_its_fields_across_a_process_boundary() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(errors.VersionMismatch) as caught,
    ):
        pool.apply(_fail)
    assert (caught.value.expected, caught.value.actual) == (Version.Txn(1), Version.Txn(2))


def test_a_note_travels_with_its_error() -> None:
    error = errors.RunError("r")
    error.add_note("while putting 'k'")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while putting 'k'"]


@each_example
def test_only_conflicts_and_undoubted_unavailability_are_retryable(
    error: errors.Error, fields: dict[str, object]
) -> None:
    assert error.is_retryable() == isinstance(error, errors.Conflict)  # in doubt, that example
    assert errors.Unavailable("m").is_retryable()


@each_example
def test_the_questions_follow_the_tree(error: errors.Error, fields: dict[str, object]) -> None:
    assert error.is_not_found() == isinstance(error, errors.NotFound)
    assert error.is_conflict() == isinstance(error, errors.Conflict)
    assert error.is_serious() == (type(error) in (errors.Corruption, errors.InternalError))


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (errors.HistoryTrimmed(3, 8), ("3", "8")),
        (errors.HistoryTrimmed(3), ("3", "nothing is kept")),
        (errors.WrongType("int", "str"), ("int", "str")),
        (errors.ConstraintViolation("ttl must be above 0"), ("ttl must be above 0",)),
        (errors.TransactionConflict("stock"), ("stock", "run it again")),
        (errors.TransactionConflict(), ("what was read",)),
        (errors.VersionMismatch(None, 4), ("None", "4")),
        (errors.InvalidStatusTransition("Failed", "Active"), ("Failed -> Active",)),
        (errors.RunError("r1", "Paused"), ("r1", "Paused")),
        (errors.RunError("r1"), ("r1", "unknown")),
        (errors.Corruption("wal/1.wal", 4096), ("wal/1.wal", "4096", "repair")),
        (errors.Corruption("control segment"), ("control segment", "repair")),
    ],
)
def test_a_message_made_from_fields_names_them(error: errors.Error, parts: tuple[str]) -> None:
    for part in parts:
        assert part in str(error)


def test_a_message_that_is_given_stands_for_the_one_made_from_fields() -> None:
    made: list[errors.Error] = [
        errors.HistoryTrimmed(1, 2, "said"),
        errors.WrongType("a", "b", "said"),
        errors.ConstraintViolation("r", "said"),
        errors.TransactionConflict("k", "said"),
        errors.VersionMismatch(1, 2, "said"),
        errors.InvalidStatusTransition("a", "b", "said"),
        errors.RunError("r", "Paused", "said"),
        errors.Corruption("f", 1, "said"),
    ]
    assert {str(error) for error in made} == {"said"}
