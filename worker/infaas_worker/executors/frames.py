"""What passes between a worker and the process of an isolated instance: frames on a stream socket.

A frame is a fixed head (kind, length of the facts, length of the tensors), the facts as MessagePack, and the tensors'
bytes as they are, one after another. Tensors are sent from where they lie and read as views of the one buffer that they
arrived in. What lies together crosses together. Otherwise the values of one output follow each other, so that the views
of a batch's rows are neighbours as they are in the runtime's own result.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Variant
from infaas.errors import InfaasError, InvalidError, ModelError, UnavailableError, UnsupportedError
from infaas_worker.executors.base import BatchIn, BatchOut, QueryError, QueryIn, Value, Whole

_HEAD = struct.Struct("<IQ")
_BUFFERS_AT_ONCE = 512
"""Below the kernel's limit of buffers in one send."""

Size = tuple[tuple[int, ...], int]
"""A value's shape and how many bytes it has."""


class Load(msgspec.Struct, frozen=True, tag=True):
    variant: Variant
    artifact: str


class Loaded(msgspec.Struct, frozen=True, tag=True):
    max_in_flight: int


class Run(msgspec.Struct, frozen=True, tag=True):
    key: int
    names: tuple[str, ...]
    datatypes: tuple[Datatype, ...]
    outputs: tuple[str, ...]
    queries: tuple[tuple[int, tuple[Size, ...]], ...]
    """Items and the inputs' sizes. Empty where all lie together."""
    items: tuple[int, ...] = ()
    whole: tuple[Size, ...] | None = None
    """Of the inputs of all queries together, which have `items`."""


class Ran(msgspec.Struct, frozen=True, tag=True):
    key: int
    names: tuple[str, ...]
    datatypes: tuple[Datatype, ...]
    run_s: float
    queries: tuple[tuple[Size, ...] | None, ...]
    """None: it failed alone."""
    failed: tuple[tuple[int, Code, str], ...] = ()
    """Place in `queries`, code, text."""
    items: tuple[int, ...] = ()
    whole: tuple[Size, ...] | None = None
    """Of the outputs of all queries together, which have `items`; `queries` is empty then."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A load (key 0) or a batch that ended with one of our errors."""

    key: int
    kind: str
    code: Code
    text: str


class Close(msgspec.Struct, frozen=True, tag=True):
    """Finish what is pending, then end."""


Facts = Load | Loaded | Run | Ran | Failed | Close
_ERRORS: dict[str, type[InfaasError]] = {
    kind.__name__: kind for kind in (InvalidError, ModelError, UnavailableError, UnsupportedError)
}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Facts).decode
Buffer = bytes | memoryview
T = TypeVar("T")


def send(stream: socket.socket, facts: Facts, tensors: Iterable[Buffer] = ()) -> None:
    """Blocks until the kernel has it all. Raises OSError when the other side is gone."""
    parts = [memoryview(part).cast("B") for part in tensors if len(part)]
    said = _encode(facts)
    head = _HEAD.pack(len(said), sum(len(part) for part in parts))
    _send_all(stream, [memoryview(head + said), *parts])


def receive(stream: socket.socket) -> tuple[Facts, memoryview] | None:
    """The next frame; None when the other side has ended the stream. Raises OSError, or EOFError in mid-frame."""
    head = _read(stream, _HEAD.size, is_start=True)
    if head is None:
        return None
    said, size = _HEAD.unpack(head)
    facts = _decode(_whole(_read(stream, said)))
    return facts, _whole(_read(stream, size)).toreadonly()


def run(key: int, batch: BatchIn) -> tuple[Run, list[Buffer]]:
    whole = batch.whole
    if whole is not None:
        facts = Run(key, batch.input_names, batch.datatypes, batch.outputs, (), whole.items, _sizes(whole))
        return facts, [value.data for value in whole.values]
    queries = tuple((q.items, tuple((value.shape, len(value.data)) for value in q.inputs)) for q in batch.queries)
    tensors = [value.data for query in batch.queries for value in query.inputs]
    return Run(key, batch.input_names, batch.datatypes, batch.outputs, queries), tensors


