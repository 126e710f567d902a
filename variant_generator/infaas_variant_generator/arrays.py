"""Tensors between their bytes and numpy, and the rows that variants are verified and measured with."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError
from infaas_variant_generator.split import CALIBRATION_ROWS, FEWEST_ROWS, calibration_rows, row_digests, set_aside

Arrays = dict[str, NDArray[Any]]

_DTYPES: Mapping[Datatype, str] = {
    Datatype.BOOL: "?", Datatype.INT8: "<i1", Datatype.INT16: "<i2", Datatype.INT32: "<i4", Datatype.INT64: "<i8",
    Datatype.UINT8: "<u1", Datatype.UINT16: "<u2", Datatype.UINT32: "<u4", Datatype.UINT64: "<u8",
    Datatype.FP16: "<f2", Datatype.FP32: "<f4", Datatype.FP64: "<f8", Datatype.BYTES: "O",
}  # fmt: skip

RANDOM_ROWS = 256
FREE_DIMENSION = 8
"""What a dimension that may have any size gets when inputs are made up."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs for every row, what is known of the right answers, and where they come from."""

    inputs: Arrays
    answers: Arrays
    count: int
    is_random: bool
    calibration: Arrays = field(default_factory=dict)
    """Inputs of the rows that recipes may learn from, none of which is scored; empty when there are none."""
    why_uncalibrated: str = ""
    """Why there are none."""


def to_array(data: bytes | memoryview, datatype: Datatype, shape: Sequence[int]) -> NDArray[Any]:
    if datatype is not Datatype.BYTES:
        return np.frombuffer(data, dtype=_DTYPES[datatype]).reshape(shape)
    view, at, elements = memoryview(data), 0, []
    while at < len(view):
        (length,) = struct.unpack_from("<I", view, at)
        elements.append(bytes(view[at + 4 : at + 4 + length]))
        at += 4 + length
    return np.array(elements, dtype=object).reshape(shape)


def to_bytes(array: NDArray[Any]) -> bytes:
    if array.dtype.kind not in "OSU":
        return array.tobytes()
    parts = []
    for element in array.reshape(-1).tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(struct.pack("<I", len(raw)) + raw)
    return b"".join(parts)


def load_rows(inputs: Sequence[TensorSpec], evaluation: Path | None, calibration: Path | None, seed: int) -> Rows:
    """What variants are verified, scored and measured with, and beside it what they may be calibrated with.

    Scored are the evaluation rows that are in no calibration set; where there is no such set, those that are not set
    aside for calibrating. Without evaluation data the rest of the calibration set verifies, unscored; without that too,
    made-up inputs do. Raises InvalidError when an input is missing or every row is a calibration row.
    """
    given = None if calibration is None else read_npz(calibration)
    if evaluation is None:
        return _unscored(inputs, given, seed)
    arrays = read_npz(evaluation)
    rows = _row_count(arrays, inputs, "evaluation")
    typed = _typed(arrays, inputs)
    if given is not None:
        keep = ~_is_in(arrays, given, [spec.name for spec in inputs], rows)
        calibrating, why = _chosen(inputs, given)
    else:
        aside = set_aside(row_digests(typed, to_bytes))
        keep = ~aside
        calibrating = {name: array[aside] for name, array in typed.items()} if aside.any() else {}
        why = "" if calibrating else f"{rows} evaluation rows are too few to set some aside"
    if not keep.any():
        raise InvalidError("every evaluation row is a calibration row too; nothing is left to be scored")
    return Rows(
        inputs={name: np.ascontiguousarray(array[keep]) for name, array in typed.items()},
        answers={name: array[keep] for name, array in arrays.items() if name not in typed},
        count=int(keep.sum()),
        is_random=False,
        calibration=calibrating,
        why_uncalibrated=why,
    )


def _unscored(inputs: Sequence[TensorSpec], given: Arrays | None, seed: int) -> Rows:
    """Rows without right answers: the calibration set's that do not calibrate (all, where it has no others)."""
    if given is None:
        made_up = random_inputs(inputs, RANDOM_ROWS, seed)
        return Rows(made_up, {}, RANDOM_ROWS, is_random=True, why_uncalibrated="there is no data but made-up inputs")
    rows = _row_count(given, inputs, "calibration")
    typed = _typed(given, inputs)
    chosen = calibration_rows(row_digests(typed, to_bytes))
    keep = np.ones(rows, dtype=np.bool_)
    keep[chosen] = False
    left = np.flatnonzero(keep if keep.any() else ~keep)[:RANDOM_ROWS]
    calibrating, why = _chosen(inputs, given)
    return Rows(
        inputs={name: np.ascontiguousarray(array[left]) for name, array in typed.items()},
        answers={},
        count=len(left),
        is_random=False,
        calibration=calibrating,
        why_uncalibrated=why,
    )


