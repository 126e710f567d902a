"""What queries are told that are like one that has just been refused."""

from __future__ import annotations

from infaas_controller.api.http_turned import HOLDS_S, HOLDS_SHARE, TurnedAway

from infaas.domain.ids import DecisionId
from infaas.domain.query import Code
from infaas.testing.builders import a_query

ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nx-request-id: r-1-ab\r\ncontent-length: 25\r\n\r\n{'request_id': 'r-1-ab'}"


def turned(latency_ms: float = 1_000.0) -> TurnedAway:
    query = a_query(at=100.0, latency_ms=latency_ms)
    return TurnedAway(query, Code.DEADLINE_UNREACHABLE, DecisionId("d-1"), ANSWER, "r-1-ab", 100.0)


def test_each_is_told_the_same_under_an_id_of_his_own() -> None:
    found = turned()
    assert found.answer("r-1-cd") == ANSWER.replace(b"r-1-ab", b"r-1-cd")
    assert found.answer("r-1-ef") == ANSWER.replace(b"r-1-ab", b"r-1-ef")
    assert found.count == 2


def test_an_id_of_another_length_would_make_the_answer_lie() -> None:
    found = turned()
    assert found.answer("r-1-abc") is None
    assert found.count == 0


def test_it_holds_for_a_moment_and_for_a_small_part_of_what_time_there_is() -> None:
    assert turned().until == 100.0 + HOLDS_S
    assert turned(latency_ms=10.0).until == 100.0 + HOLDS_SHARE * 0.01
