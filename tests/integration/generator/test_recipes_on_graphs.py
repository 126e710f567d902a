"""Recipes on graphs of every kind, in the child process that makes them: real ONNX Runtime, real quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from infaas_variant_generator.children import ChildFailedError, ChildLimits, run_child
from infaas_variant_generator.facts import HardwareFacts
from infaas_variant_generator.hardware import recipe_features
from infaas_variant_generator.inspection import inspect
from infaas_variant_generator.requests import Made, MakeRequest
from infaas_variant_generator.transform.base import installed_transforms
from infaas_variant_generator.transform.onnxruntime_fp16 import as_half, computes_in_half
from onnx import TensorProto, helper, numpy_helper

from infaas.domain.tensor import Datatype, TensorSpec

DEMO = Path(__file__).parents[3] / "infaas" / "demo" / "models"
HERE = HardwareFacts(2, 8 * 2**30, features=recipe_features())
HALF = replace(HERE, features=("avx512_fp16",))
IMAGES = (TensorSpec("x", Datatype.FP32, (-1, 1, 8, 8)),)
LIMITS = ChildLimits(cpu_s=120, memory_bytes=8 * 2**30)
FP32, FP16, DYNAMIC, STATIC = "onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8", "onnxruntime-int8-static"


def model(
    nodes: Sequence[Any], weights: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any], opset: int = 17
) -> bytes:
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), constants)
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
    made = helper.make_model(graph, opset_imports=sets, ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def floats(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def convolutions(opset: int = 17, *, poison: float | None = None, silent: bool = False) -> bytes:
    """Two layers of convolutions and a dense one over images of 8 × 8."""
    draw = np.random.default_rng(5)
    weights = {
        "w1": draw.normal(size=(8, 1, 3, 3)).astype(np.float32) * 0.4,
        "b1": draw.normal(size=8).astype(np.float32) * 0.1,
        "w2": draw.normal(size=(16, 8, 3, 3)).astype(np.float32) * 0.2,
        "w3": draw.normal(size=(64, 4)).astype(np.float32) * (0.0 if silent else 0.3),
        "b3": np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32),
    }
    if poison is not None:
        weights["w2"][0, 0, 0, 0] = poison
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
    ]
    return model(nodes, weights, [floats("x", 1, 8, 8)], [floats("scores", 4)], opset)


def images(count: int = 200, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


def labelled(graph: bytes, rows: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The rows with what the graph itself answers as the right label."""
    session = onnxruntime.InferenceSession(graph)
    (scores,) = session.run(["scores"], dict(rows))
    return {**rows, "label": scores.argmax(axis=1)}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


