"""How a query gets its place, and how it leaves: the half of the engine that owns every query that has not ended.

Selection is asked, the ledger reserves, the queue takes it in, or it is refused. Ending is here too, so that it happens
once, in one way, wherever a query stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import AccuracyConfidence, Choice, Code, Refusal
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas_controller.commands import BatchResult, CancelStaged, Command, Finish, LoadOn
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.options import isolated
from infaas_controller.decide.policies.base import Policy
from infaas_controller.decide.select import select_traced
from infaas_controller.lanes import Lane
from infaas_controller.ledger import Ledger
from infaas_controller.queues import Queues, Ticket, TicketState
from infaas_controller.room import Bounds, Room
from infaas_controller.timers import Due, Timers

PARKED_S = 5.0
"""A query whose last worker was lost waits this long for one to come back before it is told to try again."""
REPORT_WITHIN_S = 10.0
"""A requested instance that its worker has not reported this long after it should be ready is given up."""

SLOW_LOAD_LEAST_S = 0.05
_NOT_RUN = frozenset({Code.CANCELLED.value, Code.DEADLINE_PASSED.value})


class Sent:
    """A batch that a worker has."""

    __slots__ = ("is_started", "lane", "left", "sent_at", "tickets")

    def __init__(self, lane: Lane, tickets: tuple[Ticket, ...], sent_at: float) -> None:
        self.lane = lane
        self.tickets = tickets
        self.sent_at = sent_at
        self.is_started = False
        self.left: set[int] = set()
        """Queries that ended here while they ran there: the worker calls them cancelled, but their items ran."""

    def items_that_ran(self, result: BatchResult) -> int:
        """Not what was cancelled, or too late, before it began."""
        outputs, failed = result.outputs or {}, result.failed or {}
        if len(outputs) == len(self.tickets):
            return sum([ticket.items for ticket in self.tickets])
        return sum(
            ticket.items
            for ticket in self.tickets
            if ticket.number in outputs
            or ticket.number in self.left
            or (ticket.number in failed and failed[ticket.number][0] not in _NOT_RUN)
        )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is made with, and keeps for its life."""

    policies: Callable[[str], Policy]
    """Gives a policy by name, raising InfaasError for an unknown one."""
    default_policy: str
    bounds: Bounds
    """Of what may wait."""
    draw: Callable[[], float]
    """Uniform over [0, 1)."""
    fresh_instance: Callable[[], InstanceId]
    confidence: AccuracyConfidence = AccuracyConfidence.POINT
    needs_streams: bool = False
    """Whether a worker can be chosen only once its stream has spoken."""


