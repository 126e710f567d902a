"""Admission on small catalogues."""

from __future__ import annotations

from dataclasses import replace

import pytest
from infaas_controller.decide.candidates import Admissions, admit, default_floor

from infaas.domain.query import AccuracyConfidence, Code
from infaas.domain.task import ModelState
from infaas.domain.variant import AccuracySource
from infaas.testing.builders import a_model, a_query, a_variant, a_view, an_accuracy


def test_the_current_version_serves_unless_another_is_asked_for() -> None:
    variants = [a_variant("old", version=1), a_variant("new", version=2)]
    view = a_view(variants=variants, models=[a_model("m1", current=1)])

    def names(handle: str, version: int | None = None) -> list[str]:
        query = a_query(handle, version=version)
        return [v.name for v in admit(handle, version, 1, query.requirements, view).variants]

    assert names("digits") == ["old"]
    assert names("m1") == ["old"]
    assert names("m1", 2) == ["new"]
    assert names("new") == ["new"]
    assert names("new", 1) == []
    assert names("m1", 3) == []


def test_a_model_that_is_still_built_is_503_and_one_without_variants_says_why() -> None:
    building = a_view(models=[a_model("m1", current=None, state=ModelState.LOADING)])
    broken = a_view(models=[a_model("m1", current=None, reason="not ONNX")])
    wanted = a_query().requirements
    refusal = admit("m1", None, 1, wanted, building).refusal
    assert refusal is not None
    assert refusal.code is Code.LOADING
    refusal = admit("m1", None, 1, wanted, broken).refusal
    assert refusal is not None
    assert (refusal.code, "not ONNX" in refusal.reason) == (Code.UNAVAILABLE, True)


def test_the_default_floor_comes_from_measured_accuracy_only() -> None:
    declared = an_accuracy(0.99, source=AccuracySource.DECLARED)
    variants = [a_variant("a", accuracy=0.9), a_variant("b", accuracy=declared), a_variant("c", accuracy=None)]
    assert default_floor(variants) == pytest.approx(0.88)
    assert default_floor(variants, AccuracyConfidence.LOWER95) == pytest.approx(0.86)
    assert default_floor(variants[1:]) == 0.0
    admitted = admit("digits", None, 1, a_query().requirements, a_view(variants=variants)).variants
    assert {v.name for v in admitted} == {"a", "b"}


def test_lower95_holds_the_lower_end_against_an_explicit_floor() -> None:
    view = a_view(variants=[a_variant("a", accuracy=0.9)])
    wanted = replace(a_query(accuracy_min=0.89).requirements, accuracy_confidence=AccuracyConfidence.LOWER95)
    assert admit("digits", None, 1, a_query(accuracy_min=0.89).requirements, view).variants
    refused = admit("digits", None, 1, wanted, view)
    assert not refused.variants
    assert "lower end" in refused.rulings[0].reason


def test_items_are_held_against_batch_limits_and_a_fixed_batch() -> None:
    view = a_view(variants=[a_variant("fixed", fixed_batch=1), a_variant("small", max_batch=4)])
    wanted = a_query(accuracy_min=0.0).requirements
    assert {v.name for v in admit("digits", None, 1, wanted, view).variants} == {"fixed", "small"}
    assert {v.name for v in admit("digits", None, 4, wanted, view).variants} == {"small"}
    refusal = admit("digits", None, 5, wanted, view).refusal
    assert refusal is not None
    assert (refusal.code, "at most 4" in refusal.reason) == (Code.INVALID, True)


def test_admissions_are_kept_over_worker_changes_and_forgotten_with_the_catalogue() -> None:
    from infaas.testing.builders import a_worker

    view = a_view(variants=[a_variant("a"), a_variant("b", accuracy=0.5)])
    admissions = Admissions()
    first = admissions.of(a_query(), view)
    assert admissions.of(a_query(), view.with_worker(a_worker())) is first
    assert admissions.of(a_query(accuracy_min=0.88), view).key == first.key, "the same variants: interchangeable"
    assert admissions.of(a_query(accuracy_min=0.0), view).key != first.key
    renewed = replace(view, variants=dict(view.variants))
    assert admissions.of(a_query(), renewed) is not first
    assert admissions.of(a_query(), renewed).key != first.key


def test_a_floor_that_only_smaller_batches_reach_names_the_batch_as_the_bound() -> None:
    view = a_view(variants=[a_variant("best", accuracy=0.99, max_batch=8), a_variant("wide", accuracy=0.9)])
    wanted = a_query(accuracy_min=0.95).requirements
    refusal = admit("digits", None, 16, wanted, view).refusal
    assert refusal is not None
    assert refusal.code is Code.SLO_UNSATISFIABLE
    assert refusal.reason == (
        "batch: 16 items in one query; what meets the accuracy floor 0.9500 takes fewer: best takes at most 8: split it"
    )
