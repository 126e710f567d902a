"""How much work there is for the fleet, served or not: what workers do, what controllers turn away, and what waits.

What is served is measured: seconds that instances ran, whoever asked them to. What is not served can only be reckoned:
so many items, times what an item of that variant has cost lately where it ran.

An item may cost less on a worker that has little to do: where processor time is limited, what was saved up is spent at
once, and idle neighbours leave caches and clock rate. Fewer workers would be busier, and pay more. So items count at no
less than what they cost last where instances were busy, which is forgotten slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from infaas.domain.cluster import ClusterView
from infaas.domain.fleet import ControllerDemand
from infaas.domain.ids import InstanceId, TaskName, VariantName, WorkerId
from infaas.domain.query import Code
from infaas.domain.variant import Hardware, Variant, VariantState
from infaas_controller.decide.candidates import cost_of
from infaas_controller.decide.fleet import Load

FORGET_S = 30.0
"""Half-life of what was answered, from which the variants of what was not are told."""
USUAL_WEIGHT = 0.2
BUSY_SHARE = 0.75
"""Of the time that an instance runs, from which on its items show what they cost where there is much to do."""
BUSY_HALF_LIFE_S = 300.0
"""Of what they cost more there: it may have been a neighbour's doing."""
MISSED_FOR_S = 300.0
WANT = frozenset(
    {
        Code.SATURATED,
        Code.DEADLINE_UNREACHABLE,
        Code.EVICTED,
        Code.NO_WORKER,
        Code.LOADING,
        Code.DEADLINE_PASSED,
    }
)
"""Ends of queries that more workers would have served."""


class InstanceWork(msgspec.Struct, frozen=True):
    """What an instance has done since it was loaded."""

    id: InstanceId
    variant: VariantName
    busy_s: float
    items: float


class WorkerWork(msgspec.Struct, frozen=True):
    """What a worker said last of all its instances."""

    id: WorkerId
    at: float
    """When it said so; workers speak at a pace of their own, more often or less than they are looked at."""
    instances: tuple[InstanceWork, ...] = ()


class Work(msgspec.Struct, frozen=True):
    """What workers do, as of their last two words each."""

    busy_cores: Mapping[WorkerId, float]
    by_hardware: Mapping[Hardware, float]
    besides: Mapping[Hardware, float] = {}
    """What the same items would take more on workers that have as much to do as they can."""


class WorkMemory(msgspec.Struct, frozen=True):
    at: float | None = None
    seen: Mapping[WorkerId, WorkerWork] = {}
    """Of who is missing now, too, for as long as it may come back as it was."""
    rates: Mapping[WorkerId, Mapping[Hardware, float]] = {}
    """Cores in use."""
    besides: Mapping[WorkerId, Mapping[Hardware, float]] = {}
    """Cores that would be, besides."""
    cost_s: Mapping[VariantName, float] = {}
    """Core-seconds per item, smoothed."""
    busy_cost_s: Mapping[VariantName, tuple[float, float]] = {}
    """The same of busy instances, and when that was seen."""


class Ends(msgspec.Struct, frozen=True):
    """How the queries of one handle have ended, since the start or decayed."""

    answered: Mapping[VariantName, float] = {}
    wanting: float = 0.0


class DemandMemory(msgspec.Struct, frozen=True):
    at: float | None = None
    totals: Mapping[str, Ends] = {}
    """By handle, since the start, at the last look."""
    recent: Mapping[str, Mapping[VariantName, float]] = {}
    """Answers by handle and variant, decayed."""


def work_done(
    workers: Iterable[WorkerWork], variants: Mapping[VariantName, Variant], memory: WorkMemory, now: float
) -> tuple[Work | None, WorkMemory]:
    """None: there was no look before this one to compare with. A worker that is met for the first time counts from its
    second word on: how much of what it has ever done was done lately is not known before."""
    present = {one.id: one for one in workers}
    kept = {id: one for id, one in memory.seen.items() if id not in present and now - one.at < MISSED_FOR_S}
    costs = _Costs(memory, variants, now)
    rates: dict[WorkerId, Mapping[Hardware, float]] = {}
    besides: dict[WorkerId, Mapping[Hardware, float]] = {}
    for id, one in present.items():
        before = memory.seen.get(id)
        if before is None:
            rates[id] = besides[id] = {}
        elif one.at <= before.at:
            rates[id], besides[id] = memory.rates.get(id, {}), memory.besides.get(id, {})
        else:
            rates[id], besides[id] = _rate(before, one, variants, costs)
    seen = WorkMemory(now, {**kept, **present}, rates, besides, costs.usual, costs.busy)
    if memory.at is None:
        return None, seen
    busy_cores = {id: sum(rate.values()) for id, rate in rates.items()}
    return Work(busy_cores, _summed(rates.values()), _summed(besides.values())), seen


