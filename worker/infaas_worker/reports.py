"""What the worker says of itself: its record for the store, and the report on every controller's stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infaas.clock import Clock
from infaas.domain.action import Autoscaling
from infaas.domain.cluster import InstanceRecord, WorkerRecord
from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import WorkerState
from infaas.rpc.codec import encode
from infaas.rpc.v1 import worker_pb2
from infaas_worker.decide.instances import Instance
from infaas_worker.decide.serving import Serving, held_for_others
from infaas_worker.monitor import Monitor


@dataclass(frozen=True, slots=True)
class Shape:
    """What must differ for the stored record to be written again."""

    state: WorkerState
    instances: tuple[tuple[InstanceId, str, str], ...]


class Reporter:
    """Builds records and reports from the newest `Serving`; owned by the composition root."""

    def __init__(
        self, base: WorkerRecord, clock: Clock, monitor: Monitor, autoscaling: Callable[[], Autoscaling]
    ) -> None:
        self._autoscaling = autoscaling
        self._base = base
        self._clock = clock
        self._monitor = monitor
        self._sequence = 0

    def record(self, serving: Serving, *, state: WorkerState | None = None) -> WorkerRecord:
        """`state` overrides what the machine says while the worker starts or has ended."""
        shift = self._clock.wall() - self._clock.now()
        instances = {key: self._instance(one, shift) for key, one in serving.instances.items()}
        reason = serving.failure or self._base.reason
        return replace(self._base, state=state or _state(serving), instances=instances, reason=reason)

    def shape(self, serving: Serving) -> Shape:
        instances = tuple((key, one.state.value, one.reason) for key, one in serving.instances.items())
        return Shape(_state(serving), instances)

    def report(self, serving: Serving, *, state: WorkerState | None = None) -> worker_pb2.WorkerMessage:
        self._sequence += 1
        load = self._monitor.load()
        return worker_pb2.WorkerMessage(
            report=worker_pb2.WorkerReport(
                worker=encode(self.record(serving, state=state)),
                sequence=self._sequence,
                cpu_ratio=load.cpu_ratio,
                memory_ratio=load.memory_ratio,
                stall_ratio=load.stall_ratio,
                loads=[_load(one, held_for_others(serving, "", one.id)) for one in serving.instances.values()],
                autoscaling=encode(self._autoscaling()),
            )
        )

    def _instance(self, one: Instance, shift: float) -> InstanceRecord:
        return InstanceRecord(
            id=one.id,
            variant=one.variant,
            worker=self._base.id,
            state=one.state,
            slots=one.slots,
            loaded_at=0.0 if one.loaded_at is None else one.loaded_at + shift,
            last_ok_at=0.0 if one.last_ok_at is None else one.last_ok_at + shift,
            reason=one.reason,
            isolation=one.isolation,
            death=one.death,
        )


def _state(serving: Serving) -> WorkerState:
    if serving.failure:
        return WorkerState.FAILED
    return WorkerState.DRAINING if serving.is_draining else WorkerState.READY


def _load(one: Instance, held_items: int) -> worker_pb2.InstanceLoad:
    """Batches only: a warm-up or a probe (their keys are negative) is nobody's work and over at once, but would count
    until the next report."""
    return worker_pb2.InstanceLoad(
        instance=one.id,
        running=sum(key > 0 for key in one.running),
        staged=sum(key > 0 for key in one.staged),
        items_done=one.items_done,
        busy_s=one.busy_s,
        load_s=one.load_s,
        was_cold=one.was_cold,
        held_items=held_items,
    )
