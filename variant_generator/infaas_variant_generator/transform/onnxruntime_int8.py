"""Dynamic int8: weights are stored as 8-bit integers, activations are scaled when the query runs. Needs no data."""

from __future__ import annotations

from pathlib import Path

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.transform.base import DoesNotApplyError, Materials
from infaas_variant_generator.transform.integers import (
    INTEGER_OPERATORS,
    UNDEFINED_WEIGHTS,
    has_operator,
    is_convolutional,
    most_frequent,
    needs_reduced_range,
)
from infaas_variant_generator.transform.onnxruntime_fp32 import optimise

TOUCHED = ("Attention", "Gemm", "LSTM", "MatMul")
"""What dynamic quantisation turns into integer arithmetic, given a constant weight. It could do so to convolutions, and
they would run longer than in fp32."""
OLDEST_OPSET = 11
"""DynamicQuantizeLinear came with it."""


class DynamicInt8:
    prefix = "ort-int8"
    runtime = Runtime.ONNXRUNTIME
    hardware = Hardware.CPU
    precision = Precision.INT8
    is_exact = False

    def why_not(self, facts: GraphFacts, hardware: HardwareFacts) -> str | None:
        if is_convolutional(facts):
            return "dynamic int8 makes convolutions, most of what there is to compute here, slower than fp32"
        touched = sum(facts.constant_weight_operators.get(operator, 0) for operator in TOUCHED)
        if touched == 0:
            names = ", ".join(TOUCHED)
            return f"dynamic int8 needs one of {names} with a constant weight; the graph has {most_frequent(facts)}"
        if facts.opset < OLDEST_OPSET:
            return f"dynamic int8 needs opset {OLDEST_OPSET}; the graph has {facts.opset}"
        return UNDEFINED_WEIGHTS if facts.has_undefined_weights else None

    def transform(self, source: Path, target: Path, materials: Materials) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        basic = target.with_suffix(".basic.onnx")
        quantised = target.with_suffix(".int8.onnx")
        optimise(source, basic, is_extended=False)
        quantize_dynamic(
            basic,
            quantised,
            op_types_to_quantize=["MatMul", "Attention", "LSTM"],
            weight_type=QuantType.QInt8,
            reduce_range=needs_reduced_range(materials.hardware),
        )
        if not has_operator(quantised, INTEGER_OPERATORS):
            raise DoesNotApplyError("dynamic quantisation found no operator to turn into integer arithmetic")
        optimise(quantised, target)
