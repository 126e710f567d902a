"""Program `python -m infaas_controller.register.inspect`: checks an upload and writes the adapted graph.

A request comes as JSON on stdin and an answer leaves as JSON on stdout. It limits itself before it reads a byte of the
upload, so that whatever is in there can cost at most the memory and processor time it was given.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from infaas.domain.tensor import TensorSpec
from infaas.rpc.codec import decode, encode
from infaas_controller.register.fit import Fit, fit
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest

_MAX_PROBLEMS = 50
_MAX_PROBLEM_LENGTH = 1_000
OUT_OF_MEMORY = "checking it takes more memory than the {:,} bytes allowed; the file is too large or damaged"


def main() -> None:
    """Answer one request."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a native library prints must not get into the answer
    request = decode(sys.stdin.buffer.read(), InspectionRequest)
    _limit(request)
    answer = guarded(request)
    with os.fdopen(answers, "wb") as file:
        file.write(encode(answer))


def guarded(request: InspectionRequest) -> InspectionAnswer:
    """`inspect`, whatever is in the files: what nobody foresaw is a problem of the upload too, in one line."""
    try:
        return bounded(inspect(request))
    except MemoryError:
        return InspectionAnswer(problems=(OUT_OF_MEMORY.format(request.memory_bytes),))
    except RecursionError:
        return InspectionAnswer(problems=("the model is nested too deeply to be checked",))
    except Exception as error:  # the boundary of the process: the next best thing would be its traceback
        traceback.print_exc()
        said = " ".join(str(error).split())[:_MAX_PROBLEM_LENGTH]
        problem = f"the files cannot be checked, they are damaged or hit a defect ({type(error).__name__}: {said})"
        return InspectionAnswer(problems=(problem,))


def bounded(answer: InspectionAnswer) -> InspectionAnswer:
    """As much as anyone reads: a graph may have a million names, each as long as it likes."""
    return replace(answer, problems=_bounded(answer.problems), warnings=_bounded(answer.warnings))


def _bounded(texts: tuple[str, ...]) -> tuple[str, ...]:
    kept = tuple(_cut(text.encode("utf-8", "backslashreplace").decode()) for text in texts[:_MAX_PROBLEMS])
    more = len(texts) - len(kept)
    return (*kept, f"and {more:,} more like these") if more > 0 else kept


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_PROBLEM_LENGTH else f"{text[: _MAX_PROBLEM_LENGTH - 3]}..."


def inspect(request: InspectionRequest) -> InspectionAnswer:
    """Every problem that can be found; a later check runs whenever the earlier ones left it something to check."""
    if request.is_data_only:
        return _with_data(request, Fit(), InspectionAnswer())
    from infaas_controller.register import graph, trial  # only now, under the limits

    model, problems = graph.read_model(Path(request.model), request.max_bytes)
    if model is None:
        return _with_data(request, Fit(), InspectionAnswer(problems=tuple(problems)))
    problems += graph.content_problems(model)
    problems += trial.support_problems(model)
    fitted = fit(graph.graph_inputs(model), graph.graph_outputs(model), request.mapping, request.task)
    problems += fitted.problems
    answer = InspectionAnswer(
        tuple(problems), fitted.warnings, fitted.task_inputs, fitted.task_outputs, fitted.fixed_batch
    )  # fmt: skip
    answer = _with_data(request, fitted, answer)
    if problems:
        return answer
    return _adapted_and_tried(request, model, fitted, answer)


def _with_data(request: InspectionRequest, fitted: Fit, answer: InspectionAnswer) -> InspectionAnswer:
    """Check the data files against the task, or against what the model says when it makes the task."""
    from infaas_controller.register import evaluation

    inputs, outputs = fitted.task_inputs, fitted.task_outputs
    if request.task is not None:
        inputs, outputs = request.task.inputs, request.task.outputs
    for what, path in (("evaluation", request.evaluation), ("calibration", request.calibration)):
        if path is None:
            continue
        report = evaluation.check_data(Path(path), what, inputs, outputs, request.metric, request.max_bytes)
        is_comparable = bool(inputs) or not report.is_readable  # else there is nothing to hold it against
        found = report.problems if is_comparable else ()
        answer = replace(answer, problems=answer.problems + found, warnings=answer.warnings + report.warnings)
        if what == "evaluation":
            answer = replace(answer, evaluation_rows=report.rows)
    return answer


def _adapted_and_tried(
    request: InspectionRequest, model: object, fitted: Fit, answer: InspectionAnswer
) -> InspectionAnswer:
    import onnx

    from infaas_controller.register import evaluation, trial
    from infaas_controller.register.adapt import adapt

    assert isinstance(model, onnx.ModelProto)
    path = Path(request.adapted)
    onnx.save_model(adapt(model, fitted), path)
    del model
    sample = None
    if request.evaluation is not None and not answer.problems:
        rows = fitted.fixed_batch or trial.TRIAL_ROWS
        sample = evaluation.sample_rows(Path(request.evaluation), fitted.task_inputs, rows)
    problems, warnings, outputs = trial.try_model(
        path, fitted.task_inputs, fitted.task_outputs, fitted.fixed_batch, sample
    )  # fmt: skip
    known: tuple[TensorSpec, ...] = fitted.task_outputs if request.task is not None else outputs
    return replace(
        answer, problems=answer.problems + tuple(problems), warnings=answer.warnings + tuple(warnings), outputs=known
    )  # fmt: skip


def _limit(request: InspectionRequest) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (request.memory_bytes, request.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (request.cpu_s, request.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    largest = max(request.max_bytes * 2, 2**24)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


if __name__ == "__main__":
    main()
