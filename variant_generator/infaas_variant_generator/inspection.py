"""Reads what planning must know from a registered graph. Runs in a child process, because it loads `onnx`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infaas_variant_generator.child import Channel, serve
from infaas_variant_generator.facts import GraphFacts
from infaas_variant_generator.requests import Inspection, InspectRequest
from infaas_variant_generator.transform.base import installed_transforms

_WEIGHT_POSITIONS = {"Conv": 1, "MatMul": 1, "Gemm": 1, "LSTM": 1, "GRU": 1, "Attention": 1}
"""Which input of an operator is its weight."""
_FLOAT_TYPES = frozenset({1, 10, 11, 16})
_TEXT_TYPE = 8


def inspect(path: Path) -> GraphFacts:
    """Raises what `onnx` raises for a file that is no graph."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    operators: Counter[str] = Counter()
    weighted: Counter[str] = Counter()
    for graph in _graphs(model.graph):
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        for node in graph.node:
            name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            operators[name] += 1
            at = _WEIGHT_POSITIONS.get(name)
            if at is not None and len(node.input) > at and node.input[at] in constants:
                weighted[name] += 1
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    return GraphFacts(
        file_bytes=path.stat().st_size,
        opset=opset,
        operators=dict(operators),
        constant_weight_operators=dict(weighted),
        weight_bytes=sum(tensor.ByteSize() for tensor in model.graph.initializer),
        float_inputs=all(i.type.tensor_type.elem_type in _FLOAT_TYPES for i in model.graph.input),
        text_inputs=any(i.type.tensor_type.elem_type == _TEXT_TYPE for i in model.graph.input),
        has_undefined_weights=any(_is_undefined(tensor) for tensor in model.graph.initializer),
    )


def _is_undefined(tensor: Any) -> bool:
    """Whether a weight holds values that are infinite or no number. What lies outside of the file is not looked at."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16) or tensor.HasField("data_location"):
        return False
    return not bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and every subgraph of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _work(request: InspectRequest, channel: Channel) -> Inspection:
    facts = inspect(Path(request.graph))
    _write_warmup(Path(request.warmup_graph))
    return Inspection(facts, installed_transforms(facts, request.hardware) if request.hardware else ())


def _write_warmup(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "warmup",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


if __name__ == "__main__":
    serve(InspectRequest, _work)