def batch_of(facts: Run, tensors: memoryview) -> BatchIn:
    if facts.whole is not None:
        whole = _lying_together(facts.items, facts.whole, tensors)
        return BatchIn.of_whole(facts.names, facts.datatypes, whole, facts.outputs)
    at = 0
    queries = []
    for items, sizes in facts.queries:
        values = []
        for shape, size in sizes:
            values.append(Value(shape, tensors[at : at + size]))
            at += size
        queries.append(QueryIn(items, tuple(values)))
    return BatchIn(facts.names, facts.datatypes, tuple(queries), facts.outputs)


def ran(key: int, out: BatchOut) -> tuple[Ran, list[Buffer]]:
    whole = out.whole
    if whole is not None:
        facts = Ran(key, out.output_names, out.datatypes, out.run_s, (), (), whole.items, _sizes(whole))
        return facts, [value.data for value in whole.values]
    queries: list[tuple[Size, ...] | None] = []
    failed: list[tuple[int, Code, str]] = []
    answered: list[tuple[Value, ...]] = []
    for place, outcome in enumerate(out.queries):
        if isinstance(outcome, QueryError):
            queries.append(None)
            failed.append((place, outcome.code, outcome.text))
        else:
            queries.append(tuple((value.shape, len(value.data)) for value in outcome))
            answered.append(outcome)
    tensors = [outcome[index].data for index in range(len(out.output_names)) for outcome in answered]
    return Ran(key, out.output_names, out.datatypes, out.run_s, tuple(queries), tuple(failed)), tensors


def result_of(facts: Ran, tensors: memoryview) -> BatchOut:
    if facts.whole is not None:
        whole = _lying_together(facts.items, facts.whole, tensors)
        return BatchOut.of_whole(facts.names, facts.datatypes, whole, facts.run_s)
    values: list[list[Value]] = [[] for _ in facts.queries]
    at = 0
    for index in range(len(facts.names)):
        for place, sizes in enumerate(facts.queries):
            if sizes is not None:
                shape, size = sizes[index]
                values[place].append(Value(shape, tensors[at : at + size]))
                at += size
    outcomes: list[tuple[Value, ...] | QueryError] = [tuple(each) for each in values]
    for place, code, text in facts.failed:
        outcomes[place] = QueryError(code, text)
    return BatchOut(facts.names, facts.datatypes, tuple(outcomes), facts.run_s)


def failed(key: int, error: InfaasError) -> Failed:
    return Failed(key, type(error).__name__, error.code, error.text)


def error_of(facts: Failed) -> InfaasError:
    """The same error on this side; of a kind that is not told apart here, its code and text."""
    kind = _ERRORS.get(facts.kind)
    return InfaasError(facts.text, code=facts.code) if kind is None else kind(facts.text)


def _sizes(whole: Whole) -> tuple[Size, ...]:
    return tuple([(value.shape, len(value.data)) for value in whole.values])


def _lying_together(items: tuple[int, ...], sizes: Sequence[Size], tensors: memoryview) -> Whole:
    values, at = [], 0
    for shape, size in sizes:
        values.append(Value(shape, tensors[at : at + size]))
        at += size
    return Whole(items, tuple(values))


def _send_all(stream: socket.socket, parts: Sequence[memoryview]) -> None:
    left = list(parts)
    at = 0
    while at < len(left):
        sent = stream.sendmsg(left[at : at + _BUFFERS_AT_ONCE])
        while sent:
            size = len(left[at])
            if sent < size:
                left[at] = left[at][sent:]
                break
            sent -= size
            at += 1


def _read(stream: socket.socket, size: int, *, is_start: bool = False) -> memoryview | None:
    buffer = memoryview(bytearray(size))
    at = 0
    while at < size:
        got = stream.recv_into(buffer[at:])
        if not got:
            if is_start and not at:
                return None
            raise EOFError("the stream ended in the middle of a frame")
        at += got
    return buffer


def _whole(part: memoryview | None) -> memoryview:
    if part is None:
        raise EOFError("the stream ended in the middle of a frame")
    return part
