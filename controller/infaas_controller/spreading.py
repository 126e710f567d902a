"""Loads busy variants on further workers as `plan_spread` says. The leader does it, so that controllers do not each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

from infaas.aio.every import every
from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.fleet import FleetAction, FleetCause, FleetRecord
from infaas.domain.ids import ControllerId, InstanceId, VariantName, WorkerId, fresh_id
from infaas.domain.variant import VariantState
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.store.base import Lease
from infaas_controller.decide.spread import Copy, Need, Place, Spread, SpreadMemory, plan_spread
from infaas_controller.ledger import Ledger
from infaas_controller.spares import set_aside_bytes

LOOK_EVERY_S = 1.0
Reports = Mapping[WorkerId, tuple[pb.WorkerReport, float]]
_log = get_logger(__name__)


class Steps(Protocol):
    async def put_step(self, step: FleetRecord, lease: Lease) -> None:
        """Raises UnavailableError, PreconditionError."""


class Observer(Protocol):
    def observe_scaling(self, action: str, cause: str) -> None: ...


class Shares:
    """How much of the time each instance ran between the last two words of its worker."""

    def __init__(self) -> None:
        self._seen: dict[WorkerId, tuple[float, dict[InstanceId, float]]] = {}
        self._found: dict[WorkerId, dict[InstanceId, float]] = {}

    def look(self, reports: Reports) -> Mapping[InstanceId, float]:
        """Of those that are known since two words at least."""
        for id in [id for id in self._seen if id not in reports]:
            del self._seen[id]
            self._found.pop(id, None)
        for id, (report, at) in reports.items():
            before = self._seen.get(id)
            if before is not None and at <= before[0]:
                continue
            busy = {InstanceId(load.instance): load.busy_s for load in report.loads}
            if before is not None:
                since, was = before
                self._found[id] = {
                    one: max(0.0, ran_s - was[one]) / (at - since) for one, ran_s in busy.items() if one in was
                }
            self._seen[id] = at, busy
        return {one: share for found in self._found.values() for one, share in found.items()}


class Spreading:
    """`run` is eternal and works while this controller leads."""

    def __init__(
        self,
        controller: ControllerId,
        ledger: Ledger,
        view: Callable[[], ClusterView],
        reports: Callable[[], Reports],
        load: Callable[[VariantName, WorkerId], object],
        steps: Steps,
        observer: Observer,
        clock: Clock,
        lease: Callable[[], Lease | None],
    ) -> None:
        """`load` raises InfaasError when it cannot."""
        self._controller = controller
        self._ledger = ledger
        self._view = view
        self._reports = reports
        self._load = load
        self._steps = steps
        self._observer = observer
        self._clock = clock
        self._lease = lease
        self._shares = Shares()
        self._memory = SpreadMemory()

    async def run(self) -> NoReturn:
        await every(LOOK_EVERY_S, self.look, clock=self._clock, name="spreading")

    async def look(self) -> None:
        """Raises UnavailableError and PreconditionError when a step cannot be written down; it is done all the same."""
        shares, lease = self._shares.look(self._reports()), self._lease()
        if lease is None:
            self._memory = SpreadMemory()
            return
        for step in self._plan(shares):
            try:
                self._load(step.variant, step.worker)
            except InfaasError as error:
                _log.warning("not loaded elsewhere", variant=step.variant, worker=step.worker, reason=error.text)
                continue
            _log.info("loaded elsewhere", variant=step.variant, worker=step.worker, reason=step.reason)
            self._observer.observe_scaling(FleetAction.LOAD.value, FleetCause.BUSY.value)
            await self._steps.put_step(self._record(step), lease)

    def _plan(self, shares: Mapping[InstanceId, float]) -> list[Spread]:
        now, variants = self._clock.now(), self._view().variants
        copies: list[Copy] = []
        places: list[Place] = []
        loading: set[VariantName] = set()
        banned: set[tuple[VariantName, WorkerId]] = set()
        for deck in self._ledger.ready_decks():
            busy_cores, on_its_way = 0.0, False
            for lane in deck.lanes.values():
                if lane.is_usable and lane.is_ready:
                    share = shares.get(lane.id)
                    if share is not None and lane.curve is not None:
                        copies.append(Copy(lane.variant, deck.id, min(1.0, share)))
                        busy_cores += min(1.0, share) * lane.curve.variant.threads
                elif lane.is_usable:
                    loading.add(lane.variant)
                    on_its_way = True
            free = deck.record.memory_bytes - set_aside_bytes(deck)
            places.append(Place(deck.id, deck.record.cores, busy_cores, free, on_its_way))
            banned |= {(name, deck.id) for name in variants if self._ledger.failed_load(name, deck.id, now)}
        needs = {
            name: Need(one.threads, one.memory_bytes)
            for name, one in variants.items()
            if one.state is VariantState.READY
        }
        found, self._memory = plan_spread(copies, places, needs, loading, banned, self._memory, now)
        return found

    def _record(self, step: Spread) -> FleetRecord:
        record = self._view().workers.get(step.worker)
        return FleetRecord(
            fresh_id("s"),
            self._clock.wall(),
            FleetAction.LOAD,
            FleetCause.BUSY,
            "" if record is None else record.pool,
            f"{step.variant}: {step.reason}",
            step.worker,
            controller=self._controller,
        )
