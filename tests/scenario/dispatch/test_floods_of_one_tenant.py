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
    end, counts, owners = cluster.now + seconds, Counter[int](), {}
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


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_one_tenant_costs_another_within_his_share_nothing(seed: int) -> None:
    cluster = SimulatedCluster([CNN], ["v"])
    quick = {"latency_ms": 100}
    streams = [Stream("a", 5 * CNN_CAPACITY, quick), Stream("b", 0.3 * CNN_CAPACITY, quick)]
    found = play(cluster, streams, 20.0, seed)
    assert attained(found["b"]) >= 0.99
    answered = found["a"][None] + found["b"][None]
    assert answered >= 0.9 * CNN_CAPACITY * 20.0, "and nothing is wasted by it"
    late = found["a"][Code.DEADLINE_PASSED]
    assert late <= 0.02 * found["a"].total(), "the flood is refused, not let in and then dropped"
