"""test_folder.py - opening and closing races for one folder, leftovers, and what must not leak."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.segments import Segments, clear_leftovers
from tests.harness.shared import FOLDER, segment_names, segments_by, segments_exist
from tests.harness.workers import Channel, Crew, Worker, wait_until

RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
OPTIONS = coordinator.Options(map_size=1 << 20, max_clients=16)


def coordinators_of(folder: Path) -> list[int]:
    """The processes that look after this folder now, or are about to."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if "shm_engine.coordinator" in command and str(folder) in command:
            found.append(process.pid)
    return found


def info_of(folder: Path) -> coordinator.Info:
    """What coordinator.json says."""
    info = coordinator.read_info(folder)
    assert info is not None
    return info


# -- who opens first --------------------------------------------------------------------------


def open_on_command(channel: Channel, number: int, folder: Path) -> None:
    """Opens when the test says so; tells what it found; closes when the test says so."""
    while channel.receive() == "open":
        with Database.open(folder, MEMORY, map_size=1 << 22) as database:
            kv = KVStore(database)
            kv.incr(RUN, "opened")
            kv.put(RUN, f"by/{number}", number)
            channel.send(segment_names(database))
            assert channel.receive() == "look"
            channel.send(kv.scan(RUN))
            assert channel.receive() == "close"
        channel.send("closed")


def test_of_processes_that_race_to_open_a_folder_one_starts_the_coordinator(
    folder: Path, crew: Crew
) -> None:
    racers = crew.start_many(3, open_on_command, folder)
    for _ in range(8):
        names = [racer.receive() for racer in told(racers, "open")]
        assert names[0] == names[1] == names[2]
        wait_until(lambda: len(coordinators_of(folder)) == 1, "the others gave way", 2)
        assert coordinators_of(folder) == [info_of(folder).pid]
        expected = [(f"by/{number}", number) for number in range(3)] + [("opened", 3)]
        assert [racer.receive() for racer in told(racers, "look")] == [expected] * 3
        for racer in told(racers, "close"):
            racer.expect("closed")
        assert coordinator.read_info(folder) is None
        assert not segments_exist(names[0])
    for racer in told(racers, "end"):
        racer.join()


def told(workers: list[Worker], message: str) -> list[Worker]:
    """All workers, after they were told this."""
    for worker in workers:
        worker.send(message)
    return workers


def test_threads_that_race_to_open_a_folder_share_it(folder: Path) -> None:
    for _ in range(3):
        handles: list[Database] = []
        barrier = threading.Barrier(4)

        def open_it(barrier: threading.Barrier, handles: list[Database]) -> None:
            barrier.wait()
            handles.append(Database.open(folder, MEMORY, map_size=1 << 22))

        threads = [threading.Thread(target=open_it, args=(barrier, handles)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(segment_names(handle)) for handle in handles}) == 1
        assert len(handles) == 4
        for number, handle in enumerate(handles):
            assert KVStore(handle).incr(RUN, "sum") == number + 1
        for handle in handles:
            handle.close()


@pytest.mark.parametrize("adopting", [False, True], ids=["with options", "taking over only"])
def test_a_second_coordinator_started_by_hand_gives_way(folder: Path, adopting: bool) -> None:
    with Database.open(folder, MEMORY, map_size=1 << 22) as database:
        KVStore(database).put(RUN, "key", 1)
        first = info_of(folder)
        for _ in range(2):
            answer, code = start_by_hand(folder, adopting)
            assert (answer, code) == ({"state": "another serves", "recovery": None}, 0)
            assert info_of(folder) == first
        wait_until(lambda: coordinators_of(folder) == [first.pid], "the second one left", 2)
        assert KVStore(database).get(RUN, "key") == 1


def start_by_hand(folder: Path, adopting: bool) -> tuple[dict[str, str | None], int]:
    """Runs the coordinator's module as `open` does; its answer and the exit code."""
    readable, writable = os.pipe()
    command = [sys.executable, "-m", "shm_engine.coordinator", str(folder), str(writable)]
    options = "null" if adopting else json.dumps(asdict(OPTIONS))
    done = subprocess.run([*command, options], pass_fds=(writable,), timeout=30, check=False)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        answer: dict[str, str | None] = json.loads(pipe.read())
    return answer, done.returncode


def test_a_coordinator_that_finds_nothing_to_take_over_leaves(folder: Path) -> None:
    folder.mkdir()
    answer, _ = start_by_hand(folder, True)
    assert answer == {"state": "nothing to take over", "recovery": None}
    assert coordinator.read_info(folder) is None


# -- opening while the last one closes --------------------------------------------------------


