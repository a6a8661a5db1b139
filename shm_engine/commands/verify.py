"""verify.py - `shm-engine verify`: reads every byte of a database's files and changes none.

Why:        damage should be found on a quiet day and not at the next open. Every checksum of every
            file is computed, also of what a recovery would not need; then the core goes the way of
            a recovery (chains of versions, torn tail or damage) without a store.
                 closed   everything is judged
                 open     what was durable when the command began; what is written meanwhile is
                          looked at again, for a moment's picture of it may be torn
Used by:    cli.py
Errors:     exit code 1 with file, offset and reason; a torn tail is no damage, and reported
Cost:       two reads of each log file, one or two of each checkpoint
"""

from __future__ import annotations

import errno
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from shm_engine import errors
from shm_engine._core import check_checkpoint, check_files
from shm_engine.commands import files
from shm_engine.commands.condition import Condition, condition_of, database_folder
from shm_engine.commands.terminal import (
    EXIT_FAILED,
    bytes_text,
    columns,
    count,
    json_line,
    make_console,
    say_error,
)
from shm_engine.recovery import ProgressLine

__all__ = ["Findings", "check_folder", "verify"]

TRIES: Final = 5
PAUSE_S: Final = 0.2
SHORT_NAMES_BELOW: Final = 84


@dataclass(slots=True)
class FileFindings:
    """One file: what it holds, and where it is damaged."""

    file: str
    bytes: int
    first_version: int = 0
    last_version: int = 0
    commits: int = 0
    keys: int = 0
    records: int = 0
    state: str = "sound"
    offset: int | None = None
    reason: str = ""


@dataclass(slots=True)
class Damage:
    """Where and why bytes are not what they should be."""

    file: str
    offset: int
    reason: str


@dataclass(slots=True)
class Findings:
    """What a check of a folder found.

    Attributes:
        version: The newest version that a recovery, or after damage a repair, comes to.
        opens: Whether the database opens as it is: damage may be in what is not needed.
        torn: The torn tail, "" without one, where it begins, and its bytes.
        durable: Of an open database: what was checked goes up to this version.
    """

    version: int = 0
    opens: bool = True
    files: list[FileFindings] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    torn_file: str = ""
    torn_offset: int = 0
    torn_bytes: int = 0
    durable: int | None = None
    lost_blocks: int = 0

    @property
    def is_sound(self) -> bool:
        """No damage anywhere."""
        return not self.damage

    def add(self, file: str, offset: int, reason: str) -> None:
        """Notes damage, each place once."""
        if all((known.file, known.offset) != (file, offset) for known in self.damage):
            self.damage.append(Damage(file, offset, reason))


def verify(path: str, *, as_json: bool) -> int:
    """Checks the folder and says what was found."""
    folder = database_folder(path)
    with condition_of(folder) as condition:
        findings = _check(folder, condition)
        unsaved, text, state = condition.unsaved, condition.text(), condition.state
    if as_json:
        json_line(_as_json(folder, state, unsaved, findings), indent=2)
    else:
        _print(folder, text, unsaved, findings)
    return 0 if findings.is_sound else EXIT_FAILED


def _as_json(folder: Path, state: str, unsaved: int, findings: Findings) -> dict[str, Any]:
    fields = asdict(findings)
    torn = {name: fields.pop(f"torn_{name}") for name in ("file", "offset", "bytes")}
    return {
        "path": str(folder),
        "state": state,
        "ok": findings.is_sound,
        "torn_tail": torn if torn["file"] else None,
        "unsaved_commits": unsaved,
    } | fields


# -- the check --------------------------------------------------------------------------------


