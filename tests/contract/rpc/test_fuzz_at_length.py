"""What both protocols' readers promise, tried on thousands of examples, others each time."""

from __future__ import annotations

import pytest
from fuzzed_parsers import CASES, attempts
from hypothesis import HealthCheck, settings

LONG = settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_nothing_but_a_value_or_a_refusal_in_words_many_times_over(case: str) -> None:
    attempts(case, LONG)
