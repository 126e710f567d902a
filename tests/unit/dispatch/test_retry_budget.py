"""What the budget of retries promises, over any sequence of queries and losses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.quarantine import RETRIES_AT_START, RETRIES_SAVED, RetryBudget


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40)), max_size=30))
def test_retries_are_a_tenth_of_the_queries_and_ten_whatever_comes(rounds: list[tuple[int, int]]) -> None:
    budget, arrived, granted = RetryBudget(), 0, 0
    for queries, losses in rounds:
        for _ in range(queries):
            budget.arrived()
        arrived += queries
        asked = sum(budget.spend() for _ in range(losses))
        granted += asked
        assert granted <= RETRIES_AT_START + arrived / 10 + 1e-6
        refused = losses - asked
        assert not refused or granted >= min(RETRIES_AT_START + arrived // 10, RETRIES_SAVED) - 1


def test_what_is_saved_up_has_a_bound() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.arrived()
    assert sum(budget.spend() for _ in range(1_000)) == RETRIES_SAVED