def open_and_close(channel: Channel, number: int, folder: Path, seed: int, turns: int) -> None:
    """Opens and closes all the time; whatever it opens must work until it closes."""
    rng = random.Random(seed + number)
    channel.ready()
    for turn in range(turns):
        with Database.open(folder, MEMORY, map_size=1 << 22) as database:
            kv = KVStore(database)
            mine = f"by/{number}"
            first = kv.incr(RUN, "sum")
            assert first <= database.metrics().version
            kv.put(RUN, mine, turn)
            for _ in range(rng.randrange(50)):
                kv.incr(RUN, "sum")
            assert kv.get(RUN, mine) == turn
            assert segments_exist(segment_names(database))
            # Others may have left keys while they were in with us; ours is of this turn.
            assert kv.history(RUN, mine)[0].value == turn
        channel.send(first)
    channel.send("done")


def test_an_open_that_races_with_the_last_close_never_joins_what_is_leaving(
    folder: Path, crew: Crew, rng: random.Random
) -> None:
    racers = crew.start_many(3, open_and_close, folder, rng.getrandbits(32), 15)
    crew.release()
    afresh = 0
    for racer in racers:
        while (first := racer.receive()) != "done":
            afresh += first == 1
        racer.join()
    assert afresh > 3, "the race for which this test is made did not happen"
    assert coordinator.read_info(folder) is None


