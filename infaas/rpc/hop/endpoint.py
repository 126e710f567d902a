"""One end of a connection of the hop: a socket, its frames, and how far each side may run ahead of the other.

Sending never blocks: what one turn of the event loop sends leaves together at its end, in one call to the system. A
peer that does not read is seen by `is_congested`; one that leaves more than `UNSENT_LIMIT_BYTES` unread is cut off, so
memory is bounded whatever it does.
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
    Frame,
    FrameError,
    FrameReader,
    checked_size,
    pack,
    pack_elsewhere,
    preface,
    version_of,
)
from infaas.rpc.hop.shared import Place, Pool, SharedMemoryError, Window, is_worth_sharing, peer_of
from infaas.rpc.hop.traffic import Traffic, TrafficCounts

UNSENT_LIMIT_BYTES = 2 * LIMIT_BYTES
LINGER_S = 5.0
"""How long what was sent before the end has to leave."""
HIGH_BYTES = 2**20
_JOIN_BYTES = 2**16
"""Up to here one copy is cheaper than handing the system a list of pieces."""
_LAST_LOOK_S = 0.05


class Handler(Protocol):
    """Who is told what happens on a connection. Calls come on the loop and must not block; one that raises ends the
    connection, with the error as its reason."""

    def met(self, version: int) -> None:
        """The peer speaks this protocol, in that version."""

    def stranger(self, first: bytes) -> None:
        """The peer opened with something else. Unless the connection is given away now, it is ended."""

    def received(self, head: bytes, payload: memoryview) -> None: ...

    def congested(self, is_congested: bool) -> None:
        """The peer reads more slowly than it is written to, or has caught up."""

    def lost(self, reason: str) -> None:
        """The connection is over. Told once, and nothing after it."""


class Connection(Protocol):
    """One end of a connection as its owner has it, whatever lies between the two: a socket here, nothing in `inner`."""

    @property
    def is_congested(self) -> bool:
        """Whether the peer reads more slowly than it is written to."""

    @property
    def unsent_bytes(self) -> int:
        """What was sent and is not out of this end's hands."""

    ended: asyncio.Future[str]
    """Done once the connection is over and nothing is left of it; the result says why."""

    def serve(self, handler: Handler, *, silence_s: float, limit_bytes: int = LIMIT_BYTES) -> None: ...

    def greet(self, version: int = VERSION) -> None: ...

    def send(self, head: bytes, segments: Sequence[Buffer] = ()) -> None: ...

    def pause(self, is_paused: bool) -> None: ...

    async def flushed(self) -> None: ...

    def close(self, reason: str) -> None: ...

    def cut(self, reason: str) -> None: ...

    async def gone(self) -> None: ...


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
        self.pool: Pool | None = None
        """What this end lends to the peer, until the connection is over."""
        self.window: Window | None = None
        """On what the peer lends."""
        self.counts = TrafficCounts()
        """Of large payloads. Its owner may put others in its place before any memory is shared."""
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(limit_bytes)
        self._transport: asyncio.Transport | None = None
        self._has_met = False
        self._is_over = False
        self._reason = ""
        self._outbox: list[Buffer] = []
        self._outbox_bytes = 0
        self._heard_at = self._said_at = self._loop.time()
        self._unsent_before = 0
        self._silence: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
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
        return self._outbox_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    def serve(self, handler: Handler, *, silence_s: float, limit_bytes: int = LIMIT_BYTES) -> None:
        """From now on it is this handler's, with these limits for the peer."""
        self._handler = handler
        self._silence_s = silence_s
        self._reader.limit_bytes = limit_bytes

    def peer(self) -> int:
        """The process at the other end. Raises SharedMemoryError when no memory can be shared with it."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None:
            raise SharedMemoryError("there is no connection")
        return peer_of(sock)

    def lend(self, pool: Pool) -> None:
        """Large payloads go through it from now on, while it has room: the peer has a window on it."""
        if self._is_over:
            pool.hide()
        else:
            self.pool = pool

    def look(self, window: Window) -> None:
        """Payloads may come from the peer's pool from now on."""
        if not self._is_over:
            self.window = window
            self._reader.find = self._find

    @property
    def traffic(self) -> Traffic:
        """What `counts` says."""
        return self.counts.so_far()

    def greet(self, version: int = VERSION) -> None:
        """Say which protocol this is; before anything else is sent."""
        self._put([preface(version)])

    def send(self, head: bytes, segments: Sequence[Buffer] = ()) -> None:
        """The segments must not change until they have left. What is sent after the end goes nowhere. Raises
        FrameError, and sends nothing, when it is too large."""
        place: Place | None = None
        if self.pool is not None and not self._is_over and is_worth_sharing(size := checked_size(head, segments)):
            place = self.pool.put(segments, size)
            if place is None:
                self.counts.sent_without_room()
            else:
                self.counts.sent(size)
        self._put(pack(head, segments) if place is None else pack_elsewhere(head, place))
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
        self._flush()
        if self._is_over or self._transport is None or not self.unsent_bytes:
            return
        self._transport.set_write_buffer_limits(high=0)
        try:
            await self._room.wait()
        finally:
            if not self._is_over:
                self._transport.set_write_buffer_limits(high=HIGH_BYTES)

    def close(self, reason: str) -> None:
        """End it after what was sent has left, or could not leave within `LINGER_S`."""
        self._flush()
        self._end(reason)
        if self._transport is not None:
            self._transport.close()

    def cut(self, reason: str) -> None:
        """End it now; what has not left is dropped."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    async def gone(self) -> None:
        """After the end: until the socket is closed."""
        if self._transport is not None:
            await asyncio.shield(self.ended)

    def give_away(self, protocol: asyncio.BufferedProtocol) -> asyncio.Transport:
        """The connection is somebody else's from now on; for this end it is over, and its handler hears no more."""
        if self._transport is None:
            raise RuntimeError("there is no connection to give away")
        transport, self._transport = self._transport, None
        self._is_over = True
        self._stop()
        transport.set_protocol(protocol)
        self._finish("")
        return transport

    # -- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_over:
            self._transport.abort()
            return
        _tune(self._transport)
        self._transport.set_write_buffer_limits(high=HIGH_BYTES)
        self._heard_at = self._said_at = self._loop.time()
        self._silence = self._loop.call_later(self._silence_s, self._listen_hard, False)
        if self._beat_s is not None:
            self._beating = self._loop.call_later(self._beat_s, self._beat, self._beat_s)

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
            self._take(self._reader.took(nbytes))
            while self._reader.is_holding_back and not self._is_over:
                self._take(self._reader.took(0))
        except FrameError as error:
            self.cut(f"the peer broke the protocol: {error}")
        except Exception as error:  # a handler's fault; it has said what it is where it is known
            self.cut(f"{type(error).__name__}: {error}")

    def eof_received(self) -> bool:
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
        if self._lingering is not None:
            self._lingering.cancel()
        self._finish(self._reason)

    # -- inside

    def _take(self, frames: list[Frame]) -> None:
        if passed_by := self._reader.passed_by:
            self._reader.passed_by = 0
            self.counts.received_without_room(passed_by)
        for head, payload in frames:
            if head or payload:
                self._handler.received(head, payload)
            if self._is_over:
                return

    def _put(self, pieces: list[Buffer]) -> None:
        if self._is_over or self._transport is None:
            return
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox += pieces
        self._outbox_bytes += sum(map(len, pieces))
        if self._beat_s is not None:
            self._said_at = self._loop.time()

    def _flush(self) -> None:
        """Hand over what was sent in this turn of the loop."""
        outbox, size = self._outbox, self._outbox_bytes
        if not outbox or self._transport is None:
            return
        self._outbox, self._outbox_bytes = [], 0
        if size <= _JOIN_BYTES:
            self._transport.write(b"".join(outbox))
        else:
            self._transport.writelines([piece for piece in outbox if len(piece)])

    def _find(self, place: Place) -> memoryview:
        if self.window is None:
            raise FrameError("a payload lies in memory that is not shared")
        try:
            found = self.window.view(place)
        except SharedMemoryError as error:
            raise FrameError(f"a payload cannot lie there: {error}") from error
        self.counts.received(place.size_bytes)
        return found

    def _meet(self) -> bool:
        """Whether what came so far opens with this protocol's preface, and the handler goes on."""
        first = self._reader.waiting()
        if len(first) < PREFACE_BYTES:
            return False
        version = version_of(first)
        if version is None:
            said = bytes(first)
            self._handler.stranger(said)
            self.cut(f"the peer does not speak this protocol: it opened with {said[:24]!r}")
            return False
        self._has_met = True
        self._reader.skip(PREFACE_BYTES)
        self._handler.met(version)
        return not self._is_over

    def _end(self, reason: str) -> None:
        """Tell the handler, once. What has not been handed over by now is dropped."""
        if self._is_over:
            return
        self._is_over = True
        self._reason = reason
        self._stop()
        self._outbox, self._outbox_bytes = [], 0
        self._room.set()
        if self._transport is not None:
            self._lingering = self._loop.call_later(LINGER_S, self._transport.abort)
        self._handler.lost(reason)
        self.pool = self.window = None

    def _finish(self, reason: str) -> None:
        self._room.set()
        if not self.ended.done():
            self.ended.set_result(reason)

    def _stop(self) -> None:
        for timer in (self._silence, self._beating):
            if timer is not None:
                timer.cancel()
        if self.window is not None:
            self.window.close()
        self._reader.find = None

    def _listen_hard(self, is_last_look: bool) -> None:
        """Silence is told from a stall of our own by looking once more, after what has come meanwhile was read."""
        if self._is_over:
            return
        if self.is_congested and self.unsent_bytes < self._unsent_before:  # it reads, and may have to before it speaks
            self._heard_at = self._loop.time()
        self._unsent_before = self.unsent_bytes
        left_s = self._heard_at + self._silence_s - self._loop.time()
        if left_s > 0:
            self._silence = self._loop.call_later(left_s, self._listen_hard, False)
        elif not is_last_look:
            self._silence = self._loop.call_later(_LAST_LOOK_S, self._listen_hard, True)
        else:
            self.cut(f"nothing was heard for {self._silence_s:g} s")
        if self.pool is not None:
            self.pool.rest()

    def _beat(self, beat_s: float) -> None:
        left_s = self._said_at + beat_s - self._loop.time()
        if left_s <= 0:
            self._put([ALIVE])
            left_s = beat_s
        self._beating = self._loop.call_later(left_s, self._beat, beat_s)


def refused_version(version: int) -> str:
    """Why a peer of another version is turned away."""
    older = "older" if version < VERSION else "newer"
    return f"version {version} of the worker protocol is {older} than version {VERSION}, which is spoken here"


def _tune(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
