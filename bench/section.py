"""section.py - the question how long the critical section of a commit is.

Why:        Everybody who commits waits for whoever holds the sequencer; how long it is held bounds
            what all processes do together. The core counts it itself, between taking and giving
            back, because from Python it cannot be seen.
Used by:    __main__.py
Cost:       two clock readings per commit, which the figures include
"""

from __future__ import annotations

from bench.options import Options
from bench.peers import SHM_ENGINE, Host, ShmStore, make_value
from bench.results import Answer

_KEYS = 10_000


def ask(name: str, options: Options) -> Answer:
    """Count the section of updates and of new keys, one process, one commit each."""
    answer = Answer(name)
    if SHM_ENGINE not in options.peers:
        answer.notes.append("only shm_engine counts its critical section")
        return answer
    updates = options.count(200_000, 2_000)
    inserts = options.count(200_000, 2_000)
    found: dict[str, list[float]] = {"update": [], "insert": []}
    for number in range(options.rounds):
        with Host(SHM_ENGINE, options.map_size, options.keep_last) as host:
            store = host.store
            if not isinstance(store, ShmStore):
                raise TypeError(f"not the engine's store: {type(store).__name__}")
            lost = _round(store, updates, inserts)
            metrics = store.database.metrics()
        update_ns, insert_ns = metrics.section_update_ns, metrics.section_insert_ns
        if update_ns is None or insert_ns is None:
            raise LookupError(f"the core counted nothing: {metrics!r}")
        found["update"].append(update_ns)
        found["insert"].append(insert_ns)
        answer.checks += 1
        answer.losses.extend(lost)
        answer.rounds.append({"round": number, "update_ns": update_ns, "insert_ns": insert_ns})
    for kind, samples in found.items():
        answer.add(f"{SHM_ENGINE}.{kind}_ns", "ns", samples)
    return answer.finish()


def _round(store: ShmStore, updates: int, inserts: int) -> list[str]:
    """Fill, switch the core's clock on, update, insert; return what is missing afterwards."""
    put, run, value = store.kv.put, store.run, make_value(0)
    store.fill((f"section/{number}", value) for number in range(_KEYS))
    store.database._engine.set_timing(True)
    for i in range(updates):
        put(run, f"section/{i % _KEYS}", value)
    for i in range(inserts):
        put(run, f"fresh/{i}", value)
    keys = [f"section/{i}" for i in range(_KEYS)] + [f"fresh/{i}" for i in range(inserts)]
    return [f"{key} is not there" for key in keys if store.read(key) != value]
