"""agent.py - the agent, a worker process that claims files and surveys them.

Why:        a pool of agents shares nothing but the store. One file goes through it so:
                 claim     cas(task/i, version seen, "claimed by me")   one of many wins
                           and an event in the agent's own log
                 survey    parse the file; no lock is held, nobody waits
                 complete  ONE transaction: the task is done, what was found, the counters, the
                           event in the survey's log, the traces
            An agent that is killed leaves a claimed task. The parent marks the agent dead and
            counts the death; survivors see the count and claim the task again by cas.
Used by:    the worker processes, one thread each
Invariants: A1 a file counts once: its counters, event and traces come in the commit that completes
               its task, and that commit requires the claim to be still ours (test_demo.py)
            A2 no agent waits for another: one with nothing to claim waits for the parent's word
            A3 all writes to the agent's own run come before its completion
Crash:      before `complete` commits: nothing counted or told, the claim is taken over
            after: everything counted and told, the task is done
Errors:     anything unexpected goes to the parent as text, and the agent ends
"""

from __future__ import annotations

import functools
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from shm_engine.database import Database
from shm_engine.demo import records, story
from shm_engine.demo.survey import module_name, survey_file
from shm_engine.errors import Error, TransactionConflict
from shm_engine.primitives.event_log import EventLog
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.run_index import RunIndex
from shm_engine.primitives.state_cell import StateCell
from shm_engine.transaction import Transaction

UNAVAILABLE_RETRIES_MAX = 5

READY, HOLDING, IDLE, FAILED = "ready", "holding", "idle", "failed"
"""What an agent tells the parent, as the first item of a tuple."""

GO, AGAIN, STOP = "go", "again", "stop"
"""What the parent answers."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """What an agent is told at its start; `held_file` is the one whose holder gets killed.

    `run` is the survey's; `own_run` is the agent's, a child of it, which exists before the parent
    says go.
    """

    worker: int
    generation: int
    run: str
    own_run: str
    root: str
    file_count: int
    held_file: int


def agent_main(setup: AgentSetup, database: Database, parent: Connection) -> None:
    """The worker process: survey until the parent says stop, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent started us with signals held back
    try:
        with database:
            _Agent(setup, database, parent).work()
    except (EOFError, ConnectionError):
        return  # the parent is gone, and with it the purpose
    except Exception:
        parent.send((FAILED, traceback.format_exc()))


