"""Batches as bytes of the worker protocol, written by hand so that tensors are copied once, into the message itself.

Protocol buffers' own encoder copies every tensor twice (into the message object, then into its bytes) and wants `bytes`
where we hold a memoryview of the request's body. Everything else on the stream is small and uses the generated classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.query import Query
from infaas.rpc.v1 import worker_pb2 as pb

# Field numbers of proto/infaas/rpc/v1/worker.proto. Wire type 2 (length-delimited) unless said otherwise.
_MESSAGE_BATCH = 2
_BATCH_ID, _BATCH_INSTANCE, _BATCH_NAMES, _BATCH_DATATYPES, _BATCH_OUTPUTS, _BATCH_QUERIES = 1, 2, 3, 4, 5, 6
_BATCH_REMAINING_US = 7
_QUERY_ID, _QUERY_ITEMS, _QUERY_INPUTS, _QUERY_REMAINING_US = 1, 2, 3, 4
_QUERY_TRACEPARENT, _QUERY_TRACESTATE = 5, 6
_TENSOR_SHAPE, _TENSOR_DATA = 1, 2

Buffer = bytes | memoryview
WireQuery = tuple[int, Query, float]
"""Number, query, and the seconds that are left to it."""


def encode_batch(number: int, instance: str, queries: Sequence[WireQuery]) -> bytes:
    """A `ControllerMessage` with a `Batch`. All queries share a signature and requested outputs; tensors are put in the
    order of the first query's, by name."""
    first = queries[0][1]
    names = [tensor.name for tensor in first.inputs]
    parts: list[Buffer] = [
        _number(_BATCH_ID, number),
        _bytes(_BATCH_INSTANCE, instance.encode()),
        *(_bytes(_BATCH_NAMES, name.encode()) for name in names),
        *(_bytes(_BATCH_DATATYPES, tensor.datatype.value.encode()) for tensor in first.inputs),
        *(_bytes(_BATCH_OUTPUTS, name.encode()) for name in first.outputs),
    ]
    for wire in queries:
        chunks = _query_chunks(wire, names)
        parts.append(_head(_BATCH_QUERIES, sum(map(len, chunks))))
        parts += chunks
    parts.append(_number(_BATCH_REMAINING_US, _micros(min(left for _, _, left in queries))))
    return b"".join([_head(_MESSAGE_BATCH, sum(map(len, parts))), *parts])


def encode(message: pb.ControllerMessage | bytes) -> bytes:
    """Serializer of the stream: what is bytes already goes as it is."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _query_chunks(wire: WireQuery, names: list[str]) -> list[Buffer]:
    number, query, left_s = wire
    chunks: list[Buffer] = [_number(_QUERY_ID, number), _number(_QUERY_ITEMS, query.items)]
    inputs = query.inputs
    if [tensor.name for tensor in inputs] != names:
        by_name = {tensor.name: tensor for tensor in inputs}
        inputs = tuple(by_name[name] for name in names)
    for tensor in inputs:
        data = tensor.data
        if isinstance(data, memoryview):
            data = data.cast("B") if data.format != "B" or data.ndim != 1 else data
        shape = _bytes(_TENSOR_SHAPE, b"".join(map(_varint, tensor.shape)))
        head = _head(_TENSOR_DATA, len(data))
        chunks += (_head(_QUERY_INPUTS, len(shape) + len(head) + len(data)), shape, head, data)
    chunks.append(_number(_QUERY_REMAINING_US, _micros(left_s)))
    if query.trace is not None:
        chunks.append(_bytes(_QUERY_TRACEPARENT, query.trace.traceparent.encode()))
        if query.trace.tracestate:
            chunks.append(_bytes(_QUERY_TRACESTATE, query.trace.tracestate.encode()))
    return chunks


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


def _head(field: int, length: int) -> bytes:
    return bytes((field << 3 | 2,)) + _varint(length)


def _bytes(field: int, data: bytes) -> bytes:
    return _head(field, len(data)) + data
