"""The controller's side of the bulk processes: a few, started when first needed, each fed by a thread of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

from infaas.domain.query import HARD_LIMIT_S, Code
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.edges import HIDDEN_TEXT
from infaas.rpc.tensors import InferRequest
from infaas_controller.api.bulk import wire
from infaas_controller.api.bulk.child import Child, Patience

PROCESSES = 2
"""Of a controller that is one process."""
WAITING_AT_MOST = 32
"""Requests that are read or wait to be; every one is kept in memory."""
ANSWERS_AT_MOST = 64
ANSWER_BYTES_AT_MOST = 256 << 20
"""Answers that are written or wait to be, and their tensors. What was executed is not refused, so these are no bounds
for an answer: while they are passed, nothing more is executed whose answer may be large (`Bulk.behind`)."""
RUN_AT_MOST_S = HARD_LIMIT_S
"""A process that takes longer over one job is stuck. How long a caller waits for its turn is its deadline's to say."""
_log = get_logger(__name__)

_Found = tuple[wire.Reply, list[memoryview]]


class Observer(Protocol):
    """Who counts processes that were lost (`infaas.observe.metrics.Metrics` does). Called from any thread."""

    def observe_bulk_loss(self, reason: str) -> None:
        """`reason` is `ended`, `stuck` or `failed`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A job on its way to a process."""

    asked: bytes
    data: wire.Buffer
    is_answer: bool
    found: Future[_Found] = field(default_factory=Future)


