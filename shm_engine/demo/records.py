"""records.py - the keys and values that the demo keeps in the store.

Why:        agents, parent and check must agree on one layout. In the survey's run:
                 task/0000042       {path, state, owner, generation, attempt}   claimed by cas
                 found/0000042      {path, outcome}     written with the task's completion
                 total/<name>       counters that all agents increment, with the completion
                 import/<module>    the same, one for each module that some file imports
                 pool/deaths        how many agents the parent has found dead
                 cell agent/000     {pid, generation, state, file, files, commits, conflicts}
                 events             surveyed | skipped {file, worker}   with the completion
                 traces             Thought, ToolCall, perhaps Error    the same (story.py)
            In the run of each agent, a child of it, tag "agent", metadata {worker, pid}:
                 events             started {worker, pid}, claimed {file} ..., finished {files}
Used by:    all processes of the demo; any thread
Invariants: a file's path is stored as bytes, for not every name is UTF-8; keys go by number
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from shm_engine.demo.survey import FileFacts, Outcome

TASK_PREFIX = "task/"
FOUND_PREFIX = "found/"
TOTAL_PREFIX = "total/"
IMPORT_PREFIX = "import/"
DEATHS_KEY = "pool/deaths"
AGENT_PREFIX = "agent/"
AGENT_TAG = "agent"

PENDING, CLAIMED, DONE = "pending", "claimed", "done"
STARTING, WORKING, IDLE, FINISHED, DEAD = "starting", "working", "idle", "finished", "dead"

NO_OWNER = -1
NO_FILE = -1

_MODULE_BYTES_MAX = 900


def task_key(index: int) -> str:
    """The key of the task of file number `index`."""
    return f"{TASK_PREFIX}{index:07d}"


def found_key(index: int) -> str:
    """The key of what was found in file number `index`."""
    return f"{FOUND_PREFIX}{index:07d}"


def total_key(name: str) -> str:
    """The key of one of the totals' counters."""
    return TOTAL_PREFIX + name


def agent_cell(worker: int) -> str:
    """The state cell in which an agent says what it does; a dead one's is the parent's."""
    return f"{AGENT_PREFIX}{worker:03d}"


def import_key(module: str) -> str:
    """The key of a module's import counter; a name too long for a key is cut and hashed."""
    encoded = module.encode()
    if len(encoded) > _MODULE_BYTES_MAX:
        start = encoded[: _MODULE_BYTES_MAX // 2].decode(errors="ignore")
        module = f"{start}...{hashlib.sha256(encoded).hexdigest()}"
    return IMPORT_PREFIX + module


def new_task(path: str) -> dict[str, Any]:
    """The task of a file that nobody has claimed."""
    return {
        "path": os.fsencode(path),
        "state": PENDING,
        "owner": NO_OWNER,
        "generation": 0,
        "attempt": 0,
    }


def counter_deltas(outcome: Outcome) -> dict[str, int]:
    """What one file adds to the shared counters, by key; zeros are left out."""
    if not isinstance(outcome, FileFacts):
        return {total_key("skipped"): 1}
    deltas = {
        total_key("files"): 1,
        total_key("bytes"): outcome.size,
        total_key("lines"): outcome.lines,
        total_key("functions"): outcome.functions,
        total_key("classes"): outcome.classes,
        total_key("imports"): outcome.import_count,
    }
    for module, count in outcome.imports.items():
        key = import_key(module)
        deltas[key] = deltas.get(key, 0) + count
    return {key: delta for key, delta in deltas.items() if delta}


def sum_deltas(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """The shared counters that these files must lead to."""
    counters: dict[str, int] = {}
    for outcome in outcomes:
        for key, delta in counter_deltas(outcome).items():
            counters[key] = counters.get(key, 0) + delta
    return counters
