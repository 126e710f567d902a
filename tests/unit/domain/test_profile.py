"""Latency as a function of the batch: measured where measured, sensible between and beyond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.variant import LatencyPoint, Profile
from infaas.testing.builders import a_profile, a_variant

QUANTILES = ("mean_s", "p50_s", "p95_s", "p99_s")


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Latency grows with the batch, as measured profiles do."""
    batches = sorted(draw(st.sets(st.integers(1, 256), min_size=1, max_size=8)))
    steps = draw(st.lists(st.floats(1e-5, 0.1), min_size=len(batches), max_size=len(batches)))
    total, points = 0.0, []
    for batch, step in zip(batches, steps, strict=True):
        total += step
        points.append(LatencyPoint(batch, total, 0.9 * total, 1.2 * total, 1.5 * total, 500))
    slope = draw(st.floats(0.0, 0.01))
    base = a_profile()
    return Profile(
        **{name: getattr(base, name) for name in base.__slots__ if name not in ("latency", "fit_per_item_s")},
        latency=tuple(points),
        fit_per_item_s=slope,
    )


@given(profile=profiles(), quantile=st.sampled_from(QUANTILES))
def test_a_measured_batch_has_what_was_measured(profile: Profile, quantile: str) -> None:
    for point in profile.latency:
        assert profile.latency_s(point.batch, quantile) == getattr(point, quantile)


@given(profile=profiles(), quantile=st.sampled_from(QUANTILES), batch=st.integers(1, 600))
def test_between_two_points_it_lies_between_them(profile: Profile, quantile: str, batch: int) -> None:
    value = profile.latency_s(batch, quantile)
    below = [getattr(point, quantile) for point in profile.latency if point.batch <= batch]
    above = [getattr(point, quantile) for point in profile.latency if point.batch >= batch]
    if below and above:
        assert max(below) - 1e-12 <= value <= min(above) + 1e-12
    elif below:
        assert value >= max(below)
    else:
        assert value == min(above), "smaller than every measured batch: that of the smallest"


@given(
    profile=profiles(), quantile=st.sampled_from(QUANTILES), batches=st.tuples(st.integers(1, 600), st.integers(1, 600))
)
def test_a_larger_batch_never_takes_less(profile: Profile, quantile: str, batches: tuple[int, int]) -> None:
    small, large = sorted(batches)
    assert profile.latency_s(small, quantile) <= profile.latency_s(large, quantile) + 1e-12


@given(profile=profiles(), extra=st.integers(1, 100))
def test_beyond_the_last_point_it_follows_the_fits_slope(profile: Profile, extra: int) -> None:
    last = profile.latency[-1]
    slope = profile.fit_per_item_s if len(profile.latency) > 1 else last.p95_s / last.batch
    assert profile.latency_s(last.batch + extra) == pytest.approx(last.p95_s + slope * extra)


def test_halfway_between_two_points_is_their_mean() -> None:
    profile = a_profile(p95_ms=10.0, per_item_ms=2.0, batches=(1, 5))
    assert profile.latency_s(3) == pytest.approx(0.014)
    assert profile.latency_s(3, "p50_s") == pytest.approx(0.9 * 0.014)


def test_memory_is_what_one_instance_keeps_and_unknown_without_a_profile() -> None:
    assert a_variant(memory_mib=50).memory_bytes == 50 * 2**20
    assert a_variant(has_profile=False).memory_bytes == 0
