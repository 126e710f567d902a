"""Small real ONNX graphs for tests, each with the variant that describes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from infaas.domain.ids import Digest
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Variant
from infaas.testing.builders import a_variant

_OPSET = 17
_IR_VERSION = 9
_TYPES = {
    Datatype.BOOL: TensorProto.BOOL,
    Datatype.INT8: TensorProto.INT8,
    Datatype.INT32: TensorProto.INT32,
    Datatype.INT64: TensorProto.INT64,
    Datatype.UINT8: TensorProto.UINT8,
    Datatype.FP16: TensorProto.FLOAT16,
    Datatype.FP32: TensorProto.FLOAT,
    Datatype.FP64: TensorProto.DOUBLE,
    Datatype.BYTES: TensorProto.STRING,
}


@dataclass(frozen=True, slots=True)
class Graph:
    """A serialised model and its interface."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def digest(self) -> Digest:
        return Digest(hashlib.sha256(self.data).hexdigest())

    def variant(self, name: str = "v1", **facts: Any) -> Variant:
        """`facts` go to `a_variant`."""
        return a_variant(name, inputs=self.inputs, outputs=self.outputs, artifact=self.digest, **facts)

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.digest}.onnx"
        path.write_bytes(self.data)
        return path


def double(batch: int = -1) -> Graph:
    """`y = 2x` and `z = x + 1`, FP32, four columns."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"]), helper.make_node("Add", ["x", "one"], ["z"])]
    constants = {"two": np.array(2.0, np.float32), "one": np.array(1.0, np.float32)}
    outputs = (TensorSpec("y", Datatype.FP32, (batch, 4)), TensorSpec("z", Datatype.FP32, (batch, 4)))
    return _graph(nodes, (TensorSpec("x", Datatype.FP32, (batch, 4)),), outputs, constants)


def look_up(rows: int = 10) -> Graph:
    """`y = table[index]`: an index of `rows` or more makes the model itself fail. Entries are their index times ten."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["y"])]
    return _graph(
        nodes,
        (TensorSpec("index", Datatype.INT64, (-1, 1)),),
        (TensorSpec("y", Datatype.FP32, (-1, 1)),),
        {"table": np.arange(rows, dtype=np.float32) * 10},
    )


def echo(datatype: Datatype, columns: int = 3) -> Graph:
    """`y = x` in any datatype."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    spec = TensorSpec("x", datatype, (-1, columns))
    return _graph(nodes, (spec,), (TensorSpec("y", datatype, (-1, columns)),), {})


def total() -> Graph:
    """One number for the whole batch: an output without the batch dimension."""
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    return _graph(nodes, (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("y", Datatype.FP32, ()),), {})


def company() -> Graph:
    """`y`: for each row the sum of all rows that were run together with it, and itself; FP32, four columns."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "rows"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["x", "x"], ["none"]),
        helper.make_node("Add", ["none", "sum"], ["y"]),
    ]
    spec = TensorSpec("x", Datatype.FP32, (-1, 4))
    return _graph(nodes, (spec,), (replace(spec, name="y"),), {"rows": np.array([0], np.int64)})


def widest() -> Graph:
    """`y`: as many columns of `x` as its greatest value says; FP32, four columns come in."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "one"], ["end"]),
        helper.make_node("Slice", ["x", "begin", "end", "columns"], ["y"]),
    ]
    constants = {"one": np.array([1], np.int64), "begin": np.array([0], np.int64), "columns": np.array([1], np.int64)}
    spec = TensorSpec("x", Datatype.FP32, (-1, 4))
    return _graph(nodes, (spec,), (TensorSpec("y", Datatype.FP32, (-1, -1)),), constants)


def open_width(multiple: int = 8) -> Graph:
    """Takes rows of any width that `multiple` divides; `y` is their mean."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["folded"], allowzero=0),
        helper.make_node("ReduceMean", ["folded"], ["y"], axes=[1, 2], keepdims=0),
    ]
    shape = np.array([0, -1, multiple], np.int64)
    return _graph(
        nodes, (TensorSpec("x", Datatype.FP32, (-1, -1)),), (TensorSpec("y", Datatype.FP32, (-1,)),), {"shape": shape}
    )


