"""test_database.py - opening, handles, runs and figures; and everything that open refuses."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shm_engine import (
    Database,
    DatabaseMetrics,
    Durability,
    KVStore,
    RetentionPolicy,
    RunId,
    coordinator,
    database,
    errors,
)
from tests.harness.labels import label
from tests.harness.refusal import assert_usable, contents, refused
from tests.harness.shared import SequencerView, segment_names
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
MIB = 1024 * 1024
NOBODY = 65534
IN_MEMORY = Durability.in_memory()


class Name(str):
    __slots__ = ()


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral() as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a database may be; after the test nobody has it open."""
    path = tmp_path / "database"
    yield path
    for handle in list(database._open_handles):
        if handle.path == path:
            handle.close()
    info = coordinator.read_info(path)
    assert info is None or coordinator.wait_for_end(info.identity, 10)


def second_handle(db: Database) -> Database:
    handle: Database = pickle.loads(pickle.dumps(db))
    return handle


# -- opening ----------------------------------------------------------------------------------


def test_an_ephemeral_database_has_no_folder_and_keeps_nothing_on_disk(db: Database) -> None:
    assert db.is_ephemeral
    assert db.path is None
    assert db.durability == IN_MEMORY
    assert not db.closed
    assert repr(db) == "<Database ephemeral>"
    assert_usable(db)


def test_databases_of_one_process_are_apart(db: Database) -> None:
    with Database.ephemeral() as other:
        KVStore(db).put(RUN, "a", 1)
        assert KVStore(other).list(RUN) == []


def test_segments_are_gone_after_the_last_close() -> None:
    db = Database.ephemeral()
    second = second_handle(db)
    paths = [Path("/dev/shm") / name for name in segment_names(db)]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    db.close()
    assert all(path.exists() for path in paths)
    assert_usable(second)
    second.close()
    assert not any(path.exists() for path in paths)


def test_a_folder_is_made_joined_and_adopted(folder: Path) -> None:
    place = folder / "deep" / "down"
    with Database.open(str(place), IN_MEMORY, map_size=4 * MIB) as db:
        assert place.stat().st_mode & 0o777 == 0o700
        assert (db.path, db.is_ephemeral) == (place, False)
        KVStore(db).put(RUN, "a", 1)
        joining: list[Callable[[], Database]] = [
            lambda: Database.open(place),
            lambda: Database.open(place, IN_MEMORY),
            lambda: Database.open_with_mode(place, "InMemory"),
            lambda: Database.open_with_mode(str(place) + "/", IN_MEMORY),
            lambda: Database.open(place / ".." / "down", map_size=64 * MIB, max_clients=4),
        ]
        for join in joining:
            with join() as second:
                assert KVStore(second).get(RUN, "a") == 1
                assert second.durability == IN_MEMORY
                assert second.metrics().map_size_bytes == 4 * MIB
        assert_usable(db)


def test_joining_with_another_mode_is_refused_and_harms_nobody(folder: Path) -> None:
    with Database.open(folder, IN_MEMORY) as db:
        KVStore(db).put(RUN, "a", 1)
        handles = db.metrics().handles
        for mode in (Durability.strict(), Durability.buffered(), Durability.no_durability()):
            for call in (Database.open, Database.open_with_mode):
                with refused(db, errors.InvalidOperation, "open as in_memory"):
                    call(folder, mode)
        assert db.metrics().handles == handles
        with Database.open(folder) as second:
            assert KVStore(second).get(RUN, "a") == 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, Durability.strict()),
        ("strict", Durability.strict()),
        ("NoDurability", Durability.no_durability()),
        ("buffered", Durability.buffered()),
        (Durability.buffered(7, 9), Durability.buffered(7, 9)),
    ],
    ids=label,
)
def test_a_mode_with_a_log_keeps_its_files_in_the_folder(
    mode: Any, expected: Durability, folder: Path
) -> None:
    calls: list[Callable[[], Database]] = [lambda: Database.open(folder, mode, map_size=4 * MIB)]
    if mode is not None:
        calls.append(lambda: Database.open_with_mode(folder, mode, map_size=4 * MIB))
    for turn, call in enumerate(calls):
        with call() as db:
            assert db.durability == expected
            assert KVStore(db).incr(RUN, "turn") == turn + 1
            assert_usable(db)
        assert {path.name for path in folder.iterdir()} >= {"wal", "checkpoint"}


