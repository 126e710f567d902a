"""gRPC's part of `known`: messages that differ in nothing but their ids and their tensors' bytes.

Clients number their queries, so the id is cut out. All libraries write the fields of a message in the order of their
numbers, which is the only order that is recognised here; anything else is read by the generated class, as is the first
of each form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from infaas.domain.query import Query, Requirements
from infaas.domain.task import Task
from infaas.rpc.fields import outermost, tag_of
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_grpc import RAW
from infaas_controller.api.known import KNOWN_BYTES, Inputs, Known, known_of, part_of

_NAME, _VERSION, _ID = 1, 2, 3
_NAME_TAG, _VERSION_TAG, _ID_TAG = tag_of(_NAME), tag_of(_VERSION), tag_of(_ID)
_SHORT = 0x80

Span = tuple[int, int]
"""From its first byte to behind its last."""


class Cut(NamedTuple):
    """A message in two: what names the model, and all the rest, from `begin` on; between them the query's id."""

    name: bytes
    id: str
    begin: int


def cut(data: bytes) -> Cut | None:
    """None for a message that does not begin as usual; what it returns for one that is broken further on means nothing
    before the rest was compared."""
    try:
        if data[0] != _NAME_TAG or data[1] >= _SHORT:
            return None
        at = 2 + data[1]
        if data[at] == _VERSION_TAG:
            if data[at + 1] >= _SHORT:
                return None
            at += 2 + data[at + 1]
        if data[at] != _ID_TAG:
            return Cut(data[:at], "", at)
        begin = at + 2 + data[at + 1]
        if data[at + 1] >= _SHORT or begin > len(data):
            return None
        return Cut(data[:at], data[at + 2 : begin].decode(), begin)
    except (IndexError, UnicodeDecodeError):
        return None


class RawReader:
    """The same around raw contents of the same sizes, behind the id."""

    __slots__ = ("_parts", "_said", "_size")

    def __init__(self, rest: bytes, spans: Sequence[Span], inputs: Inputs) -> None:
        """`rest` is what comes behind the id; the inputs lie in its spans, in their order."""
        self._size = len(rest)
        self._said = _between(rest, spans)
        self._parts = [part_of(tensor, *span) for tensor, span in zip(inputs, spans, strict=True)]

    def suits(self, data: bytes, begin: int) -> bool:
        """Whether all but the values is there; they are not looked at."""
        if len(data) - begin != self._size:
            return False
        for at, piece in self._said:  # noqa: SIM110 (a generator takes as long again)
            if not data.startswith(piece, begin + at):
                return False
        return True

    def __call__(self, data: bytes, begin: int) -> Inputs:
        """Of a message that suits. Raises InvalidError for values that are none of their datatype."""
        view = memoryview(data)
        return tuple(
            [
                make(name, datatype, shape, view[begin + first : begin + end])
                for make, name, datatype, shape, first, end in self._parts
            ]
        )


KnownMessage = Known[RawReader]


def known(
    task: Task, data: bytes, begun: Cut, request: InferRequest, query: Query, wanted: Requirements
) -> KnownMessage | None:
    """What a good query teaches. None where it has no raw contents, is not written as usual, or says more than is
    kept."""
    spans = raw_spans(data, begun.begin)
    if spans is None or len(spans) != len(request.inputs):
        return None
    if len(data) - sum([end - first for first, end in spans]) > KNOWN_BYTES:
        return None
    return known_of(Known, task, RawReader(data[begun.begin :], spans, request.inputs), request, query, wanted)


def raw_spans(data: bytes, begin: int) -> list[Span] | None:
    """Where the raw contents lie behind the id, counted from `begin`; None where the message is not in the usual order,
    so that what names it, or its id, might be said again. `data` is a message."""
    spans: list[Span] = []
    try:
        for field in outermost(data):
            if field.number in (_NAME, _VERSION, _ID):
                if field.end > begin:
                    return None
            elif field.begin < begin:
                return None
            elif field.number == RAW:
                spans.append((field.value - begin, field.end - begin))
    except DecodeError:
        return None  # it has a form that only the generated class knows
    return spans


def _between(data: bytes, spans: Sequence[Span]) -> tuple[tuple[int, bytes], ...]:
    """What is not in the spans, piece by piece, with where each begins."""
    found: list[tuple[int, bytes]] = []
    at = 0
    for begin, end in (*spans, (len(data), len(data))):
        if begin > at:
            found.append((at, data[at:begin]))
        at = end
    return tuple(found)
