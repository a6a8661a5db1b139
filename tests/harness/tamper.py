"""tamper.py - StoredLog, a run's events where they are stored, changed behind the engine's back.

Why:        a chain of hashes is worth something only if it finds what no call of the engine would
            ever write. So bytes are changed in place: in the data segment of an open database, or
            in the files of one that nobody has open, with every checksum made right again, so that
            only the chain can tell.

                in_segment(db)      FORMAT.md, "Record"       no checksum
                in_log(folder)      FORMAT.md, "Frame"        one a frame
                in_checkpoint(..)   FORMAT.md, "Checkpoint"   one a block, one its header

Used by:    tests/unit/test_event_chain; nobody else may use the database meanwhile
Invariants: sizes never change; where a key was written several times, the newest record is meant.
            In a checkpoint the newest time of all stays, for the end block says it too.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shm_engine import Database, RunId
from tests.format import tables
from tests.format.files import crc32c
from tests.format.reader import Reader

__all__ = [
    "CONTENT_AT",
    "HASH_AT",
    "PREVIOUS_AT",
    "Place",
    "StoredLog",
    "Tampering",
    "event_key",
    "head_key",
    "in_checkpoint",
    "in_log",
    "in_segment",
]

STRUCTS: Final = tables.structs()
SIZES: Final = tables.struct_sizes()
CONSTANTS: Final = tables.constants()
PREVIOUS_AT: Final = 3
HASH_AT: Final = 37
CONTENT_AT: Final = 69
HASH_SIZE: Final = 32
BLOCK: Final = 64
HEAD_NEXT_AT: Final = 2
HEAD_HASH_AT: Final = 12


def event_key(run: RunId, sequence: int) -> bytes:
    """FORMAT.md, "Event"."""
    return run.bytes + b"\x02\x02" + sequence.to_bytes(8, "big")


def head_key(run: RunId) -> bytes:
    """FORMAT.md, "Event"."""
    return run.bytes + b"\x02\x01h"


@dataclass(frozen=True)
class Place:
    """Where a record's value and its time (8 bytes, little-endian) stand, and its key if it may be
    changed; `seal` makes the checksums right after a change."""

    value_at: int
    value_size: int
    time_at: int
    key_at: int | None = None
    seal: Callable[[], None] | None = None


class Tampering:
    """Bytes that can be written, and where in them the records of all keys stand."""

    def __init__(self, data: mmap.mmap, places: dict[bytes, Place]) -> None:
        self._data = data
        self._places = places

    def value(self, key: bytes) -> bytes:
        """The stored value."""
        place = self._places[key]
        return self._data[place.value_at : place.value_at + place.value_size]

    def write(self, key: bytes, at: int, new: bytes) -> None:
        """Replaces bytes of the value."""
        place = self._places[key]
        assert 0 <= at <= place.value_size - len(new), "a value keeps its size"
        self._replace(place, place.value_at + at, new)

    def timestamp_us(self, key: bytes) -> int:
        """The record's time."""
        at = self._places[key].time_at
        return int.from_bytes(self._data[at : at + 8], "little")

    def set_timestamp_us(self, key: bytes, time_us: int) -> None:
        """Gives the record another time; in the log all records of its commit."""
        place = self._places[key]
        self._replace(place, place.time_at, time_us.to_bytes(8, "little"))

    def rename(self, key: bytes, new: bytes) -> None:
        """Gives the record another key of the same size; in files only."""
        place = self._places.pop(key)
        assert place.key_at is not None
        assert len(key) == len(new)
        self._replace(place, place.key_at, new)
        self._places[new] = place

    def _replace(self, place: Place, at: int, new: bytes) -> None:
        self._data[at : at + len(new)] = new
        if place.seal is not None:
            place.seal()