def test_close_returns_when_the_coordinator_has_left(folder: Path) -> None:
    for _ in range(4):
        with Database.open(folder, MEMORY, map_size=1 << 22) as database:
            KVStore(database).put(RUN, "key", 1)
            info = info_of(folder)
        assert coordinator.read_info(folder) is None
        assert segments_by(info.pid) == []
        assert coordinator.wait_for_end(info.identity, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["coordinator.lock"]


def test_data_is_gone_after_the_last_close_and_the_mode_is_chosen_anew(folder: Path) -> None:
    with Database.open(folder, MEMORY) as database:
        KVStore(database).put(RUN, "key", 1)
        with pytest.raises(errors.InvalidOperation, match="in_memory"):
            Database.open(folder, Durability.strict())
    with Database.open(folder, MEMORY) as database:
        assert KVStore(database).get(RUN, "key") is None
        assert database.metrics().version == 0


# -- leftovers --------------------------------------------------------------------------------


def make_and_wait(channel: Channel) -> None:
    """An ephemeral database, open until the process is killed."""
    database = Database.ephemeral(map_size=1 << 20)
    KVStore(database).put(RUN, "key", 1)
    channel.send(segment_names(database))
    channel.receive()


def opens_ephemeral(folder: Path) -> None:
    Database.ephemeral(map_size=1 << 20).close()


def opens_a_folder(folder: Path) -> None:
    Database.open(folder, MEMORY, map_size=1 << 20).close()


@pytest.mark.crash
@pytest.mark.parametrize("opening", [opens_ephemeral, opens_a_folder])
def test_segments_of_killed_processes_are_removed_by_the_next_open(
    opening: Callable[[Path], None], folder: Path, crew: Crew
) -> None:
    killed = crew.start(make_and_wait)
    alive = crew.start(make_and_wait)
    left_over, in_use = killed.receive(), alive.receive()
    killed.kill()
    opening(folder)
    assert not segments_exist(left_over)
    assert segments_exist(in_use)


@pytest.mark.crash
def test_segments_of_a_dead_opener_that_others_use_are_left_alone(crew: Crew) -> None:
    opener = crew.start(hand_out_and_wait)
    with opener.receive() as database:
        opener.kill()
        clear_leftovers()
        Database.ephemeral(map_size=1 << 20).close()
        assert segments_exist(segment_names(database))
        assert KVStore(database).get(RUN, "key") == 1


def hand_out_and_wait(channel: Channel) -> None:
    """An ephemeral database that the test joins."""
    database = Database.ephemeral(map_size=1 << 20)
    KVStore(database).put(RUN, "key", 1)
    channel.send(database)
    channel.receive()


@pytest.mark.crash
def test_segments_whose_last_user_was_killed_go_although_their_maker_lives(crew: Crew) -> None:
    """A long-lived parent that hands its handle out and closes its own would collect them."""
    with Database.ephemeral(map_size=1 << 20) as database:
        names = segment_names(database)
        child = crew.start(use_and_wait, database)
        child.expect("used")
    child.kill()
    Database.ephemeral(map_size=1 << 20).close()
    assert not segments_exist(names)


def use_and_wait(channel: Channel, database: Database) -> None:
    """The last client, which never closes."""
    KVStore(database).put(RUN, "key", 1)
    channel.send("used")
    channel.receive()


@pytest.mark.crash
def test_half_made_segments_of_a_killed_process_are_removed(crew: Crew) -> None:
    """Killed between making or removing the two, or before they were laid out."""
    killed = crew.start(make_and_wait)
    control, data = (FOLDER / name for name in killed.receive())
    with control.open("rb") as file:
        whole = file.read(8192)
    killed.kill()
    cases = {
        "only one made": (b"", None),
        "both empty": (b"", b""),
        "not laid out": (bytes(8192), bytes(8192)),
        "only one removed": (whole, None),
    }
    for what, contents in cases.items():
        for path, content in zip((control, data), contents, strict=True):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        clear_leftovers()
        assert not control.exists(), what
        assert not data.exists(), what


# -- leaks ------------------------------------------------------------------------------------


def test_the_starter_of_a_coordinator_has_no_child_of_it(folder: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with Database.open(folder, MEMORY) as database:
        info = info_of(folder)
        assert {child.pid for child in psutil.Process().children()} <= before
        assert psutil.Process(info.pid).ppid() != os.getpid()
        os.kill(info.pid, signal.SIGKILL)
        coordinator.wait_for_end(info.identity, 10)
        wait_until(lambda: info_of(folder).pid != info.pid, "a successor", 2)
        assert {child.pid for child in psutil.Process().children()} <= before
        assert not database.closed
    assert {child.pid for child in psutil.Process().children()} <= before


def descriptors() -> set[tuple[str, str]]:
    """What this process has open, by number and target."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue  # the listing's own
    return found


def mappings() -> int:
    """How many segments this process has mapped."""
    return Path("/proc/self/maps").read_text().count("/dev/shm/shm_engine.")


def cycle_ephemeral(folder: Path) -> None:
    with Database.ephemeral(map_size=1 << 20) as database:
        KVStore(database).put(RUN, "key", 1)
        database.snapshot().close()


def cycle_join(folder: Path) -> None:
    with Database.open(folder) as database:
        KVStore(database).incr(RUN, "sum")
        database.snapshot()  # closed with its handle


def cycle_refused(folder: Path) -> None:
    with pytest.raises(errors.InvalidOperation):
        Database.open(folder, Durability.strict())


def cycle_forgotten(folder: Path) -> None:
    KVStore(Database.open(folder)).incr(RUN, "sum")


@pytest.mark.parametrize(
    ("cycle", "times"),
    [(cycle_ephemeral, 200), (cycle_join, 200), (cycle_refused, 50), (cycle_forgotten, 50)],
)
def test_opening_and_closing_leaks_nothing(
    cycle: Callable[[Path], None], times: int, folder: Path
) -> None:
    with Database.open(folder, MEMORY, map_size=1 << 22) as database:
        cycle(folder)
        wait_until(lambda: "anon_inode:[pidfd]" in dict(descriptors()).values(), "it is watched")
        before = (descriptors(), threading.active_count(), mappings())
        names = segments_by(os.getpid())
        clients = (database.metrics().handles, database.metrics().clients)
        for _ in range(times):
            cycle(folder)
        assert (descriptors(), threading.active_count(), mappings()) == before
        assert (database.metrics().handles, database.metrics().clients) == clients
        assert database.metrics().snapshots == 0
        assert segments_by(os.getpid()) == names


def test_opening_a_folder_first_and_last_leaks_nothing(folder: Path) -> None:
    Database.open(folder, MEMORY, map_size=1 << 22).close()
    before = (descriptors(), threading.active_count(), mappings())
    for _ in range(12):
        Database.open(folder, MEMORY, map_size=1 << 22).close()
    assert (descriptors(), threading.active_count(), mappings()) == before
    assert sorted(path.name for path in folder.iterdir()) == ["coordinator.lock"]


def test_programs_that_are_started_inherit_nothing(folder: Path) -> None:
    with Database.open(folder, MEMORY, map_size=1 << 22), Database.ephemeral(map_size=1 << 20):
        listed = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "shm_engine" not in listed.stdout
        assert "pidfd" not in listed.stdout


def test_a_process_with_thousands_of_descriptors_opens_a_folder(folder: Path, crew: Crew) -> None:
    """select() knows the first 1024 only."""
    crew.start(open_with_many_descriptors, folder).join()


def open_with_many_descriptors(channel: Channel, folder: Path) -> None:
    """Opens, loses the coordinator, and closes, all with large descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert most == resource.RLIM_INFINITY or most > 2000, f"{most} descriptors are too few here"
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1500)]
    with Database.open(folder, MEMORY, map_size=1 << 22) as database:
        KVStore(database).put(RUN, "key", 1)
        info = info_of(folder)
        os.kill(info.pid, signal.SIGKILL)
        wait_until(lambda: info_of(folder).pid != info.pid, "a successor", 5)
        assert KVStore(database).get(RUN, "key") == 1
    assert coordinator.read_info(folder) is None
    for descriptor in held:
        os.close(descriptor)


def test_a_failed_opening_leaks_nothing(tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.write_text("")
    gone = Segments("/shm_engine.0.0.gone.c", "/shm_engine.0.0.gone.d")
    before = (descriptors(), threading.active_count(), mappings())
    for _ in range(20):
        with pytest.raises(errors.InvalidOperation):
            Database.open(a_file, MEMORY)
        with pytest.raises(errors.Closed):
            gone.attach()
        with pytest.raises(errors.ConstraintViolation):
            Database.ephemeral(map_size=10)
    assert (descriptors(), threading.active_count(), mappings()) == before
