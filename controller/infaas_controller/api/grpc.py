"""The Open Inference Protocol over gRPC, with the same meaning as REST, and the standard health service.

Handlers are generic: they are served under the protocol's public names with messages from our own package. What REST
says in answer headers is in the trailing metadata of every call, successful or not; an error's slug is there as
`x-infaas-code`. A call's deadline and cancellation reach the query through cancellation of its handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from infaas.clock import Clock, SystemClock
from infaas.domain.query import AccuracyConfidence, Code
from infaas.domain.task import Task
from infaas.errors import InfaasError, NotFoundError, SettingsError, UnsupportedError
from infaas.observe.metrics import Metrics
from infaas.observe.trace import Tracing
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.edges import as_error, edge_of, retry_after_s, status_text
from infaas.rpc.requirements import PREFIX
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_grpc import decode_request, encode_answer, parse_message, read_parameters
from infaas.settings import Settings
from infaas_controller.api import documents, stats
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.bulk.weigh import LargeMessage, read_infer, read_infer_of_stream
from infaas_controller.api.grpc_health import Health
from infaas_controller.api.grpc_messages import checked, reader
from infaas_controller.api.grpc_stream import QueryStream
from infaas_controller.api.headers import REQUEST_ID, answer_fields, error_fields, read_caller
from infaas_controller.api.intake import find_task, parse_version
from infaas_controller.api.repository import Repository
from infaas_controller.api.service import ExplainLookup, Inference, Ticket
from infaas_controller.api.spans import QuerySpans
from infaas_controller.ports import QueryService

SERVICE = "inference.GRPCInferenceService"
CODE_KEY = "x-infaas-code"
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

Handler = Callable[[Any, Any], Awaitable[Any]]


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
    ) -> None:
        """`bulk` is the caller's to close; without it large requests are read on the loop."""
        clock = clock or SystemClock()
        self._settings = settings
        self._authenticator = Authenticator(settings.token())
        confidence = AccuracyConfidence(settings.controller.accuracy_confidence)
        spans = None if tracing is None else QuerySpans(tracing, "grpc")
        self._inference = Inference(service, clock, confidence, metrics, explain_lookup, spans, bulk)
        self._models = ModelCalls(service, Repository(service, clock))
        self.health = Health(service.is_ready, (SERVICE,))
        self._server: Any = None

    async def start(self, host: str | None = None, port: int | None = None, *, is_shared: bool = False) -> int:
        """Listen, on a port `is_shared` with other processes or alone; returns the port (the one picked, for 0).

        Raises SettingsError when it cannot be had.
        """
        host = self._settings.controller.host if host is None else host
        port = self._settings.controller.grpc_port if port is None else port
        limit = self._settings.controller.max_body_bytes + MESSAGE_SLACK
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_allowed_incoming_connections", self._settings.controller.max_connections),
                # A taken port must be an error, not a silent share of its calls; one to share was taken by our master.
                ("grpc.so_reuseport", int(is_shared)),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        server.add_generic_rpc_handlers((self._handlers(), self.health.handlers()))
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            bound = server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            raise SettingsError(f"gRPC cannot listen on {shown}:{port} (controller.grpc_port): {error}") from error
        if bound == 0:
            raise SettingsError(f"gRPC cannot listen on {shown}:{port} (controller.grpc_port); is the port taken?")
        await server.start()
        self._server = server
        return int(bound)

    def drain(self) -> None:
        """Report not-ready to every watcher, before the listener closes (SURFACE rule 17)."""
        self.health.drain()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run get `grace_s`, then they are cancelled."""
        self.drain()
        if self._server is not None:
            await self._server.stop(grace_s)

    def _handlers(self) -> Any:
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            name: unary(self._guarded(handler), reader(kind), lambda message: message.SerializeToString())
            for name, (kind, handler) in self._models.table().items()
        }
        handlers["ModelInfer"] = unary(self._infer, read_infer, pb.ModelInferResponse.SerializeToString)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, read_infer_of_stream, pb.ModelStreamInferResponse.SerializeToString
        )
        for name, text in _UNSUPPORTED.items():
            handlers[name] = unary(self._guarded(_refusing(text)))
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, handler: Handler) -> Handler:
        """A control call: credential, errors in our words, the request id back."""
        is_open = handler in (self._models.live, self._models.ready)

        async def call(request: Any, context: Any) -> Any:
            ticket = self._inference.ticket("")
            try:
                headers = read_metadata(context)
                ticket.caller = read_caller(headers)
                if not is_open:
                    self._authenticator.check(headers.get("authorization"))
                answer = await handler(checked(request), context)
            except Exception as exception:
                error = as_error(exception, ticket.caller.request_id)
                await _abort(context, error, ticket, is_query=False)
            context.set_trailing_metadata(tuple(answer_fields(ticket.caller, None)))
            return answer

        return call

    async def _infer(self, request: Any, context: Any) -> Any:
        ticket = self._inference.ticket(request.model_name)
        remaining_s = context.time_remaining()
        error: InfaasError | None = None
        answer: Any = None
        try:
            headers = read_metadata(context)
            ticket.caller = read_caller(headers, request.id)
            self._authenticator.check(headers.get("authorization"))
            answer = await self._answer(ticket, checked(request), headers, remaining_s)
        except asyncio.CancelledError:
            self._inference.count(ticket, InfaasError("cancelled", code=Code.CANCELLED))
            raise
        except Exception as exception:
            error = as_error(exception, ticket.caller.request_id)
        self._inference.count(ticket, error)
        if error is not None:
            try:
                await _abort(context, error, ticket, is_query=True)
            finally:
                error = None  # its traceback holds this frame: a cycle per refusal would wait for a full collection
        context.set_trailing_metadata(tuple(answer_fields(ticket.caller, ticket.outcome)))
        return answer

    async def _answer(self, ticket: Ticket, message: Any, headers: dict[str, str], remaining_s: float | None) -> Any:
        task = find_task(self._inference.service.view, ticket.handle)
        version = parse_version(message.model_version)
        if isinstance(message, LargeMessage):
            request = await self._read_large(message, ticket, task, headers, remaining_s)
        else:
            request = decode_request(message)
        served = await self._inference.run(ticket, version, task, request, headers, time_remaining_s=remaining_s)
        return encode_answer(
            [tensor for tensor, _ in served.outputs],
            model_name=message.model_name,
            model_version=served.version,
            id=message.id,
            parameters=served.parameters,
        )

    async def _read_large(
        self, message: LargeMessage, ticket: Ticket, task: Task, headers: dict[str, str], remaining_s: float | None
    ) -> InferRequest:
        bulk = self._inference.bulk
        if bulk is None:
            return decode_request(parse_message(message.data))
        parameters = read_parameters(message.head.parameters)
        within_s = self._inference.reading_s(ticket, task, headers, parameters, remaining_s)
        return await bulk.read_grpc(message.data, within_s)

    async def _stream(self, requests: Any, context: Any) -> None:
        """Metadata holds for every request of the stream. The call's deadline is the stream's, so it is no query's
        objective."""
        opening = self._inference.ticket("")
        try:
            headers = read_metadata(context)
            opening.caller = read_caller(headers)
            self._authenticator.check(headers.get("authorization"))

            async def answer(message: Any) -> Any:
                return await self._one_of_stream(message, headers)

            context.set_trailing_metadata(tuple(answer_fields(opening.caller, None)))
            await QueryStream(answer, context.write, self.health.draining).serve(requests)
        except InfaasError as error:
            await _abort(context, error, opening, is_query=False)

    async def _one_of_stream(self, message: Any, headers: dict[str, str]) -> Any:
        ticket = self._inference.ticket(message.model_name)
        # A stream's own request id cannot tell its queries apart.
        own = {name: text for name, text in headers.items() if name != REQUEST_ID or not message.id}
        error: InfaasError | None = None
        answer: Any = None
        try:
            ticket.caller = read_caller(own, message.id)
            answer = await self._answer(ticket, message, headers, None)
            answer.parameters["triton_final_response"].bool_param = True
        except asyncio.CancelledError:
            self._inference.count(ticket, InfaasError("cancelled", code=Code.CANCELLED))
            raise
        except Exception as exception:
            error = as_error(exception, ticket.caller.request_id)
        self._inference.count(ticket, error)
        if error is None:
            return pb.ModelStreamInferResponse(infer_response=answer)
        failed = pb.ModelStreamInferResponse(error_message=error.text)
        failed.infer_response.id = message.id
        failed.infer_response.model_name = message.model_name
        failed.infer_response.parameters["code"].string_param = error.code.value
        if ticket.outcome is not None:
            failed.infer_response.parameters["decision_id"].string_param = ticket.outcome.decision_id
        return failed


class ModelCalls:
    """Every unary call but infer; the documents are REST's, in messages."""

    def __init__(self, service: QueryService, repository: Repository) -> None:
        self._service = service
        self._repository = repository

    def table(self) -> dict[str, tuple[Any, Handler]]:
        return {
            "ServerLive": (pb.ServerLiveRequest, self.live),
            "ServerReady": (pb.ServerReadyRequest, self.ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server),
            "ModelMetadata": (pb.ModelMetadataRequest, self.metadata),
            "ModelConfig": (pb.ModelConfigRequest, self.config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self.stats),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self.index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self.load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self.unload),
        }

    async def live(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.is_ready())

    async def model_ready(self, request: Any, context: Any) -> Any:
        """An unknown name is not ready rather than an error: what Triton's clients expect of this one question."""
        try:
            is_ready, _ = self._repository.is_ready(request.name, parse_version(request.version))
        except NotFoundError:
            is_ready = False
        return pb.ModelReadyResponse(ready=is_ready)

    async def server(self, request: Any, context: Any) -> Any:
        return ParseDict(documents.server_metadata(), pb.ServerMetadataResponse())

    async def metadata(self, request: Any, context: Any) -> Any:
        return ParseDict(documents.metadata(self._resolved(request)), pb.ModelMetadataResponse())

    async def config(self, request: Any, context: Any) -> Any:
        return ParseDict({"config": documents.config(self._resolved(request))}, pb.ModelConfigResponse())

    async def stats(self, request: Any, context: Any) -> Any:
        index, counters = self._repository.index(), self._service.stats()
        if request.name:
            rows = stats.statistics(index, counters, request.name, parse_version(request.version))
        else:
            rows = stats.all_statistics(index, counters)
        return ParseDict({"model_stats": rows}, pb.ModelStatisticsResponse())

    async def index(self, request: Any, context: Any) -> Any:
        rows = documents.repository_index(self._repository.index(), request.ready)
        return ParseDict({"models": rows}, pb.RepositoryIndexResponse())

    async def load(self, request: Any, context: Any) -> Any:
        await self._repository.load(request.model_name, dict.fromkeys(request.parameters, True))
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: Any, context: Any) -> Any:
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _resolved(self, request: Any) -> documents.Handle:
        return documents.resolve(self._repository.index(), request.name, parse_version(request.version))


def read_metadata(context: Any) -> dict[str, str]:
    """A call's metadata as REST's headers are read: a key sent twice is joined. No key of ours is binary: one that
    pretends to be is kept for its name, which is refused, and others are nobody's here."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[key] = f"{found[key]}, {value}" if key in found else value
        elif key.startswith(PREFIX):
            found[key] = ""
    return found


def _refusing(text: str) -> Handler:
    async def refuse(request: Any, context: Any) -> Any:
        raise UnsupportedError(text)

    return refuse


async def _abort(context: Any, error: InfaasError, ticket: Ticket, *, is_query: bool) -> None:
    """Ends the call: always raises."""
    fields = answer_fields(ticket.caller, ticket.outcome) + error_fields(error, is_query=is_query)
    fields.append((CODE_KEY, error.code.value))
    wait_s = retry_after_s(error)
    if wait_s is not None and error.is_retryable:
        # What gRPC's own retry policies obey.
        fields.append(("grpc-retry-pushback-ms", str(int(wait_s * 1000))))
    await context.abort(grpc.StatusCode[edge_of(error.code).grpc], status_text(error.text), tuple(fields))
