"""test_commands.py - the commands beside living processes, and after their deaths."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_engine import coordinator
from shm_engine.commands import files
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.errors import InvalidOperation
from shm_engine.primitives.kv import KVStore
from tests.harness.workers import Channel, Crew, Worker, wait_until

COMMAND = [sys.executable, "-m", "shm_engine.cli"]
TIMEOUT_S = 60
MAP_SIZE = 1 << 25
STRICT = Durability.strict()


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )


def call_json(*arguments: object, code: int = 0) -> Any:
    done = call(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


Serve = Callable[..., "Served"]


class Served:
    """A `shm-engine serve` under the test's control."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", str(folder), "--map-size", str(MAP_SIZE), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Ends it; its code, and the rest of what it said."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, output, errors


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    """Starts one, and sees to it that it is gone afterwards."""
    started: list[Served] = []

    def start(*arguments: str, **environment: str) -> Served:
        served = Served(folder, *arguments, **environment)
        started.append(served)
        return served

    yield start
    for served in started:
        if served.process.returncode is None:
            assert served.end()[0] == 0


def put_until_told(channel: Channel, folder: Path, mode: Durability) -> None:
    """Counts in the store, and says the count now and then, until the test says something."""
    with Database.open(folder, mode, map_size=MAP_SIZE) as database:
        kv = KVStore(database)
        channel.send("open")
        while not channel.is_told():
            kv.incr("default", "count")
        channel.send(kv.get("default", "count"))


def writer(crew: Crew, folder: Path, mode: Durability = STRICT) -> Worker:
    worker = crew.start(put_until_told, folder, mode, method="spawn")
    worker.expect("open")
    return worker


