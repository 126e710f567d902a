"""The subprocess that checks uploads: it answers like the function, is bounded, and its death is an answer too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop
from infaas_controller.register import inspector
from infaas_controller.register.inspect import inspect
from infaas_controller.register.inspection import InspectionRequest
from infaas_controller.register.inspector import Inspector, memory_bound

from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec

MakeModel = Callable[..., Path]
MakeData = Callable[..., Path]
TASK = Task(TaskName("t"), (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("scores", Datatype.FP32, (-1, 3)),))


async def test_the_subprocess_answers_as_the_function_does(model_file: MakeModel, data_file: MakeData) -> None:
    path, data = model_file(), data_file()
    request = InspectionRequest(
        str(path), str(path.parent / "adapted.onnx"), "accuracy", TASK, evaluation=str(data),
        memory_bytes=memory_bound(path, data),
    )  # fmt: skip
    assert await Inspector().inspect(request) == inspect(request)


async def test_too_little_memory_is_a_problem_in_words(model_file: MakeModel) -> None:
    path = model_file()
    request = InspectionRequest(str(path), str(path.parent / "a.onnx"), "accuracy", TASK, memory_bytes=150_000_000)
    (problem,) = (await Inspector().inspect(request)).problems
    assert "memory" in problem or "Errno 12" in problem or "map segment" in problem, problem


async def test_a_check_that_takes_too_long_is_ended_in_words(model_file: MakeModel) -> None:
    path = model_file()
    request = InspectionRequest(str(path), str(path.parent / "a.onnx"), "accuracy", TASK)
    answer = await Inspector(timeout_s=0.001).inspect(request)
    assert answer.problems == ("checking the model took longer than 0.001 s",)


def test_the_controllers_process_never_imports_onnx() -> None:
    code = (
        "import sys, json, infaas_controller.register.registrar, infaas_controller.api.admin;"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('onnx', 'onnxruntime')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_process_that_dies_before_it_reads_its_request_is_a_problem_in_words(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "sys", SimpleNamespace(executable="/bin/false"))
    request = InspectionRequest("x" * size, "a.onnx", "accuracy", TASK)

    async def ask() -> list[str]:  # on the loop that the controller runs on, often enough to meet every moment
        return [problem for _ in range(8) for problem in (await Inspector().inspect(request)).problems]

    said = uvloop.run(ask())
    assert said == ["checking the model ended with status 1; the file is damaged or hits a defect of its runtime"] * 8


async def test_the_process_never_sees_our_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spy = tmp_path / "python"
    spy.write_text("#!/bin/sh\nenv >&2\nexit 3\n")
    spy.chmod(0o755)
    monkeypatch.setenv("INFAAS_AUTH__TOKEN", "s3cret")
    monkeypatch.setattr(inspector, "sys", SimpleNamespace(executable=str(spy)))
    monkeypatch.setattr(inspector, "_TAIL_BYTES", 1_000_000)
    (problem,) = (await Inspector().inspect(InspectionRequest("m", "a", "accuracy", TASK))).problems
    assert "OMP_NUM_THREADS=1" in problem
    assert "s3cret" not in problem
