"""cli.py - the command line, `shm-engine`.

Why:        the engine needs no administration, so the commands show and look; each says in its
            help what it is for, with an example. Exit codes: 0 done; 1 failed, or a check that
            did not hold; 2 wrong usage; 128 + n ended by signal n (130 after Ctrl-C).
Used by:    people and scripts; `main` is the console script's entry
Errors:     one line on standard error that starts with "error:", and the exit code
Cost:       a command's modules are imported when it runs, so that --help is quick
"""

from __future__ import annotations

import json
import platform
import signal
from importlib import metadata
from types import FrameType
from typing import Annotated, NoReturn

import typer

DISTRIBUTION = "shm-engine"
WORKERS_MAX = 128
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="shm-engine",
    help="A transactional state store for AI agents, shared by every process of one machine.",
    epilog="Example:  shm-engine demo ~/src/project --workers 4",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(epilog="Example:  shm-engine demo ~/src/project --workers 4")
def demo(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="The source tree to survey.  [default: Python's standard library]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            max=WORKERS_MAX,
            help="How many agents, each a process.  [default: the number of cores, at least 2]",
            show_default=False,
        ),
    ] = None,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral", help="Keep the store in this process, without a coordinator process."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as JSON, and the progress to stderr."),
    ] = False,
) -> None:
    """Let a pool of agents survey the Python files of a folder.

    The files are tasks in a store that all agents share. Half-way one agent is killed, and the
    others take over its file. The summary is read from one snapshot of the store and checked
    against a plain recount; the exit code is 1 if they differ.
    """
    from shm_engine.demo.run import DemoError, DemoOptions, Interrupted, run_demo

    try:
        code = run_demo(DemoOptions(folder, workers, ephemeral, as_json))
    except DemoError as error:
        _say_error(str(error))
        code = error.exit_code
    except Interrupted as interrupted:
        typer.echo(f"interrupted ({interrupted}); nothing is left behind", err=True)
        code = interrupted.exit_code
    raise typer.Exit(code)


@app.command(epilog="Example:  shm-engine version --json")
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print the versions as JSON.")] = False,
) -> None:
    """Print the versions of the engine and of Python."""
    try:
        engine = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        engine = "unknown (not installed)"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    if as_json:
        typer.echo(json.dumps({"shm_engine": engine, "python": python}))
    else:
        typer.echo(f"shm-engine {engine} ({python}, {platform.system()} {platform.machine()})")


def main() -> None:
    """Run the command line; ends the process with the command's exit code."""
    signal.signal(signal.SIGINT, _end_interrupted)
    app()


def _end_interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ctrl-C where the command has no handler of its own: quietly, with the usual code."""
    raise SystemExit(EXIT_INTERRUPTED)


def _say_error(text: str) -> None:
    typer.echo(f"error: {text}", err=True)


if __name__ == "__main__":
    main()
