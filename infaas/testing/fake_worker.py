"""A worker without models: a real gRPC server that speaks the worker protocol and does what a test tells it to.

It keeps the protocol's promises (a report first and on every change, started before done, work of a lost stream
forgotten) and computes answers with a plain function instead of a runtime. Latency, refusals, hangs and deaths are set
by the test, per instance or for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from infaas.domain.cluster import InstanceRecord, WorkerRecord
from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import Code
from infaas.domain.variant import Variant
from infaas.rpc.codec import decode, encode
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.rpc.v1 import worker_pb2_grpc

Output = tuple[str, str, tuple[int, ...], bytes]
"""Name, datatype, shape, bytes."""
Compute = Callable[[InstanceRecord, list[str], pb.QueryInputs], list[Output]]


def echo(instance: InstanceRecord, names: list[str], query: pb.QueryInputs) -> list[Output]:
    """Every input back as an output of the same name, as bytes."""
    return [(name, "UINT8", (len(value.data),), value.data) for name, value in zip(names, query.inputs, strict=True)]


class ModelRaisedError(Exception):
    """What a test's `compute` raises to stand for a model that raised."""


@dataclass
class RanBatch:
    """For assertions: what an instance was made to run."""

    instance: str
    queries: tuple[int, ...]
    items: int


@dataclass(eq=False)
class _Stream:
    outbox: asyncio.Queue[pb.WorkerMessage | None] = field(default_factory=asyncio.Queue)
    runs: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass
class _Staged:
    batch: pb.Batch
    stream: _Stream
    arrived_at: float
    cancelled: set[int] = field(default_factory=set)


