"""refusal.py - the question what it costs a put that its run might have ended.

Why:        A write to a registered run that is not active is refused, which is looked up inside the
            commit. Puts into an active run and into one that was never registered differ by that
            look alone; it is so small that only many short turns, side by side, show it.

                active 2,000 puts | unregistered 2,000 | unregistered 2,000 | active 2,000 | ...
Used by:    __main__.py
Invariants: every key of both runs holds its last put
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from bench.alone import of_engine
from bench.crew import Crew, Place, Task
from bench.options import Options
from bench.peers import SEQ_FIRST, SHM_ENGINE, Host, ShmStore, ShmTicket, attach, make_value
from bench.results import Answer, engine_is_asked
from bench.workload import last_call
from shm_engine import RunId

_KEYS = 1_000
TURN = 2_000
_BYTES_PER_PUT = 256
_FILL_SHARE = 0.7


@dataclass(frozen=True)
class Turns:
    """The nanoseconds of a put in each turn, of both kinds, in pairs."""

    active_ns: list[float]
    unregistered_ns: list[float]

    def difference_ns(self) -> float:
        pairs = zip(self.active_ns, self.unregistered_ns, strict=True)
        return statistics.median(active - unregistered for active, unregistered in pairs)


def put_turn(store: ShmStore, run: RunId, turn: int) -> float:
    """Make the puts of one turn; return the nanoseconds that one took."""
    put, value = store.kv.put, make_value(0)
    begin = time.monotonic_ns()
    for i in range(turn * TURN, (turn + 1) * TURN):
        value["seq"] = SEQ_FIRST + i
        put(run, f"refusal/{i % _KEYS}", value)
    return (time.monotonic_ns() - begin) / TURN


def take_turns(place: Place, ticket: ShmTicket, unregistered: RunId, pairs: int) -> Turns:
    """Worker: put into both runs in turns, each first in half of the pairs; turn 0 is to warm."""
    store = of_engine(attach(ticket))
    found: dict[RunId, list[float]] = {store.run: [], unregistered: []}
    try:
        for turn in range(pairs + 1):
            order = list(found) if turn % 2 else list(found)[::-1]
            for run in order:
                found[run].append(put_turn(store, run, turn))
        return Turns(found[store.run][1:], found[unregistered][1:])
    finally:
        store.close()


def losses(store: ShmStore, runs: tuple[RunId, RunId], calls: int) -> list[str]:
    """Return a line for each key of either run that does not hold its last put."""
    found = []
    for kind, run in zip(("active", "unregistered"), runs, strict=True):
        for key in range(_KEYS):
            value, last = store.kv.get(run, f"refusal/{key}"), last_call(key, calls, _KEYS)
            seq = value["seq"] - SEQ_FIRST if isinstance(value, dict) else None
            if seq != last:
                found.append(f"{kind}: refusal/{key} holds {seq}, wrote {last}")
    return found


def ask(name: str, options: Options) -> Answer:
    """Put into both runs in many turns; report the median of what the pairs differ by."""
    answer = Answer(name)
    if not engine_is_asked(answer, options):
        return answer
    room = int(options.map_size * _FILL_SHARE) // (2 * TURN * _BYTES_PER_PUT) - 1
    pairs = max(1, min(options.count(400, 20), room))
    differences, active, unregistered = [], [], []
    with Crew(1) as crew:
        for number in range(options.rounds):
            with Host(SHM_ENGINE, options.map_size) as host:
                store, other = of_engine(host.store), RunId.new()
                [turns] = crew.run([Task(take_turns, (host.ticket, other, pairs))])
                answer.checks += 1
                lost = losses(store, (store.run, other), (pairs + 1) * TURN)
                answer.losses.extend(lost)
            differences.append(turns.difference_ns())
            active.append(statistics.median(turns.active_ns))
            unregistered.append(statistics.median(turns.unregistered_ns))
            answer.rounds.append(
                {
                    "round": number,
                    "pairs": pairs,
                    "difference_ns": differences[-1],
                    "active_ns": turns.active_ns,
                    "unregistered_ns": turns.unregistered_ns,
                }
            )
    answer.add(f"{SHM_ENGINE}.difference_ns", "ns", differences)
    answer.add(f"{SHM_ENGINE}.active_ns", "ns", active)
    answer.add(f"{SHM_ENGINE}.unregistered_ns", "ns", unregistered)
    return answer.finish()