def _chosen(inputs: Sequence[TensorSpec], given: Arrays) -> tuple[Arrays, str]:
    """What calibrates of a calibration set, or why nothing does."""
    _row_count(given, inputs, "calibration")
    typed = _typed(given, inputs)
    chosen = calibration_rows(row_digests(typed, to_bytes), CALIBRATION_ROWS)
    if len(chosen) < FEWEST_ROWS:
        return {}, f"the calibration set has fewer than {FEWEST_ROWS} different rows"
    return {name: np.ascontiguousarray(array[chosen]) for name, array in typed.items()}, ""


def _typed(arrays: Arrays, inputs: Sequence[TensorSpec]) -> Arrays:
    """The inputs alone, with the task's datatypes; all of them are there."""
    return {spec.name: np.ascontiguousarray(arrays[spec.name], _DTYPES[spec.datatype]) for spec in inputs}


def random_inputs(specs: Sequence[TensorSpec], rows: int, seed: int) -> Arrays:
    """Values of the right kind: normal floats, small non-negative integers, short texts."""
    generator = np.random.default_rng(seed)
    made: Arrays = {}
    for spec in specs:
        shape = (rows, *(FREE_DIMENSION if size < 0 else size for size in spec.shape[1:]))
        if spec.datatype is Datatype.BOOL:
            made[spec.name] = generator.random(shape) < 0.5
        elif spec.datatype is Datatype.BYTES:
            texts = [f"text {number}".encode() for number in generator.integers(0, 100, shape).reshape(-1).tolist()]
            made[spec.name] = np.array(texts, dtype=object).reshape(shape)
        elif spec.datatype in (Datatype.FP16, Datatype.FP32, Datatype.FP64):
            made[spec.name] = generator.standard_normal(shape).astype(_DTYPES[spec.datatype])
        else:
            made[spec.name] = generator.integers(0, 10, shape).astype(_DTYPES[spec.datatype])
    return made


def read_npz(path: Path) -> Arrays:
    """All arrays; pickled objects are refused by numpy."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def run_rows(session: Any, inputs: Arrays, count: int, batch: int, *, is_fixed: bool, callers: int = 1) -> Arrays:
    """Run all rows through a session in batches; a fixed batch's last one is filled up with its first rows.

    `callers` batches run at the same time: that uses all cores even where one run does not.
    """
    names = [output.name for output in session.get_outputs()]

    def run(start: int) -> list[NDArray[Any]]:
        wanted = min(batch, count - start)
        indices = np.arange(start, start + wanted)
        if is_fixed and wanted < batch:
            indices = np.resize(indices, batch)
        results = session.run(names, {name: as_session_input(array[indices]) for name, array in inputs.items()})
        return [np.asarray(result)[:wanted] for result in results]

    with ThreadPoolExecutor(callers) as pool:
        parts = list(pool.map(run, range(0, count, batch)))
    return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}


def as_session_input(array: NDArray[Any]) -> NDArray[Any]:
    """ONNX Runtime takes texts as str objects."""
    if array.dtype.kind not in "OS":
        return array
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
    return np.array(texts, dtype=object).reshape(array.shape)


def _row_count(arrays: Arrays, inputs: Sequence[TensorSpec], what: str) -> int:
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise InvalidError(f"the {what} data lacks the inputs {', '.join(missing)}; it has {sorted(arrays)}")
    counts = {len(array) for array in arrays.values() if array.ndim}
    if len(counts) != 1:
        raise InvalidError(f"the {what} arrays have different numbers of rows: {sorted(counts)}")
    return counts.pop()


def _is_in(arrays: Arrays, others: Arrays, names: Sequence[str], rows: int) -> NDArray[np.bool_]:
    """Per row, whether the same inputs stand in `others`."""
    shared = [name for name in names if name in others]
    if not shared:
        return np.zeros(rows, dtype=np.bool_)
    dtypes = {name: np.result_type(arrays[name], others[name]) for name in shared}

    def key(source: Arrays, row: int) -> bytes:
        return b"\0".join(to_bytes(source[name][row].astype(dtypes[name])) for name in shared)

    known = {key(others, row) for row in range(min(len(others[name]) for name in shared))}
    return np.array([key(arrays, row) in known for row in range(rows)], dtype=np.bool_)
