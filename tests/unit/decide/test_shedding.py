"""The share of queries that a loop turns away which cannot read them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.shed import DOWN_PER_S, LEAST_S, MOST, STEP_S, TURN_SHARE, UP_PER_S, Shed

from infaas.domain.query import Priority


def a_shed(within_s: float = 0.1, priority: Priority = Priority.STANDARD) -> Shed:
    return Shed(within_s, priority, now=0.0)


def turns(shed: Shed, turn_s: float, count: int, now: float = 0.0) -> Iterator[float]:
    """The shares after so many turns that follow each other."""
    for number in range(1, count + 1):
        shed.saw(turn_s, now + number * turn_s)
        yield shed.share


def test_nobody_is_turned_away_at_first() -> None:
    shed = a_shed()
    assert not any(shed.takes() for _ in range(100))


def test_while_turns_are_long_the_share_goes_up_with_time_and_stops_short_of_all() -> None:
    shed = a_shed()
    first, second, *_, last = turns(shed, 0.02, 100)
    assert first == pytest.approx(0.02 * UP_PER_S)
    assert second == pytest.approx(2 * first)
    assert last == MOST < 1


def test_it_goes_down_more_slowly_and_to_nothing_when_they_are_short() -> None:
    shed = a_shed()
    *_, high = turns(shed, 0.05, 3)
    first, *_, last = turns(shed, 0.001, 1_000, now=0.15)
    assert high - first == pytest.approx(0.001 * DOWN_PER_S)
    assert last == 0
    assert DOWN_PER_S < UP_PER_S


def test_one_long_pause_says_no_more_than_a_tenth_of_a_second_of_it_would() -> None:
    shed = a_shed()
    shed.saw(0.02, 3_600.0)
    assert shed.share == pytest.approx(STEP_S * UP_PER_S)


def test_who_comes_after_a_pause_finds_what_the_pause_has_left_of_the_share() -> None:
    shed = a_shed()
    *_, high = turns(shed, 0.05, 50)
    shed.saw(0.0, 2.5 + 0.5)
    assert shed.share == pytest.approx(high - 0.5 * DOWN_PER_S)
    shed.saw(0.0, 3_600.0)
    assert shed.share == 0


def test_what_is_told_is_the_last_turn_that_was_long() -> None:
    shed = a_shed()
    shed.saw(0.03, 0.1)
    shed.saw(0.001, 0.2)
    assert shed.last_long_s == 0.03


def test_the_less_urgent_go_first_and_who_has_all_the_time_never() -> None:
    long = [a_shed(priority=each).long_s for each in (Priority.SHEDDABLE, Priority.STANDARD, Priority.CRITICAL)]
    assert long == sorted(set(long))
    turn_s = 0.1 * TURN_SHARE[Priority.STANDARD] * 1.01
    shares = {each: list(turns(a_shed(priority=each), turn_s, 5))[-1] for each in Priority}
    assert shares[Priority.SHEDDABLE] > 0 < shares[Priority.STANDARD]
    assert shares[Priority.CRITICAL] == 0
    assert list(turns(a_shed(within_s=60.0), 1.0, 20))[-1] == 0


def test_no_turn_is_long_for_anybody_that_is_shorter_than_the_least() -> None:
    assert list(turns(a_shed(within_s=0.001, priority=Priority.SHEDDABLE), LEAST_S, 50))[-1] == 0


@given(share=st.floats(0.0, MOST), count=st.integers(1, 500))
def test_as_many_are_turned_away_as_the_share_says_and_evenly(share: float, count: int) -> None:
    shed = a_shed()
    shed.share = share
    taken = 0
    for number in range(1, count + 1):
        taken += shed.takes()
        assert abs(taken - share * number) < 1 + 1e-6
