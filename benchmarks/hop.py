"""What the hop between controller and worker costs, over each transport that could carry it.

    python benchmarks/hop.py [--rounds 5] [--only TRANSPORT ...] [--json FILE]

A server process answers every batch with its own tensors. Measured are round trips of one query, of 16 and 32 queries
in one message, of 16 messages sent in one turn of the loop, and of tensors from 64 KiB to 5 MB: microseconds of wall
clock per query and of CPU per query in each of the two processes, medians of several rounds, interleaved between the
transports. `framed` is all that controller and worker do between a ticket and the values that an executor is given, and
back to the tensors of each answer; `shared` is the same with memory that both processes have, through which large
payloads go, as they do between processes of one machine; `tls` is the same as `framed` with certificates on both sides.
`grpc` is a bidirectional grpc.aio stream with the tensors
inside the protobuf message, as the hop was before, and nothing made of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import uvloop
from infaas_controller.answers import batch_result
from infaas_controller.queues import Ticket
from infaas_controller.wire import encode_batch
from infaas_worker.api import messages
from infaas_worker.batches import Ran
from infaas_worker.executors.base import BatchOut

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.hop.address import dial, listen
from infaas.rpc.hop.endpoint import Endpoint
from infaas.rpc.hop.sharing import Sharing
from infaas.rpc.tls import Tls, TlsFiles
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_query
from infaas.testing.certificates import Authority

METHOD = "/infaas.benchmark/Attach"
SMALL_BYTES = 256
LARGE_BYTES = 600_000
SILENCE_S = 60.0
POOL_BYTES = 64 * 2**20
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True)
class Case:
    name: str
    messages: int
    """Sent in one turn of the loop; the next turn waits for all their answers."""
    queries: int
    """In each message."""
    size: int
    repeats: int


CASES = (
    Case("one query", 1, 1, SMALL_BYTES, 3000),
    Case("16 queries in one message", 1, 16, SMALL_BYTES, 1500),
    Case("32 queries in one message", 1, 32, SMALL_BYTES, 1000),
    Case("16 messages at once", 16, 1, SMALL_BYTES, 400),
    Case("one 64 KiB tensor", 1, 1, 2**16, 600),
    Case("one 128 KiB tensor", 1, 1, 2**17, 500),
    Case("one 600 kB tensor", 1, 1, LARGE_BYTES, 300),
    Case("one 5 MB tensor", 1, 1, 5_000_000, 60),
    Case("4 tensors of 600 kB in one message", 1, 4, LARGE_BYTES, 100),
    Case("4 messages of 600 kB at once", 4, 1, LARGE_BYTES, 100),
)


@dataclass(frozen=True)
class Row:
    transport: str
    case: str
    wall_us: float
    controller_cpu_us: float
    worker_cpu_us: float


# -- the hop as it is


def tickets(queries: int, data: bytes) -> list[Ticket]:
    inputs = (Tensor("x", Datatype.UINT8, (1, len(data)), data),)
    return [Ticket(number, a_query(inputs=inputs), None) for number in range(1, queries + 1)]


class FramedServer:
    """A `Handler` that answers batches with their own tensors."""

    endpoint: Endpoint
    sharing: Sharing

    def met(self, version: int) -> None:
        self.endpoint.greet()

    def stranger(self, first: bytes) -> None:
        raise AssertionError(first)

    def received(self, head: bytes, payload: memoryview) -> None:
        heard = pb.ControllerMessage.FromString(head)
        body = heard.WhichOneof("body")
        if body == "hello":
            answer = self.sharing.answer(heard.hello.pool)
            if (own := self.sharing.offer()) is not None:
                answer.pool.CopyFrom(own)
            self.endpoint.send(pb.WorkerMessage(shared_memory=answer).SerializeToString())
            return
        if body == "shared_memory":
            self.sharing.answered(heard.shared_memory)
            return
        said = heard.batch
        queries = messages.to_queries(said, 0.0)
        batch = messages.to_batch(said, queries.items, payload)
        if batch.whole is None:
            raise AssertionError("tensors of numbers lie together")
        out = BatchOut.of_whole(("y",), batch.datatypes, batch.whole, 0.0)
        ran = Ran(queries.ids, out, frozenset(), 0.0, 0.0)
        message, segments = messages.ran(said.id, queries, ran)
        self.endpoint.send(message.SerializeToString(), segments)

    def congested(self, is_congested: bool) -> None: ...

    def lost(self, reason: str) -> None: ...


class FramedClient:
    """Sends batches and waits for their answers."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(self, silence_s=SILENCE_S)
        self._wanted = 0
        self._all: asyncio.Future[None] | None = None
        self._sending: tuple[Case, bytes] | None = None
        self._tickets: list[Ticket] = []
        self._sharing = Sharing(self.endpoint, POOL_BYTES, "the benchmark's server")
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def share(self) -> None:
        """Large payloads go through shared memory from now on, both ways."""
        hello = pb.Hello(pool=self._sharing.offer())
        self.endpoint.send(pb.ControllerMessage(hello=hello).SerializeToString())
        await self._settled

    async def turn(self, case: Case, data: bytes) -> None:
        if (case, data) != self._sending:
            self._sending, self._tickets = (case, data), tickets(case.queries, data)
        self._wanted = case.messages
        self._all = asyncio.get_running_loop().create_future()
        for number in range(1, case.messages + 1):
            self.endpoint.send(*encode_batch(number, "i1", self._tickets, 0.0))
        await self._all

    def met(self, version: int) -> None: ...

    def stranger(self, first: bytes) -> None:
        raise AssertionError(first)

    def received(self, head: bytes, payload: memoryview) -> None:
        heard = pb.WorkerMessage.FromString(head)
        if heard.WhichOneof("body") == "shared_memory":
            self._share(heard.shared_memory)
            return
        result = batch_result(heard.done, payload)
        answers = result.answers
        if answers is None or not all(answers.tensors(place) for place in range(len(result.outputs or {}))):
            raise AssertionError("every query is answered")
        self._wanted -= 1
        if self._wanted == 0 and self._all is not None:
            self._all.set_result(None)

    def congested(self, is_congested: bool) -> None: ...

    def lost(self, reason: str) -> None: ...

    def _share(self, said: pb.SharedMemory) -> None:
        self._sharing.answered(said)
        answer = self._sharing.answer(said.pool)
        if not (said.is_read and answer.is_read):
            raise AssertionError(f"no memory is shared: {said.reason} {answer.reason}")
        self.endpoint.send(pb.ControllerMessage(shared_memory=answer).SerializeToString())
        self._settled.set_result(None)


