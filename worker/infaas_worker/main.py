"""The worker's composition root: builds the parts, runs them, and stops them in order.

On SIGTERM or SIGINT the worker first says that it is draining, then finishes what it holds within
`worker.drain_timeout_s`, unloads, withdraws its record, and only then closes the listener (SURFACE rule 17).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from enum import Enum

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

import infaas
from infaas import machine
from infaas.aio import garbage
from infaas.aio.every import every
from infaas.aio.supervise import Supervisor
from infaas.aio.yielding import yield_to_runs
from infaas.clock import Clock, SystemClock
from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.domain.variant import Runtime
from infaas.errors import InvalidError, SettingsError
from infaas.exposure import require_safe_worker
from infaas.observe.log import get_logger
from infaas.observe.trace import open_tracing
from infaas.own_address import advertised
from infaas.repository.base import open_repository
from infaas.rpc.hop.endpoint import Handler
from infaas.rpc.hop.inner import InnerEnd
from infaas.rpc.hop.listener import Listener
from infaas.rpc.tls import open_tls
from infaas.rpc.v1 import worker_pb2_grpc
from infaas.settings import AutoscalingSettings, Settings
from infaas.store.opening import open_store
from infaas.tokens import cluster_tokens
from infaas.up.restart import HUNG_EXIT
from infaas_worker.api.grpc import SERVER_OPTIONS, WorkerService
from infaas_worker.api.publisher import Publisher
from infaas_worker.api.stream import Controllers
from infaas_worker.api.tracing import RunSpans
from infaas_worker.blackbox import BlackBox
from infaas_worker.decide.hang import Patience
from infaas_worker.decide.last_life import reason_after
from infaas_worker.decide.scale import Limits
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import Executor, Executors
from infaas_worker.executors.isolated import IsolatedExecutor
from infaas_worker.heeding import Heeding
from infaas_worker.instances import Instances
from infaas_worker.loading import Loader
from infaas_worker.machine import (
    cores_to_use,
    default_listen,
    memory_budget,
    prepare_socket,
    remove_socket,
    worker_id,
)
from infaas_worker.monitor import Monitor
from infaas_worker.obituary import Obituary
from infaas_worker.registration import Registration
from infaas_worker.reports import Reporter
from infaas_worker.scaling import ModelAutoscaler
from infaas_worker.watch import Watch

_log = get_logger(__name__)
_LISTENER_GRACE_S = 0.5
_LAST_SPANS_S = 2.0
_CONTROL = "~control"
"""Ends the name of a socket; no worker's id has such a character."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this worker is, what it has, and what a core of it costs."""

    record: WorkerRecord
    listen: str
    control: str
    """A private socket, where gRPC listens behind the address above."""
    core_ids: tuple[int, ...]


class Ending(Enum):
    """How a worker's life ended when nothing crashed."""

    DRAINED = "drained"
    CUT = "cut"
    """The drain ran out of time; something still runs in a thread."""
    HUNG = "hung"
    """Something in this process hangs, and it has to be replaced."""

    @property
    def exit_status(self) -> int | None:
        """What the process must end with at once: native code still runs in threads that nothing can stop, and an
        interpreter that shuts down under them aborts. None: nothing runs any more."""
        if self is Ending.DRAINED:
            return None
        return HUNG_EXIT if self is Ending.HUNG else 0