@pytest.mark.parametrize("mode", [5, True, ["strict"], b"strict", object()], ids=label)
def test_a_mode_is_a_durability_or_its_name(mode: Any, folder: Path) -> None:
    unknown: Any = "paper"
    for call in (Database.open, Database.open_with_mode):
        with pytest.raises(errors.WrongType, match="Durability"):
            call(folder, mode)
        with pytest.raises(errors.ConstraintViolation, match="unknown"):
            call(folder, unknown)
    assert not folder.exists()


# -- what open refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [5, None, b"/tmp/x", ["x"], True, object(), 1.5], ids=label)
def test_a_path_is_a_str_or_a_path(path: Any) -> None:
    with pytest.raises(errors.WrongType, match="str"):
        Database.open(path, IN_MEMORY)


@pytest.mark.parametrize(
    "path",
    ["", "\0", "a\0b", "\ud800", "~no such user/x", "x" * 300, "/proc/nothing/here", "/dev/null/x"],
    ids=ascii,
)
def test_a_path_that_cannot_be_is_refused_by_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.InvalidOperation) as caught:
        Database.open(path, IN_MEMORY)
    assert caught.value.message.isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file_is_refused_and_the_file_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere" / "at all")
    for path in (file, file / "below", dangling, Path("/dev/null")):
        with pytest.raises(errors.InvalidOperation, match="folder"):
            Database.open(path, IN_MEMORY)
    assert file.read_text() == "precious"


