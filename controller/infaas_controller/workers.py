"""Streams to the workers: one per worker of the view, dialled again whenever it is lost.

A stream carries batches down and outcomes and the worker's own state up. This file owns connections and tasks and knows
nothing of queries: what comes up goes to a sink (the dispatcher) and to the view.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from infaas import __version__
from infaas.clock import Clock
from infaas.control import WorkerDocument, WorkerInstanceDocument
from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.errors import InfaasError, NotFoundError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.rpc.v1 import worker_pb2_grpc
from infaas_controller.liveness import redial_pause_s
from infaas_controller.wire import encode

ATTACH = "/infaas.rpc.v1.WorkerService/Attach"
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
CONTROL_TIMEOUT_S = 5.0
SHOWN_WITHIN_S = 2.0
_log = get_logger(__name__)


class ViewSource(Protocol):
    """What is needed of the view's keeper."""

    @property
    def view(self) -> ClusterView: ...

    @property
    def is_synced(self) -> bool: ...

    def subscribe(self, callback: Callable[[ClusterView, ClusterView], None]) -> Callable[[], None]: ...

    def worker_reported(self, record: WorkerRecord) -> None: ...

    def worker_stream_lost(self, worker_id: WorkerId) -> None: ...


class Sink(Protocol):
    """Who is told what comes up the streams. Calls come on the loop and must not block."""

    def worker_connected(self, record: WorkerRecord) -> None:
        """The first report on a new stream."""

    def worker_lost(self, worker: WorkerId) -> None:
        """The stream ended or fell silent; nothing sent on it will be answered."""

    def batch_started(self, batch: int) -> None: ...

    def batch_done(self, done: pb.BatchDone) -> None: ...

    def loads_reported(self, loads: Sequence[pb.InstanceLoad]) -> None: ...


