"""cli.py - the command line, `shm-engine`.

Why:        the engine needs no administration, so the commands show and look; the few that change
            something say before what they will do. Each says in its help what it is for, with an
            example. Exit codes: 0 done; 1 failed, or a check that did not hold; 2 wrong usage;
            128 + n ended by signal n (130 after Ctrl-C).
Used by:    people and scripts; `main` is the console script's entry
Errors:     one line on standard error that starts with "error:", and the exit code
Cost:       a command's modules are imported when it runs, so that --help is quick
"""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Callable
from importlib import metadata
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

DISTRIBUTION = "shm-engine"
WORKERS_MAX = 128
CLIENTS = 256
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


def _size(text: str) -> int:
    from shm_engine.commands.terminal import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **settings)


Database = Annotated[str, typer.Argument(metavar="PATH", help="The database's folder.")]
Json = Annotated[bool, _option("--json", help="Print JSON.")]
Yes = Annotated[
    bool, _option("--yes", "-y", help="Do not ask. Without a terminal nothing is asked anyway.")
]
MapSize = Annotated[
    int | None,
    _option(
        "--map-size",
        metavar="SIZE",
        parser=_size,
        help="The most shared memory for data, such as 2GiB.  [default: the smaller of 16 GiB and "
        "half of /dev/shm]",
    ),
]


def _end(command: Callable[[], int]) -> NoReturn:
    """Runs a command, and ends as it ended."""
    from shm_engine.commands.terminal import run

    raise typer.Exit(run(command))


@app.command(epilog="Example:  shm-engine serve /var/lib/agents --durability strict")
def serve(
    path: Database,
    durability: Annotated[
        str,
        _option(
            "--durability",
            "-d",
            metavar="MODE",
            help="strict, buffered, no_durability or in_memory.  [default: strict]",
        ),
    ] = "strict",
    flush_interval_ms: Annotated[
        int | None,
        _option("--flush-interval-ms", help="buffered: the longest time between two syncs, 100."),
    ] = None,
    max_pending_writes: Annotated[
        int | None,
        _option("--max-pending-writes", help="buffered: the most commits between two syncs, 1000."),
    ] = None,
    map_size: MapSize = None,
    max_clients: Annotated[
        int, _option("--max-clients", help="Threads and handles, 2 to 4096.  [default: 256]")
    ] = CLIENTS,
    as_json: Json = False,
) -> None:
    """Keep a database open, in the foreground; for a service manager.

    Makes the folder if it is missing. Says in one line when it serves (and READY=1 to systemd),
    stays when the last client goes, and ends on SIGTERM or Ctrl-C with everything synced and a
    checkpoint written.
    """
    from shm_engine.commands.serve import ServeOptions
    from shm_engine.commands.serve import serve as run_serve

    def command() -> int:
        options = ServeOptions(
            durability, flush_interval_ms, max_pending_writes, map_size, max_clients
        )
        return run_serve(path, options, as_json=as_json)

    _end(command)


