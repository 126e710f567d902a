"""Which variant does another one's work on a worker: every condition, and what holds whatever the load."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from infaas_worker.decide.exchange import GAIN, Room, Wanted, cost
from infaas_worker.decide.scale import Asked, Limits, Memory, Plan, Replica, Resources, plan_instances
from msgspec.structs import replace

from infaas.domain.action import Action, Cause
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.variant import Variant
from infaas.testing.builders import MIB, a_variant

LEAN = a_variant("lean", p95_ms=10.0, per_item_ms=10.0, memory_mib=10.0)
"""Small, and as long for each row as for one."""
WIDE = a_variant("wide", p95_ms=4.0, per_item_ms=0.2, memory_mib=200.0)
"""Large, and hardly longer for a batch than for a row."""
EVEN = a_variant("even", p95_ms=7.0, per_item_ms=7.0, memory_mib=10.0)
"""As lean, and a little better."""
BOTH = {one.name: one for one in (LEAN, WIDE)}
LIMITS = Limits(max_replicas=8, upscale_delay_s=1.0, downscale_delay_s=10.0)
CORES, MEMORY_BYTES = 2, 1000 * MIB
ALL = frozenset(BOTH)


class Site:
    """A worker that is looked at each second; what is decided happens by the next look."""

    def __init__(
        self,
        *there: str,
        variants: dict[VariantName, Variant] = BOTH,
        admitted: frozenset[VariantName] = ALL,
        latency_s: float = 1.0,
        taken_bytes: int = 0,
        limits: Limits = LIMITS,
    ) -> None:
        self.variants = variants
        self.admitted = admitted
        self.latency_s = latency_s
        self.taken_bytes = taken_bytes
        """By what nobody asks about."""
        self.limits = limits
        self.memory = Memory()
        self.now = 100.0
        self.replicas: list[Replica] = []
        self.plans: list[Plan] = []
        self.failed: dict[VariantName, float] = {}
        self.leased = 0
        self.loaded = 0
        for name in there:
            self._add(VariantName(name), is_ready=True)

    def _add(self, name: VariantName, *, is_ready: bool) -> None:
        self.loaded += 1
        own = self.variants[name]
        id = InstanceId(f"i{self.loaded:04}")
        self.replicas.append(
            Replica(id, name, own.threads, own.memory_bytes, is_ready, True, 0.0, self.now, 0.2, items=0)
        )

    def names(self) -> list[str]:
        return sorted(one.variant for one in self.replicas)

    def second(self, items_per_s: float, serving: str | None = None, *, loads_succeed: bool = True) -> Plan:
        """One second with so many items for one variant: the named one, else the first that is READY here."""
        self.now += 1.0
        name = serving or next((one.variant for one in self.replicas if one.is_ready), None)
        own = [one for one in self.replicas if one.variant == name and one.is_ready]
        each = items_per_s / len(own) if own else 0.0
        self.replicas = [self._ran(one, each) if one in own else one for one in self.replicas]
        used = sum(one.memory_bytes for one in self.replicas)
        resources = Resources(CORES - self.leased, 0.0, MEMORY_BYTES - self.taken_bytes - used, float(CORES))
        wanted = {one.variant: Wanted(self.admitted - {one.variant}, self.latency_s) for one in self.replicas}
        asked = Asked(self.variants, wanted, CORES, MEMORY_BYTES)
        plan = plan_instances(self.replicas, self.failed, resources, self.limits, self.memory, self.now, asked)
        self.memory = plan.memory
        self.plans.append(plan)
        if loads_succeed:
            self.replicas = [self._ready(one) for one in self.replicas]
        for step in plan.steps:
            if step.target is not None:
                self._add(step.target, is_ready=False)
            elif step.action is Action.REPLICATE:
                self._add(step.variant, is_ready=False)
            elif step.action is Action.UNLOAD:
                self.replicas = [one for one in self.replicas if one.id != step.instance]
        return plan

    def _ran(self, one: Replica, items: float) -> Replica:
        variant = self.variants[one.variant]
        batch = 1
        while batch < 32 and items * variant.run_s(batch, "mean_s") > batch:
            batch *= 2
        busy = min(1.0, items * variant.run_s(batch, "mean_s") / batch)
        done = min(items, busy * batch / variant.run_s(batch, "mean_s"))
        return replace(one, busy_s=one.busy_s + busy, items=one.items + round(done), used_at=self.now)

    def _ready(self, one: Replica) -> Replica:
        return replace(one, is_ready=True)

    def seconds(self, count: int, items_per_s: float) -> list[Plan]:
        return [self.second(items_per_s) for _ in range(count)]

    @property
    def moves(self) -> list[tuple[Action, Cause, str, str | None]]:
        """Everything done but replicas."""
        done = [step for plan in self.plans for step in plan.steps]
        kept = [step for step in done if step.action not in (Action.HOLD, Action.REPLICATE)]
        return [(step.action, step.cause, step.variant, step.target) for step in kept if step.cause is not Cause.QUIET]


def test_a_busy_variant_is_upgraded_to_one_that_does_more_and_goes_when_that_is_ready() -> None:
    site = Site("lean")
    site.seconds(4, 150.0)
    (begun,) = site.moves
    assert begun == (Action.UPGRADE, Cause.BUSY, "lean", "wide")
    assert site.names() == ["lean", "wide"], "it goes on until the other one is there"
    site.seconds(2, 150.0)
    assert site.moves[1:] == [(Action.UNLOAD, Cause.REPLACED, "lean", None)]
    assert site.names() == ["wide"]
    assert dict(site.memory.exchange.given_up) == {"lean": "wide"}


def test_after_the_load_has_gone_the_small_one_takes_over_again_and_not_at_once() -> None:
    site = Site("wide")
    site.seconds(5, 4.0)
    assert site.moves == []
    site.seconds(10, 4.0)
    assert site.moves[0] == (Action.DOWNGRADE, Cause.CHEAPER, "wide", "lean")
    assert site.names() == ["lean"]
    reason = next(step.reason for plan in site.plans for step in plan.steps)
    assert reason == "wide takes 20.0% of the worker for 4 items/s, lean would take 1.8%"


def test_what_the_queries_do_not_admit_is_never_loaded_for_them() -> None:
    site = Site("lean", admitted=frozenset([LEAN.name]))
    site.seconds(30, 150.0)
    assert site.moves == []
    assert set(site.names()) == {"lean"}


def test_what_is_too_slow_for_the_tightest_query_is_not_loaded_for_it() -> None:
    slow = a_variant("slow", p95_ms=40.0, per_item_ms=0.2, memory_mib=200.0)
    site = Site("lean", variants={LEAN.name: LEAN, slow.name: slow}, admitted=frozenset([slow.name]), latency_s=0.06)
    site.seconds(30, 150.0)
    assert site.moves == []


def test_it_is_loaded_into_free_memory_only() -> None:
    site = Site("lean", taken_bytes=795 * MIB)
    site.seconds(30, 150.0)
    assert site.moves == []
    roomier = Site("lean", taken_bytes=770 * MIB)
    roomier.seconds(30, 150.0)
    assert roomier.names() == ["wide"]


def test_one_that_failed_lately_is_not_tried() -> None:
    site = Site("lean")
    site.failed = {WIDE.name: site.now + 5.0}
    site.seconds(30, 150.0)
    assert site.moves == []
    site.seconds(20, 150.0)
    assert site.moves[0] == (Action.UPGRADE, Cause.CHEAPER, "lean", "wide"), "two of them are not short of room"


def test_a_target_that_never_comes_costs_nothing() -> None:
    site = Site("lean")
    site.seconds(4, 150.0)
    site.replicas = [one for one in site.replicas if one.variant == LEAN.name]
    site.failed = {WIDE.name: site.now}
    site.seconds(3, 150.0)
    assert "lean" in site.names()
    assert site.memory.exchange.under_way is None
    assert not site.memory.exchange.given_up


def test_what_is_loading_is_waited_for() -> None:
    site = Site("lean")
    site.seconds(3, 150.0)
    for _ in range(20):
        site.second(150.0, "lean", loads_succeed=False)
    assert [move[0] for move in site.moves] == [Action.UPGRADE]
    assert site.names() == ["lean", "wide"], "nor is another lean one loaded meanwhile"


def test_two_that_are_there_become_one_where_one_would_do() -> None:
    other = a_variant("other", p95_ms=9.0, per_item_ms=9.0, memory_mib=100.0)
    site = Site(
        "lean", "other", variants={LEAN.name: LEAN, other.name: other}, admitted=frozenset([LEAN.name, other.name])
    )
    site.seconds(15, 4.0)
    assert site.names() == ["lean"]
    assert site.moves == [
        (Action.DOWNGRADE, Cause.CHEAPER, "other", None),
        (Action.UNLOAD, Cause.REPLACED, "other", None),
    ]


def test_one_that_comes_back_is_given_up_no_more() -> None:
    site = Site("lean")
    site.seconds(8, 150.0)
    assert site.memory.exchange.given_up
    site._add(LEAN.name, is_ready=True)
    site.second(150.0, "wide")
    assert not site.memory.exchange.given_up


def test_what_had_its_work_done_by_what_goes_has_it_done_by_what_comes() -> None:
    best = a_variant("best", p95_ms=1.0, per_item_ms=0.05, memory_mib=40.0)
    some = {one.name: one for one in (LEAN, WIDE, best)}
    site = Site("lean", variants=BOTH, admitted=ALL)
    site.seconds(8, 150.0)
    assert site.names() == ["wide"]
    site.variants, site.admitted = some, frozenset(some)
    site.seconds(20, 150.0)
    assert site.names() == ["best"]
    assert dict(site.memory.exchange.given_up) == {"lean": "best", "wide": "best"}


def test_what_somebody_needed_in_spite_of_it_stays_for_a_while() -> None:
    site = Site("lean")
    site.seconds(8, 150.0)
    site._add(LEAN.name, is_ready=True)
    for _ in range(50):
        site.second(20.0, "wide")
    assert site.names() == ["lean", "wide"]
    for _ in range(30):
        site.second(20.0, "wide")
    assert len(site.names()) == 1


def test_an_exchange_is_given_up_when_other_queries_come_before_its_target_is_ready() -> None:
    site = Site("lean")
    site.seconds(3, 150.0)
    while "wide" not in site.names():
        site.second(150.0)
    site.admitted = frozenset([LEAN.name])
    site.seconds(5, 150.0)
    assert "lean" in site.names()
    assert Cause.REPLACED not in [move[1] for move in site.moves]
    assert site.memory.exchange.under_way is None


def test_a_target_that_would_take_several_instances_is_not_begun_with_one() -> None:
    some = {LEAN.name: LEAN, EVEN.name: EVEN}
    site = Site("lean", "lean", variants=some, admitted=frozenset(some))
    site.seconds(40, 200.0)
    assert site.moves == []
    assert site.names() == ["lean", "lean"]


def test_what_serves_late_queries_is_not_replaced_for_that() -> None:
    """Half of their time is asked of a target; that the source serves is seen."""
    site = Site("lean", latency_s=0.012)
    site.seconds(40, 2.0)
    assert site.moves == []


def test_nothing_is_exchanged_while_cores_are_lent() -> None:
    site = Site("lean")
    site.leased = 1
    site.seconds(30, 150.0)
    assert site.moves == []


def test_nothing_is_exchanged_where_nobody_said_what_queries_admit() -> None:
    site = Site("lean")
    for _ in range(20):
        site.now += 1.0
        site.replicas = [site._ran(one, 150.0) for one in site.replicas]
        plan = plan_instances(
            site.replicas, {}, Resources(CORES, 0.0, MEMORY_BYTES, 2.0), LIMITS, site.memory, site.now
        )
        site.memory = plan.memory
        assert all(step.target is None for step in plan.steps)


def test_cost_is_the_larger_of_the_shares_of_cores_and_memory() -> None:
    room = Room(CORES, False, MEMORY_BYTES, MEMORY_BYTES, 8)
    asked = Wanted(ALL, 1.0)
    assert cost(WIDE, 1.0, asked, room) == pytest.approx(0.2)
    assert cost(LEAN, 1.0, asked, room) == pytest.approx(0.01)
    assert cost(LEAN, 100.0, asked, room) == pytest.approx(100 * 0.92 * 10e-3 / CORES)
    assert cost(LEAN, 1_000.0, asked, room) is None, "it would take more cores than there are"
    assert cost(LEAN, 1.0, Wanted(ALL, 0.015), room) is None, "half of the time is for the run"


variants = st.builds(
    lambda p95, step, memory, threads: (p95, step * p95, memory, threads),
    st.floats(0.5, 50.0),
    st.floats(0.01, 1.0),
    st.floats(1.0, 400.0),
    st.integers(1, 2),
)


def _some(facts: Sequence[tuple[float, float, float, int]]) -> dict[VariantName, Variant]:
    made = [
        a_variant(f"v{n}", p95_ms=p95, per_item_ms=step, memory_mib=memory, threads=threads)
        for n, (p95, step, memory, threads) in enumerate(facts)
    ]
    return {one.name: one for one in made}


@example(facts=[(13.0, 0.03125, 1.0, 2), (18.0, 1.0, 1.0, 1)], load=83.0)
@given(facts=st.lists(variants, min_size=2, max_size=4), load=st.floats(0.0, 500.0))
def test_a_steady_load_comes_to_rest_and_something_always_serves(
    facts: Sequence[tuple[float, float, float, int]], load: float
) -> None:
    some = _some(facts)
    site = Site("v0", variants=some, admitted=frozenset(some), limits=Limits(4, 1.0, 3.0))
    for _ in range(40):
        site.second(load)
        assert any(one.is_ready for one in site.replicas)
    moved = len(site.moves)
    site.seconds(20, load)
    assert len(site.moves) == moved


@given(facts=st.lists(variants, min_size=2, max_size=4), load=st.floats(0.0, 500.0), first=st.floats(0.0, 200.0))
def test_a_steady_load_comes_to_rest_where_selection_loads_again_what_it_likes_best(
    facts: Sequence[tuple[float, float, float, int]], load: float, first: float
) -> None:
    """It does so unless the worker says that it has given it up."""
    some = _some(facts)
    by_cost = sorted(some.values(), key=lambda one: (one.run_s(1) * one.threads, one.name))
    site = Site("v0", variants=some, admitted=frozenset(some), limits=Limits(4, 1.0, 3.0))

    def second(rate: float) -> None:
        liked = next(one.name for one in by_cost if one.name not in site.memory.exchange.given_up)
        if liked not in site.names():
            site._add(liked, is_ready=False)
        site.second(rate, liked if any(one.variant == liked and one.is_ready for one in site.replicas) else None)

    for _ in range(10):
        second(first)
    for _ in range(60):
        second(load)
    moved = len(site.moves)
    for _ in range(30):
        second(load)
    assert len(site.moves) == moved


@given(
    facts=st.lists(variants, min_size=2, max_size=4), loads=st.lists(st.floats(0.0, 800.0), min_size=10, max_size=40)
)
def test_bounds_hold_whatever_the_load(
    facts: Sequence[tuple[float, float, float, int]], loads: Sequence[float]
) -> None:
    some = _some(facts)
    site = Site("v0", variants=some, admitted=frozenset(some), limits=Limits(3, 1.0, 3.0))
    for load in loads:
        before = len(site.replicas)
        site.second(load)
        assert any(one.is_ready for one in site.replicas)
        assert sum(one.memory_bytes for one in site.replicas) <= MEMORY_BYTES
        assert len(site.replicas) <= before + 1
        assert all(site.names().count(name) <= 3 for name in site.names())


@example(facts=[(13.0, 0.03125, 1.0, 2), (18.0, 1.0, 1.0, 1)], load=83.0)
@given(facts=st.lists(variants, min_size=1, max_size=1), load=st.floats(0.0, 500.0))
def test_more_load_never_costs_less(facts: Sequence[tuple[float, float, float, int]], load: float) -> None:
    room, asked = Room(CORES, False, MEMORY_BYTES, MEMORY_BYTES, 8), Wanted(ALL, 1.0)
    for variant in _some(facts).values():
        less, more = cost(variant, load, asked, room), cost(variant, load + 1.0, asked, room)
        assert more is None or (less is not None and less <= more)


@given(load=st.floats(1.0, 300.0))
def test_loads_that_waver_less_than_what_is_gained_exchange_nothing_twice(load: float) -> None:
    """Back and forth would each have to cost a quarter less than the other."""
    room, asked = Room(CORES, False, MEMORY_BYTES, MEMORY_BYTES, 8), Wanted(ALL, 1.0)
    there, back = cost(LEAN, load, asked, room), cost(WIDE, load, asked, room)
    if there is not None and back is not None:
        assert not (back <= GAIN * there and there <= GAIN * back)
    site = Site("lean")
    site.seconds(60, load)
    assert len([move for move in site.moves if move[0] in (Action.UPGRADE, Action.DOWNGRADE)]) <= 1
