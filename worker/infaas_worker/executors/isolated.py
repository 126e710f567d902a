"""Instances in processes of their own: an executor around any other (SURFACE rule 15).

A crash, a leak that the kernel ends, or a hang takes one instance with it and nothing else. Each instance is a child
process that loads the variant with the runtime's own executor; batches cross a socket (`frames`), tensors uncopied but
for the crossing itself. What a child says last on standard error is kept, so that its end can be explained.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import psutil

from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.errors import InfaasError, ModelError, UnavailableError, UnsupportedError
from infaas.programs import THREAD_POOLS
from infaas_worker.executors import frames
from infaas_worker.executors.base import BatchIn, BatchOut, Device, LoadedModel

_MODULE = "infaas_worker.executors.child"
_TAIL_BYTES = 2000
_LINE_LENGTH = 300
_CLOSE_WITHIN_S = 30.0
"""A child that was told to close and has not ended by then is killed."""


class IsolatedExecutor:
    """Wraps the executor of one runtime or, made by a worker, of whichever runtime a variant names."""

    def __init__(self, runtime: Runtime = Runtime.ONNXRUNTIME, devices: tuple[Device, ...] | None = None) -> None:
        self._runtime = runtime
        self._devices = devices or (Device(Hardware.CPU),)
        # The kernel ties a child to the thread that started it. This one lives as long as the executor.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start-isolated")
        self._starter.submit(int).result()

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def load(self, variant: Variant, artifact: Path) -> LoadedModel:
        if variant.isolation is not Isolation.PROCESS:
            raise UnsupportedError(f"{variant.name} asks for isolation {variant.isolation.value!r}, not for a process")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                process = self._starter.submit(_start, theirs.fileno()).result()
            except OSError as error:
                ours.close()
                raise UnavailableError(f"no process can be started for {variant.name}: {error}") from error
        return IsolatedModel(variant, artifact, process, ours, keeper=self._starter)


class IsolatedModel:
    """One child process with its three threads: one sends, one receives, one keeps the child's last words."""

    def __init__(
        self,
        variant: Variant,
        artifact: Path,
        process: subprocess.Popen[bytes],
        stream: socket.socket,
        *,
        keeper: object = None,
    ) -> None:
        """Blocks until the child has loaded the variant. Raises what loading raised there, or ModelError when the
        child died of it. `keeper` owns the thread that the child is tied to."""
        self.name = variant.name
        self._keeper = keeper
        self.ended: Future[str] = Future()
        self._process = process
        self._stream = stream
        self._lock = threading.Lock()
        self._pending: dict[int, Future[BatchOut]] = {}
        self._keys = 0
        self._is_closed = False
        self._killed_for = ""
        self._end = ""
        """Why nothing more will come, once that is so."""
        self._outbox: SimpleQueue[tuple[frames.Facts, list[frames.Buffer]] | None] = SimpleQueue()
        self._words = _LastWords(process, self.name)
        self._words.start()
        self.max_in_flight = self._load(variant, artifact)
        self._sender = threading.Thread(target=self._send_all, name=f"to-{self.name}"[:60], daemon=True)
        self._receiver = threading.Thread(target=self._receive_all, name=f"from-{self.name}"[:60], daemon=True)
        self._sender.start()
        self._receiver.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        future: Future[BatchOut] = Future()
        with self._lock:
            if self._is_closed or self._end:
                future.set_exception(UnavailableError(self._end or "the instance has been unloaded"))
                return future
            future.set_running_or_notify_cancel()
            self._keys += 1
            self._pending[self._keys] = future
            self._outbox.put(frames.run(self._keys, batch))
        return future

    def memory_bytes(self) -> int:
        """What the child alone holds; 0 once it has ended."""
        if self._is_closed:
            return 0
        try:
            return int(psutil.Process(self._process.pid).memory_full_info().uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0

    def kill(self, reason: str) -> None:
        with self._lock:
            if self._end or self._killed_for:
                return
            self._killed_for = reason
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            is_idle = not self._pending
        self._outbox.put((frames.Close(), []))
        self._outbox.put(None)
        self._receiver.join(_CLOSE_WITHIN_S if is_idle else None)
        if self._receiver.is_alive():
            self._process.kill()
            self._receiver.join()
        self._sender.join()
        self._words.join()
        self._stream.close()
        del self._process

    def _load(self, variant: Variant, artifact: Path) -> int:
        try:
            frames.send(self._stream, frames.Load(variant, str(artifact)))
            answer = frames.receive(self._stream)
        except (OSError, EOFError):
            answer = None
        if answer is not None and isinstance(answer[0], frames.Loaded):
            return answer[0].max_in_flight
        if answer is not None and isinstance(answer[0], frames.Failed):
            error: InfaasError = frames.error_of(answer[0])
        else:
            error = ModelError(f"loading {self.name} ended its process: {self._how_it_ended()}")
        self._process.kill()
        self._process.wait()
        self._words.join()
        self._stream.close()
        raise error

    def _send_all(self) -> None:
        while (item := self._outbox.get()) is not None:
            facts, tensors = item
            try:
                frames.send(self._stream, facts, tensors)
            except OSError:
                return  # the child has ended; the receiver says how
            del item, facts, tensors

    def _receive_all(self) -> None:
        try:
            while (frame := frames.receive(self._stream)) is not None:
                self._take(*frame)
                del frame
        except (OSError, EOFError):
            pass  # the child ended in the middle of a word
        how = self._how_it_ended()
        with self._lock:
            self._end = how
            left, self._pending = list(self._pending.values()), {}
            is_expected = self._is_closed and not left
        self._outbox.put(None)
        for future in left:
            future.set_exception(UnavailableError(how))
        if not is_expected:
            with contextlib.suppress(InvalidStateError):
                self.ended.set_result(how)

    def _take(self, facts: frames.Facts, tensors: memoryview) -> None:
        if not isinstance(facts, frames.Ran | frames.Failed):
            return
        with self._lock:
            future = self._pending.pop(facts.key, None)
        if future is None:
            return
        if isinstance(facts, frames.Ran):
            future.set_result(frames.result_of(facts, tensors))
        else:
            future.set_exception(frames.error_of(facts))

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        said = self._words.last_line()
        if self._killed_for:
            return self._killed_for
        return describe_end(status, said)


class _LastWords(threading.Thread):
    """Reads a child's standard error to its end and keeps the last of it."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        super().__init__(name=f"words-{name}"[:60], daemon=True)
        self._stream = process.stderr
        self._tail = b""

    def run(self) -> None:
        if self._stream is None:
            return
        with self._stream:
            while chunk := os.read(self._stream.fileno(), 65536):
                self._tail = (self._tail + chunk)[-_TAIL_BYTES:]

    def last_line(self) -> str:
        """Call it when the child has ended."""
        self.join()
        lines = [line for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:_LINE_LENGTH] if lines else ""


def describe_end(status: int, said: str) -> str:
    """How a process ended, in words: `status` as `Popen.returncode` has it."""
    if status < 0:
        try:
            how = f"its process was killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"its process was killed by signal {-status}"
        if -status == signal.SIGKILL:
            how += " (out of memory?)"
    else:
        how = f"its process exited with status {status}"
    return f"{how}: {said}" if said else how


def _start(fd: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", _MODULE, str(fd), str(os.getpid())]
    pools = dict.fromkeys(THREAD_POOLS, "1")
    return subprocess.Popen(
        command,
        env={**os.environ, **pools, "ORT_DISABLE_TELEMETRY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(fd,),
    )
