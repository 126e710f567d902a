"""The controller's composition root: builds the parts, runs them, and stops them in order.

On SIGTERM or SIGINT the controller first reports not-ready, then finishes the queries it has within
`controller.drain_timeout_s`, gives its lease back and only then closes its listeners (SURFACE rule 17).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import uvloop

from infaas.aio import garbage
from infaas.aio.supervise import Supervisor
from infaas.catalog.catalog import Catalog
from infaas.clock import Clock, SystemClock
from infaas.control import SharedMemoryDocument
from infaas.domain.cluster import ControllerRecord
from infaas.domain.ids import ControllerId, fresh_id
from infaas.domain.lifecycle import InstanceState
from infaas.errors import UnavailableError
from infaas.exposure import require_safe_binding
from infaas.observe.log import get_logger
from infaas.observe.metrics import Live, Metrics, SharedLive, WorkerLive, exposition_app
from infaas.observe.query_log import QueryLog
from infaas.observe.trace import Tracing, open_tracing
from infaas.repository.base import open_repository
from infaas.settings import Settings
from infaas.store.leader import Leadership
from infaas.store.redis import RedisStore
from infaas.store.view import ViewKeeper
from infaas_controller.api.admin import admin_router
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.api.http import EdgeApp, create_app
from infaas_controller.api.http_limits import Limits
from infaas_controller.dispatch import Dispatcher
from infaas_controller.journal import Journal
from infaas_controller.listeners import HttpListener, bind, raise_descriptor_limit
from infaas_controller.peers import Peers, own_url
from infaas_controller.policies import installed_policies
from infaas_controller.register.collection import Collector
from infaas_controller.register.registrar import Registrar
from infaas_controller.scratch import Scratch
from infaas_controller.spares import Spares
from infaas_controller.system import READ_ONLY, UP, SystemWatch
from infaas_controller.workers import WorkerLinks

_log = get_logger(__name__)
_LEADERSHIP = "controller"
_LEASE_TTL_S = 6.0
_LISTENER_GRACE_S = 0.5
_LAST_SPANS_S = 2.0


def main(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when the settings do not work on this machine."""
    require_safe_binding("controller.host", settings.controller.host, settings.token())
    uvloop.run(Controller(settings, SystemClock()).run())


class Controller:
    """One controller's life, from settings to the closed listener."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._id = ControllerId(fresh_id("c"))
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until told to stop. Raises TaskCrashedError when a part that should live for ever did not."""
        settings, own = self._settings, self._settings.controller
        _on_stop_signal(self._stop)
        connections = raise_descriptor_limit(own.max_connections)
        scratch = await asyncio.to_thread(Scratch.open, settings.state_dir)
        rest_socket = bind(own.host, own.http_port, "controller.http_port")
        metrics_socket = bind(own.host, own.metrics_port, "controller.metrics_port")
        catalog = await asyncio.to_thread(open_catalogue, settings.database_url)
        http_port = int(rest_socket.getsockname()[1])
        record = ControllerRecord(self._id, own_url(own.advertise, own.host, http_port))
        parts = build_parts(settings, self._clock, record, RedisStore(settings.redis_url), catalog)
        limits = Limits(patience_s=own.read_timeout_s, connections=connections)
        rest = HttpListener(
            parts.rest_app, rest_socket, drain_timeout_s=own.drain_timeout_s, limits=limits, fast=parts.rest_app.fast
        )
        exposition = exposition_app(parts.metrics.registry, Authenticator(settings.token()).check)
        scrape = HttpListener(exposition, metrics_socket, drain_timeout_s=1.0, limits=limits)
        grpc_port = await parts.grpc_server.start()  # before any lease is taken: a port that is taken ends it here
        supervisor = Supervisor("controller")
        garbage.settle()
        _spawn_loops(supervisor, parts)
        supervisor.spawn("garbage", garbage.collect_between(lambda: not parts.dispatcher.in_flight(), self._clock))
        listeners = {
            supervisor.spawn("rest", rest.run(), stage=1, is_eternal=False),
            supervisor.spawn("metrics", scrape.run(), stage=1, is_eternal=False),
        }
        announcement = announce(settings.state_dir, own.host, rest.port, grpc_port, scrape.port)
        _log.info("controller listens", controller=self._id, http=rest.port, grpc=grpc_port, metrics=scrape.port)

        crash = asyncio.create_task(supervisor.wait(), name="crash")
        asked = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({crash, asked}, return_when=asyncio.FIRST_COMPLETED)
            announcement.unlink(missing_ok=True)
            await self._drain(parts.dispatcher, parts.grpc_server)
        finally:
            rest.stop()
            scrape.stop()
            await parts.grpc_server.stop(_LISTENER_GRACE_S)
            await asyncio.wait(listeners, timeout=_LISTENER_GRACE_S)  # answers that are on their way get out
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


