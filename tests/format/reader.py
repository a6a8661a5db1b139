"""reader.py - reads a database's segments, from nothing but FORMAT.md.

Why:        a description is complete if a program written from it alone finds everything. Offsets
            come from the document's tables; what to do with them is its text.
Used by:    the tests in tests/format; nothing may write to the database meanwhile
Invariants: every "valid if and only if" list of the data segment is checked on the way
Errors:     Invalid, with the offset and the rule that is broken
Cost:       one copy of the data segment, then O(bytes in use)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shm_engine.segments import Segments
from tests.format import tables

__all__ = ["Block", "Invalid", "Reader", "Record"]

FOLDER: Final = "/dev/shm"
PAGE: Final = 4096
STRUCTS: Final = tables.structs()
CONSTANTS: Final = tables.constants()
CUT: Final = CONSTANTS["SE_CUT"]
KEY_MAX: Final = CONSTANTS["SE_KEY_MAX"]
#              type: (capacity, words of keys)
WIDTHS: Final = {1: (4, 1), 2: (16, 2), 3: (48, 32), 4: (256, 0)}


class Invalid(AssertionError):
    """The segments break a rule of FORMAT.md."""


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one key."""

    offset: int
    version: int
    timestamp_us: int
    expires_us: int
    is_tombstone: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the arena and what it is used for."""

    offset: int
    size: int
    use: str


def _check(holds: bool, offset: int, rule: str) -> None:
    if not holds:
        raise Invalid(f"at {offset:#x}: {rule}")


def _pad8(size: int) -> int:
    return (size + 7) & ~7


def _page(size: int) -> int:
    return (size + PAGE - 1) & ~(PAGE - 1)


class Reader:
    """The control segment, and a copy of the data segment's bytes."""

    def __init__(self, control: mmap.mmap, data: bytes, control_size: int) -> None:
        self.control = control
        self.data = data
        self._check_header(control_size)
        self.visits: list[Block] = []
        self.node_types: dict[int, int] = {}

    @classmethod
    def of(cls, segments: Segments) -> Reader:
        """Reads the segments of these names."""
        descriptors = [
            os.open(FOLDER + name, os.O_RDONLY) for name in (segments.control, segments.data)
        ]
        try:
            return cls.of_files(*descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    @classmethod
    def of_files(cls, control_fd: int, data_fd: int) -> Reader:
        """The same of two descriptors; of the requests the first area's beginning."""
        head = os.pread(control_fd, 2 * PAGE, 0)
        row = STRUCTS["se_header"]["requests_offset"]
        requests = int.from_bytes(head[row.offset : row.offset + row.size], "little")
        # Mapped and not copied: most of it was never written.
        control = mmap.mmap(control_fd, requests + 2 * PAGE, prot=mmap.PROT_READ)
        data = os.pread(data_fd, os.fstat(data_fd).st_size, 0)
        return cls(control, data, os.fstat(control_fd).st_size)

    # -- words --------------------------------------------------------------------------------

    def field(self, struct: str, name: str, base: int | None = None) -> int:
        """A field of the control segment; the header and the sequencer are found by themselves."""
        if base is None:
            base = {"se_header": 0, "se_sequencer": PAGE}[struct]
        row = STRUCTS[struct][name]
        start = base + row.offset
        return int.from_bytes(self.control[start : start + row.size], "little")

    def data_word(self, offset: int) -> int:
        """The u64 at an offset of the data segment."""
        _check(PAGE <= offset <= len(self.data) - 8, offset, "lies outside the data segment")
        _check(offset % 8 == 0, offset, "is no multiple of 8")
        return int.from_bytes(self.data[offset : offset + 8], "little")

    def _in_data(self, struct: str, name: str, base: int) -> int:
        row = STRUCTS[struct][name]
        start = base + row.offset
        return int.from_bytes(self.data[start : start + row.size], "little")

    # -- control segment ----------------------------------------------------------------------

    def _check_header(self, control_size: int) -> None:
        def header(name: str) -> int:
            return self.field("se_header", name)

        _check(header("magic") == CONSTANTS["SE_MAGIC"], 0, "no magic")
        _check(header("format_version") == 2, 8, "another format version")
        _check(header("byte_order") == CONSTANTS["SE_BYTE_ORDER"], 12, "another byte order")
        clients = header("max_clients")
        _check(1 <= clients <= CONSTANTS["SE_CLIENTS_MAX"], 32, "max_clients")
        snapshots = _page(8192 + clients * 256)
        undo = _page(snapshots + 65536)
        taken = _page(undo + (1 << 28))
        requests = _page(taken + (1 << 26))
        areas_end = requests + (clients << 26)
        ring_size = CONSTANTS["SE_RING_SIZE"] if header("durability_kind") else 0
        _check(header("durability_kind") <= 3, 128, "durability_kind")
        expected = {
            "snapshot_count": CONSTANTS["SE_SNAPSHOT_COUNT"],
            "slots_offset": 8192,
            "snapshots_offset": snapshots,
            "undo_offset": undo,
            "taken_offset": taken,
            "requests_offset": requests,
            "request_size": CONSTANTS["SE_REQUEST_MAX"],
            "wal_ring_offset": areas_end if ring_size else 0,
            "wal_ring_size": ring_size,
            "control_size": areas_end + ring_size,
        }
        found = {name: header(name) for name in expected}
        _check(found == expected, 0, f"the parts lie at {found}, not at {expected}")
        _check(found["control_size"] == control_size, 16, "control_size is not the file's")
        _check(header("data_size") == len(self.data) >= 1 << 20, 24, "data_size")

    def is_quiet(self) -> bool:
        """Whether no change is under way."""
        logged = self.field("se_sequencer", "undo_count") | self.field(
            "se_sequencer", "taken_count"
        )
        done = self.field("se_sequencer", "commit_version")
        return logged == 0 or done >= self.field("se_sequencer", "undo_version")

    def operations(self, slot: int) -> list[tuple[str, bytes, bytes, int]]:
        """(kind, key, value, hint) of a slot's newest write set."""
        _check(slot == 0, slot, "only the first area of requests was copied")
        base = self.field("se_header", "slots_offset")
        at = self.field("se_header", "requests_offset")
        end = at + self.field("se_slot", "request_size", base)
        names = {number: name for name, number in tables.named_numbers("kind").items()}
        found = []
        for _ in range(self.field("se_slot", "request_ops", base)):
            key_size = self.field("se_op", "key_size", at)
            value_size = self.field("se_op", "value_size", at)
            key_at = at + tables.struct_sizes()["se_op"]
            value_at = key_at + key_size
            _check(value_at + value_size <= end, at, "the operation leaves the write set")
            _check(17 <= key_size <= KEY_MAX, at, "key_size")
            found.append(
                (
                    names[self.field("se_op", "kind", at)],
                    self.control[key_at:value_at],
                    self.control[value_at : value_at + value_size],
                    self.field("se_op", "leaf", at),
                )
            )
            at = key_at + _pad8(key_size + value_size)
        _check(at == end, at, "the write set has another size than its operations")
        return found

    # -- index --------------------------------------------------------------------------------

    def _node(self, at: int) -> tuple[int, bytes, dict[int, int], int]:
        """(type, prefix, child words by byte, size)."""
        meta = self.data_word(at)
        count = self.data_word(at + 8)
        kind, prefix_size = meta & 0xFF, meta >> 8
        _check(kind in WIDTHS and prefix_size <= KEY_MAX, at, f"meta {meta:#x}")
        capacity, words = WIDTHS[kind]
        _check(2 <= count <= capacity, at, f"a node of type {kind} with {count} children")
        keys_at = at + 16 + _pad8(prefix_size)
        children_at = keys_at + 8 * words
        size = children_at + 8 * capacity - at
        _check(at + size <= len(self.data), at, "the node leaves the segment")
        places = {place: place for place in range(256)}
        if kind == 3:
            places = {
                byte: self.data[keys_at + byte] - 1
                for byte in range(256)
                if self.data[keys_at + byte]
            }
        elif kind < 3:
            places = {self.data[keys_at + place]: place for place in range(count)}
            _check(len(places) == count, at, "a key byte comes twice")
        children = {
            byte: self.data_word(children_at + 8 * place) for byte, place in sorted(places.items())
        }
        if kind == 4:
            children = {byte: child for byte, child in children.items() if child}
        _check(len(set(places.values())) == len(places), at, "two bytes share a child")
        _check(len(children) == count and all(children.values()), at, "count is not the children's")
        return kind, self.data[at + 16 : at + 16 + prefix_size], children, size

    def _leaf_key(self, at: int) -> bytes:
        size = self._in_data("se_leaf", "key_size", at)
        _check(18 <= size <= KEY_MAX, at, f"a key of {size} bytes")
        _check(PAGE <= at <= len(self.data) - max(16, 10 + size), at, "the leaf leaves the segment")
        return self.data[at + 10 : at + 10 + size]

    def leaves(self) -> Iterator[tuple[bytes, int]]:
        """(key, offset of the leaf) in the order of the keys; notes every block it meets."""
        self.visits.clear()
        self.node_types.clear()
        before = b""
        root = self.field("se_sequencer", "root")
        for key, leaf in self._below(root, b"") if root else ():
            _check(before < key, leaf, "the keys are not in order")
            before = key
            yield key, leaf

    def _below(self, child: int, path: bytes) -> Iterator[tuple[bytes, int]]:
        if child & CONSTANTS["SE_CHILD_LEAF"]:
            leaf = child - 1
            key = self._leaf_key(leaf)
            _check(key.startswith(path), leaf, "the key is not what led to it")
            self.visits.append(Block(leaf, 10 + len(key), "leaf"))
            yield key, leaf
            return
        _check(len(path) < KEY_MAX, child, "deeper than keys are long")
        kind, prefix, children, size = self._node(child)
        self.visits.append(Block(child, size, f"node of type {kind}"))
        self.node_types[kind] = self.node_types.get(kind, 0) + 1
        for byte, below in children.items():
            yield from self._below(below, path + prefix + bytes([byte]))

    def find(self, key: bytes) -> int | None:
        """The offset of the key's leaf, found as section 4 says."""
        child = self.field("se_sequencer", "root")
        position = 0
        while child and not child & CONSTANTS["SE_CHILD_LEAF"]:
            _, prefix, children, _ = self._node(child)
            if key[position : position + len(prefix)] != prefix:
                return None
            position += len(prefix)
            if position >= len(key):
                return None
            child = children.get(key[position], 0)
            position += 1
        return child - 1 if child and self._leaf_key(child - 1) == key else None

    # -- records ------------------------------------------------------------------------------

    def _record(self, at: int) -> Record:
        self.data_word(at)
        size = self._in_data("se_record", "value_size", at)
        flags = self._in_data("se_record", "flags", at)
        _check(at + 40 + size <= len(self.data), at, "the value leaves the segment")
        _check(size <= CONSTANTS["SE_VALUE_ENCODED_MAX"] and flags <= 1, at, "size or flags")
        _check((size == 0) == (flags == 1), at, "a value without bytes, or a tombstone with some")
        return Record(
            at,
            self._in_data("se_record", "version", at),
            self._in_data("se_record", "timestamp_us", at),
            self._in_data("se_record", "expires_us", at),
            flags == 1,
            self.data[at + 40 : at + 40 + size],
        )

    def records(self, leaf: int) -> tuple[list[Record], bool]:
        """The chain of a leaf, newest first, and whether it ends in a cut."""
        at = self._in_data("se_leaf", "head", leaf)
        found: list[Record] = []
        while at not in (0, CUT):
            record = self._record(at)
            if found:
                _check(record.version <= found[-1].version, at, "versions rise along prev")
                _check(record.timestamp_us <= found[-1].timestamp_us, at, "time falls")
            found.append(record)
            at = self._in_data("se_record", "prev", at)
        _check(bool(found), leaf, "a leaf without a record")
        newest = self.field("se_sequencer", "commit_version")
        _check(found[0].version <= newest, leaf, "a record of a commit that is not done")
        return found, at == CUT

    # -- blocks -------------------------------------------------------------------------------

    @staticmethod
    def class_size(number: int) -> int:
        """The size of a class's blocks."""
        if number < 64:
            return 16 * (number + 1)
        doubling, quarter = (number - 64) // 4, (number - 64) % 4 + 1
        return (1024 + 256 * quarter) << doubling

    @classmethod
    def class_of(cls, size: int) -> int:
        """The smallest class that holds so many bytes."""
        return next(
            number
            for number in range(CONSTANTS["SE_CLASS_COUNT"])
            if cls.class_size(number) >= size
        )

    def _words(self, name: str) -> Iterator[int]:
        """The array of u64 in the sequencer."""
        row = STRUCTS["se_sequencer"][name]
        for at in range(PAGE + row.offset, PAGE + row.offset + row.size, 8):
            yield int.from_bytes(self.control[at : at + 8], "little")

    def _free_blocks(self) -> Iterator[Block]:
        lists = list(enumerate(self._words("free_head")))
        lists.append(
            (self.field("se_sequencer", "join_class"), self.field("se_sequencer", "join_rest"))
        )
        for number, at in lists:
            while at:
                yield Block(at, self.class_size(number), "free")
                at = self.data_word(at)
        for word in self._words("join_head"):
            while word:
                at = word & CONSTANTS["SE_BLOCK_OFFSET_MASK"]
                number = word >> CONSTANTS["SE_BLOCK_CLASS_SHIFT"]
                yield Block(at, self.class_size(number), "free")
                word = self.data_word(at)

    def _retired_blocks(self) -> Iterator[Block]:
        ring = self.field("se_sequencer", "ring_offset")
        capacity = self.field("se_sequencer", "ring_capacity")
        yield Block(ring, 16 * capacity, "ring")
        epoch = 0
        for number in range(
            self.field("se_sequencer", "ring_head"), self.field("se_sequencer", "ring_tail")
        ):
            entry = ring + 16 * (number % capacity)
            word = self.data_word(entry)
            _check(self.data_word(entry + 8) >= epoch, entry, "epochs fall")
            epoch = self.data_word(entry + 8)
            at = word & CONSTANTS["SE_BLOCK_OFFSET_MASK"]
            size_class = word >> CONSTANTS["SE_BLOCK_CLASS_SHIFT"]
            _check(not word & CONSTANTS["SE_BLOCK_FREEING"], entry, "freeing is under way")
            if not word & CONSTANTS["SE_BLOCK_CHAIN"]:
                yield Block(at, self.class_size(size_class), "retired")
                continue
            while at not in (0, CUT):
                record = self._record(at)
                yield Block(at, 40 + len(record.value), "retired record")
                at = self._in_data("se_record", "prev", at)

    def blocks(self) -> list[Block]:
        """Every block of the arena, by offset; they fill it without a gap or an overlap."""
        found = [*self._free_blocks(), *self._retired_blocks()]
        for _, leaf in self.leaves():
            found += [
                Block(record.offset, 40 + len(record.value), "record")
                for record in self.records(leaf)[0]
            ]
        found += self.visits
        found = [
            Block(block.offset, self.class_size(self.class_of(block.size)), block.use)
            for block in sorted(found, key=lambda block: block.offset)
        ]
        end = PAGE
        for block in found:
            _check(block.offset == end, end, f"the next block, {block}, does not begin here")
            end += block.size
        _check(end == self.field("se_sequencer", "arena_bump"), end, "the arena ends elsewhere")
        return found
