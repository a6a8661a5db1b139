"""segments.py - the names of shared-memory segments: make, find, open, remove.

Why:        a segment outlives the processes that use it, so its name says whose it is:
            shm_engine.<uid>.<pid>.<random>.c and .d for control and data. What killed processes
            left behind is found by these names and removed once nobody lives in it.
Used by:    database.py, coordinator.py; any thread
Crash:      between making and first use: the maker's pid in the name is dead, nobody is a member,
            so the next clean-up removes it
Cost:       one shm_open, fstat and mmap for each segment
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import posix_ipc

from shm_engine import errors
from shm_engine._core import Store, process_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    _Maker = Callable[[int, int], Store]

__all__ = ["Segments", "clear_leftovers", "default_map_size"]

FOLDER: Final = "/dev/shm"
PREFIX: Final = "shm_engine"
MAP_SIZE_MAX: Final = 16 << 30
MAP_SIZE_MIN: Final = 1 << 20


def default_map_size() -> int:
    """The smaller of 16 GiB and half of what /dev/shm may hold, in bytes."""
    try:
        room = os.statvfs(FOLDER)
    except OSError:
        return MAP_SIZE_MAX
    return max(MAP_SIZE_MIN, min(MAP_SIZE_MAX, room.f_blocks * room.f_frsize // 2))


def _system_error(error: Exception) -> errors.StorageError:
    """What the system's refusal to make or open a segment means to the user."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.ENOMEM):
        return errors.StorageFull(
            f"Shared memory has no room for the segments of a database ({error}). Free some of "
            f"{FOLDER}, or give a container more of it (--shm-size)."
        )
    return errors.IoError(f"Opening a database's shared memory in {FOLDER} failed: {error}.")


@dataclass(frozen=True, slots=True)
class Segments:
    """The two segments of one database, by name."""

    control: str
    data: str

    @staticmethod
    def fresh() -> Segments:
        """Names that nobody uses."""
        stem = f"/{PREFIX}.{os.getuid()}.{os.getpid()}.{secrets.token_hex(6)}"
        return Segments(f"{stem}.c", f"{stem}.d")

    def create(self, **options: int) -> Store:
        """Makes and lays out both; nothing is left of them if that fails."""
        try:
            return self._with_descriptors(
                posix_ipc.O_CREX, lambda control, data: Store.create(control, data, **options)
            )
        except BaseException:
            self.unlink()
            raise

    def attach(self) -> Store:
        """Maps both. Raises Closed if they are gone."""
        return self._with_descriptors(0, Store.attach)

    def _with_descriptors(self, flags: int, make: _Maker) -> Store:
        descriptors: list[int] = []
        try:
            descriptors.extend(
                posix_ipc.SharedMemory(name, flags, mode=0o600).fd
                for name in (self.control, self.data)
            )
            # The attachment keeps its descriptors: growing the arena needs them.
            store = make(*descriptors)
        except posix_ipc.ExistentialError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise errors.Closed(
                "The database's shared memory is gone: its last handle was closed. Open it again."
            ) from None
        except BaseException as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, OSError | posix_ipc.Error):
                raise _system_error(error) from error
            raise
        return store

    def unlink(self) -> None:
        """Removes the names; the memory goes when the last process unmaps it.

        The control segment's goes last: by it `clear_leftovers` finds what a kill left of the two.
        """
        for name in (self.data, self.control):
            with suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(name)

    def exist(self) -> bool:
        """Whether both names are there."""
        return all(os.path.exists(FOLDER + name) for name in (self.control, self.data))


def _is_unfinished(segments: Segments) -> bool:
    """Whether the layout was never completed; the magic at the start comes last."""
    with open(FOLDER + segments.control, "rb") as control:
        return not any(control.read(8))


def _is_left_over(segments: Segments, creator_pid: int) -> bool:
    # Of living makers a process asks only about itself: attaching to all would cost too much.
    if creator_pid != os.getpid() and process_identity(creator_pid) != 0:
        return False
    try:
        store = segments.attach()
    except errors.Error:
        # Killed before both were made and laid out, or of another build: nobody can be told alive.
        return creator_pid != os.getpid() and (
            not os.path.exists(FOLDER + segments.data) or _is_unfinished(segments)
        )
    try:
        return store.members() == 0 and (store.was_joined() or creator_pid != os.getpid())
    finally:
        store.close()


def clear_leftovers() -> list[Segments]:
    """Removes this user's segments whose maker is dead and that no living process uses.

    Returns what was removed. Segments of databases in folders are left to their next open.
    """
    removed: list[Segments] = []
    try:
        names = os.listdir(FOLDER)
    except OSError:
        return removed
    for name in names:
        parts = name.split(".")
        if len(parts) != 5 or parts[:2] != [PREFIX, str(os.getuid())] or parts[4] != "c":
            continue
        stem = "/" + name[:-2]
        segments = Segments(f"{stem}.c", f"{stem}.d")
        try:
            left_over = parts[2].isdigit() and _is_left_over(segments, int(parts[2]))
        except OSError:
            continue
        if left_over:
            segments.unlink()
            removed.append(segments)
    return removed
