"""Static int8: activations' ranges are learnt from sample rows, so that whole chains of layers stay in integers.

The graph is written with quantise/dequantise pairs (QDQ) and a scale per output channel of every weight; ONNX Runtime
fuses the pairs into integer kernels. Against dynamic int8 it spares looking for each activation's range in every run,
which is what makes that slow for convolutions. After Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

OPSET = 13
"""Scales per channel came with it; older graphs are converted."""
OLDEST_OPSET = 7
CALIBRATION_BATCH = 16
QUANTISED = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Split", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu",
    "Clip", "LeakyRelu", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Resize", "Slice",
)  # fmt: skip
"""Heavy operators, and the light ones that would else break their chain. Scores (Softmax, Sigmoid) stay in floats."""


class StaticInt8:
    prefix = "ort-int8-static"
    runtime = Runtime.ONNXRUNTIME
    hardware = Hardware.CPU
    precision = Precision.INT8
    is_exact = False

    def why_not(self, facts: GraphFacts, hardware: HardwareFacts) -> str | None:
        if not is_convolutional(facts):
            return f"static int8 gains on convolutions with constant weights; the graph has {most_frequent(facts)}"
        if facts.text_inputs:
            return "static int8 is calibrated with numbers; the graph takes texts"
        if facts.opset < OLDEST_OPSET:
            return f"static int8 needs opset {OLDEST_OPSET}; the graph has {facts.opset}"
        return UNDEFINED_WEIGHTS if facts.has_undefined_weights else None

    def transform(self, source: Path, target: Path, materials: Materials) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        if not materials.calibration:
            raise DoesNotApplyError(f"static int8 has no rows to be calibrated with: {materials.why_uncalibrated}")
        basic = target.with_suffix(".basic.onnx")
        quantised = target.with_suffix(".qdq.onnx")
        optimise(source, basic, is_extended=False)
        _with_opset(basic)
        logging.getLogger().setLevel(logging.ERROR)  # it recommends what has been done
        quantize_static(
            basic,
            quantised,
            _Reader(materials),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            reduce_range=needs_reduced_range(materials.hardware),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        optimise(quantised, target)
        if not has_operator(target, INTEGER_OPERATORS):
            raise DoesNotApplyError("static quantisation found no operator to turn into integer arithmetic")


class _Reader:
    """Hands out the calibration rows in batches; the form that ONNX Runtime's calibrator asks for."""

    def __init__(self, materials: Materials) -> None:
        self._batches = _batches(materials)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._batches


def _batches(materials: Materials) -> Iterator[dict[str, Any]]:
    """A fixed batch's last one is filled up with its own rows, which changes no range."""
    import numpy as np

    rows = len(next(iter(materials.calibration.values())))
    size = materials.batch if materials.is_fixed else min(CALIBRATION_BATCH, materials.batch)
    for start in range(0, rows, size):
        chosen = np.arange(start, min(start + size, rows))
        if materials.is_fixed:
            chosen = np.resize(chosen, size)
        yield {name: array[chosen] for name, array in materials.calibration.items()}


def _with_opset(path: Path) -> None:
    """Convert a graph of an older opset in place. Raises DoesNotApplyError when it cannot be."""
    import onnx
    from onnx import version_converter

    model = onnx.load(path)
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if version >= OPSET:
        return
    try:
        converted = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DoesNotApplyError(f"the graph's opset {version} cannot be converted to {OPSET}: {first}") from error
    onnx.save(converted, path)
