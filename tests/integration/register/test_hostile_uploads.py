"""Files that are made to hurt are refused in words by the inspecting process, which ends within its bounds.

The end-to-end tests send the same files to a whole system.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hostile_files import DATA, GOOD, GOOD_DATA, MODELS, Hostile, endless_loop
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest
from infaas_controller.register.inspector import Inspector, memory_bound

from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec

TASK = Task(TaskName("t"), (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("scores", Datatype.FP32, (-1, 3)),))
MAX_BYTES = 100 * 2**20


def asked(folder: Path, model: bytes, data: bytes, task: Task | None) -> InspectionRequest:
    paths = folder / "m.onnx", folder / "e.npz"
    for path, content in zip(paths, (model, data), strict=True):
        path.write_bytes(content)
    return InspectionRequest(
        str(paths[0]), str(folder / "adapted.onnx"), "accuracy", task, evaluation=str(paths[1]),
        max_bytes=MAX_BYTES, memory_bytes=memory_bound(*paths),
    )  # fmt: skip


def assert_in_words(answer: InspectionAnswer, hostile: Hostile) -> None:
    assert answer.problems
    said = "; ".join(answer.problems)
    assert any(words in said for words in hostile.words), said
    assert len(answer.problems) <= 51
    assert all(len(problem) <= 1_000 for problem in answer.problems)
    assert "Traceback" not in said


def inspections() -> list[psutil.Process]:
    """Children of this process that inspect; a shared server of other tests is none."""
    return [child for child in psutil.Process().children() if "inspect" in " ".join(child.cmdline())]


@pytest.mark.parametrize("hostile", MODELS, ids=lambda hostile: hostile.name)
async def test_a_hostile_model_is_a_problem_in_words(tmp_path: Path, hostile: Hostile) -> None:
    answer = await Inspector(timeout_s=100).inspect(asked(tmp_path, hostile.make(), GOOD_DATA, None))
    assert_in_words(answer, hostile)
    assert not inspections()


@pytest.mark.parametrize("hostile", DATA, ids=lambda hostile: hostile.name)
async def test_a_hostile_data_file_is_a_problem_in_words(tmp_path: Path, hostile: Hostile) -> None:
    answer = await Inspector(timeout_s=100).inspect(asked(tmp_path, GOOD, hostile.make(), TASK))
    assert_in_words(answer, hostile)


async def test_the_files_that_the_hostile_ones_are_made_from_pass(tmp_path: Path) -> None:
    assert (await Inspector().inspect(asked(tmp_path, GOOD, GOOD_DATA, TASK))).problems == ()


@pytest.mark.long
async def test_a_model_that_never_ends_is_ended_by_its_processor_time(tmp_path: Path) -> None:
    request = replace(asked(tmp_path, endless_loop(), GOOD_DATA, TASK), cpu_s=5)
    (problem,) = (await Inspector(timeout_s=100).inspect(request)).problems
    assert problem == "checking the model takes more than the 5 s of processor time allowed"


async def test_a_caller_who_gives_up_ends_the_process(tmp_path: Path) -> None:
    request = asked(tmp_path, endless_loop(), GOOD_DATA, TASK)
    checking = asyncio.create_task(Inspector().inspect(request), name="checking")
    async with asyncio.timeout(60):
        while True:
            if inspections():
                break
            await asyncio.sleep(0.01)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert not inspections()


async def test_problems_of_model_and_data_are_said_at_once(tmp_path: Path) -> None:
    model = next(h for h in MODELS if h.name == "a cycle").make()
    data = next(h for h in DATA if h.name == "pickled objects").make()
    problems = (await Inspector().inspect(asked(tmp_path, model, data, TASK))).problems
    assert any("not a valid ONNX graph" in problem for problem in problems)
    assert any("pickled Python objects" in problem for problem in problems)
