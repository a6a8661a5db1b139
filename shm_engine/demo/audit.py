"""audit.py - the audit: what the logs, traces and runs of a survey tell, and where that is wrong.

Why:        a worker and the coordinator are killed on the way, and still each file must have been
            told of exactly once. So everything that was recorded is read again, from the store that
            was opened from its files, and held against the plain recount:
                 chains    every hash of every log is computed anew
                 events    each file has one, surveyed or skipped as the recount says, and an agent
                           that claimed it
                 traces    each file has one tree, and there are as many traces as its trees need
                 runs      Completed, but Failed with the signal's name for an agent that was killed
Used by:    the parent, one thread, when nobody writes any more
Errors:     the engine's; a deviation is a line of text
Cost:       about 10 us for each event and trace
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shm_engine.database import Database
from shm_engine.demo import story
from shm_engine.demo.pool import Death, exit_text
from shm_engine.demo.recount import Recount
from shm_engine.demo.survey import printable
from shm_engine.primitives.event_log import EventLog
from shm_engine.primitives.run_index import RunIndex
from shm_engine.primitives.trace_store import TraceStore
from shm_engine.runs import RunMetadata, RunStatus
from shm_engine.traces import Trace, TraceTree

TAKEN_OVER, SKIPPED, FIRST = "taken over", "skipped", "first"
"""Why the tree that is shown is that of this file."""

Types = Mapping[bytes, list[str]]
"""The types of the events of each file, in the order of the log."""


@dataclass(slots=True)
class Audit:
    """What was recorded, in numbers, one of its trees, and where it deviates."""

    events: int
    agent_events: int
    logs: int
    broken_chains: list[str]
    traces: int
    roots: int
    runs: dict[str, int]
    survey: RunMetadata
    agents: list[RunMetadata]
    tree: dict[str, Any] | None
    differences: list[str] = field(default_factory=list)

    def as_value(self) -> dict[str, Any]:
        """For the summary; `runs` counts all that the store has, those of other surveys too."""
        return {
            "events": {"survey": self.events, "agents": self.agent_events},
            "chain": {
                "verified": not self.broken_chains,
                "logs": self.logs,
                "errors": self.broken_chains,
            },
            "traces": {"count": self.traces, "trees": self.roots},
            "runs": {
                "by_status": self.runs,
                "survey": _run_value(self.survey),
                "agents": [_worker(agent) | _run_value(agent) for agent in self.agents],
            },
            "tree": self.tree,
        }


def audit(database: Database, run: str, plain: Recount, workers: int, deaths: list[Death]) -> Audit:
    """Read all that the survey's run and its children have recorded, and hold it against `plain`.

    `workers` is how many agents there were, `deaths` who of them died.
    """
    log, runs, traces = EventLog(database), RunIndex(database), TraceStore(database)
    survey = runs.get_run(run)
    assert survey is not None
    agents = sorted(runs.get_child_runs(run), key=lambda agent: _worker(agent)["worker"])
    told: dict[bytes, list[str]] = {}
    files_of: Counter[int] = Counter()
    for event in log.iter(run):
        told.setdefault(event.payload["file"], []).append(event.event_type)
        files_of[event.payload["worker"]] += 1
    own = {agent.run_id: _types_and_claims(log, agent.run_id) for agent in agents}
    roots = traces.get_roots(run)
    report = Audit(
        events=log.len(run),
        agent_events=sum(log.len(agent.run_id) for agent in agents),
        logs=1 + len(agents),
        broken_chains=list(_broken_chains(log, survey, agents)),
        traces=traces.count(run),
        roots=len(roots),
        runs=_by_status(runs),
        survey=survey,
        agents=agents,
        tree=_tree(traces, run, roots, plain, deaths),
    )
    claimed = {file for _, files in own.values() for file in files}
    report.differences += [f"chain of {error}" for error in report.broken_chains]
    report.differences += _event_differences(told, claimed, plain)
    report.differences += _trace_differences(report, roots, plain)
    dead = {death.worker: exit_text(death.exit_code) for death in deaths}
    logs = {agent.run_id: own[agent.run_id][0] for agent in agents}
    report.differences += _run_differences(report, logs, files_of, dead, workers)
    return report


def _types_and_claims(log: EventLog, run: str) -> tuple[Counter[str], list[bytes]]:
    """How many events of each type an agent's log has, and which files it claimed."""
    types: Counter[str] = Counter()
    files: list[bytes] = []
    for event in log.iter(run):
        types[event.event_type] += 1
        if event.event_type == story.CLAIMED:
            files.append(event.payload["file"])
    return types, files


# ---- what deviates


def _broken_chains(log: EventLog, survey: RunMetadata, agents: list[RunMetadata]) -> Iterator[str]:
    owners = [("the survey", survey)]
    owners += [(f"worker {_worker(agent)['worker']}", agent) for agent in agents]
    for owner, run in owners:
        found = log.verify_chain(run.run_id)
        if not found.is_valid:
            yield f"{owner}'s log: {found.error}"