def build_parts(
    settings: Settings, clock: Clock, record: ControllerRecord, store: RedisStore, catalog: Catalog
) -> Parts:
    """Raises SettingsError for a repository, policy, token or tracing that cannot be had."""
    own, token = settings.controller, settings.token()
    keeper = ViewKeeper(store, clock)
    links = WorkerLinks(
        keeper,
        clock,
        controller=record.id,
        draw=random.random,
        lost_after_s=own.worker_lost_after_s,
        token=token,
        shared_memory_bytes=own.shared_memory_bytes,
    )
    dispatcher = Dispatcher(keeper, links, installed_policies(), settings, clock, controller=record.id)
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
    peers = Peers(store, record, token)
    system = SystemWatch(
        record.id, catalog, keeper, peers, leadership, journal, links, dispatcher.is_ready, clock
    )  # fmt: skip
    metrics = Metrics(lambda: live_figures(dispatcher, links, system))
    query_log = QueryLog(settings.log.queries, clock)
    dispatcher.decisions.on_prediction(metrics.observe_prediction)
    dispatcher.decisions.on_decision(query_log.observe, query_log.take)
    dispatcher.observe_with(metrics)
    dispatcher.decisions.on_traced(journal.keep, journal.take)
    admin = admin_router(registrar, dispatcher, links, journal, peers.decision, system.document)
    tracing = open_tracing(settings, "controller", clock)
    bulk, explain = Bulk(observer=metrics), dispatcher.decision
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
    )


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


def announce(state_dir: Path, host: str, http_port: int, grpc_port: int, metrics_port: int) -> Path:
    """Say where this controller listens, for the programs of this machine. The file appears whole or not at all."""
    target = state_dir / "run" / "controller.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    scratch.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "host": host,
                "http_port": http_port,
                "grpc_port": grpc_port,
                "metrics_port": metrics_port,
            }
        )
    )
    os.replace(scratch, target)
    return target


def _shared(found: SharedMemoryDocument | None) -> SharedLive | None:
    if found is None:
        return None
    return SharedLive(found.inputs, found.input_bytes, found.outputs, found.output_bytes, found.without_room)


def live_figures(dispatcher: Dispatcher, links: WorkerLinks, system: SystemWatch) -> Live:
    """What gauges show, counted from what lives now (SURFACE rule 11)."""
    documents = links.documents()
    states = Counter(instance.state for worker in documents for instance in worker.instances)
    known = system.document()
    return Live(
        in_flight=dispatcher.in_flight(),
        queue_size=dispatcher.queue_sizes(),
        replicas={state.value: states.get(state.value, 0) for state in InstanceState if state != InstanceState.GONE},
        workers={
            worker.id: WorkerLive(
                is_up=worker.is_connected,
                report_age_s=worker.report_age_s,
                cpu_ratio=worker.cpu_ratio,
                memory_ratio=worker.memory_ratio,
                stall_ratio=worker.stall_ratio,
                shared=_shared(worker.shared_memory),
            )
            for worker in documents
        },
        is_store_up=known.store.state in (UP, READ_ONLY),
        view_age_s=known.store.age_s,
        is_leader=known.is_leader,
        is_catalog_up=known.catalogue.state == UP,
        journal_waiting=known.journal_waiting,
        journal_dropped=known.journal_dropped,
    )


def _on_stop_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
