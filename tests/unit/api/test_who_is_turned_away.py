"""What queries are told that are like one that has just been refused."""

from __future__ import annotations

import asyncio

from infaas_controller.api.grpc_turned import TurnedCall
from infaas_controller.api.http_turned import TurnedAway
from infaas_controller.api.turned import HOLDS_S, HOLDS_SHARE, Alike, Turned
from infaas_controller.ports import Outcome, QueryFailedError

from infaas.clock import SystemClock
from infaas.domain.ids import DecisionId
from infaas.domain.query import HARD_LIMIT_S, Code
from infaas.errors import InfaasError
from infaas.testing.builders import a_query

REFUSED = Outcome(DecisionId("d-1"), slo_met=False)
ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nx-request-id: r-1-ab\r\ncontent-length: 25\r\n\r\n{'request_id': 'r-1-ab'}"


def turned(latency_ms: float = 1_000.0) -> TurnedAway:
    query = a_query(at=100.0, latency_ms=latency_ms)
    return TurnedAway(query, Code.DEADLINE_UNREACHABLE, REFUSED, ANSWER, "r-1-ab", 100.0)


def test_each_is_told_the_same_under_an_id_of_his_own() -> None:
    found = turned()
    assert found.answer("r-1-cd") == ANSWER.replace(b"r-1-ab", b"r-1-cd")
    assert found.answer("r-1-ef") == ANSWER.replace(b"r-1-ab", b"r-1-ef")


def test_an_id_of_another_length_would_make_the_answer_lie() -> None:
    found = turned()
    assert found.answer("r-1-abc") is None


def test_it_holds_for_a_moment_and_for_a_small_part_of_what_time_there_is() -> None:
    assert turned().until == 100.0 + HOLDS_S
    assert turned(latency_ms=10.0).until == 100.0 + HOLDS_SHARE * 0.01


def test_who_has_as_much_time_as_was_stated_has_no_more() -> None:
    assert turned(latency_ms=90.1).within_s == 90.1 / 1e3
    without = TurnedAway(a_query(at=100.0), Code.SATURATED, REFUSED, ANSWER, "r-1-ab", 100.0)
    assert without.within_s == HARD_LIMIT_S


def test_over_grpc_it_is_the_same_error_without_the_frames_that_it_came_through() -> None:
    outcome = Outcome(DecisionId("d-1"), slo_met=False, attempts=1, queue_s=0.02, run_s=0.01, total_s=0.03)
    refusal = QueryFailedError(
        InfaasError("too much", code=Code.SATURATED, is_retryable=True, retry_after_s=2.0, problems=["one"]), outcome
    )
    try:
        raise refusal
    except QueryFailedError as raised:
        found = TurnedCall(a_query(at=100.0, latency_ms=50.0), raised, 100.0)
    error = found.error
    assert (error.text, error.code, error.is_retryable, error.retry_after_s, error.problems) == (
        refusal.text, refusal.code, refusal.is_retryable, refusal.retry_after_s, refusal.problems,
    )  # fmt: skip
    assert error.__traceback__ is None
    assert (found.outcome, found.within_s) == (Outcome(DecisionId("d-1"), slo_met=False), 0.05), "no times of another"


class Noted(asyncio.Queue[tuple[DecisionId, int]]):
    def note_alike(self, id: DecisionId, count: int) -> None:
        self.put_nowait((id, count))


async def test_a_decision_learns_of_all_who_share_it_when_it_holds_no_more_though_nobody_comes() -> None:
    noted, clock = Noted(), SystemClock()
    alike = Alike(noted, clock)
    found = Turned(a_query(at=0.0, latency_ms=50.0), Code.SATURATED, REFUSED, clock.now())
    for _ in range(3):
        alike.tell(found)
    assert noted.empty(), "more may come"
    assert await asyncio.wait_for(noted.get(), 30.0) == ("d-1", 3)
    assert noted.empty()


async def test_a_decision_learns_of_them_at_once_when_something_else_is_told_in_its_place() -> None:
    noted = Noted()
    alike = Alike(noted, SystemClock())
    far = Turned(a_query(at=0.0), Code.SATURATED, REFUSED, SystemClock().now() + 60.0)
    alike.over(far)
    assert noted.empty(), "nobody was told so"
    alike.tell(far)
    alike.tell(far)
    alike.over(far)
    assert noted.get_nowait() == ("d-1", 2)
    alike.over(far)
    assert noted.empty(), "each is counted once"
