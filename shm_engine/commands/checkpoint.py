"""checkpoint.py - `shm-engine checkpoint`: has a database written to one file now.

Why:        before a copy of the folder, or before the machine goes down: what comes after has
            nothing to replay, and the log files that the checkpoint covers are gone.
Used by:    cli.py
Errors:     the engine's; a database in memory has no files
"""

from __future__ import annotations

import time

from shm_engine.commands import files
from shm_engine.commands.condition import (
    FOREIGN,
    OPEN,
    TAKEN_OVER,
    condition_of,
    database_folder,
)
from shm_engine.commands.terminal import (
    EXIT_USAGE,
    CommandError,
    bytes_text,
    count,
    json_line,
    say,
    seconds_text,
)
from shm_engine.database import Database

__all__ = ["checkpoint"]


def checkpoint(path: str, *, map_size: int | None, as_json: bool) -> int:
    """Joins the database if it is open, opens it if not; returns when the checkpoint is there."""
    folder = database_folder(path)
    with condition_of(folder) as condition:
        was_open = condition.state in (OPEN, TAKEN_OVER)
        if condition.state == FOREIGN:
            raise CommandError(f"{path} is {condition.text()}")
    if not (was_open or files.log_versions(folder) or files.checkpoint_versions(folder)):
        raise CommandError(f"{path} holds neither log nor checkpoint; nothing to write", EXIT_USAGE)
    started = time.monotonic()
    with Database.open(folder, map_size=map_size) as database:
        if database.durability.kind == "in_memory":
            raise CommandError(f"{path} is open in memory: it keeps no files, so no checkpoint")
        database.checkpoint()
        metrics = database.metrics()
    seconds = time.monotonic() - started
    figures = {
        "path": str(folder),
        "was_open": was_open,
        "version": metrics.checkpoint_version,
        "bytes": metrics.checkpoint_bytes,
        "keys": metrics.keys,
        "log_files": len(files.log_versions(folder)),
        "seconds": round(seconds, 3),
    }
    if as_json:
        json_line(figures)
    else:
        say(
            f"checkpoint of version {metrics.checkpoint_version:,}: "
            f"{bytes_text(metrics.checkpoint_bytes)}, {count(metrics.keys, 'key')}, "
            f"in {seconds_text(seconds)}"
        )
    return 0
