"""Dynamic int8: weights are stored as 8-bit integers, activations are scaled when the query runs. Needs no data."""

from __future__ import annotations

from pathlib import Path

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas_variant_generator.facts import GraphFacts
from infaas_variant_generator.transform.base import DoesNotApplyError
from infaas_variant_generator.transform.onnxruntime_fp32 import optimise

TOUCHED = ("Attention", "Conv", "Gemm", "LSTM", "MatMul")
"""What dynamic quantisation turns into integer arithmetic, given a constant weight."""
INTEGER_OPERATORS = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "DynamicQuantizeLSTM",
        "QAttention",
    }
)
OLDEST_OPSET = 11
"""DynamicQuantizeLinear came with it."""


class DynamicInt8:
    prefix = "ort-int8"
    runtime = Runtime.ONNXRUNTIME
    hardware = Hardware.CPU
    precision = Precision.INT8
    is_exact = False

    def why_not(self, facts: GraphFacts) -> str | None:
        touched = sum(facts.constant_weight_operators.get(operator, 0) for operator in TOUCHED)
        if touched == 0:
            most = sorted(facts.operators.items(), key=lambda item: -item[1])[:4]
            found = ", ".join(name for name, _ in most) or "none"
            return f"dynamic int8 needs one of {', '.join(TOUCHED)} with a constant weight; the graph has {found}"
        if facts.opset < OLDEST_OPSET:
            return f"dynamic int8 needs opset {OLDEST_OPSET}; the graph has {facts.opset}"
        return None

    def transform(self, source: Path, target: Path) -> None:
        """Signed weights where every kernel takes them; convolutions only take unsigned ones."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        basic = target.with_suffix(".basic.onnx")
        quantised = target.with_suffix(".int8.onnx")
        optimise(source, basic, is_extended=False)
        weight_type = QuantType.QUInt8 if _has_operator(basic, {"Conv"}) else QuantType.QInt8
        quantize_dynamic(
            basic, quantised, op_types_to_quantize=["MatMul", "Conv", "Attention", "LSTM"], weight_type=weight_type
        )
        if not _has_operator(quantised, INTEGER_OPERATORS):
            raise DoesNotApplyError("dynamic quantisation found no operator to turn into integer arithmetic")
        optimise(quantised, target)


def _has_operator(path: Path, names: set[str] | frozenset[str]) -> bool:
    import onnx

    return any(node.op_type in names for node in onnx.load(path, load_external_data=False).graph.node)
