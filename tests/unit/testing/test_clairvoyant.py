"""What the best fleet would have cost, on traces that can be reckoned by hand and against all fleets of small ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.testing.clairvoyant import per_second, worker_seconds


def test_arrivals_are_counted_by_the_second() -> None:
    assert per_second([0.0, 0.99, 2.5, 3.0], 4) == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("counts", "startup_s", "expected"),
    [
        ([], 5.0, 0.0),
        ([0, 0, 0], 5.0, 0.0),
        ([10] * 60, 5.0, 60.0),
        ([11] * 60, 5.0, 120.0),
        ([10] * 60 + [40] * 60 + [10] * 60, 5.0, 180.0 + 3 * 65.0),
        ([10, 20, 10], 5.0, 3.0 + 1.0 + 1.0),  # there is but a second to start in
        ([20, 10, 20], 5.0, 6.0),  # it is kept
        ([20] + [10] * 30 + [20], 5.0, 32.0 + 2.0 + 5.0),  # it is started again
    ],
)
def test_steps_gaps_and_starts(counts: Sequence[int], startup_s: float, expected: float) -> None:
    assert worker_seconds(counts, 10.0, startup_s) == pytest.approx(expected)


@given(counts=st.lists(st.integers(0, 2), min_size=1, max_size=7), startup_s=st.integers(0, 3))
def test_no_fleet_is_cheaper(counts: Sequence[int], startup_s: int) -> None:
    """All ways for two workers to be there or not; one costs from when it begins to start."""
    costs = []
    for plan in itertools.product((False, True), repeat=2 * len(counts)):
        plans = plan[: len(counts)], plan[len(counts) :]
        if all(sum(one[second] for one in plans) >= counts[second] for second in range(len(counts))):
            costs.append(sum(_cost(one, startup_s) for one in plans))
    assert worker_seconds(counts, 1.0, float(startup_s)) == min(costs)


def _cost(there: Sequence[bool], startup_s: int) -> float:
    paid = set[int]()
    for second, is_there in enumerate(there):
        if is_there:
            paid |= {second} if second and there[second - 1] else set(range(max(0, second - startup_s), second + 1))
    return math.fsum([1.0] * len(paid))
