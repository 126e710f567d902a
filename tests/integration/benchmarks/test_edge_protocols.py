"""The protocol that the edge's benchmark compares with answers as the shipped one does, whatever it hands over."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from uvicorn.server import ServerState

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from edge import cases, measure, protocols

WITHIN_S = 20.0
USUAL = cases()["binary"](0)
TEXT = cases()["JSON"](0)
LAST = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"
_OWN = re.compile(rb"\br-[0-9a-f]{10}-[0-9a-f]+")
_TIMES = re.compile(rb"\r\n(date|server-timing|x-infaas-queue-ms): [^\r]+")


async def said(name: str, pieces: Sequence[bytes]) -> bytes:
    """All that the protocol answers on one connection, each piece sent when something of the last was answered."""
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(protocols(state)[name], "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    answers = b""
    async with asyncio.timeout(WITHIN_S):
        for piece in pieces[:-1]:
            writer.write(piece)
            answers += await reader.read(2**16)
        writer.write(pieces[-1])
        answers += await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    async with asyncio.timeout(WITHIN_S):
        while state.connections:  # noqa: ASYNC110  (a plain set of the server's)
            await asyncio.sleep(0.001)
    return _TIMES.sub(b"", _OWN.sub(b"r-", answers))


@pytest.mark.parametrize(
    "pieces",
    [
        [USUAL, USUAL, TEXT, TEXT, USUAL, LAST],
        [USUAL, b"GET /v2/models/digits/ready HTTP/1.1\r\nhost: t\r\n\r\n", USUAL, LAST],
        [USUAL + USUAL + TEXT + LAST],
        [USUAL, TEXT + USUAL + LAST],
        [USUAL.replace(b"content-type", b"accept-encoding: gzip\r\ncontent-type"), USUAL, LAST],
        [TEXT.replace(b'"shape"', b'"shope"'), TEXT, LAST],
        [TEXT.replace(b"POST", b"PUT", 1) + LAST],
        [USUAL.replace(b"digits", b"nobody"), USUAL, LAST],
        [USUAL.replace(b"host:", b"connection: close\r\nhost:")],
        [USUAL.replace(b"HTTP/1.1", b"HTTP/1.0")],
        [USUAL, b"no request at all\r\n\r\n"],
    ],
)
async def test_both_protocols_answer_alike(pieces: list[bytes]) -> None:
    assert await said("own", pieces) == await said("shipped", pieces)


@pytest.mark.parametrize("at", [1, 40, 200, len(USUAL) - 3])
async def test_a_request_in_pieces_is_answered_once(at: int) -> None:
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(protocols(state)["own"], "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    async with asyncio.timeout(WITHIN_S):
        for data in (USUAL, USUAL):
            writer.write(data[:at])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(data[at:])
            answer = await reader.read(2**16)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1") == 1
        writer.write(LAST)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("name", ["shipped", "own", "ASGI"])
async def test_what_is_measured_are_answers(name: str) -> None:
    state = ServerState()
    requests = [make(number) for make in cases().values() for number in range(3)]
    spent, body = await measure(protocols(state)[name], state, requests)
    assert spent > 0
    assert b'"outputs"' in body
