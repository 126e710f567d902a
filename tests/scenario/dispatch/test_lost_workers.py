"""A worker is lost under load, on simulated workers and a manual clock: nobody pays for it but with time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from infaas_controller.commands import BatchResult
from infaas_controller.placing import PARKED_S

from infaas.domain.query import Code
from infaas.domain.tensor import Tensor
from infaas.testing.builders import a_tensor, a_variant


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


def inputs(number: int) -> tuple[Tensor, ...]:
    plain = a_tensor()
    data = np.full(len(plain.data) // 4, number, dtype=np.float32).tobytes()
    return (Tensor(plain.name, plain.datatype, plain.shape, data),)


def test_a_query_that_is_parked_twice_waits_its_whole_time_again() -> None:
    v = a_variant("v", p95_ms=10, load_ms=30_000)  # so that it is never sent, and its losses are not its doing
    cluster = SimulatedCluster([v], [])
    worker = cluster.worker
    cluster.submit(id="q", handle="v", latency_ms=100_000)

    def come_back() -> None:
        cluster.view = cluster.view.with_worker(worker)
        cluster.engine.view_changed(cluster.view, cluster.now)
        cluster.engine.worker_reported(worker, cluster.now)

    cluster.lose("w1")
    cluster.run_for(PARKED_S - 1)
    come_back()
    cluster.run_for(0.5)
    cluster.lose("w1")
    cluster.run_for(PARKED_S - 0.5)
    assert "q" not in cluster.ended
    come_back()
    cluster.run_for(40.0)

    assert cluster.ended == {"q": None}


class Loaded:
    """A simulated cluster of `v` on each of three workers, and callers who send one of `kinds` inputs."""

    def __init__(
        self, kinds: int, *, rate: float = 50.0, per_item_ms: float = 6.0, deadline_ms: float = 1_000.0
    ) -> None:
        v = a_variant("v", p95_ms=10, per_item_ms=per_item_ms, max_batch=32)
        self.cluster = SimulatedCluster([v], ["v"], cores=1, elsewhere={"w2": ["v"], "w3": ["v"]})
        self.kinds, self.rate, self.deadline_ms = kinds, rate, deadline_ms
        self.due: list[float] = []

    def send(self, count: int) -> None:
        for _ in range(count):
            number = len(self.due)
            self.due.append(self.cluster.now)
            self.cluster.submit(
                id=f"q{number}", handle="v", latency_ms=self.deadline_ms, inputs=inputs(number % self.kinds)
            )

    def load(self, seconds: float) -> None:
        for _ in range(round(seconds * self.rate)):
            self.send(1)
            self.cluster.run_for(1 / self.rate)

    def lose_the_busiest(self) -> int:
        """Queries that were running there, or may have been."""
        lanes = self.cluster.engine.ledger.lanes.values()
        busiest = max(lanes, key=lambda lane: sum(flight.items for flight in lane.flights.values()))
        running: int = next(iter(busiest.flights.values())).items
        self.cluster.lose(str(busiest.worker.id))
        return running

    def failed_at(self) -> list[float]:
        return [self.due[int(id[1:])] for id, code in self.cluster.ended.items() if code is not None]


@pytest.mark.parametrize("kinds", [50, 10_000])
def test_nobody_fails_when_a_full_worker_is_lost_and_its_variant_is_on_others(kinds: int) -> None:
    """Also not those who send again what was running there, and wait for a process of its own."""
    loaded = Loaded(kinds)
    loaded.load(2.0)
    loaded.send(60)
    loaded.cluster.settle()
    assert loaded.lose_the_busiest() > 1
    loaded.load(5.0)
    loaded.cluster.run_for(2.0)
    assert loaded.failed_at() == []
    assert len(loaded.cluster.ended) == len(loaded.due)
    assert loaded.cluster.engine.ledger.is_settled()


def test_a_process_that_starts_too_slowly_costs_only_the_queries_with_the_inputs_that_were_running() -> None:
    loaded = Loaded(50)
    loaded.load(2.0)
    loaded.send(60)
    loaded.cluster.settle()
    loaded.cluster.process_load_s = 3.0
    lost_at, running = loaded.cluster.now, loaded.lose_the_busiest()
    loaded.load(8.0)
    loaded.cluster.run_for(2.0)
    failed = loaded.failed_at()
    rounds = 3.0 * loaded.rate / loaded.kinds
    assert running <= len(failed) <= running * (1 + rounds)
    assert max(failed) < lost_at + 3.0, "none fails once the process is there"


def a_suspect_that_runs_alone() -> tuple[Loaded, str]:
    """One query whose worker was lost while it ran; it now runs on the second worker it met, which is returned."""
    loaded = Loaded(1, deadline_ms=2_000.0)
    loaded.send(1)
    loaded.cluster.settle()
    assert loaded.lose_the_busiest() == 1
    engine = loaded.cluster.engine
    while not (lanes := [lane for lane in engine.ledger.lanes.values() if lane.is_isolated and lane.flights]):
        assert engine.live == 1
        loaded.cluster.run_for(0.005)
    return loaded, str(lanes[0].worker.id)


def test_a_worker_that_is_lost_while_a_suspect_runs_there_in_its_own_process_is_not_laid_to_the_suspect() -> None:
    loaded, worker = a_suspect_that_runs_alone()
    loaded.cluster.lose(worker)
    loaded.cluster.run_for(2.0)
    assert loaded.cluster.ended == {"q0": None}
    loaded.send(1)
    loaded.cluster.run_for(1.0)
    assert loaded.cluster.ended["q1"] is None, "its input is not in quarantine"


def test_an_input_that_ran_to_its_end_is_cleared_even_when_its_deadline_passed_meanwhile() -> None:
    loaded, _ = a_suspect_that_runs_alone()
    loaded.cluster.run_for(0.0)
    (lane,) = [lane for lane in loaded.cluster.engine.ledger.lanes.values() if lane.is_isolated]
    (batch,) = lane.flights
    now = loaded.cluster.now
    loaded.cluster.engine.started(batch, now)
    loaded.cluster.engine.expire(now + 2.0)
    loaded.cluster.engine.done(batch, BatchResult(failed={1: ("cancelled", "")}), now + 2.0)
    loaded.cluster._perform()
    assert loaded.cluster.ended == {"q0": Code.DEADLINE_PASSED}
    assert loaded.cluster.submit(id="again", handle="v", latency_ms=1_000.0, inputs=inputs(0)).deaths == 0