async def serve_framed(address: str, told: Any, files: TlsFiles | None = None) -> None:
    def make() -> Endpoint:
        handler = FramedServer()
        handler.endpoint = Endpoint(handler, silence_s=SILENCE_S)
        handler.sharing = Sharing(handler.endpoint, POOL_BYTES, "the benchmark's client")
        return handler.endpoint

    server, bound = await listen(address, make, None if files is None else Tls(files))
    told.send(bound)
    await _until_told(told)
    server.close()


# -- the hop as it was: tensors inside the message


async def serve_grpc(address: str, told: Any) -> None:
    async def attach(requests: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            batch = Embedded.FromString(message)
            answer = Embedded(id=batch.id)
            for query in batch.queries:
                answer.queries.add(id=query.id, shape=[1, len(query.data)], data=query.data)
            await context.write(answer.SerializeToString())

    server = grpc.aio.server(options=_OPTIONS)
    handlers = {"Attach": grpc.stream_stream_rpc_method_handler(attach)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("infaas.benchmark", handlers),))
    port = server.add_insecure_port(address)
    await server.start()
    told.send(address if address.startswith("unix:") else f"127.0.0.1:{port}")
    await _until_told(told)
    await server.stop(None)


def _embedded() -> Any:
    """The messages with their tensors inside, as a type made here: the protocol itself no longer has it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="benchmark.proto", package="infaas.benchmark", syntax="proto3")
    query = file.message_type.add(name="Query")
    kinds = descriptor_pb2.FieldDescriptorProto
    query.field.add(name="id", number=1, type=kinds.TYPE_UINT64, label=kinds.LABEL_OPTIONAL)
    query.field.add(name="shape", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED)
    query.field.add(name="data", number=3, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    batch = file.message_type.add(name="Batch")
    batch.field.add(name="id", number=1, type=kinds.TYPE_UINT64, label=kinds.LABEL_OPTIONAL)
    batch.field.add(
        name="queries", number=2, type=kinds.TYPE_MESSAGE, type_name=".infaas.benchmark.Query",
        label=kinds.LABEL_REPEATED,
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("infaas.benchmark.Batch"))


Embedded = _embedded()


class GrpcClient:
    """The same, over a stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def turn(self, case: Case, data: bytes) -> None:
        for number in range(case.messages):
            batch = Embedded(id=number)
            for query in range(case.queries):
                batch.queries.add(id=query, shape=[1, case.size], data=data)
            await self._call.write(batch.SerializeToString())
        for _ in range(case.messages):
            Embedded.FromString(await self._call.read())


