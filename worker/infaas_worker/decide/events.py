"""What can happen to a worker, and what its rules then want done. Events are past tense, commands imperative."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death
from infaas.domain.query import Code
from infaas.domain.variant import Isolation
from infaas_worker.decide.instances import InstanceEvent, WorkKind


class StagedQuery(NamedTuple):
    """One per query of every batch, so made as cheaply as can be."""

    id: int
    items: int
    deadline: float


@dataclass(frozen=True, slots=True)
class LoadAsked:
    instance: InstanceId
    variant: VariantName
    threads: int
    memory_bytes: int
    warm_up_s: float | None = None
    """How long its warm-up should run; None: unknown."""
    probe_s: float | None = None
    warm_up_slow_s: float | None = None
    """The p99 of its runs by the profile; None: not measured."""
    probe_slow_s: float | None = None
    load_s: float | None = None
    """What loading took when it was measured."""
    latencies: tuple[float, ...] = ()
    """Typical runs by their items, from one on, up to the most that it takes; empty: not measured."""
    problem: str = ""
    """Why it cannot be loaded, when that is known beforehand; it then appears as FAILED with this reason."""
    isolation: Isolation = Isolation.THREAD


@dataclass(frozen=True, slots=True)
class DeathRemembered:
    """An instance that ended this worker's process in its life before: shown FAILED, so that everybody learns of it."""

    instance: InstanceId
    variant: VariantName
    reason: str
    death: Death


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    instance: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class BatchArrived:
    """`key` is positive and never used before; `owner` is the stream it came on."""

    key: int
    owner: str
    instance: InstanceId
    queries: tuple[StagedQuery, ...]
    expected_s: float | None = None
    slow_s: float | None = None
    """The p99 of such a batch by the profile; None: not measured."""
    likeness: Hashable | None = None
    """Equal for batches that may share a run; None: with none."""


@dataclass(frozen=True, slots=True)
class QueriesCancelled:
    key: int
    queries: frozenset[int]


@dataclass(frozen=True, slots=True)
class OwnerLeft:
    owner: str


@dataclass(frozen=True, slots=True)
class InstanceTold:
    """Something that the executor's side says of an instance."""

    instance: InstanceId
    event: InstanceEvent


@dataclass(frozen=True, slots=True)
class LeaseAsked:
    id: int
    cores: int
    max_s: float


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """The holder let go, ran out of time, or left before it got any."""

    id: int


@dataclass(frozen=True, slots=True)
class DrainBegan:
    reason: str


@dataclass(frozen=True, slots=True)
class DrainEnded:
    pass


@dataclass(frozen=True, slots=True)
class Ticked:
    stall_ratio: float = 0.0
    """Of the time, what the host has been taking lately."""


Event = (
    LoadAsked
    | DeathRemembered
    | UnloadAsked
    | BatchArrived
    | QueriesCancelled
    | OwnerLeft
    | InstanceTold
    | LeaseAsked
    | LeaseEnded
    | DrainBegan
    | DrainEnded
    | Ticked
)


@dataclass(frozen=True, slots=True)
class BeginLoad:
    """Load once every instance in `wait_for` is out of the executor."""

    instance: InstanceId
    wait_for: tuple[InstanceId, ...]


@dataclass(frozen=True, slots=True)
class BeginUnload:
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Run:
    """Start now. `queries` are those of the batch that still want an answer; empty for a warm-up or probe."""

    key: int
    kind: WorkKind
    instance: InstanceId
    queries: tuple[int, ...] = ()
    mates: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Other batches in the same run, each with its queries."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The batch as a whole failed or was refused; nothing more will be said of it."""

    key: int
    code: Code
    text: str
    was_running: bool


@dataclass(frozen=True, slots=True)
class Deliver:
    """The run is over: send its results, but none to the `cancelled` queries, whose callers have left."""

    key: int
    cancelled: frozenset[int]


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget the work; nobody is left to be told."""

    key: int


@dataclass(frozen=True, slots=True)
class GrantLease:
    id: int
    core_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A state changed: tell every controller."""


@dataclass(frozen=True, slots=True)
class Condemn:
    """Something hangs in this process that nothing can end: it must be replaced. Said once."""

    reason: str


Command = BeginLoad | BeginUnload | Run | Answer | Deliver | Discard | GrantLease | Report | Condemn
