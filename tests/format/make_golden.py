"""make_golden.py - makes the folders that every later build has to open: golden/v<version>.

Why:        a database that was written by this build must be read by all that come. So its bytes
            are kept as they are, with what the API showed of them.
Used by:    a person, once per format version: `python -m tests.format.make_golden`
Invariants: never overwrites; what is made is read by test_golden.py

    whole/     a checkpoint, a log file that was there before it, and one made by a recovery
    torn/      the same, with the last commit cut off in the middle
    damaged/   the same, with a changed byte in a commit that was synced
    expected.json  what the API showed of whole/, key by key
    primitives.json  the same of events, state cells, traces and runs (from version 2 on)
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgpack

from shm_engine import (
    Database,
    Durability,
    EventLog,
    KVStore,
    RetentionPolicy,
    RunIndex,
    StateCell,
    TraceStore,
    TraceType,
)
from shm_engine._core import FORMAT_VERSION, RunId
from shm_engine.keys import RUN_ACTIVE, TAG_KV, pack_run
from tests.format import tables
from tests.format.files import read_folder

__all__ = ["GOLDEN", "RUNS", "names_of", "shown", "shown_primitives"]

GOLDEN: Final = Path(__file__).parent / "golden"
RUNS: Final = {
    "default": RunId.DEFAULT,
    "keeps two": RunId.from_bytes(bytes(range(1, 17))),
}
AGENT: Final = RunId.from_bytes(bytes(range(17, 33)))
ERASED: Final = RunId.from_bytes(bytes(range(33, 49)))
YEAR_2100_US: Final = 4_102_444_800_000_000
MAP_SIZE: Final = 8 << 20
FIRST_FRAME: Final = tables.constants()["SE_WAL_FIRST_FRAME"]


def shown(engine: Any, run: RunId, name: str) -> dict[str, Any]:
    """A key's history as the API shows it, values encoded again."""
    records, cut = engine.history(run, TAG_KV, name)
    return {
        "cut": cut,
        "records": [
            [version, timestamp_us, None if gone else msgpack.packb(value).hex()]
            for value, version, timestamp_us, gone in records
        ],
    }


def names_of(keys: list[bytes], run: RunId) -> list[str]:
    """The names of a run's keys."""
    start = run.bytes + bytes([TAG_KV])
    return [key[len(start) : -1].decode() for key in keys if key.startswith(start)]


def shown_primitives(database: Database) -> dict[str, Any]:
    """What the primitives show of the two runs that they have, as JSON holds it."""
    log, index = EventLog(database), RunIndex(database)
    cells, traces = StateCell(database), TraceStore(database)
    return {
        "events": [
            [*event[:4], event.prev_hash.hex(), event.hash.hex(), event.timestamp_us]
            for event in log.iter(AGENT)
        ],
        "chain": log.verify_chain(AGENT).is_valid,
        "types": log.event_types(AGENT),
        "cells": {name: list(cells.read(AGENT, name) or ()) for name in cells.list(AGENT)},
        "traces": [[one.id, *one[1:2], repr(one[2]), *one[3:]] for one in traces.list(AGENT)],
        "roots": [one.id for one in traces.get_roots(AGENT)],
        "tagged": [one.id for one in traces.query_by_tag(AGENT, "golden")],
        "count": traces.count(AGENT),
        "runs": [
            [run.run_id, run.status.as_str(), run.tags, run.metadata, run.error]
            for run in map(index.get_run, index.list_runs())
            if run is not None
        ],
        "erased": [log.len(ERASED), traces.count(ERASED), KVStore(database).list(ERASED)],
    }


def _primitives_before_the_checkpoint(database: Database) -> None:
    index, log = RunIndex(database), EventLog(database)
    cells, traces = StateCell(database), TraceStore(database)
    for run in (AGENT, ERASED):
        index.create_run_with_options(run, None, ["golden", "Größe"], {"n": 1})
        log.append(run, "started", {"by": "golden"})
        KVStore(database).put(run, "key", "value")
        traces.record(run, TraceType.Thought("top", 0.5), ["golden"])
    cells.init(AGENT, "worker", "idle")
    cells.set(AGENT, "gone", 1)
    traces.record_with_options(AGENT, TraceType.Custom("own"), id="own id")


