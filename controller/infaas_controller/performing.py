"""Performing what the engine decides: batches, cancellations and orders go to the workers, ends to those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from infaas.clock import Clock
from infaas.domain.query import Code, Query
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas.rpc.codec import encode
from infaas.rpc.hop.frames import FrameError
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.answers import Outputs
from infaas_controller.commands import BatchResult, CancelStaged, Command, Finish, LoadOn, SendBatch
from infaas_controller.decisions import Decisions, Trace
from infaas_controller.digesting import Digesting
from infaas_controller.engine import Engine
from infaas_controller.loading import LoadOrders
from infaas_controller.ports import Answer, Outcome, QueryFailedError, Waiter
from infaas_controller.queues import Ticket
from infaas_controller.tally import Tally
from infaas_controller.wire import encode_batch
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
        if isinstance(command, Finish):
            self._finish(command)
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
        if isinstance(command, Finish):
            future = command.ticket.owner
            if isinstance(future, (asyncio.Future, Waiter)) and not future.done():
                outcome = Outcome(self._decisions.next_id(), attempts=command.ticket.attempts)
                future.set_exception(QueryFailedError(InfaasError(text, code=Code.INTERNAL), outcome))
            self._on_ended()
        elif isinstance(command, SendBatch):
            self._engine.done(command.number, BatchResult(Code.INTERNAL.value, text), self._clock.now())
        elif isinstance(command, LoadOn):
            self._engine.load_unsent(command.instance, self._clock.now())

    def _send(self, command: SendBatch) -> None:
        now = self._clock.now()
        message = encode_batch(command.number, command.lane.id, command.tickets, now)
        try:
            is_sent = self._links.send(command.lane.worker.id, message)
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

    def _finish(self, command: Finish) -> None:
        ticket, error = command.ticket, command.error
        if error is not None and error.code is Code.INTERNAL:
            cause = error.__cause__ or error
            _log.error(
                "a query failed inside the system", request_id=ticket.query.id, reason=error.text, exc_info=cause
            )
        future = ticket.owner
        if not isinstance(future, (asyncio.Future, Waiter)):
            raise TypeError(f"a ticket of the dispatcher is owned by who waits, not by {type(future).__name__}")
        outputs: tuple[Tensor, ...] = ()
        if error is None:
            found = (command.result.outputs or {})[ticket.number] if command.result else None
            if not isinstance(found, Outputs):
                raise TypeError("an answered ticket has outputs")
            try:
                outputs = found.tensors()
            except ValueError as malformed:
                error = InfaasError(f"the worker's answer cannot be read: {malformed}", code=Code.INTERNAL)
        outcome = self._outcome(ticket, error)
        self._record(ticket, outcome, error)
        self._on_ended()
        if future.done():
            return
        if error is None:
            future.set_result(Answer(outcome, outputs))
        else:
            future.set_exception(QueryFailedError(error, outcome))

    def _outcome(self, ticket: Ticket, error: InfaasError | None) -> Outcome:
        query, choice = ticket.query, ticket.choice
        total_s = self._clock.now() - query.arrived_at
        lane = ticket.lane if error is None or ticket.attempts else None
        variant = lane.curve.variant if lane is not None and lane.curve is not None else None
        has_objective = query.requirements.latency_s is not None
        if error is None:
            slo_met: bool | None = total_s <= query.deadline - query.arrived_at
        else:
            slo_met = False if has_objective else None
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
            queue_s=ticket.queue_s if error is None else total_s,
            run_s=ticket.run_s,
            total_s=total_s,
            slo_met=slo_met,
            cold_start=ticket.is_cold,
            fallback=choice.fallback if choice is not None and error is None else None,
        )

    def _record(self, ticket: Ticket, outcome: Outcome, error: InfaasError | None) -> None:
        selected = ticket.selected
        trace = Trace(selected, ticket.deadline, ticket.selected_at) if selected is not None else None
        if error is None:
            reason = ticket.choice.reason if ticket.choice is not None else ""
            self._decisions.record(ticket, outcome, "answered", reason, ticket.policy, trace)
            if outcome.variant is not None:
                wall = self._clock.wall()
                self._tally.answered(
                    outcome.variant, ticket.items, outcome.queue_s, outcome.run_s, outcome.total_s, wall
                )
            return
        self._decisions.record(ticket, outcome, error.code.value, error.text, ticket.policy, trace)
        if outcome.variant is not None:
            self._tally.failed(outcome.variant, outcome.total_s)
