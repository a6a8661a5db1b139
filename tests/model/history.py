"""history.py - the model: a dict with its whole history, and what may have been trimmed of it.

Why:        the store is compared with something too plain to be wrong. It keeps every version of
            every key; where retention lets old ones go, it knows which may be missing and which
            must be there, for what is still there has to be right.
Used by:    tests/model
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from shm_engine import errors

__all__ = ["Entry", "RunModel", "TransactionModel", "added", "ordered"]

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
DELETED: Final = object()


def ordered(names: Iterable[str]) -> list[str]:
    """The names in the order of their UTF-8 bytes."""
    return sorted(names, key=lambda name: name.encode())


def added(base: Any, delta: int) -> int:
    """What an increment gives; the errors are those of the store."""
    if type(base) is not int:
        raise errors.WrongType("int", type(base).__name__)
    if not INT_MIN <= base + delta <= INT_MAX:
        raise errors.ConstraintViolation("int_out_of_range")
    return base + delta


@dataclass(frozen=True)
class Entry:
    """One version of a key.

    Attributes:
        expired: It had run out when it was written: it is in the history and nowhere else.
        has_end: It runs out in a far future.
    """

    version: int
    value: Any
    is_tombstone: bool = False
    expired: bool = False
    has_end: bool = False


@dataclass
class RunModel:
    """All versions of all keys of a run, oldest first.

    The coordinator may at any time put a deletion on top of what has run out. The model learns of
    it when it is shown a history, and until then allows for it.

    Attributes:
        keep: How many versions of a key are kept for certain, None for all.
        floor: For each key, how many of its oldest entries may be missing.
        cut: For each key, how many were found missing: they never come back.
    """

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    keep: int | None = None
    floor: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)

    def write(self, key: str, entry: Entry) -> None:
        """Adds a version."""
        self.entries.setdefault(key, []).append(entry)
        self._let_go(key)

    def retain(self, keep: int | None) -> None:
        """Changes the retention, from now on and for what there is."""
        self.keep = keep
        for key in self.entries:
            self._let_go(key)

    def _let_go(self, key: str) -> None:
        if self.keep is None:
            return
        found = self.entries[key]
        buried = sum(entry.expired for entry in found)
        beyond = len(found) + buried - self.keep
        if self.keep == 1 and (found[-1].is_tombstone or found[-1].expired):
            beyond = len(found)  # a deletion that nothing needs is forgotten with its key
        self.floor[key] = max(self.floor.get(key, 0), min(beyond, len(found)))

    def head(self, key: str) -> Entry | None:
        """The newest version, deletions included."""
        found = self.entries.get(key)
        return found[-1] if found else None

    def live(self, key: str) -> Entry | None:
        """The newest version if it can be read."""
        head = self.head(key)
        return None if head is None or head.is_tombstone or head.expired else head

    def value(self, key: str) -> Any:
        """What `get` gives."""
        found = self.live(key)
        return None if found is None else found.value

    def visible(self) -> dict[str, Any]:
        """All keys and values as they can be read now, in order."""
        return {key: self.value(key) for key in ordered(self.entries) if self.live(key)}

    def expired(self) -> set[str]:
        """The keys whose newest version had run out: the sweep may put a deletion on top."""
        return {key for key in self.entries if (head := self.head(key)) and head.expired}

    def may_be_gone(self, key: str) -> bool:
        """Whether the store may have forgotten the key altogether."""
        found = self.entries.get(key, [])
        return self.floor.get(key, 0) >= len(found)

    def _bury(self, key: str, found: list[Entry]) -> None:
        """Takes over the deletions that the coordinator put on what had run out."""
        known = self.entries.get(key, [])
        for entry in reversed(found):
            below = [one for one in known if one.version <= entry.version]
            if entry.is_tombstone and below and below[-1].expired:
                known.insert(len(below), entry)
                if len(below) < self.floor.get(key, 0):
                    self.floor[key] += 1
                self._let_go(key)

    def check_history(self, key: str, found: list[Entry]) -> None:
        """Compares with the whole history that the store gave, newest first."""
        self._bury(key, found)
        known = [
            Entry(one.version, one.value, one.is_tombstone) for one in self.entries.get(key, [])
        ]
        expected = known[::-1]
        assert found == expected[: len(found)], f"{key!r}: {found} instead of {expected}"
        missing = len(expected) - len(found)
        assert missing <= self.floor.get(key, 0), f"{missing} versions of {key!r} are gone"
        assert missing >= self.cut.get(key, 0), f"trimmed versions of {key!r} came back"
        self.cut[key] = missing

    def at(self, key: str, version: int) -> tuple[Entry | None, bool]:
        """The newest version at or before, and whether it may be missing by now."""
        for index in reversed(range(len(self.entries.get(key, [])))):
            entry = self.entries[key][index]
            if entry.version <= version:
                return entry, index < self.floor.get(key, 0)
        return None, True


@dataclass
class TransactionModel:
    """A view of one snapshot, own writes over it, and what was read."""

    view: dict[str, Any] = field(repr=False)
    version: int
    serializable: bool
    writes: dict[str, Any] = field(default_factory=dict)
    increments: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    ranges: set[str] = field(default_factory=set)

    def kv_get(self, key: str) -> Any:
        if key in self.writes:
            return None if self.writes[key] is DELETED else self.writes[key]
        self.read.add(key)
        if key in self.increments:
            return added(self.view.get(key, 0), self.increments[key])
        return self.view.get(key)

    def kv_exists(self, key: str) -> bool:
        if key in self.writes:
            return self.writes[key] is not DELETED
        self.read.add(key)
        return key in self.view or key in self.increments

    def kv_put(self, key: str, value: Any) -> None:
        self.increments.pop(key, None)
        self.writes[key] = value

    def kv_delete(self, key: str) -> bool:
        existed = self.kv_exists(key)
        self.increments.pop(key, None)
        self.writes[key] = DELETED
        return existed

    def kv_incr(self, key: str, delta: int) -> None:
        if key in self.writes:
            base = 0 if self.writes[key] is DELETED else self.writes[key]
            self.writes[key] = added(base, delta)
        else:
            self.increments[key] = added(self.increments.get(key, 0), delta)

    def scan_prefix(self, prefix: str) -> Iterator[tuple[str, Any]]:
        self.ranges.add(prefix)
        own = {*self.writes, *self.increments}
        for key in ordered({*self.view, *own}):
            if key.startswith(prefix) and self.writes.get(key) is not DELETED:
                yield key, self.kv_get(key)

    def kv_list(self, prefix: str) -> list[str]:
        return [key for key, _ in self.scan_prefix(prefix)]

    def has_writes(self) -> bool:
        return bool(self.writes or self.increments)

    def changed_since(self, run: RunModel) -> bool:
        """Whether the commit has to conflict."""
        if not self.has_writes():
            return False
        changed = {key for key, found in run.entries.items() if found[-1].version > self.version}
        if changed & self.read:
            return True
        return self.serializable and any(key.startswith(tuple(self.ranges)) for key in changed)

    def may_be_disturbed(self, run: RunModel) -> bool:
        """Whether the sweep may have put a deletion on something expired that was read."""
        expired = run.expired()
        in_range = self.serializable and any(key.startswith(tuple(self.ranges)) for key in expired)
        return self.has_writes() and (in_range or bool(expired & self.read))

    def outcome(self, run: RunModel) -> dict[str, Any]:
        """What the commit leaves under each key (DELETED too); raises what the commit does."""
        result = dict(self.writes)
        for key, delta in self.increments.items():
            live = run.live(key)
            result[key] = added(live.value if live else 0, delta)
        return result
