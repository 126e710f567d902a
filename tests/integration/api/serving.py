"""Both edges on free ports of this process, over uvicorn and grpc.aio, as the controller runs them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.api.http import create_app
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_limits import Limits
from infaas_controller.api.http_server import server_config
from uvicorn.server import ServerState

from infaas.observe.metrics import Metrics
from infaas.observe.trace import Tracing
from infaas.settings import Settings


@dataclass(frozen=True)
class Serving:
    service: Any
    http: str
    grpc: str
    metrics: Metrics
    grpc_server: GrpcServer
    bulk: Bulk
    state: ServerState
    """Of the server for HTTP: its connections among others."""
    fast: FastInfer | None = None


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def serving(
    service: Any,
    settings: Settings | None = None,
    routers: tuple[Any, ...] = (),
    tracing: Tracing | None = None,
    limits: Limits | None = None,
    bulk_options: Mapping[str, Any] | None = None,
    *,
    has_fast_way: bool = True,
) -> AsyncIterator[Serving]:
    settings = settings or Settings()
    metrics = Metrics()
    bulk = Bulk(observer=metrics, **(bulk_options or {}))
    app = create_app(service, settings, routers, metrics, tracing=tracing, bulk=bulk)
    grpc_server = GrpcServer(service, settings, metrics, tracing=tracing, bulk=bulk, has_memory=has_fast_way)
    grpc_port = await grpc_server.start("127.0.0.1", 0)
    async with _http(app, limits, app.fast if has_fast_way else None) as (http, state):
        try:
            yield Serving(service, http, f"127.0.0.1:{grpc_port}", metrics, grpc_server, bulk, state, app.fast)
        finally:
            await grpc_server.stop(0.5)
            await bulk.close()


@asynccontextmanager
async def _http(app: Any, limits: Limits | None, fast: FastInfer | None) -> AsyncIterator[tuple[str, ServerState]]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = server_config(app, limits, fast, loop="none")
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]), name="uvicorn")
    await server.listening.wait()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", server.server_state
    finally:
        server.should_exit = True
        await task
        listener.close()
