"""The process of one isolated instance: `python -m infaas_worker.executors.child SOCKET PARENT_PID`.

It loads what the first frame names with the executor that any worker would use, then runs what the frames after it
hold. It ends when it is told to, when the worker's end of the socket closes, or when the worker dies, however it dies.
Signals that stop a whole group of processes are for the worker: it decides when its instances end.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from infaas.domain.variant import Isolation
from infaas.errors import InfaasError, ModelError
from infaas.up.tether import die_with
from infaas_worker.executors import frames
from infaas_worker.executors.base import BatchOut, Executors, LoadedModel

_LOADING_NICE = 5
BROKEN_EXIT = 70


def main(argv: list[str]) -> int:
    if len(argv) != 2 or not all(word.isdigit() for word in argv):
        print("usage: python -m infaas_worker.executors.child SOCKET PARENT_PID", file=sys.stderr)
        return 2
    die_with(int(argv[1]), signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A crash must be over at once: the image of a large model would be written for minutes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(argv[0])) as stream:
        try:
            Child(stream).serve()
        except (EOFError, ConnectionError):
            return 0  # the worker is gone, and with it whoever wanted an answer
    return 0


class Child:
    """One model behind one socket. Answers are sent from the executor's threads, one at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Until told to close, or the stream ends."""
        first = frames.receive(self._stream)
        if first is None or not isinstance(first[0], frames.Load):
            return
        model = self._load(first[0])
        if model is None:
            return
        try:
            while (frame := frames.receive(self._stream)) is not None:
                facts, tensors = frame
                if isinstance(facts, frames.Close):
                    return
                if isinstance(facts, frames.Run):
                    key = facts.key
                    future = model.submit(frames.batch_of(facts, tensors))
                    future.add_done_callback(lambda done, key=key: self._answer(key, done))  # type: ignore[misc]
                del frame, facts, tensors
        finally:
            model.close()

    def _load(self, order: frames.Load) -> LoadedModel | None:
        """On a thread that may lower its priority; threads that serve are started later, by this one."""
        outcome: Future[LoadedModel] = Future()

        def work() -> None:
            try:
                if order.variant.threads == 1:  # else the runtime's pool, made while loading, would inherit it
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICE)
                variant = replace(order.variant, isolation=Isolation.THREAD)
                outcome.set_result(Executors().get(variant.runtime).load(variant, Path(order.artifact)))
            except Exception as error:  # whatever it is, the worker is told
                outcome.set_exception(error)

        threading.Thread(target=work, name="load").start()
        try:
            model = outcome.result()
        except InfaasError as error:
            self._say(frames.failed(0, error))
            return None
        except Exception as error:
            self._say(frames.failed(0, ModelError(f"{type(error).__name__}: {error}")))
            return None
        self._say(frames.Loaded(model.max_in_flight))
        return model

    def _answer(self, key: int, future: Future[BatchOut]) -> None:
        error = future.exception()
        if error is None:
            facts, tensors = frames.ran(key, future.result())
            self._say(facts, tensors)
        elif isinstance(error, InfaasError):
            self._say(frames.failed(key, error))
        else:  # an executor that breaks has died, here as in a worker's own process
            print(f"the executor broke: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(BROKEN_EXIT)

    def _say(self, facts: frames.Facts, tensors: list[frames.Buffer] | None = None) -> None:
        with self._sending:
            try:
                frames.send(self._stream, facts, tensors or ())
            except OSError:
                return  # the worker has let go; reading its end says so too


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
