"""Runs the inspecting subprocess, bounded in time and memory; whatever it does becomes an answer in words."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO

from infaas.errors import InvalidError, UnavailableError
from infaas.rpc.codec import decode, encode
from infaas_controller.register.inspection import InspectionAnswer, InspectionRequest

_TAIL_BYTES = 600
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_MEMORY_SIGNS = ("bad_alloc", "MemoryError", "cannot allocate memory", "Cannot allocate memory")


class Inspector:
    """One subprocess per upload, at most `concurrency` at a time."""

    def __init__(self, *, timeout_s: float = 180.0, concurrency: int = 2) -> None:
        self.timeout_s = timeout_s
        self._slots = asyncio.Semaphore(concurrency)

    async def inspect(self, request: InspectionRequest) -> InspectionAnswer:
        """Every problem found. A crash or a time-out is a problem too. Cancelling kills the subprocess.

        Raises UnavailableError when no subprocess can be started.
        """
        async with self._slots:
            with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
                said.write(encode(request))
                said.seek(0)
                process = await self._start(said, complaints)
                try:
                    async with asyncio.timeout(self.timeout_s):
                        answer, _ = await process.communicate()
                except TimeoutError:
                    return InspectionAnswer(problems=(f"checking the model took longer than {self.timeout_s:g} s",))
                finally:
                    await _end(process)
                return _answer(process.returncode, answer, complaints, request)

    async def _start(self, said: IO[bytes], complaints: IO[bytes]) -> asyncio.subprocess.Process:
        """The request is a file and not a pipe: a process that dies before it has read it breaks no writer."""
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "infaas_controller.register.inspect",
                stdin=said, stdout=asyncio.subprocess.PIPE, stderr=complaints,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise UnavailableError(f"the upload cannot be checked: no process can be started ({error})") from error


def _environment() -> dict[str, str]:
    """Ours without the settings: what reads strangers' files has no use for a token."""
    return {key: value for key, value in os.environ.items() if not key.startswith("INFAAS_")} | _THREADS


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    try:
        process.kill()
    except ProcessLookupError:
        pass  # it ended by itself in this moment
    await asyncio.shield(process.wait())


def _answer(code: int | None, answer: bytes, complaints: IO[bytes], request: InspectionRequest) -> InspectionAnswer:
    if code == 0 and answer:
        try:
            return decode(answer, InspectionAnswer)
        except InvalidError as error:
            return InspectionAnswer(problems=(f"checking the model gave no usable answer: {error.text}",))
    tail = _tail(complaints)
    if any(sign in tail for sign in _MEMORY_SIGNS):
        text = f"checking the model takes more than the {request.memory_bytes:,} bytes of memory allowed"
    elif code == -signal.SIGXCPU or code == -signal.SIGKILL:
        text = f"checking the model takes more than the {request.cpu_s} s of processor time allowed"
    else:
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with status {code}"
        )
        text = f"checking the model {how}; the file is damaged or hits a defect of its runtime" + (
            f": {tail}" if tail else ""
        )
    return InspectionAnswer(problems=(text,))


def _tail(complaints: IO[bytes]) -> str:
    size = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, size - _TAIL_BYTES))
    return " ".join(complaints.read().decode(errors="replace").split())


def memory_bound(*paths: Path | None) -> int:
    """Address space that checking these files may take: the runtime's own, and a few copies of the graph."""
    size = sum(path.stat().st_size for path in paths if path is not None and path.is_file())
    return int(3 * 2**30 + 8 * size)
