"""results.py - what the agents found, read from one snapshot of the store.

Why:        the summary must not mix states of the store, so everything that it shows is read here
            under a single snapshot; nothing that an agent did goes past the store. The state cells
            are read once, when nobody writes any more.
Used by:    the parent, one thread
Errors:     the engine's
Cost:       one scan of what was found, one of the tasks, one of the counters
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from shm_engine.database import Database
from shm_engine.demo import records
from shm_engine.demo.survey import FileFacts, Outcome, Skipped, outcome_from_value
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.state_cell import StateCell


@dataclass(slots=True)
class Results:
    """One snapshot's survey: outcomes by path, counters by key, agents by cell, and the undone."""

    version: int
    outcomes: dict[str, Outcome]
    counters: dict[str, int]
    agents: dict[str, dict[str, Any]]
    unfinished: list[str] = field(default_factory=list)

    def holds_the_same_as(self, other: Results) -> bool:
        """Whether both say the same of the survey; their versions may differ."""
        return dataclasses.replace(self, version=other.version) == other

    def total(self, name: str) -> int:
        """One of the totals, as the agents counted it."""
        return self.counters.get(records.total_key(name), 0)

    def most_imported(self, limit: int) -> list[tuple[str, int]]:
        """The modules with the highest counters; equal ones in the order of their names."""
        counted = [
            (key.removeprefix(records.IMPORT_PREFIX), count)
            for key, count in self.counters.items()
            if key.startswith(records.IMPORT_PREFIX)
        ]
        return sorted(counted, key=lambda item: (-item[1], item[0]))[:limit]

    def modules_imported(self) -> int:
        """How many different modules are imported somewhere."""
        return sum(key.startswith(records.IMPORT_PREFIX) for key in self.counters)

    def largest_files(self, limit: int) -> list[tuple[str, FileFacts]]:
        """The largest parsed files by size; equal ones in the order of their paths."""
        parsed = [
            (path, outcome)
            for path, outcome in self.outcomes.items()
            if isinstance(outcome, FileFacts)
        ]
        return sorted(parsed, key=lambda item: (-item[1].size, item[0]))[:limit]

    def skipped(self) -> list[tuple[str, Skipped]]:
        """The files that were not surveyed, in the order of their paths."""
        return sorted(
            (
                (path, outcome)
                for path, outcome in self.outcomes.items()
                if isinstance(outcome, Skipped)
            ),
            key=lambda item: item[0],
        )


def read_results(database: Database, run: str) -> Results:
    """Everything that the summary needs, from ONE snapshot, and the agents' cells."""
    with database.snapshot() as snapshot:
        outcomes = {
            os.fsdecode(value["path"]): outcome_from_value(value["outcome"])
            for _, value in snapshot.scan_prefix(run, records.FOUND_PREFIX)
        }
        counters = dict(snapshot.scan_prefix(run, records.TOTAL_PREFIX))
        counters.update(snapshot.scan_prefix(run, records.IMPORT_PREFIX))
        unfinished = [
            os.fsdecode(task["path"])
            for _, task in snapshot.scan_prefix(run, records.TASK_PREFIX)
            if task["state"] != records.DONE
        ]
        return Results(
            snapshot.version, outcomes, counters, _read_agents(database, run), unfinished
        )


def _read_agents(database: Database, run: str) -> dict[str, dict[str, Any]]:
    cells = StateCell(database)
    states = {name: cells.read(run, name) for name in cells.list(run)}
    return {
        name: state.value
        for name, state in states.items()
        if state is not None and name.startswith(records.AGENT_PREFIX)
    }


def read_takeover(kv: KVStore, run: str, index: int, dead_worker: int) -> tuple[int, int] | None:
    """Who claimed a dead agent's task after it, and when (us): the task's own history tells."""
    for entry in reversed(kv.history(run, records.task_key(index))):
        task = entry.value
        if task["state"] == records.CLAIMED and task["owner"] != dead_worker:
            return task["owner"], entry.timestamp
    return None
