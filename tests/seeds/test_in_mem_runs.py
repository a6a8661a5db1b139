"""test_in_mem_runs.py - the RunIndex examples of the in-mem page, and its Run Lifecycle.

Why:        who comes from that page should be able to type what it shows, in Python form.
Used by:    nothing else; each test is one example or one method, in the order of the page
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_engine import (
    Database,
    EventLog,
    KVStore,
    RunId,
    RunIndex,
    RunMetadata,
    RunStatus,
    StateCell,
    TraceStore,
    TraceType,
    errors,
)


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def run_index(db: Database) -> RunIndex:
    return RunIndex(db)


@pytest.fixture
def run_id(run_index: RunIndex) -> str:
    return run_index.create_run(str(RunId.new())).run_id


# -- begin and end ----------------------------------------------------------------------------


def test_begin_run_and_end_run(db: Database, run_index: RunIndex) -> None:
    run_id = db.begin_run()
    KVStore(db).put(run_id, "key", 1)
    db.end_run(run_id)
    found = run_index.get_run(run_id)
    assert found is not None
    assert found.status is RunStatus.COMPLETED
    assert KVStore(db).get(run_id, "key") == 1


# -- types ------------------------------------------------------------------------------------


def test_the_statuses_and_what_they_tell() -> None:
    assert [status.as_str() for status in RunStatus] == [
        "Active",
        "Completed",
        "Failed",
        "Cancelled",
        "Paused",
        "Archived",
    ]
    assert [status for status in RunStatus if status.is_terminal()] == [RunStatus.ARCHIVED]
    assert {status for status in RunStatus if status.is_finished()} == {
        RunStatus.COMPLETED,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
    }


VALID = {
    "Active": {"Completed", "Failed", "Cancelled", "Paused", "Archived"},
    "Paused": {"Active", "Cancelled", "Archived"},
    "Completed": {"Archived"},
    "Failed": {"Archived"},
    "Cancelled": {"Archived"},
    "Archived": set(),
}


@pytest.mark.parametrize("target", VALID)
@pytest.mark.parametrize("start", VALID)
def test_the_valid_status_transitions(
    start: str, target: str, run_index: RunIndex, run_id: str
) -> None:
    assert RunStatus.of(start).can_transition_to(target) == (target in VALID[start])
    if start != "Active":
        run_index.update_status(run_id, RunStatus.of(start))
    if target in VALID[start]:
        assert run_index.update_status(run_id, RunStatus.of(target)).status.as_str() == target
        return
    with pytest.raises(errors.InvalidStatusTransition):
        run_index.update_status(run_id, RunStatus.of(target))
    found = run_index.get_run(run_id)
    assert found is not None
    assert found.status.as_str() == start


def test_the_fields_of_a_runs_metadata(run_index: RunIndex, run_id: str) -> None:
    found = run_index.get_run(run_id)
    assert isinstance(found, RunMetadata)
    assert found.name
    assert found.run_id == run_id
    assert found.parent_run is None
    assert found.status is RunStatus.ACTIVE
    assert abs(found.created_at - time.time_ns() // 1_000_000) < 10_000
    assert found.updated_at >= found.created_at
    assert found.completed_at is None
    assert (found.tags, found.metadata, found.error) == ([], None, None)


# -- create and get ---------------------------------------------------------------------------


def test_create_run_with_options(run_index: RunIndex, run_id: str) -> None:
    parent_run_id, run_id = run_id, str(RunId.new())
    run = run_index.create_run_with_options(
        run_id,
        parent_run_id,
        ["batch-job", "priority-high"],
        {
            "source": "api",
        },
    )
    assert (run.run_id, run.parent_run) == (run_id, parent_run_id)
    assert run.tags == ["batch-job", "priority-high"]
    assert run.metadata == {"source": "api"}
    assert run_index.get_run(run_id) == run


def test_get_run_exists_list_runs_and_count(run_index: RunIndex) -> None:
    assert (run_index.list_runs(), run_index.count()) == ([], 0)
    created = [run_index.create_run(str(RunId.new())).run_id for _ in range(3)]
    assert run_index.list_runs() == created
    assert run_index.count() == 3
    unknown = str(RunId.new())
    assert run_index.exists(created[0])
    assert not run_index.exists(unknown)
    assert run_index.get_run(unknown) is None


# -- status -----------------------------------------------------------------------------------


def test_mark_as_completed(run_index: RunIndex, run_id: str) -> None:
    run = run_index.complete_run(run_id)
    assert run.status is RunStatus.COMPLETED
    assert run.completed_at is not None
    assert run.completed_at >= run.created_at


def test_mark_as_failed_with_error(run_index: RunIndex, run_id: str) -> None:
    run = run_index.fail_run(run_id, "Connection timeout")
    assert (run.status, run.error) == (RunStatus.FAILED, "Connection timeout")


def test_pause_resume_cancel_and_archive(run_index: RunIndex, run_id: str) -> None:
    assert run_index.pause_run(run_id).status is RunStatus.PAUSED
    assert run_index.resume_run(run_id).status is RunStatus.ACTIVE
    assert run_index.cancel_run(run_id).status is RunStatus.CANCELLED
    assert run_index.archive_run(run_id).status is RunStatus.ARCHIVED


# -- queries ----------------------------------------------------------------------------------


def test_query_by_status(run_index: RunIndex) -> None:
    runs = [run_index.create_run(str(RunId.new())).run_id for _ in range(3)]
    run_index.fail_run(runs[1], "broken")
    active_runs = run_index.query_by_status(RunStatus.ACTIVE)
    failed_runs = run_index.query_by_status(RunStatus.FAILED)
    assert [run.run_id for run in active_runs] == [runs[0], runs[2]]
    assert [run.run_id for run in failed_runs] == [runs[1]]


def test_query_by_tag_and_get_child_runs(run_index: RunIndex, run_id: str) -> None:
    child = run_index.create_run_with_options(str(RunId.new()), run_id, ["batch-job"], None)
    assert run_index.query_by_tag("batch-job") == [child]
    assert run_index.query_by_tag("batch") == []
    assert run_index.get_child_runs(run_id) == [child]
    assert run_index.get_child_runs(child.run_id) == []


# -- tags and metadata ------------------------------------------------------------------------


def test_add_tags_remove_tags_and_update_metadata(run_index: RunIndex, run_id: str) -> None:
    assert run_index.add_tags(run_id, ["a", "b"]).tags == ["a", "b"]
    assert run_index.add_tags(run_id, ["b", "c"]).tags == ["a", "b", "c"]
    assert run_index.remove_tags(run_id, ["a", "unknown"]).tags == ["b", "c"]
    run = run_index.update_metadata(run_id, {"n": 1})
    assert (run.tags, run.metadata) == (["b", "c"], {"n": 1})
    assert run_index.query_by_tag("c") == [run]


# -- delete -----------------------------------------------------------------------------------


def test_delete_run_removes_the_run_and_all_of_its_data(
    db: Database, run_index: RunIndex, run_id: str
) -> None:
    KVStore(db).put(run_id, "key", 1)
    EventLog(db).append(run_id, "event", 1)
    StateCell(db).init(run_id, "cell", 1)
    TraceStore(db).record(run_id, TraceType.Thought("hm"), ["tag"], None)
    run_index.delete_run(run_id)
    assert run_index.get_run(run_id) is None
    assert KVStore(db).list(run_id) == []
    assert EventLog(db).is_empty(run_id)
    assert StateCell(db).list(run_id) == []
    assert TraceStore(db).list(run_id) == TraceStore(db).query_by_tag(run_id, "tag") == []
    with pytest.raises(errors.NotFound):
        run_index.delete_run(run_id)


def test_archive_run_is_the_soft_delete(db: Database, run_index: RunIndex, run_id: str) -> None:
    KVStore(db).put(run_id, "key", 1)
    run_index.archive_run(run_id)
    assert run_index.query_runs() == []
    assert run_index.exists(run_id)
    assert KVStore(db).get(run_id, "key") == 1


# -- thread safety ----------------------------------------------------------------------------


def test_threads_begin_and_end_runs_of_their_own(tmp_path: Path) -> None:
    with Database.open_with_mode(tmp_path / "data", "buffered", map_size=64 << 20) as db:

        def work(i: int) -> None:
            run_id = db.begin_run()
            kv = KVStore(db)

            for j in range(1000):
                kv.put(run_id, f"key-{i}-{j}", j)

            db.end_run(run_id)

        handles = [threading.Thread(target=work, args=(i,)) for i in range(4)]

        for handle in handles:
            handle.start()
        for handle in handles:
            handle.join()
        runs = RunIndex(db).query_by_status("Completed")
        counts = [len(KVStore(db).list(run.run_id)) for run in runs]
        assert counts == [1000] * 4
