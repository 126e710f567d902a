"""Asking the inspection about a model file, and reading its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from infaas_controller.register.inspect import inspect
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest

from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec

TASK = Task(TaskName("t"), (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("scores", Datatype.FP32, (-1, 3)),))

ROWS = np.zeros((40, 4), np.float32)
LABELS = np.zeros(40, np.int64)


def look(model: Path, data: Path | None = None, task: Task | None = TASK, **change: Any) -> InspectionAnswer:
    adapted = model.parent / "adapted.onnx"
    evaluation = None if data is None else str(data)
    return inspect(
        InspectionRequest(
            str(model), str(adapted), change.pop("metric", "accuracy"), task, evaluation=evaluation, **change
        )
    )


def only_problem(answer: InspectionAnswer) -> str:
    assert len(answer.problems) == 1, answer.problems
    return answer.problems[0]
