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
    from shm_engine.events import ChainVerification as ChainVerification
    from shm_engine.events import Event as Event
    from shm_engine.metrics import DatabaseMetrics as DatabaseMetrics
    from shm_engine.primitives.event_log import EventLog as EventLog
    from shm_engine.primitives.kv import KVStore as KVStore
    from shm_engine.primitives.run_index import RunIndex as RunIndex
    from shm_engine.primitives.state_cell import StateCell as StateCell
    from shm_engine.retention import RetentionPolicy as RetentionPolicy
    from shm_engine.runs import CreateRunOptions as CreateRunOptions
    from shm_engine.runs import RunMetadata as RunMetadata
    from shm_engine.runs import RunQuery as RunQuery
    from shm_engine.runs import RunStats as RunStats
    from shm_engine.runs import RunStatus as RunStatus
    from shm_engine.states import State as State
    from shm_engine.transaction import Snapshot as Snapshot
    from shm_engine.transaction import Transaction as Transaction
    from shm_engine.versions import Version as Version
    from shm_engine.versions import Versioned as Versioned

_HOMES = {
    "ChainVerification": "shm_engine.events",
    "CreateRunOptions": "shm_engine.runs",
    "Database": "shm_engine.database",
    "DatabaseMetrics": "shm_engine.metrics",
    "Durability": "shm_engine.durability",
    "Event": "shm_engine.events",
    "EventLog": "shm_engine.primitives.event_log",
    "KVStore": "shm_engine.primitives.kv",
    "RetentionPolicy": "shm_engine.retention",
    "RunId": "shm_engine._core",
    "RunIndex": "shm_engine.primitives.run_index",
    "RunMetadata": "shm_engine.runs",
    "RunQuery": "shm_engine.runs",
    "RunStats": "shm_engine.runs",
    "RunStatus": "shm_engine.runs",
    "Snapshot": "shm_engine.transaction",
    "State": "shm_engine.states",
    "StateCell": "shm_engine.primitives.state_cell",
    "Transaction": "shm_engine.transaction",
    "Version": "shm_engine.versions",
    "Versioned": "shm_engine.versions",
}

__all__ = [
    "ChainVerification",
    "CreateRunOptions",
    "Database",
    "DatabaseMetrics",
    "Durability",
    "Event",
    "EventLog",
    "KVStore",
    "RetentionPolicy",
    "RunId",
    "RunIndex",
    "RunMetadata",
    "RunQuery",
    "RunStats",
    "RunStatus",
    "Snapshot",
    "State",
    "StateCell",
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
