"""Queries without an ASGI cycle and without a task: from a whole HTTP request to the service, and back in one write.

It serves what `http_way` calls usual, by the same steps and in the same words as `http_infer`, which serves the rest. A
connection that is lost drops its query; the service calls back when the query has ended.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from infaas.domain.cluster import ClusterView
from infaas.domain.query import Query
from infaas.domain.task import Task
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import decode_raw_request, decode_request
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.weigh import is_large_body
from infaas_controller.api.headers import fresh_request_id
from infaas_controller.api.http_exchange import Connection, Exchange
from infaas_controller.api.http_known import KnownBody
from infaas_controller.api.http_shedding import Shedding
from infaas_controller.api.http_together import FastTogether
from infaas_controller.api.http_turned import TurnedAway
from infaas_controller.api.http_way import Head, Heads, RawFields
from infaas_controller.api.intake import find_task, parse_version
from infaas_controller.api.service import Inference
from infaas_controller.decide.shed import LEAST_S
from infaas_controller.ports import QueryFailedError


class FastInfer:
    """One per application: what its exchanges share."""

    def __init__(
        self, inference: Inference, authenticator: Authenticator, max_body_bytes: int, max_json_bytes: int
    ) -> None:
        self.inference = inference
        self.together = FastTogether(inference)
        self.shedding = Shedding(inference)
        self.turns = self.shedding.turns
        self.now = inference.clock.now
        self._authenticator = authenticator
        self._max_body_bytes = max_body_bytes
        self._max_json_bytes = max_json_bytes
        self._heads = Heads()
        self._view: ClusterView | None = None
        self._view_number = 0
        """Heads know what was found for them by that, so that none of them keeps an old view, or an old token."""
        self._token_changes = 0
        self._standing: tuple[list[tuple[bytes, bytes]], bytes] | None = None

    def exchange(self, connection: Connection, target: bytes, raw: RawFields) -> Exchange | None:
        """For a `POST` in HTTP/1.1 whose header is whole; None: it goes the ordinary way."""
        found = self._heads.of(target, raw)
        if found is None or found[0].body_bytes > self._max_body_bytes:
            return None
        return Exchange(self, connection, *found)

    def exchange_of(self, connection: Connection, data: bytes, unread_s: float = 0.0) -> Exchange | bytes | None:
        """For a piece that is one whole request with a header that came before; None: it must be parsed. Bytes are the
        answer to a query that was turned away, which is all that there is to it. `unread_s`: it may have lain there
        for so long."""
        found = self._heads.as_sent(data)
        if found is None:
            return None
        head, begin = found
        if head.turned is not None and (answer := self._turned_away(head, head.turned, data, begin)) is not None:
            return answer
        if head.shed is None and not unread_s and self.turns.reading_s <= LEAST_S:
            return Exchange(self, connection, head, head.fields, data, begin)
        shed = self.shedding.turns_away(head, data, begin, unread_s)
        if isinstance(shed, bytes):
            return shed
        return Exchange(self, connection, head, head.fields, data, begin, is_shed=shed)

    def _turned_away(self, head: Head, turned: TurnedAway, data: bytes, begin: int) -> bytes | None:
        if self.inference.clock.now() >= turned.until:
            head.turned = None
            self.inference.alike.over(turned)
            return None
        if head.known is None or not head.known.inputs.suits(data, begin):
            return None
        answer = turned.answer(fresh_request_id())
        if answer is not None:
            self.inference.alike.tell(turned)
            priority = head.known.requirements.priority
            self.inference.count_turned(head.handle, priority, turned.code, slo_met=turned.outcome.slo_met)
        return answer

    def teach(self, head: Head, known: KnownBody | None) -> None:
        """What queries under this head are compared with from now on. What those like the last one were told is nothing
        to these."""
        if (turned := head.turned) is not None:
            head.turned = None
            self.inference.alike.over(turned)
        if head.shed is not None or head.shed_told is not None:
            self.shedding.no_more(head)
        head.known = known

    def turn_away(self, head: Head, query: Query, error: QueryFailedError, answer: bytes, request_id: str) -> None:
        """What a query was told goes for those like it, for a moment."""
        if head.turned is not None:
            self.inference.alike.over(head.turned)
        turned = TurnedAway(query, error.code, error.outcome, answer, request_id, self.inference.clock.now())
        head.turned, head.probes_until = turned, turned.probes_until

    def remember(self, data: bytes, head: Head) -> None:
        """`data` was one whole request of this head, and its fields were the head's."""
        self._heads.remember(data, head)

    def opened(self, head: Head, fields: dict[str, str]) -> tuple[Task, int | None]:
        """What is looked at before a body is read. Raises InfaasError."""
        view, changes = self.inference.service.view, self._authenticator.changes
        if view is not self._view or changes != self._token_changes:
            self._view, self._token_changes = view, changes
            self._view_number += 1
        elif fields is head.fields and head.opened_in == self._view_number and head.opened is not None:
            head.opened_turn = self.turns.number
            return head.opened
        self._authenticator.check(fields.get("authorization"))
        head.opened = find_task(view, head.handle), parse_version(head.version)
        head.opened_in = self._view_number
        return head.opened

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
