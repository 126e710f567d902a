"""The worker's service: one `Attach` stream per controller, core leases for the profiler, drain and resume.

Batches are answered on the stream they came on; a stream that ends takes its staged batches with it. Reports are
replaceable, so a slow reader gets the newest one instead of a backlog; outcomes of batches are never dropped.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import NoReturn

import grpc
import grpc.aio

from infaas.domain.ids import InstanceId
from infaas.domain.query import Code
from infaas.domain.variant import Variant
from infaas.errors import InfaasError, InvalidError, UnauthenticatedError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.rpc.edges import EDGES
from infaas.rpc.v1 import worker_pb2, worker_pb2_grpc
from infaas_worker.api import messages
from infaas_worker.api.auth import is_allowed
from infaas_worker.api.publisher import Publisher
from infaas_worker.api.tracing import RunSpans
from infaas_worker.batches import Ran
from infaas_worker.instances import Instances

_log = get_logger(__name__)
MAX_MESSAGE_BYTES = 256 * 2**20
MAX_OUTPUT_BYTES = MAX_MESSAGE_BYTES - 2**20
"""Of one batch; what is left of a message is for names and shapes. More would end the stream."""
MAX_LEASE_S = 1.0
"""A lease may not keep queries waiting for longer, whatever was asked for."""
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]  # generated, untyped
    """Lives on the event loop; `begin_stop` refuses new streams and leases before the listener closes."""

    def __init__(
        self, instances: Instances, publisher: Publisher, token: str | None, spans: RunSpans | None = None
    ) -> None:
        self._instances = instances
        self._spans = spans
        self._publisher = publisher
        self._token = token
        self._numbers = itertools.count(1)
        self._is_stopping = False

    def begin_stop(self) -> None:
        self._is_stopping = True

    async def Attach(self, request_iterator: object, context: grpc.aio.ServicerContext) -> None:  # noqa: N802  # the protocol's name
        await self._admit(context)
        first = await context.read()
        if first is grpc.aio.EOF or first.WhichOneof("body") != "hello":
            await _abort(context, InvalidError("the first message on Attach must be Hello"))
        stream = ControllerStream(f"{first.hello.controller}#{next(self._numbers)}", self._instances, self._spans)
        _log.info("controller attached", controller=stream.id, version=first.hello.version)
        writer = asyncio.get_running_loop().create_task(stream.write_to(context), name=f"write-{stream.id}")
        self._publisher.add(stream)
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                stream.take(message)
        finally:
            self._publisher.remove(stream)
            self._instances.leave(stream.id)
            if self._spans is not None:
                self._spans.left(stream.id)
            writer.cancel()
            await asyncio.wait((writer,))
            broken = None if writer.cancelled() else writer.exception()
            _log.info("controller left", controller=stream.id, reason=str(broken) if broken else "stream ended")

    async def LeaseCores(self, request: worker_pb2.LeaseCoresRequest, context: grpc.aio.ServicerContext) -> None:  # noqa: N802  # the protocol's name
        await self._admit(context)
        cores = self._instances.serving.cores
        if not 1 <= request.cores <= cores:
            await _abort(context, InvalidError(f"{request.cores} cores are asked for, this worker leases 1 to {cores}"))
        if request.max_s <= 0:
            await _abort(context, InvalidError(f"max_s must be above 0, got {request.max_s}"))
        max_s = min(request.max_s, MAX_LEASE_S)
        key, granted = self._instances.ask_cores(request.cores, max_s)
        try:
            ids = await granted
            await context.write(worker_pb2.CoreLease(core_ids=ids))
            async with asyncio.timeout(max_s):
                await asyncio.get_running_loop().create_future()  # until the caller ends the stream
        except TimeoutError:
            _log.debug("lease ran out", holder=request.holder)
        finally:
            self._instances.end_lease(key)

    async def Drain(self, request: worker_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> worker_pb2.DrainReply:  # noqa: N802  # the protocol's name
        await self._admit(context)
        self._instances.begin_drain(request.reason or "asked for")
        return worker_pb2.DrainReply()

    async def Resume(  # noqa: N802  # the protocol's name
        self, request: worker_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.ResumeReply:
        await self._admit(context)
        self._instances.end_drain()
        return worker_pb2.ResumeReply()

    async def _admit(self, context: grpc.aio.ServicerContext) -> None:
        if not is_allowed(context.invocation_metadata(), self._token):
            await _abort(context, UnauthenticatedError("metadata 'authorization' must be 'Bearer <token>'"))
        if self._is_stopping:
            await _abort(context, UnavailableError("the worker is stopping"))


class ControllerStream:
    """One controller's stream: takes its messages, keeps what is to be sent to it in order. An `Owner` of batches."""

    def __init__(self, stream_id: str, instances: Instances, spans: RunSpans | None = None) -> None:
        self._id = stream_id
        self._instances = instances
        self._spans = spans
        self._queries: dict[int, tuple[int, ...]] = {}
        self._outbox: deque[worker_pb2.WorkerMessage] = deque()
        self._report: worker_pb2.WorkerMessage | None = None
        self._has_mail = asyncio.Event()
        self._is_flushed = asyncio.Event()
        self._is_flushed.set()

    @property
    def id(self) -> str:
        return self._id

    def take(self, message: worker_pb2.ControllerMessage) -> None:
        match message.WhichOneof("body"):
            case "batch":
                self._take_batch(message.batch)
            case "cancel":
                self._instances.cancel(self._id, message.cancel.batch, frozenset(message.cancel.queries))
            case "load":
                self._take_load(message.load)
            case "unload":
                reason = message.unload.reason or f"asked for by {self._id}"
                self._instances.unload(InstanceId(message.unload.instance), reason)
            case other:
                _log.warning("message without use", controller=self._id, body=other)

    def started(self, batch: int) -> None:
        self._send(messages.started(batch))

    def ran(self, batch: int, ran: Ran) -> None:
        queries = self._queries.pop(batch)
        size = ran.output_bytes
        if size > MAX_OUTPUT_BYTES:
            text = f"the outputs of one batch are {size} bytes, at most {MAX_OUTPUT_BYTES} can be sent: ask for less"
            self._send(messages.refused(batch, Code.TOO_LARGE, text, was_running=True, held_s=0.0))
        else:
            self._send(messages.ran(batch, queries, ran))
        if self._spans is not None:
            self._spans.ran(self._id, batch, ran, self._instances.variants)

    def refused(self, batch: int, code: Code, text: str, was_running: bool, held_s: float) -> None:
        self._queries.pop(batch, None)
        if self._spans is not None:
            self._spans.refused(self._id, batch)
        self._send(messages.refused(batch, code, text, was_running, held_s))

    def report(self, message: worker_pb2.WorkerMessage) -> None:
        """Replaces a report that was not sent yet."""
        self._report = message
        self._wake()

    async def flushed(self) -> None:
        """Until everything has been handed to the transport, or the stream is over."""
        await self._is_flushed.wait()

    @property
    def has_flushed(self) -> bool:
        return self._is_flushed.is_set()

    async def write_to(self, context: grpc.aio.ServicerContext) -> None:
        try:
            while True:
                await self._has_mail.wait()
                self._has_mail.clear()
                while self._outbox or self._report is not None:
                    for _ in range(len(self._outbox)):  # what a report counts as done is told before it
                        await context.write(self._outbox.popleft())
                    if self._report is not None:
                        message, self._report = self._report, None
                        await context.write(message)
                self._is_flushed.set()
        finally:
            self._is_flushed.set()

    def _take_batch(self, batch: worker_pb2.Batch) -> None:
        if batch.id in self._queries:
            self._send(messages.refused(batch.id, Code.INVALID, f"batch {batch.id} is already here", False, 0.0))
            return
        try:
            value = messages.to_batch(batch)
        except InvalidError as error:
            self._send(messages.refused(batch.id, error.code, error.text, False, 0.0))
            return
        queries = messages.to_queries(batch, self._instances.now())
        self._queries[batch.id] = tuple(query.id for query in queries)
        if self._spans is not None:
            self._spans.arrived(self._id, batch)
        self._instances.submit(self, batch.id, InstanceId(batch.instance), value, queries)

    def _take_load(self, load: worker_pb2.LoadInstance) -> None:
        try:
            variant = decode(load.variant, Variant)
        except InvalidError as error:
            _log.error("load without a variant", controller=self._id, instance=load.instance, reason=error.text)
            self._instances.reject(InstanceId(load.instance), f"the variant cannot be read: {error.text}")
            return
        self._instances.load(InstanceId(load.instance), variant)

    def _send(self, message: worker_pb2.WorkerMessage) -> None:
        self._outbox.append(message)
        self._wake()

    def _wake(self) -> None:
        self._is_flushed.clear()
        self._has_mail.set()


async def _abort(context: grpc.aio.ServicerContext, error: InfaasError) -> NoReturn:
    await context.abort(getattr(grpc.StatusCode, EDGES[error.code].grpc), error.text)
    raise error  # abort never returns
