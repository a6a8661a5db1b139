"""arguments.py - arguments that all primitives take, checked in one way and with one wording.

Used by:    the primitives; any thread; holds no state
Errors:     WrongType and ConstraintViolation, naming the argument
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from shm_engine import errors, values

if TYPE_CHECKING:
    from shm_engine.engine import Engine

__all__ = ["as_count", "as_int", "as_list", "as_seconds", "engine_of"]

T = TypeVar("T")


def engine_of(database: Any) -> Engine:
    """The engine of an open database."""
    engine: Engine | None = getattr(database, "engine", None)
    if engine is None:
        raise errors.WrongType("Database", values.class_name(database))
    return engine


def as_int(name: str, value: Any) -> int:
    """The value if it is an int, and no bool."""
    if type(value) is not int:
        kind = values.class_name(value)
        raise errors.WrongType("int", kind, f"{name} is a {kind}; give an int.")
    return value


def as_count(limit: Any) -> int | None:
    """A limit as the engine takes it: None, or 0 and more."""
    if limit is None:
        return None
    if type(limit) is not int:
        kind = values.class_name(limit)
        raise errors.WrongType(
            "int or None", kind, f"limit is a {kind}; give an int, or None for no limit."
        )
    if limit < 0:
        raise errors.ConstraintViolation(
            "limit_negative", f"limit is {values.printable(limit)}; give 0 or more, None for all."
        )
    return min(limit, values.INT_MAX)


def as_list(names: Iterable[T], what: str = "keys") -> list[T]:
    """The items; a single str is refused, or its characters would be taken for them."""
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        kind = values.class_name(names)
        raise errors.WrongType(
            f"an iterable of {what}", kind, f"The {what} come as a list or the like, not as {kind}."
        )
    return list(names)


def as_seconds(name: str, value: timedelta | float | None) -> float | None:
    """A time span in seconds, None for no bound."""
    if value is None:
        return None
    seconds = values.as_timedelta(value, name).total_seconds()
    if math.isnan(seconds) or seconds < 0:
        raise errors.ConstraintViolation(
            f"{name}_negative", f"{name} is {value!r}; give 0 or more seconds, None for no bound."
        )
    return seconds