def _summed(rates: Iterable[Mapping[Hardware, float]]) -> dict[Hardware, float]:
    total: dict[Hardware, float] = {}
    for rate in rates:
        for hardware, cores in rate.items():
            total[hardware] = total.get(hardware, 0.0) + cores
    return total


class _Costs:
    """What items cost, as it is learned in the course of a look."""

    def __init__(self, memory: WorkMemory, variants: Mapping[VariantName, Variant], now: float) -> None:
        self.usual = {name: cost for name, cost in memory.cost_s.items() if name in variants}
        self.busy = {name: seen for name, seen in memory.busy_cost_s.items() if name in variants}
        self._now = now

    def learn(self, variant: VariantName, cost_s: float, *, is_busy: bool) -> None:
        self.usual[variant] = _smoothed(self.usual.get(variant), cost_s)
        if is_busy:
            # As much as is left of what was seen before: smoothed with what was forgotten, it would count anew.
            before = self.usual[variant] + self.surcharge(variant) if variant in self.busy else None
            self.busy[variant] = _smoothed(before, cost_s), self._now

    def surcharge(self, variant: VariantName) -> float:
        return surcharge_s(variant, self.usual, self.busy, self._now)

    def besides(self, variant: VariantName, items: float, ran_s: float) -> float:
        """Core-seconds that these items would have taken more where there is much to do; `ran_s` is what they took, as
        much as that or less."""
        surcharge = self.surcharge(variant)
        return min(items * surcharge, max(0.0, items * (self.usual[variant] + surcharge) - ran_s))


def _smoothed(usual: float | None, seen: float) -> float:
    return seen if usual is None else usual + USUAL_WEIGHT * (seen - usual)


def surcharge_s(
    variant: VariantName,
    usual: Mapping[VariantName, float],
    busy: Mapping[VariantName, tuple[float, float]],
    now: float,
) -> float:
    """What an item costs more than usual on a worker that has much to do, as far as that is known."""
    if variant not in busy or variant not in usual:
        return 0.0
    seen, at = busy[variant]
    kept: float = 0.5 ** ((now - at) / BUSY_HALF_LIFE_S)
    return max(0.0, seen - usual[variant]) * kept


def costs_at_work(memory: WorkMemory, now: float) -> Mapping[VariantName, float]:
    """Core-seconds per item where there is much to do, of all that ran lately."""
    return {
        name: cost + surcharge_s(name, memory.cost_s, memory.busy_cost_s, now) for name, cost in memory.cost_s.items()
    }


def _rate(
    before: WorkerWork, after: WorkerWork, variants: Mapping[VariantName, Variant], costs: _Costs
) -> tuple[Mapping[Hardware, float], Mapping[Hardware, float]]:
    """Cores in use between two words of a worker, and what would be besides; what items have cost by that goes into
    `costs`. An instance that is new counts from its load on."""
    was = {one.id: one for one in before.instances}
    elapsed_s = after.at - before.at
    used: dict[Hardware, float] = {}
    besides: dict[Hardware, float] = {}
    for one in after.instances:
        variant = variants.get(one.variant)
        if variant is None:
            continue
        earlier = was.get(one.id)
        ran_s = one.busy_s - (0.0 if earlier is None else earlier.busy_s)
        items = one.items - (0.0 if earlier is None else earlier.items)
        cores = max(0.0, ran_s) * variant.threads / elapsed_s
        used[variant.hardware] = used.get(variant.hardware, 0.0) + cores
        if items > 0 and ran_s > 0:
            costs.learn(one.variant, ran_s * variant.threads / items, is_busy=ran_s >= BUSY_SHARE * elapsed_s)
            more = costs.besides(one.variant, items, ran_s * variant.threads) / elapsed_s
            if more > 0:
                besides[variant.hardware] = besides.get(variant.hardware, 0.0) + more
    return used, besides


