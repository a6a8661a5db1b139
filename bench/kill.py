"""kill.py - the question what the death of a writer costs the others.

Why:        A process can be killed anywhere, while it holds the sequencer too. A victim writes as
            fast as it can and says after each acknowledged write how far it came; a survivor
            writes all the time, kills the victim with SIGKILL in the midst of it, and keeps
            writing. The longest wait of any of its writes from the kill on is what the death cost.

                victim     put(i), incr, "i is acknowledged"        -> killed at a moment of chance
                survivor   put, put, kill -9, put, put, put, ...    -> the longest wait after it
Used by:    __main__.py
Invariants: R1 every write that the victim saw acknowledged is there, and at most one more
            R2 every write of the survivor is there
Crash:      the victim is a process of this question, ended by its own pid only
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from bench.crew import Crew, CrewError, Place, Task
from bench.options import Options
from bench.peers import FLOOR, SEQ_FIRST, Host, LmdbStore, ShmStore, Store, Ticket, attach
from bench.peers import make_value as value_of
from bench.progress import Progress
from bench.results import Answer
from bench.stats import NS_PER_MS

_KEYS = 1_000
_UNDER_WAY = 2_000
"""How many writes a victim must have made before it may be killed."""
_BEFORE_S = 0.005
_AFTER_S = 0.05
_TIMEOUT_S = 30.0
_SEED = 9


@dataclass(frozen=True)
class Death:
    """What the survivor saw: its writes in all, and the longest waits before and after the kill."""

    writes: int
    before_ms: float
    after_ms: float


def count_up(store: Store, key: str) -> None:
    """Add one to a counter, in the form that is the peer's own."""
    if isinstance(store, ShmStore):
        store.kv.incr(store.run, key)
    elif isinstance(store, LmdbStore):
        with store.begin(write=True) as txn:
            data = txn.get(key.encode())
            count = int.from_bytes(data, "little") if data else 0
            txn.put(key.encode(), (count + 1).to_bytes(8, "little"))


def victim(ticket: Ticket, number: int, path: Path) -> None:
    """Process: write for ever, and say after each write that it was acknowledged."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store, progress = attach(ticket), Progress(path)
    value, words = value_of(number), progress.words
    i = 0
    while True:
        value["seq"] = SEQ_FIRST + i
        store.write(f"victim/{number}/{i % _KEYS}", value)
        count_up(store, f"victim/{number}/count")
        i += 1
        words[0] = i


def survive(place: Place, ticket: Ticket, number: int, pid: int, delay_s: float) -> Death:
    """Worker: write, kill `pid` after `delay_s`, write on; return the waits."""
    store = attach(ticket)
    clock = time.monotonic_ns
    value = value_of(number)
    writes, longest = 0, [0, 0]
    try:
        for phase, seconds in ((0, delay_s), (1, _AFTER_S)):
            if phase == 1:
                os.kill(pid, signal.SIGKILL)
            end = clock()
            until = end + int(seconds * 1e9)
            while end < until:
                value["seq"] = SEQ_FIRST + writes
                begin = clock()
                store.write(f"survivor/{number}/{writes % _KEYS}", value)
                end = clock()
                longest[phase] = max(longest[phase], end - begin)
                writes += 1
        return Death(writes, longest[0] / NS_PER_MS, longest[1] / NS_PER_MS)
    finally:
        store.close()


def losses(store: Store, number: int, acknowledged: int, writes: int) -> list[str]:
    """Return one line per acknowledged write of either process that is not there."""
    found = []
    count = store.read_count(f"victim/{number}/count")
    if count not in (acknowledged, acknowledged + 1):
        found.append(f"victim {number}: {count} increments, {acknowledged} were acknowledged")
    for owner, calls, more in (("victim", acknowledged, 1), ("survivor", writes, 0)):
        for i in range(max(0, calls - _KEYS), calls):
            key = f"{owner}/{number}/{i % _KEYS}"
            value = store.read(key)
            seq = value["seq"] - SEQ_FIRST if isinstance(value, dict) else None
            in_flight = more and seq == calls and calls % _KEYS == i % _KEYS
            if seq != i and not in_flight:
                found.append(f"{key} holds {seq}, {i} was acknowledged")
    return found


def _kill_once(
    crew: Crew, host: Host, number: int, delay_s: float, progress: Progress
) -> tuple[Death, int]:
    """Start a victim, have it killed, and return what was seen and how far it had come."""
    progress.words[0] = 0
    context = multiprocessing.get_context("spawn")
    arguments = (host.ticket, number, progress.path)
    process = context.Process(target=victim, args=arguments, daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while progress.words[0] < _UNDER_WAY:
            if not process.is_alive() or time.monotonic() > deadline:
                raise CrewError(f"the victim did not come under way: exit {process.exitcode}")
            time.sleep(0.001)
        task = Task(survive, (host.ticket, number, process.pid, delay_s))
        [death] = crew.run([task], timeout_s=_TIMEOUT_S)
        process.join(timeout=_TIMEOUT_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if process.exitcode != -signal.SIGKILL:
        raise CrewError(f"the victim ended by itself: exit {process.exitcode}")
    return death, progress.words[0]


def ask(name: str, options: Options) -> Answer:
    """Kill writers of each peer in turn; report the longest wait and what was lost."""
    answer = Answer(name)
    kills = options.count(25, 3)
    moments = random.Random(_SEED)
    peers = [peer for peer in options.peers if peer != FLOOR]
    found: dict[str, list[Death]] = {peer: [] for peer in peers}
    with Progress.create() as progress, Crew(1) as crew:
        for number in range(kills):
            for peer in peers:
                delay_s = _BEFORE_S + moments.random() * _BEFORE_S
                with Host(peer, options.map_size, options.keep_last) as host:
                    death, acknowledged = _kill_once(crew, host, number, delay_s, progress)
                    lost = losses(host.store, number, acknowledged, death.writes)
                found[peer].append(death)
                answer.checks += 1
                answer.losses.extend(f"{peer}: {loss}" for loss in lost)
                answer.rounds.append(
                    {
                        "kill": number,
                        "peer": peer,
                        "before_ms": death.before_ms,
                        "after_ms": death.after_ms,
                        "acknowledged": acknowledged,
                    }
                )
    for peer, deaths in found.items():
        answer.add(f"{peer}.next_write_ms", "ms", [death.after_ms for death in deaths])
        answer.add(f"{peer}.before_kill_ms", "ms", [death.before_ms for death in deaths])
    return answer.finish()
