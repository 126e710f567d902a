"""How many workers of each pool there should be: `plan_fleet(pools, requested, observed, load, limits, memory, now)`.

INFaaS's VM autoscaler (Romero et al., USENIX ATC 2021, §4.3) adds a machine when some hardware is over 80 % busy on
all workers, when its variants are interfered with on all of them, or when more than 80 % of the workers hold overloaded
variants. These stay as they are and ask for one more. How many are needed follows from work instead: what comes each
second, what waits, and what the trend adds while a machine starts (Faro and InferLine plan with backlogs, too).

Floors, bounds and the budget are checked last, and a budget that does not suffice stops every growth (SURFACE rule 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from infaas.domain.fleet import FleetAction, FleetCause
from infaas.domain.ids import WorkerId
from infaas.domain.variant import Hardware

TARGET = 0.7
"""Of its cores, what a fleet of the right size has in use: above it queues grow quickly, below it machines idle."""
ROOMY = 0.8
"""A worker goes if the rest would be loaded to no more than this share of the target."""
BUSY = 0.8
"""The paper's share, of cores in use on each worker and of workers that hold overloaded variants."""
TREND_HALF_LIFE_S = 20.0
GIVE_UP_AFTER = 3.0
"""So many times as long as a machine takes to start, it is waited for."""
BACK_OFF_S = 60.0
"""After a machine that did not come, its pool is left alone for so long."""


