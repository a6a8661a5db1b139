"""labels.py - names of parametrized cases that are the same in every test process."""

from __future__ import annotations

import re

__all__ = ["label"]


def label(value: object) -> str:
    """The value's repr without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
