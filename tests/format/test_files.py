"""test_files.py - checkpoint and log files are what FORMAT.md says, here and in all builds before.

Invariants: a reader written from FORMAT.md alone and the engine find the same in the same folder;
            the folders in golden/ are opened by every build, and show what they always showed
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_engine import Database, Durability, errors
from shm_engine._core import FORMAT_VERSION, RunId
from shm_engine.keys import TAG_KV
from shm_engine.segments import FOLDER
from tests.format import tables
from tests.format.files import (
    Content,
    crc32c,
    log_frames,
    read_checkpoint,
    read_folder,
    ring_frames,
)
from tests.format.make_golden import GOLDEN, RUNS, names_of, shown, shown_primitives
from tests.format.reader import Invalid, Reader
from tests.format.workload import RUNS as PLAYED_RUNS
from tests.format.workload import play
from tests.harness.shared import SequencerView

FIRST_FRAME = tables.constants()["SE_WAL_FIRST_FRAME"]
VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))
MAP_SIZE = 16 << 20


def as_shown(content: Content, key: bytes) -> dict[str, Any]:
    """A key of a folder that was read here, as `shown` has it."""
    chain = content.keys[key]
    return {
        "cut": chain.cut,
        "records": [
            [each.version, each.timestamp_us, None if each.is_tombstone else each.value.hex()]
            for each in chain.records
        ],
    }


def agree(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """The same history; where one was trimmed, it may be the beginning of the other."""
    shorter, longer = sorted((left, right), key=lambda each: len(each["records"]))
    same = longer["records"][: len(shorter["records"])] == shorter["records"]
    return same and (len(shorter["records"]) == len(longer["records"]) or shorter["cut"])


def key_of(run: RunId, name: str) -> bytes:
    return run.bytes + bytes([TAG_KV]) + name.encode() + b"\0"


# -- the worked store -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of section 8 as files: a checkpoint, and the log that led to it."""
    folder = tmp_path_factory.mktemp("worked")
    with Database.open(folder, Durability.strict(), map_size=1 << 20) as database:
        engine = database._engine
        engine.put(RunId.DEFAULT, TAG_KV, "agent:1", {"state": "idle"})
        engine.put(RunId.DEFAULT, TAG_KV, "agent:2", 7)
        engine.put(RunId.DEFAULT, TAG_KV, "agent:1", "busy")
        database.checkpoint()
        yield folder


def masked(data: bytes, base: int, struct: str, *fields: str) -> bytes:
    """The bytes without what differs in each store."""
    result = bytearray(data)
    for name in fields:
        row = tables.structs()[struct][name]
        result[base + row.offset : base + row.offset + row.size] = bytes(row.size)
    return bytes(result)


def masked_checkpoint(data: bytes) -> bytes:
    data = masked(data, 0, "se_checkpoint_header", "database_id", "created_us", "crc")
    content_at = 64 + 40
    for record in (content_at + 33, content_at + 70, content_at + 147):
        data = masked(data, record, "se_checkpoint_record", "timestamp_us")
    for block in (64, 288):
        data = masked(data, block, "se_checkpoint_block", "crc", "header_crc")
    return masked(data, 328, "se_checkpoint_end", "timestamp_us")


def test_checksum_is_that_of_the_document() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


def test_worked_checkpoint_is_what_the_text_says() -> None:
    content = read_checkpoint("example", tables.example("checkpoint"), 3)
    found = {key[17:-1]: chain for key, chain in content.keys.items()}
    assert [record.value for record in found[b"agent:1"].records] == [
        b"\xa4busy",
        b"\x81\xa5state\xa4idle",
    ]
    assert [record.version for record in found[b"agent:1"].records] == [3, 1]
    assert [record.value for record in found[b"agent:2"].records] == [b"\x07"]
    assert not any(chain.cut for chain in found.values())


def test_worked_checkpoint_is_what_the_engine_writes(worked: Path) -> None:
    data = (worked / "checkpoint" / "00000000000000000003.ckpt").read_bytes()
    assert masked_checkpoint(data) == masked_checkpoint(tables.example("checkpoint"))


def test_worked_log_is_what_the_engine_writes(worked: Path) -> None:
    data = (worked / "wal" / "00000000000000000001.wal").read_bytes()
    header = [
        masked(each[:64], 0, "se_wal_header", "database_id", "crc")
        for each in (data, tables.example("log header"))
    ]
    assert header[0] == header[1]
    at = FIRST_FRAME
    for _ in range(2):
        at += int.from_bytes(data[at : at + 4], "little")
    example = tables.example("frame")
    frame = [
        masked(each, 0, "se_frame", "crc", "timestamp_us", "unsynced", "origin")
        for each in (data[at : at + len(example)], example)
    ]
    assert frame[0] == frame[1]
    crc = crc32c(example[8:], crc32c(example[:4]))
    assert crc.to_bytes(4, "little") == example[4:8]


def test_every_changed_byte_of_a_checkpoint_breaks_a_rule() -> None:
    example = tables.example("checkpoint")
    for offset in range(len(example)):
        changed = bytearray(example)
        changed[offset] ^= 0x41
        with pytest.raises(Invalid):
            read_checkpoint("example", bytes(changed), 3)
        with pytest.raises(Invalid):
            read_checkpoint("example", example[:offset], 3)


