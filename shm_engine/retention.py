"""retention.py - RetentionPolicy, how much of its history a run keeps.

Why:        every write adds a version; whether old ones are worth their memory only the user knows.
            The policy itself is enforced in the core, where versions are trimmed.
Used by:    both; any thread; instances are immutable
Invariants: P1 RetentionPolicy.of(p.kind, p.amount) == p, so two plain fields store any policy
            (test_retention)
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from shm_engine.errors import ConstraintViolation, WrongType
from shm_engine.values import INT_MAX, as_timedelta, class_name, printable

__all__ = ["RetentionPolicy"]

_MICROSECOND = timedelta(microseconds=1)


class RetentionPolicy:
    """How many old versions of each key a run keeps; the latest always stays.

    `RetentionPolicy.KeepAll` keeps every one, `RetentionPolicy.KeepLast(n)` the newest n of each
    key, `RetentionPolicy.KeepFor(duration)` those that were current within the duration.
    KeepLast and KeepFor are subclasses, KeepAll is the one instance of its own.

    Attributes:
        kind: "KeepAll", "KeepLast" or "KeepFor".
        amount: The count of versions, or the duration in microseconds; 0 for KeepAll.

    Immutable, hashable, picklable; equal where both fields agree.

    >>> RetentionPolicy.KeepLast(100)
    RetentionPolicy.KeepLast(100)
    >>> match RetentionPolicy.KeepFor(60):
    ...     case RetentionPolicy.KeepFor(duration):
    ...         print(duration)
    0:01:00
    """

    __slots__ = ("amount",)

    amount: int

    KeepAll: ClassVar[_KeepAll]
    KeepLast: ClassVar[type[_KeepLast]]
    KeepFor: ClassVar[type[_KeepFor]]

    kind: ClassVar[str] = ""

    def __init__(self) -> None:
        if not self.kind:
            raise WrongType(
                "a policy",
                "RetentionPolicy",
                "a policy is RetentionPolicy.KeepAll, KeepLast(n) or KeepFor(duration)",
            )
        object.__setattr__(self, "amount", 0)

    @staticmethod
    def of(kind: str, amount: int = 0) -> RetentionPolicy:
        """The policy with these two fields, as a store keeps them.

        Raises:
            ConstraintViolation: no policy has the name, or the amount is not allowed for it.
            WrongType: the amount is not an int.

        >>> RetentionPolicy.of("KeepLast", 3)
        RetentionPolicy.KeepLast(3)
        """
        if type(amount) is not int:
            raise WrongType("int", class_name(amount))
        if kind == "KeepLast":
            return _KeepLast(amount)
        if kind == "KeepFor":
            return _KeepFor(_MICROSECOND * max(0, min(amount, INT_MAX + 1)))
        if kind == "KeepAll" and amount == 0:
            return RetentionPolicy.KeepAll
        raise ConstraintViolation(
            "retention_unknown",
            f"retention {kind!r} with {printable(amount)} is unknown; "
            "use KeepAll, KeepLast or KeepFor",
        )

    def as_str(self) -> str:
        """The name of the policy, without its amount.

        >>> RetentionPolicy.KeepAll.as_str()
        'KeepAll'
        """
        return self.kind

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a RetentionPolicy is immutable, {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return self.kind == other.kind and self.amount == other.amount

    def __hash__(self) -> int:
        return hash((self.kind, self.amount))

    def __reduce__(self) -> str | tuple[Any, ...]:
        return RetentionPolicy.of, (self.kind, self.amount)


class _KeepAll(RetentionPolicy):
    """Keeps every version."""

    __slots__ = ()
    kind = "KeepAll"

    def __call__(self) -> _KeepAll:
        return self

    def __repr__(self) -> str:
        return "RetentionPolicy.KeepAll"


class _KeepLast(RetentionPolicy):
    """Keeps the newest n versions of each key.

    Args:
        n: How many, from 1.

    Raises:
        WrongType: n is not an int.
        ConstraintViolation: n is below 1, or beyond 64 bits.
    """

    __match_args__ = ("n",)
    __slots__ = ()
    kind = "KeepLast"

    def __init__(self, n: int) -> None:
        if type(n) is not int:
            raise WrongType(
                "int", class_name(n), f"KeepLast got {class_name(n)}; give a count of versions"
            )
        if not 1 <= n <= INT_MAX:
            raise ConstraintViolation(
                "retention_count",
                f"KeepLast got {printable(n)}; give 1 or more, the latest always stays",
            )
        object.__setattr__(self, "amount", n)

    @property
    def n(self) -> int:
        """How many versions are kept."""
        return self.amount

    def __repr__(self) -> str:
        return f"RetentionPolicy.KeepLast({self.n})"


class _KeepFor(RetentionPolicy):
    """Keeps the versions that were current within a duration.

    Args:
        duration: A timedelta or seconds, above 0; kept to the microsecond.

    Raises:
        WrongType: the duration is neither a timedelta nor a number.
        ConstraintViolation: it is 0, negative, NaN or infinite.
    """

    __match_args__ = ("duration",)
    __slots__ = ()
    kind = "KeepFor"

    def __init__(self, duration: timedelta | float) -> None:
        amount = as_timedelta(duration) // _MICROSECOND
        if not 1 <= amount <= INT_MAX:
            raise ConstraintViolation(
                "retention_duration",
                f"KeepFor got {duration!r}; give more than 0 and less than 292,000 years",
            )
        object.__setattr__(self, "amount", amount)

    @property
    def duration(self) -> timedelta:
        """How long versions are kept."""
        return timedelta(microseconds=self.amount)

    def __repr__(self) -> str:
        return f"RetentionPolicy.KeepFor({self.duration!r})"


for _policy in (_KeepLast, _KeepFor):
    _policy.__name__ = _policy.kind
    _policy.__qualname__ = f"RetentionPolicy.{_policy.kind}"
    setattr(RetentionPolicy, _policy.kind, _policy)
RetentionPolicy.KeepAll = _KeepAll()
