"""test_recorder.py - what a recorder writes is what happened, and a torn note says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from shm_engine import Database, KVStore
from tests.harness.isolation import Append, Read, Scan
from tests.harness.recorder import RUN, Abandoned, KeyLists, Recorder, Session, recorded


def grow(session: Session) -> None:
    session.append("x")
    session.read("x")
    session.scan("")


def give_up(session: Session) -> None:
    session.append("x")
    raise Abandoned


def test_operations_outcomes_and_times_are_recorded(tmp_path: Path) -> None:
    with Database.ephemeral() as db:
        recorder = Recorder(tmp_path, 7, KeyLists())
        assert recorder.run(db, "snapshot", grow) == "committed"
        assert recorder.run(db, "snapshot", give_up) == "aborted"
        assert recorder.run_with_retry(db, "serializable", give_up) == "aborted"
        history = recorded(tmp_path, KeyLists().final(db))
    first, *others = history.records
    (value,) = history.final["x"]
    assert first.operations == (
        Append("x", value),
        Read("x", (value,)),
        Scan("", {"x": (value,)}),
    )
    assert [(one.id, one.process, one.status) for one in history.records] == [
        ("T7.0", 7, "committed"),
        ("T7.1", 7, "aborted"),
        ("T7.2", 7, "aborted"),
    ]
    times = [time for one in history.records for time in (one.began, one.ended)]
    assert None not in times
    assert times == sorted(time for time in times if time is not None)
    assert all(len(one.operations) == 1 for one in others)


def test_each_try_is_a_transaction(tmp_path: Path) -> None:
    with Database.ephemeral() as db:
        recorder = Recorder(tmp_path, 0, KeyLists())
        tries = []

        def disturbed(session: Session) -> None:
            tries.append(session.read("x"))
            if len(tries) == 1:
                KVStore(db).put(RUN, "x", [5])
            session.append("x")

        assert recorder.run_with_retry(db, "snapshot", disturbed) == "committed"
        first, second = recorded(tmp_path, KeyLists().final(db)).records
    assert (first.status, second.status) == ("aborted", "committed")
    assert tries == [(), (5,)]
    assert first.ended is not None
    assert second.began is not None
    # It is not claimed that the first had ended: the second begins before that is known.
    assert second.began <= first.ended


def test_an_end_that_was_not_written_whole_is_unknown(tmp_path: Path) -> None:
    with Database.ephemeral() as db:
        recorder = Recorder(tmp_path, 0, KeyLists())
        recorder.run(db, "snapshot", grow)
        (path,) = tmp_path.iterdir()
        data = path.read_bytes()
        (whole,) = recorded(tmp_path, {}).records
        size = 4 + int.from_bytes(data[:4], "little")
        for end in range(len(data)):
            path.write_bytes(data[:end])
            found = recorded(tmp_path, {}).records
            assert [one.status for one in found] == (["unknown"] if end >= size else [])
            assert all(one.operations == whole.operations for one in found)


def test_an_error_that_nobody_expects_comes_through(tmp_path: Path) -> None:
    with Database.ephemeral() as db:
        recorder = Recorder(tmp_path, 0, KeyLists())
        for run in (recorder.run, recorder.run_with_retry):
            with pytest.raises(ZeroDivisionError):
                run(db, "snapshot", lambda session: 1 // 0)
