"""From samples to a profile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_variant_generator.fit import Measurement, Samples, cost_usd_per_1k, fit_latency, fit_profile, latency_points

from infaas.domain.variant import LatencyPoint


def point(batch: int, seconds: float) -> LatencyPoint:
    return LatencyPoint(batch, seconds, seconds, seconds, seconds, 1)


def samples_of(
    rounds: list[tuple[int, list[float], bool]], own_seconds: float = math.inf, slow: frozenset[int] = frozenset()
) -> Samples:
    """`slow`: the numbers of the rounds during which the host was slow."""
    counts = [len(runs) for _, runs, _ in rounds]
    return Samples(
        batch=np.repeat(np.array([batch for batch, _, _ in rounds]), counts),
        round=np.repeat(np.arange(len(rounds)), counts),
        seconds=np.array([value for _, runs, _ in rounds for value in runs]),
        is_spoiled=np.repeat(np.array([spoiled for _, _, spoiled in rounds]), counts),
        is_slow=np.repeat(np.array([number in slow for number in range(len(rounds))], dtype=np.bool_), counts),
        own_seconds=np.full(sum(counts), own_seconds),
    )


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.integers(2, 8))
def test_a_straight_line_is_found_exactly(base_s: float, per_item_s: float, count: int) -> None:
    model = fit_latency([point(2**n, base_s + per_item_s * 2**n) for n in range(count)])
    assert model.error < 1e-6
    for n in range(count):
        assert model.base_s + model.per_item_s * 2**n == pytest.approx(base_s + per_item_s * 2**n, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=8))
def test_neither_coefficient_is_ever_negative_and_the_error_is_the_largest_deviation(typical: list[float]) -> None:
    points = [point(2**n, seconds) for n, seconds in enumerate(typical)]
    model = fit_latency(points)
    assert model.base_s >= 0
    assert model.per_item_s >= 0
    deviations = [abs(model.base_s + model.per_item_s * p.batch - p.p50_s) / p.p50_s for p in points]
    assert model.error == pytest.approx(max(deviations), abs=1e-9)


def test_one_odd_batch_size_does_not_bend_the_line() -> None:
    points = [point(b, 0.001 + 0.0005 * b) for b in (1, 2, 4, 8, 16)] + [point(32, 10 * (0.001 + 0.0005 * 32))]
    model = fit_latency(points)
    assert model.per_item_s == pytest.approx(0.0005, rel=0.15)
    assert model.base_s == pytest.approx(0.001, rel=0.15)


def test_a_single_batch_size_gives_a_line_through_the_origin() -> None:
    model = fit_latency([point(4, 0.02)])
    assert (model.base_s, model.per_item_s, model.error) == (0.0, 0.005, 0.0)


def test_the_typical_latency_comes_from_the_quiet_half_and_the_tail_from_all() -> None:
    quiet, loud = [0.010] * 10, [0.017] * 10
    (found,) = latency_points(samples_of([(1, quiet, False), (1, loud, False)] * 4))
    assert (found.p50_s, found.mean_s, found.p95_s) == (0.010, pytest.approx(0.010), pytest.approx(0.017))
    assert found.samples == 80


def test_of_few_rounds_of_several_threads_those_of_a_slow_host_do_not_count() -> None:
    rounds = [(1, [0.017] * 10, False), (1, [0.017] * 10, False), (1, [0.010] * 10, False)]
    (found,) = latency_points(samples_of(rounds, slow=frozenset({0, 1})), threads=2)
    assert (found.p50_s, found.p95_s) == (0.010, pytest.approx(0.017))


def test_the_best_of_long_runs_of_several_threads_are_a_handful() -> None:
    rounds = [(32, [0.100 + 0.001 * number], False) for number in range(20)]
    (found,) = latency_points(samples_of(rounds), threads=2)
    assert (found.p50_s, found.mean_s) == (pytest.approx(0.102), pytest.approx(0.102)), "five of them"


def test_the_typical_latency_of_several_threads_comes_from_the_best_tenth_however_slow_the_host_was() -> None:
    apart, on_one_core = [0.010] * 10, [0.017] * 10
    rounds = [(1, on_one_core, False)] * 37 + [(1, apart, False)] * 5
    for slow in (frozenset[int](), frozenset(range(42)), frozenset(range(20, 42))):
        (found,) = latency_points(samples_of(rounds, slow=slow), threads=2)
        assert (found.p50_s, found.mean_s, found.p95_s) == (0.010, pytest.approx(0.010), pytest.approx(0.017))
        assert found.samples == 420


def test_spoiled_rounds_do_not_count_unless_there_are_no_others() -> None:
    clean, spoiled = [0.010] * 10, [0.010] * 9 + [0.300]
    (found,) = latency_points(samples_of([(1, clean, False), (1, spoiled, True)] * 4))
    assert (found.p99_s, found.samples) == (pytest.approx(0.010), 40)
    (found,) = latency_points(samples_of([(1, spoiled, True)] * 9))
    assert found.p99_s > 0.2


def test_a_slow_host_counts_for_the_tail_and_not_for_the_typical_latency() -> None:
    rounds = [(1, [0.016] * 10, False)] * 9 + [(1, [0.010] * 10, False)]
    (found,) = latency_points(samples_of(rounds, slow=frozenset(range(9))))
    assert (found.p50_s, found.mean_s, found.p95_s) == (0.010, pytest.approx(0.010), pytest.approx(0.016))
    assert found.samples == 100
    (found,) = latency_points(samples_of(rounds[:9], slow=frozenset(range(9))))
    assert (found.p50_s, found.samples) == (0.016, 90), "there was no better"


def test_where_every_round_is_spoiled_the_threads_own_time_stands_in() -> None:
    (found,) = latency_points(samples_of([(1, [0.030] * 8, True)] * 6, own_seconds=0.011))
    assert (found.p50_s, found.p95_s) == (0.011, pytest.approx(0.011))


def test_few_long_runs_are_all_counted() -> None:
    (found,) = latency_points(samples_of([(32, [seconds], False) for seconds in (0.3, 0.5, 0.4)]))
    assert (found.p50_s, found.samples) == (0.4, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9), st.booleans()),
                min_size=1, max_size=40), st.integers(1, 2))  # fmt: skip
def test_quantiles_are_in_order_whatever_was_measured(
    rounds: list[tuple[int, list[float], bool]], threads: int
) -> None:
    points = latency_points(samples_of(rounds), threads)
    assert [p.batch for p in points] == sorted({batch for batch, _, _ in rounds})
    for p in points:
        assert p.p50_s <= p.p95_s * (1 + 1e-9)
        assert p.p95_s <= p.p99_s * (1 + 1e-9)


def test_cost_is_core_time_times_the_price_of_a_core() -> None:
    # 36 ms on two cores at 0.10 USD an hour: 72 core seconds for 1,000 queries
    assert cost_usd_per_1k(point(1, 0.036), 2, 0.10) == pytest.approx(72 / 3600 * 0.10)


def test_the_profile_offers_the_batch_with_the_best_throughput() -> None:
    samples = samples_of([(1, [0.010] * 8, False), (4, [0.020] * 8, False), (8, [0.080] * 8, False)] * 4)
    measured = Measurement(samples, 0.5, 0.1, 3000, 2000, stalled_rounds=2)
    profile = fit_profile(
        measured, threads=1, price_usd_per_core_hour=0.04, budget_s=3.0, measured_at="2026-01-01T00:00:00Z", host="h"
    )
    assert (profile.best_batch, profile.throughput_per_s) == (4, pytest.approx(200.0))
    assert (profile.cold_load_s, profile.warm_load_s, profile.stalled_rounds) == (0.5, 0.1, 2)
    assert (profile.peak_memory_bytes, profile.resident_memory_bytes) == (3000, 2000)
    assert profile.latency_s(4) == pytest.approx(0.020)
    assert profile.accuracy is None


def test_without_samples_there_is_no_profile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        latency_points(samples_of([]))
