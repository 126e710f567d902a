"""What the fleet's rules look at, gathered from the parts of one controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from infaas.clock import Clock
from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.fleet import ControllerDemand
from infaas.domain.ids import InstanceId, TaskName, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.decide.demand import (
    WANT,
    DemandMemory,
    Ends,
    InstanceWork,
    Work,
    WorkerWork,
    WorkMemory,
    costs_at_work,
    unserved,
    work_done,
)
from infaas_controller.decide.stock import Activity
from infaas_controller.ports import VariantStats

OVERLOADED = 0.9
"""Of the time that its instances could run, and no core is left for another."""
Requests = Mapping[tuple[str, str | None, Code | None], float]


class OwnDemand:
    """What this controller could not serve, from what it has counted anyway."""

    def __init__(
        self,
        requests: Callable[[], Requests],
        stats: Callable[[], Mapping[VariantName, VariantStats]],
        waiting: Callable[[], Mapping[str, int]],
        view: Callable[[], ClusterView],
        clock: Clock,
    ) -> None:
        """`waiting`: items by task."""
        self._requests = requests
        self._stats = stats
        self._waiting = waiting
        self._view = view
        self._clock = clock
        self._memory = DemandMemory()

    def look(self) -> ControllerDemand:
        answered: dict[str, dict[VariantName, float]] = {}
        wanting: dict[str, float] = {}
        for (handle, variant, code), count in self._requests().items():
            if code is None and variant:
                answered.setdefault(handle, {})[VariantName(variant)] = count
            elif code in WANT:
                wanting[handle] = wanting.get(handle, 0.0) + count
        totals = {handle: Ends(answered.get(handle, {}), wanting.get(handle, 0.0)) for handle in {*answered, *wanting}}
        items_each = {
            name: one.inference_count / one.success_count for name, one in self._stats().items() if one.success_count
        }
        waiting = {TaskName(task): float(items) for task, items in self._waiting().items()}
        demand, self._memory = unserved(
            totals, items_each, waiting, self._view(), self._memory, self._clock.now(), self._clock.wall()
        )
        return demand


class WorkersWork:
    """What all workers do, whoever asks them to, from their reports."""

    def __init__(
        self,
        reports: Callable[[], Mapping[WorkerId, tuple[pb.WorkerReport, float]]],
        busy: Callable[[WorkerId], Iterable[tuple[float, int]]],
        view: Callable[[], ClusterView],
        clock: Clock,
    ) -> None:
        """`reports`: of connected workers, with when they came. `busy`: of a worker's variants, instances that run and
        that are READY."""
        self._reports = reports
        self._busy = busy
        self._view = view
        self._clock = clock
        self._memory = WorkMemory()

    @property
    def costs_s(self) -> Mapping[VariantName, float]:
        """Core-seconds per item, as it was lately where it ran, and where there was much to do."""
        return costs_at_work(self._memory, self._clock.now())

    def look(self) -> tuple[Work | None, Mapping[WorkerId, Activity]]:
        """None: it is not known how much yet."""
        view, reports = self._view(), self._reports()
        words: list[WorkerWork] = []
        for id, (report, at) in reports.items():
            record = view.workers.get(id)
            instances = {} if record is None else record.instances
            done = [
                InstanceWork(instance.id, instance.variant, load.busy_s, float(load.items_done))
                for load in report.loads
                if (instance := instances.get(InstanceId(load.instance))) is not None
            ]
            words.append(WorkerWork(id, at, tuple(done)))
        work, self._memory = work_done(words, view.variants, self._memory, self._clock.now())
        found = {}
        for id, (report, _) in reports.items():
            record = view.workers.get(id)
            busy_cores = 0.0 if work is None else work.busy_cores.get(id, 0.0)
            is_full = record is not None and busy_cores + 1 > record.cores
            found[id] = Activity(
                busy_cores=busy_cores,
                variants=_served(record),
                in_flight=sum([load.running + load.staged for load in report.loads]),
                is_overloaded=is_full and any(busy > OVERLOADED * ready for busy, ready in self._busy(id) if ready),
            )
        return work, found


def _served(record: WorkerRecord | None) -> frozenset[VariantName]:
    instances = () if record is None else record.instances.values()
    return frozenset([one.variant for one in instances if one.state is InstanceState.READY])
