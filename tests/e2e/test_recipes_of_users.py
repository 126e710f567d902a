"""What users see of recipes: a model exported for single items that serves many, and convolutions in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from running_system import Scans, System, member

from infaas.client import Requirements
from infaas.demo import family

pytestmark = pytest.mark.long
ANY = Requirements(slo_accuracy_min=0.0)


def exported_for_one(file: str, path: Path) -> Path:
    """A model of the demo as an exporter makes it that traced one item."""
    model = onnx.load(family.path(file))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    return path


def test_a_model_exported_for_single_items_serves_many_at_once(
    quick_system: System, scans: Scans, tmp_path: Path
) -> None:
    path = exported_for_one("digits-mlp.onnx", tmp_path / "one.onnx")
    said = quick_system.infaas(
        "model", "register", path, "--task", "digits", "--name", "one", "--eval", family.path(family.EVAL_FILE)
    )
    assert "the batch dimension is fixed to 1" in said
    with quick_system.client() as client:
        variants = client.variants(model="one")
        assert variants
        assert {variant.max_batch_size for variant in variants} == {4}
        # One variant by name: another may compute in eight bits, with scales that it takes from the whole batch.
        exact = next(variant.name for variant in variants if variant.recipe == "ort-fp32-t1")
        together = client.infer(exact, scans.rows(0, 4), ANY).outputs[family.OUTPUT]
        alone = [client.infer(exact, scans.rows(row), ANY).outputs[family.OUTPUT] for row in range(4)]
        assert np.allclose(together, np.concatenate(alone), atol=1e-5)
        outcomes = {outcome.recipe: outcome for outcome in client.version("one", 1).outcomes}
        assert "rewritten from a fixed batch of 1 to any" in outcomes["ort-fp32-t1"].reason


def test_convolutions_are_served_in_static_int8_and_what_was_not_tried_says_why(
    quick_system: System, scans: Scans
) -> None:
    quick_system.register(member("digits-cnn-small"))
    with quick_system.client() as client:
        found = {variant.recipe: variant for variant in client.variants(model="digits-cnn-small")}
        static = found["ort-int8-static-t1"]
        assert static.precision == "int8"
        scored = {variant.accuracy.rows for variant in found.values() if variant.accuracy}
        assert len(scored) == 1
        assert scored.pop() < len(scans.images)  # some calibrated
        answer = client.infer(static.name, scans.rows(0, 4), ANY)
        assert answer.served.variant == static.name
        assert (answer.outputs[family.OUTPUT].argmax(axis=1) == scans.labels[:4]).mean() >= 0.75
        outcomes = {outcome.recipe: outcome for outcome in client.version("digits-cnn-small", 1).outcomes}
        assert "half-precision" in outcomes["ort-fp16-t1"].reason or outcomes["ort-fp16-t1"].outcome == "made"
        assert outcomes["ort-int8-t1"].outcome == "skipped"
        assert "slower than fp32" in outcomes["ort-int8-t1"].reason
