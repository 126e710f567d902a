"""Each policy on small situations: what it chooses, and what it says when it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.infaas import InfaasPolicy, VariantMode, step_mode
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import select
from infaas_controller.ledger import Ledger
from infaas_controller.observed import VariantLoad
from infaas_controller.policies import installed_policies

from infaas.domain.query import Choice, Code, Objective, Query, Refusal
from infaas.domain.variant import Variant
from infaas.errors import InvalidError
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance

NOW = 1_000.0
FAMILY = [
    a_variant("poor", cost=0.01, accuracy=0.70, p95_ms=1),
    a_variant("fair", cost=0.10, accuracy=0.90, p95_ms=4),
    a_variant("good", cost=0.50, accuracy=0.97, p95_ms=20),
]


class Situation:
    def __init__(self, variants: Sequence[Variant], loaded: Sequence[str], cores: int = 8) -> None:
        instances = [an_instance(f"i-{name}", variant=name) for name in loaded]
        self.view = a_view(variants=variants, workers=[a_worker("w1", instances=instances, cores=cores)])
        self.ledger = Ledger()
        self.ledger.sync(self.view, NOW)
        self.admissions = Admissions()

    def select(
        self, query: Query, policy: str | InfaasPolicy | SloPolicy = "slo", now: float = NOW
    ) -> Choice | Refusal:
        made = installed_policies()(policy) if isinstance(policy, str) else policy
        return select(query, self.admissions.of(query, self.view), self.ledger, made, now, 0.5)

    def busy(self, instance: str, items: int) -> None:
        self.ledger.reserve(self.ledger.lanes[instance], 0, items)  # type: ignore[index]


@pytest.fixture
def all_loaded() -> Situation:
    return Situation(FAMILY, ["poor", "fair", "good"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "good"),
        ({"accuracy_min": 0.0}, "poor"),
        ({"accuracy_min": 0.9}, "fair"),
        ({"accuracy_min": 0.0, "max_cost": 0.2, "objective": Objective.ACCURACY}, "fair"),
        ({"accuracy_min": 0.0, "latency_ms": 10, "objective": Objective.ACCURACY}, "fair"),
        ({"accuracy_min": 0.8, "objective": Objective.LATENCY}, "fair"),
    ],
)
def test_slo_takes_what_the_objective_likes_best_within_floor_cap_and_deadline(
    all_loaded: Situation, given: dict[str, object], expected: str
) -> None:
    choice = all_loaded.select(a_query(at=NOW, **given))  # type: ignore[arg-type]
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.instance, choice.is_bound) == (expected, f"i-{expected}", False)


def test_slo_moves_to_a_dearer_variant_while_the_cheaper_one_is_too_busy(all_loaded: Situation) -> None:
    all_loaded.busy("i-fair", 2_000)
    choice = all_loaded.select(a_query(at=NOW, accuracy_min=0.8, latency_ms=100))
    assert isinstance(choice, Choice)
    assert choice.variant == "good"
    assert "predicted in" in {c.variant: c.reason for c in choice.candidates}["fair"]


def test_an_overloaded_only_choice_is_a_429_with_a_time_to_come_back(all_loaded: Situation) -> None:
    for name in ("i-fair", "i-good"):
        all_loaded.busy(name, 2_000)
    refusal = all_loaded.select(a_query(at=NOW, accuracy_min=0.8, latency_ms=100))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.DEADLINE_UNREACHABLE
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0.05


def test_critical_queries_do_not_queue_behind_what_others_were_promised(all_loaded: Situation) -> None:
    all_loaded.ledger.reserve(all_loaded.ledger.lanes["i-fair"], 2, 2_000)  # type: ignore[index]
    from infaas.domain.query import Priority

    query = a_query(at=NOW, accuracy_min=0.8, latency_ms=100, priority=Priority.CRITICAL)
    choice = all_loaded.select(query)
    assert isinstance(choice, Choice)
    assert choice.variant == "fair"


@pytest.mark.parametrize(
    ("given", "bound", "nearest"),
    [
        ({"accuracy_min": 0.99}, "accuracy", "good"),
        ({"accuracy_min": 0.0, "max_cost": 0.001}, "cost", "poor"),
        ({"accuracy_min": 0.8, "latency_ms": 2}, "latency", "fair"),
    ],
)
def test_what_can_never_be_met_is_a_422_that_names_the_bound_and_the_nearest_variant(
    all_loaded: Situation, given: dict[str, object], bound: str, nearest: str
) -> None:
    refusal = all_loaded.select(a_query(at=NOW, **given))  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.SLO_UNSATISFIABLE
    assert refusal.reason.startswith(f"{bound}:")
    assert f"nearest is {nearest}" in refusal.reason
    assert refusal.retry_after_s is None


def test_fallback_serves_the_most_accurate_in_time_labelled_with_the_reason_and_keeps_the_cap(
    all_loaded: Situation,
) -> None:
    query = a_query(at=NOW, accuracy_min=0.99, max_cost=0.2, fallback=True)
    choice = all_loaded.select(query)
    assert isinstance(choice, Choice)
    assert choice.variant == "fair"
    assert choice.fallback is not None
    assert "0.9900" in choice.fallback


def test_a_fallback_taken_because_the_right_variant_is_not_loaded_has_it_loaded_too() -> None:
    slow = [a_variant("fair", accuracy=0.9), a_variant("good", accuracy=0.97, load_ms=60_000)]
    choice = Situation(slow, ["fair"]).select(a_query(at=NOW, accuracy_min=0.95, latency_ms=100, fallback=True))
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.load) == ("fair", ("good", "w1"))


def test_static_pins_one_variant_binds_and_still_keeps_the_floor(all_loaded: Situation) -> None:
    choice = all_loaded.select(a_query(at=NOW, accuracy_min=0.0), "static:good")
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.is_bound) == ("good", True)
    refusal = all_loaded.select(a_query(at=NOW, accuracy_min=0.8), "static:poor")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.SLO_UNSATISFIABLE
    assert "below the floor" in refusal.reason


def test_infaas_without_a_floor_stays_on_the_cheapest_variant_while_nothing_is_loaded_up(all_loaded: Situation) -> None:
    policy = InfaasPolicy()
    for step in range(5):
        choice = all_loaded.select(a_query(at=NOW + step, accuracy_min=0.0), policy, NOW + step)
        assert isinstance(choice, Choice)
        assert (choice.variant, choice.is_bound) == ("poor", True)


def test_infaas_takes_the_least_loaded_active_variant_that_meets_latency_and_accuracy(all_loaded: Situation) -> None:
    all_loaded.busy("i-fair", 10)
    choice = all_loaded.select(a_query(at=NOW, accuracy_min=0.8), "infaas")
    assert isinstance(choice, Choice)
    assert choice.variant == "good"
    tight = all_loaded.select(a_query(at=NOW, accuracy_min=0.8, latency_ms=10), "infaas")
    assert isinstance(tight, Choice)
    assert tight.variant == "fair"


def test_infaas_loads_the_inactive_variant_that_would_answer_first() -> None:
    variants = [a_variant("slow", load_ms=900, accuracy=0.9), a_variant("quick", load_ms=50, accuracy=0.9)]
    choice = Situation(variants, []).select(a_query(at=NOW), "infaas")
    assert isinstance(choice, Choice)
    assert (choice.variant, choice.instance) == ("quick", None)


def test_infaas_forgets_the_states_of_variants_that_have_vanished() -> None:
    policy = InfaasPolicy()
    for generation in range(50):
        name = f"v{generation}"
        situation = Situation([a_variant(name)], [name])
        assert isinstance(situation.select(a_query(at=NOW), policy), Choice)
        assert list(policy._marks) == [name]


def test_infaas_does_not_choose_an_overloaded_variant_while_it_lasts() -> None:
    situation = Situation([a_variant("only", p95_ms=100, accuracy=0.9)], ["only"])
    situation.busy("i-only", 50)
    policy = InfaasPolicy()
    refusal = situation.select(a_query(at=NOW), policy)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, "Overloaded" in refusal.reason) == (Code.DEADLINE_UNREACHABLE, True)
    situation.ledger.release(situation.ledger.lanes["i-only"], 0, 50)  # type: ignore[index]
    assert isinstance(situation.select(a_query(at=NOW), policy, NOW + 0.5), Refusal)
    assert isinstance(situation.select(a_query(at=NOW), policy, NOW + 1.5), Choice)


@pytest.mark.parametrize(
    ("replicas", "outstanding", "rate", "ratio", "before", "expected"),
    [
        (0, 0, 0.0, None, VariantMode.ACTIVE, VariantMode.INACTIVE),
        (1, 0, 10.0, 1.0, VariantMode.ACTIVE, VariantMode.ACTIVE),
        (1, 81, 10.0, 1.0, VariantMode.ACTIVE, VariantMode.OVERLOADED),
        (2, 81, 10.0, 1.0, VariantMode.ACTIVE, VariantMode.ACTIVE),
        (1, 0, 60.0, 2.6, VariantMode.ACTIVE, VariantMode.INTERFERED),
        (1, 0, 40.0, 2.6, VariantMode.ACTIVE, VariantMode.ACTIVE),
        (1, 0, 120.0, 2.6, VariantMode.ACTIVE, VariantMode.OVERLOADED),
        (1, 0, 10.0, 1.6, VariantMode.INTERFERED, VariantMode.INTERFERED),
        (1, 0, 10.0, 1.4, VariantMode.INTERFERED, VariantMode.ACTIVE),
    ],
)
def test_infaas_marks_and_clears_by_the_published_thresholds(
    replicas: int, outstanding: int, rate: float, ratio: float | None, before: VariantMode, expected: VariantMode
) -> None:
    variant = a_variant("v", p95_ms=10 / 0.92)
    mean_s = variant.profile.latency_s(1, "mean_s")  # type: ignore[union-attr]
    assert mean_s == pytest.approx(0.010)
    load = VariantLoad(replicas, outstanding, rate, None if ratio is None else ratio * mean_s)
    assert step_mode(variant, load, before) is expected


@pytest.mark.parametrize("name", ["nonsense", "static", "slo:x", "infaas:x"])
def test_an_unknown_or_malformed_policy_is_an_invalid_argument(name: str) -> None:
    with pytest.raises(InvalidError):
        installed_policies()(name)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"latency_ms": 0.001, "accuracy_min": 0.95}, Code.SLO_UNSATISFIABLE, "the nearest is good"),
        ({"latency_ms": 1, "accuracy_min": 0.99}, Code.SLO_UNSATISFIABLE, "good"),
        ({"latency_ms": 30, "accuracy_min": 0.95}, Code.DEADLINE_PASSED, "passed"),
    ],
)
def test_what_could_never_be_met_is_refused_as_that_even_when_its_time_is_up_already(
    all_loaded: Situation, given: dict[str, float], code: Code, said: str
) -> None:
    refusal = all_loaded.select(a_query(at=NOW, **given), now=NOW + 0.1)
    assert isinstance(refusal, Refusal)
    assert refusal.code is code
    assert said in refusal.reason
