"""`turned` over REST: the answer's bytes, but for the request's id."""

from __future__ import annotations

from infaas.domain.query import Code, Query
from infaas_controller.api.turned import Turned
from infaas_controller.ports import Outcome


class TurnedAway(Turned):
    """Made of one refusal and its answer's bytes."""

    __slots__ = ("_around", "_id_bytes")

    def __init__(
        self,
        query: Query,
        code: Code,
        refused: Outcome,
        answer: bytes,
        request_id: str,
        now: float,
        *,
        holds_s: float | None = None,
    ) -> None:
        super().__init__(query, code, refused, now, holds_s=holds_s)
        self._around = answer.split(request_id.encode("ascii"))
        self._id_bytes = len(request_id)

    def answer(self, request_id: str) -> bytes | None:
        """The same for another request; None when its id has another length, because the answer says how long it is."""
        if len(request_id) != self._id_bytes:
            return None
        return request_id.encode("ascii").join(self._around)
