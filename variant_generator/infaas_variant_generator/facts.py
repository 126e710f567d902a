"""What planning knows about a model's graph and about the hardware that variants will run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infaas.domain.variant import Hardware


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """Read from the registered graph once, in a process of its own."""

    file_bytes: int
    opset: int
    """Of the default ONNX domain; 0 when the graph uses none of its operators."""
    operators: Mapping[str, int] = field(default_factory=dict)
    """How often each operator occurs, subgraphs included; `domain::Op` outside ONNX's default domain."""
    constant_weight_operators: Mapping[str, int] = field(default_factory=dict)
    """Of those, how many multiply by a weight that is constant: the ones that dynamic quantisation can touch."""
    weight_bytes: int = 0
    float_inputs: bool = True
    text_inputs: bool = False
    """Whether any input holds texts."""
    has_undefined_weights: bool = False
    """Whether a weight is infinite or not a number: no scale can be found for such."""


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    cores: int
    memory_bytes: int
    kind: Hardware = Hardware.CPU
    features: tuple[str, ...] = ()
    """Instruction set extensions, as the kernel calls them."""
