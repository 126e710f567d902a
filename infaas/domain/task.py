"""A task is a use case with fixed inputs and outputs; callers who name it leave every choice below it to us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from infaas.domain.ids import ModelName, TaskName
from infaas.domain.query import Objective, Priority
from infaas.domain.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """Requirements of a query that states none. None leaves the system's own default."""

    slo_latency_ms: float | None = None
    slo_accuracy_min: float | None = None
    max_cost: float | None = None
    objective: Objective | None = None
    priority: Priority | None = None
    fallback: bool | None = None
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    name: TaskName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metric: str = "accuracy"
    classes: tuple[str, ...] = ()
    """Names of the classes that an answer's indices stand for; empty when there are none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    defaults: TaskDefaults = TaskDefaults()


class ModelState(StrEnum):
    """Triton's words for a model's state."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model (architecture) of a task. `current` is the version that serves; None until one is warm."""

    name: ModelName
    task: TaskName
    current: int | None
    labels: Mapping[str, str] = field(default_factory=dict)
    state: ModelState = ModelState.UNAVAILABLE
    reason: str = ""
