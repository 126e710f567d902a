"""Queries that differ in nothing but values: what the last one of the same form taught about the next.

A client says the same things around its values again and again, over either protocol, and everything that reading and
checking them brings is the same each time. It is kept as long as the task is the same object; only what depends on the
values is looked at anew. How requests of one form are recognised, and where their values are, is the protocol's own
(`http_known`, `grpc_known`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.tensors import InferRequest, raw_tensor
from infaas_controller.api.intake import Outline, time_s

KNOWN_BYTES = 4_096
"""The most that is kept of what a request says around its values."""
CONSTRAINED = (Datatype.BYTES, Datatype.BOOL)
"""Not every byte string is a value of these."""

Inputs = tuple[Tensor, ...]
Reader = TypeVar("Reader")
Kind = TypeVar("Kind")


@dataclass(slots=True, eq=False)
class Known(Generic[Reader]):
    """A request that was read and checked."""

    task: Task
    inputs: Reader
    """Finds them in a request that would be read and checked with the same result but for its values."""
    request: InferRequest
    """Without its inputs and its id."""
    outline: Outline
    requirements: Requirements
    """Of whoever waits without a deadline of the call."""
    handle: str
    within_s: float = field(init=False)
    """How long an answer may take, by its requirements."""

    def __post_init__(self) -> None:
        self.within_s = time_s(self.requirements)


def known_of(
    kind: Callable[[Task, Reader, InferRequest, Outline, Requirements, str], Kind],
    task: Task,
    reader: Reader,
    request: InferRequest,
    query: Query,
    requirements: Requirements,
) -> Kind:
    """What a good query teaches: a `Known`, or what the protocol makes of it."""
    outline = Outline(query.items, query.signature, query.outputs)
    bare = InferRequest((), request.outputs, "", request.parameters, request.binary_output)
    return kind(task, reader, bare, outline, requirements, query.handle)


Part = tuple[Callable[..., Tensor], str, Datatype, tuple[int, ...], int, int]
"""An input: what makes it and is given the rest, its name, datatype and shape, and from where to where its bytes lie.
Making it raises InvalidError for bytes that are no values of its datatype."""


def part_of(tensor: Tensor, begin: int, end: int) -> Part:
    make = raw_tensor if tensor.datatype in CONSTRAINED else Tensor
    return make, tensor.name, tensor.datatype, tensor.shape, begin, end
