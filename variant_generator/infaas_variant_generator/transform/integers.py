"""What the two ways of quantising to int8 share: where it applies, and what hardware does with 8-bit products."""

from __future__ import annotations

from pathlib import Path

from infaas_variant_generator.facts import GraphFacts, HardwareFacts

INTEGER_OPERATORS = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "DynamicQuantizeLSTM",
        "QAttention",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
    }
)
"""Whatever else is in a graph, without one of these nothing heavy is computed with integers."""
UNDEFINED_WEIGHTS = "a weight of the graph is infinite or not a number; integers have no scale for it"
EXACT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimd"})
"""Instruction sets that add 8-bit products up in 32 bits."""


def needs_reduced_range(hardware: HardwareFacts) -> bool:
    """Whether weights must keep to 7 bits: x86 without VNNI adds two products of 8 bits up in 16, and clips them."""
    return not EXACT_PRODUCTS.intersection(hardware.features)


def is_convolutional(facts: GraphFacts) -> bool:
    """Whether at least half of what multiplies by constant weights is convolutions.

    Then int8 has to be static: a dynamic convolution looks for the range of each of its large inputs in every run,
    which takes longer than the integers save. Matrix products have small inputs and need no data that way.
    """
    counts = facts.constant_weight_operators
    convolutions = counts.get("Conv", 0)
    return 0 < convolutions >= sum(counts.values()) - convolutions


def most_frequent(facts: GraphFacts) -> str:
    """The graph's operators, for a reason."""
    most = sorted(facts.operators.items(), key=lambda item: -item[1])[:4]
    return ", ".join(name for name, _ in most) or "none"


def has_operator(path: Path, names: set[str] | frozenset[str]) -> bool:
    """Whether the graph holds one of them, outside of its subgraphs."""
    import onnx

    return any(node.op_type in names for node in onnx.load(path, load_external_data=False).graph.node)
