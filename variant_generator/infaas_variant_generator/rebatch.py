"""Frees a graph of its fixed batch, and proves it by running both forms. A process of its own.

A model that takes one item at a time can serve nobody together with anybody else. If the rewritten graph answers every
row like the registered one, at batches of several sizes, all variants are made from it; if it does not, or a tool
breaks, the registered form is served and the reason is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from infaas.runtimes.onnxruntime_options import open_session
from infaas_variant_generator.arrays import Arrays, load_rows, random_inputs, run_rows
from infaas_variant_generator.child import Channel, serve
from infaas_variant_generator.requests import Rebatched, RebatchRequest
from infaas_variant_generator.transform.dynamic_batch import with_dynamic_batch
from infaas_variant_generator.transform.onnxruntime_fp32 import optimise
from infaas_variant_generator.verify import compare_exactly

NICENESS = 10
INPUT_SEED = 7
CHECKED_ROWS = 16
"""Of the data, and as many made-up ones: rows of a data set may be too alike to show that items are mixed up."""


def rebatch(request: RebatchRequest) -> Rebatched:
    """Try the registered graph, and then its form with constants folded, where exporters compute what they bake in.

    Every judgement is in the result; raises what ONNX Runtime raises when the registered graph itself cannot run.
    """
    source, target = Path(request.source), Path(request.target)
    rows, wanted = _answered(source, request)
    first = _why_not(source, target, request, rows, wanted)
    if first is None:
        return Rebatched(True, _done(request))
    folded = target.with_suffix(".folded.onnx")
    optimise(source, folded, is_extended=False)
    if _why_not(folded, target, request, rows, wanted) is None:
        return Rebatched(True, _done(request))
    return Rebatched(False, f"the batch stays fixed to {request.fixed_batch}: {first}")


def checked_batches(fixed: int, most: int) -> tuple[int, ...]:
    """The sizes to compare at: single items, the old size, around it, and the largest one."""
    return tuple(sorted({1, 2, 3, fixed, fixed + 1, max(1, most)}))


def _why_not(source: Path, target: Path, request: RebatchRequest, rows: Arrays, wanted: Arrays) -> str | None:
    """Rewrite and compare; why it did not work, None when it did."""
    import onnx

    try:
        model, _ = with_dynamic_batch(onnx.load(source), request.fixed_batch)
        onnx.save(model, target)
        session = open_session(str(target), 1)
    except Exception as error:  # whatever a library says of such a graph: it stays as it is
        return f"it could not be rewritten: {_first_line(error)}"
    count = len(next(iter(rows.values())))
    for batch in checked_batches(request.fixed_batch, request.max_batch_size):
        try:
            found = run_rows(session, rows, count, batch, is_fixed=batch > count)
        except Exception as error:  # the same
            return f"rewritten for any batch, it cannot run {batch} items at a time: {_first_line(error)}"
        problem = compare_exactly(wanted, found).problem
        if problem is not None:
            return f"rewritten for any batch, it answers {batch} items at a time otherwise: {problem}"
    return None


def _answered(source: Path, request: RebatchRequest) -> tuple[Arrays, Arrays]:
    """Rows and what the registered graph answers to them. Made-up ones may be none that it takes (an index out of a
    table, say); then the real ones have to do."""
    session = open_session(str(source), 1)

    def run(rows: Arrays) -> tuple[Arrays, Arrays]:
        count = len(next(iter(rows.values())))
        return rows, run_rows(session, rows, count, request.fixed_batch, is_fixed=True)

    real, mixed = _rows(request)
    try:
        return run(mixed)
    except Exception:  # whatever the graph says of such rows; what it says of real ones counts
        if real is None:
            raise
        return run(real)


def _rows(request: RebatchRequest) -> tuple[Arrays | None, Arrays]:
    """Real rows, None if there are none; and those with as many made-up ones."""
    loaded = load_rows(
        request.inputs,
        Path(request.evaluation) if request.evaluation else None,
        Path(request.calibration) if request.calibration else None,
        INPUT_SEED,
    )
    made_up = random_inputs(request.inputs, CHECKED_ROWS, INPUT_SEED)
    if loaded.is_random:
        return None, made_up
    real = {name: array[:CHECKED_ROWS] for name, array in loaded.inputs.items()}
    if any(real[name].shape[1:] != array.shape[1:] for name, array in made_up.items()):
        return real, real
    return real, {name: np.concatenate([real[name], made_up[name]]) for name in real}


def _done(request: RebatchRequest) -> str:
    return f"rewritten from a fixed batch of {request.fixed_batch} to any"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _work(request: RebatchRequest, channel: Channel) -> Any:
    os.nice(NICENESS)
    return rebatch(request)


if __name__ == "__main__":
    serve(RebatchRequest, _work)
