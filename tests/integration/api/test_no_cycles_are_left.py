"""A query leaves nothing behind that only the cycle collector could find: full collections are minutes apart."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

import grpc
import numpy as np
import pytest
from infaas_controller.api.bulk.weigh import LOOP_BYTES
from serving import Serving

from infaas.errors import InfaasError
from infaas.oip.v2 import grpc_service_pb2 as pb

ROW = {"datatype": "INT32", "shape": [1, 16], "data": list(range(16))}
GOOD = json.dumps({"inputs": [{"name": name, **ROW} for name in ("INPUT0", "INPUT1")]}).encode()
BAD = b'{"inputs": ['
LARGE_BAD = BAD + b" " * LOOP_BYTES
QUERIES = 30
PATIENCE_S = 30.0


async def queried(edges: Serving, body: bytes) -> int:
    """Over one connection."""
    host, port = edges.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    status = 0
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(QUERIES):
            writer.write(
                b"POST /v2/models/simple/infer HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
            await reader.readexactly(int(length.split(b": ")[1]))
            status = int(head.split()[1])
    writer.close()
    await writer.wait_closed()
    return status


def kept(*kinds: type) -> Counter[str]:
    """What the collector would have to find, by kind."""
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


@pytest.mark.parametrize(("body", "status"), [(GOOD, 200), (BAD, 400), (LARGE_BAD, 400)])
async def test_queries_leave_no_cycles(edges: Serving, body: bytes, status: int) -> None:
    assert await queried(edges, body) == status
    gc.collect()
    kinds = (TracebackType, InfaasError, asyncio.Task)
    before = kept(*kinds)
    gc.disable()
    try:
        assert await queried(edges, body) == status
        grown = {kind: count for kind, count in (kept(*kinds) - before).items() if count >= QUERIES}
    finally:
        gc.enable()
    assert not grown


def a_message(items: int) -> bytes:
    """Good with one item; what is said of it is wrong with another number."""
    message = pb.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[items, 16])
        message.raw_input_contents.append(np.arange(16, dtype=np.int32).tobytes())
    return bytes(message.SerializeToString())


async def called(edges: Serving, message: bytes) -> int:
    """How many were answered."""
    answered = 0
    async with grpc.aio.insecure_channel(edges.grpc) as channel, asyncio.timeout(PATIENCE_S):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(QUERIES):
            try:
                await call(message)
                answered += 1
            except grpc.aio.AioRpcError:
                continue
    return answered


async def streamed(edges: Serving, message: bytes) -> int:
    """The same on one stream."""
    async with grpc.aio.insecure_channel(edges.grpc) as channel, asyncio.timeout(PATIENCE_S):
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return sum([not answer.error_message async for answer in call(iter([message] * QUERIES))])


@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("ask", [called, streamed])
async def test_queries_over_grpc_leave_no_error_of_ours(
    edges: Serving, ask: Callable[[Serving, bytes], Awaitable[int]], items: int
) -> None:
    """The library's own tasks and errors are not ours to look after."""
    expected = QUERIES if items == 1 else 0
    assert await ask(edges, a_message(items)) == expected
    gc.collect()
    before = kept(InfaasError)
    gc.disable()
    try:
        assert await ask(edges, a_message(items)) == expected
        grown = kept(InfaasError) - before
    finally:
        gc.enable()
    assert not grown
