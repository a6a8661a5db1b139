"""versions.py - Version, which names a state of an entity, and Versioned, a value with its version.

Why:        one commit gives one number to all it wrote, but events are found by their position and
            state cells by their own counter. Three kinds of number that must never be mistaken for
            each other are three classes.
Used by:    both; any thread; instances are immutable or never shared
Invariants: N1 versions of different kinds are unequal (test_versions)
            N2 order is total: Txn < Sequence < Counter, then the number (test_versions)
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from shm_engine.errors import ConstraintViolation, WrongType
from shm_engine.values import as_timedelta, class_name, printable

__all__ = ["U64_MAX", "Version", "Versioned"]

T = TypeVar("T")
K = TypeVar("K")

U64_MAX = 2**64 - 1


class Version:
    """The version of an entity: a kind and a number.

    `Version.Txn(n)` is the commit that wrote a key, document, vector or run; `Version.Sequence(n)`
    the position of an event, from 0; `Version.Counter(n)` the count of a state cell's changes,
    from 1. The three are subclasses, so `isinstance` and `match` tell them apart. `Version(n)`
    is `Version.Txn(n)`.

    Args:
        value: The number, 0 to 2**64 - 1.

    Raises:
        WrongType: the number is not exactly an int.
        ConstraintViolation: it is negative or beyond 64 bits.

    Immutable, hashable, picklable, ordered: the kind first (Txn < Sequence < Counter), then the
    number. Versions of different kinds are never equal.

    >>> Version.Txn(7) < Version.Txn(9) < Version.Sequence(0) < Version.Counter(1)
    True
    >>> Version.Txn(7) == Version.Counter(7)
    False
    >>> match Version.Counter(3):
    ...     case Version.Counter(count):
    ...         print("counter", count)
    counter 3
    """

    __match_args__ = ("value",)
    __slots__ = ("value",)

    value: int

    Txn: ClassVar[type[_Txn]]
    Sequence: ClassVar[type[_Sequence]]
    Counter: ClassVar[type[_Counter]]

    kind: ClassVar[str] = "Txn"
    """The name of the kind: "Txn", "Sequence" or "Counter"."""
    _rank: ClassVar[int] = 0

    def __new__(cls, value: int) -> Version:
        if type(value) is not int:
            raise WrongType("int", class_name(value))
        if not 0 <= value <= U64_MAX:
            raise ConstraintViolation(
                "version_out_of_range",
                f"version {printable(value)} does not fit an unsigned 64-bit integer",
            )
        version = object.__new__(_Txn if cls is Version else cls)
        _set_number(version, value)
        return version

    def as_u64(self) -> int:
        """The number alone.

        >>> Version.Sequence(4).as_u64()
        4
        """
        return self.value

    def is_txn(self) -> bool:
        """Whether it is the number of a commit.

        >>> Version.Txn(1).is_txn()
        True
        """
        return self._rank == 0

    def is_sequence(self) -> bool:
        """Whether it is the position of an event.

        >>> Version.Sequence(1).is_sequence()
        True
        """
        return self._rank == 1

    def is_counter(self) -> bool:
        """Whether it is the count of a state cell.

        >>> Version.Counter(1).is_counter()
        True
        """
        return self._rank == 2

    def is_zero(self) -> bool:
        """Whether the number is 0, which as a Txn means "never written".

        >>> Version.Txn(0).is_zero()
        True
        """
        return self.value == 0

    def saturating_increment(self) -> Version:
        """The next version of the same kind; the largest stays what it is.

        >>> Version.Counter(1).saturating_increment()
        Version.Counter(2)
        """
        return self if self.value == U64_MAX else type(self)(self.value + 1)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Version is immutable, {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Version is immutable, {name!r} cannot be deleted")

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return self._rank == other._rank and self.value == other.value

    def __hash__(self) -> int:
        return hash((self._rank, self.value))

    def __lt__(self, other: Version) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return (self._rank, self.value) < (other._rank, other.value)

    def __le__(self, other: Version) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return (self._rank, self.value) <= (other._rank, other.value)

    def __gt__(self, other: Version) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return (self._rank, self.value) > (other._rank, other.value)

    def __ge__(self, other: Version) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return (self._rank, self.value) >= (other._rank, other.value)

    def __repr__(self) -> str:
        return f"Version.{self.kind}({self.value})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value,)


# The one way past __setattr__, kept from the slot itself: Version is made on every versioned read.
_set_number = Version.__dict__["value"].__set__


class _Txn(Version):
    """The number of the commit that wrote a key, document, vector or run."""

    __slots__ = ()
    kind = "Txn"
    _rank = 0


class _Sequence(Version):
    """The position of an event in its run's log, from 0."""

    __slots__ = ()
    kind = "Sequence"
    _rank = 1


