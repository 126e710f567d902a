"""The models that are measured: ONNX graphs with weights from a seed, each with rows to ask and what they must answer.

Four points of the space that a gateway meets. A small MLP, where the gateway is all of the cost. A wide MLP that is
bound by reading its weights, where a batch costs as much as one query. A convolution net of about a millisecond and
one of about 25 ms in the shape of ResNet-18 (He et al., CVPR 2016), where batching pays nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.runtimes.onnxruntime_options import open_session

INPUT, OUTPUT, LABEL = "x", "y", "label"
CLASSES = 10
SEED = 20_210_714
_OPSET, _IR_VERSION = 17, 8

Array = npt.NDArray[np.float32]
_Constants = list[Any]


@dataclass(frozen=True, slots=True)
class Model:
    """`row` is the shape of one query's input, without the batch."""

    name: str
    what: str
    row: tuple[int, ...]
    build: Callable[[], bytes]
    questions: int = 64
    """Different rows that are asked."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(INPUT, Datatype.FP32, (-1, *self.row)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(OUTPUT, Datatype.FP32, (-1, CLASSES)),)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on disk, with its questions and their answers by ONNX Runtime in this process."""

    model: Model
    file: Path
    evaluation: Path
    questions: Array
    answers: Array


def prepare(model: Model, folder: Path) -> Prepared:
    """Write the graph and an evaluation set whose labels are the graph's own answers."""
    file, evaluation = folder / f"{model.name}.onnx", folder / f"{model.name}-eval.npz"
    file.write_bytes(model.build())
    questions = np.random.default_rng(SEED).standard_normal((model.questions, *model.row), dtype=np.float32)
    session = open_session(str(file), 1)
    answers = np.concatenate([session.run([OUTPUT], {INPUT: row[np.newaxis]})[0] for row in questions])
    named: dict[str, npt.NDArray[Any]] = {INPUT: questions, LABEL: answers.argmax(axis=1).astype(np.int64)}
    np.savez(evaluation, allow_pickle=False, **named)
    return Prepared(model, file, evaluation, questions, answers)


def mlp(widths: Sequence[int]) -> bytes:
    """Fully connected layers with ReLU between them."""
    draw = np.random.default_rng(SEED)
    nodes: list[Any] = []
    constants: _Constants = []
    last = INPUT
    for at, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        is_last = at == len(widths) - 2
        weights = draw.standard_normal((fan_in, fan_out), dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
        constants += [
            numpy_helper.from_array(weights, f"w{at}"),
            numpy_helper.from_array(np.zeros(fan_out, np.float32), f"b{at}"),
        ]
        out = OUTPUT if is_last else f"h{at}"
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", f"b{at}"], [out], name=f"gemm{at}"))
        last = out
        if not is_last:
            nodes.append(helper.make_node("Relu", [last], [f"r{at}"], name=f"relu{at}"))
            last = f"r{at}"
    return _model("mlp", nodes, constants, (widths[0],))


class _Convolutions:
    """A convolution net under construction: each step reads the tensor it is given and names the one it makes."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(SEED)
        self.nodes: list[Any] = []
        self.constants: _Constants = []

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def convolution(self, last: str, fan_in: int, fan_out: int, *, size: int = 3, stride: int = 1) -> str:
        at, pad = len(self.nodes), size // 2
        scale = np.float32(np.sqrt(2 / (fan_in * size * size)))
        weights = self._draw.standard_normal((fan_out, fan_in, size, size), dtype=np.float32) * scale
        self.constants += [
            numpy_helper.from_array(weights, f"w{at}"),
            numpy_helper.from_array(np.zeros(fan_out, np.float32), f"b{at}"),
        ]
        return self.add(
            "Conv", [last, f"w{at}", f"b{at}"], kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4
        )

    def relu(self, last: str) -> str:
        return self.add("Relu", [last])

    def block(self, last: str, fan_in: int, fan_out: int, stride: int) -> str:
        """ResNet's basic block; the shortcut is a 1×1 convolution where the shape changes."""
        inner = self.relu(self.convolution(last, fan_in, fan_out, stride=stride))
        inner = self.convolution(inner, fan_out, fan_out)
        if stride != 1 or fan_in != fan_out:
            last = self.convolution(last, fan_in, fan_out, size=1, stride=stride)
        return self.relu(self.add("Add", [inner, last]))

    def head(self, last: str, channels: int) -> None:
        """Mean over the picture, then one layer to the classes."""
        pooled = self.add("Flatten", [self.add("GlobalAveragePool", [last])], axis=1)
        weights = self._draw.standard_normal((channels, CLASSES), dtype=np.float32)
        self.constants.append(numpy_helper.from_array(weights, "w-head"))
        self.nodes.append(helper.make_node("MatMul", [pooled, "w-head"], [OUTPUT], name="head"))


def small_cnn(side: int = 64, channels: int = 48) -> bytes:
    """Four convolutions over a small picture."""
    net = _Convolutions()
    last = net.relu(net.convolution(INPUT, 3, channels))
    last = net.relu(net.convolution(last, channels, channels, stride=2))
    last = net.relu(net.convolution(last, channels, 2 * channels))
    last = net.relu(net.convolution(last, 2 * channels, 4 * channels, stride=2))
    net.head(last, 4 * channels)
    return _model("cnn", net.nodes, net.constants, (3, side, side))


def resnet(side: int = 224, width: int = 64) -> bytes:
    """ResNet-18's layers, batch normalisation folded into the (random) weights."""
    net = _Convolutions()
    last = net.relu(net.convolution(INPUT, 3, width, size=7, stride=2))
    last = net.add("MaxPool", [last], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    fan_in = width
    for stage in range(4):
        fan_out = width * 2**stage
        last = net.block(last, fan_in, fan_out, 1 if stage == 0 else 2)
        last = net.block(last, fan_out, fan_out, 1)
        fan_in = fan_out
    net.head(last, fan_in)
    return _model("resnet", net.nodes, net.constants, (3, side, side))


def _model(name: str, nodes: list[Any], constants: _Constants, row: tuple[int, ...]) -> bytes:
    given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *row])
    made = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, name, [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


SMALL_MLP = Model("small-mlp", "MLP 16-32-10", (16,), lambda: mlp((16, 32, CLASSES)))
WIDE_MLP = Model("wide-mlp", "MLP 512-3072-1536-10", (512,), lambda: mlp((512, 3072, 1536, CLASSES)))
SMALL_CNN = Model("small-cnn", "CNN 3×64×64", (3, 64, 64), small_cnn)
RESNET = Model("resnet", "ResNet-18 3×224×224", (3, 224, 224), resnet, questions=16)
MODELS = {model.name: model for model in (SMALL_MLP, WIDE_MLP, SMALL_CNN, RESNET)}
