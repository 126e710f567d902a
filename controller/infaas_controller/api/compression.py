"""Compressed answers, for callers who ask for them as Triton's clients do: `Accept-Encoding` with exactly one coding.

HTTP libraries send a list of codings by themselves ("gzip, deflate"), which says what they could read and not that
anybody wants it; compressing tensors for all of them would cost more than the bytes it saves. A list gets the plain
answer.
"""

from __future__ import annotations

import asyncio
import zlib

IN_THREAD_BYTES = 64 * 1024
LEVEL = 1
"""Tensors compress little at any level, and most of that at this one."""
_WBITS = {"gzip": 31, "deflate": 15}


def coding_of(accept_encoding: str | None) -> str | None:
    """`gzip`, `deflate`, or None for an answer as it is."""
    if accept_encoding is None:
        return None
    name, _, weight = accept_encoding.strip().lower().partition(";")
    if weight.replace(" ", "").rstrip("0") in ("q=", "q=0."):
        return None
    return name.strip() if name.strip() in _WBITS else None


async def compressed(body: bytes, coding: str) -> bytes:
    """A large body is compressed in a thread: the loop has other queries to see to."""
    if len(body) <= IN_THREAD_BYTES:
        return compress(body, coding)
    return await asyncio.to_thread(compress, body, coding)


def compress(body: bytes, coding: str) -> bytes:
    machine = zlib.compressobj(LEVEL, wbits=_WBITS[coding])
    return machine.compress(body) + machine.flush()
