"""How good a variant's answers are, as a score in [0, 1] where more is better, with a 95 % interval.

A metric is a class found by the entry point group `infaas.metrics`, so that a user can install another one. The
registrar asks it to `check` the evaluation arrays before anything is stored; the generator asks it to `evaluate`.
Errors in a unit of their own (mae, rmse) become a *skill*: 1 minus the error over the error of always answering the
labels' median (mae) or mean (rmse), never below 0; the error itself stands in `Accuracy.raw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infaas.domain import variant as domain
from infaas.domain.tensor import TensorSpec
from infaas.errors import InvalidError
from infaas.metrics_intervals import bootstrap_interval, mean_score_interval, wilson_interval
from infaas.metrics_pairs import LABEL, Classes, Values, classes, label_problems, row_verdicts, shape_problems, values

GROUP = "infaas.metrics"
Arrays = Mapping[str, NDArray[Any]]


class Metric(Protocol):
    """What a metric plug-in promises. Its class takes no arguments."""

    name: str

    def check(self, arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
        """Everything that keeps the evaluation arrays from being scored against these outputs; empty: nothing."""

    def evaluate(self, outputs: Arrays, arrays: Arrays, *, seed: int = 0) -> domain.Accuracy:
        """Score a model's outputs for all rows. `seed` decides the bootstrap's draws, so a score can be repeated.

        Raises InvalidError when the arrays cannot be compared.
        """


def metric_names() -> tuple[str, ...]:
    """Every installed metric, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def load_metric(name: str) -> Metric:
    """Raises InvalidError for a name that no entry point has; names are never taken for import paths."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            metric: Metric = point.load()()
            return metric
    raise InvalidError(f"unknown metric {name!r}; known are {', '.join(metric_names())}")


class Accuracy:
    """The share of rows answered correctly; the interval is Wilson's.

    With a `label` array: the most likely class (or an integer output as it is) equals it. With arrays named like
    outputs: every one of them equals the row's output (floats to within 1e-3 relative).
    """

    name = "accuracy"

    def check(self, arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
        return label_problems(arrays, outputs) if LABEL in arrays else shape_problems(arrays, outputs)

    def evaluate(self, outputs: Arrays, arrays: Arrays, *, seed: int = 0) -> domain.Accuracy:
        if LABEL in arrays:
            pair = classes(outputs, arrays)
            correct = pair.predicted == pair.expected
        else:
            correct = row_verdicts(outputs, arrays)
        hits, rows = int(np.count_nonzero(correct)), int(correct.size)
        low, high = wilson_interval(hits, rows)
        return domain.Accuracy(self.name, hits / rows if rows else 0.0, low, high, rows)


class F1:
    """The unweighted mean of the classes' F1 over the classes that occur in labels or answers."""

    name = "f1"

    def check(self, arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
        if LABEL not in arrays:
            return [f"metric 'f1' needs an array {LABEL!r} with one class per row; there is {sorted(arrays)}"]
        return label_problems(arrays, outputs)

    def evaluate(self, outputs: Arrays, arrays: Arrays, *, seed: int = 0) -> domain.Accuracy:
        confusion = _confusion(classes(outputs, arrays))
        rows = int(confusion.sum())
        value = float(_macro_f1(confusion))
        if rows == 0:
            return domain.Accuracy(self.name, 0.0, 0.0, 1.0, 0)

        def redraw(generator: np.random.Generator) -> float:
            # Drawing rows with replacement is drawing the cells of the confusion matrix: same law, no rows needed.
            drawn = generator.multinomial(rows, confusion.ravel() / rows).reshape(confusion.shape)
            return float(_macro_f1(drawn))

        low, high = bootstrap_interval(redraw, value, seed)
        return domain.Accuracy(self.name, value, low, high, rows)


class MeanAbsoluteError:
    """Skill of the mean absolute error over always answering the labels' median."""

    name = "mae"

    def check(self, arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
        return _value_problems(arrays, outputs)

    def evaluate(self, outputs: Arrays, arrays: Arrays, *, seed: int = 0) -> domain.Accuracy:
        pair = values(outputs, arrays)
        error = np.abs(pair.predicted - pair.expected).mean(axis=1)
        naive = np.abs(pair.expected - np.median(pair.expected, axis=0)).mean(axis=1)
        return _skill(self.name, error, naive, seed, is_squared=False)


class RootMeanSquaredError:
    """Skill of the root mean squared error over always answering the labels' mean."""

    name = "rmse"

    def check(self, arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
        return _value_problems(arrays, outputs)

    def evaluate(self, outputs: Arrays, arrays: Arrays, *, seed: int = 0) -> domain.Accuracy:
        pair = values(outputs, arrays)
        error = ((pair.predicted - pair.expected) ** 2).mean(axis=1)
        naive = ((pair.expected - pair.expected.mean(axis=0)) ** 2).mean(axis=1)
        return _skill(self.name, error, naive, seed, is_squared=True)


def _value_problems(arrays: Arrays, outputs: Sequence[TensorSpec]) -> Sequence[str]:
    problems = list(shape_problems(arrays, outputs, label_is_value=True))
    for name in (LABEL, *(spec.name for spec in outputs)):
        array = arrays.get(name)
        if array is not None and array.dtype.kind not in "fiub":
            problems.append(f"array {name!r} holds {array.dtype}, which has no distance; give numbers")
    return problems


def _skill(
    name: str, error: NDArray[np.float64], naive: NDArray[np.float64], seed: int, *, is_squared: bool
) -> domain.Accuracy:
    """From per-row errors and per-row errors of the constant answer. A constant label leaves nothing to be skilled
    at: then the skill is 1 without any error and 0 with one."""

    def skill_of(error_mean: float, naive_mean: float) -> float:
        if is_squared:
            error_mean, naive_mean = error_mean**0.5, naive_mean**0.5
        if not np.isfinite(error_mean):
            return 0.0
        if naive_mean <= 0:
            return 1.0 if error_mean <= 0 else 0.0
        return max(0.0, 1.0 - error_mean / naive_mean)

    rows = int(error.size)
    if rows == 0:
        return domain.Accuracy(name, 0.0, 0.0, 1.0, 0)
    value = skill_of(float(error.mean()), float(naive.mean()))
    low, high = mean_score_interval(error, naive, skill_of, value, seed)
    raw = float(error.mean()) ** 0.5 if is_squared else float(error.mean())
    return domain.Accuracy(name, value, low, high, rows, raw=raw if np.isfinite(raw) else None)


def _confusion(pair: Classes) -> NDArray[np.int64]:
    """Rows of expected, columns of predicted classes."""
    names, index = np.unique(np.concatenate([pair.expected, pair.predicted]), return_inverse=True)
    count, rows = len(names), pair.expected.size
    cells = index[:rows] * count + index[rows:]
    return np.bincount(cells, minlength=count * count).reshape(count, count).astype(np.int64)


def _macro_f1(confusion: NDArray[np.int64]) -> float:
    true = np.diagonal(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = either > 0
    return float((2 * true[present] / either[present]).mean()) if present.any() else 0.0


__all__ = [
    "F1",
    "LABEL",
    "Accuracy",
    "Arrays",
    "Classes",
    "MeanAbsoluteError",
    "Metric",
    "RootMeanSquaredError",
    "Values",
    "load_metric",
    "metric_names",
]
