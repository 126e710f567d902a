"""What the registrar asks of the subprocess that checks an upload, and what that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infaas.domain.task import Task
from infaas.domain.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    model: str
    """Path of the uploaded file."""
    adapted: str
    """Where the graph goes once its inputs and outputs are the task's."""
    metric: str
    task: Task | None
    """None: the model creates the task."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Names in the model to names in the task."""
    evaluation: str | None = None
    calibration: str | None = None
    max_bytes: int = 2 * 2**30
    """Of the model, and of the arrays of a data file after unpacking."""
    memory_bytes: int = 4 * 2**30
    """Address space of the subprocess."""
    cpu_s: int = 120
    is_data_only: bool = False
    """There is no graph: only the data files are held against the task."""


@dataclass(frozen=True, slots=True)
class InspectionAnswer:
    """Every problem found; when there are none, the adapted graph lies where the request said."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    fixed_batch: int | None = None
    evaluation_rows: int | None = None
