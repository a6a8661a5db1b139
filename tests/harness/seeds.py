"""seeds.py - random choices that a failure can repeat.

Why:        moments and victims are drawn at random, and a failure has to say how to draw the same
            again. The order in which processes run stays the system's, so a replay makes a failure
            likely, not certain: repeat it.
Used by:    the fixture `rng` of tests/procs
"""

from __future__ import annotations

import os
import random
import secrets
from typing import Final

__all__ = ["SEED_VARIABLE", "seeded"]

SEED_VARIABLE: Final = "SHM_ENGINE_SEED"


def seeded(test: str) -> random.Random:
    """A generator whose seed is printed with the command that replays `test`."""
    seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"seed {seed}; replay: {SEED_VARIABLE}={seed} .venv/bin/python -m pytest '{test}'")
    return random.Random(seed)
