"""Queries over gRPC, in calls and in streams: from a message's bytes to a query, and from its answer to bytes.

Messages pass gRPC's machinery as bytes. One that is known but for its id and values (`grpc_way`) is never parsed; the
generated class reads the others, and teaches.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from infaas.domain.query import Code, Query
from infaas.domain.task import Task
from infaas.errors import InfaasError, InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.edges import as_error
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_grpc import (
    decode_message,
    decode_request,
    encode_answer,
    encode_stream_answer,
    read_parameters,
)
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.weigh import LargeMessage, may_be_large_answer, read_infer
from infaas_controller.api.grpc_errors import abort
from infaas_controller.api.grpc_way import CallHead, Calls, Cut, Metadata, cut
from infaas_controller.api.headers import REQUEST_ID, answer_fields, read_caller
from infaas_controller.api.intake import find_task, parse_version
from infaas_controller.api.service import Inference, Served, Ticket
from infaas_controller.ports import QueryFailedError


class Call(NamedTuple):
    """What its metadata say of the queries of a call."""

    head: CallHead
    fields: dict[str, str]
    named: dict[str, str]
    """The same for queries that have an id."""


class Asked:
    """A query's message, and what was found out about it so far."""

    __slots__ = ("call", "data", "id", "remaining_s", "ticket")

    def __init__(self, call: Call, data: bytes, ticket: Ticket, remaining_s: float | None) -> None:
        self.call = call
        self.data = data
        self.ticket = ticket
        self.remaining_s = remaining_s
        """Until the call's deadline; None where there is none, or where it is the stream's."""
        self.id = ""


class Wanted(NamedTuple):
    """What is wanted, and what the answer is made with."""

    task: Task
    request: InferRequest
    query: Query
    is_plain: bool
    """Whether its answer can be written on the loop."""


