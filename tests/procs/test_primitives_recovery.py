"""test_primitives_recovery.py - events, chains and cells survive any end and a new start.

Story 199 of the plan: closing, SIGKILL of everything, checkpoints, and each of them twice. In
strict mode all that was acknowledged is there again, and so is all that a follower was shown.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shm_engine import ChainVerification, errors
from shm_engine._core import RunId
from shm_engine.database import Database
from shm_engine.primitives.event_log import EventLog
from shm_engine.primitives.kv import KVStore
from shm_engine.primitives.state_cell import StateCell
from shm_engine.transaction import Transaction
from tests.harness.durable import (
    LOGGED,
    RUN,
    kill_coordinator,
    kill_everything,
    open_folder,
    reopen,
    wait_for_successor,
)
from tests.harness.tally import Tally
from tests.harness.workers import Channel, Crew, wait_until

OTHER = RunId("00000000-0000-4000-8000-000000000001")
ENDED = RunId("00000000-0000-4000-8000-000000000002")
RUNS = (RUN, OTHER, ENDED)
WRITERS = 3


def fill(database: Database, turn: int = 0) -> None:
    """Something of each primitive in each run, by each way of writing; again and again."""
    kv, log, cells = KVStore(database), EventLog(database), StateCell(database)
    for run in (RUN, OTHER):
        for number in range(5):
            log.append(run, f"single {number % 2}", {"n": number, "turn": turn})
            cells.set(run, "set", number)
            cells.transition_or_init(run, "count", 0, lambda state: (state.value + 1, None))
        log.append_batch(run, [("batch", b"x" * size) for size in range(0, 300, 50)])
        kv.put(run, "key", turn)
        with database.begin(run) as txn:
            txn.kv_put("txn", turn)
            txn.event_append("txn", [turn])
            txn.event_append("é", None)
            txn.state_set("txn", turn)
            txn.state_set("txn", -turn)
        cells.set(run, "deleted", turn)
        cells.delete(run, "deleted")
        cells.set(run, "again", turn)
        cells.delete(run, "again")
        cells.init(run, "again", turn)
    if turn == 0:
        database.begin_run(ENDED)
        log.append(ENDED, "last", 1)
        cells.init(ENDED, "cell", 1)
        database.end_run(ENDED)


def whole(database: Database) -> dict[str, Any]:
    """All that the primitives tell, hashes, times and versions too; each chain is sound."""
    kv, log, cells = KVStore(database), EventLog(database), StateCell(database)
    found: dict[str, Any] = {}
    for run in RUNS:
        events = list(log.iter(run))
        assert log.verify_chain(run) == ChainVerification(True, len(events))
        found[str(run)] = {
            "keys": [(key, kv.get_versioned(run, key)) for key, _ in kv.scan(run)],
            "events": events,
            "head": log.head(run),
            "types": {
                name: [event.sequence for event in log.read_by_type(run, name)]
                for name in log.event_types(run)
            },
            "cells": {name: cells.read(run, name) for name in cells.list(run)},
        }
    return found


def check_goes_on(database: Database) -> None:
    """Sequences and versions are continued where they were."""
    log, cells = EventLog(database), StateCell(database)
    head = log.head(RUN)
    state = cells.read(RUN, "count")
    assert head is not None
    assert state is not None
    sequence, _ = log.append(RUN, "after", None)
    assert sequence == head.sequence + 1
    added = log.read(RUN, sequence)
    assert added is not None
    assert added.prev_hash == head.hash
    assert added.timestamp_us >= head.timestamp_us
    assert cells.cas(RUN, "count", state.version, state.value) == state.version + 1
    assert cells.init(RUN, "deleted", 1) == 1
    cells.delete(RUN, "deleted")
    assert log.verify_chain(RUN).is_valid
    with pytest.raises(errors.RunError):
        log.append(ENDED, "after", None)
    with pytest.raises(errors.RunError):
        cells.set(ENDED, "cell", None)


# -- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LOGGED)
def test_all_primitives_are_the_same_after_closing_and_opening_twice(
    mode: str, folder: Path
) -> None:
    with open_folder(folder, mode) as database:
        fill(database)
        before = whole(database)
    for turn in range(2):
        with reopen(folder) as database:
            assert whole(database) == before
            check_goes_on(database)
            fill(database, turn + 1)
            before = whole(database)


def test_all_primitives_are_the_same_after_a_checkpoint_with_and_without_commits_behind_it(
    folder: Path,
) -> None:
    with open_folder(folder, "strict") as database:
        fill(database)
        database.checkpoint()
        before = whole(database)
    with reopen(folder) as database:
        assert whole(database) == before
        database.checkpoint()
        fill(database, 1)
        before = whole(database)
    with reopen(folder) as database:
        assert whole(database) == before
        check_goes_on(database)


def test_opening_alone_changes_nothing(folder: Path) -> None:
    with open_folder(folder, "buffered") as database:
        fill(database)
        before = whole(database)
    for _ in range(2):
        with reopen(folder) as database:
            assert whole(database) == before


# -- SIGKILL of everything --------------------------------------------------------------------


def fill_and_stay(channel: Channel, folder: Path, mode: str, turn: int, checkpoint: bool) -> None:
    """Writes, has it synced, says what there is, and waits to be killed."""
    database = open_folder(folder, mode)
    fill(database, turn)
    if checkpoint:
        database.checkpoint()
        fill(database, turn + 1)
    database.flush()
    channel.send(whole(database))
    channel.receive()


@pytest.mark.crash
@pytest.mark.parametrize("checkpoint", [False, True], ids=["log", "checkpoint"])
@pytest.mark.parametrize("mode", ["buffered", "strict"])
def test_all_primitives_are_the_same_after_a_sigkill_of_everything_behind_a_flush(
    mode: str, checkpoint: bool, folder: Path, crew: Crew
) -> None:
    for turn in (0, 2):
        worker = crew.start(fill_and_stay, folder, mode, turn, checkpoint)
        before = worker.receive()
        kill_everything(folder, [worker])
        with reopen(folder) as database:
            assert whole(database) == before
            assert database.recovery is not None
            check_goes_on(database)


# -- SIGKILL while they write -----------------------------------------------------------------


def write_all(txn: Transaction, number: int, turn: int) -> None:
    """One more of each primitive."""
    assert txn.state_set(f"w{number}", turn) == turn + 1
    txn.event_append(f"w{number}", turn)
    txn.kv_put(f"w{number}", turn)


def write_on(channel: Channel, number: int, folder: Path, tally: Tally) -> None:
    """Transactions over all primitives, appends and sets of one's own, noted before and after."""
    database = open_folder(folder, "strict")
    log, cells = EventLog(database), StateCell(database)
    channel.ready()
    turn = 0
    while True:
        tally[2 * number] = turn + 1
        body = partial(write_all, number=number, turn=turn)
        database.transaction_with_retry(RUN, body, max_retries=10_000)
        log.append(OTHER, f"w{number}", turn)
        cells.transition_or_init(OTHER, "sum", 0, lambda state: (state.value + 1, None))
        tally[2 * number + 1] = turn + 1
        turn += 1


