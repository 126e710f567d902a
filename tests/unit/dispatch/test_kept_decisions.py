"""Decisions are made of what was kept when somebody wants them, and say the same whenever that is."""

from __future__ import annotations

from infaas_controller.decisions import Decisions
from infaas_controller.ports import Outcome
from infaas_controller.queues import Ticket

from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.query import Decision
from infaas.testing.builders import a_query
from infaas.testing.clock import ManualClock


def ended(decisions: Decisions, id: str = "q1", code: str = "answered", **known: object) -> Outcome:
    ticket = Ticket(1, a_query("digits", id=id, latency_ms=50), None)  # type: ignore[arg-type]
    outcome = Outcome(decisions.next_id(), VariantName("v1"), worker=WorkerId("w1"), total_s=0.002, **known)  # type: ignore[arg-type]
    decisions.record(ticket, outcome, code, "because", decisions._clock.wall())
    return outcome


def test_who_wants_every_decision_sees_what_is_found_later() -> None:
    clock = ManualClock()
    decisions = Decisions("c", clock, 10)
    seen: list[Decision] = []
    decisions.on_decision(seen.append)
    outcome = ended(decisions, attempts=1)
    clock.advance(60.0)
    assert seen == [decisions.get("q1")] == [decisions.get(outcome.decision_id)]
    (decision,) = seen
    assert (decision.request_id, decision.outcome, decision.variant, decision.observed_ms) == (
        "q1",
        "answered",
        "v1",
        2.0,
    )
    assert decision.requirements["slo_latency_ms"] == 50.0


def test_who_takes_some_is_asked_with_what_they_are_and_sees_no_others() -> None:
    decisions = Decisions("c", ManualClock(), 10)
    asked: list[tuple[str, str, int, bool]] = []
    seen: list[str] = []

    def take(outcome: str, handle: str, attempts: int, is_fallback: bool) -> bool:
        asked.append((outcome, handle, attempts, is_fallback))
        return outcome != "answered"

    decisions.on_decision(lambda decision: seen.append(decision.request_id), take)
    decisions.on_traced(lambda decision, _: seen.append(decision.id), take)
    ended(decisions, "good", attempts=2, fallback="below the floor")
    bad = ended(decisions, "bad", "saturated")
    assert asked == [("answered", "digits", 2, True)] * 2 + [("saturated", "digits", 0, False)] * 2
    assert seen == ["bad", bad.decision_id]


def test_answers_and_refusals_are_told_apart_and_the_newest_comes_first() -> None:
    decisions = Decisions("c", ManualClock(), 2)
    for number in range(4):
        ended(decisions, f"good{number}")
    ended(decisions, "bad", "saturated")
    ended(decisions, "good4")
    assert [decision.request_id for decision in decisions.recent(10)] == ["good4", "bad", "good3"]
    assert decisions.get("good0") is None
    bad = decisions.get("bad")
    assert bad is not None
    assert (bad.outcome, bad.observed_ms) == ("saturated", None)


def test_a_decision_is_found_by_its_id_however_many_there_are() -> None:
    decisions = Decisions("c", ManualClock(), 50)
    ids = [ended(decisions, f"q{n}", "answered" if n % 3 else "saturated").decision_id for n in range(300)]
    known = {id: decision.request_id for id in ids if (decision := decisions.get(id)) is not None}
    assert known == {ids[n]: f"q{n}" for n in range(300) if (n % 3 and n >= 225) or (n % 3 == 0 and n >= 150)}
    assert decisions.get(ids[-1] + "0") is None
    assert decisions.get("d-other-1-299") is None


def test_the_latest_of_a_request_is_found_whatever_became_of_it() -> None:
    decisions = Decisions("c", ManualClock(), 10)
    for code in ("answered", "saturated", "answered"):
        ended(decisions, "again", code)
    last = ended(decisions, "again", "saturated")
    found = decisions.get("again")
    assert found is not None
    assert found.id == last.decision_id


def test_predictions_of_answers_are_told() -> None:
    decisions = Decisions("c", ManualClock(), 10)
    told: list[tuple[float, float]] = []
    decisions.on_prediction(lambda predicted_ms, observed_ms: told.append((predicted_ms, observed_ms)))
    ended(decisions)  # nothing was chosen for it, so nothing was predicted
    ended(decisions, "bad", "saturated")
    assert told == []
