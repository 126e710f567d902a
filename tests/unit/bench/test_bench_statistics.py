"""Percentiles of a run: the right sample, an interval that holds the truth, and none without samples enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.bench.statistics import SHARES, Percentile, interval_ranks, percentile, percentiles

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=800)


@given(samples, st.sampled_from(SHARES))
def test_a_percentile_is_the_sample_that_numpy_finds(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    if found.value is not None:
        assert found.value == np.quantile(values, share, method="inverted_cdf")


@given(samples, st.sampled_from(SHARES))
def test_a_percentile_lies_in_its_interval(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    if found.value is None:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low is not None
        assert found.high is not None
        assert min(values) <= found.low <= found.value <= found.high <= max(values)


@given(st.integers(1, 2_000), st.floats(0.01, 0.99), st.floats(0.5, 0.99))
def test_the_ranks_are_the_tightest_that_miss_the_quantile_rarely_on_either_side(
    count: int, share: float, confidence: float
) -> None:
    """Against the binomial summed term by term in whole numbers of logarithms, a slower way."""
    tail = (1 - confidence) / 2

    def at_most(k: int) -> float:
        terms = (
            math.lgamma(count + 1)
            - math.lgamma(i + 1)
            - math.lgamma(count - i + 1)
            + i * math.log(share)
            + (count - i) * math.log1p(-share)
            for i in range(k + 1)
        )
        return math.fsum(math.exp(term) for term in terms)

    ranks = interval_ranks(count, share, confidence)
    slack = 1e-9
    if ranks is None:
        assert at_most(0) > tail - slack or 1 - at_most(count - 1) > tail - slack
        return
    low, high = ranks
    assert 1 <= low < high <= count
    assert at_most(low - 1) <= tail + slack
    assert at_most(high - 1) >= 1 - tail - slack
    assert at_most(low) > tail - slack
    assert at_most(high - 2) < 1 - tail + slack


@pytest.mark.parametrize(("share", "needed"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_a_percentile_is_quoted_from_as_many_samples_on_as_its_interval_needs(share: float, needed: int) -> None:
    assert percentile(list(range(needed - 1)), share) == Percentile(share, None)
    assert percentile(list(range(needed)), share).value is not None


def test_the_interval_of_many_samples_holds_the_true_quantile_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    rounds = 400
    held = dict.fromkeys(SHARES, 0)
    for _ in range(rounds):
        for found in percentiles(draw.exponential(size=1_000)):
            truth = -math.log(1 - found.share)
            assert found.low is not None
            assert found.high is not None
            held[found.share] += found.low <= truth <= found.high
    assert all(count / rounds > 0.92 for count in held.values()), held


def test_a_million_samples_have_percentiles_too() -> None:
    ranks = interval_ranks(1_000_000, 0.99)
    assert ranks is not None
    low, high = ranks
    assert 989_750 < low < 990_000 < high < 990_250


def test_nothing_has_no_percentile() -> None:
    assert percentiles(np.zeros(0)) == tuple(Percentile(share, None) for share in SHARES)
