"""Bodies that callers send, and how errors look, as OpenAPI documents them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infaas.domain.ids import TaskName
from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import Datatype, TensorSpec
from infaas_controller.register.options import TaskChange

__all__ = [
    "ErrorDocument",
    "IsolationBody",
    "ProfileBody",
    "RollbackBody",
    "TaskBody",
    "TaskChangeBody",
    "VariantBody",
    "errors",
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDocument(BaseModel):
    """Every error answer of the control plane."""

    error: str = Field(description="What was wrong, with the offending value and what would be right")
    code: str = Field(description="A stable slug")
    request_id: str | None
    decision_id: str | None
    retryable: bool = Field(description="Whether the same request may succeed later")
    problems: list[str] = Field(default_factory=list, description="Every finding, when one check found several")


class TensorBody(_Body):
    name: str
    datatype: Datatype
    shape: list[int] = Field(description="Starts with -1, which counts items; -1 elsewhere is any size")

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, tuple(self.shape))


class DefaultsBody(_Body):
    """Requirements of a query that states none."""

    slo_latency_ms: float | None = None
    slo_accuracy_min: float | None = None
    max_cost: float | None = None
    objective: Literal["cost", "accuracy", "latency"] | None = None
    priority: Literal["critical", "standard", "sheddable"] | None = None
    fallback: bool | None = None
    policy: str | None = None


class TaskBody(_Body):
    name: str
    inputs: list[TensorBody]
    outputs: list[TensorBody]
    metric: str = "accuracy"
    classes: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    defaults: DefaultsBody = DefaultsBody()

    def task(self) -> Task:
        return Task(
            TaskName(self.name),
            tuple(tensor.spec() for tensor in self.inputs),
            tuple(tensor.spec() for tensor in self.outputs),
            self.metric,
            tuple(self.classes),
            self.labels,
            TaskDefaults(**self.defaults.model_dump()),
        )


class TaskChangeBody(_Body):
    """What is named is changed; null takes a default or a label away."""

    defaults: DefaultsBody = DefaultsBody()
    labels: dict[str, str | None] = Field(default_factory=dict)
    classes: list[str] | None = None

    def change(self) -> TaskChange:
        named = self.defaults.model_dump(exclude_unset=True)
        return TaskChange(named, self.labels, None if self.classes is None else tuple(self.classes))


class RollbackBody(_Body):
    to: int | None = Field(None, ge=1, description="Version; empty: the newest READY one before the current")


class ProfileBody(_Body):
    budget_s: float | None = Field(
        None, gt=0, le=3600, description="Seconds of measuring; empty: generator.profile_budget_s"
    )


class IsolationBody(_Body):
    isolation: Literal["thread", "process"] = Field(description="In the worker's process, or in one of its own")


class VariantBody(_Body):
    reason: str = Field("", max_length=500)


_MEANINGS = {
    400: "Something in the request is wrong; every problem is listed",
    401: "No or wrong credential",
    404: "There is no such thing",
    409: "The name is taken, or the write conflicts with another",
    412: "The state of things does not allow it",
    413: "The upload is too large",
    503: "A part that this needs is not there now",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an operation; 401 and 503 are everywhere's."""
    return {
        status: {"model": ErrorDocument, "description": _MEANINGS[status]} for status in sorted({*statuses, 401, 503})
    }