class _Counter(Version):
    """How often a state cell was written, from 1."""

    __slots__ = ()
    kind = "Counter"
    _rank = 2


for _kind in (_Txn, _Sequence, _Counter):
    # Pickle finds the class by this name.
    _kind.__name__ = _kind.kind
    _kind.__qualname__ = f"Version.{_kind.kind}"
    setattr(Version, _kind.kind, _kind)


class Versioned(Generic[T]):
    """A value as it was at one version, with the time of the commit that wrote it.

    Attributes:
        value: The value, the caller's own copy; None for a delete.
        version: Its `Version`.
        timestamp: When it was committed, in microseconds since 1970 (UTC).
        is_tombstone: Whether this entry of a history is a delete.

    The `as_` methods return the value if it is of exactly that type, else None; nothing is
    converted. Two are equal if all four fields are. It stays valid after the database is closed.

    >>> entry = Versioned([1, 2], Version.Txn(7), timestamp=1_700_000_000_000_000)
    >>> entry.as_array(), entry.as_int(), entry.is_array()
    ([1, 2], None, True)
    """

    __slots__ = ("is_tombstone", "timestamp", "value", "version")

    value: T
    version: Version
    timestamp: int
    is_tombstone: bool

    def __init__(
        self, value: T, version: Version, timestamp: int, is_tombstone: bool = False
    ) -> None:
        self.value = value
        self.version = version
        self.timestamp = timestamp
        self.is_tombstone = is_tombstone

    def into_value(self) -> T:
        """The value alone.

        >>> Versioned("x", Version.Txn(1), 0).into_value()
        'x'
        """
        return self.value

    def age(self) -> timedelta:
        """How long ago it was committed, by this machine's clock; never negative.

        >>> Versioned("x", Version.Txn(1), timestamp=0).age() > timedelta(days=365 * 50)
        True
        """
        return timedelta(microseconds=max(0, time.time_ns() // 1000 - self.timestamp))

    def is_older_than(self, duration: timedelta | float) -> bool:
        """Whether its age exceeds a duration, a timedelta or seconds.

        >>> Versioned("x", Version.Txn(1), timestamp=0).is_older_than(timedelta(days=1))
        True
        """
        return self.age() > as_timedelta(duration)

    def _only(self, kind: type[K]) -> K | None:
        value: Any = self.value
        return value if type(value) is kind else None

    def as_bool(self) -> bool | None:
        """The value if it is a bool, else None."""
        return self._only(bool)

    def as_int(self) -> int | None:
        """The value if it is an int (a bool is none), else None."""
        return self._only(int)

    def as_float(self) -> float | None:
        """The value if it is a float, else None."""
        return self._only(float)

    def as_str(self) -> str | None:
        """The value if it is a str, else None."""
        return self._only(str)

    def as_bytes(self) -> bytes | None:
        """The value if it is bytes, else None."""
        return self._only(bytes)

    def as_array(self) -> list[Any] | None:
        """The value if it is a list, else None."""
        return self._only(list)

    def as_object(self) -> dict[str, Any] | None:
        """The value if it is a dict, else None."""
        return self._only(dict)

    def is_null(self) -> bool:
        """Whether None was stored; a delete is not."""
        return self.value is None and not self.is_tombstone

    def is_bool(self) -> bool:
        """Whether the value is a bool."""
        return type(self.value) is bool

    def is_int(self) -> bool:
        """Whether the value is an int (a bool is none)."""
        return type(self.value) is int

    def is_float(self) -> bool:
        """Whether the value is a float."""
        return type(self.value) is float

    def is_string(self) -> bool:
        """Whether the value is a str."""
        return type(self.value) is str

    def is_bytes(self) -> bool:
        """Whether the value is bytes."""
        return type(self.value) is bytes

    def is_array(self) -> bool:
        """Whether the value is a list."""
        return type(self.value) is list

    def is_object(self) -> bool:
        """Whether the value is a dict."""
        return type(self.value) is dict

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Versioned):
            return NotImplemented
        return (
            self.version == other.version
            and self.timestamp == other.timestamp
            and self.is_tombstone == other.is_tombstone
            and bool(self.value == other.value)
        )

    # Its value may be a list.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        deleted = ", is_tombstone=True" if self.is_tombstone else ""
        return f"Versioned({self.value!r}, {self.version!r}, timestamp={self.timestamp}{deleted})"
