"""Real graphs, a real repository and orders for builds of them."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infaas.domain.build import BuildOrder, BuildResult
from infaas.domain.ids import BuildId, Digest, ModelName, TaskName, VersionId
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.repository.local import LocalRepository
from infaas.rpc.codec import decode
from infaas.settings import Settings, load_settings
from infaas.store.base import Kind, MetadataStore

FEATURES, CLASSES, ROWS = 16, 4, 80
INPUTS = (TensorSpec("x", Datatype.FP32, (-1, FEATURES)),)
OUTPUTS = (TensorSpec("scores", Datatype.FP32, (-1, CLASSES)),)
ALL_RECIPES = {"ort-fp32-t1", "ort-int8-t1", "ort-fp32-t2", "ort-int8-t2"}
"""On two cores."""


def dense_graph(weights: np.ndarray, batch: int | None = None) -> bytes:
    """scores = x @ weights, softened; `batch` fixes the first dimension."""
    size: Any = "N" if batch is None else batch
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["raw"]), helper.make_node("Softmax", ["raw"], ["scores"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [size, CLASSES])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    target = io.BytesIO()
    np.savez(target, **arrays)  # type: ignore[arg-type]
    return target.getvalue()


class Workshop:
    """What a test needs to order builds and to look at what became of them."""

    def __init__(self, folder: Path) -> None:
        self.repository = LocalRepository(folder / "artifacts")
        self.state_dir = folder
        generator = np.random.default_rng(11)
        self.weights = generator.normal(size=(FEATURES, CLASSES))
        self.rows = generator.normal(size=(ROWS, FEATURES)).astype(np.float32)
        self.labels = (self.rows @ self.weights).argmax(axis=1)

    def settings(self, **generator: Any) -> Settings:
        overrides = {
            "state_dir": str(self.state_dir),
            "generator": {"lease_ttl_s": 2.0, **generator},
            "pools": {"local": {"price_usd_per_hour": 0.36}},
            "log": {"level": "warning"},
        }
        return load_settings(environ={}, overrides=overrides)

    def evaluation(self, **more: np.ndarray) -> bytes:
        return npz({"x": self.rows, "label": self.labels, **more})

    def order(self, model: str = "dense", graph: bytes | None = None, **changes: Any) -> BuildOrder:
        """An order for the dense graph with its evaluation set, unless changed."""
        artifact = self.repository.put_bytes(dense_graph(self.weights) if graph is None else graph)
        order = BuildOrder(
            id=BuildId(f"{model}@1"),
            version_id=VersionId(f"{model}@1"),
            task=TaskName("sorting"),
            model=ModelName(model),
            version=1,
            task_spec=Task(TaskName("sorting"), INPUTS, OUTPUTS),
            artifact=artifact,
            original=artifact,
            evaluation=self.repository.put_bytes(self.evaluation()),
            calibration=None,
            metric="accuracy",
            declared_accuracy=None,
            fixed_batch=None,
            max_batch_size=4,
            profile_budget_s=0.2,
        )
        return replace(order, **changes)

    def stored(self, data: bytes) -> Digest:
        return self.repository.put_bytes(data)

    @staticmethod
    async def results_of(store: MetadataStore, order: BuildOrder) -> dict[str, BuildResult]:
        snapshot = await store.list([Kind.RESULT])
        found = [decode(record.value, BuildResult) for record in snapshot.records]
        return {result.recipe: result for result in found if result.build == order.id}

    @staticmethod
    async def until(check: Callable[[], Awaitable[Any]], timeout_s: float = 90.0) -> Any:
        """Ask until the answer is true; the answer."""
        deadline = time.monotonic() + timeout_s
        while not (found := await check()):
            assert time.monotonic() < deadline, "it did not come about in time"
            await asyncio.sleep(0.05)
        return found

    async def finished(self, store: MetadataStore, order: BuildOrder) -> dict[str, BuildResult]:
        """All results, once the build has ended."""

        async def check() -> dict[str, BuildResult] | None:
            results = await self.results_of(store, order)
            return results if "*" in results else None

        found: dict[str, BuildResult] = await self.until(check)
        return found


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def fixed_graph(workshop: Workshop) -> bytes:
    """Takes one item at a time."""
    return dense_graph(workshop.weights, batch=1)


@pytest.fixture
def fragile_graph(workshop: Workshop) -> bytes:
    """Sorts like the dense graph, but the scale of its weights is set by one that is always multiplied by 0, so that
    8 bits leave nothing of the others."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["x", "none"], ["wide"], axis=1),
            helper.make_node("MatMul", ["wide", "w"], ["scores"]),
        ],
        "fragile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [
            numpy_helper.from_array(np.vstack([workshop.weights, np.full((1, CLASSES), 1e5)]).astype(np.float32), "w"),
        ],
    )
    graph.node.insert(0, helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1))
    graph.node.insert(1, helper.make_node("Mul", ["sum", "zero"], ["none"]))
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"))
    return _model(graph)


@pytest.fixture
def relu_graph() -> bytes:
    """Nothing to quantise: the largest of the four parts of the features."""
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["parts"]),
            helper.make_node("ReduceMax", ["parts"], ["scores"], axes=[2], keepdims=0),
        ],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.array([-1, CLASSES, FEATURES // CLASSES], dtype=np.int64), "shape")],
    )
    return _model(graph)


@pytest.fixture
def exploding_graph() -> bytes:
    """Loads, and fails in the first run: the gathered index is out of range."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], axes=[0, 1], keepdims=0),
            helper.make_node("Cast", ["largest"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "many"], ["index"]),
            helper.make_node("Gather", ["x", "index"], ["row"]),
            helper.make_node("Reshape", ["row", "shape"], ["scores"]),
        ],
        "exploding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [
            numpy_helper.from_array(np.array(1_000_000, dtype=np.int64), "many"),
            numpy_helper.from_array(np.array([-1, CLASSES], dtype=np.int64), "shape"),
        ],
    )
    return _model(graph)


@pytest.fixture
def calibration(workshop: Workshop) -> bytes:
    """The first thirty evaluation rows, and others."""
    others = np.random.default_rng(5).normal(size=(10, FEATURES)).astype(np.float32)
    return npz({"x": np.concatenate([workshop.rows[:30], others])})


def _model(graph: Any) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
