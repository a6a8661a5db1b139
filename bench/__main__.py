"""__main__.py - python -m bench: asks the questions one after the other and reports.

Why:        One command for everything that is claimed about speed and size. What was measured is
            written after each question, so that an interrupted run keeps what it has.
Used by:    make bench, make bench-short
Errors:     exit 1: a write was lost, a question failed, or a figure that must exist does not;
            exit 2 (with --strict): a speed goal was missed
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from rich.console import Console

from bench import results, rounds, table
from bench.goals import Judgement, Verdict, goals_of, judge
from bench.machine import busy_warning, facts
from bench.options import Options, parse
from bench.results import Answer
from bench.rounds import WORKLOADS
from bench.stats import Figure, by_key

OK, FAILED, MISSED = 0, 1, 2


def asker(question: str) -> Callable[[str, Options], Answer]:
    """Return the function that answers a question: its own file's, or the rounds' for workloads."""
    if question in WORKLOADS:
        return rounds.ask
    found: Callable[[str, Options], Answer] = importlib.import_module(f"bench.{question}").ask
    return found


def _ask_all(
    options: Options, console: Console, stamp: str
) -> tuple[list[Figure], list[str], list[str]]:
    """Ask every question; return the figures, the losses and the failures."""
    machine = facts()
    warning = busy_warning(os.getloadavg()[0])
    if warning:
        console.print(f"[yellow]{warning}[/yellow]")
    figures: list[Figure] = []
    losses: list[str] = []
    failures: list[str] = []
    for question in options.questions:
        begin = time.monotonic()
        try:
            answer = asker(question)(question, options)
        except Exception as error:
            traceback.print_exc()
            failures.append(f"{question}: {type(error).__name__}: {error}")
            continue
        judged = _judge((question,), by_key(answer.figures), options)
        path = results.write(answer, judged, machine, options, stamp)
        figures.extend(answer.figures)
        losses.extend(f"{question}: {loss}" for loss in answer.losses)
        took = time.monotonic() - begin
        checked = f"{answer.checks} checks, {len(answer.losses)} lost"
        console.print(f"{question:8} {took:6.1f} s   {checked}   {path.name}")
        for note in answer.notes:
            console.print(f"         {note}")
    return figures, losses, failures


def _judge(
    questions: Sequence[str], figures: Mapping[str, Figure], options: Options
) -> list[Judgement]:
    return [judge(goal, figures, speed=not options.short) for goal in goals_of(questions)]


def missing(judgements: Sequence[Judgement], options: Options) -> list[str]:
    """Return the goals without a figure, where every peer, harness and process count was asked."""
    whole = Options()
    asked_all = (
        set(options.peers) == set(whole.peers)
        and set(options.harnesses) == set(whole.harnesses)
        and set(whole.processes) <= set(options.processes)
    )
    if not asked_all:
        return []
    return [
        judgement.goal.key
        for judgement in judgements
        if judgement.verdict is Verdict.NOT_MEASURED and not judgement.goal.optional
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit status."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    found, losses, failures = _ask_all(options, console, stamp)
    figures = by_key(found)
    judgements = _judge(options.questions, figures, options)
    table.show(console, judgements, figures, options)
    if options.plots:
        from bench import plots

        for path in plots.draw(figures, judgements, options, stamp):
            console.print(f"drew {path.name}")
    absent = [] if failures else missing(judgements, options)
    failures.extend(f"no figure for {key}" for key in absent)
    for failure in failures:
        console.print(f"[bold red]failed[/bold red] {failure}", markup=True)
    for loss in losses[:20]:
        console.print("LOST", loss, markup=False)
    if losses or failures:
        return FAILED
    missed = [judgement for judgement in judgements if judgement.verdict is Verdict.MISSED]
    return MISSED if missed and options.strict else OK


if __name__ == "__main__":
    sys.exit(main())