@contextmanager
def unprivileged_folder() -> Iterator[tuple[Path, Callable[[Callable[[], None]], None]]]:
    """A folder, and how to call as its owner, for whom a mode of 0500 means what it says."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        if os.geteuid() != 0:
            yield path, lambda work: work()
        else:
            os.chown(path, NOBODY, NOBODY)
            yield path, as_nobody
        path.chmod(0o700)


def as_nobody(work: Callable[[], None]) -> None:
    """Calls it in a child that has given its privileges up."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            work()
            code = 0
        except BaseException as failure:
            os.write(2, f"as nobody: {failure!r}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("mode", [0o500, 0o600, 0o400, 0o000], ids=oct)
def test_a_folder_that_cannot_be_written_is_refused(mode: int) -> None:
    with unprivileged_folder() as (place, as_owner):

        def refuse() -> None:
            for path in (place, place / "below"):
                with pytest.raises(errors.InvalidOperation) as caught:
                    Database.open(path, IN_MEMORY)
                assert "cannot be" in caught.value.message

        place.chmod(mode)
        as_owner(refuse)
        place.chmod(0o700)
        assert list(place.iterdir()) == []


def test_a_folder_of_another_user_is_refused_by_both_names(tmp_path: Path) -> None:
    path = Path("/")
    if os.geteuid() == 0:
        path = tmp_path
        os.chown(path, NOBODY, NOBODY)
    with pytest.raises(errors.InvalidOperation) as caught:
        Database.open(path, IN_MEMORY)
    assert f"belongs to user {path.stat().st_uid}" in caught.value.message
    assert str(os.geteuid()) in caught.value.message
    assert not (path / coordinator.LOCK_FILE).exists()


def ascii_id(value: Any) -> str:
    """A short name for a parameter, huge ints included."""
    if isinstance(value, dict):
        [(name, option)] = value.items()
        size = f"{option.bit_length()} bits" if isinstance(option, int) else ascii(option)
        return f"{name} {size} {option < 0}" if isinstance(option, int) else f"{name} {size}"
    return str(value.__name__)


OPTIONS: list[tuple[dict[str, Any], type[errors.Error]]] = [
    *[({"map_size": size}, errors.ConstraintViolation) for size in (0, -1, MIB - 1, 2**47)],
    *[({"map_size": size}, errors.ConstraintViolation) for size in (2**64, 10**5000)],
    *[({"max_clients": n}, errors.ConstraintViolation) for n in (0, -1, 1, 4097, 2**64)],
    *[({"map_size": size}, errors.WrongType) for size in ("1", 1.0, True, [1])],
    *[({"max_clients": n}, errors.WrongType) for n in ("1", 2.0, True, None)],
]


@pytest.mark.parametrize(("options", "kind"), OPTIONS, ids=lambda value: ascii_id(value))
def test_sizes_have_a_kind_and_a_range(
    options: dict[str, Any], kind: type[errors.Error], folder: Path
) -> None:
    [name] = options
    for call in (Database.ephemeral, lambda **given: Database.open(folder, IN_MEMORY, **given)):
        with pytest.raises(kind, match=name):
            call(**options)
    assert not folder.exists()


@pytest.mark.parametrize(
    "options", [{"map_size": MIB}, {"map_size": 2**40}, {"max_clients": 2}, {"max_clients": 4096}]
)
def test_sizes_at_the_ends_of_their_range_are_fine(options: dict[str, int]) -> None:
    with Database.ephemeral(**options) as db:
        assert_usable(db)


def test_a_database_is_made_by_open_and_by_nothing_else() -> None:
    with pytest.raises(errors.InvalidOperation, match=r"Database\.open"):
        Database()


# -- handles ----------------------------------------------------------------------------------

USES: dict[str, Callable[[Database, KVStore], Any]] = {
    "begin_run": lambda db, kv: db.begin_run(),
    "end_run": lambda db, kv: db.end_run(RUN),
    "set_retention": lambda db, kv: db.set_retention(RUN, RetentionPolicy.KeepAll),
    "retention": lambda db, kv: db.retention(RUN),
    "begin": lambda db, kv: db.begin(RUN),
    "transaction": lambda db, kv: db.transaction(RUN, lambda txn: None),
    "with_retry": lambda db, kv: db.transaction_with_retry(RUN, lambda txn: None),
    "snapshot": lambda db, kv: db.snapshot(),
    "flush": lambda db, kv: db.flush(),
    "checkpoint": lambda db, kv: db.checkpoint(),
    "metrics": lambda db, kv: db.metrics(),
    "durability": lambda db, kv: db.durability,
    "engine": lambda db, kv: db.engine,
    "enter": lambda db, kv: db.__enter__(),
    "pickle": lambda db, kv: pickle.dumps(db),
    "KVStore": lambda db, kv: KVStore(db),
    "get": lambda db, kv: kv.get(RUN, "a"),
    "get_versioned": lambda db, kv: kv.get_versioned(RUN, "a"),
    "put": lambda db, kv: kv.put(RUN, "a", 1),
    "put_with_ttl": lambda db, kv: kv.put_with_ttl(RUN, "a", 1, 60),
    "ttl": lambda db, kv: kv.ttl(RUN, "a"),
    "delete": lambda db, kv: kv.delete(RUN, "a"),
    "exists": lambda db, kv: kv.exists(RUN, "a"),
    "incr": lambda db, kv: kv.incr(RUN, "a"),
    "cas": lambda db, kv: kv.cas(RUN, "a", None, 1),
    "cas 0": lambda db, kv: kv.cas(RUN, "a", 0, 1),
    "get_many": lambda db, kv: kv.get_many(RUN, []),
    "get_many_map": lambda db, kv: kv.get_many_map(RUN, ["a"]),
    "mset": lambda db, kv: kv.mset(RUN, {}),
    "mdelete": lambda db, kv: kv.mdelete(RUN, []),
    "list": lambda db, kv: kv.list(RUN),
    "list_with_values": lambda db, kv: kv.list_with_values(RUN),
    "scan": lambda db, kv: kv.scan(RUN, limit=0),
    "get_at": lambda db, kv: kv.get_at(RUN, "a", 1),
    "history": lambda db, kv: kv.history(RUN, "a"),
    "kv transaction": lambda db, kv: kv.transaction(RUN, lambda txn: None),
    "sweep": lambda db, kv: db._engine.sweep(),
}
TRANSACTION_USES: dict[str, Callable[[Any], Any]] = {
    "kv_get": lambda txn: txn.kv_get("b"),
    "kv_put": lambda txn: txn.kv_put("b", 1),
    "kv_delete": lambda txn: txn.kv_delete("b"),
    "kv_incr": lambda txn: txn.kv_incr("b"),
    "kv_list": lambda txn: txn.kv_list(),
    "commit": lambda txn: txn.commit(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_handle_refuses_every_use(use: Callable[[Database, KVStore], Any]) -> None:
    with Database.ephemeral() as other:
        db = second_handle(other)
        kv = KVStore(db)
        kv.put(RUN, "a", 1)
        db.close()
        with refused(other, errors.Closed, "closed"):
            use(db, kv)
        db.close()


@pytest.mark.parametrize("use", TRANSACTION_USES.values(), ids=TRANSACTION_USES)
def test_a_transaction_of_a_closed_handle_is_refused(use: Callable[[Any], Any]) -> None:
    with Database.ephemeral() as other:
        db = second_handle(other)
        txn = db.begin(RUN)
        txn.kv_put("a", 1)
        db.close()
        with refused(other, errors.Closed, "closed"):
            use(txn)
        txn.rollback()
        assert KVStore(other).list(RUN) == []


def test_a_closed_handle_still_says_what_it_was(folder: Path) -> None:
    for db in (Database.ephemeral(), Database.open(folder, IN_MEMORY)):
        with db:
            where = db.path
        for _ in range(3):
            db.close()
        assert db.closed
        assert (db.path, db.is_ephemeral) == (where, where is None)
        assert "closed" in repr(db)


def test_closing_one_handle_leaves_the_others_open(db: Database) -> None:
    handles = [second_handle(db) for _ in range(5)]
    for index, handle in enumerate(handles):
        KVStore(handle).put(RUN, "a", index)
        handle.close()
        assert KVStore(db).get(RUN, "a") == index
    assert db.metrics().handles == 1


def test_a_pickled_handle_of_a_database_that_is_gone_is_closed(folder: Path) -> None:
    for db in (Database.ephemeral(), Database.open(folder, IN_MEMORY)):
        data = pickle.dumps(db)
        db.close()
        with pytest.raises(errors.Closed):
            pickle.loads(data)


def test_eight_threads_may_close_one_handle_at_once(folder: Path) -> None:
    for db in (Database.ephemeral(), Database.open(folder, IN_MEMORY)):
        KVStore(db).put(RUN, "a", 1)
        in_threads(8, lambda number, db=db: db.close())  # type: ignore[misc]
        assert db.closed


def churn(kv: KVStore, number: int, warm: threading.Semaphore) -> int:
    """Reads and writes until the handle is closed; how many increments were acknowledged."""
    done = 0
    try:
        while True:
            kv.incr(RUN, f"n{number}")
            done += 1
            kv.mset(RUN, {f"k{number}": [done] * 50, f"large{number}": "x" * 100_000})
            kv.scan(RUN)
            if done == 3:
                warm.release()
    except errors.Closed:
        return done


def test_closing_under_working_threads_gives_them_closed_and_nothing_worse() -> None:
    for _ in range(10):
        with Database.ephemeral() as other:
            db = second_handle(other)
            kv = KVStore(db)
            warm = threading.Semaphore(0)
            with ThreadPoolExecutor(7) as pool:
                working = [pool.submit(churn, kv, number, warm) for number in range(7)]
                for _ in working:
                    warm.acquire()
                db.close()
            found = [KVStore(other).get(RUN, f"n{number}") for number in range(7)]
            assert found == [future.result() for future in working]


def test_a_signal_handler_may_close_the_handle_in_the_middle_of_a_commit() -> None:
    """The mapping was taken from under the commit that the handler interrupted."""
    with Database.ephemeral() as other:
        db = second_handle(other)
        kv = KVStore(db)
        kv.put(RUN, "a", 1)
        view = SequencerView(other)
        held, closed = threading.Event(), threading.Event()

        def hold() -> None:
            view.take()
            held.set()
            closed.wait(30)
            view.give_back()

        def on_alarm(number: int, frame: Any) -> None:
            db.close()
            closed.set()

        holder = threading.Thread(target=hold)
        before = signal.signal(signal.SIGALRM, on_alarm)
        holder.start()
        held.wait()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            kv.put(RUN, "a", 2)
        except errors.Closed:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            closed.set()
            holder.join()
        assert db.closed
        assert KVStore(other).get(RUN, "a") in (1, 2)
        assert_usable(other)


def test_a_forgotten_handle_gives_its_place_back(db: Database) -> None:
    second_handle(db)
    assert_usable(db)


# -- threads ----------------------------------------------------------------------------------


def test_increments_of_eight_threads_on_one_handle_sum_exactly(db: Database) -> None:
    kv = KVStore(db)
    versions = in_threads(8, lambda number: [kv.incr(RUN, "n") for _ in range(500)])
    assert kv.get(RUN, "n") == 4000
    assert sorted(number for own in versions for number in own) == list(range(1, 4001))


def test_eight_threads_do_everything_at_once(db: Database) -> None:
    kv = KVStore(db)

    def work(number: int) -> None:
        run = db.begin_run()
        for i in range(60):
            kv.mset(run, {f"k{j}": [number, i, j] for j in range(20)})
            with db.snapshot() as snapshot:
                kv.put(run, "k3", "later")
                assert len({value[1] for _, value in snapshot.scan_prefix(run, "k")}) == 1
            assert len(kv.scan(run, "k")) == 20
            kv.mdelete(run, [f"k{j}" for j in range(i % 20)])
            assert kv.get(run, "k19") == [number, i, 19]
            db._engine.sweep() if i % 20 == 0 else db.metrics()
        db.end_run(run)

    in_threads(8, work)
    assert_usable(db)


def test_a_thread_too_many_is_unavailable_until_another_one_ends() -> None:
    with Database.ephemeral(max_clients=6) as db:
        kv = KVStore(db)
        kv.put(RUN, "a", 1)
        release = threading.Event()
        refusals: list[errors.Unavailable] = []

        def use(ready: threading.Event) -> None:
            try:
                kv.incr(RUN, "n")
            except errors.Unavailable as error:
                refusals.append(error)
            ready.set()
            release.wait()

        threads: list[threading.Thread] = []
        while not refusals:
            ready = threading.Event()
            threads.append(threading.Thread(target=use, args=(ready,)))
            threads[-1].start()
            ready.wait()
            assert len(threads) <= 6
        assert "6 client slots" in refusals[0].message
        assert refusals[0].is_retryable()
        assert kv.get(RUN, "n") == len(threads) - 1 >= 3
        with pytest.raises(errors.Unavailable):
            second_handle(db)
        release.set()
        for thread in threads:
            thread.join()
        assert in_threads(3, lambda number: kv.get(RUN, "a")) == [1, 1, 1]
        second_handle(db).close()
        assert_usable(db)


# -- runs -------------------------------------------------------------------------------------


def test_a_run_begins_active_and_ends_once(db: Database) -> None:
    kv = KVStore(db)
    given = RunId.new()
    assert db.begin_run(given) == given
    assert db.begin_run(str(RunId.new())) != db.begin_run()
    for run in (given, db.begin_run()):
        kv.put(run, "a", 1)
        with refused(db, errors.InvalidOperation, "exists already", runs=(run,)):
            db.begin_run(run)
        db.end_run(run)
        with refused(db, errors.InvalidStatusTransition, "Completed -> Completed", runs=(run,)):
            db.end_run(run)
        with refused(db, errors.InvalidOperation, "exists already", runs=(run,)):
            db.begin_run(run)
        assert kv.list_with_values(run) == [("a", 1)]


def test_an_unknown_run_cannot_be_ended_but_written_to(db: Database) -> None:
    kv = KVStore(db)
    run = RunId.new()
    kv.put(run, "a", 1)
    db.set_retention(run, RetentionPolicy.KeepLast(2))
    with refused(db, errors.NotFound, "never begun", runs=(run,)):
        db.end_run(run)
    assert db.begin_run(run) == run
    assert db.retention(run) == RetentionPolicy.KeepLast(2)
    assert kv.get(run, "a") == 1


WRITES: dict[str, Callable[[KVStore, RunId], Any]] = {
    "put": lambda kv, run: kv.put(run, "a", 2),
    "put new": lambda kv, run: kv.put(run, "new", 2),
    "put_with_ttl": lambda kv, run: kv.put_with_ttl(run, "a", 2, 60),
    "delete": lambda kv, run: kv.delete(run, "a"),
    "delete missing": lambda kv, run: kv.delete(run, "missing"),
    "incr": lambda kv, run: kv.incr(run, "n"),
    "cas": lambda kv, run: kv.cas(run, "new", None, 2),
    "mset": lambda kv, run: kv.mset(run, {"a": 2, "b": 2}),
    "mdelete": lambda kv, run: kv.mdelete(run, ["a"]),
    "transaction": lambda kv, run: kv.transaction(run, lambda txn: txn.kv_put("a", 2)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_ended_run_refuses_every_write_and_reads_go_on(
    write: Callable[[KVStore, RunId], Any], db: Database
) -> None:
    kv = KVStore(db)
    run, other = db.begin_run(), db.begin_run()
    version = kv.put(run, "a", 1)
    db.end_run(run)
    with refused(db, errors.RunError, str(run), runs=(run,)) as caught:
        write(kv, run)
    assert isinstance(caught.value, errors.RunError)
    assert (caught.value.run, caught.value.state) == (str(run), "Completed")
    assert not caught.value.is_retryable()
    assert kv.get(run, "a") == kv.get_at(run, "a", version).value == 1
    assert kv.list_with_values(run) == [("a", 1)]
    assert len(kv.history(run, "a")) == 1
    write(kv, other)
    write(kv, RunId.new())


def test_a_run_ends_for_every_handle_and_thread_at_once(db: Database) -> None:
    run = db.begin_run()
    with second_handle(db) as second:
        kv = KVStore(second)
        kv.put(run, "a", 1)
        in_threads(4, lambda number: kv.put(run, f"k{number}", 1))
        db.end_run(run)
        with refused(db, errors.RunError, runs=(run,)):
            kv.put(run, "a", 2)


def test_only_one_of_eight_threads_begins_and_ends_a_run(db: Database) -> None:
    for _ in range(20):
        run = RunId.new()

        def outcome(call: Callable[[RunId], Any], run: RunId = run) -> str:
            try:
                call(run)
            except errors.InvalidOperation as error:
                return error.code
            return "done"

        begun = in_threads(8, lambda number: outcome(db.begin_run))
        assert sorted(begun) == ["InvalidOperation"] * 7 + ["done"]
        ended = in_threads(8, lambda number: outcome(db.end_run))
        assert sorted(ended) == ["InvalidStatusTransition"] * 7 + ["done"]


def test_retention_is_kept_per_run_and_survives_the_end_of_the_run(db: Database) -> None:
    run, other = db.begin_run(), db.begin_run()
    assert db.retention(run) == db.retention(RunId.new()) == RetentionPolicy.KeepAll
    for policy in (
        RetentionPolicy.KeepLast(3),
        RetentionPolicy.KeepFor(timedelta(hours=1)),
        RetentionPolicy.KeepAll,
        RetentionPolicy.KeepLast(1),
    ):
        db.set_retention(run, policy)
        assert db.retention(run) == policy
    db.end_run(run)
    db.set_retention(run, RetentionPolicy.KeepLast(2))
    assert db.retention(run) == RetentionPolicy.KeepLast(2)
    assert db.retention(other) == RetentionPolicy.KeepAll
    with refused(db, errors.RunError, runs=(run,)):
        KVStore(db).put(run, "a", 1)


@pytest.mark.parametrize("policy", ["KeepAll", None, 5, RetentionPolicy.KeepLast], ids=label)
def test_a_retention_is_a_policy(policy: Any, db: Database) -> None:
    with refused(db, errors.WrongType, "RetentionPolicy"):
        db.set_retention(RUN, policy)


# -- figures ----------------------------------------------------------------------------------


def test_metrics_count_commits_aborts_keys_and_what_is_open(db: Database) -> None:
    kv = KVStore(db)
    found = db.metrics()
    assert isinstance(found, DatabaseMetrics)
    assert (found.transactions_committed, found.transactions_aborted, found.operations) == (0, 0, 0)
    assert found.commit_rate == 1.0
    kv.put(RUN, "a", 1)
    kv.incr(RUN, "n")
    kv.mset(RUN, {f"k{i}": i for i in range(10)})
    kv.delete(RUN, "k0")
    assert db.metrics().keys == 11
    txn = db.begin(RUN)
    txn.kv_get("a")
    txn.kv_put("a", 2)
    kv.put(RUN, "a", 3)
    assert db.metrics().transactions_active == db.metrics().snapshots == 1
    with pytest.raises(errors.TransactionConflict):
        txn.commit()
    found = db.metrics()
    assert (found.transactions_committed, found.transactions_aborted, found.operations) == (5, 1, 6)
    assert found.commit_rate == pytest.approx(5 / 6)
    assert (found.conflicts, found.snapshots, found.recoveries) == (1, 0, 0)
    assert found.handles == 1
    assert 0 < found.arena_used_bytes <= found.arena_allocated_bytes <= found.map_size_bytes
    assert (found.section_update_ns, found.section_insert_ns) == (None, None)
    with second_handle(db) as second:
        ours, theirs = asdict(db.metrics()), asdict(second.metrics())
        assert ours.pop("handles") == theirs.pop("handles") == 2
        shared = {name for name in ours if not name.startswith(("arena", "retired", "clients"))}
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_time_in_the_critical_section_is_counted_on_demand(db: Database) -> None:
    db._engine.set_timing(True)
    KVStore(db).put(RUN, "a", 1)
    KVStore(db).put(RUN, "a", 2)
    found = db.metrics()
    assert found.section_insert_ns is not None
    assert found.section_update_ns is not None
    assert 0 < found.section_insert_ns < 1e9
    assert 0 < found.section_update_ns < 1e9


def test_flush_and_checkpoint_of_memory_do_nothing(db: Database) -> None:
    KVStore(db).put(RUN, "a", 1)
    before = contents(db, RUN)
    db.flush()
    db.checkpoint()
    assert contents(db, RUN) == before


def test_an_ephemeral_database_opens_within_milliseconds() -> None:
    """A bound against accidents; the goal itself is measured by bench."""
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        db = Database.ephemeral()
        best = min(best, time.perf_counter() - started)
        db.close()
    assert best < 0.25
