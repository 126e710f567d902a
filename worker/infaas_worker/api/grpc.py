"""The worker's seldom asked calls, over gRPC: core leases for the profiler, drain and resume."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc
import grpc.aio

from infaas.errors import InfaasError, InvalidError, UnauthenticatedError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.edges import EDGES
from infaas.rpc.v1 import worker_pb2, worker_pb2_grpc
from infaas.tokens import Tokens
from infaas_worker.api.auth import refusal
from infaas_worker.instances import Instances

_log = get_logger(__name__)
MAX_LEASE_S = 1.0
"""A lease may not keep queries waiting for longer, whatever was asked for."""
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]  # generated, untyped
    """Lives on the event loop; `begin_stop` refuses new calls before the listener closes."""

    def __init__(self, instances: Instances, tokens: Tokens) -> None:
        self._instances = instances
        self._tokens = tokens
        self._is_stopping = False

    def begin_stop(self) -> None:
        self._is_stopping = True

    async def LeaseCores(self, request: worker_pb2.LeaseCoresRequest, context: grpc.aio.ServicerContext) -> None:  # noqa: N802  # the protocol's name
        await self._admit(context)
        cores = self._instances.serving.cores
        if not 1 <= request.cores <= cores:
            await _abort(context, InvalidError(f"{request.cores} cores are asked for, this worker leases 1 to {cores}"))
        if request.max_s <= 0:
            await _abort(context, InvalidError(f"max_s must be above 0, got {request.max_s}"))
        max_s = min(request.max_s, MAX_LEASE_S)
        key, granted = self._instances.ask_cores(request.cores, max_s)
        try:
            ids = await granted
            await context.write(worker_pb2.CoreLease(core_ids=ids))
            async with asyncio.timeout(max_s):
                await asyncio.get_running_loop().create_future()  # until the caller ends the stream
        except TimeoutError:
            _log.debug("lease ran out", holder=request.holder)
        finally:
            self._instances.end_lease(key)

    async def Drain(self, request: worker_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> worker_pb2.DrainReply:  # noqa: N802  # the protocol's name
        await self._admit(context)
        self._instances.begin_drain(request.reason or "asked for")
        return worker_pb2.DrainReply()

    async def Resume(  # noqa: N802  # the protocol's name
        self, request: worker_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.ResumeReply:
        await self._admit(context)
        self._instances.end_drain()
        return worker_pb2.ResumeReply()

    async def _admit(self, context: grpc.aio.ServicerContext) -> None:
        if not self._tokens.accepts_metadata(context.invocation_metadata()):
            await _abort(context, UnauthenticatedError(refusal(context.invocation_metadata())))
        if self._is_stopping:
            await _abort(context, UnavailableError("the worker is stopping"))


async def _abort(context: grpc.aio.ServicerContext, error: InfaasError) -> NoReturn:
    await context.abort(getattr(grpc.StatusCode, EDGES[error.code].grpc), error.text)
    raise error  # abort never returns
