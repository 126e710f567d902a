"""The life of one instance, event by event."""

from __future__ import annotations

import pytest
from infaas_worker.decide.instances import (
    FAILED_KEPT_S,
    USE_HALF_LIFE_S,
    DrainAsked,
    ExecutorDied,
    Instance,
    Loaded,
    LoadFailed,
    ProbeDue,
    Refuse,
    Stage,
    TimePassed,
    Unload,
    Unloaded,
    WorkArrived,
    WorkDone,
    WorkKind,
    WorkStarted,
    WorkWithdrawn,
    step,
)

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code

LOADED = Loaded(load_s=0.5, was_cold=True, in_flight=1, memory_bytes=7)


def run(instance: Instance, *events, now: float = 10.0) -> tuple[Instance, list]:
    commands: list = []
    for event in events:
        instance, more = step(instance, event, now)
        commands += more
    return instance, commands


def loading() -> Instance:
    return Instance(InstanceId("i1"), VariantName("v1"), threads=1, memory_bytes=5, asked_at=9.0)


def ready() -> Instance:
    warm = (LOADED, WorkArrived(-1, WorkKind.WARM_UP), WorkStarted(-1), WorkDone(-1, WorkKind.WARM_UP, 0, 0.1))
    instance, _ = run(loading(), *warm)
    assert instance.state is InstanceState.READY
    return instance


def test_a_loaded_instance_is_not_ready_before_a_real_inference_succeeded():
    instance, commands = run(loading(), LOADED)
    assert (instance.state, commands) == (InstanceState.LOADING, [Stage(WorkKind.WARM_UP)])
    assert (ready().last_ok_at, ready().load_s, ready().memory_bytes) == (10.0, 1.0, 7)


def test_a_failed_load_says_why_stays_for_a_while_and_goes():
    failed, commands = run(loading(), LoadFailed("no such file"))
    assert (failed.state, failed.reason, commands, failed.holds_memory) == (
        InstanceState.FAILED,
        "no such file",
        [],
        False,
    )
    assert step(failed, TimePassed(), 10 + FAILED_KEPT_S - 0.1)[0].state is InstanceState.FAILED
    assert step(failed, TimePassed(), 10 + FAILED_KEPT_S)[0].state is InstanceState.GONE


def test_a_failed_warm_up_fails_the_instance_and_unloads_it():
    failed, commands = run(
        loading(),
        LOADED,
        WorkArrived(-1, WorkKind.WARM_UP),
        WorkStarted(-1),
        WorkDone(-1, WorkKind.WARM_UP, 0, 0, "boom"),
    )
    assert (failed.state, failed.reason) == (InstanceState.FAILED, "warm-up failed: boom")
    assert commands[-1] == Unload()
    assert failed.holds_memory
    gone, _ = run(failed, Unloaded())
    assert (gone.state, gone.holds_memory) == (InstanceState.FAILED, False)
    assert step(failed, TimePassed(), 99)[0].state is InstanceState.FAILED, "not gone before it is unloaded"


@pytest.mark.parametrize(
    ("events", "code"),
    [((), Code.LOADING), ((LoadFailed("x"),), Code.UNAVAILABLE), ((LOADED, DrainAsked("x")), Code.DRAINING)],
)
def test_a_batch_is_taken_only_while_ready(events, code):
    _, commands = run(loading(), *events, WorkArrived(1))
    assert [(c.key, c.code, c.was_running) for c in commands if isinstance(c, Refuse)] == [(1, code, False)]


def test_a_batch_passes_from_staged_to_running_to_done_and_counts_as_use():
    instance, commands = run(ready(), WorkArrived(1), WorkArrived(2), WorkStarted(1))
    assert (instance.running, instance.staged, commands) == ((1,), (2,), [])
    done, _ = run(instance, WorkDone(1, WorkKind.BATCH, 8, 0.25), now=12.0)
    assert (done.running, done.items_done, done.busy_s, done.last_ok_at) == ((), 8, 0.25, 12.0)
    assert done.recent_use(12.0 + USE_HALF_LIFE_S) == pytest.approx(4.0)


def test_a_failed_batch_keeps_the_instance_and_counts_as_no_success():
    instance, _ = run(ready(), WorkArrived(1), WorkStarted(1))
    after, commands = run(instance, WorkDone(1, WorkKind.BATCH, 8, 0.25, "poison"), now=12.0)
    assert (after.state, after.items_done, after.last_ok_at, commands) == (InstanceState.READY, 0, 10.0, [])


def test_draining_finishes_what_it_holds_then_unloads_then_is_gone():
    instance, commands = run(ready(), WorkArrived(1), WorkArrived(2), WorkStarted(1), DrainAsked("scale down"))
    assert (instance.state, instance.reason, commands) == (InstanceState.DRAINING, "scale down", [])
    instance, commands = run(instance, WorkDone(1, WorkKind.BATCH, 1, 0.1))
    assert commands == []
    instance, commands = run(instance, WorkStarted(2), WorkDone(2, WorkKind.BATCH, 1, 0.1))
    assert commands == [Unload()]
    assert run(instance, DrainAsked("again"), TimePassed())[1] == [], "it is unloaded once"
    assert run(instance, Unloaded())[0].state is InstanceState.GONE


def test_draining_ends_too_when_the_last_staged_batch_is_withdrawn():
    instance, _ = run(ready(), WorkArrived(1), DrainAsked("x"))
    assert run(instance, WorkWithdrawn(1))[1] == [Unload()]


def test_a_drain_during_loading_waits_for_the_load():
    instance, commands = run(loading(), DrainAsked("changed my mind"))
    assert (instance.state, commands) == (InstanceState.DRAINING, [])
    assert run(instance, LOADED)[1] == [Unload()]
    assert run(instance, LoadFailed("x"))[0].state is InstanceState.FAILED


def test_only_an_idle_ready_instance_is_probed():
    assert run(ready(), ProbeDue())[1] == [Stage(WorkKind.PROBE)]
    assert run(ready(), WorkArrived(1), ProbeDue())[1] == []
    assert run(loading(), ProbeDue())[1] == []


def test_a_failed_probe_fails_the_instance_and_returns_what_was_staged_behind_it():
    probing, _ = run(ready(), WorkArrived(-2, WorkKind.PROBE), WorkStarted(-2), WorkArrived(1))
    failed, commands = run(probing, WorkDone(-2, WorkKind.PROBE, 0, 0.1, "wrong"))
    assert (failed.state, failed.reason) == (InstanceState.FAILED, "probe failed: wrong")
    assert [(c.key, c.was_running) for c in commands if isinstance(c, Refuse)] == [(1, False)]
    assert Unload() in commands


def test_a_dead_executor_tells_running_work_from_staged():
    instance, _ = run(ready(), WorkArrived(1), WorkArrived(2), WorkStarted(1))
    failed, commands = run(instance, ExecutorDied("killed"))
    assert [(c.key, c.code, c.was_running) for c in commands if isinstance(c, Refuse)] == [
        (1, Code.UNAVAILABLE, True),
        (2, Code.UNAVAILABLE, False),
    ]
    assert run(failed, WorkDone(1, WorkKind.BATCH, 1, 0.1), ExecutorDied("again"))[1] == []