def _event_differences(told: Types, claimed: set[bytes], plain: Recount) -> Iterator[str]:
    expected = {
        os.fsencode(path): story.event_type(outcome) for path, outcome in plain.outcomes.items()
    }
    for file in sorted(told.keys() | expected.keys()):
        found, wanted = told.get(file, []), expected.get(file)
        if found != ([] if wanted is None else [wanted]):
            events = ", ".join(found) or "none"
            yield f"{_shown(file)}: events {events}, recount {wanted or 'none'}"
    for file in sorted(expected.keys() - claimed):
        yield f"{_shown(file)}: no agent's log has that it claimed it"


def _trace_differences(report: Audit, roots: list[Trace], plain: Recount) -> Iterator[str]:
    files = len(plain.outcomes)
    if report.roots != files:
        yield f"traces: {report.roots:,} trees, recount {files:,} files"
    skipped = plain.totals["skipped"]
    needed = story.TRACES_OF_SURVEYED * (files - skipped) + story.TRACES_OF_SKIPPED * skipped
    if report.traces != needed:
        yield f"traces: {report.traces:,}, but the files' trees have {needed:,}"
    trees = Counter(_file(root) for root in roots)
    for path in plain.outcomes:
        if (count := trees[os.fsencode(path)]) != 1:
            yield f"{printable(path)}: {count:,} trace trees"


def _run_differences(
    report: Audit,
    logs: dict[str, Counter[str]],
    files_of: Counter[int],
    dead: dict[int, str],
    workers: int,
) -> Iterator[str]:
    """An agent that died after its last event may have completed its run as well."""
    if report.survey.status is not RunStatus.COMPLETED:
        yield f"run of the survey: {report.survey.status}"
    found = [_worker(agent)["worker"] for agent in report.agents]
    if found != list(range(workers)):
        yield f"runs of the agents: workers {found}, but there were {workers:,}"
    for agent in report.agents:
        worker, types = _worker(agent)["worker"], logs[agent.run_id]
        name = f"run of worker {worker}"
        if agent.status is RunStatus.FAILED and worker in dead:
            if agent.error != dead[worker]:
                yield f"{name}: Failed with {agent.error}, but it was {dead[worker]}"
        elif agent.status is not RunStatus.COMPLETED:
            yield f"{name}: {agent.status}"
        elif (started := types[story.STARTED], finished := types[story.FINISHED]) != (1, 1):
            yield f"{name}: Completed, but its log says {started} started, {finished} finished"
        elif types[story.CLAIMED] != files_of[worker]:
            claims, files = types[story.CLAIMED], files_of[worker]
            yield f"{name}: {claims:,} files claimed, but {files:,} surveyed or skipped"


# ---- one tree


def _tree(
    traces: TraceStore, run: str, roots: list[Trace], plain: Recount, deaths: list[Death]
) -> dict[str, Any] | None:
    """The tree that tells most: of a file that was taken over, else of a skipped one, else any."""
    of_file = {_file(root): root for root in reversed(roots)}
    paths = list(plain.outcomes)
    wanted = [(TAKEN_OVER, paths[death.file_index]) for death in deaths if death.has_successor]
    wanted += [
        (SKIPPED, path)
        for path, outcome in plain.outcomes.items()
        if story.event_type(outcome) == story.SKIPPED
    ]
    wanted += [(FIRST, path) for path in paths[:1]]
    for why, path in wanted:
        root = of_file.get(os.fsencode(path))
        tree = None if root is None else traces.get_tree(run, root.id)
        if root is not None and tree is not None:
            told = {name: root.metadata[name] for name in ("worker", "attempt")}
            return {"why": why, "file": printable(path), **told, "root": _tree_value(tree)}
    return None


def _tree_value(tree: TraceTree) -> dict[str, Any]:
    """As plain values; the demo's trees are three deep."""
    trace = tree.trace
    return {
        "type": trace.trace_type.type_name(),
        **asdict(trace.trace_type),  # type: ignore[call-overload]
        "tags": trace.tags,
        "children": [_tree_value(child) for child in tree.children],
    }


# ---- as it is shown


def _file(root: Trace) -> bytes | None:
    """The file that a tree is about; a root that no agent recorded is about none."""
    metadata = root.metadata
    return metadata.get("file") if isinstance(metadata, dict) else None


def _worker(agent: RunMetadata) -> dict[str, Any]:
    return {name: agent.metadata[name] for name in ("worker", "pid")}


def _run_value(run: RunMetadata) -> dict[str, Any]:
    return {"run": run.run_id, "status": run.status.as_str(), "error": run.error}


def _by_status(runs: RunIndex) -> dict[str, int]:
    stats = runs.get_stats()
    counts = {status: getattr(stats, f"{status.as_str().lower()}_runs") for status in RunStatus}
    return {status.as_str(): count for status, count in counts.items() if count}


def _shown(file: bytes) -> str:
    return printable(os.fsdecode(file))
