"""From raw samples to a profile: robust figures per batch size, and a line through them. Pure.

Outliers. Spoiled rounds (see `rounds`) count only where there are no others, and then by the processor time of the
measuring thread where that is known: on a machine that never leaves it alone, this is what it would have taken. The
typical figures, median and mean, come from the rounds with the lowest medians: noise of a shared host only ever adds
time, so these are what repeated profiling agrees on. Of one thread it is half of the rounds in which the host was not
slow (see `pace`). Of several it is the best tenth of all: for minutes on end a host may run the processors of a guest
on one core of its own, and then no more than a few rounds show what two cores do. The tail, 95 and 99 %, comes from all
rounds that are not spoiled, because a promise must hold for them. Rounds of few runs are joined with their neighbours
first, and where too few are left to choose from, all count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infaas.domain.variant import LatencyPoint, Profile

GROUP_SAMPLES = 8
GROUP_S = 0.02
"""A group is full with so many samples or so much time: a long run is hit by noise about once, whoever its
neighbours are."""
MIN_GROUPS = 4
BEST_SHARE, BEST_SHARE_OF_SEVERAL = 0.5, 0.1
"""Of the groups, for one thread and for several, or as many as hold `MIN_CLEAN_SAMPLES` runs."""
MIN_CLEAN_SAMPLES = 5
HUBER = 1.345
FIT_STEPS = 25

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Samples:
    """One entry per run, in the order they were made."""

    batch: NDArray[np.int64]
    round: NDArray[np.int64]
    seconds: Floats
    is_spoiled: NDArray[np.bool_]
    """In a round with a stall."""
    is_slow: NDArray[np.bool_]
    """In a round during which the host was slow."""
    own_seconds: Floats
    """Processor time of the measuring thread; infinite where it waits for other threads, so that it says nothing."""


@dataclass(frozen=True, slots=True)
class Measurement:
    samples: Samples
    cold_load_s: float
    warm_load_s: float
    peak_memory_bytes: int
    resident_memory_bytes: int
    stalled_rounds: int


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Typical seconds for a batch = base + per_item * batch. The error is the largest relative deviation."""

    base_s: float
    per_item_s: float
    error: float


def fit_profile(
    measured: Measurement, *, threads: int, price_usd_per_core_hour: float, budget_s: float, measured_at: str, host: str
) -> Profile:
    """The profile, still without accuracy and without the samples' digest. Raises ValueError without samples."""
    points = latency_points(measured.samples, threads)
    model = fit_latency(points)
    best = max(points, key=lambda point: point.batch / point.mean_s)
    return Profile(
        latency=points,
        fit_base_s=model.base_s,
        fit_per_item_s=model.per_item_s,
        fit_error=model.error,
        cold_load_s=measured.cold_load_s,
        warm_load_s=measured.warm_load_s,
        peak_memory_bytes=measured.peak_memory_bytes,
        resident_memory_bytes=measured.resident_memory_bytes,
        throughput_per_s=best.batch / best.mean_s,
        best_batch=best.batch,
        cost_usd_per_1k=cost_usd_per_1k(points[0], threads, price_usd_per_core_hour),
        accuracy=None,
        budget_s=budget_s,
        stalled_rounds=measured.stalled_rounds,
        measured_at=measured_at,
        host=host,
    )


def cost_usd_per_1k(point: LatencyPoint, threads: int, price_usd_per_core_hour: float) -> float:
    """What 1,000 queries cost when each is served alone: core time times the price of a core. A graph with a fixed
    batch runs whole for a single query."""
    return price_usd_per_core_hour / 3600.0 * threads * point.mean_s * 1000.0


def latency_points(samples: Samples, threads: int = 1) -> tuple[LatencyPoint, ...]:
    """One point per batch size, ascending. Raises ValueError when there are no samples."""
    if samples.batch.size == 0:
        raise ValueError("no samples to make a profile of")
    points = []
    for batch in np.unique(samples.batch):
        mask = samples.batch == batch
        all_that_count = _groups(samples, mask)
        quick = mask & ~samples.is_slow
        has_quick = bool((quick & ~samples.is_spoiled).sum() >= MIN_CLEAN_SAMPLES)
        is_choosy = has_quick and (threads == 1 or len(all_that_count) < MIN_GROUPS)
        usual = _groups(samples, quick) if is_choosy else all_that_count
        points.append(_point(int(batch), usual, all_that_count, threads))
    return tuple(points)


