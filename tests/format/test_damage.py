"""test_damage.py - what is no database of this format is refused, and damage is never a crash.

Invariants: a changed byte of the data segment gives a right value, a wrong one, or an error of
            shm_engine.errors; it gives no signal and no endless loop
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shm_engine import errors
from shm_engine._core import FORMAT_VERSION, Store
from shm_engine.segments import FOLDER, Segments
from tests.format import tables
from tests.format.damage import Victim, changes, try_all

HEADER = tables.structs()["se_header"]
MAP_SIZE = 1 << 20


@pytest.fixture
def segments() -> Iterator[Segments]:
    """The segments of a database that nobody has open."""
    made = Segments.fresh()
    made.create(map_size=MAP_SIZE, max_clients=2).close()
    yield made
    made.unlink()


def overwrite(name: str, offset: int, data: bytes) -> None:
    descriptor = os.open(FOLDER + name, os.O_RDWR)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


def set_header(segments: Segments, field: str, value: int) -> None:
    row = HEADER[field]
    overwrite(segments.control, row.offset, value.to_bytes(row.size, "little"))


def header(segments: Segments, field: str) -> int:
    row = HEADER[field]
    descriptor = os.open(FOLDER + segments.control, os.O_RDONLY)
    try:
        return int.from_bytes(os.pread(descriptor, row.size, row.offset), "little")
    finally:
        os.close(descriptor)


def test_an_unchanged_one_is_attached(segments: Segments) -> None:
    segments.attach().close()


def test_another_format_version_is_refused_and_both_are_named(segments: Segments) -> None:
    set_header(segments, "format_version", 77)
    with pytest.raises(errors.FormatMismatch) as caught:
        segments.attach()
    assert "format version 77" in str(caught.value)
    assert f"format version {FORMAT_VERSION}" in str(caught.value)


def test_a_missing_magic_is_refused_and_both_versions_are_named(segments: Segments) -> None:
    set_header(segments, "magic", 0)
    with pytest.raises(errors.FormatMismatch) as caught:
        segments.attach()
    assert "format version 0" in str(caught.value)
    assert f"format version {FORMAT_VERSION}" in str(caught.value)


def test_another_byte_order_is_refused(segments: Segments) -> None:
    set_header(segments, "byte_order", 0x04030201)
    with pytest.raises(errors.FormatMismatch):
        segments.attach()


@pytest.mark.parametrize("change", [-4096, -1, 1, 4096, 1 << 32])
@pytest.mark.parametrize(
    "field",
    [
        "control_size",
        "data_size",
        "max_clients",
        "snapshot_count",
        "slots_offset",
        "snapshots_offset",
        "undo_offset",
        "taken_offset",
        "requests_offset",
        "request_size",
    ],
)
def test_another_size_or_offset_is_refused(segments: Segments, field: str, change: int) -> None:
    bits = 8 * HEADER[field].size
    value = (
        header(segments, field) ^ 1 << bits - 1
        if change >> bits
        else (header(segments, field) + change)
    )
    set_header(segments, field, value % (1 << bits))
    with pytest.raises(errors.FormatMismatch):
        segments.attach()


@pytest.mark.parametrize("size", [0, 100, 143, 144, 4096, 8192, 1 << 20])
@pytest.mark.parametrize("which", ["control", "data"])
def test_a_truncated_segment_is_refused(segments: Segments, which: str, size: int) -> None:
    path = FOLDER + getattr(segments, which)
    if size == os.path.getsize(path):
        size -= 1
    os.truncate(path, size)
    with pytest.raises(errors.FormatMismatch):
        segments.attach()


def test_another_pid_namespace_is_refused(segments: Segments) -> None:
    set_header(segments, "pid_namespace", header(segments, "pid_namespace") + 1)
    with pytest.raises(errors.Unavailable, match="PID namespace"):
        segments.attach()


def test_files_that_are_no_segments_are_refused() -> None:
    empty = os.memfd_create("empty")
    noise = os.memfd_create("noise")
    os.pwrite(noise, os.urandom(1 << 16), 0)
    try:
        for first in (empty, noise):
            for second in (empty, noise):
                with pytest.raises(errors.FormatMismatch):
                    Store.attach(first, second)
    finally:
        os.close(empty)
        os.close(noise)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_changed_byte_never_crashes_nor_hangs(seed: int) -> None:
    """A child word that led back up and a prefix that no longer fitted its keys made endless walks
    once, and names and values that do not decode came out as UnicodeDecodeError and ValueError."""
    victim = Victim(seed)
    try:
        wrong = try_all(victim, changes(victim, seed, 1000))
    finally:
        victim.close()
    assert not wrong, "\n".join([f"seed {seed}:", *wrong])


def test_damaged_nodes_leaves_and_records_never_crash_nor_hang() -> None:
    victim = Victim(4, steps=60)
    try:
        todo = [
            change
            for change in changes(victim, 4, 6000)
            if change.use.startswith("node") or change.use in ("record", "leaf")
        ][:1000]
        wrong = try_all(victim, todo)
    finally:
        victim.close()
    assert not wrong, "\n".join(wrong)
