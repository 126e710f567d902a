"""How many workers of each pool there should be: `plan_fleet(pools, requested, observed, load, limits, memory, now)`.

INFaaS's VM autoscaler (Romero et al., USENIX ATC 2021, §4.3) adds a machine when some hardware is over 80 % busy on
all workers, when its variants are interfered with on all of them, or when more than 80 % of the workers hold overloaded
variants. These stay as they are and ask for one more. How many are needed follows from work instead: what comes each
second, what waits, and what the trend adds while a machine starts (Faro and InferLine plan with backlogs, too).

Floors, bounds and the budget are checked last, and a budget that does not suffice stops every growth (SURFACE rule 3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from infaas.domain.fleet import FleetAction, FleetCause
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.variant import Hardware

TARGET = 0.7
"""Of its cores, what a fleet of the right size has in use: above it queues grow quickly, below it machines idle."""
_CENT = 1e-9
"""Sums of prices are not exact."""
ROOMY = 0.8
"""A worker goes if the rest would be loaded to no more than this share of the target."""
BUSY = 0.8
"""The paper's share, of cores in use on each worker and of workers that hold overloaded variants."""
TREND_HALF_LIFE_S = 20.0
GIVE_UP_AFTER = 3.0
"""So many times as long as a machine takes to start, it is waited for."""
BACK_OFF_S = 60.0
"""After a machine that did not come, its pool is left alone for so long."""
FAILED_BACK_OFF_S = (5.0, 300.0)
"""After one that ended before it was of use for so long; each further time twice as long, up to the most. It is
forgotten when nothing of the kind has happened for twice the most."""


class Stage(StrEnum):
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """It is to drain and does not know it yet."""
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
    variants: frozenset[VariantName] = frozenset()
    """That it can serve at once."""


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
    target: float = TARGET
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
    wanted: Mapping[Hardware, tuple[tuple[float, float], ...]] = MappingProxyType({})
    """When how many cores were wanted, over the last `downscale_delay_s` and from just before."""
    below_since: Mapping[str, float] = MappingProxyType({})
    """Since when a pool has had fewer than its floor."""
    not_before: Mapping[str, float] = MappingProxyType({})
    """Until when a pool is left alone."""
    failures: Mapping[str, tuple[int, float]] = MappingProxyType({})
    """By pool: how many machines have ended before they were of use, one after the other, and when the last did."""


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
    wanted_cores: float | None = None
    """Of all hardware whose load is known; None: none is."""


class _Fleet(msgspec.Struct, frozen=True):
    """One kind of hardware, as it is and as it has been ordered."""

    pools: tuple[Pool, ...]
    there: tuple[Observed, ...]
    coming: tuple[Requested, ...]
    load: Load
    trend: Trend
    target: float
    going: tuple[str, ...] = ()
    """Of each machine that is being taken away, its pool."""

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

    def present(self, pool: Pool) -> int:
        """All there are, whatever their state, or will be."""
        names = [one.pool for one in self.there] + [one.pool for one in self.coming] + [*self.going]
        return names.count(pool.name)

    @property
    def cores(self) -> int:
        return sum([pool.cores * self.count(pool) for pool in self.pools])

    @property
    def wanted_cores(self) -> float:
        """So that the work takes the target share of them: what comes, what waits, and what the trend adds by the time
        that a worker which is ordered now can help."""
        soonest_s = min([pool.startup_s for pool in self.pools], default=0.0)
        demand, trend = self.load.demand_cores, self.trend
        # Smoothed, a step goes on rising when it is over; what it has caught up with is no rise any more.
        rising = max(0.0, trend.cores + trend.slope * soonest_s - demand) if demand > trend.cores else 0.0
        waiting = self.load.backlog_core_s / max(self.load.horizon_s, soonest_s)
        return (demand + waiting + rising) / self.target

    @property
    def is_empty(self) -> bool:
        """Nobody can serve, or will: whoever comes is turned away, and may be the only one for long."""
        return not self.coming and all(one.stage in (Stage.LEAVING, Stage.DRAINING) for one in self.there)

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
    *,
    failed: Collection[str] = (),
    going: Sequence[str] = (),
) -> FleetPlan:
    """What to order, drain, remove and give up now. `load` lacks what is not known: then nothing goes, and nothing but
    floors comes. Workers and requests of unknown pools are nobody's here, and left alone. `failed`: pools of
    which a machine has just ended before it was of use. `going`: of each machine that is being taken away and still
    costs, its pool.

    Promises: no pool is ever ordered above its `most` or drained below its `least`; while a budget is set, what is
    ordered never costs more than it with everything that is there; what runs is never removed; nothing is added that
    no work, trigger or floor asks for.
    """
    known = {pool.name for pool in pools}
    observed = [one for one in observed if one.pool in known]
    late = [one for one in requested if one.pool in known and _is_late(one, pools, now)]
    requested = [one for one in requested if one.pool in known and one not in late]
    steps = [_given_up(one, now) for one in late]
    memory = _remembered(_backed_off(memory, failed, late, now), load, now)
    leaving = [one for one in observed if one.is_ours and one.stage is Stage.DRAINING]
    steps += [_removed(one) for one in leaving if not one.in_flight]
    budget = _Budget(pools, [*requested, *late], observed, going, limits)
    wanted_cores: float | None = None
    for hardware in Hardware:
        own = tuple([pool for pool in pools if pool.hardware is hardware])
        if not own:
            continue
        names = {pool.name for pool in own}
        there = tuple([one for one in observed if one.pool in names])
        coming = tuple([one for one in requested if one.pool in names])
        trend = memory.trends.get(hardware, Trend(0.0, 0.0))
        fleet = _Fleet(own, there, coming, load.get(hardware, Load(0.0)), trend, limits.target, tuple(going))
        made, memory = _of_hardware(hardware, fleet, hardware in load, budget, limits, memory, now)
        steps += made
        if hardware in load:
            wanted_cores = (wanted_cores or 0.0) + fleet.wanted_cores
    return FleetPlan(tuple(steps), memory, wanted_cores)


