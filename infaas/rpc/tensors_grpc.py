"""gRPC's form of a request and an answer: typed contents or raw contents in, raw contents out (as Triton answers).

Requests are read by the generated classes, but for large raw contents, which stay where they came. Answers are written
here: the tensors' bytes are copied once, behind what is said of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.fields import delimited, outermost, tag_of, varint
from infaas.rpc.requirements import Scalar
from infaas.rpc.tensors import (
    NUMPY,
    InferRequest,
    check_bytes_count,
    check_count,
    checked_shape,
    datatype_of,
    distinct,
    element_count,
    pack_bytes,
    raw_tensor,
    refuse_shared_memory,
    requested_output,
)

CONTENTS: Mapping[Datatype, str | None] = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP16: None,
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}
"""Which field of the typed contents holds a datatype; FP16 has none and must be raw."""


INPUTS, RAW = 5, 7
"""Numbers of fields of a `ModelInferRequest`."""
VIEW_BYTES = 16 * 1024
"""In smaller messages the generated classes copy raw contents, which takes less time than to go around them."""
_RAW_TAG = tag_of(RAW)


class Message(NamedTuple):
    """A `ModelInferRequest`. `raw` are its raw contents, as views of what came; None: they are in the message."""

    head: Any
    raw: tuple[memoryview, ...] | None = None


def parse_message(data: bytes) -> Message:
    """Raises DecodeError for bytes that are no `ModelInferRequest`."""
    if len(data) <= VIEW_BYTES:
        return Message(pb.ModelInferRequest.FromString(data))
    try:
        return cut_message(data)
    except DecodeError:  # a form that only the generated class knows, or none
        return Message(pb.ModelInferRequest.FromString(data))


def cut_message(data: bytes) -> Message:
    """With its raw contents apart, whatever its size. Raises DecodeError also for forms that are not known here."""
    view = memoryview(data)
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    for field in outermost(data):
        if field.number != RAW:
            kept.append(view[field.begin : field.end])
        elif data[field.begin] == _RAW_TAG:
            raw.append(view[field.value : field.end])
        else:
            raise DecodeError("raw contents have an unusual tag")
    return Message(pb.ModelInferRequest.FromString(b"".join(kept)), tuple(raw))


def decode_message(data: bytes) -> InferRequest:
    """Raises InvalidError for bytes that are no `ModelInferRequest`, and as `decode_request`."""
    try:
        message = parse_message(data)
    except DecodeError as error:
        raise InvalidError(f"the message is not a ModelInferRequest: {error}") from None
    return decode_request(message.head, message.raw)


def decode_request(message: Any, raw: Sequence[bytes | memoryview] | None = None) -> InferRequest:
    """Of a `ModelInferRequest`, whose raw contents are given where they are not in it. Raises InvalidError for what
    does not fit, UnsupportedError for shared memory."""
    for kind in ("inputs", "outputs", "parameters"):
        check_count(kind, len(getattr(message, kind)))
    distinct("input", (one.name for one in message.inputs))
    distinct("output", (one.name for one in message.outputs))
    raw = message.raw_input_contents if raw is None else raw
    if raw and len(raw) != len(message.inputs):
        raise InvalidError(
            f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs; "
            "either every input is raw, in the same order, or none is"
        )
    return InferRequest(
        inputs=tuple(_input(one, raw[index] if raw else None) for index, one in enumerate(message.inputs)),
        outputs=tuple(requested_output(one.name, read_parameters(one.parameters)) for one in message.outputs),
        id=message.id,
        parameters=read_parameters(message.parameters),
        binary_output=True,
    )


def read_parameters(parameters: Any) -> dict[str, Scalar]:
    if not parameters:
        return {}
    found: dict[str, Scalar] = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidError(f"parameter {name!r} has no value")
        found[name] = getattr(value, choice)
    return found


def encode_answer(
    tensors: Sequence[Tensor],
    *,
    model_name: str,
    model_version: str,
    id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
) -> bytes:
    """A `ModelInferResponse`, as it is sent."""
    return b"".join(_answer_parts(tensors, model_name, model_version, id, parameters or {}))


def encode_stream_answer(
    tensors: Sequence[Tensor],
    *,
    model_name: str,
    model_version: str,
    id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
) -> bytes:
    """The same inside a `ModelStreamInferResponse`."""
    parts = _answer_parts(tensors, model_name, model_version, id, parameters or {})
    return b"".join((delimited(_INFER_RESPONSE, sum(map(len, parts))), *parts))


_INFER_RESPONSE = 2
_NAME, _VERSION, _ID, _PARAMETERS, _OUTPUTS, _RAW_OUTPUTS = range(1, 7)
_KEY, _VALUE = 1, 2
_STRING_PARAM = 3
_Said = tuple[str, Datatype, tuple[int, ...]]
"""A tensor but for its data."""


def _answer_parts(
    tensors: Sequence[Tensor], model_name: str, model_version: str, id: str, parameters: Mapping[str, Scalar]
) -> list[bytes | memoryview]:
    """What is said again and again is kept as it is written."""
    parts: list[bytes | memoryview] = [_served_by(model_name, model_version), _text(_ID, id)]
    for name, value in parameters.items():
        if isinstance(value, str):
            text = value.encode()
            parts += (_before_text(name, len(text)), text)
        elif isinstance(value, bool):
            parts.append(_flag(name, value))
        else:
            parts.append(_number(name, value))
    parts.append(_outputs(tuple([tensor[:3] for tensor in tensors])))
    for tensor in tensors:
        data = tensor.data
        parts += (delimited(_RAW_OUTPUTS, len(data)), data)
    return parts


@lru_cache(maxsize=1024)
def _served_by(model_name: str, model_version: str) -> bytes:
    return _text(_NAME, model_name) + _text(_VERSION, model_version)


def _text(number: int, text: str) -> bytes:
    """Protobuf leaves out what is empty."""
    if not text:
        return b""
    value = text.encode()
    return delimited(number, len(value)) + value


@lru_cache(maxsize=1024)
def _before_text(name: str, size: int) -> bytes:
    """A parameter whose value is a text of so many bytes, without it."""
    return _entry(name, delimited(_STRING_PARAM, size), size)


@lru_cache(maxsize=1024)
def _flag(name: str, value: bool) -> bytes:
    return _entry(name, bytes(pb.InferParameter(bool_param=value).SerializeToString()))


def _number(name: str, value: int | float) -> bytes:
    if isinstance(value, int):
        return _entry(name, bytes(pb.InferParameter(int64_param=value).SerializeToString()))
    return _entry(name, bytes(pb.InferParameter(double_param=value).SerializeToString()))


def _entry(name: str, chosen: bytes, more: int = 0) -> bytes:
    """A parameter; `more` bytes of its value are yet to follow."""
    entry = _text(_KEY, name) + delimited(_VALUE, len(chosen) + more) + chosen
    return delimited(_PARAMETERS, len(entry) + more) + entry


@lru_cache(maxsize=1024)
def _outputs(tensors: tuple[_Said, ...]) -> bytes:
    """Without their contents."""
    parts: list[bytes] = []
    for name, datatype, shape in tensors:
        dims = b"".join(map(varint, shape))
        said = _text(1, name) + _text(2, datatype.value) + (delimited(3, len(dims)) + dims if dims else b"")
        parts += (delimited(_OUTPUTS, len(said)), said)
    return b"".join(parts)


def _input(one: Any, raw: bytes | memoryview | None) -> Tensor:
    datatype = datatype_of(one.name, one.datatype)
    shape = checked_shape(one.name, one.shape)
    if one.parameters:
        refuse_shared_memory("input", one.name, read_parameters(one.parameters))
    if raw is None:
        return _typed(one, datatype, shape)
    if one.HasField("contents"):
        raise InvalidError(f"input {one.name!r} has both contents and raw_input_contents; one of them must go")
    return raw_tensor(one.name, datatype, shape, raw)


def _typed(one: Any, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
    right = CONTENTS[datatype]
    if right is None:
        raise InvalidError(f"input {one.name!r} is {datatype.value}, which has no typed contents; send it raw")
    wrong = [field.name for field, _ in one.contents.ListFields() if field.name != right]
    if wrong:
        raise InvalidError(f"input {one.name!r} is {datatype.value}; its contents go in {right}, not {wrong[0]}")
    values = getattr(one.contents, right)
    if len(values) != element_count(shape):
        raise InvalidError(
            f"input {one.name!r} has {len(values)} {right}; shape {list(shape)} takes {element_count(shape)}"
        )
    if datatype is Datatype.BYTES:
        check_bytes_count(one.name, len(values))
        return Tensor(one.name, datatype, shape, pack_bytes(values))
    try:
        return Tensor(one.name, datatype, shape, np.array(values, dtype=NUMPY[datatype]).tobytes())
    except OverflowError:
        raise InvalidError(f"input {one.name!r} has a value outside the range of {datatype.value}") from None
