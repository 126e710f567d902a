"""A simulated cluster under the engine: time is moved by hand, workers run what their profiles say, no sockets."""

from __future__ import annotations

import heapq
import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from infaas_controller.decide.curve import Curve

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code, Objective, Priority
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


def test_queries_that_arrive_together_leave_together_and_a_busy_instance_lets_them_gather() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=0.1)], ["v"])
    for n in range(16):
        cluster.submit(id=f"first-{n}")
    cluster.settle()
    assert cluster.sizes == [16]
    for n in range(100):
        cluster.submit(id=f"more-{n}")
        cluster.settle()
    cluster.run_for(1.0)
    assert Counter(cluster.ended.values()) == {None: 116}
    assert cluster.sizes[1] == 1, "the staged slot is not left empty"
    assert max(cluster.sizes[2:]) > 20, "the rest gathered while the instance was busy"


def test_what_came_together_leaves_no_tiny_batch_behind() -> None:
    variant = a_variant("v", p95_ms=10, per_item_ms=0.1)
    preferred = Curve(variant).preferred
    cluster = SimulatedCluster([variant], ["v"])
    cluster.submit_together(preferred + 2)
    cluster.run_for(1.0)
    assert cluster.sizes == [preferred + 2]
    cluster.ended.clear()
    cluster.submit_together(2 * preferred - 5)
    cluster.run_for(1.0)
    assert cluster.sizes[1:] == [preferred, preferred - 5]


def test_what_is_urgent_is_served_however_deep_the_rest_waits() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=17 / 0.92, per_item_ms=17 / 0.92)], ["v"])
    bulk = 0
    for urgent in range(50):
        end = cluster.now + 0.2
        while cluster.now < end:
            while bulk - sum(id.startswith("bulk") for id in cluster.ended) < 12:
                cluster.submit(id=f"bulk-{bulk}")
                bulk += 1
            cluster.run_for(0.005)
        cluster.submit(id=f"urgent-{urgent}", latency_ms=120, priority=Priority.CRITICAL)
    cluster.run_for(2.0)
    assert max(cluster.sizes) == 2, "bulk is run in twos"
    assert Counter(code for id, code in cluster.ended.items() if id.startswith("urgent")) == {None: 50}


def test_at_twice_the_capacity_nearly_all_that_is_answered_is_in_time_and_the_rest_is_refused_early() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=4)], ["v"])
    capacity = 1 / (0.92 * 0.010)
    rng = random.Random(1)
    duration, n = 10.0, 0
    end = cluster.now + duration
    while cluster.now < end:
        cluster.submit(id=f"q{n}", latency_ms=100)
        n += 1
        cluster.run_for(rng.expovariate(2 * capacity))
    cluster.run_for(1.0)
    outcomes = Counter(cluster.ended.values())
    assert len(cluster.ended) == n
    assert outcomes[None] >= 0.9 * capacity * duration
    late = outcomes[Code.DEADLINE_PASSED]
    assert late <= 0.02 * n, f"{late} of {n} were let in and then not served"
    assert outcomes[Code.DEADLINE_UNREACHABLE] >= 0.4 * n


def test_under_overload_the_higher_priority_is_served_and_the_lower_is_not_starved_for_ever() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v"])
    rng = random.Random(2)
    for n in range(600):
        priority = Priority.CRITICAL if n % 4 == 0 else Priority.SHEDDABLE
        cluster.submit(id=f"{priority.value}-{n}", latency_ms=2_000, priority=priority)
        cluster.run_for(rng.expovariate(300))
    cluster.run_for(10.0)
    failed = Counter(id.split("-")[0] for id, code in cluster.ended.items() if code is not None)
    served = Counter(id.split("-")[0] for id in cluster.served)
    assert failed["critical"] == 0
    assert failed["sheddable"] > 0
    assert served["sheddable"] > 100


def test_pressure_moves_queries_to_the_next_dearer_variant_but_never_below_their_floor() -> None:
    variants = [
        a_variant("poor", accuracy=0.7, cost=0.01, p95_ms=1),
        a_variant("fair", accuracy=0.9, cost=0.1, p95_ms=10, per_item_ms=10, max_batch=1),
        a_variant("good", accuracy=0.95, cost=0.5, p95_ms=12, per_item_ms=12, max_batch=1),
    ]
    cluster = SimulatedCluster(variants, ["poor", "fair", "good"])
    for n in range(10):
        cluster.submit(id=f"q{n}", accuracy_min=0.85, latency_ms=60)
    cluster.run_for(1.0)
    assert set(cluster.ended.values()) == {None}
    assert set(cluster.served.values()) == {"fair", "good"}


def test_an_instance_that_hangs_gives_its_waiting_queries_to_another_one_in_time() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v", "v"])
    cluster.hung.add("i0-v")
    for n in range(12):
        cluster.submit(id=f"q{n}", latency_ms=1_000)
    cluster.run_for(2.0)
    outcomes = Counter(cluster.ended.values())
    assert outcomes == {None: 10, Code.DEADLINE_PASSED: 2}, "only what the hung instance holds is lost"