class GrpcInfer:
    """One per server: what its calls and streams share."""

    def __init__(self, inference: Inference, authenticator: Authenticator, *, has_memory: bool = True) -> None:
        """`has_memory` False: every message is read by the generated class."""
        self.inference = inference
        self._authenticator = authenticator
        self._calls = Calls()
        self._has_memory = has_memory and not inference.is_traced

    # Calls

    async def serve(self, data: bytes, context: Any) -> bytes:
        """A unary call. Answers every request exactly once, and counts it; cancellation drops the query."""
        ticket = self.inference.ticket("")
        error: InfaasError | None = None
        answer = b""
        try:
            answer = await self._answer(ticket, data, context)
        except asyncio.CancelledError:
            self.inference.count(ticket, InfaasError("cancelled", code=Code.CANCELLED))
            raise
        except Exception as exception:
            if isinstance(exception, QueryFailedError):
                ticket.outcome = exception.outcome
            error = as_error(exception, ticket.caller.request_id)
        self.inference.count(ticket, error)
        if error is not None:
            try:
                await abort(context, error, ticket, is_query=True)
            finally:
                error = None  # its traceback holds this frame: a cycle per refusal would wait for a full collection
        context.set_trailing_metadata(tuple(answer_fields(ticket.caller, ticket.outcome)))
        return answer

    async def _answer(self, ticket: Ticket, data: bytes, context: Any) -> bytes:
        head, fields = self._calls.head_of(context.invocation_metadata())
        asked = Asked(Call(head, fields, fields), data, ticket, context.time_remaining())
        try:
            found = self.prepared(asked)
        except DecodeError as error:
            ticket.caller = read_caller(fields)
            self._authenticator.check(fields.get("authorization"))
            raise InvalidError(f"the message is not a ModelInferRequest: {error}") from None
        work = found if isinstance(found, Wanted) else await self.read_large(asked, found)
        if work.is_plain:
            answer = await self.inference.service.submit(work.query)
            ticket.outcome = answer.outcome
            served = self.inference.served(answer, work.query, work.request, work.task)
        else:
            served = await self.inference.answered(ticket, work.task, work.request, work.query)
        return encode_answer(
            [tensor for tensor, _ in served.outputs],
            model_name=ticket.handle,
            model_version=served.version,
            id=asked.id,
            parameters=served.parameters,
        )

    # Streams

    def opened(self, ticket: Ticket, metadata: Metadata | None) -> Call:
        """Of a stream, whose metadata hold for all its queries. Its own request id cannot tell these apart, so those
        that have an id go by it. Raises InfaasError."""
        head, fields = self._calls.head_of(metadata)
        ticket.caller = read_caller(fields)
        self._authenticator.check(fields.get("authorization"))
        named = fields
        if REQUEST_ID in fields:
            named = {name: text for name, text in fields.items() if name != REQUEST_ID}
        return Call(head, fields, named)

    def stream_answer(self, asked: Asked, served: Served) -> bytes:
        return encode_stream_answer(
            [tensor for tensor, _ in served.outputs],
            model_name=asked.ticket.handle,
            model_version=served.version,
            id=asked.id,
            parameters={**served.parameters, "triton_final_response": True},
        )

    def stream_failure(self, asked: Asked, error: InfaasError) -> bytes:
        """The answer of a query that has none."""
        outcome = asked.ticket.outcome
        failed = pb.ModelStreamInferResponse(error_message=error.text)
        failed.infer_response.id = asked.id
        failed.infer_response.model_name = asked.ticket.handle
        failed.infer_response.parameters["code"].string_param = error.code.value
        if outcome is not None:
            failed.infer_response.parameters["decision_id"].string_param = outcome.decision_id
        return bytes(failed.SerializeToString())

    # From a message to a query

    def prepared(self, asked: Asked) -> Wanted | LargeMessage:
        """The query, or a message that is too much for the loop (`read_large`). Raises InfaasError, and DecodeError for
        bytes that are no message."""
        begun = cut(asked.data) if self._has_memory else None
        if begun is not None:
            work = self._known(asked, begun)
            if work is not None:
                return work
        message = read_infer(asked.data)
        asked.id = message.head.id
        self._named(asked, message.head.model_name)
        task, version = self._task(asked), parse_version(message.head.model_version)
        if isinstance(message, LargeMessage):
            return message
        return self._wanted(asked, begun, task, version, decode_request(message.head, message.raw))

    async def read_large(self, asked: Asked, message: LargeMessage) -> Wanted:
        """Raises InfaasError."""
        inference, version = self.inference, parse_version(message.head.model_version)
        if inference.bulk is None:
            request = decode_message(message.data)
        else:
            parameters = read_parameters(message.head.parameters)
            fields, task = asked.call.fields, self._task(asked)
            within_s = inference.reading_s(asked.ticket, task, fields, parameters, asked.remaining_s)
            request = await inference.bulk.read_grpc(message.data, within_s)
        return self._wanted(asked, None, self._task(asked), version, request)  # reading took time

    def _known(self, asked: Asked, begun: Cut) -> Wanted | None:
        """None: nothing is known that it is like."""
        data, ticket, has_deadline = asked.data, asked.ticket, asked.remaining_s is not None
        form = self._calls.form_of(asked.call.head, begun, data, has_deadline=has_deadline)
        if form is None or not form.known.is_said_by(data, begun.begin):
            return None
        asked.id = begun.id
        self._named(asked, form.handle)
        known, task = form.known, self._task(asked)
        if known.task is not task:
            return None
        query = self.inference.query_like(
            ticket, form.version, known.inputs(data, begun.begin), known.outline, known.wanted,
            time_remaining_s=asked.remaining_s,
        )  # fmt: skip
        return Wanted(task, known.request, query, is_plain=True)

    def _named(self, asked: Asked, handle: str) -> None:
        """Who asks for what."""
        call, ticket = asked.call, asked.ticket
        ticket.handle = handle
        if asked.id or call.fields is not call.head.fields:
            ticket.caller = read_caller(call.named if asked.id else call.fields, asked.id)
        self._authenticator.check(call.fields.get("authorization"))

    def _task(self, asked: Asked) -> Task:
        return find_task(self.inference.service.view, asked.ticket.handle)

    def _wanted(
        self, asked: Asked, begun: Cut | None, task: Task, version: int | None, request: InferRequest
    ) -> Wanted:
        """`begun` None: the query teaches nothing."""
        inference, ticket, call, has_deadline = self.inference, asked.ticket, asked.call, asked.remaining_s is not None
        wanted = inference.wanted(ticket.handle, task, request, call.fields, has_deadline=has_deadline)
        query = inference.query(
            ticket, version, task, request, call.fields, time_remaining_s=asked.remaining_s, requirements=wanted
        )
        is_plain = not may_be_large_answer(request, task, query.items)
        if begun is not None and is_plain:
            self._calls.learn(
                call.head, begun, asked.data, task, request, query, wanted, has_deadline=has_deadline
            )  # fmt: skip
        return Wanted(task, request, query, is_plain)
