"""index.py - what the tests of runs share: agreement of the indexes, runs with something in them.

Why:        each change of a run touches its record, its entries and two counters; that they agree
            at every snapshot is the one claim behind all queries.
Used by:    the tests of runs
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import closing

from shm_engine import keys, runs
from shm_engine._core import NAMES, RunId
from shm_engine.database import Database
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.run_index import RunIndex
from shm_engine.runs import RunMetadata, RunStatus

__all__ = ["assert_indexes_agree", "fill", "ids", "owned", "reach"]


def assert_indexes_agree(database: Database) -> int:
    """At one snapshot: each listed run has a record and just its entries, and the counters count
    them. How many runs there are."""
    engine = database.engine
    with closing(engine.open_pin()) as pin:

        def names(prefix: bytes) -> list[bytes]:
            return engine.scan(RunId.DEFAULT, keys.TAG_RUN, prefix, pin, None, None, NAMES)[0]

        listed = [RunId.from_bytes(name[-16:]) for name in names(runs.BY_TIME)]
        expected: set[bytes] = set()
        statuses: Counter[int] = Counter()
        for run in listed:
            record = runs.read_at(engine, run, pin)
            assert record is not None, f"{run} is listed without a record"
            assert record.is_registered, f"{run} is listed as {record}"
            expected.update(key[17:] for key in runs._entries(run, record))
            statuses[record.status] += 1
        found = {name for letter in (b"t", b"s", b"g", b"p") for name in names(b"\x01" + letter)}
        assert found == expected
        for status in keys.RUN_STATUS_NAMES:
            name = runs.count_of(status)
            counted = engine.get(RunId.DEFAULT, keys.TAG_RUN, name, pin, 0)
            assert counted == statuses[status], f"{counted} runs counted as {status}"
    return len(listed)


def ids(found: Iterable[RunMetadata]) -> list[str]:
    """Their ids, in their order."""
    return [each.run_id for each in found]


def reach(index: RunIndex, run: RunId | str, status: RunStatus) -> None:
    """Takes an Active run to any status."""
    if status is not RunStatus.ACTIVE:
        index.update_status(run, status)


def fill(database: Database, run: RunId | str, count: int = 3) -> None:
    """Something of every primitive, whatever its class is."""
    engine = database.engine
    KVStore(database).mset(run, {f"k{i}": i for i in range(count)})
    engine.append(run, [("event", {"n": i}) for i in range(count)])
    for i in range(count):
        engine.bump(run, keys.TAG_STATE, f"cell{i}", i)
        engine.put(run, keys.TAG_TRACE, keys.ENTRY + bytes([i]), {"type": "Thought"})
        engine.put(run, keys.TAG_TRACE, keys.BOOKKEEPING + bytes([i]), None)
        engine.put(run, keys.TAG_JSON, f"doc{i}", {})
        engine.put(run, keys.TAG_VECTOR, f"vector{i}", [1.0])


def owned(database: Database, run: RunId | str) -> dict[int, int]:
    """How many keys of each type a reader sees."""
    counts = {}
    with closing(database.engine.open_pin()) as pin:
        for tag in (keys.TAG_KV, keys.TAG_STATE, keys.TAG_JSON, keys.TAG_VECTOR):
            counts[tag] = len(database.engine.scan(run, tag, "", pin)[0])
        for tag in (keys.TAG_EVENT, keys.TAG_TRACE):
            counts[tag] = len(database.engine.scan(run, tag, b"", pin)[0])
    return counts
