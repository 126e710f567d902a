"""What the controller and its bulk process say to each other: a head that names the work, and the bytes it is about.

Every message is two lengths, the lengths of its buffers, a MessagePack head and the buffers as they are. Buffers are
never copied into the head: writing and reading them happens in system calls, which hold no interpreter lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import FileIO

import msgspec

from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.requirements import Scalar
from infaas.rpc.tensors import InferRequest, RequestedOutput

Buffer = bytes | memoryview
Wait = Callable[[FileIO], None]
"""Returns once a pipe can be used without blocking."""
_HEAD = struct.Struct("<II")


class Outline(msgspec.Struct, frozen=True, array_like=True):
    """A tensor without its bytes, which are the buffer of the same number."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ReadRest(msgspec.Struct, frozen=True, tag=True):
    """The buffer is a REST body; `header_length` is the JSON's part of it, None: all."""

    header_length: int | None


class ReadGrpc(msgspec.Struct, frozen=True, tag=True):
    """The buffer is a `ModelInferRequest` as it came."""


class Render(msgspec.Struct, frozen=True, tag=True):
    """A tensor's data as JSON."""

    tensor: Outline


class Classify(msgspec.Struct, frozen=True, tag=True):
    """The classification extension, over one tensor."""

    tensor: Outline
    top: int
    labels: tuple[str, ...]


Job = ReadRest | ReadGrpc | Render | Classify


class Request(msgspec.Struct, frozen=True, tag=True):
    """A request that was read; the data of its inputs are the buffers."""

    inputs: tuple[Outline, ...]
    outputs: tuple[RequestedOutput, ...]
    id: str
    parameters: dict[str, Scalar]
    binary_output: bool


class Made(msgspec.Struct, frozen=True, tag=True):
    """The one buffer is what was asked for; with its tensor's outline, if it is one."""

    tensor: Outline | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An error of ours, or, with `details`, one that nobody foresaw."""

    text: str
    code: str
    problems: tuple[str, ...] = ()
    details: str = ""


Reply = Request | Made | Failed

job_decoder = msgspec.msgpack.Decoder(Job)
reply_decoder = msgspec.msgpack.Decoder(Reply)
encode = msgspec.msgpack.Encoder().encode


def outline(tensor: Tensor) -> Outline:
    return Outline(tensor.name, tensor.datatype.value, tensor.shape)


def tensor_of(found: Outline, data: Buffer) -> Tensor:
    return Tensor(found.name, Datatype(found.datatype), found.shape, data)


def request_of(found: Request, buffers: Sequence[Buffer]) -> InferRequest:
    return InferRequest(
        inputs=tuple(tensor_of(one, data) for one, data in zip(found.inputs, buffers, strict=True)),
        outputs=found.outputs,
        id=found.id,
        parameters=found.parameters,
        binary_output=found.binary_output,
    )


def send(pipe: FileIO, head: bytes, buffers: Sequence[Buffer], wait: Wait | None = None) -> None:
    """A pipe that does not block needs `wait`. Raises OSError when the other side is gone, and what `wait` raises."""
    sizes = struct.pack(f"<{len(buffers)}Q", *(len(buffer) for buffer in buffers))
    _write(pipe, _HEAD.pack(len(head), len(buffers)) + sizes + head, wait)
    for buffer in buffers:
        _write(pipe, buffer, wait)


def receive(pipe: FileIO, wait: Wait | None = None) -> tuple[bytes, list[memoryview]]:
    """As `send`; raises EOFError when the other side is gone."""
    length, count = _HEAD.unpack(_read(pipe, _HEAD.size, wait))
    sizes: tuple[int, ...] = struct.unpack(f"<{count}Q", _read(pipe, 8 * count, wait))
    head = bytes(_read(pipe, length, wait))
    return head, [_read(pipe, size, wait) for size in sizes]


def _write(pipe: FileIO, data: Buffer, wait: Wait | None) -> None:
    left = memoryview(data)
    while len(left):
        if wait is not None:
            wait(pipe)
        left = left[pipe.write(left) or 0 :]


def _read(pipe: FileIO, size: int, wait: Wait | None) -> memoryview:
    whole = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        if wait is not None:
            wait(pipe)
        got = pipe.readinto(whole[filled:])
        if got == 0:
            raise EOFError("the other side is gone")
        filled += got or 0
    return whole.toreadonly()
