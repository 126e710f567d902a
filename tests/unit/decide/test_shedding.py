"""The share of queries that a loop turns away which cannot read them all, and who is not heard for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.shed import (
    BEGIN_SHARE,
    GAIN_PER_S,
    GIVES_BACK_PER_S,
    HELD_REFUSING_S,
    HOLDS_S,
    LEAST_HELD_S,
    LEAST_S,
    LONG_REFUSING_S,
    MOST,
    MOST_DOWN,
    MOST_UP,
    STEP_S,
    WAKING_S,
    Shed,
    resting_of,
)

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


def test_callers_whose_turns_endanger_nobody_are_left_alone_however_many_they_are() -> None:
    shed = a_shed()
    assert shed.held_s < 0.99 * shed.long_s
    assert set(turns(shed, 0.99 * shed.long_s, 1_000)) == {0.0}


def test_while_turns_are_long_the_share_goes_up_with_time_and_stops_short_of_all() -> None:
    shed = a_shed()
    first, second, *_, last = turns(shed, 0.02, 100)
    assert 0 < first < second
    assert second == pytest.approx(2 * first)
    assert last == MOST < 1


def test_the_longer_a_turn_the_faster_it_goes_but_no_turn_settles_it() -> None:
    ups = []
    for times in (4.0, 8.0, 1e6):
        shed = a_shed()
        shed.saw(times * shed.held_s, 0.01)
        ups.append(shed.share)
    assert ups[0] < ups[1] < ups[2] == pytest.approx(GAIN_PER_S * MOST_UP * 0.01)


def test_once_some_are_turned_away_turns_are_held_well_below_what_began_it() -> None:
    shed = a_shed()
    (high,) = turns(shed, 0.03, 1)
    (higher,) = turns(shed, 0.9 * shed.long_s, 1, now=0.03)
    assert higher > high, "not long enough to begin with, and too long to go on with"
    *_, lower = turns(shed, 0.5 * shed.held_s, 20, now=0.05)
    assert lower < higher
    *_, last = turns(shed, 0.001, 2_000, now=0.2)
    assert last == 0


def test_a_turn_of_the_length_that_is_held_moves_nothing() -> None:
    shed = a_shed()
    *_, high = turns(shed, 0.05, 3)
    *_, last = turns(shed, shed.held_s, 50, now=0.15)
    assert last == pytest.approx(high)


@pytest.mark.parametrize("refusing", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("callers", [150, 250, 350, 450])
def test_one_stall_does_not_have_callers_turned_away_for_good_whose_turns_endanger_nobody(
    callers: int, refusing: float
) -> None:
    """They ask again at once, so that turns stay as long as they are however many are refused, or nearly."""
    shed, now, answer_s = a_shed(), 0.0, 30e-6
    assert callers * answer_s < shed.long_s
    shed.saw(2 * shed.long_s, now)
    most = 0.0
    while now < 4.0:
        turn_s = callers * answer_s * (shed.share * refusing + 1.0 - shed.share)
        now += turn_s
        shed.saw(2 * shed.long_s if now < 0.1 else turn_s, now)
        most = max(most, shed.share)
    assert most > 0.1, "the stall did something"
    assert shed.share == 0.0


def test_where_turns_get_long_again_whenever_the_share_is_given_back_it_is_raised_again() -> None:
    """More comes than can be answered, at any time: 36,000 a second, 30 µs an answer, 20 a refusal."""
    shed, now, turn_s = a_shed(), 0.0, 0.02
    shares, turns_s = [], []
    while now < 10.0:
        coming = 36_000 * turn_s
        turn_s = min(0.1, 3e-4 + coming * (shed.share * 20e-6 + (1.0 - shed.share) * 30e-6))
        now += turn_s
        shed.saw(turn_s, now)
        if now > 2.0:
            shares.append(shed.share)
            turns_s.append(turn_s)
    assert min(shares) > 0.0
    assert max(turns_s) < 0.04, "none is late for that"
    assert sum(turns_s) / len(turns_s) < 0.01


def test_the_share_is_held_for_a_while_after_the_last_long_turn_and_then_given_back() -> None:
    shed = a_shed()
    *_, high = turns(shed, 0.05, 2)
    between_s = 0.5 * (shed.held_s + shed.long_s)
    *_, higher = turns(shed, between_s, 3, now=0.1)
    assert higher > high
    left_s = 0.1 + HOLDS_S - (0.1 + 3 * between_s)
    *_, held = turns(shed, shed.held_s, int(0.99 * left_s / shed.held_s), now=0.1 + 3 * between_s)
    assert held == pytest.approx(higher)
    shed.saw(shed.held_s, 0.1 + HOLDS_S)
    before = shed.share
    shed.saw(between_s, 0.1 + HOLDS_S + 0.01)
    assert shed.share == pytest.approx(before - 0.01 * GIVES_BACK_PER_S)


def test_one_long_pause_says_no_more_than_a_tenth_of_a_second_of_it_would() -> None:
    shed = a_shed()
    shed.saw(0.02, 3_600.0)
    again = a_shed()
    again.saw(0.02, STEP_S)
    assert shed.share == again.share > 0


def test_who_comes_after_a_pause_finds_what_the_pause_has_left_of_the_share() -> None:
    shed = a_shed()
    *_, high = turns(shed, 0.05, 50)
    shed.saw(0.0, 2.5 + 0.1)
    assert shed.share == pytest.approx(high - 0.1 * GAIN_PER_S * MOST_DOWN)
    shed.saw(0.9 * shed.long_s, 3_600.0)
    assert shed.share == 0, "whatever the turn was that came before him"


def test_what_is_told_is_the_last_turn_that_was_long() -> None:
    shed = a_shed()
    shed.saw(0.03, 0.1)
    shed.saw(0.001, 0.2)
    assert shed.last_long_s == 0.03


def test_the_less_urgent_go_first_and_come_last_and_who_has_all_the_time_never_goes() -> None:
    by_urgency = [a_shed(priority=each) for each in (Priority.SHEDDABLE, Priority.STANDARD, Priority.CRITICAL)]
    for bounds in ([one.long_s for one in by_urgency], [one.held_s for one in by_urgency]):
        assert bounds == sorted(set(bounds))
    turn_s = 0.1 * BEGIN_SHARE[Priority.STANDARD] * 1.01
    shares = {each: list(turns(a_shed(priority=each), turn_s, 5))[-1] for each in Priority}
    assert shares[Priority.SHEDDABLE] > 0 < shares[Priority.STANDARD]
    assert shares[Priority.CRITICAL] == 0
    assert list(turns(a_shed(within_s=60.0), 1.0, 20))[-1] == 0


def test_no_turn_is_long_for_anybody_that_is_shorter_than_the_least() -> None:
    hasty = a_shed(within_s=0.001, priority=Priority.SHEDDABLE)
    assert list(turns(hasty, LEAST_S, 50))[-1] == 0
    assert hasty.held_s == LEAST_HELD_S


@given(share=st.floats(0.0, MOST), count=st.integers(1, 500))
def test_as_many_are_turned_away_as_the_share_says_and_evenly(share: float, count: int) -> None:
    shed = a_shed()
    shed.share = share
    taken = 0
    for number in range(1, count + 1):
        taken += shed.takes()
        assert abs(taken - share * number) < 1 + 1e-6


def test_who_rests_is_heard_before_the_share_is_what_turns_are_short_by() -> None:
    assert WAKING_S <= LEAST_HELD_S <= HELD_REFUSING_S < LONG_REFUSING_S


def test_connections_rest_only_where_turning_their_queries_away_takes_too_long() -> None:
    assert resting_of(500, LONG_REFUSING_S) == 0
    assert resting_of(0, 1.0) == 0


@given(told=st.integers(1, 1_000), turn_s=st.floats(1.01 * LONG_REFUSING_S, 5.0))
def test_as_many_rest_as_leave_those_that_a_turn_should_hear(told: int, turn_s: float) -> None:
    left = told - resting_of(told, turn_s)
    assert left >= 1
    assert left == pytest.approx(told * HELD_REFUSING_S / turn_s, abs=1)
