"""Graphs that insist on one batch size: rewritten where that is proved, served as they are where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from infaas_variant_generator.children import ChildFailedError, ChildLimits, run_child
from infaas_variant_generator.main import Generator
from infaas_variant_generator.requests import Rebatched, RebatchRequest
from onnx import TensorProto, helper, numpy_helper

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.tokens import Tokens

LIMITS = ChildLimits(cpu_s=120, memory_bytes=8 * 2**30)
DRAW = np.random.default_rng(4)


def model(
    batch: int, nodes: Sequence[Any], weights: Mapping[str, Any], inner: Sequence[int], scores: int, opset: int = 17
) -> bytes:
    """From `x` [batch, *inner] to `scores` [batch, scores]."""
    graph = helper.make_graph(
        list(nodes),
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *inner])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, scores])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString())


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return DRAW.normal(size=shape).astype(np.float32)


def flattened(batch: int, target: Sequence[int]) -> bytes:
    """A convolution whose result is reshaped by a constant."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Reshape", ["c", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["scores"]),
    ]
    weights = {"w": normal(2, 1, 3, 3), "target": np.array(target), "dense": normal(72, 3)}
    return model(batch, nodes, weights, (1, 8, 8), 3)


def attending(batch: int) -> bytes:
    """Self-attention of two heads over five steps of eight values: four reshapes that know the batch."""
    nodes: list[Any] = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["weight"], axis=-1),
        helper.make_node("MatMul", ["weight", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["joined"]),
        helper.make_node("MatMul", ["joined", "dense"], ["scores"]),
    ]
    weights = {
        **{f"w{name}": normal(8, 8) for name in "qkv"},
        "split": np.array([batch, 5, 2, 4]),
        "join": np.array([batch, 40]),
        "dense": normal(40, 3),
    }
    return model(batch, nodes, weights, (5, 8), 3)


