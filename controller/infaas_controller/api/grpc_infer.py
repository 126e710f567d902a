"""Queries over gRPC, in calls and in streams: from a message's bytes to a query, and from its answer to bytes.

Messages pass gRPC's machinery as bytes. One that is known but for its id and values (`grpc_way`) is never parsed; the
generated class reads the others, and teaches. Of those that are like one that has just been refused for want of time,
the values are not looked at either (`turned`).
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from infaas.domain.query import Code, Query, Requirements
from infaas.domain.task import Task
from infaas.errors import InfaasError, InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.edges import as_error
from infaas.rpc.requirements import bounded
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
from infaas_controller.api.grpc_known import Cut, cut, known
from infaas_controller.api.grpc_turned import TurnedCall
from infaas_controller.api.grpc_way import CallHead, Calls, Form, Metadata
from infaas_controller.api.headers import REQUEST_ID, answer_fields, read_caller
from infaas_controller.api.intake import find_task, parse_version, time_s
from infaas_controller.api.service import Inference, Served, Ticket
from infaas_controller.api.turned import CODES
from infaas_controller.ports import QueryFailedError


class Call(NamedTuple):
    """What its metadata say of the queries of a call."""

    head: CallHead
    fields: dict[str, str]
    named: dict[str, str]
    """The same for queries that have an id."""


class Asked:
    """A query's message, and what was found out about it so far."""

    __slots__ = ("call", "data", "form", "id", "remaining_s", "ticket")

    def __init__(self, call: Call, data: bytes, ticket: Ticket, remaining_s: float | None) -> None:
        self.call = call
        self.data = data
        self.ticket = ticket
        self.remaining_s = remaining_s
        """Until the call's deadline; None where there is none, or where it is the stream's."""
        self.id = ""
        self.form: Form | None = None
        """Once it is known, or has taught."""


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
        answer: bytes | TurnedCall = b""
        try:
            answer = await self._answer(ticket, data, context)
        except asyncio.CancelledError:
            self.inference.count(ticket, InfaasError("cancelled", code=Code.CANCELLED))
            raise
        except Exception as exception:
            if isinstance(exception, QueryFailedError):
                ticket.outcome = exception.outcome
            error = as_error(exception, ticket.caller.request_id)
        if isinstance(answer, TurnedCall):
            self.count_turned(ticket, answer)
            error, answer = answer.error, b""
        else:
            self.count(ticket, error)
        if error is not None:
            ending = abort(context, error, ticket, is_query=True)
            del data, context, error  # the call keeps what is raised, which keeps this frame: no cycle is to be left
            await ending
        context.set_trailing_metadata(tuple(answer_fields(ticket.caller, ticket.outcome)))
        return answer

    async def _answer(self, ticket: Ticket, data: bytes, context: Any) -> bytes | TurnedCall:
        head, fields = self._calls.head_of(context.invocation_metadata())
        asked = Asked(Call(head, fields, fields), data, ticket, context.time_remaining())
        try:
            found = self.prepared(asked)
        except DecodeError as error:
            ticket.caller = read_caller(fields)
            self._authenticator.check(fields.get("authorization"))
            raise InvalidError(f"the message is not a ModelInferRequest: {error}") from None
        if isinstance(found, TurnedCall):
            return found
        work = found if isinstance(found, Wanted) else await self.read_large(asked, found)
        if work.is_plain:
            try:
                answer = await self.inference.service.submit(work.query)
            except QueryFailedError as refusal:
                self.turn_away(asked, work.query, refusal)
                raise
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

    # What is counted

    def count(self, ticket: Ticket, error: InfaasError | None) -> None:
        """A query's end."""
        if error is None and ticket.outcome is not None:
            self.inference.count_answer(ticket, ticket.outcome)
        else:
            self.inference.count(ticket, error)

    def count_turned(self, ticket: Ticket, turned: TurnedCall) -> None:
        """The end of one that was turned away."""
        self.inference.count_turned(ticket.handle, ticket.priority, turned.code, slo_met=turned.outcome.slo_met)

    # Who is turned away

    def turn_away(self, asked: Asked, query: Query, refusal: QueryFailedError) -> None:
        """What a query was told goes for those like it that have no more time, for a moment."""
        form, now = asked.form, self.inference.clock.now()
        if form is None or refusal.code not in CODES:
            return
        before, turned = form.turned, TurnedCall(query, refusal, now)
        if before is not None:
            if now < before.until and before.within_s > turned.within_s:
                return
            self.inference.alike.over(before)
        form.turned = turned

    def _turned(self, asked: Asked, form: Form, turned: TurnedCall) -> TurnedCall | None:
        """Not None: it is told that, and nothing else happens."""
        wanted, ticket, left_s = form.known.requirements, asked.ticket, asked.remaining_s
        if self.inference.clock.now() >= turned.until:
            form.turned = None
            self.inference.alike.over(turned)
            return None
        if ticket.caller.traceparent is not None:
            return None
        within_s = time_s(wanted)
        if (within_s if left_s is None else min(within_s, left_s)) > turned.within_s:
            return None
        self.inference.alike.tell(turned)
        ticket.outcome = turned.outcome
        ticket.priority = wanted.priority
        return turned

    # From a message to a query

    def prepared(self, asked: Asked) -> Wanted | LargeMessage | TurnedCall:
        """The query, or a message that is too much for the loop (`read_large`), or what is told instead. Raises
        InfaasError, and DecodeError for bytes that are no message."""
        begun = cut(asked.data) if self._has_memory else None
        if begun is not None:
            found = self._known(asked, begun)
            if found is not None:
                return found
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

    def _known(self, asked: Asked, begun: Cut) -> Wanted | TurnedCall | None:
        """None: nothing is known that it is like."""
        data, left_s = asked.data, asked.remaining_s
        form = self._calls.form_of(asked.call.head, begun, data, has_deadline=left_s is not None)
        if form is None:
            return None
        asked.id = begun.id
        self._named(asked, form.known.handle)
        if form.turned is not None and (turned := self._turned(asked, form, form.turned)) is not None:
            return turned
        like, task = form.known, self._task(asked)
        if like.task is not task:
            return None
        asked.form = form
        wanted, inputs = bounded(like.requirements, left_s), like.inputs(data, begun.begin)
        basis = None if wanted is like.requirements else like.requirements
        ticket = asked.ticket
        ticket.priority, ticket.items = wanted.priority, like.outline.items
        query = self.inference.query_like(
            ticket.handle, form.version, inputs, like.outline, wanted, ticket.arrived_at, ticket.caller, basis
        )
        return Wanted(task, like.request, query, is_plain=True)

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
        work = Wanted(task, request, query, is_plain=not may_be_large_answer(request, task, query.items))
        if begun is not None and work.is_plain:
            self._learn(asked, begun, work, wanted)
        return work

    def _learn(self, asked: Asked, begun: Cut, work: Wanted, wanted: Requirements) -> None:
        """From a good query."""
        taught = known(work.task, asked.data, begun, work.request, work.query, wanted)
        if taught is None:
            return
        asked.form = Form(work.query.version, taught)
        has_deadline = asked.remaining_s is not None
        before = self._calls.remember(asked.call.head, begun, asked.data, asked.form, has_deadline=has_deadline)
        if before is not None and before.turned is not None:
            self.inference.alike.over(before.turned)
