"""The rules about runs and loads that hang: pure functions, no process in sight."""

from __future__ import annotations

import pytest
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    Answer,
    BatchArrived,
    BeginUnload,
    Condemn,
    InstanceTold,
    LoadAsked,
    Queries,
    Ticked,
)
from infaas_worker.decide.hang import Patience, bound_s, load_bound_s, paused_s
from infaas_worker.decide.instances import LoadBegan, Loaded, LoadFailed, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.isolated import describe_end

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death, InstanceState

PATIENCE = Patience(least_s=2.0, factor=20.0, unmeasured_s=60.0)


@pytest.mark.parametrize(
    ("slow_s", "stall", "bound"), [(0.01, 0.0, 2.0), (0.5, 0.0, 10.0), (0.01, 0.5, 4.0), (None, 0.0, 60.0)]
)
def test_a_run_is_given_many_times_its_p99_and_what_the_host_takes_besides(slow_s, stall, bound):
    assert bound_s(slow_s, stall, PATIENCE) == pytest.approx(bound)


def test_the_bound_stays_finite_whatever_the_host_takes():
    assert bound_s(0.01, 1.0, PATIENCE) == pytest.approx(20.0)


def test_a_warm_up_is_given_a_minute_more_than_what_was_measured_explains():
    assert bound_s(0.01, 0.0, PATIENCE, is_first=True) == pytest.approx(60.2)
    assert bound_s(3.0, 0.0, PATIENCE, is_first=True) == pytest.approx(120.0)
    assert bound_s(None, 0.0, PATIENCE, is_first=True) == pytest.approx(60.0)


@pytest.mark.parametrize(("load_s", "bound"), [(0.2, 60.0), (9.0, 180.0), (None, 300.0)])
def test_a_load_is_given_many_times_what_it_took_and_at_least_a_minute(load_s, bound):
    assert load_bound_s(load_s, PATIENCE) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("last", "now", "paused"),
    [(None, 100.0, 0.0), (9.0, 10.0, 0.0), (8.1, 10.0, 0.0), (7.5, 10.0, 1.5), (-5.0, 10.0, 14.0)],
)
def test_a_pause_is_what_a_tick_is_late_by_when_that_is_more_than_its_period(last, now, paused):
    assert paused_s(last, now, 1.0) == pytest.approx(paused)


def hanging(*, is_killable: bool) -> tuple[Serving, list]:
    """Two ready instances on two cores; the first has run for 2.5 s, and holds a staged batch besides."""
    serving = Serving((0, 1), 100, 1e9, PATIENCE)
    for name in ("i1", "i2"):
        serving, _ = advance(serving, LoadAsked(InstanceId(name), VariantName("v"), 1, 10, 0.01, 0.01), 0.0)
        loaded = Loaded(0.1, True, 1, 10, is_killable=is_killable)
        serving, commands = advance(serving, InstanceTold(InstanceId(name), loaded), 0.0)
        warm_up = WorkDone(commands[0].key, WorkKind.WARM_UP, 0, 0.1)
        serving, _ = advance(serving, InstanceTold(InstanceId(name), warm_up), 0.0)
    for key in (1, 2):
        queries = Queries.of((1, 1, 30.0))
        serving, _ = advance(serving, BatchArrived(key, "c1", InstanceId("i1"), queries, 0.01, 0.01), 0.0)
    serving, commands = advance(serving, Ticked(), 2.5)
    return serving, list(commands)


def test_a_hang_that_can_be_ended_costs_its_instance_and_nothing_else():
    serving, commands = hanging(is_killable=True)
    assert [(c.key, c.was_running) for c in commands if isinstance(c, Answer)] == [(1, True), (2, False)]
    assert [c.instance for c in commands if isinstance(c, BeginUnload)] == ["i1"]
    dead, other = serving.instances[InstanceId("i1")], serving.instances[InstanceId("i2")]
    assert (dead.state, dead.death, other.state) == (InstanceState.FAILED, Death.HUNG, InstanceState.READY)
    assert "hung for 2.5 s, a run of it is given 2.0 s" in dead.reason
    assert serving.failure == ""


def test_a_hang_that_nothing_can_end_condemns_the_process_which_takes_nothing_more():
    serving, commands = hanging(is_killable=False)
    assert [c.reason for c in commands if isinstance(c, Condemn)] == [serving.failure]
    assert "instance i1 of v hung for" in serving.failure
    queries = Queries.of((1, 1, 30.0))
    _, refused = advance(serving, BatchArrived(3, "c1", InstanceId("i2"), queries, 0.01, 0.01), 2.6)
    assert [(c.key, c.was_running) for c in refused if isinstance(c, Answer)] == [(3, False)]


