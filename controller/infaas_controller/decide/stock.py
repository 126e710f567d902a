"""What of the fleet there is, held against what was ordered: `take_stock(intents, machines, view, epoch, wall, now)`.

Planned, requested and observed are kept apart: intents say what is wanted, the provider which machines exist, the view
which workers have come. Each may be late or lost. Whatever differs is put right by the same comparison, so that a crash
between two steps, or a leader that was deposed between them, costs one look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import FleetAction, FleetCause, Intent, IntentStage
from infaas.domain.ids import WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas_controller.decide.fleet import FleetStep, Observed, Requested, Stage


class Machine(msgspec.Struct, frozen=True):
    """At the provider. `epoch` is that of the store its intent was written to."""

    id: str
    pool: str
    worker: WorkerId
    asked_at: float
    epoch: str
    has_ended: bool = False
    said: str = ""


class Activity(msgspec.Struct, frozen=True):
    """What a connected worker says of itself."""

    busy_cores: float = 0.0
    in_flight: int = 0
    is_interfered: bool = False
    is_overloaded: bool = False


class Stock(msgspec.Struct, frozen=True):
    requested: tuple[Requested, ...]
    observed: tuple[Observed, ...]
    moved: tuple[Intent, ...]
    """Intents whose worker has come, or is missed since: it has as long to come back as it had to come."""
    adopted: tuple[Intent, ...]
    """For machines whose intents were lost with a store."""
    to_create: tuple[Intent, ...]
    """Ordered, and the provider has nothing of that name: it was not told, or is told again."""
    to_drain: tuple[WorkerId, ...]
    """That are to leave and have not been told, or were told otherwise since."""
    removals: tuple[FleetStep, ...]
    """Machines to take away, by `request`, and why."""


def take_stock(
    intents: Sequence[Intent],
    machines: Sequence[Machine],
    workers: Mapping[WorkerId, WorkerRecord],
    activity: Mapping[WorkerId, Activity],
    epoch: str,
    drain_limit_s: float,
    wall: float,
    now: float,
) -> Stock:
    """`activity` is of connected workers. `wall` and `now` are the same moment on two clocks."""
    made = {one.id: one for one in machines}
    known = {one.id for one in intents}
    requested: list[Requested] = []
    come: list[Intent] = []
    missed: list[Intent] = []
    to_create: list[Intent] = []
    to_drain: list[WorkerId] = []
    removals: list[FleetStep] = []
    observed: list[Observed] = []
    ours: dict[WorkerId, Intent] = {}
    removals += [
        _removal(one.id, one.pool, one.worker, FleetCause.UNKNOWN, _STRAY)
        for one in machines
        if one.id not in known and (one.epoch == epoch or one.has_ended)
    ]
    adopted = tuple([_adopted(one, workers, wall) for one in machines if _is_lost_child(one, known, epoch)])
    for intent in (*intents, *adopted):
        own, record = made.get(intent.id), workers.get(intent.worker)
        over = _why_over(intent, own, has_come=record is not None, wall=wall, drain_limit_s=drain_limit_s)
        if over is not None:
            removals.append(_removal(intent.id, intent.pool, intent.worker, *over))
            continue
        ours[intent.worker] = intent
        if record is None:
            if intent.stage is IntentStage.SERVING:
                missed.append(replace_stage(intent, IntentStage.ORDERED, wall))
            asked_at = now if intent.stage is IntentStage.SERVING else now - max(0.0, wall - intent.since)
            requested.append(Requested(intent.id, intent.pool, asked_at))
            if own is None:
                to_create.append(intent)
        elif intent.stage is IntentStage.ORDERED:
            come.append(replace_stage(intent, IntentStage.SERVING, wall))
        elif intent.stage is IntentStage.LEAVING and record.state is WorkerState.READY:
            to_drain.append(intent.worker)
    leaving = {step.worker for step in removals}
    for record in workers.values():
        if record.id in leaving:
            continue
        observed.append(_observed(record, ours.get(record.id), activity.get(record.id)))
    return Stock(
        tuple(requested),
        tuple(observed),
        (*come, *missed),
        adopted,
        tuple(to_create),
        tuple(to_drain),
        tuple(removals),
    )


def _why_over(
    intent: Intent, own: Machine | None, *, has_come: bool, wall: float, drain_limit_s: float
) -> tuple[FleetCause, str] | None:
    """Why its machine is to be taken away, or is gone; None: it is to stay."""
    if intent.stage is IntentStage.LEAVING:
        waited_s = wall - intent.since
        if own is None or own.has_ended or not has_come:
            return FleetCause.DRAINED, "it was to leave, and has left"
        if waited_s > drain_limit_s:
            return FleetCause.STUCK, f"it was told to drain {waited_s:.0f} s ago and still holds queries"
        return None
    if own is None:
        never = intent.stage is IntentStage.ORDERED
        return None if never else (FleetCause.ENDED, "the provider has no machine of that name any more")
    if own.has_ended:
        return FleetCause.ENDED, f"it has ended by itself; {own.said}" if own.said else "it has ended by itself"
    return None


def replace_stage(intent: Intent, stage: IntentStage, wall: float) -> Intent:
    return dataclasses.replace(intent, stage=stage, since=wall)


_STRAY = "no intent stands behind it: whoever ordered it was deposed, or it was given up"


def _is_lost_child(machine: Machine, known: set[str], epoch: str) -> bool:
    return machine.id not in known and machine.epoch != epoch and not machine.has_ended


def _adopted(machine: Machine, workers: Mapping[WorkerId, WorkerRecord], wall: float) -> Intent:
    stage = IntentStage.SERVING if machine.worker in workers else IntentStage.ORDERED
    return Intent(machine.id, machine.pool, machine.worker, machine.asked_at, stage, wall)


def _removal(id: str, pool: str, worker: WorkerId, cause: FleetCause, why: str) -> FleetStep:
    return FleetStep(FleetAction.REMOVE, cause, pool, why, worker, id)


def _observed(record: WorkerRecord, intent: Intent | None, said: Activity | None) -> Observed:
    """A worker that somebody else drains counts as going, and is not ours to take away."""
    is_leaving = intent is not None and intent.stage is IntentStage.LEAVING
    found = Observed(record.id, record.pool, _stage(record, said, is_leaving=is_leaving), 0.0, 0, is_ours=False)
    if said is not None:
        found = replace(
            found,
            busy_cores=said.busy_cores,
            in_flight=said.in_flight,
            is_interfered=said.is_interfered,
            is_overloaded=said.is_overloaded,
        )
    is_drained_by_hand = found.stage is Stage.DRAINING and not is_leaving
    return replace(found, is_ours=intent is not None and not is_drained_by_hand)


def _stage(record: WorkerRecord, said: Activity | None, *, is_leaving: bool) -> Stage:
    if record.state is WorkerState.FAILED:
        return Stage.LOST
    if record.state is WorkerState.DRAINING and (said is not None or is_leaving):
        return Stage.DRAINING
    if said is None:
        return Stage.LOST
    return Stage.STARTING if record.state is WorkerState.STARTING else Stage.READY
