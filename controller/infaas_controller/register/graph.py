"""Reading an uploaded ONNX file: is it one, what is in it, and is anything in it that must not be served.

Runs in the inspecting subprocess only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from infaas.domain.tensor import Datatype
from infaas_controller.register.fit import GraphTensor

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MAX_NODES = 200_000
"""Several times what the largest language models have; a runtime takes seconds to load as many."""
OLDEST_OPSET = 7
"""ONNX Runtime guarantees nothing for older ones."""

_MAX_LISTED = 5
_MAX_SHOWN = 120
_MAX_CALLS = 64
"""Functions within functions; more is a circle for all that it matters."""

_DATATYPES = {
    onnx.TensorProto.BOOL: Datatype.BOOL,
    onnx.TensorProto.INT8: Datatype.INT8,
    onnx.TensorProto.INT16: Datatype.INT16,
    onnx.TensorProto.INT32: Datatype.INT32,
    onnx.TensorProto.INT64: Datatype.INT64,
    onnx.TensorProto.UINT8: Datatype.UINT8,
    onnx.TensorProto.UINT16: Datatype.UINT16,
    onnx.TensorProto.UINT32: Datatype.UINT32,
    onnx.TensorProto.UINT64: Datatype.UINT64,
    onnx.TensorProto.FLOAT16: Datatype.FP16,
    onnx.TensorProto.FLOAT: Datatype.FP32,
    onnx.TensorProto.DOUBLE: Datatype.FP64,
    onnx.TensorProto.STRING: Datatype.BYTES,
}
ELEMENT_TYPES = {ours: theirs for theirs, ours in _DATATYPES.items()}
_MAGICS = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or an npz?)"),
    (b"\x80", "a Python pickle"),
    (b"\x89HDF", "an HDF5 file (a Keras model?)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"<", "text"),
    (b"{", "JSON text"),
)


def read_model(path: Path, max_bytes: int) -> tuple[onnx.ModelProto | None, list[str]]:
    """The parsed file, or why it is none."""
    size = path.stat().st_size
    if size == 0:
        return None, ["the model file is empty"]
    if size > max_bytes:
        return None, [f"the model file is too large: {size:,} bytes; at most {max_bytes:,} are taken"]
    with path.open("rb") as file:
        head = file.read(4)
    looks = next((f"; it looks like {what}" for magic, what in _MAGICS if head.startswith(magic)), "")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        return None, [f"not an ONNX file: {_short(error)}{looks}"]
    if model.ir_version == 0 or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        return None, [f"not an ONNX model: the file holds no graph{looks}"]
    return model, []


def content_problems(model: onnx.ModelProto) -> list[str]:
    """Everything in the graph that is refused before anything runs it."""
    problems = size_problems(model)
    if problems:
        return problems  # the rest would walk it
    problems = _opset_problems(model)
    problems += _operator_problems(model)
    problems += _external_problems(model)
    if problems:
        return problems
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        problems.append(f"not a valid ONNX graph: {_short(error)}")
    return problems


def graph_inputs(model: onnx.ModelProto) -> list[GraphTensor]:
    """Inputs that a caller must give: old files list initializers among them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [_tensor(info) for info in model.graph.input if info.name not in constants]