def unserved(
    totals: Mapping[str, Ends],
    items_each: Mapping[VariantName, float],
    waiting: Mapping[TaskName, float],
    view: ClusterView,
    memory: DemandMemory,
    now: float,
    wall: float,
) -> tuple[ControllerDemand, DemandMemory]:
    """What this controller has not served since the last look, as variants' work. `totals`: by handle, since it
    started; `items_each`: of usual queries; `waiting`: items by task."""
    elapsed_s = 0.0 if memory.at is None else now - memory.at
    kept = 0.5 ** (elapsed_s / FORGET_S)
    recent: dict[str, dict[VariantName, float]] = {}
    refused: dict[VariantName, float] = {}
    by_task: dict[TaskName, dict[VariantName, float]] = {}
    for handle, ends in totals.items():
        before = memory.totals.get(handle, Ends())
        shares = {name: kept * count for name, count in memory.recent.get(handle, {}).items()}
        for name, count in ends.answered.items():
            shares[name] = shares.get(name, 0.0) + max(0.0, count - before.answered.get(name, 0.0))
        shares = {name: count for name, count in shares.items() if count > 0.01 and name in view.variants}
        recent[handle] = shares
        for name, count in shares.items():
            of_task = by_task.setdefault(view.variants[name].task, {})
            of_task[name] = of_task.get(name, 0.0) + count
        wanting = ends.wanting - before.wanting
        if elapsed_s > 0 and wanting > 0:
            for name, share in _shared(shares or _cheapest(handle, view)).items():
                refused[name] = refused.get(name, 0.0) + share * wanting * items_each.get(name, 1.0) / elapsed_s
    held: dict[VariantName, float] = {}
    for task, items in waiting.items():
        if items > 0:
            for name, share in _shared(by_task.get(task) or _cheapest(task, view)).items():
                held[name] = held.get(name, 0.0) + share * items
    return ControllerDemand(wall, refused, held), DemandMemory(now, dict(totals), recent)


def loads(
    work: Work, demands: Iterable[ControllerDemand], costs_s: Mapping[VariantName, float], view: ClusterView
) -> dict[Hardware, Load]:
    """All of it, in cores of each hardware."""
    served = _summed([work.by_hardware, work.besides])
    demand = {hardware: served.get(hardware, 0.0) for hardware in Hardware}
    backlog = dict.fromkeys(Hardware, 0.0)
    for one in demands:
        for name, rate in one.refused.items():
            if (variant := view.variants.get(name)) is not None:
                demand[variant.hardware] += rate * _cost_s(variant, costs_s)
        for name, items in one.waiting.items():
            if (variant := view.variants.get(name)) is not None:
                backlog[variant.hardware] += items * _cost_s(variant, costs_s)
    return {hardware: Load(demand[hardware], backlog[hardware]) for hardware in Hardware}


def _cost_s(variant: Variant, seen: Mapping[VariantName, float]) -> float:
    """Core-seconds of an item: as it was lately, else by the profile, in the batches that it is made for."""
    known = seen.get(variant.name)
    if known is not None:
        return known
    items = variant.max_batch_size if variant.fixed_batch is None else variant.fixed_batch
    return variant.run_s(items, "mean_s") * variant.threads / items if variant.profile is not None else 0.0


def _shared(counts: Mapping[VariantName, float]) -> Mapping[VariantName, float]:
    """Shares of one."""
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def _cheapest(handle: str, view: ClusterView) -> Mapping[VariantName, float]:
    """Where nothing was answered lately: what selection prefers as a rule. Nothing, where nothing could answer."""
    named = [
        variant
        for variant in view.variants.values()
        if handle in (variant.task, variant.model, variant.name)
        and variant.state is VariantState.READY
        and variant.profile is not None
    ]
    return {min(named, key=lambda one: (cost_of(one), one.name)).name: 1.0} if named else {}
