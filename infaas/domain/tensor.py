"""Tensors as the Open Inference Protocol speaks of them: datatypes, specifications, and bytes that are never parsed.

The first dimension of every tensor of a task counts *items* (the batch), so shapes in a specification start with -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Datatype(StrEnum):
    """OIP's names. BYTES elements travel as a little-endian uint32 length and the bytes."""

    BOOL = "BOOL"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for BYTES, whose elements differ in length."""
        return _ITEMSIZE[self]


_ITEMSIZE = {
    Datatype.BOOL: 1, Datatype.INT8: 1, Datatype.UINT8: 1, Datatype.INT16: 2, Datatype.UINT16: 2, Datatype.FP16: 2,
    Datatype.INT32: 4, Datatype.UINT32: 4, Datatype.FP32: 4, Datatype.INT64: 8, Datatype.UINT64: 8, Datatype.FP64: 8,
    Datatype.BYTES: 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output. `shape` starts with the batch dimension; -1 is any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a concrete shape fits, batch dimension included."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )


class Tensor(NamedTuple):
    """A tensor's value: `data` is its row-major little-endian bytes, handed on as it came."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def items(self) -> int:
        return self.shape[0] if self.shape else 1


Signature = tuple[tuple[str, Datatype, tuple[int, ...]], ...]
"""What two queries must share to run in one batch: input names, datatypes, and shapes without the batch dimension."""


def signature(tensors: tuple[Tensor, ...]) -> Signature:
    return tuple(sorted((t.name, t.datatype, t.shape[1:]) for t in tensors))
