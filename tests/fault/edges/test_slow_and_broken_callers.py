"""Callers that are slow, broken or gone: bounded, told why where they can still hear it, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from serving import Serving

PATH = "/v2/models/simple/infer"
LINE = f"POST {PATH} HTTP/1.1\r\nhost: test\r\n".encode()
PATIENCE_S = 30.0


def a_body(**change: Any) -> bytes:
    data = list(range(16))
    inputs = [{"name": n, "shape": [1, 16], "datatype": "INT32", "data": data} for n in ("INPUT0", "INPUT1")]
    return json.dumps({"inputs": inputs, **change}).encode()


def a_request(head: bytes = b"", **change: Any) -> bytes:
    body = a_body(**change)
    return LINE + head + f"content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Got:
    status: int
    headers: dict[str, str]
    document: dict[str, Any]


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> bool:
        """Whether the other side still took it."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        return not self.reader.at_eof()

    async def answer(self) -> Got:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in head[1:] if line)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Got(int(head[0].split()[1]), headers, json.loads(body))

    async def rest(self) -> bytes:
        """What comes until the connection ends."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def calling(running: Serving) -> AsyncIterator[Caller]:
    host, port = running.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def assert_it_serves(running: Serving) -> None:
    async with httpx.AsyncClient(base_url=f"http://{running.http}", timeout=PATIENCE_S) as client:
        answer = await client.post(PATH, content=a_body())
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [2 * n for n in range(16)]


async def becomes_true(question: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await question():
                return
            await asyncio.sleep(0.01)


async def until(running: Serving, in_flight: int) -> None:
    async def is_so() -> bool:
        return bool(running.service.in_flight() == in_flight)

    await becomes_true(is_so)


# Slow


async def test_a_header_that_comes_byte_by_byte_is_ended_in_words(impatient: Serving) -> None:
    async with calling(impatient) as slow:
        await slow.send(LINE + b"x-slow: ")
        await assert_it_serves(impatient)  # others do not wait for it
        answer = asyncio.create_task(slow.answer(), name="answer")
        while not answer.done():
            await slow.send(b"a")
            await asyncio.wait({answer}, timeout=0.02)
        got = answer.result()
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert got.document["code"] == "invalid-argument"
        assert got.document["retryable"] is True
        assert "the request's header did not come whole within" in got.document["error"]
        assert await slow.rest() == b""


async def test_a_body_that_stops_coming_is_ended_and_its_query_never_begins(impatient: Serving) -> None:
    async with calling(impatient) as slow:
        await slow.send(LINE + b"content-length: 1000\r\n\r\n" + a_body()[:200])
        got = await slow.answer()
        assert got.status == 408
        assert "the request's body did not come whole" in got.document["error"]
        assert await slow.rest() == b""
    assert impatient.service.seen == []
    await assert_it_serves(impatient)


async def test_a_slow_body_that_keeps_coming_is_waited_for(impatient: Serving) -> None:
    body = a_body(id="x" * 20_000)
    began = asyncio.get_running_loop().time()
    async with calling(impatient) as slow:
        await slow.send(LINE + f"content-length: {len(body)}\r\n\r\n".encode())
        for at in range(0, len(body), 2_000):  # each piece earns the second that it takes at most
            await slow.send(body[at : at + 2_000])
            await asyncio.sleep(0.1)
        got = await slow.answer()
    assert got.status == 200
    assert asyncio.get_running_loop().time() - began > 2 * 0.5


async def test_a_query_that_takes_longer_than_the_patience_for_reading_is_not_cut(impatient: Serving) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request())
        await until(impatient, in_flight=1)
        asyncio.get_running_loop().call_later(1.5, impatient.service.hold.set)
        assert (await caller.answer()).status == 200


async def test_a_caller_that_does_not_take_its_answer_is_cut(impatient: Serving) -> None:
    array = np.zeros((1, 6_000_000), np.float32)  # its answer fills every buffer on the way
    said = {"name": "in_fp32", "shape": array.shape, "datatype": "FP32"}
    document = {"inputs": [{**said, "parameters": {"binary_data_size": array.nbytes}}]}
    head = json.dumps(document | {"parameters": {"binary_data_output": True}}).encode()
    line = f"POST /v2/models/echo-fp32/infer HTTP/1.1\r\ninference-header-content-length: {len(head)}\r\n"
    async with calling(impatient) as caller:
        await caller.send(line.encode() + f"content-length: {len(head) + array.nbytes}\r\n\r\n".encode() + head)
        await caller.send(array.tobytes())
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until_connections(impatient, 0)
        caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await caller.rest()) < array.nbytes
    await assert_it_serves(impatient)


async def until_connections(running: Serving, count: int) -> None:
    """Waits until the server holds no more than `count` connections of its clients."""
    port = int(running.http.rsplit(":", 1)[1])

    def held() -> int:
        connections = psutil.Process().net_connections("tcp")
        return sum(1 for one in connections if one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED)

    async def is_so() -> bool:
        return await asyncio.to_thread(held) <= count

    await becomes_true(is_so)


# Broken


async def test_garbage_after_a_good_request_is_refused_after_the_answer(impatient: Serving) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request(id="good") + b"this is no request\r\n\r\n")
        await until(impatient, in_flight=1)
        impatient.service.hold.set()
        first, second = await caller.answer(), await caller.answer()
        assert (first.status, first.document["id"]) == (200, "good")
        assert (second.status, second.document["code"]) == (400, "invalid-argument")
        assert "not a valid HTTP/1.1 request" in second.document["error"]
        assert await caller.rest() == b""


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"transfer-encoding: chunked\r\n\r\nno size\r\n", 400),
        (b"content-length: 1000\r\n\r\n" + a_body()[:200], 408),
    ],
)
async def test_a_broken_body_behind_an_unanswered_request_is_refused_after_its_answer(
    impatient: Serving, broken: bytes, status: int
) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request(id="good") + LINE + broken)
        await until(impatient, in_flight=1)
        asyncio.get_running_loop().call_later(1.5, impatient.service.hold.set)  # the patience has passed by then
        first, second = await caller.answer(), await caller.answer()
        assert (first.status, first.document["id"]) == (200, "good")
        assert (second.status, second.headers["connection"]) == (status, "close")
        assert await caller.rest() == b""
    assert len(impatient.service.seen) == 1


AFTER_THE_LAST = [
    b"this is no request\r\n\r\n",
    LINE + b"transfer-encoding: chunked\r\n\r\nno size\r\n",
    a_request(id="more"),
    a_request(id="more")[:-40],
    b"\r\n",
]


@pytest.mark.parametrize("after", AFTER_THE_LAST)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_follows_a_request_that_asks_to_close_is_ignored(
    impatient: Serving, after: bytes, at_once: bool
) -> None:
    impatient.service.hold = asyncio.Event()
    last = a_request(b"connection: close\r\n", id="last")
    async with calling(impatient) as caller:
        await caller.send(a_request(id="first") + last + (after if at_once else b""))
        await until(impatient, in_flight=1)
        if not at_once:
            await caller.send(after)
        impatient.service.hold.set()
        assert [(await caller.answer()).document["id"] for _ in range(2)] == ["first", "last"]
        assert await caller.rest() == b""
    assert len(impatient.service.seen) == 2


async def test_a_content_length_that_is_too_short_hurts_only_its_own_connection(impatient: Serving) -> None:
    body = a_body()
    async with calling(impatient) as caller:
        await caller.send(LINE + b"content-length: 20\r\n\r\n" + body)
        got = await caller.answer()
        assert (got.status, got.document["code"]) == (400, "invalid-argument")
        assert (await caller.answer()).status == 400  # the rest of the body is no request
        assert await caller.rest() == b""
    await assert_it_serves(impatient)


async def test_fifty_pipelined_requests_are_answered_in_order(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        await caller.send(b"".join(a_request(id=f"n{n}") for n in range(50)))
        assert [(await caller.answer()).document["id"] for _ in range(50)] == [f"n{n}" for n in range(50)]


async def test_pipelined_errors_and_answers_keep_their_places(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        await caller.send(b"".join(a_request(id=f"n{n}", parameters={"slo_latency_ms": n - 1}) for n in range(4)))
        assert [(await caller.answer()).status for _ in range(4)] == [400, 400, 200, 200]


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_an_upgrade_is_not_taken_and_the_connection_goes_on(impatient: Serving, upgrade: str) -> None:
    ask = f"connection: Upgrade, HTTP2-Settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQ\r\n".encode()
    async with calling(impatient) as caller:
        for number in range(3):
            await caller.send(a_request(ask, id=f"n{number}"))
            got = await caller.answer()
            assert (got.status, got.document["id"]) == (200, f"n{number}")


async def test_an_endless_header_is_refused_long_before_its_end(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        await caller.send(LINE + b"x-long: ")
        sent = 0
        while sent < 64 * 2**20 and await caller.send(b"x" * 65_536):
            sent += 65_536
        got = await caller.answer()
    assert (got.status, got.document["code"]) == (431, "too-large")


@pytest.mark.parametrize("first", [1, 30_000, 65_400, 65_536, 69_000])
async def test_a_header_is_as_large_as_its_pieces_together(impatient: Serving, first: int) -> None:
    async with calling(impatient) as caller:
        await caller.send(a_request())
        assert (await caller.answer()).status == 200
        data = LINE + b"x-long: " + b"x" * 70_000 + b"\r\n\r\n"
        await caller.send(data[:first])
        await assert_it_serves(impatient)  # the first piece is there by now
        await caller.send(data[first:])
        got = await caller.answer()
    assert (got.status, got.document["code"]) == (431, "too-large")


async def test_a_large_body_before_it_does_not_count_as_header(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        await caller.send(a_request(id="x" * 500_000) + a_request(id="next"))
        assert [(await caller.answer()).status for _ in range(2)] == [200, 200]


# Refused before they were whole


@pytest.mark.parametrize("framing", ["content-length: 104857600", "transfer-encoding: chunked"])
async def test_a_body_of_100_mb_is_refused_and_its_caller_can_read_why(impatient: Serving, framing: str) -> None:
    piece = bytes(2**20)
    frame = b"%x\r\n%s\r\n" % (len(piece), piece) if "chunked" in framing else piece
    async with calling(impatient) as caller:
        await caller.send(LINE + framing.encode() + b"\r\n\r\n")
        for _ in range(100):  # as a client does that reads nothing before it has sent everything
            await caller.send(frame)
        got = await caller.answer()
    assert (got.status, got.document["code"], got.headers["connection"]) == (413, "too-large", "close")
    assert "at most 33554432 are taken (controller.max_body_bytes)" in got.document["error"]
    assert impatient.service.seen == []
    await assert_it_serves(impatient)


async def test_a_caller_that_asks_first_is_spared_the_sending(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        await caller.send(LINE + b"expect: 100-continue\r\ncontent-length: 104857600\r\n\r\n")
        assert (await caller.answer()).status == 413
        assert await caller.rest() == b""


async def test_a_refusal_of_a_whole_request_keeps_the_connection(impatient: Serving) -> None:
    async with calling(impatient) as caller:
        for _ in range(3):
            await caller.send(a_request(b"x-infaas-slo-latency-ms: soon\r\n"))
            got = await caller.answer()
            assert got.status == 400
            assert "connection" not in got.headers


# Gone


async def test_a_caller_that_leaves_takes_its_query_along(impatient: Serving) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request())
        await until(impatient, in_flight=1)
    await until(impatient, in_flight=0)
    assert len(impatient.service.cancelled) == 1
    impatient.service.hold = None
    await assert_it_serves(impatient)


async def test_a_caller_that_leaves_takes_all_its_pipelined_queries_along(impatient: Serving) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request(id="one") + a_request(id="two"))
        await until(impatient, in_flight=1)
    await until(impatient, in_flight=0)
    assert [len(impatient.service.seen), len(impatient.service.cancelled)] == [1, 1]
    impatient.service.hold = None
    await assert_it_serves(impatient)


async def test_a_caller_that_only_stops_sending_counts_as_one_that_left(impatient: Serving) -> None:
    impatient.service.hold = asyncio.Event()
    async with calling(impatient) as caller:
        await caller.send(a_request())
        await until(impatient, in_flight=1)
        caller.writer.write_eof()
        assert await caller.rest() == b""
    await until(impatient, in_flight=0)
    assert len(impatient.service.cancelled) == 1


@pytest.mark.parametrize("part", [LINE[:10], LINE, LINE + b"content-length: 500\r\n\r\n", a_request()[:-40]])
async def test_a_caller_that_leaves_in_the_middle_of_a_request_leaves_nothing(impatient: Serving, part: bytes) -> None:
    async with calling(impatient) as caller:
        await caller.send(part)
    await until_connections(impatient, 0)
    assert impatient.service.seen == []
    await assert_it_serves(impatient)


async def test_two_hundred_slow_callers_do_not_keep_others_waiting(impatient: Serving) -> None:
    async with asyncio.TaskGroup() as group:
        slow = [group.create_task(stay(impatient)) for _ in range(200)]
        for _ in range(5):
            await assert_it_serves(impatient)
    assert {task.result() for task in slow} == {408}


async def stay(running: Serving) -> int:
    async with calling(running) as caller:
        await caller.send(LINE + b"x-slow:")
        return (await caller.answer()).status
