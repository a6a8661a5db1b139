"""files.py - reads a database's checkpoint and log files, from nothing but FORMAT.md.

Why:        a description is complete if a program written from it alone finds everything. Offsets
            come from the document's tables; what to do with them is its text.
Used by:    the tests in tests/format
Invariants: every rule of section 10 is checked on the way
Errors:     Invalid, with file, offset and the rule that is broken
Cost:       reads whole files; the checksum is plain Python, about 5 MB/s
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.format import tables
from tests.format.reader import Invalid, Record

__all__ = [
    "Chain",
    "Content",
    "Entry",
    "crc32c",
    "log_frames",
    "read_checkpoint",
    "read_folder",
    "ring_frames",
]

STRUCTS: Final = tables.structs()
SIZES: Final = tables.struct_sizes()
CONSTANTS: Final = tables.constants()
NOT_SYNCED: Final = 0xFFFFFFFF
CUT: Final = CONSTANTS["SE_CHECKPOINT_CUT"]
MORE: Final = CONSTANTS["SE_CHECKPOINT_MORE"]
GOES_ON: Final = CONSTANTS["SE_CHECKPOINT_GOES_ON"]


def _table() -> list[int]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # 0x1edc6f41 reflected
        found.append(crc)
    return found


TABLE: Final = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """The checksum of section 10; `crc`: of the bytes before these."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """A block header, or an entry, of a checkpoint: where it is and what its fields hold."""

    offset: int
    fields: dict[str, int]


@dataclass(slots=True)
class Chain:
    """A key's records, newest first; cut: older ones were trimmed."""

    records: list[Record] = field(default_factory=list)
    cut: bool = False


@dataclass(slots=True)
class Content:
    """What a folder, or one file of it, holds."""

    database_id: bytes
    version: int
    keys: dict[bytes, Chain] = field(default_factory=dict)
    removed_horizon: int = 0
    timestamp_us: int = 0
    checkpoint_version: int = 0
    commits: int = 0
    torn: tuple[str, int] | None = None
    blocks: list[Entry] = field(default_factory=list)


class _Bytes:
    """The bytes of a file, with the fields of structs in them."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data

    def check(self, holds: bool, offset: int, rule: str) -> None:
        if not holds:
            raise Invalid(f"{self.name} at {offset}: {rule}")

    def struct(self, struct: str, base: int) -> dict[str, int]:
        """Every field of up to 8 bytes."""
        self.check(base + SIZES[struct] <= len(self.data), base, f"the file ends within {struct}")
        return {
            row.field: int.from_bytes(
                self.data[base + row.offset : base + row.offset + row.size], "little"
            )
            for row in STRUCTS[struct].values()
        }

    def raw(self, struct: str, name: str, base: int = 0) -> bytes:
        row = STRUCTS[struct][name]
        return self.data[base + row.offset : base + row.offset + row.size]

    def crc_before(self, struct: str, name: str, base: int = 0, crc: int = 0) -> int:
        """The checksum of the struct's bytes before a field."""
        return crc32c(self.data[base : base + STRUCTS[struct][name].offset], crc)


# -- checkpoint -------------------------------------------------------------------------------


