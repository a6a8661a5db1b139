"""states.py - State, what a state cell holds.

Used by:    state_cell.py, transaction.py; any thread; instances are immutable
Shared:     run | TAG_STATE | name -> [counter, value]; FORMAT.md, "Counted value"
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["State"]


class State(NamedTuple):
    """A cell's value and how often it was written. A tuple with names.

    Attributes:
        value: Any value of the engine.
        version: 1 when the cell was made, 1 more with every write; what `cas` compares.
        updated_at: When that was, milliseconds since 1970.

    >>> State("idle", 1, 0).version
    1
    """

    value: Any
    version: int
    updated_at: int
