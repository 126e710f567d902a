"""What a controller tells its workers of the queries that it sent them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from infaas_controller.wants import Want
from infaas_controller.wishing import alternatives, wishes_for

from infaas.domain.ids import VariantName
from infaas.domain.query import Objective
from infaas.domain.variant import VariantState
from infaas.domain.wish import ALTERNATIVES, Wish
from infaas.testing.builders import a_variant

A, B, C = (a_variant(name, cost=cost, accuracy=0.9) for name, cost in (("a", 0.1), ("b", 0.2), ("c", 0.3)))


def _simulated() -> ModuleType:
    name = "dispatch_simulated"
    if name not in sys.modules:
        path = Path(__file__).parents[2] / "scenario" / "dispatch" / "simulated.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


SimulatedCluster = _simulated().SimulatedCluster


def test_what_every_query_of_a_variant_admits_is_told_with_the_variants_themselves() -> None:
    cluster = SimulatedCluster([A, B, C], ["a"])
    cluster.engine.wants.is_on = True
    cluster.submit(id="q1", latency_ms=500.0)
    cluster.submit(id="q2", latency_ms=80.0, max_cost=0.25, items=3)
    cluster.run_for(1.0)
    ((worker, wants),) = cluster.engine.wants.take().items()
    assert worker == "w1"
    wishes = wishes_for(wants, cluster.view.variants)
    (wish,) = wishes.wishes
    assert wish == Wish(A.name, (B.name,), 4, 2, wish.latency_s)
    assert wish.latency_s == pytest.approx(0.08)
    assert wishes.variants == (B,)
    assert cluster.engine.wants.take() == {}


def test_nothing_is_counted_while_no_worker_asks() -> None:
    cluster = SimulatedCluster([A, B], ["a"])
    cluster.submit(id="q1")
    cluster.run_for(1.0)
    assert cluster.engine.wants.take() == {}


def test_of_many_that_would_do_the_best_in_each_respect_are_told() -> None:
    fast = [a_variant(f"fast-{n}", p95_ms=0.5 + n / 100, per_item_ms=0.4, memory_mib=900) for n in range(20)]
    small = [a_variant(f"small-{n}", p95_ms=90, per_item_ms=90, memory_mib=1 + n) for n in range(20)]
    strong = [a_variant(f"strong-{n}", p95_ms=5 + n, per_item_ms=0.01, memory_mib=800 + n) for n in range(20)]
    gone = a_variant("gone", p95_ms=0.1, per_item_ms=0.001, memory_mib=1, state=VariantState.RETIRED)
    unmeasured = a_variant("unmeasured", has_profile=False)
    found = {one.name for one in alternatives([*fast, *small, *strong, gone, unmeasured])}
    assert len(found) <= ALTERNATIVES
    assert {"fast-0", "small-0", "strong-0"} <= found
    assert not found & {gone.name, unmeasured.name}


def test_who_asks_for_the_most_accurate_or_the_soonest_answer_gets_no_less_of_that() -> None:
    better = a_variant("better", accuracy=0.95, p95_ms=9.0)
    sooner = a_variant("sooner", accuracy=0.85, p95_ms=1.0)
    all_of_them = {one.name: one for one in (A, better, sooner)}

    def told(objective: Objective) -> tuple[VariantName, ...]:
        want = Want(frozenset(all_of_them))
        want.add(frozenset(all_of_them), 1, 1, 0.5, objective)
        (wish,) = wishes_for({A.name: want}, all_of_them).wishes
        return wish.admitted

    assert told(Objective.COST) == (better.name, sooner.name)
    assert told(Objective.ACCURACY) == (better.name,)
    assert told(Objective.LATENCY) == (sooner.name,)


def test_queries_of_two_kinds_leave_what_both_admit() -> None:
    names = [frozenset(VariantName(name) for name in given) for given in ("abc", "abd", "ab")]
    want = Want(names[0])
    for allowed in (names[0], names[1], names[0]):
        want.add(allowed, 1, 1, 0.5, Objective.COST)
    assert (want.admitted, want.items, want.queries, want.latency_s) == (names[2], 3, 3, 0.5)
