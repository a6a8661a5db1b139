"""test_storage_full.py - a full map_size refuses what needs room, whole, and nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shm_engine import Database, KVStore, RetentionPolicy, RunId, RunIndex, errors
from tests.harness.refusal import contents
from tests.harness.threads import in_threads

RUN = RunId.DEFAULT
MIB = 1024 * 1024
FILLER = "x" * 1000
# How many keys one commit deletes for certain where there is no room: a 64th of the map, at 64
# bytes each.
RESERVE = MIB // 64 // 64


@pytest.fixture
def kv() -> Iterator[KVStore]:
    with Database.ephemeral(map_size=MIB) as db:
        yield KVStore(db)


def until_full(write: Callable[[int], Any]) -> int:
    """Calls it with 0, 1, 2, ... until there is no room; how often it was done."""
    for count in itertools.count():
        try:
            write(count)
        except errors.StorageFull:
            return count
    raise AssertionError("never full")


def fill(kv: KVStore, size: int = 1000, prefix: str = "fill") -> int:
    """Puts new keys until there is no room for another one; how many went in."""
    return until_full(lambda count: kv.put(RUN, f"{prefix}{count:06}", "x" * size))


def delete_all(kv: KVStore, at_once: int = 100) -> None:
    """Batch by batch: a commit of deletes needs a little room too, see `RESERVE`."""
    names = kv.list(RUN)
    for first in range(0, len(names), at_once):
        batch = names[first : first + at_once]
        assert kv.mdelete(RUN, batch) == len(batch)
    assert kv.list(RUN) == []


def brim(kv: KVStore) -> None:
    """Leaves no room for a record of any size."""
    for size in (1000, 100, 10, 0):
        fill(kv, size, f"brim{size}-")


def refused_whole(kv: KVStore, call: Callable[[], Any], *runs: RunId) -> None:
    before = contents(kv.database, RUN, *runs)
    with pytest.raises(errors.StorageFull):
        call()
    assert contents(kv.database, RUN, *runs) == before


def test_the_error_names_the_remedies(kv: KVStore) -> None:
    fill(kv)
    with pytest.raises(errors.StorageFull) as caught:
        kv.put(RUN, "a", FILLER)
    for word in ("map_size", "--shm-size", "Reads and deletes still work", str(MIB)):
        assert word in caught.value.message
    assert not caught.value.is_retryable()


def test_what_is_full_still_reads_scans_snapshots_and_deletes(kv: KVStore) -> None:
    count = fill(kv)
    assert count > 500
    names = [f"fill{i:06}" for i in range(count)]
    assert kv.list(RUN) == names
    with kv.database.snapshot() as snapshot:
        assert [value for _, value in snapshot.scan_prefix(RUN)] == [FILLER] * count
        assert kv.get_many(RUN, names[:3]) == [FILLER] * 3
        assert kv.transaction(RUN, lambda txn: txn.kv_list()) == names
        for name in names[: RESERVE // 2]:
            assert kv.delete(RUN, name) is True
        assert kv.list(RUN) == names[RESERVE // 2 :]
        assert snapshot.get(RUN, names[0]) == FILLER
    for name in names[RESERVE // 2 :]:
        assert kv.delete(RUN, name) is True
    assert kv.list(RUN) == []


WRITES: dict[str, Callable[[KVStore], Any]] = {
    "put": lambda kv: kv.put(RUN, "new", "y" * 5000),
    "put over": lambda kv: kv.put(RUN, "fill000001", "y" * 5000),
    "put_with_ttl": lambda kv: kv.put_with_ttl(RUN, "new", "y" * 5000, 60),
    "cas": lambda kv: kv.cas(RUN, "new", None, "y" * 5000),
    "mset": lambda kv: kv.mset(RUN, {f"new{i}": "y" * 100 for i in range(500)}),
    "mset over": lambda kv: kv.mset(RUN, {f"fill{i:06}": "y" * 900 for i in range(500)}),
    "mset of one too many": lambda kv: kv.mset(RUN, {"a": 1, "b": 2, "c": "y" * 50_000}),
    "transaction": lambda kv: kv.transaction(RUN, everything),
    "too large for all": lambda kv: kv.put(RUN, "new", "y" * 2 * MIB),
}


def everything(txn: Any) -> None:
    for i in range(500):
        txn.kv_put(f"fill{i:06}", txn.kv_get(f"fill{i:06}") + "y")
        txn.kv_incr(f"n{i}")
    txn.kv_delete("fill000000")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_of_a_batch_that_finds_no_room_half_way_nothing_stays(
    write: Callable[[KVStore], Any], kv: KVStore
) -> None:
    fill(kv)
    for _ in range(20):
        refused_whole(kv, lambda: write(kv))
    metrics = kv.database.metrics()
    assert metrics.arena_used_bytes <= metrics.arena_allocated_bytes <= MIB


def test_deletes_make_room_and_puts_work_again(kv: KVStore) -> None:
    for _ in range(5):
        count = fill(kv)
        half = kv.list(RUN)[: RESERVE // 2]
        assert kv.mdelete(RUN, half) == len(half)
        for i in range(len(half) // 2):
            kv.put(RUN, f"again{i:06}", FILLER)
        delete_all(kv)
        kv.mset(RUN, {f"batch{i}": FILLER for i in range(count // 2)})
        delete_all(kv)
    assert fill(kv) > count // 2


def test_a_store_filled_to_the_brim_still_deletes_every_key(kv: KVStore) -> None:
    brim(kv)
    names = kv.list(RUN)
    for name in names[::2]:
        assert kv.delete(RUN, name)
    assert kv.transaction(RUN, lambda txn: txn.kv_delete(names[1]))
    delete_all(kv)
    kv.put(RUN, "a", FILLER)


def test_a_full_store_deletes_however_often_it_was_full_before() -> None:
    """The room kept for deletes was once spent by the first ones, later counted in blocks that are
    too small for a deletion."""
    for seed in (27, 51):
        rng = random.Random(seed)
        with Database.ephemeral(map_size=MIB) as db:
            kv = KVStore(db)
            for turn in range(8):
                for part in range(rng.randint(1, 6)):
                    size = rng.choice([0, 0, 10, 20, 60, 100, 200, 500, 1000, 3000])
                    fill(kv, size, f"{rng.choice('abcdef')}{turn}-{part}-")
                fill(kv, 0, f"z{turn}-")
                names = kv.list(RUN)
                rng.shuffle(names)
                for name in names[: rng.choice([len(names), len(names) // 2, 10, 300])]:
                    assert kv.delete(RUN, name)


def test_more_deletes_than_there_is_room_for_are_refused_whole_and_fewer_work(
    kv: KVStore,
) -> None:
    fill(kv, 0)
    names = kv.list(RUN)
    assert len(names) > 10 * RESERVE
    refused_whole(kv, lambda: kv.mdelete(RUN, names))
    assert kv.mdelete(RUN, names[: RESERVE // 2]) == RESERVE // 2
    delete_all(kv)


def test_overwriting_goes_on_where_history_may_go(kv: KVStore) -> None:
    names = [f"k{i}" for i in range(100)]
    for turn in range(100):
        kv.mset(RUN, {name: [turn, FILLER] for name in names})
    assert all(kv.get(RUN, name) == [99, FILLER] for name in names)
    assert kv.database.metrics().pressure_trimmed_versions > 0


def test_history_that_was_chosen_to_be_kept_is_never_dropped_for_room(kv: KVStore) -> None:
    run = kv.database.begin_run()
    kv.database.set_retention(run, RetentionPolicy.KeepAll)
    versions: list[int] = []
    until_full(lambda turn: versions.append(kv.put(run, "a", [turn, FILLER])))
    assert [kv.get_at(run, "a", v).value[0] for v in versions] == list(range(len(versions)))
    refused_whole(kv, lambda: kv.put(run, "a", FILLER * 5), run)
    kv.database.set_retention(run, RetentionPolicy.KeepLast(1))
    for _ in range(2000):
        kv.put(run, "a", FILLER)


def test_an_open_snapshot_keeps_its_history_and_so_the_room(kv: KVStore) -> None:
    kv.mset(RUN, {f"k{i}": [0, FILLER] for i in range(300)})
    with kv.database.snapshot() as snapshot:
        until_full(lambda turn: kv.put(RUN, f"k{turn % 300}", [turn, FILLER]))
        assert [value for _, value in snapshot.scan_prefix(RUN)] == [[0, FILLER]] * 300
    for turn in range(10, 20):
        for i in range(300):
            kv.put(RUN, f"k{i}", [turn, FILLER])


def test_other_runs_and_run_records_are_refused_the_same_way(kv: KVStore) -> None:
    run = kv.database.begin_run()
    brim(kv)
    refused_whole(kv, lambda: kv.put(run, "a", FILLER), run)
    begun: list[RunId] = []
    until_full(lambda _: begun.append(kv.database.begin_run()))
    delete_all(kv)
    kv.put(run, "a", FILLER)
    kv.database.end_run(run)
    for other in begun:
        kv.database.end_run(other)


def test_eight_threads_at_the_brim_lose_nothing_that_was_acknowledged(kv: KVStore) -> None:
    def work(number: int) -> set[str]:
        mine: set[str] = set()
        for i in range(400):
            name = f"t{number}-{i:04}"
            try:
                kv.mset(RUN, {name: FILLER, name + "+": number})
                mine.add(name)
            except errors.StorageFull:
                for gone in sorted(mine)[:5]:
                    assert kv.mdelete(RUN, [gone, gone + "+"]) == 2
                    mine.discard(gone)
        return mine

    expected = set().union(*in_threads(8, work))
    found = set(kv.list(RUN))
    assert found == expected | {name + "+" for name in expected}


def test_a_write_set_beyond_its_limit_is_refused_whatever_the_room() -> None:
    with Database.ephemeral(map_size=256 * MIB) as db:
        kv = KVStore(db)
        kv.put(RUN, "a", 1)
        large = b"x" * (13 * MIB)
        before = contents(db, RUN)

        def put_five(txn: Any) -> None:
            for i in range(5):
                txn.kv_put(f"k{i}", large)

        for call in (
            lambda: kv.mset(RUN, {f"k{i}": large for i in range(5)}),
            lambda: kv.transaction(RUN, put_five),
            lambda: kv.mset(RUN, dict.fromkeys(map(str, range(2**20 + 1)))),
            lambda: kv.mdelete(RUN, map(str, range(2**20 + 1))),
        ):
            with pytest.raises(
                errors.ConstraintViolation, match="write set is too large"
            ) as caught:
                call()
            assert caught.value.reason == "write_set_too_large"
            assert contents(db, RUN) == before
        assert kv.mset(RUN, {f"k{i}": large for i in range(4)})
        assert kv.mdelete(RUN, [f"k{i}" for i in range(4)]) == 4
        assert kv.list_with_values(RUN) == [("a", 1)]


def test_a_run_can_be_ended_and_deleted_in_a_full_store() -> None:
    """Ending a run writes index entries and counters too; they once kept it from the reserve."""
    with Database.ephemeral(map_size=1 << 20) as db:
        kv, index = KVStore(db), RunIndex(db)
        runs = [db.begin_run() for _ in range(20)]
        for size in (1000, 100, 10, 0):
            with pytest.raises(errors.StorageFull):
                put_for_ever(kv, size)
        for run in runs[:10]:
            db.end_run(run)
        for run in runs[10:]:
            index.delete_run(run)
        assert index.get_stats().completed_runs == index.count() == 10


def put_for_ever(kv: KVStore, size: int) -> None:
    for number in itertools.count():
        kv.put("default", f"{size}/{number}", bytes(size))
