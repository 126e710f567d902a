"""The child's side of the pipe between the generator and the processes that do its heavy work.

A child reads one JSON request from standard input and answers with JSON lines: events, and at last `done` or `failed`.
It dies with its parent, may be stopped at any moment, and what its libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from infaas.errors import InfaasError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1
_TEXT_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the child's process. `parent` is who must be alive."""

    parent: int
    cpu_s: int
    memory_bytes: int


class Channel:
    """Events up, replies down; one line of JSON each."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def send(self, event: str, **facts: object) -> None:
        self._out.write(msgspec.json.encode({"event": event, **facts}) + b"\n")

    def ask(self, event: str, **facts: object) -> dict[str, Any]:
        """Send and wait for the answer. The process ends when there will be none."""
        self.send(event, **facts)
        return dict(msgspec.json.decode(read_line()))


def serve(kind: type[T], work: Callable[[T, Channel], object]) -> None:
    """Be a child: obey the limits, decode the request, do the work, say how it ended."""
    line = msgspec.json.decode(read_line())
    _obey(msgspec.convert(line["limits"], Limits))
    request = msgspec.convert(line["request"], kind)
    channel = Channel()
    try:
        result = work(request, channel)
    except InfaasError as error:
        channel.send("failed", error=error.text[:_TEXT_LIMIT], kind=type(error).__name__)
    except Exception as error:  # whatever a library raises is this recipe's failure, with its own words
        channel.send("failed", error=f"{type(error).__name__}: {error}"[:_TEXT_LIMIT], kind="")
    else:
        channel.send("done", result=msgspec.to_builtins(result))


def read_line() -> bytes:
    line = sys.stdin.buffer.readline()
    if not line:
        raise SystemExit(0)
    return line


def _obey(limits: Limits) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != limits.parent:  # it ended before it could be tied to
        raise SystemExit(0)
    _lower(resource.RLIMIT_CPU, limits.cpu_s)
    _lower(resource.RLIMIT_AS, limits.memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (limit, limit))
