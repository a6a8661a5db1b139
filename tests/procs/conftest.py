"""conftest.py - fixtures of the tests with real processes.

Why:        every test gets its own folder, its own crew and its own seed, and none may leave a
            process or a segment behind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_engine import coordinator, database
from tests.harness.disk import Disk
from tests.harness.seeds import seeded
from tests.harness.shared import segments_by
from tests.harness.tally import Tally
from tests.harness.workers import Crew

LEAVE_S = 10.0


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Seeded; a failure shows the seed and the command that replays the test."""
    return seeded(request.node.nodeid)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a database may be; when the test is over, its coordinator and segments are gone."""
    path = tmp_path / "database"
    yield path
    for handle in list(database._open_handles):
        if handle.path == path:
            handle.close()
    info = coordinator.read_info(path)
    if info is None:
        return
    if info.is_alive():
        assert coordinator.wait_for_end(info.identity, LEAVE_S), "the coordinator did not leave"
    coordinator.cleanup(path)
    assert segments_by(info.pid) == []


@pytest.fixture
def crew(folder: Path) -> Iterator[Crew]:
    """Starts processes; they are dead before `folder` is looked at."""
    found = Crew()
    yield found
    found.disband()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Coordinators that the test starts do as this one says."""
    found = Disk(tmp_path / "disk")
    with found.in_use():
        yield found
    found.heal()


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    """Sixty-four counters for the workers."""
    return Tally(tmp_path / "tally", 64)