# -- what the engine writes -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_files_hold_what_the_api_shows(tmp_path: Path, seed: int, checkpoint: bool) -> None:
    """A random workload, before and after a checkpoint, then a copy of the files."""
    folder, copy = tmp_path / "live", tmp_path / "copy"
    rng = random.Random(seed)
    with Database.open(folder, Durability.no_durability(), map_size=MAP_SIZE) as database:
        engine = database._engine
        play(engine, rng, 250)
        if checkpoint:
            database.checkpoint()
            for number in range(60):
                name = f"user:{rng.randrange(12)}"
                engine.put(rng.choice(PLAYED_RUNS), TAG_KV, name, number)
        held = SequencerView(database)
        held.take()  # nothing changes any more
        try:
            database.flush()
            shutil.copytree(folder, copy)
            compare(engine, read_folder(copy))
        finally:
            held.give_back()
        assert (read_folder(copy).checkpoint_version > 0) == checkpoint


def test_ring_holds_what_the_log_holds(tmp_path: Path) -> None:
    """Nothing of a small log was written over yet: the ring has it from its first position on."""
    with Database.open(tmp_path, Durability.buffered(), map_size=MAP_SIZE) as database:
        play(database._engine, random.Random(3), 100)
        held = SequencerView(database)
        held.take()
        try:
            database.flush()
            reader = Reader.of(database._segments)
            start = reader.field("se_header", "wal_ring_offset")
            size = reader.field("se_header", "wal_ring_size")
            tail = reader.field("se_sequencer", "wal_tail")
            assert tail < reader.field("se_header", "wal_ring_soft")
            with open(FOLDER + database._segments.control, "rb") as control:
                control.seek(start)
                ring = control.read(tail) + bytes(size - tail)
            count = reader.field("se_sequencer", "progress_count")
            base = 4096 + tables.structs()["se_sequencer"]["progress"].offset + 32 * (count % 2)
            names = ("position", "file_version", "last_version")
            progress = [reader.field("se_progress", name, base) for name in names]
            in_ring = ring_frames(ring, 0, tail)
        finally:
            held.give_back()
    log = [*log_frames(tmp_path / "wal" / f"{1:020}.wal")]
    assert progress == [tail, 1, in_ring[-1][0]]
    assert len(in_ring) > 300
    assert log[: len(in_ring)] == in_ring


def compare(engine: Any, content: Content) -> None:
    """Requires that the engine shows what the files hold."""
    assert content.torn is None
    assert 0 <= engine.version() - content.version < 20  # upkeep consumes some without a frame
    for run in PLAYED_RUNS:
        names = names_of(list(content.keys), run)
        assert len(names) > 100
        for name in names:
            history = shown(engine, run, name)
            if history["records"]:
                assert agree(history, as_shown(content, key_of(run, name))), name
            else:  # a tombstone, which the sweep has removed
                assert content.keys[key_of(run, name)].records[0].is_tombstone, name


# -- golden folders ---------------------------------------------------------------------------


def golden_expected(version: str) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(
        (GOLDEN / version / "expected.json").read_text("utf-8")
    )
    return found


def copy_of(version: str, name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    shutil.copytree(GOLDEN / version / name, folder)
    return folder


def test_this_format_version_has_golden_folders() -> None:
    assert f"v{FORMAT_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_are_what_the_document_says(version: str) -> None:
    content = read_folder(GOLDEN / version / "whole")
    expected = golden_expected(version)
    assert content.torn is None
    for label, run in RUNS.items():
        assert set(names_of(list(content.keys), run)) == set(expected[label])
        for name, history in expected[label].items():
            assert agree(history, as_shown(content, key_of(run, name))), name


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_folder_is_opened_and_shows_what_it_showed(version: str, tmp_path: Path) -> None:
    expected = golden_expected(version)
    folder = copy_of(version, "whole", tmp_path)
    content = read_folder(folder)
    for _ in range(2):  # the second time from the checkpoint that closing wrote
        with Database.open(folder, Durability.strict(), map_size=MAP_SIZE) as database:
            assert database.metrics().version >= content.version
            for label, run in RUNS.items():
                for name, history in expected[label].items():
                    assert agree(shown(database._engine, run, name), history), name
            database._engine.get_run_record(RUNS["keeps two"])


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "v1"])
def test_golden_events_states_traces_and_runs_are_what_they_were(
    version: str, tmp_path: Path
) -> None:
    expected = json.loads((GOLDEN / version / "primitives.json").read_text("utf-8"))
    assert expected["chain"]
    assert expected["erased"] == [0, 0, []]
    folder = copy_of(version, "whole", tmp_path)
    for _ in range(2):  # the second time from the checkpoint that closing wrote
        with Database.open(folder, Durability.strict(), map_size=MAP_SIZE) as database:
            assert json.loads(json.dumps(shown_primitives(database))) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_folder_with_a_torn_tail_is_opened_without_it(version: str, tmp_path: Path) -> None:
    expected = golden_expected(version)
    folder = copy_of(version, "torn", tmp_path)
    whole = read_folder(GOLDEN / version / "whole")
    content = read_folder(folder)
    assert content.torn is not None
    assert content.version == whole.version - 1
    with Database.open(folder, Durability.strict(), map_size=MAP_SIZE) as database:
        assert database.metrics().version >= content.version
        for label, run in RUNS.items():
            for name, history in expected[label].items():
                found = shown(database._engine, run, name)
                if history["records"][0][0] == whole.version:
                    history = {**history, "records": history["records"][1:]}
                assert agree(found, history), name


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_folder_that_is_damaged_is_refused(version: str, tmp_path: Path) -> None:
    folder = copy_of(version, "damaged", tmp_path)
    with pytest.raises(Invalid, match="synced"):
        read_folder(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    newest = max((folder / "wal").iterdir()).name
    with pytest.raises(errors.Corruption, match=newest):
        Database.open(folder, Durability.strict(), map_size=MAP_SIZE)
    after = {path: path.read_bytes() for path in before}
    assert after == before
