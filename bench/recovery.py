"""recovery.py - the question how fast a database comes back, and how large its log is.

Why:        After a crash everybody waits for the recovery. Two parts of it are measured alone:
            small commits replayed from the log, and a checkpoint loaded. The files were just
            written, so they are in the system's cache: the engine's share, not the disk's.

                log         a writer commits and is killed with its coordinator; then an open
                checkpoint  filled and closed, which leaves a checkpoint and an empty log; an open
Used by:    __main__.py
Crash:      the writer is a process of this question; it and the coordinator of its folder are ended
            by their own pids
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

from bench.crew import CrewError
from bench.machine import disk_folder
from bench.options import Options
from bench.peers import SEQ_FIRST, encode, make_value
from bench.results import Answer
from shm_engine import Database, Durability, KVStore, RunId, coordinator

RUN = RunId.DEFAULT
MIB = 1 << 20
_KEYS = 10_000
_COMMITS = 300_000
"""So many that the log stays below what calls for a checkpoint by itself."""
_LARGE = 1000
_BATCH = 1000
_TIMEOUT_S = 120.0


def key_of(number: int) -> str:
    return f"recovery/{number % _KEYS}"


def write_and_wait(path: Path, commits: int, map_size: int) -> None:
    """Process: writes so many small commits, says so by a file, and waits to be killed."""
    database = Database.open(path, Durability.no_durability(), map_size=map_size)
    kv, value = KVStore(database), make_value(0)
    for number in range(commits):
        value["seq"] = SEQ_FIRST + number
        kv.put(RUN, key_of(number), value)
    database.flush()
    (path / "written").touch()
    signal.pause()


def leave_a_log(path: Path, commits: int, map_size: int) -> None:
    """Has a process commit, and kills it and the coordinator."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=write_and_wait, args=(path, commits, map_size), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while not (path / "written").exists():
            if not process.is_alive() or time.monotonic() > deadline:
                raise CrewError(f"the writer did not come to its end: exit {process.exitcode}")
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    info = coordinator.read_info(path)
    if info is not None and info.is_alive():
        os.kill(info.pid, signal.SIGKILL)
        coordinator.wait_for_end(info.identity, _TIMEOUT_S)


def replay(options: Options, number: int, answer: Answer) -> None:
    """One recovery from the log alone."""
    commits = options.count(_COMMITS, 2_000)
    with tempfile.TemporaryDirectory(prefix="shm_engine-bench-", dir=disk_folder()) as top:
        path = Path(top) / "store"
        path.mkdir()
        leave_a_log(path, commits, options.map_size)
        with Database.open(path, map_size=options.map_size) as database:
            found, kv = database.recovery, KVStore(database)
            answer.checks += 1
            for back in range(min(_KEYS, commits)):
                last = commits - 1 - back
                value = kv.get(RUN, key_of(last))
                if value is None or value["seq"] != SEQ_FIRST + last:
                    answer.losses.append(f"{key_of(last)}: {value!r}, wrote {last}")
    if found is None or not found.commits:
        raise CrewError("nothing was replayed: a checkpoint came in between")
    payload = sum(len(key_of(one)) for one in range(_KEYS)) / _KEYS + len(encode(make_value(0)))
    answer.rounds.append(
        {
            "round": number,
            "what": "log",
            "commits": found.commits,
            "seconds": found.seconds,
            "commits_per_s": found.commits / found.seconds,
            "log_bytes_per_put": found.log_bytes / found.commits,
            "log_over_payload": found.log_bytes / found.commits / payload,
        }
    )


def load(options: Options, number: int, answer: Answer) -> None:
    """One recovery from a checkpoint alone."""
    keys = min(options.count(1 << 20, 10_000), int(options.map_size * 0.7) // (_LARGE + 100))
    with tempfile.TemporaryDirectory(prefix="shm_engine-bench-", dir=disk_folder()) as top:
        path = Path(top) / "store"
        with Database.open(path, Durability.no_durability(), map_size=options.map_size) as database:
            kv = KVStore(database)
            for first in range(0, keys, _BATCH):
                kv.mset(RUN, {f"load/{first + n:09}": b"v" * _LARGE for n in range(_BATCH)})
        with Database.open(path, Durability.no_durability(), map_size=options.map_size) as database:
            found = database.recovery
            answer.checks += 1
            if len(KVStore(database).list(RUN)) < keys:
                answer.losses.append("keys of the checkpoint are missing")
    if found is None or found.commits or not found.checkpoint_bytes:
        raise CrewError("it was not the checkpoint that was loaded")
    answer.rounds.append(
        {
            "round": number,
            "what": "checkpoint",
            "bytes": found.checkpoint_bytes,
            "seconds": found.seconds,
            "mib_per_s": found.checkpoint_bytes / MIB / found.seconds,
        }
    )


def ask(name: str, options: Options) -> Answer:
    """Recover in both ways in every round."""
    answer = Answer(name)
    for number in range(options.rounds):
        replay(options, number, answer)
        load(options, number, answer)
    for key, unit in (
        ("commits_per_s", "/s"),
        ("log_bytes_per_put", "bytes"),
        ("log_over_payload", "x key and value"),
        ("mib_per_s", "MiB/s"),
    ):
        samples = [float(str(record[key])) for record in answer.rounds if key in record]
        answer.add(key, unit, samples)
    return answer.finish()
