"""recovery.py - what an open found in a folder's files, and how far it has come.

Why:        the coordinator recovers, in a process of its own; the one that opened wants to know how
            long it takes, and what a crash has cost.
Used by:    coordinator.py, database.py, cli.py
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, fields
from typing import Any, Final

__all__ = ["ProgressLine", "RecoveryReport"]

FIRST_LINE_S: Final = 1.0
LINE_S: Final = 0.25
MIB: Final = 1 << 20

_log = logging.getLogger("shm_engine")


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a recovery read, and what it left out.

    Attributes:
        checkpoint_version: The checkpoint that it started from, 0 without one.
        checkpoint_bytes: Its size.
        skipped_checkpoint: A newer checkpoint that is damaged and was not needed, 0 without one.
        commits, log_bytes: Commits replayed from the log, and the bytes of their frames.
        last_version: The newest commit afterwards.
        keys: Keys that have a value.
        cut_file, cut_offset, cut_bytes: The torn tail: writes that a crash interrupted before they
            were acknowledged as durable. An empty file name: there was none.
        seconds: How long it took.
        damage_file, damage_offset, damage_reason: What was passed over: by a repair, or because an
            older checkpoint and the log held everything. An empty file name: nothing.
        lost_blocks: A repair's: blocks of the checkpoint that were left out.
        aside, aside_files: A repair's: the folder where what it dropped is, and how many files.
    """

    checkpoint_version: int = 0
    checkpoint_bytes: int = 0
    skipped_checkpoint: int = 0
    commits: int = 0
    log_bytes: int = 0
    last_version: int = 0
    keys: int = 0
    cut_file: str = ""
    cut_offset: int = 0
    cut_bytes: int = 0
    seconds: float = 0.0
    damage_file: str = ""
    damage_offset: int = 0
    damage_reason: str = ""
    lost_blocks: int = 0
    aside: str = ""
    aside_files: int = 0

    @classmethod
    def of(cls, figures: dict[str, Any]) -> RecoveryReport:
        """From the core's report; what it has no field for is left out."""
        damage = {f"damage_{name}": value for name, value in figures.get("damage", {}).items()}
        known = figures | damage
        return cls(
            **{field.name: known[field.name] for field in fields(cls) if field.name in known}
        )

    def warn(self, folder: object) -> None:
        """Says by `logging` what was cut off or passed over."""
        if self.cut_file:
            _log.warning(
                "%s: the log ended in a torn write; %d bytes of %s from byte %d on were cut off. "
                "Commits up to version %d are there.",
                folder,
                self.cut_bytes,
                self.cut_file,
                self.cut_offset,
                self.last_version,
            )
        if self.skipped_checkpoint:
            _log.warning(
                "%s: the checkpoint of version %d is damaged; an older one and the log held "
                "everything.",
                folder,
                self.skipped_checkpoint,
            )


class ProgressLine:
    """One line on a terminal's standard error, from the second second on."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begin = self._last = time.monotonic()
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Bytes done, of all."""
        now = time.monotonic()
        if now - self._begin < FIRST_LINE_S or now - self._last < LINE_S:
            return
        self._last = now
        if sys.stderr.isatty():
            self._shown = True
            share = f"{100 * done // max(total, 1)} % of {total / MIB:,.0f} MiB"
            sys.stderr.write(f"\r\x1b[K{self._title}: {share}, {now - self._begin:.0f} s")
            sys.stderr.flush()

    def end(self) -> None:
        """Clears the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
