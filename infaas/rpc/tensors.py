"""What both wire formats share about tensors: their checks, the framing of BYTES, and the classification extension.

The formats themselves are in `tensors_json` (REST, with the binary tensor extension) and `tensors_grpc`. Tensor bytes
that arrive in binary are handed on as views over the request's body; nothing here copies them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.errors import InvalidError, UnsupportedError
from infaas.rpc.requirements import Scalar

MAX_RANK = 16
MAX_DIM = 2**31 - 1
MAX_BYTES_ELEMENTS = 2**20
"""Of one BYTES tensor: each is walked here, and an object of its own at its runtime."""
MAX_NAMES = 2_048
"""Inputs, outputs or parameters of one request."""

NUMPY: Mapping[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype("?"), Datatype.INT8: np.dtype("i1"), Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"), Datatype.INT64: np.dtype("<i8"), Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"), Datatype.UINT32: np.dtype("<u4"), Datatype.UINT64: np.dtype("<u8"),
    Datatype.FP16: np.dtype("<f2"), Datatype.FP32: np.dtype("<f4"), Datatype.FP64: np.dtype("<f8"),
}  # fmt: skip

FLOATS = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})
_DATATYPES = {datatype.value: datatype for datatype in Datatype}
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a caller asked for. `binary` None: as the whole request says; `classes` 0: the values."""

    name: str
    binary: bool | None = None
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as it came over the wire, before anything registered is looked at."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    binary_output: bool = False
    """What outputs that do not say are sent as (REST)."""


def datatype_of(name: str, text: str) -> Datatype:
    found = _DATATYPES.get(text)
    if found is None:
        raise InvalidError(f"input {name!r} has datatype {text!r}; it must be one of {', '.join(_DATATYPES)}")
    return found


