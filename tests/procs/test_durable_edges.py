"""test_durable_edges.py - the narrow moments of databases with a log: closing while others write,
a coordinator that is sent away, folders that were copied or replaced.

Each of these has lost something once, or made somebody wait for nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.keys import TAG_KV
from shm_engine.primitives.kv import KVStore
from shm_engine.segments import clear_leftovers
from tests.harness.durable import (
    LOGGED,
    RUN,
    info_of,
    keep_some_history,
    kill_everything,
    open_folder,
    reopen,
    start_opener,
    stop_coordinator,
)
from tests.harness.workers import Channel, Crew, wait_until

NEVER = Durability.buffered(flush_interval_ms=3_600_000, max_pending_writes=1_000_000_000)


class Busy(threading.Thread):
    """Puts rising numbers under its key until that is refused."""

    def __init__(self, database: Database, key: str) -> None:
        super().__init__(daemon=True)
        self.kv = KVStore(database)
        self.key = key
        self.acknowledged = 0
        self.refused_by: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self.kv.put(RUN, self.key, self.acknowledged + 1)
                self.acknowledged += 1
        except errors.Error as error:
            self.refused_by = error


def busy_threads(database: Database) -> list[Busy]:
    threads = [Busy(database, f"thread/{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(thread.acknowledged > 10 for thread in threads), "all write")
    return threads


# -- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_what_other_threads_write_while_the_handle_closes_is_kept_or_refused(
    mode: str, folder: Path
) -> None:
    database = open_folder(folder, mode)
    keep_some_history(database)
    threads = busy_threads(database)
    begin = time.monotonic()
    database.close()
    assert time.monotonic() - begin < 10
    for thread in threads:
        thread.join(10)
        assert isinstance(thread.refused_by, errors.Closed)
    with reopen(folder) as again:
        for thread in threads:
            assert KVStore(again).get(RUN, thread.key) == thread.acknowledged


@pytest.mark.parametrize("mode", LOGGED)
def test_a_coordinator_that_is_sent_away_goes_though_clients_write_on(
    mode: str, folder: Path
) -> None:
    with open_folder(folder, mode) as database:
        keep_some_history(database)
        threads = busy_threads(database)
        first = info_of(folder)
        os.kill(first.pid, signal.SIGTERM)
        assert coordinator.wait_for_end(first.identity, 5)
        wait_until(lambda: info_of(folder).pid != first.pid, "a successor")
        before = [thread.acknowledged for thread in threads]
        wait_until(
            lambda: all(
                thread.acknowledged > count + 10
                for thread, count in zip(threads, before, strict=True)
            ),
            "all write on",
        )
    for thread in threads:
        thread.join(10)
    with reopen(folder) as again:
        for thread in threads:
            assert KVStore(again).get(RUN, thread.key) == thread.acknowledged


# -- waiting ----------------------------------------------------------------------------------


def test_what_changes_nothing_in_an_empty_database_waits_for_no_sync(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        begin = time.monotonic()
        assert KVStore(database).delete(RUN, "absent") is False
        assert time.monotonic() - begin < 5


def test_a_refusal_tells_of_nothing_that_is_not_durable(folder: Path) -> None:
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        kv.put(RUN, "other", 1)
        found: list[tuple[object, object]] = []

        def take() -> None:
            answer = database.engine.compare_and_set(RUN, TAG_KV, "key", 0, "second")
            found.append((answer, kv.get(RUN, "key")))

        first = threading.Thread(target=kv.put, args=(RUN, "key", "first"))
        second = threading.Thread(target=take)
        stopped = stop_coordinator(folder)
        try:
            version = database.metrics().version
            first.start()
            wait_until(lambda: database.metrics().version > version, "the first has committed")
            second.start()
            second.join(0.3)
            assert found == [], "who was refused saw what a power cut could take back"
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        first.join(10)
        second.join(10)
        assert found == [(None, "first")]


# -- names ------------------------------------------------------------------------------------


def test_the_names_of_folders_that_are_made_are_synced(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    open_folder(folder / "a" / "b", "strict").close()
    expected = [str(folder / "a"), str(folder), str(tmp_path)]
    assert synced == expected
    open_folder(folder / "a" / "b", "strict").close()
    assert synced == expected


# -- whose segments ---------------------------------------------------------------------------


def test_nobody_joins_segments_whose_ring_was_saved(folder: Path, crew: Crew) -> None:
    opener = crew.start(start_opener, folder, NEVER, {})
    opener.expect("open")
    segments = info_of(folder).segments
    kill_everything(folder, [opener])
    late = segments.attach()  # found the coordinator alive, and comes to join too late
    assert not coordinator.start(folder, None).found
    assert late.join() is False
    late.close()


def test_a_copy_of_an_open_database_is_another_database(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with open_folder(folder, "strict") as database:
        KVStore(database).put(RUN, "key", "original")
        shutil.copytree(folder, copy)
        with reopen(copy) as other:
            assert KVStore(other).get(RUN, "key") == "original"
            KVStore(other).put(RUN, "key", "copy")
        assert KVStore(database).get(RUN, "key") == "original"
    with reopen(copy) as other:
        assert KVStore(other).get(RUN, "key") == "copy"


def start_and_put(channel: Channel, folder: Path) -> None:
    """A commit that is in the ring alone."""
    database = open_folder(folder, NEVER)
    KVStore(database).put(RUN, "key", 1)
    channel.send("open")
    channel.receive()


def test_a_copy_does_not_take_the_ring_of_the_original(
    folder: Path, tmp_path: Path, crew: Crew
) -> None:
    copy = tmp_path / "copy"
    opener = crew.start(start_and_put, folder)
    opener.expect("open")
    kill_everything(folder, [opener])
    shutil.copytree(folder, copy)
    with reopen(copy) as other:
        assert KVStore(other).get(RUN, "key") is None
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "key") == 1


def test_a_folder_that_is_renamed_after_a_crash_finds_its_ring(
    folder: Path, tmp_path: Path, crew: Crew
) -> None:
    opener = crew.start(start_and_put, folder)
    opener.expect("open")
    kill_everything(folder, [opener])
    renamed = folder.rename(tmp_path / "renamed")
    clear_leftovers()  # as every opening does
    with reopen(renamed) as database:
        assert KVStore(database).get(RUN, "key") == 1


def test_a_folder_that_is_renamed_while_it_is_open_is_joined(folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    with open_folder(folder, "strict") as database:
        KVStore(database).put(RUN, "key", 1)
        folder.rename(renamed)
        with reopen(renamed) as other:
            assert KVStore(other).get(RUN, "key") == 1
            KVStore(other).put(RUN, "key", 2)
        assert KVStore(database).get(RUN, "key") == 2
        renamed.rename(folder)


def test_who_leaves_a_removed_folder_leaves_its_successor_alone(folder: Path) -> None:
    first = open_folder(folder, "strict")
    KVStore(first).put(RUN, "key", "first")
    gone = info_of(folder)
    shutil.rmtree(folder)
    with open_folder(folder, "strict") as second:
        KVStore(second).put(RUN, "key", "second")
        first.close()
        assert coordinator.wait_for_end(gone.identity, 10)
        with reopen(folder) as joined:
            assert KVStore(joined).get(RUN, "key") == "second"
