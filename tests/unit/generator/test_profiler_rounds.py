"""How the measuring budget is spent."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_variant_generator.rounds import (
    MIN_SAMPLES,
    Tally,
    is_enough,
    next_batch,
    progress,
    round_runs,
    why_spoiled,
    with_round,
)


def simulate(cost_s: dict[int, float], budget_s: float, *, stalls: bool = False) -> dict[int, Tally]:
    tallies = {batch: Tally() for batch in cost_s}
    while not is_enough(tallies, budget_s):
        batch = next_batch(tallies)
        runs_s = [cost_s[batch]] * round_runs(cost_s[batch])
        tallies[batch] = with_round(tallies[batch], runs_s, is_spoiled=stalls)
    return tallies


def test_a_fast_model_gets_its_samples_and_stops_before_the_budget() -> None:
    tallies = simulate({1: 1e-4, 32: 1e-3}, budget_s=60.0)
    assert all(tally.samples >= MIN_SAMPLES for tally in tallies.values())
    assert sum(tally.spent_s for tally in tallies.values()) < 5


def test_a_slow_model_gets_a_few_rounds_of_each_size_and_most_of_the_smallest() -> None:
    tallies = simulate({1: 0.014, 8: 0.11, 16: 0.23}, budget_s=3.0)
    assert min(tally.rounds for tally in tallies.values()) >= 3
    assert tallies[1].samples > 50
    assert sum(tally.spent_s for tally in tallies.values()) < 3.5


def test_a_host_that_always_stalls_does_not_keep_the_profiler_for_ever() -> None:
    tallies = simulate({1: 0.01, 4: 0.04}, budget_s=1.0, stalls=True)
    assert sum(tally.spoiled_s for tally in tallies.values()) < 2.0
    assert all(tally.samples == 0 for tally in tallies.values())


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 64), st.floats(1e-5, 2.0), min_size=1, max_size=6), st.floats(0.1, 3.0))
def test_every_size_is_measured_whatever_it_costs(cost_s: dict[int, float], budget_s: float) -> None:
    tallies = simulate(cost_s, budget_s)
    assert min(tally.rounds for tally in tallies.values()) >= 3
    assert progress(tallies, budget_s) == 1.0 or sum(t.spent_s for t in tallies.values()) < budget_s


def test_where_many_samples_say_little_the_budget_is_spent() -> None:
    tallies = {1: Tally(rounds=100, samples=6400, spent_s=20.0)}
    assert is_enough(tallies, 60.0)
    assert not is_enough(tallies, 60.0, may_end_early=False)
    assert progress(tallies, 60.0, may_end_early=False) == 20 / 60
    assert is_enough({1: Tally(rounds=100, samples=6400, spent_s=60.0)}, 60.0, may_end_early=False)


def test_a_gap_far_beyond_the_median_spoils_a_round() -> None:
    assert why_spoiled([0.0001] * 20 + [0.008], 0.0001, None) == "a run took 8.00 ms where 0.10 ms are usual"
    assert why_spoiled([0.010, 0.011, 0.012], 0.010, 0.0) is None


def test_a_single_slow_run_is_held_against_what_is_usual() -> None:
    assert why_spoiled([0.020], 0.010, None) is not None
    assert why_spoiled([0.020], 0.0, None) is None


def test_time_the_thread_was_not_running_spoils_a_round() -> None:
    assert why_spoiled([0.010, 0.0105], 0.010, 0.005) == "not running for 5.00 ms of 20.50 ms"
    assert why_spoiled([0.010, 0.0105], 0.010, 0.0005) is None
