"""Which of a model's outputs is compared with which evaluation array, and what keeps them from being compared.

Rules: a `label` array is compared with one output: an integer (or text, or boolean) output with one value per row if
there is one, else the most likely class of the float output (argmax over its last axis). Arrays named like outputs
are compared with those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError

LABEL = "label"
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4
_FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Classes:
    """Predicted and expected classes, flat and of one kind."""

    predicted: NDArray[Any]
    expected: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Values:
    """Predicted and expected numbers, one row per evaluation row."""

    predicted: NDArray[np.float64]
    expected: NDArray[np.float64]


def label_problems(arrays: Arrays, outputs: Sequence[TensorSpec]) -> list[str]:
    """What keeps a `label` array of classes from being compared with these outputs."""
    label = arrays[LABEL]
    if label.dtype.kind not in "iubUSO" and not (label.dtype.kind == "f" and bool(np.all(label == np.round(label)))):
        return [f"array {LABEL!r} holds {label.dtype}; classes are integers (or texts)"]
    if _class_output(outputs) is not None:
        return []
    scores = [spec for spec in outputs if spec.datatype in _FLOATS]
    if not scores:
        return [f"no output can be compared with {LABEL!r}: need scores per class or one class per row"]
    if any(len(spec.shape) >= 2 and spec.shape[-1] != 1 for spec in scores):
        columns = max((spec.shape[-1] for spec in scores if len(spec.shape) >= 2), default=-1)
        if label.dtype.kind in "iuf" and columns > 0 and label.size and not 0 <= label.min() <= label.max() < columns:
            return [f"array {LABEL!r} holds classes {label.min()}..{label.max()}, but there are {columns} scores"]
        return []
    return [
        f"output {scores[0].name!r} of shape {list(scores[0].shape)} has one score per row, so it names no class; "
        "give scores for each class, or use metric 'mae' or 'rmse'"
    ]


def shape_problems(arrays: Arrays, outputs: Sequence[TensorSpec], *, label_is_value: bool = False) -> list[str]:
    """What keeps arrays named like outputs (or, for errors, `label`) from being compared."""
    named = [spec for spec in outputs if spec.name in arrays]
    if label_is_value and LABEL in arrays:
        if len(_numeric(outputs)) == 1 or any(spec.name == LABEL for spec in outputs):
            return []
        return [f"array {LABEL!r} could belong to any of {[s.name for s in outputs]}; name arrays like outputs"]
    if not named:
        names = ", ".join(repr(spec.name) for spec in outputs)
        return [f"the evaluation data has neither {LABEL!r} nor an array named like an output ({names})"]
    problems = []
    for spec in named:
        shape = tuple(int(size) for size in arrays[spec.name].shape)
        if not spec.admits(shape):
            problems.append(f"array {spec.name!r} has shape {list(shape)}; output {spec.name!r} is {list(spec.shape)}")
    return problems


def classes(outputs: Arrays, arrays: Arrays) -> Classes:
    """Raises InvalidError when no output fits the labels."""
    label = arrays[LABEL]
    predicted = _predicted_classes(outputs, label)
    if label.dtype.kind in "USO" or predicted.dtype.kind in "USO":
        return Classes(_texts(predicted), _texts(label))
    return Classes(predicted.reshape(-1).astype(np.int64), label.reshape(-1).astype(np.int64))


def values(outputs: Arrays, arrays: Arrays) -> Values:
    """Raises InvalidError when there is nothing to compare."""
    pairs = [(outputs[name], arrays[name]) for name in sorted(outputs) if name in arrays]
    if not pairs and LABEL in arrays:
        numeric = [array for array in outputs.values() if array.dtype.kind in "fiub"]
        pairs = [(numeric[0], arrays[LABEL])] if len(numeric) == 1 else []
    if not pairs:
        raise InvalidError(f"no evaluation array fits the outputs {sorted(outputs)}; there is {sorted(arrays)}")
    predicted, expected = [], []
    for got, want in pairs:
        if got.size != want.size:
            raise InvalidError(f"an output of shape {list(got.shape)} cannot be compared with {list(want.shape)}")
        predicted.append(got.reshape(len(got), -1).astype(np.float64))
        expected.append(want.reshape(len(got), -1).astype(np.float64))
    return Values(np.concatenate(predicted, axis=1), np.concatenate(expected, axis=1))


def row_verdicts(outputs: Arrays, arrays: Arrays) -> NDArray[np.bool_]:
    """Per row, whether every output that has an array of its name equals it (floats: is close to it)."""
    named = [name for name in sorted(outputs) if name in arrays]
    if not named:
        raise InvalidError(f"no evaluation array is named like an output {sorted(outputs)}")
    verdict = np.ones(len(outputs[named[0]]), dtype=np.bool_)
    for name in named:
        got, want = outputs[name], arrays[name]
        if got.shape != want.shape:
            raise InvalidError(f"output {name!r} has shape {list(got.shape)}, its evaluation array {list(want.shape)}")
        if got.dtype.kind == "f":
            same = np.isclose(got, want, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)
        elif got.dtype.kind in "USO":
            same = (_texts(got) == _texts(want)).reshape(got.shape)
        else:
            same = got == want
        verdict &= same.reshape(len(got), -1).all(axis=1)
    return verdict


def _predicted_classes(outputs: Arrays, label: NDArray[Any]) -> NDArray[Any]:
    for array in outputs.values():
        if array.dtype.kind in "iubUSO" and array.size == label.size:
            return array
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim >= 2 and array.shape[-1] > 1:
            best: NDArray[Any] = array.argmax(axis=-1)
            if best.size == label.size:
                return best
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    raise InvalidError(f"no output of {shapes} gives one class for each of the {label.size} labels")


def _class_output(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    for spec in outputs:
        if spec.datatype not in _FLOATS and (len(spec.shape) == 1 or all(size == 1 for size in spec.shape[1:])):
            return spec
    return None


def _numeric(outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in outputs if spec.datatype is not Datatype.BYTES]


def _texts(array: NDArray[Any]) -> NDArray[Any]:
    flat = array.reshape(-1)
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in flat.tolist()], dtype=np.str_)
