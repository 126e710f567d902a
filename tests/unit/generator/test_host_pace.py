"""A host that slows down without a trace is found out by work that is always the same."""

from __future__ import annotations

import os
import threading

import pytest
from infaas_variant_generator.pace import KNOWN_FOR_S, HostPace, Reference, is_slow
from infaas_variant_generator.round_log import Round, RoundLog

from infaas.testing.clock import ManualClock

QUIET_S, SLOW_S = 50e-6, 90e-6


def a_round(batch: int, run_s: float, reference_s: float, *, is_spoiled: bool = False) -> Round:
    return Round(batch, is_spoiled, reference_s, [run_s] * 10, [run_s] * 10)


def test_rounds_of_a_slow_spell_do_not_count_and_are_kept() -> None:
    log = RoundLog((1,), QUIET_S)
    log.add(a_round(1, 0.001, 1.1 * QUIET_S))
    log.add(a_round(1, 0.0017, SLOW_S))
    log.add(a_round(1, 0.001, QUIET_S, is_spoiled=True))
    assert (log.tallies[1].rounds, log.tallies[1].samples, log.tallies[1].spoiled_rounds) == (1, 10, 2)
    assert log.slow_rounds() == 1
    samples = log.samples()
    assert samples.seconds.tolist() == [0.001] * 10 + [0.0017] * 10 + [0.001] * 10
    assert samples.is_spoiled.tolist() == [False] * 20 + [True] * 10
    assert samples.is_slow.tolist() == [False] * 10 + [True] * 10 + [False] * 10
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
    assert pace.best_s(1) is None
    pace.note(1, SLOW_S)
    pace.note(1, QUIET_S)
    assert pace.best_s(1) == QUIET_S
    assert pace.best_s(2) is None, "two cores at once are another matter"
    clock.advance(0.6 * KNOWN_FOR_S)
    pace.note(1, 1.05 * QUIET_S)
    assert pace.best_s(1) == QUIET_S


def test_a_best_that_no_measurement_reaches_any_more_is_forgotten() -> None:
    clock = ManualClock()
    pace = HostPace(clock)
    pace.note(1, QUIET_S)
    for _ in range(5):
        clock.advance(0.3 * KNOWN_FOR_S)
        log = RoundLog((1,), pace.best_s(1))
        log.add(a_round(1, 0.0017, SLOW_S))
        seen_s = log.seen_reference_s()
        assert seen_s is not None
        pace.note(1, seen_s)
    assert pace.best_s(1) == SLOW_S


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, False), (1.19, False), (1.21, True), (1.8, True)])
def test_what_is_slow(ratio: float, expected: bool) -> None:
    assert is_slow(ratio * QUIET_S, QUIET_S) is expected


def test_several_cores_do_the_work_at_once_and_one_that_may_not_be_used_is_an_error() -> None:
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    reference = Reference(2)
    try:
        assert 0 < reference([cores[0], cores[-1]]) < 1
        assert 0 < reference(cores[:1]) < 1
        with pytest.raises(OSError, match="Invalid argument"):
            reference([cores[0], 4095])
        assert 0 < reference([cores[0], cores[-1]]) < 1, "an error is told once"
        assert os.sched_getaffinity(0) == before, "the caller's own thread stays where it was"
    finally:
        reference.close()
    assert "reference" not in {thread.name for thread in threading.enumerate()}
