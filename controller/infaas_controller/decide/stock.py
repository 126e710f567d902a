"""What of the fleet there is, held against what was ordered: `take_stock(intents, machines, workers, activity, ...)`.

Planned, requested and observed are kept apart: intents say what is wanted, the provider which machines exist, the view
which workers have come. Each may be late or lost. Whatever differs is put right by the same comparison, so that a crash
between two steps, or a leader that was deposed between them, costs a look or two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import FleetAction, FleetCause, Intent, IntentStage
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas_controller.decide.fleet import FleetStep, Observed, Requested, Stage


class Machine(msgspec.Struct, frozen=True):
    """At the provider. `epoch` is that of the store its intent was written to."""

    id: str
    pool: str
    worker: WorkerId
    asked_at: float
    epoch: str
    is_starting: bool = False
    """The provider was told, and cannot say yet that there is a machine."""
    has_ended: bool = False
    said: str = ""


class Activity(msgspec.Struct, frozen=True):
    """What a connected worker says of itself."""

    busy_cores: float = 0.0
    in_flight: int = 0
    is_interfered: bool = False
    is_overloaded: bool = False
    variants: frozenset[VariantName] = frozenset()
    """That it can serve at once."""


class StockLimits(msgspec.Struct, frozen=True):
    drain_s: float
    """What was told to leave is taken away after so long, whatever it holds."""
    missed_s: float
    """So is what was not heard of for so long."""
    early_s: float
    """What ends sooner than so long after it has come was of no use."""


class Stock(msgspec.Struct, frozen=True):
    requested: tuple[Requested, ...]
    observed: tuple[Observed, ...]
    moved: tuple[Intent, ...]
    """Intents in another stage than before: their worker has come, is missed, or is heard of again."""
    adopted: tuple[Intent, ...]
    """For machines whose intents were lost with a store."""
    to_create: tuple[Intent, ...]
    """Ordered, and the provider knows of no machine yet: it was not told, or is told again."""
    to_drain: tuple[WorkerId, ...]
    """That are to leave and have not been told, or were told otherwise since."""
    unwanted: tuple[Intent, ...]
    """Of pools that the fleet does not keep any more."""
    removals: tuple[FleetStep, ...]
    """Machines to take away, by `request`, and why."""
    failed: tuple[str, ...]
    """Pools of which a machine has ended before it was of use."""
    going: tuple[str, ...]
    """Of each machine that is to be taken away and is there yet, its pool."""


def take_stock(
    intents: Sequence[Intent],
    machines: Sequence[Machine],
    workers: Mapping[WorkerId, WorkerRecord],
    activity: Mapping[WorkerId, Activity],
    ages_s: Mapping[str, float],
    pools: Collection[str],
    epoch: str,
    limits: StockLimits,
    wall: float,
    now: float,
    unreadable: Collection[str] = (),
) -> Stock:
    """`activity` is of connected workers. `ages_s`: for how long each intent is known to have been in its stage; of
    none that is missing. `pools` are those that the fleet keeps. `wall` and `now` are the same moment on two clocks.
    `unreadable`: ids of intents that another version has written; what they are for is its business."""
    made = {one.id: one for one in machines}
    known = {*[one.id for one in intents], *unreadable}
    unknown = [one for one in machines if one.id not in known]
    strays = [one for one in unknown if one.has_ended or (one.epoch == epoch and not _is_heard(one, workers, activity))]
    lost = [one for one in unknown if one not in strays]
    adopted = [_adopted(one, workers, wall) for one in lost]
    removals = [_removal(one.id, one.pool, one.worker, FleetCause.UNKNOWN, _STRAY) for one in strays]
    requested: list[Requested] = []
    moved: list[Intent] = []
    to_create: list[Intent] = []
    to_drain: list[WorkerId] = []
    unwanted: list[Intent] = []
    failed: list[str] = []
    ours: dict[WorkerId, Intent] = {}
    coming: set[WorkerId] = set()
    for intent in (*intents, *adopted):
        own, record, age_s = made.get(intent.id), workers.get(intent.worker), ages_s.get(intent.id, 0.0)
        is_heard = record is not None and intent.worker in activity
        over = _why_over(intent, own, record, age_s, limits, is_heard=is_heard)
        if over is not None:
            removals.append(_removal(intent.id, intent.pool, intent.worker, *over))
            if over[0] is FleetCause.ENDED and _was_of_no_use(intent, own, age_s, limits):
                failed.append(intent.pool)
            continue
        ours[intent.worker] = intent
        stage = _stage_of(intent, is_heard=is_heard)
        if stage is not intent.stage:
            moved.append(dataclasses.replace(intent, stage=stage, since=wall))
        if intent.pool not in pools and intent.stage is not IntentStage.LEAVING:
            unwanted.append(intent)
        if intent.stage is IntentStage.LEAVING and record is not None and record.state is WorkerState.READY:
            to_drain.append(intent.worker)
        if stage is IntentStage.ORDERED:
            requested.append(Requested(intent.id, intent.pool, now - age_s))
            coming.add(intent.worker)
            if (own is None or own.is_starting) and intent.pool in pools:
                to_create.append(intent)
    leaving = {step.worker for step in removals}
    observed = [
        _observed(id, workers.get(id), ours.get(id), activity.get(id))
        for id in sorted({*workers, *ours} - coming)
        if id not in leaving
    ]
    return Stock(
        requested=tuple(requested),
        observed=tuple(observed),
        moved=tuple(moved),
        adopted=tuple(adopted),
        to_create=tuple(to_create),
        to_drain=tuple(to_drain),
        unwanted=tuple(unwanted),
        removals=tuple(removals),
        failed=tuple(failed),
        going=tuple([step.pool for step in removals if _exists(made.get(step.request or ""))]),
    )


_STRAY = "no intent stands behind it: whoever ordered it was deposed, or it was given up"


def _exists(machine: Machine | None) -> bool:
    return machine is not None and not machine.has_ended


def _was_of_no_use(intent: Intent, own: Machine | None, age_s: float, limits: StockLimits) -> bool:
    """Of one that is not there at all nobody knows how it went: the whole system may have been stopped meanwhile."""
    is_early = intent.stage is IntentStage.SERVING and age_s < limits.early_s
    return own is not None and (intent.stage is IntentStage.ORDERED or is_early)


def _is_heard(
    machine: Machine, workers: Mapping[WorkerId, WorkerRecord], activity: Mapping[WorkerId, Activity]
) -> bool:
    """Then it serves, whatever became of its intent: a store may come back as it was a while ago."""
    return machine.worker in workers and machine.worker in activity


def _why_over(
    intent: Intent,
    own: Machine | None,
    record: WorkerRecord | None,
    age_s: float,
    limits: StockLimits,
    *,
    is_heard: bool,
) -> tuple[FleetCause, str] | None:
    """Why its machine is to be taken away, or is gone; None: it is to stay."""
    is_gone = own is None or own.has_ended
    if intent.stage is IntentStage.LEAVING:
        if is_gone or record is None:
            return FleetCause.DRAINED, "it was to leave and is not among the workers any more"
        if age_s > limits.drain_s:
            return FleetCause.STUCK, f"it was to leave {age_s:.0f} s ago and is still there"
        return None
    if own is not None and own.has_ended:
        return FleetCause.ENDED, f"it has ended by itself; {own.said}" if own.said else "it has ended by itself"
    if own is None and intent.stage is not IntentStage.ORDERED:
        return FleetCause.ENDED, "the provider has no machine of that name any more"
    if intent.stage is IntentStage.MISSED and not is_heard and age_s > limits.missed_s:
        return FleetCause.LOST, f"it was not heard of for {age_s:.0f} s"
    return None


def _stage_of(intent: Intent, *, is_heard: bool) -> IntentStage:
    """As it is now. One that has not come is not missed, but waited for as any order is, and one that leaves goes on
    leaving."""
    if intent.stage is IntentStage.LEAVING:
        return intent.stage
    if is_heard:
        return IntentStage.SERVING
    return IntentStage.ORDERED if intent.stage is IntentStage.ORDERED else IntentStage.MISSED


def _adopted(machine: Machine, workers: Mapping[WorkerId, WorkerRecord], wall: float) -> Intent:
    """One that drains is taken for one that was to leave: it cannot be told any more who wanted that."""
    record = workers.get(machine.worker)
    stage = IntentStage.ORDERED if record is None else IntentStage.SERVING
    if record is not None and record.state is WorkerState.DRAINING:
        stage = IntentStage.LEAVING
    return Intent(machine.id, machine.pool, machine.worker, machine.asked_at, stage, wall)


def _removal(id: str, pool: str, worker: WorkerId, cause: FleetCause, why: str) -> FleetStep:
    return FleetStep(FleetAction.REMOVE, cause, pool, why, worker, id)


def _observed(id: WorkerId, record: WorkerRecord | None, intent: Intent | None, said: Activity | None) -> Observed:
    """A worker that somebody else drains counts as going, and is not ours to take away."""
    is_leaving = intent is not None and intent.stage is IntentStage.LEAVING
    state = None if record is None else record.state
    is_ours = intent is not None and (is_leaving or state is not WorkerState.DRAINING)
    pool = intent.pool if record is None and intent is not None else "" if record is None else record.pool
    found = Observed(id, pool, _stage(state, said, is_leaving=is_leaving), 0.0, 0, is_ours=is_ours)
    if said is None:
        return found
    return replace(
        found,
        busy_cores=said.busy_cores,
        in_flight=said.in_flight,
        is_interfered=said.is_interfered,
        is_overloaded=said.is_overloaded,
        variants=said.variants,
    )


def _stage(state: WorkerState | None, said: Activity | None, *, is_leaving: bool) -> Stage:
    """What one that cannot be heard holds is not known, and it is no one's to serve with or to take away."""
    if said is None or state in (None, WorkerState.FAILED, WorkerState.GONE):
        return Stage.LOST
    if state is WorkerState.DRAINING:
        return Stage.DRAINING
    if is_leaving:
        return Stage.LEAVING
    return Stage.STARTING if state is WorkerState.STARTING else Stage.READY
