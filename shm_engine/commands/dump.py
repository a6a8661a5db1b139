"""dump.py - `shm-engine dump`: the log as people read it, one line an operation.

Why:        what was written when, and in which commit, without opening the database: of a folder
            that is open elsewhere, closed, or too damaged to open; or of one log file, for example
            in damaged-<n>/.
                 VERSION  TIME  KIND  RUN  TYPE  KEY  VALUE
Used by:    cli.py
Errors:     exit code 1 if the log is damaged, after what is sound before it was shown
Cost:       a log file is read whole; values are decoded one by one
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from shm_engine import errors, keys, runs
from shm_engine._core import RunId
from shm_engine.commands import files
from shm_engine.commands.condition import condition_of, database_folder
from shm_engine.commands.key_text import key_text
from shm_engine.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    printable,
    say_error,
    time_text,
)

__all__ = ["dump"]

KINDS: Final = {1: "put", 2: "delete", 3: "put"}
RUN_SIZE: Final = 16
SHORT_BELOW: Final = 100
CUT: Final = "..."
NAME: Final = re.compile(r"(\d{20})\.wal")


def dump(path: str, *, after: int, limit: int | None, as_json: bool, full: bool) -> int:
    """Prints operations of versions above `after`, at most `limit` of them."""
    lines = _Lines(as_json, full)
    left = limit
    shown = 0
    problems: list[str] = []
    for log in _logs(path, after, problems):
        for frame in log.frames(after):
            for operation in frame.operations:
                if left == 0:
                    return 0
                lines.show(frame, operation)
                shown += 1
                if left is not None:
                    left -= 1
    sys.stdout.flush()
    if not shown and not problems:
        above = f" above version {after}" if after else ""
        print(f"the log holds no commit{above}; checkpoints are not shown", file=sys.stderr)
    for problem in problems:
        say_error(problem)
    return EXIT_FAILED if problems else 0


def _logs(path: str, after: int, problems: list[str]) -> Iterator[files.LogFile]:
    """The files that hold versions above `after`, in order, as far as the log is whole."""
    single = Path(path).expanduser()
    if NAME.fullmatch(single.name) and single.is_file():
        yield files.read_log_file(single, single.name, int(single.name[:20]))
        return
    folder = database_folder(path)
    with condition_of(folder) as condition:
        in_use = condition.is_in_use
    versions = files.log_versions(folder)
    if not versions and not in_use:
        raise CommandError(f"{path} has no log", EXIT_USAGE)
    last: int | None = None
    for number, version in enumerate(versions):
        later = versions[number + 1] if number + 1 < len(versions) else None
        if later is not None and later <= after + 1:
            continue  # it and all before it are below
        name = files.log_name(version)
        try:
            log = files.read_log_file(folder / name, name, version)
        except FileNotFoundError:
            continue  # a checkpoint has just made it superfluous
        if log.verdict != "sound":
            if log.verdict != "unmade":
                problems.append(f"{name} has no sound header, so it is left out")
            continue
        if last is not None and log.previous_version > last:
            problems.append(f"between version {last} and {name} commits are missing")
        yield log
        scan = log.scan()
        last = scan.last_version
        if not in_use:
            _judge(log, last, scan.end, problems)


def _judge(log: files.LogFile, last: int, end: int, problems: list[str]) -> None:
    behind = next(log.frames_behind(end, last), None)
    if behind is not None and behind.synced_version > last:
        problems.append(
            f"{log.name} is damaged at byte {end}: no sound frame there, but one at byte "
            f"{behind.offset} (version {behind.version}); `shm-engine verify` says more"
        )


# -- one operation ----------------------------------------------------------------------------


class _Lines:
    """Where the lines go: JSON, or text that a terminal shows in one row each."""

    def __init__(self, as_json: bool, full: bool) -> None:
        self._as_json = as_json
        self._width = 0
        if sys.stdout.isatty() and not full and not as_json:
            self._width = shutil.get_terminal_size().columns
        self._short_time = 0 < self._width < SHORT_BELOW

    def show(self, frame: files.Frame, operation: tuple[int, int, bytes, bytes]) -> None:
        """One line."""
        kind, expires_us, key, value = operation
        run, tag, name = key_text(key)
        decoded = None if kind == 2 else _value_of(key, value)
        if self._as_json:
            fields = {
                "version": frame.version,
                "time": time_text(frame.timestamp_us),
                "kind": KINDS[kind],
                "run": run,
                "type": tag,
                "key": name,
                "value": decoded,
            }
            if kind == 3:
                fields["expires"] = time_text(expires_us)
            sys.stdout.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")
            return
        text = "" if kind == 2 else json.dumps(decoded, ensure_ascii=False, separators=(",", ":"))
        if kind == 3:
            text += f" expires {time_text(expires_us, self._short_time)}"
        at = time_text(frame.timestamp_us, self._short_time)
        line = f"{frame.version:>8} {at} {KINDS[kind]:<6} {run} {tag} {name} {text}".rstrip()
        line = printable(line)
        if self._width and len(line) > self._width:
            line = line[: self._width - len(CUT)] + CUT
        sys.stdout.write(line + "\n")


def _value_of(key: bytes, value: bytes) -> Any:
    """What JSON can say: bytes are {"$hex": ".."}, other floats {"$float": "nan"}."""
    if _is_run_record(key):
        return _run_record(value)
    try:
        return _plain(msgpack.unpackb(value, strict_map_key=False, unicode_errors="replace"))
    except (ValueError, msgpack.UnpackException, msgpack.exceptions.ExtraData):
        return {"$undecodable": value.hex()}


def _is_run_record(key: bytes) -> bool:
    return key[RUN_SIZE:] == bytes([keys.TAG_RUN]) + keys.RUN_RECORD


def _run_record(value: bytes) -> Any:
    try:
        record = runs.unpack(value)
    except errors.Error:
        return {"$undecodable": value.hex()}
    retention = None if record.retention is None else repr(record.retention)
    shown = {
        "status": keys.RUN_STATUS_NAMES.get(record.status, "Unregistered"),
        "retention": retention,
    }
    if not record.has_details:
        return shown
    return shown | {
        "name": record.name,
        "parent": None if record.parent is None else str(RunId.from_bytes(record.parent)),
        "created": time_text(record.created_us),
        "updated": time_text(record.updated_us),
        "completed": None if record.completed_us is None else time_text(record.completed_us),
        "tags": list(record.tags),
        "error": record.error,
        "metadata": _plain(record.metadata),
    }


def _plain(value: Any) -> Any:
    """Without recursion limits there is none to hit: values are at most 128 deep."""
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value
