"""Queries that differ in nothing but values: what the last one with the same headers taught about the next.

A client sends the same HTTP header and the same JSON around its values again and again, and everything that reading and
checking them brings is the same each time. It is kept with the HTTP header, for one body, as long as the task is the
same object; only what depends on the values is looked at anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError
from infaas.rpc.tensors import InferRequest, raw_tensor
from infaas.rpc.tensors_json import flat_array
from infaas_controller.api.intake import Outline

KNOWN_JSON_BYTES = 4_096
_CONSTRAINED = (Datatype.BYTES, Datatype.BOOL)
"""Not every byte string is a value of these."""
_DATA = b'"data"'
_ARRAY = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n\[]*?(\[[^\[\]"{}]*\])')
"""The first that holds no other, however deep it lies."""

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A request that was read and checked."""

    task: Task
    inputs: Callable[[bytes], Inputs | None]
    """Of a body that would be read and checked with the same result but for its values; None: of another one. Raises
    InvalidError for values that are none of their datatype."""
    request: InferRequest
    """Without its inputs."""
    outline: Outline
    requirements: Requirements


def known(task: Task, body: bytes, length: int | None, request: InferRequest, query: Query) -> Known | None:
    """What a good query teaches; `length` is its JSON header's. None unless little JSON goes round binary inputs or
    round one array of numbers, and for one with an id: the next has another."""
    if request.id:
        return None
    inputs = _json_reader(body, request) if length is None else _binary_reader(body, length, request)
    if inputs is None:
        return None
    bare = InferRequest((), request.outputs, request.id, request.parameters, request.binary_output)
    return Known(task, inputs, bare, Outline(query.items, query.signature, query.outputs), query.requirements)


class _BinaryReader:
    """The same JSON header, and tensors of the same sizes after it."""

    __slots__ = ("_json", "_parts", "_size")

    def __init__(self, json: bytes, size: int, inputs: Inputs) -> None:
        """`size`: of the body."""
        self._json = json
        self._size = size
        self._parts: list[tuple[Callable[..., Tensor], str, Datatype, tuple[int, ...], int, int]] = []
        at = len(json)
        for tensor in inputs:
            make = raw_tensor if tensor.datatype in _CONSTRAINED else Tensor
            self._parts.append((make, tensor.name, tensor.datatype, tensor.shape, at, at + len(tensor.data)))
            at += len(tensor.data)

    def __call__(self, body: bytes) -> Inputs | None:
        if len(body) != self._size or not body.startswith(self._json):
            return None
        view = memoryview(body)
        return tuple(
            [make(name, datatype, shape, view[begin:end]) for make, name, datatype, shape, begin, end in self._parts]
        )


class _JsonReader:
    """The same JSON round one flat array of as many numbers. What stands between the same beginning and the same end,
    and is an array by itself, is that array: the rest means what it meant."""

    __slots__ = ("_after", "_before", "_count", "_datatype", "_name", "_shape")

    def __init__(self, before: bytes, after: bytes, tensor: Tensor) -> None:
        self._before = before
        self._after = after
        self._name, self._datatype, self._shape = tensor.name, tensor.datatype, tensor.shape
        self._count = len(tensor.data) // tensor.datatype.itemsize

    def __call__(self, body: bytes) -> Inputs | None:
        end = len(body) - len(self._after)
        if end <= len(self._before) or not (body.startswith(self._before) and body.endswith(self._after)):
            return None
        text = memoryview(body)[len(self._before) : end]
        data = flat_array(self._name, text, self._datatype, self._count)
        return None if data is None else (Tensor(self._name, self._datatype, self._shape, data),)


def _binary_reader(body: bytes, length: int, request: InferRequest) -> _BinaryReader | None:
    if not 0 < length <= KNOWN_JSON_BYTES or not all(isinstance(one.data, memoryview) for one in request.inputs):
        return None
    return _BinaryReader(body[:length], len(body), request.inputs)


def _json_reader(body: bytes, request: InferRequest) -> _JsonReader | None:
    if len(request.inputs) != 1 or request.inputs[0].datatype in (*_CONSTRAINED, Datatype.FP16):
        return None
    (tensor,) = request.inputs
    found = _ARRAY.search(body)
    if found is None or body.count(_DATA) != 1 or len(body) - len(found[1]) > KNOWN_JSON_BYTES:
        return None
    if b"\\" in body:  # a name may be written in other ways then
        return None
    reader = _JsonReader(body[: found.start(1)], body[found.end(1) :], tensor)
    try:
        is_right = reader(body) == (tensor,)
    except InvalidError:
        return None
    return reader if is_right else None
