"""durable.py - what the tests of durable databases share: writers, proofs, whole contents.

Why:        a commit counts as kept only if whoever was told of it finds it again, so each writer
            notes what it began and what was acknowledged where no kill reaches, and one check
            compares. Each commit changes two keys, so a torn one would show.
Used by:    the tests in tests/procs and tests/model
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shm_engine import coordinator, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from shm_engine.retention import RetentionPolicy
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Worker, wait_until

__all__ = [
    "LOGGED",
    "MAP_SIZE",
    "RUN",
    "Content",
    "Writer",
    "check_writers",
    "content_of",
    "info_of",
    "join_and_write",
    "keep_some_history",
    "kill_coordinator",
    "kill_everything",
    "open_folder",
    "reopen",
    "start_opener",
    "stop_coordinator",
    "wait_for_successor",
    "write_on",
]

RUN: Final = RunId.DEFAULT
MAP_SIZE: Final = 64 << 20
LOGGED: Final = ("no_durability", "buffered", "strict")
KEPT: Final = 300
SUCCESSOR_S: Final = 1.0


def open_folder(folder: Path, mode: str | Durability = "strict", **options: Any) -> Database:
    """Opens a small database, which keeps some history."""
    return Database.open(folder, Durability.of(mode), **{"map_size": MAP_SIZE, **options})


def reopen(folder: Path, **options: Any) -> Database:
    """Opens it in whatever mode, strict if nobody has it open; small, as `open_folder`."""
    return Database.open(folder, **{"map_size": MAP_SIZE, **options})


# -- the coordinator --------------------------------------------------------------------------


def info_of(folder: Path) -> coordinator.Info:
    """What coordinator.json says."""
    info = coordinator.read_info(folder)
    assert info is not None
    return info


def kill_coordinator(folder: Path) -> coordinator.Info:
    """Kills it; returns what its file said when it is dead."""
    info = info_of(folder)
    os.kill(info.pid, signal.SIGKILL)
    assert coordinator.wait_for_end(info.identity, 10)
    return info


def stop_coordinator(folder: Path) -> coordinator.Info:
    """Returns when all its threads stand."""
    info = info_of(folder)
    os.kill(info.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{info.pid}/task")
    wait_until(
        lambda: all(
            " T " in (task / "stat").read_text().rpartition(")")[2][:4] for task in tasks.iterdir()
        ),
        "the coordinator stands",
    )
    return info


def wait_for_successor(folder: Path, dead: coordinator.Info) -> coordinator.Info:
    """The next coordinator, which has to be there within a second."""
    wait_until(
        lambda: (info := coordinator.read_info(folder)) and info.pid != dead.pid,
        "a successor of the coordinator",
        SUCCESSOR_S,
    )
    return info_of(folder)


# -- writers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """One writer's key, and where it notes how far it came."""

    number: int
    tally: Tally

    @property
    def key(self) -> str:
        return f"writer/{self.number}"

    @property
    def begun(self) -> int:
        return self.tally[2 * self.number]

    @property
    def acknowledged(self) -> int:
        return self.tally[2 * self.number + 1]

    def write(self, database: Database) -> None:
        """One commit: the next number under its key, and one more in the sum of all."""
        number = max(self.begun, self.acknowledged) + 1
        self.tally[2 * self.number] = number

        def both(txn: Any) -> None:
            txn.kv_put(self.key, number)
            txn.kv_incr("sum")

        database.transaction(RUN, both)
        self.tally[2 * self.number + 1] = number


def write_on(channel: Channel, number: int, database: Database, tally: Tally) -> None:
    """Commits without an end, noting each before and after."""
    writer = Writer(number, tally)
    channel.ready()
    while not channel.is_told():
        writer.write(database)
    database.close()