def remembering(batch: int, state: np.ndarray[Any, Any]) -> bytes:
    """An LSTM over five steps whose initial states are constants."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "", "", "h", "c"], ["", "last"], hidden_size=4),
        helper.make_node("Squeeze", ["last", "first"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["scores"]),
    ]
    whole = np.broadcast_to(state, (1, batch, 4)).astype(np.float32)
    weights = {
        "w": normal(1, 16, 8), "r": normal(1, 16, 4), "h": whole, "c": whole, "first": np.array([0]),
        "dense": normal(4, 3),
    }  # fmt: skip
    return model(batch, nodes, weights, (5, 8), 3)


def beginning_computed(batch: int) -> bytes:
    """An LSTM whose initial states are computed from constants, as some exporters leave them."""
    made = onnx.load_from_string(remembering(batch, np.zeros(4)))
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in ("h", "c")]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, numpy_helper.from_array(np.array([1, batch, 4]), "states")])
    for at, name in enumerate("hc"):
        made.graph.node.insert(at, helper.make_node("ConstantOfShape", ["states"], [name]))
    return bytes(made.SerializeToString())


def prefixed(batch: int) -> bytes:
    """A learnt first step is expanded to the batch and put before the others."""
    nodes = [
        helper.make_node("Expand", ["token", "many"], ["tokens"]),
        helper.make_node("Concat", ["tokens", "x"], ["all"], axis=1),
        helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "dense"], ["scores"]),
    ]
    weights = {"token": normal(1, 1, 8), "many": np.array([batch, 1, 8]), "dense": normal(8, 3)}
    return model(batch, nodes, weights, (5, 8), 3)


def comparing(batch: int) -> bytes:
    """Items that look at each other: each is scored less the mean of its batch."""
    nodes = [
        helper.make_node("MatMul", ["x", "dense"], ["raw"]),
        helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["raw", "mean"], ["less"]),
        helper.make_node("Add", ["less", "raw"], ["scores"]),
    ]
    return model(batch, nodes, {"dense": normal(8, 3)}, (8,), 3)


def branching(batch: int) -> bytes:
    """The reshape stands in the branches, where it is not looked for."""
    branches = {
        name: helper.make_graph(
            [helper.make_node("Reshape", ["x", "target"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 40])],
        )
        for name in ("yes", "no")
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["is_light"]),
        helper.make_node("If", ["is_light"], ["flat"], then_branch=branches["yes"], else_branch=branches["no"]),
        helper.make_node("MatMul", ["flat", "dense"], ["scores"]),
    ]
    weights = {"zero": np.float32(0), "target": np.array([batch, 40]), "dense": normal(40, 3)}
    return model(batch, nodes, weights, (5, 8), 3)


FREED: dict[str, Callable[[int], bytes]] = {
    "a target without a free dimension": lambda batch: flattened(batch, [batch, 72]),
    "a target with a free dimension": lambda batch: flattened(batch, [batch, -1]),
    "attention": attending,
    "a recurrent layer that begins at zero": lambda batch: remembering(batch, np.zeros(4)),
    "a recurrent layer that begins elsewhere": lambda batch: remembering(batch, np.array([0.5, -1, 0.25, 0])),
    "a recurrent layer whose beginning is computed": beginning_computed,
    "an expanded constant": prefixed,
}


class Rewriting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __call__(self, graph: bytes, batch: int, **arrays: Any) -> Rebatched:
        source = self.folder / "fixed.onnx"
        source.write_bytes(graph)
        evaluation = None
        if arrays:
            evaluation = str(self.folder / "evaluation.npz")
            np.savez(evaluation, **arrays)
        inner = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[1:]
        request = RebatchRequest(
            source=str(source),
            target=str(self.folder / "dynamic.onnx"),
            inputs=(TensorSpec("x", Datatype.FP32, (-1, *(d.dim_value for d in inner))),),
            evaluation=evaluation,
            calibration=None,
            fixed_batch=batch,
            max_batch_size=16,
        )
        return await run_child("infaas_variant_generator.rebatch", request, Rebatched, self._ignore, LIMITS)

    def run(self, graph: bytes | str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = onnxruntime.InferenceSession(graph).run(["scores"], {"x": rows})[0]
        return found

    @property
    def target(self) -> str:
        return str(self.folder / "dynamic.onnx")

    @staticmethod
    async def _ignore(event: dict[str, Any]) -> None:
        return None


@pytest.fixture
def rewriting(tmp_path: Path) -> Rewriting:
    return Rewriting(tmp_path)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", FREED)
async def test_what_a_batch_size_is_baked_into_is_freed(rewriting: Rewriting, kind: str, batch: int) -> None:
    graph = FREED[kind](batch)
    done = await rewriting(graph, batch)
    assert done == Rebatched(True, f"rewritten from a fixed batch of {batch} to any")
    inner = onnx.load_from_string(graph).graph.input[0].type.tensor_type.shape.dim[1:]
    rows = normal(12, *(d.dim_value for d in inner))
    wanted = np.concatenate([rewriting.run(graph, rows[at : at + batch]) for at in range(0, 12, batch)])
    for size in (1, 2, 5, 12):
        parts = [rewriting.run(rewriting.target, rows[at : at + size]) for at in range(0, 12, size)]
        assert np.allclose(np.concatenate(parts), wanted, atol=1e-4)
    assert not onnx.load(rewriting.target).graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


@pytest.mark.parametrize("batch", [1, 4])
async def test_items_that_look_at_each_other_stay_together(rewriting: Rewriting, batch: int) -> None:
    done = await rewriting(comparing(batch), batch)
    assert not done.is_dynamic
    assert done.reason.startswith(f"the batch stays fixed to {batch}: rewritten for any batch, it answers ")


async def test_data_that_is_all_the_same_does_not_hide_that_items_look_at_each_other(rewriting: Rewriting) -> None:
    same = np.ones((30, 8), dtype=np.float32)
    done = await rewriting(comparing(1), 1, x=same, label=np.zeros(30, dtype=np.int64))
    assert not done.is_dynamic


async def test_made_up_rows_that_the_graph_does_not_take_are_left_out(rewriting: Rewriting) -> None:
    """Values are looked up in a table of three rows; made-up ones lie outside of it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["found"]),
        helper.make_node("Reshape", ["found", "target"], ["scores"]),
    ]
    weights = {"table": normal(3, 2) * 10, "target": np.array([1, 16])}
    graph = model(1, nodes, weights, (8,), 16)
    with pytest.raises(ChildFailedError, match="out of"):
        await rewriting(scaled(graph), 1)
    rows = DRAW.integers(0, 3, (30, 8)).astype(np.float32) / 1000
    assert (await rewriting(scaled(graph), 1, x=rows, label=np.zeros(30))).is_dynamic