def main(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when the settings do not work on this machine."""
    if settings.worker.inline:
        raise SettingsError(
            "worker.inline puts the worker into the controller's process: run the controller with these settings, and "
            "no worker beside it; or leave worker.inline out for the workers that are programs of their own"
        )
    ending = uvloop.run(_run_until_signalled(Worker(settings, SystemClock())))
    if ending.exit_status is not None:
        sys.stderr.flush()
        os._exit(ending.exit_status)


async def _run_until_signalled(worker: Worker) -> Ending:
    return await worker.run(_stop_signal())


def find_place(settings: Settings, clock: Clock) -> Place:
    """Raises SettingsError when more is asked for than there is."""
    own = settings.worker
    pool = settings.pools.get(own.pool)
    if pool is None:
        known = ", ".join(settings.pools) or "none"
        raise SettingsError(f"worker.pool {own.pool!r} is not among the pools ({known})")
    host = socket.gethostname()
    identity = worker_id(own.id, own.pool, host)
    core_ids = cores_to_use(own.cores or pool.cores, machine.allowed_cores(), machine.cpu_quota())
    listen = own.listen or default_listen(settings.state_dir, identity)
    record = WorkerRecord(
        id=identity,
        address=advertised(own.advertise or listen),
        state=WorkerState.STARTING,
        pool=own.pool,
        cores=len(core_ids),
        memory_bytes=memory_budget(own.memory_bytes or pool.memory_bytes),
        price_usd_per_hour=pool.price_usd_per_hour,
        host=host,
        pid=os.getpid(),
        started_at=clock.wall(),
        version=infaas.__version__,
    )
    control = default_listen(settings.state_dir, WorkerId(f"{identity}{_CONTROL}"))
    return Place(record, listen, control, core_ids)


class Worker:
    """One worker's life, from settings to the last report."""

    def __init__(self, settings: Settings, clock: Clock, *, has_process: bool = True) -> None:
        """`has_process`: the process is its own, to tune as it likes. Raises SettingsError when more is asked for than
        there is."""
        self._settings = settings
        self._clock = clock
        self._has_process = has_process
        self._listener: Listener | None = None
        self.place = find_place(settings, clock)

    def meet(self, handler: Handler) -> InnerEnd:
        """A connection from within this process. Raises ConnectionRefusedError while none is taken."""
        if self._listener is None:
            raise ConnectionRefusedError("the worker does not listen yet")
        return self._listener.meet(handler)

    async def run(self, stop: asyncio.Event) -> Ending:
        """Until told to stop, or until an instance hangs that cannot be ended.

        Raises TaskCrashedError when a part that should live for ever did not.
        """
        settings, place = self._settings, self.place
        if self._has_process:
            yield_to_runs()  # before any thread is started
        tokens, tls = cluster_tokens(settings), open_tls(settings)
        require_safe_worker(settings)
        prepare_socket(place.listen)
        prepare_socket(place.control)
        box = BlackBox(settings.state_dir / "run", place.record.id)
        monitor = Monitor()
        publisher = Publisher()
        store = open_store(settings)
        loader = Loader(open_repository(settings.repository_url), _executors(settings))
        own, patience = settings.worker, _patience(settings)
        serving = Serving(place.core_ids, place.record.memory_bytes, own.probe_interval_s, patience, own.heartbeat_s)

        def on_report() -> None:
            publisher.publish_soon()
            registration.wake()

        watch = Watch(patience.least_s, lambda reason: _end_at_once(box, reason))
        instances = Instances(serving, loader, self._clock, on_report, box, watch)
        heeding = Heeding() if own.autoscaling.exchange else None
        autoscaler = ModelAutoscaler(
            instances, _limits(own.autoscaling), self._clock, monitor.idle_cores, heeding, is_on=own.autoscaling.enabled
        )
        record = replace(place.record, reason=reason_after(box.found, box.own_fault))
        reporter = Reporter(record, self._clock, monitor, autoscaler.said)
        registration = Registration(
            store,
            lambda: reporter.record(instances.serving),
            lambda: reporter.shape(instances.serving),
            settings.worker.heartbeat_s,
        )
        publisher.attach(lambda: reporter.report(instances.serving))
        tracing = open_tracing(settings, "worker", self._clock)
        spans = None if tracing is None else RunSpans(tracing, place.record.id, self._clock)
        service = WorkerService(instances, tokens)
        controllers = Controllers(
            instances, publisher, tokens, spans,
            shared_memory_bytes=own.shared_memory_bytes, heeding=heeding,
        )  # fmt: skip
        probes = health.HealthServicer()
        server = _server(service, probes, place)
        listener = self._listener = Listener(controllers.admit, place.control, tls)
        monitor.start()
        watch.start()
        if box.own_fault:
            _log.error("this worker's last life ended in its own code", cause=box.own_fault)
        obituary = Obituary(box, publisher, instances.remember)
        box.arm()
        await _listen(listener, place)
        await server.start()
        await probes.set("", health_pb2.HealthCheckResponse.SERVING)
        supervisor = Supervisor("worker")
        supervisor.spawn("heartbeat", _heartbeat(instances, publisher, monitor, obituary, own.heartbeat_s))
        supervisor.spawn("registration", registration.run())
        supervisor.spawn("autoscaler", every(own.autoscaling.period_s, autoscaler.look, name="autoscaler"))
        if self._has_process:
            garbage.settle()
            rest = garbage.collect_between(lambda: not instances.serving.has_batches, self._clock)
            supervisor.spawn("garbage", rest)
        _log.info(
            "worker ready",
            worker=place.record.id,
            address=place.record.address,
            cores=place.record.cores,
            memory_bytes=place.record.memory_bytes,
        )
        crash = asyncio.create_task(supervisor.wait(), name="crash")
        asked = asyncio.create_task(stop.wait(), name="stop")
        failed = asyncio.create_task(instances.condemned.wait(), name="condemned")
        ending = Ending.CUT
        try:
            await asyncio.wait({crash, asked, failed}, return_when=asyncio.FIRST_COMPLETED)
            await probes.enter_graceful_shutdown()
            service.begin_stop()
            controllers.begin_stop()
            ending = await self._drain(instances, publisher)
            if ending is Ending.HUNG:
                box.condemned(instances.serving.failure)
        finally:
            await registration.withdraw()
            await supervisor.stop()
            await listener.close(_LISTENER_GRACE_S)
            await server.stop(None)
            await store.close()
            monitor.stop()
            watch.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close, _LAST_SPANS_S)
            remove_socket(place.listen)
            remove_socket(place.control)
            asked.cancel()
            failed.cancel()
        _log.info("worker stopped", worker=place.record.id, ending=ending.value)
        await crash  # over since the supervisor stopped; raises what crashed, if anything did
        if ending is Ending.DRAINED:
            box.disarm()
        return ending

    async def _drain(self, instances: Instances, publisher: Publisher) -> Ending:
        """Not-ready first; then what is held is finished, as far as the time allows. What hangs is not waited for."""
        instances.begin_drain("the worker stops")
        try:
            async with asyncio.timeout(self._settings.worker.drain_timeout_s):
                await instances.drained()
                await publisher.flushed()
                if not instances.serving.failure:
                    await instances.close()
        except TimeoutError:
            _log.warning("drain ran out of time", timeout_s=self._settings.worker.drain_timeout_s)
            instances.abandon()
            return Ending.HUNG if instances.serving.failure else Ending.CUT
        if instances.serving.failure:
            instances.abandon()
            return Ending.HUNG
        return Ending.DRAINED


