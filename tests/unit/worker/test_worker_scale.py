"""How many instances a worker holds of each variant: every branch, and what holds whatever is seen."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from infaas_worker.decide.scale import (
    BUSY_SHARE,
    LEASE_PATIENCE_S,
    QUIET_SHARE,
    Limits,
    Memory,
    Plan,
    Replica,
    Resources,
    plan_instances,
)
from msgspec.structs import replace

from infaas.domain.action import Action, Cause
from infaas.domain.ids import InstanceId, VariantName

LIMITS = Limits(max_replicas=8, upscale_delay_s=1.0, downscale_delay_s=10.0)
ROOMY = Resources(cores=4, asked_for_s=0.0, free_bytes=1_000, idle_cores=4.0)
MEMORY_BYTES = 100


class Site:
    """A worker whose variants are given so much to do, in instances that would run all the time; looked at each
    second, and what is decided happens by the next look."""

    def __init__(self, resources: Resources = ROOMY, limits: Limits = LIMITS, cores_taken: float = 0.0) -> None:
        self.resources = resources
        self.limits = limits
        self.cores_taken = cores_taken
        """By others on the machine."""
        self.memory = Memory()
        self.now = 100.0
        self.replicas: list[Replica] = []
        self.failed: dict[VariantName, float] = {}
        self.plans: list[Plan] = []
        self.loaded = 0

    def add(self, variant: str, *, is_ready: bool = True, threads: int = 1, can_replicate: bool = True) -> None:
        self.loaded += 1
        id = InstanceId(f"i{self.loaded:04}")
        name = VariantName(variant)
        self.replicas.append(
            Replica(id, name, threads, MEMORY_BYTES, is_ready, True, 0.0, self.now, 0.5, can_replicate)
        )

    def count(self, variant: str = "v") -> int:
        return sum(one.variant == variant for one in self.replicas)

    def second(self, wanted: float = 0.0, variant: str = "v") -> Plan:
        """One second with so much work for one variant, shared evenly among its instances that are READY."""
        self.now += 1.0
        serving = [one for one in self.replicas if one.variant == variant and one.is_ready]
        share = min(1.0, wanted / len(serving)) if serving else 0.0
        self.replicas = [
            replace(
                one,
                busy_s=one.busy_s + share,
                is_idle=share == 0,
                used_at=self.now if share else one.used_at,
            )
            if one in serving
            else one
            for one in self.replicas
        ]
        busy = share * sum(one.threads for one in serving)
        idle = max(0.0, self.resources.cores - self.cores_taken - busy)
        used = sum(one.memory_bytes for one in self.replicas)
        now = replace(self.resources, free_bytes=self.resources.free_bytes - used, idle_cores=idle)
        plan = plan_instances(self.replicas, self.failed, now, self.limits, self.memory, self.now)
        self.memory = plan.memory
        self.plans.append(plan)
        self.replicas = [replace(one, is_ready=True) for one in self.replicas]
        for step in plan.steps:
            if step.action is Action.REPLICATE:
                self.add(step.variant, is_ready=False, threads=serving[0].threads if serving else 1)
            elif step.action is Action.UNLOAD:
                self.replicas = [one for one in self.replicas if one.id != step.instance]
        return plan

    def seconds(self, count: int, wanted: float = 0.0) -> list[Plan]:
        return [self.second(wanted) for _ in range(count)]

    @property
    def steps(self) -> list[tuple[Action, Cause]]:
        return [(step.action, step.cause) for plan in self.plans for step in plan.steps]


def a_site(*, resources: Resources = ROOMY, limits: Limits = LIMITS, cores_taken: float = 0.0) -> Site:
    site = Site(resources, limits, cores_taken)
    site.add("v")
    return site


def test_a_busy_variant_is_loaded_again_once_it_has_been_busy_for_the_delay() -> None:
    site = a_site(limits=replace(LIMITS, upscale_delay_s=3.0))
    site.seconds(5, wanted=1.0)
    assert site.steps == [], "smoothed over two looks, then three seconds"
    site.seconds(2, wanted=1.0)
    assert site.steps == [(Action.REPLICATE, Cause.BUSY)]
    (step,) = [step for plan in site.plans for step in plan.steps]
    assert step.replicas == 1
    assert step.reason == "0.97 of 1 run on average, which is 75% of the time or more"
    assert step.instance == "i0001"


def test_one_look_says_nothing() -> None:
    site = a_site()
    site.replicas = [replace(site.replicas[0], busy_s=1_000.0)]
    assert site.second(1.0).steps == ()


def test_instances_are_added_until_none_is_short_of_room_and_then_nothing_changes() -> None:
    site = a_site()
    site.seconds(30, wanted=2.6)
    assert site.count() == 4
    assert {cause for _, cause in site.steps} == {Cause.BUSY}
    before = len(site.steps)
    site.seconds(60, wanted=2.6)
    assert len(site.steps) == before


def test_one_is_loaded_at_a_time() -> None:
    site = a_site(resources=Resources(cores=64, asked_for_s=0.0, free_bytes=100_000, idle_cores=64.0))
    for plan in site.seconds(40, wanted=30.0):
        assert len(plan.steps) <= 1
    assert site.count() == LIMITS.max_replicas


def test_while_one_loads_no_other_is_asked_for() -> None:
    site = a_site()
    site.add("v", is_ready=False)
    loading = site.replicas[1]
    for _ in range(6):
        site.second(1.0)
        site.replicas = [site.replicas[0], loading]
    assert site.steps == []


def test_what_a_server_of_its_own_runs_is_not_loaded_twice() -> None:
    site = Site()
    site.add("v", can_replicate=False)
    site.seconds(10, wanted=1.0)
    assert site.steps == []


def test_who_is_held_back_is_said_once_with_what_stands_against_it() -> None:
    tight = replace(ROOMY, free_bytes=MEMORY_BYTES + 50)
    for resources, limits, taken, cause, said in (
        (ROOMY, replace(LIMITS, max_replicas=1), 0.0, Cause.AT_MOST, "max_replicas"),
        (replace(ROOMY, cores=1), LIMITS, 0.0, Cause.NO_CORES, "no core is idle"),
        (ROOMY, LIMITS, 2.8, Cause.NO_CORES, "no core is idle"),
        (tight, LIMITS, 0.0, Cause.NO_MEMORY, "no room"),
    ):
        site = a_site(resources=resources, limits=limits, cores_taken=taken)
        site.seconds(20, wanted=1.0)
        assert site.steps == [(Action.HOLD, cause)]
        assert said in next(step.reason for plan in site.plans for step in plan.steps)


def test_it_is_said_again_after_the_load_has_fallen() -> None:
    site = a_site(limits=replace(LIMITS, max_replicas=1))
    for wanted in (1.0, 0.0, 1.0):
        site.seconds(10, wanted)
    assert site.steps == [(Action.HOLD, Cause.AT_MOST)] * 2


def test_it_is_said_once_where_now_one_thing_and_now_another_stands_against_it() -> None:
    site = a_site(resources=replace(ROOMY, free_bytes=MEMORY_BYTES + 50))
    for second in range(40):
        site.cores_taken = 3.0 * (second % 2)
        site.second(1.0)
    assert len(site.steps) == 1


def test_after_a_failure_no_other_is_added_for_half_a_minute() -> None:
    site = a_site()
    failed_at = site.now
    site.failed = {VariantName("v"): failed_at}
    site.seconds(5, wanted=1.0)
    site.failed = {}
    assert site.steps == [(Action.HOLD, Cause.FAILED)]
    while site.count() == 1:
        site.second(1.0)
    assert site.now - failed_at == 30.0


def test_the_most_pressed_variant_gets_the_last_core() -> None:
    site = Site(replace(ROOMY, cores=3))
    site.add("a")
    site.add("b")
    for _ in range(8):
        site.now += 1.0
        site.replicas = [
            replace(one, busy_s=one.busy_s + (0.8 if one.variant == "a" else 1.0)) for one in site.replicas
        ]
        plan = plan_instances(
            site.replicas, {}, Resources(3, 0.0, 1_000, idle_cores=1.2), LIMITS, site.memory, site.now
        )
        site.memory = plan.memory
        if plan.steps:
            break
    assert next((step.variant, step.action) for step in plan.steps) == ("b", Action.REPLICATE)
    assert ("a", Action.REPLICATE) not in [(step.variant, step.action) for step in plan.steps]


def test_an_instance_goes_once_one_less_would_have_been_enough_for_the_delay() -> None:
    site = a_site()
    site.seconds(20, wanted=2.6)
    site.plans.clear()
    site.seconds(8, wanted=0.2)
    assert site.steps == []
    site.seconds(60, wanted=0.2)
    assert site.count() == 1
    assert site.steps == [(Action.UNLOAD, Cause.QUIET)] * 3


def test_an_instance_stays_for_as_long_as_a_load_takes() -> None:
    site = a_site(limits=replace(LIMITS, downscale_delay_s=0.0))
    site.add("v")
    site.replicas = [replace(one, load_s=20.0) for one in site.replicas]
    site.seconds(18, wanted=0.1)
    assert site.count() == 2
    site.seconds(5, wanted=0.1)
    assert site.count() == 1


def test_the_idle_one_goes_and_of_those_the_one_that_was_used_longest_ago() -> None:
    site = a_site()
    for _ in range(2):
        site.add("v")
    first, second, third = (one.id for one in site.replicas)
    for _ in range(20):
        site.now += 1.0
        site.replicas = [
            replace(one, is_idle=one.id != first, used_at={first: 1.0, second: 3.0, third: 2.0}[one.id])
            for one in site.replicas
        ]
        plan = plan_instances(site.replicas, {}, ROOMY, LIMITS, site.memory, site.now)
        site.memory = plan.memory
        if plan.steps:
            break
    assert [step.instance for step in plan.steps] == [third]


def test_the_last_one_stays_unless_it_may_go_for_want_of_use() -> None:
    site = a_site()
    site.seconds(200)
    assert site.steps == []
    site = a_site(limits=replace(LIMITS, downscale_to_zero_delay_s=30.0))
    site.seconds(10, wanted=0.2)
    site.seconds(29)
    assert site.count() == 1
    site.seconds(2)
    assert site.count() == 0
    assert site.steps == [(Action.UNLOAD, Cause.UNUSED)]


def test_of_several_instances_one_goes_for_somebody_who_has_waited_for_cores_and_is_not_replaced_for_a_while() -> None:
    site = a_site()
    site.seconds(20, wanted=2.6)
    assert site.count() == 4
    site.plans.clear()
    site.resources = replace(ROOMY, asked_for_s=LEASE_PATIENCE_S - 0.1)
    site.seconds(5, wanted=2.6)
    assert site.steps == []
    site.resources = replace(ROOMY, asked_for_s=LEASE_PATIENCE_S)
    site.second(2.6)
    assert site.steps == [(Action.UNLOAD, Cause.LENT)]
    site.resources = ROOMY
    site.seconds(20, wanted=2.6)
    assert site.steps == [(Action.UNLOAD, Cause.LENT), (Action.HOLD, Cause.LENT)]
    site.seconds(20, wanted=2.6)
    assert site.count() == 4


def test_a_variants_only_instance_goes_for_nobody() -> None:
    site = a_site(resources=replace(ROOMY, cores=1, asked_for_s=10.0))
    site.seconds(30, wanted=1.0)
    assert {action for action, _ in site.steps} == {Action.HOLD}


Loads = st.lists(st.floats(0.0, 12.0), min_size=1, max_size=40)


@given(
    loads=Loads,
    cores=st.integers(1, 16),
    threads=st.integers(1, 4),
    memory=st.integers(0, 20),
    most=st.integers(1, 8),
    taken=st.floats(0.0, 8.0),
)
def test_bounds_hold_whatever_the_load(
    loads: Sequence[float], cores: int, threads: int, memory: int, most: int, taken: float
) -> None:
    limits = replace(LIMITS, max_replicas=most, downscale_delay_s=2.0)
    site = Site(Resources(cores, 0.0, memory * MEMORY_BYTES, float(cores)), limits, taken)
    site.add("v", threads=threads)
    for load in loads:
        before = site.count()
        site.second(load)
        assert site.count() >= 1
        if site.count() > before:
            assert site.count() <= most
            assert site.count() * threads <= cores
            assert site.count() * MEMORY_BYTES <= site.resources.free_bytes


@given(loads=st.lists(st.just(0.0), min_size=1, max_size=60), start=st.integers(1, 6))
def test_nothing_grows_without_demand(loads: Sequence[float], start: int) -> None:
    site = Site()
    for _ in range(start):
        site.add("v")
    for load in loads:
        site.second(load)
    assert Action.REPLICATE not in [action for action, _ in site.steps]


@given(load=st.floats(0.0, 16.0), cores=st.integers(1, 16), start=st.integers(1, 8))
def test_a_steady_load_comes_to_rest(load: float, cores: int, start: int) -> None:
    resources = Resources(cores, 0.0, 10_000, float(cores))
    site = Site(resources, replace(LIMITS, downscale_delay_s=3.0, max_replicas=16))
    for _ in range(min(start, cores)):
        site.add("v")
    site.seconds(120, load)
    rested = site.count()
    done = len([step for step in site.steps if step[0] is not Action.HOLD])
    site.seconds(60, load)
    assert site.count() == rested
    assert len([step for step in site.steps if step[0] is not Action.HOLD]) == done


@given(wavering=st.lists(st.floats(QUIET_SHARE, BUSY_SHARE - 0.01), min_size=30, max_size=60), count=st.integers(2, 4))
def test_a_load_that_wavers_within_the_band_changes_nothing(wavering: Sequence[float], count: int) -> None:
    """The band: none is short of room, and without one of them the others would not be idle half the time."""
    site = Site()
    for _ in range(count):
        site.add("v")
    site.seconds(5, QUIET_SHARE * count)
    for each in wavering:
        site.second(each * count)
    assert site.steps == []
