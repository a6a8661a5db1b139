"""private_shm.py - a small /dev/shm for one process and its children.

Why:        a full /dev/shm must be tested for certain and must not fill the one that everybody
            uses. A mount namespace with a tmpfs of its own does both, and is gone with its last
            process.
Used by:    a forked child with one thread, before it opens a database
Errors:     Unmountable, saying what the system refused and how to leave these tests out
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = ["SKIP_VARIABLE", "Unmountable", "enter"]

SKIP_VARIABLE: Final = "SHM_ENGINE_TESTS_WITHOUT_MOUNTS"
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
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
    options = f"size={size},mode=1777" + (f",nr_inodes={inodes}" if inodes else "")
    _check(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options.encode()), "mount(tmpfs)")
