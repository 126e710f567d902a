"""Batches as frames of the worker protocol: one message for all queries, their tensors beside it as they came.

A message is written in two halves, which protobuf merges where it is read. What every batch of queries of one signature
says (names, datatypes, shapes) is written once and kept. The other half is numbers in columns, so that one query more
costs little more than handing over its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from infaas.domain.tensor import Datatype, Signature, Tensor
from infaas.rpc.hop.frames import Buffer, flat
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.queues import Ticket

FORMS_KEPT = 512
Outgoing = tuple[bytes, list[Buffer]]
"""A message and its tensors' bytes, in the order in which it names them."""


class _Form(NamedTuple):
    """What batches of queries with one signature and the same requested outputs have in common."""

    names: list[str]
    """Of the inputs, in the order in which they travel."""
    bytes_at: list[int]
    """The places of those that are BYTES."""
    half: bytes


def encode_batch(number: int, instance: str, tickets: Sequence[Ticket], now: float) -> Outgoing:
    """A `ControllerMessage` with a `Batch`. All queries share a signature and requested outputs, and each input's first
    dimension is the query's items; `now` is on the clock of their deadlines."""
    first = tickets[0].query
    form = _form(first.signature, first.outputs)
    message = pb.ControllerMessage()
    batch = message.batch
    batch.id = number
    batch.instance = instance
    batch.queries.extend([ticket.number for ticket in tickets])
    batch.items.extend([ticket.items for ticket in tickets])
    batch.remaining_us.extend([_micros(ticket.deadline - now) for ticket in tickets])
    if len(tickets) == 1 and (tickets[0].deaths or tickets[0].raised):
        batch.alone = True
    segments = _segments(tickets, form.names)
    for place in form.bytes_at:
        begin = place * len(tickets)
        batch.sizes.extend([len(segment) for segment in segments[begin : begin + len(tickets)]])
    for place, ticket in enumerate(tickets):
        if (trace := ticket.query.trace) is not None:
            batch.traces.add(place=place, traceparent=trace.traceparent, tracestate=trace.tracestate)
    return form.half + message.SerializeToString(), segments


@lru_cache(maxsize=FORMS_KEPT)
def _form(signature: Signature, outputs: tuple[str, ...]) -> _Form:
    """Larger elements go first, so that every column begins where its elements may be read in place."""
    inputs = sorted(signature, key=lambda column: -column[1].itemsize)
    columns = [pb.Column(name=name, datatype=datatype.value, tail=tail) for name, datatype, tail in inputs]
    half = pb.ControllerMessage(batch=pb.Batch(inputs=columns, outputs=outputs))
    bytes_at = [place for place, (_, datatype, _) in enumerate(inputs) if datatype is Datatype.BYTES]
    return _Form([name for name, _, _ in inputs], bytes_at, half.SerializeToString())


def _segments(tickets: Sequence[Ticket], names: list[str]) -> list[Buffer]:
    """Column by column, query by query."""
    if len(names) == 1:
        return [flat(ticket.query.inputs[0].data) for ticket in tickets]
    queries = [_in_order(ticket.query.inputs, names) for ticket in tickets]
    return [flat(inputs[place].data) for place in range(len(names)) for inputs in queries]


def _in_order(inputs: Sequence[Tensor], names: list[str]) -> Sequence[Tensor]:
    if [tensor.name for tensor in inputs] == names:
        return inputs
    by_name = {tensor.name: tensor for tensor in inputs}
    return [by_name[name] for name in names]


def _micros(seconds: float) -> int:
    """At least 1: 0 says that there is no deadline."""
    return max(1, int(seconds * 1e6))
