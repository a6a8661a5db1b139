"""key_text.py - a key as people read it.

Why:        names of users are text, but the keys that primitives make themselves hold numbers,
            times and ids in bytes. Damaged ones, and those of other builds, are shown in hex.
Used by:    dump.py
Shared:     FORMAT.md, section 5
"""

from __future__ import annotations

from typing import Final

from shm_engine import keys
from shm_engine._core import RunId
from shm_engine.commands.terminal import time_text
from shm_engine.events import HEAD, sequence_of
from shm_engine.trace_ids import text_of

__all__ = ["key_text"]

TYPES: Final = {
    keys.TAG_KV: "kv",
    keys.TAG_EVENT: "event",
    keys.TAG_STATE: "state",
    keys.TAG_TRACE: "trace",
    keys.TAG_RUN: "run",
    keys.TAG_JSON: "json",
    keys.TAG_VECTOR: "vector",
}
RUN_SIZE: Final = 16
UUID_SIZE: Final = 16
TIME_SIZE: Final = 8


def key_text(key: bytes) -> tuple[str, str, str]:
    """Run, type and name of a whole key.

    >>> key_text(bytes(16) + b"\\x01user:1\\x00")
    ('default', 'kv', 'user:1')
    >>> key_text(bytes(16) + b"\\x02\\x01tstarted\\x00" + (7).to_bytes(8, "big"))
    ('default', 'event', 'type started #7')
    """
    run, tag, name = str(RunId.from_bytes(key[:RUN_SIZE])), key[RUN_SIZE], key[RUN_SIZE + 1 :]
    made = {keys.TAG_EVENT: _event, keys.TAG_TRACE: _trace, keys.TAG_RUN: _run}.get(tag)
    if made is None:
        text = name[:-1].decode("utf-8", "backslashreplace")
    else:
        try:
            text = made(name)
        except (ValueError, IndexError, KeyError, OverflowError):
            text = name.hex()
    return run, TYPES.get(tag, f"type {tag}"), text


def _event(name: bytes) -> str:
    if name == HEAD:
        return "head"
    if name[:1] == keys.ENTRY:
        return f"#{sequence_of(name)}"
    if name[:2] != keys.BOOKKEEPING + b"t":
        raise ValueError(name)
    return f"type {name[2:-9].decode()} #{sequence_of(name)}"


def _trace(name: bytes) -> str:
    if name[:1] == keys.ENTRY:
        return text_of(name[1:])
    kind, rest = name[1:2], name[2:]
    if kind == b"n":
        return "count"
    if kind == b"i":
        return f"id {rest[:-1].decode()}"
    end = text_of(rest[-UUID_SIZE:])
    if kind == b"p":
        parent = rest[:UUID_SIZE]
        return f"child of {text_of(parent)} {end}" if any(parent) else f"root {end}"
    what = {b"y": "type", b"g": "tag"}[kind]
    return f"{what} {rest[: -UUID_SIZE - 1].decode()} {end}"


def _run(name: bytes) -> str:
    if name == keys.RUN_RECORD:
        return ""
    kind, rest = name[1:2], name[2:]
    if kind == b"c":
        return f"count {keys.RUN_STATUS_NAMES[rest[0]]}"
    run = RunId.from_bytes(rest[-RUN_SIZE:])
    if kind == b"e":
        return f"to erase {run}"
    start, created = rest[: -RUN_SIZE - TIME_SIZE], rest[-RUN_SIZE - TIME_SIZE : -RUN_SIZE]
    if kind == b"t":
        return f"created {time_text(int.from_bytes(created, 'big'))} {run}"
    if kind == b"s":
        return f"status {keys.RUN_STATUS_NAMES[start[0]]} {run}"
    if kind == b"p":
        return f"parent {RunId.from_bytes(start)} {run}"
    if kind != b"g":
        raise ValueError(name)
    return f"tag {start[:-1].decode()} {run}"
