"""The controller's composition root: builds the parts, runs them, and stops them in order.

On SIGTERM or SIGINT the controller first reports not-ready, then finishes the queries it has within
`controller.drain_timeout_s`, gives its lease back and only then closes its listeners (SURFACE rule 17). One of several
processes of a controller leaves its listeners to the others first (`doors`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import uvloop

from infaas.aio import garbage
from infaas.aio.supervise import Supervisor
from infaas.aio.yielding import yield_to_runs
from infaas.catalog.catalog import Catalog
from infaas.clock import Clock, SystemClock
from infaas.domain.cluster import ControllerRecord
from infaas.domain.ids import ControllerId, fresh_id
from infaas.domain.lifecycle import InstanceState
from infaas.errors import UnavailableError
from infaas.exposure import require_safe_binding
from infaas.inline import InlineWorker, inline_worker
from infaas.observe.book import Book, OwnBook
from infaas.observe.live import Live, WorkerLive
from infaas.observe.log import get_logger
from infaas.observe.metrics import Metrics, exposition_app
from infaas.observe.query_log import QueryLog
from infaas.observe.trace import Tracing, open_tracing
from infaas.processes.numbers import SharedBook
from infaas.processes.seat import SEAT, Seat, seat_of
from infaas.repository.base import open_repository
from infaas.rpc.hop.inner import Meet
from infaas.rpc.tls import open_tls
from infaas.settings import Settings
from infaas.store.leader import Leadership
from infaas.store.opening import open_store
from infaas.store.redis import RedisStore
from infaas.store.view import ViewKeeper
from infaas.tokens import callers_tokens, cluster_tokens
from infaas_controller.api.admin import admin_router
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.pool import PROCESSES, Bulk
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.api.http import EdgeApp, create_app
from infaas_controller.api.http_limits import Limits
from infaas_controller.dispatch import Dispatcher
from infaas_controller.doors import Doors
from infaas_controller.fleet.assembly import fleet_autoscaler
from infaas_controller.fleet.autoscaler import FleetAutoscaler
from infaas_controller.fleet.documents import FleetDesk
from infaas_controller.fleet.ledger import FleetLedger
from infaas_controller.journal import Journal
from infaas_controller.listeners import HttpListener, bind, raise_descriptor_limit
from infaas_controller.peers import Peers, own_url
from infaas_controller.policies import installed_policies
from infaas_controller.register.collection import Collector
from infaas_controller.register.registrar import Registrar
from infaas_controller.scalings import StepCount
from infaas_controller.scratch import Scratch
from infaas_controller.siblings import Own, Siblings, may_listen, shared_out
from infaas_controller.spares import Spares
from infaas_controller.spreading import Spreading
from infaas_controller.system import READ_ONLY, UP, SystemWatch
from infaas_controller.wishing import Wishing
from infaas_controller.workers import WorkerLinks

_log = get_logger(__name__)
_LEADERSHIP = "controller"
_LEASE_TTL_S = 6.0
_LISTENER_GRACE_S = 0.5
_LAST_SPANS_S = 2.0
_READY_LOOK_S = 0.02
"""How often a process that starts looks whether connections are welcome. It cannot be told: time makes it so, and what
other processes say of themselves, which lies in memory and calls nobody. It looks only until it opens, once in all."""


def main(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT: a whole controller, or the process of one that has the seat which the environment
    names. Raises SettingsError when the settings do not work on this machine."""
    require_safe_binding("controller.host", settings.controller.host, settings.token())
    seat = seat_of(os.environ)
    os.environ.pop(SEAT, None)  # not for what we start
    settings, clock = shared_out(settings, seat.count), SystemClock()
    if not settings.worker.inline:
        uvloop.run(Controller(settings, clock, seat).run())
        return
    status = uvloop.run(_run_with(inline_worker(settings, clock), settings, clock, seat))
    if status is not None:
        sys.stderr.flush()
        os._exit(status)


async def _run_with(worker: InlineWorker, settings: Settings, clock: Clock, seat: Seat) -> int | None:
    """A controller and a worker in its process. The worker outlives the controller's last answer, as it does where it
    is a program of its own; a worker that cannot go on ends the controller in order, so that both are started again.

    Returns and raises as the worker's `run` does, and raises as the controller's.
    """
    stop = asyncio.Event()
    controller = Controller(settings, clock, seat, {worker.address: worker.meet})
    working = asyncio.create_task(worker.run(stop), name="inline-worker")
    working.add_done_callback(lambda _: controller.stop())
    try:
        await controller.run()
    finally:
        stop.set()
        status = await working
    return status


