"""The rules by which tenants share a queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.fair import (
    CREDIT_ITEMS,
    HALF_LIFE_ITEMS,
    ahead_of,
    faded,
    items_before,
    joined,
    who_yields,
)


def test_idle_time_saves_up_little_and_what_one_is_ahead_is_kept() -> None:
    assert joined(3.0, 100.0) == 100.0 - CREDIT_ITEMS
    assert joined(97.0, 100.0) == 97.0
    assert joined(130.0, 100.0) == 130.0


def test_a_tenant_waits_for_its_own_and_for_as_much_of_each_other_as_it_gets() -> None:
    assert items_before(own=0, items=1, others=500, tenants=1, pace=0.0, known=2) == 1
    assert items_before(own=4, items=2, others=500, tenants=3, pace=0.0, known=4) == 4 + 3 * 6
    assert items_before(own=400, items=1, others=5, tenants=1, pace=0.0, known=2) == 405, "no more than there is"
    assert items_before(own=4, items=2, others=500, tenants=3, pace=0.0, known=4, behind=5.0) == 4 + 3 * 1
    assert items_before(own=4, items=2, others=500, tenants=3, pace=0.0, known=4, behind=8.0) == 4


def test_who_gets_more_than_an_equal_part_gets_on_as_fast_as_lately_and_not_faster() -> None:
    assert items_before(own=70, items=1, others=0, tenants=0, pace=0.7, known=2) == pytest.approx(100)
    assert items_before(own=70, items=1, others=0, tenants=0, pace=0.4, known=2) == 70, "his part is not used up"
    assert items_before(own=70, items=1, others=0, tenants=0, pace=1.0, known=1) == 70


@given(
    own=st.integers(0, 1_000), items=st.integers(1, 64), others=st.integers(0, 1_000), tenants=st.integers(1, 20),
    pace=st.floats(0, 1),
)  # fmt: skip
def test_nobody_is_promised_to_overtake_his_own_and_a_small_share_is_a_short_wait(
    own: int, items: int, others: int, tenants: int, pace: float
) -> None:
    known = tenants + 1
    before = items_before(own, items, others, tenants, pace, known)
    assert before >= own
    assert before <= max(own + tenants * (own + items), own * known)


def test_what_was_served_long_ago_counts_less() -> None:
    assert faded(64.0, 0.0) == 64.0
    assert faded(64.0, HALF_LIFE_ITEMS) == pytest.approx(32.0)
    assert faded(64.0, 10 * HALF_LIFE_ITEMS) < 0.1


def test_what_is_more_urgent_is_ahead_of_every_share() -> None:
    ahead = [2, 5, 15, 25, 30, 40]
    assert ahead_of(ahead, urgency=0, part=0.5) == 3
    assert ahead_of(ahead, urgency=2, part=0.5) == 5 + 10
    assert ahead_of(ahead, urgency=3, part=1.5) == 5 + 30
    assert ahead_of(ahead, urgency=5, part=0.0) == 25


def test_who_holds_most_of_a_full_queue_makes_room_while_he_holds_no_less_than_who_asks() -> None:
    held = {"a": 8, "b": 1, "c": 3}
    assert who_yields(held, "b", wanted=1, need=1) == "a"
    assert who_yields(held, "new", wanted=2, need=2) == "a"
    assert who_yields(held, "a", wanted=1, need=1) is None, "in a flood it is the flood that is refused"
    assert who_yields(held, "b", wanted=6, need=3) is None
    assert who_yields({"a": 12}, "a", wanted=1, need=1) is None
    assert who_yields({}, "a", wanted=1, need=1) is None


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), max_size=200), limit=st.integers(8, 40)
)  # fmt: skip
def test_a_queue_that_stays_full_is_shared_as_evenly_as_its_tenants_ask_for(
    arrivals: list[tuple[str, int]], limit: int
) -> None:
    """Nobody leaves the queue while somebody else holds more, and nobody is refused who holds less than an equal part
    would be, but for the size of one query."""
    held: dict[str, int] = {}
    for tenant, items in arrivals:
        need = sum(held.values()) + items - limit
        if need > 0:
            yields = who_yields(held, tenant, items, need)
            if yields is None:
                assert held.get(tenant, 0) + items > limit / 4 - 4 or len(held) < 4
                continue
            assert held[yields] - need >= held.get(tenant, 0) + items
            held[yields] -= need
        held[tenant] = held.get(tenant, 0) + items
        assert sum(held.values()) <= limit