class StoredLog:
    """The events of one run; what the chain is made of can be read and written."""

    def __init__(self, tampering: Tampering, run: RunId) -> None:
        self.tampering = tampering
        self.run = run

    def value(self, sequence: int) -> bytes:
        """The whole stored value."""
        return self.tampering.value(event_key(self.run, sequence))

    def write(self, sequence: int, at: int, new: bytes) -> None:
        """Replaces bytes of the stored value."""
        self.tampering.write(event_key(self.run, sequence), at, new)

    def replace(self, sequence: int, old: bytes, new: bytes) -> None:
        """Replaces what occurs exactly once in the stored value."""
        value = self.value(sequence)
        assert value.count(old) == 1
        assert len(old) == len(new)
        self.write(sequence, value.index(old), new)

    def flip(self, sequence: int, at: int) -> None:
        """Changes one byte, by its lowest bit."""
        self.write(sequence, at, bytes([self.value(sequence)[at] ^ 1]))

    def move_time(self, sequence: int, by_us: int) -> None:
        """Changes when it was."""
        key = event_key(self.run, sequence)
        self.tampering.set_timestamp_us(key, self.tampering.timestamp_us(key) + by_us)

    def hash_of(self, sequence: int) -> bytes:
        """The hash that stands in it."""
        return self.value(sequence)[HASH_AT : HASH_AT + HASH_SIZE]

    def reseal(self, sequence: int) -> None:
        """Gives the event the hash that fits what stands in it."""
        value = self.value(sequence)
        content = value[CONTENT_AT:]
        message = content + bytes(-len(content) % BLOCK)
        message += value[PREVIOUS_AT : PREVIOUS_AT + HASH_SIZE]
        message += sequence.to_bytes(8, "big")
        message += self.tampering.timestamp_us(event_key(self.run, sequence)).to_bytes(8, "big")
        self.write(sequence, HASH_AT, hashlib.sha256(message).digest())

    def reseal_from(self, first: int, end: int) -> None:
        """Makes the chain right again from `first` on and before `end`; not the head."""
        for sequence in range(first, end):
            if sequence > first:
                self.write(sequence, PREVIOUS_AT, self.hash_of(sequence - 1))
            self.reseal(sequence)

    def swap(self, one: int, two: int) -> None:
        """Each stands where the other one stood, its time with it."""
        first, second = self.value(one), self.value(two)
        self.write(one, 0, second)
        self.write(two, 0, first)
        keys = event_key(self.run, one), event_key(self.run, two)
        times = [self.tampering.timestamp_us(key) for key in keys]
        for key, time_us in zip(keys, reversed(times), strict=True):
            self.tampering.set_timestamp_us(key, time_us)

    def head(self) -> tuple[int, bytes]:
        """The next sequence and the hash of the newest event, as the head says."""
        value = self.tampering.value(head_key(self.run))
        sequence = int.from_bytes(value[HEAD_NEXT_AT : HEAD_NEXT_AT + 8], "big")
        return sequence, value[HEAD_HASH_AT:]

    def set_head(self, sequence: int | None = None, digest: bytes | None = None) -> None:
        """Writes one of both, or both."""
        key = head_key(self.run)
        if sequence is not None:
            self.tampering.write(key, HEAD_NEXT_AT, sequence.to_bytes(8, "big"))
        if digest is not None:
            self.tampering.write(key, HEAD_HASH_AT, digest)


# -- where they are ---------------------------------------------------------------------------


@contextmanager
def _writable(path: Path) -> Iterator[mmap.mmap]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(descriptor, 0) as data:
            yield data
    finally:
        os.close(descriptor)


def _at(struct: str, field: str, base: int) -> slice:
    row = STRUCTS[struct][field]
    return slice(base + row.offset, base + row.offset + row.size)


def _number(data: mmap.mmap, struct: str, field: str, base: int) -> int:
    return int.from_bytes(data[_at(struct, field, base)], "little")


def _put_number(data: mmap.mmap, struct: str, field: str, base: int, number: int) -> None:
    row = STRUCTS[struct][field]
    data[_at(struct, field, base)] = number.to_bytes(row.size, "little")


