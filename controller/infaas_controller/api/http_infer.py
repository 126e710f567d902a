"""`POST /v2/models/{m}[/versions/{v}]/infer`, served straight from ASGI: no framework between socket and query.

The body is read once and decoded in place. From then on the connection is watched until the answer is made: a caller
who leaves takes the query along, wherever it is. Header and body of the answer are handed to the server back to back:
`http_server` sends them as one.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from infaas.domain.query import Code
from infaas.domain.task import Task
from infaas.errors import InfaasError, InvalidError, TooLargeError
from infaas.rpc.edges import as_error, edge_of, error_body
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import answer_parts, decode_raw_request, decode_request
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.weigh import is_large_body, json_bytes
from infaas_controller.api.compression import coding_of, compressed
from infaas_controller.api.headers import (
    REQUEST_ID,
    Fields,
    answer_fields,
    error_fields,
    read_caller,
)
from infaas_controller.api.http_transport import JOIN_BYTES
from infaas_controller.api.http_way import HEADER_LENGTH, read_fields
from infaas_controller.api.intake import check_json_outputs, find_task, parse_version
from infaas_controller.api.service import Inference, Ticket

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_Encoded = tuple[int, Fields, Sequence[bytes | memoryview]]
"""Status, header fields and body of an answer."""
T = TypeVar("T")

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
INFLATE_IN_THREAD = 64 * 1024

_MODELS = "/v2/models/"
_INFER = "/infer"


class CallerLeftError(InfaasError):
    """The connection closed before the answer: nobody is there to read one."""

    code = Code.CANCELLED


def match_infer(path: str) -> tuple[str, str] | None:
    """The model and version of an infer path; version `""` when it names none."""
    if not path.endswith(_INFER) or not path.startswith(_MODELS):
        return None
    parts = path[len(_MODELS) : -len(_INFER)].split("/")
    if len(parts) == 1:
        return parts[0], ""
    if len(parts) == 3 and parts[1] == "versions":
        return parts[0], parts[2]
    return None


class InferEndpoint:
    def __init__(
        self, inference: Inference, authenticator: Authenticator, max_body_bytes: int, max_json_bytes: int
    ) -> None:
        self._inference = inference
        self._authenticator = authenticator
        self._max_body_bytes = max_body_bytes
        self._max_json_bytes = max_json_bytes

    async def serve(self, scope: Scope, receive: Receive, send: Send, name: str, version: str) -> None:
        """Answers every request exactly once, and counts it; cancellation of this call drops the query."""
        ticket = self._inference.ticket(name)
        watch = _Watch(receive)
        error: InfaasError | None = None
        try:
            status, fields, body = await self._answer(ticket, version, read_fields(scope["headers"]), watch)
        except asyncio.CancelledError:
            self._inference.count(ticket, CallerLeftError("cancelled"))
            raise
        except Exception as exception:
            error = as_error(exception, ticket.caller.request_id)
            status, fields, body = failed(error, ticket)
        self._inference.count(ticket, error)
        has_left = isinstance(error, CallerLeftError)
        error = None  # its traceback holds this frame: a cycle per refusal would wait for a full collection
        if not has_left:
            await _respond(send, status, fields, body)
        await watch.close()

    async def _answer(self, ticket: Ticket, version: str, headers: dict[str, str], watch: _Watch) -> _Encoded:
        ticket.caller = read_caller(headers)
        self._authenticator.check(headers.get("authorization"))
        task = find_task(self._inference.service.view, ticket.handle)
        number = parse_version(version)
        body = await self._body(headers, watch)
        return await watch.until_left(self._answer_to(body, ticket, number, task, headers))

    async def _answer_to(
        self, body: memoryview, ticket: Ticket, number: int | None, task: Task, headers: dict[str, str]
    ) -> _Encoded:
        length = header_length(headers)
        if length == 0:
            request = decode_raw_request(body, task.inputs)
        else:
            request = await self._decoded(body, length, ticket, task, headers)
        if request.id and REQUEST_ID not in headers:
            ticket.caller = read_caller(headers, request.id)
        check_json_outputs(request, task)
        served = await self._inference.run(ticket, number, task, request, headers)
        parts, head = answer_parts(
            served.outputs,
            model_name=ticket.handle,
            model_version=served.version,
            id=request.id,
            parameters=served.parameters,
            rendered=await self._inference.rendered(ticket, served),
        )
        fields = answer_fields(ticket.caller, served.outcome)
        if head is None:
            fields.append(("content-type", JSON_TYPE))
        else:
            fields += [("content-type", BINARY_TYPE), (HEADER_LENGTH, str(head))]
        coding = coding_of(headers.get("accept-encoding"))
        if coding is not None:
            parts = [await compressed(b"".join(parts), coding)]
            fields += [("content-encoding", coding), ("vary", "accept-encoding")]
        return 200, fields, parts

    async def _decoded(
        self, body: memoryview, header_length: int | None, ticket: Ticket, task: Task, headers: dict[str, str]
    ) -> InferRequest:
        size = json_bytes(body, header_length)
        if size > self._max_json_bytes:
            raise TooLargeError(
                f"the JSON has {size} bytes; at most {self._max_json_bytes} are taken "
                "(controller.max_json_bytes); send tensors as binary data"
            )
        bulk = self._inference.bulk
        if bulk is not None and is_large_body(body, header_length):
            return await bulk.read_rest(body, header_length, self._inference.reading_s(ticket, task, headers))
        return decode_request(body, header_length)

    async def _body(self, headers: dict[str, str], watch: _Watch) -> memoryview:
        limit = self._max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(int(length), limit)
        body = await watch.body(limit)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "deflate"):
            raise InvalidError(f"header 'content-encoding' is {encoding!r}; it must be 'gzip', 'deflate' or absent")
        if len(body) > INFLATE_IN_THREAD:
            return memoryview(await asyncio.to_thread(_inflate, body, limit))
        return memoryview(_inflate(body, limit))


class _Watch:
    """The receiving half of one request: its body, then word that the caller left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._has_left = False

    async def body(self, limit: int) -> memoryview:
        message = await self._next()
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(first) > limit:
                raise _too_large(len(first), limit)
            return memoryview(first)
        whole = bytearray(first)
        while message.get("more_body", False):
            if len(whole) > limit:
                raise _too_large(len(whole), limit)
            message = await self._next()
            whole += message.get("body", b"")
        if len(whole) > limit:
            raise _too_large(len(whole), limit)
        return memoryview(whole)

    async def until_left(self, work: Awaitable[T]) -> T:
        """Await `work`, which is cancelled when the caller leaves. Raises CallerLeftError then."""
        waiter = asyncio.current_task()
        if waiter is None:  # cannot be: coroutines run in tasks
            raise RuntimeError("no current task")
        self._task = asyncio.create_task(self._cancel_when_left(waiter), name="caller-watch")
        try:
            return await work
        except asyncio.CancelledError:
            if self._has_left and waiter.cancelling() == 1:
                raise CallerLeftError("the caller closed the connection") from None
            raise
        finally:
            # No await may come between the end of the work and this line: it keeps a late cancel out.
            self._task.cancel()
            if self._has_left:
                waiter.uncancel()

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})
            self._task = None  # it holds this object by its traceback

    async def _cancel_when_left(self, waiter: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        waiter.cancel()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerLeftError("the caller closed the connection")
        return message


def header_length(headers: Mapping[str, str]) -> int | None:
    """Bytes of JSON before the tensors' bytes; None: all of it is JSON. Raises InvalidError."""
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidError(f"header {HEADER_LENGTH!r} must be the JSON's length in bytes, not {text[:40]!r}")
    return int(text)


def _inflate(body: memoryview, limit: int) -> bytes:
    """gzip or zlib, never past the limit. Raises InvalidError for anything else, TooLargeError for a bomb."""
    machine = zlib.decompressobj(wbits=47)
    try:
        plain = machine.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidError(f"the body is not what its 'content-encoding' says: {error}") from None
    if len(plain) > limit:
        raise _too_large(len(plain), limit)
    if not machine.eof or machine.unused_data:
        raise InvalidError("the compressed body is cut short or has bytes after its end")
    return plain


def _too_large(size: int, limit: int) -> TooLargeError:
    return TooLargeError(f"the body has {size} bytes or more; at most {limit} are taken (controller.max_body_bytes)")


def failed(error: InfaasError, ticket: Ticket) -> _Encoded:
    """The answer of a query that has none."""
    outcome = ticket.outcome
    decision_id = None if outcome is None else outcome.decision_id
    fields = answer_fields(ticket.caller, outcome) + error_fields(error, is_query=True)
    fields.append(("content-type", JSON_TYPE))
    if error.code is Code.UNAUTHENTICATED:
        fields.append(("www-authenticate", "Bearer"))
    return edge_of(error.code).http, fields, [error_body(error, ticket.caller.request_id, decision_id)]


async def _respond(send: Send, status: int, fields: Fields, parts: Sequence[bytes | memoryview]) -> None:
    """A large answer is sent in the pieces that it consists of: joining them would copy it, on the loop."""
    size = sum(map(len, parts))
    if size <= JOIN_BYTES:
        parts = [b"".join(parts)]
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    headers.append((b"content-length", b"%d" % size))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": parts[-1]})
