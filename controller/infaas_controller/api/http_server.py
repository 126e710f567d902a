"""How the REST application is served: uvicorn, with an answer's header and body in one send (SURFACE rule 16).

uvicorn writes header and body apart, which `TCP_NODELAY` turns into two segments, two system calls and two wake-ups of
the caller. The protocol here holds the first write of an answer back until the second, or until the loop comes round.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

JOIN_BYTES = 64 * 1024


class JoiningTransport:
    """A transport whose writes of one loop iteration leave together. Everything else is the real one's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._held = data
            # A header whose body comes later (a stream of events) must not wait for it.
            self._loop.call_soon(self._flush)
            return
        held, self._held = self._held, None
        if len(data) <= JOIN_BYTES:
            self._transport.write(held + data)
        else:  # many segments anyway: not worth a copy
            self._transport.write(held)
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class OneSendProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]


def server_config(app: Any, **options: Any) -> uvicorn.Config:
    """What the REST and metrics ports are served with; `options` go over it."""
    chosen: dict[str, Any] = {
        "http": OneSendProtocol,
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": True,
        "lifespan": "off",
        "timeout_keep_alive": 75,
    }
    return uvicorn.Config(app, **(chosen | options))
