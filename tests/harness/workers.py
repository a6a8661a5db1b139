"""workers.py - Crew and Worker: real processes under a test's control.

Why:        a test of several processes has to start them, let them go at the same moment, stop or
            kill one of them, wait for an end or an answer, and hear why one failed. All waiting is
            for an event (a message, an end, a stop), with a deadline, never for a time.

                test                                worker
                crew.start(fn, db) ---------------> fn(channel, db)
                worker.receive()   <- "ready" ----- channel.ready()
                worker.release()   -- "go" -------> ... goes on
                worker.receive()   <- answer ------ channel.send(answer)
                worker.join()      <--------------- end

Used by:    the tests in tests/procs; one thread
Invariants: W1 nothing that a crew started outlives it; W2 an exception in a worker fails the test
            that waits for this worker, with the worker's traceback
Errors:     WorkerFailure: the worker raised, ended, or said nothing in time
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Literal

__all__ = [
    "DEADLINE_S",
    "METHODS",
    "Channel",
    "Crew",
    "Method",
    "Worker",
    "WorkerFailure",
    "wait_until",
]

Method = Literal["fork", "forkserver", "spawn"]
METHODS: Final[tuple[Method, ...]] = ("fork", "forkserver", "spawn")
DEADLINE_S: Final = 30.0
FAILED: Final = "the worker failed"
PRELOADED: Final = ["pytest", "shm_engine.primitives.kv", "tests.harness.workers"]


class WorkerFailure(AssertionError):
    """A worker did not do what the test waited for."""


class Channel:
    """The worker's side: messages to and from the test."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def send(self, message: object) -> None:
        """Tells the test something."""
        self._connection.send(message)

    def receive(self) -> Any:
        """What the test says next; the end of the test ends the worker."""
        return self._connection.recv()

    def is_told(self) -> bool:
        """Whether the test has said something that was not received yet."""
        return self._connection.poll(0)

    def ready(self) -> None:
        """Reports for duty and waits to be released."""
        self.send("ready")
        assert self.receive() == "go"


def _run(
    connection: Connection[Any, Any], function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        function(Channel(connection), *arguments)
    except EOFError:
        raise SystemExit(2) from None  # the test has ended
    except BaseException:
        connection.send((FAILED, traceback.format_exc()))
        raise SystemExit(1) from None


@dataclass
class Worker:
    """The test's side of one process."""

    process: Any
    connection: Connection[Any, Any]

    @property
    def pid(self) -> int:
        """Of the process."""
        number: int = self.process.pid
        return number

    def send(self, message: object) -> None:
        """Tells the worker something."""
        self.connection.send(message)

    def release(self) -> None:
        """Lets a worker that is ready go on."""
        self.send("go")

    def receive(self, seconds: float = DEADLINE_S) -> Any:
        """The worker's next message."""
        if not self.connection.poll(seconds):
            raise WorkerFailure(f"{self} said nothing for {seconds:g} s")
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(DEADLINE_S)
            raise WorkerFailure(f"{self} ended instead of answering") from None
        if isinstance(message, tuple) and len(message) == 2 and message[0] == FAILED:
            raise WorkerFailure(f"{self} raised:\n{message[1]}")
        return message

    def expect(self, message: object) -> None:
        """Receives exactly this."""
        found = self.receive()
        assert found == message, f"{self} said {found!r} instead of {message!r}"

    def join(self, seconds: float = DEADLINE_S) -> None:
        """Waits for a good end."""
        self.process.join(seconds)
        if self.process.exitcode != 0:
            while self.connection.poll(0):
                self.receive()
            raise WorkerFailure(f"{self} should have ended well within {seconds:g} s")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; returns when the process is dead and reaped."""
        self.process.kill()
        self.process.join()

    def kill_unreaped(self) -> None:
        """SIGKILL; returns when the process is a zombie. A child of this process."""
        self.process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """SIGSTOP; returns when all its threads stand. A child of this process."""
        self.signal(signal.SIGSTOP)
        found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert found is not None
        assert found.si_code == os.CLD_STOPPED, f"{self} ended before it was stopped"

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def __str__(self) -> str:
        code = self.process.exitcode
        return f"worker {self.pid} ({'running' if code is None else f'exit code {code}'})"


class Crew:
    """The processes of one test."""

    def __init__(self, method: Method = "fork") -> None:
        self.method: Method = method
        self.workers: list[Worker] = []

    def start(
        self, function: Callable[..., object], *arguments: object, method: Method | None = None
    ) -> Worker:
        """Runs ``function(channel, *arguments)`` in a process of its own.

        With spawn and forkserver the arguments travel pickled, and the function must be found by
        its name in a module; a forked child inherits what this process has.
        """
        context: Any = multiprocessing.get_context(method or self.method)
        if (method or self.method) == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(theirs, function, arguments))
        process.start()
        theirs.close()
        worker = Worker(process, ours)
        self.workers.append(worker)
        return worker

    def start_many(
        self, count: int, function: Callable[..., object], *arguments: object
    ) -> list[Worker]:
        """Several of the same, each with its number (from 0) before the other arguments."""
        return [self.start(function, number, *arguments) for number in range(count)]

    def release(self, workers: Iterable[Worker] | None = None) -> None:
        """Waits until all are ready, then lets them go together."""
        chosen = list(self.workers if workers is None else workers)
        for worker in chosen:
            worker.expect("ready")
        for worker in chosen:
            worker.release()

    def watch(self, workers: Iterable[Worker], seconds: float) -> None:
        """Lets them work for that long; an end or a failure of one of them is the test's."""
        by_sentinel: dict[Any, Worker] = {worker.process.sentinel: worker for worker in workers}
        for sentinel in wait(list(by_sentinel), seconds):
            worker = by_sentinel[sentinel]
            worker.process.join()
            while worker.connection.poll(0):
                worker.receive()
            raise WorkerFailure(f"{worker} ended while it should have worked")

    def disband(self) -> None:
        """Kills whoever is left."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.process.close()
            worker.connection.close()
        self.workers.clear()


def wait_until(holds: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> float:
    """Waits for what no kernel object announces; how many seconds it took."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.0005)
    return time.monotonic() - started
