"""The view: an immutable snapshot of what is registered and what runs. Decisions read it and nothing else.

It is shared structurally: one worker's change makes a new `ClusterView` that reuses every other worker's record.
Load figures are not here; they live in the controller's ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from infaas.domain.ids import ControllerId, InstanceId, ModelName, TaskName, VariantName, WorkerId
from infaas.domain.lifecycle import Death, InstanceState, WorkerState
from infaas.domain.query import Level
from infaas.domain.task import Model, Task
from infaas.domain.variant import Isolation, Variant

UNREAD = "this controller has just started and has not read the metadata store yet; ask again or ask another"
UNFILLED = "the metadata store has not been filled from the catalogue yet; ask again"
UNREAD_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    id: InstanceId
    variant: VariantName
    worker: WorkerId
    state: InstanceState
    slots: int = 2
    """Batches it holds at most: one running and one staged."""
    loaded_at: float = 0.0
    """Wall clock, seconds since the epoch."""
    last_ok_at: float = 0.0
    """When a real inference last succeeded (SURFACE rule 9)."""
    reason: str = ""
    isolation: Isolation = Isolation.THREAD
    death: Death | None = None
    """Of a FAILED one that took its process with it, or would not end. None: it failed in an orderly way."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker says of itself. `address` is what a controller dials: `unix:/path` or `host:port`."""

    id: WorkerId
    address: str
    state: WorkerState
    pool: str
    cores: int
    memory_bytes: int
    """Budget for instances, not the machine's."""
    price_usd_per_hour: float
    host: str
    pid: int = 0
    started_at: float = 0.0
    instances: Mapping[InstanceId, InstanceRecord] = field(default_factory=dict)
    version: str = ""
    reason: str = ""
    """Why it is FAILED; on one that is READY, what ended its life before this one."""


@dataclass(frozen=True, slots=True)
class ControllerRecord:
    """How controllers find each other; the store forgets it soon after its controller is gone."""

    id: ControllerId
    url: str
    """Where its REST is reached from the other controllers."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything that selection may look at, keyed for it."""

    tasks: Mapping[TaskName, Task] = field(default_factory=dict)
    models: Mapping[ModelName, Model] = field(default_factory=dict)
    variants: Mapping[VariantName, Variant] = field(default_factory=dict)
    """Published variants of every version that is not retired."""
    workers: Mapping[WorkerId, WorkerRecord] = field(default_factory=dict)
    version: int = 0
    """Grows with every change; caches keyed by it are valid for exactly one view."""
    is_listed: bool = True
    """Whether the store has been read since the start. Until then, what is not here may well be there."""
    is_filled: bool = True
    """Whether it held what the catalogue has, at any time since. Until then, what is not here may well be registered:
    whoever leads writes it again into a store that came back empty."""

    def level_of(self, name: str) -> Level | None:
        if name in self.tasks:
            return Level.TASK
        if name in self.models:
            return Level.MODEL
        if name in self.variants:
            return Level.VARIANT
        return None

    def with_worker(self, worker: WorkerRecord) -> ClusterView:
        return replace(self, workers={**self.workers, worker.id: worker}, version=self.version + 1)

    def without_worker(self, worker: WorkerId) -> ClusterView:
        return replace(self, workers={k: v for k, v in self.workers.items() if k != worker}, version=self.version + 1)
