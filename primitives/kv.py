"""kv.py - KVStore, keys and values of a run.

Why:        the plainest primitive, and the measure of all others: one call is one read in mapped
            memory or one commit.
Used by:    any thread of any process that has the database open; holds no state of its own
Invariants: every method is atomic; reads see the newest commit; a write is visible to every process
            when the call returns
Errors:     those of each method; an error leaves nothing changed and the store usable
Cost:       get and put about 0.2 us beyond encoding the value; list and scan their answer
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shm_engine import errors, keys, values
from shm_engine._core import RunId, plain_pairs
from shm_engine.primitives.arguments import as_count, as_list, engine_of
from shm_engine.versions import U64_MAX, Version, Versioned

if TYPE_CHECKING:
    from shm_engine.database import Database
    from shm_engine.transaction import Transaction

__all__ = ["KVStore"]

T = TypeVar("T")
_ABSENT: Final = object()
TAG: Final = keys.TAG_KV


class KVStore:
    """Keys and values, by run. Make as many as you like: `KVStore(db)`.

    A key is a str of 1 to 1024 UTF-8 bytes without NUL that does not start with ``_strata/``; else
    InvalidKey (WrongType if it is no str). A value is None, bool, int (64 bits signed), float, str,
    bytes, list or dict with str keys, nested up to 128 deep; else WrongType, ConstraintViolation or
    SerializationError, naming the place. `run` is a RunId or its string; it need not be registered.
    Writes to a registered run that is not active raise RunError; a store without memory raises
    StorageFull; a closed handle Closed.

    >>> from shm_engine import Database, KVStore
    >>> with Database.ephemeral() as db:
    ...     kv = KVStore(db)
    ...     run = db.begin_run()
    ...     _ = kv.put(run, "user:1", {"name": "Ada", "logins": 1})
    ...     kv.get(run, "user:1")["name"], kv.exists(run, "user:2"), kv.incr(run, "visits")
    ('Ada', False, 1)
    """

    __slots__ = ("_engine", "_get", "_put", "database")

    def __init__(self, database: Database) -> None:
        engine = engine_of(database)
        self.database = database
        self._engine = engine
        self._get = engine.get
        self._put = engine.put

    # -- one key ------------------------------------------------------------------------------

    def get(self, run: RunId | str, key: str) -> Any:
        """The value of `key`, or None if there is none (`exists` tells a stored None apart)."""
        return self._get(run, TAG, key)

    def get_versioned(self, run: RunId | str, key: str) -> Versioned[Any] | None:
        """The value with its version and commit time, or None. The version serves `cas`."""
        found = self._engine.get_record(run, TAG, key)
        if found is None:
            return None
        return Versioned(found[0], Version.Txn(found[1]), found[2])

    def put(self, run: RunId | str, key: str, value: Any) -> int:
        """Stores `value` under `key`, replacing what was there; returns the commit's version."""
        return self._put(run, TAG, key, value)

    def put_with_ttl(self, run: RunId | str, key: str, value: Any, ttl: timedelta | float) -> int:
        """As `put`, for `ttl` (a timedelta or seconds): then the key is gone, to the microsecond.

        A later `put` makes it permanent again; `incr` keeps the time. Raises ConstraintViolation if
        `ttl` is 0 or less.
        """
        left = values.as_timedelta(ttl, "ttl")
        if left <= timedelta(0):
            raise errors.ConstraintViolation(
                "ttl_not_positive", f"ttl is {left}; give a time longer than 0."
            )
        microseconds = left // timedelta(microseconds=1)
        expires_us = min(time.time_ns() // 1000 + max(1, microseconds), 2**63 - 1)
        return self._put(run, TAG, key, value, expires_us)

    def ttl(self, run: RunId | str, key: str) -> timedelta | None:
        """What is left of the key's time; None if the key is missing or has no end."""
        found = self._engine.get_record(run, TAG, key)
        if found is None or found[3] == 0:
            return None
        return timedelta(microseconds=max(0, found[3] - time.time_ns() // 1000))

    def delete(self, run: RunId | str, key: str) -> bool:
        """Removes `key`; whether it existed. Its history stays, with the deletion in it."""
        return self._engine.delete(run, TAG, key)

    def exists(self, run: RunId | str, key: str) -> bool:
        """Whether `key` has a value, None included."""
        return self._engine.get_record(run, TAG, key) is not None

    def incr(self, run: RunId | str, key: str, delta: int = 1) -> int:
        """Adds `delta` to the int under `key` (missing: 0) and returns the sum.

        Atomic over all processes, without retries: the addition happens inside the commit.
        Raises WrongType if the value or `delta` is no int, ConstraintViolation if the sum leaves
        the 64-bit signed range; the value stays.
        """
        if type(delta) is not int:
            raise errors.WrongType("int", values.class_name(delta))
        if not -(2**63) <= delta < 2**63:
            raise errors.ConstraintViolation(
                "int_out_of_range", f"delta is {values.printable(delta)}; it must fit 64 bits."
            )
        return self._engine.increment(run, TAG, key, delta)

    def cas(self, run: RunId | str, key: str, expected: Version | int | None, value: Any) -> bool:
        """Stores `value` if `key` is at version `expected`; None: if it has no value.

        Of any number of processes that try with the same version exactly one gets True. A False
        changes nothing. Raises WrongType if `expected` is no Txn version.
        """
        # To the engine 0 means absent; no value is at version 0, and none will ever be at U64_MAX.
        version = 0 if expected is None else _txn_number(expected) or U64_MAX
        return self._engine.compare_and_set(run, TAG, key, version, value) is not None

    # -- many keys ----------------------------------------------------------------------------

    def get_many(self, run: RunId | str, names: Iterable[str]) -> list[Any]:
        """The values of the keys in their order, None where missing, all from one snapshot."""
        return self._many(run, as_list(names), None)

    def get_many_map(self, run: RunId | str, names: Iterable[str]) -> dict[str, Any]:
        """The same as a dict without the missing ones."""
        asked = as_list(names)
        found = zip(asked, self._many(run, asked, _ABSENT), strict=True)
        return {name: value for name, value in found if value is not _ABSENT}

    def _many(self, run: RunId | str, names: list[str], default: object) -> list[Any]:
        pin = self._engine.open_pin()
        try:
            return self._engine.get_many(run, TAG, names, pin, default)
        finally:
            pin.close()

    def mset(self, run: RunId | str, items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> int:
        """Stores all items in one commit, or none; returns its version.

        Of equal keys the last wins. At most 1,048,576 items and 64 MiB encoded, else
        ConstraintViolation. No items: nothing is committed and the newest version comes back.
        """
        return self._engine.put_many(run, TAG, *_names_and_values(items))

    def mdelete(self, run: RunId | str, names: Iterable[str]) -> int:
        """Removes all of the keys in one commit; how many of them existed."""
        asked = as_list(names)
        for name in asked:
            _check_kind(name)
        return self._engine.delete_many(run, TAG, asked)

    # -- ranges -------------------------------------------------------------------------------

    def list(self, run: RunId | str, prefix: str | None = None) -> list[str]:
        """The keys with the prefix (all without), in the order of their UTF-8 bytes."""
        return self._scan(run, "" if prefix is None else prefix, None, None, False)[0]

    def list_with_values(
        self, run: RunId | str, prefix: str | None = None
    ) -> builtins.list[tuple[str, Any]]:
        """The same with their values, all from one snapshot."""
        return self.scan(run, "" if prefix is None else prefix)

    def scan(
        self,
        run: RunId | str,
        prefix: str = "",
        limit: int | None = None,
        after: str | None = None,
    ) -> builtins.list[tuple[str, Any]]:
        """At most `limit` (key, value) in order, from the first key greater than `after` on.

        Page by giving the last key of a page as `after` of the next; each page is one snapshot.
        """
        names, found = self._scan(run, prefix, after, limit, True)
        return list(zip(names, found or (), strict=True))

    def _scan(
        self,
        run: RunId | str,
        prefix: str,
        after: str | None,
        limit: int | None,
        with_values: bool,
    ) -> tuple[builtins.list[str], builtins.list[Any] | None]:
        pin = self._engine.open_pin()
        try:
            return self._engine.scan(run, TAG, prefix, pin, after, as_count(limit), with_values)
        finally:
            pin.close()

    # -- the past -----------------------------------------------------------------------------

    def get_at(self, run: RunId | str, key: str, version: Version | int) -> Versioned[Any]:
        """The value as it was at `version`: the newest one at or before it.

        Raises:
            KeyNotFound: the key never existed, or was deleted at that version.
            HistoryTrimmed: the key's kept history begins after `version`.
            WrongType: `version` is no Txn version.
        """
        number = _txn_number(version)
        found = self._engine.get_at(run, TAG, key, number)
        if isinstance(found, int):
            if found == 0:
                raise errors.KeyNotFound(f"The key {key!r} has no history.")
            raise errors.HistoryTrimmed(Version.Txn(number), Version.Txn(found))
        value, at, timestamp_us, is_tombstone = found
        if is_tombstone:
            raise errors.KeyNotFound(f"The key {key!r} was deleted at version {at}.")
        return Versioned(value, Version.Txn(at), timestamp_us)

    def history(
        self,
        run: RunId | str,
        key: str,
        limit: int | None = None,
        before: Version | int | None = None,
    ) -> builtins.list[Versioned[Any]]:
        """The key's kept versions, newest first, deletions included (is_tombstone, value None).

        At most `limit`, only versions below `before`. How much is kept is the run's retention
        (`Database.set_retention`); a missing key gives an empty list.
        """
        bound = None if before is None else _txn_number(before)
        found, _ = self._engine.history(run, TAG, key, as_count(limit), bound)
        return [
            Versioned(value, Version.Txn(at), timestamp_us, is_tombstone)
            for value, at, timestamp_us, is_tombstone in found
        ]

    # -- transactions -------------------------------------------------------------------------

    def transaction(self, run: RunId | str, fn: Callable[[Transaction], T]) -> T:
        """Calls ``fn(txn)`` once and commits; `Database.transaction` has the options."""
        return self.database.transaction(run, fn)


def _txn_number(version: Version | int) -> int:
    if type(version) is int:
        return Version(version).value
    if isinstance(version, Version) and version.is_txn():
        return version.as_u64()
    raise errors.WrongType(
        "Version.Txn",
        values.class_name(version),
        f"A key's version is Version.Txn(n) or n, not {version!r}.",
    )


def _names_and_values(
    items: Mapping[str, Any] | Iterable[tuple[str, Any]],
) -> tuple[list[str], list[Any]]:
    """Keys, each once, and their values; of equal keys the last."""
    if isinstance(items, Mapping):
        found = dict(items)
        return list(found), list(found.values())
    pairs: list[Any] = as_list(items, "items")
    plain = plain_pairs(pairs)
    if plain is not None:
        return plain
    found = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            kind = values.class_name(pair)
            raise errors.WrongType(
                "pairs of key and value",
                kind,
                f"The items are a dict, or pairs (key, value); one of them is a {kind}.",
            )
        _check_kind(pair[0])
        found[pair[0]] = pair[1]
    return list(found), list(found.values())


def _check_kind(name: str) -> None:
    """Refuses what is no str in the engine's words, before a dict finds it unhashable."""
    if type(name) is not str:
        kind = values.class_name(name)
        raise errors.WrongType("str", kind, f"A key is a str, not {kind}.")
