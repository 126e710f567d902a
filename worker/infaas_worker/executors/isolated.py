"""Instances in processes of their own: an executor around any other (SURFACE rule 15).

A crash, a leak that the kernel ends, or a hang takes one instance with it and nothing else. Each instance is a child
process that loads the variant with the runtime's own executor; batches cross a socket (`frames`), tensors uncopied but
for the crossing itself. What a child says last on standard error is kept, so that its end can be explained.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import psutil

from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.errors import InfaasError, ModelError, UnavailableError, UnsupportedError
from infaas.observe.log import get_logger
from infaas.programs import THREAD_POOLS
from infaas_worker.decide.hang import Patience, load_bound_s
from infaas_worker.executors import frames
from infaas_worker.executors.base import BatchIn, BatchOut, Device, LoadedModel

_log = get_logger(__name__)
_MODULE = "infaas_worker.executors.child"
_TAIL_BYTES = 2000
_LINE_LENGTH = 300
_CLOSE_WITHIN_S = 30.0
"""A child that was told to close and has not ended by then is killed."""
_LOOK_EVERY_S = 1.0


class IsolatedExecutor:
    """Wraps the executor of one runtime or, made by a worker, of whichever runtime a variant names."""

    def __init__(
        self,
        runtime: Runtime = Runtime.ONNXRUNTIME,
        devices: tuple[Device, ...] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`patience`: how long a load may take."""
        self._runtime = runtime
        self._devices = devices or (Device(Hardware.CPU),)
        self._patience = patience or Patience()
        # The kernel ties a child to the thread that started it, and a child or thread begins with the priority of the
        # one that starts it. This one lives as long as the executor and keeps the priority that serving needs.
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
        profile = variant.profile
        load_within_s = load_bound_s(profile.cold_load_s if profile else None, self._patience)
        return IsolatedModel(variant, artifact, process, ours, self._starter, load_within_s)


class IsolatedModel:
    """One child process with its three threads: one sends, one receives, one keeps the child's last words."""

    def __init__(
        self,
        variant: Variant,
        artifact: Path,
        process: subprocess.Popen[bytes],
        stream: socket.socket,
        starter: ThreadPoolExecutor,
        load_within_s: float,
    ) -> None:
        """Blocks until the child has loaded the variant. Raises what loading raised there, or ModelError when the
        child died of it or was not done in time. `starter` owns the thread that the child is tied to, and starts ours:
        the loading thread that calls this may have lowered its priority."""
        self.name = variant.name
        self._starter = starter
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
        self._begin(self._words)
        self.max_in_flight = self._load(variant, artifact, load_within_s)
        self._sender = threading.Thread(target=self._send_all, name=f"to-{self.name}"[:60], daemon=True)
        self._receiver = threading.Thread(target=self._receive_all, name=f"from-{self.name}"[:60], daemon=True)
        self._begin(self._sender)
        self._begin(self._receiver)

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

    def _begin(self, thread: threading.Thread) -> None:
        self._starter.submit(thread.start).result()

    def _load(self, variant: Variant, artifact: Path, within_s: float) -> int:
        try:
            frames.send(self._stream, frames.Load(variant, str(artifact)))
            if not self._is_answered(within_s):
                self.kill(f"it hung: loading is given {within_s:.0f} s")
            self._stream.settimeout(within_s)  # what has begun to answer may hang as well
            answer = frames.receive(self._stream)
            self._stream.settimeout(None)
        except TimeoutError:
            self.kill(f"it hung: the rest of its answer is given {within_s:.0f} s")
            answer = None
        except (OSError, EOFError):
            answer = None
        except Exception as unread:  # what it said is no frame
            self.kill(f"its answer cannot be read: {type(unread).__name__}: {unread}")
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

    def _is_answered(self, within_s: float) -> bool:
        """Whether the child says something in time. A look counts for as long as it should take, not for as long as it
        took: while this process was stopped, the child may have been too."""
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        waited_s = 0.0
        while waited_s < within_s:
            look_s = min(_LOOK_EVERY_S, within_s - waited_s)
            began = time.monotonic()
            if poll.poll(look_s * 1000.0):
                return True
            waited_s += max(0.001, min(look_s, time.monotonic() - began))
        return False

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
            while (frame := self._next_frame()) is not None:
                self._take(*frame)
                del frame
        except Exception as error:  # of ours or of what it said: nothing more can be understood of this child
            _log.error("an instance's answer cannot be read", instance=self.name, exc_info=error)
            self.kill(f"its answer cannot be read: {type(error).__name__}: {error}")
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

    def _next_frame(self) -> tuple[frames.Facts, memoryview] | None:
        """None when the child has ended, be it in the middle of a word."""
        try:
            return frames.receive(self._stream)
        except (OSError, EOFError):
            return None

    def _take(self, facts: frames.Facts, tensors: memoryview) -> None:
        """What cannot be read raises and leaves its batch pending, to be told how the child ended."""
        if not isinstance(facts, frames.Ran | frames.Failed):
            return
        outcome = frames.result_of(facts, tensors) if isinstance(facts, frames.Ran) else frames.error_of(facts)
        with self._lock:
            future = self._pending.pop(facts.key, None)
        if future is None:
            return
        if isinstance(outcome, BatchOut):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

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
