"""The query path without input or output: arrivals, batches, losses and time go in, commands come out.

It composes selection, queues, ledger and batching, and owns the promises that span them: every query ends exactly once,
with an answer or an error; none is sent twice but by SURFACE rule 15; a deadline that passes ends the wait at once. The
dispatcher performs its commands on a real loop and real streams; scenario tests and simulations drive it by hand.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from math import inf

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas_controller.arrivals import Arrivals
from infaas_controller.commands import Answered, BatchResult, SendBatch
from infaas_controller.decide.retry import How, Verdict, how_batch_ended, retry
from infaas_controller.decide.turn import turn
from infaas_controller.filling import Filling
from infaas_controller.lanes import Lane
from infaas_controller.placing import EngineSettings, Sent, internal
from infaas_controller.queues import Ticket, TicketState, by_deadline
from infaas_controller.timers import Due
from infaas_controller.wants import Wants

OVERDUE_FACTOR = 3.0
"""A batch that takes this much longer than expected makes the queries promised to its instance be looked at again."""
OVERDUE_LEAST_S = 0.05
UNREACHED_FOR_S = 1.0
"""A worker that could not be told to load is not asked again for so long."""
REVIEWED_AT_ONCE = 64
STEPS_PER_FLUSH = 512
"""Batches sent and late queries chosen again in one turn of the loop."""


class Engine(Arrivals):
    """Single-threaded. Every method that may cause effects appends to `commands`, which the caller takes."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._batch_numbers = itertools.count(1)
        self._steps_left = STEPS_PER_FLUSH
        self._filling = Filling(self.ledger, self.queues)
        self.wants = Wants()

    # -- what happens ------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Fill the free slots of every instance that something changed for. Called once per turn of the loop, so that
        queries that arrived together leave together. The work of one call is bounded; `has_work` says that some of
        it is left for the next turn. When it raises, the queries promised to the instance at hand have ended and
        everything else stands as it did."""
        self._steps_left = STEPS_PER_FLUSH
        while self._dirty and self._steps_left > 0:
            dirty, self._dirty = self._dirty, {}
            lanes = iter(dirty.values())
            for lane in lanes:
                try:
                    self._fill(lane, now)
                except Exception as error:
                    for untouched in lanes:
                        self._dirty.setdefault(untouched.id, untouched)
                    self._abandon(lane, error)
                    raise

    def started(self, batch: int, now: float, others: int = 0) -> None:
        """`others` are the items of other controllers that its instance holds."""
        sent = self._sent.get(batch)
        if sent is not None:
            sent.is_started = True
            lane, had = sent.lane, sent.lane.free_slots
            self.ledger.started(lane, batch, now)
            self.ledger.others_hold(lane, others, now)
            if lane.free_slots > had:
                self._dirty[lane.id] = lane

    def done(self, batch: int, result: BatchResult, now: float) -> None:
        """A worker is done with a batch, in whatever way. One that is not known any more is ignored."""
        sent = self._sent.pop(batch, None)
        if sent is None:
            return
        lane = sent.lane
        flight = self.ledger.done(lane, batch)
        self.ledger.others_hold(lane, result.others, now)
        self._dirty[lane.id] = lane
        if result.error:
            self._batch_failed(sent, batch, result, now)
            return
        if flight is not None and (items := sent.items_that_ran(result)):
            self.ledger.observed_batch(lane, flight, items, result.staged_s, result.run_s, now, result.run_items)
        outputs, failed = result.outputs or {}, result.failed or {}
        began_at = sent.sent_at + result.staged_s
        answered: list[Ticket] = []
        for ticket in sent.tickets:
            number = ticket.number
            if ticket.deaths and (number in outputs or number in sent.left):
                self.quarantine.clear(ticket)  # it ran, also when its deadline had passed by then
            if ticket.state is not TicketState.SENT or ticket.batch != batch:
                continue
            if ticket.deadline <= now:
                self._pass_deadline(ticket)
            elif number in outputs:
                ticket.run_s = result.run_s
                ticket.queue_s = max(0.0, began_at - ticket.query.arrived_at)
                if not answered:
                    self.commands.append(Answered(answered, result))
                self._forget(ticket)
                answered.append(ticket)
            elif (failure := failed.get(number)) is not None and failure[0] != Code.CANCELLED.value:
                self._fail(ticket, _code(failure[0]), failure[1] or failure[0])
            else:
                self._again(ticket, How.REFUSED, "the worker left it out of its batch", now)

    def batch_unsent(self, batch: int, now: float) -> None:
        """The stream would not take it."""
        sent = self._sent.pop(batch, None)
        if sent is not None:
            self.ledger.done(sent.lane, batch)
            for ticket in self._still(sent, batch):
                ticket.attempts -= 1
                self._again(ticket, How.REFUSED, "its worker cannot be reached", now)

    def view_changed(self, view: ClusterView, now: float) -> None:
        self.view = view
        self._follow(*self.ledger.sync(view, now), now)

    def worker_reported(self, record: WorkerRecord, now: float) -> None:
        """The first word of a worker on a new stream: from now on it can be chosen."""
        self._follow(*self.ledger.worker_reported(record, self.view, now), now)
        for lane in self.ledger.set_reachable(record.id, True):
            self._dirty[lane.id] = lane
        self._house(now)

    def worker_lost(self, worker: WorkerId, now: float) -> None:
        """The stream ended or fell silent: nothing that was sent there will come back."""
        self.ledger.set_reachable(worker, False)
        self._follow([], self.ledger.worker_lost(worker), now)

    def load_reported(self, instance: InstanceId, items: int, now: float) -> None:
        """So many items are at an instance, ours among them."""
        lane = self.ledger.lanes.get(instance)
        if lane is not None:
            had = lane.free_slots
            self.ledger.reported_load(lane, items, now)
            if lane.free_slots > had:
                self._dirty[lane.id] = lane

    def exchange_reported(self, worker: WorkerId, given_up: frozenset[VariantName] | None) -> None:
        """What a worker has replaced by other variants, and is not to load as long as those are on time. None: it
        does not exchange variants, or is gone."""
        self.ledger.exchanged_at(worker, given_up)

    def cancel(self, ticket: Ticket) -> None:
        """The caller is gone. What is staged of it is taken back."""
        self._end(ticket, InfaasError("the caller cancelled the query", code=Code.CANCELLED))

    def expire(self, now: float) -> None:
        """End every query whose deadline has passed, and look again at what hangs."""
        while (rung := self._timers.pop(now)) is not None:
            due, what = rung
            if isinstance(what, tuple):
                self._pass_deadlines(what, now)
            elif isinstance(what, Lane):
                (self._give_up_load if due is Due.UNREPORTED else self._look_at_load)(what, now)
            elif due is Due.OVERDUE:
                self._look_at_overdue(what, now)
            else:
                self._end_parking(self._open[what], now)

    def next_due(self, before: float = inf) -> float | None:
        """When `expire` wants to be called, on the controller's clock; None: not before then."""
        return self._timers.next_due(before)

    def load_unsent(self, instance: InstanceId, now: float) -> None:
        """The stream would not take the order to load."""
        lane = self.ledger.load_abandoned(instance)
        if lane is not None:
            self.ledger.load_failed(lane.variant, lane.worker.id, "it could not be reached", now, UNREACHED_FOR_S)
            self._follow((), (lane,), now)

    def ran(self, batch: int, result: BatchResult) -> tuple[Lane, int] | None:
        """Where a batch ran that is not `done` yet, and how many items; None when none did, or it is not known any
        more."""
        sent = self._sent.get(batch)
        if sent is None or not (items := sent.items_that_ran(result)):
            return None
        return sent.lane, items

    @property
    def has_work(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._dirty) and bool(self._open)

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
            head, lane.passed = turn(heads, now, lane.passed)
            drawn = self._filling.draw(head, lane, curve, now)
            for ticket in drawn.expired:
                self._pass_deadline(ticket)
            if drawn.batch:
                if self.wants.is_on:
                    self.wants.sent(lane, head, drawn.batch, drawn.items)
                self._send(drawn.batch, drawn.items, lane, now)
            for ticket in drawn.late:
                self._steps_left -= 1
                ticket.excluded |= {lane.id}
                ticket.late_at |= {lane.id}
                self._choose(ticket, now)

    def _send(self, tickets: list[Ticket], items: int, lane: Lane, now: float) -> None:
        number = next(self._batch_numbers)
        was_idle = not lane.flights
        flight = self.ledger.sent(lane, number, items, now)
        together = tuple(tickets)
        self._sent[number] = Sent(lane, together, now)
        self.queues.take_all(together, lane)
        for ticket in together:
            ticket.state = TicketState.SENT
            ticket.batch, ticket.batch_items, ticket.lane = number, items, lane
            ticket.attempts += 1
            ticket.is_cold = lane.ready_at > ticket.query.arrived_at
        arrivals = [ticket.query.arrived_at for ticket in together]
        flight.is_next = not was_idle or min(arrivals) <= lane.pace.ended_at
        flight.has_more = lane.ahead[-1] > 0
        if was_idle:
            flight.gathered_s = now - max(arrivals)
        self._timers.set(
            lane.free_at(now) + max(OVERDUE_LEAST_S, (OVERDUE_FACTOR - 1) * flight.expected_s), Due.OVERDUE, number
        )
        self.commands.append(SendBatch(lane, number, together))

    def _abandon(self, lane: Lane, error: Exception) -> None:
        """A fault of ours at one instance: whoever is promised to it would meet it again and again."""
        self.queues.restore()
        for ticket in self.queues.promised_to(lane):
            self._end(ticket, internal(f"the controller failed to serve it: {type(error).__name__}: {error}", error))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _follow(self, ready: Iterable[Lane], lost: Iterable[Lane], now: float) -> None:
        """Act on what the ledger found: fill what became ready, choose again for what cannot be served where it was.

        All of these leave the queues before the first is chosen for, the most urgent first, so that none is refused
        for the promises of another that has not moved yet.
        """
        for lane in ready:
            self._dirty[lane.id] = lane
        displaced: list[Ticket] = []
        for lane in lost:
            displaced += self._lose(lane, now)
        for lane in self.queues.lanes():
            if not lane.is_usable:
                displaced += self._take_back(lane)
        for ticket in sorted(displaced, key=lambda each: (each.rank, each.deadline, each.number)):
            self._choose(ticket, now)
        self._house(now)

    def _lose(self, lane: Lane, now: float) -> list[Ticket]:
        """The queries of a lost instance that are to be tried again."""
        self._dirty.pop(lane.id, None)
        why = f"instance {lane.id} of {lane.variant} on {lane.worker.id} was lost"
        found = self._take_back(lane)
        is_worker_lost = self.ledger.decks.get(lane.worker.id) is not lane.worker
        for place, number in enumerate(list(lane.flights)):
            self.ledger.done(lane, number)
            sent = self._sent.pop(number, None)
            if sent is not None:
                # A worker that crashes at once takes the word that it had begun along: what was next may have run.
                # Where it has a process of its own, what ends the worker is something else than what ran there.
                may_have_run = sent.is_started or (is_worker_lost and place < lane.slots - 1)
                may_have_run = may_have_run and not (is_worker_lost and lane.is_isolated)
                how = How.RAN if may_have_run else How.STAGED
                if how is How.RAN:
                    self._blame_ended(sent, number, now)
                found += [each for each in self._still(sent, number) if self._may_again(each, how, why, now)]
        return found

    def _take_back(self, lane: Lane) -> list[Ticket]:
        promised = self.queues.promised_to(lane)
        for ticket in promised:
            self.queues.remove(ticket)
        return promised

    def _batch_failed(self, sent: Sent, batch: int, result: BatchResult, now: float) -> None:
        how = how_batch_ended(result.error, was_running=result.was_running, queries=len(sent.tickets))
        dead = None
        if how is How.RAN:
            # Its worker's report follows; until then the instance would count as a place, and keep another one out.
            dead = self.ledger.instance_died(sent.lane.id)
            self._blame_ended(sent, batch, now)
        for ticket in self._still(sent, batch):
            self._again(ticket, how, result.reason or result.error, now, _code(result.error))
        if dead is not None:
            self._follow((), (dead,), now)

    def _blame_ended(self, sent: Sent, batch: int, now: float) -> None:
        """Queries that were running when their instance died, and that their deadline or their caller had ended by
        then: the next with the same input is as dangerous."""
        for ticket in sent.tickets:
            if ticket.state is TicketState.FINISHED and ticket.batch == batch:
                (self.quarantine.add if ticket.deaths else self.quarantine.suspect)(ticket, now)

    def _again(self, ticket: Ticket, how: How, why: str, now: float, code: Code = Code.MODEL_FAILED) -> None:
        if self._may_again(ticket, how, why, now, code):
            self._choose(ticket, now)

    def _may_again(self, ticket: Ticket, how: How, why: str, now: float, code: Code = Code.MODEL_FAILED) -> bool:
        """SURFACE rule 15: staged work always gets another place; work that ran gets one more try, alone, in an
        instance with a process of its own. False: it has ended, with `code` when the worker's word is final."""
        verdict = retry(ticket.deaths, ticket.losses, how)
        if verdict is Verdict.FAILED:
            self._fail(ticket, code, why)
            return False
        if verdict is Verdict.QUARANTINED:
            self.quarantine.add(ticket, now)
            self._fail(ticket, Code.MODEL_FAILED, f"{why} while it ran this query, for the second time")
            return False
        ticket.state = TicketState.WAITING
        ticket.losses += how is How.STAGED
        if verdict is Verdict.ALONE:
            if how is How.RAISED:
                ticket.raised = True
            else:
                ticket.deaths += 1
                self.quarantine.suspect(ticket, now)
            if not self._budget.spend():
                text = f"{why} while it ran this query; no retries are left in the budget"
                self._end(ticket, InfaasError(text, code=Code.UNAVAILABLE, is_retryable=True, retry_after_s=1.0))
                return False
        if how is not How.RAISED and ticket.lane is not None:
            ticket.excluded |= {ticket.lane.id}
        return True

    # -- time --------------------------------------------------------------------------------------------------------

    def _pass_deadlines(self, numbers: Sequence[int], now: float) -> None:
        """Of queries that share a timer; those that have time left set it anew."""
        live = [ticket for number in numbers if (ticket := self._open.get(number)) is not None]
        left = [ticket for ticket in live if ticket.deadline > now]
        if left:
            self._watch_deadlines(left)
        passed = sorted((ticket for ticket in live if ticket.deadline <= now), key=by_deadline, reverse=True)
        try:
            while passed:
                self._pass_deadline(passed.pop())
        finally:
            if passed:
                self._watch_deadlines(passed)

    def _pass_deadline(self, ticket: Ticket) -> None:
        where = "while it ran or was staged" if ticket.state is TicketState.SENT else "while it waited"
        limit_ms = (ticket.deadline - ticket.query.arrived_at) * 1e3
        self._fail(ticket, Code.DEADLINE_PASSED, f"the deadline of {limit_ms:.4g} ms passed {where}")

    def _look_at_overdue(self, batch: int, now: float) -> None:
        """A batch hangs."""
        sent = self._sent.get(batch)
        if sent is None:
            return
        self._review(sent.lane, now)
        self._timers.set(now + max(OVERDUE_LEAST_S, now - sent.sent_at), Due.OVERDUE, batch)

    def _look_at_load(self, lane: Lane, now: float) -> None:
        """An instance that was to be READY is still loading, or has been lost."""
        if lane.instance_state is not InstanceState.LOADING:
            lane.is_watched = False
            return
        self._review(lane, now)
        self._timers.set(now + max(OVERDUE_LEAST_S, now - lane.ready_at), Due.SLOW_LOAD, lane)

    def _review(self, lane: Lane, now: float) -> None:
        """Queries promised to an instance that takes longer than expected go elsewhere, if they would be late here and
        can: the earliest deadlines first, as many as may be looked at in one turn."""
        movable = [t for t in self.queues.promised_to(lane) if t.choice is None or not t.choice.is_bound]
        for ticket in heapq.nsmallest(REVIEWED_AT_ONCE, movable, key=lambda each: (each.deadline, each.number)):
            if self._filling.at_head_of(lane, ticket, now) > ticket.deadline:
                self._choose(ticket, now, may_refuse=False)

    def _give_up_load(self, lane: Lane, now: float) -> None:
        abandoned = self.ledger.load_abandoned(lane.id)
        if abandoned is not None:
            self.ledger.load_failed(lane.variant, lane.worker.id, "the worker never reported the instance", now)
            self._follow((), (abandoned,), now)

    def _still(self, sent: Sent, batch: int) -> list[Ticket]:
        return [t for t in sent.tickets if t.state is TicketState.SENT and t.batch == batch]


def _code(slug: str) -> Code:
    try:
        return Code(slug)
    except ValueError:
        return Code.INTERNAL
