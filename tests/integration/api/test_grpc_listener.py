"""Several servers of the library on one port: to callers they are one."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import pytest
from computing_service import ComputingService
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.api.grpc_listener import CONNECTIONS_EACH, SERVERS, servers_for
from serving import Serving

from infaas.errors import SettingsError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.settings import ControllerSettings, Settings

READY = "/inference.GRPCInferenceService/ServerReady"
CHANNELS = 3 * SERVERS
PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("connections", "platform", "count"),
    [
        (1, "linux", 1),
        (2 * CONNECTIONS_EACH - 1, "linux", 1),
        (2 * CONNECTIONS_EACH, "linux", 2),
        (4096, "linux", SERVERS),
        (4096, "darwin", 1),
    ],
)
def test_only_where_connections_are_spread_and_many_are_there_several_servers(
    connections: int, platform: str, count: int
) -> None:
    assert servers_for(connections, platform) == count


async def is_ready(target: str) -> bool:
    """Asked on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        call: Any = channel.unary_unary(READY, response_deserializer=pb.ServerReadyResponse.FromString)
        return bool((await call(b"", timeout=PATIENCE_S)).ready)


async def test_every_connection_is_served_whichever_server_it_meets(edges: Serving) -> None:
    assert all(await asyncio.gather(*[is_ready(edges.grpc) for _ in range(CHANNELS)]))


async def test_a_stopped_listener_leaves_nobody_listening() -> None:
    server = GrpcServer(ComputingService(), Settings())
    port = await server.start("127.0.0.1", 0)
    assert await is_ready(f"127.0.0.1:{port}")
    await server.stop(0.0)
    for _ in range(CHANNELS):
        with socket.socket() as caller:
            assert caller.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("connections", [4096, 1])
async def test_another_controllers_port_is_not_shared_with_it(connections: int) -> None:
    settings = Settings(controller=ControllerSettings(max_connections=connections))
    first, second = GrpcServer(ComputingService(), settings), GrpcServer(ComputingService(), settings)
    port = await first.start("127.0.0.1", 0)
    try:
        with pytest.raises(SettingsError, match=r"controller\.grpc_port"):
            await second.start("127.0.0.1", port)
    finally:
        await first.stop(0.0)
    assert await second.start("127.0.0.1", port) == port
    await second.stop(0.0)