def scaled(graph: bytes) -> bytes:
    """The graph on inputs a thousand times as large."""
    made = onnx.load_from_string(graph)
    made.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "thousand"))
    made.graph.node[0].input[0] = "scaled"
    made.graph.node.insert(0, helper.make_node("Mul", ["x", "thousand"], ["scaled"]))
    return bytes(made.SerializeToString())


async def test_a_batch_in_a_branch_is_not_freed_and_the_reason_is_onnx_runtime_s(rewriting: Rewriting) -> None:
    done = await rewriting(branching(4), 4)
    assert not done.is_dynamic
    assert "it cannot run" in done.reason
    assert "Reshape" in done.reason


@pytest.fixture
def generating(workshop: Any) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(store: RedisStore) -> AsyncIterator[Generator]:
        generator = Generator(store, workshop.repository, workshop.settings(), tokens=Tokens.of(None), host="nowhere")
        task = asyncio.create_task(generator.run(), name="generator under test")
        try:
            yield generator
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return run


async def built(workshop: Any, generating: Any, store: RedisStore, order: Any) -> Any:
    await store.put(Kind.BUILD, order.id, encode(order))
    async with generating(store):
        return await workshop.finished(store, order)


async def test_variants_of_a_freed_graph_take_any_batch(
    workshop: Any, generating: Any, redis_store: RedisStore, fixed_graph: bytes
) -> None:
    order = workshop.order("freed", fixed_graph, fixed_batch=1, max_batch_size=4)
    results = await built(workshop, generating, redis_store, order)
    for recipe in ("ort-fp32-t1", "ort-int8-t1"):
        variant = results[recipe].variant
        assert (variant.fixed_batch, variant.max_batch_size) == (None, 4)
        assert [point.batch for point in variant.profile.latency] == [1, 2, 4]
        assert results[recipe].reason.startswith("rewritten from a fixed batch of 1 to any")
        session = onnxruntime.InferenceSession(workshop.repository.fetch(variant.artifact))
        assert session.run(["scores"], {"x": workshop.rows})[0].shape == (len(workshop.rows), 4)
    assert results["ort-fp32-t1"].accuracy.value == 1.0


async def test_variants_of_a_graph_that_cannot_be_freed_keep_its_batch_and_say_why(
    workshop: Any, generating: Any, redis_store: RedisStore
) -> None:
    graph = model(
        2,
        [
            helper.make_node("MatMul", ["x", "w"], ["raw"]),
            helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["raw", "mean"], ["scores"]),
        ],
        {"w": workshop.weights.astype(np.float32)},
        (16,),
        4,
    )
    order = workshop.order("kept", graph, fixed_batch=2, max_batch_size=8)
    results = await built(workshop, generating, redis_store, order)
    variant = results["ort-fp32-t1"].variant
    assert (variant.fixed_batch, variant.max_batch_size) == (2, 2)
    assert [point.batch for point in variant.profile.latency] == [2]
    assert results["ort-fp32-t1"].reason.startswith("the batch stays fixed to 2: ")
