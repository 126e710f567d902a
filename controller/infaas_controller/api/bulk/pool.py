"""The controller's side of the bulk processes: a few, started when first needed, each fed by a thread of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from threading import Lock

from infaas.domain.query import Code
from infaas.domain.tensor import Tensor
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.tensors import InferRequest
from infaas_controller.api.bulk import wire

PROCESSES = 2
WAITING_AT_MOST = 32
"""Jobs that wait for a process; every one keeps its request in memory."""
_PIPE_BYTES = 1 << 20
_ENDS_WITHIN_S = 2.0
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_log = get_logger(__name__)


class Bulk:
    """Each method raises what the work itself raises, UnavailableError when its process ended or cannot be started,
    and an error of code SATURATED when too much of it waits. A caller that is cancelled leaves its job to end alone."""

    def __init__(self, processes: int = PROCESSES, waiting_at_most: int = WAITING_AT_MOST) -> None:
        self._at_most = processes + waiting_at_most
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="bulk")
        self._lock = Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._is_closed = False
        self._open = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that live now."""
        with self._lock:
            return tuple(process.pid for process in self._all)

    @property
    def busy(self) -> int:
        """Jobs that run or wait."""
        with self._lock:
            return self._open

    async def read_rest(self, body: memoryview, header_length: int | None) -> InferRequest:
        return _as_request(await self._run(wire.ReadRest(header_length), body))

    async def read_grpc(self, data: bytes) -> InferRequest:
        return _as_request(await self._run(wire.ReadGrpc(), data))

    async def rendered(self, tensor: Tensor) -> bytes | memoryview:
        _, (data,) = await self._run(wire.Render(wire.outline(tensor)), tensor.data)
        return data

    async def classified(self, tensor: Tensor, top: int, labels: Sequence[str]) -> Tensor:
        reply, (data,) = await self._run(wire.Classify(wire.outline(tensor), top, tuple(labels)), tensor.data)
        if not isinstance(reply, wire.Made) or reply.tensor is None:
            raise InfaasError("the bulk process answered another question")
        return wire.tensor_of(reply.tensor, data)

    async def close(self) -> None:
        """What runs is given up."""
        await asyncio.to_thread(self._close)

    async def _run(self, job: wire.Job, data: wire.Buffer) -> tuple[wire.Reply, list[memoryview]]:
        with self._lock:
            if self._is_closed:
                raise _ended(RuntimeError("the controller stops"))
            if self._open >= self._at_most:
                raise _saturated(self._open)
            self._open += 1
        work = self._threads.submit(self._performed, job, data)
        # It counts until its thread is done with it, whether or not its caller still waits.
        work.add_done_callback(self._release)
        reply, buffers = await asyncio.wrap_future(work)
        if isinstance(reply, wire.Failed):
            if reply.details:
                _log.error("a large request was not read", details=reply.details)
            raise InfaasError(reply.text, code=Code(reply.code), problems=reply.problems)
        return reply, buffers

    def _release(self, _: Future[tuple[wire.Reply, list[memoryview]]]) -> None:
        with self._lock:
            self._open -= 1

    # In a thread of the pool

    def _performed(self, job: wire.Job, data: wire.Buffer) -> tuple[wire.Reply, list[memoryview]]:
        asked = wire.encode(job)
        process = self._taken()
        try:
            wire.send(process.jobs, asked, (data,))
            head, buffers = wire.receive(process.replies)
            reply = wire.reply_decoder.decode(head)
        except BaseException as error:  # it is half-way through a message, whatever the reason
            with self._lock:
                self._all.discard(process)
            process.end()
            if isinstance(error, OSError | EOFError | ValueError):  # ValueError: its pipes were closed under us
                raise _ended(error) from error
            raise
        with self._lock:
            self._idle.append(process)
        return reply, buffers

    def _taken(self) -> _Process:
        with self._lock:
            if self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
                self._all.discard(process)
                process.end()
        process = _Process()
        with self._lock:
            if not self._is_closed:
                self._all.add(process)
                return process
        process.end()
        raise _ended(RuntimeError("the controller stops"))

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            left, self._all = self._all, set()
        for process in left:
            process.kill()  # its thread, if it has one, reads its end
        self._threads.shutdown(cancel_futures=True)
        for process in left:
            process.end()


class _Process:
    """One child. It ends with its input, so it does not outlive this process, however that ends."""

    def __init__(self) -> None:
        """Raises UnavailableError."""
        # No setting goes along: what reads strangers' requests has no use for a token.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("INFAAS_")} | _THREADS
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "infaas_controller.api.bulk.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
            )
        except OSError as error:
            raise UnavailableError(f"large requests cannot be read: no process can be started ({error})") from error
        jobs, replies = self._child.stdin, self._child.stdout
        if not isinstance(jobs, FileIO) or not isinstance(replies, FileIO):
            raise TypeError("pipes without a buffer are files")
        self.jobs, self.replies = jobs, replies
        for pipe in (jobs, replies):
            _widen(pipe)
        self.pid = self._child.pid

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        self._child.kill()

    def end(self) -> None:
        """Any number of times."""
        self._child.kill()
        self._child.wait(_ENDS_WITHIN_S)
        self.jobs.close()
        self.replies.close()


def _widen(pipe: FileIO) -> None:
    """Fewer turns per request; where the system's share of pipe memory is used up, its default does as well."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except PermissionError as error:
        _log.debug("a pipe stays as it is", reason=str(error))


def _as_request(found: tuple[wire.Reply, list[memoryview]]) -> InferRequest:
    reply, buffers = found
    if not isinstance(reply, wire.Request):
        raise InfaasError("the bulk process answered another question")
    return wire.request_of(reply, buffers)


def _ended(error: BaseException) -> UnavailableError:
    return UnavailableError(f"the process that reads large requests ended ({error or type(error).__name__}); try again")


def _saturated(count: int) -> InfaasError:
    text = f"{count} large requests are being read or answered already; try again, or send tensors as binary data"
    return InfaasError(text, code=Code.SATURATED, is_retryable=True, retry_after_s=1.0)
