"""The seams inside the controller: what its edges (REST, gRPC, admin) may ask of its core."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import DecisionId, InstanceId, VariantName, WorkerId
from infaas.domain.query import Decision, Query
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError


class Outcome(msgspec.Struct, frozen=True):
    """How a query fared, whether it was answered or not: what the answer headers are made of."""

    decision_id: DecisionId
    variant: VariantName | None = None
    model: str | None = None
    version: int | None = None
    worker: WorkerId | None = None
    instance: InstanceId | None = None
    attempts: int = 0
    decided_at: float = 0.0
    """When choosing for it began on arrival, on the controller's monotonic clock; 0: it did not come to that."""
    decide_s: float = 0.0
    queue_s: float = 0.0
    run_s: float = 0.0
    total_s: float = 0.0
    slo_met: bool | None = None
    """None when the query had no latency objective and no answer."""
    cold_start: bool = False
    fallback: str | None = None


class Answer(msgspec.Struct, frozen=True):
    outcome: Outcome
    outputs: tuple[Tensor, ...]


class QueryFailedError(InfaasError):
    """A query that was refused, dropped or failed; carries what the answer headers say about it."""

    def __init__(self, cause: InfaasError, outcome: Outcome) -> None:
        super().__init__(
            cause.text,
            code=cause.code,
            is_retryable=cause.is_retryable,
            retry_after_s=cause.retry_after_s,
            problems=cause.problems,
        )
        self.outcome = outcome


class Waiter(ABC):
    """Who waits for the end of a query without a task of its own: what a future is to one that has. All calls come on
    the loop; none may raise."""

    __slots__ = ()

    @abstractmethod
    def done(self) -> bool:
        """Whether nobody waits any more."""

    @abstractmethod
    def set_result(self, answer: Answer) -> None: ...

    @abstractmethod
    def set_exception(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class VariantStats:
    """Counters since the controller started; what `GET .../stats` shows. Durations in seconds, summed."""

    inference_count: int = 0
    """Items answered."""
    execution_count: int = 0
    """Batches run."""
    success_count: int = 0
    fail_count: int = 0
    queue_s: float = 0.0
    run_s: float = 0.0
    success_s: float = 0.0
    fail_s: float = 0.0
    last_inference_at: float = 0.0
    """Wall clock, seconds since the epoch; 0: never."""
    batches: Mapping[int, tuple[int, float]] | None = None
    """By batch size: how many, and the seconds they ran in all."""


class QueryService(Protocol):
    """The query path as its edges see it; implemented by `dispatch.Dispatcher`."""

    @property
    def view(self) -> ClusterView: ...

    async def submit(self, query: Query) -> Answer:
        """Serve a query. Cancelling the call drops the query wherever it is.

        Raises QueryFailedError for every query that gets no answer.
        """

    def can_begin(self, query: Query) -> bool:
        """Whether `begin` takes it; else something must be awaited first, and it needs `submit`."""

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        """As `submit`, for a waiter. What is returned drops the query wherever it is; call it only while the waiter
        waits.

        Raises QueryFailedError when nothing is taken any more.
        """

    def decision(self, key: str) -> Decision | None:
        """By decision id or request id; None when it is no longer kept."""

    def recent(self, limit: int) -> Sequence[Decision]: ...

    def note_alike(self, id: DecisionId, count: int) -> None:
        """So many more queries were told what this decision says, without being looked at."""

    def stats(self) -> Mapping[VariantName, VariantStats]: ...

    def is_ready(self) -> bool:
        """Whether queries can be served: the view is there and, if anything is registered, a worker answers."""

    def in_flight(self) -> int: ...

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        """Start loading a variant; returns where. Raises InfaasError when no worker can take it."""

    def unload(self, variant: VariantName) -> int:
        """Drain every instance of a variant; returns how many."""