class Placing:
    """Effects are appended to `commands`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.ledger = Ledger(needs_streams=settings.needs_streams)
        self.queues = Queues(self.ledger)
        self.room = Room(self.ledger.lines, settings.bounds)
        self.view = ClusterView(is_listed=False)
        self.commands: deque[Command] = deque()
        self._admissions = Admissions(settings.confidence)
        self._sent: dict[int, Sent] = {}
        self._dirty: dict[InstanceId, Lane] = {}
        self._open: dict[int, Ticket] = {}
        """Queries that have not ended. Timers know them by number, so that an ended one is not kept by them."""
        self._homeless: dict[int, tuple[Ticket, float]] = {}
        """Queries that were let in and have no worker to wait for, and until when each waits for one."""
        self._timers = Timers(self._open, self._sent)

    def load(self, variant: Variant, worker: WorkerId, now: float) -> Lane:
        """Load on demand: the lane counts as LOADING from now on."""
        lane = self.ledger.load_requested(self._settings.fresh_instance(), variant, worker, now)
        self.commands.append(LoadOn(worker, lane.id, variant))
        self._timers.set(lane.ready_at + REPORT_WITHIN_S, Due.UNREPORTED, lane)
        return lane

    def _watch_deadlines(self, tickets: Sequence[Ticket]) -> None:
        """One timer for all of them, the tightest's: nearly all have ended by then."""
        first = min([ticket.deadline for ticket in tickets])
        self._timers.set(first, Due.DEADLINE, tuple([ticket.number for ticket in tickets]))

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _choose(
        self, ticket: Ticket, now: float, *, is_arrival: bool = False, may_refuse: bool = True, may_park: bool = True
    ) -> bool:
        """Select and reserve. False: refused, and with `may_refuse` also ended."""
        query = ticket.query
        ticket.policy = query.requirements.policy or self._settings.default_policy
        admission = self._admissions.of(query, self.view)
        try:
            policy = self._settings.policies(ticket.policy)
            selected = select_traced(
                query, admission, self.ledger, policy, now, self._settings.draw(), ticket.excluded,
                late_at=ticket.late_at, needs_process=ticket.deaths > 0,
            )  # fmt: skip
        except Exception as error:  # a policy is anyone's code: what it raises ends its query and nothing else
            if may_refuse:
                text = f"policy {ticket.policy!r} failed: {type(error).__name__}: {error}"
                self._end(ticket, error if isinstance(error, InfaasError) else internal(text, error))
            return False
        if isinstance(selected.outcome, Refusal) and not may_refuse:
            return False
        ticket.admission, ticket.selected, ticket.selected_at = admission, selected, now
        if ticket.eligibility is None:
            ticket.task = admission.task or ""
        if isinstance(selected.outcome, Refusal):
            if selected.outcome.code is Code.NO_WORKER and not is_arrival and may_park:
                self._park(ticket, now)
            else:
                self._refuse(ticket, selected.outcome, now)
            return False
        if is_arrival and not self._has_room(ticket):
            return False
        if ticket.eligibility is not None:
            self.queues.remove(ticket)
            ticket.task = admission.task or ""
        self._place(ticket, selected.outcome, now)
        return True

    def _place(self, ticket: Ticket, choice: Choice, now: float) -> None:
        ticket.choice = choice
        self._homeless.pop(ticket.number, None)
        if choice.load is not None:
            self._warm(ticket, choice.load, now)
        if choice.instance is None:
            lane = self.load(_as_loaded(ticket, self.view.variants[choice.variant]), choice.worker, now)
        else:
            lane = self.ledger.lanes[choice.instance]
        ticket.is_cold = not lane.is_ready
        if lane.instance_state is InstanceState.LOADING and not lane.is_watched:
            lane.is_watched = True
            patience_s = max(SLOW_LOAD_LEAST_S, self.ledger.load_s(lane))
            self._timers.set(max(now, lane.ready_at) + patience_s, Due.SLOW_LOAD, lane)
        self.queues.add(
            ticket,
            lane,
            is_bound=choice.is_bound,
            is_fallback=choice.fallback is not None,
            is_alone=ticket.raised or ticket.deaths > 0,
        )
        self._dirty[lane.id] = lane

    def _has_room(self, ticket: Ticket) -> bool:
        """Keep what waits within its bounds; others may have to leave for it."""
        if self.room.is_wide_for((ticket,)):
            return True
        leaving = self.room.make(ticket)
        for victim, error in leaving:
            self._end(victim, error)
        return not any(victim is ticket for victim, _ in leaving)

    def _park(self, ticket: Ticket, now: float) -> None:
        """A query that was let in and lost its place to the end of the last worker waits a little for one to come
        back: a worker that is started again takes a second or two."""
        if ticket.eligibility is not None:
            self.queues.remove(ticket)
        ticket.lane = None
        if ticket.number not in self._homeless:
            until = now + PARKED_S
            self._homeless[ticket.number] = ticket, until
            self._timers.set(until, Due.PARKED, ticket.number)

    def _end_parking(self, ticket: Ticket, now: float) -> None:
        """No worker came back in time: the query is refused with the reason, unless it found a place by now. One that
        found a place and lost that too is parked anew: the timer of the first time is not its."""
        parked = self._homeless.get(ticket.number)
        if parked is not None and parked[1] <= now:
            del self._homeless[ticket.number]
            self._choose(ticket, now, may_park=False)

    def _house(self, now: float) -> None:
        """Give parked queries a place, now that something about the workers has changed."""
        if self._homeless and any(True for _ in self.ledger.ready_decks()):
            for ticket, _ in list(self._homeless.values()):
                self._choose(ticket, now)

    def _refuse(self, ticket: Ticket, refusal: Refusal, now: float) -> None:
        if refusal.load is not None:
            self._warm(ticket, refusal.load, now)
        self._end(
            ticket,
            InfaasError(
                refusal.reason,
                code=refusal.code,
                is_retryable=refusal.retry_after_s is not None,
                retry_after_s=refusal.retry_after_s,
            ),
        )

    def _warm(self, ticket: Ticket, what: tuple[VariantName, WorkerId], now: float) -> None:
        variant = self.view.variants.get(what[0])
        if variant is not None and what[1] in self.ledger.decks:
            self.load(_as_loaded(ticket, variant), what[1], now)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _fail(self, ticket: Ticket, code: Code, text: str) -> None:
        self._end(ticket, InfaasError(text, code=code))

    def _end(self, ticket: Ticket, error: InfaasError) -> None:
        """End without an answer, wherever the ticket is; what is staged of it is taken back."""
        if ticket.state is TicketState.FINISHED:
            return
        try:
            self._leave(ticket)
        finally:
            self._forget(ticket)
            self.commands.append(Finish(ticket, error))

    def _leave(self, ticket: Ticket) -> None:
        lane = ticket.lane
        if lane is None:
            return
        if ticket.eligibility is not None:
            self.queues.remove(ticket)
            self._dirty[lane.id] = lane
        elif ticket.state is TicketState.SENT and (sent := self._sent.get(ticket.batch)) is not None:
            self.commands.append(CancelStaged(lane.worker.id, ticket.batch, (ticket.number,)))
            if sent.is_started:
                sent.left.add(ticket.number)

    def _forget(self, ticket: Ticket) -> None:
        ticket.state = TicketState.FINISHED
        if self._homeless:
            self._homeless.pop(ticket.number, None)
        del self._open[ticket.number]


def _as_loaded(ticket: Ticket, variant: Variant) -> Variant:
    """A query whose instance died before gets one that dies alone."""
    return isolated(variant) if ticket.deaths else variant


def internal(text: str, cause: Exception) -> InfaasError:
    """A fault of ours, or of what is plugged into us; `cause` is for the log."""
    error = InfaasError(text, code=Code.INTERNAL)
    error.__cause__ = cause
    return error
