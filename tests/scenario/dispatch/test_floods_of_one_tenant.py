"""Tenants that share instances: a flood of one is answered as far as there is room, and costs the others nothing."""

from __future__ import annotations

import heapq
import importlib.util
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from infaas_controller.room import Bounds

from infaas.domain.query import Code, Priority
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
CNN = a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)
"""Batching does not help it: 108.7 items a second, by its mean."""
CNN_CAPACITY = 1 / (0.92 * 0.010)
MLP = a_variant("v", p95_ms=10, per_item_ms=0.1, max_batch=32)
"""A batch of 32 takes little longer than one item."""


@dataclass(frozen=True)
class Stream:
    """Poisson arrivals of one tenant."""

    tenant: str | None
    rate: float
    given: dict[str, Any]


def play(cluster: Any, streams: list[Stream], seconds: float, seed: int = 1) -> dict[str | None, Counter[Code | None]]:
    """What became of each tenant's queries."""
    rng = random.Random(seed)
    agenda = [(cluster.now + rng.expovariate(stream.rate), n) for n, stream in enumerate(streams)]
    heapq.heapify(agenda)
    end = cluster.now + seconds
    counts: Counter[int] = Counter()
    owners: dict[str, str | None] = {}
    while agenda[0][0] < end:
        at, n = heapq.heappop(agenda)
        cluster.run_for(max(0.0, at - cluster.now))
        stream = streams[n]
        counts[n] += 1
        name = f"{n}-{counts[n]}"
        owners[name] = stream.tenant
        cluster.submit(id=name, tenant=stream.tenant, **stream.given)
        cluster.settle()
        heapq.heappush(agenda, (at + rng.expovariate(stream.rate), n))
    cluster.run_for(31.0)
    assert len(cluster.ended) == len(owners)
    assert cluster.engine.ledger.is_settled()
    found: dict[str | None, Counter[Code | None]] = {stream.tenant: Counter() for stream in streams}
    for name, tenant in owners.items():
        found[tenant][cluster.ended[name]] += 1
    return found


def attained(outcomes: Counter[Code | None]) -> float:
    return outcomes[None] / outcomes.total()


QUICK = {"latency_ms": 100}


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_one_tenant_costs_another_within_his_share_nothing(seed: int) -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    streams = [Stream("a", 5 * CNN_CAPACITY, QUICK), Stream("b", 0.3 * CNN_CAPACITY, QUICK)]
    found = play(cluster, streams, 10.0, seed)
    assert attained(found["b"]) >= 0.99
    answered = found["a"][None] + found["b"][None]
    assert answered >= 0.9 * CNN_CAPACITY * 10.0, "and nothing is wasted by it"
    late = found["a"][Code.DEADLINE_PASSED]
    assert late <= 0.02 * found["a"].total(), "the flood is refused, not let in and then dropped"


def test_without_names_callers_are_one_tenant() -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    streams = [Stream(None, 5 * CNN_CAPACITY, QUICK)]
    found = play(cluster, streams, 5.0)
    assert 0.15 <= attained(found[None]) <= 0.25
    assert not any(line.is_shared for line in cluster.engine.ledger.lines)


@pytest.mark.parametrize(
    ("flood", "other"),
    [
        ({"latency_ms": 100, "outputs": ("label",)}, QUICK),
        ({"latency_ms": 60}, {"latency_ms": 300}),
        ({}, QUICK),
        (QUICK, {}),
    ],
    ids=["another class", "tighter deadlines", "no objective", "against no objective"],
)
def test_it_does_not_matter_what_the_flood_asks_for(flood: dict[str, Any], other: dict[str, Any]) -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    streams = [Stream("a", 4 * CNN_CAPACITY, flood), Stream("b", 0.3 * CNN_CAPACITY, other)]
    assert attained(play(cluster, streams, 5.0)["b"]) >= 0.99


def test_a_flood_is_shared_out_on_several_instances() -> None:
    cluster = SimulatedCluster([CNN], ["v"], elsewhere={"w2": ["v"]})
    streams = [Stream("a", 5 * CNN_CAPACITY, QUICK), Stream("b", 0.6 * CNN_CAPACITY, QUICK)]
    assert attained(play(cluster, streams, 5.0)["b"]) >= 0.99


def test_many_small_tenants_are_served_beside_a_flood() -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    small = [Stream(f"t{n}", 0.03 * CNN_CAPACITY, QUICK) for n in range(16)]
    found = play(cluster, [Stream("a", 4 * CNN_CAPACITY, QUICK), *small], 6.0)
    outcomes = sum((found[stream.tenant] for stream in small), Counter[Code | None]())
    assert attained(outcomes) >= 0.99


def test_two_floods_get_the_same() -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    streams = [Stream("a", 5 * CNN_CAPACITY, QUICK), Stream("b", 2 * CNN_CAPACITY, QUICK)]
    found = play(cluster, streams, 6.0)
    assert found["a"][None] == pytest.approx(found["b"][None], rel=0.05)
    assert found["a"][None] + found["b"][None] >= 0.9 * CNN_CAPACITY * 6.0


def test_the_places_of_a_batch_are_shared() -> None:
    cluster = SimulatedCluster([MLP], ["v"])
    cluster.submit(id="first", tenant="a")
    cluster.settle()
    cluster.submit(id="second", tenant="a")
    cluster.settle()
    for n in range(100):
        cluster.submit(id=f"a{n}", tenant="a", latency_ms=5_000)
    for n in range(10):
        cluster.submit(id=f"b{n}", tenant="b", latency_ms=9_000)
    cluster.run_for(0.05)
    assert all(cluster.ended[f"b{n}"] is None for n in range(10)), "all of them in the next batch"
    assert sum(f"a{n}" in cluster.ended for n in range(100)) >= 10