@app.command(epilog="Example:  shm-engine stat /var/lib/agents --watch 1")
def stat(
    path: Database,
    watch: Annotated[
        float | None,
        _option(
            "--watch",
            "-w",
            min=0.05,
            metavar="SECONDS",
            help="Show it again and again, with rates.",
        ),
    ] = None,
    times: Annotated[
        int | None, _option("--times", "-n", min=1, help="With --watch: end after so many times.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how a database is: versions, clients, memory, log, checkpoint.

    It joins nothing and stops nobody. Of a folder that nobody has open it says what the files say.
    """
    from shm_engine.commands.stat import stat as run_stat

    _end(lambda: run_stat(path, watch=watch, times=times, as_json=as_json))


@app.command(epilog="Example:  shm-engine verify /var/lib/agents")
def verify(path: Database, as_json: Json = False) -> None:
    """Check every checksum and every chain of a database's files; change nothing.

    Exit code 1 if anything is damaged, with file, byte and reason. A torn tail (what a crash cut
    off before it was acknowledged) is no damage. Of an open database what was durable is checked.
    """
    from shm_engine.commands.verify import verify as run_verify

    _end(lambda: run_verify(path, as_json=as_json))


@app.command(epilog="Example:  shm-engine dump /var/lib/agents --after 1200 --limit 20")
def dump(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The database's folder, or one .wal file.")
    ],
    after: Annotated[
        int, _option("--after", "-a", min=0, help="Only versions above this one.")
    ] = 0,
    limit: Annotated[
        int | None, _option("--limit", "-n", min=0, help="At most so many operations.")
    ] = None,
    full: Annotated[
        bool, _option("--full", help="Whole lines on a terminal, too; a pipe always gets them.")
    ] = False,
    as_json: Annotated[bool, _option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Print the log: version, time, kind, run, type, key and value, a line each.

    Values are JSON; bytes show as {"$hex": "00ff"}. What a checkpoint made superfluous is no longer
    in the log.
    """
    from shm_engine.commands.dump import dump as run_dump

    _end(lambda: run_dump(path, after=after, limit=limit, as_json=as_json, full=full))


@app.command(epilog="Example:  shm-engine repair /var/lib/agents")
def repair(
    path: Database, yes: Yes = False, map_size: MapSize = None, as_json: Json = False
) -> None:
    """Make a damaged database open again with what is sound.

    Says what it would keep and drop, and asks. What it drops goes to damaged-<n>/ in the folder.
    Nobody may have the database open. Keep a copy of the folder if you can.
    """
    from shm_engine.commands.repair import repair as run_repair

    _end(lambda: run_repair(path, yes=yes, map_size=map_size, as_json=as_json))


@app.command(epilog="Example:  shm-engine checkpoint /var/lib/agents")
def checkpoint(path: Database, map_size: MapSize = None, as_json: Json = False) -> None:
    """Write the whole database to one file now, so that the next open has nothing to replay.

    An open database goes on meanwhile; a closed one is opened and closed again.
    """
    from shm_engine.commands.checkpoint import checkpoint as run_checkpoint

    _end(lambda: run_checkpoint(path, map_size=map_size, as_json=as_json))


@app.command(epilog="Example:  shm-engine doctor --clear")
def doctor(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]", help="Look at what was left of this folder's database, only."
        ),
    ] = None,
    clear: Annotated[
        bool, _option("--clear", help="Remove what is left over; an unsaved log is saved first.")
    ] = False,
    yes: Annotated[bool, _option("--yes", "-y", help="--clear, and do not ask.")] = False,
    discard_unsaved: Annotated[
        bool,
        _option("--discard-unsaved", help="--clear, and lose the commits of an unsaved log."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the shared memory that killed processes left, and clear it on request.

    Exit code 1 if something is left over when it ends.
    """
    from shm_engine.commands.doctor import DoctorOptions
    from shm_engine.commands.doctor import doctor as run_doctor

    options = DoctorOptions(clear, yes, discard_unsaved, as_json)
    _end(lambda: run_doctor(path, options))


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
            "--ephemeral",
            help="Keep the store in this process, without files and a coordinator process.",
        ),
    ] = False,
    path: Annotated[
        str | None,
        _option(
            "--path",
            metavar="FOLDER",
            help="Keep the store in this folder.  [default: a temporary one, which goes]",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as JSON, and the progress to stderr."),
    ] = False,
) -> None:
    """Let a pool of agents survey the Python files of a folder.

    The files are tasks in a store that all agents share. Half-way one agent is killed, and the
    others take over its file; later the store's coordinator is killed, and a successor takes over.
    The summary is read from one snapshot of the store, again after it was closed and opened from
    its files, and checked against a plain recount; the exit code is 1 if they differ.
    """
    from shm_engine.demo.run import DemoError, DemoOptions, Interrupted, run_demo

    try:
        code = run_demo(DemoOptions(folder, workers, ephemeral, as_json, path))
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