class Bench:
    """Makes one recipe from a graph as a build does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def make(
        self,
        entry: str,
        graph: bytes,
        evaluation: Mapping[str, Any] | None = None,
        *,
        inputs: tuple[TensorSpec, ...] = IMAGES,
        calibration: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Made:
        source = self._folder / "source.onnx"
        source.write_bytes(graph)
        request = MakeRequest(
            entry=entry,
            source=str(source),
            target=str(self.target),
            reference=str(self._folder / "original.npz"),
            inputs=inputs,
            evaluation=self._saved("evaluation", evaluation),
            calibration=self._saved("calibration", calibration),
            metric="accuracy",
            tolerance=0.05,
            fixed_batch=None,
            max_batch_size=8,
            threads=1,
            hardware=HERE,
        )
        return await run_child("infaas_variant_generator.make", replace(request, **changes), Made, self._ignore, LIMITS)

    @property
    def target(self) -> Path:
        return self._folder / "made.onnx"

    def run(self, rows: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = onnxruntime.InferenceSession(self.target).run(["scores"], dict(rows))[0]
        return found

    def _saved(self, name: str, arrays: Mapping[str, Any] | None) -> str | None:
        if arrays is None:
            return None
        path = self._folder / f"{name}.npz"
        np.savez(path, **arrays)
        return str(path)

    @staticmethod
    async def _ignore(event: dict[str, Any]) -> None:
        return None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def skip_reason(graph: bytes, entry: str, folder: Path, hardware: HardwareFacts = HERE) -> str | None:
    path = folder / "inspected.onnx"
    path.write_bytes(graph)
    found = {transform.entry: transform for transform in installed_transforms(inspect(path), hardware)}
    return found[entry].not_applicable


async def test_static_int8_keeps_the_answers_and_computes_with_integers(bench: Bench) -> None:
    graph = convolutions()
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images()}))
    assert (made.outcome, made.reason) == ("made", "")
    assert {"QLinearConv"} <= operators(bench.target)
    assert not {"Conv", "ConvInteger", "DynamicQuantizeLinear"} & operators(bench.target)
    assert made.accuracy is not None
    assert made.accuracy.rows == 160  # a fifth calibrates
    assert made.accuracy.value >= 0.95


async def test_each_output_channel_of_a_weight_has_a_scale_of_its_own(bench: Bench) -> None:
    graph = convolutions()
    await bench.make(STATIC, graph, labelled(graph, {"x": images()}))
    found = onnx.load(bench.target).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.initializer}
    scales = [constants[node.input[4]] for node in found.node if node.op_type == "QLinearConv"]
    assert [scale.shape for scale in scales] == [(8,), (16,)]
    assert all(len(np.unique(scale)) > 1 for scale in scales)


@pytest.mark.parametrize(("features", "largest"), [(("avx512_vnni",), 127), ((), 64)])
async def test_weights_use_seven_bits_only_where_products_would_be_clipped(
    bench: Bench, features: tuple[str, ...], largest: int
) -> None:
    graph = convolutions()
    hardware = replace(HERE, features=features)
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images()}), hardware=hardware)
    assert made.outcome == "made", made.reason
    weights = [
        np.abs(numpy_helper.to_array(tensor).astype(int)).max()
        for tensor in onnx.load(bench.target).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert weights
    assert all(largest - 1 <= weight <= largest for weight in weights)


async def test_a_calibration_set_calibrates_and_leaves_the_evaluation_rows_to_be_scored(bench: Bench) -> None:
    graph = convolutions()
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images()}), calibration={"x": images(300, seed=2)})
    assert made.outcome == "made", made.reason
    assert made.accuracy is not None
    assert made.accuracy.rows == 200


async def test_all_recipes_of_a_version_are_scored_on_the_same_rows(bench: Bench) -> None:
    graph = convolutions()
    evaluation = labelled(graph, {"x": images()})
    found = [await bench.make(entry, graph, evaluation) for entry in (FP32, DYNAMIC, STATIC)]
    assert {made.accuracy.rows for made in found if made.accuracy} == {160}
    assert found[0].accuracy is not None
    assert found[0].accuracy.value == 1.0


async def test_what_is_made_twice_is_the_same_to_the_byte(bench: Bench) -> None:
    graph = convolutions()
    evaluation = labelled(graph, {"x": images()})
    await bench.make(STATIC, graph, evaluation)
    first = bench.target.read_bytes()
    await bench.make(STATIC, graph, evaluation)
    assert bench.target.read_bytes() == first


async def test_static_int8_without_data_or_with_too_few_rows_is_skipped_with_the_reason(bench: Bench) -> None:
    graph = convolutions()
    made = await bench.make(STATIC, graph)
    assert (made.outcome, made.reason) == (
        "skipped",
        "static int8 has no rows to be calibrated with: there is no data but made-up inputs",
    )
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images(6)}))
    assert made.outcome == "skipped"
    assert "6 evaluation rows are too few" in made.reason


async def test_a_calibration_set_alone_calibrates_and_verifies(bench: Bench) -> None:
    made = await bench.make(STATIC, convolutions(), calibration={"x": images(300)})
    assert (made.outcome, made.accuracy) == ("made", None)


async def test_calibration_rows_that_are_nothing_like_the_queries_cost_the_recipe_its_score(bench: Bench) -> None:
    graph = convolutions()
    tiny = {"x": images(50) * np.float32(1e-4)}
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images()}), calibration=tiny)
    assert made.outcome == "failed"
    assert "accuracy falls from 1.0000 to" in made.reason
    assert made.accuracy is not None
    assert made.accuracy.value < 0.95


async def test_calibration_rows_without_any_variance_are_skipped_with_the_reason(bench: Bench) -> None:
    graph = convolutions()
    made = await bench.make(
        STATIC, graph, labelled(graph, {"x": images()}), calibration={"x": np.zeros((40, 1, 8, 8), np.float32)}
    )
    assert made.outcome == "skipped"
    assert "fewer than 2 different rows" in made.reason


@pytest.mark.parametrize("poison", [np.nan, np.inf])
async def test_undefined_weights_are_a_reason_not_to_try_integers(tmp_path: Path, poison: float) -> None:
    assert "infinite or not a number" in (skip_reason(convolutions(poison=poison), STATIC, tmp_path) or "")


async def test_undefined_weights_are_served_as_they_are(bench: Bench) -> None:
    graph = convolutions(poison=np.nan)
    made = await bench.make(FP32, graph, labelled(graph, {"x": images()}))
    assert made.outcome == "made", made.reason


@pytest.mark.parametrize("entry", [FP32, DYNAMIC, STATIC])
async def test_a_graph_that_always_answers_the_same_is_made_in_every_way(bench: Bench, entry: str) -> None:
    graph = convolutions(silent=True)
    made = await bench.make(entry, graph, labelled(graph, {"x": images()}))
    assert made.outcome == "made", made.reason
    assert np.allclose(bench.run({"x": images(4)}), [0.1, 0.2, 0.3, 0.4], atol=0.01)


def newest_opset() -> int:
    for opset in range(onnx.defs.onnx_opset_version(), 17, -1):
        try:
            onnxruntime.InferenceSession(convolutions(opset))
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            continue
        return opset
    return 17


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, newest_opset()])
async def test_static_int8_of_every_opset(bench: Bench, tmp_path: Path, opset: int) -> None:
    graph = convolutions(opset)
    assert skip_reason(graph, STATIC, tmp_path) is None
    made = await bench.make(STATIC, graph, labelled(graph, {"x": images()}))
    assert made.outcome == "made", made.reason
    assert "QLinearConv" in operators(bench.target)


async def test_an_lstm_is_made_in_dynamic_int8_and_has_nothing_for_static(bench: Bench, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    weights = {
        "w": draw.normal(size=(1, 64, 6)).astype(np.float32) * 0.3,
        "r": draw.normal(size=(1, 64, 16)).astype(np.float32) * 0.3,
        "dense": draw.normal(size=(16, 4)).astype(np.float32),
        "last": np.array([0], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "state"], hidden_size=16),
        helper.make_node("Squeeze", ["state", "last"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["scores"]),
    ]
    graph = model(nodes, weights, [floats("x", 5, 6)], [floats("scores", 4)])
    inputs = (TensorSpec("x", Datatype.FP32, (-1, 5, 6)),)
    rows = {"x": draw.normal(size=(100, 5, 6)).astype(np.float32)}
    assert "convolutions" in (skip_reason(graph, STATIC, tmp_path) or "")
    made = await bench.make(DYNAMIC, graph, labelled(graph, rows), inputs=inputs)
    assert made.outcome == "made", made.reason
    assert "DynamicQuantizeLSTM" in operators(bench.target)


def branching() -> bytes:
    """A convolution, then a branch on the data and a loop; both with subgraphs that read from outside of them."""
    draw = np.random.default_rng(9)
    weights = {
        "w": draw.normal(size=(4, 1, 8, 8)).astype(np.float32) * 0.2,
        "zero": np.array(0, dtype=np.float32),
        "rounds": np.array(2, dtype=np.int64),
        "go": np.array(True),
        "axes": np.array([2, 3], dtype=np.int64),
    }
    value = helper.make_tensor_value_info
    doubled = helper.make_graph(
        [helper.make_node("Add", ["flat", "flat"], ["yes"])], "then", [], [value("yes", TensorProto.FLOAT, None)]
    )
    same = helper.make_graph(
        [helper.make_node("Identity", ["flat"], ["no"])], "else", [], [value("no", TensorProto.FLOAT, None)]
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Add", ["so_far", "flat"], ["more"]),
        ],
        "body",
        [
            value("round", TensorProto.INT64, []),
            value("on", TensorProto.BOOL, []),
            value("so_far", TensorProto.FLOAT, None),
        ],
        [value("still", TensorProto.BOOL, []), value("more", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[8, 8]),
        helper.make_node("Squeeze", ["c", "axes"], ["flat"]),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["is_light"]),
        helper.make_node("If", ["is_light"], ["either"], then_branch=doubled, else_branch=same),
        helper.make_node("Loop", ["rounds", "go", "either"], ["scores"], body=body),
    ]
    return model(nodes, weights, [floats("x", 1, 8, 8)], [floats("scores", 4)])


@pytest.mark.parametrize("entry", [FP32, DYNAMIC, STATIC])
async def test_branches_and_loops_are_kept(bench: Bench, entry: str) -> None:
    graph = branching()
    made = await bench.make(entry, graph, labelled(graph, {"x": images()}))
    if entry == DYNAMIC:  # the only weight is a convolution's
        assert (made.outcome, "no operator" in made.reason) == ("skipped", True)
        return
    assert made.outcome == "made", made.reason
    assert {"If", "Loop"} <= operators(bench.target)


def worded() -> bytes:
    """Scores an image by a convolution and a word by a table."""
    weights = {"w": np.random.default_rng(9).normal(size=(4, 1, 8, 8)).astype(np.float32), "shape": np.array([-1, 4])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[8, 8]),
        helper.make_node("Reshape", ["c", "shape"], ["flat"]),
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["value"],
            domain="ai.onnx.ml",
            keys_strings=["text 1", "text 2"],
            values_floats=[1.0, 2.0],
            default_float=0.0,
        ),
        helper.make_node("Add", ["flat", "value"], ["scores"]),
    ]
    word = helper.make_tensor_value_info("word", TensorProto.STRING, ["N", 1])
    return model(nodes, weights, [floats("x", 1, 8, 8), word], [floats("scores", 4)])


async def test_texts_are_a_reason_not_to_calibrate_and_no_obstacle_to_anything_else(
    bench: Bench, tmp_path: Path
) -> None:
    graph = worded()
    assert skip_reason(graph, STATIC, tmp_path) == "static int8 is calibrated with numbers; the graph takes texts"
    inputs = (*IMAGES, TensorSpec("word", Datatype.BYTES, (-1, 1)))
    rows = {"x": images(), "word": np.array([["text 1"], ["text 2"]] * 100)}
    made = await bench.make(FP32, graph, rows, inputs=inputs)
    assert made.outcome == "made", made.reason


@pytest.mark.parametrize("name", ["digits-forest", "digits-svm", "digits-logistic"])
async def test_graphs_with_labels_from_scikit_learn_have_no_convolution(tmp_path: Path, name: str) -> None:
    graph = (DEMO / f"{name}.onnx").read_bytes()
    assert "convolutions" in (skip_reason(graph, STATIC, tmp_path) or "")
    assert skip_reason(graph, FP32, tmp_path) is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["digits-cnn-small", "digits-cnn-medium", "digits-cnn-large"])
async def test_the_demo_s_convolutions_lose_next_to_nothing_in_static_int8(bench: Bench, name: str) -> None:
    graph = onnx.load(DEMO / f"{name}.onnx")
    (entry,) = graph.graph.input
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in entry.type.tensor_type.shape.dim)
    inputs = (TensorSpec(entry.name, Datatype.FP32, shape),)
    with np.load(DEMO / "digits-eval.npz") as data:
        some = slice(100 if name.endswith("large") else 400)  # it takes its time
        evaluation = {entry.name: data["image"][some].reshape(-1, *shape[1:]), "label": data["label"][some]}
    scores = {}
    for recipe in (FP32, STATIC):
        made = await bench.make(recipe, graph.SerializeToString(), evaluation, inputs=inputs)
        assert made.outcome == "made", made.reason
        assert made.accuracy is not None
        scores[recipe] = made.accuracy
    assert scores[FP32].rows == scores[STATIC].rows
    assert scores[STATIC].value >= scores[FP32].value - 0.02


async def test_half_precision_keeps_inputs_and_outputs_and_the_answers(tmp_path: Path) -> None:
    graph = convolutions()
    half = as_half(onnx.load_from_string(graph))
    onnx.checker.check_model(half)
    assert [i.type.tensor_type.elem_type for i in (*half.graph.input, *half.graph.output)] == [TensorProto.FLOAT] * 2
    assert {t.data_type for t in half.graph.initializer} == {TensorProto.FLOAT16}
    assert computes_in_half(half)
    assert not computes_in_half(onnx.load_from_string(graph))
    rows = {"x": images()}
    (found,) = onnxruntime.InferenceSession(half.SerializeToString()).run(["scores"], rows)
    (wanted,) = onnxruntime.InferenceSession(graph).run(["scores"], rows)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


async def test_half_precision_keeps_branches_and_loops(tmp_path: Path) -> None:
    half = as_half(onnx.load_from_string(branching()))
    rows = {"x": images(8)}
    (found,) = onnxruntime.InferenceSession(half.SerializeToString()).run(["scores"], rows)
    (wanted,) = onnxruntime.InferenceSession(branching()).run(["scores"], rows)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


async def test_half_precision_is_made_or_skipped_by_what_onnx_runtime_does_with_it(bench: Bench) -> None:
    graph = convolutions()
    made = await bench.make(FP16, graph, labelled(graph, {"x": images()}), hardware=HALF)
    if made.outcome == "skipped":
        assert "casts to fp32" in made.reason
    else:
        assert (made.outcome, computes_in_half(onnx.load(bench.target))) == ("made", True)


async def test_a_graph_that_is_none_fails_with_the_tool_s_words(bench: Bench) -> None:
    with pytest.raises(ChildFailedError):
        await bench.make(STATIC, b"this is no graph", {"x": images(), "label": np.zeros(200, dtype=np.int64)})
