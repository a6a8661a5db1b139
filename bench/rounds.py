"""rounds.py - the rounds: peers measured one after the other, over and over.

Why:        Machines drift: a ratio of two figures that were taken minutes apart says little. In a
            round every peer runs once under each harness and with each number of processes, and
            what is compared ran back to back (engine, LMDB, engine, LMDB, ...). Never two at once.

                per round, harness, processes:   shm_engine -> check -> lmdb -> check (-> floor)
Used by:    __main__.py for the workloads; alone.py for those that only the engine is asked
Invariants: R1 every run starts from a fresh store with the same content
            R2 every run is checked for lost writes before the next one starts
Cost:       a run is `seconds` plus about 0.1 s for filling, checking and removing the store
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench import stats
from bench.append import Append
from bench.batch import Batch
from bench.crew import Crew, Place, Task
from bench.get import Get
from bench.incr import Incr
from bench.machine import stolen_seconds
from bench.options import Options
from bench.peers import FLOOR, LMDB, SHM_ENGINE, FloorStore, Host, ShmStore, Ticket, attach
from bench.put import Put
from bench.results import Answer, Record
from bench.rmw import Rmw
from bench.scan import Scan
from bench.workload import CHECKED, Lane, Limits, Tally, Workload, drive

WORKLOADS: Mapping[str, type[Workload]] = {
    kind.name: kind for kind in (Put, Get, Incr, Batch, Scan, Rmw, Append)
}

_SETTLE_S = 0.02
_FILL_SHARE = 0.7
"""The share of a map that a run may fill; the rest is the index and what is not yet freed."""
_BYTES_PER_KEY = 384
"""What a key takes that is there before the first call: its record and its place in the index."""


@dataclass(frozen=True)
class Heat:
    """One run: which workload, under which harness, on which peer, with how many processes."""

    workload: Workload
    harness: str
    peer: str
    processes: int
    options: Options

    def limits(self) -> Limits:
        workload, options = self.workload, self.options
        calls = 1 << 31
        if workload.bytes_per_call:
            room = int(options.map_size * _FILL_SHARE) // self.processes
            room -= workload.keys * _BYTES_PER_KEY
            calls = max(0, room // workload.bytes_per_call)
        return Limits(options.seconds, calls, options.count(workload.warm_calls, 2))


def run_lane(place: Place, heat: Heat, ticket: Ticket) -> Tally:
    """Worker: attach, warm up, wait for the release, run, leave. The floor checks itself here."""
    store = attach(ticket)
    try:
        if isinstance(store, FloorStore):
            heat.workload.fill(store, 1)
        lane = Lane(place.index)
        tally = drive(
            heat.workload,
            heat.harness,
            store,
            lane,
            heat.limits(),
            lambda: place.line.wait(place.index),
        )
        if isinstance(store, FloorStore):
            tally = replace(tally, losses=tuple(heat.workload.losses(store, [tally])))
        return tally
    finally:
        store.close()


@dataclass(frozen=True)
class Outcome:
    """What one run gave: the reports, what was lost, the conflicts that the engine counted."""

    tallies: list[Tally]
    losses: list[str]
    conflicts: int | None = None


def run_heat(crew: Crew, heat: Heat) -> Outcome:
    """Parent: one run on a fresh store, looked through for lost writes."""
    with Host(heat.peer, heat.options.map_size, heat.options.keep_last) as host:
        if host.is_shared:
            heat.workload.fill(host.store, heat.processes)
        time.sleep(_SETTLE_S)
        tasks = [Task(run_lane, (heat, host.ticket))] * heat.processes
        tallies: list[Tally] = crew.run(
            tasks, together=True, timeout_s=60.0 + 10 * heat.options.seconds
        )
        if not host.is_shared:
            return Outcome(tallies, [loss for tally in tallies for loss in tally.losses])
        conflicts = None
        if isinstance(host.store, ShmStore):
            conflicts = host.store.database.metrics().conflicts
        return Outcome(tallies, heat.workload.losses(host.store, tallies), conflicts)


def record_of(heat: Heat, number: int, outcome: Outcome) -> Record:
    """Return the raw record of one run: rates per second, waits in microseconds."""
    tallies = outcome.tallies
    begin = min(tally.begin_ns for tally in tallies)
    end = max(tally.end_ns for tally in tallies)
    measured = sum(tally.measured for tally in tallies)
    rates = [tally.measured / tally.seconds for tally in tallies]
    record: Record = {
        "round": number,
        "workload": heat.workload.name,
        "harness": heat.harness,
        "processes": heat.processes,
        "peer": heat.peer,
        "calls": measured,
        "seconds": (end - begin) / 1e9,
        "rate": measured / ((end - begin) / 1e9),
        "rate_per_process": rates,
        "fairness": stats.fairness(rates),
        "lost": len(outcome.losses),
    }
    if outcome.conflicts is not None:
        record["conflicts"] = outcome.conflicts
    for name in sorted({name for tally in tallies for name in tally.counts}):
        record[name] = sum(tally.counts.get(name, 0) for tally in tallies)
    samples = [np.frombuffer(tally.waits_ns, dtype=np.uint64) for tally in tallies]
    if heat.harness == CHECKED:
        waits = stats.waits(samples)
        record |= {
            "p50_us": waits.p50_us,
            "p99_us": waits.p99_us,
            "worst_ms": waits.worst_us / 1e3,
        }
    return record


def ask(name: str, options: Options) -> Answer:
    """Measure one workload, all rounds, and return what was found."""
    workload = WORKLOADS[name]()
    answer = Answer(name)
    with Crew(max(options.processes)) as crew:
        for number in range(options.rounds):
            for harness in options.harnesses:
                for processes in options.processes:
                    for peer in options.peers:
                        if peer == FLOOR and processes != 1:
                            continue
                        heat = Heat(workload, harness, peer, processes, options)
                        run_once(crew, heat, number, answer)
    for harness in options.harnesses:
        derive_figures(answer, harness, options)
    return answer.finish()


def run_once(crew: Crew, heat: Heat, number: int, answer: Answer) -> None:
    """One run, checked, with its record in the answer."""
    stolen = stolen_seconds()
    outcome = run_heat(crew, heat)
    record = record_of(heat, number, outcome)
    record["stolen_s"] = round(stolen_seconds() - stolen, 3)
    answer.rounds.append(record)
    answer.checks += 1
    where = f"{heat.peer}, {heat.harness}, {heat.processes} processes, round {number}"
    answer.losses.extend(f"{where}: {loss}" for loss in outcome.losses)


def column(answer: Answer, name: str, **wanted: object) -> list[float]:
    """Return one field of the records that match, in the order of the rounds."""
    found = []
    for record in answer.rounds:
        if name in record and all(record[key] == value for key, value in wanted.items()):
            number = record[name]
            if isinstance(number, int | float):
                found.append(float(number))
    return found


_MEASURES = (
    ("rate", "/s"),
    ("p50_us", "us"),
    ("p99_us", "us"),
    ("worst_ms", "ms"),
    ("fairness", "slowest / fastest"),
    ("conflicts", "conflicts"),
    ("retries", "retries"),
    ("refused", "refused"),
)


def add_measures(answer: Answer, prefix: str, **wanted: object) -> list[float]:
    """Add what the records that match measured, under a prefix; return their rates."""
    rates: list[float] = []
    for name, unit in _MEASURES:
        found = column(answer, name, **wanted)
        if found:
            answer.add(f"{prefix}.{name}", unit, found)
        if name == "rate":
            rates = found
    return rates


def derive_figures(answer: Answer, harness: str, options: Options) -> None:
    """Derive the figures of one harness: what each peer did, and the ratios between them."""
    rates: dict[tuple[str, int], list[float]] = {}
    for processes in options.processes:
        for peer in options.peers:
            wanted = {"harness": harness, "processes": processes, "peer": peer}
            rates[peer, processes] = add_measures(answer, f"{harness}.{processes}.{peer}", **wanted)
    for processes in options.processes:
        ours, lmdb = rates.get((SHM_ENGINE, processes)), rates.get((LMDB, processes))
        prefix = f"{harness}.{processes}"
        if ours and lmdb:
            answer.add(f"{prefix}.vs_lmdb", "x LMDB", stats.ratios(ours, lmdb))
        one = rates.get((SHM_ENGINE, 1))
        if ours and one and processes > 1:
            answer.add(f"{prefix}.scaling", "x one process", stats.ratios(ours, one))
    _over_the_floor(answer, harness, rates)


def _over_the_floor(
    answer: Answer, harness: str, rates: Mapping[tuple[str, int], Sequence[float]]
) -> None:
    floor = rates.get((FLOOR, 1))
    if not floor:
        return
    for peer, key in ((SHM_ENGINE, "over_floor_us"), (LMDB, "lmdb_over_floor_us")):
        ours = rates.get((peer, 1))
        if ours:
            over = stats.over_floor_us(ours, floor)
            answer.add(f"{harness}.1.{key}", "us over the floor", over)
