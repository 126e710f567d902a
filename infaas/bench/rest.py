"""Queries over HTTP/1.1 that cost their sender little: prepared bytes out, a parsed answer in, a pool of connections.

For load generators, where a comfortable client would be the bound. A connection takes further queries before the
answers of the earlier ones are there (pipelining); the pool gives each query a connection of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import quote, urlsplit

import httptools

from infaas.bench.reply import FOREIGN, OK, Reply
from infaas.client_tensors import Array, request_parts, response_arrays

OutputsOf = Callable[[Reply], dict[str, Array]]
BINARY_LENGTH = "inference-header-content-length"


def query_bytes(
    handle: str,
    inputs: Mapping[str, Array],
    headers: Mapping[str, str],
    *,
    is_binary: bool = True,
    url: str = "http://infaas",
) -> bytes:
    """A whole request to the server of that URL, whose path comes before the request's own."""
    parts = urlsplit(url)
    body, raw = request_parts(inputs, (), is_binary=is_binary)
    head = json.dumps(body, separators=(",", ":")).encode()
    content = b"".join([head, *raw])
    kind = "application/octet-stream" if is_binary else "application/json"
    lines = [
        f"POST {parts.path.rstrip('/')}/v2/models/{quote(handle, safe='')}/infer HTTP/1.1",
        f"host: {host_of(url)}",
        f"content-type: {kind}",
        *([f"{BINARY_LENGTH}: {len(head)}"] if is_binary else ()),
        f"content-length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


def host_of(url: str) -> str:
    """As the `Host` field says it (RFC 9110, 7.2): with the port where the URL states one, an IPv6 address in brackets,
    and without the user."""
    return urlsplit(url).netloc.rpartition("@")[2]


def outputs_of(reply: Reply) -> dict[str, Array]:
    """The arrays of an answer."""
    length = int(reply.fields.get(BINARY_LENGTH, len(reply.content)))
    return response_arrays(json.loads(reply.content[:length])["outputs"], reply.content[length:])


class NeverAnsweredError(ConnectionResetError):
    """The connection ended before it carried any answer: nobody may ever have taken it, where a listener ended while it
    waited there."""


class Connection(asyncio.Protocol):
    """Answers come in the order of the queries. Once it is lost or an answer announced its end, it is not open."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._has_answered = False
        self.unasked = 0
        """Answers that no query was waiting for; anything but 0 is the server's mistake."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def ask(self, query: bytes) -> asyncio.Future[Reply]:
        """The future fails with ConnectionError when the connection ends first."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(ConnectionResetError("the connection is closed"))
            return future
        self._waiting.append(future)
        self._transport.write(query)
        return future

    def abort(self) -> None:
        """The only way to take back a query over HTTP/1.1."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()  # whoever waits is told by the loss

    def connection_lost(self, exc: Exception | None) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                kind = ConnectionResetError if self._has_answered else NeverAnsweredError
                error = kind("the connection ended before the answer")
                error.__cause__ = exc
                future.set_exception(error)

    # What httptools tells

    def on_message_begin(self) -> None:
        self._fields = {}
        self._pieces = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # an interim answer
        if not self._waiting:
            self.unasked += 1
            self.abort()
            return
        self._has_answered = True
        future = self._waiting.popleft()
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if not future.done():
            future.set_result(_reply(status, self._fields, b"".join(self._pieces)))


class RestPool:
    """Connections to one server, at most `most`; beyond that a query waits here for one to become idle."""

    def __init__(self, url: str, *, most: int = 1_024) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._most = most
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._queue: deque[asyncio.Future[None]] = deque()
        self.waited = 0
        """Queries that found no connection free and none allowed."""

    async def ask(self, query: bytes) -> Reply:
        """Raises OSError when no connection can be made or it ends before the answer. Cancelling takes it back."""
        connection = await self._take()
        try:
            reply = await connection.ask(query)
        except BaseException:
            connection.abort()
            raise
        finally:
            self._give(connection)
        return reply

    def close(self) -> None:
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()

    async def _take(self) -> Connection:
        while True:
            while self._idle:
                if (connection := self._idle.pop()).is_open:
                    return connection
                self._open.discard(connection)
            if len(self._open) < self._most:
                return await self._dial()
            self.waited += 1
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # it was our turn, and it is somebody else's now
                raise

    async def _dial(self) -> Connection:
        connection = Connection()
        self._open.add(connection)  # counts while it is being made
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._is_tls or None)
        except BaseException:
            self._open.discard(connection)
            self._wake()
            raise
        return connection

    def _give(self, connection: Connection) -> None:
        if connection.is_open:
            self._idle.append(connection)
        else:
            self._open.discard(connection)
        self._wake()

    def _wake(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return


def _reply(status: int, fields: Mapping[str, str], content: bytes) -> Reply:
    if status == 200:
        return Reply(OK, False, fields, content)
    try:
        said = json.loads(content)
        return Reply(str(said["code"]), bool(said.get("retryable", False)), fields, content)
    except (ValueError, TypeError, KeyError):
        return Reply(f"{FOREIGN}-{status}", False, fields, content)
