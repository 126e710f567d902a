"""The dispatcher: the query path as the edges see it. What the engine decides is performed for it.

One event loop owns it. Deciding and sending wait for the end of the loop's turn, so that queries that arrived together
are decided on together and leave together. One timer stands for the earliest of all deadlines.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from infaas.clock import Clock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import ControllerId, DecisionId, InstanceId, VariantName, WorkerId, fresh_id
from infaas.domain.query import AccuracyConfidence, Code, Decision, Query
from infaas.errors import InfaasError, NotFoundError
from infaas.observe.book import Book
from infaas.observe.log import get_logger
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.settings import Settings
from infaas.store.view import require_filled
from infaas_controller.decisions import Decisions
from infaas_controller.digesting import Digesting
from infaas_controller.engine import Engine
from infaas_controller.heard import BatchObserver, Heard
from infaas_controller.liveness import can_serve
from infaas_controller.loading import LoadOrders, loaded_on, place_to_load
from infaas_controller.performing import Performer
from infaas_controller.placing import EngineSettings
from infaas_controller.policies import PolicyBook
from infaas_controller.ports import Answer, Outcome, QueryFailedError, VariantStats, Waiter
from infaas_controller.queues import Ticket
from infaas_controller.room import Bounds
from infaas_controller.tally import Tally
from infaas_controller.unread import UnreadTime
from infaas_controller.workers import ViewSource, WorkerLinks

_log = get_logger(__name__)


DECIDED_AT_ONCE = 32
"""When one turn of the loop brings in more, the first are decided on and sent before the rest is read: what they are
told may spare reading it."""
LOOKS_ON_S = 0.0002
"""How long a turn goes on at most because it brings queries: no more than what a batch costs by itself."""


class Observer(BatchObserver, Protocol):
    """Who counts what is done here (`infaas.observe.metrics.Metrics` does). Calls must be quick and must not raise."""

    def observe_selections(self, seconds: float, count: int) -> None:
        """Of each of so many queries."""

    def observe_load(self, variant: str, load_s: float) -> None: ...


class Dispatcher:
    """Implements `ports.QueryService`."""

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
        book: Book | None = None,
    ) -> None:
        """`book` keeps what is counted per variant; without one, it is this object's own."""
        random_source = rng or random.Random()
        self._keeper = view_keeper
        self._links = links
        self._clock = clock
        self.controller = controller or ControllerId(fresh_id("c"))
        self.decisions = Decisions(self.controller, clock, settings.controller.decision_memory)
        self._tally = Tally(book)
        self.engine = Engine(
            EngineSettings(
                policies,
                settings.controller.policy,
                bounds=Bounds(
                    settings.controller.max_queue_size,
                    settings.controller.max_queue_queries,
                    settings.controller.max_queue_bytes,
                ),
                draw=random_source.random,
                fresh_instance=lambda: InstanceId(fresh_id("i")),
                confidence=AccuracyConfidence(settings.controller.accuracy_confidence),
                needs_streams=True,
            )
        )
        policies(settings.controller.policy)  # an unknown one is an error at the start, not at the first query
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._is_draining = False
        self._settled = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._observer: Observer | None = None
        self._orders = LoadOrders()
        self._digesting = Digesting()
        self._undecided = 0
        """Queries that wait for their digest: the engine knows nothing of them yet."""
        self._arrived: list[Ticket] = []
        """What came in this turn of the loop and is decided on at its end."""
        self._looked = 0
        """How many of them were here when the turn might have ended; 0: it has not come to that."""
        self._looks_until = 0.0
        self._decided_alone = 0
        """How many that came in this turn were decided on before its end."""
        self._is_hearing = False
        self._unread: UnreadTime | None = None
        self._performer = Performer(
            self.engine, links, clock, self.decisions, self._tally, self._orders, self._digesting, self._note_ended
        )
        self.heard = Heard(self.engine, view_keeper, clock, self._tally, self._after)

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow the view and dial the workers. Needs a running loop."""
        self._unsubscribe = self._keeper.subscribe(self._on_view)
        self._on_view(self._keeper.view, self._keeper.view)
        self._links.start(self.heard)
        self._unread = UnreadTime()

    def begin_drain(self) -> None:
        """Refuse what comes from now on, and what is still being digested; the rest of what is here is finished."""
        self._is_draining = True

    async def drained(self) -> None:
        """Returns once no query is left. Bound it with a timeout."""
        while self.in_flight():
            self._settled.clear()
            await self._settled.wait()

    async def close(self) -> None:
        """Drop what is left and let the workers go."""
        self._is_draining = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._links.close()
        if self._unread is not None:
            self._unread.close()
        await self._performer.close()
        await self._digesting.close()
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
        self._refuse_when_draining()
        known = await self._digest(query) if self.engine.quarantine.wants_digest(query) else None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        ticket = self._enlist(query, future, known)
        try:
            return await future
        except QueryFailedError:
            raise
        except BaseException:
            self._drop(ticket)
            raise

    def can_begin(self, query: Query) -> bool:
        """Whether its input need not be digested first, which takes a thread."""
        quarantine = self.engine.quarantine
        return quarantine.is_empty or not quarantine.wants_digest(query)

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        """As `submit`, for who has no task; what is returned drops the query.

        Raises QueryFailedError while draining. Everything else is told to the waiter.
        """
        if self._is_draining:
            self._refuse_when_draining()
        return partial(self._drop, self._enlist(query, waiter, None))

    def decide(self) -> None:
        if not self._arrived:
            return
        self._decided_alone += len(self._arrived)
        try:
            self._take_arrived()  # nothing is sent before the turn's end: a batch for each costs more than this spares
        finally:
            self._after()

    def _enlist(self, query: Query, owner: asyncio.Future[Answer] | Waiter, digest: bytes | None) -> Ticket:
        ticket = self.engine.ticket(query, owner)
        ticket.digest = digest
        self._arrived.append(ticket)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)
        if len(self._arrived) + self._decided_alone >= DECIDED_AT_ONCE:
            self._work_off_and_hear()
        return ticket

    def _take_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        if arrived:
            began = self._clock.now()
            self.engine.arrive_together(arrived, began)
            self._decided(arrived, began)

    def _decided(self, tickets: Sequence[Ticket], began: float) -> None:
        each_s = (self._clock.now() - began) / len(tickets)
        for ticket in tickets:
            ticket.decided_at = began
            ticket.decide_s = each_s
        if self._observer is not None:
            self._observer.observe_selections(each_s, len(tickets))

    def _drop(self, ticket: Ticket) -> None:
        try:
            self._take_arrived()  # it may be among them, and leaves a decision like any other
            self.engine.cancel(ticket)
        finally:
            self._after()

    async def _digest(self, query: Query) -> bytes:
        """Raises QueryFailedError when its deadline passes meanwhile, or the controller begins to drain."""
        self._undecided += 1
        try:
            async with asyncio.timeout(query.deadline - self._clock.now()):
                found = await self._digesting.of(query)
        except TimeoutError:
            limit_ms = (query.deadline - query.arrived_at) * 1e3
            text = f"the deadline of {limit_ms:.4g} ms passed while its input was compared with suspected ones"
            raise self._performer.refused(query, InfaasError(text, code=Code.DEADLINE_PASSED)) from None
        finally:
            self._undecided -= 1
            self._note_ended()
        self._refuse_when_draining()
        return found

    def _refuse_when_draining(self) -> None:
        if self._is_draining:
            error = InfaasError(
                "this controller is shutting down", code=Code.DRAINING, is_retryable=True, retry_after_s=1.0
            )
            raise QueryFailedError(error, Outcome(self.decisions.next_id()))

    def refused(self, query: Query, error: InfaasError) -> QueryFailedError:
        self._refuse_when_draining()
        return self._performer.refused(query, error)

    def decision(self, key: str) -> Decision | None:
        return self.decisions.get(key)

    def recent(self, limit: int) -> Sequence[Decision]:
        return self.decisions.recent(limit)

    def note_alike(self, id: DecisionId, count: int) -> None:
        self.decisions.note_alike(id, count)

    def observe_with(self, observer: Observer) -> None:
        self._observer = self.heard.observer = observer

    def stats(self) -> Mapping[VariantName, VariantStats]:
        return self._tally.snapshot()

    def is_ready(self) -> bool:
        is_filled = self._keeper.is_synced and self._keeper.view.is_filled
        return not self._is_draining and can_serve(is_filled, self._keeper.view, self.engine.ledger)

    def in_flight(self) -> int:
        return self.engine.live + self._undecided + len(self._arrived)

    def queue_sizes(self) -> Mapping[str, int]:
        """Items that wait, by task."""
        return {task: self.engine.queues.items(task) for task in self.engine.queues.tasks()}

    def queue_tenants(self) -> Mapping[str, int]:
        """Tenants that have queries waiting, by task; those of one task's busiest priority."""
        found: dict[str, int] = {}
        for line in self.engine.ledger.lines:
            found[line.task] = max(found.get(line.task, 0), line.tenants)
        return found

    @property
    def queue_bytes(self) -> int:
        """Memory that the inputs of waiting queries take."""
        return self.engine.ledger.lines.all.bytes

    # -- loading -----------------------------------------------------------------------------------------------------

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        """Start loading a variant; returns where. One that is there already (or on its way) is not loaded again.

        Raises NotFoundError for an unknown variant or worker, UnavailableError when no worker can take it.
        """
        found = self.view.variants.get(variant)
        if found is None:
            require_filled(self.view)
            raise NotFoundError(f"no variant is called {variant!r}")
        ledger, now = self.engine.ledger, self._clock.now()
        if (there := loaded_on(ledger, found, worker)) is not None:
            return there
        place = place_to_load(ledger, found, worker, now)
        self.engine.load(found, place, now)
        self._after()
        return place

    def unload(self, variant: VariantName) -> int:
        lanes = [lane for lane in self.engine.ledger.lanes_of(variant) if lane.may_be_unloaded]
        for lane in lanes:
            order = pb.UnloadInstance(instance=lane.id, reason="asked for by the control plane")
            lane.is_leaving = self._links.send(lane.worker.id, pb.ControllerMessage(unload=order))
        return len(lanes)

    # -- the view ----------------------------------------------------------------------------------------------------

    def _on_view(self, old: ClusterView, new: ClusterView) -> None:
        now = self._clock.now()
        try:
            self.engine.view_changed(new, now)
            for variant, load_s in self._orders.take_loaded(self.engine.ledger, now):
                if self._observer is not None:
                    self._observer.observe_load(variant, load_s)
        finally:
            self._after()
        if new.variants is not old.variants and self._keeper.is_synced:  # else it says nothing of who is gone
            self._tally.forget_but(new.variants)  # last: what ended just now was still counted

    # -- turns of the loop -------------------------------------------------------------------------------------------

    def _after(self) -> None:
        """After every event: end what has ended, and see to sending and waking."""
        self._performer.perform()
        if self.engine.has_work and self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)
        self._arm()

    def _flush(self) -> None:
        """For a moment, as long as each look at the sockets brings more queries, they are read first, up to as many as
        may come again after the last answers and once more as many: callers that are answered together come again one
        after the other, and a batch for each would cost nearly as much as one for all."""
        if self._looked < (here := len(self._arrived)) < 2 * self.heard.answered - 1:
            now = self._clock.now()
            if not self._looked:
                self._looks_until = now + LOOKS_ON_S
            if now < self._looks_until:
                self._looked = here
                self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)
                return
        self._flush_handle = None
        if here or self.engine.has_work:  # else all was worked off while it came in
            self._work_off_and_hear()
        else:
            self._looked = 0

    def _work_off_and_hear(self) -> None:
        """And hear what a worker of this process says to it at once, as it does to brief runs: a turn of the loop that
        brings in a thousand queries takes a while, and the worker would have nothing to do meanwhile."""
        if self._is_hearing:  # whoever is told something has brought in more
            self._work_off()
            return
        self._is_hearing = True
        self._links.hold()
        try:
            self._work_off()
        finally:
            try:
                self._links.settle()
            finally:
                self._is_hearing = False

    def _work_off(self) -> None:
        """Decide on what came, and send what can be."""
        self._looked = self._decided_alone = 0
        try:
            now = self._clock.now()
            if self._unread is not None:
                self.engine.ledger.unread_s = self._unread.at(now)
            self._take_arrived()
            self.engine.flush(now)
        finally:
            self._after()

    def _arm(self) -> None:
        due = self.engine.next_due(before=self._timer_due)
        if due is None:
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

    def _note_ended(self) -> None:
        if not self.in_flight():
            self._settled.set()