def slow(rounds: int, width: int = 256) -> Graph:
    """`y = x`, after `rounds` multiplications of square matrices: about a millisecond each at width 256."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("MatMul", ["state_in", "square"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [width, width]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [width, width]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["rounds", "go", "square"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = {
        "rounds": np.array(rounds, np.int64),
        "go": np.array(True),
        "square": np.eye(width, dtype=np.float32),
        "zero": np.array(0.0, np.float32),
    }
    spec = (TensorSpec("x", Datatype.FP32, (-1, 4)),)
    return _graph(nodes, spec, (TensorSpec("y", Datatype.FP32, (-1, 4)),), constants)


def heavy(rounds: int, width: int = 2048) -> Graph:
    """`y = x` for zeros, after as many multiplications of square matrices, one after the other without any loop."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "square"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{at}", "m0"], [f"m{at + 1}"]) for at in range(rounds)),
        helper.make_node("ReduceSum", [f"m{rounds}"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    spec = (TensorSpec("x", Datatype.FP32, (-1, 4)),)
    square = {"square": np.array([width, width], np.int64)}
    return _graph(nodes, spec, (TensorSpec("y", Datatype.FP32, (-1, 4)),), square)


CRASHES, HANGS = 666, 777
_BRITTLE_CONSTANTS = {
    "crashes": np.array(CRASHES, np.int64),
    "thousand": np.array(1000, np.int64),
    "least": np.array(np.iinfo(np.int64).min),
    "minus_one": np.array(-1, np.int64),
    "start": np.array(600, np.int64),
}


def brittle() -> Graph:
    """As `deadly`, but that nothing makes it go round in circles."""
    spec = (TensorSpec("x", Datatype.INT64, (-1, 1)),)
    return _graph(_brittle_nodes("y"), spec, (TensorSpec("y", Datatype.INT64, (-1, 1)),), _BRITTLE_CONSTANTS)


def _brittle_nodes(result: str) -> list[Any]:
    return [
        helper.make_node("Equal", ["x", "crashes"], ["is_crashing"]),
        helper.make_node("Where", ["is_crashing", "least", "thousand"], ["dividend"]),
        helper.make_node("Sub", ["x", "start"], ["distance"]),
        helper.make_node("Where", ["is_crashing", "minus_one", "distance"], ["divisor"]),
        helper.make_node("Div", ["dividend", "divisor"], [result]),
    ]


def deadly() -> Graph:
    """`y = 1000 / (x - 600)` in whole numbers, but for two values of `x`: 666 makes it divide the least number there is
    by -1, which the processor refuses, so that SIGFPE ends the process; 777 counts to a million millions first."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Identity", ["state_in"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.INT64, []),
        ],
    )
    nodes = [
        *_brittle_nodes("quotient"),
        helper.make_node("Equal", ["x", "hangs"], ["is_hanging"]),
        helper.make_node("Cast", ["is_hanging"], ["as_number"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["as_number"], ["any"], keepdims=0),
        helper.make_node("Mul", ["any", "endless"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "go", "nothing"], ["last"], body=body),
        helper.make_node("Add", ["quotient", "last"], ["y"]),
    ]
    constants = {
        **_BRITTLE_CONSTANTS,
        "hangs": np.array(HANGS, np.int64),
        "endless": np.array(10**12, np.int64),
        "go": np.array(True),
        "nothing": np.array(0, np.int64),
    }
    spec = (TensorSpec("x", Datatype.INT64, (-1, 1)),)
    return _graph(nodes, spec, (TensorSpec("y", Datatype.INT64, (-1, 1)),), constants)


def endless_to_load(width: int = 2500, products: int = 400) -> Graph:
    """`y = x`, of a few hundred bytes; but whoever opens it multiplies large constant matrices first, for minutes."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{at}", f"m{at}"], [f"m{at + 1}"]) for at in range(products)]
    nodes += [
        helper.make_node("ReduceSum", [f"m{products}"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    spec = (TensorSpec("x", Datatype.FP32, (-1, 4)),)
    constants = {"shape": np.array([width, width], np.int64)}
    return _graph(nodes, spec, (TensorSpec("y", Datatype.FP32, (-1, 4)),), constants)


def _graph(
    nodes: list[Any], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], constants: dict[str, Any]
) -> Graph:
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [_info(spec) for spec in inputs],
            [_info(spec) for spec in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    checker.check_model(model)
    return Graph(model.SerializeToString(), inputs, outputs)


def _info(spec: TensorSpec) -> Any:
    shape = [f"d{index}" if size == -1 else size for index, size in enumerate(spec.shape)]
    if shape and spec.shape[0] == -1:
        shape[0] = "batch"
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.datatype], shape)
