"""Timers ring in the order of their times, and those of what has ended never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.timers import Due, Timers

times = st.integers(0, 20).map(float)
kinds = st.sampled_from([Due.DEADLINE, Due.PARKED, Due.OVERDUE])


def test_the_next_one_is_told_where_it_is_before_a_time_and_else_nothing() -> None:
    timers = Timers({1, 2}, set())
    timers.set(5.0, Due.DEADLINE, (1,))
    timers.set(7.0, Due.DEADLINE, (2,))
    assert timers.next_due() == 5.0
    assert [timers.next_due(before) for before in (4.0, 5.0, 5.5, 9.0)] == [None, None, 5.0, 5.0]


def test_what_is_asked_for_in_vain_rings_all_the_same() -> None:
    timers = Timers({1}, set())
    timers.set(5.0, Due.DEADLINE, (1,))
    assert timers.next_due(before=5.0) is None
    assert timers.pop(4.9) is None
    assert timers.pop(5.0) == (Due.DEADLINE, (1,))
    assert timers.next_due() is None


def test_timers_of_what_has_ended_are_passed_over() -> None:
    queries = {1, 2}
    timers = Timers(queries, {1})
    timers.set(1.0, Due.DEADLINE, (1,))
    timers.set(2.0, Due.OVERDUE, 1)
    timers.set(3.0, Due.PARKED, 2)
    queries.discard(1)
    assert timers.next_due(before=2.0) is None
    assert timers.next_due(before=2.5) == 2.0
    assert [timers.pop(9.0), timers.pop(9.0), timers.pop(9.0)] == [(Due.OVERDUE, 1), (Due.PARKED, 2), None]


def test_a_timer_of_several_queries_rings_while_one_of_them_has_not_ended() -> None:
    queries = {1, 2}
    timers = Timers(queries, set())
    timers.set(1.0, Due.DEADLINE, (1, 2, 3))
    timers.set(2.0, Due.DEADLINE, (1, 3))
    queries.discard(1)
    assert timers.next_due() == 1.0
    assert [timers.pop(9.0), timers.pop(9.0)] == [(Due.DEADLINE, (1, 2, 3)), None]


@given(
    st.lists(st.tuples(times, kinds, st.integers(0, 5)), max_size=20), st.sets(st.integers(0, 5)),
    st.sets(st.integers(0, 5)), st.lists(times, max_size=5),
)  # fmt: skip
def test_looking_ahead_changes_nothing_of_what_rings(
    given_: list[tuple[float, Due, int]], queries: set[int], batches: set[int], looks: list[float]
) -> None:
    def lives(due: Due, what: int) -> bool:
        if due is Due.DEADLINE:
            return not queries.isdisjoint((what, what + 1))
        return what in (batches if due is Due.OVERDUE else queries)

    looked, plain = Timers(queries, batches), Timers(queries, batches)
    for when, due, what in given_:
        for timers in (looked, plain):
            timers.set(when, due, (what, what + 1) if due is Due.DEADLINE else what)
    alive = [when for when, due, what in given_ if lives(due, what)]
    for before in looks:
        assert looked.next_due(before) == min((when for when in alive if when < before), default=None)
    rung = [looked.pop(30.0) for _ in range(len(given_) + 1)]
    assert rung == [plain.pop(30.0) for _ in range(len(given_) + 1)]
    assert len([one for one in rung if one is not None]) == len(alive)


@pytest.mark.parametrize("now", [0.0, 4.0, 9.0])
def test_only_what_has_rung_is_taken(now: float) -> None:
    timers = Timers(set(range(10)), set())
    for number in range(10):
        timers.set(float(number), Due.DEADLINE, (number,))
    taken = []
    while (rung := timers.pop(now)) is not None:
        taken.append(rung[1])
    assert taken == [(number,) for number in range(int(now) + 1)]
