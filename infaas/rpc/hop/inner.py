"""A connection of the hop between two ends in one process, on one event loop: nothing is framed and no system is asked.

Heads and tensors are handed over as they are; only tensors that a reader must have in one piece are joined. Between two
that take what is `given`, plain batches are not even written. To handlers and owners it behaves as `endpoint` does:
what is sent arrives in order, in a later turn of the loop (or when an owner says so: `hold`) and together with all that
the same turn sent; a peer that does not read is seen, and has a bound; the end is told once to each side. Silence is no
sign of anything here: both ends stand and fall with their one loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from infaas.rpc.hop import endpoint
from infaas.rpc.hop.endpoint import HIGH_BYTES, Handler
from infaas.rpc.hop.frames import LIMIT_BYTES, VERSION, Buffer, FrameError, checked_size
from infaas.rpc.hop.given import Given

_NOTHING = memoryview(b"")
_LEFT = "the peer ended the connection"
_SETTLED_AT_ONCE = 8
"""There and back; what goes on longer waits for the loop."""


class Meet(Protocol):
    """How to connect to somebody in this process. Raises OSError when nobody is there."""

    def __call__(self, handler: Handler) -> InnerEnd: ...


@runtime_checkable
class Taker(Protocol):
    """A handler that takes what need not be written for it."""

    def given(self, what: Given) -> None:
        """As `received`, in its order."""


def pair(one: Handler, two: Handler) -> tuple[InnerEnd, InnerEnd]:
    """Two connected ends, with these handlers. Needs a running loop."""
    ends = InnerEnd(one), InnerEnd(two)
    ends[0].join(ends[1])
    ends[1].join(ends[0])
    return ends


class _Sent(NamedTuple):
    """None for a head: the greeting."""

    head: bytes | Given | None
    payload: memoryview
    size: int


class InnerEnd:
    """A `Connection`. Made by `pair`."""

    _peer: InnerEnd

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._taker = handler if isinstance(handler, Taker) else None
        self._loop = asyncio.get_running_loop()
        self._limit_bytes = LIMIT_BYTES
        self._inbox: deque[_Sent] = deque()
        self._inbox_bytes = 0
        self._is_due = False
        self._is_paused = False
        self._is_over = False
        self._has_peer_left = False
        self._is_held = False
        self._room = asyncio.Event()
        self._room.set()
        self._taken = asyncio.Event()
        """Set whenever the peer has taken everything."""
        self.ended: asyncio.Future[str] = self._loop.create_future()

    def join(self, peer: InnerEnd) -> None:
        self._peer = peer

    # -- for the owner

    @property
    def is_congested(self) -> bool:
        return not self._room.is_set()

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._is_over else self._peer._inbox_bytes

    def serve(self, handler: Handler, *, silence_s: float = 0.0, limit_bytes: int = LIMIT_BYTES) -> None:
        """From now on it is this handler's. `silence_s` means nothing here."""
        self._handler = handler
        self._taker = handler if isinstance(handler, Taker) else None
        self._limit_bytes = limit_bytes

    def greet(self, version: int = VERSION) -> None:
        """Both ends are one program, so there is nothing to agree on."""
        self._put(_Sent(None, _NOTHING, 0))

    def send(self, head: bytes, segments: Sequence[Buffer] = ()) -> None:
        """The segments must not change any more: the peer reads them where they lie. What is sent after the end goes
        nowhere. Raises FrameError, and sends nothing, when it is too large."""
        size = len(head) + checked_size(head, segments)
        self._send(_Sent(head, _joined(segments), size))

    @property
    def can_give(self) -> bool:
        """Whether the peer takes what is given."""
        return self._peer._taker is not None

    def give(self, what: Given) -> None:
        """As `send`, to a peer that takes it (`can_give`)."""
        self._send(_Sent(what, _NOTHING, what.checked_size()))

    def _send(self, sent: _Sent) -> None:
        self._put(sent)
        if self.is_congested and self.unsent_bytes > endpoint.UNSENT_LIMIT_BYTES:
            # Later: whoever sends is in the middle of something that must not hear of the end.
            self._loop.call_soon(self.cut, f"{self.unsent_bytes} bytes were left unread")

    def pause(self, is_paused: bool) -> None:
        self._is_paused = is_paused
        if not is_paused:
            self._look_soon()

    def hold(self) -> None:
        """What is sent from here on is told by `settle`, which must follow in the same turn."""
        self._is_held = self._peer._is_held = True

    def settle(self) -> None:
        """Tell the peer what it was sent and hear what it says to that, as far as that goes without anybody waiting.
        Not to be called by a handler of either end."""
        peer = self._peer
        try:
            for _ in range(_SETTLED_AT_ONCE):
                if peer._inbox and not peer._is_paused:
                    peer._look()
                if not self._inbox or self._is_paused:
                    return
                self._look()
        finally:
            self._is_held = peer._is_held = False
            self._look_soon()
            peer._look_soon()

    async def flushed(self) -> None:
        """Until the peer has everything that was sent, or the connection is over."""
        while self.unsent_bytes:
            self._taken.clear()
            await self._taken.wait()

    def close(self, reason: str) -> None:
        """End it; the peer is still told what was sent before."""
        self._end(reason)

    def cut(self, reason: str) -> None:
        """End it now; what the peer was not told is dropped."""
        if not self._is_over:
            self._peer._forget()
        self._end(reason)

    async def gone(self) -> None:
        await asyncio.shield(self.ended)

    # -- inside

    def _put(self, sent: _Sent) -> None:
        peer = self._peer
        if self._is_over or peer._is_over:
            return
        peer._inbox.append(sent)
        peer._inbox_bytes += sent.size
        peer._look_soon()

    def _look_soon(self) -> None:
        if self._is_held or self._is_due or self._is_over:
            return
        if self._inbox or self._has_peer_left:
            self._is_due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Tell the handler what came, and whoever sent it how far that is."""
        self._is_due = False
        try:
            self._tell()
        except FrameError as error:
            self.cut(f"the peer broke the protocol: {error}")
        except Exception as error:  # a handler's fault; it has said what it is where it is known
            self.cut(f"{type(error).__name__}: {error}")
        if self._has_peer_left:
            self._end(_LEFT)
        elif not self._is_over:
            self._peer._note_progress()

    def _tell(self) -> None:
        """Nothing more can come of a peer that has left: what it sent is told whether reading is paused or not."""
        inbox = self._inbox
        while inbox and (not self._is_paused or self._has_peer_left) and not self._is_over:
            head, payload, size = inbox.popleft()
            self._inbox_bytes -= size
            if size > self._limit_bytes:
                raise FrameError(f"a frame of {size} bytes is announced; {self._limit_bytes} are allowed")
            if head is None:
                self._handler.met(VERSION)
            elif isinstance(head, bytes):
                if size:
                    self._handler.received(head, payload)
            elif self._taker is None:
                raise FrameError("what is given is not taken here")
            else:
                self._taker.given(head)

    def _note_progress(self) -> None:
        """The peer has taken some of what was sent, or leaves it."""
        unsent = self.unsent_bytes
        if not unsent:
            self._taken.set()
        if self.is_congested and not unsent:
            self._room.set()
            self._handler.congested(False)
        elif not self.is_congested and unsent > HIGH_BYTES:
            self._room.clear()
            self._handler.congested(True)

    def _forget(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0

    def _end(self, reason: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._forget()
        self._room.set()
        self._taken.set()
        self.ended.set_result(reason)
        self._peer._left()
        self._handler.lost(reason)

    def _left(self) -> None:
        """The other end is over: no more comes, and nothing arrives there."""
        self._has_peer_left = True
        self._taken.set()
        self._look_soon()


def _joined(segments: Sequence[Buffer]) -> memoryview:
    if len(segments) == 1:
        return memoryview(segments[0]).toreadonly()
    return memoryview(b"".join(segments)) if segments else _NOTHING
