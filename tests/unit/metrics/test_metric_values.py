"""Metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError
from infaas.metrics import load_metric, metric_names
from infaas.metrics_intervals import wilson_interval

SCORES = TensorSpec("scores", Datatype.FP32, (-1, 3))
VALUE = TensorSpec("value", Datatype.FP32, (-1, 1))
CLASS = TensorSpec("class", Datatype.INT64, (-1,))


def scores_of(classes: list[int], columns: int = 3) -> np.ndarray:
    return np.eye(columns, dtype=np.float32)[classes]


def test_the_four_built_in_metrics_are_found_by_name() -> None:
    assert {"accuracy", "f1", "mae", "rmse"} <= set(metric_names())
    assert [load_metric(name).name for name in ("accuracy", "f1", "mae", "rmse")] == ["accuracy", "f1", "mae", "rmse"]


def test_an_unknown_metric_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidError, match=r"os\.path:join.*accuracy"):
        load_metric("os.path:join")


def test_accuracy_is_the_share_of_rows_whose_best_score_is_the_label() -> None:
    found = load_metric("accuracy").evaluate({"scores": scores_of([0, 1, 2, 2])}, {"label": np.array([0, 1, 2, 0])})
    assert (found.value, found.rows) == (0.75, 4)
    assert found.low == pytest.approx(0.3006, abs=1e-4)
    assert found.high == pytest.approx(0.9544, abs=1e-4)


def test_accuracy_takes_an_integer_output_before_scores() -> None:
    outputs = {"scores": scores_of([0, 0]), "class": np.array([1, 2])}
    assert load_metric("accuracy").evaluate(outputs, {"label": np.array([1, 2])}).value == 1.0


def test_accuracy_compares_texts_with_texts() -> None:
    outputs = {"class": np.array(["cat", "dog"], dtype=object)}
    assert load_metric("accuracy").evaluate(outputs, {"label": np.array([b"cat", b"cow"])}).value == 0.5


def test_accuracy_with_arrays_named_like_outputs_needs_all_outputs_of_a_row() -> None:
    outputs = {"sum": np.array([[3], [5]]), "difference": np.array([[1.0], [1.0]])}
    answers = {"sum": np.array([[3], [5]]), "difference": np.array([[1.0], [1.01]])}
    assert load_metric("accuracy").evaluate(outputs, answers).value == 0.5


def test_f1_is_the_plain_mean_over_the_classes_that_occur() -> None:
    # class 0: precision 1/2, recall 1 -> 2/3; class 1: precision 1, recall 1/2 -> 2/3; class 2: never there
    outputs = {"scores": scores_of([0, 0, 1])}
    found = load_metric("f1").evaluate(outputs, {"label": np.array([0, 1, 1])})
    assert found.value == pytest.approx(2 / 3)
    assert found.low <= found.value <= found.high


def test_f1_counts_a_class_that_is_only_ever_answered_as_zero() -> None:
    found = load_metric("f1").evaluate({"scores": scores_of([0, 2])}, {"label": np.array([0, 0])})
    assert found.value == pytest.approx((2 / 3 + 0) / 2)


def test_mae_is_the_skill_over_always_answering_the_median() -> None:
    outputs = {"value": np.array([[1.0], [2.0], [3.0], [12.0]], dtype=np.float32)}
    found = load_metric("mae").evaluate(outputs, {"label": np.array([1.0, 2.0, 3.0, 10.0])})
    assert found.raw == pytest.approx(0.5)  # |12-10| / 4
    assert found.value == pytest.approx(1 - 0.5 / 2.5)  # median 2.5: 1.5 + .5 + .5 + 7.5 = 10, over 4


def test_rmse_is_the_skill_over_always_answering_the_mean() -> None:
    outputs = {"value": np.array([[1.0], [3.0]])}
    found = load_metric("rmse").evaluate(outputs, {"label": np.array([0.0, 4.0])})
    assert found.raw == pytest.approx(1.0)
    assert found.value == pytest.approx(0.5)  # the mean, 2, is off by 2


def test_an_answer_worse_than_the_constant_one_has_no_skill_left() -> None:
    found = load_metric("mae").evaluate({"value": np.array([[50.0], [-50.0]])}, {"label": np.array([1.0, 2.0])})
    assert (found.value, found.low) == (0.0, 0.0)


@pytest.mark.parametrize(("answer", "skill"), [(7.0, 1.0), (7.5, 0.0)])
def test_constant_labels_leave_only_all_or_nothing(answer: float, skill: float) -> None:
    outputs = {"value": np.array([[answer], [answer]])}
    assert load_metric("rmse").evaluate(outputs, {"label": np.array([7.0, 7.0])}).value == skill


def test_undefined_answers_have_no_skill_and_no_raw_error() -> None:
    found = load_metric("rmse").evaluate({"value": np.array([[np.nan], [1.0]])}, {"label": np.array([0.0, 4.0])})
    assert (found.value, found.raw) == (0.0, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 60)
    outputs = {"scores": generator.random((60, 3)).astype(np.float32)}
    metric = load_metric("f1")
    assert metric.evaluate(outputs, {"label": labels}, seed=5) == metric.evaluate(outputs, {"label": labels}, seed=5)


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0)],
)
def test_wilsons_interval_has_its_published_values(hits: int, rows: int, low: float, high: float) -> None:
    assert wilson_interval(hits, rows) == pytest.approx((low, high), abs=1e-4)


@settings(deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_holds_the_share_and_stays_in_range(pair: tuple[int, int]) -> None:
    hits, rows = pair
    low, high = wilson_interval(hits, rows)
    assert 0.0 <= low <= hits / rows <= high <= 1.0


@settings(deadline=None, max_examples=20)
@example([(0.0, 0.0)])
@example([(1e6, -1e6), (-1e6, 1e6)])
@example([(3.0, 2.0), (2.0, 2.0), (1.0, 2.0)])
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_skills_stay_in_range_whatever_is_answered(pairs: list[tuple[float, float]]) -> None:
    outputs = {"value": np.array([[got] for got, _ in pairs])}
    answers = {"label": np.array([want for _, want in pairs])}
    for name in ("mae", "rmse"):
        found = load_metric(name).evaluate(outputs, answers)
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_check_finds_nothing_wrong_with_fitting_arrays() -> None:
    label = {"label": np.array([0, 2])}
    assert not load_metric("accuracy").check(label, [SCORES])
    assert not load_metric("accuracy").check(label, [SCORES, CLASS])
    assert not load_metric("f1").check(label, [CLASS])
    assert not load_metric("mae").check({"label": np.array([0.5, 2.0])}, [VALUE])
    assert not load_metric("rmse").check({"value": np.array([[0.5], [2.0]])}, [VALUE])


@pytest.mark.parametrize(
    ("metric", "arrays", "outputs", "says"),
    [
        ("accuracy", {"label": np.array([0, 3])}, [SCORES], "classes 0..3, but there are 3 scores"),
        ("accuracy", {"label": np.array([0.5])}, [SCORES], "classes are integers"),
        ("accuracy", {"label": np.array([0, 1])}, [VALUE], "one score per row"),
        ("accuracy", {"other": np.array([0])}, [SCORES], "neither 'label' nor an array named like an output"),
        ("accuracy", {"scores": np.zeros((4, 2))}, [SCORES], r"shape \[4, 2\]"),
        ("f1", {"scores": np.zeros((4, 3))}, [SCORES], "needs an array 'label'"),
        ("mae", {"label": np.array(["a"])}, [VALUE], "no distance"),
        ("rmse", {"label": np.array([1.0])}, [VALUE, CLASS], "could belong to any"),
    ],
)
def test_check_says_what_keeps_arrays_from_being_scored(
    metric: str, arrays: dict[str, np.ndarray], outputs: list[TensorSpec], says: str
) -> None:
    problems = load_metric(metric).check(arrays, outputs)
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(problems[0])
