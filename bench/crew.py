"""crew.py - the crew: spawned processes that carry out tasks, together or one at a time.

Why:        Spawning and importing costs a hundred times what a short run does, so a crew is
            spawned once per question. Between two runs its processes sleep in a read from their
            pipes and take nothing from those that are measured.
Used by:    rounds.py and the questions that need other processes (parent);
            `_work` is what the processes run
Errors:     CrewError names the process and carries its traceback; a process that dies or does not
            answer in time is an error as well, never a wait without end
Crash:      the crew's processes are daemons: they end with the parent. Leaving the `with` block
            ends those that this crew started, by their process objects
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.startline import CalledOff, StartLine

_TIMEOUT_S = 180.0
_POLL_S = 0.001


class CrewError(Exception):
    """A process of the crew failed, died or did not answer."""


@dataclass(frozen=True)
class Place:
    """Where a task runs: which process of the crew it is, and its start line."""

    index: int
    line: StartLine


@dataclass(frozen=True)
class Task:
    """A top-level function, called in the worker as `function(place, *arguments)`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Failure:
    called_off: bool
    text: str


def _work(connection: Connection, index: int, path: Path, runners: int) -> None:
    """Run tasks until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place = Place(index, StartLine(path, runners, owner=False))
    connection.send(None)
    while True:
        try:
            task: Task | None = connection.recv()
        except EOFError:
            return
        if task is None:
            return
        try:
            answer: Any = task.function(place, *task.arguments)
        except CalledOff:
            answer = _Failure(True, "called off")
        except Exception:
            answer = _Failure(False, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:  # the parent has given up
            return


class Crew:
    """A context manager around `size` spawned processes.

    `run` hands task k to process k and returns their answers in the same order. With
    `together=True` every task must call `place.line.wait(place.index)` once: it returns in all of
    them at the same moment, after all have come that far.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a crew needs at least one process, not {size}")
        self.size = size
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._broken = False

    def __enter__(self) -> Crew:
        self._line = StartLine.create(self.size)
        context = multiprocessing.get_context("spawn")
        try:
            for index in range(self.size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(theirs, index, self._line.path, self.size),
                    daemon=True,
                    name=f"bench-{index}",
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
            for index in range(self.size):
                self._receive(index, time.monotonic() + _TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def pid(self, index: int) -> int:
        pid = self._processes[index].pid
        if pid is None:
            raise CrewError(f"process {index} was not started")
        return pid

    def run(
        self, tasks: Sequence[Task], *, together: bool = False, timeout_s: float = _TIMEOUT_S
    ) -> list[Any]:
        """Run the tasks, one per process, and return what they returned.

        Raises CrewError with the first traceback; the others have then ended as well. Where a
        process died or did not answer, the crew is of no further use and says so.
        """
        if not 1 <= len(tasks) <= self.size:
            raise ValueError(f"{len(tasks)} tasks for {self.size} processes")
        if self._broken:
            raise CrewError("a process of this crew is gone: make a new crew")
        self._broken = True
        deadline = time.monotonic() + timeout_s
        self._line.open_heat()
        for connection, task in zip(self._connections, tasks, strict=False):
            with contextlib.suppress(OSError):  # a dead process is found when it is to answer
                connection.send(task)
        if together:
            self._release(len(tasks), deadline)
        answers = [self._receive(index, deadline) for index in range(len(tasks))]
        self._broken = False
        failures = [answer for answer in answers if isinstance(answer, _Failure)]
        for failure in sorted(failures, key=lambda failure: failure.called_off):
            raise CrewError(failure.text)
        return answers

    def _release(self, count: int, deadline: float) -> None:
        """Let the runners go once all stand at the line; call it off if one cannot come."""
        while not self._line.all_ready(count):
            early = wait(self._connections[:count], timeout=_POLL_S)
            dead = [process for process in self._processes[:count] if not process.is_alive()]
            late = time.monotonic() > deadline
            if early or dead or late:
                self._line.call_off()
                return
        self._line.release()

    def _receive(self, index: int, deadline: float) -> Any:
        connection, process = self._connections[index], self._processes[index]
        rest = max(0.0, deadline - time.monotonic())
        ready = wait([connection, process.sentinel], timeout=rest)
        if connection in ready or connection.poll():
            try:
                return connection.recv()
            except (EOFError, ConnectionError):
                process.join(timeout=5)
        if not ready:
            raise CrewError(f"process {index} (pid {process.pid}) did not answer in time")
        raise CrewError(f"process {index} (pid {process.pid}) died: exit code {process.exitcode}")

    def _stop(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()
        self._connections.clear()
        self._line.close()