def test_a_run_within_its_bound_is_left_alone():
    serving = hanging(is_killable=True)[0]
    assert advance(serving, Ticked(), 2.6)[0].failure == ""


def running(*, slow_s: float = 0.01) -> Serving:
    """One ready instance that began to run a batch at 1.0, with a tick every second until 2.0."""
    serving = Serving((0,), 100, 1e9, PATIENCE, tick_s=1.0)
    one = InstanceId("i1")
    serving, _ = advance(serving, LoadAsked(one, VariantName("v"), 1, 10), 0.0)
    serving, commands = advance(serving, InstanceTold(one, Loaded(0.1, True, 1, 10)), 0.0)
    serving, _ = advance(serving, InstanceTold(one, WorkDone(commands[0].key, WorkKind.WARM_UP, 0, 0.1)), 0.0)
    serving, _ = advance(serving, BatchArrived(1, "c1", one, Queries.of((1, 1, 900.0)), 0.01, slow_s), 1.0)
    for now in (1.0, 2.0):
        serving, _ = advance(serving, Ticked(), now)
    return serving


@pytest.mark.parametrize("pause_s", [15.0, 120.0])
def test_what_runs_is_not_blamed_for_a_pause_of_the_whole_worker_but_for_what_follows(pause_s):
    serving = running()
    at = 3.0 + pause_s
    serving, commands = advance(serving, Ticked(), at)
    assert (serving.failure, commands) == ("", ())
    serving, commands = advance(serving, Ticked(), at + 0.9)
    assert "hung for 2.9 s, a run of it is given 2.0 s" in serving.failure
    assert [one.was_running for one in commands if isinstance(one, Answer)] == [True]


def test_late_ticks_of_less_than_a_period_excuse_nothing():
    serving = running()
    for now in (2.9, 3.9):
        serving, _ = advance(serving, Ticked(), now)
    assert "hung for 2.9 s" in serving.failure


def test_a_slow_warm_up_is_left_alone_long_after_a_run_would_be_taken_for_hung():
    serving = Serving((0,), 100, 1e9, PATIENCE)
    asked = LoadAsked(InstanceId("i1"), VariantName("v"), 1, 10, warm_up_slow_s=2.0)
    serving, _ = advance(serving, asked, 0.0)
    serving, _ = advance(serving, InstanceTold(InstanceId("i1"), Loaded(0.1, True, 1, 10)), 0.0)
    for now in range(1, 100):
        serving, _ = advance(serving, Ticked(), float(now))
    assert (serving.failure, serving.instances[InstanceId("i1")].state) == ("", InstanceState.LOADING)
    serving, _ = advance(serving, Ticked(), 100.5)
    assert "hung for 100.5 s, a run of it is given 100.0 s" in serving.failure


def loading(load_s: float | None = 4.0) -> Serving:
    serving = Serving((0,), 100, 1e9, PATIENCE)
    serving, _ = advance(serving, LoadAsked(InstanceId("i1"), VariantName("v"), 1, 10, load_s=load_s), 0.0)
    return advance(serving, InstanceTold(InstanceId("i1"), LoadBegan()), 10.0)[0]


def test_a_load_that_nothing_can_end_condemns_the_process_when_its_time_is_over():
    serving = loading()
    for now in range(11, 91):
        serving, commands = advance(serving, Ticked(), float(now))
        assert (serving.failure, commands) == ("", ())
    serving, commands = advance(serving, Ticked(), 90.5)
    assert serving.failure == "instance i1 of v hung for 80.5 s while loading, which is given 80.0 s"
    assert [one.reason for one in commands if isinstance(one, Condemn)] == [serving.failure]


def test_a_load_is_not_blamed_for_a_pause_nor_for_what_it_waited_for_before():
    serving = advance(loading(), Ticked(), 80.0)[0]
    serving = advance(serving, Ticked(), 300.0)[0]
    assert serving.failure == ""
    failed = advance(loading(), InstanceTold(InstanceId("i1"), LoadFailed("no")), 20.0)[0]
    assert advance(failed, Ticked(), 1000.0)[0].failure == ""


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (-8, "", "its process was killed by SIGFPE"),
        (-9, "", "its process was killed by SIGKILL (out of memory?)"),
        (3, "no more", "its process exited with status 3: no more"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(status, said, words):
    assert describe_end(status, said) == words
