"""Counters and histograms kept as plain numbers say what the library's own would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from infaas.observe.series import CountSeries, SpreadSeries

BOUNDS = (0.01, 0.1, 1.0, 10.0)
values = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100, allow_nan=False))


def text_of(registry: CollectorRegistry) -> list[str]:
    """Without when a series was created, which ours do not say."""
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), values), max_size=30))
def test_a_histogram_reads_as_the_librarys(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    series = SpreadSeries(ours, "x_seconds", "what", ["model"], BOUNDS)
    histogram = Histogram("x_seconds", "what", ["model"], buckets=BOUNDS, registry=theirs)
    for model, value in observed:
        series.of(model).observe(value)
        histogram.labels(model).observe(value)
    assert text_of(ours) == text_of(theirs)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 100)), max_size=30))
def test_a_counter_reads_as_the_librarys(counted: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    series = CountSeries(ours, "x_total", "what", ["model"])
    counter = Counter("x_total", "what", ["model"], registry=theirs)
    for model, amount in counted:
        series.of(model).inc(amount)
        counter.labels(model).inc(amount)
    assert text_of(ours) == text_of(theirs)


@given(values, st.integers(1, 50))
def test_one_value_many_times_is_that_value_as_often(value: float, times: int) -> None:
    registry = CollectorRegistry()
    together = SpreadSeries(registry, "x", "what", [], BOUNDS).of()
    each = SpreadSeries(registry, "y", "what", [], BOUNDS).of()
    together.observe(value, times)
    for _ in range(times):
        each.observe(value)
    assert together.counts == each.counts
    assert together.total == pytest.approx(each.total)


@given(st.lists(values, max_size=30))
def test_values_that_are_observed_at_once_count_as_one_after_the_other(observed: list[float]) -> None:
    registry = CollectorRegistry()
    together = SpreadSeries(registry, "x", "what", [], BOUNDS).of()
    each = SpreadSeries(registry, "y", "what", [], BOUNDS).of()
    together.observe_each(observed)
    for value in observed:
        each.observe(value)
    assert together.counts == each.counts
    assert together.total == pytest.approx(each.total)


def test_what_has_no_labels_is_there_before_anything_happened() -> None:
    registry = CollectorRegistry()
    SpreadSeries(registry, "x", "what", [], BOUNDS)
    CountSeries(registry, "y", "what", [])
    assert registry.get_sample_value("x_count") == 0
    assert registry.get_sample_value("y_total") == 0


def test_a_wrong_number_of_label_values_is_refused() -> None:
    series = CountSeries(CollectorRegistry(), "x", "what", ["model", "code"])
    with pytest.raises(ValueError, match="'x' has the labels model, code; got 1"):
        series.of("digits")
