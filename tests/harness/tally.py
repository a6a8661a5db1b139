"""tally.py - Tally, counters that outlive the process that counts.

Why:        what a worker did before it was killed is known only if it wrote it down where the kill
            does not reach: in a mapped file, one word for each counter.
Used by:    workers write, each its own words; the test reads
Cost:       a word is written in 50 ns, so counting hides no race
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

__all__ = ["Tally"]


class Tally:
    """Counters by number, all 0 at first; picklable, and shared by forked children.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tally = Tally(Path(folder) / "tally", 2)
    ...     tally[1] += 5
    ...     tally[1], tally.total()
    (5, 5)
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, 8 * count)
            self._words = memoryview(mmap.mmap(descriptor, 8 * count)).cast("q")
        finally:
            os.close(descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tally, (self._path, self._count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return self._words[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._words[number] = value

    def total(self) -> int:
        """Of all counters."""
        return sum(self._words)
