"""private_shm.py - a small /dev/shm for one process and its children, and other containers.

Why:        a full /dev/shm must be tested for certain and must not fill the one that everybody
            uses. A mount namespace with a tmpfs of its own does both, and is gone with its last
            process. A namespace of pids is what makes another container of a process.
Used by:    a forked child with one thread, before it opens a database
Errors:     Unmountable, saying what the system refused and how to leave these tests out
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = [
    "SKIP_VARIABLE",
    "Unmountable",
    "enter",
    "enter_pid_namespace",
    "mount_proc",
    "mount_tmpfs",
]

SKIP_VARIABLE: Final = "SHM_ENGINE_TESTS_WITHOUT_MOUNTS"
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
MS_REMOUNT: Final = 0x20
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000


class Unmountable(AssertionError):
    """This process may not mount."""


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise Unmountable(
            f"{what} failed: {os.strerror(error)}. The tests of a full /dev/shm need a mount "
            f"namespace, as root or as a user that may make user namespaces. Where that is "
            f"forbidden, leave them out with {SKIP_VARIABLE}=1."
        )


def enter_pid_namespace() -> None:
    """The next child of this process is the first of a namespace of pids, with a /proc of its own
    once it calls `mount_proc`."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWPID), "unshare(CLONE_NEWPID)")


def mount_proc() -> None:
    """Shows this process's pid namespace in /proc, to itself and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _check(libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount(proc)")


def enter(size: int, inodes: int = 0) -> None:
    """From now on this process and its children see a tmpfs of `size` bytes on /dev/shm.

    Args:
        size: Bytes, whole pages.
        inodes: How many files it may hold, 0 for as many as the system gives; the root is one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER
    _check(libc.unshare(flags), "unshare(CLONE_NEWNS)")
    if flags & CLONE_NEWUSER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount(private)")
    mount_tmpfs(Path("/dev/shm"), size, inodes)


def mount_tmpfs(folder: Path, size: int, inodes: int = 0, *, again: bool = False) -> None:
    """Puts a tmpfs of `size` bytes on the folder, or resizes the one there; after `enter`."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size},mode=1777" + (f",nr_inodes={inodes}" if inodes else "")
    flags = MS_REMOUNT if again else 0
    where = os.fsencode(folder)
    _check(libc.mount(b"tmpfs", where, b"tmpfs", flags, options.encode()), "mount(tmpfs)")
