"""Runs a child process for one piece of heavy work and listens to it.

Everything that loads `onnx` or ONNX Runtime happens in such a child: the idle generator stays small, a crash inside a
library costs one recipe, and memory goes back to the system. Cancelling the call kills the child and waits for it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from infaas.errors import InfaasError

T = TypeVar("T")
Event = dict[str, Any]
OnEvent = Callable[[Event], Awaitable[Event | None]]
"""Called for each event; what it returns is sent back, None sends nothing."""

SILENCE_LIMIT_S = 3600.0
"""A child that has said nothing for so long hangs. Its processor time is bounded too."""
_ERROR_TAIL = 2000
_LINE_LIMIT = 16 * 2**20


class ChildFailedError(InfaasError):
    """The child said what went wrong, or died: then the text holds its last words."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    cpu_s: int
    memory_bytes: int
    silence_s: float = SILENCE_LIMIT_S


async def run_child(module: str, request: object, kind: type[T], on_event: OnEvent, limits: ChildLimits) -> T:
    """Run `python -m module` on the request; its `done` result as `kind`. Raises ChildFailedError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never import from the current folder
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        limit=_LINE_LIMIT,
    )
    last_words = asyncio.create_task(_tail(process.stderr), name=f"stderr of {module}")
    try:
        result = await _converse(process, request, on_event, limits)
        if result is None:
            code = await process.wait()
            raise ChildFailedError(_death(module, code, await last_words))
        return msgspec.convert(result, kind)
    finally:
        await _end(process, last_words)


async def _converse(
    process: asyncio.subprocess.Process, request: object, on_event: OnEvent, limits: ChildLimits
) -> Event | None:
    """The result, or None when the child ended without one. Raises ChildFailedError for what it reports."""
    opening = {
        "limits": {"parent": os.getpid(), "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes},
        "request": msgspec.to_builtins(request),
    }
    await _say(process, opening)
    assert process.stdout is not None
    while True:
        try:
            async with asyncio.timeout(limits.silence_s):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ChildFailedError(f"said nothing for {limits.silence_s:g} s and was stopped") from None
        if not line.endswith(b"\n"):
            return None
        event: Event = msgspec.json.decode(line)
        if event["event"] == "done":
            result: Event = event["result"]
            return result
        if event["event"] == "failed":
            raise ChildFailedError(event["error"])
        reply = await on_event(event)
        if reply is not None:
            await _say(process, reply)


async def _say(process: asyncio.subprocess.Process, message: object) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(message) + b"\n")
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return  # it died; reading its output says so, with the reason


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Read all, keep the end."""
    kept = b""
    while stream is not None and (chunk := await stream.read(65536)):
        kept = (kept + chunk)[-_ERROR_TAIL:]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process, last_words: asyncio.Task[str]) -> None:
    """Whatever happened, no process and no task is left behind; a second cancellation does not change that."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass
    last_words.cancel()
    await asyncio.shield(asyncio.gather(process.wait(), last_words, return_exceptions=True))
    if process.stdin is not None:
        process.stdin.close()


def _death(module: str, code: int, words: str) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
    last = words.splitlines()[-1] if words else ""
    hint = " (out of memory or processor time?)" if code < 0 else ""
    return f"{module.rsplit('.', 1)[-1]} process {how}{hint}" + (f": {last}" if last else "")


def _environment() -> dict[str, str]:
    """One thread per library pool: threads belong to ONNX Runtime sessions only (SURFACE rule 14)."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
