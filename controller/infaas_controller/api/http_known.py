"""REST's part of `known`: bodies that differ in nothing but values.

What the last query taught is kept with its HTTP header, for one form of body: the same JSON around the values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from infaas.domain.query import Query
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import flat_array
from infaas_controller.api.http_form import Form
from infaas_controller.api.known import CONSTRAINED, KNOWN_BYTES, Inputs, Known, Part, known_of, part_of

COPIED_BYTES = 2_048
"""Of a tensor: to copy so few costs less than two views of them, and less again where they are joined with others'
(at 2 KiB two thirds; at 4 KiB as much)."""
_DATA = b'"data"'
_ARRAY = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n\[]*?(\[[^\[\]"{}]*\])')
"""The first that holds no other, however deep it lies."""


class Reader(Protocol):
    """Of a body that begins at some place of what came."""

    def __call__(self, data: bytes, begin: int = 0) -> Inputs | None:
        """None: the body is another one. Raises InvalidError for values that are none of their datatype."""

    def suits(self, data: bytes, begin: int = 0) -> bool:
        """Whether all but the values is there; they are not looked at."""


@dataclass(slots=True, eq=False)
class KnownBody(Known[Reader]):
    """And how the last ones like it were answered."""

    form: Form | None = None
    """None: there is none, for what it would be kept under."""
    form_key: tuple[object, ...] | None = None
    form_standing: object = None
    """The list of the header fields that go with every answer."""


def known(task: Task, body: bytes, length: int | None, request: InferRequest, query: Query) -> KnownBody | None:
    """What a good query teaches; `length` is its JSON header's. None unless little JSON goes round binary inputs or
    round one array of numbers, and for one with an id: the next has another."""
    if request.id:
        return None
    inputs: Reader | None = _json_reader(body, request) if length is None else _binary_reader(body, length, request)
    if inputs is None:
        return None
    return known_of(KnownBody, task, inputs, request, query, query.requirements)


class _BinaryReader:
    """The same JSON header, and tensors of the same sizes after it."""

    __slots__ = ("_is_small", "_json", "_parts", "_size")

    def __init__(self, json: bytes, size: int, inputs: Inputs) -> None:
        """`size`: of the body."""
        self._json = json
        self._size = size
        self._parts: list[Part] = []
        at = len(json)
        for tensor in inputs:
            self._parts.append(part_of(tensor, at, at + len(tensor.data)))
            at += len(tensor.data)
        self._is_small = all(len(tensor.data) <= COPIED_BYTES for tensor in inputs)

    def suits(self, data: bytes, begin: int = 0) -> bool:
        return len(data) - begin == self._size and data.startswith(self._json, begin)

    def __call__(self, data: bytes, begin: int = 0) -> Inputs | None:
        if len(data) - begin != self._size or not data.startswith(self._json, begin):
            return None
        whole = data if self._is_small else memoryview(data)
        if len(self._parts) == 1:
            make, name, datatype, shape, at, _ = self._parts[0]
            return (make(name, datatype, shape, whole[begin + at :]),)
        return tuple(
            [
                make(name, datatype, shape, whole[begin + at : begin + end])
                for make, name, datatype, shape, at, end in self._parts
            ]
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

    def suits(self, data: bytes, begin: int = 0) -> bool:
        first, end = begin + len(self._before), len(data) - len(self._after)
        if end <= first or not data.startswith(self._before, begin) or not data.endswith(self._after):
            return False
        return data.find(b'"', first, end) < 0  # between them are numbers, and nothing that has a name

    def __call__(self, data: bytes, begin: int = 0) -> Inputs | None:
        if not self.suits(data, begin):
            return None
        text = memoryview(data)[begin + len(self._before) : len(data) - len(self._after)]
        array = flat_array(self._name, text, self._datatype, self._count)
        return None if array is None else (Tensor(self._name, self._datatype, self._shape, array),)


def _binary_reader(body: bytes, length: int, request: InferRequest) -> _BinaryReader | None:
    if not 0 < length <= KNOWN_BYTES or not all(isinstance(one.data, memoryview) for one in request.inputs):
        return None
    return _BinaryReader(body[:length], len(body), request.inputs)


def _json_reader(body: bytes, request: InferRequest) -> _JsonReader | None:
    if len(request.inputs) != 1 or request.inputs[0].datatype in (*CONSTRAINED, Datatype.FP16):
        return None
    (tensor,) = request.inputs
    found = _ARRAY.search(body)
    if found is None or body.count(_DATA) != 1 or len(body) - len(found[1]) > KNOWN_BYTES:
        return None
    if b"\\" in body:  # a name may be written in other ways then
        return None
    reader = _JsonReader(body[: found.start(1)], body[found.end(1) :], tensor)
    try:
        is_right = reader(body) == (tensor,)
    except InvalidError:
        return None
    return reader if is_right else None
