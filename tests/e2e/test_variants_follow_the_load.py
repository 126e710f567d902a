"""Another variant takes over when the load rises, and again when it falls, as a user of `infaas up` sees it: nobody's
query is lost by that, and every step is told with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_system import TASK, Callers, Scans, System, running, wait_for

from infaas.client import Client
from infaas.control import ScalingStepDocument
from infaas.testing import nets

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
POOL = {"workers": 1, "cores": 1, "memory_bytes": 2**30}


@pytest.fixture
def exchanging(tmp_path: Path) -> Iterator[System]:
    settings = {
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.3",
        "INFAAS_POOLS": json.dumps({"local": POOL}),
        "INFAAS_WORKER__AUTOSCALING__EXCHANGE": "true",
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_DELAY_S": "3",
    }
    with running(tmp_path / "state", settings) as system:
        yield system


def exchanges(client: Client) -> list[ScalingStepDocument]:
    """Oldest first."""
    steps = client.scaling_steps(1000)[::-1]
    return [step for step in steps if step.action in ("upgrade", "downgrade")]


def loaded(client: Client) -> set[str]:
    there = [one for worker in client.workers() for one in worker.instances]
    return {one.variant for one in there if one.state == "READY"}


def test_variants_are_exchanged_for_each_other_as_the_load_goes_up_and_down(
    exchanging: System, scans: Scans, tmp_path: Path
) -> None:
    system, folder = exchanging, nets.written(tmp_path)
    for name in (nets.LEAN, nets.WIDE):
        words = ("--task", TASK, "--name", name, "--eval", folder / nets.EVAL_FILE)
        system.infaas("model", "register", folder / f"{name}.onnx", *words)
    lean, wide = "lean.v1.ort-fp32-t1", "wide.v1.ort-fp32-t1"
    with system.client() as client:
        for one in client.variants():
            if one.name not in (lean, wide):
                client.disable_variant(one.name)

        few = Callers(system, TASK, scans, 1, rest_s=0.5)
        with few.asking():
            wait_for(lambda: loaded(client) == {lean}, "the small one alone to serve")
            settled = len(exchanges(client))
            many = Callers(system, TASK, scans, 8)
            with many.asking():
                wait_for(lambda: loaded(client) == {wide}, "the one that does more to take over")
                before = many.answers
                wait_for(lambda: many.answers > before + 50, "answers of it")
            up = exchanges(client)[settled:]
            assert [(step.action, step.variant) for step in up] == [("upgrade", lean)]
            assert "wide.v1.ort-fp32-t1 would take" in up[0].reason
            wait_for(lambda: loaded(client) == {lean}, "the small one to take over again")
            down = exchanges(client)[settled + 1 :]
            assert [(step.action, step.cause, step.variant) for step in down] == [("downgrade", "cheaper", wide)]
            before = few.answers
            wait_for(lambda: few.answers > before + 3, "answers of it")
        assert few.failures == many.failures == []
        shown = system.infaas("autoscaler", "history")
        assert "upgrade" in shown
        assert "downgrade" in shown
