"""test_run_index.py - what each method of RunIndex does, and that a refused call does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import (
    CreateRunOptions,
    Database,
    KVStore,
    RetentionPolicy,
    RunId,
    RunIndex,
    RunMetadata,
    RunStats,
    RunStatus,
    errors,
    keys,
)
from tests.harness.index import assert_indexes_agree, fill, ids, owned, reach
from tests.harness.labels import label
from tests.harness.refusal import assert_usable, contents
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


# -- create and get ---------------------------------------------------------------------------


def test_an_index_is_made_of_a_database_alone(db: Database) -> None:
    """Story 191: RunIndex::new() creates an instance."""
    assert RunIndex(db).database is db
    for wrong in (None, "path", db.engine):
        with pytest.raises(errors.WrongType, match="Database"):
            RunIndex(wrong)  # type: ignore[arg-type]


def test_a_created_run_is_active_and_says_when(index: RunIndex) -> None:
    """Story 192: create_run() creates an Active run; get_run() returns its metadata."""
    before = time.time_ns() // 1_000_000
    run = RunId.new()
    made = index.create_run(run)
    assert made == RunMetadata(
        str(run), str(run), created_at=made.created_at, updated_at=made.created_at
    )
    assert made.status is RunStatus.ACTIVE
    assert before <= made.created_at <= time.time_ns() // 1_000_000
    assert index.get_run(run) == index.get_run(str(run)) == made
    assert index.exists(run)
    assert index.list_runs() == [str(run)]
    assert index.count() == 1


def test_a_run_gets_a_new_id_if_none_is_given(index: RunIndex) -> None:
    made = [index.create_run(), index.create_run_with_options(), index.create_run(None)]
    assert len(set(ids(made))) == 3
    assert index.list_runs() == ids(made)


def test_an_unknown_run_reads_as_none(index: RunIndex, db: Database) -> None:
    """Story 192: get_run() returns None if not found."""
    run = RunId.new()
    KVStore(db).put(run, "a", 1)
    db.set_retention(run, RetentionPolicy.KeepLast(2))
    assert index.get_run(run) is None
    assert not index.exists(run)
    assert index.list_runs() == []
    assert index.count() == 0
    assert index.get_child_runs(run) == []


def test_options_are_kept(index: RunIndex) -> None:
    """Story 192: create_run_with_options() uses a custom id and links to the parent."""
    parent = index.create_run().run_id
    run = RunId.new()
    made = index.create_run_with_options(run, parent, ["b", "a", "b"], {"source": "api"})
    assert (made.run_id, made.parent_run, made.tags) == (str(run), parent, ["b", "a"])
    assert made.metadata == {"source": "api"}
    assert made.name == str(run)
    assert index.get_run(run) == made


@pytest.mark.parametrize("form", ["alone", "second", "both"])
def test_options_come_as_an_object_too(index: RunIndex, form: str) -> None:
    parent = index.create_run().run_id
    run = RunId.new()
    inner = None if form == "second" else run
    options = CreateRunOptions(inner, parent, ["a"], [1], "nightly")
    outer: list[Any] = [options] if form == "alone" else [str(run), options]
    made = index.create_run_with_options(*outer)
    assert (made.run_id, made.parent_run, made.tags) == (str(run), parent, ["a"])
    assert (made.metadata, made.name) == ([1], "nightly")
    assert index.get_run(run) == made


def test_options_as_an_object_stand_alone(index: RunIndex) -> None:
    options = CreateRunOptions(run_id=RunId.new())
    run = RunId.new()
    calls: list[Callable[[], Any]] = [
        lambda: index.create_run_with_options(options, run),
        lambda: index.create_run_with_options(options, tags=["a"]),
        lambda: index.create_run_with_options(options, metadata=0),
        lambda: index.create_run_with_options(options, options),
        lambda: index.create_run_with_options(run, CreateRunOptions(), ["a"]),
    ]
    for call in calls:
        with refused(index, errors.InvalidOperation, "CreateRunOptions"):
            call()
    with refused(index, errors.ConstraintViolation, "one id"):
        index.create_run_with_options(run, options)
    assert index.list_runs() == []


def test_a_run_is_created_once(index: RunIndex, db: Database) -> None:
    run = index.create_run().run_id
    begun = db.begin_run()
    for exists in (run, begun, DEFAULT, "default"):
        for create in (index.create_run, index.create_run_with_options, db.begin_run):
            with refused(index, errors.InvalidOperation, "exists already"):
                create(exists)
    for status in (RunStatus.COMPLETED, RunStatus.ARCHIVED):
        index.update_status(run, status)
        with refused(index, errors.InvalidOperation, "exists already"):
            index.create_run(run)


def test_a_parent_has_to_exist(index: RunIndex, db: Database) -> None:
    missing, written, run = RunId.new(), RunId.new(), RunId.new()
    KVStore(db).put(written, "a", 1)
    db.set_retention(written, RetentionPolicy.KeepAll)
    for parent in (missing, written, run):
        with refused(index, errors.NotFound, "parent"):
            index.create_run_with_options(run, parent)
    assert not index.exists(run)
    assert index.create_run_with_options(run, DEFAULT).parent_run == "default"
    assert ids(index.get_child_runs("default")) == [str(run)]


def test_a_parent_of_any_status_will_do(index: RunIndex) -> None:
    for status in RunStatus:
        parent = index.create_run().run_id
        reach(index, parent, status)
        child = index.create_run_with_options(None, parent)
        assert index.get_child_runs(parent) == [child]


BAD_OPTIONS: list[tuple[dict[str, Any], type[errors.Error]]] = [
    ({"tags": "tag"}, errors.WrongType),
    ({"tags": 5}, errors.WrongType),
    ({"tags": ["a", 5]}, errors.WrongType),
    ({"tags": [""]}, errors.InvalidKey),
    ({"tags": ["x" * 257]}, errors.InvalidKey),
    ({"tags": ["a\0"]}, errors.InvalidKey),
    ({"tags": ["\ud800"]}, errors.InvalidKey),
    ({"metadata": (1, 2)}, errors.WrongType),
    ({"metadata": {1: 2}}, errors.WrongType),
    ({"metadata": 2**63}, errors.ConstraintViolation),
    ({"metadata": "\ud800"}, errors.SerializationError),
    ({"name": ""}, errors.InvalidKey),
    ({"name": 5}, errors.WrongType),
    ({"parent_run": "nope"}, errors.InvalidKey),
    ({"parent_run": 5}, errors.WrongType),
    ({"run_id": "nope"}, errors.InvalidKey),
    ({"run_id": b"x" * 16}, errors.WrongType),
]


@pytest.mark.parametrize(("options", "kind"), BAD_OPTIONS, ids=label)
def test_bad_options_create_nothing(
    index: RunIndex, options: dict[str, Any], kind: type[errors.Error]
) -> None:
    with refused(index, kind):
        index.create_run_with_options(CreateRunOptions(**options))
    if "name" not in options:
        with refused(index, kind):
            index.create_run_with_options(**options)
    assert index.list_runs() == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nope", errors.InvalidKey), ("", errors.InvalidKey), (5, errors.WrongType)],
    ids=label,
)
def test_what_names_no_run_is_refused_everywhere(
    index: RunIndex, name: Any, kind: type[errors.Error]
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: index.create_run(name),
        lambda: index.get_run(name),
        lambda: index.exists(name),
        lambda: index.update_status(name, "Paused"),
        lambda: index.fail_run(name, "error"),
        lambda: index.get_child_runs(name),
        lambda: index.query_runs(parent_run=name),
        lambda: index.add_tags(name, ["a"]),
        lambda: index.remove_tags(name, ["a"]),
        lambda: index.update_metadata(name, 1),
        lambda: index.delete_run(name),
    ]
    for call in calls:
        with refused(index, kind):
            call()


# -- runs begun by the database ---------------------------------------------------------------


def test_a_run_that_the_database_began_is_in_the_index(index: RunIndex, db: Database) -> None:
    run = db.begin_run()
    assert index.list_runs() == [str(run)]
    db.end_run(run)
    found = index.get_run(run)
    assert found is not None
    assert found.status is RunStatus.COMPLETED
    assert found.completed_at is not None
    other = index.create_run().run_id
    db.end_run(other)
    assert index.get_stats() == RunStats(total_runs=2, completed_runs=2)
    with refused(index, errors.InvalidStatusTransition, "Completed -> Completed"):
        db.end_run(other)
    with refused(index, errors.NotFound, "never begun"):
        db.end_run(RunId.new())


def test_a_retention_is_kept_through_the_whole_life_of_a_run(index: RunIndex, db: Database) -> None:
    run = RunId.new()
    db.set_retention(run, RetentionPolicy.KeepLast(2))
    index.create_run_with_options(run, tags=["a"])
    assert db.retention(run) == RetentionPolicy.KeepLast(2)
    index.pause_run(run)
    found = index.update_metadata(run, {"a": 1})
    assert db.retention(run) == RetentionPolicy.KeepLast(2)
    db.set_retention(run, RetentionPolicy.KeepFor(60))
    assert index.get_run(run) == found
    assert db.retention(run) == RetentionPolicy.KeepFor(60)
    index.delete_run(run)
    assert db.retention(run) == RetentionPolicy.KeepAll
    db.begin_run(run)
    assert db.retention(run) == RetentionPolicy.KeepAll


def test_a_record_without_details_is_read_and_enters_the_indexes_when_it_changes(
    index: RunIndex, db: Database
) -> None:
    run = RunId.new()
    db.engine.put_run_record(run, keys.pack_run(1, RetentionPolicy.KeepLast(3)))
    assert index.get_run(run) == RunMetadata(str(run), str(run))
    assert index.count() == 0
    found = index.pause_run(run)
    assert (found.status, found.created_at) == (RunStatus.PAUSED, 0)
    assert index.query_by_status("Paused") == [found]
    assert index.get_stats() == RunStats(total_runs=1, paused_runs=1)
    assert db.retention(run) == RetentionPolicy.KeepLast(3)
    other = RunId.new()
    db.engine.put_run_record(other, keys.pack_run(2, None))
    index.delete_run(other)
    assert index.list_runs() == [str(run)]


# -- the default run --------------------------------------------------------------------------


def test_the_default_run_exists_and_is_not_listed(index: RunIndex, db: Database) -> None:
    shown = RunMetadata("default", "default")
    assert shown.status is RunStatus.ACTIVE
    for name in (DEFAULT, "default", "00000000-0000-0000-0000-000000000000"):
        assert index.get_run(name) == shown
        assert index.exists(name)
    db.set_retention(DEFAULT, RetentionPolicy.KeepLast(1))
    assert index.get_run(DEFAULT) == shown
    assert (index.list_runs(), index.count()) == ([], 0)
    assert index.query_runs(include_archived=True) == []


def test_the_default_run_cannot_be_changed(index: RunIndex, db: Database) -> None:
    calls: list[Callable[[], Any]] = [
        *(lambda status=status: index.update_status(DEFAULT, status) for status in RunStatus),
        lambda: index.complete_run(DEFAULT),
        lambda: index.fail_run("default", "error"),
        lambda: index.add_tags(DEFAULT, ["a"]),
        lambda: index.remove_tags(DEFAULT, ["a"]),
        lambda: index.update_metadata(DEFAULT, 1),
        lambda: index.delete_run(DEFAULT),
        lambda: db.end_run(DEFAULT),
    ]
    for call in calls:
        with refused(index, errors.ConstraintViolation, "default run") as caught:
            call()
        assert caught.value.reason == "default_run"
    KVStore(db).put(DEFAULT, "a", 1)


# -- status -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", RunStatus, ids=str)
def test_a_run_goes_where_its_status_allows_and_nowhere_else(
    index: RunIndex, start: RunStatus
) -> None:
    """Story 193: valid transitions succeed, invalid transitions fail with an error."""
    for end in RunStatus:
        run = index.create_run().run_id
        reach(index, run, start)
        before = index.get_run(run)
        if start.can_transition_to(end):
            found = index.update_status(run, end.as_str().lower())
            assert found.status is end
            assert index.get_run(run) == found
        else:
            with refused(index, errors.InvalidStatusTransition) as caught:
                index.update_status(run, end)
            assert (caught.value.from_, caught.value.to) == (start.as_str(), end.as_str())
            assert f"{start} -> {end}" in caught.value.message
            assert index.get_run(run) == before


def test_each_short_name_goes_to_its_status(index: RunIndex) -> None:
    """Story 193: complete_run() sets Completed. Story 195: archive_run() sets Archived."""
    shorts: dict[Callable[[str], RunMetadata], RunStatus] = {
        index.complete_run: RunStatus.COMPLETED,
        index.pause_run: RunStatus.PAUSED,
        index.cancel_run: RunStatus.CANCELLED,
        index.archive_run: RunStatus.ARCHIVED,
    }
    for short, status in shorts.items():
        run = index.create_run().run_id
        assert short(run).status is status
    run = index.create_run().run_id
    index.pause_run(run)
    assert index.resume_run(run).status is RunStatus.ACTIVE


def test_a_failed_run_says_why(index: RunIndex) -> None:
    """Story 193: fail_run() sets Failed with the error message."""
    run = index.create_run().run_id
    found = index.fail_run(run, "connection timeout")
    assert (found.status, found.error) == (RunStatus.FAILED, "connection timeout")
    assert found.completed_at == found.updated_at
    assert index.archive_run(run).error == "connection timeout"
    bare = index.create_run().run_id
    assert index.update_status(bare, "failed").error is None


@pytest.mark.parametrize("error", [None, 5, b"error", ["error"], ValueError("error")], ids=label)
def test_an_error_is_a_str(index: RunIndex, error: Any) -> None:
    run = index.create_run().run_id
    with refused(index, errors.WrongType, "error"):
        index.fail_run(run, error)
    with refused(index, errors.SerializationError):
        index.fail_run(run, "\ud800")
    assert index.query_by_status("Active")[0].run_id == run


def test_no_resurrection(index: RunIndex) -> None:
    """Story 193: no resurrection (Completed to Active fails); Archived is terminal."""
    run = index.create_run().run_id
    index.complete_run(run)
    for call in (index.resume_run, index.pause_run, index.complete_run, index.cancel_run):
        with refused(index, errors.InvalidStatusTransition, "Completed"):
            call(run)
    index.archive_run(run)
    for call in (index.resume_run, index.archive_run):
        with refused(index, errors.InvalidStatusTransition, "Archived"):
            call(run)


def test_the_end_is_noted_and_stays(index: RunIndex) -> None:
    run = index.create_run().run_id
    assert index.pause_run(run).completed_at is None
    assert index.resume_run(run).completed_at is None
    ended = index.complete_run(run)
    assert ended.completed_at is not None
    assert ended.created_at <= ended.completed_at == ended.updated_at
    assert index.archive_run(run).completed_at == ended.completed_at
    bare = index.create_run().run_id
    assert index.archive_run(bare).completed_at is None


def test_an_unknown_run_cannot_be_changed(index: RunIndex) -> None:
    run = RunId.new()
    calls: list[Callable[[], Any]] = [
        lambda: index.update_status(run, "Paused"),
        lambda: index.fail_run(run, "error"),
        lambda: index.add_tags(run, ["a"]),
        lambda: index.remove_tags(run, ["a"]),
        lambda: index.update_metadata(run, 1),
        lambda: index.delete_run(run),
    ]
    for call in calls:
        with refused(index, errors.NotFound, "never begun"):
            call()


def test_only_an_active_run_takes_writes_and_every_run_is_read(
    index: RunIndex, db: Database
) -> None:
    """Story 196: status transitions are enforced across all operations."""
    kv = KVStore(db)
    for status in RunStatus:
        run = index.create_run().run_id
        kv.put(run, "a", 1)
        reach(index, run, status)
        if status is RunStatus.ACTIVE:
            kv.put(run, "a", 1)
            continue
        with pytest.raises(errors.RunError) as caught:
            kv.put(run, "a", 2)
        assert (caught.value.run, caught.value.state) == (run, status.as_str())
        with pytest.raises(errors.RunError):
            db.transaction(run, lambda txn: txn.kv_put("b", 2))
        assert kv.list_with_values(run) == [("a", 1)]
        if status is RunStatus.PAUSED:
            index.resume_run(run)
            kv.put(run, "a", 3)


# -- tags and metadata ------------------------------------------------------------------------


def test_tags_are_added_once_and_taken_away(index: RunIndex) -> None:
    run = index.create_run_with_options(None, tags=["a"]).run_id
    assert index.add_tags(run, ["b", "a", "b", "c"]).tags == ["a", "b", "c"]
    assert index.remove_tags(run, ["b", "unknown"]).tags == ["a", "c"]
    assert ids(index.query_by_tag("c")) == [run]
    assert index.query_by_tag("b") == []
    assert index.remove_tags(run, ["a", "c"]).tags == []
    assert index.query_by_tag("a") == []


def test_a_change_that_changes_nothing_commits_nothing(index: RunIndex, db: Database) -> None:
    made = index.create_run_with_options(None, tags=["a", "b"])
    before = db.metrics().transactions_committed
    assert index.add_tags(made.run_id, ["b", "a"]) == made
    assert index.remove_tags(made.run_id, ["c"]) == made
    assert index.add_tags(made.run_id, []) == made
    assert db.metrics().transactions_committed == before


@pytest.mark.parametrize("status", RunStatus, ids=str)
def test_tags_and_metadata_change_in_any_status(index: RunIndex, status: RunStatus) -> None:
    run = index.create_run_with_options(None, tags=["a"], metadata={"a": 1, "b": 2}).run_id
    reach(index, run, status)
    index.add_tags(run, ["b"])
    found = index.update_metadata(run, {"a": 3})
    assert (found.tags, found.metadata, found.status) == (["a", "b"], {"a": 3}, status)
    assert index.query_by_tag("b") == [found]


@pytest.mark.parametrize("value", [None, 0, "text", b"\x00", [1, [2]], {"a": {"b": 1.5}}, True])
def test_metadata_is_any_value(index: RunIndex, value: Any) -> None:
    run = index.create_run_with_options(None, metadata=value).run_id
    found = index.get_run(run)
    assert found is not None
    assert found.metadata == value
    assert type(index.update_metadata(run, value).metadata) is type(value)


def test_a_refused_change_of_tags_or_metadata_changes_nothing(index: RunIndex) -> None:
    run = index.create_run_with_options(None, tags=["a"], metadata=1).run_id
    before = index.get_run(run)
    for tags, kind in (("a", errors.WrongType), ([5], errors.WrongType), ([""], errors.InvalidKey)):
        for change in (index.add_tags, index.remove_tags):
            with refused(index, kind):
                change(run, tags)  # type: ignore[arg-type]
    with refused(index, errors.WrongType, r"\$"):
        index.update_metadata(run, {"a": (1,)})
    assert index.get_run(run) == before


def test_metadata_of_a_megabyte_and_a_thousand_tags_are_kept(index: RunIndex) -> None:
    tags = [f"tag:{number}" for number in range(1000)]
    made = index.create_run_with_options(None, tags=tags, metadata={"raw": bytes(1 << 20)})
    assert index.get_run(made.run_id) == made
    assert index.query_by_tag("tag:999") == [made]
    index.complete_run(made.run_id)
    assert len(index.remove_tags(made.run_id, tags[1:]).tags) == 1


# -- all of it together -----------------------------------------------------------------------


def test_full_run_lifecycle(index: RunIndex, db: Database) -> None:
    """Story 196: test_full_run_lifecycle. Story 195: archived run data stays accessible."""
    run = index.create_run_with_options(None, tags=["nightly"]).run_id
    fill(db, run)
    everything = owned(db, run)
    for end in (index.complete_run, index.archive_run):
        end(run)
        assert owned(db, run) == everything
        assert KVStore(db).get(run, "k1") == 1
        with pytest.raises(errors.RunError):
            fill(db, run)
    assert [each.run_id for each in index.query_by_tag("nightly")] == [run]


def test_run_forking(index: RunIndex, db: Database) -> None:
    """Story 196: test_run_forking."""
    parent = index.create_run().run_id
    fill(db, parent)
    child = index.create_run_with_options(None, parent)
    assert not any(owned(db, child.run_id).values())
    KVStore(db).put(child.run_id, "k1", "its own")
    assert KVStore(db).get(parent, "k1") == 1
    index.complete_run(parent)
    KVStore(db).put(child.run_id, "k2", "goes on")
    assert index.get_child_runs(parent) == [child]


def test_a_full_store_refuses_a_run_whole() -> None:
    with Database.ephemeral(map_size=1 << 20) as small:
        index = RunIndex(small)
        made: list[str] = []

        def fill_up() -> None:
            while True:
                make()

        def make() -> None:
            tags = [f"{len(made)}/{n}" for n in range(10)]
            run = index.create_run_with_options(None, tags=tags, metadata=bytes(2000))
            made.append(run.run_id)

        with pytest.raises(errors.StorageFull):
            fill_up()
        before = contents(small)
        with pytest.raises(errors.StorageFull):
            index.create_run_with_options(None, tags=[f"{n}" for n in range(100)])
        assert contents(small) == before
        assert index.list_runs() == made
        assert_indexes_agree(small)


def test_after_close_every_call_says_so(index: RunIndex, db: Database) -> None:
    run = index.create_run().run_id
    db.close()
    calls: list[Callable[[], Any]] = [
        index.create_run,
        lambda: index.get_run(run),
        lambda: index.exists(run),
        index.list_runs,
        index.count,
        index.get_stats,
        lambda: index.complete_run(run),
        lambda: index.query_runs(status="Active"),
        lambda: index.query_by_tag("a"),
        lambda: index.get_child_runs(run),
        lambda: index.add_tags(run, ["a"]),
        lambda: index.update_metadata(run, 1),
        lambda: index.delete_run(run),
        lambda: RunIndex(db),
    ]
    for call in calls:
        with pytest.raises(errors.Closed):
            call()


def test_the_store_is_as_usable_as_before(index: RunIndex, db: Database) -> None:
    index.delete_run(index.create_run().run_id)
    assert_usable(db)