class Link:
    """One worker's stream, dialled until `close`."""

    def __init__(self, links: WorkerLinks, worker: WorkerId, address: str) -> None:
        self._links = links
        self.worker = worker
        self.address = address
        self.is_connected = False
        self._is_closed = False
        self.heard_at: float | None = None
        self.report: pb.WorkerReport | None = None
        self._outbox: deque[pb.ControllerMessage | bytes] = deque()
        self._has_mail = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link-{worker}")

    def send(self, message: pb.ControllerMessage | bytes) -> bool:
        """Queue a message; False when there is no stream to put it on."""
        if not self.is_connected:
            return False
        self._outbox.append(message)
        self._has_mail.set()
        return True

    async def close(self) -> None:
        """Nothing that still comes up the stream is told to anyone."""
        self._is_closed = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._disconnected()

    async def _run(self) -> None:
        failures = 0
        while True:
            reason = await self._attach_once()
            was_connected = self.is_connected
            self._disconnected()
            failures = 0 if was_connected else failures + 1
            log = _log.warning if was_connected else _log.debug
            log("no stream to the worker", worker=self.worker, reason=reason, failures=failures)
            await asyncio.sleep(redial_pause_s(failures, self._links.draw()))

    async def _attach_once(self) -> str:
        """Serve one stream until it ends; returns why it did."""
        channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        writer: asyncio.Task[None] | None = None
        try:
            attach = channel.stream_stream(
                ATTACH, request_serializer=encode, response_deserializer=pb.WorkerMessage.FromString
            )
            call = attach(metadata=self._links.metadata)
            self._outbox.clear()
            hello = pb.ControllerMessage(hello=pb.Hello(controller=self._links.controller, version=__version__))
            async with asyncio.timeout(self._links.lost_after_s) as patience:
                await call.write(hello)
                writer = asyncio.get_running_loop().create_task(self._write(call), name=f"link-{self.worker}-writer")
                writer.add_done_callback(lambda _: call.cancel())  # the reader must not wait for answers to nothing
                while (message := await call.read()) is not grpc.aio.EOF:
                    patience.reschedule(asyncio.get_running_loop().time() + self._links.lost_after_s)
                    self._take(message)
            return "the worker ended the stream"
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            return "the transport cancelled the stream"
        except TimeoutError:
            return f"nothing was heard for {self._links.lost_after_s:g} s"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except asyncio.InvalidStateError as error:
            return f"the stream broke: {error}"
        except InfaasError as error:
            return f"the worker's report cannot be read: {error}"
        except Exception as error:  # a fault of ours must not leave the worker without a link for ever
            _log.error("what a worker said was not taken in", worker=self.worker, exc_info=error)
            return f"{type(error).__name__}: {error}"
        finally:
            if writer is not None:
                writer.cancel()
                (end,) = await asyncio.gather(writer, return_exceptions=True)
                if isinstance(end, Exception):
                    _log.error("writing to the worker broke", worker=self.worker, exc_info=end)
            await channel.close()

    async def _write(self, call: Any) -> None:
        """Drain the outbox in order. A broken stream ends it; the reader then learns why."""
        try:
            while True:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                self._has_mail.clear()
                await self._has_mail.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            _log.debug("writing to the worker ended", worker=self.worker, reason=str(error))

    def _take(self, message: pb.WorkerMessage) -> None:
        if self._is_closed:
            return
        self.heard_at = self._links.clock.now()
        sink = self._links.sink
        body = message.WhichOneof("body")
        if body == "done":
            sink.batch_done(message.done)
        elif body == "started":
            sink.batch_started(message.started.id)
        elif body == "report":
            self._take_report(message.report)

    def _take_report(self, report: pb.WorkerReport) -> None:
        is_same = self.report is not None and self.report.worker == report.worker and self.is_connected
        self.report = report
        if not is_same:
            record = decode(report.worker, WorkerRecord)
            if record.id != self.worker:
                raise UnavailableError(f"{self.address} is worker {record.id!r}, not {self.worker!r}")
            self._links.view_source.worker_reported(record)
            if not self.is_connected:
                self.is_connected = True
                self._links.sink.worker_connected(record)
        self._links.sink.loads_reported(report.loads)

    def _disconnected(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self._outbox.clear()
            for tell in (self._links.view_source.worker_stream_lost, self._links.sink.worker_lost):
                try:
                    tell(self.worker)
                except Exception as error:  # whoever calls goes on to dial again, or to close
                    _log.error("the loss of a worker was not taken in", worker=self.worker, exc_info=error)


class WorkerLinks:
    """Keeps one link per worker of the view. `start` needs a running loop; `close` ends every task it started."""

    sink: Sink

    def __init__(
        self,
        view_source: ViewSource,
        clock: Clock,
        *,
        controller: str,
        draw: Callable[[], float],
        lost_after_s: float,
        token: str | None = None,
    ) -> None:
        self.view_source = view_source
        self.clock = clock
        self.controller = controller
        self.draw = draw
        self.lost_after_s = lost_after_s
        self.metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._links: dict[WorkerId, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self, sink: Sink) -> None:
        self.sink = sink
        self._unsubscribe = self.view_source.subscribe(self._on_view)
        self._on_view(self.view_source.view, self.view_source.view)

    async def close(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing)

    def send(self, worker: WorkerId, message: pb.ControllerMessage | bytes) -> bool:
        """False when there is no stream to the worker now."""
        link = self._links.get(worker)
        return link is not None and link.send(message)

    def documents(self) -> tuple[WorkerDocument, ...]:
        now, wall = self.clock.now(), self.clock.wall()
        return tuple(
            _document(record, self._links.get(record.id), now, wall)
            for record in sorted(self.view_source.view.workers.values(), key=lambda each: each.id)
        )

    async def drain(self, worker: WorkerId, reason: str = "asked by a user") -> None:
        """Returns once the view shows it. Raises NotFoundError for a worker that is not known, UnavailableError for one
        that does not answer."""
        await self._control(worker, lambda stub: stub.Drain(pb.DrainRequest(reason=reason), **self._call_options()))
        await self._shown(worker, is_draining=True)

    async def resume(self, worker: WorkerId) -> None:
        """Raises as `drain` does."""
        await self._control(worker, lambda stub: stub.Resume(pb.ResumeRequest(), **self._call_options()))
        await self._shown(worker, is_draining=False)

    async def _shown(self, worker: WorkerId, *, is_draining: bool) -> None:
        """Wait until the worker's report is in the view. A late one is no error: the worker has agreed already."""
        seen = asyncio.Event()

        def look(_old: ClusterView, new: ClusterView) -> None:
            record = new.workers.get(worker)
            if record is None or (record.state is WorkerState.DRAINING) is is_draining:
                seen.set()

        unsubscribe = self.view_source.subscribe(look)
        try:
            look(self.view_source.view, self.view_source.view)
            async with asyncio.timeout(SHOWN_WITHIN_S):
                await seen.wait()
        except TimeoutError:
            _log.warning("a worker's new state was not reported yet", worker=worker, within_s=SHOWN_WITHIN_S)
        finally:
            unsubscribe()

    def _call_options(self) -> dict[str, Any]:
        return {"timeout": CONTROL_TIMEOUT_S, "metadata": self.metadata}

    async def _control(self, worker: WorkerId, call: Callable[[Any], Any]) -> None:
        record = self.view_source.view.workers.get(worker)
        if record is None:
            known = ", ".join(sorted(self.view_source.view.workers)) or "none"
            raise NotFoundError(f"no worker is called {worker!r}; known: {known}")
        async with grpc.aio.insecure_channel(record.address, options=CHANNEL_OPTIONS) as channel:
            try:
                await call(worker_pb2_grpc.WorkerServiceStub(channel))
            except grpc.aio.AioRpcError as error:
                text = f"worker {worker} did not answer: {error.code().name}: {error.details()}"
                raise UnavailableError(text, retry_after_s=1.0) from error

    def _on_view(self, _old: ClusterView, new: ClusterView) -> None:
        """Dial who is new, or has moved; let go of who left."""
        for worker, link in list(self._links.items()):
            record = new.workers.get(worker)
            if record is None or record.address != link.address:
                del self._links[worker]
                link._disconnected()  # before its task ends: nothing may be sent to it any more
                task = asyncio.get_running_loop().create_task(link.close(), name=f"link-{worker}-close")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for record in new.workers.values():
            if record.id not in self._links:
                self._links[record.id] = Link(self, record.id, record.address)


def _document(record: WorkerRecord, link: Link | None, now: float, wall: float) -> WorkerDocument:
    report = link.report if link is not None else None
    loads = {InstanceId(load.instance): load for load in report.loads} if report is not None else {}
    instances = []
    for instance in sorted(record.instances.values(), key=lambda each: each.id):
        load = loads.get(instance.id)
        instances.append(
            WorkerInstanceDocument(
                id=instance.id,
                variant=instance.variant,
                state=instance.state.value,
                reason=instance.reason,
                running=load.running if load else 0,
                staged=load.staged if load else 0,
                items_done=load.items_done if load else 0,
                busy_ratio=_busy_ratio(instance.loaded_at, load.busy_s, wall) if load else 0.0,
                isolation=instance.isolation.value,
            )
        )
    return WorkerDocument(
        id=record.id,
        address=record.address,
        state=record.state.value,
        pool=record.pool,
        host=record.host,
        cores=record.cores,
        memory_bytes=record.memory_bytes,
        price_usd_per_hour=record.price_usd_per_hour,
        is_connected=link is not None and link.is_connected,
        report_age_s=now - link.heard_at if link is not None and link.heard_at is not None else None,
        cpu_ratio=report.cpu_ratio if report is not None else None,
        memory_ratio=report.memory_ratio if report is not None else None,
        stall_ratio=report.stall_ratio if report is not None else None,
        instances=tuple(instances),
        reason=record.reason,
    )


def _busy_ratio(loaded_at: float, busy_s: float, wall: float) -> float:
    """Share of its life that an instance has run; 0 while it is not loaded."""
    age_s = wall - loaded_at
    return min(1.0, busy_s / age_s) if loaded_at > 0 and age_s > 0 else 0.0
