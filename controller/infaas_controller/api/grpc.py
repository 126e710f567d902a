"""The Open Inference Protocol over gRPC, with the same meaning as REST, and the standard health service.

Handlers are generic: they are served under the protocol's public names with messages from our own package. What REST
says in answer headers is in the trailing metadata of every call, successful or not; an error's slug is there as
`x-infaas-code`. A call's deadline and cancellation reach the query through cancellation of its handler.
"""

from __future__ import annotations

from typing import Any

import grpc

from infaas.clock import Clock, SystemClock
from infaas.domain.query import AccuracyConfidence
from infaas.errors import InfaasError, UnsupportedError
from infaas.observe.metrics import Metrics
from infaas.observe.trace import Tracing
from infaas.rpc.edges import as_error
from infaas.settings import Settings
from infaas.tokens import callers_tokens
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.grpc_errors import abort
from infaas_controller.api.grpc_health import Health
from infaas_controller.api.grpc_infer import GrpcInfer
from infaas_controller.api.grpc_listener import GrpcListener
from infaas_controller.api.grpc_messages import checked, reader
from infaas_controller.api.grpc_models import Handler, ModelCalls
from infaas_controller.api.grpc_stream import QueryStream
from infaas_controller.api.grpc_way import read_metadata
from infaas_controller.api.headers import answer_fields, read_caller
from infaas_controller.api.repository import Repository
from infaas_controller.api.service import ExplainLookup, Inference
from infaas_controller.api.spans import QuerySpans
from infaas_controller.ports import QueryService

SERVICE = "inference.GRPCInferenceService"
MESSAGE_SLACK = 1 << 20
"""What a message may hold beside its tensors."""

_UNSUPPORTED = {
    name: text
    for text, names in {
        "shared memory is not served; send tensors in the request": (
            "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
        ),
        "trace settings are not served; `traceparent` is taken on every call": ("TraceSetting",),
        "log settings are not served; set log.level in the configuration": ("LogSettings",),
    }.items()
    for name in names
}  # fmt: skip


class GrpcServer:
    """Owns the listening server. `start` binds, `drain` says not-ready, `stop` finishes what runs and closes."""

    def __init__(
        self,
        service: QueryService,
        settings: Settings,
        metrics: Metrics | None = None,
        explain_lookup: ExplainLookup | None = None,
        *,
        clock: Clock | None = None,
        tracing: Tracing | None = None,
        bulk: Bulk | None = None,
        has_memory: bool = True,
    ) -> None:
        """`bulk` is the caller's to close; without it large requests are read on the loop. `has_memory` False: nothing
        that a query teaches is kept for the next."""
        clock = clock or SystemClock()
        self._settings = settings
        self._authenticator = Authenticator(callers_tokens(settings))
        confidence = AccuracyConfidence(settings.controller.accuracy_confidence)
        spans = None if tracing is None else QuerySpans(tracing, "grpc")
        inference = Inference(service, clock, confidence, metrics, explain_lookup, spans, bulk)
        self._infer = GrpcInfer(inference, self._authenticator, has_memory=has_memory)
        self._models = ModelCalls(service, Repository(service, clock))
        self.health = Health(service.is_ready, (SERVICE,))
        self._listener: GrpcListener | None = None

    async def start(self, host: str | None = None, port: int | None = None, *, is_shared: bool = False) -> int:
        """Listen, on a port `is_shared` with other processes or alone; returns the port (the one picked, for 0).

        Raises SettingsError when it cannot be had.
        """
        host = self._settings.controller.host if host is None else host
        port = self._settings.controller.grpc_port if port is None else port
        limit = self._settings.controller.max_body_bytes + MESSAGE_SLACK
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        handlers = (self._handlers(), self.health.handlers())
        connections = self._settings.controller.max_connections
        self._listener = GrpcListener(handlers, options, connections, is_shared=is_shared)
        return await self._listener.start(host, port)

    def drain(self) -> None:
        """Report not-ready to every watcher, before the listener closes (SURFACE rule 17)."""
        self.health.drain()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run get `grace_s`, then they are cancelled."""
        self.drain()
        if self._listener is not None:
            await self._listener.stop(grace_s)

    def _handlers(self) -> Any:
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            name: unary(self._guarded(handler), reader(kind), lambda message: message.SerializeToString())
            for name, (kind, handler) in self._models.table().items()
        }
        handlers["ModelInfer"] = unary(self._infer.serve)  # bytes in and out
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        for name, text in _UNSUPPORTED.items():
            handlers[name] = unary(self._guarded(_refusing(text)))
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, handler: Handler) -> Handler:
        """A control call: credential, errors in our words, the request id back."""
        is_open = handler in (self._models.live, self._models.ready)

        async def call(request: Any, context: Any) -> Any:
            ticket = self._infer.inference.ticket("")
            try:
                headers = read_metadata(context.invocation_metadata() or ())
                ticket.caller = read_caller(headers)
                if not is_open:
                    self._authenticator.check(headers.get("authorization"))
                answer = await handler(checked(request), context)
            except Exception as exception:
                await abort(context, as_error(exception, ticket.caller.request_id), ticket, is_query=False)
            context.set_trailing_metadata(tuple(answer_fields(ticket.caller, None)))
            return answer

        return call

    async def _stream(self, _: Any, context: Any) -> None:
        """The call's deadline is the stream's, so it is no query's objective."""
        opening = self._infer.inference.ticket("")
        try:
            call = self._infer.opened(opening, context.invocation_metadata())
            context.set_trailing_metadata(tuple(answer_fields(opening.caller, None)))
            await QueryStream(self._infer, call, context, self.health.draining).serve()
        except InfaasError as error:
            await abort(context, error, opening, is_query=False)


def _refusing(text: str) -> Handler:
    async def refuse(request: Any, context: Any) -> Any:
        raise UnsupportedError(text)

    return refuse
