"""What the benchmark of elasticity says of callers and fleets, on runs made up for it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infaas.testing.load import BROKEN, HUNG, OK, Outcome, Shot

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
DEADLINE_S = 0.5


@pytest.fixture
def elastic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("elastic_figures")


def shot(due_s: float, took_s: float = 0.1, code: str = OK) -> Shot:
    return Shot(due_s, due_s + took_s, code, 1)


def a_trace(elastic: Any, schedule: Sequence[float] = (), *, capacity: float = 2.0, held_s: float = 20.0) -> Any:
    return elastic.Trace(schedule, capacity, held_s, (1.0, 4.0, 1.0))


def an_arm(elastic: Any, shots: Sequence[Shot], **more: Any) -> Any:
    more = {"sights": [elastic.Sight(0.0, 2, 2)], **more}
    return elastic.Arm("it", True, Outcome(tuple(shots), DEADLINE_S), **more)


def step(at_s: float, action: str, worker: str) -> dict[str, object]:
    return {"at_s": at_s, "action": action, "worker": worker}


def test_on_time_is_what_was_answered_within_the_deadline_and_all_that_was_asked_counts(elastic: Any) -> None:
    shots = [shot(1), shot(2, DEADLINE_S + 0.01), shot(3, 0.1, "saturated"), shot(4, 0.5, "deadline-passed")]
    assert elastic.attainment(shots, DEADLINE_S) == 0.25
    assert math.isnan(elastic.attainment([], DEADLINE_S))


def test_the_ten_seconds_after_a_step_are_left_out_and_no_others(elastic: Any) -> None:
    shots = [shot(at) for at in (0.0, 19.9, 20.0, 29.9, 30.0, 39.9, 45.0, 50.0)]
    assert [one.due_s for one in elastic.settled(shots, [20.0, 40.0])] == [0.0, 19.9, 30.0, 39.9, 50.0]


def test_lost_is_whatever_was_neither_answered_nor_refused_with_the_reason(elastic: Any) -> None:
    codes = [OK, "saturated", "deadline-unreachable", "no-worker", "loading", HUNG, BROKEN, BROKEN, "deadline-passed"]
    found = elastic.lost([shot(1, code=code) for code in codes])
    assert found == {HUNG: 1, BROKEN: 2, "deadline-passed": 1}


def test_lost_as_workers_went_is_what_was_on_its_way_between_a_drain_and_the_end_of_its_worker(elastic: Any) -> None:
    steps = [step(-3.0, "drain", "before"), step(-2.0, "remove", "before"), step(41.0, "drain", "a"),
             step(41.5, "drain", "b"), step(42.0, "remove", "a"), step(50.0, "load", "c")]  # fmt: skip
    departed = elastic.departures(steps, 60.0)
    assert departed == [(41.0, 42.0), (41.5, 60.0)]
    shots = [shot(40.8, code=BROKEN), shot(40.95, code=BROKEN), shot(59.0, code="saturated"), shot(30.0, code=BROKEN)]
    seen = elastic.figures(an_arm(elastic, shots, steps=steps), a_trace(elastic), 100.0)
    assert seen["departures"] == 2
    assert seen["in_flight_on_scale_down"] == 2
    assert seen["lost_on_scale_down"] == {BROKEN: 1}
    assert seen["lost"] == {BROKEN: 3}


def test_workers_are_paid_from_one_look_to_the_next_and_over_the_whole_trace(elastic: Any) -> None:
    sights = [elastic.Sight(0.5, 2, 2), elastic.Sight(10.0, 6, 2), elastic.Sight(30.0, 1, 1)]
    assert elastic.paid_worker_seconds(sights, 60.0) == 10 * 2 + 20 * 6 + 30 * 1
    assert math.isnan(elastic.paid_worker_seconds([], 60.0))


def test_the_trace_counts_from_its_beginning_and_knows_its_steps(elastic: Any) -> None:
    trace = a_trace(elastic, [-1.0, 0.0, 0.5, 1.5, 59.9], held_s=20.0)
    assert trace.counts() == [2, 1, *[0] * 57, 1]
    assert trace.steps_s == [20.0, 40.0]
    assert elastic.fewest_worker_seconds(trace, 5.0) == 1 + 1 + 5 + 1


def test_start_up_is_from_the_order_to_ready_and_unknown_where_none_came(elastic: Any) -> None:
    came = [elastic.Coming(str(took), 3.0, 3.0 + took) for took in (9.0, 2.0, 4.0)]
    assert elastic.startup_s([*came, elastic.Coming("never", 5.0)]) == 4.0
    assert math.isnan(elastic.startup_s([elastic.Coming("never", 5.0)]))


def test_every_bound_that_is_not_kept_is_said(elastic: Any) -> None:
    kept = {"attainment": 0.97, "attainment_settled": 0.99, "lost_on_scale_down": {}, "of_clairvoyant": 1.3}
    assert elastic.broken(kept) == []
    wrong = {
        "attainment": 0.96,
        "attainment_settled": math.nan,
        "lost_on_scale_down": {BROKEN: 2},
        "of_clairvoyant": 1.4,
    }
    said = elastic.broken(wrong)
    assert len(said) == 4
    assert said[0] == "96.00% of the queries were answered on time over the run, less than 97%"
    assert said[2] == f"2 queries ended as {BROKEN} while workers went"
    assert said[3] == "1.40 times the worker-seconds that knowing the trace takes, more than 1.3"


def test_each_step_has_figures_of_its_own(elastic: Any) -> None:
    shots = [shot(5.0), shot(25.0, code="saturated"), shot(26.0), shot(45.0)]
    seen = elastic.figures(an_arm(elastic, shots), a_trace(elastic), 60.0)
    assert [(one["load"], one["queries"], one["attainment"]) for one in seen["phases"]] == [
        (1.0, 1, 1.0), (4.0, 2, 0.5), (1.0, 1, 1.0),
    ]  # fmt: skip
    assert (seen["worker_seconds"], seen["of_clairvoyant"]) == (120.0, 2.0)


def test_attainment_over_time_is_of_those_that_were_due_then(elastic: Any) -> None:
    outcome = Outcome((shot(0.5), shot(1.0, code="saturated"), shot(6.0)), DEADLINE_S)
    assert elastic.attainment_over_time(outcome, 10.0, 5.0) == [(2.5, 50.0), (7.5, 100.0)]