class FakeWorker:
    """Use as an async context manager, or `start` and `stop`. Attributes may be changed at any time."""

    def __init__(
        self,
        worker: str,
        instances: Iterable[InstanceRecord] = (),
        *,
        cores: int = 2,
        memory_bytes: int = 2**30,
        run_s: float = 0.001,
        load_s: float = 0.01,
        compute: Compute = echo,
        heartbeat_s: float = 0.2,
        token: str | None = None,
    ) -> None:
        self.id = WorkerId(worker)
        self.run_s = run_s
        self.load_s = load_s
        self.compute = compute
        self.heartbeat_s = heartbeat_s
        self.token = token
        self.ran: list[RanBatch] = []
        self.cancelled: list[int] = []
        self.loaded: list[str] = []
        self.load_error: str = ""
        """Non-empty: loads end FAILED with this reason."""
        self.fails_alone = False
        """Set: a query that makes `compute` raise fails alone; else its whole batch does."""
        self.refuse: Code | None = None
        """Set: batches are refused before they run."""
        self.gate = asyncio.Event()
        """Cleared: runs begin and do not end until it is set."""
        self.gate.set()
        self.is_silent = False
        """Set: nothing more is said on any stream, though they stay open."""
        self.record = WorkerRecord(
            self.id, "", WorkerState.READY, "test", cores, memory_bytes, 0.04, "test-host",
            instances={each.id: each for each in instances},
        )  # fmt: skip
        self._server: Any = None
        self._streams: set[_Stream] = set()
        self._staged: dict[str, asyncio.Queue[_Staged]] = {}
        self._holding: dict[int, _Staged] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sequence = 0

    async def __aenter__(self) -> FakeWorker:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        return self.record.address

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Listen; a port of 0 picks a free one, a `unix:` path is used as it is."""
        self._server = grpc.aio.server(
            options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_Servicer(self), self._server)
        port = self._server.add_insecure_port(address)
        await self._server.start()
        bound = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self.record = replace(self.record, address=bound)
        for instance in self.record.instances:
            self._serve(instance)

    async def stop(self) -> None:
        """End at once, as a killed process would: streams break, work is gone."""
        server, self._server = self._server, None
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._staged.clear()
        self._holding.clear()
        if server is not None:
            await server.stop(None)

    kill = stop

    async def kill_instance(self, instance: str, reason: str = "the instance died") -> None:
        """One instance dies with what it holds; the worker reports it FAILED and lives on."""
        self._staged.pop(instance, None)
        for task in [task for task in self._tasks if task.get_name() == f"fake-{instance}"]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._set_state(instance, InstanceState.FAILED, reason)

    def set_worker_state(self, state: WorkerState) -> None:
        self.record = replace(self.record, state=state)
        self._report()

    def add_instance(self, instance: InstanceRecord) -> None:
        self.record = replace(self.record, instances={**self.record.instances, instance.id: instance})
        self._serve(instance.id)
        self._report()

    def remove_instance(self, instance: str) -> None:
        left = {key: value for key, value in self.record.instances.items() if key != instance}
        self.record = replace(self.record, instances=left)
        self._report()

    # -- the protocol ------------------------------------------------------------------------------------------------

    async def attach(self, requests: AsyncIterator[pb.ControllerMessage], context: Any) -> AsyncIterator[Any]:
        await self._check(context)
        stream = _Stream()
        self._streams.add(stream)
        reader = self._spawn(self._read(requests, stream), "fake-reader")
        beat = self._spawn(self._beat(stream), "fake-heartbeat")
        try:
            stream.outbox.put_nowait(self._report_message())
            while (message := await stream.outbox.get()) is not None:
                if not self.is_silent:
                    yield message
        finally:
            self._streams.discard(stream)
            reader.cancel()
            beat.cancel()

    async def _check(self, context: Any) -> None:
        if self.token is None:
            return
        given = dict(context.invocation_metadata()).get("authorization", "")
        if given != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no or wrong token")

    async def _read(self, requests: AsyncIterator[pb.ControllerMessage], stream: _Stream) -> None:
        async for message in requests:
            body = message.WhichOneof("body")
            if body == "batch":
                self._stage(message.batch, stream)
            elif body == "cancel":
                self.cancelled += message.cancel.queries
                held = self._holding.get(message.cancel.batch)
                if held is not None:
                    held.cancelled |= set(message.cancel.queries)
            elif body == "load":
                self._spawn(self._load(message.load), "fake-load")
            elif body == "unload":
                self.remove_instance(message.unload.instance)
        stream.outbox.put_nowait(None)

    async def _beat(self, stream: _Stream) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_s)
            stream.outbox.put_nowait(self._report_message())

    def _stage(self, batch: pb.Batch, stream: _Stream) -> None:
        queue = self._staged.get(batch.instance)
        instance = self.record.instances.get(InstanceId(batch.instance))
        if queue is None or instance is None or self.refuse is not None:
            code = self.refuse or Code.UNAVAILABLE
            done = pb.BatchDone(id=batch.id, error_code=code.value, error="refused by the test's worker")
            stream.outbox.put_nowait(pb.WorkerMessage(done=done))
            return
        staged = _Staged(batch, stream, time.monotonic())
        self._holding[batch.id] = staged
        queue.put_nowait(staged)

    def _serve(self, instance: str) -> None:
        queue = self._staged[instance] = asyncio.Queue()
        self._spawn(self._run_all(InstanceId(instance), queue), f"fake-{instance}")

    async def _run_all(self, instance: InstanceId, queue: asyncio.Queue[_Staged]) -> None:
        while True:
            await self._run(instance, await queue.get())

    async def _run(self, instance: InstanceId, staged: _Staged) -> None:
        batch, outbox = staged.batch, staged.stream.outbox
        queries = [query for query in batch.queries if query.id not in staged.cancelled]
        begun = time.monotonic()
        outbox.put_nowait(pb.WorkerMessage(started=pb.BatchStarted(id=batch.id)))
        items = sum(query.items for query in queries)
        self.ran.append(RanBatch(instance, tuple(query.id for query in queries), items))
        if self.run_s:
            await asyncio.sleep(self.run_s)
        await self.gate.wait()
        done = pb.BatchDone(id=batch.id, staged_s=begun - staged.arrived_at, run_s=time.monotonic() - begun)
        try:
            self._answer(done, self.record.instances[instance], batch, queries)
        except ModelRaisedError as error:
            done = pb.BatchDone(id=batch.id, error_code=Code.MODEL_FAILED.value, error=str(error), was_running=True)
        self._holding.pop(batch.id, None)
        outbox.put_nowait(pb.WorkerMessage(done=done))

    def _answer(
        self, done: pb.BatchDone, instance: InstanceRecord, batch: pb.Batch, queries: list[pb.QueryInputs]
    ) -> None:
        for query in queries:
            try:
                outputs = self.compute(instance, list(batch.input_names), query)
            except ModelRaisedError as error:
                if not self.fails_alone:
                    raise
                failure = pb.QueryOutputs(id=query.id, error_code=Code.MODEL_FAILED.value, error=str(error))
                done.queries.append(failure)
                continue
            if not done.output_names:
                done.output_names.extend(output[0] for output in outputs)
                done.output_datatypes.extend(output[1] for output in outputs)
            values = [pb.TensorValue(shape=output[2], data=output[3]) for output in outputs]
            done.queries.append(pb.QueryOutputs(id=query.id, outputs=values))

    async def _load(self, order: pb.LoadInstance) -> None:
        variant = decode(order.variant, Variant)
        id = InstanceId(order.instance)
        record = InstanceRecord(id, variant.name, self.id, InstanceState.LOADING, isolation=variant.isolation)
        self.record = replace(self.record, instances={**self.record.instances, id: record})
        self._report()
        await asyncio.sleep(self.load_s)
        if self.load_error:
            self._set_state(id, InstanceState.FAILED, self.load_error)
            return
        self.loaded.append(variant.name)
        self._serve(id)
        self._set_state(id, InstanceState.READY)

    def _set_state(self, instance: str, state: InstanceState, reason: str = "") -> None:
        id = InstanceId(instance)
        changed = replace(self.record.instances[id], state=state, reason=reason)
        self.record = replace(self.record, instances={**self.record.instances, id: changed})
        self._report()

    def _report(self) -> None:
        for stream in self._streams:
            stream.outbox.put_nowait(self._report_message())

    def _report_message(self) -> pb.WorkerMessage:
        self._sequence += 1
        return pb.WorkerMessage(report=pb.WorkerReport(worker=encode(self.record), sequence=self._sequence))

    def _spawn(self, coro: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(_quiet(coro), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _quiet(coro: Any) -> None:
    """A stream that breaks is part of what this fake is for; its readers end without a word."""
    with contextlib.suppress(grpc.aio.UsageError, asyncio.InvalidStateError):
        await coro


class _Servicer(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]  # generated code is untyped
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Attach(self, requests: AsyncIterator[pb.ControllerMessage], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for message in self._worker.attach(requests, context):
            yield message

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:  # noqa: N802
        self._worker.set_worker_state(WorkerState.DRAINING)
        return pb.DrainReply()

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeReply:  # noqa: N802
        self._worker.set_worker_state(WorkerState.READY)
        return pb.ResumeReply()
