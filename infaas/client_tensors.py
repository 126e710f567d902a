"""numpy arrays as Open Inference Protocol tensors and back, for clients: JSON values and raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError

Array = npt.NDArray[Any]

_DTYPES: dict[Datatype, npt.DTypeLike] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.INT8: np.dtype("<i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.UINT8: np.dtype("<u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
}
_DATATYPES = {np.dtype(dtype).newbyteorder("<"): datatype for datatype, dtype in _DTYPES.items()}


def datatype_of(array: Array) -> Datatype:
    """Raises InvalidError for what the protocol cannot carry (complex numbers, dates)."""
    if array.dtype.kind in "OSU":
        return Datatype.BYTES
    found = _DATATYPES.get(array.dtype.newbyteorder("<"))
    if found is None:
        known = ", ".join(str(np.dtype(dtype)) for dtype in _DTYPES.values())
        raise InvalidError(f"an array of {array.dtype} has no datatype in the protocol; use {known} or strings")
    return found


def to_dtype(array: Array, datatype: Datatype) -> Array:
    """The array in a tensor's datatype. Raises InvalidError when values would change."""
    if datatype is Datatype.BYTES:
        return array.astype(object)
    want = np.dtype(_DTYPES[datatype])
    if array.dtype == want:
        return array
    try:
        converted = array.astype(want)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"values of {array.dtype} do not fit {datatype.value}: {error}") from error
    is_whole = want.kind in "iub"
    if is_whole and not np.array_equal(converted, array):
        raise InvalidError(f"values of {array.dtype} do not fit {datatype.value} without change")
    return converted


def to_bytes(array: Array) -> bytes:
    """Row-major little-endian; strings each with their length before them."""
    if datatype_of(array) is not Datatype.BYTES:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(text)) + text for text in map(_as_bytes, array.ravel()))


def from_bytes(data: bytes, datatype: Datatype, shape: Sequence[int]) -> Array:
    """Raises InvalidError when the bytes are not exactly the tensor's."""
    try:
        if datatype is not Datatype.BYTES:
            return np.frombuffer(data, dtype=_DTYPES[datatype]).reshape(shape)
        elements, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            elements.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        return np.array(elements, dtype=object).reshape(shape)
    except (ValueError, struct.error) as error:
        raise InvalidError(f"{len(data)} bytes are not a {datatype.value} tensor of shape {list(shape)}") from error


def to_json(array: Array) -> list[Any]:
    if datatype_of(array) is Datatype.BYTES:
        return [_as_bytes(text).decode() for text in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values


def from_json(data: Sequence[Any], datatype: Datatype, shape: Sequence[int]) -> Array:
    try:
        if datatype is Datatype.BYTES:
            return np.array([_as_bytes(text) for text in data], dtype=object).reshape(shape)
        return np.array(data, dtype=_DTYPES[datatype]).reshape(shape)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"{len(data)} values are not a {datatype.value} tensor of shape {list(shape)}") from error


def request_parts(
    inputs: Mapping[str, Array], outputs: Sequence[str], *, is_binary: bool
) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON part of an OIP request, and the raw tensors that follow it when it is binary."""
    raw: list[bytes] = []
    tensors = []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array).value}
        if is_binary:
            data = to_bytes(array)
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            tensor["data"] = to_json(array)
        tensors.append(tensor)
    body: dict[str, Any] = {"inputs": tensors}
    if outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": is_binary}} for name in outputs]
    elif is_binary:
        body["parameters"] = {"binary_data_output": True}
    return body, raw


def response_arrays(outputs: Sequence[Mapping[str, Any]], raw: bytes) -> dict[str, Array]:
    """The arrays of an OIP response; `raw` is what follows its JSON part."""
    arrays, at = {}, 0
    for output in outputs:
        datatype, shape = Datatype(output["datatype"]), output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[output["name"]] = from_json(output["data"], datatype, shape)
        else:
            arrays[output["name"]] = from_bytes(raw[at : at + size], datatype, shape)
            at += size
    return arrays


def _as_bytes(text: object) -> bytes:
    if isinstance(text, bytes):
        return text
    return str(text).encode()