def _primitives_after_the_checkpoint(database: Database) -> None:
    index, log = RunIndex(database), EventLog(database)
    cells, traces = StateCell(database), TraceStore(database)
    log.append_batch(AGENT, [("step", number) for number in range(3)])
    cells.transition(AGENT, "worker", lambda state: ([state.value, "busy"], None))
    cells.delete(AGENT, "gone")
    call = TraceType.ToolCall("search", {"query": "x"}, ["y"], 12)
    traces.record_child(AGENT, "own id", call, ["web", "golden"], {"cost": 1})
    with database.begin(AGENT) as txn:
        txn.kv_put("answer", 42)
        txn.event_append("answered", None)
        txn.state_set("worker", "idle")
        txn.trace_record("done")
    index.delete_run(ERASED)


def _first_life(engine: Any) -> None:
    run, other = RUNS.values()
    engine.put_run_record(other, pack_run(RUN_ACTIVE, RetentionPolicy.KeepLast(2)))
    engine.put(run, TAG_KV, "agent:1", {"state": "idle", "Größe": [1, -1, 2.5, None, True]})
    engine.put(run, TAG_KV, "agent:2", 7)
    engine.put(run, TAG_KV, "agent:1", "busy")
    engine.put(run, TAG_KV, "lease", b"\x00\xff", expires_us=YEAR_2100_US)
    engine.put(run, TAG_KV, "gone", "for a while")
    engine.delete(run, TAG_KV, "gone")
    for number in range(300):
        engine.put(other, TAG_KV, "tick", number)


def _after_checkpoint(engine: Any) -> None:
    run, other = RUNS.values()
    batch = {f"batch/{number:03}": "x" * number for number in range(1, 20)}
    engine.put_many(run, TAG_KV, list(batch), list(batch.values()))
    engine.increment(run, TAG_KV, "agent:2", 35)
    engine.delete(run, TAG_KV, "agent:1")
    engine.put(other, TAG_KV, "tick", "tock")


def _second_life(engine: Any) -> None:
    run, other = RUNS.values()
    engine.put(run, TAG_KV, "agent:1", "back again")
    engine.put(other, TAG_KV, "largest", 2**63 - 1)
    engine.put(run, TAG_KV, "lease", "renewed", expires_us=YEAR_2100_US + 1)
    engine.put(run, TAG_KV, "last", "word")


def _copy(source: Path, target: Path) -> None:
    """The files alone; the zeros at the end of log files are left out."""
    for part in ("checkpoint", "wal"):
        (target / part).mkdir(parents=True)
        for path in (source / part).iterdir():
            data = path.read_bytes()
            if path.suffix == ".ckpt":
                (target / part / path.name).write_bytes(data)
            elif path.suffix == ".wal":
                data = data.rstrip(b"\0")
                data += bytes(max(-len(data) % 8 + 8, FIRST_FRAME - len(data)))
                (target / part / path.name).write_bytes(data)


def _all_shown(engine: Any, folder: Path) -> dict[str, Any]:
    keys = list(read_folder(folder).keys)
    return {
        name: {each: shown(engine, run, each) for each in names_of(keys, run)}
        for name, run in RUNS.items()
    }


def _newest_log(folder: Path) -> Path:
    return max((folder / "wal").iterdir())


def _make(target: Path, scratch: Path) -> None:
    with Database.open(scratch / "one", Durability.strict(), map_size=MAP_SIZE) as database:
        _first_life(database._engine)
        _primitives_before_the_checkpoint(database)
        database.checkpoint()
        _after_checkpoint(database._engine)
        _primitives_after_the_checkpoint(database)
        _copy(scratch / "one", scratch / "two")
    with Database.open(scratch / "two", Durability.strict(), map_size=MAP_SIZE) as database:
        _second_life(database._engine)
        _copy(scratch / "two", target / "whole")
        expected = _all_shown(database._engine, target / "whole")
        primitives = json.dumps(shown_primitives(database), indent=1, ensure_ascii=False)
    (target / "primitives.json").write_text(primitives + "\n", "utf-8")
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (target / "expected.json").write_text(text + "\n", "utf-8")
    for name in ("torn", "damaged"):
        shutil.copytree(target / "whole", target / name)
    torn = _newest_log(target / "torn")
    torn.write_bytes(torn.read_bytes().rstrip(b"\0")[:-9])
    damaged = _newest_log(target / "damaged")
    data = bytearray(damaged.read_bytes())
    data[FIRST_FRAME + 50] ^= 0x20
    damaged.write_bytes(data)


def main() -> None:
    """Makes what is missing."""
    target = GOLDEN / f"v{FORMAT_VERSION}"
    if target.exists():
        sys.exit(f"{target} is there already, and is never made again")
    with tempfile.TemporaryDirectory() as scratch:
        _make(target, Path(scratch))
    for path in sorted(target.rglob("*")):
        if path.is_file():
            print(f"{path.relative_to(GOLDEN)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
