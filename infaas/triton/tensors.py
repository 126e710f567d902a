"""Rows of tensors as bytes: joining queries into a batch, cutting answers apart, casting where types differ. Pure.

The first dimension counts items and bytes are row-major, so joining is concatenation and cutting is slicing; only
BYTES elements, which differ in length, have to be walked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError, ModelError

_DTYPES: dict[Datatype, Any] = {
    Datatype.BOOL: np.bool_, Datatype.INT8: np.int8, Datatype.INT16: np.int16, Datatype.INT32: np.int32,
    Datatype.INT64: np.int64, Datatype.UINT8: np.uint8, Datatype.UINT16: np.uint16, Datatype.UINT32: np.uint32,
    Datatype.UINT64: np.uint64, Datatype.FP16: np.float16, Datatype.FP32: np.float32, Datatype.FP64: np.float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor's shape and bytes; its datatype is known from where it goes."""

    shape: tuple[int, ...]
    data: bytes | memoryview


def check(name: str, datatype: Datatype, raw: Raw) -> None:
    """Raises InvalidError when the bytes do not fill the shape."""
    count = math.prod(raw.shape)
    if datatype is Datatype.BYTES:
        _walk(f"input {name!r}", raw.data, count, InvalidError)
    elif len(raw.data) != (want := count * datatype.itemsize):
        raise InvalidError(
            f"input {name!r}: {datatype.value} of shape {list(raw.shape)} takes {want} bytes, got {len(raw.data)}"
        )


def join(name: str, parts: Sequence[Raw]) -> Raw:
    """One tensor of all rows. Raises InvalidError when the rows differ in shape."""
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise InvalidError(f"input {name!r}: shapes {shapes} do not go into one batch")
    return Raw((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), b"".join(part.data for part in parts))


def cut(name: str, datatype: Datatype, raw: Raw, counts: Sequence[int]) -> list[Raw]:
    """`counts` rows each, as views. Raises ModelError when the bytes do not fill the shape."""
    view = memoryview(raw.data)
    rows = raw.shape[0]
    elements = math.prod(raw.shape[1:])
    if datatype is Datatype.BYTES:
        bounds = _walk(f"output {name!r}", view, rows * elements, ModelError)
    else:
        size = datatype.itemsize
        if len(view) != rows * elements * size:
            raise ModelError(f"output {name!r} of shape {list(raw.shape)} came with {len(view)} bytes")
        bounds = None
    parts = []
    at = 0
    for count in counts:
        first, last = at * elements, (at + count) * elements
        begin, end = (bounds[first], bounds[last]) if bounds else (first * size, last * size)
        parts.append(Raw((count, *raw.shape[1:]), view[begin:end]))
        at += count
    return parts


def cast(raw: Raw, source: Datatype, target: Datatype, *, is_argmax: bool = False) -> Raw:
    """The same values in another datatype, or the index of the greatest in each row."""
    if source is target and not is_argmax:
        return raw
    array = np.frombuffer(raw.data, _DTYPES[source]).reshape(raw.shape)
    made = array.argmax(axis=-1) if is_argmax else array
    made = np.ascontiguousarray(made.astype(_DTYPES[target]))
    return Raw(made.shape, made.reshape(-1).view(np.uint8).data if made.size else b"")


def _walk(what: str, data: bytes | memoryview, count: int, error: type[InvalidError] | type[ModelError]) -> list[int]:
    """Where each of `count` BYTES elements begins, and where the last one ends."""
    bounds = [0]
    at = 0
    for index in range(count):
        if at + 4 > len(data):
            raise error(f"{what}: {count} BYTES elements expected, the data ends after {index}")
        (length,) = struct.unpack_from("<I", data, at)
        if at + 4 + length > len(data):
            raise error(f"{what}: BYTES element {index} claims {length} bytes, only {len(data) - at - 4} follow")
        at += 4 + length
        bounds.append(at)
    if at != len(data):
        raise error(f"{what}: {len(data) - at} bytes follow the last of {count} BYTES elements")
    return bounds
