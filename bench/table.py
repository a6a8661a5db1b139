"""table.py - what is printed: the measurements and the goals.

Why:        Somebody who ran the bench wants two answers: how fast is it beside its peers, and
            which goals does it meet. One table for each.
Used by:    __main__.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.goals import Goal, Judgement, Verdict
from bench.options import Options
from bench.peers import FLOOR, LMDB, SHM_ENGINE
from bench.rounds import WORKLOADS
from bench.stats import Figure
from bench.workload import CHECKED, HARNESSES

_STYLE = {
    Verdict.MET: "green",
    Verdict.MISSED: "bold red",
    Verdict.NOT_MEASURED: "dim",
    Verdict.NOT_JUDGED: "dim",
}
_NONE = "-"


def amount(number: float) -> str:
    """Return a number with as many digits as can be told apart from noise."""
    size = abs(number)
    if size >= 1e6:
        return f"{number / 1e6:.2f} M"
    if size >= 1e4:
        return f"{number / 1e3:.0f} k"
    if size >= 100 or number == int(number):
        return f"{number:.0f}"
    return f"{number:.2f}"


def spread(figure: Figure) -> str:
    """Return the smallest and the largest sample."""
    if len(figure.samples) == 1:
        return _NONE
    return f"{amount(figure.low)}..{amount(figure.high)}"


def _shown(figures: Mapping[str, Figure], key: str, *, with_spread: bool = False) -> str:
    figure = figures.get(key)
    if figure is None:
        return _NONE
    text = amount(figure.median)
    if with_spread and len(figure.samples) > 1:
        text += f" ({spread(figure)})"
    return text


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def rates(figures: Mapping[str, Figure], options: Options) -> Table:
    """Return the table of the workloads: calls per second and the ratios between the peers."""
    table = _table(
        "calls per second of all processes together (median of the rounds)",
        ("workload", "harness", "procs"),
        ("shm_engine", "LMDB", "floor", "x LMDB (spread)", "us over floor", "x one"),
    )
    for name in (name for name in options.questions if name in WORKLOADS):
        for harness in options.harnesses:
            for processes in options.processes:
                prefix = f"{name}.{harness}.{processes}"
                table.add_row(
                    name,
                    harness,
                    str(processes),
                    _shown(figures, f"{prefix}.{SHM_ENGINE}.rate"),
                    _shown(figures, f"{prefix}.{LMDB}.rate"),
                    _shown(figures, f"{prefix}.{FLOOR}.rate"),
                    _shown(figures, f"{prefix}.vs_lmdb", with_spread=True),
                    _shown(figures, f"{prefix}.over_floor_us"),
                    _shown(figures, f"{prefix}.scaling"),
                )
            table.add_section()
    return table


def alone(figures: Mapping[str, Figure], options: Options) -> Table:
    """Return the table of the workloads that only the engine is asked, a row for each."""
    table = _table(
        "shm_engine alone (median of the rounds)",
        ("question", "workload", "harness", "procs"),
        ("calls/s (spread)", "p50 us", "p99 us", "worst ms", "slowest / fastest", "retries"),
    )
    measures = ("p50_us", "p99_us", "worst_ms", "fairness", "retries")
    for key in figures:
        place = _place(key)
        if place is None or place[0] not in options.questions or not key.endswith(".rate"):
            continue
        question, harness, processes, workload, _ = place
        prefix = key.removesuffix(".rate")
        cells = [_shown(figures, f"{prefix}.{measure}") for measure in measures]
        rate = _shown(figures, key, with_spread=True)
        table.add_row(question, workload, harness, processes, rate, *cells)
    return table


def _place(key: str) -> list[str] | None:
    """Return question, harness, processes, workload, measure of a figure of `alone`, or None."""
    parts = key.split(".")
    if len(parts) != 5 or parts[0] in WORKLOADS or parts[1] not in HARNESSES:
        return None
    return parts


def queries(figures: Mapping[str, Figure]) -> Table:
    """Return the table of the queries: what each costs in each store, and how that has grown."""
    found = [key.split(".") for key in figures if key.startswith("queries.") and "_us" in key]
    sizes = list(dict.fromkeys(size for *_, size in found))
    table = _table(
        "us for a query that finds ten, by the records there are (median of the rounds)",
        ("records", "by", "asked for"),
        (*(size.removesuffix("_us") for size in sizes), "growth (spread)"),
    )
    for prefix in dict.fromkeys(".".join(parts[:-1]) for parts in found):
        _, kind, query, way = prefix.split(".")
        cells = [_shown(figures, f"{prefix}.{size}") for size in sizes]
        growth = _shown(figures, f"{prefix}.growth", with_spread=True)
        table.add_row(kind, query, f"{way} ten", *cells, growth)
    return table


def waits(figures: Mapping[str, Figure], options: Options) -> Table:
    """Return the table of what callers waited, each cell as shm_engine / LMDB."""
    table = _table(
        "waits, checked harness: shm_engine / LMDB (median of the rounds)",
        ("workload", "procs"),
        ("p50 us", "p99 us", "worst ms", "slowest / fastest process", "conflicts", "retries"),
    )
    asked = CHECKED in options.harnesses
    for name in (name for name in options.questions if name in WORKLOADS and asked):
        for processes in options.processes:
            prefix = f"{name}.{CHECKED}.{processes}"
            cells = [
                " / ".join(
                    _shown(figures, f"{prefix}.{peer}.{measure}") for peer in (SHM_ENGINE, LMDB)
                )
                for measure in ("p50_us", "p99_us", "worst_ms", "fairness")
            ]
            cells += [
                _shown(figures, f"{prefix}.{SHM_ENGINE}.{counted}")
                for counted in ("conflicts", "retries")
            ]
            table.add_row(name, str(processes), *cells)
        table.add_section()
    return table


def _absolute(goal: Goal, figures: Mapping[str, Figure]) -> str:
    """Return the absolute figure behind a goal that is a ratio, with its unit."""
    figure = figures.get(goal.shown)
    return _NONE if figure is None else f"{amount(figure.median)} {figure.unit}"


def verdicts(judgements: Sequence[Judgement], figures: Mapping[str, Figure]) -> Table:
    """Return the table of the goals: goal, figure, ratio, spread, met or missed."""
    table = _table("goals", ("what",), ("goal", "figure", "measured", "spread", "verdict"))
    for judgement in judgements:
        goal, figure = judgement.goal, judgement.figure
        style = _STYLE[judgement.verdict]
        table.add_row(
            goal.text,
            f"{goal.sense.value} {amount(goal.limit)} {goal.unit}",
            _absolute(goal, figures),
            _NONE if figure is None else amount(goal.measured(figure)),
            _NONE if figure is None else spread(figure),
            f"[{style}]{judgement.verdict.value}[/{style}]",
        )
    return table


def others(figures: Mapping[str, Figure], options: Options) -> Table:
    """Return the table of the questions that are no workloads: every other figure they gave."""
    table = _table("further figures (median)", ("figure",), ("median", "spread", "unit"))
    wanted = [name for name in options.questions if name not in WORKLOADS]
    for key, figure in figures.items():
        in_tables = _place(key) is not None or key.startswith("queries.")
        if key.split(".", 1)[0] in wanted and not in_tables:
            table.add_row(key, amount(figure.median), spread(figure), figure.unit)
    return table


def show(
    console: Console,
    judgements: Sequence[Judgement],
    figures: Mapping[str, Figure],
    options: Options,
) -> None:
    """Print the tables that have rows."""
    for table in (
        rates(figures, options),
        waits(figures, options),
        alone(figures, options),
        queries(figures),
        others(figures, options),
        verdicts(judgements, figures),
    ):
        if table.row_count:
            console.print(table)