class _CheckpointReader(_Bytes):
    def __init__(self, name: str, data: bytes, version: int) -> None:
        super().__init__(name, data)
        header = self.struct("se_checkpoint_header", 0)
        self.check(header["magic"] == CONSTANTS["SE_CHECKPOINT_MAGIC"], 0, "no magic")
        crc = self.crc_before("se_checkpoint_header", "crc")
        self.check(crc == header["crc"], 60, "the header's crc is wrong")
        self.check(header["format_version"] in (1, 2), 8, "another format version")
        self.check(header["byte_order"] == CONSTANTS["SE_BYTE_ORDER"], 12, "another byte order")
        self.check(header["zero"] == 0, 48, "bytes that are not zero")
        self.check(header["version"] == version, 32, "another version than the file's name")
        self.content = Content(self.raw("se_checkpoint_header", "database_id"), version)
        self.content.checkpoint_version = version
        self.seed = crc32c(data[16:40])
        self.open: bytes | None = None  # the key whose older records have to follow
        self.bytes = 0

    def blocks(self) -> Iterator[tuple[Entry, int, int]]:
        """(header, begin, end) of each block."""
        at = SIZES["se_checkpoint_header"]
        kind = number = 0
        while kind != CONSTANTS["SE_CHECKPOINT_END"]:
            found = self.struct("se_checkpoint_block", at)
            crc = self.crc_before("se_checkpoint_block", "header_crc", at, self.seed)
            self.check(found["magic"] == CONSTANTS["SE_CHECKPOINT_BLOCK"], at, "no block")
            self.check(found["header_crc"] == crc, at, "the block header's crc is wrong")
            self.check(found["offset"] == at, at, "the block stands elsewhere")
            self.check(found["number"] == number, at, "another block's number")
            kind = found["kind"]
            is_end = kind == CONSTANTS["SE_CHECKPOINT_END"]
            self.check(is_end or kind == CONSTANTS["SE_CHECKPOINT_KEYS"], at, "an unknown kind")
            begin = at + SIZES["se_checkpoint_block"]
            end = begin + found["size"]
            self.check(end <= len(self.data) and found["size"] % 8 == 0, at, "the block's size")
            self.check(is_end == (found["entries"] == 0), at, "the block's entries")
            self.check(crc32c(self.data[begin:end]) == found["crc"], at, "the block's crc is wrong")
            yield Entry(at, found), begin, end
            at = end
            number += 1
        self.check(at == len(self.data), at, "bytes behind the end block")

    def record(self, at: int, end: int, chain: Chain) -> int:
        found = self.struct("se_checkpoint_record", at)
        begin = at + SIZES["se_checkpoint_record"]
        behind = begin + found["value_size"]
        self.check(behind <= end, at, "the value leaves its block")
        self.check(found["value_size"] <= CONSTANTS["SE_VALUE_ENCODED_MAX"], at, "value_size")
        self.check(found["flags"] in (0, 1), at, "flags")
        self.check((found["value_size"] == 0) == (found["flags"] == 1), at, "an empty value")
        self.check(1 <= found["version"] <= self.content.version, at, "version")
        if chain.records:
            newer = chain.records[-1]
            self.check(found["version"] <= newer.version, at, "versions rise along a key")
            self.check(found["timestamp_us"] <= newer.timestamp_us, at, "times rise along a key")
        chain.records.append(
            Record(
                at,
                found["version"],
                found["timestamp_us"],
                found["expires_us"],
                found["flags"] == 1,
                self.data[begin:behind],
            )
        )
        self.bytes += found["value_size"]
        self.content.timestamp_us = max(self.content.timestamp_us, found["timestamp_us"])
        return behind

    def entry(self, at: int, end: int, last: bytes) -> tuple[int, bytes]:
        found = self.struct("se_checkpoint_key", at)
        flags = found["flags"]
        self.check(18 <= found["key_size"] <= CONSTANTS["SE_KEY_MAX"], at, "key_size")
        self.check(flags in (0, 1, 2, 4, 5, 6), at, "flags")
        self.check(found["records"] > 0 or flags == GOES_ON | CUT, at, "no records")
        begin = at + SIZES["se_checkpoint_key"]
        key = self.data[begin : begin + found["key_size"]]
        self.check(begin + found["key_size"] <= end, at, "the key leaves its block")
        if flags & GOES_ON:
            self.check(key == self.open, at, "goes on with a key that did not begin")
        else:
            self.check(self.open is None, at, "older records of the key before are missing")
            self.check(last < key and (not last or not key.startswith(last)), at, "keys' order")
            self.content.keys[key] = Chain()
            self.bytes += len(key)
        chain = self.content.keys[key]
        self.open = key if flags & MORE else None
        at = begin + found["key_size"]
        for _ in range(found["records"]):
            at = self.record(at, end, chain)
        chain.cut = bool(flags & CUT)
        return at, key

    def read(self) -> Content:
        last = b""
        for header, begin, end in self.blocks():
            self.content.blocks.append(header)
            if header.fields["kind"] == CONSTANTS["SE_CHECKPOINT_END"]:
                self.finish(begin)
                break
            at = begin
            for _ in range(header.fields["entries"]):
                at, last = self.entry(at, end, last)
            self.check(end - at < 8 and not any(self.data[at:end]), at, "bytes behind the keys")
        return self.content

    def finish(self, at: int) -> None:
        found = self.struct("se_checkpoint_end", at)
        content = self.content
        self.check(self.open is None, at, "older records of the last key are missing")
        totals = {
            "keys": len(content.keys),
            "records": sum(len(chain.records) for chain in content.keys.values()),
            "bytes": self.bytes,
            "timestamp_us": content.timestamp_us,
        }
        content.removed_horizon = found.pop("removed_horizon")
        self.check(content.removed_horizon <= content.version, at, "removed_horizon")
        self.check(found == totals, at, f"the totals are {found}, not {totals}")


def read_checkpoint(name: str, data: bytes, version: int) -> Content:
    """The content of a checkpoint; every rule is checked."""
    return _CheckpointReader(name, data, version).read()


# -- log --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Operation:
    kind: int
    key: bytes
    value: bytes
    expires_us: int


