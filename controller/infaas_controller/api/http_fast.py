"""Queries without an ASGI cycle and without a task: from a whole HTTP request to the service, and back in one write.

It serves what `http_way` calls usual, by the same steps and in the same words as `http_infer`, which serves the rest. A
connection that is lost drops its query; the service calls back when the query has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from infaas.domain.query import Query
from infaas.domain.task import Task
from infaas.errors import InfaasError
from infaas.rpc.edges import as_error
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import answer_parts, decode_raw_request, decode_request
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.weigh import is_large_body, may_be_large_answer
from infaas_controller.api.headers import REQUEST_ID, answer_lines, lines_of, read_caller
from infaas_controller.api.http_infer import (
    BINARY_TYPE,
    JSON_TYPE,
    CallerLeftError,
    failed,
    header_length,
)
from infaas_controller.api.http_transport import JOIN_BYTES
from infaas_controller.api.http_way import HEADER_LENGTH, Head, Heads, RawFields
from infaas_controller.api.intake import check_json_outputs, find_task, parse_version
from infaas_controller.api.known import Known, known_json
from infaas_controller.api.service import Inference, Ticket
from infaas_controller.ports import Answer, QueryFailedError, Waiter

Buffer = bytes | memoryview
_UNSTATED = frozenset(("binary_data_output",))
"""Parameters of a request that state no requirement."""


class Connection(Protocol):
    """What an exchange needs of the connection that it came by."""

    def answer(self, exchange: Exchange, pieces: Sequence[Buffer]) -> None:
        """Write an answer, the pieces being all of it, and go on to the next request."""

    @property
    def standing_fields(self) -> list[tuple[bytes, bytes]]:
        """What goes with every answer; another list when it is anything else."""


class FastInfer:
    """One per application: what its exchanges share."""

    def __init__(
        self, inference: Inference, authenticator: Authenticator, max_body_bytes: int, max_json_bytes: int
    ) -> None:
        self.inference = inference
        self._authenticator = authenticator
        self._max_body_bytes = max_body_bytes
        self._max_json_bytes = max_json_bytes
        self._heads = Heads()
        self._standing: tuple[list[tuple[bytes, bytes]], bytes] | None = None

    def exchange(self, connection: Connection, target: bytes, raw: RawFields) -> Exchange | None:
        """For a `POST` in HTTP/1.1 whose header is whole; None: it goes the ordinary way."""
        found = self._heads.of(target, raw)
        if found is None or found[0].body_bytes > self._max_body_bytes:
            return None
        return Exchange(self, connection, *found)

    def exchange_of(self, connection: Connection, data: bytes) -> Exchange | None:
        """For a piece that is one whole request with a header that came before; None: it must be parsed."""
        found = self._heads.as_sent(data)
        if found is None:
            return None
        head, body = found
        exchange = Exchange(self, connection, head, head.fields)
        exchange.add(body)
        return exchange

    def remember(self, data: bytes, head: Head) -> None:
        """`data` was one whole request of this head, and its fields were the head's."""
        self._heads.remember(data, head)

    def opened(self, ticket: Ticket, head: Head, fields: dict[str, str]) -> tuple[Task, int | None]:
        """What is looked at before a body is read. Raises InfaasError."""
        if fields is not head.fields:
            ticket.caller = read_caller(fields)
        self._authenticator.check(fields.get("authorization"))
        return find_task(self.inference.service.view, ticket.handle), parse_version(head.version)

    def decoded(self, body: bytes, length: int | None, task: Task) -> InferRequest | None:
        """None: it is too much for the loop, or for us. Raises InfaasError."""
        if length == 0:
            return decode_raw_request(body, task.inputs)
        if (len(body) if length is None else length) > self._max_json_bytes:
            return None
        if self.inference.bulk is not None and is_large_body(memoryview(body), length):
            return None
        return decode_request(body, length)

    def head_of(self, connection: Connection, status: int, lines: str, size: int, *, keeps_alive: bool) -> bytes:
        """`lines` are header fields as HTTP/1.1 writes them."""
        end = "" if keeps_alive else "connection: close\r\n"
        own = f"{lines}content-length: {size}\r\n{end}\r\n".encode("latin-1")
        return b"".join((STATUS_LINE[status], self._standing_lines(connection.standing_fields), own))

    def _standing_lines(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        if self._standing is None or self._standing[0] is not fields:
            self._standing = fields, b"".join([b"%s: %s\r\n" % field for field in fields])
        return self._standing[1]


class Exchange(Waiter):
    """One request and its answer. To the connection it is what uvicorn's cycle is for an ordinary request, and has the
    names that uvicorn's protocol knows one by."""

    __slots__ = (
        "_body", "_connection", "_drop", "_failure", "_fast", "_fields", "_head", "_is_checked", "_ticket",
        "_work", "disconnected", "keep_alive", "more_body", "response_complete", "response_started",
    )  # fmt: skip

    def __init__(self, fast: FastInfer, connection: Connection, head: Head, fields: dict[str, str]) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self._fast = fast
        self._connection = connection
        self._head = head
        self._fields = fields
        self._body: bytes | bytearray = b""
        self._ticket = fast.inference.ticket(head.handle)
        self._is_checked = False
        self._drop: Callable[[], None] | None = None
        self._failure: Exception | None = None
        self._work: _Work | None = None

    # The request

    def learn_from(self, data: bytes) -> None:
        """It came in this one piece, which held nothing else; the connection goes on after it."""
        if self._fields is self._head.fields:
            self._fast.remember(data, self._head)

    @property
    def message_event(self) -> Exchange:
        return self

    def set(self) -> None:
        """Somebody has changed the state: the caller has left, if anything."""
        if self.disconnected and not self.response_complete:
            self._leave()

    def add(self, body: bytes) -> None:
        if not self._body:
            self._body = body  # nearly always all of it
            return
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += body

    @property
    def body(self) -> bytes:
        """What has come of it."""
        return bytes(self._body)

    def is_worth_reading(self) -> bool:
        """Whether nothing speaks against the request before its body is here."""
        if not self._is_checked:
            try:
                self._fast.opened(self._ticket, self._head, self._fields)
            except InfaasError:
                return False
            self._is_checked = True
        return True

    def prepare(self) -> bool:
        """The body is whole. False: it must go the ordinary way after all, and nothing has happened."""
        self.more_body = False
        try:
            return self._prepared()
        except Exception as exception:
            self._failure = exception
            return True

    def _prepared(self) -> bool:
        fast, ticket, fields, head = self._fast, self._ticket, self._fields, self._head
        task, version = fast.opened(ticket, head, fields)
        body, length = self.body, header_length(fields)
        before = head.known
        if before is not None and before.is_like(task, body):
            return self._like(before, version, body)
        request = fast.decoded(body, length, task)
        if request is None:
            return False
        if request.id and REQUEST_ID not in fields:
            ticket.caller = read_caller(fields, request.id)
        check_json_outputs(request, task)
        requirements = None
        states_none = not request.parameters or request.parameters.keys() <= _UNSTATED
        if states_none:
            requirements = head.known_requirements(task.defaults)
        query = fast.inference.query(ticket, version, task, request, fields, requirements=requirements)
        if may_be_large_answer(request, task, query.items) or not fast.inference.service.can_begin(query):
            return False
        if states_none:
            head.remember(task.defaults, query.requirements)
        head.known = known_json(task, body, length, request, query)
        self._work = _Work(task, request, query)
        return True

    def _like(self, before: Known, version: int | None, body: bytes) -> bool:
        """The rest of `_prepared`, for what is known but for its values."""
        inference, ticket, request = self._fast.inference, self._ticket, before.request
        inputs = before.inputs(body)
        if request.id and REQUEST_ID not in self._fields:
            ticket.caller = read_caller(self._fields, request.id)
        query = inference.query_like(ticket, version, inputs, before.outline, before.wanted)
        if not inference.service.can_begin(query):
            return False
        self._work = _Work(before.task, request, query)
        return True

    def start(self) -> None:
        """Hand the query to the service, or answer what was wrong with it."""
        if self._failure is not None:
            self._fail(self._failure)
            return
        if self._work is None or self.done():
            return
        try:
            drop = self._fast.inference.service.begin(self._work.query, self)
        except Exception as exception:
            self._fail(exception)
            return
        if not self.done():
            self._drop = drop

    # The answer

    def done(self) -> bool:
        return self.response_started or self.disconnected

    def set_result(self, answer: Answer) -> None:
        work, self._drop = self._work, None
        if work is None:
            raise AssertionError("an exchange was answered that asked for nothing")
        try:
            self._ticket.outcome = answer.outcome
            lines, parts = self._encoded(answer, work)
        except Exception as exception:
            self._fail(exception)
            return
        self._fast.inference.count(self._ticket, None)
        self._write(200, lines, parts)

    def set_exception(self, error: Exception) -> None:
        self._fail(error)

    def _encoded(self, answer: Answer, work: _Work) -> tuple[str, Sequence[Buffer]]:
        served = self._fast.inference.served(answer, work.query, work.request, work.task)
        parts, head = answer_parts(
            served.outputs,
            model_name=self._ticket.handle,
            model_version=served.version,
            id=work.request.id,
            parameters=served.parameters,
        )
        lines = answer_lines(self._ticket.caller, served.outcome)
        if head is None:
            return f"{lines}content-type: {JSON_TYPE}\r\n", parts
        return f"{lines}content-type: {BINARY_TYPE}\r\n{HEADER_LENGTH}: {head}\r\n", parts

    def _fail(self, exception: Exception) -> None:
        self._drop = self._failure = None
        if isinstance(exception, QueryFailedError):
            self._ticket.outcome = exception.outcome
        error = as_error(exception, self._ticket.caller.request_id)
        status, fields, parts = failed(error, self._ticket)
        self._fast.inference.count(self._ticket, error)
        self._write(status, lines_of(fields), parts)

    def _write(self, status: int, lines: str, parts: Sequence[Buffer]) -> None:
        """A large answer is sent in the pieces that it consists of: joining them would copy it, on the loop."""
        size = sum(map(len, parts))
        head = self._fast.head_of(self._connection, status, lines, size, keeps_alive=self.keep_alive)
        self._forget()
        pieces: Sequence[Buffer] = (head, *parts)
        self._connection.answer(self, pieces if size > JOIN_BYTES else (b"".join(pieces),))

    def _leave(self) -> None:
        drop, self._drop = self._drop, None
        self.response_complete = True
        if drop is not None:
            drop()
        self._forget()
        self._fast.inference.count(self._ticket, CallerLeftError("the caller closed the connection"))

    def _forget(self) -> None:
        """An idle connection keeps its last exchange; it is not to keep what was sent."""
        self._work = self._failure = None
        self._body = b""


class _Work(NamedTuple):
    """What is wanted, and what the answer is made with."""

    task: Task
    request: InferRequest
    query: Query