def follow_on(channel: Channel, folder: Path, tally: Tally) -> None:
    """Notes how many events of a run it was shown."""
    database = open_folder(folder, "strict")
    channel.ready()
    for event in EventLog(database).follow(RUN, after=-1):
        tally[2 * WRITERS] = event.sequence + 1


def check_written(database: Database, tally: Tally) -> None:
    """All that was acknowledged, nothing that was not begun, nothing torn."""
    kv, log, cells = KVStore(database), EventLog(database), StateCell(database)
    total = 0
    for number in range(WRITERS):
        name = f"w{number}"
        begun, acknowledged = tally[2 * number], tally[2 * number + 1]
        in_runs = [[event.payload for event in log.read_by_type(run, name)] for run in (RUN, OTHER)]
        for found in in_runs:
            assert found == list(range(len(found)))
            assert acknowledged <= len(found) <= begun <= acknowledged + 1
        state = cells.read(RUN, name)
        value = kv.get(RUN, name)
        if not in_runs[0]:
            assert (state, value) == (None, None)
            continue
        assert state is not None
        assert (state.value, state.version, value) == (value, value + 1, len(in_runs[0]) - 1)
        total += acknowledged
    state = cells.read(OTHER, "sum")
    assert state is not None
    assert total <= state.value <= total + WRITERS
    assert state.version == state.value + 1
    assert log.len(RUN) >= tally[2 * WRITERS] > 0, "a follower was shown more than was kept"
    for run in (RUN, OTHER):
        assert log.verify_chain(run) == ChainVerification(True, log.len(run))


@pytest.mark.crash
def test_in_strict_mode_a_sigkill_of_everything_loses_nothing_acknowledged_or_shown(
    folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    workers = crew.start_many(WRITERS, write_on, folder, tally)
    workers.append(crew.start(follow_on, folder, tally))
    crew.release()
    wait_until(
        lambda: tally[2 * WRITERS] and all(tally[2 * n + 1] > 3 for n in range(WRITERS)),
        "events of every writer",
    )
    crew.watch(workers, rng.uniform(0.0, 0.3))
    kill_everything(folder, workers)
    for _ in range(2):
        with reopen(folder) as database:
            check_written(database, tally)


@pytest.mark.crash
def test_a_killed_coordinator_costs_no_event_and_no_version(
    folder: Path, crew: Crew, tally: Tally, rng: random.Random
) -> None:
    with open_folder(folder, "strict") as database:
        workers = crew.start_many(WRITERS, write_on, folder, tally)
        workers.append(crew.start(follow_on, folder, tally))
        crew.release()
        for _ in range(2):
            crew.watch(workers, rng.uniform(0.0, 0.1))
            before = [tally[2 * number + 1] for number in range(WRITERS)]
            wait_for_successor(folder, kill_coordinator(folder))
            wait_until(
                lambda before=before: all(  # type: ignore[misc]
                    tally[2 * number + 1] > before[number] + 2 for number in range(WRITERS)
                ),
                "writes of every writer after the death",
            )
        shown = tally[2 * WRITERS]
        wait_until(lambda: tally[2 * WRITERS] > shown, "the follower goes on, too")
        for worker in workers:
            worker.kill()
        check_written(database, tally)
    with reopen(folder) as database:
        check_written(database, tally)
