"""run.py - the demo from start to end.

Why:        one function opens the store, runs the pool, reads one snapshot, recounts, compares,
            audits what was recorded, and cleans up, on every way out:
                 finished                       0
                 a difference, or a failure     1
                 no such folder                 2
                 Ctrl-C, SIGTERM, SIGHUP        128 + the signal's number
Used by:    the command line; the main thread (it handles signals)
Invariants: no process, segment or folder of the demo is left when run_demo returns (test_demo.py)
Errors:     DemoError, with the exit code; Interrupted after a signal, when all is cleaned up
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console

from shm_engine.demo import records
from shm_engine.demo.audit import audit
from shm_engine.demo.pool import AgentView, Death, Pool, PoolFailure, Progress, exit_text
from shm_engine.demo.recount import differences, recount
from shm_engine.demo.results import Results, read_results, read_takeover
from shm_engine.demo.store import Assassin, DemoStore
from shm_engine.demo.summary import print_summary, summarize
from shm_engine.demo.survey import SourceTree, find_sources, printable
from shm_engine.demo.survey_run import SurveyRun
from shm_engine.demo.view import View, make_view, plural
from shm_engine.errors import Error
from shm_engine.primitives.kv import KVStore

WORKERS_MIN_DEFAULT = 2
"""One worker alone could show neither conflicts nor a takeover."""

EXIT_FAILED, EXIT_USAGE = 1, 2

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """The demo could not be done; carries the exit code for the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(BaseException):
    """A signal asked the demo to end; not an Exception, so that nothing on the way takes it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for; None is the default."""

    folder: str | None = None
    workers: int | None = None
    ephemeral: bool = False
    as_json: bool = False
    path: str | None = None


def run_demo(options: DemoOptions) -> int:
    """Survey the folder with a pool of agents, print the summary and check it.

    The view and the summary go to standard output; with `as_json` the summary goes there as one
    JSON object, and the view to standard error.

    Returns the exit code: 0, or 1 where the store and the recount differ, or where events, traces
    or runs are not as they must be.
    Raises: DemoError for a folder that is none and for a pool that could not finish, Interrupted
    after SIGINT, SIGTERM or SIGHUP; in every case nothing is left behind.
    """
    if options.ephemeral and options.path is not None:
        raise DemoError("--ephemeral keeps nothing, so it has no --path", EXIT_USAGE)
    _allow_any_character()
    console = Console(
        stderr=options.as_json, markup=False, highlight=False, emoji=False, soft_wrap=False
    )
    with _SignalGuard() as guard:
        tree = _find_sources(options.folder)
        workers = options.workers or max(WORKERS_MIN_DEFAULT, _cores())
        summary = _survey(console, guard, tree, workers, options)
    if options.as_json:
        json.dump(summary, sys.stdout, indent=2)
        sys.stdout.write("\n")
        sys.stdout.flush()
    else:
        print_summary(console, summary)
    return 0 if summary["ok"] else EXIT_FAILED


def _survey(
    console: Console, guard: _SignalGuard, tree: SourceTree, workers: int, options: DemoOptions
) -> dict[str, Any]:
    started_s, started_wall_s = time.monotonic(), time.time()
    with contextlib.ExitStack() as stack, make_view(console) as view:
        store = stack.enter_context(_open_store(options, guard))
        survey_run = stack.enter_context(SurveyRun(store, tree, workers))
        run = survey_run.id
        view.event(f"Surveying {printable(tree.root)}")
        counts = f"{plural(len(tree.files), 'file')}, {plural(workers, 'worker')}"
        view.event(f"{counts}, {_store_text(store, options)}")
        pool = Pool(
            store.database, run, tree, workers, lambda death: _tell_death(view, tree, death)
        )
        assassin = Assassin(store, view.event)
        stack.callback(assassin.stop)
        stack.enter_context(pool)
        stack.callback(guard.ignore)  # runs first on the way out

        def watch(progress: Progress) -> None:
            view.progress(progress)
            assassin.watch(progress.done, progress.file_count)

        if tree.files:
            try:
                pool.run(watch)
            except PoolFailure as failure:
                raise DemoError(str(failure), EXIT_FAILED) from failure
            assassin.finish()
        survey_run.complete()
        results = read_results(store.database, run)
        agents = pool.views(results.agents)
        pool.close()
        reopened = _open_again(view, guard, store, run, results)
        deaths = [_describe(death, KVStore(store.database), run, tree) for death in pool.deaths]
        recount_started_s = time.monotonic()
        plain = recount(tree, lambda done: view.recount(done, len(tree.files)))
        ended_s = time.monotonic()
        audited = audit(store.database, run, plain, len(agents), pool.deaths)
    found = differences(results, plain) + audited.differences
    if reopened is not None and not reopened["same"]:
        found.append("the store, closed and opened again, holds something else than before")
    return (
        summarize(results, tree)
        | audited.as_value()
        | {
            "ok": not found,
            "differences": found,
            "modified_files": _modified_since(tree, started_wall_s) if found else 0,
            "checked_files": len(plain.outcomes),
            "checked_counters": len(results.counters),
            "workers": workers,
            "store": "ephemeral" if options.ephemeral else "buffered",
            "path": None if options.path is None else printable(str(store.folder)),
            "coordinator": assassin.as_value(),
            "reopened": reopened,
            "agents": [_agent_value(agent) for agent in agents],
            "deaths": deaths,
            "seconds": {
                "agents": round(pool.elapsed_s, 3),
                "recount": round(ended_s - recount_started_s, 3),
                "all": round(ended_s - started_s, 3),
            },
        }
    )


