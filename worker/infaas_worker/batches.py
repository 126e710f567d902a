"""A batch while the worker holds it: whose it is, what is to run of it, and how it ended."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec.structs import replace

from infaas.domain.ids import InstanceId
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas_worker.executors.base import BatchIn, BatchOut, QueryError


class Ran(msgspec.Struct, frozen=True):
    """How a batch that ran ended: per query its values or its error, in the order of `queries`."""

    queries: tuple[int, ...]
    """Those that ran, in the order of the batch."""
    result: BatchOut | InfaasError
    cancelled: frozenset[int]
    """Queries whose callers left, before or while it ran. Others that are not in `queries` passed their deadline."""
    staged_s: float
    run_s: float
    run_items: int = 0
    """Of the whole run, where batches of several owners shared it; 0: its own alone."""

    @property
    def output_bytes(self) -> int:
        """Of all outputs of all queries."""
        result = self.result
        if isinstance(result, InfaasError):
            return 0
        if result.whole is not None:
            return sum([memoryview(value.data).nbytes for value in result.whole.values])
        outcomes = (outcome for outcome in result.queries if not isinstance(outcome, QueryError))
        return sum(memoryview(value.data).nbytes for outcome in outcomes for value in outcome)


class Owner(Protocol):
    """Whoever sent batches and hears of them, by its own numbers. Every batch is answered by exactly one `ran` or
    `refused`, unless the owner leaves first."""

    @property
    def id(self) -> str: ...

    def started(self, batch: int) -> None:
        """Not told of a run that is over in the same turn of the loop."""

    def ran(self, batch: int, ran: Ran) -> None: ...

    def refused(self, batch: int, code: Code, text: str, was_running: bool, held_s: float) -> None: ...


class Held(msgspec.Struct):
    """One batch from its arrival until its owner has been answered."""

    owner: Owner
    number: int
    instance: InstanceId
    batch: BatchIn
    queries: tuple[int, ...]
    arrived_at: float
    useful_until: float
    """The latest deadline of its queries."""
    started_at: float = 0.0
    ran: tuple[int, ...] = ()
    items: int = 0
    cancelled: set[int] = msgspec.field(default_factory=set)
    result: BatchOut | InfaasError | None = None
    run_items: int = 0
    """Of the whole run, where others share it; 0: its own alone."""

    def begin(self, queries: tuple[int, ...], now: float) -> BatchIn:
        """It runs from now on; what of it does."""
        self.started_at = now
        self.ran = queries
        batch = self.only(queries)
        self.items = sum(batch.items)
        return batch

    def only(self, queries: tuple[int, ...]) -> BatchIn:
        """The batch without the queries that were cancelled or passed their deadline."""
        if len(queries) == len(self.queries):
            return self.batch
        wanted = set(queries)
        kept = tuple(query for key, query in zip(self.queries, self.batch.queries, strict=True) if key in wanted)
        return replace(self.batch, queries=kept, whole=None)
