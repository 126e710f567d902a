"""Tensors of many queries as columns: what a message says of them, and where each query's bytes are in the payload.

A column is one tensor of all queries of a batch, query after query, in one run of memory. Of datatypes whose elements
have one size nothing is said per query but its items, and the whole column is an array as it is. BYTES need the size of
each query's part, and outputs whose shapes differ in more than their items need those shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from infaas.domain.tensor import Datatype
from infaas.rpc.hop.frames import Buffer, flat
from infaas.rpc.v1 import worker_pb2 as pb

MAX_DIMS = 64
"""What numpy's arrays have at most."""
_DATATYPES = {datatype.value: datatype for datatype in Datatype}
Shape = tuple[int, ...]
Part = tuple[Shape, Buffer]
"""One query's tensor."""


class ColumnsError(Exception):
    """What a message says of its tensors does not fit the bytes that came with it."""


class UnknownDatatypeError(ColumnsError):
    """The bytes may fit; nobody here knows."""


class Column:
    """One tensor of all queries, read."""

    __slots__ = ("_items", "_marks", "_shapes", "_tail", "_unit", "data", "datatype", "name")

    def __init__(
        self,
        name: str,
        datatype: Datatype,
        data: memoryview,
        items: Sequence[int],
        tail: Shape,
        shapes: Sequence[Shape] | None,
        marks: Sequence[int],
        unit: int,
    ) -> None:
        """`marks`: where each query's part begins, and where the last one ends, in units of so many bytes."""
        self.name = name
        self.datatype = datatype
        self.data = data
        self._items = items
        self._tail = tail
        self._shapes = shapes
        self._marks = marks
        self._unit = unit

    @property
    def is_even(self) -> bool:
        """Whether all of it is one array of `shape`."""
        return self._shapes is None and self.datatype is not Datatype.BYTES

    @property
    def items(self) -> Sequence[int]:
        """Of each query."""
        return self._items

    @property
    def tail(self) -> Shape | None:
        """The dimensions after the first, where they are the same for all."""
        return None if self._shapes is not None else self._tail

    @property
    def shape(self) -> Shape:
        """Of all queries' rows together, where they have that."""
        return (sum(self._items), *self._tail)

    def part(self, place: int) -> tuple[Shape, memoryview]:
        """Shape and bytes of one query's tensor; nothing is copied."""
        shape = (self._items[place], *self._tail) if self._shapes is None else self._shapes[place]
        return shape, self.data[self._marks[place] * self._unit : self._marks[place + 1] * self._unit]

    def bytes_of(self, place: int) -> memoryview:
        """`part` without its shape."""
        return self.data[self._marks[place] * self._unit : self._marks[place + 1] * self._unit]


def read_columns(
    said: Iterable[pb.Column], items: Sequence[int], sizes: Sequence[int], payload: memoryview
) -> tuple[Column, ...]:
    """The columns that a message names, for queries of so many items each.

    Raises ColumnsError when numbers are missing or left over, when a query has no items, when a dimension is negative,
    and when the tensors do not fill the payload; UnknownDatatypeError for a datatype that is not OIP's.
    """
    if 0 in items:
        raise ColumnsError("a query holds no items")
    rows = [0, *accumulate(items)]
    columns: list[Column] = []
    begin = used = 0
    for one in said:
        name, datatype = one.name, _DATATYPES.get(one.datatype)
        if datatype is None:
            raise UnknownDatatypeError(f"{name!r} has datatype {one.datatype!r}")
        shapes = _shapes(name, one.shapes, len(items)) if one.shapes else None
        tail = () if shapes is not None else _checked(name, one.tail)
        marks: Sequence[int]
        if datatype is Datatype.BYTES:
            marks, unit = [0, *accumulate(sizes[used : used + len(items)])], 1
            used += len(items)
            if len(marks) != len(items) + 1:
                raise ColumnsError(f"{len(items)} queries come with {len(sizes)} sizes of BYTES")
        elif shapes is not None:
            marks, unit = [0, *accumulate(map(math.prod, shapes))], datatype.itemsize
        else:
            marks, unit = rows, datatype.itemsize * math.prod(tail)
        end = begin + marks[-1] * unit
        columns.append(Column(name, datatype, payload[begin:end], items, tail, shapes, marks, unit))
        begin = end
    if begin != len(payload):
        raise ColumnsError(f"{len(columns)} tensors of {begin} bytes in all come with {len(payload)} bytes")
    if used != len(sizes):
        raise ColumnsError(f"{len(sizes)} sizes of BYTES come with {used // len(items) if items else 0} such columns")
    return tuple(columns)


def write_column(
    said: Any, sizes: Any, name: str, datatype: Datatype, items: Sequence[int], parts: Sequence[Part]
) -> list[Buffer]:
    """Add a column to a message (to its repeated `Column`s and its sizes) from each query's own tensor; returns what it
    adds to the payload. Whoever calls has seen to it that every part's bytes fill its shape."""
    column = said.add(name=name, datatype=datatype.value)
    tails = {shape[1:] for shape, _ in parts}
    if len(tails) == 1 and all(shape[:1] == (count,) for count, (shape, _) in zip(items, parts, strict=True)):
        column.tail.extend(tails.pop())
    else:
        for shape, _ in parts:
            column.shapes.add(dims=shape)
    segments = [flat(data) for _, data in parts]
    if datatype is Datatype.BYTES:
        sizes.extend([len(segment) for segment in segments])
    return segments


def _shapes(name: str, said: Sequence[pb.Shape], count: int) -> list[Shape]:
    if len(said) != count:
        raise ColumnsError(f"{name!r} has {len(said)} shapes for {count} queries")
    return [_checked(name, shape.dims) for shape in said]


def _checked(name: str, said: Iterable[int]) -> Shape:
    dims = tuple(said)
    if len(dims) > MAX_DIMS or (dims and min(dims) < 0):
        raise ColumnsError(f"{name!r} cannot have the dimensions {list(dims[:MAX_DIMS])}")
    return dims
