"""alone.py - the rounds of the workloads that only the engine is asked.

Why:        State cells, traces and transactions over all primitives have no like in the peers, so
            they are held against a rate, or against another workload of the engine. The rounds are
            those of the others: a fresh store each time, both harnesses, every run checked.

                per round and harness:   first workload -> check -> second -> check ...
Used by:    state.py, trace.py, four.py
"""

from __future__ import annotations

from collections.abc import Sequence

from bench import rounds, stats
from bench.crew import Crew
from bench.options import Options
from bench.peers import SHM_ENGINE, FloorStore, LmdbStore, ShmStore, Store
from bench.results import Answer
from bench.workload import Call, Lane, Loop, Workload

QUESTIONS = ("state", "trace", "four")
"""The questions that are measured so."""

Entry = tuple[Workload, int]
"""A workload and how many processes run it."""


def of_engine(store: Store) -> ShmStore:
    """Return the store as the engine's; TypeError if it is another's."""
    if not isinstance(store, ShmStore):
        raise TypeError(f"{store.peer} is not asked this")
    return store


class EngineWorkload(Workload):
    """A workload without loops for the peers."""

    def lmdb_light(self, store: LmdbStore, lane: Lane) -> Loop:
        raise TypeError(f"{store.peer} is not asked {self.name}")

    def floor_light(self, store: FloorStore, lane: Lane) -> Loop:
        raise TypeError(f"{store.peer} is not asked {self.name}")

    def lmdb_checked(self, store: LmdbStore, lane: Lane) -> Call:
        raise TypeError(f"{store.peer} is not asked {self.name}")

    def floor_checked(self, store: FloorStore, lane: Lane) -> Call:
        raise TypeError(f"{store.peer} is not asked {self.name}")


def measure(answer: Answer, entries: Sequence[Entry], options: Options) -> None:
    """Run every entry in every round under both harnesses; add what they did as figures.

    Their keys are `<harness>.<processes>.<workload>.<measure>`.
    """
    with Crew(max(processes for _, processes in entries)) as crew:
        for number in range(options.rounds):
            for harness in options.harnesses:
                for workload, processes in entries:
                    heat = rounds.Heat(workload, harness, SHM_ENGINE, processes, options)
                    rounds.run_once(crew, heat, number, answer)
    for harness in options.harnesses:
        for workload, processes in entries:
            rounds.add_measures(
                answer,
                f"{harness}.{processes}.{workload.name}",
                harness=harness,
                processes=processes,
                workload=workload.name,
            )


def add_ratio(answer: Answer, harness: str, name: str, base: str) -> None:
    """Add what one workload reaches of another's rate, both with one process, round by round."""
    ours, theirs = (
        rounds.column(answer, "rate", harness=harness, processes=1, workload=workload)
        for workload in (name, base)
    )
    answer.add(f"{harness}.1.{name}_vs_{base}", f"x {base}", stats.ratios(ours, theirs))
