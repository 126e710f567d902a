"""Queries without an ASGI cycle and without a task: from a whole HTTP request to the service, and back in one write.

It serves what `http_way` calls usual, by the same steps and in the same words as `http_infer`, which serves the rest. A
connection that is lost drops its query; the service calls back when the query has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from infaas.domain.cluster import ClusterView
from infaas.domain.query import Query
from infaas.domain.task import Task
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas.rpc.edges import as_error
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import answer_parts, decode_raw_request, decode_request
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.weigh import is_large_body, may_be_large_answer
from infaas_controller.api.headers import REQUEST_ID, answer_lines, fresh_request_id, lines_of, read_caller
from infaas_controller.api.http_infer import (
    BINARY_TYPE,
    JSON_TYPE,
    CallerLeftError,
    failed,
    header_length,
)
from infaas_controller.api.http_known import KnownBody, known
from infaas_controller.api.http_transport import JOIN_BYTES
from infaas_controller.api.http_turned import TurnedAway
from infaas_controller.api.http_way import HEADER_LENGTH, HEADS_KEPT, Head, Heads, RawFields
from infaas_controller.api.intake import check_json_outputs, find_task, parse_version
from infaas_controller.api.service import Inference, Ticket
from infaas_controller.api.turned import CODES
from infaas_controller.ports import Answer, QueryFailedError, Waiter

Buffer = bytes | memoryview
LESSONS = 8
"""Requests under one head that teach: when the next ones are still not like them, learning costs more than it saves."""
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
        self._opened_in: ClusterView | None = None
        self._opened: dict[Head, tuple[Task, int | None]] = {}
        """What was found for heads whose credential was good, in that view of the cluster."""
        self._standing: tuple[list[tuple[bytes, bytes]], bytes] | None = None

    def exchange(self, connection: Connection, target: bytes, raw: RawFields) -> Exchange | None:
        """For a `POST` in HTTP/1.1 whose header is whole; None: it goes the ordinary way."""
        found = self._heads.of(target, raw)
        if found is None or found[0].body_bytes > self._max_body_bytes:
            return None
        return Exchange(self, connection, *found)

    def exchange_of(self, connection: Connection, data: bytes) -> Exchange | bytes | None:
        """For a piece that is one whole request with a header that came before; None: it must be parsed. Bytes are the
        answer to a query that was turned away, which is all that there is to it."""
        found = self._heads.as_sent(data)
        if found is None:
            return None
        head, body = found
        if head.turned is not None and (answer := self._turned_away(head, head.turned, body)) is not None:
            return answer
        exchange = Exchange(self, connection, head, head.fields)
        exchange.add(body)
        return exchange

    def _turned_away(self, head: Head, turned: TurnedAway, body: bytes) -> bytes | None:
        if self.inference.clock.now() >= turned.until:
            head.turned = None
            self.inference.service.note_alike(turned.decision_id, turned.count)
            return None
        if head.known is None or not head.known.inputs.suits(body):
            return None
        answer = turned.answer(fresh_request_id())
        if answer is not None:
            self.inference.count_turned(head.handle, head.known.requirements.priority, turned.code)
        return answer

    def turn_away(self, head: Head, work: _Work, error: QueryFailedError, answer: bytes, request_id: str) -> None:
        """What a query was told goes for those like it, for a moment."""
        before = head.turned
        if before is not None:
            self.inference.service.note_alike(before.decision_id, before.count)
        decision_id = error.outcome.decision_id
        head.turned = TurnedAway(work.query, error.code, decision_id, answer, request_id, self.inference.clock.now())

    def remember(self, data: bytes, head: Head) -> None:
        """`data` was one whole request of this head, and its fields were the head's."""
        self._heads.remember(data, head)

    def opened(self, ticket: Ticket, head: Head, fields: dict[str, str]) -> tuple[Task, int | None]:
        """What is looked at before a body is read. Raises InfaasError."""
        view = self.inference.service.view
        if fields is not head.fields:
            ticket.caller = read_caller(fields)
        elif view is self._opened_in and (opened := self._opened.get(head)) is not None:
            return opened
        self._authenticator.check(fields.get("authorization"))
        found = find_task(view, ticket.handle), parse_version(head.version)
        if view is not self._opened_in or len(self._opened) >= HEADS_KEPT:
            self._opened_in = view
            self._opened.clear()
        self._opened[head] = found
        return found

    def decoded(self, body: bytes, length: int | None, task: Task) -> InferRequest | None:
        """None: it is too much for the loop, or for us. Raises InfaasError."""
        if length == 0:
            return decode_raw_request(body, task.inputs)
        if (len(body) if length is None else length) > self._max_json_bytes:
            return None
        if self.inference.bulk is not None and is_large_body(memoryview(body), length):
            return None
        return decode_request(body, length)

    def head_of(
        self, connection: Connection, status: int, lines: str, size: int, *, keeps_alive: bool
    ) -> tuple[bytes, bytes, bytes]:
        """`lines` are header fields as HTTP/1.1 writes them."""
        end = "" if keeps_alive else "connection: close\r\n"
        own = f"{lines}content-length: {size}\r\n{end}\r\n".encode("latin-1")
        return STATUS_LINE[status], self._standing_lines(connection.standing_fields), own

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
        if head.is_large_for is task:
            return False
        body, before = self.body, head.known
        if before is not None and before.task is task and (inputs := before.inputs(body)) is not None:
            return self._like(before, version, inputs)
        length = header_length(fields)
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
        if may_be_large_answer(request, task, query.items):
            head.is_large_for = task
            return False
        if not fast.inference.service.can_begin(query):
            return False
        if states_none:
            head.remember(task.defaults, query.requirements)
        if head.lessons < LESSONS:
            head.lessons += 1
            head.known = known(task, body, length, request, query)
        self._work = _Work(task, request, query)
        return True

    def _like(self, before: KnownBody, version: int | None, inputs: tuple[Tensor, ...]) -> bool:
        """The rest of `_prepared`, for what is known but for its values."""
        inference = self._fast.inference
        query = inference.query_like(self._ticket, version, inputs, before.outline, before.requirements)
        if not inference.service.can_begin(query):
            return False
        self._work = _Work(before.task, before.request, query)
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
        ticket = self._ticket
        ticket.outcome = answer.outcome
        try:
            parts, length = self._encoded(answer, work)
        except Exception as exception:
            self._fail(exception)
            return
        self._fast.inference.count_answer(ticket, answer.outcome)
        lines = answer_lines(ticket.caller, answer.outcome)
        if length is None:
            self._write(200, f"{lines}content-type: {JSON_TYPE}\r\n", parts)
        else:
            self._write(200, f"{lines}content-type: {BINARY_TYPE}\r\n{HEADER_LENGTH}: {length}\r\n", parts)

    def set_exception(self, error: Exception) -> None:
        self._fail(error)

    def _encoded(self, answer: Answer, work: _Work) -> tuple[list[Buffer], int | None]:
        served = self._fast.inference.served(answer, work.query, work.request, work.task)
        return answer_parts(
            served.outputs,
            model_name=self._ticket.handle,
            model_version=served.version,
            id=work.request.id,
            parameters=served.parameters,
        )

    def _fail(self, exception: Exception) -> None:
        self._drop = self._failure = None
        if isinstance(exception, QueryFailedError):
            self._ticket.outcome = exception.outcome
        error = as_error(exception, self._ticket.caller.request_id)
        status, fields, parts = failed(error, self._ticket)
        self._fast.inference.count(self._ticket, error)
        pieces = self._pieces(status, lines_of(fields), parts)
        if isinstance(exception, QueryFailedError) and exception.code in CODES:
            self._turn_away(exception, pieces)
        self._send(pieces)

    def _turn_away(self, error: QueryFailedError, pieces: Sequence[Buffer]) -> None:
        head, work = self._head, self._work
        if not self.keep_alive or self._fields is not head.fields or work is None or head.known is None:
            return
        if work.request is head.known.request:
            self._fast.turn_away(head, work, error, b"".join(pieces), self._ticket.caller.request_id)

    def _write(self, status: int, lines: str, parts: Sequence[Buffer]) -> None:
        self._send(self._pieces(status, lines, parts))

    def _pieces(self, status: int, lines: str, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        size = sum(map(len, parts))
        return [*self._fast.head_of(self._connection, status, lines, size, keeps_alive=self.keep_alive), *parts]

    def _send(self, pieces: Sequence[Buffer]) -> None:
        """A large answer is sent in the pieces that it consists of: joining them would copy it, on the loop."""
        self._forget()
        size = sum(map(len, pieces))
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
