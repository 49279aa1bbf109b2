"""Paired differences between arms over seeds, with their t interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as students_t

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over ``n`` seeds of this minus that, and the half width of its 95 % interval (infinite for one seed)."""

    mean: float
    half_width: float
    n: int

    @property
    def verdict(self) -> str:
        """Of losses: "better" and "worse" only where the interval excludes zero."""
        if abs(self.mean) <= self.half_width or self.mean == 0:
            return "undecided"
        return "better" if self.mean < 0 else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}" if math.isfinite(self.half_width) else f"{self.mean:+.3f} (1 seed)"


def paired(this: Mapping[int, float], that: Mapping[int, float]) -> Difference | None:
    """Over the seeds that both have; None if there is none."""
    seeds = sorted(this.keys() & that.keys())
    return difference([this[seed] - that[seed] for seed in seeds]) if seeds else None


def difference(values: Sequence[float]) -> Difference:
    """Of paired differences."""
    n = len(values)
    if n < 2:
        return Difference(values[0], math.inf, n)
    quantile = float(students_t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(fmean(values), quantile * stdev(values) / math.sqrt(n), n)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, in words."""
    return f"{fmean(values):.3f} ({stdev(values):.3f})" if len(values) > 1 else f"{values[0]:.3f}"
