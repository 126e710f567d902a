"""`ModelStreamInfer` as a caller meets it: order, bounds, cancellation, and the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from computing_service import ComputingService
from infaas_controller.api.grpc_stream import STREAM_DEPTH
from infaas_controller.ports import Answer
from serving import Serving, serving

from infaas.domain.query import Query
from infaas.oip.v2 import grpc_service_pb2 as pb

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class SlowService(ComputingService):
    """Answers a query only once it is let go, by the first number of its input."""

    def __init__(self) -> None:
        super().__init__()
        self._gates: dict[int, asyncio.Event] = {}

    def gate(self, number: int) -> asyncio.Event:
        return self._gates.setdefault(number, asyncio.Event())

    async def submit(self, query: Query) -> Answer:
        number = int(np.frombuffer(query.inputs[0].data, np.int32)[0])
        self.hold = self.gate(number)
        return await super().submit(query)

    async def wait_seen(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.seen) < count:
                self.arrived.clear()
                await self.arrived.wait()


class Stream:
    """One call: requests are put one by one."""

    def __init__(self, channel: Any) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        call = channel.stream_stream(STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString)
        self.call = call(self._sent())

    async def _sent(self) -> AsyncIterator[bytes]:
        while (message := await self._requests.get()) is not None:
            yield message if isinstance(message, bytes) else message.SerializeToString()

    def ask(self, number: int, id_: str = "") -> None:
        request = pb.ModelInferRequest(model_name="simple", id=id_)
        for name in ("INPUT0", "INPUT1"):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            request.raw_input_contents.append(np.full(16, number, np.int32).tobytes())
        self._requests.put_nowait(request)

    def send(self, message: bytes) -> None:
        self._requests.put_nowait(message)

    def end(self) -> None:
        self._requests.put_nowait(None)

    async def answer(self) -> tuple[str, int]:
        """Id and input of the next answer: the first sum is twice the input."""
        async with asyncio.timeout(20):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        assert not message.error_message
        found = message.infer_response
        return found.id, int(np.frombuffer(found.raw_output_contents[0], np.int32)[0]) // 2

    async def status(self) -> tuple[str, str]:
        async with asyncio.timeout(20):
            code = await self.call.code()
            return code.name, await self.call.details()


@pytest.fixture
async def slow() -> AsyncIterator[Serving]:
    async with serving(SlowService()) as running:
        yield running


@pytest.fixture
async def stream(slow: Serving) -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(slow.grpc) as channel:
        yield Stream(channel)


async def test_queries_with_ids_are_answered_as_they_complete(slow: Serving, stream: Stream) -> None:
    for number in range(3):
        stream.ask(number, f"q{number}")
    await slow.service.wait_seen(3)
    for number in (2, 0, 1):
        slow.service.gate(number).set()
        assert await stream.answer() == (f"q{number}", number)
    stream.end()
    assert await stream.call.read() is grpc.aio.EOF
    assert await stream.status() == ("OK", "")


async def test_queries_without_ids_are_answered_in_their_order_and_hold_up_no_others(
    slow: Serving, stream: Stream
) -> None:
    stream.ask(0)
    stream.ask(1)
    stream.ask(2, "named")
    await slow.service.wait_seen(3)
    slow.service.gate(1).set()
    slow.service.gate(2).set()
    assert await stream.answer() == ("named", 2)
    slow.service.gate(0).set()
    assert [await stream.answer() for _ in range(2)] == [("", 0), ("", 1)]
    stream.call.cancel()


async def test_a_stream_reads_no_more_than_it_may_have_in_flight(slow: Serving, stream: Stream) -> None:
    for number in range(STREAM_DEPTH + 8):
        stream.ask(number, str(number))
    await slow.service.wait_seen(STREAM_DEPTH)
    slow.service.gate(5).set()
    assert await stream.answer() == ("5", 5)
    await slow.service.wait_seen(STREAM_DEPTH + 1)
    assert len(slow.service.seen) == STREAM_DEPTH + 1
    stream.call.cancel()


async def test_a_drain_answers_what_was_read_and_then_ends_the_stream(slow: Serving, stream: Stream) -> None:
    stream.ask(1, "one")
    stream.ask(2, "two")
    await slow.service.wait_seen(2)
    slow.grpc_server.drain()
    slow.service.gate(2).set()
    assert await stream.answer() == ("two", 2)
    slow.service.gate(1).set()
    assert await stream.answer() == ("one", 1)
    code, text = await stream.status()
    assert code == "UNAVAILABLE"
    assert "shutting down" in text


async def test_an_idle_stream_ends_with_the_drain_at_once(slow: Serving, stream: Stream) -> None:
    stream.ask(1, "one")
    slow.service.gate(1).set()
    await stream.answer()
    slow.grpc_server.drain()
    assert (await stream.status())[0] == "UNAVAILABLE"


async def test_what_is_no_request_ends_the_stream_after_the_answers(slow: Serving, stream: Stream) -> None:
    stream.ask(1, "one")
    await slow.service.wait_seen(1)
    stream.send(b"\xff\xff\xff")
    slow.service.gate(1).set()
    assert await stream.answer() == ("one", 1)
    code, text = await stream.status()
    assert code == "INVALID_ARGUMENT"
    assert "ModelInferRequest" in text


async def test_a_caller_who_leaves_takes_all_its_queries_along(slow: Serving, stream: Stream) -> None:
    for number in range(4):
        stream.ask(number)
    await slow.service.wait_seen(4)
    stream.call.cancel()
    async with asyncio.timeout(20):
        while len(slow.service.cancelled) < 4:
            slow.service.dropped.clear()
            await slow.service.dropped.wait()
    assert slow.service.in_flight() == 0
