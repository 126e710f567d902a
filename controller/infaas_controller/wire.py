"""Batches as frames of the worker protocol: one message for all queries, their tensors beside it as they came. To a
worker of this process plain ones are given instead.

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
from infaas.rpc.hop.given import GivenBatch, Inputs
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.queues import Ticket

FORMS_KEPT = 512
Written = tuple[bytes, list[Buffer]]
"""A message and its tensors' bytes, in the order in which it names them."""


class Outgoing(NamedTuple):
    """A batch on its way, in whichever form its worker takes. All queries share a signature and requested outputs, and
    each input's first dimension is the query's items; `now` is on the clock of their deadlines."""

    number: int
    instance: str
    tickets: Sequence[Ticket]
    now: float

    def written(self) -> Written:
        return encode_batch(self.number, self.instance, self.tickets, self.now)

    def given(self) -> GivenBatch | None:
        """For a worker of this process; None: it must be written."""
        return given_batch(self.number, self.instance, self.tickets)


class _Form(NamedTuple):
    """What batches of queries with one signature and the same requested outputs have in common."""

    names: list[str]
    """Of the inputs, in the order in which they travel."""
    bytes_at: list[int]
    """The places of those that are BYTES."""
    half: bytes


def encode_batch(number: int, instance: str, tickets: Sequence[Ticket], now: float) -> Written:
    """A `ControllerMessage` with a `Batch`."""
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


def given_batch(number: int, instance: str, tickets: Sequence[Ticket]) -> GivenBatch | None:
    """None unless it is plain."""
    first = tickets[0].query
    inputs = _inputs(first.signature)
    if inputs is None or [ticket for ticket in tickets if ticket.query.trace is not None]:
        return None
    if len(tickets) == 1 and (tickets[0].deaths or tickets[0].raised):
        return None
    count = len(tickets)
    if len(inputs.names) == 1 and count > 1:  # bytes of any shape and format are joined as they lie
        data: tuple[memoryview, ...] = (memoryview(b"".join([ticket.query.inputs[0].data for ticket in tickets])),)
    else:
        segments = _segments(tickets, list(inputs.names))
        data = tuple([_whole(segments[at : at + count]) for at in range(0, len(segments), count)])
    return GivenBatch(
        number, instance, tuple([ticket.number for ticket in tickets]), tuple([ticket.items for ticket in tickets]),
        tuple([ticket.deadline for ticket in tickets]), inputs, data, first.outputs,
    )  # fmt: skip


@lru_cache(maxsize=FORMS_KEPT)
def _inputs(signature: Signature) -> Inputs | None:
    """None for those that are not plain: text has elements of any size."""
    names, datatypes, tails = zip(*signature, strict=True) if signature else ((), (), ())
    return None if Datatype.BYTES in datatypes else Inputs(names, datatypes, tails)


def _whole(segments: Sequence[Buffer]) -> memoryview:
    return memoryview(segments[0] if len(segments) == 1 else b"".join(segments)).toreadonly()


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
