"""`grpc.health.v1`: Check and Watch follow the readiness of the query path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE = "grpc.health.v1.Health"
LOOK_EVERY_S = 0.5
"""How long a change of readiness may go unseen by a watcher; draining is told at once."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """`services` are the names that a probe may ask for, besides the empty one."""

    def __init__(self, is_ready: Callable[[], bool], services: Sequence[str]) -> None:
        self._is_ready = is_ready
        self._names = frozenset({"", *services})
        self.draining = asyncio.Event()
        """Set for good once `drain` was called."""

    def drain(self) -> None:
        """Not ready from now on; every watcher hears it and its stream ends."""
        self.draining.set()

    def handlers(self) -> Any:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self.check, health_pb2.HealthCheckRequest.FromString, _Status.SerializeToString
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.watch, health_pb2.HealthCheckRequest.FromString, _Status.SerializeToString
                ),
            },
        )

    async def check(self, request: Any, context: Any) -> Any:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return _Status(status=self._status())

    async def watch(self, request: Any, context: Any) -> None:
        """Says the state now and at every change; SERVICE_UNKNOWN for a name that is not served."""
        told: int | None = None
        is_known = request.service in self._names
        while True:
            status = self._status() if is_known else _Status.SERVICE_UNKNOWN
            if status != told:
                await context.write(_Status(status=status))
                told = status
            if self.draining.is_set():
                return
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self.draining.wait()
            except TimeoutError:
                continue

    def _status(self) -> int:
        is_serving = not self.draining.is_set() and self._is_ready()
        return int(_Status.SERVING if is_serving else _Status.NOT_SERVING)
