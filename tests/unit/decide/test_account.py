"""What explain says of the variants that were not chosen is true and tells why."""

from __future__ import annotations

import random

import pytest
from infaas_controller.decide.account import candidates
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import select_traced
from infaas_controller.ledger import Ledger

from infaas.domain.query import Candidate, Objective
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance

NOW = 1_000.0
VARIANTS = [
    a_variant("cheap", cost=0.01, accuracy=0.90, p95_ms=4),
    a_variant("twin", cost=0.01, accuracy=0.90, p95_ms=8),
    a_variant("good", cost=0.10, accuracy=0.98, p95_ms=30),
    a_variant("poor", cost=0.001, accuracy=0.50, p95_ms=1),
]


def explained(objective: Objective, latency_ms: float = 100.0, limit: int | None = None) -> dict[str, Candidate]:
    instances = [an_instance(f"i-{variant.name}", variant=variant.name) for variant in VARIANTS]
    view = a_view(variants=VARIANTS, workers=[a_worker("w1", instances=instances)])
    ledger = Ledger()
    ledger.sync(view, NOW)
    query = a_query(at=NOW, latency_ms=latency_ms, accuracy_min=0.8, objective=objective)
    admission = Admissions().of(query, view)
    found = select_traced(query, admission, ledger, SloPolicy(), NOW, random.Random(1).random())
    return {one.variant: one for one in candidates(found, query.deadline, NOW, limit)}


def test_a_dearer_variant_is_shown_with_both_costs_and_what_it_takes_at_rest() -> None:
    shown = explained(Objective.COST)
    assert shown["cheap"].reason == "chosen"
    assert shown["good"].reason == "admitted: costs 0.1, more than the chosen 0.01 USD per 1,000; predicted at rest"
    assert shown["good"].predicted_s == pytest.approx(0.031)
    assert shown["good"].is_loaded is None, "nobody looked"


def test_equals_by_the_objective_are_settled_by_time() -> None:
    shown = explained(Objective.COST)
    assert shown["twin"].reason == "eligible: predicted in 9 ms, later than the chosen 5 ms"
    assert shown["twin"].is_loaded


def test_a_less_accurate_variant_is_shown_with_both_accuracies() -> None:
    shown = explained(Objective.ACCURACY)
    assert shown["good"].reason == "chosen"
    assert shown["cheap"].reason == "admitted: accuracy 0.9 is lower than the chosen 0.98; predicted at rest"


def test_a_slower_variant_is_shown_as_slower() -> None:
    shown = explained(Objective.LATENCY)
    assert shown["cheap"].reason == "chosen"
    assert shown["good"].reason == "admitted: slower than the chosen 5 ms; predicted at rest"


def test_what_the_objective_prefers_but_is_too_late_and_what_the_floor_rules_out_keep_their_numbers() -> None:
    shown = explained(Objective.ACCURACY, latency_ms=20.0)
    assert shown["good"].reason == "predicted in 31 ms, 20 ms are left"
    assert shown["poor"].reason == "accuracy 0.5000 (measured) is below the floor 0.8000"
    assert shown["poor"].predicted_s is None


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_of_too_many_those_stay_that_say_most(limit: int) -> None:
    whole = explained(Objective.ACCURACY)
    assert whole["good"].reason == "chosen"
    shown = explained(Objective.ACCURACY, limit=limit)
    assert "good" in shown
    assert "poor" not in shown, "what was ruled out goes first"
    assert len(shown) == limit
    assert shown.items() <= whole.items(), "what stays says the same"
