"""ONNX graphs written by hand from trained weights.

An exporter would leave its own names and training-time leftovers in the file. Ten lines of `onnx.helper` give a graph
whose tensors say what they are, and let two steps be folded into the weights: the scaling of the pixels and the
batch normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from infaas.demo.family import CLASSES, INPUT, OUTPUT, PIXELS

Array = npt.NDArray[np.float32]

SIDE = 8
PIXEL_MAX = 16.0
# Old enough for every runtime the project names, new enough for the operators used here.
OPSET = 17
IR_VERSION = 8


class Graph:
    """A chain of nodes under construction: each call appends one node that reads the last one's output."""

    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._description = description
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self.last = INPUT

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Store a weight or a shape and give its name back."""
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, op: str, output: str, *constants: str, **attributes: Any) -> None:
        """Append `op`, reading the last output and then `constants`."""
        self._nodes.append(helper.make_node(op, [self.last, *constants], [output], name=output, **attributes))
        self.last = output

    def reshape(self, output: str, *shape: int) -> None:
        """Append a Reshape to `shape`."""
        self.add("Reshape", output, self.constant(f"{output}.shape", np.array(shape, dtype=np.int64)))

    def model(self) -> onnx.ModelProto:
        """Close the graph, whose last output must be the family's."""
        image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", PIXELS])
        scores = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])
        graph = helper.make_graph(self._nodes, self._name, [image], [scores], self._constants, self._description)
        return finish(graph)


def finish(graph: Any) -> onnx.ModelProto:
    """Wrap a graph with pinned versions, so that a newer onnx package does not raise what a runtime must know."""
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    model.producer_name = "infaas.demo"
    model.producer_version = ""
    return model


def resampling(angle: float, right: float, down: float) -> Array:
    """The matrix [64, 64] that turns a row of pixels into the same image turned by `angle` degrees and shifted.

    Bilinear resampling is linear in the pixels, so one matrix product does it: in training for made-up copies of a
    scan, and inside the exported graph for the views that are averaged.
    """
    turn, centre = np.deg2rad(angle), (SIDE - 1) / 2
    matrix = np.zeros((PIXELS, PIXELS), dtype=np.float32)
    for row in range(SIDE):
        for column in range(SIDE):
            x, y = column - centre - right, row - centre - down
            from_x = np.cos(turn) * x + np.sin(turn) * y + centre
            from_y = np.cos(turn) * y - np.sin(turn) * x + centre
            left, top = int(np.floor(from_x)), int(np.floor(from_y))
            for source_y, source_x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= source_y < SIDE and 0 <= source_x < SIDE:
                    share = (1 - abs(from_x - source_x)) * (1 - abs(from_y - source_y))
                    matrix[source_y * SIDE + source_x, row * SIDE + column] += share
    return matrix


def centroid_graph(name: str, description: str, centroids: Array, variance: float) -> onnx.ModelProto:
    """Nearest centroid as one matrix product and a softmax.

    The softmax of -|x - c|²/2v is the posterior of ten equal round Gaussians; |x|² is the same for every class and
    cancels, which leaves a linear function of x.
    """
    graph = Graph(name, description)
    weight = graph.constant("centroid.weight", (centroids.T / variance).astype(np.float32))
    bias = graph.constant("centroid.bias", (-(centroids**2).sum(axis=1) / (2 * variance)).astype(np.float32))
    graph.add("Gemm", "logits", weight, bias)
    graph.add("Softmax", OUTPUT, axis=1)
    return graph.model()


@dataclass(frozen=True, slots=True)
class Views:
    """Views of an image to average an answer over: every turn of it, each shifted every way, as matrices [k, 64, 64].

    Turning and shifting in two steps keeps t + s matrices in the file, where one step would need t times s.
    """

    turns: Array
    shifts: Array

    def __len__(self) -> int:
        return len(self.turns) * len(self.shifts)