@contextmanager
def in_segment(database: Database) -> Iterator[Tampering]:
    """The data segment of an open database, for small maps."""
    reader = Reader.of(database._segments)
    places = {}
    for key, leaf in reader.leaves():
        record = reader.records(leaf)[0][0]
        time_at = _at("se_record", "timestamp_us", record.offset).start
        value_at = record.offset + SIZES["se_record"]
        places[key] = Place(value_at, len(record.value), time_at)
    with _writable(Path("/dev/shm") / database._segments.data.lstrip("/")) as data:
        yield Tampering(data, places)


def _frame_places(data: mmap.mmap, frame: int) -> Iterator[tuple[bytes, Place]]:
    size = _number(data, "se_frame", "size", frame)

    def seal() -> None:
        crc = crc32c(data[frame + 8 : frame + size], crc32c(data[frame : frame + 4]))
        _put_number(data, "se_frame", "crc", frame, crc)

    at = frame + SIZES["se_frame"]
    while frame + size - at >= 8:
        kind = _number(data, "se_frame_op", "kind", at)
        key_size = _number(data, "se_frame_op", "key_size", at)
        value_size = _number(data, "se_frame_op", "value_size", at)
        key_at = at + SIZES["se_frame_op"] + 8 * (kind == CONSTANTS["SE_FRAME_PUT_EXPIRES"])
        at = key_at + key_size + value_size
        if kind != CONSTANTS["SE_FRAME_DELETE"]:
            time_at = _at("se_frame", "timestamp_us", frame).start
            place = Place(key_at + key_size, value_size, time_at, key_at, seal)
            yield data[key_at : key_at + key_size], place


@contextmanager
def in_log(folder: Path) -> Iterator[Tampering]:
    """The newest log file of a database that nobody has open."""
    with _writable(max((folder / "wal").glob("*.wal"))) as data:
        places: dict[bytes, Place] = {}
        frame = CONSTANTS["SE_WAL_FIRST_FRAME"]
        version = 0
        # Behind the last frame lie zeros, or frames of an older file, whose versions are lower.
        while frame < len(data) and _number(data, "se_frame", "version", frame) > version:
            version = _number(data, "se_frame", "version", frame)
            places.update(_frame_places(data, frame))
            frame += _number(data, "se_frame", "size", frame)
        yield Tampering(data, places)


def _block_places(data: mmap.mmap, block: int) -> Iterator[tuple[bytes, Place]]:
    begin = block + SIZES["se_checkpoint_block"]
    end = begin + _number(data, "se_checkpoint_block", "size", block)

    def seal() -> None:
        _put_number(data, "se_checkpoint_block", "crc", block, crc32c(data[begin:end]))
        before = _at("se_checkpoint_block", "header_crc", block).start
        crc = crc32c(data[block:before], crc32c(data[16:40]))
        _put_number(data, "se_checkpoint_block", "header_crc", block, crc)

    at = begin
    for _ in range(_number(data, "se_checkpoint_block", "entries", block)):
        key_at = at + SIZES["se_checkpoint_key"]
        key = data[key_at : key_at + _number(data, "se_checkpoint_key", "key_size", at)]
        count = _number(data, "se_checkpoint_key", "records", at)
        at = key_at + len(key)
        for number in range(count):
            value_size = _number(data, "se_checkpoint_record", "value_size", at)
            value_at = at + SIZES["se_checkpoint_record"]
            if number == 0:
                time_at = _at("se_checkpoint_record", "timestamp_us", at).start
                yield key, Place(value_at, value_size, time_at, key_at, seal)
            at = value_at + value_size


@contextmanager
def in_checkpoint(folder: Path) -> Iterator[Tampering]:
    """The newest checkpoint of a database that nobody has open."""
    with _writable(max((folder / "checkpoint").glob("*.ckpt"))) as data:
        places: dict[bytes, Place] = {}
        block = SIZES["se_checkpoint_header"]
        while (
            _number(data, "se_checkpoint_block", "kind", block) == CONSTANTS["SE_CHECKPOINT_KEYS"]
        ):
            places.update(_block_places(data, block))
            size = _number(data, "se_checkpoint_block", "size", block)
            block += SIZES["se_checkpoint_block"] + size
        yield Tampering(data, places)
