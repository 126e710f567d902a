"""A REST connection without uvicorn, for as long as its requests are usual queries: what ADR 19 was weighed against.

An `asyncio.Protocol` of its own with httptools, and the product's `Exchange` behind it. The first request that is not a
usual query, does not come whole in time, or comes before the last one was answered gets the connection handed to
uvicorn's protocol, with what has come of it, and for good. Not part of the product: it is here to be measured, and does
what a server must do for what it serves itself (idle connections end, headers and bodies have a time and a size, a
caller who does not read is not written to for ever, a connection that is lost drops its query, a shutdown closes it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import httptools
from infaas_controller.api.http_exchange import Exchange
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_limits import Limits
from uvicorn.server import ServerState

Buffer = bytes | memoryview


class OwnProtocol(asyncio.Protocol):
    def __init__(
        self,
        fast: FastInfer,
        state: ServerState,
        limits: Limits,
        keep_alive_s: float,
        otherwise: Callable[[], asyncio.Protocol],
    ) -> None:
        """`otherwise` makes the protocol that serves every request."""
        self._fast = fast
        self._state = state
        self._limits = limits
        self._keep_alive_s = keep_alive_s
        self._otherwise = otherwise
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._came = b""
        """Of the request that is not whole yet."""
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._exchange: Exchange | None = None
        self._is_whole = self._is_unusual = self._is_serving = self._is_congested = self._is_ending = False
        self._idle_since: float | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        exchange = self._exchange
        if exchange is not None and not exchange.response_complete:
            exchange.disconnected = True
            exchange.set()

    def shutdown(self) -> None:
        """As uvicorn asks of its own."""
        self._is_ending = True
        if self._transport is not None and not self._is_serving:
            self._transport.close()

    def pause_writing(self) -> None:
        self._is_congested = True

    def resume_writing(self) -> None:
        self._is_congested = False

    # -- what comes in

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        exchange: Exchange | bytes | None = None
        if self._is_serving or self._is_congested:
            self._hand_over_later(data)
            return
        if not self._came and (exchange := self._fast.exchange_of(self, data)) is not None:
            if isinstance(exchange, bytes):
                self._write((exchange,))
                self._answered()
            elif exchange.prepare():
                self._serve(exchange)
            else:
                self._hand_over(data)
            return
        was_new = not self._came
        self._came += data
        self._parse(data)
        if not self._is_whole:
            self._wait_for_rest()
        elif (parsed := self._exchange) is not None:
            self._came, self._is_whole = b"", False
            if was_new and parsed.keep_alive:
                parsed.learn_from(data)
            self._serve(parsed)

    def _serve(self, exchange: Exchange) -> None:
        self._exchange, self._is_serving = exchange, True
        exchange.start()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_unusual = True
        if self._is_whole and self._exchange is not None and not self._exchange.prepare():
            self._is_unusual = True
        if self._is_unusual:
            self._exchange, self._is_whole = None, False
            self._hand_over(self._came)

    def on_message_begin(self) -> None:
        if self._is_whole:  # behind another one
            self._is_unusual = True
        self._url, self._fields = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self._is_unusual or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            self._is_unusual = True
            return
        self._exchange = self._fast.exchange(self, self._url, self._fields)
        if self._exchange is None or parser.should_upgrade() or not parser.should_keep_alive():
            self._is_unusual = True

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.add(body)

    def on_message_complete(self) -> None:
        self._is_whole = True

    # -- what goes out

    @property
    def standing_fields(self) -> list[tuple[bytes, bytes]]:
        return self._state.default_headers

    def answer(self, exchange: Exchange, pieces: Sequence[Buffer]) -> None:
        exchange.response_started = True
        self._write(pieces)
        exchange.response_complete = True
        self._exchange, self._is_serving = None, False
        self._answered()

    def answer_whole(self, exchange: Exchange, data: bytes, at: float) -> bool:
        if self._transport is None or self._came or self._is_ending:
            return False
        exchange.response_started = True
        self._transport.write(data)
        exchange.response_complete = True
        self._exchange, self._is_serving = None, False
        self._state.total_requests += 1
        self._await_request(at)
        return True

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, pieces: Sequence[Buffer]) -> None:
        if self._transport is not None:
            for piece in pieces:
                self._transport.write(piece)

    def _answered(self) -> None:
        self._state.total_requests += 1
        if self._came:
            came, self._came = self._came, b""
            self._hand_over(came)
        elif self._is_ending and self._transport is not None:
            self._transport.close()
        else:
            self._await_request()

    # -- time, and the end

    def _await_request(self, now: float | None = None) -> None:
        self._idle_since = self._loop.time() if now is None else now
        if self._idle is None:
            self._idle = self._loop.call_later(self._keep_alive_s, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        self._idle = None
        if self._idle_since is None or self._transport is None:
            return
        left_s = self._idle_since + self._keep_alive_s - self._loop.time()
        if left_s > 0:
            self._idle = self._loop.call_later(left_s, self._look_whether_idle)
        else:
            self._transport.close()

    def _wait_for_rest(self) -> None:
        if self._exchange is None and len(self._came) > self._limits.header_bytes:
            self._hand_over(self._came)
        elif self._came and self._watch is None:
            self._watch = self._loop.call_later(self._limits.patience_s, self._hand_over_late)

    def _hand_over_late(self) -> None:
        self._watch = None
        if self._came and not self._is_whole:
            self._hand_over(self._came)

    def _hand_over_later(self, data: bytes) -> None:
        """Once the query that is being served is answered; no more is read until then."""
        self._came += data
        if not self._is_serving:
            self._hand_over(self._came)
        elif self._transport is not None:
            self._transport.pause_reading()

    def _hand_over(self, data: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        self._leave()
        other = self._otherwise()
        transport.set_protocol(other)
        other.connection_made(transport)
        if not transport.is_reading():
            transport.resume_reading()
        other.data_received(data)

    def _leave(self) -> None:
        self._transport, self._came = None, b""
        self._state.connections.discard(self)
        for timer in (self._idle, self._watch):
            if timer is not None:
                timer.cancel()
