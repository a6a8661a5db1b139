"""test_run_races.py - several who change one run at once: one wins, or all are kept."""

from __future__ import annotations

import functools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    Database,
    RetentionPolicy,
    RunId,
    RunIndex,
    RunStatus,
    errors,
)
from shm_engine.engine import Engine
from tests.harness.index import assert_indexes_agree
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


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads change often enough for one to come between another one's read and its commit."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# -- several at once --------------------------------------------------------------------------


def test_of_many_who_create_a_run_one_does(index: RunIndex) -> None:
    run = RunId.new()

    def create(number: int) -> bool:
        try:
            index.create_run_with_options(run, tags=[f"t{number}"])
        except errors.InvalidOperation:
            return False
        return True

    made = in_threads(8, create)
    assert made.count(True) == 1
    found = index.get_run(run)
    assert found is not None
    assert found.tags == [f"t{made.index(True)}"]
    assert index.count() == 1


def test_of_many_who_end_a_run_one_does(index: RunIndex, db: Database) -> None:
    ends = [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.COMPLETED]
    other = pickle.loads(pickle.dumps(db))
    indexes = [index, RunIndex(other)]

    def end(run: str, number: int) -> bool:
        try:
            indexes[number % 2].update_status(run, ends[number])
        except errors.InvalidStatusTransition:
            return False
        return True

    for _ in range(30):
        run = index.create_run().run_id
        ended = in_threads(4, functools.partial(end, run))
        assert ended.count(True) == 1
        found = index.get_run(run)
        assert found is not None
        assert found.status is ends[ended.index(True)]
    assert index.get_stats().active_runs == 0
    assert index.count() == 30
    other.close()


def test_tags_that_many_add_at_once_are_all_there(index: RunIndex, db: Database) -> None:
    run = index.create_run().run_id
    other = pickle.loads(pickle.dumps(db))
    indexes = [index, RunIndex(other)]

    def add(number: int) -> None:
        for turn in range(20):
            indexes[number % 2].add_tags(run, [f"{number}/{turn}"])
            if turn % 2:
                indexes[number % 2].remove_tags(run, [f"{number}/{turn - 1}"])

    in_threads(6, add)
    found = index.get_run(run)
    assert found is not None
    expected = {f"{number}/{turn}" for number in range(6) for turn in range(1, 20, 2)}
    assert set(found.tags) == expected
    assert db.metrics().conflicts > 0
    other.close()


def test_records_entries_and_counters_agree_at_every_snapshot(
    index: RunIndex, db: Database
) -> None:
    made = [index.create_run_with_options(None, tags=["a"]).run_id for _ in range(4)]
    over = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            try:
                looks = 0
                for _ in range(600):
                    assert_indexes_agree(db)
                    looks += 1
                return looks
            finally:
                over.set()
        turns = 0
        while not over.is_set():
            run = made[number]
            index.pause_run(run)
            index.add_tags(run, [f"{turns % 7}"])
            index.resume_run(run)
            index.remove_tags(run, [f"{turns % 5}"])
            index.delete_run(index.create_run_with_options(None, run, ["b"]).run_id)
            turns += 1
        return turns

    assert all(in_threads(4, work))


class Interfering:
    """An engine where somebody else is always quicker, once."""

    def __init__(self, engine: Engine, interfere: Callable[[], object]) -> None:
        self._engine = engine
        self._interfere: Callable[[], object] | None = interfere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def commit(self, *arguments: Any) -> Any:
        interfere, self._interfere = self._interfere, None
        if interfere is not None:
            interfere()
        return self._engine.commit(*arguments)


def slower(index: RunIndex, interfere: Callable[[], object]) -> RunIndex:
    found = RunIndex(index.database)
    found._engine = Interfering(index._engine, interfere)
    return found


def test_a_change_in_between_is_kept(index: RunIndex) -> None:
    run = index.create_run_with_options(None, tags=["a"]).run_id
    slower(index, lambda: index.add_tags(run, ["b"])).add_tags(run, ["c"])
    slower(index, lambda: index.remove_tags(run, ["a"])).update_metadata(run, 1)
    slower(index, lambda: index.update_metadata(run, 2)).pause_run(run)
    found = index.get_run(run)
    assert found is not None
    assert (found.tags, found.metadata, found.status) == (["b", "c"], 2, RunStatus.PAUSED)


def test_a_retention_chosen_in_between_is_kept(index: RunIndex, db: Database) -> None:
    run = RunId.new()
    policy = RetentionPolicy.KeepLast(4)
    slower(index, lambda: db.set_retention(run, policy)).create_run(run)
    assert db.retention(run) == policy
    assert index.exists(run)


def test_what_happened_in_between_decides(index: RunIndex) -> None:
    run = index.create_run().run_id
    with pytest.raises(errors.InvalidStatusTransition, match="Cancelled -> Completed"):
        slower(index, lambda: index.cancel_run(run)).complete_run(run)
    with pytest.raises(errors.NotFound):
        slower(index, lambda: index.delete_run(run)).add_tags(run, ["a"])
    with pytest.raises(errors.InvalidOperation, match="exists already"):
        slower(index, lambda: index.create_run(run)).create_run(run)
    with pytest.raises(errors.NotFound, match="parent"):
        slower(index, lambda: index.delete_run(run)).create_run_with_options(None, run)
    gone = index.create_run().run_id
    with pytest.raises(errors.NotFound):
        slower(index, lambda: index.delete_run(gone)).delete_run(gone)
    assert index.list_runs() == []
