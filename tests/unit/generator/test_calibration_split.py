"""Which rows calibrate and which are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_variant_generator.arrays import load_rows, to_bytes
from infaas_variant_generator.split import calibration_rows, row_digests, set_aside

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError

X = (TensorSpec("x", Datatype.FP32, (-1, 3)),)
digests = st.lists(st.binary(min_size=1, max_size=2), max_size=300)


def rows(count: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@settings(deadline=None)
@given(digests)
def test_never_more_than_a_fifth_nor_128_rows_are_set_aside_and_equal_ones_stay_together(found: list[bytes]) -> None:
    mask = set_aside(found)
    assert mask.sum() <= min(0.2 * len(found), 128)
    aside = {digest for digest, is_aside in zip(found, mask, strict=True) if is_aside}
    scored = {digest for digest, is_aside in zip(found, mask, strict=True) if not is_aside}
    assert not aside & scored
    assert len(aside) != 1


@settings(deadline=None)
@given(digests, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(found: list[bytes], random: Any) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    for each in (found, shuffled):
        mask = set_aside(each)
        chosen = sorted(digest for digest, is_aside in zip(each, mask, strict=True) if is_aside)
        if each is found:
            first = chosen
    assert chosen == first


@settings(deadline=None)
@given(digests, st.integers(0, 150))
def test_calibration_rows_are_different_ones_and_no_more_than_asked_for(found: list[bytes], most: int) -> None:
    chosen = calibration_rows(found, most)
    values = [found[row] for row in chosen]
    assert len(values) == len(set(values)) == min(most, len(set(found)))
    assert list(chosen) == sorted(chosen)


def test_a_row_is_told_apart_by_all_its_inputs() -> None:
    one = {"a": np.array([[1], [1]], dtype=np.int64), "b": np.array([[1], [2]], dtype=np.int64)}
    first, second = row_digests(one, to_bytes)
    assert first != second
    texts = {"a": np.array([[b"x", b"yz"], [b"xy", b"z"]], dtype=object)}
    first, second = row_digests(texts, to_bytes)
    assert first != second


def test_evaluation_rows_that_calibrate_are_not_scored(tmp_path: Path) -> None:
    data, labels = rows(100), np.arange(100)
    found = load_rows(X, saved(tmp_path / "e.npz", x=data, label=labels), None, 7)
    assert found.count == len(found.inputs["x"]) == len(found.answers["label"]) == 80
    assert len(found.calibration["x"]) == 20
    scored = {row.tobytes() for row in found.inputs["x"]}
    assert not scored & {row.tobytes() for row in found.calibration["x"]}
    assert all((data[label] == row).all() for row, label in zip(found.inputs["x"], found.answers["label"], strict=True))


def test_the_same_rows_are_set_aside_whatever_their_order_and_width(tmp_path: Path) -> None:
    data = rows(100)
    one = load_rows(X, saved(tmp_path / "1.npz", x=data, label=np.zeros(100)), None, 7)
    other = load_rows(X, saved(tmp_path / "2.npz", x=data[::-1].astype(np.float64), label=np.zeros(100)), None, 1)
    assert np.array_equal(one.calibration["x"], other.calibration["x"][::-1])
    assert np.array_equal(one.inputs["x"], other.inputs["x"][::-1])


def test_with_a_calibration_set_every_other_evaluation_row_is_scored(tmp_path: Path) -> None:
    data = rows(100)
    evaluation = saved(tmp_path / "e.npz", x=data, label=np.zeros(100))
    found = load_rows(X, evaluation, saved(tmp_path / "c.npz", x=np.concatenate([data[:10], rows(300, 4)])), 7)
    assert found.count == 90
    assert len(found.calibration["x"]) == 128


def test_few_rows_are_all_scored_and_none_calibrates(tmp_path: Path) -> None:
    found = load_rows(X, saved(tmp_path / "e.npz", x=rows(9), label=np.zeros(9)), None, 7)
    assert (found.count, found.calibration) == (9, {})
    assert "too few" in found.why_uncalibrated


def test_rows_that_are_all_the_same_calibrate_nothing(tmp_path: Path) -> None:
    same = np.ones((50, 3), dtype=np.float32)
    found = load_rows(X, saved(tmp_path / "e.npz", x=same, label=np.zeros(50)), None, 7)
    assert (found.count, found.calibration) == (50, {})
    given = load_rows(
        X, saved(tmp_path / "e.npz", x=rows(50), label=np.zeros(50)), saved(tmp_path / "c.npz", x=same), 7
    )
    assert (given.count, given.calibration) == (50, {})
    assert "different" in given.why_uncalibrated


def test_without_evaluation_data_the_rest_of_the_calibration_set_verifies_unscored(tmp_path: Path) -> None:
    found = load_rows(X, None, saved(tmp_path / "c.npz", x=rows(200), label=np.zeros(200)), 7)
    assert (found.count, found.answers, found.is_random) == (72, {}, False)
    assert len(found.calibration["x"]) == 128
    assert not {r.tobytes() for r in found.inputs["x"]} & {r.tobytes() for r in found.calibration["x"]}
    few = load_rows(X, None, saved(tmp_path / "few.npz", x=rows(20)), 7)
    assert (few.count, len(few.calibration["x"])) == (20, 20)


def test_made_up_inputs_calibrate_nothing() -> None:
    found = load_rows(X, None, None, 7)
    assert found.is_random
    assert (found.calibration, found.why_uncalibrated) == ({}, "there is no data but made-up inputs")


def test_calibration_data_without_an_input_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="the calibration data lacks the inputs x"):
        load_rows(X, None, saved(tmp_path / "c.npz", y=rows(5)), 7)
