"""shm_engine - a transactional state store for AI agents, shared by all processes of one machine.

The names below are loaded when they are first used, so that importing the package is quick.

>>> import shm_engine
>>> from shm_engine import Database, KVStore
>>> with Database.ephemeral() as db:
...     KVStore(db).put("default", "greeting", "hello")
1
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shm_engine import errors as errors
    from shm_engine._core import RunId as RunId
    from shm_engine.database import Database as Database
    from shm_engine.durability import Durability as Durability
    from shm_engine.metrics import DatabaseMetrics as DatabaseMetrics
    from shm_engine.primitives.kv import KVStore as KVStore
    from shm_engine.primitives.trace_store import TraceStore as TraceStore
    from shm_engine.retention import RetentionPolicy as RetentionPolicy
    from shm_engine.traces import Custom as Custom
    from shm_engine.traces import Decision as Decision
    from shm_engine.traces import ErrorTrace as ErrorTrace
    from shm_engine.traces import Query as Query
    from shm_engine.traces import Thought as Thought
    from shm_engine.traces import ToolCall as ToolCall
    from shm_engine.traces import Trace as Trace
    from shm_engine.traces import TraceOptions as TraceOptions
    from shm_engine.traces import TraceTree as TraceTree
    from shm_engine.traces import TraceType as TraceType
    from shm_engine.transaction import Snapshot as Snapshot
    from shm_engine.transaction import Transaction as Transaction
    from shm_engine.versions import Version as Version
    from shm_engine.versions import Versioned as Versioned

_HOMES = {
    "Custom": "shm_engine.traces",
    "Database": "shm_engine.database",
    "DatabaseMetrics": "shm_engine.metrics",
    "Decision": "shm_engine.traces",
    "Durability": "shm_engine.durability",
    "ErrorTrace": "shm_engine.traces",
    "KVStore": "shm_engine.primitives.kv",
    "Query": "shm_engine.traces",
    "RetentionPolicy": "shm_engine.retention",
    "RunId": "shm_engine._core",
    "Snapshot": "shm_engine.transaction",
    "Thought": "shm_engine.traces",
    "ToolCall": "shm_engine.traces",
    "Trace": "shm_engine.traces",
    "TraceOptions": "shm_engine.traces",
    "TraceStore": "shm_engine.primitives.trace_store",
    "TraceTree": "shm_engine.traces",
    "TraceType": "shm_engine.traces",
    "Transaction": "shm_engine.transaction",
    "Version": "shm_engine.versions",
    "Versioned": "shm_engine.versions",
}

__all__ = [
    "Custom",
    "Database",
    "DatabaseMetrics",
    "Decision",
    "Durability",
    "ErrorTrace",
    "KVStore",
    "Query",
    "RetentionPolicy",
    "RunId",
    "Snapshot",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceOptions",
    "TraceStore",
    "TraceTree",
    "TraceType",
    "Transaction",
    "Version",
    "Versioned",
    "errors",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("shm_engine.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'shm_engine' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
