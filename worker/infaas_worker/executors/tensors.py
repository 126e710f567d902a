"""Between OIP's bytes and numpy arrays, without copying where the layout allows it."""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError, UnsupportedError
from infaas_worker.executors.base import Value

Array = NDArray[Any]

if sys.byteorder != "little":
    raise UnsupportedError("tensors travel little-endian; this machine is big-endian")

_DTYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype(np.int16),
    Datatype.INT32: np.dtype(np.int32),
    Datatype.INT64: np.dtype(np.int64),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype(np.uint16),
    Datatype.UINT32: np.dtype(np.uint32),
    Datatype.UINT64: np.dtype(np.uint64),
    Datatype.FP16: np.dtype(np.float16),
    Datatype.FP32: np.dtype(np.float32),
    Datatype.FP64: np.dtype(np.float64),
    Datatype.BYTES: np.dtype(np.object_),
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}


def dtype_of(datatype: Datatype) -> np.dtype[Any]:
    return _DTYPES[datatype]


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """Raises UnsupportedError for a type that the protocol has no word for."""
    if dtype.kind in "US":
        return Datatype.BYTES
    found = _DATATYPES.get(dtype)
    if found is None:
        raise UnsupportedError(f"the protocol has no datatype for numpy's {dtype}")
    return found


def to_array(name: str, datatype: Datatype, value: Value) -> Array:
    """A read-only view of the value's bytes (strings are decoded).

    Raises InvalidError when they do not fill the shape.
    """
    count = math.prod(value.shape)
    if datatype is Datatype.BYTES:
        return _strings(name, value, count)
    want = count * datatype.itemsize
    if len(value.data) != want:
        raise InvalidError(
            f"input {name!r}: {datatype.value} of shape {list(value.shape)} takes {want} bytes, got {len(value.data)}"
        )
    dtype = _DTYPES[datatype]
    if count == 0:
        return np.empty(value.shape, dtype)
    array = np.frombuffer(value.data, dtype).reshape(value.shape)
    return array if array.flags.aligned else array.copy()


def to_value(array: Array) -> Value:
    """The array's bytes as a view; strings are encoded. The view keeps the array alive."""
    if array.dtype.kind in "OUS":
        return Value(array.shape, _encode(array))
    whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if whole.size == 0:
        return Value(whole.shape, b"")
    return Value(whole.shape, whole.reshape(-1).view(np.uint8).data)


def _strings(name: str, value: Value, count: int) -> Array:
    data = memoryview(value.data)
    out = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        if at + 4 > len(data):
            raise InvalidError(f"input {name!r}: {count} BYTES elements expected, the data ends after {index}")
        (length,) = struct.unpack_from("<I", data, at)
        end = at + 4 + length
        if end > len(data):
            raise InvalidError(
                f"input {name!r}: BYTES element {index} claims {length} bytes, only {len(data) - at - 4} follow"
            )
        try:
            out[index] = str(data[at + 4 : end], "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidError(f"input {name!r}: BYTES element {index} is not UTF-8 ({error.reason})") from error
        at = end
    if at != len(data):
        raise InvalidError(f"input {name!r}: {len(data) - at} bytes follow the last of {count} BYTES elements")
    return out.reshape(value.shape)


def _encode(array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.reshape(-1):
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(struct.pack("<I", len(raw)))
        parts.append(raw)
    return b"".join(parts)
