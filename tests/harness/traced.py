"""traced.py - a trace of every kind, and what a store of traces holds.

Used by:    tests/unit/test_trace_store.py, tests/unit/test_trace_queries.py
"""

from __future__ import annotations

import time

from shm_engine import (
    Custom,
    Decision,
    ErrorTrace,
    Query,
    RunId,
    Thought,
    ToolCall,
    Trace,
    TraceStore,
    TraceType,
    keys,
)
from shm_engine._core import BYTES

__all__ = ["ALL_KINDS", "TAG", "UNKNOWN", "ids", "now_ms", "stored"]

TAG = keys.TAG_TRACE
UNKNOWN = "trace-0190163d-8694-739b-aea5-966c26f8ad91"
ALL_KINDS: list[TraceType] = [
    ToolCall("search", {"q": [1, 2.5, None, b"x"]}, [], 150),
    Decision("which?", ["a", "b"], "a", "nearer"),
    Query("vector", "cats", 3),
    Thought("hm", 0.25),
    ErrorTrace("Io", "disk full", True),
    Custom("deploy", {"v": 7}),
]


def stored(traces: TraceStore, run: RunId | str = RunId.DEFAULT) -> dict[bytes, bytes]:
    """Every key of the run's traces, and its value."""
    engine = traces.database.engine
    pin = engine.open_pin()
    try:
        found: dict[bytes, bytes] = {}
        for space in (keys.BOOKKEEPING, keys.ENTRY):
            names, records = engine.scan(run, TAG, space, pin, None, None, BYTES)
            found |= {name: one[0] for name, one in zip(names, records or (), strict=True)}
        return found
    finally:
        pin.close()


def now_ms() -> int:
    """The time as a trace has it."""
    return time.time_ns() // 10**6


def ids(found: list[Trace]) -> list[str]:
    """Their ids, in this order."""
    return [trace.id for trace in found]
