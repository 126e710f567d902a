"""Which queries leave a line in the log: those whose outcome somebody will ask about; every one only on request.

A refusal under overload comes thousands of times a second and says the same each time. Each kind of line has a budget,
and the next line after a silence says how many there would have been; `explain` knows the last ones, and the journal
how many there were.
"""

from __future__ import annotations

from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from infaas.clock import Clock
from infaas.domain.query import ANSWERED, Code, Decision
from infaas.observe.log import get_logger
from infaas.settings import QueryLines

LINES_PER_S = 5.0
LINES_AT_ONCE = 50.0
_OURS = frozenset({Code.INTERNAL.value, Code.MODEL_FAILED.value})


class Line(NamedTuple):
    event: str
    is_warning: bool
    is_ordinary: bool = False
    """Only worth writing where every query is."""


class Budget(NamedTuple):
    """A bucket of lines that fills with time."""

    left: float = LINES_AT_ONCE
    at: float = 0.0
    unsaid: int = 0
    """Lines that were not written since the last one that was."""


def is_ordinary(outcome: str, attempts: int, is_fallback: bool) -> bool:
    """Whether `line_of` such a decision is worth writing only where every query's is."""
    if outcome == ANSWERED:
        return attempts <= 1 and not is_fallback
    return outcome == Code.CANCELLED.value


def line_of(outcome: str, attempts: int, is_fallback: bool) -> Line:
    if outcome != ANSWERED:
        if outcome == Code.CANCELLED.value:
            return Line("query left by its caller", is_warning=False, is_ordinary=True)
        if outcome in _OURS:
            return Line("query failed", is_warning=True)
        return Line("query refused", is_warning=False)
    if attempts > 1:
        return Line("query tried again", is_warning=True)
    if is_fallback:
        return Line("query answered by a fallback", is_warning=False)
    return Line("query answered", is_warning=False, is_ordinary=True)


def spend(budget: Budget, now: float) -> tuple[bool, Budget]:
    """Whether a line may be written now, and the budget after it. `unsaid` is then what it says, and starts again."""
    left = min(LINES_AT_ONCE, budget.left + max(0.0, now - budget.at) * LINES_PER_S)
    if left < 1.0:
        return False, Budget(left, now, budget.unsaid + 1)
    return True, Budget(left - 1.0, now, 0)


class QueryLog:
    """A hook of the controller's decisions."""

    def __init__(self, which: QueryLines, clock: Clock, log: FilteringBoundLogger | None = None) -> None:
        self._which = which
        self._clock = clock
        self._log = log or get_logger(__name__)
        self._budgets: dict[tuple[str, str], Budget] = {}
        self._unsaid = 0
        """What the next line says of those before it."""

    def take(self, outcome: str, handle: str, attempts: int, is_fallback: bool) -> bool:
        """Whether such a decision leaves a line now. Ask once for each: those that leave none are counted here."""
        if self._which != "notable":
            return self._which == "all"
        if is_ordinary(outcome, attempts, is_fallback):
            return False
        key = line_of(outcome, attempts, is_fallback).event, outcome
        now = self._clock.now()
        before = self._budgets.get(key, Budget(at=now))
        may_write, self._budgets[key] = spend(before, now)
        if may_write:
            self._unsaid = before.unsaid
        return may_write

    def observe(self, decision: Decision) -> None:
        """Write the line of a decision that was taken just now. Quick, and must not raise: it runs on the query
        path."""
        line = line_of(decision.outcome, decision.attempts, decision.fallback is not None)
        unsaid, self._unsaid = self._unsaid, 0
        self._write(line, decision, unsaid)

    def _write(self, line: Line, decision: Decision, unsaid: int) -> None:
        facts: dict[str, object] = {
            "request_id": decision.request_id,
            "decision_id": decision.id,
            "trace_id": decision.trace_id,
            "handle": decision.handle,
            "code": None if decision.outcome == ANSWERED else decision.outcome,
            "reason": decision.fallback or decision.reason,
            "variant": decision.variant,
            "worker": decision.worker,
            "attempts": decision.attempts if decision.attempts > 1 else None,
            "total_ms": None if decision.observed_ms is None else round(decision.observed_ms, 3),
            "slo_met": decision.slo_met,
            "unsaid": unsaid or None,
        }
        stated = {name: value for name, value in facts.items() if value is not None}
        (self._log.warning if line.is_warning else self._log.info)(line.event, **stated)
