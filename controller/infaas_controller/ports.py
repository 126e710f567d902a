"""The seams inside the controller: what its edges (REST, gRPC, admin) may ask of its core."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import DecisionId, InstanceId, VariantName, WorkerId
from infaas.domain.query import Decision, Query
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError
from infaas_controller.outputs import Outputs


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


class Ran(msgspec.Struct, frozen=True):
    """Where a batch ran and for how long, in the words of its answers. None: the variant has left the catalogue."""

    variant: VariantName | None
    model: str | None
    version: int | None
    worker: WorkerId
    instance: InstanceId
    run_s: float


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


class Ended(Protocol):
    """What answers look at in a query that ran."""

    @property
    def number(self) -> int: ...

    @property
    def query(self) -> Query: ...

    @property
    def owner(self) -> object:
        """Who waits for it."""

    @property
    def items(self) -> int: ...

    @property
    def queue_s(self) -> float: ...


class Batch(NamedTuple):
    """Usual answers of one batch: in time, at the first attempt, without a load or a fallback."""

    ended: Sequence[Ended]
    ran: Ran
    outputs: Outputs
    places: Mapping[int, object]
    """In the outputs, by number."""
    prefix: str
    """What decision ids begin with."""
    first: int
    """What the first one's ends with; the others' are the next ones."""
    now: float
    """When they are given, on the clock of the arrivals."""


class Together(ABC):
    """Who tells many waiters at once what each would otherwise be told by itself. Calls come on the loop."""

    __slots__ = ()

    @abstractmethod
    def answer(self, batch: Batch) -> Sequence[int]:
        """Waiters that name this one are owed these answers. Returns the places in `ended` of those that it leaves to
        be told by themselves."""


class Waiter(ABC):
    """Who waits for the end of a query without a task of its own: what a future is to one that has. All calls come on
    the loop; none may raise."""

    __slots__ = ()

    @property
    def together(self) -> Together | None:
        """Who may answer it along with others."""
        return None

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

    def decide(self) -> None:
        """Decide on what has begun, without waiting for what else comes in this turn of the loop."""

    def refused(self, query: Query, error: InfaasError) -> QueryFailedError:
        """What the caller of a query is told that its edge turns away; the query leaves a decision like any other.

        Raises QueryFailedError when nothing is taken any more.
        """

    def decision(self, key: str) -> Decision | None:
        """By decision id or request id; None when it is no longer kept."""

    def recent(self, limit: int) -> Sequence[Decision]: ...

    def note_alike(self, id: DecisionId, count: int) -> None:
        """So many more queries were told what this decision says, without being looked at. Said for all of them when
        no more can come: a moment after the refusal, or when another takes its place (`api.turned`)."""

    def stats(self) -> Mapping[VariantName, VariantStats]: ...

    def is_ready(self) -> bool:
        """Whether queries can be served: the view is there and, if anything is registered, a worker answers."""

    def in_flight(self) -> int: ...

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        """Start loading a variant; returns where. Raises InfaasError when no worker can take it."""

    def unload(self, variant: VariantName) -> int:
        """Drain every instance of a variant; returns how many."""
