"""The VM autoscaler: every controller says what it could not serve, and the leader keeps the fleet as planned.

A look is: what was ordered, what the provider has, what the workers do; a plan; then each step, written down before it
is done. Every write carries the leader's fence, so that a leader which was deposed in the middle (or stood still for a
while) can write no further intent; what it may still do at the provider has no intent behind it, and goes at the next
look of whoever leads.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from msgspec.structs import replace

from infaas.aio.every import every
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.fleet import (
    ControllerDemand,
    FleetAction,
    FleetCause,
    FleetRecord,
    FleetStatus,
    Intent,
    IntentStage,
    PoolStatus,
)
from infaas.domain.ids import ControllerId, VariantName, WorkerId, fresh_id
from infaas.domain.variant import Hardware
from infaas.errors import InfaasError, NotFoundError
from infaas.observe.log import get_logger
from infaas.settings import Settings
from infaas.store.base import Lease
from infaas_controller.decide.demand import Work, loads
from infaas_controller.decide.fleet import (
    FleetLimits,
    FleetMemory,
    FleetPlan,
    FleetStep,
    Load,
    Observed,
    Pool,
    Stage,
    plan_fleet,
)
from infaas_controller.decide.stock import Activity, Machine, Stock, StockLimits, take_stock
from infaas_controller.fleet.ledger import FleetLedger
from infaas_controller.providers.base import Machine as ProviderMachine
from infaas_controller.providers.base import MachineState, Order, Provider, ProviderError

SAY_AGAIN_S = 60.0
"""A step like the last of its kind is kept again after so long; what is done is always kept."""
MISSED_TIMES = 10.0
"""So many times as long as a worker's silence must be for it to be taken for lost, it may come back."""
KEPT_LOOKS = 5
KEPT_S = 15.0
"""What is said of a look is forgotten after so many periods, and not before the slowest look is over."""
_log = get_logger(__name__)


class DemandSource(Protocol):
    def look(self) -> ControllerDemand: ...


class WorkSource(Protocol):
    @property
    def costs_s(self) -> Mapping[VariantName, float]: ...

    def look(self) -> tuple[Work | None, Mapping[WorkerId, Activity]]: ...


class Drains(Protocol):
    async def drain(self, worker: WorkerId, reason: str) -> None:
        """Returns once it was told. Raises NotFoundError, UnavailableError."""


class StepObserver(Protocol):
    def observe_scaling(self, action: str, cause: str) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class FleetParts:
    """What the autoscaler works with."""

    controller: ControllerId
    provider: Provider
    ledger: FleetLedger
    demand: DemandSource
    work: WorkSource
    drains: Drains
    observer: StepObserver
    view: Callable[[], ClusterView]
    lease: Callable[[], Lease | None]
    clock: Clock


