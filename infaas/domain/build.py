"""A build turns one model version into variants. These are the values that registrar and generator exchange.

The registrar writes a `BuildOrder`; a generator leases it, reports `BuildProgress`, and leaves one `BuildResult` for
every recipe it tried, whether it made a variant or says why not. The registrar copies results into the catalogue and
publishes the variants. Neither ever waits for the other on a query's path.

A *profiling* measures one variant anew: an order like a build's, under the same leases, with one result.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from infaas.domain.ids import BuildId, Digest, ModelName, TaskName, VersionId
from infaas.domain.task import Task
from infaas.domain.variant import Accuracy, Variant


@dataclass(frozen=True, slots=True)
class BuildOrder:
    id: BuildId
    version_id: VersionId
    task: TaskName
    model: ModelName
    version: int
    task_spec: Task
    artifact: Digest
    """The registered graph after mapping: its inputs and outputs are the task's."""
    original: Digest
    evaluation: Digest | None
    """The npz that accuracy is measured on and variants are verified with."""
    calibration: Digest | None
    metric: str
    declared_accuracy: float | None
    fixed_batch: int | None
    max_batch_size: int
    profile_budget_s: float
    done: tuple[str, ...] = ()
    """Recipes whose results are already in the catalogue: a resumed build skips them."""
    attempts: int = 0
    remeasure: Variant | None = None
    """Measure this variant anew and make none; the order's id is then a profiling's."""


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a recipe stands: `planned`, `transforming`, `verifying`, `waiting-for-cores`, `profiling`, `scoring`,
    `done`, `skipped` or `failed`."""

    build: BuildId
    recipe: str
    stage: str
    fraction: float
    detail: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class BuildResult:
    """One recipe's outcome. `variant` is None when the recipe failed or did not apply; `reason` then says why."""

    build: BuildId
    recipe: str
    variant: Variant | None
    outcome: str
    """`made`, `skipped` (does not apply here) or `failed`."""
    reason: str
    max_abs_error: float | None = None
    accuracy: Accuracy | None = None
    seconds: float = 0.0


class ProfilingState(StrEnum):
    """Of a variant's new measurement. `Pending` and `Running` are open: there is at most one such of a variant."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


OPEN_PROFILINGS = (ProfilingState.PENDING, ProfilingState.RUNNING)
_PROFILING = "profile/"
"""No version's id starts so: names hold no slash."""


def profiling_build(number: int) -> BuildId:
    """The id under which a generator works on a profiling."""
    return BuildId(f"{_PROFILING}{number}")
