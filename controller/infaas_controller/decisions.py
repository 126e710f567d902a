"""What was decided for each query and why: the memory behind `explain`.

Every query leaves one decision, answered or not. The last ones are kept in a ring and all refusals in another, bounded
one, so that a burst of answers does not push out why somebody was refused. Lists of candidates are made only when a
decision is read, from the immutable trace of its selection.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from infaas.clock import Clock, iso
from infaas.domain.ids import DecisionId
from infaas.domain.query import ANSWERED, Candidate, Decision, Requirements
from infaas_controller.decide.account import candidates
from infaas_controller.decide.candidates import Admission
from infaas_controller.decide.select import Selected
from infaas_controller.ports import Outcome
from infaas_controller.queues import Ticket

DecisionHook = Callable[[Decision], None]
TracedHook = Callable[[Decision, "Trace | None"], None]
PredictionHook = Callable[[float, float], None]
Take = Callable[[str, str, int, bool], bool]
"""Whether a hook takes a decision, by its outcome's slug, its handle, its attempts and whether it is a fallback: making
one costs more than asking. It is asked once for each, and given what it takes."""


class Trace(NamedTuple):
    """What candidates are made of. It does not hold the query: thousands of inputs would stay in memory."""

    selected: Selected
    deadline: float
    now: float

    def candidates(self, limit: int | None = None) -> tuple[Candidate, ...]:
        return candidates(self.selected, self.deadline, self.now, limit)

    @property
    def size(self) -> int:
        """How many candidates there are in all."""
        return len(self.selected.admission.rulings)


class _Kept(msgspec.Struct, eq=False):
    """What a decision is made of when somebody asks. Nothing of it changes any more but how many it stands for, and it
    does not hold the query."""

    outcome: Outcome
    request_id: str
    wall: float
    handle: str
    admission: Admission | None
    policy: str
    requirements: Requirements
    code: str
    reason: str
    predicted_ms: float | None
    was_sent: bool
    batch_items: int
    trace_id: str | None
    selected: Selected | None
    deadline: float
    selected_at: float
    alike: int = 0

    @property
    def trace(self) -> Trace | None:
        return None if self.selected is None else Trace(self.selected, self.deadline, self.selected_at)

    @property
    def observed_ms(self) -> float | None:
        return self.outcome.total_s * 1e3 if self.code == ANSWERED else None


class Decisions:
    """Ids name controller and process: `d-<controller>-<pid>-<n>`, so that any controller knows whom to ask."""

    def __init__(self, controller: str, clock: Clock, memory: int) -> None:
        self._clock = clock
        self._prefix = f"d-{controller}-{os.getpid():x}-"
        self._numbers = itertools.count(1)
        self._answered: deque[_Kept] = deque(maxlen=memory)
        self._refused: deque[_Kept] = deque(maxlen=memory)
        self._hooks: list[tuple[DecisionHook, Take | None]] = []
        self._traced_hooks: list[tuple[TracedHook, Take | None]] = []
        self._prediction_hooks: list[PredictionHook] = []
        self._shown: OrderedDict[Requirements, Mapping[str, object]] = OrderedDict()

    def on_decision(self, hook: DecisionHook, take: Take | None = None) -> None:
        """`hook` sees every decision that it takes as it is made, without candidates. Both must be quick and must not
        raise."""
        self._hooks.append((hook, take))

    def on_traced(self, hook: TracedHook, take: Take | None = None) -> None:
        """As `on_decision`, with what candidates can be made of later, off the query path."""
        self._traced_hooks.append((hook, take))

    def on_prediction(self, hook: PredictionHook) -> None:
        """`hook` gets the predicted and the observed latency of every answer, in ms. As quick, and as quiet."""
        self._prediction_hooks.append(hook)

    def next_id(self) -> DecisionId:
        return DecisionId(f"{self._prefix}{next(self._numbers)}")

    def record(self, ticket: Ticket, outcome: Outcome, code: str, reason: str, wall: float) -> None:
        """Keep what became of a query; `code` is `answered` or an error's slug, `wall` the time in seconds since the
        epoch."""
        query, attempts = ticket.query, outcome.attempts
        is_answered = code == ANSWERED
        predicted_ms = _predicted_ms(ticket)
        kept = _Kept(
            outcome, query.id, wall, query.handle, ticket.admission, ticket.policy,
            query.requirements, code, reason, predicted_ms, ticket.attempts > 0, ticket.batch_items,
            None if query.trace is None else query.trace.trace_id, ticket.selected, ticket.deadline, ticket.selected_at,
        )  # fmt: skip
        (self._answered if is_answered else self._refused).append(kept)
        if is_answered and predicted_ms is not None:
            for told in self._prediction_hooks:
                told(predicted_ms, outcome.total_s * 1e3)
        is_fallback = outcome.fallback is not None
        decision: Decision | None = None
        for hook, take in self._hooks:
            if take is None or take(code, query.handle, attempts, is_fallback):
                decision = decision or self._decision(kept)
                hook(decision)
        for traced, take in self._traced_hooks:
            if take is None or take(code, query.handle, attempts, is_fallback):
                decision = decision or self._decision(kept)
                traced(decision, kept.trace)

    def get(self, key: str) -> Decision | None:
        """By decision id or request id (the latest of that request). The second is for people: looking costs up to a
        millisecond; keeping, for every query, next to nothing."""
        rings = self._answered, self._refused
        found = [kept for ring in rings if (kept := self._numbered(ring, key)) is not None]
        if not found:
            found = [kept for ring in rings if (kept := _requested(ring, key)) is not None]
        return self._whole(max(found, key=_place)) if found else None

    def note_alike(self, id: DecisionId, count: int) -> None:
        """So many more ended so, and share this decision. One that is forgotten by now stays it."""
        if count and (kept := self._numbered(self._refused, id)) is not None:
            kept.alike += count

    def _numbered(self, ring: deque[_Kept], decision_id: str) -> _Kept | None:
        number = decision_id.removeprefix(self._prefix)
        if number == decision_id or not number.isdecimal():
            return None
        place = bisect_left(ring, int(number), key=_place)  # they come in the order of their ids
        if place == len(ring) or ring[place].outcome.decision_id != decision_id:
            return None
        return ring[place]

    def recent(self, limit: int) -> Sequence[Decision]:
        """The newest first, answers and refusals together."""
        newest = [kept for ring in (self._answered, self._refused) for kept in itertools.islice(reversed(ring), limit)]
        newest.sort(key=_place, reverse=True)
        return [self._whole(kept) for kept in newest[:limit]]

    def _whole(self, kept: _Kept) -> Decision:
        decision = self._decision(kept)
        trace = kept.trace
        return decision if trace is None else replace(decision, candidates=trace.candidates())

    def _decision(self, kept: _Kept) -> Decision:
        """Without candidates."""
        outcome, admission = kept.outcome, kept.admission
        return Decision(
            id=outcome.decision_id,
            request_id=kept.request_id,
            at=iso(kept.wall),
            handle=kept.handle,
            level=admission.level if admission else None,
            task=admission.task if admission else None,
            policy=kept.policy,
            requirements=self._plain(kept.requirements),
            outcome=kept.code,
            reason=kept.reason,
            variant=outcome.variant,
            worker=outcome.worker,
            instance=outcome.instance,
            floor=admission.floor if admission else None,
            predicted_ms=kept.predicted_ms,
            observed_ms=kept.observed_ms,
            queue_ms=outcome.queue_s * 1e3 if kept.was_sent else None,
            batch=kept.batch_items or None,
            slo_met=outcome.slo_met,
            attempts=outcome.attempts,
            cold_start=outcome.cold_start,
            fallback=outcome.fallback,
            trace_id=kept.trace_id,
            alike=kept.alike,
        )

    def _plain(self, wanted: Requirements) -> Mapping[str, object]:
        """Requirements in the words of SURFACE; those that are not stated are left out. Equal ones share a mapping."""
        found = self._shown.get(wanted)
        if found is None:
            if len(self._shown) >= 1_000:
                self._shown.popitem(last=False)
            found = self._shown[wanted] = plain_requirements(wanted)
        return found


def plain_requirements(wanted: Requirements) -> dict[str, object]:
    shown: dict[str, object] = {
        "slo_latency_ms": wanted.latency_s * 1e3 if wanted.latency_s is not None else None,
        "slo_accuracy_min": wanted.accuracy_min,
        "max_cost": wanted.max_cost,
        "objective": wanted.objective.value,
        "priority": wanted.priority.value,
        "fallback": "allow" if wanted.fallback else "deny",
        "accuracy_confidence": wanted.accuracy_confidence.value,
        "policy": wanted.policy,
        "tenant": wanted.tenant,
    }
    return {name: value for name, value in shown.items() if value is not None}


def _predicted_ms(ticket: Ticket) -> float | None:
    """From the query's arrival, as what is observed is; the last choice counts when it was chosen again."""
    if ticket.choice is None:
        return None
    return (ticket.selected_at - ticket.query.arrived_at + ticket.choice.predicted_s) * 1e3


def _requested(ring: deque[_Kept], request_id: str) -> _Kept | None:
    return next((kept for kept in reversed(ring) if kept.request_id == request_id), None)


def _place(kept: _Kept) -> int:
    """Among all decisions."""
    return int(kept.outcome.decision_id.rsplit("-", 1)[1])