class _LogFile(_Bytes):
    def __init__(self, name: str, data: bytes, version: int, database_id: bytes | None) -> None:
        super().__init__(name, data)
        self.named = version
        self.header: dict[str, int] = {}
        self.database_id = self.raw("se_wal_header", "database_id")
        if len(data) >= SIZES["se_wal_header"]:
            found = self.struct("se_wal_header", 0)
            crc = self.crc_before("se_wal_header", "crc")
            if found["magic"] == CONSTANTS["SE_WAL_MAGIC"] and found["crc"] == crc:
                self.header = found
        ours = database_id in (None, self.database_id)
        self.is_foreign = bool(self.header) and (not ours or self.header["first_version"] > version)
        self.is_valid = (
            bool(self.header)
            and ours
            and self.header["format_version"] in (1, 2)
            and self.header["byte_order"] == CONSTANTS["SE_BYTE_ORDER"]
            and self.header["first_version"] == version > self.header["previous_version"]
            and self.header["durable_version"] <= self.header["previous_version"]
        )

    def operations(self, at: int, end: int) -> list[_Operation] | None:
        """The operations of a frame, None if they break a rule."""
        found = []
        while end - at >= 8 or any(self.data[at:end]):
            if end - at < SIZES["se_frame_op"]:
                return None
            op = self.struct("se_frame_op", at)
            at += SIZES["se_frame_op"]
            expires_us = 0
            if op["kind"] == CONSTANTS["SE_FRAME_PUT_EXPIRES"]:
                expires_us = int.from_bytes(self.data[at : at + 8], "little")
                at += 8
            behind = at + op["key_size"] + op["value_size"]
            is_delete = op["kind"] == CONSTANTS["SE_FRAME_DELETE"]
            if (
                op["kind"] not in (1, 2, 3)
                or op["zero"]
                or not 18 <= op["key_size"] <= CONSTANTS["SE_KEY_MAX"]
                or (op["value_size"] == 0) != is_delete
                or op["value_size"] > CONSTANTS["SE_VALUE_ENCODED_MAX"]
                or behind > end
            ):
                return None
            key = self.data[at : at + op["key_size"]]
            found.append(_Operation(op["kind"], key, self.data[at + len(key) : behind], expires_us))
            at = behind
        return found

    def frame(self, at: int) -> tuple[dict[str, int], list[_Operation]] | None:
        """The sound frame at a place, if there is one."""
        if at + SIZES["se_frame"] > len(self.data):
            return None
        found = self.struct("se_frame", at)
        size = found["size"]
        if size % 8 or not SIZES["se_frame"] <= size <= CONSTANTS["SE_FRAME_MAX"]:
            return None
        if at + size > len(self.data) or found["version"] == 0:
            return None
        crc = crc32c(self.data[at + 8 : at + size], crc32c(self.data[at : at + 4]))
        if crc != found["crc"]:
            return None
        operations = self.operations(at + SIZES["se_frame"], at + size)
        return None if operations is None else (found, operations)

    def says_synced(self, at: int, good: int) -> bool:
        """Rules 1 and 2: something behind `at` says that more than `good` was synced."""
        if (
            self.header
            and at == 0
            and not self.is_foreign
            and self.header["durable_version"] > good
        ):
            return True
        return any(
            frame["unsynced"] != NOT_SYNCED and frame["version"] - frame["unsynced"] > good
            for frame in self.frames_above(at, good)
        )

    def frames_above(self, at: int, good: int) -> Iterator[dict[str, int]]:
        """Sound frames with a version above `good`, wherever they stand."""
        at = max(at, CONSTANTS["SE_WAL_FIRST_FRAME"])
        while at < len(self.data):
            version = int.from_bytes(self.data[at + 8 : at + 16], "little")
            found = self.frame(at) if version > good else None
            if found:
                yield found[0]
            at += found[0]["size"] if found else 8


def _apply(content: Content, frame: dict[str, int], operations: list[_Operation]) -> None:
    for operation in operations:
        chain = content.keys.setdefault(operation.key, Chain())
        is_delete = operation.kind == CONSTANTS["SE_FRAME_DELETE"]
        chain.records.insert(
            0,
            Record(
                0,
                frame["version"],
                frame["timestamp_us"],
                operation.expires_us,
                is_delete,
                operation.value,
            ),
        )
    content.commits += 1
    content.timestamp_us = frame["timestamp_us"]


