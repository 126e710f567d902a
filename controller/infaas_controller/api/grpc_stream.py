"""`ModelStreamInfer`: many queries on one call, each answered when it is done.

A query's `id` says which answer is whose, so answers of queries that have one leave in the order of their completion:
a slow query holds up nobody. Queries without an id cannot be told apart, so they are answered in the order they came.
A query's error is its own (`error_message`) and the stream goes on. What is read of the stream is bounded by what was
written of its answers: a caller that does not read its answers is not read from either, and HTTP/2's flow control tells
it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from infaas.domain.query import Code
from infaas.errors import InfaasError, InvalidError

STREAM_DEPTH = 64
"""Queries of one stream that were read and whose answers are not written yet."""

Answerer = Callable[[Any], Awaitable[Any]]
"""From a request to the stream's response. Never raises but by cancellation."""


class QueryStream:
    """One call. `serve` returns once every query that was read has been answered; cancelling it cancels them all."""

    def __init__(self, answer: Answerer, write: Answerer, draining: asyncio.Event) -> None:
        self._answer = answer
        self._write = write
        self._draining = draining
        self._slots = asyncio.Semaphore(STREAM_DEPTH)
        self._done: asyncio.Queue[Any] = asyncio.Queue()
        self._open: set[asyncio.Task[None]] = set()
        self._broken: InfaasError | None = None

    async def serve(self, requests: AsyncIterator[Any]) -> None:
        """Raises InvalidError for a message that is none, and a draining error when the server stops: in both cases
        only after what had been read was answered."""
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(requests, group), name="stream-reader")
            group.create_task(self._end_after(reader), name="stream-end")
            while (response := await self._done.get()) is not None:
                await self._write(response)
                self._slots.release()
        if self._broken is not None:
            raise self._broken
        if reader.cancelled():
            raise InfaasError(
                "this controller is shutting down", code=Code.DRAINING, is_retryable=True, retry_after_s=1.0
            )

    async def _read(self, requests: AsyncIterator[Any], group: asyncio.TaskGroup) -> None:
        before: asyncio.Task[None] | None = None
        try:
            await self._slots.acquire()
            async for message in requests:
                task = group.create_task(
                    self._one(message, None if message.id else before), name=f"stream-query-{message.model_name[:40]}"
                )
                before = before if message.id else task
                self._open.add(task)
                task.add_done_callback(self._open.discard)
                await self._slots.acquire()
        except DecodeError as error:
            self._broken = InvalidError(f"a message of the stream is not a ModelInferRequest: {error}")

    async def _one(self, message: Any, before: asyncio.Task[None] | None) -> None:
        response = await self._answer(message)
        if before is not None:
            await asyncio.wait({before})
        self._done.put_nowait(response)

    async def _end_after(self, reader: asyncio.Task[None]) -> None:
        """The end of the requests, or the server's: nothing more is read, and what was read is answered first."""
        drain = asyncio.create_task(self._draining.wait(), name="stream-drain")
        try:
            await asyncio.wait({reader, drain}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drain.cancel()
        reader.cancel()
        await asyncio.wait({reader})
        if self._open:
            await asyncio.wait(set(self._open))
        self._done.put_nowait(None)
