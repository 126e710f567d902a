"""Server-sent events: how a caller follows long work."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import StreamingResponse

from infaas.rpc.codec import encode

MEDIA_TYPE = "text/event-stream"


def wants_events(request: Request) -> bool:
    return MEDIA_TYPE in request.headers.get("accept", "")


def events(name: str, documents: AsyncIterator[object | None]) -> StreamingResponse:
    """One event per document; a None becomes a comment, so that proxies keep the connection."""
    return StreamingResponse(_lines(name, documents), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


async def _lines(name: str, documents: AsyncIterator[object | None]) -> AsyncIterator[bytes]:
    async for document in documents:
        if document is None:
            yield b": still there\n\n"
        else:
            yield b"event: " + name.encode() + b"\ndata: " + encode(document) + b"\n\n"