def _agent_value(agent: AgentView) -> dict[str, Any]:
    return {
        "worker": agent.worker,
        "pid": agent.pid,
        "state": agent.state,
        "files": agent.files,
        "files_per_s": round(agent.files_per_s, 1),
        "commits": agent.commits,
        "conflicts": agent.conflicts,
    }


def _store_text(store: DemoStore, options: DemoOptions) -> str:
    if not store.is_durable:
        return "store in this process's memory"
    where = printable(str(store.folder)) if options.path is not None else "a temporary folder"
    return f"store with a log in {where}, synced every 100 ms"


def _find_sources(folder: str | None) -> SourceTree:
    """The tree that the user named; by default the standard library of this interpreter."""
    root = sysconfig.get_path("stdlib") if folder is None else folder
    shown = printable(root)
    if not os.path.lexists(root):
        raise DemoError(f"there is no folder {shown}", EXIT_USAGE)
    if not os.path.isdir(root):
        raise DemoError(f"{shown} is not a folder; name the folder of a source tree", EXIT_USAGE)
    try:
        return find_sources(os.path.realpath(root))
    except OSError as error:
        raise DemoError(f"cannot list the folder {shown}: {error.strerror}", EXIT_USAGE) from error


@contextlib.contextmanager
def _open_store(options: DemoOptions, guard: _SignalGuard) -> Iterator[DemoStore]:
    """The store of this run; a folder of its own goes when the store is closed."""
    with contextlib.ExitStack() as stack:
        try:
            with guard.hold_back():
                store = stack.enter_context(DemoStore(options.path, options.ephemeral))
        except (Error, OSError) as error:
            raise DemoError(f"cannot open the store: {error}", EXIT_FAILED) from error
        yield store


def _open_again(
    view: View, guard: _SignalGuard, store: DemoStore, run: str, results: Results
) -> dict[str, Any] | None:
    """Closes the store, opens it from its files, and compares."""
    if not store.is_durable:
        return None
    try:
        with guard.hold_back():
            store.open_again()
    except Error as error:
        raise DemoError(f"the store does not open again: {error}", EXIT_FAILED) from error
    again = read_results(store.database, run)
    recovery = store.database.recovery
    took = f"{store.recovery_s * 1000:,.0f} ms"
    view.event(f"Store closed and opened again from its files in {took}")
    return {
        "same": again.holds_the_same_as(results),
        "version": again.version,
        "seconds": round(store.recovery_s, 3),
        "checkpoint_version": recovery.checkpoint_version if recovery else None,
        "commits_replayed": recovery.commits if recovery else None,
    }


def _tell_death(view: View, tree: SourceTree, death: Death) -> None:
    """The news of a death or of a takeover, while the others are still at work."""
    held = death.file_index != records.NO_FILE
    file = printable(tree.files[death.file_index]) if held else "no file"
    if death.has_successor:
        view.event(f"Worker {death.successor} took over {file}")
        return
    how = "killed with SIGKILL" if death.planned else f"died ({exit_text(death.exit_code)})"
    view.event(f"Worker {death.worker} (pid {death.pid}) {how}, holding {file}")


def _describe(death: Death, kv: KVStore, run: str, tree: SourceTree) -> dict[str, Any]:
    has_file = death.file_index != records.NO_FILE
    taken = read_takeover(kv, run, death.file_index, death.worker) if has_file else None
    return {
        "worker": death.worker,
        "pid": death.pid,
        "planned": death.planned,
        "exit": exit_text(death.exit_code),
        "file": printable(tree.files[death.file_index]) if has_file else None,
        "taken_over_by": taken[0] if taken else None,
        "after_ms": round((taken[1] - death.time_us) / 1000, 3) if taken else None,
    }


def _modified_since(tree: SourceTree, wall_s: float) -> int:
    """How many files changed under the demo, which is no fault of the store."""
    count = 0
    for path in tree.files:
        with contextlib.suppress(OSError):
            count += os.stat(os.path.join(tree.root, path)).st_mtime >= wall_s
    return count


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _allow_any_character() -> None:
    """A file's name that the terminal's encoding lacks is shown escaped, not refused."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _SignalGuard:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted inside the block, so that it cleans up."""

    def __init__(self) -> None:
        self._is_holding = False
        self._held: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _SignalGuard:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def hold_back(self) -> Iterator[None]:
        """Signals wait for the end of this block: what it starts must be known to the clean-up.

        They are not masked, for a process that is started here would inherit the mask.
        """
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False
        if self._held is not None:
            raise Interrupted(self._held)

    def ignore(self) -> None:
        """From here on nothing interrupts: a second Ctrl-C must not end the clean-up."""
        self._is_holding = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._is_holding:
            raise Interrupted(number)
        self._held = number
