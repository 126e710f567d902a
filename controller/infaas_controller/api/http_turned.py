"""Refusals that hold for a moment: queries like one that has just been refused for want of time are told the same,
without being read.

When there is too much to do, refusing must cost next to nothing, or refusals take what answers need. Nothing that
selection looks at changes for the better within so short a time but by work that is done, and of that a queue that
refuses has more in hand than this time's. Whoever is told so is counted, and named with the decision that he shares.
"""

from __future__ import annotations

from infaas.domain.ids import DecisionId
from infaas.domain.query import Code, Query

HOLDS_S = 0.01
HOLDS_SHARE = 0.1
"""Of the time that such a query has in all, at most."""
CODES = frozenset({Code.DEADLINE_UNREACHABLE, Code.SATURATED, Code.QUOTA})
"""What more time or less load would have mended."""


class TurnedAway:
    """Made of one refusal and its answer's bytes."""

    __slots__ = ("_around", "_id_bytes", "code", "count", "decision_id", "until")

    def __init__(
        self, query: Query, code: Code, decision_id: DecisionId, answer: bytes, request_id: str, now: float
    ) -> None:
        self.code = code
        self.decision_id = decision_id
        """Which all of them share."""
        self.count = 0
        self.until = now + min(HOLDS_S, HOLDS_SHARE * (query.deadline - query.arrived_at))
        self._around = answer.split(request_id.encode("ascii"))
        self._id_bytes = len(request_id)

    def answer(self, request_id: str) -> bytes | None:
        """The same for another request; None when its id has another length, because the answer says how long it is."""
        if len(request_id) != self._id_bytes:
            return None
        self.count += 1
        return request_id.encode("ascii").join(self._around)
