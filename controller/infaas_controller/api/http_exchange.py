"""One query of the fast way: a request from its header on, until its answer is written or its caller has left.

It takes the steps of `http_infer` in the same order and answers in the same words; what a request like it taught before
it spares it most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from infaas.domain.query import Query
from infaas.domain.task import Task
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas.rpc.edges import as_error
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import answer_parts
from infaas_controller.api.bulk.weigh import may_be_large_answer
from infaas_controller.api.headers import REQUEST_ID, Caller, answer_lines, lines_of, read_caller
from infaas_controller.api.http_infer import BINARY_TYPE, JSON_TYPE, CallerLeftError, failed, header_length
from infaas_controller.api.http_known import KnownBody, known
from infaas_controller.api.http_transport import JOIN_BYTES
from infaas_controller.api.http_way import HEADER_LENGTH, Head
from infaas_controller.api.intake import answered_outputs, check_json_outputs
from infaas_controller.api.service import Ticket
from infaas_controller.api.turned import CODES, outcome_of_turned
from infaas_controller.ports import Answer, QueryFailedError, Together, Waiter

if TYPE_CHECKING:
    from infaas_controller.api.http_fast import FastInfer

Buffer = bytes | memoryview
LESSONS = 8
"""Requests under one head that teach: when the next ones are still not like them, learning costs more than it saves."""
_UNSTATED = frozenset(("binary_data_output",))
"""Parameters of a request that state no requirement."""


class Connection(Protocol):
    """What an exchange needs of the connection that it came by."""

    def answer(self, exchange: Exchange, pieces: Sequence[Buffer]) -> None:
        """Write an answer, the pieces being all of it, and go on to the next request."""

    def answer_whole(self, exchange: Exchange, data: bytes, at: float) -> bool:
        """As `answer`, of a usual request in one piece, at that time on the loop's clock. False: it is not usual, and
        nothing was done."""

    def abort(self) -> None:
        """End it at once."""

    @property
    def standing_fields(self) -> list[tuple[bytes, bytes]]:
        """What goes with every answer; another list when it is anything else."""


Remember = Callable[[Head, Query, QueryFailedError, bytes, str], None]


class Exchange(Waiter):
    """One request and its answer. To the connection it is what uvicorn's cycle is for an ordinary request, and has the
    names that uvicorn's protocol knows one by."""

    __slots__ = (
        "_arrived_at", "_begin", "_connection", "_data", "_drop", "_failure", "_fast", "_fields", "_head",
        "_is_checked", "_is_shed", "_made", "_query", "_request", "_task", "disconnected", "keep_alive", "known",
        "more_body", "response_complete", "response_started", "together",
    )  # fmt: skip

    def __init__(
        self,
        fast: FastInfer,
        connection: Connection,
        head: Head,
        fields: dict[str, str],
        data: bytes = b"",
        begin: int = 0,
        *,
        is_shed: bool = False,
    ) -> None:
        """`data` ends with the body, or with what has come of it, from `begin` on. `is_shed`: it is read, but turned
        away."""
        self._is_shed = is_shed
        self.disconnected = self.response_started = self.response_complete = self._is_checked = False
        self.keep_alive = self.more_body = True
        self.known: KnownBody | None = None
        """What the request differs from in nothing but values, ids included: they are ours."""
        self._fast = fast
        self.together: Together = fast.together
        self._connection = connection
        self._head = head
        self._fields = fields
        self._data: bytes | bytearray = data
        self._begin = begin
        self._arrived_at = fast.now()
        self._made: Ticket | None = None
        self._drop: Callable[[], None] | None = None
        self._failure: Exception | None = None
        self._task: Task | None = None
        self._request: InferRequest | None = None
        self._query: Query | None = None

    @property
    def _ticket(self) -> Ticket:
        """Most requests need none."""
        made, query = self._made, self._query
        if made is None:
            made = self._made = Ticket(self._head.handle, self._arrived_at)
            if query is not None:
                made.priority, made.items, made.caller = query.requirements.priority, query.items, Caller(query.id)
        return made

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
        if not self._data:
            self._data = body  # nearly always all of it
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += body

    @property
    def body(self) -> bytes:
        """What has come of it."""
        data, begin = self._data, self._begin
        return bytes(data[begin:] if begin else data)

    def is_worth_reading(self) -> bool:
        """Whether nothing speaks against the request before its body is here."""
        if not self._is_checked:
            try:
                self._opened()
            except InfaasError:
                return False
            self._is_checked = True
        return True

    def prepare(self) -> bool:
        """The body is whole. False: it must go the ordinary way after all, and nothing has happened."""
        self.more_body = False
        try:
            return self._is_known() or self._prepared()
        except Exception as exception:
            self._failure = exception
            return True

    def _is_known(self) -> bool:
        """Whether all is known of it but its values: the steps of `_prepared` for most requests, in one."""
        fast, head = self._fast, self._head
        known, opened = head.known, head.opened
        if known is None or opened is None or head.opened_turn != fast.turns.number or self._fields is not head.fields:
            return False
        task = known.task
        if (
            opened[0] is not task
            or head.is_large_for is task
            or (inputs := known.inputs(bytes(self._data), self._begin)) is None
        ):
            return False
        query = fast.inference.query_known(known, opened[1], inputs, self._arrived_at)
        if not fast.inference.service.can_begin(query):
            return False
        self.known, self._task, self._request, self._query = known, task, known.request, query
        return True

    def _opened(self) -> tuple[Task, int | None]:
        if self._fields is not self._head.fields:
            self._ticket.caller = read_caller(self._fields)
        return self._fast.opened(self._head, self._fields)

    def _prepared(self) -> bool:
        fast, head = self._fast, self._head
        task, version = self._opened()
        if head.is_large_for is task:
            return False
        body, before = self.body, head.known
        if before is not None and before.task is task and (inputs := before.inputs(body)) is not None:
            return self._like(before, version, inputs)
        self._is_shed = False  # it is not like those that are turned away
        ticket, fields = self._ticket, self._fields
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
            fast.teach(head, known(task, body, length, request, query))
        self._task, self._request, self._query = task, request, query
        return True

    def _like(self, before: KnownBody, version: int | None, inputs: tuple[Tensor, ...]) -> bool:
        """The rest of `_prepared`, for what is known but for its values."""
        inference, made = self._fast.inference, self._made
        query = inference.query_like(
            before.handle, version, inputs, before.outline, before.requirements, self._arrived_at,
            None if made is None else made.caller,
        )  # fmt: skip
        if made is not None:
            made.priority, made.items = query.requirements.priority, query.items
        elif self._fields is self._head.fields:
            self.known = before
        if not inference.service.can_begin(query):
            return False
        self._task, self._request, self._query = before.task, before.request, query
        return True

    def start(self) -> None:
        """Hand the query to the service, or answer what was wrong with it."""
        query = self._query
        if self._failure is not None:
            self._fail(self._failure)
            return
        if query is None or self.response_started or self.disconnected:
            return
        service = self._fast.inference.service
        try:
            if self._is_shed:
                shedding = self._fast.shedding
                self._fail(shedding.refusal(query, self._head), shedding.remember)
                return
            drop = service.begin(query, self)
            if self._head.probes_until > query.arrived_at:
                service.decide()
        except Exception as exception:
            self._fail(exception)
            return
        if not (self.response_started or self.disconnected):
            self._drop = drop

    # The answer

    def done(self) -> bool:
        return self.response_started or self.disconnected

    @property
    def standing_fields(self) -> list[tuple[bytes, bytes]]:
        return self._connection.standing_fields

    def set_result(self, answer: Answer) -> None:
        self._drop = None
        ticket = self._ticket
        ticket.outcome = answer.outcome
        try:
            pieces = self.written(ticket.caller, answer, {})
        except Exception as exception:
            self._fail(exception)
            return
        self._fast.inference.count_answer(ticket, answer.outcome)
        self._send(pieces)

    def set_exception(self, error: Exception) -> None:
        self._fail(error)

    def outputs(self, answer: Answer) -> list[tuple[Tensor, bool]]:
        task, request, _ = self._wanted()
        return answered_outputs(answer, request, task)

    def written(self, caller: Caller, answer: Answer, data: Mapping[str, bytes]) -> Sequence[Buffer]:
        task, request, query = self._wanted()
        served = self._fast.inference.served(answer, query, request, task)
        parts, length = answer_parts(
            served.outputs,
            model_name=self._head.handle,
            model_version=served.version,
            id=request.id,
            parameters=served.parameters,
            rendered=data,
        )
        lines = answer_lines(caller, answer.outcome)
        if length is None:
            return self._pieces(200, f"{lines}content-type: {JSON_TYPE}\r\n", parts)
        return self._pieces(200, f"{lines}content-type: {BINARY_TYPE}\r\n{HEADER_LENGTH}: {length}\r\n", parts)

    def _wanted(self) -> tuple[Task, InferRequest, Query]:
        """What an answer is made with."""
        if self._task is None or self._request is None or self._query is None:
            raise AssertionError("an exchange was answered that asked for nothing")
        return self._task, self._request, self._query

    def send_whole(self, answer: bytes, at: float) -> bool:
        """Send what is a whole answer of status 200 to a caller who stays."""
        if not self._connection.answer_whole(self, answer, at):
            return False
        self._task = self._request = self._query = self._drop = None
        self._data = b""
        return True

    def abort(self) -> None:
        self._connection.abort()

    def _fail(self, exception: Exception, remember: Remember | None = None) -> None:
        """`remember` keeps what those like the query are told; without one, they are told so for a moment."""
        self._drop = self._failure = None
        ticket = self._ticket
        if isinstance(exception, QueryFailedError):
            ticket.outcome = exception.outcome
        error = as_error(exception, ticket.caller.request_id)
        status, fields, parts = failed(error, ticket)
        self._fast.inference.count(ticket, error)
        pieces = self._pieces(status, lines_of(fields), parts)
        if isinstance(exception, QueryFailedError) and exception.code in CODES:
            self._turn_away(exception, error, remember or self._fast.turn_away)
        self._send(pieces)

    def _turn_away(self, failure: QueryFailedError, error: InfaasError, remember: Remember) -> None:
        """Have those like it be told the same, with nothing in it that is this query's own but its id."""
        head, query = self._head, self._query
        if not self.keep_alive or self._fields is not head.fields or query is None or head.known is None:
            return
        if self._request is head.known.request:
            told = replace(self._ticket, outcome=outcome_of_turned(failure.outcome))
            status, fields, parts = failed(error, told)
            answer = b"".join(self._pieces(status, lines_of(fields), parts))
            remember(head, query, failure, answer, told.caller.request_id)

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
        self._fast.inference.count(self._ticket, CallerLeftError("the caller closed the connection"))
        self._forget()

    def _forget(self) -> None:
        """An idle connection keeps its last exchange; it is not to keep what was sent."""
        self._task = self._request = self._query = self._drop = self._failure = None
        self._data = b""
