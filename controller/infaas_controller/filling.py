"""What an instance with a free slot runs next: one batch of the class whose turn it is, or work promised elsewhere.

Every step makes progress. A step sends a batch (there are few slots), or ends a query, or takes a promise away from
this instance for good: a query that would be late here is barred from it, and is not looked at here again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from infaas_controller.decide.curve import Curve
from infaas_controller.decide.form import Formed, Limits, form, until
from infaas_controller.eligibility import EligibilityClass
from infaas_controller.lanes import Lane
from infaas_controller.ledger import Ledger
from infaas_controller.queues import Queues, Ticket, by_deadline

SPILLED_AT_ONCE = 32
PASSED_OVER_AT_ONCE = 32
"""Queries promised elsewhere that are looked at and passed over in search of a batch."""


class Drawn(NamedTuple):
    """What became of the head of a class at one instance. Never empty: something in it is progress."""

    batch: list[Ticket]
    items: int
    expired: list[Ticket]
    late: list[Ticket]
    """Promised to this instance and, more likely than not, late there."""


class Filling:
    """Reads the ledger, moves promises between instances; what is sent or ended is the engine's."""

    def __init__(self, ledger: Ledger, queues: Queues) -> None:
        self._ledger = ledger
        self._queues = queues

    def draw(self, eligibility: EligibilityClass, lane: Lane, curve: Curve, now: float) -> Drawn:
        """One batch for a lane that the class holds a promise of.

        Queries of a class are interchangeable, so the earliest deadlines go first, whichever instance they are promised
        to, unless they are barred here or would be late here and not there. When nothing is found that way, the
        promises of this very lane decide.
        """
        most = curve.preferred
        if self._queues.is_alone_at(eligibility, lane):
            most = curve.most_of(lane.ahead[-1])
        limits = Limits(
            start_s=_start(lane, curve, now) - now,
            overhead_s=self._ledger.way_s(lane.worker, now),
            usual=partial(self._ledger.seen.usual, lane.variant, now=now),
            promised=partial(self._ledger.seen.promised, lane.variant, now=now),
            most=most,
            surely_s=curve.most_s[most] * self._ledger.seen.most_promised(lane.variant, now),
            max_queries=1 if eligibility.is_alone else None,
            drops_late=not eligibility.is_bound,
        )
        passed_over: list[Ticket] = []
        is_late = _Late(curve, now + limits.start_s + limits.overhead_s, limits)
        if len(eligibility.promised.get(lane.id, ())) == eligibility.count:
            heads = eligibility.pops()  # nothing in it is other instances' work
        else:
            heads = _heads(eligibility, lane, passed_over, is_late)
        found = form(heads, curve, limits, now)
        self._put_back(found, passed_over)
        if not (found.batch or found.expired or found.late):
            mine = eligibility.promised.get(lane.id, {}).values()
            found = form(heapq.nsmallest(most, mine, key=by_deadline), curve, limits, now)
        return Drawn(found.batch, found.items, found.expired, found.late)

    def spill(self, lane: Lane, now: float) -> bool:
        """Let an instance that has nothing to do take queries promised elsewhere: of the same variant whenever it would
        answer sooner, of another one that their class admits only when they would be late where they are."""
        moved = 0
        for eligibility in self._queues.classes_admitting(lane.variant):
            taken: list[Ticket] = []
            for ticket in until(eligibility.pops(), SPILLED_AT_ONCE - moved):
                taken.append(ticket)
                if not self._may_come(ticket, lane):
                    continue
                if not self._is_better_here(ticket, lane, now):
                    break
                self._queues.move(ticket, lane)
                moved += 1
            for ticket in taken:
                self._queues.put_back(ticket)
            if moved >= SPILLED_AT_ONCE:
                break
        return moved > 0

    def at_head_of(self, lane: Lane, ticket: Ticket, now: float) -> float:
        """When a query that is next in its instance's line would be answered."""
        curve = lane.curve
        if curve is None or not lane.is_usable:
            return float("inf")
        start = _start(lane, curve, now)
        run_s = curve.p95_s[ticket.items] * self._ledger.seen.promised(lane.variant, ticket.items, now)
        return start + run_s + self._ledger.way_s(lane.worker, now)

    def _may_come(self, ticket: Ticket, lane: Lane) -> bool:
        """Whether it could run here at all; one that could not stands in nobody's way."""
        if ticket.lane is None or ticket.lane is lane or lane.id in ticket.excluded or lane.curve is None:
            return False
        return ticket.items <= lane.curve.hard_limit and (lane.is_isolated or not ticket.deaths)

    def _is_better_here(self, ticket: Ticket, lane: Lane, now: float) -> bool:
        there = ticket.lane
        if there is None:
            return False
        part = self._ledger.lines.part(ticket.task, ticket.urgency, ticket.query.requirements.tenant, 0)
        here_at = self._ledger.predict(lane, ticket.urgency, ticket.items, now, part)
        there_at = self.at_head_of(there, ticket, now)
        if there.variant == lane.variant:
            return here_at < there_at
        return here_at <= ticket.deadline < there_at

    def _put_back(self, found: Formed[Ticket], passed_over: Iterable[Ticket]) -> None:
        if found.left is not None:
            self._queues.put_back(found.left)
        for ticket in passed_over:
            self._queues.put_back(ticket)


class _Late(NamedTuple):
    """Whether a query alone would on average be late."""

    curve: Curve
    begin: float
    limits: Limits

    def __call__(self, ticket: Ticket) -> bool:
        items = ticket.items
        return self.begin + self.curve.mean_s[items] * self.limits.usual(items) > ticket.deadline


def _heads(eligibility: EligibilityClass, lane: Lane, passed_over: list[Ticket], is_late: _Late) -> Iterator[Ticket]:
    """A class's queue as one lane sees it, as far as the promises of this lane go: the rest is other instances' work.
    What is passed over goes into the list."""
    left = len(eligibility.promised.get(lane.id, ()))
    for ticket in until(eligibility.pops(), left + PASSED_OVER_AT_ONCE):
        if ticket.lane is not lane and (lane.id in ticket.excluded or is_late(ticket)):
            passed_over.append(ticket)
            if len(passed_over) >= PASSED_OVER_AT_ONCE:
                return
            continue
        yield ticket
        left -= 1
        if not left:
            return


def _start(lane: Lane, curve: Curve, now: float) -> float:
    """When the next batch of an instance would begin to run: when what was sent to it is done and, if that is nothing,
    when what was sent to others leaves enough cores."""
    at = lane.free_at(now)
    return at if lane.flights else max(at, lane.worker.cores_left_at(lane, curve.variant.threads, now))
