"""damage.py - changes single bytes of a data segment and uses the database that is left.

Why:        bytes in shared memory are not trusted: whatever they are, the core must answer or
            refuse, and never crash or hang. A child tries one change after the other on copies in
            anonymous memory; if it dies, the change that it had just noted is to blame.
Used by:    test_damage.py; `python -m tests.format.damage SEED COUNT` looks for more
Crash:      the child's death is the finding; the parent goes on behind the change
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from shm_engine import errors
from shm_engine._core import Store
from shm_engine.keys import TAG_KV
from tests.format.reader import Reader
from tests.format.workload import RUNS, play, widths

__all__ = ["Change", "Victim", "changes", "try_all"]

MAP_SIZE: Final = 2 << 20
CLIENTS: Final = 4
LIMIT_S: Final = 10.0
COPIED: Final = 1 << 14  # of each part of the control segment that is mostly unused


@dataclass(frozen=True, slots=True)
class Change:
    """One byte of the data segment, and the bits that flip."""

    offset: int
    bits: int
    use: str

    def __str__(self) -> str:
        return f"byte {self.offset:#x} (a {self.use}) ^ {self.bits:#04x}"


class Victim:
    """A database that is closed, as bytes, and two descriptors to put copies of it behind."""

    def __init__(self, seed: int, steps: int = 250) -> None:
        self.control_fd = os.memfd_create("control")
        self.data_fd = os.memfd_create("data")
        store = Store.create(
            os.dup(self.control_fd), os.dup(self.data_fd), map_size=MAP_SIZE, max_clients=CLIENTS
        )
        play(store, random.Random(seed), steps)
        store.close()
        reader = Reader.of_files(self.control_fd, self.data_fd)
        self.blocks = reader.blocks()
        self.data = os.pread(self.data_fd, MAP_SIZE, 0)
        self.control = [(0, os.pread(self.control_fd, reader.field("se_header", "undo_offset"), 0))]
        for name in ("undo_offset", "taken_offset", "requests_offset"):
            start = reader.field("se_header", name)
            self.control.append((start, os.pread(self.control_fd, COPIED, start)))

    def restore(self, change: Change | None = None) -> None:
        """Puts the bytes back, all but one."""
        os.pwrite(self.data_fd, self.data, 0)
        for start, part in self.control:
            os.pwrite(self.control_fd, part, start)
        if change is not None:
            changed = bytes([self.data[change.offset] ^ change.bits])
            os.pwrite(self.data_fd, changed, change.offset)

    def attach(self) -> Store:
        """A store on the bytes as they are now."""
        return Store.attach(os.dup(self.control_fd), os.dup(self.data_fd))

    def close(self) -> None:
        """Gives the memory back."""
        os.close(self.control_fd)
        os.close(self.data_fd)


def changes(victim: Victim, seed: int, count: int) -> list[Change]:
    """Random changes: each kind of block as often, and near its beginning, where words lie."""
    rng = random.Random(seed)
    by_use: dict[str, list[tuple[int, int]]] = {}
    for block in victim.blocks:
        by_use.setdefault(block.use, []).append((block.offset, block.size))
    uses = sorted(by_use)
    found = []
    for _ in range(count):
        use = rng.choice(uses)
        offset, size = rng.choice(by_use[use])
        place = rng.randrange(min(size, rng.choice([8, 48, size])))
        found.append(Change(offset + place, rng.randrange(1, 256), use))
    return found


def _calls(store: Store) -> Iterator[Callable[[], Any]]:
    """Everything that a client does, on keys old and new."""
    some = [*widths()[::9], "user:1", "task:3", "t5", "counter", "user:2/1", "absent"]
    yield store.join
    for run in RUNS:
        for name in some:
            yield lambda run=run, name=name: store.get(run, TAG_KV, name)  # type: ignore[misc]
            yield lambda run=run, name=name: store.history(run, TAG_KV, name)  # type: ignore[misc]
        yield lambda run=run: store.get_at(run, TAG_KV, "user:1", 900)  # type: ignore[misc]
        for prefix in ("", "wide/", "user:"):
            yield lambda run=run, prefix=prefix: _scan(store, run, prefix)  # type: ignore[misc]
        yield lambda run=run: store.get_run_record(run)  # type: ignore[misc]
        for name in ("user:1", "task:3", "new", "wide/A", "forty/new", "three/new"):
            for value in (5, "text" * 40, b"large" * 3000):
                yield lambda run=run, name=name, value=value: (  # type: ignore[misc]
                    store.put(run, TAG_KV, name, value)
                )
            yield lambda run=run, name=name: store.get(run, TAG_KV, name)  # type: ignore[misc]
            yield lambda run=run, name=name: store.delete(run, TAG_KV, name)  # type: ignore[misc]
        yield lambda run=run: store.increment(run, TAG_KV, "counter", 1)  # type: ignore[misc]
    yield store.sweep
    for run in RUNS:
        for mark in range(60):
            yield lambda run=run, mark=mark: (  # type: ignore[misc]
                store.put(run, TAG_KV, f"grow/{chr(64 + mark)}", mark)
            )
    yield lambda: store.delete_many(RUNS[2], TAG_KV, widths())
    yield lambda: store.keep(0)
    yield store.sweep
    yield lambda: _scan(store, RUNS[2], "")


def _scan(store: Store, run: Any, prefix: str) -> None:
    pin = store.open_pin()
    try:
        store.scan(run, TAG_KV, prefix, pin)
    finally:
        pin.close()


def use_everything(victim: Victim) -> None:
    """What is no error of shm_engine.errors comes through."""
    store = victim.attach()
    try:
        for call in _calls(store):
            with suppress(errors.Error):
                call()
    finally:
        store.close()


def _child(victim: Victim, todo: list[Change], first: int, pipe: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for index in range(first, len(todo)):
        os.write(pipe, f"at {index}\n".encode())
        victim.restore(todo[index])
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            use_everything(victim)
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            os.write(pipe, f"{lines[-1]} <- {lines[-3].strip()}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, 0)


def try_all(victim: Victim, todo: list[Change]) -> list[str]:
    """What went wrong: a line for each change that crashed, hung or raised what is none of ours."""
    wrong: list[str] = []
    first = 0
    while first < len(todo):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reading)
                _child(victim, todo, first, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        at = first
        with os.fdopen(reading) as pipe:
            for line in pipe:
                if line.startswith("at "):
                    at = int(line[3:])
                else:
                    wrong.append(f"{todo[at]}: {line.strip()}")
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        wrong.append(f"{todo[at]}: {'hung' if name == 'SIGALRM' else name}")
        first = at + 1
    return wrong


def main() -> None:
    """SEED COUNT"""
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    victim = Victim(seed)
    for line in try_all(victim, changes(victim, seed, count)):
        print(line)


if __name__ == "__main__":
    main()