class FleetAutoscaler:
    """`run` is eternal. Not for a `fleet.provider` of `none`."""

    def __init__(self, settings: Settings, parts: FleetParts) -> None:
        self._own = settings.fleet
        self._parts = parts
        self._pools = pools_of(settings)
        self._limits = FleetLimits(
            most_usd_per_hour=self._own.max_usd_per_hour,
            target=self._own.target_utilization,
            upscale_delay_s=self._own.upscale_delay_s,
            downscale_delay_s=self._own.downscale_delay_s,
        )
        startup_s = max([pool.startup_s for pool in self._pools], default=0.0)
        self._stock_limits = StockLimits(
            drain_s=settings.worker.drain_timeout_s,
            missed_s=MISSED_TIMES * settings.controller.worker_lost_after_s,
            early_s=startup_s,
        )
        self._settle_s = settings.controller.worker_lost_after_s
        if any(settings.pools[pool.name].workers for pool in self._pools):
            self._settle_s += startup_s  # those that are started with us may not be there yet
        self._memory = FleetMemory()
        self._leads_since: float | None = None
        self._fence: int | None = None
        self._intents: dict[WorkerId, Intent] = {}
        """As they are in the store, and as this look has changed them."""
        self._to_drain: dict[WorkerId, str] = {}
        """Who is to be told in this look, and why; all at once at its end, for one that hangs takes seconds."""
        self._epoch = ""
        self._stages: dict[tuple[str, IntentStage, float], float] = {}
        """When each intent was first seen in its stage, on our clock: those in the store may be set."""
        self._said: dict[tuple[FleetAction, FleetCause, str, WorkerId | None], float] = {}

    async def run(self) -> NoReturn:
        await every(self._own.period_s, self.look, clock=self._parts.clock, name="fleet")

    async def look(self) -> None:
        """Raises UnavailableError when store or provider cannot be had, and PreconditionError when the lead was lost
        meanwhile: the rest is left to whoever has it."""
        parts, ttl_s = self._parts, max(KEPT_S, KEPT_LOOKS * self._own.period_s)
        await parts.ledger.put_demand(parts.controller, parts.demand.look(), ttl_s)
        lease, now = parts.lease(), parts.clock.now()
        if lease is None or not self._has_settled(lease, now):
            parts.work.look()  # what is done meanwhile is known then
            return
        # Machines before intents: one that is made in between has an intent by then. Nothing is waited for from here
        # on until there is a plan: what workers say and who they are belong together.
        machines = [_machine(one) for one in await parts.provider.list()]
        intents, unreadable, self._epoch = await parts.ledger.intents()
        demands = await parts.ledger.demands()
        now, wall = parts.clock.now(), parts.clock.wall()
        work, activity = parts.work.look()
        view = parts.view()
        pools = {pool.name for pool in self._pools}
        ages_s = self._ages_s(intents, now)
        stock = take_stock(
            intents, machines, view.workers, activity, ages_s, pools, self._epoch, self._stock_limits, wall, now,
            unreadable,
        )  # fmt: skip
        load = {} if work is None else loads(work, demands, parts.work.costs_s, view)
        plan = plan_fleet(
            self._pools, stock.requested, stock.observed, load, self._limits, self._memory, now, failed=stock.failed,
            going=stock.going,
        )  # fmt: skip
        self._memory = plan.memory
        self._intents = {one.worker: one for one in intents}
        self._to_drain = {} if self._own.dry_run else dict.fromkeys(stock.to_drain, "the fleet does not need it")
        await self._settle(stock, lease)
        for step in plan.steps:
            await self._perform(step, lease)
        await asyncio.gather(*[self._drain(worker, reason) for worker, reason in self._to_drain.items()])
        await parts.ledger.put_status(self._status(stock, plan, load), lease, ttl_s)

    def _has_settled(self, lease: Lease, now: float) -> bool:
        """Whoever has just come to lead may not have met all workers yet."""
        if self._leads_since is None or lease.fence != self._fence:
            self._leads_since, self._fence, self._memory = now, lease.fence, FleetMemory()
            self._said.clear()
            self._stages.clear()
        return now - self._leads_since >= self._settle_s and self._parts.view().is_listed

    def _ages_s(self, intents: Sequence[Intent], now: float) -> Mapping[str, float]:
        stages = {(one.id, one.stage, one.since): now for one in intents}
        self._stages = {key: self._stages.get(key, since) for key, since in stages.items()}
        return {id: now - since for (id, _, _), since in self._stages.items()}

    async def _settle(self, stock: Stock, lease: Lease) -> None:
        """Put right what differs from what was ordered before."""
        for intent in (*stock.adopted, *stock.moved):
            await self._write(intent, lease)
        for step in stock.removals:
            await self._perform(step, lease)
        for intent in stock.unwanted:
            text = "its pool is not among those that the fleet keeps any more"
            await self._perform(
                FleetStep(FleetAction.DRAIN, FleetCause.UNKNOWN, intent.pool, text, intent.worker), lease
            )
        if self._own.dry_run:
            return
        for intent in stock.to_create:
            await self._create(intent, lease)

    async def _write(self, intent: Intent, lease: Lease) -> None:
        if not self._own.dry_run:
            await self._parts.ledger.put_intent(intent, lease)
        self._intents[intent.worker] = intent

    # -- steps

    async def _perform(self, step: FleetStep, lease: Lease) -> None:
        if step.action is FleetAction.ADD and not self._own.dry_run:
            id = fresh_id("f")
            step = replace(step, request=id, worker=WorkerId(f"{step.pool}-{id}"))
        await self._keep(step, lease)
        if self._own.dry_run:
            return
        try:
            match step.action:
                case FleetAction.ADD:
                    await self._order(step, lease)
                case FleetAction.DRAIN:
                    await self._take_out(step, lease)
                case FleetAction.REMOVE | FleetAction.GIVE_UP:
                    await self._take_away(step, lease)
                case FleetAction.HOLD | FleetAction.LOAD:
                    pass
        except ProviderError as error:
            text = f"{self._parts.provider.name}: {error.text}"
            await self._keep(FleetStep(FleetAction.HOLD, FleetCause.FAILED, step.pool, text, step.worker), lease)

    async def _order(self, step: FleetStep, lease: Lease) -> None:
        assert step.request is not None
        assert step.worker is not None
        wall = self._parts.clock.wall()
        intent = Intent(step.request, step.pool, step.worker, wall, IntentStage.ORDERED, wall)
        await self._write(intent, lease)
        await self._create(intent, lease)

    async def _create(self, intent: Intent, lease: Lease) -> None:
        order = Order(intent.id, intent.pool, intent.worker, intent.asked_at, self._epoch)
        try:
            await self._parts.provider.create(order)
        except ProviderError as error:
            text = f"{self._parts.provider.name} could not make it: {error.text}"
            await self._keep(FleetStep(FleetAction.HOLD, FleetCause.FAILED, intent.pool, text, intent.worker), lease)

    async def _take_out(self, step: FleetStep, lease: Lease) -> None:
        intent = None if step.worker is None else self._intents.get(step.worker)
        if intent is None or intent.stage is IntentStage.LEAVING:
            return
        await self._leave(intent, lease)
        self._to_drain[intent.worker] = step.reason

    async def _take_away(self, step: FleetStep, lease: Lease) -> None:
        """The intent stays until nothing is left of its machine: else a store that is emptied meanwhile would bring it
        back."""
        known = {one.id: one for one in self._intents.values()}
        intent = known.get(step.request or "") or self._intents.get(step.worker or WorkerId(""))
        id = step.request or (intent.id if intent is not None else None)
        if id is None:
            return
        if intent is not None and intent.stage is not IntentStage.LEAVING:
            await self._leave(intent, lease)
        if await self._parts.provider.remove(id) and intent is not None:
            await self._parts.ledger.forget_intent(id, lease)
            self._intents.pop(intent.worker, None)

    async def _leave(self, intent: Intent, lease: Lease) -> None:
        left = dataclasses.replace(intent, stage=IntentStage.LEAVING, since=self._parts.clock.wall())
        await self._write(left, lease)

    async def _drain(self, worker: WorkerId, reason: str) -> None:
        """One that cannot be told is told at the next look."""
        try:
            await self._parts.drains.drain(worker, reason)
        except NotFoundError:
            return
        except InfaasError as error:
            _log.warning("a worker of the fleet was not told to drain", worker=worker, reason=error.text)

    async def _keep(self, step: FleetStep, lease: Lease) -> None:
        """Written down and counted before it is done; what is only said again, or done again until it has worked, is
        kept once in a while."""
        key, now = (step.action, step.cause, step.pool, step.worker), self._parts.clock.now()
        if now - self._said.get(key, float("-inf")) < SAY_AGAIN_S:
            return
        self._said = {key: at for key, at in self._said.items() if now - at < SAY_AGAIN_S} | {key: now}
        record = FleetRecord(
            fresh_id("s"),
            self._parts.clock.wall(),
            step.action,
            step.cause,
            step.pool,
            step.reason,
            step.worker,
            is_dry_run=self._own.dry_run,
            controller=self._parts.controller,
        )
        await self._parts.ledger.put_step(record, lease)
        self._parts.observer.observe_scaling(f"fleet-{step.action.value}", step.cause.value)
        _log.info(
            "fleet", action=step.action.value, cause=step.cause.value, pool=step.pool, worker=step.worker,
            reason=step.reason, is_dry_run=self._own.dry_run,
        )  # fmt: skip

    def _status(self, stock: Stock, plan: FleetPlan, load: Mapping[Hardware, Load]) -> FleetStatus:
        paid = [one.pool for one in stock.requested] + [one.pool for one in stock.observed] + [*stock.going]
        return FleetStatus(
            at=self._parts.clock.wall(),
            controller=self._parts.controller,
            provider=self._parts.provider.name,
            is_dry_run=self._own.dry_run,
            pools=tuple([_pool_status(pool, stock) for pool in self._pools]),
            demand_cores=sum([one.demand_cores for one in load.values()]) if load else None,
            waiting_core_s=sum([one.backlog_core_s for one in load.values()]),
            wanted_cores=plan.wanted_cores,
            there_cores=sum([_cores(self._pools, one) for one in stock.observed]),
            spent_usd_per_hour=sum([_price(self._pools, pool) for pool in paid]),
            max_usd_per_hour=self._own.max_usd_per_hour,
        )


