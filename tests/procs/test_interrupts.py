"""test_interrupts.py - Ctrl-C in the middle of opening and closing a database.

Why:        the interpreter lets a signal in after any call returns: between a descriptor's making
            and the line that notes it, too. The tests raise KeyboardInterrupt after each call of
            the lines under test in turn, so that no moment is left out.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shm_engine import database as database_module
from shm_engine import segments as segments_module
from shm_engine._core import RunId, Store
from shm_engine.database import Database
from shm_engine.durability import Durability
from shm_engine.primitives.kv import KVStore
from tests.harness.shared import segments_by
from tests.harness.workers import wait_until


class PlainStore:
    """The functions that make a Store, visible to the interpreter as calls of Python."""

    @staticmethod
    def create(control: int, data: int, **options: Any) -> Store:
        """Store.create."""
        return Store.create(control, data, **options)

    @staticmethod
    def attach(control: int, data: int) -> Store:
        """Store.attach."""
        return Store.attach(control, data)


RUN = RunId.DEFAULT
MEMORY = Durability.in_memory()
FILES = {database_module.__file__, segments_module.__file__}
MOMENTS_MAX = 2000
# In a finalizer the interrupt is printed, and goes no further.
pytestmark = [
    pytest.mark.crash,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Interrupt:
    """Raises KeyboardInterrupt where the n-th call made by these files has just returned."""

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """The profile function; what it raises takes the place of the call's result."""
        caller = frame.f_back if event == "return" else frame
        if not event.endswith("return") or caller is None or self.left == 0:
            return
        if caller.f_code.co_filename in FILES:
            self.left -= 1
            if self.left == 0:
                self.place = f"{caller.f_code.co_qualname}, line {caller.f_lineno}"
                raise KeyboardInterrupt


def interrupted(opening: Callable[[], Database]) -> Iterator[str]:
    """Opens with an interrupt at the first moment, the second, and so on; yields after each where
    it came, and ends when a handle is there first."""
    before = sys.getprofile()
    for moment in range(1, MOMENTS_MAX):
        interrupt = Interrupt(moment)
        with suppress(KeyboardInterrupt):
            sys.setprofile(interrupt)
            try:
                opened = opening()
            finally:
                sys.setprofile(before)
        if interrupt.left:
            opened.close()
            return
        gc.collect()
        yield interrupt.place
    raise AssertionError("it never came to its end")


@pytest.fixture(autouse=True)
def plain_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "Store", PlainStore)


def descriptors() -> dict[str, str]:
    """What this process has open, but for the descriptor that looks.

    Garbage of earlier tests may hold some: a collection that came between two looks once closed
    them, and they were missed.
    """
    gc.collect()
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
    return found


def test_an_interrupted_open_of_a_folder_leaves_nothing(folder: Path) -> None:
    """A descriptor was closed twice, perhaps somebody else's by then; or the handle that nobody
    ever got stayed a member of the database until the process ended."""
    with Database.open(folder, MEMORY, map_size=1 << 20) as first:
        watching = "anon_inode:[pidfd]"
        wait_until(lambda: watching in descriptors().values(), "its coordinator is watched")
        before = descriptors()
        places = []
        for place in interrupted(lambda: Database.open(folder, MEMORY)):
            places.append(place)
            assert first.metrics().handles == 1, place
            assert descriptors() == before, place
        assert len(places) > 30
        KVStore(first).put(RUN, "key", 1)


def test_an_interrupted_making_of_a_database_leaves_nothing() -> None:
    before = descriptors()
    places = []
    for place in interrupted(lambda: Database.ephemeral(map_size=1 << 20)):
        places.append(place)
        assert descriptors() == before, place
        assert segments_by(os.getpid()) == [], place
    assert len(places) > 15


def test_an_interrupted_unpickling_leaves_nothing() -> None:
    with Database.ephemeral(map_size=1 << 20) as first:
        packed = pickle.dumps(first)
        before = descriptors()

        def join() -> Database:
            handle: Database = pickle.loads(packed)
            return handle

        places = []
        for place in interrupted(join):
            places.append(place)
            assert first.metrics().handles == 1, place
            assert descriptors() == before, place
        assert len(places) > 5
        KVStore(first).put(RUN, "key", 1)