def fit_latency(points: Sequence[LatencyPoint]) -> LatencyModel:
    """Least squares on relative deviations, reweighted by Huber so that one odd batch size does not bend the line;
    neither coefficient is negative."""
    batch = np.array([point.batch for point in points], dtype=np.float64)
    typical = np.array([point.p50_s for point in points], dtype=np.float64)
    if len(points) == 1:
        return LatencyModel(0.0, float(typical[0] / batch[0]), 0.0)
    weight = np.ones_like(typical)
    base, per_item = _line(batch, typical, weight)
    for _ in range(FIT_STEPS):
        deviation = np.abs(base + per_item * batch - typical) / typical
        scale = max(float(np.median(deviation)) / 0.6745, 1e-9)
        weight = np.minimum(1.0, HUBER * scale / np.maximum(deviation, 1e-12))
        base, per_item = _line(batch, typical, weight)
    error = float(np.max(np.abs(base + per_item * batch - typical) / typical))
    return LatencyModel(base, per_item, error)


def _line(batch: Floats, typical: Floats, weight: Floats) -> tuple[float, float]:
    """Weighted least squares of relative deviations with both coefficients at least 0."""
    root = np.sqrt(weight)
    a, b, y = root / typical, root * batch / typical, root
    candidates = []
    determinant = (a @ a) * (b @ b) - (a @ b) ** 2
    if determinant > 1e-12 * (a @ a) * (b @ b):
        base = ((a @ y) * (b @ b) - (b @ y) * (a @ b)) / determinant
        per_item = ((b @ y) * (a @ a) - (a @ y) * (a @ b)) / determinant
        if base >= 0 and per_item >= 0:
            return float(base), float(per_item)
    candidates.append((0.0, float(b @ y / (b @ b))))
    candidates.append((float(a @ y / (a @ a)), 0.0))
    return min(candidates, key=lambda line: float(np.sum((a * line[0] + b * line[1] - y) ** 2)))


def _groups(samples: Samples, mask: NDArray[np.bool_]) -> list[Floats]:
    """The rounds of one batch size that count, neighbours joined until each group is full."""
    clean = mask & ~samples.is_spoiled
    is_quiet = bool(clean.sum() >= MIN_CLEAN_SAMPLES)
    chosen = clean if is_quiet else mask
    rounds, seconds = samples.round[chosen], samples.seconds[chosen]
    if not is_quiet:
        seconds = np.minimum(seconds, samples.own_seconds[chosen])
    groups: list[list[float]] = [[]]
    last = rounds[0]
    for value, number in zip(seconds.tolist(), rounds.tolist(), strict=True):
        if number != last and _is_full(groups[-1]):
            groups.append([])
        last = number
        groups[-1].append(value)
    if len(groups) > 1 and not _is_full(groups[-1]):
        groups[-2].extend(groups.pop())
    return [np.array(group) for group in groups]


def _is_full(group: Sequence[float]) -> bool:
    return len(group) >= GROUP_SAMPLES or sum(group) >= GROUP_S


def _point(batch: int, groups: list[Floats], all_that_count: list[Floats], threads: int) -> LatencyPoint:
    everything = np.concatenate(all_that_count)
    typical = np.concatenate(groups)
    if len(groups) >= MIN_GROUPS:
        ranked = sorted(groups, key=lambda group: float(np.median(group)))
        count = math.ceil((BEST_SHARE if threads == 1 else BEST_SHARE_OF_SEVERAL) * len(ranked))
        while count < len(ranked) and sum(map(len, ranked[:count])) < MIN_CLEAN_SAMPLES:
            count += 1
        typical = np.concatenate(ranked[:count])
    p95, p99 = np.quantile(everything, (0.95, 0.99))
    return LatencyPoint(
        batch=batch,
        mean_s=float(typical.mean()),
        p50_s=float(np.median(typical)),
        p95_s=float(p95),
        p99_s=float(p99),
        samples=int(everything.size),
    )
