"""gRPC's listening side: several servers of the library on one port.

grpc.aio asks its core for one call at a time, and for the next in a later turn of the loop. However many callers wait,
a turn brings in one call; it is decided on alone and travels to its worker alone, which costs many times what it costs
among others (ADR 0020). Servers that share a port (SO_REUSEPORT) each ask for one, and the kernel spreads connections
over them, so that a busy turn brings in several.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import grpc

from infaas.errors import SettingsError
from infaas_controller.listeners import bind

SERVERS = 16
CONNECTIONS_EACH = 64
"""Fewer are not worth a server: connections are spread by chance, and each server has its share of the bound."""
SETTING = "controller.grpc_port"

Options = Sequence[tuple[str, int]]


def servers_for(connections: int, platform: str) -> int:
    """How many servers share a port that takes so many connections. Only Linux spreads connections over them."""
    return max(1, min(SERVERS, connections // CONNECTIONS_EACH)) if platform == "linux" else 1


class GrpcListener:
    """Serves the handlers from `start` to `stop`."""

    def __init__(self, handlers: Sequence[Any], options: Options, connections: int, *, is_shared: bool = False) -> None:
        """`connections` are open at one time, on all servers together. A port that is shared with other processes was
        taken by their master."""
        count = servers_for(connections, sys.platform)
        more = [
            ("grpc.max_allowed_incoming_connections", connections // count),
            (
                "grpc.so_reuseport",
                int(count > 1 or is_shared),
            ),  # else a taken port must be an error, not a silent share
        ]
        self._is_shared = is_shared
        self._servers = [grpc.aio.server(options=[*options, *more]) for _ in range(count)]
        for server in self._servers:
            server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (the one picked, for 0). Raises SettingsError when it cannot be had."""
        if port and len(self._servers) > 1 and not self._is_shared:
            bind(host.strip("[]"), port, SETTING).close()  # who shares a port is not told that others have it
        for server in self._servers:
            port = _bound(server, host, port)
            await server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run get `grace_s`, then they are cancelled."""
        await asyncio.gather(*[server.stop(grace_s) for server in self._servers])


def _bound(server: Any, host: str, port: int) -> int:
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as error:
        raise SettingsError(f"gRPC cannot listen on {shown}:{port} ({SETTING}): {error}") from error
    if bound == 0:
        raise SettingsError(f"gRPC cannot listen on {shown}:{port} ({SETTING}); is the port taken?")
    return int(bound)