def test_a_cold_start_costs_the_load_and_not_more() -> None:
    cluster = SimulatedCluster([a_variant("v", load_ms=400, p95_ms=10)], [])
    begun = cluster.now
    cluster.submit(id="q")
    cluster.run_for(0.45)
    assert cluster.ended == {"q": None}
    assert cluster.now - begun == pytest.approx(0.45)


def test_a_load_that_is_never_reported_is_given_up_and_another_variant_serves() -> None:
    variants = [a_variant("cheap", cost=0.01, load_ms=100), a_variant("dear", cost=0.5)]
    cluster = SimulatedCluster(variants, ["dear"])
    cluster._plan = lambda when, what, subject: (  # type: ignore[method-assign]
        None if what == "loaded" else heapq.heappush(cluster._agenda, (when, next(cluster._order), what, subject))
    )
    cluster.submit(id="q")
    cluster.run_for(15.0)
    assert cluster.served == {"q": "dear"}
    assert cluster.engine.ledger.failed_load("cheap", "w1", cluster.now) is not None  # type: ignore[arg-type]


def test_a_draining_instance_finishes_what_it_has_and_gets_nothing_more() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v", "v"])
    tickets = [cluster.submit(id=f"q{n}") for n in range(8)]
    cluster.settle()
    cluster.report("i0-v", "v", InstanceState.DRAINING)
    cluster.run_for(1.0)
    assert set(cluster.ended.values()) == {None}
    lanes = Counter(ticket.lane.id for ticket in tickets if ticket.lane is not None)
    assert lanes == {"i0-v": 2, "i1-v": 6}


def test_a_query_bound_by_its_policy_stays_with_its_instance_until_it_is_answered_or_late() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v", "v"], policy="infaas")
    cluster.hung.add("i0-v")
    for n in range(12):
        cluster.submit(id=f"q{n}", latency_ms=1_000)
    cluster.run_for(2.0)
    assert Counter(cluster.ended.values()) == {None: 6, Code.DEADLINE_PASSED: 6}


def test_a_slow_spell_teaches_the_ledger_what_cannot_be_promised_and_its_end_is_noticed() -> None:
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v"])
    cluster.slow["v"] = 3.0
    for n in range(300):
        if n == 200:
            cluster.slow.clear()
        cluster.submit(id=f"q{n}", latency_ms=25)
        cluster.run_for(0.2)
    slow = [cluster.ended[f"q{n}"] for n in range(200)]
    after = [cluster.ended[f"q{n}"] for n in range(250, 300)]
    assert slow.count(None) == 0
    assert slow.count(Code.DEADLINE_PASSED) < 40, "one try now and then is how the end of it is noticed"
    assert after.count(None) == 50


@pytest.mark.timeout(30)
def test_a_query_that_is_late_at_one_instance_and_promised_to_another_is_left_to_that_one() -> None:
    """The earliest deadline of a class may be promised elsewhere: it is passed over, not chosen again."""
    cluster = SimulatedCluster([a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)], ["v", "v"])
    cluster.submit(id="first", latency_ms=200)
    cluster.settle()
    busy, idle = (cluster.engine.ledger.lanes[InstanceId(name)] for name in ("i0-v", "i1-v"))
    assert (busy.free_slots, idle.free_slots) == (1, 2)
    tight = cluster.submit(id="tight", latency_ms=15)
    assert tight.lane is idle
    loose = cluster.submit(id="loose", latency_ms=500)
    cluster.engine.queues.move(loose, busy)
    cluster.engine._dirty = {busy.id: busy, idle.id: idle}
    cluster.run_for(1.0)
    assert cluster.ended == {"first": None, "tight": None, "loose": None}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(8))
def test_callers_with_tight_deadlines_on_several_noisy_instances_are_all_answered_or_refused(seed: int) -> None:
    variants = [
        a_variant("small", accuracy=0.9, cost=0.1, p95_ms=1, per_item_ms=1, max_batch=8),
        a_variant("one", accuracy=0.99, cost=0.5, p95_ms=14, per_item_ms=14, max_batch=4),
        a_variant("two", accuracy=0.99, cost=0.5, p95_ms=8, per_item_ms=8, max_batch=4, threads=2),
    ]
    cluster = SimulatedCluster(variants, ["small", "one", "one", "two"], cores=2)
    rng = random.Random(seed)
    open_callers = dict.fromkeys(range(8), 0)
    asked = 0
    while min(open_callers.values()) < 25:
        for caller, count_so_far in open_callers.items():
            before = f"q{caller}-{count_so_far}"
            if count_so_far and before not in cluster.ended:
                continue
            open_callers[caller] = count_so_far + 1
            asked += 1
            cluster.submit(
                id=f"q{caller}-{count_so_far + 1}", latency_ms=20, accuracy_min=0.0, objective=Objective.ACCURACY
            )
        cluster.slow = {name: rng.choice([0.8, 1.0, 1.0, 3.0]) for name in cluster.variants}
        cluster.run_for(rng.expovariate(500))
    cluster.run_for(1.0)
    assert len(cluster.ended) == asked
    assert not cluster.engine.has_work
    assert cluster.engine.ledger.is_settled()
