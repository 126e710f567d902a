"""Percentiles with their uncertainty, and only those that there are samples enough for.

The interval of a quantile is the one between two order statistics that hold it with 95 % confidence whatever the
distribution is (Hahn and Meeker, Statistical Intervals, 5.2): how many of n independent samples fall below the true
quantile q is binomial(n, q). Where no sample lies high or low enough to be an end of it, no percentile is quoted:
p50 takes 6 samples, p90 36, p95 72, p99 368.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
SHARES = (0.5, 0.9, 0.95, 0.99)
_WIDTHS = 12.0
"""Standard deviations around the mean beyond which the binomial's mass is less than a double can tell from 0."""


@dataclass(frozen=True, slots=True)
class Percentile:
    share: float
    value: float | None
    """None: there are fewer samples than its interval needs."""
    low: float | None = None
    high: float | None = None


def percentile(ordered: Sequence[float] | npt.NDArray[np.float64], share: float) -> Percentile:
    """Of samples in ascending order: the smallest one that at least `share` of them do not exceed."""
    ranks = interval_ranks(len(ordered), share)
    if ranks is None:
        return Percentile(share, None)
    at = max(1, math.ceil(share * len(ordered) - 1e-9))
    low, high = ranks
    return Percentile(share, float(ordered[at - 1]), float(ordered[low - 1]), float(ordered[high - 1]))


def percentiles(samples: npt.NDArray[np.float64]) -> tuple[Percentile, ...]:
    ordered = np.sort(samples)
    return tuple(percentile(ordered, share) for share in SHARES)


def interval_ranks(count: int, share: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """The ranks, from 1, of the order statistics that hold the quantile with at least that confidence, the same
    chance of missing it on either side; None where one of them would be no sample."""
    if count == 0:
        return None
    tail = (1 - confidence) / 2
    first, below = _binomial_cdf(count, share)
    # The lower end: the largest rank l with P(B < l) <= tail. The upper: the smallest u with P(B >= u) <= tail.
    low = first + int(np.searchsorted(below, tail, side="right"))
    high = first + 1 + int(np.searchsorted(below, 1 - tail, side="left"))
    return None if low < 1 or high > count else (low, high)


def _binomial_cdf(count: int, share: float) -> tuple[int, npt.NDArray[np.float64]]:
    """P(B <= k) for k from `first` on, over all k that matter."""
    mean, spread = count * share, math.sqrt(count * share * (1 - share))
    first = max(0, math.floor(mean - _WIDTHS * spread - 1))
    last = min(count, math.ceil(mean + _WIDTHS * spread + 1))
    start = (
        math.lgamma(count + 1)
        - math.lgamma(first + 1)
        - math.lgamma(count - first + 1)
        + first * math.log(share)
        + (count - first) * math.log1p(-share)
    )
    k = np.arange(first, last, dtype=np.float64)
    steps = np.log(count - k) - np.log(k + 1) + math.log(share) - math.log1p(-share)
    mass = np.exp(start + np.concatenate([[0.0], np.cumsum(steps)]))
    return first, np.minimum(np.cumsum(mass), 1.0)
