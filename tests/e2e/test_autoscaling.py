"""Replicas on a worker as its users see them: a busy variant gets another instance where a core is idle for it, loses
it again when it is quiet, and every step is told with its reason."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_system import Callers, Scans, System, member, running, wait_for

from infaas.client import Requirements
from infaas.control import ScalingStepDocument

pytestmark = pytest.mark.long
ANY = Requirements(slo_accuracy_min=0.0)


@pytest.fixture
def scaling_system(tmp_path: Path) -> Iterator[System]:
    settings = {
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.1",
        "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_DELAY_S": "1",
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_TO_ZERO_DELAY_S": "6",
    }
    with running(tmp_path / "state", settings) as system:
        yield system


def test_a_busy_variant_is_scaled_out_and_in_and_to_zero_and_back_without_losing_a_query(
    scaling_system: System, scans: Scans
) -> None:
    system = scaling_system
    system.register(member("digits-cnn-large"))
    with system.client() as client:
        variant = next(found.name for found in client.variants() if found.recipe == "ort-fp32-t1")

        def steps() -> list[ScalingStepDocument]:
            return client.scaling_steps(variant=variant)[::-1]

        def replicas() -> int:
            return client.variant(variant).replicas

        callers = Callers(system, variant, scans, 4)
        with callers.asking():
            first = wait_for(steps, "a busy variant to be noticed")[0]
            if first.action == "replicate":
                wait_for(lambda: replicas() >= 2, "the instance that was loaded to serve")
                before = callers.answers
                wait_for(lambda: callers.answers > before + 100, "answers beside it")
            else:
                assert (first.action, first.cause) == ("hold", "no-cores"), "others use the machine"
            assert first.replicas == 1
            (use,) = (one for one in client.autoscaler().workers[0].variants if one.variant == variant)
            assert use.busy > 0.5
        assert callers.failures == []
        assert callers.answers > 0
        assert callers.mixed_up == 0

        wait_for(lambda: replicas() == 0, "what nobody asks for to be unloaded")
        causes = [step.cause for step in steps() if step.action == "unload"]
        assert causes == ["quiet"] * (len(causes) - 1) + ["unused"]
        loads = sum(step.action == "replicate" for step in steps())
        assert loads == len(causes) - 1

        answer = client.infer(variant, scans.rows(0), ANY)
        assert answer.served.variant == variant
        assert answer.served.cold_start
        told = system.infaas("autoscaler", "history", "--variant", variant)
        assert "nobody has asked for it" in told
        assert variant in system.infaas("autoscaler", "status")
        with urllib.request.urlopen(f"http://127.0.0.1:{system.endpoints.metrics_port}/metrics") as exposition:
            counted = exposition.read().decode()
        (line,) = (line for line in counted.splitlines() if 'action="unload",reason="unused"' in line)
        assert line.startswith("infaas_autoscaler_decisions_total{")
        assert float(line.split()[-1]) >= 1


def test_a_query_for_a_variant_that_was_never_asked_for_is_no_reason_to_load_it_twice(
    scaling_system: System, scans: Scans
) -> None:
    system = scaling_system
    system.register(member("digits-mlp"))
    with system.client() as client:
        name = next(found.name for found in client.variants() if found.recipe == "ort-fp32-t1")
        for row in range(50):
            client.infer(name, scans.rows(row), ANY)
        assert "replicate" not in [step.action for step in client.scaling_steps(variant=name)]
        assert client.variant(name).replicas == 1


def test_both_ways_of_keeping_spares_at_once_are_refused_with_the_way_out(tmp_path: Path) -> None:
    settings = {
        "INFAAS_CONTROLLER__MIN_REPLICAS": "2",
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_TO_ZERO_DELAY_S": "6",
    }
    said = System(tmp_path / "state", settings).infaas("up", "--detach", expect=None)
    assert "controller.min_replicas is 2, which loads again what" in said
    assert "leave one of them out" in said
