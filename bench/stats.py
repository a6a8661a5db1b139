"""stats.py - figures and the statistics behind them.

Why:        A single number hides how much it moves. A Figure keeps one sample per round; what is
            reported is the median with the smallest and the largest sample beside it.
Used by:    rounds.py, the single questions, goals.py, table.py, plots.py; pure functions
Errors:     ValueError where there is nothing to compute from
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a name, a unit and one sample per round."""

    key: str
    unit: str
    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"figure {self.key} has no samples")
        if not all(math.isfinite(sample) for sample in self.samples):
            raise ValueError(f"figure {self.key} has a sample that is not finite: {self.samples}")

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    def as_json(self) -> dict[str, object]:
        return {
            "unit": self.unit,
            "median": self.median,
            "min": self.low,
            "max": self.high,
            "samples": list(self.samples),
        }


@dataclass(frozen=True)
class Waits:
    """How long callers waited, in microseconds, over every call of every process of one run."""

    count: int
    p50_us: float
    p99_us: float
    worst_us: float


def percentile(ordered: NDArray[np.uint64], share: float) -> float:
    """Return the nearest rank: the sample at or below which a `share` (0..1) of the sorted lie."""
    if ordered.size == 0:
        raise ValueError("no samples")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in 0..1, not {share}")
    rank = max(1, math.ceil(share * ordered.size))
    return float(ordered[rank - 1])


def waits(samples_ns: Sequence[NDArray[np.uint64]]) -> Waits:
    """Merge the waits of all processes (nanoseconds) and return their percentiles."""
    merged = np.concatenate(samples_ns)
    merged.sort()
    return Waits(
        count=int(merged.size),
        p50_us=percentile(merged, 0.50) / NS_PER_US,
        p99_us=percentile(merged, 0.99) / NS_PER_US,
        worst_us=float(merged[-1]) / NS_PER_US,
    )


def fairness(rates: Sequence[float]) -> float:
    """Return slowest / fastest: 1.0 is perfectly fair, 0.0 means that somebody starved."""
    if not rates:
        raise ValueError("no rates")
    fastest = max(rates)
    return min(rates) / fastest if fastest > 0 else 0.0


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Divide round by round, so that a drift of the machine between rounds cancels out."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    return tuple(our / their for our, their in zip(ours, theirs, strict=True))


def over_floor_us(rates: Sequence[float], floor_rates: Sequence[float]) -> tuple[float, ...]:
    """Return, round by round, the microseconds a call costs beyond the floor's."""
    if len(rates) != len(floor_rates):
        raise ValueError(f"{len(rates)} rounds against {len(floor_rates)}")
    return tuple(1e6 / rate - 1e6 / floor for rate, floor in zip(rates, floor_rates, strict=True))


def by_key(figures: Iterable[Figure]) -> dict[str, Figure]:
    """Index figures by key; a key that occurs twice is an error in the bench."""
    found: dict[str, Figure] = {}
    for figure in figures:
        if figure.key in found:
            raise ValueError(f"figure {figure.key} was given twice")
        found[figure.key] = figure
    return found
