"""Queries that came in one turn of the loop: decided on together, served and refused as if one by one."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.options import Situation
from infaas_controller.decide.policies.base import Policy, Verdict
from infaas_controller.policies import installed_policies

from infaas.domain.query import Code
from infaas.testing.builders import a_variant


def _simulated() -> ModuleType:
    name = "dispatch_simulated"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("simulated.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


SimulatedCluster = _simulated().SimulatedCluster


class Counting:
    """A policy that counts how often it is asked."""

    def __init__(self, inner: Policy, *, decides_together: bool) -> None:
        self.name = inner.name
        self.asked = 0
        self.decides_together = decides_together
        self._inner = inner

    def on_arrival(self, situation: Situation) -> Verdict:
        self.asked += 1
        return self._inner.on_arrival(situation)


def a_cluster(
    *, decides_together: bool = True, loaded: tuple[str, ...] = ("v",), **curve: Any
) -> tuple[Any, Counting]:
    policy = Counting(installed_policies()("slo"), decides_together=decides_together)
    variants = [a_variant("v", **curve), a_variant("w", cost=1.0, p95_ms=20)]
    return SimulatedCluster(variants, loaded, policies=lambda name: policy), policy


def test_a_batchs_worth_of_queries_is_decided_on_once() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    tickets = cluster.submit_together(30, latency_ms=1000)
    assert policy.asked == 1
    assert len({ticket.choice.predicted_s for ticket in tickets}) == 1, "they will be answered together"
    cluster.run_for(1.0)
    assert cluster.sizes == [30]
    assert Counter(cluster.ended.values()) == {None: 30}
    assert cluster.engine.ledger.is_settled()
    assert cluster.engine.live == cluster.engine.queues.waiting == 0


def test_what_does_not_fit_the_batch_is_decided_on_anew() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=8)
    cluster.submit_together(20, latency_ms=1000)
    assert policy.asked == 3
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 20}


def test_nobody_joins_a_batch_that_would_be_late_by_him() -> None:
    cluster, _ = a_cluster(p95_ms=10, per_item_ms=10, max_batch=16)
    cluster.submit_together(16, latency_ms=60)
    cluster.run_for(1.0)
    outcomes = Counter(cluster.ended.values())
    assert outcomes[None] >= 4
    assert outcomes[Code.DEADLINE_PASSED] == 0
    assert outcomes.total() == 16


def test_a_refusal_holds_for_all_that_are_alike() -> None:
    cluster, policy = a_cluster(p95_ms=50)
    tickets = cluster.submit_together(12, latency_ms=5)
    assert policy.asked == 1
    assert set(cluster.ended.values()) == {Code.SLO_UNSATISFIABLE}
    assert len({cluster.texts[ticket.query.id] for ticket in tickets}) == 1
    assert cluster.engine.live == 0


def test_a_refusal_that_starts_a_load_starts_one() -> None:
    cluster, _ = a_cluster(p95_ms=5, loaded=(), load_ms=3_000)
    cluster.submit_together(12, latency_ms=100)
    assert set(cluster.ended.values()) == {Code.LOADING}
    assert len(cluster.engine.ledger.lanes) == 1


def test_a_policy_that_does_not_say_so_is_asked_for_each() -> None:
    cluster, policy = a_cluster(decides_together=False, p95_ms=10, per_item_ms=0.1, max_batch=64)
    cluster.submit_together(12, latency_ms=1000)
    assert policy.asked == 12
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 12}


def test_queries_with_other_requirements_are_another_matter() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    engine = cluster.engine
    first = cluster.submit_together(1, latency_ms=1000)[0].query
    tight = first._replace(requirements=first.requirements.__class__(latency_s=0.001), deadline=cluster.now + 0.001)
    mixed = [engine.ticket(each._replace(id=f"m{n}"), None) for n, each in enumerate([first, tight, first, tight])]
    policy.asked = 0
    engine.arrive_together(mixed, cluster.now)
    cluster._perform()
    assert policy.asked == 2
    assert [cluster.ended.get(f"m{n}") for n in range(4)] == [None, Code.SLO_UNSATISFIABLE, None, Code.SLO_UNSATISFIABLE]
    cluster.run_for(1.0)
    assert (cluster.ended["m0"], cluster.ended["m2"]) == (None, None)


def test_a_fault_costs_only_those_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, _ = a_cluster(p95_ms=10)
    with monkeypatch.context() as broken:
        broken.setattr(cluster.engine.queues, "add", lambda *given, **named: 1 / 0)
        cluster.submit_together(5, latency_ms=1000)
    assert set(cluster.ended.values()) == {Code.INTERNAL}
    cluster.ended.clear()
    cluster.submit_together(5, latency_ms=1000)
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 5}
    assert cluster.engine.ledger.is_settled()


@given(
    count=st.integers(1, 60),
    latency_ms=st.sampled_from([8.0, 15.0, 40.0, 200.0, None]),
    max_batch=st.sampled_from([1, 4, 16, 64]),
    per_item_ms=st.sampled_from([0.1, 1.0, 10.0]),
    items=st.sampled_from([1, 2, 5]),
)
def test_as_many_are_answered_as_one_by_one(
    count: int, latency_ms: float | None, max_batch: int, per_item_ms: float, items: int
) -> None:
    answered = []
    for are_together in (True, False):
        cluster, _ = a_cluster(
            decides_together=are_together, p95_ms=max(5.0, per_item_ms), per_item_ms=per_item_ms, max_batch=max_batch
        )
        cluster.submit_together(count, latency_ms=latency_ms, items=items)
        cluster.run_for(40.0)
        outcomes = Counter(cluster.ended.values())
        assert outcomes.total() == count
        assert cluster.engine.ledger.is_settled()
        answered.append(outcomes[None])
    assert answered[0] >= answered[1]
