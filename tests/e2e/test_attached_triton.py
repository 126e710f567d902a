"""A model on a real Triton server beside a model of our own: discovered, attached, selected, lost and found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running_system import TASK, Scans, System, ask_until_answered, member, wait_for

from infaas.client import Client, Requirements
from infaas.demo import family
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InfaasError
from infaas.testing.triton import TritonProcess, add_model, why_no_triton

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_no_triton() is not None, reason=why_no_triton() or ""),
]
OURS = "digits-centroid"
THEIRS = "digits-remote"
VARIANT = f"{THEIRS}.v1.triton"
ACCURATE = Requirements(slo_latency_ms=5000.0, slo_accuracy_min=0.93)
"""Only the perceptron on the Triton server is as accurate."""
ANY = Requirements(slo_accuracy_min=0.0)


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[TritonProcess]:
    """The demo's perceptron under names of the server's own."""
    process = TritonProcess(tmp_path)
    add_model(
        process.repository,
        "perceptron",
        family.path(member("digits-mlp").file).read_bytes(),
        (TensorSpec(family.INPUT, Datatype.FP32, (-1, family.PIXELS)),),
        (TensorSpec(family.OUTPUT, Datatype.FP32, (-1, family.CLASSES)),),
        max_batch_size=8,
        instances=2,
        renames={"INPUT0": family.INPUT, "OUTPUT0": family.OUTPUT},
    )
    process.start()
    yield process
    process.stop()


def attach(system: System, triton: TritonProcess) -> str:
    names = ("--map", f"INPUT0={family.INPUT}", "--map", f"OUTPUT0={family.OUTPUT}", "--name", THEIRS)
    evaluation = ("--eval", family.path(family.EVAL_FILE))
    return system.infaas(
        "model", "attach", "perceptron", "--triton", triton.url, "--task", TASK, *evaluation, *names, "--price", "0.9"
    )


def is_served_by(client: Client, scans: Scans, requirements: Requirements, variant: str) -> bool:
    return ask_until_answered(client, TASK, scans, requirements) == variant


def test_an_attached_model_is_selected_lost_and_found_again(
    fresh_system: System, triton: TritonProcess, scans: Scans
) -> None:
    system = fresh_system
    system.register(member(OURS))
    assert "perceptron" in system.infaas("model", "discover", "--triton", triton.url)
    assert VARIANT in attach(system, triton)
    found = {one["name"]: one for one in system.json("variant", "list")["variants"]}
    assert found[VARIANT]["runtime"] == "triton"
    assert found[VARIANT]["accuracy"]["source"] == "measured"
    assert (
        found[VARIANT]["accuracy"]["value"]
        > 0.93
        > max(one["accuracy"]["value"] for one in found.values() if one["model"] == OURS)
    )
    with system.client() as client:
        ask_until_answered(client, TASK, scans, ACCURATE)
        rows = scans.rows(0, 5)
        answer = client.infer(TASK, rows, ACCURATE)
        assert answer.served.variant == VARIANT
        assert answer.outputs[family.OUTPUT].argmax(axis=1).tolist() == scans.labels[:5].tolist()
        explained = client.decision(answer.served.decision_id or "")
        assert VARIANT in [one.variant for one in explained.candidates if one.reason == "chosen"]

        triton.kill()
        with pytest.raises(InfaasError):
            client.infer(VARIANT, rows, ANY)
        wait_for(lambda: is_served_by_ours(client, scans), "our own model to serve alone")
        (worker,) = client.workers()
        assert worker.state == "READY"

        triton.start()
        assert ask_until_answered(client, VARIANT, scans, ANY) == VARIANT
        wait_for(lambda: is_served_by(client, scans, ACCURATE, VARIANT), "the server's model to serve again")


def is_served_by_ours(client: Client, scans: Scans) -> bool:
    return (ask_until_answered(client, TASK, scans, ANY) or "").startswith(OURS)


def test_attaching_again_is_the_same_version_and_what_cannot_be_attached_says_why(
    quick_system: System, triton: TritonProcess
) -> None:
    attach(quick_system, triton)
    assert "was attached before" in attach(quick_system, triton)
    said = quick_system.infaas("model", "attach", "absent", "--triton", triton.url, "--task", TASK, expect=1)
    assert "no model 'absent'" in said
    said = quick_system.infaas("model", "attach", "perceptron", "--triton", triton.url, "--task", TASK, expect=1)
    assert f"--map INPUT0={family.INPUT}" in said
    said = quick_system.infaas(
        "model", "attach", "perceptron", "--triton", "http://localhost:8000", "--task", TASK, expect=1
    )
    assert "grpc://HOST:PORT" in said
    quick_system.infaas("variant", "profile", VARIANT)
    with quick_system.client() as client:
        assert len(client.profiles(VARIANT)) == 2
        measured = client.variant(VARIANT)
        assert measured.latency
        assert np.all(np.diff([point.batch for point in measured.latency]) > 0)
