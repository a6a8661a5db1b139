"""story.py - the story of one file: the event and the trace tree that its completion leaves.

Why:        what became of a file must be told once and not get lost, whatever is killed. So both
            are written by the transaction that completes the file's task:
                 event   surveyed | skipped    {file, worker}
                 traces  Thought "survey <path>"          tags ["file", package or suffix]
                         └── ToolCall "parse"             arguments, result, duration
                             └── Error                    of a skipped file
Used by:    agents write it, the audit reads it; any thread
Invariants: a path is bytes in event and metadata, for not every name is UTF-8, and printable text
            where people read it
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Final

from shm_engine.demo.survey import FileFacts, Outcome, printable
from shm_engine.traces import NAME_BYTES_MAX, ErrorTrace, Thought, ToolCall
from shm_engine.transaction import Transaction

SURVEYED: Final = "surveyed"
SKIPPED: Final = "skipped"
"""The types of the event that each file has one of, in the survey's log."""

STARTED: Final = "started"
CLAIMED: Final = "claimed"
FINISHED: Final = "finished"
"""The types of the events in an agent's own log."""

TRACES_OF_SURVEYED: Final = 2
TRACES_OF_SKIPPED: Final = 3


@dataclass(frozen=True, slots=True)
class Parse:
    """One file's parse: what came out, how large the file is (None: unknown), how long it took."""

    outcome: Outcome
    size: int | None
    duration_ms: int


def event_type(outcome: Outcome) -> str:
    """The type of the event that such a file has."""
    return SURVEYED if isinstance(outcome, FileFacts) else SKIPPED


def size_of(outcome: Outcome, path: str) -> int | None:
    """The file's size in bytes; None where it cannot even be asked for."""
    if isinstance(outcome, FileFacts):
        return outcome.size
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return None


def tell(txn: Transaction, task: dict[str, Any], parse: Parse) -> None:
    """Add the file's event and its traces to the transaction that completes its task."""
    outcome, shown = parse.outcome, printable(os.fsdecode(task["path"]))
    worker = task["owner"]
    txn.event_append(event_type(outcome), {"file": task["path"], "worker": worker})
    thought = txn.trace_record(
        Thought(f"survey {shown}"),
        metadata={"file": task["path"], "worker": worker, "attempt": task["attempt"]},
        tags=["file", tag_of(shown)],
    )
    result = None
    if isinstance(outcome, FileFacts):
        result = {
            "functions": outcome.functions,
            "classes": outcome.classes,
            "imports": outcome.import_count,
        }
    arguments = {"path": shown, "bytes": parse.size}
    call = txn.trace_record_child(thought, ToolCall("parse", arguments, result, parse.duration_ms))
    if not isinstance(outcome, FileFacts):
        txn.trace_record_child(call, ErrorTrace(outcome.kind, outcome.reason, recoverable=False))


def tag_of(shown: str) -> str:
    """What a file is found by: the outermost folder that it lies in, else its suffix.

    >>> tag_of("asyncio/events.py"), tag_of("ast.py"), len(tag_of("x" * 999 + "/a.py"))
    ('asyncio', '.py', 256)
    """
    folder, separator, _ = shown.partition(os.sep)
    if not separator:
        return ".py"
    return folder.encode()[:NAME_BYTES_MAX].decode(errors="ignore")