def check_writers(database: Database, tally: Tally, numbers: Iterable[int]) -> int:
    """Everything acknowledged is there, nothing that was not begun, in order; the sum of all.

    For writers that wrote their numbers without leaving one out.
    """
    kv = KVStore(database)
    total = 0
    for writer in (Writer(number, tally) for number in numbers):
        value = kv.get(RUN, writer.key) or 0
        assert writer.acknowledged <= value <= writer.begun, (
            f"{writer.key} holds {value}; {writer.acknowledged} was acknowledged, {writer.begun} "
            f"begun"
        )
        found = [entry.value for entry in kv.history(RUN, writer.key, KEPT)]
        assert found == list(range(value, value - len(found), -1))
        times = [entry.timestamp for entry in kv.history(RUN, writer.key, KEPT)]
        assert times == sorted(times, reverse=True)
        total += value
    assert (kv.get(RUN, "sum") or 0) == total, "a commit was torn"
    return total


def keep_some_history(database: Database) -> None:
    """So that writers without an end do not fill the map."""
    database.set_retention(RUN, RetentionPolicy.KeepLast(KEPT))


def start_opener(channel: Channel, folder: Path, mode: str, options: dict[str, Any]) -> None:
    """Opens the folder, and keeps it open until it is killed or told to close."""
    database = open_folder(folder, mode, **options)
    keep_some_history(database)
    channel.send("open")
    channel.receive()
    database.close()


def join_and_write(channel: Channel, number: int, folder: Path, tally: Tally) -> None:
    """`write_on` with a handle of its own."""
    write_on(channel, number, Database.open(folder), tally)


def kill_everything(folder: Path, workers: Sequence[Worker]) -> None:
    """The workers and whatever coordinator they have brought up; returns when all are dead."""
    for worker in workers:
        worker.process.kill()
    while (info := coordinator.read_info(folder)) is not None and info.is_alive():
        os.kill(info.pid, signal.SIGKILL)
        assert coordinator.wait_for_end(info.identity, 10)
    for worker in workers:
        worker.process.join()


# -- the whole content ------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """All that the public calls tell of some runs and names; two are compared by ==.

    When a value runs out is known up to the moments between which it was asked: `ends`.
    """

    figures: tuple[int, ...]
    runs: dict[str, Any]
    ends: dict[tuple[str, str], tuple[float, float]] = field(compare=False)

    def check(self, other: Content) -> None:
        """Fails where anything differs."""
        assert other.figures == self.figures
        assert other.runs.keys() == self.runs.keys()
        for run, expected in self.runs.items():
            for part, known in expected.items():
                assert other.runs[run][part] == known, f"{part} of {run}"
        assert other.ends.keys() == self.ends.keys()
        for which, (low, high) in self.ends.items():
            found = other.ends[which]
            assert found[0] <= high, f"{which} runs out later"
            assert low <= found[1], f"{which} runs out earlier"


def content_of(database: Database, runs: Sequence[RunId], names: Sequence[str]) -> Content:
    """Everything under these names, deleted ones too, with versions, times and ends."""
    kv = KVStore(database)
    metrics = database.metrics()
    found: dict[str, Any] = {}
    ends: dict[tuple[str, str], tuple[float, float]] = {}
    for run in runs:
        found[str(run)] = {
            "retention": database.retention(run),
            "scan": repr(kv.scan(run)),
            "heads": [repr(kv.get_versioned(run, name)) for name in names],
            "histories": {name: [repr(one) for one in kv.history(run, name)] for name in names},
            "past": {name: _past(kv, run, name) for name in names},
        }
        for name in names:
            before = time.time()
            left = kv.ttl(run, name)
            if left is not None:
                ends[str(run), name] = (
                    before + left.total_seconds(),
                    time.time() + left.total_seconds(),
                )
    return Content((metrics.version, metrics.keys), found, ends)


def _past(kv: KVStore, run: RunId, name: str) -> list[str]:
    """What `get_at` says at each version of its history, and just before it."""
    versions = [entry.version.value for entry in kv.history(run, name)]
    answers = []
    for version in sorted({one - off for one in versions for off in (0, 1)} - {0}):
        try:
            answers.append(repr(kv.get_at(run, name, version)))
        except errors.Error as error:
            answers.append(error.code)
    return answers
