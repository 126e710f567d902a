"""Performing what the engine decides: batches, cancellations and orders go to the workers, ends to those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from infaas.clock import Clock
from infaas.domain.query import ANSWERED, Code, Query
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas.rpc.codec import encode
from infaas.rpc.hop.frames import FrameError
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import Answered, BatchResult, CancelStaged, Command, Finish, LoadOn, SendBatch
from infaas_controller.decisions import Decisions
from infaas_controller.digesting import Digesting
from infaas_controller.engine import Engine
from infaas_controller.lanes import Lane
from infaas_controller.loading import LoadOrders
from infaas_controller.ports import Answer, Batch, Outcome, QueryFailedError, Ran, Together, Waiter
from infaas_controller.queues import Ticket
from infaas_controller.tally import Counts, Tally
from infaas_controller.wire import Outgoing
from infaas_controller.workers import WorkerLinks

_log = get_logger(__name__)


class Performer:
    """Owned by the dispatcher, on its event loop. `on_ended` is called after every query's end."""

    def __init__(
        self,
        engine: Engine,
        links: WorkerLinks,
        clock: Clock,
        decisions: Decisions,
        tally: Tally,
        orders: LoadOrders,
        digesting: Digesting,
        on_ended: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._links = links
        self._clock = clock
        self._decisions = decisions
        self._tally = tally
        self._orders = orders
        self._digesting = digesting
        self._on_ended = on_ended
        self._digests: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for what goes on in threads."""
        if self._digests:
            await asyncio.wait(self._digests)

    def perform(self) -> None:
        """One command after the other, those too that come of performing them; one that fails costs what it was about
        and no other."""
        while self._engine.commands:
            command = self._engine.commands.popleft()
            try:
                self._do(command)
            except Exception as error:
                _log.error("a command was not performed", command=type(command).__name__, exc_info=error)
                self._make_up_for(command, error)

    def refused(self, query: Query, error: InfaasError) -> QueryFailedError:
        """What its caller is told of a query that the engine never saw; it leaves a decision like any other."""
        ticket = Ticket(0, query, None)
        outcome = self._outcome(ticket, error)
        self._record(ticket, outcome, error)
        return QueryFailedError(error, outcome)

    def _do(self, command: Command) -> None:
        if isinstance(command, Answered):
            self._answer(command.tickets, command.result)
        elif isinstance(command, Finish):
            self._finish(command.ticket, command.error)
        elif isinstance(command, SendBatch):
            self._send(command)
        elif isinstance(command, CancelStaged):
            cancel = pb.CancelQueries(batch=command.batch, queries=command.tickets)
            self._links.send(command.worker, pb.ControllerMessage(cancel=cancel))
        elif isinstance(command, LoadOn):
            self._load(command)
        else:
            task = asyncio.get_running_loop().create_task(self._digest(command.ticket), name="digest")
            self._digests.add(task)
            task.add_done_callback(self._digests.discard)

    def _make_up_for(self, command: Command, error: Exception) -> None:
        """Nobody waits for what was not performed."""
        text = f"the controller failed: {type(error).__name__}: {error}"
        if isinstance(command, Finish | Answered):
            for ticket in (command.ticket,) if isinstance(command, Finish) else command.tickets:
                self._tell_failure(ticket, error)
            self._on_ended()
        elif isinstance(command, SendBatch):
            self._engine.done(command.number, BatchResult(Code.INTERNAL.value, text), self._clock.now())
        elif isinstance(command, LoadOn):
            self._engine.load_unsent(command.instance, self._clock.now())

    def _send(self, command: SendBatch) -> None:
        now, lane = self._clock.now(), command.lane
        try:
            is_sent = self._links.send(lane.worker.id, Outgoing(command.number, lane.id, command.tickets, now))
        except FrameError as error:
            self._engine.done(command.number, BatchResult(Code.TOO_LARGE.value, str(error)), now)
            return
        if not is_sent:
            self._engine.batch_unsent(command.number, now)

    def _load(self, command: LoadOn) -> None:
        order = pb.LoadInstance(instance=command.instance, variant=encode(command.variant))
        now = self._clock.now()
        if self._links.send(command.worker, pb.ControllerMessage(load=order)):
            self._orders.sent(command.instance, command.variant.name, now)
        else:
            self._engine.load_unsent(command.instance, now)

    async def _digest(self, ticket: Ticket) -> None:
        try:
            found = await self._digesting.of(ticket.query)
        except Exception as error:
            _log.error("an input was not digested, and will not be known again", ticket=ticket.number, exc_info=error)
            self._engine.quarantine.not_digested(ticket)
        else:
            self._engine.quarantine.digested(ticket, found, self._clock.now())

    def _finish(self, ticket: Ticket, error: InfaasError) -> None:
        if error.code is Code.INTERNAL:
            cause = error.__cause__ or error
            _log.error(
                "a query failed inside the system", request_id=ticket.query.id, reason=error.text, exc_info=cause
            )
        waiter = _waiter(ticket)
        outcome = self._outcome(ticket, error)
        self._record(ticket, outcome, error)
        self._on_ended()
        if not waiter.done():
            waiter.set_exception(QueryFailedError(error, outcome))

    def _answer(self, tickets: Sequence[Ticket], result: BatchResult) -> None:
        """Of one batch. What fails costs one of them its answer, and the others nothing."""
        lane = tickets[0].lane
        if lane is None:
            raise TypeError("what was answered ran somewhere")
        ran = _ran(lane, result)
        counts = None if ran.variant is None else self._tally.of(ran.variant)
        wall = self._clock.wall()
        for ticket in self._answer_together(tickets, result, ran, counts, wall):
            try:
                self._answer_one(ticket, result, ran, counts, wall)
            except Exception as error:
                _log.error("an answer was not performed", exc_info=error)
                self._tell_failure(ticket, error)
        self._on_ended()

    def _answer_together(
        self, tickets: Sequence[Ticket], result: BatchResult, ran: Ran, counts: Counts | None, wall: float
    ) -> Sequence[Ticket]:
        """Returns those that are left."""
        places, outputs = result.outputs, result.answers
        together = getattr(tickets[0].owner, "together", None)
        if together is None or places is None or outputs is None or outputs.problem:
            return tickets
        now = self._clock.now()
        usual, left = _usual(tickets, together, now)
        if not usual:
            return left
        prefix, first = self._decisions.take_ids(len(usual))
        try:
            skipped = together.answer(Batch(usual, ran, outputs, places, prefix, first, now))
        except Exception as error:
            _log.error("the answers of a batch were not performed", exc_info=error)
            for ticket in usual:
                self._tell_failure(ticket, error)
            return left
        numbers: Sequence[int] = range(first, first + len(usual))
        if skipped:
            left += [usual[place] for place in skipped]
            chosen = sorted(set(range(len(usual))).difference(skipped))
            usual, numbers = [usual[place] for place in chosen], [numbers[place] for place in chosen]
        if usual:
            if counts is not None:
                counts.answered_together(usual, ran.run_s, now, wall)
            try:
                self._decisions.record_together(usual, numbers, ran, now, wall)
            except Exception as error:  # they have their answers
                _log.error("who follows decisions was not told of a batch's", exc_info=error)
        return left

    def _answer_one(self, ticket: Ticket, result: BatchResult, ran: Ran, counts: Counts | None, wall: float) -> None:
        waiter = _waiter(ticket)
        try:
            tensors = result.tensors(ticket.number)
        except ValueError as malformed:
            self._finish(ticket, InfaasError(f"the worker's answer cannot be read: {malformed}", code=Code.INTERNAL))
            return
        query, choice = ticket.query, ticket.choice
        total_s = self._clock.now() - query.arrived_at
        outcome = Outcome(
            self._decisions.next_id(), ran.variant, ran.model, ran.version, ran.worker, ran.instance,
            ticket.attempts, ticket.decided_at, ticket.decide_s, ticket.queue_s, ticket.run_s, total_s,
            total_s <= query.deadline - query.arrived_at, ticket.is_cold, None if choice is None else choice.fallback,
        )  # fmt: skip
        self._decisions.record(ticket, outcome, ANSWERED, "" if choice is None else choice.reason, wall)
        if counts is not None:
            counts.answered(ticket.items, ticket.queue_s, ticket.run_s, total_s, wall)
        if not waiter.done():
            waiter.set_result(Answer(outcome, tensors))

    def _outcome(self, ticket: Ticket, error: InfaasError) -> Outcome:
        """Of a query that has no answer."""
        query = ticket.query
        total_s = self._clock.now() - query.arrived_at
        lane = ticket.lane if ticket.attempts else None
        variant = lane.curve.variant if lane is not None and lane.curve is not None else None
        return Outcome(
            self._decisions.next_id(),
            variant=variant.name if variant else None,
            model=variant.model if variant else None,
            version=variant.version if variant else None,
            worker=lane.worker.id if lane is not None else None,
            instance=lane.id if lane is not None else None,
            attempts=ticket.attempts,
            decided_at=ticket.decided_at,
            decide_s=ticket.decide_s,
            queue_s=total_s,
            run_s=ticket.run_s,
            total_s=total_s,
            slo_met=False if query.requirements.latency_s is not None else None,
            cold_start=ticket.is_cold,
        )

    def _record(self, ticket: Ticket, outcome: Outcome, error: InfaasError) -> None:
        self._decisions.record(ticket, outcome, error.code.value, error.text, self._clock.wall())
        if outcome.variant is not None:
            self._tally.of(outcome.variant).failed(outcome.total_s)

    def _tell_failure(self, ticket: Ticket, error: Exception) -> None:
        """Nobody waits for what was not performed."""
        waiter = ticket.owner
        if isinstance(waiter, (asyncio.Future, Waiter)) and not waiter.done():
            text = f"the controller failed: {type(error).__name__}: {error}"
            outcome = Outcome(self._decisions.next_id(), attempts=ticket.attempts)
            waiter.set_exception(QueryFailedError(InfaasError(text, code=Code.INTERNAL), outcome))


def _ran(lane: Lane, result: BatchResult) -> Ran:
    variant = None if lane.curve is None else lane.curve.variant  # it may have left the catalogue meanwhile
    if variant is None:
        return Ran(None, None, None, lane.worker.id, lane.id, result.run_s)
    return Ran(variant.name, variant.model, variant.version, lane.worker.id, lane.id, result.run_s)


def _usual(tickets: Sequence[Ticket], together: Together, now: float) -> tuple[list[Ticket], list[Ticket]]:
    """Those that may be answered together, in the words of `ports.Batch`, and the rest."""
    usual: list[Ticket] = []
    left: list[Ticket] = []
    for ticket in tickets:
        choice = ticket.choice
        if (
            ticket.attempts == 1
            and now <= ticket.deadline
            and not ticket.is_cold
            and (choice is None or choice.fallback is None)
            and getattr(ticket.owner, "together", None) is together
        ):
            usual.append(ticket)
        else:
            left.append(ticket)
    return usual, left


def _waiter(ticket: Ticket) -> asyncio.Future[Answer] | Waiter:
    waiter = ticket.owner
    if not isinstance(waiter, (asyncio.Future, Waiter)):
        raise TypeError(f"a ticket of the dispatcher is owned by who waits, not by {type(waiter).__name__}")
    return waiter
