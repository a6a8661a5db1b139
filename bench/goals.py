"""goals.py - the one table of goals, and how a figure is judged against one.

Why:        What counts as fast enough is decided once, here, and not by whoever reads a table.
            The limits are those of the design ("Speed: what to beat, and by how much"). What the
            in-mem plan asks of its primitives is far less; PLAN has it, and every one of its rates
            is held by a goal that is at least as high.
Used by:    __main__.py, table.py, plots.py, tests/unit/test_bench.py; pure functions
Invariants: R1 every goal names a figure that some question produces (test_bench: goals_are_asked)
            R2 a goal whose figure is missing is never called met (judge)
            R3 no rate of the plan is without a goal (test_bench: rates_of_the_plan)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from bench.stats import Figure


class Sense(Enum):
    AT_LEAST = ">="
    AT_MOST = "<="


class Verdict(Enum):
    MET = "met"
    MISSED = "missed"
    NOT_MEASURED = "not measured"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Goal:
    """A limit on one figure. `worst_round` judges the worst sample in place of the median.

    `optional`: against a peer that need not be installed.
    """

    key: str
    sense: Sense
    limit: float
    unit: str
    text: str
    shown: str = ""
    worst_round: bool = False
    speed: bool = True
    optional: bool = False

    @property
    def question(self) -> str:
        return self.key.split(".", 1)[0]

    def measured(self, figure: Figure) -> float:
        """Return the number that is held against the limit."""
        if not self.worst_round:
            return figure.median
        return figure.low if self.sense is Sense.AT_LEAST else figure.high

    def holds(self, number: float) -> bool:
        return number >= self.limit if self.sense is Sense.AT_LEAST else number <= self.limit


@dataclass(frozen=True)
class Judgement:
    goal: Goal
    figure: Figure | None
    verdict: Verdict

    def as_json(self) -> dict[str, object]:
        figure = self.figure
        return {
            "key": self.goal.key,
            "text": self.goal.text,
            "goal": f"{self.goal.sense.value} {self.goal.limit:g} {self.goal.unit}".strip(),
            "measured": None if figure is None else self.goal.measured(figure),
            "figure": None if figure is None else figure.as_json(),
            "verdict": self.verdict.value,
        }


def _least(key: str, limit: float, unit: str, text: str, shown: str = "") -> Goal:
    return Goal(key, Sense.AT_LEAST, limit, unit, text, shown)


def _most(key: str, limit: float, unit: str, text: str, worst: bool = False) -> Goal:
    return Goal(key, Sense.AT_MOST, limit, unit, text, worst_round=worst)


def _against_lmdb(
    workload: str, harness: str, limits: Mapping[int, float], text: str
) -> tuple[Goal, ...]:
    prefix = f"{workload}.{harness}"
    return tuple(
        _least(
            f"{prefix}.{processes}.vs_lmdb",
            limit,
            "x LMDB",
            f"{text}, {processes} process{'es' if processes > 1 else ''}",
            shown=f"{prefix}.{processes}.shm_engine.rate",
        )
        for processes, limit in limits.items()
    )


def _memory(size: str, count: str) -> tuple[Goal, ...]:
    return tuple(
        _most(f"memory.shm_engine.{size}_{kind}overhead", 120.0, "bytes over key and value", text)
        for kind, text in (
            ("", f"memory, {count} counting keys"),
            ("random_", f"memory, {count} random keys"),
        )
    )


PLAN: Mapping[str, int] = {
    "put.light.1.shm_engine.rate": 10_000,
    "get.light.1.shm_engine.rate": 20_000,
    "append.checked.1.shm_engine.rate": 5_000,
    "state.light.1.cas.rate": 5_000,
    "trace.light.1.record.rate": 2_000,
    "four.light.1.transaction.rate": 1_000,
}
"""The least rates of the in-mem plan: its benchmarks of put, get, event append, cas, trace record
and a transaction over four primitives."""


def _of_the_plan(key: str, text: str) -> Goal:
    return _least(key, PLAN[key], "/s", f"{text}, 1 process, rate")


def _growth(kind: str, query: str) -> Goal:
    return _most(
        f"queries.{kind}.{query}.scattered.growth",
        2.0,
        "x 1 k records",
        f"{kind} by {query}, 1 M records",
    )


GOALS: tuple[Goal, ...] = (
    _most("put.light.1.over_floor_us", 0.45, "us over the floor", "put, light"),
    *_against_lmdb("put", "light", {1: 1.5, 2: 3.0, 4: 3.0}, "put, light"),
    _least(
        "put.light.2.scaling",
        1.8,
        "x one process",
        "put, light, 2 processes against 1",
        shown="put.light.2.shm_engine.rate",
    ),
    _least("put.light.1.shm_engine.rate", 250_000, "/s", "put, light, 1 process, rate"),
    _least("put.light.4.shm_engine.rate", 800_000, "/s", "put, light, 4 processes, rate"),
    _most("get.light.1.over_floor_us", 0.25, "us over the floor", "get, light"),
    *_against_lmdb("get", "light", {1: 1.4, 2: 1.4, 4: 1.4}, "get, light"),
    _of_the_plan("get.light.1.shm_engine.rate", "get, light"),
    _most("get.checked.1.shm_engine.p50_us", 10.0, "us", "get, p50"),
    *_against_lmdb("put", "checked", {1: 1.2, 2: 2.0, 4: 2.0}, "put, checked"),
    *_against_lmdb("incr", "checked", {2: 1.5, 4: 1.5}, "increment, checked"),
    _most(
        "incr.checked.4.shm_engine.conflicts", 0, "conflicts", "increment, conflicts", worst=True
    ),
    *_against_lmdb("batch", "checked", {1: 1.2, 2: 1.2, 4: 1.2}, "batch of 1000"),
    *_against_lmdb("scan", "checked", {1: 1.1, 2: 1.1, 4: 1.1}, "scan of 1000"),
    *_against_lmdb("append", "checked", {1: 1.0, 2: 1.0, 4: 1.0}, "append, checked"),
    _of_the_plan("append.checked.1.shm_engine.rate", "append, checked"),
    *(
        _least(
            f"state.light.1.{kind}_vs_put",
            0.7,
            "x put",
            f"{kind} of a state cell, light",
            shown=f"state.light.1.{kind}.rate",
        )
        for kind in ("cas", "transition")
    ),
    _of_the_plan("state.light.1.cas.rate", "cas, light"),
    _least("trace.light.1.record.rate", 100_000, "/s", "trace with two tags, 1 process"),
    _most("trace.shm_engine.tree_ms", 50.0, "ms", "tree of 10,000 traces"),
    _least("four.light.1.transaction.rate", 80_000, "/s", "four primitives in one, 1 process"),
    *(_growth("traces", query) for query in ("type", "tag", "parent", "time")),
    *(_growth("runs", query) for query in ("status", "tag")),
    *(_growth("events", query) for query in ("type", "time")),
    _least("put.checked.4.shm_engine.fairness", 0.8, "slowest / fastest", "put, fairness at 4"),
    _least("incr.checked.4.shm_engine.fairness", 0.8, "slowest / fastest", "incr, fairness at 4"),
    _most("put.checked.4.shm_engine.worst_ms", 10.0, "ms", "put, worst wait at 4", worst=True),
    _most("incr.checked.4.shm_engine.worst_ms", 10.0, "ms", "incr, worst wait at 4", worst=True),
    _most("section.shm_engine.update_ns", 150.0, "ns", "critical section of an update"),
    _most("section.shm_engine.insert_ns", 500.0, "ns", "critical section of a new key"),
    *_memory("small", "100 k"),
    *_memory("large", "1 M"),
    _most("million.shm_engine.put_slowdown", 1.5, "x slower", "put, 1 M keys against 10 k"),
    _most("million.shm_engine.get_slowdown", 1.5, "x slower", "get, 1 M keys against 10 k"),
    _most("opening.ephemeral_ms", 5.0, "ms", "ephemeral()"),
    _most("opening.join_ms", 10.0, "ms", "joining"),
    _most("opening.join_full_ms", 10.0, "ms", "joining a store with many keys"),
    _most("opening.start_ms", 250.0, "ms", "starting a coordinator"),
    _most("refusal.shm_engine.difference_ns", 20.0, "ns", "put, whether the run is active"),
    _most("erase.shm_engine.worst_ms", 10.0, "ms", "wait while 1 M keys go", worst=True),
    _most("kill.shm_engine.next_write_ms", 5.0, "ms", "next write after kill -9", worst=True),
    *(
        _least(
            f"durable.buffered.{clients}.vs_in_memory",
            0.85,
            "x in_memory",
            f"buffered put, {clients} process{'es' if clients > 1 else ''}",
            shown=f"durable.buffered.{clients}.rate",
        )
        for clients in (1, 2)
    ),
    _least(
        "durable.strict.1.vs_fdatasync_overwrite",
        0.8,
        "x fdatasync",
        "strict put, 1 writer",
        shown="durable.strict.1.rate",
    ),
    Goal(
        "durable.strict.4.vs_redis",
        Sense.AT_LEAST,
        2.0,
        "x Redis always",
        "strict put, 4 writers",
        shown="durable.strict.4.rate",
        optional=True,
    ),
    *(
        _least(
            f"durable.strict.{more}.vs_{fewer}_clients",
            1.0,
            f"x {fewer} writer{'s' if fewer > 1 else ''}",
            f"strict put, {more} writers against {fewer}",
            shown=f"durable.strict.{more}.rate",
        )
        for fewer, more in ((1, 2), (2, 4), (4, 16), (16, 64))
    ),
    _least("recovery.commits_per_s", 500_000, "/s", "small commits replayed"),
    _least("recovery.mib_per_s", 300, "MiB/s", "checkpoint loaded"),
    _most("recovery.log_over_payload", 1.6, "x key and value", "log bytes of a put"),
)

LOST_WRITES = "lost"


def lost_goal(question: str) -> Goal:
    """Return the goal that every question has: nothing that was acknowledged is lost."""
    return Goal(
        f"{question}.{LOST_WRITES}",
        Sense.AT_MOST,
        0,
        "lost",
        f"{question}, lost writes",
        worst_round=True,
        speed=False,
    )


def goals_of(questions: Iterable[str]) -> tuple[Goal, ...]:
    """Return the goals of these questions, in the order of the table, lost writes last."""
    asked = tuple(questions)
    table = tuple(goal for goal in GOALS if goal.question in asked)
    return table + tuple(lost_goal(question) for question in asked)


def judge(goal: Goal, figures: Mapping[str, Figure], *, speed: bool = True) -> Judgement:
    """Hold one goal against what was measured.

    With `speed=False` (the short mode, whose runs are too short to be judged) only the goals about
    lost writes are decided. A figure that is missing is `NOT_MEASURED`, whatever the goal.
    """
    figure = figures.get(goal.key)
    if figure is None:
        return Judgement(goal, None, Verdict.NOT_MEASURED)
    if goal.speed and not speed:
        return Judgement(goal, figure, Verdict.NOT_JUDGED)
    verdict = Verdict.MET if goal.holds(goal.measured(figure)) else Verdict.MISSED
    return Judgement(goal, figure, verdict)