class Stage(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"
    """Its report is too old to say anything, or it has failed."""


class Pool(msgspec.Struct, frozen=True):
    """A kind of worker. `price_usd_per_hour` is one worker's."""

    name: str
    hardware: Hardware
    cores: int
    price_usd_per_hour: float
    least: int = 0
    most: int = 1
    startup_s: float = 25.0
    """From the order until it is READY."""


class Observed(msgspec.Struct, frozen=True):
    """A worker that there is."""

    id: WorkerId
    pool: str
    stage: Stage
    busy_cores: float
    in_flight: int
    """Queries that it holds, staged or running."""
    is_interfered: bool = False
    is_overloaded: bool = False
    is_ours: bool = True
    """The fleet made it and may take it away. Others count, and stay."""


class Requested(msgspec.Struct, frozen=True):
    """A worker that was ordered and has not been observed yet. `id` is its intent's."""

    id: str
    pool: str
    asked_at: float


class Load(msgspec.Struct, frozen=True):
    """Of one kind of hardware, by all controllers."""

    demand_cores: float
    """Work that comes each second, in core-seconds."""
    backlog_core_s: float = 0.0
    """Work that waits."""
    horizon_s: float = 1.0
    """How soon that should be gone; a worker that is ordered now cannot help before it has started."""


class FleetLimits(msgspec.Struct, frozen=True):
    most_usd_per_hour: float | None = None
    upscale_delay_s: float = 2.0
    downscale_delay_s: float = 60.0


class Trend(msgspec.Struct, frozen=True):
    """Smoothed demand, and how it changes."""

    cores: float
    slope: float
    """Cores per second."""


class FleetMemory(msgspec.Struct, frozen=True):
    """What a look leaves to the next."""

    at: float | None = None
    trends: Mapping[Hardware, Trend] = MappingProxyType({})
    short_since: Mapping[Hardware, float] = MappingProxyType({})
    roomy_since: Mapping[Hardware, float] = MappingProxyType({})
    not_before: Mapping[str, float] = MappingProxyType({})
    """Until when a pool is left alone."""


class FleetStep(msgspec.Struct, frozen=True):
    action: FleetAction
    cause: FleetCause
    pool: str
    reason: str
    worker: WorkerId | None = None
    """To drain or to remove."""
    request: str | None = None
    """To give up."""


class FleetPlan(msgspec.Struct, frozen=True):
    steps: tuple[FleetStep, ...]
    memory: FleetMemory
    wanted_cores: float = 0.0
    """Of all hardware, as far as its load is known."""


class _Fleet(msgspec.Struct, frozen=True):
    """One kind of hardware, as it is and as it has been ordered."""

    pools: tuple[Pool, ...]
    there: tuple[Observed, ...]
    coming: tuple[Requested, ...]
    load: Load
    trend: Trend

    def pool(self, name: str) -> Pool:
        return next(pool for pool in self.pools if pool.name == name)

    @property
    def serving(self) -> list[Observed]:
        return [one for one in self.there if one.stage in (Stage.READY, Stage.STARTING)]

    @property
    def ready(self) -> list[Observed]:
        return [one for one in self.there if one.stage is Stage.READY]

    def count(self, pool: Pool) -> int:
        """That serve, or will."""
        names = [one.pool for one in self.serving] + [one.pool for one in self.coming]
        return names.count(pool.name)

    @property
    def cores(self) -> int:
        return sum([pool.cores * self.count(pool) for pool in self.pools])

    @property
    def wanted_cores(self) -> float:
        """So that the work takes `TARGET` of them: what comes, what waits, and what the trend adds by the time that a
        worker which is ordered now can help."""
        soonest_s = min([pool.startup_s for pool in self.pools], default=0.0)
        rising = max(0.0, self.trend.slope) * soonest_s
        waiting = self.load.backlog_core_s / max(self.load.horizon_s, soonest_s)
        return (self.load.demand_cores + waiting + rising) / TARGET

    def trigger(self) -> tuple[FleetCause, str] | None:
        """Why one more is wanted by the paper's rules, whatever the sum of the work; None: it is not."""
        ready = self.ready
        if not ready:
            return None
        if all(one.busy_cores > BUSY * self.pool(one.pool).cores for one in ready):
            return FleetCause.BUSY, f"all {len(ready)} workers are more than {BUSY:.0%} busy"
        if all(one.is_interfered for one in ready):
            return FleetCause.INTERFERED, f"variants are interfered with on all {len(ready)} workers"
        if sum(one.is_overloaded for one in ready) > BUSY * len(ready):
            text = f"more than {BUSY:.0%} of {len(ready)} workers hold overloaded variants"
            return FleetCause.OVERLOADED, text
        return None


def plan_fleet(
    pools: Sequence[Pool],
    requested: Sequence[Requested],
    observed: Sequence[Observed],
    load: Mapping[Hardware, Load],
    limits: FleetLimits,
    memory: FleetMemory,
    now: float,
) -> FleetPlan:
    """What to order, drain, remove and give up now. `load` lacks what is not known: then nothing goes, and nothing but
    floors comes. Workers and requests of unknown pools are nobody's here, and left alone.

    Promises: no pool is ever ordered above its `most` or drained below its `least`; while a budget is set, what is
    ordered never costs more than it with everything that is there; what runs is never removed; nothing is added that
    no work, trigger or floor asks for.
    """
    known = {pool.name for pool in pools}
    observed = [one for one in observed if one.pool in known]
    late = [one for one in requested if one.pool in known and _is_late(one, pools, now)]
    requested = [one for one in requested if one.pool in known and one not in late]
    steps = [_given_up(one, now) for one in late]
    memory = _remembered(memory, load, late, now)
    leaving = [one for one in observed if one.is_ours and one.stage is Stage.DRAINING]
    steps += [_removed(one) for one in leaving if not one.in_flight]
    budget = _Budget(pools, requested, observed, limits)
    wanted_cores = 0.0
    for hardware in Hardware:
        own = tuple([pool for pool in pools if pool.hardware is hardware])
        if not own:
            continue
        names = {pool.name for pool in own}
        there = tuple([one for one in observed if one.pool in names])
        coming = tuple([one for one in requested if one.pool in names])
        trend = memory.trends.get(hardware, Trend(0.0, 0.0))
        fleet = _Fleet(own, there, coming, load.get(hardware, Load(0.0)), trend)
        made, memory = _of_hardware(hardware, fleet, hardware in load, budget, limits, memory, now)
        steps += made
        wanted_cores += fleet.wanted_cores if hardware in load else 0.0
    return FleetPlan(tuple(steps), memory, wanted_cores)


class _Budget:
    """What may still be ordered; the only thing here that changes."""

    def __init__(
        self, pools: Sequence[Pool], requested: Sequence[Requested], observed: Sequence[Observed], limits: FleetLimits
    ) -> None:
        prices = {pool.name: pool.price_usd_per_hour for pool in pools}
        paid = [one.pool for one in requested] + [one.pool for one in observed]  # what drains is paid for, too
        self._most = limits.most_usd_per_hour
        self._spent: float = sum([prices[name] for name in paid])

    def take(self, pool: Pool) -> bool:
        if self._most is not None and self._spent + pool.price_usd_per_hour > self._most:
            return False
        self._spent += pool.price_usd_per_hour
        return True

    def said(self) -> str:
        return f"the budget of {self._most:g} USD/h has {self._spent:g} spent"


def _of_hardware(
    hardware: Hardware, fleet: _Fleet, is_known: bool, budget: _Budget, limits: FleetLimits, memory: FleetMemory,
    now: float,
) -> tuple[list[FleetStep], FleetMemory]:  # fmt: skip
    steps, fleet = _floors(fleet, budget, memory)
    wanted = fleet.wanted_cores
    trigger = fleet.trigger() if is_known else None
    is_short = is_known and (wanted > fleet.cores or trigger is not None)
    victim = None if is_short or not is_known else _victim(fleet)
    short_since = dict(memory.short_since)
    roomy_since = dict(memory.roomy_since)
    _mark(short_since, hardware, is_short, now)
    _mark(roomy_since, hardware, victim is not None, now)
    if is_short and now - short_since[hardware] >= limits.upscale_delay_s and not (trigger and fleet.coming):
        why = trigger if trigger is not None and wanted <= fleet.cores else (FleetCause.DEMAND, _sum_of(fleet))
        steps += _growth(fleet, max(wanted - fleet.cores, 0.01), why, budget, memory)
        short_since.pop(hardware)
    if victim is not None and now - roomy_since[hardware] >= limits.downscale_delay_s:
        rest = fleet.cores - fleet.pool(victim.pool).cores
        reason = f"{_sum_of(fleet)}; {rest} cores without it"
        steps.append(FleetStep(FleetAction.DRAIN, FleetCause.ROOMY, victim.pool, reason, victim.id))
        roomy_since.pop(hardware)
    return steps, replace(memory, short_since=short_since, roomy_since=roomy_since)


def _floors(fleet: _Fleet, budget: _Budget, memory: FleetMemory) -> tuple[list[FleetStep], _Fleet]:
    steps: list[FleetStep] = []
    for pool in fleet.pools:
        missing = pool.least - fleet.count(pool)
        for _ in range(missing):
            if pool.name in memory.not_before:
                break
            if not budget.take(pool):
                text = f"{pool.least} are wanted at least, and {budget.said()}"
                steps.append(FleetStep(FleetAction.HOLD, FleetCause.BUDGET, pool.name, text))
                break
            text = f"{pool.least} are wanted at least"
            steps.append(FleetStep(FleetAction.ADD, FleetCause.FLOOR, pool.name, text))
            fleet = replace(fleet, coming=(*fleet.coming, Requested("", pool.name, 0.0)))
    return steps, fleet


def _growth(
    fleet: _Fleet, missing: float, because: tuple[FleetCause, str], budget: _Budget, memory: FleetMemory
) -> list[FleetStep]:
    """Workers of so many cores at least: each time of the pool that covers the rest at the least price, or where none
    covers it alone, of the one whose cores are cheapest."""
    cause, why = because
    steps: list[FleetStep] = []
    added: dict[str, int] = {}
    while missing > 0:
        open_pools = [
            pool
            for pool in fleet.pools
            if fleet.count(pool) + added.get(pool.name, 0) < pool.most and pool.name not in memory.not_before
        ]
        if not open_pools:
            text = f"{why}; every pool has as many as it may, or failed to bring one lately"
            return [*steps, FleetStep(FleetAction.HOLD, FleetCause.AT_MOST, "", text)]
        enough = [pool for pool in open_pools if pool.cores >= missing]
        if enough:
            pool = min(enough, key=lambda each: (each.price_usd_per_hour, each.name))
        else:
            pool = min(open_pools, key=lambda each: (each.price_usd_per_hour / each.cores, each.name))
        if not budget.take(pool):
            return [*steps, FleetStep(FleetAction.HOLD, FleetCause.BUDGET, pool.name, f"{why}; {budget.said()}")]
        steps.append(FleetStep(FleetAction.ADD, cause, pool.name, why))
        added[pool.name] = added.get(pool.name, 0) + 1
        missing -= pool.cores
    return steps


def _victim(fleet: _Fleet) -> Observed | None:
    """Who can be missed: while nobody is on the way or drains, of those above their pool's floor whose cores the rest
    can do without, the dearest, and of these the one with least to do."""
    if fleet.coming or any(one.stage is not Stage.READY for one in fleet.there):
        return None
    wanted = fleet.wanted_cores
    found: list[tuple[float, float, WorkerId, Observed]] = []
    for one in fleet.ready:
        pool = fleet.pool(one.pool)
        if one.is_ours and fleet.count(pool) > pool.least and wanted <= ROOMY * (fleet.cores - pool.cores):
            found.append((-pool.price_usd_per_hour, one.busy_cores, one.id, one))
    return min(found)[-1] if found else None


def _sum_of(fleet: _Fleet) -> str:
    load = fleet.load
    parts = [f"{load.demand_cores:.2f} cores of work come each second"]
    if load.backlog_core_s:
        parts.append(f"{load.backlog_core_s:.2f} core-seconds wait")
    if fleet.trend.slope > 0.005:
        parts.append(f"{fleet.trend.slope:.3f} cores more each second")
    return f"{', '.join(parts)}: {fleet.wanted_cores:.1f} cores are wanted of {fleet.cores}"


def _mark(since: dict[Hardware, float], hardware: Hardware, holds: bool, now: float) -> None:
    if holds:
        since.setdefault(hardware, now)
    else:
        since.pop(hardware, None)


def _is_late(one: Requested, pools: Sequence[Pool], now: float) -> bool:
    startup_s = next(pool.startup_s for pool in pools if pool.name == one.pool)
    return now - one.asked_at > GIVE_UP_AFTER * startup_s


def _given_up(one: Requested, now: float) -> FleetStep:
    reason = (
        f"it was ordered {now - one.asked_at:.0f} s ago and has not come; the pool is left alone for {BACK_OFF_S:g} s"
    )
    return FleetStep(FleetAction.GIVE_UP, FleetCause.LATE, one.pool, reason, request=one.id)


def _removed(one: Observed) -> FleetStep:
    return FleetStep(FleetAction.REMOVE, FleetCause.DRAINED, one.pool, "it has drained and holds nothing", one.id)


def _remembered(
    memory: FleetMemory, load: Mapping[Hardware, Load], late: Sequence[Requested], now: float
) -> FleetMemory:
    not_before = {**memory.not_before, **{one.pool: now + BACK_OFF_S for one in late}}
    elapsed_s = 0.0 if memory.at is None else now - memory.at
    trends = dict(memory.trends)
    for hardware, seen in load.items():
        trends[hardware] = _trend(memory.trends.get(hardware), seen.demand_cores, elapsed_s)
    return replace(
        memory,
        at=now,
        trends=trends,
        not_before={name: until for name, until in not_before.items() if until > now},
    )


def _trend(before: Trend | None, cores: float, elapsed_s: float) -> Trend:
    """Holt's double smoothing, for looks that come at any time."""
    if before is None:
        return Trend(cores, 0.0)
    if elapsed_s <= 0:
        return before
    weight = 1.0 - 0.5 ** (elapsed_s / TREND_HALF_LIFE_S)
    expected = before.cores + before.slope * elapsed_s
    level = expected + weight * (cores - expected)
    slope = before.slope + weight * ((level - before.cores) / elapsed_s - before.slope)
    return Trend(level, slope)