def kill_everybody(folder: Path, workers: list[Worker]) -> None:
    """The coordinator first, stopped before: nobody starts a successor, nobody saves the ring."""
    info = coordinator.read_info(folder)
    assert info is not None
    for worker in workers:
        worker.stop()
    os.kill(info.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    assert coordinator.wait_for_end(info.identity, TIMEOUT_S)


# -- serve ------------------------------------------------------------------------------------


def test_a_served_database_stays_when_the_last_client_goes(folder: Path, serve: Serve) -> None:
    served = serve("--durability", "buffered", "--flush-interval-ms", "20")
    line = served.line()
    assert line.startswith(f"serving {folder}: buffered, version 0, 0 keys")
    for number in range(3):
        with Database.open(folder) as database:
            assert database.durability == Durability.buffered(20, 1000)
            assert KVStore(database).incr("default", "visits") == number + 1
        info = coordinator.read_info(folder)
        assert info is not None
        assert (info.pid, info.stays, info.is_alive()) == (served.process.pid, True, True)
    code, output, errors = served.end()
    assert (code, errors) == (0, "")
    assert output == "stopped: version 3, checkpoint 3\n"
    assert coordinator.read_info(folder) is None
    assert files.checkpoint_versions(folder) == [3]
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        assert KVStore(database).get("default", "visits") == 3


def test_what_the_last_client_closed_is_on_the_disk(folder: Path, serve: Serve) -> None:
    """The coordinator stays, so close() itself has to wait for the sync."""
    served = serve("-d", "buffered", "--flush-interval-ms", "60000")
    served.line()
    with Database.open(folder) as database:
        for number in range(50):
            KVStore(database).put("default", f"key{number}", number)
    assert len(call("dump", folder).stdout.splitlines()) == 50


def test_serving_twice_is_refused(folder: Path, serve: Serve) -> None:
    served = serve()
    served.line()
    second = call("serve", folder)
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: {folder} is served already, by process ")
    assert str(served.process.pid) in second.stderr
    with Database.open(folder) as database:
        KVStore(database).put("default", "key", 1)


def test_what_an_open_started_is_not_taken_away(folder: Path) -> None:
    with Database.open(folder, STRICT, map_size=MAP_SIZE):
        assert call("serve", folder).returncode == 1


def test_serve_tells_the_service_manager(folder: Path, serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(TIMEOUT_S)
        served = serve("--json", NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(4096).startswith(b"READY=1\nSTATUS=serving ")
    said = json.loads(served.line())
    assert (said["state"], said["pid"]) == ("serving", served.process.pid)
    assert said["durability"]["kind"] == "strict"
    code, output, _ = served.end(signal.SIGINT)
    assert (code, json.loads(output)["state"]) == (0, "stopped")


def test_clients_go_on_when_the_service_is_stopped(folder: Path, serve: Serve) -> None:
    served = serve()
    served.line()
    with Database.open(folder) as database:
        kv = KVStore(database)
        kv.put("default", "before", 1)
        code, output, _ = served.end()
        assert code == 0
        assert "1 handle still open" in output
        kv.put("default", "after", 2)  # strict: a successor has synced it
        info = coordinator.read_info(folder)
        assert info is not None
        assert (info.stays, info.pid != served.process.pid) == (False, True)
    assert coordinator.read_info(folder) is None
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        assert KVStore(database).list("default") == ["after", "before"]


def test_serve_recovers_what_killed_processes_left(folder: Path, crew: Crew, serve: Serve) -> None:
    worker = writer(crew, folder, Durability.buffered(60_000, 1_000_000))
    with Database.open(folder) as database:
        kv = KVStore(database)
        wait_until(lambda: (kv.get("default", "count") or 0) > 500, "the worker counts")
        counted = kv.get("default", "count")
    kill_everybody(folder, [worker])
    served = serve()
    assert served.line().startswith(f"serving {folder}: strict")
    with Database.open(folder) as database:
        assert KVStore(database).get("default", "count") >= counted
    assert served.end()[0] == 0


def test_a_damaged_database_is_not_served(folder: Path) -> None:
    damage(folder)
    done = call("serve", folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: wal/")
    assert "shm-engine repair" in done.stderr


def damage(folder: Path) -> None:
    """A database whose log is damaged in the middle."""
    live = folder.parent / "live"
    with Database.open(live, STRICT, map_size=MAP_SIZE) as database:
        for number in range(60):
            KVStore(database).put("default", f"key{number}", number)
        shutil.copytree(live, folder)
    (folder / "coordinator.json").unlink()
    name = files.log_name(1)
    frame = list(files.read_log_file(folder / name, name, 1).frames())[20]
    with open(folder / name, "r+b") as file:
        file.seek(frame.offset + 40)
        file.write(b"\xff\xff\xff\xff")


# -- beside living processes ------------------------------------------------------------------


def test_stat_of_an_open_database_joins_nothing(folder: Path, crew: Crew) -> None:
    with Database.open(folder, Durability.buffered(), map_size=MAP_SIZE) as database:
        KVStore(database).put("default", "key", 1)
        database.flush()
        found = call_json("stat", folder)
        assert (found["state"], found["durability"]) == ("open", "buffered")
        assert (found["version"], found["durable_version"], found["lag"]) == (1, 1, 0)
        assert (found["keys"], found["living_handles"]) == (1, 1)
        assert found["map_size_bytes"] == MAP_SIZE
        text = call("stat", folder).stdout
        assert "version    1, durable 1 (nothing behind)\n" in text
    assert call_json("stat", folder)["state"] == "closed"


def test_stat_shows_rates(folder: Path, crew: Crew) -> None:
    worker = writer(crew, folder)
    done = call("stat", folder, "--watch", "0.3", "--times", "3", "--json")
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 3
    assert all(found["commits_per_s"] > 0 for found in rounds)
    assert rounds[0]["version"] < rounds[2]["version"]
    lines = call("stat", folder, "--watch", "0.1", "--times", "2").stdout.splitlines()
    assert len(lines) == 2
    assert "commits/s" in lines[0]
    worker.send("stop")
    worker.receive()
    worker.join()


def test_watching_ends_with_the_database(folder: Path) -> None:
    database = Database.open(folder, STRICT, map_size=MAP_SIZE)
    with subprocess.Popen(
        [*COMMAND, "stat", str(folder), "--watch", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        database.close()
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert errors == f"error: {folder} is no longer open\n"


@pytest.mark.parametrize("mode", [STRICT, Durability.buffered(), Durability.no_durability()])
def test_a_living_database_verifies_while_it_is_written(
    folder: Path, crew: Crew, mode: Durability
) -> None:
    """No moment's picture of a file that is being written is taken for damage."""
    worker = writer(crew, folder, mode)
    for _ in range(2):
        found = call_json("verify", folder)
        assert (found["ok"], found["state"]) == (True, "open")
        assert found["durable"] <= found["version"]
        assert call("dump", folder, "--limit", 50).returncode == 0
    found = call_json("checkpoint", folder)
    assert found["was_open"]
    assert found["version"] > 0
    assert call_json("verify", folder)["ok"]
    worker.send("stop")
    worker.receive()
    worker.join()


def test_damage_in_a_living_database_is_found(folder: Path) -> None:
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        for number in range(40):
            KVStore(database).put("default", f"key{number}", number)
        name = files.log_name(1)
        frame = list(files.read_log_file(folder / name, name, 1).frames())[20]
        with open(folder / name, "r+b") as file:
            file.seek(frame.offset + 40)
            file.write(b"\xff\xff\xff\xff")
        found = call_json("verify", folder, code=1)
        assert found["damage"][0]["file"] == name
        assert found["damage"][0]["offset"] == frame.offset
        database.checkpoint()  # which writes everything from memory


@pytest.mark.parametrize("command", [["repair", "--yes"], ["repair"]])
def test_an_open_database_is_not_repaired(folder: Path, command: list[str]) -> None:
    with Database.open(folder, STRICT, map_size=MAP_SIZE):
        done = call(*command, folder)
        assert done.returncode == 1
        assert "close it everywhere, then repair it" in done.stderr


def test_a_database_in_memory_has_no_checkpoint(folder: Path) -> None:
    with Database.open(folder, Durability.in_memory(), map_size=MAP_SIZE) as database:
        KVStore(database).put("default", "key", 1)
        done = call("checkpoint", folder)
        assert done.returncode == 1
        assert "it keeps no files" in done.stderr
        found = call_json("stat", folder)
        assert (found["durability"], found["version"], found["lag"]) == ("in_memory", 1, 0)
        assert call_json("verify", folder)["ok"]


def test_who_reads_no_further_ends_the_dump(folder: Path) -> None:
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        KVStore(database).mset("default", {f"key{number}": "x" * 100 for number in range(5000)})
        with subprocess.Popen(
            [*COMMAND, "dump", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 128 + signal.SIGPIPE


# -- after deaths -----------------------------------------------------------------------------


def left_unsaved(folder: Path, crew: Crew) -> int:
    """A folder whose processes were all killed, with commits in shared memory alone; how many
    were counted at least."""
    worker = writer(crew, folder, Durability.buffered(60_000, 1_000_000))
    with Database.open(folder) as database:
        kv = KVStore(database)
        wait_until(lambda: (kv.get("default", "count") or 0) > 500, "the worker counts")
        counted: int = kv.get("default", "count")
    kill_everybody(folder, [worker])
    return counted


def test_what_was_left_is_seen_and_saved(folder: Path, crew: Crew) -> None:
    counted = left_unsaved(folder, crew)
    found = call_json("stat", folder)
    assert found["state"] == "left"
    assert found["unsaved_commits"] >= counted
    assert call_json("verify", folder)["unsaved_commits"] >= counted
    left = call_json("doctor", folder, code=1)["found"]
    assert [(entry["state"], entry["cleared"]) for entry in left] == [("unsaved log", False)]
    cleared = call("doctor", folder, "--clear")
    assert cleared.returncode == 0, cleared.stderr
    assert "its log was saved" in cleared.stdout
    assert coordinator.read_info(folder) is None
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        assert KVStore(database).get("default", "count") >= counted


def test_an_unsaved_log_is_discarded_on_request_alone(folder: Path, crew: Crew) -> None:
    left_unsaved(folder, crew)
    found = call_json("doctor", folder, "--discard-unsaved")
    assert [entry["cleared"] for entry in found["found"]] == [True]
    assert call_json("doctor", folder)["found"] == []
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        assert (KVStore(database).get("default", "count") or 0) >= 0


def test_doctor_lists_and_clears_segments(tmp_path: Path) -> None:
    """In a /dev/shm of its own: other tests have segments, too."""
    script = """
import json, os, signal, subprocess, sys
from tests.harness import private_shm
try:
    private_shm.enter(64 << 20)
except private_shm.Unmountable as refusal:
    print("unmountable", refusal)
    sys.exit(0)
def doctor(*arguments):
    done = subprocess.run([sys.executable, "-m", "shm_engine.cli", "doctor", "--json", *arguments],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, [(e["state"], e["cleared"]) for e in json.loads(done.stdout)["found"]]
victim = '''
import os, signal
from shm_engine import Database, KVStore
db = Database.ephemeral(map_size=1 << 20)
KVStore(db).put("default", "key", 1)
print("ready", flush=True)
signal.pause()
'''
process = subprocess.Popen([sys.executable, "-c", victim], stdout=subprocess.PIPE)
process.stdout.readline()
print(doctor())
print(doctor("--clear"))
process.kill()
process.wait()
print(doctor())
print(doctor("--yes"))
print(doctor(), os.listdir("/dev/shm"))
open("/dev/shm/shm_engine.0.1.abc.c", "w").close()
os.rename("/dev/shm/shm_engine.0.1.abc.c", f"/dev/shm/shm_engine.{os.getuid()}.999999.abc.c")
print(doctor("--clear"), os.listdir("/dev/shm"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    if done.stdout.startswith("unmountable"):
        pytest.skip("this process may not mount")
    assert done.stdout.splitlines() == [
        "(0, [('in use', False)])",
        "(0, [('in use', False)])",
        "(1, [('left over', False)])",
        "(0, [('left over', True)])",
        "(0, []) []",
        "(0, [('left over', True)]) []",
    ], done.stderr


def test_a_coordinator_json_without_segments_is_cleared(folder: Path) -> None:
    """As after a reboot that came before the last close."""
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        KVStore(database).put("default", "key", 1)
        text = (folder / "coordinator.json").read_text()
    fields = json.loads(text) | {"pid": 1, "identity": (1 << 60) | 1}
    (folder / "coordinator.json").write_text(json.dumps(fields))
    assert call_json("doctor", folder, code=1)["found"][0]["state"] == "left over"
    assert call_json("doctor", folder, "--yes")["ok"]
    assert not (folder / "coordinator.json").exists()


# -- on a terminal ----------------------------------------------------------------------------


def on_terminal(answer: str, *arguments: object) -> tuple[int, str]:
    """The command on a terminal of 60 columns, where somebody answers."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "30"}
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while chunk := os.read(leader, 65536):
                output += chunk
                if b"[y/N]" in output and answer:
                    os.write(leader, answer.encode())
                    answer = ""
        os.close(leader)
        return process.wait(TIMEOUT_S), output.decode()


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_repair_asks_on_a_terminal(folder: Path, answer: str, code: int) -> None:
    damage(folder)
    found, output = on_terminal(answer, "repair", folder)
    assert found == code, output
    assert "[y/N]" in output
    assert (folder / "damaged-1").exists() is (code == 0)
    assert ("nothing was changed" in output) is (code == 1)


def test_with_yes_and_without_a_terminal_nothing_is_asked(folder: Path) -> None:
    damage(folder)
    code, output = on_terminal("", "repair", folder, "--yes")
    assert code == 0
    assert "[y/N]" not in output
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "live")
    damage(folder)
    assert call("repair", folder).returncode == 0


def test_lines_fit_a_narrow_terminal(folder: Path) -> None:
    with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
        KVStore(database).put("default", "key", "x" * 300)
        database.checkpoint()
        KVStore(database).put("default", "key\x1b[2J", "x" * 300)
        for command in (["stat"], ["verify"], ["dump"]):
            _, output = on_terminal("", *command, folder)
            assert "\x1b[2J" not in output
            bare = [line for line in output.splitlines() if str(folder) not in line]
            assert all(len(plain(line)) <= 60 for line in bare), output


def plain(line: str) -> str:
    """Without colours."""
    text = ""
    while "\x1b[" in line:
        before, _, rest = line.partition("\x1b[")
        text += before
        line = rest[rest.index("m") + 1 :] if "m" in rest else ""
    return text + line


# -- repair beside an open --------------------------------------------------------------------


def test_an_open_that_comes_while_it_is_repaired_waits(folder: Path) -> None:
    damage(folder)
    found: list[int] = []

    def open_again() -> None:
        while True:
            try:
                with Database.open(folder, STRICT, map_size=MAP_SIZE) as database:
                    found.append(len(KVStore(database).list("default")))
                    return
            except InvalidOperation:
                raise
            except Exception:
                assert not found  # damaged still

    thread = threading.Thread(target=open_again)
    thread.start()
    done = call("repair", folder)
    while done.returncode != 0:  # an open was just finding out that it is damaged
        assert "being recovered by process" in done.stderr
        done = call("repair", folder)
    thread.join(TIMEOUT_S)
    assert found == [20]