# -- measuring


async def _until_told(told: Any) -> None:
    """Say how much CPU was used whenever asked, until the other side is gone."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def asked() -> None:
        try:
            told.recv()
            told.send(time.process_time())
        except EOFError:
            loop.remove_reader(told.fileno())
            over.set_result(None)

    loop.add_reader(told.fileno(), asked)
    await over


def _child(serve: Callable[[str, Any], Any], address: str, told: Any, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    uvloop.run(serve(address, told))


@dataclass
class Transport:
    name: str
    told: Any
    turn: Callable[[Case, bytes], Any]
    close: Callable[[], Any]

    def worker_cpu_s(self) -> float:
        self.told.send(None)
        return float(self.told.recv())


async def _measure(transport: Transport, case: Case) -> Row:
    data = os.urandom(case.size)
    queries = case.messages * case.queries * case.repeats
    for _ in range(max(5, case.repeats // 10)):
        await transport.turn(case, data)
    worker, own, began = transport.worker_cpu_s(), time.process_time(), time.perf_counter()
    for _ in range(case.repeats):
        await transport.turn(case, data)
    wall, own = time.perf_counter() - began, time.process_time() - own
    worker = transport.worker_cpu_s() - worker
    return Row(transport.name, case.name, wall / queries * 1e6, own / queries * 1e6, worker / queries * 1e6)


async def _open(name: str, address: str, told: Any, files: TlsFiles) -> Transport:
    if name.startswith("grpc"):
        channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        call = channel.stream_stream(METHOD)()
        return Transport(name, told, GrpcClient(call).turn, channel.close)
    client = FramedClient()
    await dial(address, lambda: client.endpoint, Tls(files) if name.startswith("tls") else None)
    client.endpoint.greet()
    if name.startswith("shared"):
        await client.share()

    async def close() -> None:
        client.endpoint.cut("measured")

    return Transport(name, told, client.turn, close)


async def _run(folder: Path, rounds: int, only: list[str]) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    files = Authority(folder / "ca").issue("127.0.0.1")
    places: dict[str, tuple[Callable[..., Any], str]] = {
        "grpc unix": (serve_grpc, f"unix:{folder}/grpc.sock"),
        "grpc tcp": (serve_grpc, "127.0.0.1:0"),
        "framed unix": (serve_framed, f"unix:{folder}/framed.sock"),
        "shared unix": (serve_framed, f"unix:{folder}/shared.sock"),
        "framed tcp": (serve_framed, "127.0.0.1:0"),
        "tls tcp": (partial(serve_framed, files=files), "127.0.0.1:0"),
    }
    context = multiprocessing.get_context("spawn")
    children: list[Any] = []
    transports: list[Transport] = []
    for name, (serve, address) in places.items():
        if only and name not in only:
            continue
        told, theirs = context.Pipe()
        child = context.Process(target=_child, args=(serve, address, theirs, cores[-1:]))
        child.start()
        theirs.close()
        children.append(child)
        transports.append(await _open(name, await asyncio.to_thread(told.recv), told, files))
    rows = [await _measure(transport, case) for _ in range(rounds) for case in CASES for transport in transports]
    for transport in transports:
        await transport.close()
        transport.told.close()
    for child in children:
        await asyncio.to_thread(child.join)
    return rows


def medians(rows: list[Row]) -> list[Row]:
    """One row per transport and case, in the order in which they came."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.transport), []).append(row)
    return [
        Row(
            transport,
            case,
            statistics.median(row.wall_us for row in group),
            statistics.median(row.controller_cpu_us for row in group),
            statistics.median(row.worker_cpu_us for row in group),
        )
        for (case, transport), group in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="transports, as the table names them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infaas-hop-") as folder:
        rows = medians(uvloop.run(_run(Path(folder), options.rounds, options.only)))
    print("| case | transport | wall us/query | controller CPU us/query | worker CPU us/query |\n|--|--|--:|--:|--:|")
    for row in rows:
        figures = f"{row.wall_us:.1f} | {row.controller_cpu_us:.1f} | {row.worker_cpu_us:.1f}"
        print(f"| {row.case} | {row.transport} | {figures} |")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
