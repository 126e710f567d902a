"""Loads busy variants on further workers as `plan_spread` says. The leader does it, so that controllers do not each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

LOOK_EVERY_S = 1.0
WINDOW_S = 3.0
Reports = Mapping[WorkerId, tuple[pb.WorkerReport, float]]
_log = get_logger(__name__)


class Steps(Protocol):
    async def put_step(self, step: FleetRecord, lease: Lease) -> None:
        """Raises UnavailableError, PreconditionError."""


class Observer(Protocol):
    def observe_scaling(self, action: str, cause: str) -> None: ...


class Shares:
    """How much of the time each instance ran lately. Workers count runs that have ended, so one look may show none of a
    long run and the next all of it: what counts is the last few seconds together."""

    def __init__(self) -> None:
        self._words: dict[WorkerId, list[tuple[float, dict[InstanceId, float]]]] = {}
        """Of each worker, oldest first: those of the window, and the last before."""

    def look(self, reports: Reports) -> Mapping[InstanceId, float]:
        """Of those that are known since two words at least."""
        self._words = {id: self._words.get(id, []) for id in reports}
        found: dict[InstanceId, float] = {}
        for id, (report, at) in reports.items():
            words = self._words[id]
            if not words or at > words[-1][0]:
                words.append((at, {InstanceId(load.instance): load.busy_s for load in report.loads}))
            old = [place for place, (said_at, _) in enumerate(words) if words[-1][0] - said_at >= WINDOW_S]
            del words[: old[-1] if old else 0]
            found |= _shares(words)
        return found


def _shares(words: Sequence[tuple[float, dict[InstanceId, float]]]) -> Mapping[InstanceId, float]:
    """Each since its first word of these."""
    found: dict[InstanceId, float] = {}
    until, now = words[-1]
    for one, ran_s in now.items():
        since, was = next((at, said[one]) for at, said in words if one in said)
        if until > since:
            found[one] = max(0.0, ran_s - was) / (until - since)
    return found


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
        """Raises UnavailableError and PreconditionError when a step cannot be written down; all are done by then."""
        shares, lease = self._shares.look(self._reports()), self._lease()
        if lease is None:
            self._memory = SpreadMemory()
            return
        ordered = [step for step in self._plan(shares) if self._is_ordered(step)]
        for _ in ordered:
            self._observer.observe_scaling(FleetAction.LOAD.value, FleetCause.BUSY.value)
        for step in ordered:
            await self._steps.put_step(self._record(step), lease)

    def _is_ordered(self, step: Spread) -> bool:
        try:
            self._load(step.variant, step.worker)
        except InfaasError as error:
            _log.warning("not loaded elsewhere", variant=step.variant, worker=step.worker, reason=error.text)
            return False
        _log.info("loaded elsewhere", variant=step.variant, worker=step.worker, reason=step.reason)
        return True

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
                    if share is None:
                        loading.add(lane.variant)  # it has just come, and nobody knows yet what it will take over
                        on_its_way = True
                    elif lane.curve is not None:
                        copies.append(Copy(lane.variant, deck.id, min(1.0, share)))
                        busy_cores += min(1.0, share) * lane.curve.variant.threads
                elif lane.is_usable:
                    loading.add(lane.variant)
                    on_its_way = True
            free = deck.record.memory_bytes - deck.set_aside_bytes()
            is_empty = not any(lane.is_usable for lane in deck.lanes.values())
            places.append(Place(deck.id, deck.record.cores, busy_cores, free, on_its_way, is_empty))
            banned |= {
                (name, deck.id)
                for name in variants
                if self._ledger.failed_load(name, deck.id, now) or self._ledger.is_given_up(name, deck.id)
            }
        needs = {
            name: Need(one.threads, one.memory_bytes)
            for name, one in variants.items()
            if one.state is VariantState.READY and not one.runtime.is_elsewhere
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
            variant=step.variant,
        )
