"""Queries that differ in nothing but values: what the last one with the same headers taught about the next.

A client that sends binary tensors sends the same HTTP header and the same JSON header again and again, and everything
that reading and checking them brings is the same each time. It is kept with the HTTP header, for one JSON header, as
long as the task is the same object; only what depends on the tensors' bytes is looked at anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.tensors import InferRequest, raw_tensor
from infaas_controller.api.intake import Outline

KNOWN_JSON_BYTES = 4_096
_CONSTRAINED = (Datatype.BYTES, Datatype.BOOL)
"""Not every byte string is a value of these."""


@dataclass(frozen=True, slots=True)
class Part:
    """An input, and where its bytes lie after the JSON."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    begin: int
    end: int
    is_free: bool
    """Whether any bytes, so many of them, are values of its datatype."""


@dataclass(frozen=True, slots=True)
class Known:
    """A request that was read and checked."""

    task: Task
    json: bytes
    tail_bytes: int
    parts: tuple[Part, ...]
    request: InferRequest
    """Without its inputs."""
    outline: Outline
    requirements: Requirements

    def is_like(self, task: Task, body: bytes, length: int) -> bool:
        """Whether a body with so much JSON would be read and checked with the same result, but for its values."""
        is_so_long = length == len(self.json) and len(body) == length + self.tail_bytes
        return self.task is task and is_so_long and body.startswith(self.json)

    def inputs(self, body: bytes) -> tuple[Tensor, ...]:
        """Of a body that is like this. Raises InvalidError for values that are none of their datatype."""
        tail = memoryview(body)[len(self.json) :]
        return tuple(
            [
                (Tensor if part.is_free else raw_tensor)(
                    part.name, part.datatype, part.shape, tail[part.begin : part.end]
                )
                for part in self.parts
            ]
        )


def known(task: Task, body: bytes, length: int | None, request: InferRequest, query: Query) -> Known | None:
    """What a good query teaches; None unless it is a small JSON header and nothing but binary inputs."""
    if not length or length > KNOWN_JSON_BYTES:
        return None
    parts: list[Part] = []
    at = 0
    for tensor in request.inputs:
        if not isinstance(tensor.data, memoryview):
            return None
        is_free = tensor.datatype not in _CONSTRAINED
        parts.append(Part(tensor.name, tensor.datatype, tensor.shape, at, at + len(tensor.data), is_free))
        at += len(tensor.data)
    bare = InferRequest((), request.outputs, request.id, request.parameters, request.binary_output)
    outline = Outline(query.items, query.signature, query.outputs)
    return Known(task, body[:length], len(body) - length, tuple(parts), bare, outline, query.requirements)
