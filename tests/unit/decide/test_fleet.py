"""How many workers there should be: every trigger and bound, and what holds whatever is seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.fleet import (
    BACK_OFF_S,
    FAILED_BACK_OFF_S,
    GIVE_UP_AFTER,
    TARGET,
    FleetLimits,
    FleetMemory,
    FleetPlan,
    FleetStep,
    Load,
    Observed,
    Pool,
    Requested,
    Stage,
    plan_fleet,
)
from msgspec.structs import replace

from infaas.domain.fleet import FleetAction, FleetCause
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.variant import Hardware

SMALL = Pool("small", Hardware.CPU, cores=1, price_usd_per_hour=0.05, least=1, most=8, startup_s=5.0)
LARGE = Pool("large", Hardware.CPU, cores=4, price_usd_per_hour=0.18, least=0, most=2, startup_s=20.0)
LIMITS = FleetLimits(upscale_delay_s=2.0, downscale_delay_s=20.0)
LOOK_S = 2.0
DEADLINE_S = 0.5
"""What has waited for longer is no work any more."""


class Cloud:
    """Machines come when they have started, and what is drained holds nothing from then on. Work is done by whoever is
    READY, and waits where they are too few."""

    def __init__(self, *pools: Pool, limits: FleetLimits = LIMITS, comes: bool = True) -> None:
        self.pools = pools
        self.limits = limits
        self.comes = comes
        self.memory = FleetMemory()
        self.now = 1_000.0
        self.workers: dict[WorkerId, Observed] = {}
        self.requested: list[Requested] = []
        self.backlog = 0.0
        self.made = 0
        self.steps: list[FleetStep] = []

    def pool(self, name: str) -> Pool:
        return next(pool for pool in self.pools if pool.name == name)

    def add(self, pool: str, count: int = 1, *, stage: Stage = Stage.READY) -> None:
        for _ in range(count):
            self.made += 1
            id = WorkerId(f"{pool}-{self.made:03}")
            self.workers[id] = Observed(id, pool, stage, busy_cores=0.0, in_flight=0)

    @property
    def cores(self) -> int:
        return sum(self.pool(one.pool).cores for one in self.workers.values() if one.stage is Stage.READY)

    @property
    def price(self) -> float:
        there = [one.pool for one in self.workers.values()] + [one.pool for one in self.requested]
        return sum(self.pool(name).price_usd_per_hour for name in there)

    def count(self, pool: str) -> int:
        coming = sum(one.pool == pool for one in self.requested)
        return coming + sum(one.pool == pool and one.stage is Stage.READY for one in self.workers.values())

    def look(self, demand: float | None) -> FleetPlan:
        self.now += LOOK_S
        for one in [one for one in self.requested if self.comes and self._has_come(one)]:
            self.requested.remove(one)
            self.add(one.pool)
        if demand is not None:
            done = min(demand * LOOK_S + self.backlog, self.cores * LOOK_S)
            self.backlog = min(max(0.0, self.backlog + demand * LOOK_S - done), demand * DEADLINE_S)
            share = done / LOOK_S / self.cores if self.cores else 0.0
            for id, one in self.workers.items():
                self.workers[id] = replace(one, busy_cores=share * self.pool(one.pool).cores)
        load = {} if demand is None else {Hardware.CPU: Load(demand, self.backlog)}
        plan = plan_fleet(
            self.pools, self.requested, list(self.workers.values()), load, self.limits, self.memory, self.now
        )
        self.memory = plan.memory
        for step in plan.steps:
            self.perform(step)
        self.steps += plan.steps
        return plan

    def _has_come(self, one: Requested) -> bool:
        return self.now - one.asked_at >= self.pool(one.pool).startup_s

    def perform(self, step: FleetStep) -> None:
        if step.action is FleetAction.ADD:
            self.made += 1
            self.requested.append(Requested(f"r{self.made}", step.pool, self.now))
        elif step.action is FleetAction.DRAIN and step.worker is not None:
            self.workers[step.worker] = replace(self.workers[step.worker], stage=Stage.DRAINING)
        elif step.action is FleetAction.REMOVE and step.worker is not None:
            del self.workers[step.worker]
        elif step.action is FleetAction.GIVE_UP:
            self.requested = [one for one in self.requested if one.id != step.request]

    def looks(self, count: int, demand: float | None) -> None:
        for _ in range(count):
            self.look(demand)

    def actions(self) -> list[FleetAction]:
        return [step.action for step in self.steps]


def a_cloud(*pools: Pool, limits: FleetLimits = LIMITS, small: int = 1, comes: bool = True) -> Cloud:
    cloud = Cloud(*(pools or (SMALL,)), limits=limits, comes=comes)
    cloud.add("small", small)
    return cloud


def test_floors_are_filled_with_nothing_known_of_the_load_if_they_are_missed_for_longer_than_a_look() -> None:
    cloud = Cloud(replace(SMALL, least=3))
    assert cloud.look(None).steps == ()
    plan = cloud.look(None)
    assert [step.action for step in plan.steps] == [FleetAction.ADD] * 3
    assert plan.steps[0].reason == "3 are wanted at least"


def test_a_worker_out_of_sight_for_a_look_is_not_replaced_and_one_that_is_there_still_counts_as_there() -> None:
    cloud = a_cloud(replace(SMALL, least=2, most=2), small=2)
    cloud.looks(3, 0.5)
    first, second = cloud.workers
    cloud.workers[first] = replace(cloud.workers[first], stage=Stage.LOST)
    cloud.look(0.5)
    cloud.workers[first] = replace(cloud.workers[first], stage=Stage.READY)
    cloud.looks(3, 0.5)
    cloud.workers = {id: replace(one, stage=Stage.LOST) for id, one in cloud.workers.items()}
    cloud.looks(10, None)
    assert cloud.steps == [], "as many as there may be are there, if they are not heard"
    assert second in cloud.workers


def test_more_are_ordered_while_some_are_on_their_way_if_those_will_not_be_enough() -> None:
    memory = FleetMemory()
    busy = [Observed(WorkerId("w"), "small", Stage.READY, busy_cores=1.0, in_flight=9)]
    found: list[FleetStep] = []
    for second in range(5):
        load = {Hardware.CPU: Load(4.0)}
        plan = plan_fleet([SMALL], [Requested("r", "small", 99.0)], busy, load, LIMITS, memory, 100.0 + second)
        memory = plan.memory
        found += plan.steps
        if found:
            break
    assert [step.cause for step in found] == [FleetCause.DEMAND] * 4


def test_a_pool_whose_machines_end_before_they_are_of_use_is_asked_ever_more_seldom() -> None:
    memory, there = FleetMemory(), False
    ordered: list[float] = []
    for look in range(600):
        plan = plan_fleet([SMALL], [], [], {}, LIMITS, memory, LOOK_S * look, failed=["small"] if there else [])
        memory, there = plan.memory, any(step.action is FleetAction.ADD for step in plan.steps)
        ordered += [LOOK_S * look] if there else []
    gaps = [after - before for before, after in pairwise(ordered)]
    first_s, most_s = FAILED_BACK_OFF_S
    longest = [min(most_s, first_s * 2**number) for number in range(len(gaps))]
    assert len(gaps) > 6
    for gap, least in zip(gaps, longest, strict=True):
        assert least <= gap <= least + 3 * LOOK_S


def test_what_others_have_lost_or_drained_does_not_keep_the_fleet_from_shrinking() -> None:
    cloud = a_cloud(small=4)
    cloud.add("small", stage=Stage.LOST)
    cloud.add("small", stage=Stage.DRAINING)
    for id, one in cloud.workers.items():
        if one.stage is not Stage.READY:
            cloud.workers[id] = replace(one, is_ours=False)
    cloud.looks(30, 0.3)
    assert cloud.count("small") == 1
    assert len(cloud.workers) == 3


def test_all_that_was_not_needed_for_the_whole_delay_goes_at_once_and_nothing_else() -> None:
    cloud = a_cloud(small=6)
    cloud.looks(5, 0.5)
    cloud.look(1.5)
    cloud.looks(3, 0.5)
    assert cloud.steps == []
    while not cloud.steps:
        cloud.look(0.5)
    assert cloud.count("small") in (3, 4), "1.5 cores of work were there meanwhile"
    cloud.looks(20, 0.5)
    assert cloud.count("small") == 1


def test_who_alone_can_serve_something_goes_last() -> None:
    cloud = a_cloud(small=3)
    ids = sorted(cloud.workers)
    held = {ids[0]: frozenset({VariantName("a")}), ids[1]: frozenset({VariantName("b"), VariantName("c")})}
    for id, variants in held.items():
        cloud.workers[id] = replace(cloud.workers[id], variants=variants)
    cloud.looks(20, 0.0)
    gone = [step.worker for step in cloud.steps if step.action is FleetAction.DRAIN]
    assert gone == [ids[2], ids[0]]


def test_what_is_being_taken_away_is_paid_for_until_it_is_gone() -> None:
    memory = FleetMemory()
    limits = replace(LIMITS, most_usd_per_hour=0.1)
    for look in range(5):
        plan = plan_fleet([SMALL], [], [], {}, limits, memory, LOOK_S * look, going=["small", "small"])
        memory = plan.memory
    assert [(step.action, step.cause) for step in plan.steps] == [(FleetAction.HOLD, FleetCause.BUDGET)]


def test_as_many_come_as_the_work_needs_and_go_again_when_it_is_over() -> None:
    cloud = a_cloud()
    cloud.looks(40, 2.5)
    assert cloud.count("small") == 4, "what 2.5 cores of work and the little that waits meanwhile take"
    cloud.looks(150, 0.3)
    assert cloud.count("small") == 1
    assert not cloud.requested
    reasons = {step.action: step.reason for step in cloud.steps}
    assert "cores of work come each second" in reasons[FleetAction.ADD]
    assert "cores without it" in reasons[FleetAction.DRAIN]
    assert reasons[FleetAction.REMOVE] == "it has drained and holds nothing"


def test_of_no_workers_at_all_the_first_query_that_is_refused_brings_one() -> None:
    """It may be the only one for long, so that nothing is left of it by the next look."""
    cloud = a_cloud(replace(SMALL, least=0), small=0)
    cloud.looks(5, 0.0)
    (step,) = cloud.look(0.0001).steps
    assert (step.action, step.cause) == (FleetAction.ADD, FleetCause.DEMAND)
    cloud.looks(3, 0.0)
    assert cloud.count("small") == 1
    cloud.looks(20, 0.0)
    assert cloud.count("small") == 0


def test_who_is_out_of_sight_is_not_taken_for_gone_by_the_first_query_that_is_refused() -> None:
    cloud = a_cloud(replace(SMALL, least=0))
    (id,) = cloud.workers
    cloud.workers[id] = replace(cloud.workers[id], stage=Stage.LOST)
    assert cloud.look(0.0001).steps == ()


def test_what_waits_counts_beside_what_comes() -> None:
    memory = FleetMemory()
    one = Observed(WorkerId("w"), "small", Stage.READY, busy_cores=0.3, in_flight=1)
    for second in range(3):
        load = {Hardware.CPU: Load(0.3, backlog_core_s=10.0, horizon_s=1.0)}
        plan = plan_fleet([SMALL], [], [one], load, LIMITS, memory, 100.0 + LOOK_S * second)
        memory = plan.memory
        if plan.steps:
            break
    assert [step.action for step in plan.steps] == [FleetAction.ADD] * 3
    assert "10.00 core-seconds wait" in plan.steps[0].reason


def test_a_load_that_rises_is_met_before_it_is_there() -> None:
    cloud = a_cloud(replace(SMALL, startup_s=30.0, most=20), small=3)
    demand = 0.5
    while cloud.count("small") == 3:
        demand += 0.02 * LOOK_S
        cloud.look(demand)
    assert demand / TARGET < 3


def test_a_step_is_met_and_not_overshot() -> None:
    cloud = a_cloud(replace(SMALL, startup_s=10.0), small=1)
    cloud.looks(40, 0.6)
    most = 0
    for _ in range(60):
        cloud.look(2.4)
        most = max(most, cloud.count("small"))
    assert most == 4, "2.4 cores of work at 0.7 of each"


def test_a_machine_that_is_being_taken_away_still_takes_a_place() -> None:
    pool, memory = replace(SMALL, least=1, most=1), FleetMemory()
    for look in range(5):
        plan = plan_fleet([pool], [], [], {}, LIMITS, memory, LOOK_S * look, going=["small"])
        memory = plan.memory
        assert plan.steps == ()


def test_the_papers_three_triggers_ask_for_one_more_each() -> None:
    def steps(**facts: bool | float) -> list[FleetStep]:
        memory = FleetMemory()
        found: list[FleetStep] = []
        for second in range(3):
            there = [
                replace(Observed(WorkerId(f"w{n}"), "small", Stage.READY, busy_cores=0.4, in_flight=1), **facts)
                for n in range(2)
            ]
            load = {Hardware.CPU: Load(0.4)}
            plan = plan_fleet([SMALL], [], there, load, LIMITS, memory, 100.0 + LOOK_S * second)
            memory = plan.memory
            found += plan.steps
        return found

    assert steps() == []
    for facts, said in (
        ({"busy_cores": 0.9}, "all 2 workers are more than 80% busy"),
        ({"is_interfered": True}, "variants are interfered with on all 2 workers"),
        ({"is_overloaded": True}, "more than 80% of 2 workers hold overloaded variants"),
    ):
        (step,) = steps(**facts)
        assert (step.action, step.reason) == (FleetAction.ADD, said)


def test_a_trigger_asks_for_no_other_while_one_is_on_its_way() -> None:
    memory = FleetMemory()
    busy = [Observed(WorkerId("w"), "small", Stage.READY, busy_cores=0.9, in_flight=1)]
    coming = [Requested("r1", "small", 99.0)]
    for second in range(10):
        load = {Hardware.CPU: Load(0.2)}
        plan = plan_fleet([SMALL], coming, busy, load, LIMITS, memory, 100.0 + second)
        memory = plan.memory
        assert plan.steps == ()


def test_the_pool_is_the_one_that_covers_what_is_missing_at_the_least_price() -> None:
    few, many = a_cloud(SMALL, LARGE), a_cloud(SMALL, LARGE)
    few.looks(4, 1.0)
    assert {step.pool for step in few.steps} == {"small"}
    many.looks(4, 3.0)
    assert [step.pool for step in many.steps] == ["large"]


def test_the_dearest_that_can_be_missed_goes_first() -> None:
    cloud = a_cloud(SMALL, LARGE)
    cloud.add("large")
    cloud.looks(15, 0.2)
    assert [step.pool for step in cloud.steps if step.action is FleetAction.DRAIN] == ["large"]


def test_a_machine_that_does_not_come_is_given_up_and_its_pool_left_alone_for_a_while() -> None:
    cloud = a_cloud(comes=False)
    cloud.looks(3, 1.0)
    assert cloud.actions() == [FleetAction.ADD]
    cloud.looks(int(GIVE_UP_AFTER * SMALL.startup_s / LOOK_S) + 1, 1.0)
    assert FleetAction.GIVE_UP in cloud.actions()
    assert cloud.actions()[-1] is FleetAction.HOLD
    given_up_at = cloud.now
    while cloud.actions().count(FleetAction.ADD) == 1:
        cloud.look(1.0)
    assert cloud.now - given_up_at >= BACK_OFF_S - 2 * LOOK_S


def test_a_budget_that_does_not_suffice_stops_growth_and_says_so() -> None:
    cloud = a_cloud(limits=replace(LIMITS, most_usd_per_hour=0.1))
    cloud.looks(20, 5.0)
    assert cloud.count("small") == 2
    assert cloud.steps[-1].action is FleetAction.HOLD
    assert "the budget of 0.1 USD/h has 0.1 spent" in cloud.steps[-1].reason


def test_without_word_of_the_load_nothing_goes() -> None:
    cloud = a_cloud(small=5)
    cloud.looks(60, None)
    assert cloud.steps == []


def test_what_still_holds_queries_is_not_removed() -> None:
    one = Observed(WorkerId("w"), "small", Stage.DRAINING, busy_cores=0.1, in_flight=1)
    keep = replace(one, id=WorkerId("k"), stage=Stage.READY)
    load = {Hardware.CPU: Load(0.1)}
    assert plan_fleet([SMALL], [], [one, keep], load, LIMITS, FleetMemory(), 1.0).steps == ()
    done = plan_fleet([SMALL], [], [replace(one, in_flight=0), keep], load, LIMITS, FleetMemory(), 1.0)
    assert [(step.action, step.worker) for step in done.steps] == [(FleetAction.REMOVE, "w")]


def test_workers_of_pools_that_nobody_configured_here_are_left_alone() -> None:
    stranger = Observed(WorkerId("s"), "elsewhere", Stage.DRAINING, busy_cores=0.0, in_flight=0)
    keep = Observed(WorkerId("k"), "small", Stage.READY, busy_cores=0.1, in_flight=1)
    assert plan_fleet([SMALL], [], [stranger, keep], {}, LIMITS, FleetMemory(), 1.0).steps == ()


Demands = st.lists(st.one_of(st.none(), st.floats(0.0, 20.0)), min_size=1, max_size=60)


@given(demands=Demands, budget=st.one_of(st.none(), st.floats(0.0, 1.0)), start=st.integers(0, 4))
def test_bounds_and_budget_hold_whatever_the_load(
    demands: Sequence[float | None], budget: float | None, start: int
) -> None:
    cloud = a_cloud(SMALL, LARGE, limits=replace(LIMITS, most_usd_per_hour=budget, downscale_delay_s=4.0), small=start)
    for number, demand in enumerate(demands):
        before = cloud.price
        cloud.look(demand)
        assert cloud.count("small") <= SMALL.most
        assert cloud.count("large") <= LARGE.most
        if budget is not None and cloud.price > before:
            assert cloud.price <= budget + 1e-9
        if budget is None and number:
            assert cloud.count("small") >= SMALL.least


@given(count=st.integers(1, 8), looks=st.integers(1, 60))
def test_nothing_grows_without_demand(count: int, looks: int) -> None:
    cloud = a_cloud(small=count)
    cloud.looks(looks, 0.0)
    assert FleetAction.ADD not in cloud.actions()


@given(demand=st.floats(0.0, 7.0), start=st.integers(1, 8))
def test_a_steady_load_comes_to_rest_at_a_fleet_that_carries_it(demand: float, start: int) -> None:
    cloud = a_cloud(SMALL, LARGE, small=start)
    cloud.looks(200, demand)
    cloud.steps.clear()
    cloud.looks(100, demand)
    assert [step for step in cloud.steps if step.action is not FleetAction.HOLD] == []
    assert demand <= cloud.cores
    assert not cloud.backlog


@given(st.lists(st.floats(1.5, 1.65), min_size=20, max_size=80))
def test_a_load_that_wavers_within_the_band_changes_nothing(demands: Sequence[float]) -> None:
    """Three cores: wanted are 2.1 to 2.4 of them, and two would be loaded beyond what one may leave."""
    cloud = a_cloud(small=3)
    for demand in demands:
        cloud.look(demand)
    assert cloud.steps == []
