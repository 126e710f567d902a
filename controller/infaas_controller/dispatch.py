"""The dispatcher: the query path as the edges see it. It performs what the engine decides.

One event loop owns it. Arrivals are decided on at once; sending waits for the end of the loop's turn, so that queries
that arrived together leave together. One timer stands for the earliest of all deadlines.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from infaas.clock import Clock
from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import ControllerId, InstanceId, VariantName, WorkerId, fresh_id
from infaas.domain.query import AccuracyConfidence, Code, Decision, Query
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InfaasError, NotFoundError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import encode
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.settings import Settings
from infaas_controller.commands import BatchResult, CancelStaged, Command, Finish, LoadOn, SendBatch
from infaas_controller.decisions import DecisionHook, Decisions, Trace
from infaas_controller.engine import Engine
from infaas_controller.liveness import can_serve
from infaas_controller.policies import PolicyBook
from infaas_controller.ports import Answer, Outcome, QueryFailedError, VariantStats
from infaas_controller.queues import Ticket
from infaas_controller.tally import Tally
from infaas_controller.wire import WireQuery, encode_batch
from infaas_controller.workers import ViewSource, WorkerLinks

_log = get_logger(__name__)


class Observer(Protocol):
    """Who counts what is done here (`infaas.observe.metrics.Metrics` does). Calls must be quick and must not raise."""

    def observe_selection(self, seconds: float) -> None: ...

    def observe_batch(self, variant: str, items: int) -> None: ...

    def observe_load(self, variant: str, load_s: float) -> None: ...


class Dispatcher:
    """Implements `ports.QueryService` and is the sink of the workers' streams."""

    def __init__(
        self,
        view_keeper: ViewSource,
        links: WorkerLinks,
        policies: PolicyBook,
        settings: Settings,
        clock: Clock,
        rng: random.Random | None = None,
        *,
        controller: ControllerId | None = None,
    ) -> None:
        random_source = rng or random.Random()
        self._keeper = view_keeper
        self._links = links
        self._clock = clock
        self.controller = controller or ControllerId(fresh_id("c"))
        self.decisions = Decisions(self.controller, clock, settings.controller.decision_memory)
        self._tally = Tally()
        self.engine = Engine(
            policies,
            settings.controller.policy,
            max_queue_items=settings.controller.max_queue_size,
            draw=random_source.random,
            fresh_instance=lambda: InstanceId(fresh_id("i")),
            confidence=AccuracyConfidence(settings.controller.accuracy_confidence),
            needs_streams=True,
        )
        policies(settings.controller.policy)  # an unknown one is an error at the start, not at the first query
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._is_draining = False
        self._settled = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._observer: Observer | None = None
        self._loading: dict[InstanceId, tuple[VariantName, float]] = {}
        """What was ordered from here and is not READY yet, and when it was ordered."""

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow the view and dial the workers. Needs a running loop."""
        self._unsubscribe = self._keeper.subscribe(self._on_view)
        self._on_view(self._keeper.view, self._keeper.view)
        self._links.start(self)

    def begin_drain(self) -> None:
        """Refuse what comes from now on; what is here is finished."""
        self._is_draining = True

    async def drained(self) -> None:
        """Returns once no query is left. Bound it with a timeout."""
        while self.engine.live:
            self._settled.clear()
            await self._settled.wait()

    async def close(self) -> None:
        """Drop what is left and let the workers go."""
        self._is_draining = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._links.close()
        for handle in (self._flush_handle, self._timer):
            if handle is not None:
                handle.cancel()

    # -- queries -----------------------------------------------------------------------------------------------------

    @property
    def view(self) -> ClusterView:
        return self._keeper.view

    async def submit(self, query: Query) -> Answer:
        """Serve a query. Cancelling the call drops the query wherever it is.

        Raises QueryFailedError for every query that gets no answer.
        """
        if self._is_draining:
            error = InfaasError(
                "this controller is shutting down", code=Code.DRAINING, is_retryable=True, retry_after_s=1.0
            )
            raise QueryFailedError(error, Outcome(self.decisions.next_id()))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        began = self._clock.now()
        try:
            ticket = self.engine.arrive(query, future, began)
        except BaseException:
            future.cancel()  # nobody will await it; its deadline clears away what is left of the query
            self._after()
            raise
        ticket.decided_at = began
        ticket.decide_s = self._clock.now() - began
        if self._observer is not None:
            self._observer.observe_selection(ticket.decide_s)
        try:
            self._after()
            return await future
        except QueryFailedError:
            raise
        except BaseException:
            self.engine.cancel(ticket)
            self._after()
            raise

    def decision(self, key: str) -> Decision | None:
        return self.decisions.get(key)

    def recent(self, limit: int) -> Sequence[Decision]:
        return self.decisions.recent(limit)

    def on_decision(self, hook: DecisionHook) -> None:
        self.decisions.on_decision(hook)

    def observe_with(self, observer: Observer) -> None:
        self._observer = observer

    def stats(self) -> Mapping[VariantName, VariantStats]:
        return self._tally.snapshot()

    def is_ready(self) -> bool:
        return not self._is_draining and can_serve(self._keeper.is_synced, self._keeper.view, self.engine.ledger)

    def in_flight(self) -> int:
        return self.engine.live

    def queue_sizes(self) -> Mapping[str, int]:
        """Items that wait, by task."""
        return {task: self.engine.queues.items(task) for task in self.engine.queues.tasks()}

    # -- loading -----------------------------------------------------------------------------------------------------

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        """Start loading a variant; returns where. One that is there already (or on its way) is not loaded again.

        Raises NotFoundError for an unknown variant or worker, UnavailableError when no worker can take it.
        """
        found = self.view.variants.get(variant)
        if found is None:
            raise NotFoundError(f"no variant is called {variant!r}")
        ledger, now = self.engine.ledger, self._clock.now()
        if worker is not None and worker not in ledger.decks:
            raise NotFoundError(f"no worker is called {worker!r}; known: {', '.join(sorted(ledger.decks)) or 'none'}")
        there = [lane.worker.id for lane in ledger.lanes_of(variant) if lane.is_usable]
        if worker in there or (worker is None and there):
            return worker or min(there)
        deck = ledger.decks[worker] if worker is not None else ledger.place_for(found, now)
        if deck is None or not deck.is_ready or not ledger.could_hold(deck, found):
            place = f"worker {worker}" if worker is not None else "no READY worker"
            text = f"{place} cannot take {variant} now ({found.memory_bytes} bytes, {found.threads} thread(s))"
            raise UnavailableError(text, retry_after_s=1.0)
        self.engine.load(found, deck.id, now)
        self._after()
        return deck.id

    def unload(self, variant: VariantName) -> int:
        lanes = [lane for lane in self.engine.ledger.lanes_of(variant) if lane.is_usable]
        for lane in lanes:
            order = pb.UnloadInstance(instance=lane.id, reason="asked for by the control plane")
            self._links.send(lane.worker.id, pb.ControllerMessage(unload=order))
        return len(lanes)

    # -- what comes up the streams -----------------------------------------------------------------------------------

    def worker_connected(self, record: WorkerRecord) -> None:
        try:
            self.engine.worker_reported(record, self._clock.now())
        finally:
            self._after()

    def worker_lost(self, worker: WorkerId) -> None:
        _log.warning("worker lost", worker=worker, in_flight=self.engine.live)
        try:
            self.engine.worker_lost(worker, self._clock.now())
            if worker in self._keeper.view.workers:
                self.engine.view_changed(self._keeper.view, self._clock.now())
        finally:
            self._after()

    def batch_started(self, batch: int) -> None:
        self.engine.started(batch, self._clock.now())

    def batch_done(self, done: pb.BatchDone) -> None:
        outputs = {query.id: _Outputs(done, query) for query in done.queries if not query.error_code}
        failed = {query.id: (query.error_code, query.error) for query in done.queries if query.error_code}
        result = BatchResult(done.error_code, done.error, done.was_running, done.staged_s, done.run_s, outputs, failed)
        try:
            if not done.error_code and (ran := self.engine.ran(done.id, result)) is not None:
                lane, items = ran
                self._tally.batch_ran(lane.variant, items, done.run_s)
                if self._observer is not None:
                    self._observer.observe_batch(lane.variant, items)
            self.engine.done(done.id, result, self._clock.now())
        finally:
            self._after()

    def loads_reported(self, loads: Sequence[pb.InstanceLoad]) -> None:
        now = self._clock.now()
        for load in loads:
            self.engine.load_reported(InstanceId(load.instance), load.running + load.staged, now)

    def _on_view(self, old: ClusterView, new: ClusterView) -> None:
        now = self._clock.now()
        if new.variants is not old.variants:
            self._tally.forget_but(new.variants)
        try:
            self.engine.view_changed(new, now)
            self._note_loaded(now)
        finally:
            self._after()

    def _note_loaded(self, now: float) -> None:
        """See which of the instances ordered from here are READY, and forget those that are gone."""
        for instance, (variant, ordered_at) in list(self._loading.items()):
            lane = self.engine.ledger.lanes.get(instance)
            if lane is not None and not lane.is_ready and lane.is_usable:
                continue
            del self._loading[instance]
            if lane is not None and lane.is_ready and self._observer is not None:
                self._observer.observe_load(variant, now - ordered_at)

    # -- performing --------------------------------------------------------------------------------------------------

    def _after(self) -> None:
        """After every event: end what has ended, and see to sending and waking."""
        self._perform()
        if self.engine.has_work and self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)
        self._arm()

    def _flush(self) -> None:
        self._flush_handle = None
        try:
            self.engine.flush(self._clock.now())
        finally:
            self._after()

    def _arm(self) -> None:
        due = self.engine.next_due()
        if due is None or due >= self._timer_due:
            return  # a timer that rings too early sets itself anew
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        delay_s = max(0.0, due - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        try:
            self.engine.expire(self._clock.now())
        finally:
            self._after()

    def _perform(self) -> None:
        """One command after the other, those too that come of performing them; one that fails costs what it was about
        and no other."""
        while self.engine.commands:
            command = self.engine.commands.popleft()
            try:
                self._do(command)
            except Exception as error:
                _log.error("a command was not performed", command=type(command).__name__, exc_info=error)
                self._make_up_for(command, error)

    def _do(self, command: Command) -> None:
        if isinstance(command, Finish):
            self._finish(command)
        elif isinstance(command, SendBatch):
            self._send(command)
        elif isinstance(command, CancelStaged):
            cancel = pb.CancelQueries(batch=command.batch, queries=command.tickets)
            self._links.send(command.worker, pb.ControllerMessage(cancel=cancel))
        else:
            self._load(command)

    def _make_up_for(self, command: Command, error: Exception) -> None:
        """Nobody waits for what was not performed."""
        text = f"the controller failed: {type(error).__name__}: {error}"
        if isinstance(command, Finish):
            future = command.ticket.owner
            if isinstance(future, asyncio.Future) and not future.done():
                outcome = Outcome(self.decisions.next_id(), attempts=command.ticket.attempts)
                future.set_exception(QueryFailedError(InfaasError(text, code=Code.INTERNAL), outcome))
            if not self.engine.live:
                self._settled.set()
        elif isinstance(command, SendBatch):
            self.engine.done(command.number, BatchResult(Code.INTERNAL.value, text), self._clock.now())
        elif isinstance(command, LoadOn):
            self.engine.load_unsent(command.instance, self._clock.now())

    def _send(self, command: SendBatch) -> None:
        now = self._clock.now()
        queries: list[WireQuery] = [(t.number, t.query, t.deadline - now) for t in command.tickets]
        message = encode_batch(command.number, command.lane.id, queries)
        if not self._links.send(command.lane.worker.id, message):
            self.engine.batch_unsent(command.number, now)

    def _load(self, command: LoadOn) -> None:
        order = pb.LoadInstance(instance=command.instance, variant=encode(command.variant))
        now = self._clock.now()
        if self._links.send(command.worker, pb.ControllerMessage(load=order)):
            self._loading[command.instance] = (command.variant.name, now)
        else:
            self.engine.load_unsent(command.instance, now)

    def _finish(self, command: Finish) -> None:
        ticket, error = command.ticket, command.error
        if error is not None and error.code is Code.INTERNAL:
            cause = error.__cause__ or error
            _log.error(
                "a query failed inside the system", request_id=ticket.query.id, reason=error.text, exc_info=cause
            )
        future = ticket.owner
        if not isinstance(future, asyncio.Future):
            raise TypeError(f"a ticket of the dispatcher is owned by a future, not {type(future).__name__}")
        outputs: tuple[Tensor, ...] = ()
        if error is None:
            found = (command.result.outputs or {})[ticket.number] if command.result else None
            if not isinstance(found, _Outputs):
                raise TypeError("an answered ticket has outputs")
            try:
                outputs = found.tensors()
            except ValueError as malformed:
                error = InfaasError(f"the worker's answer cannot be read: {malformed}", code=Code.INTERNAL)
        outcome = self._outcome(ticket, error)
        self._record(ticket, outcome, error)
        if not self.engine.live:
            self._settled.set()
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
            self.decisions.next_id(),
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
            self.decisions.record(ticket, outcome, "answered", reason, ticket.policy, trace)
            if outcome.variant is not None:
                wall = self._clock.wall()
                self._tally.answered(
                    outcome.variant, ticket.items, outcome.queue_s, outcome.run_s, outcome.total_s, wall
                )
            return
        self.decisions.record(ticket, outcome, error.code.value, error.text, ticket.policy, trace)
        if outcome.variant is not None:
            self._tally.failed(outcome.variant, outcome.total_s)


class _Outputs:
    """One query's part of a batch's answer, read only if somebody still waits for it."""

    __slots__ = ("_done", "_query")

    def __init__(self, done: pb.BatchDone, query: pb.QueryOutputs) -> None:
        self._done = done
        self._query = query

    def tensors(self) -> tuple[Tensor, ...]:
        """Raises ValueError when names, datatypes and values do not match."""
        done, values = self._done, self._query.outputs
        return tuple(
            Tensor(name, Datatype(datatype), tuple(value.shape), value.data)
            for name, datatype, value in zip(done.output_names, done.output_datatypes, values, strict=True)
        )
