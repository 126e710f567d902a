"""How queries come in: each is looked at for what it did before, and those that are alike are decided on together.

What one turn of the loop brought in came in the same moment. Of queries that differ in nothing but values and deadlines
the tightest is chosen for; others join the batch that it would run in while all of them would be in time and no other
instance would answer sooner. What refuses both the tightest and the one with the most time refuses those between. So a
busy moment pays for one decision a batch, not one a query.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Sequence

from infaas.domain.query import Code, Objective, Query, Refusal
from infaas_controller.commands import Digest
from infaas_controller.placing import EngineSettings, Placing, internal
from infaas_controller.quarantine import QUARANTINE_S, Quarantine, RetryBudget
from infaas_controller.queues import Ticket, TicketState, by_deadline

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
        """As `arrive`, for what came in one turn of the loop, in that order. A fault of ours ends the query that it
        met, and no other."""
        entered = self._all_enter(tickets, now)
        if not self.room.is_wide_for(entered):
            for ticket in entered:  # where not all may find room, who came first does
                self._place_or_fault(ticket, now)
            return
        for group in _alike(entered):
            if len(group) == 1:
                self._place_or_fault(group[0], now)
                continue
            try:
                self._choose_together(group, now)
            except Exception as error:
                for ticket in group:  # those that were placed, or have ended, were spared
                    if ticket.state is TicketState.WAITING and ticket.eligibility is None:
                        self._fault(ticket, error)

    def _all_enter(self, tickets: Sequence[Ticket], now: float) -> Sequence[Ticket]:
        """Those that have not ended by that."""
        if not self.quarantine.is_empty:
            return [ticket for ticket in tickets if self._enters(ticket, now)]
        if not tickets:
            return ()
        self._budget.arrived(len(tickets))
        for ticket in tickets:
            self._open[ticket.number] = ticket
        self._watch_deadlines(tickets)
        return tickets

    def _enters(self, ticket: Ticket, now: float) -> bool:
        try:
            return self._enter(ticket, now)
        except Exception as error:
            self._fault(ticket, error)
            return False

    def _enter(self, ticket: Ticket, now: float) -> bool:
        """From now on it is known here. False: it has ended already."""
        self._open[ticket.number] = ticket
        self._watch_deadlines((ticket,))
        self._budget.arrived()
        if self.quarantine.is_empty:
            return True
        if self.quarantine.holds(ticket, now):
            self._fail(ticket, Code.MODEL_FAILED, QUARANTINED)
            return False
        if self.quarantine.suspects(ticket, now):
            ticket.deaths = 1
        return True

    def _place_or_fault(self, ticket: Ticket, now: float) -> bool:
        """Whether it waits now; else it has ended."""
        try:
            return self._choose(ticket, now, is_arrival=True)
        except Exception as error:
            self._fault(ticket, error)
            return False

    def _choose_together(self, group: list[Ticket], now: float) -> None:
        """The tightest deadline first; whoever has the most time is asked whether there is any use in going on."""
        left = deque(sorted(group, key=by_deadline))
        while left:
            first = left.popleft()
            if self._place_or_fault(first, now):
                for _ in range(self._join(first, left, now)):
                    left.popleft()
            elif left and self._is_refused_together(first):
                last = left.pop()
                if not self._place_or_fault(last, now) and _are_refused_alike(first, last):
                    self._refuse_like(last, left, now)

    def _is_refused_together(self, ticket: Ticket) -> bool:
        """Whether selection refused it, and its policy says the same of queries alike that have no more time."""
        return _refusal(ticket) is not None and self._decides_together(ticket)

    def _decides_together(self, ticket: Ticket) -> bool:
        return bool(getattr(self._settings.policies(ticket.policy), "decides_together", False))

    def _refuse_like(self, last: Ticket, left: deque[Ticket], now: float) -> None:
        """In the words that the one with the most time was told."""
        refusal = _refusal(last)
        while refusal is not None and left:
            ticket = left.popleft()
            if ticket.deadline <= now:
                self._place_or_fault(ticket, now)
                continue
            _follow(ticket, last, now)
            self._refuse(ticket, refusal, now)

    def _join(self, first: Ticket, others: Sequence[Ticket], now: float) -> int:
        """How many of the others, tightest deadline first, now wait with the first, for the batch that it would run in:
        its instance's share, where others would answer as soon."""
        choice, lane, eligibility = first.choice, first.lane, first.eligibility
        if not others or choice is None or lane is None or lane.curve is None or eligibility is None:
            return 0
        if choice.is_bound or choice.fallback is not None or choice.instance is None or not lane.is_ready:
            return 0
        if first.query.requirements.objective is Objective.LATENCY or not self._decides_together(first):
            return 0
        items, urgency = first.items, first.urgency
        count = min(len(others), -lane.ahead[urgency] % lane.curve.preferred // items)
        if count == 0:
            return 0
        predict = self.ledger.predict
        tenant = first.query.requirements.tenant
        part = self.ledger.lines.part(first.task, urgency, tenant, count * items)
        at = predict(lane, urgency, count * items, now, part)
        sooner = [
            other
            for other in self.ledger.lanes_of(lane.variant)
            if other is not lane and other.is_usable and predict(other, urgency, items, now, part) < at
        ]
        if sooner:
            count = (count + 1) // (len(sooner) + 1) - 1
            at = predict(lane, urgency, max(1, count) * items, now, part)
        while count > 0 and at > first.deadline:
            count //= 2
            at = predict(lane, urgency, max(1, count) * items, now, part)
        if count <= 0:
            return 0
        together = [others[place] for place in range(count)]
        first.choice = choice = choice._replace(predicted_s=at - now)
        for ticket in together:
            _follow(ticket, first, now)
            ticket.choice = choice
            ticket.is_cold = False
        self.queues.add_like(together, eligibility, lane)
        return count

    def _fault(self, ticket: Ticket, error: Exception) -> None:
        try:
            self._end(ticket, internal(f"the controller failed to place it: {type(error).__name__}: {error}", error))
        except Exception as again:  # it has ended all the same, and its error is logged with this
            error.add_note(f"and while it was taken out: {type(again).__name__}: {again}")


def _alike(tickets: Sequence[Ticket]) -> Iterable[list[Ticket]]:
    """By identity: what was read once is shared by all that sent the same; what was not stands alone. Whose call has a
    deadline has requirements of its own: what they were made of is shared, and they are as urgent."""
    found: dict[Hashable, list[Ticket]] = {}
    last: Query | None = None
    group: list[Ticket] = []
    for ticket in tickets:
        query = ticket.query
        if (
            last is None
            or query.requirements is not last.requirements
            or query.signature is not last.signature
            or query.handle != last.handle
            or query.version != last.version
            or query.items != last.items
            or query.outputs != last.outputs
            or ticket.deaths
        ):
            last = None if ticket.deaths else query
            key: Hashable = ticket.number
            if not ticket.deaths:
                key = (
                    query.handle, query.version, query.items, query.outputs, id(query.basis or query.requirements),
                    id(query.signature), ticket.urgency,
                )  # fmt: skip
            group = found.setdefault(key, [])
        group.append(ticket)
    return found.values()


def _follow(ticket: Ticket, first: Ticket, now: float) -> None:
    """What was found of the first holds for a ticket like it."""
    ticket.policy = first.policy
    ticket.admission = first.admission
    ticket.selected, ticket.selected_at = first.selected, now
    ticket.task = first.task


def _are_refused_alike(first: Ticket, last: Ticket) -> bool:
    """Whose calls have deadlines may differ in whether any variant could serve them at all."""
    one, other = _refusal(first), _refusal(last)
    return one is not None and other is not None and one.code is other.code


def _refusal(ticket: Ticket) -> Refusal | None:
    """Why selection refused it, without what it had loaded for it; None when something else ended it."""
    if ticket.state is not TicketState.FINISHED or ticket.selected is None:
        return None
    outcome = ticket.selected.outcome
    if not isinstance(outcome, Refusal):
        return None
    return outcome if outcome.load is None else outcome._replace(load=None)
