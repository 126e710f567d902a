"""Moments keep their order on the wall's clock, whoever is held up while clocks are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.clock import WallTimes
from infaas.testing.clock import ManualClock


class SlowClock(ManualClock):
    """Time passes with each look at it."""

    def __init__(self, passes_s: Sequence[float]) -> None:
        super().__init__()
        self._passes_s = list(passes_s)
        self.jump_s = 0.0

    def now(self) -> float:
        self._pass()
        return super().now()

    def wall(self) -> float:
        self._pass()
        return super().wall() + self.jump_s

    def _pass(self) -> None:
        if self._passes_s:
            self.advance(self._passes_s.pop())


@given(
    held_up_s=st.lists(st.floats(0.0, 5.0), max_size=60),
    gaps_s=st.lists(st.floats(0.0, 8.0), min_size=1, max_size=20),
)
def test_what_comes_later_is_not_told_as_earlier(held_up_s: Sequence[float], gaps_s: Sequence[float]) -> None:
    clock = SlowClock(held_up_s)
    times, told = WallTimes(clock), float("-inf")
    for gap_s in gaps_s:
        at = clock.advance(gap_s)
        now = times.of(at)
        assert now >= told
        assert times.of(at) >= now
        told = now


def test_a_wall_clock_that_is_set_is_followed_soon() -> None:
    clock = SlowClock([])
    times = WallTimes(clock)
    before = times.of(clock.now())
    clock.jump_s = 3_600.0
    clock.advance(WallTimes.LOOK_EVERY_S)
    assert times.of(clock.now()) - before == pytest.approx(3_600.0 + WallTimes.LOOK_EVERY_S)
