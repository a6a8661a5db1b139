"""durability.py - Durability, what a commit survives once it is acknowledged.

Why:        the choice between speed and safety belongs to the user, is made once for a database,
            and is compared when a second process joins.
Used by:    both; any thread; instances are immutable

    mode           log      fsync                       process death        power cut
    in_memory      none     none                        kept while one       lost
                                                        process has it open
    no_durability  written  never                       kept                 what the OS wrote
    buffered       written  every interval, or so       kept                 all but the last
                            many commits                                     interval
    strict         written  before the acknowledgement  kept                 kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shm_engine.errors import ConstraintViolation, WrongType
from shm_engine.values import class_name, printable

__all__ = ["Durability"]

KINDS: Final = ("in_memory", "no_durability", "buffered", "strict")
U32_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Durability:
    """What a commit survives once it is acknowledged; made by one of the four class methods.

    Attributes:
        kind: "in_memory", "no_durability", "buffered" or "strict".
        flush_interval_ms: For "buffered": the longest time between two syncs; else 0.
        max_pending_writes: For "buffered": the most commits between two syncs; else 0.

    Immutable, hashable, picklable; equal where all three agree.

    >>> Durability.buffered() == Durability.buffered(flush_interval_ms=100)
    True
    >>> Durability.strict().kind
    'strict'
    """

    kind: str
    flush_interval_ms: int = 0
    max_pending_writes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConstraintViolation(
                "durability_unknown",
                f"durability {self.kind!r} is unknown; use one of {', '.join(KINDS)}",
            )
        for name in ("flush_interval_ms", "max_pending_writes"):
            limit = getattr(self, name)
            if type(limit) is not int:
                raise WrongType(
                    "int", class_name(limit), f"{name} is {class_name(limit)}; give an int"
                )
            if self.kind != "buffered" and limit != 0:
                raise ConstraintViolation(
                    "durability_limit", f"{name} has a meaning for buffered alone; leave it out"
                )
            if self.kind == "buffered" and not 1 <= limit <= U32_MAX:
                raise ConstraintViolation(
                    "durability_limit", f"{name} is {printable(limit)}; give 1 to {U32_MAX}"
                )

    @classmethod
    def in_memory(cls) -> Durability:
        """Nothing is written to disk; the data lives while one process has the database open.

        >>> Durability.in_memory()
        Durability.in_memory()
        """
        return cls("in_memory")

    @classmethod
    def no_durability(cls) -> Durability:
        """Written to the log and never synced: it survives processes, not a power cut.

        >>> Durability.no_durability()
        Durability.no_durability()
        """
        return cls("no_durability")

    @classmethod
    def buffered(cls, flush_interval_ms: int = 100, max_pending_writes: int = 1000) -> Durability:
        """Written to the log, and synced after an interval or a number of commits.

        A power cut loses at most what came after the last sync; the death of a process nothing.

        Args:
            flush_interval_ms: The longest time between two syncs, from 1.
            max_pending_writes: The most commits between two syncs, from 1.

        Raises:
            WrongType, ConstraintViolation: a limit is not an int, or below 1.

        >>> Durability.buffered(flush_interval_ms=20)
        Durability.buffered(flush_interval_ms=20, max_pending_writes=1000)
        """
        return cls("buffered", flush_interval_ms, max_pending_writes)

    @classmethod
    def strict(cls) -> Durability:
        """Synced before each acknowledgement, one sync for all who wait: nothing is ever lost.

        >>> Durability.strict()
        Durability.strict()
        """
        return cls("strict")

    @classmethod
    def of(cls, mode: Durability | str) -> Durability:
        """The mode itself, or the one of that name, in either spelling, with default limits.

        Raises:
            WrongType: it is neither a Durability nor a str.
            ConstraintViolation: no mode has the name.

        >>> Durability.of("InMemory") == Durability.of("in_memory") == Durability.in_memory()
        True
        """
        if isinstance(mode, Durability):
            return mode
        if not isinstance(mode, str):
            raise WrongType("Durability or str", class_name(mode))
        plain = mode.replace("_", "").lower()
        kind = next((kind for kind in KINDS if kind.replace("_", "") == plain), mode)
        return cls.buffered() if kind == "buffered" else cls(kind)

    def as_str(self) -> str:
        """The name of the mode, without its limits.

        >>> Durability.buffered(20, 5).as_str()
        'buffered'
        """
        return self.kind

    def __str__(self) -> str:
        return self.kind

    def __repr__(self) -> str:
        limits = (
            f"flush_interval_ms={self.flush_interval_ms}, "
            f"max_pending_writes={self.max_pending_writes}"
        )
        return f"Durability.{self.kind}({limits if self.kind == 'buffered' else ''})"
