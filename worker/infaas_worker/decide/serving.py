"""What a worker serves with and holds: every instance, every batch by key, and who has the cores. Values only.

Tensors never come here. The other rules of this folder see what they need of it: `schedule` what waits and runs,
`memory` what is resident.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from types import MappingProxyType

import msgspec

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.variant import Isolation
from infaas_worker.decide.events import LoadAsked, Queries
from infaas_worker.decide.hang import Patience
from infaas_worker.decide.instances import Instance, WorkKind
from infaas_worker.decide.memory import Resident
from infaas_worker.decide.schedule import Running, Waiting

PROTECTED_S = 5.0
"""An instance that was loaded for a query and has not answered one yet is not evicted for this long."""


class Work(msgspec.Struct, frozen=True):
    key: int
    kind: WorkKind
    instance: InstanceId
    threads: int
    owner: str
    arrived_at: float
    deadline: float
    queries: Queries = Queries()
    expected_s: float | None = None
    slow_s: float | None = None
    """The p99 of such a run; None: not measured."""
    started_at: float | None = None
    excused_s: float = 0.0
    """Since it started, what this process was paused for."""
    cancelled: frozenset[int] = frozenset()
    is_orphan: bool = False
    likeness: Hashable | None = None
    """Equal for batches that may share a run; None: with none."""

    @property
    def items(self) -> int:
        return sum(self.queries.items)


class Lease(msgspec.Struct, frozen=True):
    cores: int
    max_s: float
    asked_at: float
    core_ids: tuple[int, ...] = ()
    granted_at: float | None = None


class Serving(msgspec.Struct, frozen=True):
    core_ids: tuple[int, ...]
    memory_bytes: int
    probe_interval_s: float
    patience: Patience = Patience()
    tick_s: float = 1.0
    """How often a tick should come."""
    ticked_at: float | None = None
    failure: str = ""
    """Why this process must be replaced; empty while it need not."""
    is_draining: bool = False
    instances: Mapping[InstanceId, Instance] = MappingProxyType({})
    asked: Mapping[InstanceId, LoadAsked] = MappingProxyType({})
    work: Mapping[int, Work] = MappingProxyType({})
    leases: Mapping[int, Lease] = MappingProxyType({})
    """In the order they were asked for."""
    own_keys: int = 0
    """Warm-ups and probes made so far; their keys are negative."""

    @property
    def cores(self) -> int:
        return len(self.core_ids)

    @property
    def busy_cores(self) -> int:
        """Threads of what runs, and leased cores."""
        running = sum(work.threads for work in self.work.values() if work.started_at is not None)
        return running + sum(len(lease.core_ids) for lease in self.leases.values())

    @property
    def has_batches(self) -> bool:
        return any(work.kind is WorkKind.BATCH for work in self.work.values())


def waiting_of(work: Work) -> Waiting:
    return Waiting(work.key, work.instance, work.threads, work.arrived_at, work.deadline, work.expected_s)


def held_for_others(serving: Serving, owner: str, instance: InstanceId) -> int:
    """Items that an instance has been sent by others and has not answered: what this owner's next batch may have to
    wait for beside its own."""
    return sum(
        each.items
        for each in serving.work.values()
        if each.instance == instance and each.owner != owner and each.kind is WorkKind.BATCH
    )


def running_of(work: Iterable[Work], leases: Iterable[Lease]) -> list[Running]:
    """What takes cores, and until when: runs and granted leases."""
    running = [
        Running(each.threads, each.started_at + (each.expected_s or 0.0))
        for each in work
        if each.started_at is not None
    ]
    running += [
        Running(len(lease.core_ids), (lease.granted_at or 0.0) + lease.max_s) for lease in leases if lease.core_ids
    ]
    return running


def residents(instances: Iterable[Instance], now: float, coming: VariantName | None = None) -> list[Resident]:
    """The instances that hold memory, and which of them may be made to leave for one of the variant that is `coming`:
    those that have nothing to do, and of other variants all instances but one, at work or not. The first instance of a
    variant counts more than the second of another."""
    instances = list(instances)
    kept = _one_of_each(instances, now)
    return [
        Resident(
            one.id,
            one.memory_bytes,
            is_leaving=one.state in (InstanceState.DRAINING, InstanceState.FAILED),
            is_evictable=one.state is InstanceState.READY
            and (
                (one.variant != coming and kept[one.variant, one.isolation] != one.id)
                or (one.is_idle and (one.items_done > 0 or now - (one.loaded_at or 0.0) >= PROTECTED_S))
            ),
            recent_items=one.recent_use(now),
            reload_s=one.load_s,
        )
        for one in instances
        if one.holds_memory
    ]


def _one_of_each(instances: Iterable[Instance], now: float) -> dict[tuple[VariantName, Isolation], InstanceId]:
    """Of the READY instances of each variant, one that is at work, and of these the one that does most."""
    kept: dict[tuple[VariantName, Isolation], Instance] = {}
    for one in instances:
        if one.state is InstanceState.READY:
            before = kept.get((one.variant, one.isolation))
            if before is None or _worth(before, now) < _worth(one, now):
                kept[one.variant, one.isolation] = one
    return {key: one.id for key, one in kept.items()}


def _worth(one: Instance, now: float) -> tuple[bool, float]:
    return not one.is_idle, one.recent_use(now)
