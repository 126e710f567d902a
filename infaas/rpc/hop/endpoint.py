"""One end of a connection of the hop: a socket, its frames, and how far each side may run ahead of the other.

Writing never blocks: what one turn of the event loop sends leaves in one call to the system where the loop does that
(uvloop, which both programs run on). A peer that does not read is seen by `is_congested`; one that leaves more than
`UNSENT_LIMIT_BYTES` unread is cut off, so memory is bounded whatever it does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol, cast

from infaas.rpc.hop.frames import (
    ALIVE,
    LIMIT_BYTES,
    PREFACE_BYTES,
    VERSION,
    Buffer,
    FrameError,
    FrameReader,
    pack,
    preface,
    version_of,
)

UNSENT_LIMIT_BYTES = 2 * LIMIT_BYTES
_HIGH_BYTES = 2**20
_LAST_LOOK_S = 0.05


class Handler(Protocol):
    """Who is told what happens on a connection. Calls come on the loop and must not block; one that raises ends the
    connection, with the error as its reason."""

    def met(self, version: int) -> None:
        """The peer speaks this protocol, in that version."""

    def stranger(self, first: bytes) -> None:
        """The peer opened with something else. Unless the transport is taken over now, the connection is ended."""

    def received(self, head: bytes, payload: memoryview) -> None: ...

    def congested(self, is_congested: bool) -> None:
        """The peer reads more slowly than it is written to, or has caught up."""

    def lost(self, reason: str) -> None:
        """The connection is over. Told once, and nothing after it."""


class Endpoint(asyncio.BufferedProtocol):
    """Ends when either side ends it, when the peer breaks the protocol, or after `silence_s` without a sign of life.

    `beat_s`: how long to be silent oneself before a sign of life is sent.
    """

    def __init__(
        self, handler: Handler, *, silence_s: float, beat_s: float | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._handler = handler
        self._silence_s = silence_s
        self._beat_s = beat_s
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(limit_bytes)
        self._transport: asyncio.Transport | None = None
        self._has_met = False
        self._is_over = False
        self._reason = ""
        self._heard_at = self._loop.time()
        self._said_at = self._heard_at
        self._unsent_before = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._room = asyncio.Event()
        self._room.set()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Done once the connection is over and its socket closed; the result says why."""

    # -- for the owner

    @property
    def is_congested(self) -> bool:
        return not self._room.is_set()

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise RuntimeError("there is no connection yet")
        return self._transport

    def serve(self, handler: Handler, *, silence_s: float, limit_bytes: int = LIMIT_BYTES) -> None:
        """From now on it is this handler's, with these limits for the peer."""
        self._handler = handler
        self._silence_s = silence_s
        self._reader.limit_bytes = limit_bytes

    def send(self, head: bytes, segments: Sequence[Buffer] = ()) -> None:
        """What is sent after the end goes nowhere. Raises FrameError, and sends nothing, when it is too large."""
        pieces = pack(head, segments)
        if self._is_over or self._transport is None:
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)
        if self._beat_s is not None:
            self._said_at = self._loop.time()
        if self.is_congested and self.unsent_bytes > UNSENT_LIMIT_BYTES:
            # Later: whoever sends is in the middle of something that must not hear of the end.
            self._loop.call_soon(self.cut, f"{self.unsent_bytes} bytes were left unread")

    def pause(self, is_paused: bool) -> None:
        """Whether to leave what comes in the peer's hands."""
        if self._is_over or self._transport is None or self._transport.is_reading() is not is_paused:
            return
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def flushed(self) -> None:
        """Until everything that was sent is the system's, or the connection is over."""
        if self._is_over or not self.unsent_bytes:
            return
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self._room.wait()
        finally:
            if not self._is_over:
                self.transport.set_write_buffer_limits(high=_HIGH_BYTES)

    def close(self, reason: str) -> None:
        """End it after what was sent has left."""
        self._end(reason)
        if self._transport is not None:
            self._transport.close()

    def cut(self, reason: str) -> None:
        """End it now; what has not left is dropped."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    def give_away(self, protocol: asyncio.BufferedProtocol) -> asyncio.Transport:
        """The connection is somebody else's from now on; for this end it is over."""
        self._is_over = True
        self._stop()
        self.transport.set_protocol(protocol)
        self._finish("")
        return self.transport

    # -- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _tune(self._transport)
        self._transport.set_write_buffer_limits(high=_HIGH_BYTES)
        self._heard_at = self._said_at = self._loop.time()
        if self._is_over:
            self._transport.abort()
            return
        self._timers = [self._loop.call_later(self._silence_s, self._listen_hard, False)]
        if self._beat_s is not None:
            self._timers.append(self._loop.call_later(self._beat_s, self._beat))

    def greet(self) -> None:
        """Say which protocol this is; before anything else is sent."""
        if not self._is_over:
            self.transport.write(preface())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_over:
            return
        self._heard_at = self._loop.time()
        try:
            if not self._has_met:
                self._reader.filled(nbytes)
                if not self._meet():
                    return
                nbytes = 0
            for head, payload in self._reader.took(nbytes):
                if self._is_over:
                    return
                if head or payload:
                    self._handler.received(head, payload)
        except FrameError as error:
            self.cut(f"the peer broke the protocol: {error}")
        except Exception as error:  # a handler's fault; whoever owns it logs what it is
            self.cut(f"{type(error).__name__}: {error}")

    def eof_received(self) -> bool:
        if not self._is_over:
            rest = "" if self._reader.is_between_frames else " in the middle of a message"
            self._end(f"the peer ended the connection{rest}")
        return False

    def pause_writing(self) -> None:
        self._room.clear()
        if not self._is_over:
            self._unsent_before = self.unsent_bytes
            self._handler.congested(True)

    def resume_writing(self) -> None:
        self._room.set()
        if not self._is_over:
            self._handler.congested(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke: {exc}" if exc else "the connection was closed")
        self._finish(self._reason)

    # -- inside

    def _meet(self) -> bool:
        """Whether what came so far opens with this protocol's preface."""
        first = self._reader.waiting()
        if len(first) < PREFACE_BYTES:
            return False
        version = version_of(first)
        if version is None:
            said = bytes(first)
            self._handler.stranger(said)
            if not self._is_over:
                self.cut(f"the peer does not speak this protocol: it opened with {said[:24]!r}")
            return False
        self._has_met = True
        self._reader.skip(PREFACE_BYTES)
        self._handler.met(version)
        return not self._is_over

    def _end(self, reason: str) -> None:
        """Tell the handler, once."""
        if self._is_over:
            return
        self._is_over = True
        self._reason = reason
        self._stop()
        self._room.set()
        self._handler.lost(reason)

    def _finish(self, reason: str) -> None:
        self._room.set()
        if not self.ended.done():
            self.ended.set_result(reason)

    def _stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _listen_hard(self, is_last_look: bool) -> None:
        """Silence is told from a stall of our own by looking once more, after what has come meanwhile was read."""
        if self.is_congested and self.unsent_bytes < self._unsent_before:  # it may wait with what it says while it reads
            self._heard_at = self._loop.time()
        self._unsent_before = self.unsent_bytes
        left_s = self._heard_at + self._silence_s - self._loop.time()
        if left_s > 0:
            self._timers[0] = self._loop.call_later(left_s, self._listen_hard, False)
        elif not is_last_look:
            self._timers[0] = self._loop.call_later(_LAST_LOOK_S, self._listen_hard, True)
        else:
            self.cut(f"nothing was heard for {self._silence_s:g} s")

    def _beat(self) -> None:
        assert self._beat_s is not None
        now = self._loop.time()
        left_s = self._said_at + self._beat_s - now
        if left_s <= 0:
            self.transport.write(ALIVE)
            self._said_at, left_s = now, self._beat_s
        self._timers[1] = self._loop.call_later(left_s, self._beat)


def refused_version(version: int) -> str:
    """Why a peer of another version is turned away."""
    older = "older" if version < VERSION else "newer"
    return f"it speaks version {version} of the worker protocol, which is {older} than version {VERSION} spoken here"


def _tune(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
