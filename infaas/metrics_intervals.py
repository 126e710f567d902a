"""95 % intervals: Wilson's for a proportion, a seeded bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
DRAWS = 1000
MAX_DRAWN_VALUES = 50_000_000
"""Bounds the bootstrap's work on very long evaluation sets; fewer draws only roughen the interval's ends."""
MIN_DRAWS = 100


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's score interval. Without rows nothing is known: (0, 1)."""
    if rows <= 0:
        return 0.0, 1.0
    share = hits / rows
    shrink = 1 + Z95**2 / rows
    centre = (share + Z95**2 / (2 * rows)) / shrink
    half = Z95 * sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2)) / shrink
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == rows else min(1.0, centre + half)
    return low, high


def bootstrap_interval(
    redraw: Callable[[np.random.Generator], float], value: float, seed: int, draws: int = DRAWS
) -> tuple[float, float]:
    """The middle 95 % of `draws` redrawn scores, widened to hold the score itself."""
    generator = np.random.default_rng(seed)
    scores = np.array([redraw(generator) for _ in range(draws)])
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(min(low, value)), float(max(high, value))


def mean_score_interval(
    error: NDArray[np.float64],
    naive: NDArray[np.float64],
    score_of: Callable[[float, float], float],
    value: float,
    seed: int,
) -> tuple[float, float]:
    """The interval of a score made from the means of two per-row errors; each draw takes whole rows."""
    rows = int(error.size)
    draws = int(min(DRAWS, max(MIN_DRAWS, MAX_DRAWN_VALUES // max(rows, 1))))

    def redraw(generator: np.random.Generator) -> float:
        chosen = generator.integers(0, rows, rows)
        return score_of(float(error[chosen].mean()), float(naive[chosen].mean()))

    return bootstrap_interval(redraw, value, seed, draws)