class _Budget:
    """What may still be ordered; the only thing here that changes."""

    def __init__(
        self,
        pools: Sequence[Pool],
        requested: Sequence[Requested],
        observed: Sequence[Observed],
        going: Sequence[str],
        limits: FleetLimits,
    ) -> None:
        prices = {pool.name: pool.price_usd_per_hour for pool in pools}
        paid = [one.pool for one in requested] + [one.pool for one in observed] + [*going]
        self._most = limits.most_usd_per_hour  # what drains or is taken away is paid for, too
        self._spent: float = sum([prices.get(name, 0.0) for name in paid])

    def take(self, pool: Pool) -> bool:
        if self._most is not None and self._spent + pool.price_usd_per_hour > self._most + _CENT:
            return False
        self._spent += pool.price_usd_per_hour
        return True

    def said(self) -> str:
        return f"the budget of {self._most:g} USD/h has {self._spent:g} spent"


def _of_hardware(
    hardware: Hardware, fleet: _Fleet, is_known: bool, budget: _Budget, limits: FleetLimits, memory: FleetMemory,
    now: float,
) -> tuple[list[FleetStep], FleetMemory]:  # fmt: skip
    steps, fleet, memory = _floors(fleet, budget, limits, memory, now)
    if not is_known:
        return steps, _without(memory, hardware)
    wanted, trigger = fleet.wanted_cores, fleet.trigger()
    is_short = wanted > fleet.cores or trigger is not None
    short_since = dict(memory.short_since)
    _mark(short_since, hardware, is_short, now)
    delay_s = limits.downscale_delay_s
    recent = _recent(
        memory.wanted.get(hardware, ()), max(wanted, fleet.cores + 0.01) if is_short else wanted, delay_s, now
    )
    if is_short and (fleet.is_empty or now - short_since[hardware] >= limits.upscale_delay_s):
        if wanted > fleet.cores or trigger is None:
            steps += _growth(fleet, wanted - fleet.cores, (FleetCause.DEMAND, _sum_of(fleet)), budget, memory)
            short_since.pop(hardware)
        elif not fleet.coming:
            steps += _growth(fleet, 0.01, trigger, budget, memory)
            short_since.pop(hardware)
    if now - recent[0][0] >= delay_s:
        steps += _shrinking(fleet, max([cores for _, cores in recent]))
    return steps, replace(memory, short_since=short_since, wanted={**memory.wanted, hardware: recent})


def _without(memory: FleetMemory, hardware: Hardware) -> FleetMemory:
    """Where nothing is known of the load, it is not known since when it was high or low either."""
    short_since = {key: since for key, since in memory.short_since.items() if key is not hardware}
    wanted = {key: recent for key, recent in memory.wanted.items() if key is not hardware}
    return replace(memory, short_since=short_since, wanted=wanted)


def _recent(
    before: Sequence[tuple[float, float]], wanted: float, delay_s: float, now: float
) -> tuple[tuple[float, float], ...]:
    """The newest of those that are older than the delay says since when it is known, and no more."""
    found = [*before, (now, wanted)]
    old = [place for place, (at, _) in enumerate(found) if now - at >= delay_s]
    return tuple(found[old[-1] :] if old else found)


