"""How a query gets its place, and how it leaves: the half of the engine that owns every query that has not ended.

Selection is asked, the ledger reserves, the queue takes it in, or it is refused. Ending is here too, so that it happens
once, in one way, wherever a query stands.
"""

from __future__ import annotations

from collections.abc import Callable

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.query import AccuracyConfidence, Choice, Code, Refusal
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas_controller.commands import BatchResult, CancelStaged, Command, Finish, LoadOn
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.base import Policy
from infaas_controller.decide.select import select_traced
from infaas_controller.lanes import Lane
from infaas_controller.ledger import Ledger
from infaas_controller.queues import Queues, Ticket, TicketState
from infaas_controller.timers import Due, Timers

REPORT_WITHIN_S = 10.0
"""A requested instance that its worker has not reported this long after it should be ready is given up."""


class Sent:
    """A batch that a worker has."""

    __slots__ = ("is_started", "lane", "sent_at", "tickets")

    def __init__(self, lane: Lane, tickets: tuple[Ticket, ...], sent_at: float) -> None:
        self.lane = lane
        self.tickets = tickets
        self.sent_at = sent_at
        self.is_started = False


class Placing:
    """Effects are appended to `commands`."""

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
        self._sent: dict[int, Sent] = {}
        self._dirty: dict[InstanceId, Lane] = {}
        self._open: dict[int, Ticket] = {}
        """Queries that have not ended. Timers know them by number, so that an ended one is not kept by them."""
        self._timers = Timers(self._open, self._sent)

    def load(self, variant: Variant, worker: WorkerId, now: float) -> Lane:
        """Load on demand: the lane counts as LOADING from now on."""
        lane = self.ledger.load_requested(self._fresh_instance(), variant, worker, now)
        self.commands.append(LoadOn(worker, lane.id, variant))
        self._timers.set(lane.ready_at + REPORT_WITHIN_S, Due.UNREPORTED, lane)
        return lane

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

    # -- ends --------------------------------------------------------------------------------------------------------

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
