"""Who leaves so that a new instance fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from infaas_worker.decide.memory import MIB, NoRoom, Resident, Room, make_room

from infaas.domain.ids import InstanceId


def resident(name: str, mib: int, *, items: float = 0.0, reload_s: float = 1.0, **flags: bool) -> Resident:
    facts = {"is_leaving": False, "is_evictable": True, **flags}
    return Resident(InstanceId(name), mib * MIB, recent_items=items, reload_s=reload_s, **facts)


def test_nobody_leaves_while_there_is_room():
    assert make_room(50 * MIB, 100 * MIB, [resident("a", 50)]) == Room()


def test_the_least_used_leaves():
    assert make_room(10 * MIB, 100 * MIB, [resident("a", 50, items=9), resident("b", 50, items=1)]) == Room(
        ("b",), ("b",)
    )


def test_of_equally_used_ones_the_quickest_to_load_again_leaves():
    rows = [resident("a", 50, items=5, reload_s=9), resident("b", 50, items=5, reload_s=1)]
    assert make_room(10 * MIB, 100 * MIB, rows) == Room(("b",), ("b",))


def test_without_recent_use_reload_time_per_byte_decides():
    rows = [resident("a", 50, reload_s=0.1), resident("b", 50, reload_s=5)]
    assert make_room(10 * MIB, 100 * MIB, rows) == Room(("a",), ("a",))


def test_no_more_leave_than_needed():
    rows = [resident("small", 10, items=1), resident("big", 60, items=1.5, reload_s=9), resident("keep", 30, items=99)]
    assert make_room(50 * MIB, 100 * MIB, rows) == Room(("big",), ("big",))


def test_memory_that_is_being_freed_is_waited_for_before_anybody_is_sent_away():
    rows = [resident("a", 50), resident("b", 50, is_leaving=True)]
    assert make_room(50 * MIB, 100 * MIB, rows) == Room((), ("b",))
    assert make_room(80 * MIB, 100 * MIB, rows) == Room(("a",), ("b", "a"))


def test_busy_ones_stay_and_the_refusal_has_the_numbers():
    rows = [resident("a", 60, is_evictable=False), resident("b", 20)]
    refused = make_room(50 * MIB, 100 * MIB, rows)
    assert isinstance(refused, NoRoom)
    for fact in (
        "needs 50.0 MiB",
        "of 100.0 MiB are 20.0 MiB free",
        "20.0 MiB held by idle",
        "1 instances are loading",
    ):
        assert fact in refused.reason


def test_what_is_larger_than_the_whole_budget_is_refused():
    refused = make_room(101 * MIB, 100 * MIB, [])
    assert isinstance(refused, NoRoom)
    assert "101.0 MiB, more than this worker's whole budget of 100.0 MiB" in refused.reason


@given(
    st.integers(0, 120),
    st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans(), st.floats(0, 9)), max_size=7),
)
def test_a_plan_frees_enough_names_only_those_who_may_leave_and_spares_nobody_in_vain(need, rows):
    residents = [
        resident(str(i), m, items=use, is_leaving=leaving, is_evictable=can)
        for i, (m, leaving, can, use) in enumerate(rows)
    ]
    plan = make_room(need * MIB, 100 * MIB, residents)
    stays = {r.id: r.memory_bytes for r in residents}
    if isinstance(plan, NoRoom):
        immovable = sum(r.memory_bytes for r in residents if not r.is_leaving and not r.is_evictable)
        assert immovable + need * MIB > 100 * MIB
        return
    movable = {r.id for r in residents if r.is_evictable and not r.is_leaving}
    assert set(plan.evict) <= movable
    assert set(plan.evict) <= set(plan.wait_for)
    after = {key: size for key, size in stays.items() if key not in plan.wait_for}
    assert sum(after.values()) + need * MIB <= 100 * MIB
    for spared in plan.evict:
        assert sum(after.values()) + stays[spared] + need * MIB > 100 * MIB
