"""workload.py - a seeded history that uses everything the segments can hold.

Why:        the reader must meet every width of node, cuts, tombstones, values that run out, large
            values and reused blocks, or it proves little.
Used by:    test_segment.py, damage.py
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

from shm_engine import RetentionPolicy
from shm_engine._core import RunId
from shm_engine.keys import RUN_ACTIVE, TAG_KV, pack_run

if TYPE_CHECKING:
    from shm_engine._core import Store

__all__ = ["RUNS", "Model", "play", "value_from", "widths"]

# Never chose, keeps all, keeps the last three.
RUNS: Final = [RunId.from_bytes(bytes([0x40 + number] * 16)) for number in range(3)]
POLICIES: Final = [None, RetentionPolicy.KeepAll, RetentionPolicy.KeepLast(3)]
HOUR_US: Final = 3_600_000_000

Model = dict[RunId, dict[str, Any]]


def widths() -> list[str]:
    """Names whose branches need nodes of 4, 16, 48 and 256."""
    wide = [chr(code) for code in range(1, 0x80)]
    wide += [chr(code) for code in range(0x80, 0x800, 0x40)]
    wide += [chr(code) for code in range(0x800, 0xD000, 0x1000)]
    return [
        *(f"wide/{mark}" for mark in wide),
        *(f"forty/{mark}" for mark in wide[40:80]),
        *(f"ten/{mark}" for mark in wide[60:70]),
        *(f"three/{mark}" for mark in wide[60:63]),
        "a/" + "long" * 255,
    ]


def value_from(rng: random.Random) -> Any:
    """A value of any type; one in ten is large."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.choice([2_000, 9_000, 70_000]))
    if kind == 1:
        return {f"k{number}": "text" * rng.randrange(40) for number in range(rng.randrange(40))}
    simple = [None, True, rng.getrandbits(40) - 2**39, rng.random(), "é" * rng.randrange(50)]
    return rng.choice([*simple, [rng.randrange(300) for _ in range(rng.randrange(30))]])


class _Player:
    """Plays the workload and remembers what has a value."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self.rng = rng
        self.model: Model = {run: {} for run in RUNS}
        self.gone_us = 0

    def step(self, run: RunId, name: str) -> None:
        """One random write."""
        store, values = self.store, self.model[run]
        kind = self.rng.randrange(12)
        if kind < 6:
            values[name] = value_from(self.rng)
            store.put(run, TAG_KV, name, values[name])
        elif kind < 9:
            store.delete(run, TAG_KV, name)
            values.pop(name, None)
        elif kind == 9:
            values[name] = self.rng.randrange(1000)
            later_us = time.time_ns() // 1000 + HOUR_US
            store.put(run, TAG_KV, name, values[name], expires_us=later_us)
        elif kind == 10:
            self.gone_us = time.time_ns() // 1000 + 1
            store.put(run, TAG_KV, name, "gone", expires_us=self.gone_us)
            values.pop(name, None)
        else:
            some = {f"{name}/{number}": number for number in range(4)}
            store.put_many(run, TAG_KV, list(some), list(some.values()))
            values.update(some)


def play(store: Store, rng: random.Random, steps: int) -> Model:
    """Plays so many random steps; returns what has a value at the end, by run and name."""
    player = _Player(store, rng)
    for run, policy in zip(RUNS, POLICIES, strict=True):
        store.put_run_record(run, pack_run(RUN_ACTIVE, policy))
    for run in RUNS:
        for name in widths():
            player.model[run][name] = len(name)
            store.put(run, TAG_KV, name, len(name))
    names = [f"{name}{number}" for name in ("user:", "task:", "t") for number in range(12)]
    for step in range(steps):
        player.step(rng.choice(RUNS), rng.choice(names))
        if step % 97 == 96:
            store.sweep()
    # In the first run some widths shrink again; in the last one, which forgets, they are unlinked.
    for run in (RUNS[0], RUNS[2]):
        for name in rng.sample(widths(), 120):
            store.delete(run, TAG_KV, name)
            del player.model[run][name]
    store.sweep()
    for number in range(8):
        store.increment(RUNS[1], TAG_KV, "counter", number)
    player.model[RUNS[1]]["counter"] = sum(range(8))
    while time.time_ns() // 1000 <= player.gone_us:
        pass
    return player.model