class _Agent:
    def __init__(self, setup: AgentSetup, database: Database, parent: Connection) -> None:
        self._setup = setup
        self._database = database
        self._kv = KVStore(database)
        self._cells = StateCell(database)
        self._log = EventLog(database)
        self._parent = parent
        self._deaths_seen = 0
        self._status: dict[str, Any] = {
            "pid": os.getpid(),
            "generation": setup.generation,
            "state": records.STARTING,
            "file": records.NO_FILE,
            "files": 0,
            "commits": 0,
            "conflicts": 0,
        }

    def work(self) -> None:
        self._publish(records.STARTING)
        answer = self._ask((READY,))
        self._note(story.STARTED, {"worker": self._setup.worker, "pid": os.getpid()})
        while answer != STOP:
            self._survey_what_is_free()
            self._publish(records.IDLE)
            answer = self._ask((IDLE, self._deaths_seen))
        self._note(story.FINISHED, {"files": self._status["files"]})
        self._publish(records.FINISHED)
        self._retried(lambda: RunIndex(self._database).complete_run(self._setup.own_run))

    def _survey_what_is_free(self) -> None:
        """Go through the tasks once, from the start again after each death of an agent."""
        index = 0
        while index < self._setup.file_count:
            deaths = self._kv.get(self._setup.run, records.DEATHS_KEY)
            if deaths != self._deaths_seen:
                self._deaths_seen, index = deaths, 0  # what the dead one held lies behind us
            task = self._retried(functools.partial(self._claim, index))
            if task is not None:
                self._survey(index, task)
                if self._parent.poll():  # nobody writes to a working agent: it is the end of file
                    raise EOFError
            index += 1

    def _claim(self, index: int) -> dict[str, Any] | None:
        """Make the task ours unless it is done or a living agent's; exactly one of many wins."""
        key = records.task_key(index)
        seen = self._kv.get_versioned(self._setup.run, key)
        assert seen is not None
        task: dict[str, Any] = seen.value
        if task["state"] == records.DONE:
            return None
        if task["state"] == records.CLAIMED:
            if self._is_ours(task):
                return task  # a cas of ours whose answer was Unavailable had been committed
            if not self._is_orphan(task):
                return None
        mine = task | {
            "state": records.CLAIMED,
            "owner": self._setup.worker,
            "generation": self._setup.generation,
            "attempt": task["attempt"] + 1,
        }
        won = self._kv.cas(self._setup.run, key, seen.version, mine)
        self._status["commits" if won else "conflicts"] += 1
        return mine if won else None

    def _is_ours(self, task: dict[str, Any]) -> bool:
        owner = (self._setup.worker, self._setup.generation)
        return owner == (task["owner"], task["generation"])

    def _is_orphan(self, task: dict[str, Any]) -> bool:
        """Whether the claim's owner is dead: marked so, or another incarnation by now."""
        owner = self._cells.read(self._setup.run, records.agent_cell(task["owner"]))
        assert owner is not None  # an agent makes its cell before it claims
        is_dead: bool = owner.value["state"] == records.DEAD
        return is_dead or owner.value["generation"] != task["generation"]

    def _survey(self, index: int, task: dict[str, Any]) -> None:
        self._note(story.CLAIMED, {"file": task["path"]})
        self._publish(records.WORKING, index)
        is_held = index == self._setup.held_file and task["attempt"] == 1
        if is_held:
            self._parent.send((HOLDING, index))  # SIGKILL comes from now on, at any moment
        parse = self._parse(os.fsdecode(task["path"]))
        if is_held:
            self._parent.recv()  # on a small file it may not have come yet
        self._complete(index, task, parse)

    def _parse(self, path: str) -> story.Parse:
        full_path = os.path.join(self._setup.root, path)
        started_s = time.monotonic()
        outcome = survey_file(full_path, module_name(path))
        duration_ms = round((time.monotonic() - started_s) * 1000)
        return story.Parse(outcome, story.size_of(outcome, full_path), duration_ms)

    def _complete(self, index: int, task: dict[str, Any], parse: story.Parse) -> None:
        """Commit the file: task, what was found, counters, event, traces; all or nothing (A1).

        Another agent's event that comes between is a conflict; one of the two has then gone on.
        """
        key = records.task_key(index)
        found = {"path": task["path"], "outcome": parse.outcome.to_value()}
        deltas = records.counter_deltas(parse.outcome)
        done = task | {"state": records.DONE}

        def body(txn: Transaction) -> bool:
            current = txn.kv_get(key)
            if current == done:
                return True  # an earlier try of ours had been committed after all
            if current != task:
                return False
            txn.kv_put(key, done)
            txn.kv_put(records.found_key(index), found)
            for counter, delta in deltas.items():
                txn.kv_incr(counter, delta)
            story.tell(txn, task, parse)
            return True

        while True:
            try:
                counted = self._retried(lambda: self._database.transaction(self._setup.run, body))
            except TransactionConflict:
                self._status["conflicts"] += 1
                continue
            if counted:
                self._status["commits"] += 1
                self._status["files"] += 1
            return

    def _publish(self, state: str, file: int = records.NO_FILE) -> None:
        self._status["commits"] += 1  # this one
        self._status |= {"state": state, "file": file}
        name = records.agent_cell(self._setup.worker)
        self._retried(lambda: self._cells.set(self._setup.run, name, self._status))

    def _note(self, event_type: str, payload: dict[str, Any]) -> None:
        """An event in the agent's own log."""
        self._retried(lambda: self._log.append(self._setup.own_run, event_type, payload))
        self._status["commits"] += 1

    def _ask(self, message: tuple[Any, ...]) -> str:
        self._parent.send(message)
        answer: str = self._parent.recv()
        return answer

    def _retried(self, operation: Callable[[], _T]) -> _T:
        """The operation's result. A stopped process may hold up commits (Ctrl-Z): try again."""
        for _ in range(UNAVAILABLE_RETRIES_MAX):
            try:
                return operation()
            except TransactionConflict:
                raise
            except Error as error:
                if not error.is_retryable():
                    raise
        return operation()
