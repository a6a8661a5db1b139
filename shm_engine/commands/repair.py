"""repair.py - `shm-engine repair`: opens what damage keeps shut, with what is sound.

Why:        damage opens nothing, for a store without its newest commits looks like a whole one.
            Whoever has no copy of the folder decides here to go on with what is left: a prefix of
            history, and of a damaged checkpoint the blocks that are sound.
                 look      what would be kept and dropped; ask
                 headers   of log files that lack nothing but a sound one are made again
                 recover   files that are dropped go to damaged-<n>/, nothing is destroyed
                 write     a new checkpoint of what was kept
Used by:    cli.py
Invariants: nobody can join while it works: whoever opens waits for its end
Crash:      at any step the next repair or open comes to a prefix of the same history
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shm_engine._core import identity_of_files, make_log_header
from shm_engine.commands import files
from shm_engine.commands.condition import condition_of, database_folder
from shm_engine.commands.terminal import (
    CommandError,
    ask,
    bytes_text,
    count,
    json_line,
    printable,
    say,
    seconds_text,
)
from shm_engine.commands.verify import Findings, check_folder
from shm_engine.coordinator import Coordinator, Options
from shm_engine.recovery import ProgressLine, RecoveryReport
from shm_engine.segments import default_map_size

__all__ = ["repair"]

MAX_CLIENTS: Final = 16
BUFFERED: Final = 2
KEYS_SHOWN: Final = 10


@dataclass(slots=True)
class Dropped:
    """Commits that can be read in the log, but not be kept: something before them is missing."""

    commits: int = 0
    operations: int = 0
    first_version: int = 0
    last_version: int = 0
    keys: list[str] = field(default_factory=list)


def repair(path: str, *, yes: bool, map_size: int | None, as_json: bool) -> int:
    """Asks, repairs, and says what was dropped."""
    folder = database_folder(path)
    with condition_of(folder) as condition:
        if condition.is_in_use:
            raise CommandError(f"{path} is {condition.text()}; close it everywhere, then repair it")
        unsaved = condition.unsaved
    findings = check_folder(folder)
    if findings.is_sound:
        return _nothing_to_do(folder, findings, as_json)
    headless = _headless(folder, findings)
    if not as_json:
        _say_plan(folder, findings, headless, unsaved)
    if not ask(f"Repair {folder}?", yes):
        raise CommandError("nothing was changed")
    started = time.monotonic()
    if headless:
        _make_headers(folder, headless)
        findings.version = check_folder(folder).version
    dropped = _dropped(folder, findings)
    report, checkpoint = _repair(folder, map_size)
    seconds = time.monotonic() - started
    if as_json:
        json_line(_as_json(folder, findings, dropped, report, checkpoint, seconds), indent=2)
    else:
        _say_done(folder, dropped, report, checkpoint, seconds)
    return 0


def _nothing_to_do(folder: Path, findings: Findings, as_json: bool) -> int:
    if as_json:
        json_line({"path": str(folder), "repaired": False, "version": findings.version})
    else:
        upto = f"up to version {findings.version:,}"
        say(f"nothing to repair: all files of {folder} are sound, {upto}")
    return 0


def _dropped(folder: Path, findings: Findings) -> Dropped:
    """What the log still shows above the version that is kept."""
    dropped = Dropped()
    names: dict[str, None] = {}
    for version in files.log_versions(folder):
        name = files.log_name(version)
        log = files.read_log_file(folder / name, name, version)
        for frame in log.frames_behind(0, findings.version):
            dropped.commits += 1
            dropped.operations += len(frame.operations)
            dropped.first_version = min(dropped.first_version or frame.version, frame.version)
            dropped.last_version = max(dropped.last_version, frame.version)
            for _, _, key, _ in frame.operations:
                names[key[17:-1].decode("utf-8", "backslashreplace")] = None
    dropped.keys = list(names)
    return dropped


def _headless(folder: Path, findings: Findings) -> list[files.LogFile]:
    """Log files whose header is damaged, and nothing else: their name says what it said."""
    found = []
    reached = {0} | {
        sound.last_version
        for sound in findings.files
        if sound.state == "sound" and sound.file.startswith("checkpoint")
    }
    for version in files.log_versions(folder):
        name = files.log_name(version)
        log = files.read_log_file(folder / name, name, version)
        scan = log.scan()
        if log.verdict == "damaged" and scan.frames and max(reached) >= version - 1:
            found.append(log)
        if log.verdict == "sound" or log in found:
            reached.add(scan.last_version)
    return found


def _make_headers(folder: Path, headless: list[files.LogFile]) -> None:
    """Writes the headers; the damaged ones are kept beside what the recovery will put aside."""
    with files.folder_descriptor(folder) as descriptor:
        database_id = identity_of_files(descriptor, salvage=True) or os.urandom(16)
    number = 1
    while (folder / f"damaged-{number}").exists():
        number += 1
    aside = folder / f"damaged-{number}"
    aside.mkdir(mode=0o700)
    versions = files.log_versions(folder)
    for log in headless:
        place = versions.index(log.first_version)
        header = make_log_header(
            database_id, log.first_version, versions[place - 1] if place else 0
        )
        with open(folder / log.name, "r+b") as file:
            (aside / f"{log.first_version:020}.wal.header").write_bytes(file.read(len(header)))
            file.seek(0)
            file.write(header)
            file.flush()
            os.fsync(file.fileno())


def _repair(folder: Path, map_size: int | None) -> tuple[RecoveryReport, dict[str, int]]:
    options = Options(
        map_size or default_map_size(),
        MAX_CLIENTS,
        BUFFERED,
        flush_interval_ms=100,
        max_pending_writes=1000,
    )
    line = ProgressLine(f"repairing {folder}")
    try:
        coordinator = Coordinator(folder, options, line.show, salvage=True)
        figures = coordinator.repair()
    finally:
        line.end()
    if figures is None:
        raise CommandError(f"{folder} was opened meanwhile; nothing was changed")
    assert coordinator.recovery is not None
    return coordinator.recovery, figures


# -- what is said -----------------------------------------------------------------------------


def _say_plan(
    folder: Path, findings: Findings, headless: list[files.LogFile], unsaved: int
) -> None:
    for damage in findings.damage:
        say(f"damaged: {damage.file} at byte {damage.offset}: {damage.reason}")
    kept = f"up to version {findings.version:,}" if findings.version else "nothing"
    if findings.lost_blocks:
        kept += f", without {count(findings.lost_blocks, 'block')} of the checkpoint"
    if headless:
        for log in headless:
            commits = count(log.scan().frames, "commit")
            say(f"makes the header of {log.name} again: the {commits} behind it are sound")
    else:
        say(f"keeps {kept}; {_dropped_text(_dropped(folder, findings))}")
    if unsaved:
        say(
            f"first the {count(unsaved, 'commit')} that killed processes left in shared memory are "
            f"written to the log"
        )
    say(f"what is not kept goes to {folder}/damaged-<n>/")


def _dropped_text(dropped: Dropped) -> str:
    if not dropped.commits:
        return "no commit can be read behind the damage"
    shown = ", ".join(printable(name) for name in dropped.keys[:KEYS_SHOWN])
    more = len(dropped.keys) - KEYS_SHOWN
    return (
        f"drops {count(dropped.commits, 'commit')} that can still be read (versions "
        f"{dropped.first_version:,} to {dropped.last_version:,}, "
        f"{count(dropped.operations, 'write')} to {count(len(dropped.keys), 'key')}: "
        f"{shown}{f' and {more:,} more' if more > 0 else ''})"
    )


def _say_done(
    folder: Path,
    dropped: Dropped,
    report: RecoveryReport,
    checkpoint: dict[str, int],
    seconds: float,
) -> None:
    say(
        f"repaired in {seconds_text(seconds)}: version {report.last_version:,}, "
        f"{count(report.keys, 'key')}; checkpoint {bytes_text(checkpoint['size'])}"
    )
    if report.lost_blocks:
        say(f"dropped {count(report.lost_blocks, 'block')} of the damaged checkpoint")
    if dropped.commits:
        say(
            f"dropped {count(dropped.commits, 'commit')}, versions {dropped.first_version:,} to "
            f"{dropped.last_version:,}"
        )
    if report.aside:
        aside = folder / report.aside
        say(f"put aside: {count(report.aside_files, 'file')} in {aside}")
        for log in sorted(aside.glob("*.wal")):
            say(f"  shm-engine dump {log}")


def _as_json(
    folder: Path,
    findings: Findings,
    dropped: Dropped,
    report: RecoveryReport,
    checkpoint: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    return {
        "path": str(folder),
        "repaired": True,
        "version": report.last_version,
        "keys": report.keys,
        "damage": [
            {"file": damage.file, "offset": damage.offset, "reason": damage.reason}
            for damage in findings.damage
        ],
        "dropped": {
            "commits": dropped.commits,
            "operations": dropped.operations,
            "first_version": dropped.first_version,
            "last_version": dropped.last_version,
            "keys": dropped.keys,
            "blocks": report.lost_blocks,
        },
        "aside": str(folder / report.aside) if report.aside else None,
        "aside_files": report.aside_files,
        "checkpoint": checkpoint,
        "seconds": round(seconds, 3),
    }
