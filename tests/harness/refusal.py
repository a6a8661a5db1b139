"""refusal.py - what every refused call has to leave behind: the store as it was, and usable.

Why:        an error is only half of the claim; the other half is that nothing was written, nothing
            stayed open, and the next call works. One helper asserts both, so that no test forgets.
Used by:    tests/unit
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shm_engine import Database, KVStore, RunId, errors

__all__ = ["assert_usable", "contents", "refused"]

PROBE = RunId("77777777-7777-4777-8777-777777777777")


def contents(db: Database, *runs: RunId) -> tuple[Any, ...]:
    """All that a call could have changed: keys, values, versions, open snapshots, commits.

    The version of the whole database is left out: a commit that failed half-way may use one up.
    """
    kv = KVStore(db)
    metrics = db.metrics()
    listed = [
        [(key, repr(value), kv.get_versioned(run, key)) for key, value in kv.scan(run)]
        for run in runs
    ]
    counted = (metrics.keys, metrics.transactions_committed, metrics.snapshots)
    return listed, counted


def assert_usable(db: Database) -> None:
    """Writes, reads, deletes and commits a transaction, in a run of its own."""
    kv = KVStore(db)
    version = kv.put(PROBE, "probe", {"n": 1})
    assert kv.get(PROBE, "probe") == {"n": 1}
    assert db.transaction(PROBE, lambda txn: txn.kv_delete("probe"))
    assert not kv.exists(PROBE, "probe")
    assert kv.get_at(PROBE, "probe", version).value == {"n": 1}


@contextmanager
def refused(
    db: Database,
    kind: type[errors.Error],
    match: str | None = None,
    *,
    runs: tuple[RunId, ...] = (RunId.DEFAULT,),
) -> Iterator[pytest.ExceptionInfo[errors.Error]]:
    """The body raises exactly `kind`, changes nothing in `runs`, and leaves the store usable."""
    before = contents(db, *runs)
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert type(caught.value) is kind
    assert caught.value.message
    after = contents(db, *runs)
    assert after == before, f"{before} has become {after}"
    assert_usable(db)
