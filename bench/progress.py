"""progress.py - a word in memory that two processes share: one writes how far it is, one reads.

Why:        A pipe wakes its reader, which costs more than what is measured; a word is simply there.
Used by:    kill.py, erase.py, wait.py
Ordering:   an aligned 8-byte store of CPython's memoryview is one machine store; nothing else is
            read on account of it
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from bench.machine import scratch_folder


class Progress:
    """`words[0]`, 0 at first; a context manager. `create` makes it; pickled, it is opened again."""

    def __init__(self, path: Path, *, owner: bool = False) -> None:
        self.path = path
        self._owner = owner
        with open(path, "r+b") as file:
            if owner:
                file.truncate(8)
            self._map = mmap.mmap(file.fileno(), 8)
        self.words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Progress:
        handle, name = tempfile.mkstemp(prefix="shm_engine-bench-word-", dir=scratch_folder())
        os.close(handle)
        return cls(Path(name), owner=True)

    def __reduce__(self) -> tuple[type[Progress], tuple[Path]]:
        return Progress, (self.path,)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap; who made it removes the file."""
        self.words.release()
        self._map.close()
        if self._owner:
            self.path.unlink(missing_ok=True)
