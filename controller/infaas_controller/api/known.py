"""Queries that differ in nothing but values: what the last one of the same form taught about the next.

A client that sends binary tensors says the same things about them again and again, over either protocol, and everything
that reading and checking what is said brings is the same each time. It is kept, for the very same bytes, as long as the
task is the same object; only what depends on the tensors' bytes is looked at anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.tensors import InferRequest, raw_tensor
from infaas_controller.api.intake import Outline

KNOWN_BYTES = 4_096
"""The most that is kept of what one request says."""
_CONSTRAINED = (Datatype.BYTES, Datatype.BOOL)
"""Not every byte string is a value of these."""

Span = tuple[int, int]
"""From its first byte to behind its last."""


@dataclass(frozen=True, slots=True)
class Part:
    """An input, and where its bytes lie."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    begin: int
    end: int
    is_free: bool
    """Whether any bytes, so many of them, are values of its datatype."""


@dataclass(frozen=True, slots=True)
class Known:
    """A request that was read and checked: what it says, piece by piece, and where its tensors lie between."""

    task: Task
    said: tuple[tuple[int, bytes], ...]
    """With where each piece begins."""
    size: int
    parts: tuple[Part, ...]
    request: InferRequest
    """Without its inputs."""
    outline: Outline
    wanted: Requirements
    """Of whoever waits without a deadline of the call."""

    def is_like(self, task: Task, data: bytes, begin: int = 0) -> bool:
        """Whether what `data` holds from `begin` on would be read and checked with the same result, but for its
        values."""
        return self.task is task and self.is_said_by(data, begin)

    def is_said_by(self, data: bytes, begin: int = 0) -> bool:
        """The same, as long as the task is the same object."""
        if len(data) - begin != self.size:
            return False
        return all(data.startswith(piece, begin + at) for at, piece in self.said)

    def inputs(self, data: bytes, begin: int = 0) -> tuple[Tensor, ...]:
        """Of what is like this. Raises InvalidError for values that are none of their datatype."""
        view = memoryview(data)
        return tuple(
            [
                (Tensor if part.is_free else raw_tensor)(
                    part.name, part.datatype, part.shape, view[begin + part.begin : begin + part.end]
                )
                for part in self.parts
            ]
        )


def known(
    task: Task, data: bytes, spans: Sequence[Span], request: InferRequest, query: Query, wanted: Requirements
) -> Known | None:
    """What a good query teaches, whose inputs are these spans of its data, in their order; None where it says more
    than is kept."""
    if len(data) - sum(end - begin for begin, end in spans) > KNOWN_BYTES:
        return None
    parts = tuple(
        Part(tensor.name, tensor.datatype, tensor.shape, begin, end, tensor.datatype not in _CONSTRAINED)
        for tensor, (begin, end) in zip(request.inputs, spans, strict=True)
    )
    bare = InferRequest((), request.outputs, request.id, request.parameters, request.binary_output)
    outline = Outline(query.items, query.signature, query.outputs)
    return Known(task, _between(data, spans), len(data), parts, bare, outline, wanted)


def known_json(task: Task, body: bytes, json_bytes: int | None, request: InferRequest, query: Query) -> Known | None:
    """What a good REST query teaches; None unless it is a small JSON header and nothing but binary inputs."""
    if not json_bytes or json_bytes > KNOWN_BYTES:
        return None
    spans: list[Span] = []
    at = json_bytes
    for tensor in request.inputs:
        if not isinstance(tensor.data, memoryview):
            return None
        spans.append((at, at + len(tensor.data)))
        at += len(tensor.data)
    return known(task, body, spans, request, query, query.requirements)


def _between(data: bytes, spans: Sequence[Span]) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    at = 0
    for begin, end in (*spans, (len(data), len(data))):
        if begin > at:
            found.append((at, data[at:begin]))
        at = end
    return tuple(found)