def graph_outputs(model: onnx.ModelProto) -> list[GraphTensor]:
    return [_tensor(info) for info in model.graph.output]


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from nodes(subgraph)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def size_problems(model: onnx.ModelProto) -> list[str]:
    """Too many nodes to check or to load: as written, or once functions that call functions are put in their places."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[_Function, int] = {}
    try:
        count = _expanded(model.graph.node, functions, sizes, ())
        for key in functions:
            _expanded_function(key, functions, sizes, ())
    except FunctionCycleError as error:
        return [f"the model's functions call each other in a circle: {error}"]
    if count > MAX_NODES:
        return [
            f"the graph has {min(count, 10**18):,} nodes or more, functions expanded; at most {MAX_NODES:,} are taken"
        ]
    return []


class FunctionCycleError(Exception):
    """A function of the model contains itself; the text names the circle."""


_Function = tuple[str, str]
_Functions = Mapping[_Function, onnx.FunctionProto]


def _expanded(
    found: Iterable[onnx.NodeProto], functions: _Functions, sizes: dict[_Function, int], path: tuple[_Function, ...]
) -> int:
    count = 0
    for node in found:
        key = (node.domain, node.op_type)
        count += _expanded_function(key, functions, sizes, path) if key in functions else 1
        for subgraph in subgraphs(node):
            count += _expanded(subgraph.node, functions, sizes, path)
    return count


def _expanded_function(
    key: _Function, functions: _Functions, sizes: dict[_Function, int], path: tuple[_Function, ...]
) -> int:
    if key in path or len(path) > _MAX_CALLS:
        raise FunctionCycleError(" -> ".join(_shown(name) for _, name in (*path[:_MAX_LISTED], key)))
    if key not in sizes:
        sizes[key] = _expanded(functions[key].node, functions, sizes, (*path, key))
    return sizes[key]


def _opset_problems(model: onnx.ModelProto) -> list[str]:
    problems = [
        f"opset {entry.version} is too old: ONNX Runtime supports {OLDEST_OPSET} and later; "
        "convert the model with onnx.version_converter or export it again"
        for entry in model.opset_import
        if entry.domain in ("", "ai.onnx") and entry.version < OLDEST_OPSET
    ]
    if not model.opset_import:
        problems.append("the model names no opset")
    return problems


def _operator_problems(model: onnx.ModelProto) -> list[str]:
    own = {(function.domain, function.name) for function in model.functions}
    every = list(nodes(model.graph))
    for function in model.functions:
        every += function.node
    custom = sorted(
        {
            _shown(f"{node.domain}::{node.op_type}")
            for node in every
            if node.domain not in ALLOWED_DOMAINS and (node.domain, node.op_type) not in own
        }
    )
    if not custom:
        return []
    allowed = "ai.onnx, ai.onnx.ml and com.microsoft"
    shown = ", ".join(custom[:_MAX_LISTED]) + (" ..." if len(custom) > _MAX_LISTED else "")
    return [f"custom operators are refused: {shown}; only {allowed} are run"]


def _external_problems(model: onnx.ModelProto) -> list[str]:
    outside = sorted({_location(tensor) for tensor in _tensors(model) if _is_external(tensor)})
    if not outside:
        return []
    shown = ", ".join(repr(_shown(path)) for path in outside[:_MAX_LISTED])
    shown += " ..." if len(outside) > _MAX_LISTED else ""
    return [
        f"the model keeps weights in other files ({shown}), which are not part of the upload; "
        "save it as one file: onnx.save(onnx.load(path), path, save_as_external_data=False)"
    ]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
    for subgraph in subgraphs(node):
        yield from _graph_tensors(subgraph)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data)


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")


def _tensor(info: onnx.ValueInfoProto) -> GraphTensor:
    if info.type.WhichOneof("value") != "tensor_type":
        return GraphTensor(info.name, None, _kind(info.type), None)
    declared = info.type.tensor_type
    shape = None
    if declared.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in declared.shape.dim)
    datatype = _DATATYPES.get(declared.elem_type)
    return GraphTensor(info.name, datatype, _kind(info.type), shape)


def _kind(kind: onnx.TypeProto) -> str:
    """`tensor(bfloat16)`, `sequence(map(int64, tensor(float)))`: a type in ONNX's own words."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return f"tensor({_element(kind.tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"sequence({_kind(kind.sequence_type.elem_type)})"
    if which == "map_type":
        return f"map({_element(kind.map_type.key_type)}, {_kind(kind.map_type.value_type)})"
    if which == "optional_type":
        return f"optional({_kind(kind.optional_type.elem_type)})"
    return str(which or "undeclared").removesuffix("_type")


def _element(number: int) -> str:
    if number not in onnx.TensorProto.DataType.values():
        return f"unknown type {number}"
    return str(onnx.TensorProto.DataType.Name(number)).lower()


def _shown(name: str) -> str:
    return name if len(name) <= _MAX_SHOWN else f"{name[: _MAX_SHOWN - 3]}..."


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
