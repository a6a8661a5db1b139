"""doctor.py - `shm-engine doctor`: shared memory and coordinator.json that killed processes left.

Why:        segments outlive their processes. Opens clear what they find, but a machine on which
            nothing is opened any more keeps them, and nobody sees whose they are.
                 in use         a living process has it open, or is making it
                 left over      nobody lives in it, and nothing in it is wanted: cleared
                 unsaved log    of a folder: cleared by saving it there, or by --discard-unsaved
                 unknown        of another build or container: left alone
Used by:    cli.py
Invariants: what holds commits that the files may lack goes only after they were saved, or on a
            request that says so
Errors:     exit code 1 if something is left over when it ends
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from shm_engine import coordinator, errors
from shm_engine._core import process_alive, process_identity
from shm_engine.commands.condition import database_folder
from shm_engine.commands.terminal import (
    EXIT_FAILED,
    ask,
    bytes_text,
    columns,
    count,
    json_line,
    make_console,
    say,
    say_error,
)
from shm_engine.segments import FOLDER, INFO_FILE, PREFIX, Segments

__all__ = ["doctor"]

IN_USE: Final = "in use"
LEFT_OVER: Final = "left over"
UNSAVED: Final = "unsaved log"
UNKNOWN: Final = "unknown"
STYLES: Final = {IN_USE: "green", LEFT_OVER: "yellow", UNSAVED: "bold red", UNKNOWN: "dim"}


@dataclass(slots=True)
class Finding:
    """One pair of segments, or a coordinator.json."""

    name: str
    state: str
    maker_pid: int
    is_kept: bool
    bytes: int
    handles: int = 0
    folder: str = ""
    unsaved_commits: int = 0
    text: str = ""
    cleared: bool = False

    @property
    def is_left(self) -> bool:
        """Whether it could be cleared, and was not."""
        return self.state in (LEFT_OVER, UNSAVED) and not self.cleared


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What the user asked for."""

    clear: bool = False
    yes: bool = False
    discard_unsaved: bool = False
    as_json: bool = False


def doctor(path: str | None, options: DoctorOptions) -> int:
    """Looks at this user's segments, or at what one folder left; clears it if asked to."""
    if path is None:
        findings = [_examine(segments) for segments in _segments_of_user()]
    else:
        findings = _of_folder(database_folder(path))
    if not options.as_json:
        _print(findings, path)
    wanted = [found for found in findings if found.is_left]
    clear = options.clear or options.yes or options.discard_unsaved
    if wanted and clear and ask(_question(wanted, options), options.yes):
        for found in wanted:
            _clear(found, options.discard_unsaved)
            if not options.as_json:
                _say_cleared(found)
    left = [found for found in findings if found.is_left]
    if options.as_json:
        json_line({"ok": not left, "found": [asdict(found) for found in findings]}, indent=2)
    elif left and not clear:
        say(_advice(left))
    return EXIT_FAILED if left else 0


# -- what there is ----------------------------------------------------------------------------


def _segments_of_user() -> list[Segments]:
    """All of this user, whole or half made, in the order of their names."""
    stems = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(FOLDER):
            parts = name.split(".")
            if len(parts) == 5 and parts[:2] == [PREFIX, str(os.getuid())] and parts[4] in "cd":
                stems.add("/" + name[:-2])
    return [Segments(f"{stem}.c", f"{stem}.d") for stem in sorted(stems)]


def _taken(name: str) -> int:
    """Bytes of memory; the segments are sparse."""
    try:
        return os.stat(FOLDER + name).st_blocks * 512
    except FileNotFoundError:
        return 0


def _examine(segments: Segments) -> Finding:
    pid_text = segments.control.split(".")[2]
    pid = int(pid_text) if pid_text.isdigit() else 0
    alive = process_identity(pid) != 0
    found = Finding(
        segments.control[1:-2],
        LEFT_OVER,
        pid,
        alive,
        _taken(segments.control) + _taken(segments.data),
    )
    if not segments.exist():
        found.state = IN_USE if alive else LEFT_OVER
        found.text = "half of a pair"
        return found
    try:
        store = segments.attach()
    except errors.Closed:
        found.state, found.text = IN_USE, "just going"
        return found
    except errors.Unavailable:
        found.state, found.text = UNKNOWN, "made in another container"
        return found
    except errors.Error:
        unfinished = _is_unfinished(segments)
        found.text = "never finished" if unfinished else "of another build"
        found.state = (IN_USE if alive else LEFT_OVER) if unfinished else UNKNOWN
        return found
    try:
        found.handles = store.members()
        found.folder = store.folder()
        keeper = store.keeper()
        found.is_kept = process_alive(keeper) if keeper else alive
        if found.handles or found.is_kept:
            found.state = IN_USE
        elif store.has_log() and not store.is_saved():
            figures = store.figures()
            found.state = UNSAVED
            found.unsaved_commits = figures["version"] - figures["durable_version"]
            found.text = _why_not_saved(segments, found.folder)
    finally:
        store.close()
    return found


