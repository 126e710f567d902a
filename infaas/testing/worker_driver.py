"""A real worker process, and a controller's end of its connection: for tests that drive a worker from outside."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio

from infaas.domain.cluster import WorkerRecord
from infaas.domain.tensor import Tensor
from infaas.domain.variant import Variant
from infaas.repository.base import Repository, open_repository
from infaas.rpc.codec import decode, encode
from infaas.rpc.hop.address import dial
from infaas.rpc.hop.columns import read_columns, write_column
from infaas.rpc.hop.endpoint import Endpoint
from infaas.rpc.hop.frames import Buffer
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.v1 import worker_pb2, worker_pb2_grpc

WAIT_S = 60.0
"""For anything that must happen: far longer than it takes on a busy machine."""
_REDIAL_S = 0.02


class WorkerProcess:
    """`python -m infaas.programs worker` with a state folder of its own. Use `start`, and `end` in a finally."""

    def __init__(self, redis_url: str, settings: Mapping[str, Any] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="infaas-")
        self.state_dir = Path(self._folder.name)
        worker: dict[str, Any] = {"id": "w1", "heartbeat_s": 0.2, "drain_timeout_s": 30.0}
        worker.update((settings or {}).get("worker", {}))
        self.settings = {
            **(settings or {}),
            "state_dir": str(self.state_dir),
            "store": {"redis_url": redis_url},
            "worker": worker,
        }
        self.address: str = worker.get("listen") or f"unix:{self.state_dir}/run/worker-{worker['id']}.sock"
        self.repository: Repository = open_repository(str(self.state_dir / "artifacts"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def log(self) -> str:
        return (self.state_dir / "log").read_text()

    def start(self) -> None:
        config = self.state_dir / "infaas.json"
        config.write_text(json.dumps(self.settings))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("INFAAS_")}
        with (self.state_dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "infaas.programs", "worker"],
                env={**environ, "INFAAS_CONFIG": str(config)},
                stderr=log,
            )

    def signal(self, number: int) -> None:
        self._running.send_signal(number)

    async def ended(self) -> int:
        """Wait for the process to end; its status."""
        return await asyncio.wait_for(asyncio.to_thread(self._running.wait), WAIT_S)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def crash(self) -> None:
        self.signal(signal.SIGKILL)
        self._running.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process


@dataclass(frozen=True)
class Output:
    """A tensor of an answer."""

    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class QueryAnswer:
    """What a batch's answer says of one query."""

    id: int
    outputs: tuple[Output, ...]
    error: str
    error_code: str


@dataclass(frozen=True)
class BatchAnswer:
    """`BatchDone` with the bytes of its tensors; its queries in the order of their numbers."""

    message: worker_pb2.BatchDone
    queries: tuple[QueryAnswer, ...]
    output_names: tuple[str, ...]
    output_datatypes: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)


