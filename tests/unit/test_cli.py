"""test_cli.py - the command line: help, versions, the demo's ends; no store is opened here."""

from __future__ import annotations

import json
import platform
import signal
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shm_engine import cli
from shm_engine.demo import run
from shm_engine.demo.run import DemoError, DemoOptions, Interrupted

runner = CliRunner()


def test_help_names_the_commands_and_an_example() -> None:
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "version" in result.output
    assert "Example:  shm-engine demo" in result.output


@pytest.mark.parametrize("command", ["demo", "version"])
def test_the_help_of_each_command_shows_an_example(command: str) -> None:
    result = runner.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example:  shm-engine {command}" in result.output


def test_the_help_of_demo_tells_the_defaults() -> None:
    text = " ".join(runner.invoke(cli.app, ["demo", "--help"]).output.split())
    assert "[default: Python's standard library]" in text
    assert "[default: the number of cores, at least 2]" in text


def test_version_names_engine_and_interpreter() -> None:
    result = runner.invoke(cli.app, ["version"])
    assert result.exit_code == 0
    assert metadata.version(cli.DISTRIBUTION) in result.output
    assert platform.python_version() in result.output


def test_version_as_json_is_one_object() -> None:
    value = json.loads(runner.invoke(cli.app, ["version", "--json"]).output)
    assert value["shm_engine"] == metadata.version(cli.DISTRIBUTION)


@pytest.mark.parametrize(
    "arguments",
    [["nonesuch"], ["demo", "--nonesuch"], ["demo", "--workers", "0"], ["demo", "-w", "999"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert runner.invoke(cli.app, arguments).exit_code == 2


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    result = runner.invoke(cli.app, ["demo", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert f"error: there is no folder {tmp_path / 'none'}" in result.output


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("")
    result = runner.invoke(cli.app, ["demo", str(file)])
    assert result.exit_code == 2
    assert f"error: {file} is not a folder" in result.output


def test_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DemoOptions] = []

    def note(options: DemoOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(run, "run_demo", note)
    arguments = ["demo", "some/folder", "-w", "3", "--ephemeral", "--json"]
    assert runner.invoke(cli.app, arguments).exit_code == 0
    assert runner.invoke(cli.app, ["demo"]).exit_code == 0
    assert runner.invoke(cli.app, ["demo", "--path", "kept"]).exit_code == 0
    kept = DemoOptions(path="kept")
    assert seen == [DemoOptions("some/folder", 3, True, True), DemoOptions(), kept]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DemoError("the pool broke", 1), 1, "error: the pool broke"),
        (Interrupted(signal.SIGINT), 130, "interrupted (SIGINT)"),
        (Interrupted(signal.SIGTERM), 143, "interrupted (SIGTERM)"),
    ],
)
def test_each_end_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def fail(_: DemoOptions) -> int:
        raise error

    monkeypatch.setattr(run, "run_demo", fail)
    result = runner.invoke(cli.app, ["demo"])
    assert result.exit_code == code
    assert text in result.output
    assert "Traceback" not in result.output