def _check(folder: Path, condition: Condition) -> Findings:
    """Of a database in use, whatever does not hold is looked at again."""
    durable: int | None = None
    if condition.is_in_use:
        logged = condition.store is not None and condition.store.is_logged()
        durable = condition.store.figures()["durable_version"] if condition.store and logged else 0
    for attempt in range(TRIES):
        try:
            findings = check_folder(folder, durable)
        except FileNotFoundError:
            findings = None  # a checkpoint has just made it superfluous
        except errors.IoError as error:
            if getattr(error, "errno", None) != errno.ENOENT:
                raise
            findings = None
        if findings is not None and findings.is_sound:
            return findings
        if durable is None:  # closed: unless it was opened meanwhile
            with condition_of(folder) as now:
                if findings is not None and not now.is_in_use:
                    return findings
            durable = 0
        if attempt < TRIES - 1:
            time.sleep(PAUSE_S)
    if findings is None:
        raise errors.IoError(
            f"The files of {folder} change faster than they can be read; try again."
        )
    return findings


def check_folder(folder: Path, durable: int | None = None) -> Findings:
    """Every file by itself, then all of them as a recovery reads them.

    Args:
        durable: The database is in use: what lies above this version may be half written.
    """
    findings = Findings(durable=durable)
    progress = ProgressLine(f"checking {folder}")
    try:
        with files.folder_descriptor(folder) as descriptor:
            for version in files.checkpoint_versions(folder):
                findings.files.append(_check_checkpoint(descriptor, version, progress))
            _check_logs(folder, findings)
            _check_as_recovery(descriptor, findings, progress)
    finally:
        progress.end()
    for found in findings.files:
        if found.offset is not None:
            findings.add(found.file, found.offset, found.reason)
    return findings


def _check_checkpoint(descriptor: int, version: int, progress: ProgressLine) -> FileFindings:
    figures = check_checkpoint(descriptor, version, progress.show)
    found = FileFindings(
        files.checkpoint_name(version),
        figures["size"],
        last_version=version,
        keys=figures["keys"],
        records=figures["records"],
    )
    if damage := figures["damage"]:
        found.state, found.offset, found.reason = "damaged", damage["offset"], damage["reason"]
    return found


def _check_logs(folder: Path, findings: Findings) -> None:
    """The frames of each log file; damage is noted only where no recovery looks: in a file all of
    whose commits a checkpoint holds."""
    covered = max(
        (found.last_version for found in findings.files if found.offset is None), default=0
    )
    versions = files.log_versions(folder)
    for number, version in enumerate(versions):
        name = files.log_name(version)
        log = files.read_log_file(folder / name, name, version)
        found = FileFindings(name, len(log.content), version, log.previous_version)
        findings.files.append(found)
        if log.verdict != "sound":
            found.state = "not begun" if log.verdict == "unmade" else f"header: {log.verdict}"
            continue
        scan = log.scan()
        found.commits, found.last_version = scan.frames, scan.last_version
        following = versions[number + 1] if number + 1 < len(versions) else None
        if following is not None and following - 1 <= covered:
            _look_behind(log, scan.end, found)


def _look_behind(log: files.LogFile, end: int, found: FileFindings) -> None:
    for frame in log.frames_behind(end, found.last_version):
        if frame.synced_version > found.last_version:
            found.state, found.offset = "damaged", end
            found.reason = (
                f"the frames end here at version {found.last_version:,}, but the one at byte "
                f"{frame.offset} says that {frame.synced_version:,} was synced"
            )
            return


def _check_as_recovery(descriptor: int, findings: Findings, progress: ProgressLine) -> None:
    report = check_files(descriptor, progress.show)
    if not report["opens"]:
        damage = report["damage"]
        report = check_files(descriptor, progress.show, salvage=True)
        findings.opens = False
        findings.lost_blocks = report["lost_blocks"]
        if findings.durable is None or report["last_version"] < findings.durable:
            damage = damage or report["damage"]
            findings.add(
                damage.get("file", "wal"),
                damage.get("offset", 0),
                damage.get("reason", "unreadable"),
            )
    elif findings.durable is not None and report["last_version"] < findings.durable:
        findings.add(
            "wal",
            0,
            f"the files end at version {report['last_version']:,}, which was not the last "
            f"durable one, {findings.durable:,}",
        )
    findings.version = report["last_version"]
    if report["skipped_checkpoint"] and (damage := report["damage"]):
        findings.add(damage["file"], damage["offset"], damage["reason"])
    if report["cut_file"] and findings.durable is None and findings.opens:
        findings.torn_file = report["cut_file"]
        findings.torn_offset, findings.torn_bytes = report["cut_offset"], report["cut_bytes"]


