"""Refusals that hold for a moment: queries like one that has just been refused for want of time or of room are told
the same, without being read.

When there is too much to do, refusing must cost next to nothing, or refusals take what answers need. Nothing that
selection looks at changes for the better within so short a time but by work that is done, and of that a queue that
refuses has more in hand than this time's. Whoever is told so is counted, and named with the decision that he shares.
What he is told is the protocol's own (`http_turned`, `grpc_turned`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from infaas.clock import Clock
from infaas.domain.ids import DecisionId
from infaas.domain.query import Code, Query
from infaas_controller.api.intake import time_s
from infaas_controller.ports import Outcome

HOLDS_S = 0.01
HOLDS_SHARE = 0.1
"""Of the time that such a query has in all, at most."""
PROBES = 2
"""So many times as long as a refusal holds, queries like the refused one are decided on one by one over REST: else all
that one look at the sockets brought would be refused after being read, and the first can speak for the rest."""
CODES = frozenset({Code.DEADLINE_UNREACHABLE, Code.SATURATED, Code.QUOTA})
"""What more time or less load would have mended."""


class Turned:
    """Made of one refusal."""

    __slots__ = ("code", "count", "outcome", "priority", "probes_until", "until", "within_s")

    def __init__(self, query: Query, code: Code, refused: Outcome, now: float, *, holds_s: float | None = None) -> None:
        """`holds_s`: how long it holds, where that does not follow from the time that the query had."""
        self.code = code
        self.outcome = outcome_of_turned(refused)
        self.priority = query.requirements.priority
        self.count = 0
        """How many were told so, of whom the decision does not know yet."""
        self.within_s = time_s(query.requirements)
        """Who has more time may be told otherwise."""
        if holds_s is None:
            holds_s = min(HOLDS_S, HOLDS_SHARE * self.within_s)
        self.until = now + holds_s
        self.probes_until = now + PROBES * holds_s


class Decisions(Protocol):
    def note_alike(self, id: DecisionId, count: int) -> None: ...


class Alike:
    """Counts who is told what another was told, and has the decision that they share know of them when the refusal
    holds no more or when something else is told in its place, whichever comes first. No query needs to come for that.
    Belongs to one event loop."""

    def __init__(self, decisions: Decisions, clock: Clock) -> None:
        """`clock` is the one by which refusals hold."""
        self._decisions = decisions
        self._clock = clock

    def tell(self, turned: Turned, count: int = 1) -> None:
        """So many more are told so."""
        if not turned.count:
            asyncio.get_running_loop().call_later(max(0.0, turned.until - self._clock.now()), self.over, turned)
        turned.count += count

    def over(self, turned: Turned) -> None:
        """Nobody is told so any more."""
        count, turned.count = turned.count, 0
        if count:
            self._decisions.note_alike(turned.outcome.decision_id, count)


def outcome_of_turned(refused: Outcome) -> Outcome:
    """What of a refused query's outcome goes for all who are like it: its decision. Its times and attempts are nobody
    else's: they have not waited, and were sent nowhere."""
    return Outcome(refused.decision_id, slo_met=refused.slo_met)