class ControllerEnd:
    """A controller's connection. Enter it to connect (waits for the worker's listener); leave it to vanish. `stub` is
    for the worker's gRPC calls."""

    def __init__(
        self, address: str, name: str = "c1", token: str | None = None, *, shared_memory_bytes: int = 0
    ) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.stub: Any = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._address = address
        self._name = name
        self._token = token
        self._shared_memory_bytes = shared_memory_bytes
        self.metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        self._numbers = itertools.count(1)
        self.reports: list[worker_pb2.WorkerReport] = []
        self.done: dict[int, BatchAnswer] = {}
        self.outcomes: list[BatchAnswer] = []
        self.started: list[int] = []
        self.refusal: worker_pb2.Refusal | None = None
        self._news = asyncio.Event()
        self.is_over = False
        self.error = ""
        """Why the connection is over."""

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(WAIT_S):
            while True:
                self.endpoint = Endpoint(self, silence_s=WAIT_S, beat_s=1.0)
                try:
                    await dial(self._address, lambda: self.endpoint)
                    break
                except OSError:
                    await asyncio.sleep(_REDIAL_S)
        self.endpoint.greet()
        self.sharing = Sharing(self.endpoint, self._shared_memory_bytes, self._address)
        hello = worker_pb2.Hello(
            controller=self._name, version="test", token=self._token or "", pool=self.sharing.offer()
        )
        await self.send(hello=hello)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.endpoint.cut("it vanished")
        await self.endpoint.ended
        await self._channel.close()

    @property
    def worker(self) -> WorkerRecord:
        """As the newest report has it."""
        return decode(self.reports[-1].worker, WorkerRecord)

    def state(self, instance: str) -> str | None:
        """The instance's newest reported state and its reason, such as `READY` or `FAILED: ...`."""
        found = {str(key): one for key, one in self.worker.instances.items()}.get(instance) if self.reports else None
        if found is None:
            return None
        return f"{found.state.value}: {found.reason}" if found.reason else found.state.value

    async def first_report(self) -> worker_pb2.WorkerReport:
        """Or a newer one that has come since. Raises ConnectionError when the connection ends before."""
        await self.until(lambda: bool(self.reports) or self.is_over)
        if not self.reports:
            raise ConnectionError(self.error)
        return self.reports[-1]

    async def send(self, **body: Any) -> None:
        self.endpoint.send(worker_pb2.ControllerMessage(**body).SerializeToString())

    async def load(self, instance: str, variant: Variant) -> None:
        await self.send(load=worker_pb2.LoadInstance(instance=instance, variant=encode(variant)))

    async def ready(self, instance: str, variant: Variant) -> None:
        """Load, and wait until it takes batches."""
        await self.load(instance, variant)
        await self.until(lambda: self.state(instance) not in (None, "LOADING"))
        if self.state(instance) != "READY":
            raise AssertionError(f"{instance} is {self.state(instance)}")

    async def submit(
        self,
        instance: str,
        *queries: Tensor,
        remaining_s: float = 60.0,
        outputs: Sequence[str] = (),
        own_s: Sequence[float] = (),
        is_alone: bool = False,
    ) -> int:
        """Send a batch of one-input queries, numbered from 1; returns its number. `own_s`: each one's own deadline."""
        number = next(self._numbers)
        batch = worker_pb2.Batch(
            id=number,
            instance=instance,
            outputs=list(outputs),
            queries=range(1, len(queries) + 1),
            items=[query.items for query in queries],
            remaining_us=[int(left_s * 1e6) for left_s in own_s or [remaining_s] * len(queries)],
            alone=is_alone,
        )
        segments: list[Buffer] = []
        if queries:
            parts = [(query.shape, query.data) for query in queries]
            name, datatype = queries[0].name, queries[0].datatype
            segments = write_column(batch.inputs, batch.sizes, name, datatype, batch.items, parts)
        self.endpoint.send(worker_pb2.ControllerMessage(batch=batch).SerializeToString(), segments)
        return number

    async def answer(self, number: int) -> BatchAnswer:
        await self.until(lambda: number in self.done)
        return self.done[number]

    async def infer(self, instance: str, *queries: Tensor, **facts: Any) -> BatchAnswer:
        return await self.answer(await self.submit(instance, *queries, **facts))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until what was received makes it so, or the connection is over."""
        async with asyncio.timeout(WAIT_S):
            while not holds() and not self.is_over:
                self._news.clear()
                await self._news.wait()
        if not holds():
            raise AssertionError(f"the connection ended first: {self.error}")

    async def over(self) -> None:
        await self.until(lambda: self.is_over)

    # -- a connection's handler

    def met(self, version: int) -> None:
        """Whatever it is: tests look at what follows."""

    def stranger(self, first: bytes) -> None:
        """The connection ends, with that reason."""

    def received(self, head: bytes, payload: memoryview) -> None:
        message = worker_pb2.WorkerMessage.FromString(head)
        match message.WhichOneof("body"):
            case "report":
                self.reports.append(message.report)
            case "done":
                answer = _answer(message.done, payload)
                self.done[answer.id] = answer
                self.outcomes.append(answer)
            case "started":
                self.started.append(message.started.id)
            case "shared_memory":
                self._share(message.shared_memory)
            case "refusal":
                self.refusal = message.refusal
        self._news.set()

    def _share(self, said: worker_pb2.SharedMemory) -> None:
        self.sharing.answered(said)
        if said.HasField("pool"):
            answer = self.sharing.answer(said.pool)
            self.endpoint.send(worker_pb2.ControllerMessage(shared_memory=answer).SerializeToString())

    def congested(self, is_congested: bool) -> None:
        """Tests send little."""

    def lost(self, reason: str) -> None:
        self.sharing.close()
        self.error = reason
        self.is_over = True
        self._news.set()


def _answer(done: worker_pb2.BatchDone, payload: memoryview) -> BatchAnswer:
    columns = read_columns(done.outputs, tuple(done.items), done.sizes, payload)
    queries = [QueryAnswer(failure.id, (), failure.error, failure.error_code) for failure in done.failures]
    for place, number in enumerate(done.queries):
        parts = [column.part(place) for column in columns]
        queries.append(QueryAnswer(number, tuple(Output(shape, bytes(data)) for shape, data in parts), "", ""))
    return BatchAnswer(
        done,
        tuple(sorted(queries, key=lambda query: query.id)),
        tuple(column.name for column in columns),
        tuple(column.datatype.value for column in columns),
    )
