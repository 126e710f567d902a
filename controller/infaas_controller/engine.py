"""The query path without input or output: arrivals, batches, losses and time go in, commands come out.

It composes selection, queues, ledger and batching, and owns the promises that span them: every query ends exactly once,
with an answer or an error; none is sent twice but by SURFACE rule 15; a deadline that passes ends the wait at once. The
dispatcher performs its commands on a real loop and real streams; scenario tests and simulations drive it by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.query import AccuracyConfidence, Code, Query
from infaas.errors import InfaasError
from infaas_controller.commands import BatchResult, SendBatch
from infaas_controller.decide.form import turn
from infaas_controller.decide.policies.base import Policy
from infaas_controller.filling import Filling
from infaas_controller.lanes import Lane
from infaas_controller.placing import Placing, Sent
from infaas_controller.quarantine import Quarantine, RetryBudget
from infaas_controller.queues import Ticket, TicketState
from infaas_controller.timers import Due

OVERDUE_FACTOR = 3.0
"""A batch that takes this much longer than expected makes the queries promised to its instance be looked at again."""
OVERDUE_LEAST_S = 0.05
STAGED_LOSSES = 2
"""Staged work is always retried, but one that was lost more often than this is suspected: the word that it had begun to
run may have been lost with its instance."""
_FINAL = frozenset({Code.INVALID.value, Code.DEADLINE_PASSED.value, Code.TOO_LARGE.value, Code.UNSUPPORTED.value})
"""Words of a worker about a batch that another try would not change."""
_MODEL_FAILED = Code.MODEL_FAILED.value
REVIEWED_AT_ONCE = 64
STEPS_PER_FLUSH = 512
"""Batches sent and late queries chosen again in one turn of the loop."""


class Engine(Placing):
    """Single-threaded. Every method that may cause effects appends to `commands`, which the caller takes."""

    def __init__(
        self,
        policies: Callable[[str], Policy],
        default_policy: str,
        *,
        max_queue_items: int,
        draw: Callable[[], float],
        fresh_instance: Callable[[], InstanceId],
        confidence: AccuracyConfidence = AccuracyConfidence.POINT,
        needs_streams: bool = False,
    ) -> None:
        """`policies` gives a policy by name, raising InfaasError for an unknown one."""
        super().__init__(
            policies,
            default_policy,
            max_queue_items=max_queue_items,
            draw=draw,
            fresh_instance=fresh_instance,
            confidence=confidence,
            needs_streams=needs_streams,
        )
        self._tickets = itertools.count(1)
        self._batch_numbers = itertools.count(1)
        self._steps_left = STEPS_PER_FLUSH
        self._filling = Filling(self.ledger, self.queues)
        self._quarantine = Quarantine()
        self._budget = RetryBudget()

    # -- what happens ------------------------------------------------------------------------------------------------

    def arrive(self, query: Query, owner: object, now: float) -> Ticket:
        """Decide on a query and reserve, or refuse it: its `Finish` is then among the commands already."""
        ticket = Ticket(next(self._tickets), query, owner)
        self._open[ticket.number] = ticket
        self._budget.arrived()
        if self._quarantine.holds(query, now):
            self._fail(ticket, Code.MODEL_FAILED, "this input ended its instance twice and is not run for a while")
            return ticket
        if self._choose(ticket, now, is_arrival=True):
            self._timers.set(ticket.deadline, Due.DEADLINE, ticket.number)
        return ticket

    def flush(self, now: float) -> None:
        """Fill the free slots of every instance that something changed for. Called once per turn of the loop, so that
        queries that arrived together leave together. The work of one call is bounded; `has_work` says that some of
        it is left for the next turn."""
        self._steps_left = STEPS_PER_FLUSH
        while self._dirty and self._steps_left > 0:
            dirty, self._dirty = self._dirty, {}
            for lane in dirty.values():
                self._fill(lane, now)

    def started(self, batch: int, now: float) -> None:
        sent = self._sent.get(batch)
        if sent is not None:
            sent.is_started = True
            self.ledger.started(sent.lane, batch, now)

    def done(self, batch: int, result: BatchResult, now: float) -> None:
        """A worker is done with a batch, in whatever way. One that is not known any more is ignored."""
        sent = self._sent.pop(batch, None)
        if sent is None:
            return
        lane = sent.lane
        flight = self.ledger.done(lane, batch)
        self._dirty[lane.id] = lane
        if result.error:
            self._batch_failed(sent, result, now)
            return
        if flight is not None:
            self.ledger.observed_batch(lane, flight, result.staged_s, result.run_s, now)
        outputs, failed = result.outputs or {}, result.failed or {}
        for ticket in sent.tickets:
            if ticket.state is not TicketState.SENT or ticket.batch != batch:
                continue
            if ticket.number in outputs:
                ticket.run_s = result.run_s
                ticket.queue_s = max(0.0, sent.sent_at + result.staged_s - ticket.query.arrived_at)
                self._finish(ticket, None, result)
            elif (failure := failed.get(ticket.number)) is not None and failure[0] != Code.CANCELLED.value:
                self._end(ticket, InfaasError(failure[1] or failure[0], code=_code(failure[0])))
            else:
                self._again(ticket, now, "the worker left it out of its batch", died_running=False)

    def batch_unsent(self, batch: int, now: float) -> None:
        """The stream would not take it."""
        sent = self._sent.pop(batch, None)
        if sent is not None:
            self.ledger.done(sent.lane, batch)
            for ticket in self._still(sent, batch):
                ticket.attempts -= 1
                self._again(ticket, now, "its worker cannot be reached", died_running=False)

    def view_changed(self, view: ClusterView, now: float) -> None:
        self.view = view
        self._follow(*self.ledger.sync(view, now), now)

    def worker_reported(self, record: WorkerRecord, now: float) -> None:
        """The first word of a worker on a new stream: from now on it can be chosen."""
        self._follow(*self.ledger.worker_reported(record, self.view, now), now)
        for lane in self.ledger.set_reachable(record.id, True):
            self._dirty[lane.id] = lane

    def worker_lost(self, worker: WorkerId, now: float) -> None:
        """The stream ended or fell silent: nothing that was sent there will come back."""
        self.ledger.set_reachable(worker, False)
        self._follow([], self.ledger.worker_lost(worker), now)

    def load_reported(self, instance: InstanceId, batches: int, now: float) -> None:
        self.ledger.reported_load(instance, batches, now)

    def cancel(self, ticket: Ticket, now: float) -> None:
        """The caller is gone. No command comes of it but taking back what is staged."""
        self._end(ticket, InfaasError("the caller cancelled the query", code=Code.CANCELLED))

    def expire(self, now: float) -> None:
        """End every query whose deadline has passed, and look again at what hangs."""
        while (rung := self._timers.pop(now)) is not None:
            due, what = rung
            if isinstance(what, Lane):
                self._give_up_load(what, now)
            elif due is Due.OVERDUE:
                self._look_at_overdue(what, now)
            elif (ticket := self._open.get(what)) is not None:
                self._pass_deadline(ticket, now)

    def next_due(self) -> float | None:
        """When `expire` wants to be called, on the controller's clock."""
        return self._timers.next_due()

    def load_unsent(self, instance: InstanceId, now: float) -> None:
        """The stream would not take the order to load."""
        lane = self.ledger.load_abandoned(instance)
        if lane is not None:
            self._lane_lost(lane, now)

    def lane_of(self, batch: int) -> Lane | None:
        """Where a batch is; None once it has come back."""
        sent = self._sent.get(batch)
        return sent.lane if sent is not None else None

    def items_of(self, batch: int) -> int:
        sent = self._sent.get(batch)
        return sum(ticket.items for ticket in sent.tickets) if sent is not None else 0

    @property
    def has_work(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._dirty)

    @property
    def live(self) -> int:
        """Queries that have not ended."""
        return len(self._open)

    # -- sending -----------------------------------------------------------------------------------------------------

    def _fill(self, lane: Lane, now: float) -> None:
        """Hand an instance batches while it has a free slot and somebody waits for it."""
        while lane.is_ready and (curve := lane.curve) is not None and lane.free_slots > 0:
            if self._steps_left <= 0:
                self._dirty[lane.id] = lane
                return
            self._steps_left -= 1
            heads = self.queues.classes_for(lane)
            if not heads:
                if lane.flights or not self._filling.spill(lane, now):
                    return
                continue
            drawn = self._filling.draw(turn(heads, now), lane, curve, now)
            for ticket in drawn.expired:
                self._pass_deadline(ticket, now)
            if drawn.batch:
                self._send(drawn.batch, drawn.items, lane, now)
            for ticket in drawn.late:
                self._steps_left -= 1
                ticket.excluded |= {lane.id}
                self._choose(ticket, now)

    def _send(self, tickets: list[Ticket], items: int, lane: Lane, now: float) -> None:
        number = next(self._batch_numbers)
        for ticket in tickets:
            self.queues.take(ticket, lane)
            ticket.state = TicketState.SENT
            ticket.batch, ticket.batch_items, ticket.lane = number, items, lane
            ticket.attempts += 1
        together = tuple(tickets)
        self._sent[number] = Sent(lane, together, now)
        was_idle = not lane.flights
        flight = self.ledger.sent(lane, number, items, now)
        if was_idle:
            flight.gathered_s = now - max(ticket.query.arrived_at for ticket in tickets)
        self._timers.set(
            lane.free_at(now) + max(OVERDUE_LEAST_S, (OVERDUE_FACTOR - 1) * flight.expected_s), Due.OVERDUE, number
        )
        remaining_s = min(ticket.deadline for ticket in tickets) - now
        self.commands.append(SendBatch(lane, number, together, remaining_s))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _follow(self, ready: Iterable[Lane], lost: Iterable[Lane], now: float) -> None:
        """Act on what the ledger found: fill what became ready, choose again for what cannot be served where it was."""
        for lane in ready:
            self._dirty[lane.id] = lane
        for lane in lost:
            self._lane_lost(lane, now)
        for lane in self.queues.lanes():
            if not lane.is_usable:
                for ticket in self.queues.promised_to(lane):
                    self._choose(ticket, now)

    def _lane_lost(self, lane: Lane, now: float) -> None:
        self._dirty.pop(lane.id, None)
        why = f"instance {lane.id} of {lane.variant} on {lane.worker.id} was lost"
        for number in list(lane.flights):
            self.ledger.done(lane, number)
            sent = self._sent.pop(number, None)
            if sent is not None:
                for ticket in self._still(sent, number):
                    self._again(ticket, now, why, died_running=sent.is_started)
        for ticket in self.queues.promised_to(lane):
            self._choose(ticket, now)

    def _batch_failed(self, sent: Sent, result: BatchResult, now: float) -> None:
        """What a worker refused before it ran is staged work. What raised while running is the model's own error: each
        query of such a batch is then tried alone once, so that one bad input does not fail its neighbours. Any other
        end of a run is taken for the death of its instance."""
        tickets = [ticket for ticket in sent.tickets if ticket.state is TicketState.SENT]
        if not result.was_running:
            for ticket in tickets:
                self._again(ticket, now, result.reason or result.error, died_running=False)
            return
        for ticket in tickets:
            if result.error in _FINAL or (result.error == _MODEL_FAILED and (len(sent.tickets) == 1 or ticket.deaths)):
                self._end(ticket, InfaasError(result.reason or "the run failed", code=_code(result.error)))
            else:
                has_raised = result.error == _MODEL_FAILED
                self._again(ticket, now, result.reason, died_running=True, excludes=not has_raised)

    def _again(self, ticket: Ticket, now: float, why: str, *, died_running: bool, excludes: bool = True) -> None:
        """SURFACE rule 15: staged work always gets another place; work that ran gets one more try, alone."""
        if ticket.state is TicketState.FINISHED:
            return
        ticket.state = TicketState.WAITING
        lane = ticket.lane
        if not died_running:
            ticket.losses += 1
        if died_running or ticket.losses > STAGED_LOSSES:
            if ticket.deaths:
                self._quarantine.add(ticket.query, now)
                self._fail(ticket, Code.MODEL_FAILED, f"{why} while it ran this query, for the second time")
                return
            ticket.deaths += 1
            if not self._budget.spend():
                text = f"{why} while it ran this query; no retries are left in the budget"
                self._end(ticket, InfaasError(text, code=Code.UNAVAILABLE, is_retryable=True, retry_after_s=1.0))
                return
        if excludes and lane is not None:
            ticket.excluded |= {lane.id}
        self._choose(ticket, now)

    # -- time --------------------------------------------------------------------------------------------------------

    def _pass_deadline(self, ticket: Ticket, now: float) -> None:
        if ticket.state is TicketState.FINISHED:
            return
        if ticket.deadline > now:
            self._timers.set(ticket.deadline, Due.DEADLINE, ticket.number)
            return
        where = "while it ran or was staged" if ticket.state is TicketState.SENT else "while it waited"
        limit_ms = (ticket.deadline - ticket.query.arrived_at) * 1e3
        self._fail(ticket, Code.DEADLINE_PASSED, f"the deadline of {limit_ms:.4g} ms passed {where}")

    def _look_at_overdue(self, batch: int, now: float) -> None:
        """A batch hangs: queries promised to its instance that would now be late go elsewhere if they can."""
        sent = self._sent.get(batch)
        if sent is None:
            return
        lane = sent.lane
        for ticket in self.queues.promised_to(lane)[:REVIEWED_AT_ONCE]:
            is_bound = ticket.choice is not None and ticket.choice.is_bound
            if not is_bound and self._filling.at_head_of(lane, ticket, now) > ticket.deadline:
                self._choose(ticket, now, may_refuse=False)
        self._timers.set(now + max(OVERDUE_LEAST_S, now - sent.sent_at), Due.OVERDUE, batch)

    def _give_up_load(self, lane: Lane, now: float) -> None:
        abandoned = self.ledger.load_abandoned(lane.id)
        if abandoned is not None:
            self.ledger.load_failed(lane.variant, lane.worker.id, "the worker never reported the instance", now)
            self._lane_lost(abandoned, now)

    def _still(self, sent: Sent, batch: int) -> list[Ticket]:
        return [t for t in sent.tickets if t.state is TicketState.SENT and t.batch == batch]


def _code(slug: str) -> Code:
    try:
        return Code(slug)
    except ValueError:
        return Code.INTERNAL
