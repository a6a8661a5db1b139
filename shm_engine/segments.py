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
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import posix_ipc

from shm_engine import errors
from shm_engine._core import Store, process_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    _Maker = Callable[[int, int], Store]

__all__ = ["INFO_FILE", "Segments", "clear_leftovers", "default_map_size"]

FOLDER: Final = "/dev/shm"
INFO_FILE: Final = "coordinator.json"
PREFIX: Final = "shm_engine"
MAP_SIZE_MAX: Final = 16 << 30
MAP_SIZE_MIN: Final = 1 << 20
RENAMED_S: Final = 24 * 3600.0


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

    def create(self, **options: Any) -> Store:
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
        # Opened in one call, and closed in one: Ctrl-C comes before or after, and loses none.
        open_one = partial(posix_ipc.SharedMemory, flags=flags, mode=0o600)
        descriptors: list[int] = []
        try:
            descriptors.extend(map(attrgetter("fd"), map(open_one, (self.control, self.data))))
            return make(*descriptors)  # which keeps copies: growing the arena needs them
        except posix_ipc.ExistentialError:
            raise errors.Closed(
                "The database's shared memory is gone: its last handle was closed. Open it again."
            ) from None
        except (OSError, posix_ipc.Error) as error:
            raise _system_error(error) from error
        finally:
            list(map(os.close, descriptors))

    def unlink(self) -> None:
        """Removes the names; the memory goes when the last process unmaps it.

        The control segment's goes last: by it `clear_leftovers` finds what a kill left of the two.
        """
        for name in (self.data, self.control):
            with suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(name)

    def exist(self) -> bool:
        """Whether both names are there; a coordinator that still recovers has named none."""
        return all(name and os.path.exists(FOLDER + name) for name in (self.control, self.data))


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
        if store.has_log() and _is_awaited(store, segments):
            return False
        return store.members() == 0 and (store.was_joined() or creator_pid != os.getpid())
    finally:
        store.close()


def _is_awaited(store: Store, segments: Segments) -> bool:
    """Whether an open of the folder will save what the ring of these segments holds."""
    folder = store.folder()
    if not folder:
        return True  # its path is too long to be told
    try:
        with open(os.path.join(folder, INFO_FILE), encoding="utf-8") as file:
            named = json.load(file)["control"]
    except (FileNotFoundError, NotADirectoryError):
        if os.path.isdir(folder) or store.is_saved():
            return False  # nothing is left to be saved
        # Removed, or given another name: that one's next open asks for these segments.
        return time.time() - os.stat(FOLDER + segments.control).st_mtime < RENAMED_S
    except (OSError, ValueError, LookupError, TypeError):
        return True
    return bool(named == segments.control)


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
