"""Ends of connections of the hop that remember what they hear, for tests of what travels between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from infaas.rpc.hop.endpoint import Endpoint, Handler
from infaas.rpc.hop.inner import InnerEnd, pair
from infaas.rpc.hop.sharing import Sharing

WAIT_S = 20.0
"""For anything that must happen: far longer than it takes on a busy machine."""


class Heard:
    """A `Handler` that remembers."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.opened_with = b""
        self.frames: list[tuple[bytes, bytes]] = []
        self.congestion: list[bool] = []
        self.reason: str | None = None
        """Why the connection is over."""
        self.ends = 0
        self._news = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until what was heard makes it so."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def over(self) -> str:
        """Wait for the end; why it came."""
        await self.until(lambda: self.reason is not None)
        return self.reason or ""

    def met(self, version: int) -> None:
        self.version = version
        self._news.set()

    def stranger(self, first: bytes) -> None:
        self.opened_with = first

    def received(self, head: bytes, payload: memoryview) -> None:
        self.frames.append((head, bytes(payload)))
        self._news.set()

    def congested(self, is_congested: bool) -> None:
        self.congestion.append(is_congested)
        self._news.set()

    def lost(self, reason: str) -> None:
        self.reason = reason
        self.ends += 1
        self._news.set()


def share_memory(end: Endpoint, other: Endpoint, pool_bytes: int) -> tuple[Sharing, Sharing]:
    """Both ways, as controller and worker come to it, but for the messages."""
    near, far = Sharing(end, pool_bytes, "the other"), Sharing(other, pool_bytes, "the one")
    offer = near.offer()
    if offer is None:
        raise AssertionError(near.reason)
    near.answered(far.answer(offer))
    own = far.offer()
    if own is None:
        raise AssertionError(far.reason)
    far.answered(near.answer(own))
    if not (near.is_lending and far.is_lending):
        raise AssertionError(near.reason or far.reason)
    return near, far


async def connected(one: Handler, two: Handler) -> tuple[Endpoint, Endpoint]:
    """Two ends of one connection, past their greetings. Whoever asks for them ends them."""
    ends = Endpoint(one, silence_s=WAIT_S), Endpoint(two, silence_s=WAIT_S)
    loop = asyncio.get_running_loop()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await loop.create_unix_connection(lambda end=end: end, sock=sock)  # type: ignore[misc]  # bound at once
        end.greet()
    return ends


async def connected_inside(one: Handler, two: Handler) -> tuple[InnerEnd, InnerEnd]:
    """The same within this process, without a socket."""
    ends = pair(one, two)
    for end in ends:
        end.greet()
    return ends
