"""plots.py - pictures of the results: workloads, queries, durability, all goals.

Why:        A ratio that falls with the number of processes is seen at once in a picture and hardly
            in a table.
Used by:    __main__.py, after everything was measured (matplotlib is imported by nobody else)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import EngFormatter, NullFormatter

from bench import alone, durable
from bench.goals import Judgement, Sense, Verdict
from bench.options import Options
from bench.peers import FLOOR, LMDB, SHM_ENGINE
from bench.rounds import WORKLOADS
from bench.stats import Figure
from bench.workload import CHECKED, LIGHT

_COLOURS = {SHM_ENGINE: "#1f6fb2", LMDB: "#d9822b", FLOOR: "#8c8c8c"}
_LABELS = {SHM_ENGINE: "shm_engine", LMDB: "LMDB, no sync", FLOOR: "dict + msgpack (one process)"}
_VERDICT_COLOURS = {Verdict.MET: "#2e8b57", Verdict.MISSED: "#c0392b"}
_DPI = 130
_WIDTH = 0.36


def _save(picture: Picture, path: Path) -> Path:
    FigureCanvasAgg(picture)
    picture.savefig(path, dpi=_DPI)
    return path


def _bars(
    axes: Axes, figures: Mapping[str, Figure], prefix: str, measure: str, options: Options
) -> None:
    """Draw one bar per peer and number of processes, with the spread of the rounds."""
    for shift, peer in enumerate((SHM_ENGINE, LMDB)):
        for place, processes in enumerate(options.processes):
            figure = figures.get(f"{prefix}.{processes}.{peer}.{measure}")
            if figure is None:
                continue
            middle = figure.median
            axes.bar(
                place + (shift - 0.5) * _WIDTH,
                middle,
                _WIDTH,
                color=_COLOURS[peer],
                label=_LABELS[peer] if place == 0 else None,
                yerr=[[middle - figure.low], [figure.high - middle]],
                capsize=3,
                error_kw={"elinewidth": 1},
            )
    axes.set_xticks(range(len(options.processes)), [str(n) for n in options.processes])
    axes.set_xlabel("processes")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _rates(axes: Axes, figures: Mapping[str, Figure], prefix: str, options: Options) -> None:
    _bars(axes, figures, prefix, "rate", options)
    floor = figures.get(f"{prefix}.1.{FLOOR}.rate")
    if floor is not None:
        axes.axhline(floor.median, color=_COLOURS[FLOOR], linestyle="--", label=_LABELS[FLOOR])
    for place, processes in enumerate(options.processes):
        ratio = figures.get(f"{prefix}.{processes}.vs_lmdb")
        ours = figures.get(f"{prefix}.{processes}.{SHM_ENGINE}.rate")
        if ratio is not None and ours is not None:
            axes.annotate(
                f"{ratio.median:.2f}x", (place - _WIDTH / 2, ours.high), ha="center",
                va="bottom", xytext=(0, 3), textcoords="offset points", fontsize=9,
            )  # fmt: skip
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_ylabel("calls per second, all processes together")


def _waits(axes: Axes, figures: Mapping[str, Figure], prefix: str, options: Options) -> None:
    """Draw p50, p99 and the worst wait of each peer over the number of processes."""
    styles = {"p50_us": ("o", "-", 1.0), "p99_us": ("s", "--", 1.0), "worst_ms": ("^", ":", 1e3)}
    for peer in (SHM_ENGINE, LMDB):
        for measure, (marker, line, scale) in styles.items():
            places, heights = [], []
            for place, processes in enumerate(options.processes):
                figure = figures.get(f"{prefix}.{processes}.{peer}.{measure}")
                if figure is not None:
                    places.append(place)
                    heights.append(figure.median * scale)
            if places:
                label = f"{_LABELS[peer]}, {measure.split('_')[0]}"
                axes.plot(places, heights, marker=marker, linestyle=line, color=_COLOURS[peer],
                          label=label)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(range(len(options.processes)), [str(n) for n in options.processes])
    axes.set_xlabel("processes")
    axes.set_ylabel("wait per call, us (log)")
    axes.grid(axis="y", which="both", alpha=0.25)


def _workload(figures: Mapping[str, Figure], name: str, options: Options, path: Path) -> Path:
    panels = [harness for harness in (LIGHT, CHECKED) if harness in options.harnesses]
    count = len(panels) + (CHECKED in panels)
    picture = Picture(figsize=(4.6 * count, 4.4), layout="constrained")
    axes = picture.subplots(1, count, squeeze=False)[0]
    for place, harness in enumerate(panels):
        _rates(axes[place], figures, f"{name}.{harness}", options)
        axes[place].set_title(f"{harness} harness")
    if CHECKED in panels:
        _waits(axes[-1], figures, f"{name}.{CHECKED}", options)
        axes[-1].set_title("waits, checked harness")
    for each in axes:
        if each.get_legend_handles_labels()[0]:
            each.legend(fontsize=8, loc="best")
    rounds = (
        "1 round" if options.rounds == 1 else f"median of {options.rounds} rounds, bars min..max"
    )
    picture.suptitle(
        f"{WORKLOADS[name].title}   ({rounds}; numbers over bars: x LMDB)", fontsize=11
    )
    return _save(picture, path)


_DURABLE_COLOURS = {"strict": "#1f6fb2", "lmdb": "#d9822b", "sqlite": "#6b8e23", "redis": "#c0392b"}


def _durable(figures: Mapping[str, Figure], path: Path) -> Path:
    """Draw the modes beside each other, and strict beside its peers and the bare disk."""
    picture = Picture(figsize=(11.0, 4.4), layout="constrained")
    modes, synced = picture.subplots(1, 2)
    for shift, clients in enumerate((1, 2)):
        found = [(mode, figures.get(f"durable.{mode}.{clients}.rate")) for mode in durable.MODES]
        for place, (_, figure) in enumerate(found):
            if figure is not None:
                modes.bar(
                    place + (shift - 0.5) * _WIDTH, figure.median, _WIDTH,
                    color=("#1f6fb2", "#8ab6d6")[shift],
                    yerr=[[figure.median - figure.low], [figure.high - figure.median]],
                    label=f"{clients} process{'es' if clients > 1 else ''}" if place == 0 else None,
                )  # fmt: skip
    modes.set_xticks(range(len(durable.MODES)), durable.MODES)
    modes.set_yscale("log")
    modes.set_title("shm_engine, put by mode")
    for peer, colour in _DURABLE_COLOURS.items():
        points = [
            (clients, figure)
            for clients in (1, 2, 4, 16, 64)
            if (figure := figures.get(f"durable.{peer}.{clients}.rate")) is not None
        ]
        if points:
            synced.errorbar(
                [clients for clients, _ in points],
                [figure.median for _, figure in points],
                yerr=[
                    [figure.median - figure.low for _, figure in points],
                    [figure.high - figure.median for _, figure in points],
                ],
                marker="o", color=colour, capsize=3,
                label="shm_engine, strict" if peer == "strict" else f"{peer}, synced",
            )  # fmt: skip
    for raw, line in zip(durable.RAW, ("--", ":"), strict=True):
        figure = figures.get(f"durable.{raw}.1.rate")
        if figure is not None:
            label = raw.replace("_", ", ")
            synced.axhline(figure.median, color=_COLOURS[FLOOR], linestyle=line, label=label)
    synced.set_xscale("log", base=2)
    synced.set_xticks([1, 2, 4, 16, 64], ["1", "2", "4", "16", "64"])
    synced.set_yscale("log")
    synced.set_xlabel("clients that wait at once")
    synced.set_title("every acknowledged put is on the disk")
    for axes in (modes, synced):
        axes.set_ylabel("puts per second, all clients together (log)")
        axes.grid(axis="y", which="both", alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return _save(picture, path)


def _alone(figures: Mapping[str, Figure], name: str, options: Options, path: Path) -> Path:
    """Draw the rates of the workloads that only the engine is asked, a bar for each."""
    panels = [harness for harness in (LIGHT, CHECKED) if harness in options.harnesses]
    picture = Picture(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    for axes, harness in zip(
        picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        keys = [
            key for key in figures if key.startswith(f"{name}.{harness}.") and key.endswith(".rate")
        ]
        for place, key in enumerate(keys):
            figure = figures[key]
            spread = [[figure.median - figure.low], [figure.high - figure.median]]
            axes.bar(place, figure.median, 0.6, color=_COLOURS[SHM_ENGINE], yerr=spread, capsize=3)
        labels = [f"{workload}\n{n}" for _, _, n, workload, _ in (key.split(".") for key in keys)]
        axes.set_xticks(range(len(keys)), labels)
        axes.set_xlabel("workload, and how many processes run it")
        axes.set_ylabel("calls per second, all processes together")
        axes.yaxis.set_major_formatter(EngFormatter())
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_title(f"{name}, {harness} harness")
    return _save(picture, path)


def _queries(figures: Mapping[str, Figure], path: Path) -> Path:
    """Draw the time of each query over the number of records: flat is what is wanted."""
    picture = Picture(figsize=(10.6, 4.4), layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    for axes, way in zip(panels, ("same", "scattered"), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for key, figure in figures.items():
            if key.startswith("queries.") and f".{way}." in key and key.endswith("_us"):
                _, kind, query, _, size = key.split(".")
                records = 1000 * int(size.removesuffix("k_us"))
                lines.setdefault(f"{kind} by {query}", []).append((records, figure.median))
        for label, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("records in all")
        axes.set_title(f"{way} ten")
        axes.grid(which="both", alpha=0.25)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    picture.supylabel("us for a query that finds ten (log)", fontsize=10)
    return _save(picture, path)


def _headroom(judgement: Judgement) -> float | None:
    """Return how many times better than its goal a figure is: 1.0 is just met."""
    goal, figure = judgement.goal, judgement.figure
    if figure is None or goal.limit <= 0:
        return None
    measured = goal.measured(figure)
    if goal.sense is Sense.AT_LEAST:
        return measured / goal.limit
    return goal.limit / measured if measured > 0 else None


def _goals(judgements: Sequence[Judgement], path: Path) -> Path | None:
    rows = [
        (judgement, headroom)
        for judgement in judgements
        if (headroom := _headroom(judgement)) is not None
    ]
    if not rows:
        return None
    picture = Picture(figsize=(9.0, 1.2 + 0.27 * len(rows)), layout="constrained")
    axes = picture.subplots()
    for place, (judgement, headroom) in enumerate(rows):
        colour = _VERDICT_COLOURS.get(judgement.verdict, _COLOURS[FLOOR])
        axes.barh(place, headroom, color=colour)
        goal, figure = judgement.goal, judgement.figure
        if figure is not None:
            text = f" {goal.measured(figure):.3g} (goal {goal.sense.value} {goal.limit:g})"
            axes.annotate(text, (headroom, place), va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [judgement.goal.text for judgement, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.3, y=0.01)
    axes.set_xlabel("times better than the goal (1 = just met, log)")
    axes.set_title("goals: green is met, red is missed, grey was not judged")
    return _save(picture, path)


def draw(
    figures: Mapping[str, Figure],
    judgements: Sequence[Judgement],
    options: Options,
    stamp: str,
) -> list[Path]:
    """Draw every picture that there are figures for, and return their paths."""
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [
        _workload(figures, name, options, options.output / f"{name}-{stamp}.png")
        for name in options.questions
        if name in WORKLOADS and any(key.startswith(f"{name}.") for key in figures)
    ]
    paths += [
        _alone(figures, name, options, options.output / f"{name}-{stamp}.png")
        for name in options.questions
        if name in alone.QUESTIONS and any(key.startswith(f"{name}.") for key in figures)
    ]
    if any(key.startswith("queries.") for key in figures):
        paths.append(_queries(figures, options.output / f"queries-{stamp}.png"))
    if any(key.startswith("durable.") for key in figures):
        paths.append(_durable(figures, options.output / f"durable-{stamp}.png"))
    goals = _goals(judgements, options.output / f"goals-{stamp}.png")
    return paths if goals is None else [*paths, goals]
