"""A worker without models: a real listener that speaks the worker protocol and does what a test tells it to.

It keeps the protocol's promises (a report first and on every change, started before done, work of a lost stream
forgotten) and computes answers with a plain function instead of a runtime. Latency, refusals, hangs and deaths are set
by the test, per instance or for all.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from infaas.domain.cluster import InstanceRecord, WorkerRecord
from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Variant
from infaas.errors import UnauthenticatedError
from infaas.rpc.codec import decode, encode
from infaas.rpc.hop.columns import read_columns, write_column
from infaas.rpc.hop.endpoint import Connection, Endpoint, Handler
from infaas.rpc.hop.frames import Buffer
from infaas.rpc.hop.inner import InnerEnd
from infaas.rpc.hop.listener import Listener
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.rpc.v1 import worker_pb2_grpc

Output = tuple[str, str, tuple[int, ...], bytes]
"""Name, datatype, shape, bytes."""


@dataclass(frozen=True)
class FakeInput:
    """A tensor as it came."""

    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class FakeQuery:
    """A query as it came, with the bytes of its tensors."""

    id: int
    items: int
    inputs: tuple[FakeInput, ...]


Compute = Callable[[InstanceRecord, list[str], FakeQuery], list[Output]]


def echo(instance: InstanceRecord, names: list[str], query: FakeQuery) -> list[Output]:
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


@dataclass
class _Staged:
    batch: pb.Batch
    queries: list[FakeQuery]
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
        listen: str = "127.0.0.1:0",
        shared_memory_bytes: int = 0,
        tls: Tls | None = None,
    ) -> None:
        """`listen`: a port of 0 picks a free one, a `unix:` path is used as it is."""
        self.id = WorkerId(worker)
        self.run_s = run_s
        self.load_s = load_s
        self.compute = compute
        self.heartbeat_s = heartbeat_s
        self.token = token
        self.listen = listen
        self.shared_memory_bytes = shared_memory_bytes
        self.tls = tls
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
        self._listener: Listener | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
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

    async def start(self, address: str | None = None) -> None:
        """Listen there, else where it was told when it was made."""
        self._folder = tempfile.TemporaryDirectory(prefix="infaas-fake-")
        control = f"unix:{self._folder.name}/control.sock"
        self._server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_Servicer(self), self._server)
        self._server.add_insecure_port(control)
        await self._server.start()
        self._listener = Listener(self._admit, control, self.tls)
        bound = await self._listener.start(address or self.listen)
        self.record = replace(self.record, address=bound)
        for instance in self.record.instances:
            self._serve(instance)

    async def stop(self) -> None:
        """End at once, as a killed process would: streams break, work is gone."""
        server, self._server = self._server, None
        listener, self._listener = self._listener, None
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._staged.clear()
        self._holding.clear()
        if listener is not None:
            await listener.close()
        if server is not None:
            await server.stop(None)
        if self._folder is not None:
            self._folder.cleanup()

    kill = stop

    def meet(self, handler: Handler) -> InnerEnd:
        """A connection from within this process. Raises ConnectionRefusedError while it takes none."""
        if self._listener is None:
            raise ConnectionRefusedError("the worker does not listen")
        return self._listener.meet(handler)

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

    def _admit(self, hello: pb.Hello, endpoint: Connection) -> _Stream:
        if self.token is not None and hello.token != self.token:
            raise UnauthenticatedError("no or wrong token")
        stream = _Stream(self, endpoint)
        self._streams.add(stream)
        stream.beat = self._spawn(self._beat(stream), "fake-heartbeat")
        stream.say(self._report_message())
        if hello.HasField("pool"):
            stream.share(hello.pool)
        return stream

    def _left(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        if stream.beat is not None:
            stream.beat.cancel()

    def _take(self, message: pb.ControllerMessage, payload: memoryview, stream: _Stream) -> None:
        body = message.WhichOneof("body")
        if body == "batch":
            self._stage(message.batch, payload, stream)
        elif body == "shared_memory":
            stream.answered(message.shared_memory)
        elif body == "cancel":
            self.cancelled += message.cancel.queries
            held = self._holding.get(message.cancel.batch)
            if held is not None:
                held.cancelled |= set(message.cancel.queries)
        elif body == "load":
            self._spawn(self._load(message.load), "fake-load")
        elif body == "unload":
            self.remove_instance(message.unload.instance)

    async def _beat(self, stream: _Stream) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_s)
            stream.say(self._report_message())

    def _stage(self, batch: pb.Batch, payload: memoryview, stream: _Stream) -> None:
        queue = self._staged.get(batch.instance)
        instance = self.record.instances.get(InstanceId(batch.instance))
        if queue is None or instance is None or self.refuse is not None:
            code = self.refuse or Code.UNAVAILABLE
            done = pb.BatchDone(id=batch.id, error_code=code.value, error="refused by the test's worker")
            stream.say(pb.WorkerMessage(done=done))
            return
        staged = _Staged(batch, _queries(batch, payload), stream, time.monotonic())
        self._holding[batch.id] = staged
        queue.put_nowait(staged)

    def _serve(self, instance: str) -> None:
        queue = self._staged[instance] = asyncio.Queue()
        self._spawn(self._run_all(InstanceId(instance), queue), f"fake-{instance}")

    async def _run_all(self, instance: InstanceId, queue: asyncio.Queue[_Staged]) -> None:
        while True:
            await self._run(instance, await queue.get())

    async def _run(self, instance: InstanceId, staged: _Staged) -> None:
        batch, say = staged.batch, staged.stream.say
        queries = [query for query in staged.queries if query.id not in staged.cancelled]
        begun = time.monotonic()
        say(pb.WorkerMessage(started=pb.BatchStarted(id=batch.id)))
        items = sum(query.items for query in queries)
        self.ran.append(RanBatch(instance, tuple(query.id for query in queries), items))
        if self.run_s:
            await asyncio.sleep(self.run_s)
        await self.gate.wait()
        done = pb.BatchDone(id=batch.id, staged_s=begun - staged.arrived_at, run_s=time.monotonic() - begun)
        segments: list[Buffer] = []
        try:
            self._answer(done, segments, self.record.instances[instance], batch, queries)
        except ModelRaisedError as error:
            done = pb.BatchDone(id=batch.id, error_code=Code.MODEL_FAILED.value, error=str(error), was_running=True)
            segments.clear()
        self._holding.pop(batch.id, None)
        say(pb.WorkerMessage(done=done), segments)

    def _answer(
        self,
        done: pb.BatchDone,
        segments: list[Buffer],
        instance: InstanceRecord,
        batch: pb.Batch,
        queries: list[FakeQuery],
    ) -> None:
        answered: list[tuple[FakeQuery, list[Output]]] = []
        for query in queries:
            try:
                answered.append((query, self.compute(instance, [column.name for column in batch.inputs], query)))
            except ModelRaisedError as error:
                if not self.fails_alone:
                    raise
                done.failures.add(id=query.id, error_code=Code.MODEL_FAILED.value, error=str(error))
        done.queries.extend(query.id for query, _ in answered)
        done.items.extend(query.items for query, _ in answered)
        for column in zip(*(outputs for _, outputs in answered), strict=True):
            name, datatype = column[0][:2]
            parts = [(shape, data) for _, _, shape, data in column]
            segments += write_column(done.outputs, done.sizes, name, Datatype(datatype), done.items, parts)

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
            stream.say(self._report_message())

    def _report_message(self) -> pb.WorkerMessage:
        self._sequence += 1
        return pb.WorkerMessage(report=pb.WorkerReport(worker=encode(self.record), sequence=self._sequence))

    def _spawn(self, coro: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Stream:
    """One controller's connection: a `Handler`."""

    def __init__(self, worker: FakeWorker, endpoint: Connection) -> None:
        self._worker = worker
        self._endpoint = endpoint
        self.sharing = (
            Sharing(endpoint, worker.shared_memory_bytes, "a controller") if isinstance(endpoint, Endpoint) else None
        )
        self.beat: asyncio.Task[None] | None = None

    def say(self, message: pb.WorkerMessage, segments: Sequence[Buffer] = ()) -> None:
        if not self._worker.is_silent:
            self._endpoint.send(message.SerializeToString(), segments)

    def share(self, offered: pb.Pool) -> None:
        if self.sharing is None:
            return
        answer = self.sharing.answer(offered)
        if answer.is_read and (own := self.sharing.offer()) is not None:
            answer.pool.CopyFrom(own)
        self.say(pb.WorkerMessage(shared_memory=answer))

    def answered(self, said: pb.SharedMemory) -> None:
        if self.sharing is not None:
            self.sharing.answered(said)

    def met(self, version: int) -> None: ...

    def stranger(self, first: bytes) -> None: ...

    def received(self, head: bytes, payload: memoryview) -> None:
        self._worker._take(pb.ControllerMessage.FromString(head), payload, self)

    def congested(self, is_congested: bool) -> None: ...

    def lost(self, reason: str) -> None:
        if self.sharing is not None:
            self.sharing.close()
        self._worker._left(self)


def _queries(batch: pb.Batch, payload: memoryview) -> list[FakeQuery]:
    items = tuple(batch.items)
    columns = read_columns(batch.inputs, items, batch.sizes, payload)
    inputs = [[column.part(place) for column in columns] for place in range(len(items))]
    return [
        FakeQuery(number, count, tuple(FakeInput(shape, bytes(data)) for shape, data in parts))
        for number, count, parts in zip(batch.queries, items, inputs, strict=True)
    ]


class _Servicer(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]  # generated code is untyped
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:  # noqa: N802
        self._worker.set_worker_state(WorkerState.DRAINING)
        return pb.DrainReply()

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeReply:  # noqa: N802
        self._worker.set_worker_state(WorkerState.READY)
        return pb.ResumeReply()
