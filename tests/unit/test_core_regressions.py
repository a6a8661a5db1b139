"""test_core_regressions.py - bugs that were found in the compiled part, each met once more."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import pytest

from shm_engine import Database, KVStore, RetentionPolicy, RunId, errors, keys
from shm_engine._core import OP_PUT, Store
from tests.harness.shared import FOLDER, PAGE, SequencerView, segment_names
from tests.harness.workers import wait_until

RUN: Final = RunId.DEFAULT
TAG: Final = keys.TAG_KV
DEADLINE_S: Final = 20.0
RUN_EPOCH: Final = PAGE + 152  # se_sequencer.run_epoch
SLOTS: Final = 2 * PAGE  # where the slots begin, their size, and se_slot.request_state
SLOT_SIZE: Final = 256
REQUEST_STATE: Final = 128
PENDING, TAKEN = 1, 2


@pytest.fixture
def db() -> Iterator[Database]:
    with Database.ephemeral(max_clients=16) as database:
        yield database


def in_a_child(work: Callable[[], None]) -> None:
    """Runs it in a forked child, which has to end well, and in time."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    assert ended, "the child hangs"
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_child_forked_during_anothers_commit_closes_without_waiting(db: Database) -> None:
    """close() waits for threads that are in the store without the interpreter lock. A forked child
    inherited their number but not the threads, and so its close() never returned."""
    view = SequencerView(db)
    kv = KVStore(db)
    view.take()
    writer = threading.Thread(target=kv.put, args=(RUN, "a", 1))
    writer.start()
    wait_until(
        lambda: view.waiting() == 1, "a waiting put"
    )  # it has let the interpreter lock go since then
    try:
        in_a_child(db.close)
    finally:
        view.give_back()
        writer.join()
    assert kv.get(RUN, "a") == 1


def test_a_child_without_descriptors_is_refused_until_it_has_one_again(db: Database) -> None:
    """A child that could not read /proc joined as nobody: it got its slot and its snapshot entry
    from a place that the next one took them from as well, and was never asked again."""
    kv = KVStore(db)
    kv.put(RUN, "a", 1)

    def work() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        for _ in range(2):
            with pytest.raises(errors.IoError, match="descriptors"):
                kv.put(RUN, "a", 2)
            with pytest.raises(errors.IoError, match="descriptors"):
                db.snapshot()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        kv.put(RUN, "a", 3)
        with db.snapshot() as snapshot:
            assert snapshot.get(RUN, "a") == 3
        db.close()

    in_a_child(work)
    assert kv.get(RUN, "a") == 3


@pytest.mark.parametrize(
    "bad",
    [
        (OP_PUT, TAG, "b", b"\x01", -1, 0),
        (OP_PUT, TAG, "b", b"\x01", 0, 2**63),
        (OP_PUT, TAG, "b", "\x01", 0, 0),
        (2**40, TAG, "b", b"\x01", 0, 0),
        (OP_PUT, TAG, "b\0", b"\x01", 0, 0),
        (OP_PUT, TAG, "b"),
    ],
)
def test_a_refused_operation_leaves_no_pin(db: Database, bad: Any) -> None:
    """The operations of a commit were converted with the write set already begun. One that did not
    convert left the thread's pin behind, and nobody's memory came free any more."""
    store = db._engine
    assert isinstance(store, Store)
    db.set_retention(RUN, RetentionPolicy.KeepLast(1))
    with pytest.raises((errors.Error, OverflowError, TypeError, ValueError)):
        store.commit(RUN, [(OP_PUT, TAG, "a", b"\x01", 0, 0), bad], 0)
    for number in range(300):
        store.put(RUN, TAG, f"key/{number}", number)
        store.delete(RUN, TAG, f"key/{number}")
    for _ in range(4):
        store.sweep()
    assert db.metrics().retired_blocks < 50
    assert store.get(RUN, TAG, "b", default="absent") == "absent"


# -- a request in doubt -----------------------------------------------------------------------


class RequestView(SequencerView):
    """The sequencer and the slots: plays a holder that takes a request up and stops."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        descriptor = os.open(FOLDER / segment_names(database)[0], os.O_RDWR)
        try:
            self._request_pages = mmap.mmap(descriptor, SLOTS + 16 * SLOT_SIZE)
        finally:
            os.close(descriptor)

    def _states(self) -> list[ctypes.c_uint32]:
        return [
            ctypes.c_uint32.from_buffer(
                self._request_pages, SLOTS + slot * SLOT_SIZE + REQUEST_STATE
            )
            for slot in range(16)
        ]

    def change_request(self, before: int, after: int) -> bool:
        """The request in this state goes over to that one; False if there is none."""
        for state in self._states():
            if state.value == before:
                state.value = after
                return True
        return False

    def register_some_run(self) -> None:
        """Makes what clients know about runs out of date."""
        ctypes.c_uint64.from_buffer(self._request_pages, RUN_EPOCH).value += 1


class StoppedHolder:
    """A thread with the sequencer in hand, which takes the next request up and carries it out only
    when it is told to."""

    def __init__(self, database: Database) -> None:
        self.view = RequestView(database)
        self.holds = threading.Event()
        self.go_on = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.holds.wait(DEADLINE_S)

    def _run(self) -> None:
        self.view.take()
        self.holds.set()
        wait_until(lambda: self.view.change_request(PENDING, TAKEN), "a request")
        assert self.go_on.wait(DEADLINE_S)
        self.view.register_some_run()
        assert self.view.change_request(TAKEN, PENDING)
        self.view.give_back()

    def end(self) -> None:
        self.go_on.set()
        self._thread.join()


def put_in_doubt(db: Database, kv: KVStore) -> StoppedHolder:
    holder = StoppedHolder(db)
    db._engine.set_stall(0.1)
    with pytest.raises(errors.Unavailable) as caught:
        kv.put(RUN, "doubtful", 1)
    assert caught.value.in_doubt
    db._engine.set_stall(DEADLINE_S)
    return holder


def test_a_refused_request_in_doubt_is_settled_once(db: Database) -> None:
    """A request in doubt turned out refused, because a run had been registered meanwhile. The next
    write withdrew it, did not notice, and withdrew it again, which ended the process."""
    kv = KVStore(db)
    kv.put(RUN, "a", 1)
    holder = put_in_doubt(db, kv)
    holder.end()
    kv.put(RUN, "a", 2)
    assert kv.scan(RUN) == [("a", 2)]


def test_a_signal_handler_cannot_settle_what_is_being_settled(db: Database) -> None:
    """A handler that wrote while its own thread was waiting for a request in doubt waited for the
    same request: both ended it, which ended the process."""
    kv = KVStore(db)
    kv.put(RUN, "a", 1)
    holder = put_in_doubt(db, kv)
    refusals: list[errors.Error] = []

    def handle(number: int, frame: FrameType | None) -> None:
        holder.go_on.set()  # whoever waits for the request, this handler too, gets an answer
        try:
            kv.put(RUN, "handler", 1)
        except errors.Error as error:
            refusals.append(error)

    before = signal.signal(signal.SIGUSR1, handle)
    # Later than the next line begins to wait, most likely; earlier is no failure.
    interrupter = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        interrupter.start()
        kv.put(RUN, "a", 2)
    finally:
        interrupter.join()
        holder.end()
        signal.signal(signal.SIGUSR1, before)
    assert kv.get(RUN, "a") == 2
    assert all(type(error) is errors.InvalidOperation for error in refusals)
