"""Two nets that answer the demo's question, of which neither is better at every load.

`lean` is many convolutions: small, and as long for each row as for one. `wide` is large, and does a batch in little
more time than a row. Both are random features with a last layer that is fitted to one half of the demo's rows; the
other half is what they are measured with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from infaas.demo import family
from infaas.demo.graphs import SIDE, Graph

LEAN, WIDE = "lean", "wide"
EVAL_FILE = "eval.npz"
HIDDEN = (8192, 6144)
LAYERS, CHANNELS, TIMES = 24, 64, 3


def written(folder: Path) -> Path:
    """Writes both, as `NAME.onnx`, and what they are measured with; returns the folder."""
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        image, label = np.asarray(data[family.INPUT], np.float32), np.asarray(data["label"], np.int64)
    half = len(image) // 2
    np.savez(folder / EVAL_FILE, image=image[half:], label=label[half:])
    for name, make in ((LEAN, _lean), (WIDE, _wide)):
        features = _features(make(np.random.default_rng(7)), image)
        found = np.asarray(features[:half], np.float64)
        gram = found @ found.T
        gram += 1e-3 * np.trace(gram) / half * np.eye(half)
        last = found.T @ np.linalg.solve(gram, np.eye(family.CLASSES)[label[:half]])
        graph = make(np.random.default_rng(7))
        graph.add("MatMul", family.OUTPUT, graph.constant("last", last.astype(np.float32)))
        (folder / f"{name}.onnx").write_bytes(graph.model().SerializeToString())
    return folder


def _features(graph: Graph, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What a net makes of its input before its last layer is there."""
    graph.add("Identity", family.OUTPUT)
    model = graph.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {family.INPUT: image})[0], np.float32)


def _wide(draw: np.random.Generator) -> Graph:
    """Two layers of random features: what takes time is to read the weights, for one row as for thirty."""
    graph = Graph("wide", "random features of 8 x 8 pixels")
    for number, (rows, columns) in enumerate(((family.PIXELS, HIDDEN[0]), HIDDEN)):
        weights = draw.normal(size=(rows, columns)) * np.sqrt(2 / rows) / (16 if number == 0 else 1)
        graph.add("MatMul", f"product{number}", graph.constant(f"weights{number}", weights.astype(np.float32)))
        graph.add("Relu", f"features{number}")
    return graph


def _lean(draw: np.random.Generator) -> Graph:
    """Random convolutions: few weights, and much to do with each row."""
    graph = Graph("lean", "random convolutions of 8 x 8 pixels")
    graph.reshape("square", -1, 1, SIDE, SIDE)
    graph.add(
        "Resize", "large", "", graph.constant("times", np.array([1, 1, TIMES, TIMES], np.float32)), mode="nearest"
    )
    for number in range(LAYERS):
        before = 1 if number == 0 else CHANNELS
        scale = np.sqrt(2 / (9 * before)) / (16 if number == 0 else 1)
        weights = graph.constant(
            f"weights{number}", (draw.normal(size=(CHANNELS, before, 3, 3)) * scale).astype(np.float32)
        )
        graph.add("Conv", f"seen{number}", weights, pads=[1, 1, 1, 1])
        graph.add("Relu", f"kept{number}")
    graph.reshape("features", -1, CHANNELS * family.PIXELS * TIMES**2)
    return graph
