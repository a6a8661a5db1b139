"""test_commands.py - the commands on folders that nobody has open: what they say, how they end."""

from __future__ import annotations

import doctest
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shm_engine import cli
from shm_engine.commands import files, terminal
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy

COMMANDS = ["serve", "stat", "verify", "dump", "repair", "checkpoint", "doctor"]
ON_A_DATABASE = ["stat", "verify", "dump", "repair", "checkpoint", "doctor"]
WRITES = 120
CHECKPOINTED = 80
runner = CliRunner()


def call(*arguments: object) -> Result:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def call_json(*arguments: object, code: int = 0) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def fill(folder: Path, checkpoint: bool) -> Path:
    """A database as a killed machine leaves it: the files as they were while it was open."""
    live = folder / "live"
    with Database.open(live, Durability.strict(), map_size=1 << 24) as database:
        kv = KVStore(database)
        for number in range(WRITES):
            kv.put("default", f"user:{number % 30}", {"number": number, "raw": b"\x00\xff"})
            if checkpoint and number == CHECKPOINTED - 1:
                database.checkpoint()
        shutil.copytree(live, folder / "copy")
    (folder / "copy" / "coordinator.json").unlink()
    shutil.rmtree(live)
    return folder / "copy"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """One with a log alone, one with a checkpoint, too."""
    return {
        checkpoint: fill(tmp_path_factory.mktemp("original"), checkpoint)
        for checkpoint in (False, True)
    }


@pytest.fixture
def logged(originals: dict[bool, Path], tmp_path: Path) -> Path:
    """All in one log file."""
    return Path(shutil.copytree(originals[False], tmp_path / "database"))


@pytest.fixture
def checkpointed(originals: dict[bool, Path], tmp_path: Path) -> Path:
    """A checkpoint, and a log that reaches back before it."""
    return Path(shutil.copytree(originals[True], tmp_path / "database"))


def log_of(folder: Path) -> tuple[Path, files.LogFile]:
    version = files.log_versions(folder)[0]
    name = files.log_name(version)
    return folder / name, files.read_log_file(folder / name, name, version)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def snapshot_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def keys_after_opening(folder: Path) -> int:
    with Database.open(folder, Durability.strict(), map_size=1 << 24) as database:
        return len(KVStore(database).list("default"))


# -- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_shows_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example:  shm-engine {command}" in result.output


