"""A host that slows down without a trace is found out by work that is always the same."""

from __future__ import annotations

import os

import pytest
from infaas_variant_generator.pace import KNOWN_FOR_S, HostPace, is_slow, reference_s, slowest_s
from infaas_variant_generator.round_log import Round, RoundLog

from infaas.testing.clock import ManualClock

QUIET_S, SLOW_S = 50e-6, 90e-6


def a_round(batch: int, run_s: float, reference_s: float, at: float = 0.0, *, is_spoiled: bool = False) -> Round:
    return Round(batch, is_spoiled, at, reference_s, [run_s] * 10, [run_s] * 10)


def test_rounds_of_a_slow_spell_do_not_count_and_are_kept() -> None:
    log = RoundLog((1,), QUIET_S)
    log.add(a_round(1, 0.001, 1.1 * QUIET_S, 1.0))
    log.add(a_round(1, 0.0017, SLOW_S, 2.0))
    log.add(a_round(1, 0.001, QUIET_S, 3.0, is_spoiled=True))
    assert (log.tallies[1].rounds, log.tallies[1].samples, log.tallies[1].spoiled_rounds) == (1, 10, 2)
    assert log.medians(1) == [(1.0, 0.001)]
    assert log.slow_rounds() == 1
    samples = log.samples()
    assert samples.seconds.tolist() == [0.001] * 10 + [0.0017] * 10 + [0.001] * 10
    assert samples.is_spoiled.tolist() == [False] * 10 + [True] * 20
    assert samples.round.tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_that_the_first_rounds_were_slow_is_seen_when_the_host_gets_faster() -> None:
    log = RoundLog((1, 2), None)
    log.add(a_round(1, 0.0017, SLOW_S))
    log.add(a_round(2, 0.0034, SLOW_S))
    assert [log.tallies[batch].spoiled_rounds for batch in (1, 2)] == [0, 0]
    log.add(a_round(1, 0.001, QUIET_S))
    assert [log.tallies[batch].spoiled_rounds for batch in (1, 2)] == [1, 1]
    assert log.tallies[1].rounds == 1
    assert log.best_reference_s == QUIET_S


def test_the_best_of_a_host_is_kept_between_measurements_while_it_is_reached() -> None:
    clock = ManualClock()
    pace = HostPace(clock)
    assert pace.best_s() is None
    pace.note(SLOW_S)
    pace.note(QUIET_S)
    assert pace.best_s() == QUIET_S
    clock.advance(0.6 * KNOWN_FOR_S)
    pace.note(1.05 * QUIET_S)
    clock.advance(0.6 * KNOWN_FOR_S)
    pace.note(SLOW_S)
    assert pace.best_s() == QUIET_S
    clock.advance(0.6 * KNOWN_FOR_S)
    assert pace.best_s() is None, "nothing reached it for more than an hour"
    pace.note(SLOW_S)
    assert pace.best_s() == SLOW_S


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, False), (1.19, False), (1.21, True), (1.8, True)])
def test_what_is_slow(ratio: float, expected: bool) -> None:
    assert is_slow(ratio * QUIET_S, QUIET_S) is expected


def test_the_slowest_of_several_cores_tells_and_the_thread_is_back_on_the_first() -> None:
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    seen: list[set[int]] = []
    answers = iter([1.0, 3.0, 2.0])

    def reference() -> float:
        seen.append(os.sched_getaffinity(0))
        return next(answers)

    try:
        assert slowest_s([cores[0], cores[-1], cores[0]], reference) == 3.0
        assert seen == [{cores[-1]}, {cores[0]}, {cores[0]}]
        assert os.sched_getaffinity(0) == {cores[0]}
    finally:
        os.sched_setaffinity(0, before)
    assert 0 < slowest_s([]) < 1
    assert 0 < reference_s() < 1
