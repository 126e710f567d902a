"""No flood of connections takes all descriptors: one too many is told so, and those that are open go on."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator

import grpc
import pytest
from computing_service import ComputingService
from infaas_controller.api.http_limits import Limits
from infaas_controller.listeners import connections_within, raise_descriptor_limit
from serving import Serving, serving

from infaas.domain.query import Code
from infaas.settings import Settings

CONNECTIONS, TOLD = 3, 2
READY = b"GET /v2/health/ready HTTP/1.1\r\nhost: test\r\n\r\n"
PATIENCE_S = 30.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def limited() -> AsyncIterator[Serving]:
    settings = Settings.model_validate({"controller": {"max_connections": CONNECTIONS}})
    async with serving(ComputingService(), settings, limits=Limits(connections=CONNECTIONS, told=TOLD)) as running:
        yield running


async def opened(edges: Serving) -> Connection:
    host, port = edges.http.split(":")
    return await asyncio.open_connection(host, int(port))


async def asked(connection: Connection) -> tuple[int, bytes, bytes]:
    reader, writer = connection
    async with asyncio.timeout(PATIENCE_S):
        writer.write(READY)
        return await answered(reader)


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        return int(head.split()[1]), head.lower(), await reader.readexactly(int(length.split(b": ")[1]))


async def closed(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # the other side may have been first


async def test_one_connection_too_many_is_told_why_and_the_open_ones_go_on(limited: Serving) -> None:
    held = [await opened(limited) for _ in range(CONNECTIONS)]
    assert [(await asked(one))[0] for one in held] == [200] * CONNECTIONS

    extra = await opened(limited)
    status, head, body = await answered(extra[0])

    assert (status, json.loads(body)["code"], json.loads(body)["retryable"]) == (503, Code.UNAVAILABLE, True)
    assert "controller.max_connections" in json.loads(body)["error"]
    assert b"retry-after: 1" in head
    assert b"connection: close" in head
    assert [(await asked(one))[0] for one in held] == [200] * CONNECTIONS
    await closed([*held, extra])


async def test_a_place_is_free_again_once_its_caller_is_gone(limited: Serving) -> None:
    held = [await opened(limited) for _ in range(CONNECTIONS)]
    for one in held:
        assert (await asked(one))[0] == 200
    await closed(held[:1])

    async def admitted() -> bool:
        again = await opened(limited)
        try:
            return (await asked(again))[0] == 200
        except (ConnectionError, asyncio.IncompleteReadError):
            return False  # closed without a word
        finally:
            await closed([again])

    async with asyncio.timeout(PATIENCE_S):
        while not await admitted():
            pass
    await closed(held)


async def test_a_flood_beyond_those_that_are_told_is_cut_off(limited: Serving) -> None:
    held = [await opened(limited) for _ in range(CONNECTIONS)]
    for one in held:
        assert (await asked(one))[0] == 200
    flood = [await opened(limited) for _ in range(20)]

    async def word(connection: Connection) -> bytes:
        try:
            return await connection[0].read()
        except ConnectionError:
            return b""

    async with asyncio.timeout(PATIENCE_S):
        said = await asyncio.gather(*map(word, flood))

    assert all(text == b"" or text.startswith(b"HTTP/1.1 503 ") for text in said)
    assert b"" in said
    assert (await asked(held[0]))[0] == 200
    await closed([*held, *flood])


async def test_grpc_takes_no_more_connections_than_that(limited: Serving) -> None:
    ping = "/inference.GRPCInferenceService/ServerLive"
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(limited.grpc, options=own) for _ in range(CONNECTIONS + 1)]
    try:
        for channel in channels[:CONNECTIONS]:
            await channel.unary_unary(ping)(b"", timeout=PATIENCE_S, wait_for_ready=True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channels[-1].unary_unary(ping)(b"", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await channels[0].close()
        await channels[-1].unary_unary(ping)(b"", timeout=PATIENCE_S, wait_for_ready=True)
    finally:
        for channel in channels:
            await channel.close()


@pytest.mark.parametrize(
    ("wanted", "descriptors", "taken"),
    [(4096, 1_048_576, 4096), (4096, 4096, 1162), (10, 4096, 10), (4096, 256, 1)],
)
def test_what_is_taken_fits_the_descriptors_of_the_process(wanted: int, descriptors: int, taken: int) -> None:
    assert connections_within(wanted, descriptors) == taken


def test_the_descriptor_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        assert raise_descriptor_limit(10) == 10
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
