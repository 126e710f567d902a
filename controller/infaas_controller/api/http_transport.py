"""The writing half of a REST connection: what is written in one turn of the loop leaves together (SURFACE rule 16).

uvicorn writes header and body apart, which `TCP_NODELAY` turns into two segments, two system calls and two wake-ups of
the caller. The transport here holds the first write of an answer back until the second, or until the loop comes round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

JOIN_BYTES = 64 * 1024


class JoiningTransport:
    """A transport whose writes of one loop iteration leave together. Everything else is the real one's.

    `takes_close` is asked before the connection is closed; True means that its owner closes it later.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, takes_close: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._takes_close = takes_close
        self._held: bytes | memoryview | None = None
        self._is_paused = self._is_resting = False
        self.unread_s = 0.0
        """How long what is read now may have lain there (`http_resting`)."""

    def write(self, data: bytes | memoryview) -> None:
        held, self._held = self._held, None
        if len(data) > JOIN_BYTES:  # many segments anyway: not worth a copy
            if held is not None:
                self._transport.write(held)
            self._transport.write(data)
        elif held is not None:
            self._transport.write(b"".join((held, data)))
        else:
            self._held = data
            # A header whose body comes later (a stream of events) must not wait for it.
            self._loop.call_soon(self._flush)

    def write_whole(self, data: bytes | memoryview) -> None:
        """What is complete: nothing that could join it follows."""
        if self._held is not None:
            self._flush()
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        if not self._takes_close():
            self._transport.close()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if not self._is_resting:
            self._transport.resume_reading()

    def rest(self) -> None:
        """Read nothing until `wake`, whatever the flow of what is read says meanwhile."""
        self._is_resting = True
        self._transport.pause_reading()

    def wake(self) -> None:
        self._is_resting = False
        if not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