def test_a_refusal_within_a_share_says_so() -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    cluster.submit(id="b", tenant="b", **QUICK)
    for n in range(40):
        cluster.submit(id=f"a{n}", tenant="a", **QUICK)
    assert cluster.ended["a39"] is Code.DEADLINE_UNREACHABLE
    assert "within the share of tenant 'a'" in cluster.texts["a39"]
    cluster.submit(id="b2", tenant="b", **QUICK)
    cluster.run_for(1.0)
    assert cluster.ended["b2"] is None


# -- priorities


def test_a_lower_priority_is_never_starved_and_takes_a_bounded_part_of_what_there_is() -> None:
    """Critical queries alone would fill the instance; some of the lower priority are answered all the same."""
    cluster = SimulatedCluster([CNN], ["v"])
    rng = random.Random(3)
    end, n = cluster.now + 10.0, 0
    priorities = [Priority.CRITICAL] * 4 + [Priority.SHEDDABLE]
    while cluster.now < end:
        priority = priorities[n % 5]
        cluster.submit(id=f"{priority.value}-{n}", latency_ms=2_000, priority=priority)
        n += 1
        cluster.run_for(rng.expovariate(1.5 * CNN_CAPACITY))
    cluster.run_for(5.0)
    served = Counter(id.split("-")[0] for id in cluster.served)
    assert served["sheddable"] >= 0.05 * CNN_CAPACITY * 10.0
    assert served["critical"] >= 0.8 * CNN_CAPACITY * 10.0


# -- room


def test_when_the_queue_is_full_the_floods_own_queries_are_refused_and_others_find_room() -> None:
    cluster = SimulatedCluster([CNN], [], bounds=Bounds(20))
    for n in range(30):
        cluster.submit(id=f"a{n}", tenant="a")
    assert [cluster.ended.get(f"a{n}") for n in (19, 20)] == [None, Code.SATURATED], "he is alone, so that it is full"
    for n in range(15):
        cluster.submit(id=f"b{n}", tenant="b")
    assert [cluster.ended.get(f"b{n}") for n in (9, 10)] == [None, Code.QUOTA], "both hold half of it now"
    assert [cluster.ended.get(f"a{n}") for n in (9, 10)] == [None, Code.QUOTA], "the newest went"
    assert cluster.texts["a15"] == (
        "pushed out for tenant 'b': the queue is full, and tenant 'a' had the most in it, "
        "16 of the 20 items that may wait for 'digits'"
    )
    assert cluster.texts["b12"].startswith("20 of the 20 items that may wait for 'digits' wait already, 10 of them for")
    cluster.submit(id="more", tenant="a")
    assert cluster.ended["more"] is Code.QUOTA
    assert cluster.engine.queues.items("digits") == 20


def test_a_higher_priority_pushes_out_lower_ones_those_of_the_flood_first() -> None:
    cluster = SimulatedCluster([MLP], [], bounds=Bounds(10))
    for n in range(3):
        cluster.submit(id=f"b{n}", tenant="b", priority=Priority.SHEDDABLE)
    for n in range(7):
        cluster.submit(id=f"a{n}", tenant="a", priority=Priority.SHEDDABLE)
    cluster.submit(id="high", tenant="a", items=4, priority=Priority.CRITICAL)
    assert cluster.ended == dict.fromkeys(["a3", "a4", "a5", "a6"], Code.EVICTED)
    cluster.submit(id="low", tenant="c", priority=Priority.SHEDDABLE)
    assert cluster.ended.pop("a2", cluster.ended.pop("b2", None)) is Code.QUOTA


def test_room_is_made_by_lower_priorities_first_and_the_rest_of_it_by_who_holds_most() -> None:
    cluster = SimulatedCluster([MLP], [], bounds=Bounds(10))
    for n in range(8):
        cluster.submit(id=f"a{n}", tenant="a")
    for n in range(2):
        cluster.submit(id=f"low{n}", tenant="b", priority=Priority.SHEDDABLE)
    cluster.submit(id="too large", tenant="b", items=12)
    assert cluster.ended == {"too large": Code.QUOTA}, "nobody leaves for who finds no room all the same"
    cluster.submit(id="large", tenant="b", items=4)
    assert cluster.ended == {
        "too large": Code.QUOTA, "low0": Code.EVICTED, "low1": Code.EVICTED, "a6": Code.QUOTA, "a7": Code.QUOTA,
    }  # fmt: skip


def test_queries_are_bounded_over_all_tasks_and_so_is_what_they_hold_in_memory() -> None:
    variants = [CNN, a_variant("w", task="letters", model="m2")]
    cluster = SimulatedCluster(variants, [], bounds=Bounds(1_000, queries=12, bytes=2**20))
    for n in range(10):
        cluster.submit(id=f"a{n}", tenant="a")
    for n in range(4):
        cluster.submit("letters", id=f"b{n}", tenant="b")
    assert cluster.ended == {"a9": Code.QUOTA, "a8": Code.QUOTA}
    assert cluster.engine.queues.waiting == 12
    size = cluster.engine.ledger.lines.all.bytes
    narrow = SimulatedCluster(variants, [], bounds=Bounds(1_000, bytes=size))
    for n in range(12):
        narrow.submit(id=f"a{n}", tenant="a")
    assert not narrow.ended
    narrow.submit("letters", id="b", tenant="b")
    assert narrow.ended == {"a11": Code.QUOTA}
    assert "bytes of inputs that may wait in all" in narrow.texts["a11"]
    assert narrow.engine.ledger.lines.all.bytes <= size
