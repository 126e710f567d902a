"""A query with its requirements, and the two outcomes of selection: a choice or a refusal, both with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from infaas.domain.ids import DecisionId, InstanceId, TaskName, TenantName, VariantName, WorkerId
from infaas.domain.tensor import Signature, Tensor

HARD_LIMIT_S = 30.0
"""How long a query without a latency objective may take."""
DEFAULT_FLOOR_MARGIN = 0.02
"""A query that states no floor gets the best measured accuracy minus this."""


class Level(StrEnum):
    TASK = "task"
    MODEL = "model"
    VARIANT = "variant"


class Objective(StrEnum):
    COST = "cost"
    ACCURACY = "accuracy"
    LATENCY = "latency"


class Priority(StrEnum):
    CRITICAL = "critical"
    STANDARD = "standard"
    SHEDDABLE = "sheddable"

    @property
    def rank(self) -> int:
        """0 goes first."""
        return ("critical", "standard", "sheddable").index(self.value)


class AccuracyConfidence(StrEnum):
    """What a floor is compared with: the point estimate, or the lower end of the 95 % interval."""

    POINT = "point"
    LOWER95 = "lower95"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a caller asks for, after task defaults. `accuracy_min` None: the default floor; 0: no floor."""

    latency_s: float | None = None
    accuracy_min: float | None = None
    max_cost: float | None = None
    """USD per 1,000 queries."""
    objective: Objective = Objective.COST
    priority: Priority = Priority.STANDARD
    fallback: bool = False
    explain: bool = False
    accuracy_confidence: AccuracyConfidence = AccuracyConfidence.POINT
    policy: str | None = None
    tenant: TenantName | None = None
    """Among whom instances are shared fairly when there is too much to do; None: callers who do not say, as one."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context as it travels with a query: the caller's own, or our span below it."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        return self.traceparent.split("-", 2)[1]


class Query(NamedTuple):
    """One request inside the controller. Times are seconds on the controller's monotonic clock."""

    id: str
    """`x-request-id`: the caller's, or ours."""
    handle: str
    """What was asked for: the name of a task, a model or a variant."""
    version: int | None
    requirements: Requirements
    items: int
    signature: Signature
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    """Requested outputs in order; empty means all."""
    arrived_at: float
    deadline: float
    """`arrived_at` plus the objective, or plus the hard limit."""
    trace: TraceContext | None = None
    """What the worker's part of the trace hangs below; None: nobody traces this query."""
    basis: Requirements | None = None
    """What `requirements` were before the call's own deadline bounded them: others want the same until theirs. None:
    no such deadline counts."""


ANSWERED = "answered"
"""A decision's outcome that is no `Code`."""


class Code(StrEnum):
    """Stable slugs of every refusal and error; `rpc.edges` gives each its HTTP and gRPC status."""

    INVALID = "invalid-argument"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "permission-denied"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition-failed"
    TOO_LARGE = "too-large"
    SLO_UNSATISFIABLE = "slo-unsatisfiable"
    SATURATED = "saturated"
    DEADLINE_UNREACHABLE = "deadline-unreachable"
    QUOTA = "quota"
    EVICTED = "evicted-priority"
    NO_WORKER = "no-worker"
    LOADING = "loading"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    DEADLINE_PASSED = "deadline-passed"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model-failed"
    INTERNAL = "internal"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that was looked at, and why it was or was not taken."""

    variant: VariantName
    reason: str
    """`chosen`, `eligible`, or what rules it out, with the numbers."""
    predicted_s: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_source: str | None = None
    cost_usd_per_1k: float | None = None
    worker: WorkerId | None = None
    is_loaded: bool | None = None
    """None: it did not come to that question."""


class Choice(NamedTuple):
    """Run on `instance`; when that is None, load `variant` on `worker` first."""

    variant: VariantName
    worker: WorkerId
    instance: InstanceId | None
    predicted_s: float
    """Seconds from the decision to the answer."""
    reason: str
    fallback: str | None = None
    """Why the answer is below what was asked for, when the caller allowed that."""
    candidates: tuple[Candidate, ...] = ()
    is_bound: bool = False
    """Whether the query stays with this instance (bind on arrival) or may be chosen again while it waits."""
    load: tuple[VariantName, WorkerId] | None = None
    """What to load besides, so that the next query needs no fallback."""


class Refusal(NamedTuple):
    code: Code
    reason: str
    retry_after_s: float | None = None
    load: tuple[VariantName, WorkerId] | None = None
    """What to load so that a retry can succeed."""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The stored record of one query: what `explain` shows."""

    id: DecisionId
    request_id: str
    at: str
    """Wall clock, ISO 8601 UTC."""
    handle: str
    level: Level | None
    task: TaskName | None
    policy: str
    requirements: Mapping[str, object]
    outcome: str
    """`answered`, or a code's slug."""
    reason: str
    variant: VariantName | None = None
    worker: WorkerId | None = None
    instance: InstanceId | None = None
    floor: float | None = None
    predicted_ms: float | None = None
    observed_ms: float | None = None
    queue_ms: float | None = None
    batch: int | None = None
    slo_met: bool | None = None
    attempts: int = 0
    cold_start: bool = False
    fallback: str | None = None
    trace_id: str | None = None
    """Of the trace that the query belongs to, when its caller or our sampling began one."""
    candidates: tuple[Candidate, ...] = field(default=())
    candidates_left_out: int = 0
    """How many more were looked at: the journal keeps a bounded number of them."""
    alike: int = 0
    """How many more ended so in the same moment, of whom the journal keeps no more than this number."""