def _floors(
    fleet: _Fleet, budget: _Budget, limits: FleetLimits, memory: FleetMemory, now: float
) -> tuple[list[FleetStep], _Fleet, FleetMemory]:
    """As long as growth must have been wanted, a floor must have been missed: a worker may be out of sight for a
    moment."""
    steps: list[FleetStep] = []
    below_since = dict(memory.below_since)
    for pool in fleet.pools:
        missing = pool.least - fleet.count(pool)
        if missing <= 0:
            below_since.pop(pool.name, None)
            continue
        if now - below_since.setdefault(pool.name, now) < limits.upscale_delay_s:
            continue
        for _ in range(missing):
            if fleet.present(pool) >= pool.most:
                break
            if pool.name in memory.not_before:
                wait_s = memory.not_before[pool.name] - now
                text = (
                    f"{pool.least} are wanted at least; a machine has failed, the next is asked for in {wait_s:.0f} s"
                )
                steps.append(FleetStep(FleetAction.HOLD, FleetCause.FAILED, pool.name, text))
                break
            if not budget.take(pool):
                text = f"{pool.least} are wanted at least, and {budget.said()}"
                steps.append(FleetStep(FleetAction.HOLD, FleetCause.BUDGET, pool.name, text))
                break
            text = f"{pool.least} are wanted at least"
            steps.append(FleetStep(FleetAction.ADD, FleetCause.FLOOR, pool.name, text))
            fleet = replace(fleet, coming=(*fleet.coming, Requested("", pool.name, 0.0)))
    return steps, fleet, replace(memory, below_since=below_since)


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
            if fleet.present(pool) + added.get(pool.name, 0) < pool.most and pool.name not in memory.not_before
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


def _shrinking(fleet: _Fleet, wanted: float) -> list[FleetStep]:
    """All that were not needed at any moment of the delay, one after the other. Not while another of ours comes or
    goes: what that changes is not seen yet. Those of others that are lost or drained serve nobody and stop nobody."""
    if fleet.coming or any(one.is_ours and one.stage in _IN_BETWEEN for one in fleet.there):
        return []
    steps: list[FleetStep] = []
    while (victim := _victim(fleet, wanted)) is not None:
        rest = fleet.cores - fleet.pool(victim.pool).cores
        reason = f"{_sum_of(fleet)}; {rest} cores without it"
        steps.append(FleetStep(FleetAction.DRAIN, FleetCause.ROOMY, victim.pool, reason, victim.id))
        fleet = replace(fleet, there=tuple([one for one in fleet.there if one is not victim]))
    return steps


_IN_BETWEEN = (Stage.STARTING, Stage.LEAVING, Stage.DRAINING)


def _victim(fleet: _Fleet, wanted: float) -> Observed | None:
    """Of those above their pool's floor whose cores the rest can do without, the one that can serve least of what no
    other can, then the dearest, then the one with least to do."""
    found: list[tuple[int, float, float, WorkerId, Observed]] = []
    for one in fleet.ready:
        pool = fleet.pool(one.pool)
        if one.is_ours and fleet.count(pool) > pool.least and wanted <= ROOMY * (fleet.cores - pool.cores):
            others = frozenset[VariantName]().union(*[other.variants for other in fleet.ready if other is not one])
            alone = len(one.variants - others)
            found.append((alone, -pool.price_usd_per_hour, one.busy_cores, one.id, one))
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


def _backed_off(memory: FleetMemory, failed: Collection[str], late: Sequence[Requested], now: float) -> FleetMemory:
    first_s, most_s = FAILED_BACK_OFF_S
    failures = {pool: (count, at) for pool, (count, at) in memory.failures.items() if now - at < 2 * most_s}
    not_before = {**memory.not_before, **dict.fromkeys([one.pool for one in late], now + BACK_OFF_S)}
    for pool in sorted(set(failed)):
        count = failures.get(pool, (0, now))[0] + 1
        failures[pool] = count, now
        not_before[pool] = max(not_before.get(pool, now), now + min(most_s, first_s * 2.0 ** min(count - 1, 10)))
    return replace(memory, failures=failures, not_before=not_before)


def _remembered(memory: FleetMemory, load: Mapping[Hardware, Load], now: float) -> FleetMemory:
    elapsed_s = 0.0 if memory.at is None else now - memory.at
    trends = dict(memory.trends)
    for hardware, seen in load.items():
        trends[hardware] = _trend(memory.trends.get(hardware), seen.demand_cores, elapsed_s)
    return replace(
        memory,
        at=now,
        trends=trends,
        not_before={name: until for name, until in memory.not_before.items() if until > now},
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