@pytest.mark.parametrize("command", ON_A_DATABASE)
def test_a_folder_that_is_not_there_is_named(command: str, tmp_path: Path) -> None:
    result = call(command, tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr == f"error: there is no folder {tmp_path / 'none'}\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [*ON_A_DATABASE, "serve"])
def test_a_file_is_not_a_database(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    result = call(command, tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "a database is a folder" in result.stderr


@pytest.mark.parametrize("command", ON_A_DATABASE)
def test_a_folder_without_a_database_is_left_alone(command: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    result = call(command, tmp_path)
    assert result.exit_code == 2
    assert "holds no database" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["stat"],
        ["stat", "a", "--watch", "0"],
        ["stat", "a", "--watch", "soon"],
        ["dump", "a", "--after", "-1"],
        ["dump", "a", "--limit", "many"],
        ["serve", "a", "--map-size", "big"],
        ["serve", "a", "--map-size", "4"],
        ["serve", "a", "--max-clients", "1"],
        ["serve", "a", "--durability", "eternal"],
        ["serve", "a", "--durability", "buffered", "--flush-interval-ms", "0"],
        ["serve", "a", "--durability", "strict", "--max-pending-writes", "9"],
        ["serve", ""],
        ["repair"],
        ["checkpoint", "a", "b"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(terminal).failed == 0


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5G", "1 X", "1KK"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        terminal.parse_size(text)


# -- stat -------------------------------------------------------------------------------------


def test_stat_of_a_closed_database_says_what_the_files_say(checkpointed: Path) -> None:
    before = snapshot_of(checkpointed)
    found = call_json("stat", checkpointed)
    assert found["state"] == "closed"
    assert found["files"]["version"] == WRITES
    assert found["files"]["checkpoint_version"] == CHECKPOINTED
    assert found["files"]["commits_to_replay"] == WRITES - CHECKPOINTED
    assert f"version      {WRITES}, {WRITES - CHECKPOINTED} commits to replay" in (
        call("stat", checkpointed).output
    )
    assert snapshot_of(checkpointed) == before


def test_only_an_open_database_can_be_watched(logged: Path) -> None:
    result = call("stat", logged, "--watch", "1")
    assert result.exit_code == 1
    assert "is not open, so there is nothing to watch" in result.stderr


# -- verify -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["logged", "checkpointed"])
def test_sound_files_verify(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    before = snapshot_of(folder)
    found = call_json("verify", folder)
    assert (found["ok"], found["opens"], found["version"]) == (True, True, WRITES)
    assert found["damage"] == []
    assert found["torn_tail"] is None
    assert snapshot_of(folder) == before


def test_a_torn_tail_is_reported_and_no_damage(logged: Path) -> None:
    path, log = log_of(logged)
    *_, last = log.frames()
    flip(path, last.offset + last.size - 20)
    found = call_json("verify", logged)
    assert found["ok"]
    assert found["version"] == WRITES - 1
    assert found["torn_tail"]["file"] == log.name
    assert found["torn_tail"]["offset"] == last.offset
    assert f"torn tail: {found['torn_tail']['bytes']} bytes" in call("verify", logged).output


def test_a_damaged_frame_is_named_with_file_and_place(logged: Path) -> None:
    path, log = log_of(logged)
    frame = list(log.frames())[40]
    flip(path, frame.offset + 50)
    result = call("verify", logged)
    assert result.exit_code == 1
    assert f"error: {log.name} is damaged at byte {frame.offset}: " in result.stderr
    assert "It does not open." in result.stdout
    found = call_json("verify", logged, code=1)
    assert (found["ok"], found["opens"], found["version"]) == (False, False, 40)


def test_damage_is_found_where_no_recovery_looks(checkpointed: Path) -> None:
    """The checkpoint is damaged, but the log reaches back before it: it opens all the same."""
    path = checkpointed / files.checkpoint_name(CHECKPOINTED)
    flip(path, path.stat().st_size // 2)
    found = call_json("verify", checkpointed, code=1)
    assert (found["opens"], found["version"]) == (True, WRITES)
    (damage,) = found["damage"]
    assert damage["file"] == files.checkpoint_name(CHECKPOINTED)
    assert damage["reason"]


def test_an_unreadable_file_is_an_error(logged: Path) -> None:
    if os.geteuid() == 0:
        path, _ = log_of(logged)
        path.unlink()
        path.mkdir()
        result = call("verify", logged)
    else:
        log_of(logged)[0].chmod(0)
        result = call("verify", logged)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


# -- dump -------------------------------------------------------------------------------------


def test_dump_shows_one_line_an_operation(logged: Path) -> None:
    lines = call("dump", logged).stdout.splitlines()
    assert len(lines) == WRITES
    version, time, *rest = lines[7].split()
    assert version == "8"
    assert time.endswith("Z")
    assert rest == ["put", "default", "kv", "user:7", '{"number":7,"raw":{"$hex":"00ff"}}']


def test_dump_as_json_gives_a_range(logged: Path) -> None:
    result = call("dump", logged, "--json", "--after", 50, "--limit", 3)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["version"] for entry in found] == [51, 52, 53]
    assert found[0]["value"] == {"number": 50, "raw": {"$hex": "00ff"}}
    assert (found[0]["kind"], found[0]["run"], found[0]["type"]) == ("put", "default", "kv")
    assert call("dump", logged, "--limit", 0).stdout == ""
    empty = call("dump", logged, "--after", WRITES)
    assert (empty.stdout, empty.exit_code) == ("", 0)
    assert "the log holds no commit above version 120" in empty.stderr


def test_dump_shows_every_kind_of_operation(tmp_path: Path) -> None:
    folder = tmp_path / "database"
    with Database.open(folder, Durability.strict(), map_size=1 << 24) as database:
        kv = KVStore(database)
        run = database.begin_run()
        database.set_retention(run, RetentionPolicy.KeepLast(3))
        kv.put_with_ttl(run, "soon", [1.5, float("inf"), None], 1000)
        kv.put(run, "bad\x1b[2J\nkey", "text\x1b[0m")
        kv.delete(run, "soon")
        shown = call("dump", folder).stdout.splitlines()
        every = [json.loads(line) for line in call("dump", folder, "--json").stdout.splitlines()]
    found = [entry for entry in every if entry["run"] == str(run)]
    indexes = [entry for entry in every if entry["run"] == "default"]
    assert [entry["kind"] for entry in found] == ["put", "put", "put", "put", "delete"]
    assert [entry["type"] for entry in found] == ["run", "run", "kv", "kv", "kv"]
    record = found[1]["value"]
    assert (record["status"], record["retention"]) == ("Active", "RetentionPolicy.KeepLast(3)")
    assert (record["tags"], record["metadata"], record["completed"]) == ([], None, None)
    assert found[0]["value"] == {**record, "retention": None}
    assert found[2]["value"] == [1.5, {"$float": "inf"}, None]
    assert found[2]["expires"] > found[2]["time"]
    assert found[3]["key"] == "bad\x1b[2J\nkey"
    assert found[4]["value"] is None
    assert {entry["version"] for entry in indexes} == {found[0]["version"]}
    assert [entry["key"].partition(" ")[0] for entry in indexes] == ["created", "status", "count"]
    assert [entry["value"] for entry in indexes] == [None, None, 1]
    assert len(shown) == len(every) == 8
    assert not any("\x1b" in line for line in shown)


def test_dump_goes_up_to_damage_and_fails(logged: Path) -> None:
    path, log = log_of(logged)
    frame = list(log.frames())[40]
    flip(path, frame.offset + 50)
    result = call("dump", logged)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 40
    assert f"{log.name} is damaged at byte {frame.offset}" in result.stderr


def test_one_log_file_can_be_dumped(logged: Path) -> None:
    result = call("dump", log_of(logged)[0], "--limit", 2)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


# -- repair -----------------------------------------------------------------------------------


def test_sound_files_are_not_repaired(logged: Path) -> None:
    before = snapshot_of(logged)
    assert call_json("repair", logged)["repaired"] is False
    assert snapshot_of(logged) == before


def test_repair_keeps_what_is_before_the_damage_and_says_what_it_drops(logged: Path) -> None:
    path, log = log_of(logged)
    frame = list(log.frames())[10]
    flip(path, frame.offset + 50)
    damaged = path.read_bytes()
    found = call_json("repair", logged)
    assert (found["repaired"], found["version"], found["keys"]) == (True, 10, 10)
    assert found["damage"][0]["offset"] == frame.offset
    dropped = found["dropped"]
    assert (dropped["first_version"], dropped["last_version"]) == (12, WRITES)
    assert dropped["commits"] == WRITES - 11
    assert set(dropped["keys"]) == {f"user:{number}" for number in range(30)}
    (aside,) = Path(found["aside"]).iterdir()
    assert aside.read_bytes() == damaged
    assert call_json("verify", logged)["version"] == 10
    assert keys_after_opening(logged) == 10
    assert len(call("dump", aside).stdout.splitlines()) == 10


def test_a_damaged_header_costs_nothing(logged: Path) -> None:
    path, log = log_of(logged)
    flip(path, 20)
    assert call_json("verify", logged, code=1)["opens"] is False
    result = call("repair", logged)
    assert result.exit_code == 0, result.output
    assert f"makes the header of {log.name} again" in result.stdout
    assert call_json("verify", logged)["version"] == WRITES
    assert keys_after_opening(logged) == 30
    assert (logged / "damaged-1" / f"{log.first_version:020}.wal.header").stat().st_size == 64


def test_repair_puts_a_damaged_checkpoint_aside(checkpointed: Path) -> None:
    path = checkpointed / files.checkpoint_name(CHECKPOINTED)
    flip(path, path.stat().st_size // 2)
    damaged = path.read_bytes()
    found = call_json("repair", checkpointed)
    assert (found["version"], found["keys"], found["dropped"]["commits"]) == (WRITES, 30, 0)
    assert (Path(found["aside"]) / path.name).read_bytes() == damaged
    assert call_json("verify", checkpointed)["ok"]


def test_repair_keeps_the_sound_blocks_of_the_only_checkpoint(checkpointed: Path) -> None:
    """The log does not reach back, so what the checkpoint lost is lost."""
    with Database.open(checkpointed, Durability.strict(), map_size=1 << 24) as database:
        kv = KVStore(database)
        kv.mset("default", {f"more:{number}": "x" * 900 for number in range(2000)})
    (version,) = files.checkpoint_versions(checkpointed)
    path = checkpointed / files.checkpoint_name(version)
    flip(path, 300_000)
    assert call_json("verify", checkpointed, code=1)["opens"] is False
    found = call_json("repair", checkpointed)
    assert found["dropped"]["blocks"] > 0
    assert 0 < found["keys"] < 2030
    assert call_json("verify", checkpointed)["ok"]
    assert keys_after_opening(checkpointed) == found["keys"]


@pytest.mark.parametrize(("answer", "repaired"), [("n\n", False), ("\n", False), ("y\n", True)])
def test_on_a_terminal_repair_asks(
    logged: Path, monkeypatch: pytest.MonkeyPatch, answer: str, repaired: bool
) -> None:
    path, log = log_of(logged)
    flip(path, list(log.frames())[10].offset + 50)
    asked: list[str] = []

    def reply(question: str, yes: bool) -> bool:
        asked.append(question)
        return yes or answer == "y\n"

    monkeypatch.setattr("shm_engine.commands.repair.ask", reply)
    result = call("repair", logged)
    assert asked == [f"Repair {logged}?"]
    assert result.exit_code == (0 if repaired else 1)
    assert ("error: nothing was changed" in result.stderr) is not repaired
    assert (logged / "damaged-1").exists() is repaired


# -- checkpoint -------------------------------------------------------------------------------


def test_a_closed_database_gets_its_checkpoint(logged: Path) -> None:
    found = call_json("checkpoint", logged, "--map-size", "16MiB")
    assert (found["version"], found["keys"], found["was_open"]) == (WRITES, 30, False)
    assert files.checkpoint_versions(logged) == [WRITES]
    assert call_json("stat", logged)["files"]["commits_to_replay"] == 0


def test_a_database_that_was_in_memory_has_nothing_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "database"
    Database.open(folder, Durability.in_memory(), map_size=1 << 20).close()
    result = call("checkpoint", folder)
    assert result.exit_code == 2
    assert "holds neither log nor checkpoint" in result.stderr
    assert call_json("verify", folder)["files"] == []
    assert call("dump", folder).exit_code == 2


@pytest.mark.parametrize("command", ["verify", "repair", "checkpoint", "dump", "stat"])
def test_another_format_version_is_said(
    command: str, logged: Path, assert_no_traceback: Callable[[Result], None]
) -> None:
    path, _ = log_of(logged)
    flip(path, 8)  # with a wrong checksum it is damage, with a right one another format
    assert_no_traceback(call(command, logged))


@pytest.fixture
def assert_no_traceback() -> Callable[[Result], None]:
    def check(result: Result) -> None:
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output

    return check