# -- what people see --------------------------------------------------------------------------


def _print(folder: Path, text: str, unsaved: int, findings: Findings) -> None:
    from rich.text import Text

    console = make_console()
    console.print(Text(str(folder), style="bold"))
    console.print(Text(f"  {text}"))
    short = console.is_terminal and console.width < SHORT_NAMES_BELOW
    damaged = {damage.file for damage in findings.damage}
    rows = []
    for found in findings.files:
        bad = found.file in damaged
        style = "bold red" if bad else "green" if found.state == "sound" else "yellow"
        rows.append(
            (
                (_short(found.file) if short else found.file, "cyan"),
                bytes_text(found.bytes),
                ("DAMAGED" if bad else found.state, style),
                _content(found),
            )
        )
    if rows:
        console.print(columns(console, rows, right=1))
    for damage in findings.damage:
        say_error(f"{damage.file} is damaged at byte {damage.offset}: {damage.reason}")
    for line, style in _verdict(folder, unsaved, findings):
        console.print(Text(line, style=style))


def _short(name: str) -> str:
    folder, _, rest = name.partition("/")
    digits, _, suffix = rest.partition(".")
    return f"{folder}/..{digits.lstrip('0') or '0'}.{suffix}"


def _content(found: FileFindings) -> str:
    if found.state.startswith("header"):
        return "its header cannot be read"
    if found.offset is not None and found.file.startswith("checkpoint"):
        return found.reason
    if found.keys or found.records or found.file.startswith("checkpoint"):
        return f"{count(found.keys, 'key')}, {count(found.records, 'record')}"
    if not found.commits:
        return "no commits"
    return f"{count(found.commits, 'commit')}, {found.first_version:,} to {found.last_version:,}"


def _verdict(folder: Path, unsaved: int, findings: Findings) -> list[tuple[str, str]]:
    lines = []
    if findings.torn_file:
        text = (
            f"torn tail: {count(findings.torn_bytes, 'byte')} of {findings.torn_file} from byte "
            f"{findings.torn_offset} on were never acknowledged as durable; the next open cuts "
            f"them off"
        )
        lines.append((text, "yellow"))
    if unsaved:
        text = (
            f"{count(unsaved, 'commit')} more, or a part of them, are in shared memory alone; the "
            f"next open saves them"
        )
        lines.append((text, "yellow"))
    if not findings.files:
        return [*lines, ("nothing to verify: there is no log and no checkpoint", "yellow")]
    total = bytes_text(sum(found.bytes for found in findings.files))
    if findings.is_sound:
        upto = f"up to version {findings.durable:,}, which was durable" if findings.durable else ""
        newest = upto or f"the newest version is {findings.version:,}"
        number = count(len(findings.files), "file")
        return [
            *lines,
            (f"sound: all checksums and chains of {number} ({total}), {newest}", "green"),
        ]
    if findings.opens:
        return [
            *lines,
            (f"It opens without what is damaged, at version {findings.version:,}.", "bold"),
        ]
    kept = f"everything up to version {findings.version:,}" if findings.version else "nothing"
    if any(found.state.startswith("header") for found in findings.files):
        kept = "what is sound"
    elif findings.lost_blocks:
        kept += f" but {count(findings.lost_blocks, 'block')} of the checkpoint"
    advice = f"`shm-engine repair {folder}` keeps {kept}, and puts the rest aside."
    return [*lines, (f"It does not open. {advice}", "bold")]
