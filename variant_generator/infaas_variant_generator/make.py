"""Makes one recipe's artifact, proves that it answers like the original, and scores it. A process of its own.

It runs at low priority: nothing here is timed, and queries are being served beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from infaas.domain.variant import Accuracy
from infaas.runtimes.onnxruntime_options import open_session
from infaas_variant_generator.accuracy import score
from infaas_variant_generator.arrays import Arrays, Rows, load_rows, read_npz, run_rows
from infaas_variant_generator.child import Channel, serve
from infaas_variant_generator.requests import Made, MakeRequest
from infaas_variant_generator.transform.base import DoesNotApplyError, Materials, load_recipe
from infaas_variant_generator.verify import Comparison, compare_exactly, compare_loosely, why_score_lost

NICENESS = 10
VERIFY_BATCH = 16
"""Dynamic int8 scales by what a batch holds, so its score depends a little on this."""
INPUT_SEED = 7
_PREFIX = "output:"


def make(request: MakeRequest, channel: Channel) -> Made:
    """Raises what the recipe's tools or ONNX Runtime raise; every judgement of ours is in the result."""
    recipe = load_recipe(request.entry)
    channel.send("stage", stage="transforming", fraction=0.1)
    rows = load_rows(
        request.inputs,
        Path(request.evaluation) if request.evaluation else None,
        Path(request.calibration) if request.calibration else None,
        INPUT_SEED,
    )
    try:
        recipe.transform(Path(request.source), Path(request.target), _materials(request, rows))
    except DoesNotApplyError as error:
        return Made("skipped", error.text)
    channel.send("stage", stage="verifying", fraction=0.3)
    original = _original_answers(request, rows)
    channel.send("stage", stage="verifying", fraction=0.6)
    answers = _answers(request.target, request, rows)
    channel.send("stage", stage="scoring", fraction=0.9)
    accuracy = score(answers, rows, request.metric)
    if recipe.is_exact:
        comparison = compare_exactly(original, answers)
    else:
        comparison = _compare_lossy(request, rows, original, answers, accuracy)
    if comparison.problem is not None:
        return Made("failed", f"answers unlike the original: {comparison.problem}", comparison.max_abs_error, accuracy)
    return Made("made", "", comparison.max_abs_error, accuracy)


def _materials(request: MakeRequest, rows: Rows) -> Materials:
    return Materials(
        hardware=request.hardware,
        calibration=rows.calibration,
        why_uncalibrated=rows.why_uncalibrated,
        batch=request.fixed_batch or request.max_batch_size,
        is_fixed=request.fixed_batch is not None,
    )


def _compare_lossy(
    request: MakeRequest, rows: Rows, original: Arrays, answers: Arrays, accuracy: Accuracy | None
) -> Comparison:
    """By the score where there is one: how far outputs move matters only as far as answers change."""
    loose = compare_loosely(original, answers, request.tolerance)
    before = score(original, rows, request.metric)
    if accuracy is None or before is None:
        return loose
    problem = why_score_lost(before.value, accuracy.value, request.tolerance, request.metric)
    return Comparison(loose.max_abs_error, loose.disagreement, problem)


def _original_answers(request: MakeRequest, rows: Rows) -> Arrays:
    """Run once per build. The prefix keeps an output's name from being taken for an argument of numpy's."""
    kept = Path(request.reference)
    if kept.exists():
        return {name.removeprefix(_PREFIX): array for name, array in read_npz(kept).items()}
    answers = _answers(request.source, request, rows)
    named: dict[str, Any] = {_PREFIX + name: array for name, array in answers.items()}
    part = kept.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **named)
    part.replace(kept)
    return answers


def _answers(graph: str, request: MakeRequest, rows: Rows) -> Arrays:
    session = open_session(graph, 1)
    is_fixed = request.fixed_batch is not None
    batch = request.fixed_batch or min(VERIFY_BATCH, request.max_batch_size)
    answers = run_rows(session, rows.inputs, rows.count, batch, is_fixed=is_fixed, callers=request.threads)
    return {name: _plain(array) for name, array in answers.items()}


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Texts as fixed-width ones, which an npz holds without pickling."""
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _work(request: MakeRequest, channel: Channel) -> Made:
    os.nice(NICENESS)
    return make(request, channel)


if __name__ == "__main__":
    serve(MakeRequest, _work)
