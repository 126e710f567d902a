"""Lines about queries: what matters, with what is needed to look further, and never a flood."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.ids import DecisionId, VariantName, WorkerId
from infaas.domain.query import Decision
from infaas.observe.query_log import LINES_AT_ONCE, LINES_PER_S, Budget, Line, QueryLog, line_of, spend
from infaas.settings import QueryLines
from infaas.testing.clock import ManualClock

ANSWERED = Decision(
    id=DecisionId("d-1"), request_id="r-1", at="2026-01-01T00:00:00Z", handle="digits", level=None, task=None,
    policy="slo", requirements={}, outcome="answered", reason="cheapest of 2", variant=VariantName("v1"),
    worker=WorkerId("w1"), observed_ms=2.12345, slo_met=True, attempts=1,
)  # fmt: skip
REFUSED = replace(
    ANSWERED, outcome="saturated", reason="the queue is full", variant=None, worker=None, observed_ms=None,
    slo_met=None, attempts=0, trace_id="ab" * 16,
)  # fmt: skip
FALLBACK = replace(ANSWERED, fallback="accuracy below the floor")
AGAIN = replace(ANSWERED, attempts=2)
LEFT = replace(REFUSED, outcome="cancelled")
FAILED = replace(REFUSED, outcome="model-failed")


class Lines:
    """Takes lines as a logger does."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.found.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.found.append(("warning", event, facts))

    @property
    def events(self) -> list[str]:
        return [event for _, event, _ in self.found]


def a_log(which: QueryLines = "notable") -> tuple[QueryLog, Lines, ManualClock]:
    lines, clock = Lines(), ManualClock()
    return QueryLog(which, clock, lines), lines, clock  # type: ignore[arg-type]


def tell(log: QueryLog, decision: Decision) -> None:
    """As the controller does."""
    if log.take(decision.outcome, decision.handle, decision.attempts, decision.fallback is not None):
        log.observe(decision)


def line_for(decision: Decision) -> Line:
    return line_of(decision.outcome, decision.attempts, decision.fallback is not None)


def test_refusals_failures_retries_and_fallbacks_leave_a_line_and_ordinary_answers_none() -> None:
    log, lines, _ = a_log()
    for decision in (ANSWERED, LEFT, REFUSED, FALLBACK, AGAIN, FAILED):
        tell(log, decision)
    assert [(level, event) for level, event, _ in lines.found] == [
        ("info", "query refused"),
        ("info", "query answered by a fallback"),
        ("warning", "query tried again"),
        ("warning", "query failed"),
    ]


def test_a_line_has_the_ids_to_look_further_and_states_only_what_is_known() -> None:
    log, lines, _ = a_log()
    tell(log, REFUSED)
    assert lines.found[0][2] == {
        "request_id": "r-1",
        "decision_id": "d-1",
        "trace_id": "ab" * 16,
        "handle": "digits",
        "code": "saturated",
        "reason": "the queue is full",
    }


@pytest.mark.parametrize(("which", "count"), [("none", 0), ("notable", 4), ("all", 6)])
def test_the_setting_says_which_queries_leave_lines(which: QueryLines, count: int) -> None:
    log, lines, _ = a_log(which)
    for decision in (ANSWERED, LEFT, REFUSED, FALLBACK, AGAIN, FAILED):
        tell(log, decision)
    assert len(lines.found) == count


def test_a_flood_of_one_kind_is_cut_and_counted_and_hides_no_other_kind() -> None:
    log, lines, clock = a_log()
    for _ in range(10_000):
        tell(log, REFUSED)
    tell(log, AGAIN)
    assert lines.events.count("query refused") == LINES_AT_ONCE
    assert lines.events[-1] == "query tried again"
    clock.advance(60.0)
    tell(log, REFUSED)
    assert lines.found[-1][2]["unsaid"] == 10_000 - LINES_AT_ONCE
    tell(log, REFUSED)
    assert "unsaid" not in lines.found[-1][2]


def test_every_query_leaves_a_line_where_all_are_wanted() -> None:
    log, lines, _ = a_log("all")
    for _ in range(1_000):
        tell(log, ANSWERED)
    assert len(lines.found) == 1_000
    assert lines.found[0][2]["total_ms"] == 2.123


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_a_budget_is_never_overspent_and_loses_no_count(gaps: list[float]) -> None:
    budget, now, written, said = Budget(), 0.0, 0, 0
    for gap in gaps:
        now += gap / 50
        before = budget
        may_write, budget = spend(budget, now)
        written += may_write
        said += before.unsaid if may_write else 0
    assert written <= LINES_AT_ONCE + now * LINES_PER_S + 1e-6
    assert written + said + budget.unsaid == len(gaps)


def test_what_a_line_is_called_follows_from_the_decision_alone() -> None:
    assert line_for(ANSWERED).is_ordinary
    assert line_for(LEFT).is_ordinary
    assert not line_for(REFUSED).is_ordinary
    assert line_for(FAILED).is_warning
