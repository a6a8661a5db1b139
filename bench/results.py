"""results.py - what a question answers, and the files that keep it.

Why:        A figure without its raw rounds cannot be questioned later. Every answer goes to a file
            of its own with the machine, the versions, the options and each single run.
Used by:    every question (Answer); __main__.py (write); plots.py reads the same records
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.goals import LOST_WRITES, Judgement
from bench.options import Options
from bench.peers import SHM_ENGINE
from bench.stats import Figure

_LOSSES_SHOWN = 20

Record = dict[str, object]


@dataclass
class Answer:
    """What one question found.

    `rounds` are the raw records, one per run; `losses` one line per acknowledged write that was
    not there afterwards; `checks` how many times a result was looked through for losses.
    """

    question: str
    figures: list[Figure] = field(default_factory=list)
    rounds: list[Record] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    checks: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, unit: str, samples: Sequence[float]) -> None:
        """Add a figure; its key is prefixed with the question."""
        self.figures.append(Figure(f"{self.question}.{key}", unit, tuple(samples)))

    def finish(self) -> Answer:
        """Count the losses as a figure; an answer that checked nothing does not get one."""
        if self.checks:
            self.add(LOST_WRITES, "lost", [float(len(self.losses))])
        return self


def engine_is_asked(answer: Answer, options: Options) -> bool:
    """Tell whether the engine is among the peers; the questions that only it is asked begin so."""
    if SHM_ENGINE in options.peers:
        return True
    answer.notes.append(f"only shm_engine is asked: {answer.question}")
    return False


def write(
    answer: Answer,
    judgements: Sequence[Judgement],
    facts: Mapping[str, object],
    options: Options,
    stamp: str,
) -> Path:
    """Write the answer's file, `<question>-<stamp>.json`, and return its path."""
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{answer.question}-{stamp}.json"
    content = {
        "question": answer.question,
        "machine": dict(facts),
        "options": options.as_json(),
        "goals": [judgement.as_json() for judgement in judgements],
        "figures": {figure.key: figure.as_json() for figure in answer.figures},
        "lost_writes": len(answer.losses),
        "losses": answer.losses[:_LOSSES_SHOWN],
        "checks": answer.checks,
        "notes": answer.notes,
        "rounds": answer.rounds,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
