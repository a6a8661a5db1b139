"""four.py - the question what a transaction costs that writes to each of the four primitives.

Why:        What an agent does in one step belongs together: a key, an event, a cell, a trace. All
            or none is what the engine is for, and this is the price. Each process has a run of its
            own, registered and active, so that nobody conflicts and only the sequencer is shared.

                with db.begin(run) as txn:   kv_put  event_append  state_set  trace_record
Used by:    __main__.py
Invariants: after n transactions of a run: n events, n traces, the cell at version n, and every key
            holds its last put
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from bench import rounds, stats
from bench.alone import EngineWorkload, Entry, measure, of_engine
from bench.options import Options
from bench.peers import SEQ_FIRST, ShmStore, Store, make_value
from bench.results import Answer, engine_is_asked
from bench.trace import traces_of
from bench.workload import Call, Lane, Loop, Tally, last_call
from shm_engine import EventLog, RunId, StateCell

CELL = "four/step"
TYPE = "step"


def run_of(owner: int) -> RunId:
    """Return the run of a process, the same for parent and worker."""
    return RunId.from_bytes(b"bench/four/" + owner.to_bytes(5, "big"))


def key_of(key: int) -> str:
    return f"four/{key}"


def step(store: ShmStore, owner: int, keys: int) -> Callable[[int], None]:
    """Return the transaction: call i writes key i % keys, an event, the cell, and a trace.

    That it is a function of its own adds less than a hundredth to what it costs.
    """
    begin: Any = store.database.begin
    run, value = run_of(owner), make_value(owner)

    def once(i: int) -> None:
        value["seq"] = SEQ_FIRST + i
        with begin(run) as txn:
            txn.kv_put(f"four/{i % keys}", value)
            txn.event_append(TYPE, {"step": i})
            txn.state_set(CELL, i)
            txn.trace_record(TYPE, {"step": i})

    return once


class Transactions(EngineWorkload):
    name = "transaction"
    title = "a transaction over four primitives"
    stretch = 32
    warm_calls = 1_000
    bytes_per_call = 1_536

    def __init__(self, keys: int = 1_000) -> None:
        super().__init__(keys)

    def fill(self, store: Store, processes: int) -> None:
        for owner in range(processes):
            of_engine(store).database.begin_run(run_of(owner))

    def losses(self, store: Store, tallies: Sequence[Tally]) -> list[str]:
        return [loss for tally in tallies for loss in self._of_run(of_engine(store), tally)]

    def _of_run(self, store: ShmStore, tally: Tally) -> list[str]:
        run, calls = run_of(tally.index), tally.calls
        state = StateCell(store.database).read(run, CELL)
        log, traces = EventLog(store.database), traces_of(store)
        counts = {
            "events": log.len(run),
            "versions of the cell": 0 if state is None else state.version,
            "steps in the cell": -1 if state is None else state.value + 1,
            "traces counted": traces.count(run),
            "traces by type": len(traces.query_by_type(run, TYPE)),
            "steps in events": len({event.payload["step"] for event in log.iter(run)}),
        }
        found = [
            f"process {tally.index}: {count} {what}, {calls} transactions were acknowledged"
            for what, count in counts.items()
            if count != calls
        ]
        for key in range(min(self.keys, calls)):
            value, last = store.kv.get(run, key_of(key)), last_call(key, calls, self.keys)
            seq = value["seq"] - SEQ_FIRST if isinstance(value, dict) else None
            if seq != last:
                found.append(f"process {tally.index}: {key_of(key)} holds {seq}, wrote {last}")
        return found

    def shm_light(self, store: ShmStore, lane: Lane) -> Loop:
        once = step(store, lane.index, self.keys)

        def loop(first: int, last: int) -> None:
            for i in range(first, last):
                once(i)

        return loop

    def shm_checked(self, store: ShmStore, lane: Lane) -> Call:
        once, packer = step(store, lane.index, self.keys), msgpack.Packer
        clock, note = time.monotonic_ns, lane.waits_ns.append

        def call(i: int) -> int:
            packer()
            begin = clock()
            once(i)
            end = clock()
            note(end - begin)
            return end

        return call


def ask(name: str, options: Options) -> Answer:
    """Measure the transaction with each number of processes, every one in a run of its own."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    entries: list[Entry] = [(Transactions(), processes) for processes in options.processes]
    measure(answer, entries, options)
    for harness in options.harnesses:
        _scaling(answer, harness, options)
    return answer.finish()


def _scaling(answer: Answer, harness: str, options: Options) -> None:
    rates = {
        processes: rounds.column(answer, "rate", harness=harness, processes=processes)
        for processes in options.processes
    }
    for processes, found in rates.items():
        if processes > 1 and 1 in rates:
            answer.add(
                f"{harness}.{processes}.scaling", "x one process", stats.ratios(found, rates[1])
            )
