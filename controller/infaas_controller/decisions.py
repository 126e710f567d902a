"""What was decided for each query and why: the memory behind `explain`.

Every query leaves one decision, answered or not. The last ones are kept in a ring and all refusals in another, bounded
one, so that a burst of answers does not push out why somebody was refused. Lists of candidates are made only when a
decision is read, from the immutable trace of its selection.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from infaas.clock import Clock, iso
from infaas.domain.ids import DecisionId
from infaas.domain.query import ANSWERED, Choice, Decision, Requirements, TraceContext
from infaas_controller.decide.select import Selected
from infaas_controller.kept import Kept, KeptTogether, Kind, Ring, Trace, predicted
from infaas_controller.ports import Outcome, Ran
from infaas_controller.queues import Ticket

DecisionHook = Callable[[Decision], None]
TracedHook = Callable[[Decision, Trace | None], None]
PredictionHook = Callable[[Sequence[float], Sequence[float]], None]
Take = Callable[[str, str, int, bool], bool]
"""Whether a hook takes a decision, by its outcome's slug, its handle, its attempts and whether it is a fallback: making
one costs more than asking. It is asked once for each, and given what it takes."""
TakeUsual = Callable[[int], Sequence[int]]
"""The same of so many usual answers (`ports.Together`): the places of those that it takes."""


class _Hook(NamedTuple):
    tell: Callable[[Decision, Kept], None]
    take: Take | None
    take_usual: TakeUsual | None

    def of_usual(self, kept: KeptTogether) -> Sequence[int]:
        """Which of a batch's answers it takes."""
        if self.take_usual is not None:
            return self.take_usual(len(kept))
        places = range(len(kept))
        return (
            places if self.take is None else [at for at in places if self.take(ANSWERED, kept.at(at).handle, 1, False)]
        )


