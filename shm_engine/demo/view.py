"""view.py - what the user sees while the agents work, and the summary.

Why:        a terminal gets a live table, everything else (a pipe, a log, a dumb terminal) plain
            lines; both are fed by the same calls.
Used by:    the parent, one thread
Invariants: V1 names of files are shown through printable(): no file's name can write control
               characters to the terminal (test_demo.py)
            V2 nothing is wider than the console: long paths lose their start, which tells least
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shm_engine.demo import records
from shm_engine.demo.pool import AgentView, Progress
from shm_engine.demo.survey import printable

PLAIN_STEPS = 10
PLAIN_AGENTS_MAX = 8
RECOUNT_REFRESH_S = 0.1

WIDE_COLUMNS = 76
"""Narrower terminals do without the process ids and the files."""

OTHER_COLUMNS_WIDTH = 64
"""What the table takes beside its last column, the file."""

_STATE_STYLES = {
    records.STARTING: "dim",
    records.WORKING: "green",
    records.IDLE: "yellow",
    records.FINISHED: "cyan",
    records.DEAD: "bold red",
    "killed": "bold red",
}


class View(Protocol):
    """The running job's display."""

    def __enter__(self) -> View: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def progress(self, progress: Progress) -> None:
        """Show the job's state."""

    def event(self, text: str) -> None:
        """Show something that happened, and keep it visible."""

    def recount(self, done: int, total: int) -> None:
        """Show how far the recount is."""


def make_view(console: Console) -> View:
    """The live view for a terminal, plain lines for anything else."""
    if console.file.isatty() and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView(console)


def shorten(path: str, width: int) -> str:
    """The path in printable characters, without its start where it is longer than `width`."""
    text = printable(path)
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]


def plural(count: int, noun: str, ending: str = "s") -> str:
    """The count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}" + ("" if count == 1 else ending)


def print_line(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """One line; wrapped at words on a terminal, whole in a pipe or a log."""
    if console.is_terminal:
        console.print(Padding(Text(text, style=style), (0, 0, 0, indent)))
    else:
        console.print(Text(" " * indent + text, style=style), soft_wrap=True)


def print_item(console: Console, text: str) -> None:
    """One line of a list; where it is wrapped, the rest stands further in."""
    if not console.is_terminal:
        print_line(console, text, indent=2)
        return
    lines = Text(text).wrap(console, max(20, console.width - 4))
    for number, line in enumerate(lines):
        console.print(Padding(line, (0, 0, 0, 4 if number else 2)))


class PlainView:
    """A line for every tenth of the job, and one for every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = 0
        self._recount_step = 0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def progress(self, progress: Progress) -> None:
        """A line when another tenth is done."""
        step = progress.done * PLAIN_STEPS // max(1, progress.file_count)
        if step == self._step:
            return
        self._step = step
        agents = ", ".join(
            f"worker {agent.worker} {agent.state} {agent.files_per_s:,.0f}/s"
            for agent in progress.agents[:PLAIN_AGENTS_MAX]
        )
        self._print(f"{_headline(progress)}: {agents}")

    def event(self, text: str) -> None:
        """One line."""
        self._print(text)

    def recount(self, done: int, total: int) -> None:
        """A line at the half and at the end."""
        step = done * 2 // max(1, total)
        if step != self._recount_step:
            self._recount_step = step
            self._print(f"recount: {done:,} of {total:,} files")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A table of the agents that is drawn again in place, with the events above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._body: RenderableType = Text("starting the workers ...")
        self._recount_line: RenderableType | None = None
        self._recount_drawn_s = 0.0

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw()
        self._live.__exit__(kind, error, trace)

    def progress(self, progress: Progress) -> None:
        """Draw the bar, the sums and a row for each agent."""
        self._body = Group(
            _bar("surveyed", progress.done, progress.file_count),
            Text(_headline(progress), overflow="ellipsis", no_wrap=True),
            self._agents(progress.agents),
        )
        self._draw()

    def event(self, text: str) -> None:
        """A line above the table."""
        self._live.console.print(Text(text))

    def recount(self, done: int, total: int) -> None:
        """The recount's own bar, below the table."""
        now_s = time.monotonic()
        if done < total and now_s - self._recount_drawn_s < RECOUNT_REFRESH_S:
            return
        self._recount_drawn_s = now_s
        self._recount_line = _bar("recounted", done, total)
        self._draw()

    def _draw(self) -> None:
        parts = [self._body]
        if self._recount_line is not None:
            parts.append(self._recount_line)
        self._live.update(Group(*parts), refresh=True)

    def _agents(self, agents: list[AgentView]) -> RenderableType:
        is_wide = self._console.width >= WIDE_COLUMNS
        rows_max = max(1, self._console.height - 8)
        table = Table(box=None, pad_edge=False, expand=False, header_style="dim")
        table.add_column("worker", no_wrap=True)
        if is_wide:
            table.add_column("pid", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for name in ("files", "files/s", "commits", "conflicts"):
            table.add_column(name, justify="right", no_wrap=True)
        if is_wide:
            table.add_column("file", no_wrap=True, overflow="ellipsis")
        for agent in agents[:rows_max]:
            table.add_row(*self._row(agent, is_wide))
        if len(agents) > rows_max:
            return Group(table, Text(f"... and {plural(len(agents) - rows_max, 'more worker')}"))
        return table

    def _row(self, agent: AgentView, is_wide: bool) -> list[str | Text]:
        state = Text(agent.state, style=_STATE_STYLES.get(agent.state, ""))
        counts = (agent.files, round(agent.files_per_s), agent.commits, agent.conflicts)
        row: list[str | Text] = [str(agent.worker), state, *(f"{count:,}" for count in counts)]
        if not is_wide:
            return row
        width = max(10, self._console.width - OTHER_COLUMNS_WIDTH)
        file = Text("" if agent.file is None else shorten(agent.file, width))
        return [row[0], str(agent.pid), *row[1:], file]


def _headline(progress: Progress) -> str:
    seconds = max(progress.elapsed_s, 1e-6)
    return (
        f"{progress.done:,} of {progress.file_count:,} files, {progress.elapsed_s:.1f} s,"
        f" {progress.done / seconds:,.0f} files/s, {plural(progress.commits, 'commit')}"
        f" ({progress.commits / seconds:,.0f}/s), {plural(progress.conflicts, 'conflict')}"
    )


def _bar(label: str, done: int, total: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=9)
    grid.add_column()
    grid.add_column(justify="right")
    share = done * 100 // total if total else 100
    grid.add_row(label, ProgressBar(total=max(1, total), completed=done, width=40), f"{share}%")
    return grid
