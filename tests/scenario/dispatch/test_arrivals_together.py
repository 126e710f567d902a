"""Queries that came in one turn of the loop: decided on together, served and refused as if one by one."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.options import Situation
from infaas_controller.decide.policies.base import Policy, Verdict
from infaas_controller.policies import installed_policies
from infaas_controller.room import Bounds

from infaas.domain.ids import TenantName
from infaas.domain.query import Code, Objective, Requirements
from infaas.testing.builders import a_query, a_variant


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
    *,
    decides_together: bool = True,
    loaded: tuple[str, ...] = ("v",),
    elsewhere: dict[str, list[str]] | None = None,
    bounds: Bounds | None = None,
    **curve: Any,
) -> tuple[Any, Counting]:
    policy = Counting(installed_policies()("slo"), decides_together=decides_together)
    variants = [a_variant("v", **curve), a_variant("w", cost=1.0, p95_ms=20)]
    given = {} if bounds is None else {"bounds": bounds}
    return SimulatedCluster(variants, loaded, policies=lambda name: policy, elsewhere=elsewhere, **given), policy


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


def test_each_ends_at_its_own_deadline_though_they_came_together() -> None:
    cluster, _ = a_cluster(p95_ms=1, per_item_ms=0.1, max_batch=64)
    cluster.hung.add("i0-v")
    left_ms = [30, 10, 20, 10, 200]
    begun = cluster.now
    cluster.submit_together(5, left_ms, latency_ms=1000)
    ended: dict[str, float] = {}
    while len(cluster.ended) < 5:
        cluster.run_for(0.001)
        for id in cluster.ended:
            ended.setdefault(id, cluster.now - begun)
    assert set(cluster.ended.values()) == {Code.DEADLINE_PASSED}
    assert ended == pytest.approx({f"q{n}": ms / 1e3 for n, ms in enumerate(left_ms)}, abs=0.0011)
    assert cluster.engine.live == 0


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
    assert policy.asked == 2, "for the tightest, and for who has the most time"
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
    first = cluster.submit_together(1, latency_ms=1000)[0].query
    tight = first._replace(requirements=Requirements(latency_s=0.001), deadline=cluster.now + 0.001)
    policy.asked = 0
    cluster.submit_these([each._replace(id=f"m{n}") for n, each in enumerate([first, tight, first, tight])])
    assert policy.asked == 3
    assert cluster.ended == {"m1": Code.SLO_UNSATISFIABLE, "m3": Code.SLO_UNSATISFIABLE}
    cluster.run_for(1.0)
    assert (cluster.ended["m0"], cluster.ended["m2"]) == (None, None)


def bounded(cluster: Any, latencies_ms: Sequence[float], **given: Any) -> list[Any]:
    """Queries `m0`, `m1` and so on that want the same, each until the deadline of its own call."""
    query = a_query(at=cluster.now, latency_ms=86_400_000, **given)
    return [
        query._replace(
            id=f"m{n}",
            requirements=replace(query.requirements, latency_s=ms / 1e3),
            deadline=cluster.now + ms / 1e3,
            basis=query.requirements,
        )
        for n, ms in enumerate(latencies_ms)
    ]


def test_calls_that_differ_in_their_own_deadlines_are_decided_on_together() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    cluster.submit_these(bounded(cluster, [99.8, 99.1, 98.7, 99.9, 60.0]))
    assert policy.asked == 1
    cluster.run_for(1.0)
    assert cluster.sizes == [5]
    assert Counter(cluster.ended.values()) == {None: 5}
    assert cluster.engine.ledger.is_settled()


def test_who_states_what_others_bound_to_a_deadline_of_their_own_is_among_them() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    first, *others = bounded(cluster, [99.8, 99.1, 98.7])
    cluster.submit_these([first._replace(requirements=first.basis, basis=None), *others])
    assert policy.asked == 2, "who has half a minute or more is less urgent"
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 3}
    assert cluster.engine.ledger.is_settled()


def test_calls_of_several_tenants_are_decided_on_by_tenant_whatever_their_own_deadlines() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    mine = bounded(cluster, [99.8, 99.1, 98.7, 99.9])
    basis = mine[0].basis
    assert basis is not None
    his = replace(basis, tenant=TenantName("b"))
    others = [
        each._replace(id=f"b{n}", requirements=replace(each.requirements, tenant=his.tenant), basis=his)
        for n, each in enumerate(mine)
    ]
    cluster.submit_these([each for pair in zip(mine, others, strict=True) for each in pair])
    assert policy.asked == 2
    (line,) = cluster.engine.ledger.lines
    assert {flow.tenant: flow.items for flow in line.flows.values()} == {None: 4, "b": 4}
    cluster.run_for(1.0)
    assert cluster.sizes == [8]
    assert Counter(cluster.ended.values()) == {None: 8}
    assert cluster.engine.ledger.is_settled()


def test_a_call_that_no_variant_could_serve_hears_that_whatever_those_with_more_time_hear() -> None:
    cluster, policy = a_cluster(p95_ms=50, loaded=("v",), max_batch=1)
    cluster.submit_together(3, latency_ms=1000)
    cluster.settle()
    policy.asked = 0
    cluster.submit_these(bounded(cluster, [5.0, 6.0, 7.0, 101.0, 60.0]))
    assert [cluster.ended[f"m{n}"] for n in range(5)] == [
        *[Code.SLO_UNSATISFIABLE] * 3, Code.DEADLINE_UNREACHABLE, Code.DEADLINE_UNREACHABLE,
    ]  # fmt: skip


def test_who_has_less_time_left_is_refused_alone() -> None:
    """A request whose body came slowly, in the same turn as others."""
    cluster, _ = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    cluster.submit_together(8, left_ms=[-50.0, 5.0], latency_ms=100)
    assert cluster.ended == {"q0": Code.DEADLINE_PASSED, "q1": Code.DEADLINE_UNREACHABLE}
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values())[None] == 6


def test_whose_deadline_has_passed_hears_that_and_not_why_others_are_refused() -> None:
    cluster, _ = a_cluster(p95_ms=10)
    cluster.submit_together(4, left_ms=[3.0, -1.0, 3.0, 4.0], latency_ms=100)
    assert cluster.ended == {
        "q0": Code.DEADLINE_UNREACHABLE, "q1": Code.DEADLINE_PASSED, "q2": Code.DEADLINE_UNREACHABLE,
        "q3": Code.DEADLINE_UNREACHABLE,
    }  # fmt: skip


def test_instances_that_are_as_free_share_what_came() -> None:
    cluster, _ = a_cluster(p95_ms=10, per_item_ms=2, max_batch=16, elsewhere={"w2": ["v"], "w3": ["v"]})
    cluster.submit_together(12, latency_ms=1000)
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 12}
    assert len(cluster.sizes) == 3
    assert max(cluster.sizes) <= 6


def test_where_the_least_latency_is_wanted_each_is_chosen_for() -> None:
    cluster, policy = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64)
    cluster.submit_together(6, latency_ms=1000, objective=Objective.LATENCY)
    assert policy.asked == 6


def test_where_not_all_find_room_who_came_first_does() -> None:
    cluster, _ = a_cluster(p95_ms=10, per_item_ms=0.1, max_batch=64, bounds=Bounds(2))
    first = a_query(at=cluster.now, latency_ms=1000)
    other = first._replace(requirements=replace(first.requirements, accuracy_min=0.5))
    cluster.submit_these([each._replace(id=f"m{n}") for n, each in enumerate([first, other, first])])
    assert cluster.ended == {"m2": Code.SATURATED}


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


def test_a_fault_in_joining_spares_who_was_placed_and_ends_the_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, _ = a_cluster(p95_ms=10)
    monkeypatch.setattr(cluster.engine, "_join", lambda *given: 1 / 0)
    cluster.submit_together(5, latency_ms=1000)
    assert Counter(cluster.ended.values()) == {Code.INTERNAL: 4}
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {Code.INTERNAL: 4, None: 1}
    assert cluster.engine.ledger.is_settled()


@given(
    count=st.integers(1, 60),
    latency_ms=st.sampled_from([8.0, 15.0, 40.0, 200.0, None]),
    max_batch=st.sampled_from([1, 4, 16, 64]),
    per_item_ms=st.sampled_from([0.1, 1.0, 10.0]),
    items=st.sampled_from([1, 2, 5]),
    workers=st.integers(1, 3),
)
def test_as_many_are_answered_as_one_by_one(
    count: int, latency_ms: float | None, max_batch: int, per_item_ms: float, items: int, workers: int
) -> None:
    answered = []
    for are_together in (True, False):
        cluster, _ = a_cluster(
            decides_together=are_together, p95_ms=max(5.0, per_item_ms), per_item_ms=per_item_ms,
            max_batch=max_batch, elsewhere={f"w{n}": ["v"] for n in range(2, workers + 1)},
        )  # fmt: skip
        cluster.submit_together(count, latency_ms=latency_ms, items=items)
        cluster.run_for(40.0)
        outcomes = Counter(cluster.ended.values())
        assert outcomes.total() == count
        assert cluster.engine.ledger.is_settled()
        answered.append(outcomes[None])
    assert answered[0] >= answered[1]