class Decisions:
    """Ids name controller and process: `d-<controller>-<pid>-<n>`, so that any controller knows whom to ask."""

    def __init__(self, controller: str, clock: Clock, memory: int) -> None:
        self._clock = clock
        self._prefix = f"d-{controller}-{os.getpid():x}-"
        self._numbers = itertools.count(1)
        self._answered = Ring(memory)
        self._refused = Ring(memory)
        self._hooks: list[_Hook] = []
        self._prediction_hooks: list[PredictionHook] = []
        self._shown: OrderedDict[Requirements, Mapping[str, object]] = OrderedDict()

    def on_decision(self, hook: DecisionHook, take: Take | None = None, take_usual: TakeUsual | None = None) -> None:
        """`hook` sees every decision that it takes as it is made, without candidates. All must be quick and must not
        raise. Without `take_usual`, `take` is asked for every answer."""
        self._hooks.append(_Hook(lambda decision, _: hook(decision), take, take_usual))

    def on_traced(self, hook: TracedHook, take: Take | None = None, take_usual: TakeUsual | None = None) -> None:
        """As `on_decision`, with what candidates can be made of later, off the query path."""
        self._hooks.append(_Hook(lambda decision, kept: hook(decision, kept.choosing), take, take_usual))

    def on_prediction(self, hook: PredictionHook) -> None:
        """`hook` gets the predicted and the observed latencies of answers, in ms. As quick, and as quiet."""
        self._prediction_hooks.append(hook)

    def next_id(self) -> DecisionId:
        return DecisionId(f"{self._prefix}{next(self._numbers)}")

    def take_ids(self, count: int) -> tuple[str, int]:
        """For the usual answers of one batch: what their ids begin with, and the number that the first one ends with;
        the others' are the next ones. Record them before anything else is given an id."""
        first = next(self._numbers)
        self._numbers = itertools.count(first + count)
        return self._prefix, first

    def record(self, ticket: Ticket, outcome: Outcome, code: str, reason: str, wall: float) -> None:
        """Keep what became of a query; `code` is `answered` or an error's slug, `wall` the time in seconds since the
        epoch."""
        query = ticket.query
        is_answered = code == ANSWERED
        predicted_ms = predicted(ticket.choice, ticket.selected_at - query.arrived_at)
        kept = Kept(
            _number(outcome.decision_id), outcome, query.id, wall, query.handle, ticket.admission, ticket.policy,
            query.requirements, code, reason, predicted_ms, ticket.attempts > 0, ticket.batch_items, query.trace,
            ticket.selected, ticket.deadline, ticket.selected_at,
        )  # fmt: skip
        (self._answered if is_answered else self._refused).append(kept)
        if is_answered and predicted_ms is not None:
            for told in self._prediction_hooks:
                told((predicted_ms,), (outcome.total_s * 1e3,))
        decision: Decision | None = None
        for tell, take, _ in self._hooks:
            if take is None or take(code, query.handle, outcome.attempts, outcome.fallback is not None):
                decision = decision or self._decision(kept)
                tell(decision, kept)

    def record_together(
        self, tickets: Sequence[Ticket], numbers: Sequence[int], ran: Ran, now: float, wall: float
    ) -> None:
        """As `record`, of usual answers of one batch, given in one moment: `now` on the clock of their arrivals.
        `numbers`: what their ids end with."""
        times: list[float] = []
        ids: list[str] = []
        kinds: dict[int, Kind] = {}
        selected: Selected | None = None
        choice: Choice | None = None
        trace: TraceContext | None = None
        for ticket in tickets:
            query = ticket.query
            if ticket.selected is not selected or ticket.choice is not choice or query.trace is not trace or not kinds:
                selected, choice, trace = ticket.selected, ticket.choice, query.trace
                kinds[len(ids)] = Kind(
                    query.handle, query.requirements, query.trace, ticket.admission, ticket.policy, selected, choice
                )
            ids.append(query.id)
            times += (
                query.arrived_at, ticket.deadline, ticket.selected_at, ticket.decided_at, ticket.decide_s,
                ticket.queue_s,
            )  # fmt: skip
        kept = KeptTogether(self._prefix, numbers, ids, times, kinds, ran, tickets[0].batch_items, now, wall)
        try:
            self._tell_of(kept, tickets, now)
        finally:
            self._answered.append(kept)

    def _tell_of(self, kept: KeptTogether, tickets: Sequence[Ticket], now: float) -> None:
        chosen = [ticket for ticket in tickets if ticket.choice is not None]
        for told in self._prediction_hooks:
            told(
                [(t.selected_at - t.query.arrived_at + t.choice.predicted_s) * 1e3 for t in chosen if t.choice],
                [(now - t.query.arrived_at) * 1e3 for t in chosen],
            )
        for hook in self._hooks:
            if places := hook.of_usual(kept):
                for one in kept.each(places):
                    hook.tell(self._decision(one), one)

    def get(self, key: str) -> Decision | None:
        """By decision id or request id (the latest of that request). The second is for people: looking costs some
        milliseconds; keeping, for every query, next to nothing."""
        rings = self._answered, self._refused
        found = [kept for ring in rings if (kept := self._numbered(ring, key)) is not None]
        if not found:
            found = [kept for ring in rings if (kept := ring.requested(key)) is not None]
        return self._whole(max(found, key=_place)) if found else None

    def note_alike(self, id: DecisionId, count: int) -> None:
        """So many more ended so, and share this decision. One that is forgotten by now stays it."""
        if count and (kept := self._numbered(self._refused, id)) is not None:
            kept.alike += count

    def _numbered(self, ring: Ring, decision_id: str) -> Kept | None:
        number = decision_id.removeprefix(self._prefix)
        if number == decision_id or not number.isdecimal():
            return None
        return ring.of(int(number))

    def recent(self, limit: int) -> Sequence[Decision]:
        """The newest first, answers and refusals together."""
        newest = [kept for ring in (self._answered, self._refused) for kept in itertools.islice(ring.newest(), limit)]
        newest.sort(key=_place, reverse=True)
        return [self._whole(kept) for kept in newest[:limit]]

    def _whole(self, kept: Kept) -> Decision:
        decision = self._decision(kept)
        trace = kept.choosing
        return decision if trace is None else replace(decision, candidates=trace.candidates())

    def _decision(self, kept: Kept) -> Decision:
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
            trace_id=None if kept.trace is None else kept.trace.trace_id,
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


def _number(id: DecisionId) -> int:
    return int(id.rsplit("-", 1)[1])


def _place(kept: Kept) -> int:
    """Among all decisions."""
    return kept.number