def _machine(made: ProviderMachine) -> Machine:
    order = made.order
    return Machine(
        order.id,
        order.pool,
        order.worker,
        order.asked_at,
        order.epoch,
        is_starting=made.state is MachineState.STARTING,
        has_ended=made.state is MachineState.ENDED,
        said=made.said,
    )


def pools_of(settings: Settings) -> tuple[Pool, ...]:
    """Those that the fleet keeps; other pools' workers are nobody's here."""
    return tuple(
        [
            Pool(
                name,
                Hardware.CPU,
                pool.cores,
                pool.price_usd_per_hour * pool.cores,
                pool.min_workers,
                pool.max_workers,
                pool.startup_s,
            )
            for name, pool in sorted(settings.pools.items())
            if pool.max_workers and pool.cores is not None
        ]
    )


def _price(pools: Sequence[Pool], name: str) -> float:
    return sum([pool.price_usd_per_hour for pool in pools if pool.name == name])


def _cores(pools: Sequence[Pool], one: Observed) -> int:
    return sum([pool.cores for pool in pools if pool.name == one.pool and one.stage is Stage.READY])


def _pool_status(pool: Pool, stock: Stock) -> PoolStatus:
    there = [one for one in stock.observed if one.pool == pool.name]
    stages = [one.stage for one in there]
    return PoolStatus(
        name=pool.name,
        hardware=pool.hardware.value,
        cores=pool.cores,
        price_usd_per_hour=pool.price_usd_per_hour,
        min_workers=pool.least,
        max_workers=pool.most,
        ready=stages.count(Stage.READY),
        starting=stages.count(Stage.STARTING),
        draining=stages.count(Stage.DRAINING) + stages.count(Stage.LEAVING),
        ordered=sum([one.pool == pool.name for one in stock.requested]),
        lost=stages.count(Stage.LOST),
        own=sum([one.is_ours for one in there]),
    )