def _end_at_once(box: BlackBox, reason: str) -> None:
    """The loop itself hangs: there is nobody left to drain anything."""
    try:
        _log.error("this worker must be replaced", reason=reason)
        box.condemned(reason)
    finally:
        sys.stderr.flush()
        os._exit(HUNG_EXIT)


def _executors(settings: Settings) -> Executors:
    def triton() -> Executor:
        from infaas_worker.executors.triton import TritonExecutor  # only a worker that needs it imports it

        return TritonExecutor(settings.worker.triton_url, is_private=settings.worker.triton_private)

    def isolated() -> Executor:
        return IsolatedExecutor(patience=_patience(settings))

    return Executors(isolate=isolated, configured={Runtime.TRITON.value: triton})


def _limits(own: AutoscalingSettings) -> Limits:
    return Limits(
        max_replicas=own.max_replicas,
        upscale_delay_s=own.upscale_delay_s,
        downscale_delay_s=own.downscale_delay_s,
        downscale_to_zero_delay_s=own.downscale_to_zero_delay_s,
    )


def _patience(settings: Settings) -> Patience:
    own = settings.worker
    return Patience(own.hang_after_s, own.hang_factor, load_least_s=own.load_hang_after_s)


def _server(service: WorkerService, probes: health.HealthServicer, place: Place) -> grpc.aio.Server:
    """Raises SettingsError when the address cannot be bound."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(probes, server)
    try:
        server.add_insecure_port(place.control)
    except RuntimeError as error:
        raise SettingsError(f"{place.control!r} cannot be bound: {error}") from error
    return server


async def _listen(listener: Listener, place: Place) -> None:
    """Raises SettingsError when the address cannot be bound."""
    try:
        await listener.start(place.listen)
    except (OSError, InvalidError) as error:
        raise SettingsError(f"worker.listen {place.listen!r} cannot be bound: {error}") from error


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _heartbeat(
    instances: Instances, publisher: Publisher, monitor: Monitor, obituary: Obituary, heartbeat_s: float
) -> None:
    async def beat() -> None:
        instances.tick(monitor.load().stall_ratio)
        try:
            obituary.beat()
        finally:
            publisher.publish()

    await every(heartbeat_s, beat, name="heartbeat")
