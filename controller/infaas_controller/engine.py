"""The query path without input or output: arrivals, batches, losses and time go in, commands come out.

It composes selection, queues, ledger and batching, and owns the promises that span them: every query ends exactly once,
with an answer or an error; none is sent twice but by SURFACE rule 15; a deadline that passes ends the wait at once. The
dispatcher performs its commands on a real loop and real streams; scenario tests and simulations drive it by hand.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.query import AccuracyConfidence, Choice, Code, Query, Refusal
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas_controller.commands import BatchResult, CancelStaged, Command, Finish, LoadOn, SendBatch
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.form import Limits, form, turn, until
from infaas_controller.decide.policies.base import Policy
from infaas_controller.decide.select import select_traced
from infaas_controller.lanes import Lane
from infaas_controller.ledger import Ledger
from infaas_controller.quarantine import Quarantine, RetryBudget
from infaas_controller.queues import EligibilityClass, Queues, Ticket, TicketState

REPORT_WITHIN_S = 10.0
"""A requested instance that its worker has not reported this long after it should be ready is given up."""
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
SPILLED_AT_ONCE = 32


class _Sent:
    __slots__ = ("is_started", "lane", "sent_at", "tickets")

    def __init__(self, lane: Lane, tickets: tuple[Ticket, ...], sent_at: float) -> None:
        self.lane = lane
        self.tickets = tickets
        self.sent_at = sent_at
        self.is_started = False


class _Due(Enum):
    """Why the timer is set."""

    DEADLINE = 0
    OVERDUE = 1
    UNREPORTED = 2


class Engine:
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
        self._policies = policies
        self._default_policy = default_policy
        self._max_queue_items = max_queue_items
        self._draw = draw
        self._fresh_instance = fresh_instance
        self.ledger = Ledger(needs_streams=needs_streams)
        self.queues = Queues(self.ledger)
        self.view = ClusterView()
        self.commands: list[Command] = []
        self._admissions = Admissions(confidence)
        self._tickets = itertools.count(1)
        self._batch_numbers = itertools.count(1)
        self._sent: dict[int, _Sent] = {}
        self._dirty: dict[InstanceId, Lane] = {}
        self._timers: list[tuple[float, int, _Due, int | Lane]] = []
        self._timer_numbers = itertools.count()
        self._open: dict[int, Ticket] = {}
        """Queries that have not ended. Timers know them by number, so that an ended one is not kept by them."""
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
            self._at(ticket.deadline, _Due.DEADLINE, ticket.number)
        return ticket

    def flush(self, now: float) -> None:
        """Fill the free slots of every instance that something changed for. Called once per turn of the loop, so that
        queries that arrived together leave together."""
        while self._dirty:
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
            self.ledger.observed_run(lane, flight.items, result.run_s)
            self.ledger.observed_hop(lane, now - sent.sent_at - result.staged_s - result.run_s)
            self.ledger.observed_batch(lane, flight.items, result.staged_s, result.run_s, now)
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
        while self._timers and self._timers[0][0] <= now:
            _, _, due, what = heapq.heappop(self._timers)
            if isinstance(what, Lane):
                self._give_up_load(what, now)
            elif due is _Due.OVERDUE:
                self._look_at_overdue(what, now)
            elif (ticket := self._open.get(what)) is not None:
                self._pass_deadline(ticket, now)

    def next_due(self) -> float | None:
        """When `expire` wants to be called, on the controller's clock."""
        while self._timers and self._is_stale(self._timers[0][2], self._timers[0][3]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def load(self, variant: Variant, worker: WorkerId, now: float) -> Lane:
        """Load on demand: the lane counts as LOADING from now on."""
        lane = self.ledger.load_requested(self._fresh_instance(), variant, worker, now)
        self.commands.append(LoadOn(worker, lane.id, variant))
        self._at(lane.ready_at + REPORT_WITHIN_S, _Due.UNREPORTED, lane)
        return lane

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

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _choose(self, ticket: Ticket, now: float, *, is_arrival: bool = False, may_refuse: bool = True) -> bool:
        """Select and reserve. False: refused, and with `may_refuse` also ended."""
        query = ticket.query
        ticket.policy = query.requirements.policy or self._default_policy
        admission = self._admissions.of(query, self.view)
        try:
            policy = self._policies(ticket.policy)
        except InfaasError as error:
            self._end(ticket, error)
            return False
        selected = select_traced(query, admission, self.ledger, policy, now, self._draw(), ticket.excluded)
        if isinstance(selected.outcome, Refusal) and not may_refuse:
            return False
        ticket.admission, ticket.selected, ticket.selected_at = admission, selected, now
        ticket.task = admission.task or ""
        if isinstance(selected.outcome, Refusal):
            self._refuse(ticket, selected.outcome, now)
            return False
        if is_arrival and not self._has_room(ticket, now):
            return False
        if ticket.eligibility is not None:
            self.queues.remove(ticket)
        self._place(ticket, selected.outcome, now)
        return True

    def _place(self, ticket: Ticket, choice: Choice, now: float) -> None:
        ticket.choice = choice
        if choice.load is not None:
            self._warm(choice.load, now)
        if choice.instance is None:
            lane = self.load(self.view.variants[choice.variant], choice.worker, now)
        else:
            lane = self.ledger.lanes[choice.instance]
        ticket.is_cold = ticket.is_cold or not lane.is_ready
        self.queues.add(
            ticket,
            lane,
            is_bound=choice.is_bound,
            is_fallback=choice.fallback is not None,
            is_alone=ticket.deaths > 0,
        )
        self._dirty[lane.id] = lane

    def _has_room(self, ticket: Ticket, now: float) -> bool:
        """Keep the task's queue within its bound; a higher priority pushes out lower ones."""
        over = self.queues.items(ticket.task) + ticket.items - self._max_queue_items
        if over <= 0:
            return True
        victims = self.queues.victims(ticket.task, ticket.rank, over)
        if not victims:
            text = (
                f"{self.queues.items(ticket.task)} items wait for {ticket.task!r}, the limit is {self._max_queue_items}"
            )
            self._end(ticket, InfaasError(text, code=Code.SATURATED, is_retryable=True, retry_after_s=1.0))
            return False
        for victim in victims:
            text = f"pushed out by a {ticket.query.requirements.priority.value} query; the queue is full"
            self._end(victim, InfaasError(text, code=Code.EVICTED, is_retryable=True, retry_after_s=1.0))
        return True

    def _refuse(self, ticket: Ticket, refusal: Refusal, now: float) -> None:
        if refusal.load is not None:
            self._warm(refusal.load, now)
        self._end(
            ticket,
            InfaasError(
                refusal.reason,
                code=refusal.code,
                is_retryable=refusal.retry_after_s is not None,
                retry_after_s=refusal.retry_after_s,
            ),
        )

    def _warm(self, what: tuple[VariantName, WorkerId], now: float) -> None:
        variant = self.view.variants.get(what[0])
        if variant is not None and what[1] in self.ledger.decks:
            self.load(variant, what[1], now)

    # -- sending -----------------------------------------------------------------------------------------------------

    def _fill(self, lane: Lane, now: float) -> None:
        """Hand an instance batches while it has a free slot and somebody waits for it."""
        while lane.is_ready and lane.curve is not None and lane.free_slots > 0:
            heads = self.queues.classes_for(lane)
            if not heads:
                if lane.flights or not self._spill(lane, now):
                    return
                continue
            self._send_from(turn(heads, now), lane, now)

    def _send_from(self, eligibility: EligibilityClass, lane: Lane, now: float) -> None:
        """One batch from one class, or at least its hopeless heads out of the way."""
        curve = lane.curve
        if curve is None:
            return
        limits = Limits(
            start_s=lane.free_at(now) - now,
            overhead_s=lane.worker.hop_s,
            correction=partial(self.ledger.correction, lane.variant),
            max_queries=1 if eligibility.is_alone else None,
            drops_late=not eligibility.is_bound,
        )
        formed = form(_promised_first(eligibility, lane), curve, limits, now)
        if formed.left is not None:
            self.queues.put_back(formed.left)
        for ticket in formed.expired:
            self._pass_deadline(ticket, now)
        if formed.batch:
            self._send(formed.batch, formed.items, lane, now)
        for ticket in formed.late:
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
        self._sent[number] = _Sent(lane, together, now)
        flight = self.ledger.sent(lane, number, items, now)
        self._at(
            lane.free_at(now) + max(OVERDUE_LEAST_S, (OVERDUE_FACTOR - 1) * flight.expected_s), _Due.OVERDUE, number
        )
        remaining_s = min(ticket.deadline for ticket in tickets) - now
        self.commands.append(SendBatch(lane, number, together, remaining_s))

    def _spill(self, lane: Lane, now: float) -> bool:
        """Let an instance that has nothing to do take queries promised elsewhere: of the same variant whenever it would
        answer sooner, of another one that their class admits only when they would be late where they are."""
        moved = 0
        for eligibility in self.queues.classes_admitting(lane.variant):
            taken: list[Ticket] = []
            for ticket in until(eligibility.pops(), SPILLED_AT_ONCE - moved):
                taken.append(ticket)
                if not self._is_better_here(ticket, lane, now):
                    break
                self.queues.move(ticket, lane)
                moved += 1
            for ticket in taken:
                self.queues.put_back(ticket)
            if moved >= SPILLED_AT_ONCE:
                break
        return moved > 0

    def _is_better_here(self, ticket: Ticket, lane: Lane, now: float) -> bool:
        there = ticket.lane
        if there is None or there is lane or lane.id in ticket.excluded or lane.curve is None:
            return False
        if ticket.items > lane.curve.hard_limit:
            return False
        here_at = self.ledger.predict(lane, ticket.rank, ticket.items, now)
        there_at = self._at_head_of(there, ticket, now)
        if there.variant == lane.variant:
            return here_at < there_at
        return here_at <= ticket.deadline < there_at

    def _at_head_of(self, lane: Lane, ticket: Ticket, now: float) -> float:
        """When a query that is next in its instance's line would be answered."""
        if lane.curve is None or not lane.is_usable:
            return float("inf")
        if lane.is_ready and lane.free_slots > 0 and not lane.flights:
            start = max(now, lane.worker.cores_free_at(lane, lane.curve.variant.threads, now))
        else:
            start = lane.free_at(now)
        return start + lane.curve.p95_s[ticket.items] * self.ledger.correction(lane.variant, 1) + lane.worker.hop_s

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

    def _batch_failed(self, sent: _Sent, result: BatchResult, now: float) -> None:
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
            self._at(ticket.deadline, _Due.DEADLINE, ticket.number)
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
            if not is_bound and self._at_head_of(lane, ticket, now) > ticket.deadline:
                self._choose(ticket, now, may_refuse=False)
        self._at(now + max(OVERDUE_LEAST_S, now - sent.sent_at), _Due.OVERDUE, batch)

    def _give_up_load(self, lane: Lane, now: float) -> None:
        abandoned = self.ledger.load_abandoned(lane.id)
        if abandoned is not None:
            self.ledger.load_failed(lane.variant, lane.worker.id, "the worker never reported the instance", now)
            self._lane_lost(abandoned, now)

    def _at(self, when: float, due: _Due, what: int | Lane) -> None:
        heapq.heappush(self._timers, (when, next(self._timer_numbers), due, what))
        if len(self._timers) > 1_000 and len(self._timers) > 4 * (len(self._open) + len(self._sent)):
            self._timers = [timer for timer in self._timers if not self._is_stale(timer[2], timer[3])]
            heapq.heapify(self._timers)

    def _is_stale(self, due: _Due, what: int | Lane) -> bool:
        if isinstance(what, Lane):
            return False
        return what not in (self._open if due is _Due.DEADLINE else self._sent)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _still(self, sent: _Sent, batch: int) -> list[Ticket]:
        return [t for t in sent.tickets if t.state is TicketState.SENT and t.batch == batch]

    def _fail(self, ticket: Ticket, code: Code, text: str) -> None:
        self._end(ticket, InfaasError(text, code=code))

    def _end(self, ticket: Ticket, error: InfaasError) -> None:
        """End without an answer, wherever the ticket is; what is staged of it is taken back."""
        if ticket.state is TicketState.FINISHED:
            return
        if ticket.eligibility is not None:
            lane = ticket.lane
            self.queues.remove(ticket)
            if lane is not None:
                self._dirty[lane.id] = lane
        elif ticket.state is TicketState.SENT and ticket.batch in self._sent and ticket.lane is not None:
            self.commands.append(CancelStaged(ticket.lane.worker.id, ticket.batch, (ticket.number,)))
        self._finish(ticket, error, None)

    def _finish(self, ticket: Ticket, error: InfaasError | None, result: BatchResult | None) -> None:
        ticket.state = TicketState.FINISHED
        del self._open[ticket.number]
        self.commands.append(Finish(ticket, error, result))


def _promised_first(eligibility: EligibilityClass, lane: Lane) -> Iterable[Ticket]:
    """A class's queue, bounded by what is promised to the lane: the rest is other instances' work."""
    return until(eligibility.pops(), len(eligibility.promised.get(lane.id, ())))


def _code(slug: str) -> Code:
    try:
        return Code(slug)
    except ValueError:
        return Code.INTERNAL
