"""The requests of one REST connection, as long as its caller behaves: uvicorn's HTTP/1.1 protocol with bounds.

The bounds are those of Apache's mod_reqtimeout and nginx's lingering close: a request's header comes within a time and
a size, its body at a least rate (a slow caller earns time with every byte), and an answer is taken at some rate. How
long it waits beside that for a caller who says or takes nothing is `http_patience`'s part. What breaks a bound or the
protocol itself is answered in the words of SURFACE §3, after the answers of the requests before it; what follows a
request that asked for the connection's end is nobody's (RFC 9112, 9.6). An answer that was given before the request was
wholly read closes the connection, but not before the caller had the time to read it: the rest of the request is thrown
away meanwhile, never kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.observe.log import get_logger
from infaas_controller.api.headers import fresh_caller
from infaas_controller.api.http_exchange import Exchange
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_limits import (
    AfterLastError,
    HeaderTooLargeError,
    Limits,
    NoPathError,
    allowed_s,
    explained,
    header_too_large,
)
from infaas_controller.api.http_literal import head_without_upgrade, last_answer
from infaas_controller.api.http_patience import PatientProtocol
from infaas_controller.api.http_transport import JoiningTransport

_log = get_logger(__name__)


class BoundedProtocol(PatientProtocol):
    """Parser callbacks and transport events of one connection; all on the loop that serves it."""

    cycle: RequestResponseCycle | Exchange  # type: ignore[assignment]

    def __init__(self, limits: Limits, fast: FastInfer | None, *args: Any, **options: Any) -> None:
        """`fast` None: every request goes the ordinary way."""
        super().__init__(limits, *args, **options)
        self._fast = None if self.root_path or self.limit_concurrency is not None else fast
        self._prepared: Exchange | None = None
        """To be started when all that came with it has been parsed."""
        self._is_header = False
        self._began_at = 0.0
        self._received = 0
        self._piece = self._first_piece = 0
        self._keeps_alive = False
        self._is_upgrade = False
        self._is_shutting_down = False
        self._unanswered: deque[RequestResponseCycle | Exchange] = deque()
        """Requests whose header was read, oldest first: the first runs, the others wait for its answer."""
        self._refusal: tuple[int, InfaasError] | None = None
        """To be sent once the requests before the refused one are answered."""
        self._watch: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = JoiningTransport(transport, self.loop, self._takes_close)
        super().connection_made(self._joining)  # type: ignore[arg-type]
        if len(self.connections) > self._limits.connections:  # this one is among them
            self._refuse_connection()
        else:
            self._await_first_byte()

    def _refuse_connection(self) -> None:
        limit = self._limits.connections
        if len(self.connections) > limit + self._limits.told:
            self.transport.abort()
            return
        text = f"{limit} connections are open, and no more are taken (controller.max_connections); try again later"
        self._send_refusal(503, InfaasError(text, code=Code.UNAVAILABLE, is_retryable=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        if self._watch is not None:
            self._watch.cancel()
        try:
            for cycle in list(self._unanswered):  # uvicorn tells the newest alone
                cycle.disconnected = True
                cycle.message_event.set()
        finally:
            self._unanswered.clear()
            super().connection_lost(exc)

    def shutdown(self) -> None:
        self._is_shutting_down = True
        super().shutdown()

    # What comes in

    def data_received(self, data: bytes) -> None:
        if self._fast is not None:
            self._fast.shedding.turns.reads(self._joining)
        if self._is_deaf:
            self._is_receiving = True  # a close must still wait for the caller to hear his answer
            return
        self._idle_since = None
        was_between = not self._is_receiving and not self._unanswered
        if was_between and self._unparsed(data):
            return
        self._received += len(data)
        self._piece = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if self._is_deaf:
                self._is_receiving = True
            else:
                self._refuse(*explained(error, self._limits))
        else:
            self._look_after_feeding()
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            if was_between and len(self._unanswered) == 1 and prepared.keep_alive:
                prepared.learn_from(data)
            self.flow.resume_reading()  # whatever came behind it: word that the caller leaves must reach us
            prepared.start()

    def _unparsed(self, data: bytes) -> bool:
        """Serve a request with a header that was parsed before. False: it must be parsed."""
        if self._fast is None or self.flow.write_paused or self._is_shutting_down:
            return False
        unread_s = self._joining.unread_s
        if unread_s:
            self._joining.unread_s = 0.0  # what comes next has not waited
        exchange = self._fast.exchange_of(self, data, unread_s)
        if isinstance(exchange, bytes):
            self._joining.write_whole(exchange)
            self._fast.shedding.resting.told(self._joining)
            self.server_state.total_requests += 1
            self._await_first_byte(self._fast.shedding.turns.began_at)
            return True
        if exchange is None or not exchange.prepare():
            return False
        self.cycle = exchange
        self._unanswered.append(exchange)
        exchange.start()
        return True

    def _look_after_feeding(self) -> None:
        if self._is_receiving:
            if self._is_header and self._received > self._limits.header_bytes:
                self._refuse(*header_too_large(self._limits))
                return
            if self._watch is None:
                self._watch = self.loop.call_later(self._limits.patience_s, self._check_progress)
            if isinstance(self.cycle, Exchange) and self.cycle.more_body and not self.cycle.is_worth_reading():
                self._go_ordinary(self.cycle)
        elif self.cycle is None or self.cycle.response_complete:
            self._await_first_byte()  # blank lines are no request

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                self._is_upgrade = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _without_upgrade(self) -> bytes:
        """The head of a request that asks for another protocol, without that wish.

        Nobody is obliged to upgrade (RFC 9110, 7.8), and there are clients that ask on every first request (Java's).
        The parser takes what follows such a head for the other protocol's, a body too, so it is given another head.
        """
        version = self.parser.get_http_version().encode()
        return head_without_upgrade(self.parser.get_method(), self.url, version, self.headers)

    def on_message_begin(self) -> None:
        if self._is_deaf:
            raise AfterLastError
        self.url = b""
        self.headers = []
        self._is_receiving = self._is_header = True
        self._received = 0  # of later pieces: this one may hold the end of the request before, of any size
        self._first_piece = self._piece
        self._began_at = self.loop.time()

    def on_headers_complete(self) -> None:
        if self._received + self._first_piece > self._limits.header_bytes:  # else there is nothing to count
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.header_bytes:
                raise HeaderTooLargeError
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise NoPathError
            self._is_upgrade = True  # it comes again without that wish
            return
        self.cycle = self._exchange() or self._ordinary()
        self._unanswered.append(self.cycle)
        self._is_header = False
        # An answer that starts before the body is here ends the connection, and says so.
        self._keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def _exchange(self) -> Exchange | None:
        """None: the request goes the ordinary way. One that comes before the last was answered always does."""
        if self._fast is None or self._unanswered or self.flow.write_paused or self._is_shutting_down:
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        exchange = self._fast.exchange(self, self.url, self.headers)
        if exchange is not None:
            exchange.keep_alive = parser.should_keep_alive()
        return exchange

    def _ordinary(self) -> RequestResponseCycle:
        """An ASGI cycle, begun now or in its turn."""
        url, headers = self.url, self.headers
        super().on_message_begin()  # it makes the scope
        self.url, self.headers, self.scope["headers"] = url, headers, headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )  # fmt: skip
        super().on_headers_complete()
        if isinstance(self.cycle, Exchange):
            raise TypeError("uvicorn made no cycle")
        return self.cycle

    def _go_ordinary(self, exchange: Exchange) -> None:
        """The request that is coming in leaves the fast way; nothing has been done for it."""
        is_whole, body = not exchange.more_body, exchange.body
        self.cycle = None  # type: ignore[assignment]
        cycle = self._ordinary()
        self._unanswered[-1] = cycle
        cycle.keep_alive = exchange.keep_alive
        cycle.body += body
        cycle.more_body = not is_whole
        cycle.message_event.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, Exchange):
            if not self.cycle.response_complete:
                self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._is_receiving = False
        cycle = self.cycle
        if not self._is_shutting_down:
            cycle.keep_alive = self._keeps_alive
        self._is_deaf = self._is_deaf or not self._keeps_alive
        if not isinstance(cycle, Exchange):
            super().on_message_complete()
        elif cycle.prepare():
            self._prepared = cycle
        else:
            self._go_ordinary(cycle)

    def _check_progress(self) -> None:
        """Only while a request is incomplete; the next incomplete one starts it anew."""
        self._watch = None
        if self._is_over or self._is_deaf or not self._is_receiving:
            return
        now = self.loop.time()
        if self.flow.read_paused or self._is_waited_for():  # it is we who are slow
            self._began_at, self._received = now, 0
        until = self._began_at + allowed_s(self._limits, self._received, is_header=self._is_header)
        if now < until:
            self._watch = self.loop.call_later(until - now, self._check_progress)
            return
        part = "header" if self._is_header else "body"
        text = (
            f"the request's {part} did not come whole within {now - self._began_at:.0f} s; a header has "
            f"{self._limits.patience_s:g} s, a body that and a second more per {self._limits.least_bytes_per_s:g} bytes"
        )
        self._refuse(408, InfaasError(text, code=Code.INVALID, is_retryable=True))

    # Refusals

    def _is_waited_for(self) -> bool:
        """Whether a request before the one that is coming in has no answer yet."""
        return self._is_header and self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, error: InfaasError) -> None:
        """The last answer of this connection."""
        _log.debug("request refused by the connection", status=status, reason=error.text)
        self._is_deaf = True
        if self.pipeline and self.cycle.more_body:
            # It waits for the answers before it, and will never be whole.
            self.pipeline.popleft()
            self._unanswered.pop()
            self.cycle = self._unanswered[-1]
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # a whole request, and what follows it is broken
                self._refusal = (status, error)
                return
            cycle.disconnected = True  # nobody waits for the answer of a request that will never be whole
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self._send_refusal(status, error)

    def _send_refusal(self, status: int, error: InfaasError) -> None:
        self.transport.write(last_answer(status, error, fresh_caller().request_id))
        self._is_receiving = True  # whatever of it is still on its way
        self.transport.close()

    @property
    def standing_fields(self) -> list[tuple[bytes, bytes]]:
        return self.server_state.default_headers

    def answer(self, exchange: Exchange, pieces: Sequence[bytes | memoryview]) -> None:
        """As an ASGI cycle does it, but at once."""
        exchange.response_started = True
        for piece in pieces:
            self._joining.write_whole(piece)
        exchange.response_complete = True
        if exchange.keep_alive and len(self._unanswered) == 1 and not self.pipeline and self._refusal is None:
            self._end_usual(self.loop.time())
            return
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def answer_whole(self, exchange: Exchange, data: bytes, at: float) -> bool:
        if not exchange.keep_alive or len(self._unanswered) != 1 or self.pipeline or self._refusal is not None:
            return False
        exchange.response_started = True
        self._joining.write_whole(data)
        exchange.response_complete = True
        self._end_usual(at)
        return True

    def abort(self) -> None:
        self.transport.abort()

    def _end_usual(self, at: float) -> None:
        """Of the only request that was here, whose caller stays."""
        self._unanswered.clear()
        self.server_state.total_requests += 1
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._idle_since = at
        if self.timeout_keep_alive_task is None:
            self._await_first_byte(at)

    def on_response_complete(self) -> None:
        """In the place of uvicorn's, which sets a timer for every pause."""
        if self._unanswered:  # else the connection was lost
            self._unanswered.popleft()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._await_first_byte()
        if self._refusal is not None and self.cycle.response_complete and self._linger is None:
            refusal, self._refusal = self._refusal, None
            self._send_refusal(*refusal)