def views(degrees: Sequence[float], pixels: Sequence[float], reach: float) -> Views:
    """The views by every angle of `degrees` and by every pair of shifts from `pixels` no longer than `reach`."""
    pairs = [(right, down) for right in pixels for down in pixels if np.hypot(right, down) <= reach]
    return Views(
        turns=np.stack([resampling(angle, 0.0, 0.0) for angle in degrees]),
        shifts=np.stack([resampling(0.0, right, down) for right, down in pairs]),
    )


def network_graph(name: str, description: str, network: Any, averaged: Views | None = None) -> onnx.ModelProto:
    """A trained torch `Sequential` of the layers this family uses, as a graph on raw pixel values.

    With `averaged`, the graph makes those views of each image, runs them all through the one network and answers
    with their mean probabilities.
    """
    graph = Graph(name, description)
    layers = [layer for layer in network if type(layer).__name__ != "Dropout"]
    if averaged is None:
        _add_layers(graph, layers)
        graph.add("Softmax", OUTPUT, axis=1)
        return graph.model()
    for step, matrices in (("turned", averaged.turns), ("shifted", averaged.shifts)):
        graph.add("MatMul", step, graph.constant(f"{step}.weight", np.concatenate(list(matrices), axis=1)))
        graph.reshape(f"{step}.rows", -1, PIXELS)
    _add_layers(graph, layers)
    graph.add("Softmax", "probabilities", axis=1)
    graph.reshape("probabilities.by_view", -1, len(averaged), CLASSES)
    graph.add("ReduceMean", OUTPUT, axes=[1], keepdims=0)
    return graph.model()


def _add_layers(graph: Graph, layers: list[Any]) -> None:
    """Append each layer; the first weighted one takes the raw pixels' scale into its weights."""
    scale, convolutions, dense = 1 / PIXEL_MAX, 0, 0
    for index, layer in enumerate(layers):
        kind = type(layer).__name__
        if kind == "Unflatten":
            graph.reshape("pixels", -1, 1, SIDE, SIDE)
        elif kind == "Conv2d":
            convolutions += 1
            weight, bias = _folded(layer, layers[index + 1])
            names = (
                graph.constant(f"conv{convolutions}.weight", weight * np.float32(scale)),
                graph.constant(f"conv{convolutions}.bias", bias),
            )
            height, width = layer.kernel_size
            graph.add("Conv", f"conv{convolutions}", *names, kernel_shape=[height, width], pads=list(layer.padding) * 2)
            scale = 1.0
        elif kind == "Linear":
            dense += 1
            weight = _array(layer.weight).T * np.float32(scale)
            names = (
                graph.constant(f"dense{dense}.weight", weight),
                graph.constant(f"dense{dense}.bias", _array(layer.bias)),
            )
            graph.add("Gemm", f"dense{dense}", *names)
            scale = 1.0
        elif kind == "ReLU":
            graph.add("Relu", f"{graph.last}.relu")
        elif kind == "MaxPool2d":
            graph.add("MaxPool", f"{graph.last}.pool", kernel_shape=[2, 2], strides=[2, 2])
        elif kind == "Flatten":
            graph.add("Flatten", "features", axis=1)
        elif kind != "BatchNorm2d":
            raise ValueError(f"no graph for a layer of kind {kind}")


def _folded(convolution: Any, norm: Any) -> tuple[Array, Array]:
    """A convolution's weight and bias with the batch normalisation that follows it multiplied in."""
    gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + np.float32(norm.eps))
    weight = _array(convolution.weight) * gain[:, None, None, None]
    bias = _array(norm.bias) - _array(norm.running_mean) * gain
    return weight.astype(np.float32), bias.astype(np.float32)


def _array(tensor: Any) -> Array:
    """A torch tensor's values."""
    return np.asarray(tensor.detach().numpy(), dtype=np.float32)


def simple_graph() -> onnx.ModelProto:
    """The sum and the difference of two INT32 rows: exact arithmetic, for checking tensors on the wire."""
    shape = ["batch", 16]
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"], name="sum"),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"], name="difference"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("INPUT0", "INPUT1")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("OUTPUT0", "OUTPUT1")]
    return finish(helper.make_graph(nodes, "simple", inputs, outputs, doc_string="the sum and difference of two rows"))
