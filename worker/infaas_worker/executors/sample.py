"""A made-up batch for warming up and probing: zeros in the variant's own shapes.

Dimensions that the variant leaves open are guessed, smallest first; whoever runs the batch finds out which guess the
graph takes.
"""

from __future__ import annotations

import math

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Variant
from infaas_worker.executors.base import BatchIn, QueryIn, Value

OPEN_SIZES = (1, 8, 32, 64, 224)


def open_sizes(variant: Variant) -> tuple[int, ...]:
    """Sizes to try for open dimensions; one (meaningless) size when there are none."""
    is_open = any(dimension == -1 for spec in variant.inputs for dimension in spec.shape[1:])
    return OPEN_SIZES if is_open else OPEN_SIZES[:1]


def sample(variant: Variant, items: int, open_size: int) -> BatchIn:
    """One query of `items` items."""
    return BatchIn(
        input_names=tuple(spec.name for spec in variant.inputs),
        datatypes=tuple(spec.datatype for spec in variant.inputs),
        queries=(QueryIn(items, tuple(_zeros(spec, items, open_size) for spec in variant.inputs)),),
    )


def warm_up_sizes(variant: Variant) -> tuple[int, ...]:
    """Batch 1 and the largest one, or the only one that the graph takes."""
    if variant.fixed_batch is not None:
        return (variant.fixed_batch,)
    return (1,) if variant.max_batch_size <= 1 else (1, variant.max_batch_size)


def _zeros(spec: TensorSpec, items: int, open_size: int) -> Value:
    shape = (items, *(open_size if dimension == -1 else dimension for dimension in spec.shape[1:]))
    size = spec.datatype.itemsize
    # An element of a string tensor is one character, so that a graph that splits or hashes it has something to do.
    element = b"\x01\x00\x00\x000" if spec.datatype is Datatype.BYTES else bytes(size)
    return Value(shape, element * math.prod(shape))
