"""Which decisions the journal keeps, and how many of them with their candidates."""

from __future__ import annotations

from infaas_controller.journal import Allowance, is_journaled


def test_refusals_are_kept_and_a_sample_of_answers() -> None:
    assert is_journaled("saturated", 0.0, 0.99)
    assert is_journaled("answered", 0.1, 0.05)
    assert not is_journaled("answered", 0.1, 0.1)


def test_an_allowance_refills_with_time_up_to_a_seconds_worth() -> None:
    allowance = Allowance(2)
    assert [allowance.take(10.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(10.5), allowance.take(10.5)] == [True, False]
    assert [allowance.take(99.0) for _ in range(3)] == [True, True, False]
