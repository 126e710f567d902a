"""Schedules: the same for the same seed, at the rate that was asked for, and traces read or refused in words."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infaas.bench.schedule import arrivals, played, rate_of, read_trace
from infaas.errors import InvalidError


@given(st.floats(0.5, 200), st.floats(0.1, 20), st.integers(0, 99), st.floats(0.2, 8))
def test_arrivals_rise_stay_within_the_time_and_are_the_same_for_the_same_seed(
    rate: float, seconds: float, seed: int, burstiness: float
) -> None:
    found = list(arrivals(rate, seconds, seed, burstiness))
    assert found == sorted(found)
    assert all(0 < at < seconds for at in found)
    assert found == list(arrivals(rate, seconds, seed, burstiness))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_that_were_asked_for(burstiness: float) -> None:
    found = list(arrivals(50.0, 2_000.0, 3, burstiness))
    gaps = [after - before for before, after in itertools.pairwise(found)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert statistics.pvariance(gaps) / mean**2 == pytest.approx(burstiness, rel=0.1)


def test_a_trace_of_offsets_is_taken_as_it_is() -> None:
    assert read_trace("# recorded\noffset_s,who\n0.5,a\n0.5,b\n\n2,c\n", seed=1) == (0.5, 0.5, 2.0)
    assert read_trace("0\n1.25\n", seed=1) == (0.0, 1.25)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5), st.integers(0, 9))
@example([(0, 4), (40, 40), (29, 40)], 0)
def test_a_trace_of_counts_has_each_minutes_queries_in_that_minute(counts: list[tuple[int, int]], seed: int) -> None:
    text = "minute,task0,task1\n" + "\n".join(f"{n},{a},{b}" for n, (a, b) in enumerate(counts))
    found = read_trace(text, seed, burstiness=4.0)
    assert list(found) == sorted(found)
    by_minute = [sum(1 for at in found if math.floor(at / 60) == n) for n in range(len(counts))]
    assert by_minute == [a + b for a, b in counts]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("1\n0.5\n", "line 2"),
        ("offset\n1\nx\n", "line 3 of the trace: 'x'"),
        ("1\n-2\n", "'-2' is not a number from 0"),
        ("1\ninf\n", "'inf'"),
        ("minute,a\n0,1.5\n", "whole numbers"),
        ("minute\n0\n", "at least one count"),
    ],
)
def test_a_trace_that_cannot_be_meant_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        read_trace(text, seed=1)


def test_a_schedule_is_played_faster_and_cut_by_time_and_by_count() -> None:
    schedule = (0.0, 2.0, 4.0, 6.0)
    assert played(schedule, speed=2.0, seconds=2.5, count=None) == (0.0, 1.0, 2.0)
    assert played(schedule, speed=1.0, seconds=None, count=2) == (0.0, 2.0)
    assert len(played(arrivals(10.0, math.inf, 1), speed=1.0, seconds=None, count=25)) == 25


def test_the_rate_of_a_schedule_counts_to_its_last_query_and_there_is_none_where_all_come_at_once() -> None:
    assert rate_of((0.5, 1.0, 2.0)) == 1.5
    assert rate_of((0.0, 0.0)) is None
    assert rate_of(()) is None


@given(st.lists(st.tuples(st.sampled_from((3, 4, 4.5, 5, 9)), st.integers(0, 30)), min_size=1, max_size=9))
def test_the_minutes_of_a_trace_may_stand_in_any_order_and_queries_still_leave_in_time(
    counts: list[tuple[float, int]],
) -> None:
    found = read_trace("minute,n\n" + "\n".join(f"{minute},{count}" for minute, count in counts), seed=2)
    first, last = min(minute for minute, _ in counts), max(minute for minute, _ in counts)
    assert list(found) == sorted(found)
    assert len(found) == sum(count for _, count in counts)
    assert all(0 <= at <= 60 * (last - first + 1) for at in found)
