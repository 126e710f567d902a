"""gRPC's form of a request and an answer: typed contents or raw contents in, raw contents out (as Triton answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
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


def parse_message(data: bytes) -> Any:
    """A `ModelInferRequest`. Raises InvalidError for bytes that are none."""
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise InvalidError(f"the message is not a ModelInferRequest: {error}") from None


def decode_request(message: Any) -> InferRequest:
    """Of a `ModelInferRequest`. Raises InvalidError for what does not fit, UnsupportedError for shared memory."""
    for kind in ("inputs", "outputs", "parameters"):
        check_count(kind, len(getattr(message, kind)))
    distinct("input", (one.name for one in message.inputs))
    distinct("output", (one.name for one in message.outputs))
    raw = message.raw_input_contents
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


def write_parameters(target: Any, parameters: Mapping[str, Scalar]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def encode_answer(
    tensors: Sequence[Tensor],
    *,
    model_name: str,
    model_version: str,
    id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
) -> Any:
    """A `ModelInferResponse`."""
    answer = pb.ModelInferResponse(model_name=model_name, model_version=model_version, id=id)
    write_parameters(answer.parameters, parameters or {})
    for tensor in tensors:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
        answer.raw_output_contents.append(bytes(tensor.data))
    return answer


def _input(one: Any, raw: bytes | None) -> Tensor:
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
