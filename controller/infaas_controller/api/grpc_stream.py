"""`ModelStreamInfer`: many queries on one call, each answered when it is done.

A query's `id` says which answer is whose, so answers of queries that have one leave in the order of their completion:
a slow query holds up nobody. Queries without an id cannot be told apart, so they are answered in the order they came.
A query's error is its own (`error_message`) and the stream goes on. What is read of the stream is bounded by what was
written of its answers: a caller that does not read its answers is not read from either, and HTTP/2's flow control tells
it so.

A query waits without a task; only what takes a thread or a process of ours has one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from infaas.domain.query import Code
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.edges import as_error
from infaas_controller.api.bulk.weigh import LargeMessage
from infaas_controller.api.grpc_infer import Asked, Call, GrpcInfer, Wanted
from infaas_controller.api.grpc_turned import TurnedCall
from infaas_controller.ports import Answer, QueryFailedError, QueryService, Waiter

STREAM_DEPTH = 64
"""Queries of one stream that were read and whose answers are not written yet."""


class QueryStream:
    """One call. `serve` returns once every query that was read has been answered; cancelling it cancels them all."""

    def __init__(self, infer: GrpcInfer, call: Call, context: Any, draining: asyncio.Event) -> None:
        self.infer = infer
        self._call = call
        self._service = infer.inference.service
        self._read: Callable[[], Awaitable[Any]] = context.read
        self._write: Callable[[bytes], Awaitable[None]] = context.write
        self._draining = draining
        self._open: set[StreamQuery] = set()
        self._unnamed: deque[StreamQuery] = deque()
        """Those without an id whose answers wait for their turn, or for themselves."""
        self._ready: deque[bytes] = deque()
        self._unwritten = 0
        self._is_read = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Raises InvalidError for a message that is none, and a draining error when the server stops: in both cases
        only after what had been read was answered."""
        reader = asyncio.create_task(self._read_all(), name="stream-reader")
        drain = asyncio.create_task(self._draining.wait(), name="stream-drain")
        drain.add_done_callback(lambda _: reader.cancel())
        try:
            await self._write_all()
            await asyncio.wait({reader})
            if not reader.cancelled():
                reader.result()
                return
        finally:
            drain.cancel()
            reader.cancel()
            left, self._open = self._open, set()
            for query in left:
                query.leave()
            await asyncio.wait({reader, drain, *self._tasks})
        raise InfaasError("this controller is shutting down", code=Code.DRAINING, is_retryable=True, retry_after_s=1.0)

    async def _write_all(self) -> None:
        """Until there will be no more."""
        while self._ready or self._open or not self._is_read:
            if not self._ready:
                self._news.clear()
                await self._news.wait()
                continue
            await self._write(self._ready.popleft())
            self._unwritten -= 1
            self._room.set()

    async def _read_all(self) -> None:
        """The end of the requests, or of the server: nothing more is read."""
        try:
            while (data := await self._read()) is not grpc.aio.EOF:
                self._take(data)
                while self._unwritten >= STREAM_DEPTH:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._is_read = True
            self._news.set()

    def _take(self, data: bytes) -> None:
        """Raises InvalidError for a message that is none."""
        query = StreamQuery(self, self._call, data)
        try:
            found = self.infer.prepared(query)
        except DecodeError as error:
            raise InvalidError(f"a message of the stream is not a ModelInferRequest: {error}") from None
        except Exception as exception:
            self._enter(query)
            query.set_exception(exception)
            return
        self._enter(query)
        if isinstance(found, TurnedCall):
            query.turn_away(found)
        elif isinstance(found, Wanted) and found.is_plain and self._service.can_begin(found.query):
            query.begin(found, self._service)
        else:
            task = asyncio.create_task(query.run(found), name=f"stream-query-{query.ticket.handle[:40]}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            query.on_leaving(task.cancel)

    def _enter(self, query: StreamQuery) -> None:
        self._unwritten += 1
        self._open.add(query)
        if not query.id:
            self._unnamed.append(query)

    def ended(self, query: StreamQuery, response: bytes) -> None:
        self._open.discard(query)
        if query.id:
            self._ready.append(response)
        else:
            while self._unnamed and (first := self._unnamed[0].response) is not None:
                self._unnamed.popleft()
                self._ready.append(first)
        self._news.set()


class StreamQuery(Asked, Waiter):
    """One query of a stream."""

    __slots__ = ("_drop", "_is_over", "_stream", "_work", "response")

    def __init__(self, stream: QueryStream, call: Call, data: bytes) -> None:
        super().__init__(call, data, stream.infer.inference.ticket(""), None)
        self._stream = stream
        self._work: Wanted | None = None
        self._drop: Callable[[], Any] | None = None
        self._is_over = False
        self.response: bytes | None = None
        """Once it has one."""

    def begin(self, work: Wanted, service: QueryService) -> None:
        """Hand it to the service."""
        self._work = work
        try:
            drop = service.begin(work.query, self)
        except Exception as exception:
            self.set_exception(exception)
            return
        if not self._is_over:
            self._drop = drop

    async def run(self, found: Wanted | LargeMessage) -> None:
        """The same for what takes more than the loop."""
        infer = self._stream.infer
        try:
            work = found if isinstance(found, Wanted) else await infer.read_large(self, found)
            served = await infer.inference.answered(self.ticket, work.task, work.request, work.query)
            response = infer.stream_answer(self, served)
        except Exception as exception:
            self.set_exception(exception)
            return
        self._end(response, None)

    def turn_away(self, turned: TurnedCall) -> None:
        """It is told what another was told."""
        infer = self._stream.infer
        infer.count_turned(self.ticket, turned)
        self._over(infer.stream_failure(self, turned.error))

    def on_leaving(self, drop: Callable[[], Any]) -> None:
        self._drop = drop

    def done(self) -> bool:
        return self._is_over

    def set_result(self, answer: Answer) -> None:
        infer, work = self._stream.infer, self._work
        if work is None:
            raise AssertionError("a query was answered that was not begun")
        try:
            self.ticket.outcome = answer.outcome
            served = infer.inference.served(answer, work.query, work.request, work.task)
            response = infer.stream_answer(self, served)
        except Exception as exception:
            self.set_exception(exception)
            return
        self._end(response, None)

    def set_exception(self, error: Exception) -> None:
        if isinstance(error, QueryFailedError):
            self.ticket.outcome = error.outcome
            if self._work is not None:
                self._stream.infer.turn_away(self, self._work.query, error)
        told = as_error(error, self.ticket.caller.request_id)
        self._end(self._stream.infer.stream_failure(self, told), told)

    def leave(self) -> None:
        """Its caller is gone."""
        if self._is_over:
            return
        self._is_over = True
        drop, self._drop, self._work = self._drop, None, None
        if drop is not None:
            drop()
        self._stream.infer.inference.count(self.ticket, InfaasError("cancelled", code=Code.CANCELLED))

    def _end(self, response: bytes, error: InfaasError | None) -> None:
        if self._is_over:
            return
        self._stream.infer.count(self.ticket, error)
        self._over(response)

    def _over(self, response: bytes) -> None:
        self._is_over, self.response = True, response
        self._drop = self._work = None
        self._stream.ended(self, response)
