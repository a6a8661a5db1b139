"""test_durable_disk.py - when the disk fails: read-only with the cause, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness import private_shm
from tests.harness.disk import Disk, Kind
from tests.harness.durable import (
    LOGGED,
    RUN,
    Writer,
    check_writers,
    info_of,
    kill_coordinator,
    open_folder,
    reopen,
    stop_coordinator,
    wait_for_successor,
)
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, wait_until

MIB = 1 << 20
NEVER = Durability.buffered(flush_interval_ms=3_600_000, max_pending_writes=1_000_000_000)
pytestmark = pytest.mark.crash


def fill_until_refused(database: Database, tally: Tally, most: int = 100_000) -> errors.IoError:
    """Commits until the database takes no more; the error."""
    writer = Writer(0, tally)
    for _ in range(most):
        try:
            writer.write(database)
        except errors.IoError as error:
            return error
    raise AssertionError("it was never refused")


def put_until_refused(kv: KVStore, cause: str, keys: int = 20, size: int = MIB) -> int:
    """Puts numbers from 0 on, in turns, until that is refused; the last that was acknowledged."""
    refused = None
    for number in range(2000):
        try:
            kv.put(RUN, f"large/{number % keys}", [number, b"v" * size])
        except errors.IoError as error:
            refused = error
            break
    assert re.search(cause, str(refused)), refused
    return number - 1


def expect_read_only(database: Database, cause: str) -> None:
    """Every write and every wait for durability is refused with the cause; reads go on."""
    kv = KVStore(database)
    before = kv.scan(RUN)
    refused: list[Callable[[], object]] = [
        lambda: kv.put(RUN, "refused", 1),
        lambda: kv.incr(RUN, "sum"),
        lambda: kv.delete(RUN, "writer/0"),
        lambda: kv.mset(RUN, {"refused": 1, "too": 2}),
        lambda: database.transaction(RUN, lambda txn: txn.kv_put("refused", 1)),
        lambda: database.begin_run(),
    ]
    for write in refused:
        with pytest.raises(errors.IoError, match=cause) as caught:
            write()
        assert not caught.value.is_retryable()
    assert kv.scan(RUN) == before
    with database.snapshot() as snapshot:
        assert snapshot.get(RUN, "refused") is None
    assert kv.history(RUN, "writer/0") is not None
    with Database.open(database.path or "") as joined:
        assert KVStore(joined).scan(RUN) == before
        with pytest.raises(errors.IoError, match=cause):
            KVStore(joined).put(RUN, "refused", 1)


@pytest.mark.parametrize("mode", LOGGED)
@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC])
@pytest.mark.parametrize("count", [1, 0], ids=["once", "always"])
def test_a_disk_that_fails_makes_the_database_read_only_and_loses_nothing(
    mode: str, kind: Kind, count: int, folder: Path, tally: Tally, disk: Disk
) -> None:
    if mode == "no_durability" and kind == Kind.SYNC:
        pytest.skip("nothing is synced")
    with open_folder(folder, mode) as database:
        writer = Writer(0, tally)
        for _ in range(50):
            writer.write(database)
        disk.fail(kind, count=count, match="wal/")
        error = fill_until_refused(database, tally)
        what = "write" if kind == Kind.WRITE else "sync"
        cause = f"The {what} of wal/0.* failed: Input/output error"
        with pytest.raises(errors.IoError, match=cause):
            raise error
        assert disk.acted == 1, "it was tried again"
        expect_read_only(database, cause)
        assert disk.acted == 1, "it was tried again"
        if mode != "strict":
            assert KVStore(database).get(RUN, "writer/0") == writer.acknowledged
        with pytest.raises(errors.IoError, match=cause):
            database.flush()
        disk.heal()
    with reopen(folder) as database:
        check_writers(database, tally, [0])
        Writer(0, tally).write(database)


def test_a_disk_that_fails_at_opening_too_is_an_error_each_time_and_loses_nothing(
    folder: Path, tally: Tally, disk: Disk
) -> None:
    with open_folder(folder, NEVER) as database:
        writer = Writer(0, tally)
        for _ in range(100):
            writer.write(database)
        disk.fail(Kind.SYNC | Kind.WRITE, match="wal/")
        with pytest.raises(errors.IoError, match="Input/output error"):
            database.flush()
    for _ in range(3):
        with pytest.raises(errors.IoError, match="Input/output error"):
            reopen(folder)
    disk.heal()
    with reopen(folder) as database:
        assert check_writers(database, tally, [0]) == 100


def test_what_waits_for_a_sync_that_fails_is_told(folder: Path, crew: Crew, disk: Disk) -> None:
    """They may have happened: each is either whole or not there when it is opened again."""
    with open_folder(folder, "strict") as database:
        kv = KVStore(database)
        kv.put(RUN, "early", 1)
        workers = crew.start_many(4, put_and_tell, database)
        stopped = stop_coordinator(folder)
        crew.release(workers)
        wait_until(lambda: database.metrics().version == 5, "all wait")
        disk.fail(Kind.SYNC, count=1)
        os.kill(stopped.pid, signal.SIGCONT)
        for worker in workers:
            text = worker.receive()
            assert "sync of wal/0" in text
            assert "opened again" in text
        assert kv.list(RUN) == ["early"]
        assert database.metrics().durable_version == 1
        disk.heal()
        for worker in workers:
            worker.join()
    with reopen(folder) as database:
        assert set(KVStore(database).list(RUN)) <= {"early", *(f"key/{n}" for n in range(4))}
        assert KVStore(database).get(RUN, "early") == 1


def put_and_tell(channel: Channel, number: int, database: Database) -> None:
    """One put; says what the error said."""
    channel.ready()
    try:
        KVStore(database).put(RUN, f"key/{number}", number)
    except errors.IoError as error:
        channel.send(str(error))
    database.close()


@pytest.mark.parametrize("mode", LOGGED)
def test_a_successor_leaves_a_failed_log_alone(
    mode: str, folder: Path, tally: Tally, disk: Disk
) -> None:
    """It wrote and synced on, as if the kernel still had what it had dropped."""
    with open_folder(folder, NEVER if mode == "buffered" else mode) as database:
        writer = Writer(0, tally)
        for _ in range(20):
            writer.write(database)
        disk.fail(Kind.SYNC | Kind.WRITE, count=1, match="wal/")
        with pytest.raises(errors.IoError):
            database.flush() if mode != "strict" else writer.write(database)
        durable = database.metrics().durable_version
        for _ in range(2):
            wait_for_successor(folder, kill_coordinator(folder))
            with pytest.raises(errors.IoError, match="Input/output error"):
                writer.write(database)
            with pytest.raises(errors.IoError, match="Input/output error"):
                database.flush()
            assert database.metrics().durable_version == durable
        assert disk.acted == 1
    with reopen(folder) as database:
        check_writers(database, tally, [0])


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Kind.RESERVE, "spare"),
        (Kind.WRITE, "spare"),
        (Kind.SYNC, "spare"),
        (Kind.RENAME, "wal/0"),
    ],
    ids=["reserve", "header", "sync", "rename"],
)
def test_a_rotation_that_fails_makes_it_read_only_and_loses_nothing(
    kind: Kind, match: str, folder: Path, disk: Disk
) -> None:
    with open_folder(folder, "buffered") as database:
        kv = KVStore(database)
        disk.fail(kind, match=match)
        written = put_until_refused(kv, r"The creation of wal/0.* failed")
        disk.heal()
    with reopen(folder) as database:
        found = sorted(value[0] for _, value in KVStore(database).scan(RUN, "large/"))
        assert found == list(range(max(0, written - 19), written + 1))


# -- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.SYNC, Kind.RENAME])
def test_a_checkpoint_that_fails_is_an_error_and_the_log_goes_on(
    kind: Kind, folder: Path, tally: Tally, disk: Disk
) -> None:
    with open_folder(folder, "strict") as database:
        writer = Writer(0, tally)
        for _ in range(20):
            writer.write(database)
        database.checkpoint()
        kept = [path.name for path in (folder / "checkpoint").iterdir()]
        for _ in range(20):
            writer.write(database)
        disk.fail(kind, match="checkpoint")
        for _ in range(2):
            with pytest.raises(errors.IoError, match="checkpoint could not be written"):
                database.checkpoint()
            writer.write(database)
            assert [path.name for path in (folder / "checkpoint").iterdir()] == kept
    # The one at the last close failed, too.
    assert [path.name for path in (folder / "checkpoint").iterdir()] == kept
    disk.heal()
    with reopen(folder) as database:
        assert database.recovery is not None
        assert database.recovery.checkpoint_version == 20
        assert check_writers(database, tally, [0]) == 42
        database.checkpoint()
        assert database.metrics().checkpoint_version == 42


def test_a_checkpoint_that_fails_is_not_tried_again_at_each_tick(folder: Path, disk: Disk) -> None:
    """A full disk was filled and emptied again twenty times a second."""
    with open_folder(folder, "no_durability") as database:
        kv = KVStore(database)
        disk.fail(Kind.WRITE, match="checkpoint")
        for number in range(40):
            kv.put(RUN, f"large/{number % 4}", bytes([number]) * MIB)
        wait_until(lambda: disk.acted > 0, "the checkpoint that is due")
        before = [database.metrics().log_bytes, disk.acted]
        threading.Event().wait(0.5)  # ten ticks in which nothing may happen
        assert disk.acted <= before[1] + 1


# -- a full disk ------------------------------------------------------------------------------

needs_mounts = pytest.mark.skipif(
    private_shm.SKIP_VARIABLE in os.environ,
    reason=f"{private_shm.SKIP_VARIABLE} is set: no mount namespaces here",
)


def on_a_small_disk(
    channel: Channel, body: Callable[..., object], folder: Path, size: int, *arguments: object
) -> None:
    """Runs the body where the folder has that much room, and /dev/shm is its own."""
    folder.mkdir()
    private_shm.enter(512 * MIB)
    private_shm.mount_tmpfs(folder, size)
    body(folder / "database", *arguments)


@needs_mounts
@pytest.mark.parametrize("mode", LOGGED)
def test_a_full_disk_makes_it_read_only_until_there_is_room_again(
    mode: str, folder: Path, crew: Crew
) -> None:
    disk = folder.with_name("disk")
    crew.start(on_a_small_disk, fill_the_disk, disk, 20 * MIB, mode).join(60)


def fill_the_disk(folder: Path, mode: str) -> None:
    """Each value of 200 KiB replaces the one before."""
    with open_folder(folder, mode) as database:
        kv = KVStore(database)
        last = put_until_refused(kv, r"wal/.*No space left on device", 1, 200_000)
        assert kv.get(RUN, "large/0")[0] == last
        with pytest.raises(errors.IoError, match="No space left on device"):
            kv.put(RUN, "key", 1)
    private_shm.mount_tmpfs(folder.parent, 200 * MIB, again=True)
    with reopen(folder) as database:
        kv = KVStore(database)
        assert kv.get(RUN, "large/0")[0] in ((last, last + 1) if mode == "strict" else (last,))
        kv.put(RUN, "key", "room again")
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "key") == "room again"


@needs_mounts
def test_a_disk_that_is_full_at_opening_is_an_error_and_changes_nothing(
    folder: Path, crew: Crew
) -> None:
    crew.start(on_a_small_disk, open_on_a_full_disk, folder.with_name("disk"), 32 * MIB).join(60)


def open_on_a_full_disk(folder: Path) -> None:
    """Somebody else has taken the rest."""
    with open_folder(folder) as database:
        KVStore(database).put(RUN, "key", 1)
    eaten = folder.parent / "eaten"
    room = os.statvfs(folder)
    with eaten.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    for _ in range(2):
        with pytest.raises(errors.IoError, match="No space left"):
            reopen(folder)
        info = coordinator.read_info(folder)
        assert info is None or not info.is_alive()
    eaten.unlink()
    with reopen(folder) as database:
        assert KVStore(database).get(RUN, "key") == 1


# -- now and then, at random ------------------------------------------------------------------


def test_errors_at_random_file_operations_lose_nothing(
    folder: Path, tally: Tally, disk: Disk, rng: random.Random
) -> None:
    """Opened and written again and again, with one error somewhere each time."""
    writer = Writer(0, tally)
    for _ in range(12):
        code = rng.choice([errno.EIO, errno.ENOSPC, errno.EDQUOT])
        disk.fail(Kind(31), first=rng.randrange(1, 50), count=1, code=code)
        try:
            with reopen(folder) as database:
                value = KVStore(database).get(RUN, writer.key) or 0
                assert writer.acknowledged <= value <= writer.begun
                tally[0] = tally[1] = value
                for number in range(20):
                    writer.write(database)
                    if number % 7 == 0:
                        database.checkpoint()
        except (errors.IoError, errors.Unavailable):
            pass
        disk.heal()
        with reopen(folder) as database:
            check_writers(database, tally, [0])


def test_a_folder_that_is_taken_away_makes_it_read_only(folder: Path, tally: Tally) -> None:
    """Files that are open live on; the next one cannot be made."""
    with open_folder(folder, "buffered") as database:
        kv = KVStore(database)
        (folder / "wal").rename(folder.with_name("taken"))
        written = put_until_refused(kv, "No such file")
        folder.with_name("taken").rename(folder / "wal")
        assert info_of(folder).is_alive()
    with reopen(folder) as database:
        found = sorted(value[0] for _, value in KVStore(database).scan(RUN, "large/"))
        assert found == list(range(max(0, written - 19), written + 1))
