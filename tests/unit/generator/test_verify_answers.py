"""When a transformed graph answers like the original."""

from __future__ import annotations

import numpy as np
from infaas_variant_generator.verify import compare_exactly, compare_loosely, why_score_lost

WANT = {"scores": np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3), "class": np.arange(10)}


def changed(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {**WANT, **arrays}


def test_rounding_is_no_difference() -> None:
    found = compare_exactly(WANT, changed(scores=WANT["scores"] * np.float32(1.00001)))
    assert found.problem is None
    assert 0 < found.max_abs_error < 2e-5


def test_more_than_rounding_is_one() -> None:
    scores = WANT["scores"].copy()
    scores[3, 1] += 0.05
    found = compare_exactly(WANT, changed(scores=scores))
    assert found.problem is not None
    assert "'scores' differs by up to 0.05" in found.problem


def test_a_changed_class_is_one() -> None:
    classes = WANT["class"].copy()
    classes[0] = 9
    assert "10.00%" in (compare_exactly(WANT, changed(**{"class": classes})).problem or "")


def test_a_missing_output_and_another_shape_are_both_reported() -> None:
    problem = compare_exactly(WANT, {"scores": WANT["scores"][:, :2]}).problem or ""
    assert "'scores' should be float32[10, 3]" in problem
    assert "'class' should be int64[10]; it is nothing" in problem


def test_undefined_values_must_stand_where_the_original_has_them() -> None:
    broken = WANT["scores"].copy()
    broken[0, 0] = np.nan
    assert "undefined" in (compare_exactly(WANT, changed(scores=broken)).problem or "")
    assert compare_exactly({"s": broken}, {"s": broken}).problem is None


def test_a_lossy_recipe_may_be_off_by_the_tolerance() -> None:
    off = changed(scores=WANT["scores"] * np.float32(1.03))
    assert compare_loosely(WANT, off, 0.05).problem is None
    assert "3.0%" in (compare_loosely(WANT, off, 0.01).problem or "")


def test_a_lost_score_names_both_scores() -> None:
    assert why_score_lost(0.98, 0.97, 0.05, "accuracy") is None
    assert why_score_lost(0.90, 0.95, 0.0, "accuracy") is None
    assert (
        why_score_lost(0.98, 0.80, 0.05, "accuracy")
        == "accuracy falls from 0.9800 to 0.8000: 0.1800 lost, 0.05 allowed"
    )
