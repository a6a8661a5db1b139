"""files.py - a database's files as they lie in its folder, read and never changed.

Why:        stat, verify, dump and repair look at the same files; the bytes are judged by the core's
            own functions, so that a command and a recovery cannot see two different things.
Used by:    the commands, one thread; also while others write: a file that is gone in the middle of
            it was covered by a checkpoint
Shared:     FORMAT.md, section 10
Cost:       a log file is read whole
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shm_engine._core import find_frame, read_frame, read_log_header, scan_frames

__all__ = [
    "FIRST_FRAME",
    "Frame",
    "LogFile",
    "Scan",
    "checkpoint_name",
    "checkpoint_versions",
    "folder_descriptor",
    "log_name",
    "log_versions",
    "read_log_file",
    "size_of",
]

FIRST_FRAME: Final = 4096
UNSYNCED_MANY: Final = 0xFFFFFFFF
LOG_NAME: Final = re.compile(r"(\d{20})\.wal")
CHECKPOINT_NAME: Final = re.compile(r"(\d{20})\.ckpt")


def log_name(first_version: int) -> str:
    """Relative to the folder."""
    return f"wal/{first_version:020}.wal"


def checkpoint_name(version: int) -> str:
    """Relative to the folder."""
    return f"checkpoint/{version:020}.ckpt"


def _versions(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def log_versions(folder: Path) -> list[int]:
    """The first version of every log file, rising."""
    return _versions(folder / "wal", LOG_NAME)


def checkpoint_versions(folder: Path) -> list[int]:
    """The version of every checkpoint, rising."""
    return _versions(folder / "checkpoint", CHECKPOINT_NAME)


def size_of(path: Path) -> int:
    """Bytes, 0 if it has gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def folder_descriptor(folder: Path) -> Iterator[int]:
    """An open descriptor of the folder, as the core wants it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit in the log; an operation is (kind, expires_us, key, value)."""

    offset: int
    size: int
    version: int
    timestamp_us: int
    unsynced: int
    origin: int
    operations: list[tuple[int, int, bytes, bytes]]

    @property
    def synced_version(self) -> int:
        """Everything up to it was synced when the frame was written, as far as the frame tells."""
        known = self.unsynced != UNSYNCED_MANY and self.unsynced < self.version
        return self.version - self.unsynced if known else 0


@dataclass(frozen=True, slots=True)
class Scan:
    """The frames of a file: how many, how many above a version; the newest version, its time, and
    the offset behind it. Without frames the version is that of the commit before the file."""

    frames: int
    frames_above: int
    last_version: int
    last_us: int
    end: int


@dataclass(slots=True)
class LogFile:
    """One file of the log, as it was when it was read."""

    name: str
    first_version: int
    content: bytes = field(repr=False)
    verdict: str
    header: dict[str, Any]

    @property
    def previous_version(self) -> int:
        """The newest commit before the file, as its header says."""
        previous: int = self.header.get("previous_version", 0)
        return previous

    def scan(self, above: int = 0) -> Scan:
        """Counts the sound frames from the first on, rising, up to the end of the log in this file;
        also those above a version."""
        last = max(self.previous_version, self.first_version - 1)
        return Scan(*scan_frames(self.content, FIRST_FRAME, last, above))

    def frames(self, after: int = 0) -> Iterator[Frame]:
        """The sound frames from the first on, rising, up to the end of the log in this file.

        Args:
            after: Frames up to this version are left out.
        """
        offset = FIRST_FRAME
        last = max(self.previous_version, self.first_version - 1)
        while frame := self.frame_at(offset, last):
            if frame.version > after:
                yield frame
            last, offset = frame.version, offset + frame.size

    def frame_at(self, offset: int, last: int) -> Frame | None:
        """The sound frame there, if it goes on after version `last`."""
        found = read_frame(self.content, offset, last)
        return None if found is None else Frame(offset, *found)

    def frames_behind(self, offset: int, last: int) -> Iterator[Frame]:
        """Every sound frame above `last` from `offset` on, wherever it begins."""
        at = find_frame(self.content, offset, last)
        while at is not None:
            frame = self.frame_at(at, last)
            assert frame is not None
            yield frame
            at = find_frame(self.content, at + frame.size, last)


def read_log_file(path: Path, name: str, first_version: int) -> LogFile:
    """Reads it whole. Raises FileNotFoundError if it has gone."""
    content = path.read_bytes()
    verdict, header = read_log_header(content, first_version)
    return LogFile(name, first_version, content, verdict, header)
