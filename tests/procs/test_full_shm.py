"""test_full_shm.py - a /dev/shm that is full: an error that names the remedy, never SIGBUS."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness import private_shm
from tests.harness.shared import FOLDER, check_structure
from tests.harness.workers import Channel, Crew, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
MIB = 1 << 20
SIZE = 12 * MIB
MAP_SIZE = 64 * MIB  # more than there is
VALUE = b"v" * 1000

pytestmark = pytest.mark.skipif(
    private_shm.SKIP_VARIABLE in os.environ,
    reason=f"{private_shm.SKIP_VARIABLE} is set: no mount namespaces here",
)


def in_a_small_shm(
    channel: Channel, body: Callable[..., object], size: int, inodes: int, *arguments: object
) -> None:
    """Runs ``body(*arguments)`` where /dev/shm has that much room."""
    private_shm.enter(size, inodes)
    body(*arguments)


@pytest.fixture
def confine(crew: Crew) -> Callable[..., None]:
    """Runs a function in a process with a small /dev/shm, to a good end."""

    def run(
        body: Callable[..., object], *arguments: object, size: int = SIZE, inodes: int = 0
    ) -> None:
        crew.start(in_a_small_shm, body, size, inodes, *arguments, method="fork").join(60)

    return run


Confine = Callable[..., None]


def free_bytes() -> int:
    """What /dev/shm still has."""
    room = os.statvfs(FOLDER)
    return room.f_bavail * room.f_frsize


def eat(leave: int) -> Path:
    """Fills /dev/shm with a file of somebody else, but for so many bytes."""
    path = FOLDER / "somebody-else"
    with path.open("ab") as file:
        while (size := free_bytes() - leave) > 0:
            # The keeper may take a page at the same time: then there is less, and less is taken.
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.tell(), size)
                break
    return path


def fill(kv: KVStore, prefix: str = "key/") -> int:
    """New keys until there is no room; how many."""
    written = 0
    while True:
        try:
            kv.put(RUN, f"{prefix}{written:06}", VALUE)
        except errors.StorageFull as error:
            check_message(error)
            return written
        written += 1


def check_message(error: errors.StorageFull) -> None:
    """It names what to do."""
    assert "map_size" in str(error)
    assert "--shm-size" in str(error)
    assert not error.is_retryable()


def expect_whole(kv: KVStore, written: int) -> None:
    """All that was acknowledged, and nothing else, is there and can be read."""
    assert kv.list(RUN, "key/") == [f"key/{number:06}" for number in range(written)]
    assert {value for _, value in kv.scan(RUN, "key/")} == {VALUE}
    assert kv.get(RUN, "key/000000") == VALUE
    assert kv.get(RUN, f"key/{written:06}") is None
    assert kv.get_many(RUN, ["key/000000", "nothing"]) == [VALUE, None]
    assert kv.history(RUN, "key/000000")[0].value == VALUE


# -- filled by the database itself ------------------------------------------------------------


@pytest.mark.parametrize("limit", ["/dev/shm", "map_size"])
def test_writes_stop_with_an_error_and_the_rest_goes_on(confine: Confine, limit: str) -> None:
    """The map may be larger than /dev/shm: it is sparse, and promises nothing."""
    confine(fill_and_use, MAP_SIZE if limit == "/dev/shm" else 6 * MIB)


def fill_and_use(map_size: int) -> None:
    with Database.ephemeral(map_size=map_size) as database:
        kv = KVStore(database)
        written = fill(kv)
        assert written > 3000
        expect_whole(kv, written)
        version = database.metrics().version
        writes: list[Callable[[], object]] = [
            lambda: kv.put(RUN, "key/000000", VALUE * 2),
            lambda: kv.mset(RUN, {f"more/{number}": VALUE for number in range(50)}),
            lambda: kv.put(RUN, "large", b"v" * MIB),
        ]
        for write in writes:
            with pytest.raises(errors.StorageFull):
                write()
        assert database.metrics().version == version
        expect_whole(kv, written)
        check_structure(database)
        delete_and_go_on(kv, written)
        check_structure(database)


def delete_and_go_on(kv: KVStore, written: int) -> None:
    """Deletes make room, and that is used again."""
    for number in range(0, written, 2):
        assert kv.delete(RUN, f"key/{number:06}")
    assert kv.mdelete(RUN, [f"key/{number:06}" for number in range(1, 101, 2)]) == 50
    for number in range(written // 4):
        kv.put(RUN, f"again/{number:06}", VALUE)
    assert len(kv.list(RUN, "again/")) == written // 4
    assert {value for _, value in kv.scan(RUN)} == {VALUE}


def test_overwriting_goes_on_in_a_full_shm_where_history_may_go(confine: Confine) -> None:
    confine(overwrite_in_a_full_shm)


def overwrite_in_a_full_shm() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        for number in range(30000):
            kv.put(RUN, f"key/{number % 100:02}", VALUE)
        assert database.metrics().pressure_trimmed_versions > 0
        assert len(kv.list(RUN)) == 100


def test_a_batch_that_does_not_fit_leaves_nothing(confine: Confine) -> None:
    confine(batch_too_large)


def batch_too_large() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        kv.put(RUN, "key/000000", VALUE)
        for _ in range(5):
            for count in (12_000, 20_000, 50_000):
                with pytest.raises(errors.StorageFull):
                    kv.mset(RUN, {f"batch/{number:06}": VALUE for number in range(count)})
            assert kv.list(RUN) == ["key/000000"]
            assert database.metrics().version == 1
        kv.mset(RUN, {f"batch/{number:06}": VALUE for number in range(1000)})
        assert len(kv.list(RUN)) == 1001
        check_structure(database)


# -- filled by somebody else ------------------------------------------------------------------


def test_what_somebody_else_leaves_is_enough_to_read_and_delete(confine: Confine) -> None:
    confine(squeezed_by_others)


def squeezed_by_others() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        for number in range(1000):
            kv.put(RUN, f"key/{number:06}", VALUE)
        eaten = eat(0)
        assert free_bytes() == 0
        more = fill(kv, "key/1")
        expect_whole_prefix(kv, 1000, more)
        for number in range(500):
            assert kv.delete(RUN, f"key/{number:06}")
        with database.snapshot() as snapshot:
            assert len(list(snapshot.scan_prefix(RUN))) == 500 + more
        with database.begin(RUN) as txn:
            txn.kv_delete("key/000999")
        eaten.unlink()
        for number in range(3000):
            kv.put(RUN, f"late/{number:06}", VALUE)


def expect_whole_prefix(kv: KVStore, first: int, more: int) -> None:
    """Everything written before and after somebody took the room."""
    assert len(kv.list(RUN, "key/0")) == first
    assert len(kv.list(RUN, "key/1")) == more
    assert {value for _, value in kv.scan(RUN)} == {VALUE}


def test_threads_and_processes_that_come_when_it_is_full_get_an_error_or_work(
    confine: Confine,
) -> None:
    confine(latecomers)


def latecomers() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        kv.put(RUN, "key/000000", VALUE)
        eat(0)
        written = 1 + fill(kv, "other/")
        outcomes: list[object] = []

        def read() -> None:
            try:
                outcomes.append(kv.get(RUN, "key/000000"))
            except errors.Error as error:
                outcomes.append(type(error))

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        pid = os.fork()
        if pid == 0:
            read()
            os._exit(outcomes[-1] not in (VALUE, errors.StorageFull))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert outcomes[0] in (VALUE, errors.StorageFull)
        assert len(kv.list(RUN)) == written
        assert database.metrics().clients <= 2


def test_a_full_shm_lets_a_new_thread_read(confine: Confine) -> None:
    confine(a_new_thread_reads)


def a_new_thread_reads() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        kv.put(RUN, "key/000000", VALUE)
        eat(0)
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(kv.get(RUN, "key/000000")))
        thread.start()
        thread.join()
        assert found == [VALUE]


@pytest.mark.parametrize("comer", ["thread", "fork"])
def test_a_full_shm_lets_a_newcomer_delete(confine: Confine, comer: str) -> None:
    """One that never wrote has no room yet in which to lay a request out."""
    confine(a_newcomer_deletes, comer)


def a_newcomer_deletes(comer: str) -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        kv.mset(RUN, {f"key/{number}": VALUE for number in range(100)})
        eat(0)
        if comer == "thread":
            thread = threading.Thread(target=kv.mdelete, args=(RUN, kv.list(RUN)))
            thread.start()
            thread.join()
        else:
            pid = os.fork()
            if pid == 0:
                kv.mdelete(RUN, kv.list(RUN))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert kv.list(RUN) == []


def test_large_requests_find_no_room_for_themselves(confine: Confine) -> None:
    """A write set is laid out in shared memory before it is committed."""
    confine(large_requests)


def large_requests() -> None:
    with Database.ephemeral(map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        kv.put(RUN, "key/000000", VALUE)
        eaten = eat(64 << 10)
        for _ in range(3):
            with pytest.raises(errors.StorageFull):
                kv.put(RUN, "large", b"v" * (2 * MIB))
            assert kv.put(RUN, "key/000000", VALUE) > 0
        eaten.unlink()
        kv.put(RUN, "large", b"v" * (2 * MIB))
        assert len(kv.get(RUN, "large")) == 2 * MIB


# -- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ephemeral", "folder"])
@pytest.mark.parametrize("room", [0, 4096, 100 << 10, 400 << 10, 800 << 10])
def test_opening_without_room_is_an_error_that_leaves_nothing(
    confine: Confine, folder: Path, kind: str, room: int
) -> None:
    confine(open_without_room, folder, kind, room)


def open_without_room(folder: Path, kind: str, room: int) -> None:
    eaten = eat(room)

    def open_one() -> Database:
        if kind == "ephemeral":
            return Database.ephemeral()
        return Database.open(folder, MEMORY)

    for _ in range(2):
        with pytest.raises(errors.StorageFull, match="--shm-size"):
            open_one()
        assert os.listdir(FOLDER) == [eaten.name]
        assert coordinator.read_info(folder) is None
    eaten.unlink()
    with open_one() as database:
        KVStore(database).put(RUN, "key", 1)


@pytest.mark.parametrize("kind", ["ephemeral", "folder"])
@pytest.mark.parametrize("inodes", [1, 2])
def test_opening_where_no_file_can_be_made_is_an_error_that_leaves_nothing(
    confine: Confine, folder: Path, kind: str, inodes: int
) -> None:
    """The root of the tmpfs is an inode; one more is enough for the control segment alone."""
    confine(open_without_inodes, folder, kind, inodes=inodes)


def open_without_inodes(folder: Path, kind: str) -> None:
    def open_one() -> Database:
        if kind == "ephemeral":
            return Database.ephemeral(map_size=MIB)
        return Database.open(folder, MEMORY, map_size=MIB)

    for _ in range(2):
        with pytest.raises(errors.StorageFull, match="--shm-size"):
            open_one()
        assert os.listdir(FOLDER) == []


def test_the_default_map_size_is_half_of_shm(confine: Confine) -> None:
    confine(default_size)


def default_size() -> None:
    with Database.ephemeral() as database:
        assert database.metrics().map_size_bytes == SIZE // 2
        written = fill(KVStore(database))
        assert written > 3000
        with Database.ephemeral(map_size=MIB) as another:
            KVStore(another).put(RUN, "key", 1)


# -- another container ------------------------------------------------------------------------


def test_a_container_that_shares_shm_joins_nothing_and_removes_nothing(
    confine: Confine, folder: Path
) -> None:
    """There the pids of this one name other processes or none: everybody here would look dead."""
    confine(share_with_a_container, folder)


def test_a_folder_that_another_container_uses_is_refused_without_its_shm(
    confine: Confine, folder: Path
) -> None:
    """The lock of the folder is all that can be seen of the other one. Waits five seconds."""
    confine(share_the_folder_alone, folder)


def share_the_folder_alone(folder: Path) -> None:
    with Database.open(folder, MEMORY, map_size=MIB) as database:
        KVStore(database).put(RUN, "key", 1)
        private_shm.enter_pid_namespace()
        pid = os.fork()
        if pid == 0:
            in_another_container(open_without_shm, folder)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert KVStore(database).get(RUN, "key") == 1
        info = coordinator.read_info(folder)
        assert info is not None
        assert info.is_alive()


def open_without_shm(folder: Path) -> None:
    private_shm.enter(SIZE)
    with pytest.raises(errors.Unavailable, match="another container"):
        Database.open(folder, MEMORY)


def share_with_a_container(folder: Path) -> None:
    with (
        Database.ephemeral(map_size=MIB) as database,
        Database.open(folder, MEMORY, map_size=MIB) as other,
    ):
        names = sorted(os.listdir(FOLDER))
        assert len(names) == 4
        KVStore(database).put(RUN, "key", 1)
        KVStore(other).put(RUN, "key", 2)
        private_shm.enter_pid_namespace()
        pid = os.fork()
        if pid == 0:
            in_another_container(join_and_clear, database, folder)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sorted(os.listdir(FOLDER)) == names
        assert KVStore(database).get(RUN, "key") == 1
        assert KVStore(other).get(RUN, "key") == 2


def join_and_clear(database: Database, folder: Path) -> None:
    """Tries to join, and makes a database of its own, which clears what is left over."""
    with pytest.raises(errors.Unavailable, match="PID namespace"):
        database._segments.attach()
    with pytest.raises(errors.Unavailable, match="PID namespace"):
        Database.open(folder, MEMORY)
    with Database.ephemeral(map_size=MIB) as mine:
        KVStore(mine).put(RUN, "key", 3)


def in_another_container(body: Callable[..., object], *arguments: object) -> None:
    """The first process of a namespace of pids does this and ends."""
    code = 1
    try:
        private_shm.mount_proc()
        assert os.getpid() == 1
        body(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


# -- several processes ------------------------------------------------------------------------


def test_several_writers_fill_it_and_lose_nothing(
    confine: Confine, folder: Path, rng: random.Random
) -> None:
    confine(fill_together, folder, rng.getrandbits(32))


def fill_together(folder: Path, seed: int) -> None:
    crew = Crew("fork")
    try:
        with Database.open(folder, MEMORY, map_size=MAP_SIZE) as database:
            kv = KVStore(database)
            kv.list(RUN)
            writers = crew.start_many(3, fill_and_delete, database, seed)
            crew.release()
            for number, writer in enumerate(writers):
                expected = writer.receive()
                assert dict(kv.scan(RUN, f"by/{number}/")) == expected
                writer.send("end")
                writer.join()
            check_structure(database)
    finally:
        crew.disband()


def fill_and_delete(channel: Channel, number: int, database: Database, seed: int) -> None:
    """Puts and deletes at random, mostly in a full store; tells what should be there."""
    rng = random.Random(seed + number)
    kv = KVStore(database)
    model: dict[str, bytes] = {}
    refused = 0
    channel.ready()
    while refused < 30:
        key = f"by/{number}/{rng.randrange(10**9)}"
        value = VALUE[: rng.randrange(1, 1000)]
        try:
            kv.put(RUN, key, value)
            model[key] = value
        except errors.StorageFull:
            refused += 1
            for victim in rng.sample(sorted(model), min(20, len(model))):
                assert kv.delete(RUN, victim)
                del model[victim]
    channel.send(model)
    channel.receive()


@pytest.mark.crash
def test_a_worker_killed_in_a_full_shm_leaves_a_usable_store(
    confine: Confine, folder: Path, rng: random.Random
) -> None:
    confine(kill_in_a_full_shm, folder, rng.getrandbits(32))


def kill_in_a_full_shm(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    crew = Crew("fork")
    try:
        with Database.ephemeral(map_size=MAP_SIZE) as database:
            kv = KVStore(database)
            written = fill(kv)
            for _ in range(8):
                worker = crew.start(try_to_write, database)
                crew.release([worker])
                crew.watch([worker], rng.uniform(0.0, 0.05))
                worker.kill()
                expect_whole(kv, written)
                assert len(set(map(str, kv.get_many(RUN, ["pair/a", "pair/b"])))) == 1
            check_structure(database)
            delete_and_go_on(kv, written)
            wait_until(lambda: database.metrics().handles == 1, "the dead were cleared", 2)
    finally:
        crew.disband()


def try_to_write(channel: Channel, database: Database) -> None:
    """Commits that are refused, and deletes that are not, without an end."""
    kv = KVStore(database)
    channel.ready()
    writes: list[Callable[[], object]] = [
        lambda: kv.mset(RUN, {"pair/a": VALUE * 3, "pair/b": VALUE * 3}),
        lambda: kv.put(RUN, "large", VALUE * 300),
        lambda: kv.mdelete(RUN, ["pair/a", "pair/b", "large"]),
    ]
    while True:
        for write in writes:
            try:
                write()
            except errors.StorageFull:
                continue
