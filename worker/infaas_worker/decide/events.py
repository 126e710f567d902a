"""What can happen to a worker, and what its rules then want done. Events are past tense, commands imperative."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Self

import msgspec

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death
from infaas.domain.query import Code
from infaas.domain.variant import Isolation
from infaas_worker.decide.instances import InstanceEvent, WorkDone, WorkKind


class Queries(msgspec.Struct, frozen=True):
    """Those of a batch, as columns with an entry for each: there are many, and hardly ever is one looked at alone."""

    ids: tuple[int, ...] = ()
    items: tuple[int, ...] = ()
    deadlines: tuple[float, ...] = ()

    @classmethod
    def of(cls, *queries: tuple[int, int, float]) -> Self:
        """From id, items and deadline of each."""
        return cls(*zip(*queries, strict=True)) if queries else cls()

    def but(self, ids: Collection[int]) -> Queries:
        """Without these."""
        return self._only([place for place, id in enumerate(self.ids) if id not in ids])

    def alive(self, now: float) -> Queries:
        """Without those whose deadline has passed."""
        return self._only([place for place, deadline in enumerate(self.deadlines) if deadline > now])

    def __len__(self) -> int:
        return len(self.ids)

    def _only(self, places: Sequence[int]) -> Queries:
        if len(places) == len(self.ids):
            return self
        columns = (self.ids, self.items, self.deadlines)
        return Queries(*(tuple([column[place] for place in places]) for column in columns))  # type: ignore[arg-type]


class LoadAsked(msgspec.Struct, frozen=True):
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


class DeathRemembered(msgspec.Struct, frozen=True):
    """An instance that ended this worker's process in its life before: shown FAILED, so that everybody learns of it."""

    instance: InstanceId
    variant: VariantName
    reason: str
    death: Death


class UnloadAsked(msgspec.Struct, frozen=True):
    instance: InstanceId
    reason: str


class BatchArrived(msgspec.Struct, frozen=True):
    """`key` is positive and never used before; `owner` is the stream it came on."""

    key: int
    owner: str
    instance: InstanceId
    queries: Queries
    expected_s: float | None = None
    slow_s: float | None = None
    """The p99 of such a batch by the profile; None: not measured."""
    likeness: Hashable | None = None
    """Equal for batches that may share a run; None: with none."""


class QueriesCancelled(msgspec.Struct, frozen=True):
    key: int
    queries: frozenset[int]


class OwnerLeft(msgspec.Struct, frozen=True):
    owner: str


class InstanceTold(msgspec.Struct, frozen=True):
    """Something that the executor's side says of an instance."""

    instance: InstanceId
    event: InstanceEvent


class RunEnded(msgspec.Struct, frozen=True):
    """A run is over, for all the batches that shared it at once: nobody's answer counts a neighbour in the same run as
    work that is still to be done."""

    instance: InstanceId
    done: tuple[WorkDone, ...]


class LeaseAsked(msgspec.Struct, frozen=True):
    id: int
    cores: int
    max_s: float


class LeaseEnded(msgspec.Struct, frozen=True):
    """The holder let go, ran out of time, or left before it got any."""

    id: int


class DrainBegan(msgspec.Struct, frozen=True):
    reason: str


class DrainEnded(msgspec.Struct, frozen=True):
    pass


class Ticked(msgspec.Struct, frozen=True):
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
    | RunEnded
    | LeaseAsked
    | LeaseEnded
    | DrainBegan
    | DrainEnded
    | Ticked
)


class BeginLoad(msgspec.Struct, frozen=True):
    """Load once every instance in `wait_for` is out of the executor."""

    instance: InstanceId
    wait_for: tuple[InstanceId, ...]


class BeginUnload(msgspec.Struct, frozen=True):
    instance: InstanceId


class Run(msgspec.Struct, frozen=True):
    """Start now. `queries` are those of the batch that still want an answer; empty for a warm-up or probe."""

    key: int
    kind: WorkKind
    instance: InstanceId
    queries: tuple[int, ...] = ()
    mates: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Other batches in the same run, each with its queries."""


class Answer(msgspec.Struct, frozen=True):
    """The batch as a whole failed or was refused; nothing more will be said of it."""

    key: int
    code: Code
    text: str
    was_running: bool


class Deliver(msgspec.Struct, frozen=True):
    """The run is over: send its results, but none to the `cancelled` queries, whose callers have left."""

    key: int
    cancelled: frozenset[int]


class Discard(msgspec.Struct, frozen=True):
    """Forget the work; nobody is left to be told."""

    key: int


class GrantLease(msgspec.Struct, frozen=True):
    id: int
    core_ids: tuple[int, ...]


class Report(msgspec.Struct, frozen=True):
    """A state changed: tell every controller."""


class Condemn(msgspec.Struct, frozen=True):
    """Something hangs in this process that nothing can end: it must be replaced. Said once."""

    reason: str


Command = BeginLoad | BeginUnload | Run | Answer | Deliver | Discard | GrantLease | Report | Condemn