class _Log:
    def __init__(self, folder: Path, content: Content, database_id: bytes | None) -> None:
        self.content = content
        self.last = 0
        self.files = [
            _LogFile(f"wal/{path.name}", path.read_bytes(), int(path.stem), database_id)
            for path in sorted((folder / "wal").glob("*.wal"))
        ]

    def replay(self) -> None:
        content = self.content
        first = next(self.numbers_within(0), None)
        index = -1
        end = 0
        at = first
        while at is not None:
            index = at
            end = self.replay_file(self.files[index])
            at = self.follower(index + 1)
        content.version = max(self.last, content.checkpoint_version)
        self.judge(index, end)

    def numbers_within(self, begin: int) -> Iterator[int]:
        """The files before which nothing is missing that the checkpoint does not have."""
        for number in range(begin, len(self.files)):
            file = self.files[number]
            if file.is_valid and file.header["previous_version"] <= self.content.checkpoint_version:
                yield number

    def follower(self, begin: int) -> int | None:
        """The file in which the log goes on."""
        for number in range(begin, len(self.files)):
            file = self.files[number]
            if file.is_valid and file.header["previous_version"] == self.last:
                return number
        if self.last > self.content.checkpoint_version:
            return None
        return next(self.numbers_within(begin), None)

    def replay_file(self, file: _LogFile) -> int:
        """Applies the file's frames; where they end."""
        at = CONSTANTS["SE_WAL_FIRST_FRAME"]
        self.last = file.header["previous_version"]
        floor = file.named - 1
        while (found := file.frame(at)) and found[0]["version"] > max(self.last, floor):
            if found[0]["version"] > self.content.checkpoint_version:
                _apply(self.content, *found)
            self.last = found[0]["version"]
            at += found[0]["size"]
        return at

    def judge(self, index: int, end: int) -> None:
        """Torn tail or damage; section 10, "The log ends"."""
        good = self.content.version
        if index >= 0:
            file = self.files[index]
            file.check(not file.says_synced(end, good), end, "more than this was synced")
            if any(file.data[end:]):
                self.content.torn = (file.name, end)
        for number in range(index + 1, len(self.files)):
            file = self.files[number]
            size = SIZES["se_wal_header"]
            above = any(True for _ in file.frames_above(0, good))
            gap = file.is_valid and file.header["previous_version"] > good
            before = self.files[number - 1].named if number else 0
            file.check(not file.says_synced(0, good), 0, "more than what is there was synced")
            file.check(not file.is_foreign, 0, "it does not belong here")
            file.check(bool(file.header) or not any(file.data[:size]) or not above, 0, "no header")
            file.check(
                not gap or file.header["previous_file"] == before & 0xFFFFFFFF,
                0,
                "the file before is missing",
            )
            file.check(not gap or number > 0, 0, "the log begins too late")
            self.content.torn = self.content.torn or (file.name, 0)


def read_folder(folder: Path) -> Content:
    """What a database in this folder holds, nobody having it open: checkpoint and log."""
    versions = [int(path.stem) for path in (folder / "checkpoint").glob("*.ckpt")]
    content = Content(b"", 0)
    if versions:
        name = f"checkpoint/{max(versions):020}.ckpt"
        content = read_checkpoint(name, (folder / name).read_bytes(), max(versions))
    log = _Log(folder, content, content.database_id or None)
    if not versions and log.files:
        content.database_id = log.files[0].database_id
    log.replay()
    return content


# -- ring -------------------------------------------------------------------------------------

Frame = tuple[int, int, list[tuple[int, bytes, bytes, int]]]


def _as_tuples(frame: dict[str, int], operations: list[_Operation]) -> Frame:
    """(version, time, (kind, key, value, expires_us) of each operation)."""
    found = [(each.kind, each.key, each.value, each.expires_us) for each in operations]
    return frame["version"], frame["timestamp_us"], found


def log_frames(path: Path) -> list[Frame]:
    """Every frame of one log file."""
    file = _LogFile(path.name, path.read_bytes(), int(path.stem), None)
    at = CONSTANTS["SE_WAL_FIRST_FRAME"]
    found = []
    while frame := file.frame(at):
        found.append(_as_tuples(*frame))
        at += frame[0]["size"]
    return found


def ring_frames(ring: bytes, start: int, tail: int) -> list[Frame]:
    """Every frame of the ring from position `start` up to `wal_tail`; section 9."""
    bytes_of = _Bytes("ring", ring)
    file = _LogFile("ring", ring, 0, None)
    at = start
    found = []
    while at < tail:
        place = at % len(ring)
        size = int.from_bytes(ring[place : place + 4], "little")
        if size == CONSTANTS["SE_FRAME_SKIP"]:
            at += len(ring) - place
            continue
        bytes_of.check(size % 8 == 0 and 32 <= size <= len(ring) - place, at, "a frame's size")
        frame = bytes_of.struct("se_frame", place)
        operations = file.operations(place + SIZES["se_frame"], place + size)
        if operations is None:
            raise Invalid(f"ring at {at}: an operation breaks a rule")
        found.append(_as_tuples(frame, operations))
        at += size
    bytes_of.check(at == tail, at, "the frames do not end at wal_tail")
    return found
