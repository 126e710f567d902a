"""The rules about runs that hang and processes that die: pure functions, no process in sight."""

from __future__ import annotations

import pytest
from infaas_worker.blackbox import BlackBox, Slot, deaths, fault_name
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    Answer,
    BatchArrived,
    BeginUnload,
    Condemn,
    InstanceTold,
    LoadAsked,
    StagedQuery,
    Ticked,
)
from infaas_worker.decide.hang import Patience, bound_s
from infaas_worker.decide.instances import Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.isolated import describe_end

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death, InstanceState

PATIENCE = Patience(least_s=2.0, factor=20.0, unmeasured_s=60.0)
FAULT = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"


@pytest.mark.parametrize(
    ("slow_s", "stall", "bound"), [(0.01, 0.0, 2.0), (0.5, 0.0, 10.0), (0.01, 0.5, 4.0), (None, 0.0, 60.0)]
)
def test_a_run_is_given_many_times_its_p99_and_what_the_host_takes_besides(slow_s, stall, bound):
    assert bound_s(slow_s, stall, PATIENCE) == pytest.approx(bound)


def test_the_bound_stays_finite_whatever_the_host_takes():
    assert bound_s(0.01, 1.0, PATIENCE) == pytest.approx(20.0)


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
        query = StagedQuery(1, 1, 30.0)
        serving, _ = advance(serving, BatchArrived(key, "c1", InstanceId("i1"), (query,), 0.01, 0.01), 0.0)
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
    query = StagedQuery(1, 1, 30.0)
    _, refused = advance(serving, BatchArrived(3, "c1", InstanceId("i2"), (query,), 0.01, 0.01), 2.6)
    assert [(c.key, c.was_running) for c in refused if isinstance(c, Answer)] == [(3, False)]


def test_a_run_within_its_bound_is_left_alone():
    serving = hanging(is_killable=True)[0]
    assert advance(serving, Ticked(), 2.6)[0].failure == ""


def test_a_fatal_signal_is_blamed_on_what_ran_and_a_kill_from_outside_on_nobody():
    slots = [Slot("i1", "v1", True), Slot("i2", "v2", False)]
    (found,) = deaths(slots, FAULT, "")
    assert (found.instance, found.variant, found.death) == ("i1", "v1", Death.CRASHED)
    assert "Segmentation fault" in found.reason
    assert deaths(slots, "", "") == ()
    (hung,) = deaths(slots, "", "instance i1 of v1 hung for 9 s")
    assert (hung.instance, hung.death) == ("i1", Death.HUNG)
    assert fault_name("nothing of the kind") == ""


def test_the_next_life_reads_what_was_running_and_an_orderly_end_leaves_nothing(tmp_path):
    box = BlackBox(tmp_path, "w1")
    box.loaded("i1", "v1")
    box.loaded("i2", "v2")
    box.began("i1")
    box.began("i2")
    box.ended("i2")
    (tmp_path / "worker-w1.fault").write_text(FAULT)
    box.abandon()
    again = BlackBox(tmp_path, "w1")
    assert [death.instance for death in again.deaths] == ["i1"]
    again.disarm()
    assert list(tmp_path.iterdir()) == []


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
