"""condition.py - who has a database open, seen without joining it.

Why:        what a command may do to a folder depends on who is there:
                 open        a coordinator serves
                 recovering  one reads the files, or repairs them, and will serve or leave
                 taken over  the coordinator died, handles live: one of them starts its successor
                 left        every process was killed, or the disk failed: segments hold what the
                             files may not
                 foreign     segments that cannot be looked into: another container or build
                 closed      the files are all there is
Used by:    the commands; one thread. The attachment is no member: it keeps nothing open.
Shared:     coordinator.json, the segments' header and sequencer (read)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from shm_engine import coordinator, errors
from shm_engine.commands.files import checkpoint_versions, log_versions
from shm_engine.commands.terminal import EXIT_USAGE, CommandError
from shm_engine.durability import KINDS, Durability
from shm_engine.segments import INFO_FILE

if TYPE_CHECKING:
    from shm_engine._core import Store

__all__ = [
    "CLOSED",
    "FOREIGN",
    "LEFT",
    "OPEN",
    "RECOVERING",
    "TAKEN_OVER",
    "Condition",
    "condition_of",
    "database_folder",
    "durability_of",
]

OPEN: Final = "open"
RECOVERING: Final = "recovering"
TAKEN_OVER: Final = "taken over"
LEFT: Final = "left"
FOREIGN: Final = "foreign"
CLOSED: Final = "closed"


@dataclass(slots=True)
class Condition:
    """A folder's state; a context manager that lets go of the segments."""

    state: str
    info: coordinator.Info | None = None
    store: Store | None = None
    reason: str = ""

    @property
    def is_in_use(self) -> bool:
        """Whether a living process has it open, as far as can be told."""
        return self.state not in (CLOSED, LEFT)

    @property
    def unsaved(self) -> int:
        """Commits that left segments hold and that are not known to be on the disk."""
        if self.state != LEFT or self.store is None or not self.store.has_log():
            return 0
        figures = self.store.figures()
        missing: int = figures["version"] - figures["durable_version"]
        return max(0, missing)

    def __enter__(self) -> Condition:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.store is not None:
            self.store.close()

    def text(self) -> str:
        """For people."""
        pid = self.info.pid if self.info is not None else 0
        if self.state == LEFT and self.store is not None and self.store.failure():
            return "closed; its log could not be written to the end"
        return {
            OPEN: f"open, served by process {pid}",
            RECOVERING: f"being recovered by process {pid}",
            TAKEN_OVER: f"open; coordinator {pid} died, a client starts its successor",
            LEFT: "closed; every process that had it open was killed",
            FOREIGN: f"open elsewhere: {self.reason}",
            CLOSED: "closed",
        }[self.state]


def condition_of(folder: Path) -> Condition:
    """Looks once; a moment later it may be another."""
    info = coordinator.read_info(folder)
    if info is None:
        return Condition(CLOSED)
    alive = info.is_alive()
    if not info.is_serving:
        return Condition(RECOVERING if alive else CLOSED, info)
    if not info.segments.exist():
        return Condition(OPEN if alive else CLOSED, info)  # alive: just leaving
    try:
        store = info.segments.attach()
    except errors.Closed:
        return Condition(CLOSED, info)
    except (errors.Unavailable, errors.FormatMismatch) as error:
        return Condition(FOREIGN, info, reason=str(error))
    if alive:
        return Condition(OPEN, info, store)
    return Condition(TAKEN_OVER if store.members() > 0 else LEFT, info, store)


def durability_of(store: Store) -> Durability:
    """The mode of a database."""
    kind, interval_ms, writes = store.durability()
    return Durability(KINDS[kind], interval_ms, writes)


def database_folder(path: str) -> Path:
    """The folder of an existing database. Raises CommandError (2) for anything else."""
    folder = Path(path).expanduser()
    try:
        if not folder.exists():
            raise CommandError(f"there is no folder {path}", EXIT_USAGE)
        if not folder.is_dir():
            raise CommandError(f"{path} is not a folder; a database is a folder", EXIT_USAGE)
        folder = folder.absolute()
        names = {entry.name for entry in folder.iterdir()}
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"{path!r} names no folder: {error}", EXIT_USAGE) from None
    if not (
        {INFO_FILE, coordinator.LOCK_FILE} & names
        or log_versions(folder)
        or checkpoint_versions(folder)
    ):
        raise CommandError(
            f"{path} holds no database: there is no log, no checkpoint and no {INFO_FILE} in it",
            EXIT_USAGE,
        )
    return folder
