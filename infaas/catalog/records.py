"""What the catalogue hands out: frozen rows in domain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infaas.domain.build import ProfilingState
from infaas.domain.ids import Digest, ModelName, TaskName, VariantName, VersionId
from infaas.domain.lifecycle import BuildState
from infaas.domain.task import Task
from infaas.domain.variant import Isolation
from infaas.errors import ConflictError


class TaskAppearedError(ConflictError):
    """The task that a registration was about to create exists by now: check the model against it and try again."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    name: ModelName
    task: TaskName
    current: int | None
    """The version that serves."""
    wanted: int | None
    """The version that should serve; while it differs from `current`, it is being warmed."""
    labels: Mapping[str, str]
    reason: str
    """Why `wanted` does not serve yet, when there was trouble."""
    created_at: float
    retired_at: float | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    id: VersionId
    model: ModelName
    number: int
    original: Digest
    artifact: Digest
    evaluation: Digest | None
    calibration: Digest | None
    metric: str
    declared_accuracy: float | None
    fixed_batch: int | None
    evaluation_rows: int | None
    warnings: tuple[str, ...]
    state: BuildState
    reason: str
    created_at: float
    updated_at: float
    isolation: Isolation = Isolation.THREAD
    """Of its variants, until one of them shows that it needs another."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What became of one recipe."""

    recipe: str
    outcome: str
    reason: str
    variant: str | None
    max_abs_error: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Registration:
    """A checked upload, its artifacts already in the repository."""

    task: Task
    """The task as it is, or as this registration would create it."""
    is_task_known: bool
    model: ModelName
    labels: Mapping[str, str]
    original: Digest
    artifact: Digest
    evaluation: Digest | None
    calibration: Digest | None
    metric: str
    declared_accuracy: float | None
    fixed_batch: int | None
    evaluation_rows: int | None
    warnings: tuple[str, ...] = ()
    isolation: Isolation = Isolation.THREAD


@dataclass(frozen=True, slots=True)
class Registered:
    version: VersionRow
    is_new: bool
    """Whether there is something to build or to revive that was not there before."""
    created_task: bool


@dataclass(frozen=True, slots=True)
class AuditRow:
    at: float
    actor: str
    action: str
    subject: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfilingRow:
    """An order to measure a variant anew."""

    id: int
    variant: VariantName
    budget_s: float
    state: ProfilingState
    reason: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's idempotency key, and what tells the request from any other."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Ordered:
    """`is_new` is false when the variant was about to be measured already."""

    profiling: ProfilingRow
    is_new: bool
