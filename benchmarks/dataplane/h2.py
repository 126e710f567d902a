"""Unary gRPC calls that cost their caller little: HTTP/2 frames (RFC 9113) from prepared bytes, no library between.

A comfortable gRPC client costs about what a server does and would be the bound. What a benchmark needs is little:
header fields are literals without indexing (RFC 7541, 6.2.2), so that one prepared block serves every call and leaves
the other side's table alone, and an answer's fields are not decoded, because a call that succeeded is one that brought
a message. One call at a time on a connection, messages that fit one frame.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from dataplane.generator import UNANSWERED, Address, Caller, Connect

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
_ACK = END_STREAM = 0x1
_END_HEADERS = 0x4
_FRAME = struct.Struct(">BHBBI")
LARGEST_FRAME = 16_384
LARGEST_MESSAGE = LARGEST_FRAME - 1_024
"""Tensors of so many bytes fit, with names and shapes around them."""
_FIRST_WINDOW = 65_535
_OWN_WINDOW = 2**31 - 1
_MESSAGE = struct.Struct(">BI")
OK, FAILED = 200, 500


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def fields_block(fields: Mapping[str, str]) -> bytes:
    """Every field as a literal without indexing, with a new name."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    """A string literal, not Huffman coded, with its length as an integer of a 7-bit prefix (RFC 7541, 5.1, 5.2)."""
    data = text.encode("ascii")
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    length, left = bytearray([127]), size - 127
    while left >= 128:
        length.append(left % 128 + 128)
        left //= 128
    length.append(left)
    return bytes(length) + data


class GrpcCaller(asyncio.Protocol):
    """One connection, one call at a time. A call that brought no message has the status 500."""

    def __init__(self, block: bytes, messages: Sequence[bytes], on_answer: Callable[[Caller], None]) -> None:
        self._block = block
        self._messages = messages
        self._on_answer = on_answer
        self._transport: asyncio.Transport | None = None
        self._part = b""
        self._stream = -1
        self._window = _FIRST_WINDOW
        self._held: bytes | None = None
        self._held_size = 0
        self._message = b""
        self._is_waiting = False
        self.failure: Exception | None = None
        self.status = UNANSWERED
        self.question = self.number = 0
        self.sent_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HIHI", 0x2, 0, 0x4, _OWN_WINDOW)  # no push; streams of any size
        more = struct.pack(">I", _OWN_WINDOW - _FIRST_WINDOW)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, more))

    def ask(self, question: int, number: int, now: float) -> None:
        self.question, self.number, self.sent_at = question, number, now
        self._is_waiting, self._message = True, b""
        if self._transport is None:
            self._fail(self.failure or ConnectionResetError("the connection was closed"))
            return
        self._stream += 2
        message = self._messages[question]
        call = frame(_HEADERS, _END_HEADERS, self._stream, self._block) + frame(
            _DATA, END_STREAM, self._stream, message
        )
        if len(message) > self._window:
            self._held, self._held_size = call, len(message)
            return
        self._window -= len(message)
        self._transport.write(call)

    def data_received(self, data: bytes) -> None:
        if self._part:
            data = self._part + data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            size = high << 16 | low
            if end - at - 9 < size:
                break
            self._take(kind, flags, stream, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._part = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_DATA, _HEADERS):
            if kind == _DATA:
                self._message += payload
            if flags & END_STREAM and stream == self._stream:
                self._answered()
        elif kind == _WINDOW:
            if stream == 0:
                self._window += struct.unpack(">I", payload)[0]
                self._release()
        elif kind in (_SETTINGS, _PING):
            if not flags & _ACK and self._transport is not None:
                self._transport.write(frame(kind, _ACK, 0, b"" if kind == _SETTINGS else payload))
        elif kind in (_RESET, _GOAWAY):
            self._fail(ConnectionResetError("the server ended the call"))

    def _answered(self) -> None:
        self._is_waiting = False
        self.status = OK if len(self._message) >= _MESSAGE.size else FAILED
        self._on_answer(self)

    def _release(self) -> None:
        if self._held is not None and self._transport is not None and self._window >= self._held_size:
            self._window -= self._held_size
            self._transport.write(self._held)
            self._held = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:  # it was not us
            self._transport = None
            self._fail(exc or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.close()
        if self._is_waiting:
            self._is_waiting = False
            self.status = UNANSWERED
            self._on_answer(self)

    def content(self) -> bytes:
        return self._message[_MESSAGE.size :]

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


def grpc_connect(address: Address, method: str, messages: Sequence[bytes], metadata: Mapping[str, str]) -> Connect:
    """`messages` are serialised. Raises ValueError when one does not fit a frame."""
    framed = [_MESSAGE.pack(0, len(message)) + message for message in messages]
    if (largest := max(map(len, framed))) > LARGEST_FRAME:
        raise ValueError(f"a message of {largest} bytes does not fit a frame")
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": f"{address[0]}:{address[1]}",
        "te": "trailers",
        "content-type": "application/grpc",
        **metadata,
    }
    block = fields_block(fields)

    async def connect(on_answer: Callable[[Caller], None]) -> Caller:
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: GrpcCaller(block, framed, on_answer), *address)
        return caller

    return connect
