"""Links to the workers: one per worker of the view. What is asked of a worker beside its link is a gRPC call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from infaas.clock import Clock
from infaas.control import SharedMemoryDocument, WorkerDocument, WorkerInstanceDocument
from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.errors import NotFoundError, UnavailableError
from infaas.observe.book import Book
from infaas.observe.log import get_logger
from infaas.observe.shared_memory import SharedMemoryTally
from infaas.rpc.channel import open_channel
from infaas.rpc.hop.inner import Meet
from infaas.rpc.hop.traffic import Traffic
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.rpc.v1 import worker_pb2_grpc
from infaas.store.view import require_listed
from infaas.tokens import Tokens
from infaas_controller.link import Link, LinkTerms, Sink, ViewSource
from infaas_controller.scalings import Scalings
from infaas_controller.wire import Outgoing

__all__ = ["Sink", "ViewSource", "WorkerLinks"]
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
CONTROL_TIMEOUT_S = 5.0
SHOWN_WITHIN_S = 2.0
_log = get_logger(__name__)


class WorkerLinks:
    """Keeps one link per worker of the view. `start` needs a running loop; `close` ends every task it started."""

    _terms: LinkTerms

    def __init__(
        self,
        view_source: ViewSource,
        clock: Clock,
        *,
        controller: str,
        draw: Callable[[], float],
        lost_after_s: float,
        tokens: Tokens | None = None,
        inner: Mapping[str, Meet] | None = None,
        shared_memory_bytes: int = 0,
        book: Book | None = None,
        tls: Tls | None = None,
    ) -> None:
        """`inner`: workers of this process, by their addresses. `book` keeps what is counted per worker; without one,
        it is this object's own."""
        self.view_source = view_source
        self.clock = clock
        self._controller = controller
        self._draw = draw
        self._lost_after_s = lost_after_s
        self._tokens = Tokens.of(None) if tokens is None else tokens
        self._inner = {} if inner is None else inner
        self._shared_memory_bytes = shared_memory_bytes
        self._shared_memory = SharedMemoryTally(book)
        self.scalings = Scalings()
        self._tls = tls
        self._links: dict[WorkerId, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self, sink: Sink) -> None:
        self._terms = LinkTerms(
            self.view_source,
            sink,
            self.clock,
            self._controller,
            self._tokens,
            self._draw,
            self._lost_after_s,
            self._inner,
            self._shared_memory_bytes,
            self._shared_memory,
            self.scalings,
            self._tls,
        )
        self._unsubscribe = self.view_source.subscribe(self._on_view)
        self._on_view(self.view_source.view, self.view_source.view)

    async def close(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing)

    def send(self, worker: WorkerId, message: pb.ControllerMessage | Outgoing) -> bool:
        """False when there is no link to the worker now."""
        link = self._links.get(worker)
        return link is not None and link.send(message)

    def hold(self) -> None:
        """What is sent to workers of this process from here on is told by `settle`, which must follow in this turn."""
        if self._inner:
            for link in self._links.values():
                link.hold()

    def settle(self) -> None:
        """They are told, and what they say to that is heard. Not to be called from what they tell."""
        if self._inner:
            for link in list(self._links.values()):
                link.settle()

    def documents(self) -> tuple[WorkerDocument, ...]:
        now, wall = self.clock.now(), self.clock.wall()
        traffic = self._shared_memory.totals()
        return tuple(
            _document(record, self._links.get(record.id), traffic.get(record.id, Traffic()), now, wall)
            for record in sorted(self.view_source.view.workers.values(), key=lambda each: each.id)
        )

    def reports(self) -> Mapping[WorkerId, tuple[pb.WorkerReport, float]]:
        """The last of each connected worker, and when it came, on the controller's clock."""
        found = {}
        for id, link in self._links.items():
            if link.is_connected and link.report is not None:
                found[id] = (link.report, link.reported_at)
        return found

    def require_listed(self) -> None:
        """Raises UnavailableError while a worker that is not in the documents may well exist."""
        require_listed(self.view_source.view)

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
        return {"timeout": CONTROL_TIMEOUT_S, "metadata": self._tokens.metadata()}

    async def _control(self, worker: WorkerId, call: Callable[[Any], Any]) -> None:
        record = self.view_source.view.workers.get(worker)
        if record is None:
            require_listed(self.view_source.view)
            known = ", ".join(sorted(self.view_source.view.workers)) or "none"
            raise NotFoundError(f"no worker is called {worker!r}; known: {known}")
        async with open_channel(record.address, self._tls, CHANNEL_OPTIONS) as channel:
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
                link.disconnected()  # before its task ends: nothing may be sent to it any more
                task = asyncio.get_running_loop().create_task(link.close(), name=f"link-{worker}-close")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for record in new.workers.values():
            if record.id not in self._links:
                self._links[record.id] = Link(self._terms, record.id, record.address)


def _document(record: WorkerRecord, link: Link | None, traffic: Traffic, now: float, wall: float) -> WorkerDocument:
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
        shared_memory=_shared_memory(link, traffic) if link is not None else None,
        trouble=link.trouble if link is not None and not link.is_connected else "",
    )


def _shared_memory(link: Link, traffic: Traffic) -> SharedMemoryDocument:
    reason = link.shared_memory
    return SharedMemoryDocument(
        is_used=reason is None,
        reason=reason or "",
        inputs=traffic.sent,
        input_bytes=traffic.sent_bytes,
        outputs=traffic.received,
        output_bytes=traffic.received_bytes,
        without_room=traffic.sent_without_room + traffic.received_without_room,
    )


def _busy_ratio(loaded_at: float, busy_s: float, wall: float) -> float:
    """Share of its life that an instance has run; 0 while it is not loaded."""
    age_s = wall - loaded_at
    return min(1.0, busy_s / age_s) if loaded_at > 0 and age_s > 0 else 0.0
