"""What a worker's autoscaler is shown of its instances: what they run counts once, and nobody's work does not."""

from __future__ import annotations

import psutil
import pytest
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    BatchArrived,
    Event,
    GrantLease,
    InstanceTold,
    LeaseAsked,
    LoadAsked,
    Queries,
    Run,
)
from infaas_worker.decide.instances import ExecutorDied, Loaded, WorkDone, WorkKind
from infaas_worker.decide.scale import Resources
from infaas_worker.decide.serving import Serving
from infaas_worker.monitor import Monitor
from infaas_worker.scaling import failed_of, replicas_of, resources_of

from infaas import machine
from infaas.domain.ids import InstanceId, VariantName
from infaas.testing.builders import a_variant

V = VariantName("v")
ONE, TWO = InstanceId("i1"), InstanceId("i2")
LATENCIES = (0.1, 0.11, 0.12, 0.13)


class Worker:
    """Two cores, 100 bytes; instances of one thread and 10 bytes."""

    def __init__(self, *instances: InstanceId) -> None:
        self.now = 100.0
        self.serving = Serving((0, 1), 100, probe_interval_s=1e9)
        self.granted: list[int] = []
        for id in instances:
            self.load(id)

    def post(self, event: Event) -> list[Run]:
        self.serving, commands = advance(self.serving, event, self.now)
        self.granted += [command.id for command in commands if isinstance(command, GrantLease)]
        return [command for command in commands if isinstance(command, Run)]

    def load(self, id: InstanceId, loaded_in_s: float = 0.0) -> None:
        self.post(LoadAsked(id, V, 1, 10, latencies=LATENCIES))
        self.now += loaded_in_s
        (warm_up,) = self.post(InstanceTold(id, Loaded(0.1, True, 1, 10)))
        self.post(InstanceTold(id, WorkDone(warm_up.key, WorkKind.WARM_UP, 0, 0.1)))

    def batch(self, key: int, id: InstanceId, owner: str = "c1", likeness: str | None = None) -> list[Run]:
        queries = Queries.of((key, 1, self.now + 60.0))
        return self.post(BatchArrived(key, owner, id, queries, 0.1, 0.2, likeness))

    def done(self, key: int, id: InstanceId, error: str = "") -> list[Run]:
        return self.post(InstanceTold(id, WorkDone(key, WorkKind.BATCH, 1, 0.5, error)))

    def busy_s(self) -> list[float]:
        return [one.busy_s for one in replicas_of(self.serving, lambda _: a_variant("v"), self.now)]

    def used_at(self) -> float:
        (one,) = replicas_of(self.serving, lambda _: a_variant("v"), self.now)
        return one.used_at


def test_what_runs_now_counts_as_far_as_it_has_come() -> None:
    worker = Worker(ONE)
    worker.batch(1, ONE)
    worker.now += 0.3
    assert worker.busy_s() == [pytest.approx(0.3)]
    worker.done(1, ONE)
    assert worker.busy_s() == [pytest.approx(0.5)]


def test_batches_of_several_controllers_in_one_run_count_once() -> None:
    worker = Worker(ONE)
    worker.batch(1, ONE)
    worker.batch(2, ONE, "c2", "alike")
    worker.batch(3, ONE, "c3", "alike")
    (run,) = worker.done(1, ONE)
    assert len(run.mates) == 1
    before = worker.busy_s()
    worker.now += 0.3
    assert worker.busy_s() == [pytest.approx(before[0] + 0.3)]


def test_a_warm_up_is_nobodys_load() -> None:
    worker = Worker()
    worker.post(LoadAsked(ONE, V, 1, 10))
    worker.post(InstanceTold(ONE, Loaded(0.1, True, 1, 10)))
    worker.now += 5.0
    assert worker.busy_s() == [0.0]


def test_a_long_load_is_no_want_of_use_and_a_query_that_the_model_refused_is_use() -> None:
    worker = Worker()
    worker.load(ONE, loaded_in_s=60.0)
    assert worker.used_at() == worker.now
    worker.now += 7.0
    worker.batch(1, ONE)
    worker.done(1, ONE, error="raised")
    assert worker.used_at() == worker.now


def test_cores_that_somebody_wants_for_himself_and_memory_that_is_held_are_no_room() -> None:
    worker = Worker(ONE, TWO)
    worker.batch(1, ONE)
    worker.batch(2, TWO)
    worker.post(LeaseAsked(9, 1, 0.25))
    found = resources_of(worker.serving, 1.5, worker.now + 3.0)
    assert found == Resources(cores=1, asked_for_s=3.0, free_bytes=80, idle_cores=1.5)
    worker.batch(3, ONE)
    worker.done(1, ONE)
    worker.done(3, ONE)
    assert worker.granted == [9]
    assert resources_of(worker.serving, 1.5, worker.now + 9.0).asked_for_s == 0.0


def test_when_an_instance_failed_is_told_for_as_long_as_it_is_shown() -> None:
    worker = Worker(ONE, TWO)
    worker.post(InstanceTold(ONE, ExecutorDied("it died")))
    assert failed_of(worker.serving) == {V: worker.now}


def test_idle_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: [1, 2])
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(psutil, "cpu_percent", lambda percpu: [0.0, 25.0, 100.0, 0.0])
    assert Monitor().idle_cores() == 0.75
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert Monitor().idle_cores() == 0.5
