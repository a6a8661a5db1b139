"""pool.py - the pool of agents, seen from the parent.

Why:        the parent starts the agents, kills one of them half-way, and notices every death:
                 ready   all agents are attached           -> go, all at once
                 holding an agent has the half-way file    -> SIGKILL
                 (dead)  its sentinel fires                -> marked in its cell, deaths += 1, its
                                                              run failed; the idle look again
                 idle    nothing left to claim             -> all idle and no news: stop
            It waits for pipes and process sentinels, all in one call; the time-out of that call
            refreshes the view and decides nothing.
Used by:    the parent, one thread
Invariants: P1 when run() returns, every task is done, no agent writes any more, and each one's run
               is Completed, by itself, or Failed, by the parent (test_demo.py)
            P2 after close() no agent is alive, whatever happened before
Crash:      the parent's own death ends the pipes; agents see that after the file in hand
Errors:     PoolFailure, with what the agent said, or when no agent is left
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.demo import agent, records
from shm_engine.demo.survey import SourceTree
from shm_engine.errors import Error, InvalidStatusTransition
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.run_index import RunIndex
from shm_engine.primitives.state_cell import StateCell
from shm_engine.transaction import Transaction

REFRESH_INTERVAL_S = 0.1
TASKS_PER_COMMIT = 1000
EXIT_TIMEOUT_S = 10.0

GENERATION = 1
"""The incarnation of every agent; a replacement for a dead one would have the next."""


class PoolFailure(Exception):
    """The pool could not finish its work; the message says why."""


@dataclass(slots=True)
class AgentView:
    """What the view shows of one agent."""

    worker: int
    pid: int
    state: str
    file: str | None
    files: int
    commits: int
    conflicts: int
    files_per_s: float


@dataclass(slots=True)
class Progress:
    """The state of the whole job: the totals from one snapshot, the agents as they were then."""

    file_count: int
    done: int
    skipped: int
    elapsed_s: float
    agents: list[AgentView]

    @property
    def commits(self) -> int:
        """All commits of all agents."""
        return sum(view.commits for view in self.agents)

    @property
    def conflicts(self) -> int:
        """All compare-and-sets and transactions that lost."""
        return sum(view.conflicts for view in self.agents)


@dataclass(slots=True)
class Death:
    """An agent that ended before the job did, the file it held, and who took that over."""

    worker: int
    pid: int
    exit_code: int
    planned: bool
    time_us: int
    file_index: int
    successor: int = records.NO_OWNER

    @property
    def has_successor(self) -> bool:
        """Whether it held a file and another agent has taken that over."""
        return self.successor != records.NO_OWNER


@dataclass(slots=True)
class _Member:
    worker: int
    process: BaseProcess
    pipe: Connection
    run: str
    pid: int = 0
    ready: bool = False
    idle: bool = False
    ended_s: float | None = None
    killed_at_us: int = 0


Watch = Callable[[Progress], None]
OnDeath = Callable[[Death], None]
"""Called when a death is noticed, and again when it has a successor."""


class Pool:
    """A number of agents on one source tree; a context manager that leaves no process behind."""

    def __init__(
        self, database: Database, run: str, tree: SourceTree, workers: int, on_death: OnDeath
    ) -> None:
        self._database = database
        self._kv = KVStore(database)
        self._cells = StateCell(database)
        self._runs = RunIndex(database)
        self._run = run
        self._tree = tree
        self._workers = workers
        self._on_death = on_death
        self._members: list[_Member] = []
        self._started_s = time.monotonic()
        self.deaths: list[Death] = []
        self.elapsed_s = 0.0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, watch: Watch) -> None:
        """Survey every file; `watch` is called about ten times a second and at the end."""
        self._store_tasks()
        resource_tracker.ensure_running()  # not in _interrupts_held_back: it lets them through
        for worker in range(self._workers):
            self._start(worker)
        while living := self._living():
            handles: list[Any] = [member.process.sentinel for member in living]
            handles += [member.pipe for member in living if not member.pipe.closed]
            signalled = set(wait(handles, timeout=REFRESH_INTERVAL_S))
            for member in living:
                if member.pipe in signalled:
                    self._hear(member)
                if member.process.sentinel in signalled:
                    self._bury(member)
            self._note_successors()
            if self._is_finished():
                break
            watch(self.progress())
        self.elapsed_s = time.monotonic() - self._started_s
        if not self._living():
            raise PoolFailure(self._no_agent_left())
        self._stop()
        watch(self.progress())

    def close(self) -> None:
        """End every agent that still runs, and wait until it is gone. Harmless when repeated."""
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.join()
            member.pipe.close()

    def progress(self) -> Progress:
        """The job's state now."""
        with self._database.snapshot() as snapshot:
            surveyed = snapshot.get(self._run, records.total_key("files")) or 0
            skipped = snapshot.get(self._run, records.total_key("skipped")) or 0
        cells = {}
        for member in self._members:
            name = records.agent_cell(member.worker)
            state = self._cells.read(self._run, name)
            cells[name] = state.value if state is not None else {}
        return Progress(
            len(self._tree.files), surveyed + skipped, skipped, self._elapsed(), self.views(cells)
        )

    def views(self, cells: dict[str, dict[str, Any]]) -> list[AgentView]:
        """What the agents' state cells say, by the cells' names; an agent for each member."""
        elapsed_s = self._elapsed()
        return [
            self._view(member, cells.get(records.agent_cell(member.worker), {}), elapsed_s)
            for member in self._members
        ]

    def _elapsed(self) -> float:
        return self.elapsed_s or time.monotonic() - self._started_s

    def _view(self, member: _Member, value: dict[str, Any], elapsed_s: float) -> AgentView:
        index = value.get("file", records.NO_FILE)
        working_s = elapsed_s if member.ended_s is None else member.ended_s
        files = value.get("files", 0)
        state = value.get("state", records.STARTING)
        return AgentView(
            worker=member.worker,
            pid=member.pid,
            state="killed" if state == records.DEAD and member.killed_at_us else state,
            file=None if index == records.NO_FILE else self._tree.files[index],
            files=files,
            commits=value.get("commits", 0),
            conflicts=value.get("conflicts", 0),
            files_per_s=files / working_s if working_s > 0 else 0.0,
        )

    def _store_tasks(self) -> None:
        files = self._tree.files
        self._kv.put(self._run, records.DEATHS_KEY, 0)
        for start in range(0, len(files), TASKS_PER_COMMIT):
            batch = files[start : start + TASKS_PER_COMMIT]
            tasks = {
                records.task_key(index): records.new_task(path)
                for index, path in enumerate(batch, start)
            }
            self._kv.mset(self._run, tasks)

    def _start(self, worker: int) -> None:
        """Start one agent. `spawn`: a fresh interpreter, which gets the handle by pickling."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        own_run = str(RunId.new())
        setup = agent.AgentSetup(
            worker=worker,
            generation=GENERATION,
            run=self._run,
            own_run=own_run,
            root=self._tree.root,
            file_count=len(self._tree.files),
            held_file=len(self._tree.files) // 2 if self._workers > 1 else records.NO_FILE,
        )
        process = context.Process(
            target=agent.agent_main,
            args=(setup, self._database, theirs),
            name=f"agent-{worker}",
            daemon=True,
        )
        with _interrupts_held_back():
            process.start()
            self._members.append(_Member(worker, process, ours, own_run, pid=process.pid or 0))
        theirs.close()
        self._runs.create_run_with_options(
            own_run,
            parent_run=self._run,
            tags=[records.AGENT_TAG],
            metadata={"worker": worker, "pid": process.pid},
        )  # the agent writes to it when it is told to go

    def _living(self) -> list[_Member]:
        return [member for member in self._members if member.ended_s is None]

    def _hear(self, member: _Member) -> None:
        try:
            message = member.pipe.recv()
        except (EOFError, ConnectionError):
            member.pipe.close()  # it is dying; the sentinel tells when it is dead
            return
        if message[0] == agent.FAILED:
            with contextlib.suppress(Error):  # what the agent says matters more
                self._runs.fail_run(member.run, message[1].strip().rpartition("\n")[2])
            raise PoolFailure(f"worker {member.worker} failed:\n{message[1]}")
        if message[0] == agent.READY:
            member.ready = True
            self._go_when_all_ready()
        elif message[0] == agent.HOLDING:
            self._kill(member)
        elif message[0] == agent.IDLE:
            member.idle = message[1] == len(self.deaths)
            if not member.idle:
                self._tell(member, agent.AGAIN)

    def _hear_last_words(self, member: _Member) -> None:
        """Of an agent whose process is gone: should it have failed, it said why."""
        while not member.pipe.closed and member.pipe.poll():
            self._hear(member)

    def _go_when_all_ready(self) -> None:
        living = self._living()
        if all(member.ready for member in living):
            self._started_s = time.monotonic()
            for member in living:
                self._tell(member, agent.GO)

    def _kill(self, member: _Member) -> None:
        """SIGKILL the holder of the half-way file; not the last agent, which nobody follows."""
        if len(self._living()) == 1:
            self._tell(member, agent.GO)
            return
        member.killed_at_us = time.time_ns() // 1000
        member.process.kill()

    def _bury(self, member: _Member) -> None:
        """Mark a dead agent in the store, so that the others may take its claim over."""
        member.process.join()
        self._hear_last_words(member)
        member.ended_s = time.monotonic() - self._started_s
        member.pipe.close()
        name = records.agent_cell(member.worker)

        def body(txn: Transaction) -> None:
            status = txn.state_read(name) or {"generation": GENERATION}
            txn.state_set(name, status | {"state": records.DEAD})
            txn.kv_incr(records.DEATHS_KEY, 1)

        file_index = self._held_by(member.worker)  # before others may claim it
        self._database.transaction(self._run, body)
        with contextlib.suppress(InvalidStatusTransition):  # it had come to its end before
            self._runs.fail_run(member.run, exit_text(member.process.exitcode or 0))
        death = Death(
            worker=member.worker,
            pid=member.pid,
            exit_code=member.process.exitcode or 0,
            planned=bool(member.killed_at_us),
            time_us=member.killed_at_us or time.time_ns() // 1000,
            file_index=file_index,
        )
        self.deaths.append(death)
        self._on_death(death)
        if not member.ready:
            self._go_when_all_ready()  # the others need not wait for this one any more
        for other in self._living():
            if other.idle:
                other.idle = False
                self._tell(other, agent.AGAIN)

    def _held_by(self, worker: int) -> int:
        """The file that an agent has claimed and not completed."""
        with self._database.snapshot() as snapshot:
            tasks = snapshot.scan_prefix(self._run, records.TASK_PREFIX)
            for index, (_, task) in enumerate(tasks):
                if task["state"] == records.CLAIMED and task["owner"] == worker:
                    return index
        return records.NO_FILE

    def _note_successors(self) -> None:
        for death in self.deaths:
            if death.file_index == records.NO_FILE or death.has_successor:
                continue
            task = self._kv.get(self._run, records.task_key(death.file_index))
            if task["owner"] != death.worker:
                death.successor = task["owner"]
                self._on_death(death)

    def _is_finished(self) -> bool:
        return all(member.idle for member in self._living())

    def _stop(self) -> None:
        """Wait until all have ended their runs; one that does not is counted among the dead."""
        for member in self._living():
            member.idle = False  # should another die now, this one has nothing to look for again
            self._tell(member, agent.STOP)
        for member in self._living():
            member.process.join(EXIT_TIMEOUT_S)
            if member.process.exitcode == 0:
                self._hear_last_words(member)
            else:
                member.process.kill()
                self._bury(member)

    def _no_agent_left(self) -> str:
        causes = ", ".join(
            f"worker {death.worker}: {exit_text(death.exit_code)}"
            + (
                f" with {self._tree.files[death.file_index]!a}"
                if death.file_index != records.NO_FILE
                else ""
            )
            for death in self.deaths
        )
        return f"every worker died before the work was done ({causes})"

    @staticmethod
    def _tell(member: _Member, word: str) -> None:
        if member.pipe.closed:
            return  # it has hung up: its sentinel will say that it is dead
        with contextlib.suppress(ConnectionError):  # dead already, the same
            member.pipe.send(word)


def exit_text(exit_code: int) -> str:
    """How a process ended: the signal that killed it, or its exit code."""
    if exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Signals wait until the block is left, so that no process is started but not listed.

    The process inherits the mask until agent_main runs: Ctrl-C finds no interpreter half started. A
    signal that another thread of this process takes would be handled here all the same, in the
    middle of handing the process its work: it is noted, and comes again after the block.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in signals}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for number in signals:
        signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held:
        signal.raise_signal(held[0])
