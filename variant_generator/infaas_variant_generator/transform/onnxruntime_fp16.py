"""fp16: weights and arithmetic in half precision, where hardware computes with it; inputs and outputs stay as they are.

Where the processor has no half-precision arithmetic, ONNX Runtime casts every value to fp32 and back, which is slower
than fp32 itself. So the recipe asks the hardware first, and what ONNX Runtime made of the graph afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.transform.base import DoesNotApplyError, Materials
from infaas_variant_generator.transform.integers import most_frequent
from infaas_variant_generator.transform.onnxruntime_fp32 import optimise

ARITHMETIC = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
"""Instruction sets that compute with half precision, instead of only converting it (f16c, fphp)."""
HEAVY = ("Conv", "Gemm", "MatMul")
OLDEST_OPSET = 7


def why_no_gain(hardware: HardwareFacts) -> str | None:
    """Why half precision would only be converted there; None when it is computed with."""
    if hardware.kind is Hardware.GPU or ARITHMETIC.intersection(hardware.features):
        return None
    names = ", ".join(sorted(ARITHMETIC))
    return f"this {hardware.kind.value} has no half-precision arithmetic ({names}): every value would be cast to fp32"


class Fp16:
    prefix = "ort-fp16"
    runtime = Runtime.ONNXRUNTIME
    hardware = Hardware.CPU
    precision = Precision.FP16
    is_exact = False

    def why_not(self, facts: GraphFacts, hardware: HardwareFacts) -> str | None:
        if (reason := why_no_gain(hardware)) is not None:
            return reason
        if not any(facts.constant_weight_operators.get(operator, 0) for operator in HEAVY):
            return f"fp16 needs one of {', '.join(HEAVY)} with a constant weight; the graph has {most_frequent(facts)}"
        if facts.opset < OLDEST_OPSET:
            return f"fp16 needs opset {OLDEST_OPSET}; the graph has {facts.opset}"
        return None

    def transform(self, source: Path, target: Path, materials: Materials) -> None:
        import onnx

        basic = target.with_suffix(".basic.onnx")
        half = target.with_suffix(".fp16.onnx")
        optimise(source, basic, is_extended=False)
        onnx.save(as_half(onnx.load(basic)), half)
        optimise(half, target)
        if not computes_in_half(onnx.load(target, load_external_data=False)):
            raise DoesNotApplyError("this ONNX Runtime has no half-precision kernels for it here: it casts to fp32")


def as_half(model: Any) -> Any:
    """The model with half-precision weights and arithmetic between its own inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(model, keep_io_types=True)
    in_order = _in_order(half.graph)  # the converter puts its casts at the end
    del half.graph.node[:]
    half.graph.node.extend(in_order)
    return half


def computes_in_half(model: Any) -> bool:
    """Whether a heavy operator is left that takes a half-precision value: ONNX Runtime puts a cast before each that
    it has no kernel for, when it opens a graph."""
    from onnx import TensorProto

    graph = model.graph
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    half |= {i.name for i in graph.value_info if i.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for node in graph.node:
        if node.op_type == "Cast":
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            half |= set(node.output) if to == TensorProto.FLOAT16 else set()
    return any(node.op_type.startswith(HEAVY) and half.intersection(node.input) for node in graph.node)


def _in_order(graph: Any) -> list[Any]:
    """Copies of the nodes, each behind those whose results it reads, else in the order they had."""
    from onnx import NodeProto

    nodes = []
    for node in graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    writers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    placed: dict[int, None] = {}
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            at = waiting[-1]
            missing = [writers[name] for name in _read_names(nodes[at]) if name in writers]
            missing = [writer for writer in missing if writer not in placed and writer != at]
            if missing and at not in placed:
                waiting.extend(missing)
            else:
                placed[waiting.pop()] = None
    return [nodes[at] for at in placed]


def _read_names(node: Any) -> set[str]:
    """What a node reads, its subgraphs' readings from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                names |= _read_names(inner)
            names |= {output.name for output in graph.output}
    return names
