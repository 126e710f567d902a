"""How queries come in: each is looked at for what it did before, and those that are alike are decided on together.

What one turn of the loop brought in came in the same moment. Of queries that differ in nothing but their values the
first is chosen for; others join the batch that it would run in as long as all of them would be in time, and what refuses
it refuses them. So a busy moment pays for one decision a batch, not one a query.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace

from infaas.domain.query import Code, Query, Refusal
from infaas_controller.commands import Digest
from infaas_controller.placing import EngineSettings, Placing, internal
from infaas_controller.quarantine import QUARANTINE_S, Quarantine, RetryBudget
from infaas_controller.queues import Ticket, TicketState

QUARANTINED = (
    "this input ended the two instances that ran it, the second of them alone in a process of its own: it is in "
    f"quarantine and not run for {QUARANTINE_S / 60:.0f} minutes after that"
)


class Arrivals(Placing):
    """Every ticket that enters ends exactly once."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._tickets = itertools.count(1)
        self.quarantine = Quarantine(lambda ticket: self.commands.append(Digest(ticket)))
        self._budget = RetryBudget()

    def ticket(self, query: Query, owner: object) -> Ticket:
        """For `arrive_together`; nothing is known of it here until then."""
        return Ticket(next(self._tickets), query, owner)

    def arrive(self, query: Query, owner: object, now: float, digest: bytes | None = None) -> Ticket:
        """Decide on a query and reserve, or refuse it: its `Finish` is then among the commands already. `digest` is
        given where the quarantine wants it."""
        ticket = self.ticket(query, owner)
        ticket.digest = digest
        if self._enter(ticket, now):
            self._choose(ticket, now, is_arrival=True)
        return ticket

    def arrive_together(self, tickets: Sequence[Ticket], now: float) -> None:
        """As `arrive`, for what came in one turn of the loop, in that order. A fault of ours ends the queries that it
        met, and no others."""
        alike: dict[Hashable, list[Ticket]] = {}
        for ticket in tickets:
            try:
                if not self._enter(ticket, now):
                    continue
            except Exception as error:
                self._fault(ticket, error)
                continue
            query = ticket.query
            key: Hashable = ticket.number
            if not ticket.deaths:
                # By identity: what was read once is shared by all that sent the same; what was not stands alone.
                key = (
                    query.handle, query.version, query.items, query.outputs, id(query.requirements),
                    id(query.signature),
                )  # fmt: skip
            alike.setdefault(key, []).append(ticket)
        for group in alike.values():
            self._choose_together(group, now)

    def _enter(self, ticket: Ticket, now: float) -> bool:
        """From now on it is known here. False: it has ended already."""
        self._open[ticket.number] = ticket
        self._watch_deadline(ticket)
        self._budget.arrived()
        if self.quarantine.is_empty:
            return True
        if self.quarantine.holds(ticket, now):
            self._fail(ticket, Code.MODEL_FAILED, QUARANTINED)
            return False
        if self.quarantine.suspects(ticket, now):
            ticket.deaths = 1
        return True

    def _choose_together(self, group: list[Ticket], now: float) -> None:
        at = 0
        while at < len(group):
            first = group[at]
            try:
                was_placed = self._choose(first, now, is_arrival=True)
                at += 1
                if at == len(group):
                    return
                if was_placed:
                    at += self._join(first, group[at:], now)
                elif (refusal := _refusal(first)) is not None and self._is_shared(first):
                    for ticket in group[at:]:
                        self._follow_refusal(ticket, first, refusal, now)
                    return
            except Exception as error:
                for ticket in group[at:]:
                    self._fault(ticket, error)
                self._fault(first, error)
                return

    def _is_shared(self, ticket: Ticket) -> bool:
        """Whether its policy says the same of queries alike that come together."""
        return bool(getattr(self._settings.policies(ticket.policy), "decides_together", False))

    def _join(self, first: Ticket, others: Sequence[Ticket], now: float) -> int:
        """How many of the others now wait with the first, for the batch that it would run in."""
        choice, lane, eligibility, admission = first.choice, first.lane, first.eligibility, first.admission
        if choice is None or lane is None or lane.curve is None or eligibility is None or admission is None:
            return 0
        if choice.is_bound or choice.fallback is not None or choice.instance is None or not lane.is_ready:
            return 0
        if not self._is_shared(first):
            return 0
        items = first.items
        space = min(
            -lane.ahead[first.urgency] % lane.curve.preferred,
            self._settings.max_queue_items - self.queues.items(first.task),
        )
        count = min(len(others), space // items)
        tightest = min([ticket.deadline for ticket in others[:count]], default=first.deadline)
        tightest = min(tightest, first.deadline)
        at = 0.0
        while count > 0:
            at = self.ledger.predict(lane, first.urgency, count * items, now)
            if at <= tightest:
                break
            count //= 2
        if count <= 0:
            return 0
        together = others[:count]
        first.choice = choice = replace(choice, predicted_s=at - now)
        for ticket in together:
            _follow(ticket, first, now)
            ticket.choice = choice
            ticket.is_cold = False
        self.queues.add_like(together, eligibility, lane)
        return count

    def _follow_refusal(self, ticket: Ticket, first: Ticket, refusal: Refusal, now: float) -> None:
        _follow(ticket, first, now)
        self._refuse(ticket, refusal, now)

    def _fault(self, ticket: Ticket, error: Exception) -> None:
        self._end(ticket, internal(f"the controller failed to place it: {type(error).__name__}: {error}", error))


def _follow(ticket: Ticket, first: Ticket, now: float) -> None:
    """What was found of the first holds for a ticket like it."""
    ticket.policy = first.policy
    ticket.admission = first.admission
    ticket.selected, ticket.selected_at = first.selected, now
    ticket.task = first.task


def _refusal(ticket: Ticket) -> Refusal | None:
    """Why selection refused it, without what it had loaded for it; None when something else ended it."""
    if ticket.state is not TicketState.FINISHED or ticket.selected is None:
        return None
    outcome = ticket.selected.outcome
    if not isinstance(outcome, Refusal):
        return None
    return outcome if outcome.load is None else replace(outcome, load=None)