def checked_shape(name: str, dims: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(dims)
    if len(shape) > MAX_RANK:
        raise InvalidError(f"input {name!r} has {len(shape)} dimensions; at most {MAX_RANK} are taken")
    for dim in shape:
        if not 0 <= dim <= MAX_DIM:
            raise InvalidError(f"input {name!r} has shape {list(shape)}; every dimension must be from 0 to {MAX_DIM}")
    return shape


def element_count(shape: Sequence[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def raw_tensor(name: str, datatype: Datatype, shape: tuple[int, ...], data: bytes | memoryview) -> Tensor:
    """A tensor over bytes as they came. Raises InvalidError when their number or framing does not fit the shape."""
    count = element_count(shape)
    if datatype is Datatype.BYTES:
        check_framing(name, count, data)
    elif len(data) != count * datatype.itemsize:
        raise InvalidError(
            f"input {name!r} has {len(data)} bytes of data; shape {list(shape)} of {datatype.value} "
            f"takes {count * datatype.itemsize}"
        )
    elif datatype is Datatype.BOOL and count and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidError(f"input {name!r} is BOOL; every byte must be 0 or 1")
    return Tensor(name, datatype, shape, data)


def check_framing(name: str, count: int, data: bytes | memoryview) -> None:
    """Every BYTES element is a little-endian uint32 length and that many bytes; there must be exactly `count`."""
    end = len(data)
    check_bytes_count(name, count)
    if count * _LENGTH.size > end:
        raise InvalidError(
            f"input {name!r} has {end} bytes for {count} BYTES elements; each takes a 4-byte length and its bytes"
        )
    offset = 0
    for index in range(count):
        if offset + _LENGTH.size > end:
            raise InvalidError(f"input {name!r} ends after {index} of {count} BYTES elements")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size + length
        if offset > end:
            raise InvalidError(f"input {name!r}: BYTES element {index} says {length} bytes, past the end of the data")
    if offset != end:
        raise InvalidError(f"input {name!r} has {end - offset} bytes after its {count} BYTES elements")


def check_bytes_count(name: str, count: int) -> None:
    """Before anything is made of them."""
    if count > MAX_BYTES_ELEMENTS:
        raise InvalidError(f"input {name!r} has {count} BYTES elements; at most {MAX_BYTES_ELEMENTS} are taken")


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def unpack_bytes(data: bytes | memoryview) -> list[bytes]:
    """The elements of checked BYTES data."""
    found: list[bytes] = []
    offset = 0
    while offset < len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        found.append(bytes(data[offset : offset + length]))
        offset += length
    return found


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A view over a numeric tensor's bytes; BYTES become an array of `bytes` objects."""
    if tensor.datatype is Datatype.BYTES:
        array = np.empty(element_count(tensor.shape), dtype=object)
        array[:] = unpack_bytes(tensor.data)
        return array.reshape(tensor.shape)
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)


def distinct(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidError(f"{kind} {name!r} is there twice")
        seen.add(name)


def check_count(kind: str, count: int) -> None:
    """An absurd number of anything is refused before any of them is looked at."""
    if count > MAX_NAMES:
        raise InvalidError(f"the request has {count} {kind}; at most {MAX_NAMES} are taken")


def refuse_shared_memory(kind: str, name: str, parameters: Mapping[str, Scalar]) -> None:
    for key in _SHARED_MEMORY:
        if key in parameters:
            raise UnsupportedError(f"{kind} {name!r} asks for {key!r}; shared memory is not served, send the bytes")


def requested_output(name: str, parameters: Mapping[str, Scalar]) -> RequestedOutput:
    refuse_shared_memory("output", name, parameters)
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise InvalidError(f"output {name!r}: parameter 'binary_data' must be true or false, not {binary!r}")
    classes = parameters.get("classification", 0)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise InvalidError(f"output {name!r}: parameter 'classification' must be a whole number of classes")
    return RequestedOutput(name, binary, min(classes, MAX_DIM))  # no output has more


def check_inputs(inputs: Sequence[Tensor], specs: Sequence[TensorSpec]) -> int:
    """Hold a query's tensors against what its task takes; returns how many items it has.

    Raises InvalidError that lists every missing, unknown or ill-fitting input.
    """
    problems: list[str] = []
    wanted = {spec.name: spec for spec in specs}
    for tensor in inputs:
        spec = wanted.pop(tensor.name, None)
        if spec is None:
            known = ", ".join(repr(s.name) for s in specs)
            problems.append(f"unknown input {tensor.name!r}; the inputs are {known}")
            continue
        if tensor.datatype is not spec.datatype:
            problems.append(f"input {tensor.name!r} is {tensor.datatype.value}; it must be {spec.datatype.value}")
        # How many items fit is the variant's business, so the first dimension is free here.
        if not tensor.shape or not spec.admits((spec.shape[0], *tensor.shape[1:])):
            problems.append(f"input {tensor.name!r} has shape {list(tensor.shape)}; it must be {[-1, *spec.shape[1:]]}")
    problems += [f"input {name!r} is missing" for name in wanted]
    if not problems:
        problems = _item_problems(inputs)
    if problems:
        raise InvalidError("; ".join(problems), problems=problems)
    return inputs[0].items


def _item_problems(inputs: Sequence[Tensor]) -> list[str]:
    counts = {tensor.name: tensor.items for tensor in inputs}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        return [f"all inputs must hold the same number of items (their first dimension); {said}"]
    if not inputs or inputs[0].items < 1:
        return ["a query must hold at least one item; the first dimension counts them"]
    return []


def classify(tensor: Tensor, top: int, labels: Sequence[str]) -> Tensor:
    """Triton's classification extension: the `top` highest of each item as `value:index` or `value:index:label`."""
    if tensor.datatype is Datatype.BYTES or tensor.datatype is Datatype.BOOL:
        raise InvalidError(
            f"output {tensor.name!r} is {tensor.datatype.value}; only numbers can be asked for as classification"
        )
    rows = as_array(tensor).reshape(tensor.items, -1)
    top = min(top, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :top]
    elements = [
        _class_text(row[index], int(index), labels) for row, best in zip(rows, order, strict=True) for index in best
    ]
    return Tensor(tensor.name, Datatype.BYTES, (tensor.items, top), pack_bytes(elements))


def _class_text(value: Any, index: int, labels: Sequence[str]) -> bytes:
    shown = f"{value:f}" if isinstance(value, np.floating) else str(value)
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{shown}:{index}{label}".encode()
