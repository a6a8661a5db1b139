"""metrics.py - the figures of a whole database.

Used by:    database.py, which fills it from the core's counters; any thread
Cost:       about 10 us, reads alone
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DatabaseMetrics"]


@dataclass(frozen=True, slots=True)
class DatabaseMetrics:
    """Figures of the whole database, all processes together, since it was opened.

    Attributes:
        transactions_committed: Commits, single writes included.
        transactions_aborted: Commits refused by a conflict.
        transactions_active: Snapshots and transactions open now.
        commit_rate: Committed by committed plus aborted; 1.0 before the first.
        operations: Committed plus aborted.
        version: The newest commit.
        durable_version: The newest one known to be on the disk; 0 in memory.
        keys: Keys that have a value (all primitives; run records and entries of indexes too).
        conflicts: The same as transactions_aborted.
        trimmed_versions, pressure_trimmed_versions: How often old history was cut by the run's
            retention, and by the high-water rule.
        recoveries: Deaths in the middle of a commit that were mended.
        reaped_clients: Slots of dead processes that were cleared.
        clients, handles: Threads that use the database, and open handles.
        snapshots: The same as transactions_active.
        arena_used_bytes, arena_allocated_bytes, map_size_bytes: Shared memory in blocks, backed,
            and the bound.
        retired_blocks: Blocks waiting for readers.
        log_bytes: Bytes of log written since the last checkpoint.
        log_ring_bytes: Bytes in the log's ring that may not be written over yet.
        syncs: How often the log was synced.
        checkpoint_version, checkpoint_bytes: Of the newest checkpoint, 0 without one.
        section_update_ns, section_insert_ns: Mean time in the critical section for each operation,
            None unless timing was switched on.
    """

    transactions_committed: int
    transactions_aborted: int
    transactions_active: int
    commit_rate: float
    operations: int
    version: int
    durable_version: int
    keys: int
    conflicts: int
    trimmed_versions: int
    pressure_trimmed_versions: int
    recoveries: int
    reaped_clients: int
    clients: int
    handles: int
    snapshots: int
    arena_used_bytes: int
    arena_allocated_bytes: int
    map_size_bytes: int
    retired_blocks: int
    log_bytes: int
    log_ring_bytes: int
    syncs: int
    checkpoint_version: int
    checkpoint_bytes: int
    section_update_ns: float | None
    section_insert_ns: float | None
