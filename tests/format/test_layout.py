"""test_layout.py - FORMAT.md says what the C structs are, field by field and number by number."""

from __future__ import annotations

import mmap
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import filelock
import pytest

from shm_engine import keys, values
from shm_engine._core import FORMAT_VERSION, RunId, Store
from shm_engine.events import GENESIS, chain_error
from shm_engine.segments import Segments
from tests.format import tables
from tests.format.reader import Reader

ROOT: Final = Path(__file__).resolve().parents[2]
CORE: Final = ROOT / "shm_engine" / "core"


@pytest.fixture(scope="module")
def printed() -> list[list[str]]:
    """What tests/core/print_layout says, line by line."""
    target = "../../build/core/print_layout"
    with filelock.FileLock(ROOT / "build" / "core.lock"):  # other workers build there as well
        subprocess.run(["make", "-s", "-C", "tests/core", target], cwd=ROOT, check=True)
    output = subprocess.run(
        [ROOT / "build" / "core" / "print_layout"], check=True, capture_output=True, text=True
    )
    return [line.split() for line in output.stdout.splitlines()]


def in_c(printed: list[list[str]]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(line[0], line[1]): (int(line[2]), int(line[3])) for line in printed if len(line) == 4}


def test_each_field_is_where_the_document_says(printed: list[list[str]]) -> None:
    fields = {place: found for place, found in in_c(printed).items() if place[1] != "-"}
    documented = {
        (struct, row.field): (row.offset, row.size)
        for struct, rows in tables.structs().items()
        for row in rows.values()
    }
    assert documented == fields


def test_each_struct_is_as_large_as_the_document_says(printed: list[list[str]]) -> None:
    sizes = {place[0]: found[1] for place, found in in_c(printed).items() if place[1] == "-"}
    documented = tables.struct_sizes()
    assert list(documented) == list(tables.structs())
    documented["se_leaf"] = (documented["se_leaf"] + 7) & ~7  # its key begins in C's padding
    assert documented == sizes


def test_rows_stand_in_order_and_do_not_overlap() -> None:
    for struct, rows in tables.structs().items():
        end = 0
        for row in rows.values():
            assert row.offset >= end, f"{struct}.{row.field} begins before the field above ends"
            end = row.offset + row.size
        assert end <= max(tables.struct_sizes()[struct], row.offset), struct


def declared_in(header: str) -> set[tuple[str, str]]:
    """(struct, field) of every struct that a header of the core declares."""
    text = re.sub(r"/\*.*?\*/", "", (CORE / header).read_text("utf-8"), flags=re.DOTALL)
    declared = set()
    for body, struct in re.findall(r"typedef struct \{(.*?)\} (se_\w+);", text, re.DOTALL):
        for declaration in body.split(";")[:-1]:
            name = re.sub(r"\[.*\]", "", declaration).split()[-1]
            declared.add((struct, name))
    return declared


def test_no_field_of_layout_h_is_missing(printed: list[list[str]]) -> None:
    documented = set(tables.structs())
    declared = declared_in("layout.h")
    for header in ("wal.h", "frame.h", "checkpoint.h"):  # these declare others, too
        declared |= {place for place in declared_in(header) if place[0] in documented}
    assert declared == {place for place in in_c(printed) if place[1] != "-"}


def test_constants_are_those_of_c(printed: list[list[str]]) -> None:
    assert tables.constants() == {
        line[1]: int(line[2]) for line in printed if line[0] == "constant"
    }


def test_status_numbers_are_those_of_c(printed: list[list[str]]) -> None:
    assert tables.named_numbers("status") == {
        line[1]: int(line[2]) for line in printed if line[0] == "status"
    }


def test_size_classes_are_those_of_c(printed: list[list[str]]) -> None:
    sizes = [int(line[2]) for line in printed if line[0] == "class"]
    assert [Reader.class_size(number) for number in range(len(sizes))] == sizes
    for number, size in enumerate(sizes):
        smaller = sizes[number - 1] if number else 0
        assert Reader.class_of(size) == Reader.class_of(smaller + 1) == number


def test_numbers_in_python_are_those_of_the_document() -> None:
    found = tables.constants()
    assert found["SE_FORMAT_VERSION"] == FORMAT_VERSION
    assert found["SE_VALUE_DEPTH_MAX"] == values.DEPTH_MAX
    assert found["SE_VALUE_ENTRIES_MAX"] == values.CONTAINER_ENTRIES_MAX
    assert found["SE_VALUE_BLOB_MAX"] == values.STRING_BYTES_MAX
    assert found["SE_VALUE_ENCODED_MAX"] == values.ENCODED_BYTES_MAX
    tags = {name: number for name, number in vars(keys).items() if name.startswith("TAG_")}
    assert tables.named_numbers("tag") == tags


@pytest.fixture
def worked() -> Iterator[Reader]:
    """The store of section 8."""
    segments = Segments.fresh()
    store: Store = segments.create(map_size=1 << 20, max_clients=2)
    try:
        store.put(RunId.DEFAULT, keys.TAG_KV, "agent:1", {"state": "idle"})
        store.put(RunId.DEFAULT, keys.TAG_KV, "agent:2", 7)
        store.put(RunId.DEFAULT, keys.TAG_KV, "agent:1", "busy")
        yield Reader.of(segments)
    finally:
        store.close()
        segments.unlink()


def test_worked_examples_are_the_bytes_of_a_store(worked: Reader) -> None:
    root = worked.field("se_sequencer", "root")
    leaf = worked.find(bytes(16) + b"\x01agent:1\0")
    assert leaf is not None
    head = worked.data_word(leaf)
    places: dict[str, tuple[bytes | mmap.mmap, int]] = {
        "node4": (worked.data, root),
        "leaf": (worked.data, leaf),
        "record": (worked.data, head),
        "operation": (worked.control, worked.field("se_header", "requests_offset")),
    }
    for name, (segment, offset) in places.items():
        documented = bytearray(tables.example(name))
        found = bytearray(segment[offset : offset + len(documented)])
        if name == "record":  # its time is the commit's
            documented[16:24] = found[16:24]
        if name == "operation":  # its padding is whatever was there
            documented[70:72] = found[70:72]
        assert found == documented, f"the bytes of the {name} are {found.hex(' ', 1)}"
    assert (leaf, head) == (0x11040, 0x11120)


def test_the_worked_event_has_the_hash_that_the_text_defines() -> None:
    stored = tables.example("event")
    assert chain_error(0, stored, 1795882265974755, GENESIS) is None
    assert values.decode(stored)[2:] == ["a", 1]


def test_worked_examples_say_what_the_text_says(worked: Reader) -> None:
    record = worked.records(worked.find(bytes(16) + b"\x01agent:1\0") or 0)[0][0]
    assert (record.version, record.value, record.is_tombstone) == (3, b"\xa4busy", False)
    slot = worked.field("se_header", "slots_offset")
    names = ("request_size", "request_ops", "request_seq", "reply_seq", "reply_version")
    assert [worked.field("se_slot", name, slot) for name in names] == [72, 1, 3, 3, 3]
    assert worked.operations(0) == [
        ("SE_OP_PUT", bytes(16) + b"\x01agent:1\0", b"\xa4busy", 0x11040)
    ]
