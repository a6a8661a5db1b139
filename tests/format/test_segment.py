"""test_segment.py - a reader written from FORMAT.md alone finds exactly what the API shows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgpack
import pytest

from shm_engine import Database, KVStore
from shm_engine._core import RunId
from shm_engine.keys import TAG_KV, TAG_RUN
from tests.format.reader import Reader, Record
from tests.format.workload import RUNS, Model, play
from tests.harness.shared import SequencerView

SEEDS = [1, 2, 3]
Keys = dict[bytes, tuple[list[Record], bool]]


@pytest.fixture(scope="module", params=SEEDS)
def played(request: pytest.FixtureRequest) -> Iterator[tuple[Database, Model, Reader]]:
    """A live database after a random workload; its sequencer is held, so that nothing changes."""
    with Database.ephemeral(map_size=16 << 20, max_clients=8) as database:
        model = play(database._engine, random.Random(request.param), 700)
        held = SequencerView(database)
        held.take()
        try:
            yield database, model, Reader.of(database._segments)
        finally:
            held.give_back()


def all_keys(reader: Reader) -> Keys:
    return {key: reader.records(leaf) for key, leaf in reader.leaves()}


def of_run(found: Keys, run: RunId) -> dict[str, tuple[list[Record], bool]]:
    start = run.bytes + bytes([TAG_KV])
    return {
        key[len(start) : -1].decode(): chain
        for key, chain in found.items()
        if key.startswith(start)
    }


def has_value(record: Record, now_us: int) -> bool:
    return not record.is_tombstone and not 0 < record.expires_us <= now_us


def test_a_database_at_rest_has_no_change_under_way(
    played: tuple[Database, Model, Reader],
) -> None:
    assert played[2].is_quiet()


def test_keys_and_values_are_those_of_the_api(played: tuple[Database, Model, Reader]) -> None:
    database, model, reader = played
    kv = KVStore(database)
    found = all_keys(reader)
    with database.snapshot() as snapshot:
        now_us = snapshot._pin.now_us
    for run in RUNS:
        read = {
            name: msgpack.unpackb(chain[0].value)
            for name, (chain, _) in of_run(found, run).items()
            if has_value(chain[0], now_us)
        }
        assert read == dict(kv.list_with_values(run)) == model[run]
        assert list(read) == kv.list(run)
    assert database.metrics().version == reader.field("se_sequencer", "commit_version")


def test_versions_histories_and_tombstones_are_those_of_the_api(
    played: tuple[Database, Model, Reader],
) -> None:
    database, _, reader = played
    kv = KVStore(database)
    tombstones = cuts = 0
    for run in RUNS:
        for name, (chain, cut) in of_run(all_keys(reader), run).items():
            shown = [
                (each.version.value, each.timestamp, each.is_tombstone, each.value)
                for each in kv.history(run, name)
            ]
            assert shown == [
                (
                    record.version,
                    record.timestamp_us,
                    record.is_tombstone,
                    None if record.is_tombstone else msgpack.unpackb(record.value),
                )
                for record in chain
            ], name
            assert database.engine.history(run, TAG_KV, name)[1] == cut, name
            tombstones += sum(record.is_tombstone for record in chain)
            cuts += cut
            if not chain[0].is_tombstone:
                assert kv.get_at(run, name, chain[0].version).value == shown[0][3]
    assert tombstones > 100
    assert cuts > 10


def test_every_key_is_found_and_others_are_not(played: tuple[Database, Model, Reader]) -> None:
    reader = played[2]
    for key, leaf in list(reader.leaves()):
        assert reader.find(key) == leaf
        assert reader.find(key[:-1]) is None
        assert reader.find(key + b"\0") is None


def test_run_records_are_those_that_were_chosen(played: tuple[Database, Model, Reader]) -> None:
    found = all_keys(played[2])
    records = [found[run.bytes + bytes([TAG_RUN, 0])][0][0].value for run in RUNS]
    assert [record.hex() for record in records] == [
        "01000000000000000000000000000000",
        "01010000000000000000000000000000",
        "01020000000000000300000000000000",
    ]


def test_all_widths_of_nodes_are_there(played: tuple[Database, Model, Reader]) -> None:
    reader = played[2]
    assert len(list(reader.leaves())) > 300
    assert set(reader.node_types) == {1, 2, 3, 4}


def test_every_block_of_the_arena_is_in_one_place(played: tuple[Database, Model, Reader]) -> None:
    reader = played[2]
    blocks = reader.blocks()
    uses = {block.use for block in blocks}
    assert {"free", "ring", "leaf", "record", "node of type 4"} <= uses
    free = sum(block.size for block in blocks if block.use == "free")
    assert free == reader.field("se_sequencer", "arena_free")
    live = sum(not chain[0].is_tombstone for chain, _ in all_keys(reader).values())
    assert live == reader.field("se_sequencer", "live_keys")