class Controller:
    """One controller's life, from settings to the closed listener; or that of one of its processes."""

    def __init__(self, settings: Settings, clock: Clock, seat: Seat, inner: Mapping[str, Meet] | None = None) -> None:
        """`inner`: workers of this process, by their addresses."""
        self._settings = settings
        self._clock = clock
        self._seat = seat
        self._inner = inner
        self._id = ControllerId(fresh_id("c") if seat.is_alone else seat.name)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Have `run` end in order."""
        self._stop.set()

    async def run(self) -> None:
        """Until told to stop. Raises TaskCrashedError when a part that should live for ever did not."""
        settings, own = self._settings, self._settings.controller
        yield_to_runs()  # before any thread is started: gRPC's are to yield as well
        _on_stop_signal(self._stop)
        connections = raise_descriptor_limit(own.max_connections)
        scratch = await asyncio.to_thread(Scratch.open, settings.state_dir)
        is_shared = not self._seat.is_alone
        rest_socket = bind(own.host, own.http_port, "controller.http_port", is_shared=is_shared)
        metrics_socket = bind(own.host, own.metrics_port, "controller.metrics_port", is_shared=is_shared)
        catalog = await asyncio.to_thread(open_catalogue, settings.database_url)
        http_port = int(rest_socket.getsockname()[1])
        record = ControllerRecord(self._id, own_url(own.advertise, own.host, http_port))
        store = open_store(settings)
        parts = build_parts(settings, self._clock, record, store, catalog, self._seat, self._inner)
        limits = Limits(patience_s=own.read_timeout_s, connections=connections)
        doors = self._doors(parts, rest_socket, metrics_socket, limits)
        if not is_shared:
            await doors.take_grpc_port()  # before any lease is taken: a port that is taken ends it here
        supervisor = Supervisor("controller")
        garbage.settle()
        _spawn_loops(supervisor, parts)
        supervisor.spawn("garbage", garbage.collect_between(lambda: not parts.dispatcher.in_flight(), self._clock))
        crash = asyncio.create_task(supervisor.wait(), name="crash")
        asked = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            if not is_shared or await self._may_open(parts, {crash, asked}):
                await doors.open(supervisor)
            await asyncio.wait({crash, asked}, return_when=asyncio.FIRST_COMPLETED)
            doors.withdraw()
            if parts.rest_app.fast is not None:
                parts.rest_app.fast.shedding.end()
            await self._drain(parts.dispatcher, parts.grpc_server)
        finally:
            await doors.close(_LISTENER_GRACE_S)
            await self._write_rest_of(parts.journal)
            await parts.peers.withdraw()
            await parts.leadership.stop()
            await supervisor.stop()
            await parts.dispatcher.close()
            await parts.bulk.close()
            await asyncio.to_thread(parts.registrar.close)
            if parts.tracing is not None:
                await asyncio.to_thread(parts.tracing.close, _LAST_SPANS_S)
            await parts.store.close()
            await asyncio.to_thread(catalog.close)
            scratch.close()
            asked.cancel()
        _log.info("controller stopped", controller=self._id)
        await crash  # over since the supervisor stopped; raises what crashed, if anything did

    def _doors(self, parts: Parts, rest_socket: socket.socket, metrics_socket: socket.socket, limits: Limits) -> Doors:
        """Closed yet. Raises SettingsError for a token that cannot be read."""
        app, drain_s = parts.rest_app, self._settings.controller.drain_timeout_s
        exposition = exposition_app(parts.metrics.registry, Authenticator(callers_tokens(self._settings)).check)
        private: HttpListener | None = None
        if not self._seat.is_alone:
            own_socket = bind("127.0.0.1", 0, "a port for the processes beside it")
            private = HttpListener(app, own_socket, drain_timeout_s=1.0, limits=limits)
        return Doors(
            self._seat,
            self._settings,
            parts.siblings,
            parts.grpc_server,
            HttpListener(app, rest_socket, drain_timeout_s=drain_s, limits=limits, fast=app.fast),
            HttpListener(exposition, metrics_socket, drain_timeout_s=1.0, limits=limits),
            private,
        )

    async def _may_open(self, parts: Parts, endings: set[asyncio.Task[Any]]) -> bool:
        """Among processes that share ports, wait until connections are welcome here; False: this one ends first.

        Of several that are not ready and find nobody serving at the same moment, the claim is one's. A ready one takes
        it if it can, so that nobody else does while it opens, and opens in any case."""
        began, claim = self._clock.now(), self._seat.claim
        while True:
            is_ready = parts.dispatcher.is_ready()
            is_welcome = may_listen(
                is_ready=is_ready,
                waited_s=self._clock.now() - began,
                does_another_serve=parts.siblings.does_another_serve(),
            )
            if is_welcome and (claim.take() or is_ready):
                return True
            ended, _ = await asyncio.wait(endings, timeout=_READY_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if ended:
                return False

    async def _drain(self, dispatcher: Dispatcher, grpc_server: GrpcServer) -> None:
        dispatcher.begin_drain()
        grpc_server.drain()
        try:
            async with asyncio.timeout(self._settings.controller.drain_timeout_s):
                await dispatcher.drained()
        except TimeoutError:
            _log.warning("drain ran out of time", queries=dispatcher.in_flight())

    async def _write_rest_of(self, journal: Journal) -> None:
        try:
            await journal.drain()
        except UnavailableError as error:
            _log.warning("decisions were not journaled", waiting=len(journal), reason=error.text)


def open_catalogue(url: str) -> Catalog:
    """Whether it can be reached or not: queries are served by what the store says, and the catalogue is taken up when
    it is there. Blocking. Raises SettingsError for a URL that cannot be used, or tables of a newer program."""
    catalog = Catalog.at(url)
    try:
        catalog.prepare()
    except UnavailableError as error:
        _log.error("starting without the catalogue", reason=error.text)
    except BaseException:
        catalog.close()
        raise
    return catalog


@dataclass(frozen=True, slots=True)
class Parts:
    """What a controller is made of, wired up and not yet running."""

    store: RedisStore
    keeper: ViewKeeper
    dispatcher: Dispatcher
    leadership: Leadership
    registrar: Registrar
    collector: Collector
    journal: Journal
    spares: Spares
    peers: Peers
    system: SystemWatch
    metrics: Metrics
    rest_app: EdgeApp
    grpc_server: GrpcServer
    tracing: Tracing | None
    bulk: Bulk
    siblings: Siblings
    fleet: FleetAutoscaler | None
    spreading: Spreading | None
    wishing: Wishing


def build_parts(
    settings: Settings,
    clock: Clock,
    record: ControllerRecord,
    store: RedisStore,
    catalog: Catalog,
    seat: Seat,
    inner: Mapping[str, Meet] | None = None,
) -> Parts:
    """Raises SettingsError for a repository, policy, token or tracing that cannot be had."""
    own, tokens = settings.controller, callers_tokens(settings)
    book = book_of(seat)
    siblings = Siblings(seat, record.id, clock)
    keeper = ViewKeeper(store, clock, awaits_catalogue=True)
    links = WorkerLinks(
        keeper,
        clock,
        controller=record.id,
        draw=random.random,
        lost_after_s=own.worker_lost_after_s,
        tokens=cluster_tokens(settings),
        inner=inner,
        shared_memory_bytes=own.shared_memory_bytes,
        book=book,
        tls=open_tls(settings),
    )
    dispatcher = Dispatcher(keeper, links, installed_policies(), settings, clock, controller=record.id, book=book)
    leadership = Leadership(store, _LEADERSHIP, record.id, _LEASE_TTL_S, clock)
    repository = open_repository(settings.repository_url)
    registrar = Registrar(catalog, store, repository, dispatcher, settings, clock, lease=lambda: leadership.lease)
    collector = Collector(catalog, store, repository, settings, clock, lambda: leadership.lease)
    journal = Journal(catalog, sample=own.journal_sample)
    spares = Spares(
        dispatcher.engine.ledger,
        lambda: keeper.view,
        dispatcher.load,
        own.min_replicas,
        clock,
        lambda: leadership.lease,
    )
    peers = Peers(store, record, tokens, siblings)
    system = SystemWatch(
        record.id, catalog, keeper, peers, leadership, journal, links, dispatcher.is_ready, clock, siblings
    )  # fmt: skip
    metrics = Metrics(siblings.live, book)
    siblings.speak_with(lambda: own_words(dispatcher, links, system, metrics))
    journal.on_drop(metrics.observe_journal_drop)
    query_log = QueryLog(settings.log.queries, clock)
    dispatcher.decisions.on_prediction(metrics.observe_predictions)
    dispatcher.decisions.on_decision(query_log.observe, query_log.take, query_log.take_usual)
    dispatcher.observe_with(metrics)
    dispatcher.decisions.on_traced(journal.keep, journal.take, journal.take_usual)
    fleet_ledger = FleetLedger(store)
    fleet = fleet_autoscaler(
        settings, clock, record.id, fleet_ledger, dispatcher, links, metrics, lambda: leadership.lease
    )
    spreading = Spreading(
        record.id,
        dispatcher.engine.ledger,
        lambda: keeper.view,
        links.reports,
        dispatcher.load,
        fleet_ledger,
        metrics,
        clock,
        lambda: leadership.lease,
    )
    wishing = Wishing(
        dispatcher.engine.wants, lambda: keeper.view, links.scalings.exchanging, links.send, clock
    )  # fmt: skip
    desk = FleetDesk(settings.fleet.provider, fleet_ledger, settings.fleet.period_s)
    admin = admin_router(registrar, dispatcher, links, journal, peers, system.document, links.scalings, desk)
    links.scalings.count_with(StepCount(metrics, lambda: leadership.lease is not None, clock))
    tracing = open_tracing(settings, "controller", clock)
    bulk = Bulk(PROCESSES if seat.is_alone else 1, observer=metrics)
    explain = dispatcher.decision
    app = create_app(
        dispatcher, settings, [admin], metrics, explain, clock=clock, tracing=tracing, parts=system.words, bulk=bulk
    )
    grpc_server = GrpcServer(dispatcher, settings, metrics, explain, clock=clock, tracing=tracing, bulk=bulk)
    return Parts(
        store,
        keeper,
        dispatcher,
        leadership,
        registrar,
        collector,
        journal,
        spares,
        peers,
        system,
        metrics,
        app,
        grpc_server,
        tracing,
        bulk,
        siblings,
        fleet,
        spreading if settings.worker.autoscaling.enabled else None,
        wishing,
    )


def book_of(seat: Seat) -> Book:
    """Where what is counted is kept."""
    if seat.is_alone:
        return OwnBook()
    others = [file for number, file in enumerate(seat.numbers, 1) if number != seat.number]
    return SharedBook(seat.numbers[seat.number - 1], others)


def _spawn_loops(supervisor: Supervisor, parts: Parts) -> None:
    supervisor.spawn("view", parts.keeper.run(), stage=1)
    supervisor.spawn("leadership", parts.leadership.run(), stage=1, is_eternal=False)  # returns once stopped
    parts.dispatcher.start()
    supervisor.spawn("registrar-results", parts.registrar.run_results())
    supervisor.spawn("registrar-refill", parts.registrar.run_refill())
    supervisor.spawn("collector", parts.collector.run())
    supervisor.spawn("journal", parts.journal.run())
    supervisor.spawn("spares", parts.spares.run())
    supervisor.spawn("peers", parts.peers.run())
    supervisor.spawn("system", parts.system.run())
    if parts.fleet is not None:
        supervisor.spawn("fleet", parts.fleet.run())
    if parts.spreading is not None:
        supervisor.spawn("spreading", parts.spreading.run())
    supervisor.spawn("wishing", parts.wishing.run())
    if parts.siblings.can_be:
        supervisor.spawn("siblings", parts.siblings.run(), stage=1)


def live_figures(dispatcher: Dispatcher, links: WorkerLinks, system: SystemWatch) -> Live:
    """What this process's part of the gauges is, counted from what lives now (SURFACE rule 11)."""
    documents = links.documents()
    states = Counter(instance.state for worker in documents for instance in worker.instances)
    store = system.store()
    return Live(
        in_flight=dispatcher.in_flight(),
        tasks=len(asyncio.all_tasks()),
        queue_size=dispatcher.queue_sizes(),
        queue_bytes=dispatcher.queue_bytes,
        queue_tenants=dispatcher.queue_tenants(),
        replicas={state.value: states.get(state.value, 0) for state in InstanceState if state != InstanceState.GONE},
        workers={
            worker.id: WorkerLive(
                is_up=worker.is_connected,
                report_age_s=worker.report_age_s,
                cpu_ratio=worker.cpu_ratio,
                memory_ratio=worker.memory_ratio,
                stall_ratio=worker.stall_ratio,
            )
            for worker in documents
        },
        is_store_up=store.state in (UP, READ_ONLY),
        view_age_s=store.age_s,
        is_leader=system.is_leader,
        is_catalog_up=system.catalogue().state == UP,
        journal_waiting=system.journal_waiting,
        processes=1,
    )


def own_words(dispatcher: Dispatcher, links: WorkerLinks, system: SystemWatch, metrics: Metrics) -> Own:
    """What this process says of itself to those that are one controller with it."""
    return Own(
        live_figures(dispatcher, links, system),
        is_leader=system.is_leader,
        is_ready=dispatcher.is_ready(),
        journal_dropped=metrics.own_journal_drops,
        starts=metrics.own_starts,
    )


def _on_stop_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
