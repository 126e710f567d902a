"""ONNX Runtime as it is, with the graph optimised once at build time instead of at every load."""

from __future__ import annotations

from pathlib import Path

from infaas.domain.variant import Hardware, Precision, Runtime
from infaas_variant_generator.facts import GraphFacts, HardwareFacts
from infaas_variant_generator.transform.base import Materials


class Fp32:
    prefix = "ort-fp32"
    runtime = Runtime.ONNXRUNTIME
    hardware = Hardware.CPU
    precision = Precision.FP32
    is_exact = True

    def why_not(self, facts: GraphFacts, hardware: HardwareFacts) -> str | None:
        return None

    def transform(self, source: Path, target: Path, materials: Materials) -> None:
        optimise(source, target)


def optimise(source: Path, target: Path, *, is_extended: bool = True) -> None:
    """Fold constants and fuse operators, ahead of time.

    Stops at the extended level: what comes after it fits the graph to this machine's instruction set, and the
    artifact must run on every worker. Opening the session does that last step where it runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if is_extended else level.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), sess_options=options, providers=["CPUExecutionProvider"])
