"""machine.py - the facts of the machine that a figure was measured on.

Why:        Absolute figures drift from machine to machine and from day to day. Each result file
            says where and with what it was made, and how busy the machine was before.
Used by:    __main__.py (facts, kept in every result file), options.py (room in memory), rounds.py
            (stolen time, so that a round spoilt by a neighbour can be told from a slow one)
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("shm_engine", "lmdb", "msgpack", "numpy", "posix-ipc", "Cython")
MIB = 1 << 20
MAP_SIZE_MAX = 2048 * MIB


def scratch_folder() -> Path:
    """Return the folder in memory where peers and start lines put their files."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def disk_folder() -> Path:
    """Return the folder on a disk where durable stores put their files (TMPDIR chooses it)."""
    return Path(tempfile.gettempdir())


def file_system(folder: Path) -> str:
    """Return the type of the file system that the folder lies on."""
    best = ("", "unknown")
    for part in psutil.disk_partitions(all=True):
        if folder.is_relative_to(part.mountpoint) and len(part.mountpoint) >= len(best[0]):
            best = (part.mountpoint, part.fstype)
    return best[1]


def map_size_allowed() -> int:
    """Return the largest map size that the bench uses: 2 GiB, or half of what is free."""
    free = shutil.disk_usage(scratch_folder()).free
    return max(8 * MIB, min(MAP_SIZE_MAX, free // 2))


def stolen_seconds() -> float:
    """Return the processor time that the hypervisor gave to others since boot."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def facts() -> dict[str, object]:
    """Return what a reader needs in order to judge the figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "load_1min": os.getloadavg()[0],
        "shared_memory_free_bytes": shutil.disk_usage(scratch_folder()).free,
        "versions": {name: _package_version(name) for name in PACKAGES},
    }


def busy_warning(load: float) -> str | None:
    """Return a warning where something else kept the machine busy in the last minute."""
    if load <= 0.5:
        return None
    return f"the machine was not quiet: load {load:.2f} in the minute before the first round"
