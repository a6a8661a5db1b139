"""recount.py - the plain recount that the store's results are checked against.

Why:        one loop, one process, plain dictionaries: what it counts is right because there is
            nothing in it to go wrong. It shares survey_file with the agents and nothing else.
Used by:    the parent, one thread
Errors:     none of its own; a difference is a line of text
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from shm_engine.demo import records
from shm_engine.demo.results import Results
from shm_engine.demo.survey import (
    FileFacts,
    Outcome,
    SourceTree,
    module_name,
    printable,
    survey_file,
)


@dataclass(slots=True)
class Recount:
    """What one process counts: outcomes by path, totals by name, imports by module."""

    outcomes: dict[str, Outcome]
    totals: Counter[str]
    imports: Counter[str]


def recount(tree: SourceTree, on_file: Callable[[int], None] = lambda done: None) -> Recount:
    """Survey the whole tree in this process, without a store."""
    outcomes: dict[str, Outcome] = {}
    totals: Counter[str] = Counter()
    imports: Counter[str] = Counter()
    for done, path in enumerate(tree.files, 1):
        outcome = survey_file(os.path.join(tree.root, path), module_name(path))
        outcomes[path] = outcome
        if isinstance(outcome, FileFacts):
            totals["files"] += 1
            totals["bytes"] += outcome.size
            totals["lines"] += outcome.lines
            totals["functions"] += outcome.functions
            totals["classes"] += outcome.classes
            totals["imports"] += sum(outcome.imports.values())
            imports.update(outcome.imports)
        else:
            totals["skipped"] += 1
        on_file(done)
    return Recount(outcomes, totals, imports)


def differences(results: Results, plain: Recount) -> list[str]:
    """Where the store and the recount differ, a line each; empty when they agree in everything."""
    found = [f"{printable(path)}: its task is not done" for path in results.unfinished]
    for path in sorted(results.outcomes.keys() | plain.outcomes.keys()):
        ours, theirs = results.outcomes.get(path), plain.outcomes.get(path)
        if ours != theirs:
            found.append(f"{printable(path)}: {_file_difference(ours, theirs)}")
    expected = {records.total_key(name): count for name, count in plain.totals.items() if count}
    for module, count in plain.imports.items():
        expected[records.import_key(module)] = count
    for key in sorted(results.counters.keys() | expected.keys()):
        stored, counted = results.counters.get(key, 0), expected.get(key, 0)
        if stored != counted:
            found.append(f"counter {printable(key)}: store {stored:,}, recount {counted:,}")
    return found


def _file_difference(ours: Outcome | None, theirs: Outcome | None) -> str:
    if ours is None or theirs is None:
        return f"found by the {'recount' if ours is None else 'store'} only"
    if isinstance(ours, FileFacts) and isinstance(theirs, FileFacts):
        names = [
            name.name
            for name in dataclasses.fields(FileFacts)
            if getattr(ours, name.name) != getattr(theirs, name.name)
        ]
        return "; ".join(
            f"{name}: store {_brief(getattr(ours, name))}, recount {_brief(getattr(theirs, name))}"
            for name in names
        )
    return f"store {_outcome_text(ours)}, recount {_outcome_text(theirs)}"


def _outcome_text(outcome: Outcome) -> str:
    return "surveyed" if isinstance(outcome, FileFacts) else f"skipped ({outcome.reason})"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
