"""Batches as frames of the worker protocol: the message written by hand, the tensors beside it as they came.

Building the message with the generated classes costs several times as much, and it is paid for every query. Everything
else on the link is small and uses them.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.query import Query
from infaas.rpc.hop.frames import Buffer, flat

# Field numbers of proto/infaas/rpc/v1/worker.proto. Wire type 2 (length-delimited) unless said otherwise.
_MESSAGE_BATCH = 2
_BATCH_ID, _BATCH_INSTANCE, _BATCH_NAMES, _BATCH_DATATYPES, _BATCH_OUTPUTS, _BATCH_QUERIES = 1, 2, 3, 4, 5, 6
_BATCH_REMAINING_US = 7
_QUERY_ID, _QUERY_ITEMS, _QUERY_INPUTS, _QUERY_REMAINING_US = 1, 2, 3, 4
_QUERY_TRACEPARENT, _QUERY_TRACESTATE = 5, 6
_TENSOR_SHAPE, _TENSOR_SIZE = 1, 3

Outgoing = tuple[bytes, list[Buffer]]
"""A message and its tensors' bytes, in the order in which it names them."""
WireQuery = tuple[int, Query, float]
"""Number, query, and the seconds that are left to it."""


def encode_batch(number: int, instance: str, queries: Sequence[WireQuery]) -> Outgoing:
    """A `ControllerMessage` with a `Batch`. All queries share a signature and requested outputs; tensors are put in the
    order of the first query's, by name."""
    first = queries[0][1]
    names = [tensor.name for tensor in first.inputs]
    segments: list[Buffer] = []
    parts: list[bytes] = [
        _number(_BATCH_ID, number),
        _bytes(_BATCH_INSTANCE, instance.encode()),
        *(_bytes(_BATCH_NAMES, name.encode()) for name in names),
        *(_bytes(_BATCH_DATATYPES, tensor.datatype.value.encode()) for tensor in first.inputs),
        *(_bytes(_BATCH_OUTPUTS, name.encode()) for name in first.outputs),
    ]
    for wire in queries:
        parts.append(_bytes(_BATCH_QUERIES, _query(wire, names, segments)))
    parts.append(_number(_BATCH_REMAINING_US, _micros(min(left for _, _, left in queries))))
    return _bytes(_MESSAGE_BATCH, b"".join(parts)), segments


def _query(wire: WireQuery, names: list[str], segments: list[Buffer]) -> bytes:
    """The message; its tensors are added to the segments."""
    number, query, left_s = wire
    chunks: list[bytes] = [_number(_QUERY_ID, number), _number(_QUERY_ITEMS, query.items)]
    inputs = query.inputs
    if [tensor.name for tensor in inputs] != names:
        by_name = {tensor.name: tensor for tensor in inputs}
        inputs = tuple(by_name[name] for name in names)
    for tensor in inputs:
        data = flat(tensor.data)
        segments.append(data)
        value = _bytes(_TENSOR_SHAPE, b"".join(map(_varint, tensor.shape))) + _number(_TENSOR_SIZE, len(data))
        chunks.append(_bytes(_QUERY_INPUTS, value))
    chunks.append(_number(_QUERY_REMAINING_US, _micros(left_s)))
    if query.trace is not None:
        chunks.append(_bytes(_QUERY_TRACEPARENT, query.trace.traceparent.encode()))
        if query.trace.tracestate:
            chunks.append(_bytes(_QUERY_TRACESTATE, query.trace.tracestate.encode()))
    return b"".join(chunks)


def _micros(seconds: float) -> int:
    """At least 1: 0 says that there is no deadline."""
    return max(1, int(seconds * 1e6))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return bytes((field << 3,)) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return bytes((field << 3 | 2,)) + _varint(len(data)) + data
