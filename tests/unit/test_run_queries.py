"""test_run_queries.py - runs are found by status, tag, parent and time, at an answer's cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    Database,
    RunId,
    RunIndex,
    RunQuery,
    RunStats,
    RunStatus,
    errors,
    runs,
)
from shm_engine.engine import Engine
from tests.harness.index import assert_indexes_agree, ids, reach
from tests.harness.labels import label
from tests.harness.refusal import refused as refused_call

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


def shifted(index: RunIndex, run: str, created_us: int) -> None:
    """Gives a run another moment of creation, with all its entries."""
    engine = index.database.engine
    before, version = runs.read(engine, RunId(run))
    assert before is not None
    after = dataclasses.replace(before, created_us=created_us)
    ops = runs._operations(engine, RunId(run), before, version, after)
    engine.commit(RunId(run), ops, 0)


# -- queries ----------------------------------------------------------------------------------


def test_runs_are_listed_in_the_order_of_their_creation(index: RunIndex, db: Database) -> None:
    """Story 194: list_runs() returns all ids."""
    made = [str(db.begin_run()) if i % 2 else index.create_run().run_id for i in range(100)]
    index.archive_run(made[3])
    index.complete_run(made[50])
    assert index.list_runs() == made
    assert index.count() == 100


def test_runs_are_found_by_status(index: RunIndex) -> None:
    """Story 194: query_runs() filters by status; get_stats() returns correct counts."""
    made: dict[RunStatus, list[str]] = {status: [] for status in RunStatus}
    for number in range(21):
        status = list(RunStatus)[number % 6]
        run = index.create_run().run_id
        reach(index, run, status)
        made[status].append(run)
    for status in RunStatus:
        assert ids(index.query_by_status(status)) == made[status]
        assert ids(index.query_runs(status=status)) == made[status]
        assert ids(index.query_runs(RunQuery(status=status.name))) == made[status]
    assert index.get_stats() == RunStats(21, 4, 4, 4, 3, 3, 3)


def test_runs_are_found_by_tag(index: RunIndex) -> None:
    """Story 194: query_runs() filters by tag."""
    both = index.create_run_with_options(None, tags=["a", "b"]).run_id
    one = index.create_run_with_options(None, tags=["a"]).run_id
    index.create_run_with_options(None, tags=["ab", "b", "a b"])
    archived = index.create_run_with_options(None, tags=["b", "a"]).run_id
    index.archive_run(archived)
    assert ids(index.query_by_tag("a")) == [both, one, archived]
    assert ids(index.query_runs(tags=["a"])) == [both, one]
    assert ids(index.query_runs(tags=["b", "a"])) == [both]
    assert ids(index.query_runs(tags=("b", "a"), include_archived=True)) == [both, archived]
    assert index.query_runs(tags=["a", "unknown"]) == []
    assert index.query_by_tag("unknown") == []
    assert len(index.query_runs(tags=[])) == 3


def test_runs_are_found_by_time(index: RunIndex) -> None:
    """Story 194: query_runs() filters by time range; both ends are excluded."""
    made = [index.create_run_with_options(None, tags=["a"]).run_id for _ in range(4)]
    for number, run in enumerate(made):
        shifted(index, run, 1_000_999 + number * 1_000_000)  # 1000, 2000, 3000, 4000 ms
    shown = [each.created_at for each in index.query_runs()]
    assert shown == [1000, 2000, 3000, 4000]
    cases: dict[tuple[int | None, int | None], list[str]] = {
        (None, None): made,
        (1000, None): made[1:],
        (999, None): made,
        (None, 4000): made[:3],
        (None, 4001): made,
        (1000, 4000): made[1:3],
        (2000, 3000): [],
        (1999, 3001): made[1:3],
        (3000, 2000): [],
        (4000, None): [],
        (-(10**30), 10**30): made,
        (10**30, None): [],
        (None, -1): [],
        (None, 0): [],
    }
    for (after, before), expected in cases.items():
        for others in ({}, {"tags": ["a"]}, {"status": "Active"}, {"include_archived": True}):
            found = index.query_runs(created_after=after, created_before=before, **others)
            assert ids(found) == expected, (after, before, others)


def test_archived_runs_are_hidden_unless_asked_for(index: RunIndex) -> None:
    """Story 194: query_runs() excludes archived runs by default."""
    parent = index.create_run().run_id
    hidden = index.create_run_with_options(None, parent, ["a"]).run_id
    shown = index.create_run_with_options(None, parent, ["a"]).run_id
    index.archive_run(hidden)
    assert ids(index.query_runs()) == [parent, shown]
    assert ids(index.query_runs(parent_run=parent)) == [shown]
    assert ids(index.query_runs(tags=["a"], limit=1)) == [shown]
    assert ids(index.query_runs(include_archived=True)) == [parent, hidden, shown]
    assert ids(index.query_runs(status="archived")) == [hidden]
    assert ids(index.query_by_status(RunStatus.ARCHIVED)) == [hidden]
    assert ids(index.get_child_runs(parent)) == [hidden, shown]


def test_children_are_found_by_their_parent(index: RunIndex) -> None:
    """Story 194: get_child_runs() returns forked runs."""
    parents = [index.create_run().run_id for _ in range(2)]
    children = [index.create_run_with_options(None, parents[n % 2], ["a"]) for n in range(6)]
    for n, parent in enumerate(parents):
        assert index.get_child_runs(parent) == children[n::2]
        assert index.query_runs(parent_run=parent, tags=["a"]) == children[n::2]
    assert index.get_child_runs(children[0].run_id) == []
    index.fail_run(children[2].run_id, "error")
    assert ids(index.query_runs(parent_run=parents[0], status="failed")) == [children[2].run_id]


def test_a_limit_takes_the_oldest_ones(index: RunIndex) -> None:
    made = [index.create_run().run_id for _ in range(50)]
    for run in made[::2]:
        index.pause_run(run)
    for limit in (0, 1, 15, 16, 17, 49, 50, 51, 10**30):
        assert ids(index.query_runs(limit=limit)) == made[:limit]
        assert ids(index.query_runs(limit=limit, status="Paused")) == made[::2][:limit]
    assert ids(index.query_runs(RunQuery(limit=3), limit=None)) == made
    assert ids(index.query_runs(RunQuery(status="Paused"), limit=2)) == made[:4:2]


def test_every_condition_is_met_whichever_index_is_read(index: RunIndex) -> None:
    parents = [index.create_run().run_id for _ in range(2)]
    for number in range(60):
        tags = [tag for bit, tag in enumerate("xyz") if number >> bit & 1]
        parent = [None, *parents][number % 3]
        run = index.create_run_with_options(None, parent, tags).run_id
        reach(index, run, list(RunStatus)[number % 6])
    every = index.query_runs(include_archived=True)
    assert len(every) == 62
    for status in (None, *RunStatus):
        for tags in ([], ["x"], ["y", "x"], ["x", "y", "z"]):
            for parent in (None, *parents):
                for archived in (False, True):
                    expected = [
                        run
                        for run in every
                        if (run.status is status if status else True)
                        and (archived or status or run.status is not RunStatus.ARCHIVED)
                        and set(tags) <= set(run.tags)
                        and (parent is None or run.parent_run == parent)
                    ]
                    found = index.query_runs(
                        status=status, tags=tags, parent_run=parent, include_archived=archived
                    )
                    assert found == expected


@pytest.mark.parametrize(
    ("conditions", "kind"),
    [
        ({"status": "ended"}, errors.ConstraintViolation),
        ({"status": 1}, errors.WrongType),
        ({"tags": "a"}, errors.WrongType),
        ({"tags": [1]}, errors.WrongType),
        ({"tags": ["a", ""]}, errors.InvalidKey),
        ({"created_after": 1.5}, errors.WrongType),
        ({"created_before": "now"}, errors.WrongType),
        ({"created_before": True}, errors.WrongType),
        ({"limit": -1}, errors.ConstraintViolation),
        ({"limit": 1.0}, errors.WrongType),
        ({"include_archived": 1}, errors.WrongType),
    ],
    ids=label,
)
def test_conditions_that_are_none_are_refused(
    index: RunIndex, conditions: dict[str, Any], kind: type[errors.Error]
) -> None:
    with refused(index, kind):
        index.query_runs(**conditions)
    with refused(index, kind):
        index.query_runs(RunQuery(**conditions))
    with refused(index, errors.WrongType, "RunQuery"):
        index.query_runs(conditions)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown"):
        index.query_runs(unknown=1)


class Counting:
    """An engine that counts what is read through it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.read: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def scan(self, *arguments: Any) -> Any:
        found = self._engine.scan(*arguments)
        self.read["keys"] += len(found[0])
        return found


def test_a_query_reads_what_it_answers_and_not_all_runs(index: RunIndex) -> None:
    parent = index.create_run().run_id
    for number in range(300):
        run = index.create_run_with_options(None, parent if number % 100 == 0 else None).run_id
        index.add_tags(run, ["odd"] if number % 100 == 1 else [])
        if number >= 3:
            index.archive_run(run)
    counting = Counting(index._engine)
    index._engine = counting
    queries: dict[str, tuple[Callable[[], Any], int]] = {
        "parent": (lambda: index.get_child_runs(parent), 3),
        "tag": (lambda: index.query_by_tag("odd"), 3),
        "tag and archived": (lambda: index.query_runs(tags=["odd"], status="archived"), 2),
        "status": (lambda: index.query_by_status("Active"), 4),
        "not archived": (lambda: index.query_runs(), 4),
        "time": (lambda: index.query_runs(created_before=1, include_archived=True), 0),
        "limit": (lambda: index.query_runs(status="archived", limit=5), 5),
        "counters": (lambda: [index.count(), index.get_stats()], 2),
    }
    for name, (query, answers) in queries.items():
        counting.read.clear()
        assert len(query()) == answers, name
        assert counting.read["keys"] <= 3 * max(answers, 1) + 16, name