class Bulk:
    """Each method raises what the work itself raises, UnavailableError when its process ended or cannot be started,
    and an error of code DEADLINE_PASSED when it took too long; reading also raises one of code SATURATED when too much
    of it waits. Answers go before requests: their work is done already.

    `within_s` is what the caller has left, the wait for a process included. A caller that is cancelled leaves a job
    that runs to end alone, within `run_at_most_s`.
    """

    def __init__(
        self,
        processes: int = PROCESSES,
        waiting_at_most: int = WAITING_AT_MOST,
        *,
        answers_at_most: int = ANSWERS_AT_MOST,
        answer_bytes_at_most: int = ANSWER_BYTES_AT_MOST,
        run_at_most_s: float = RUN_AT_MOST_S,
        observer: Observer | None = None,
    ) -> None:
        self._read_at_most = processes + waiting_at_most
        self._answers_at_most = answers_at_most
        self._answer_bytes_at_most = answer_bytes_at_most
        self._run_at_most_s = run_at_most_s
        self._observer = observer
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="bulk")
        self._lock = Lock()
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._is_closed = False
        self._answers: deque[_Work] = deque()
        self._requests: deque[_Work] = deque()
        self._reading = self._answering = self._answering_bytes = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that live now."""
        with self._lock:
            return tuple(child.pid for child in self._all)

    @property
    def busy(self) -> int:
        """Jobs that run or wait."""
        with self._lock:
            return self._reading + self._answering

    def behind(self) -> InfaasError | None:
        """One of code SATURATED while too many answers, or too large ones, are under way: for a query that is about to
        be executed and whose answer may join them. The lock is not waited for: the numbers change meanwhile anyway."""
        count, size = self._answering, self._answering_bytes
        if count < self._answers_at_most and size < self._answer_bytes_at_most:
            return None
        return _behind(count, size)

    async def read_rest(self, body: memoryview, header_length: int | None, within_s: float) -> InferRequest:
        return _as_request(await self._read(wire.ReadRest(header_length), body, within_s))

    async def read_grpc(self, data: bytes, within_s: float) -> InferRequest:
        return _as_request(await self._read(wire.ReadGrpc(), data, within_s))

    async def rendered(self, tensor: Tensor, within_s: float) -> bytes | memoryview:
        _, (data,) = await self._answer(wire.Render(wire.outline(tensor)), tensor.data, within_s)
        return data

    async def classified(self, tensor: Tensor, top: int, labels: Sequence[str], within_s: float) -> Tensor:
        job = wire.Classify(wire.outline(tensor), top, tuple(labels))
        reply, (data,) = await self._answer(job, tensor.data, within_s)
        if not isinstance(reply, wire.Made) or reply.tensor is None:
            raise InfaasError("the bulk process answered another question")
        return wire.tensor_of(reply.tensor, data)

    async def close(self) -> None:
        """What runs is given up."""
        await asyncio.to_thread(self._close)

    async def _read(self, job: wire.Job, data: wire.Buffer, within_s: float) -> _Found:
        return await self._found(_Work(wire.encode(job), data, is_answer=False), within_s)

    async def _answer(self, job: wire.Job, data: wire.Buffer, within_s: float) -> _Found:
        return await self._found(_Work(wire.encode(job), data, is_answer=True), within_s)

    async def _found(self, work: _Work, within_s: float) -> _Found:
        is_answer = work.is_answer
        self._take_in(work)
        try:
            async with asyncio.timeout(within_s):
                reply, buffers = await asyncio.wrap_future(work.found)
        except TimeoutError as error:
            what = "answer was written" if is_answer else "request was read"
            raise InfaasError(f"the deadline passed before the large {what}", code=Code.DEADLINE_PASSED) from error
        finally:
            if work.found.cancel():  # no thread had begun it
                self._leave(work)
            del work  # it holds the error whose traceback holds this frame
        if isinstance(reply, wire.Failed):
            if reply.details:
                _log.error("a bulk process met what nobody foresaw", details=reply.details)
            raise InfaasError(reply.text, code=Code(reply.code), problems=reply.problems)
        return reply, buffers

    def _take_in(self, work: _Work) -> None:
        with self._lock:
            if self._is_closed:
                raise _stopping()
            if not work.is_answer and self._reading >= self._read_at_most:
                raise _saturated(self._reading)
            self._threads.submit(self._perform_next)
            if work.is_answer:
                self._answering += 1
                self._answering_bytes += len(work.data)
                self._answers.append(work)
            else:
                self._reading += 1
                self._requests.append(work)

    def _leave(self, work: _Work) -> None:
        """Once for each: its thread is done with it, or its caller left before one began."""
        with self._lock:
            if work.is_answer:
                self._answering -= 1
                self._answering_bytes -= len(work.data)
            else:
                self._reading -= 1
            waiting = self._answers if work.is_answer else self._requests
            if work in waiting:
                waiting.remove(work)

    # In a thread of the pool

    def _perform_next(self) -> None:
        """Called once for each job that was taken in, some of which have left."""
        with self._lock:
            waiting = self._answers or self._requests
            if not waiting:
                return
            work = waiting.popleft()
        if not work.found.set_running_or_notify_cancel():
            return
        try:
            found = self._performed(work.asked, work.data)
        except BaseException as error:
            self._leave(work)
            work.found.set_exception(error)
        else:
            self._leave(work)
            work.found.set_result(found)
        finally:
            del work  # as above

    def _performed(self, asked: bytes, data: wire.Buffer) -> _Found:
        child = self._taken()
        wait = Patience(self._run_at_most_s)
        try:
            wire.send(child.jobs, asked, (data,), wait.until_writable)
            head, buffers = wire.receive(child.replies, wait.until_readable)
            reply = wire.reply_decoder.decode(head)
        except BaseException as error:  # it is half-way through a message, whatever the reason
            raise self._given_up(child, error) from error
        with self._lock:
            self._idle.append(child)
        return reply, buffers

    def _given_up(self, child: Child, error: BaseException) -> InfaasError:
        """Ends a process that cannot go on; returns what its caller is told."""
        if isinstance(error, TimeoutError):
            reason, told = "stuck", _stuck(self._run_at_most_s)
        elif isinstance(error, OSError | EOFError | ValueError):  # ValueError: its pipes were closed under us
            reason, told = "ended", _ended(error)
        else:
            reason, told = "failed", InfaasError(HIDDEN_TEXT)
        return told if self._count_lost(child, reason, repr(error)) else _stopping()

    def _count_lost(self, child: Child, reason: str, error: str) -> bool:
        """Ends what is left of a process. False: all of them end now, and this is no loss."""
        with self._lock:
            self._all.discard(child)
            is_closed = self._is_closed
        status = child.end()
        if is_closed:
            return False
        _log.warning("a bulk process was lost", pid=child.pid, reason=reason, status=status, error=error)
        if self._observer is not None:
            self._observer.observe_bulk_loss(reason)
        return True

    def _taken(self) -> Child:
        while (idle := self._idle_one()) is not None:
            if idle.is_alive():
                return idle
            self._count_lost(idle, "ended", "it ended while it had nothing to do")
        child = Child()
        with self._lock:
            if not self._is_closed:
                self._all.add(child)
                return child
        child.end()
        raise _stopping()

    def _idle_one(self) -> Child | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            left, self._all = self._all, set()
            waiting = [*self._answers, *self._requests]
            self._answers.clear()
            self._requests.clear()
        for child in left:
            child.kill()  # its thread, if it has one, reads its end
        self._threads.shutdown(cancel_futures=True)
        for work in waiting:
            if work.found.set_running_or_notify_cancel():
                self._leave(work)
                work.found.set_exception(_stopping())
        for child in left:
            child.end()


def _as_request(found: _Found) -> InferRequest:
    reply, buffers = found
    if not isinstance(reply, wire.Request):
        raise InfaasError("the bulk process answered another question")
    return wire.request_of(reply, buffers)


def _ended(error: BaseException) -> InfaasError:
    return UnavailableError(f"the process that reads large requests ended ({error or type(error).__name__}); try again")


def _stuck(limit_s: float) -> InfaasError:
    text = f"the process for large requests and answers took more than {limit_s:g} s over this one and was ended"
    return InfaasError(text, code=Code.DEADLINE_PASSED)


def _stopping() -> UnavailableError:
    return UnavailableError("the controller stops; try again", retry_after_s=1.0)


def _saturated(count: int) -> InfaasError:
    text = f"{count} large requests are being read already; try again, or send tensors as binary data"
    return InfaasError(text, code=Code.SATURATED, is_retryable=True, retry_after_s=1.0)


def _behind(count: int, size: int) -> InfaasError:
    text = (
        f"{count} large answers of {size} bytes wait to be written, and this query's may be large too; "
        "try again, or ask for binary data"
    )
    return InfaasError(text, code=Code.SATURATED, is_retryable=True, retry_after_s=1.0)