def _why_not_saved(segments: Segments, folder: str) -> str:
    """What keeps the log of left segments from being saved, "" if nothing does."""
    if not folder:
        return "its folder's path is too long to be known: only the next open there saves it"
    if not os.path.isdir(folder):
        return "its folder is not there (is it mounted?): --discard-unsaved removes it"
    info = coordinator.read_info(Path(folder))
    if info is None or info.segments != segments:
        return "its folder names it no more and may have gone on: --discard-unsaved removes it"
    return ""


def _is_unfinished(segments: Segments) -> bool:
    with open(FOLDER + segments.control, "rb") as control:
        return not any(control.read(8))


def _of_folder(folder: Path) -> list[Finding]:
    """The coordinator.json of a dead coordinator, and the segments that it names."""
    info = coordinator.read_info(folder)
    name = str(folder / INFO_FILE)
    if info is None:
        if os.path.exists(name):
            return [Finding(name, LEFT_OVER, 0, False, 0, folder=str(folder), text="cut off")]
        return []
    alive = info.is_alive()
    state = IN_USE if alive else LEFT_OVER
    found = Finding(name, state, info.pid, alive, 0, folder=str(folder))
    if info.is_serving and info.segments.exist():
        inside = _examine(info.segments)
        found.bytes, found.handles = inside.bytes, inside.handles
        found.unsaved_commits, found.text = inside.unsaved_commits, inside.text
        if not alive:
            found.state = inside.state
    return [found]


# -- clearing ---------------------------------------------------------------------------------


def _question(wanted: list[Finding], options: DoctorOptions) -> str:
    unsaved = sum(found.state == UNSAVED for found in wanted)
    if unsaved and options.discard_unsaved:
        return f"Clear {len(wanted)}, and LOSE the commits that {unsaved} of them hold?"
    if unsaved:
        return f"Clear {len(wanted)}, after the unsaved log of {unsaved} is saved?"
    return f"Clear {len(wanted)}?"


def _clear(found: Finding, discard: bool) -> None:
    """Removes it, or says in its text why it stays."""
    try:
        if found.name.startswith("/"):
            _clear_folder(found, Path(found.folder), discard)
        elif found.state == UNSAVED and not discard:
            _save(found)
        else:
            _remove(found)
    except (errors.Error, OSError) as error:
        found.text = str(error)


def _pair(name: str) -> Segments:
    return Segments(f"/{name}.c", f"/{name}.d")


def _remove(found: Finding) -> None:
    """Unless somebody has joined it since it was looked at."""
    segments = _pair(found.name)
    now = _examine(segments)
    if now.state != found.state:
        found.state, found.text = now.state, "has changed meanwhile"
        return
    segments.unlink()
    found.cleared = True


def _save(found: Finding) -> None:
    """Has the recovery of its folder write the ring to the log."""
    folder = Path(found.folder)
    segments = _pair(found.name)
    if found.text:
        return
    coordinator.start(folder, None)
    found.cleared = not segments.exist()


def _clear_folder(found: Finding, folder: Path, discard: bool) -> None:
    info = coordinator.read_info(folder)
    if info is not None and info.is_serving and info.segments.exist():
        if found.state == UNSAVED and discard:
            info.segments.unlink()
        else:
            coordinator.start(folder, None)  # saves the ring; stays only if somebody lives
    if info is None:
        (folder / INFO_FILE).unlink(missing_ok=True)
    else:
        coordinator.cleanup(folder)
    found.cleared = not (folder / INFO_FILE).exists()


# -- what people see --------------------------------------------------------------------------


def _print(findings: list[Finding], path: str | None) -> None:
    from rich.text import Text

    if not findings:
        where = "no segments of yours" if path is None else f"nothing that {path} has left"
        say(f"{where}: all is well")
        return
    console = make_console()
    for found in findings:
        console.print(
            Text(found.name, style="bold"),
            Text(found.state, style=STYLES[found.state]),
            sep="  ",
        )
        console.print(columns(console, [(line,) for line in _lines(found)]))


def _lines(found: Finding) -> list[str]:
    maker = f"made by process {found.maker_pid}" if found.maker_pid else "its maker is unknown"
    maker += f", {'looked after' if found.is_kept else 'which nobody looks after any more'}"
    lines = [f"{maker}; {bytes_text(found.bytes)}, {count(found.handles, 'handle')}"]
    if found.folder:
        lines.append(f"database of {found.folder}")
    elif not found.text:
        lines.append("in memory, without a folder or with one that keeps no log")
    if found.unsaved_commits:
        commits = count(found.unsaved_commits, "commit")
        saved = "" if found.text else "; the next open saves them"
        lines.append(f"{commits} that its files may lack{saved}")
    if found.text:
        lines.append(found.text)
    return lines


def _say_cleared(found: Finding) -> None:
    if found.cleared:
        saved = found.state == UNSAVED and found.unsaved_commits
        say(f"cleared {found.name}{f': its log was saved to {found.folder}' if saved else ''}")
    else:
        why = found.text or "its coordinator does not let it go (is that process stopped?)"
        say_error(f"{found.name} stays: {why}")


def _advice(left: list[Finding]) -> str:
    unsaved = sum(found.state == UNSAVED and not found.text for found in left)
    text = f"{count(len(left), 'thing')} left over; --clear removes "
    text += "it" if len(left) == 1 else "them"
    return f"{text}, {unsaved} after its log was saved" if unsaved else text
