"""Which requests and answers are too much for the loop: a few comparisons, before anything is parsed.

The bounds are in the units that time goes with (characters of JSON, elements of BYTES), so that what stays on the loop
holds it for about 10 ms at most, and an ordinary query pays two comparisons. Tensors in binary weigh nothing: they are
never parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.fields import outermost
from infaas.rpc.tensors import MAX_BYTES_ELEMENTS, MAX_RANK, InferRequest, element_count
from infaas.rpc.tensors_grpc import INPUTS, RAW, Message, parse_message
from infaas.rpc.tensors_json import framed_elements, is_binary

LOOP_BYTES = 128 * 1024
"""Of JSON or protobuf that is parsed on the loop."""
LOOP_ELEMENTS = 4_096
"""Of BYTES that are walked on the loop, and of numbers that are named as classes."""
LOOP_NUMBERS = 32 * 1024
"""Elements that are written as JSON on the loop."""


def json_bytes(body: memoryview, header_length: int | None) -> int:
    """How much of a REST query's body is JSON: what came, whatever it claims."""
    return len(body) if header_length is None else min(header_length, len(body))


def is_large_body(body: memoryview, header_length: int | None) -> bool:
    """Of a REST query. Never raises: what is wrong with it is said by its reader."""
    head = json_bytes(body, header_length)
    if head > LOOP_BYTES:
        return True
    if len(body) - head <= 4 * LOOP_ELEMENTS:  # an element takes 4 bytes at least
        return False
    return LOOP_ELEMENTS < framed_elements(body[:head]) <= MAX_BYTES_ELEMENTS  # more is refused at once


def is_large_json(tensor: Tensor) -> bool:
    """Whether writing it as JSON is."""
    return len(tensor.data) > LOOP_BYTES or element_count(tensor.shape) > LOOP_NUMBERS


def named_classes(tensor: Tensor, top: int) -> int:
    """How many of each item can be named when `top` are asked for: callers may ask for any number."""
    return min(top, element_count(tensor.shape) // max(1, tensor.items))


def is_large_classification(tensor: Tensor, top: int) -> bool:
    """Whether sorting the tensor and naming the first `top` of each item is."""
    count = element_count(tensor.shape)
    return count > LOOP_NUMBERS or tensor.items * named_classes(tensor, top) > LOOP_ELEMENTS


def may_be_large_answer(request: InferRequest, task: Task, items: int) -> bool:
    """Whether its answer, which nobody has seen yet, may have to be written or sorted elsewhere: by the task's shapes,
    and yes where these leave it open."""
    asked = {output.name: output for output in request.outputs}
    for spec in task.outputs:
        output = asked.get(spec.name)
        if output is None and asked:
            continue
        if output is not None and output.classes:
            numbers = LOOP_ELEMENTS  # each may be named, which takes more than writing it
        elif is_binary(output, request):
            continue
        else:
            numbers = LOOP_NUMBERS
        if _may_be_large(spec, items, numbers):
            return True
    return False


def _may_be_large(spec: TensorSpec, items: int, numbers: int) -> bool:
    each = spec.shape[1:]
    if spec.datatype is Datatype.BYTES or any(dim < 0 for dim in each):
        return True
    count = items * element_count(each)
    return count > numbers or count * spec.datatype.itemsize > LOOP_BYTES


@dataclass(frozen=True, slots=True)
class LargeMessage:
    """A `ModelInferRequest` whose inputs are yet to be read."""

    head: Any
    """The same message without them."""
    data: bytes


def read_infer(data: bytes) -> Message | LargeMessage:
    """A `ModelInferRequest`; runs on the loop. Raises DecodeError for bytes that are none."""
    return parse_message(data) if len(data) <= LOOP_BYTES else _read_large(data)


def _read_large(data: bytes) -> Message | LargeMessage:
    head, parsed_bytes = _without_inputs(data)
    if len(head) > LOOP_BYTES:
        raise DecodeError(f"what is beside its inputs takes more than {LOOP_BYTES} bytes")
    if parsed_bytes <= LOOP_BYTES:
        message = parse_message(data)
        if not LOOP_ELEMENTS < _framed_elements(message.head) <= MAX_BYTES_ELEMENTS:
            return message
    return LargeMessage(pb.ModelInferRequest.FromString(head), data)


def _framed_elements(message: Any) -> int:
    """The most elements that a BYTES input claims."""
    counts = (
        element_count(one.shape)
        for one in message.inputs
        if one.datatype == Datatype.BYTES.value and len(one.shape) <= MAX_RANK
    )
    return max(counts, default=0)


def _without_inputs(data: bytes) -> tuple[bytes, int]:
    """The message's other fields as they are, and how many bytes there are beside raw tensors.

    Raises DecodeError for what is no message. Only the outermost fields are walked, and a bounded number of them.
    """
    kept: list[bytes] = []
    parsed_bytes = 0
    for field in outermost(data):
        if field.number != RAW:
            parsed_bytes += field.end - field.begin
            if field.number != INPUTS:
                kept.append(data[field.begin : field.end])
    return b"".join(kept), parsed_bytes
