"""Names and ids."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.ids import (
    MAX_NAME_LENGTH,
    NAME_PATTERN,
    fresh_id,
    is_digest,
    name_problem,
    variant_name,
    version_id,
)

MODEL_NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
RECIPES = st.from_regex(r"[a-z][a-z0-9-]{0,40}", fullmatch=True)


@pytest.mark.parametrize("name", ["a", "9", "digits-cnn.v1.ort_fp32", "A" * 128])
def test_a_good_name_has_no_problem(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "_a", "a b", "a/b", "../a", "a\n", "a@1", "ü", "a" * 129, "a\x00", "１"]
)
def test_a_bad_name_is_told_with_its_rule(name: str) -> None:
    problem = name_problem(name, "task")
    assert problem is not None
    assert NAME_PATTERN in problem
    assert problem.startswith("task ")
    assert len(problem) < 250


@given(model=MODEL_NAMES, version=st.integers(1, 10**6), recipe=RECIPES)
def test_a_variants_name_is_always_a_good_name(model: str, version: int, recipe: str) -> None:
    name = variant_name(model, version, recipe)
    assert name_problem(name) is None
    assert len(name) <= MAX_NAME_LENGTH
    assert name.endswith(f".v{version}.{recipe}")


@given(ends=st.lists(st.text("abz", min_size=10, max_size=28), min_size=2, max_size=2, unique=True))
def test_long_models_that_begin_alike_make_different_variants(ends: list[str]) -> None:
    first, second = ("x" * 100 + end for end in ends)
    assert variant_name(first, 1, "ort-fp32-t1") != variant_name(second, 1, "ort-fp32-t1")


@given(model=MODEL_NAMES, version=st.integers(1, 10**6))
def test_a_version_id_can_never_be_a_name(model: str, version: int) -> None:
    assert name_problem(version_id(model, version)) is not None


def test_digests_are_lower_case_sha256() -> None:
    assert is_digest("0123456789abcdef" * 4)
    for wrong in ("", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n"):
        assert not is_digest(wrong)


def test_fresh_ids_differ_and_carry_their_prefix() -> None:
    made = {fresh_id("w") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"w-[0-9a-f]{10}", each) for each in made)
