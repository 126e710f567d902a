"""The same load as `generator`, by a small C program: one core of it drives what several of Python's would.

The program is built by the machine's C compiler on first use and kept by the digest of the sources. It is given whole
requests and a schedule as files, and leaves what it saw as arrays; what those mean is said in `generator`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dataplane.generator import Address, Closed, Open
from dataplane.servers import UnreachableError
from dataplane.wire import Kept

SOURCES = Path(__file__).parent / "native"
LOAD, NULL = "load", "null"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
_SIZE = struct.Struct("=I")
_KEPT = struct.Struct("=II")


class CannotBuildError(Exception):
    """There is no such program here, and this is why."""


def built(name: str, cache: Path) -> Path:
    """The program of that name, built unless `cache` has it. Raises CannotBuildError."""
    source = SOURCES / f"{name}.c"
    sources = b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir()))
    digest = hashlib.sha256(sources + " ".join(_FLAGS).encode()).hexdigest()[:16]
    program = cache / f"{name}-{digest}"
    if program.is_file():
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotBuildError(f"there is no C compiler (cc) to build {source.name} with")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / name
        done = subprocess.run([compiler, *_FLAGS, "-o", made, source], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CannotBuildError(f"{source.name} cannot be built: {done.stderr.strip()[-500:]}")
        made.replace(program)  # at once: another run may look for it at this moment
    return program


class NativeLoad:
    """Runs of that program. Nothing of one stays but what it returns."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def closed(
        self,
        address: Address,
        requests: Sequence[bytes],
        *,
        connections: int,
        warm_s: float,
        seconds: float,
        on_edge: Callable[[], Any] | None = None,
    ) -> Closed:
        """As `generator.closed_loop`."""
        with tempfile.TemporaryDirectory(prefix="infaas-load-") as made:
            folder = Path(made)
            said = self._run(folder, address, requests, ("closed", connections, warm_s, seconds), on_edge)
            return Closed(
                seconds=said["seconds"],
                statuses=Counter({int(status): count for status, count in said["statuses"].items()}),
                latencies_s=_array("d", folder / "latencies.f64"),
                kept=_kept(folder / "kept.bin"),
                cpu_share=said["cpu_share"],
                failure=said["failure"],
            )

    def opened(
        self, address: Address, requests: Sequence[bytes], schedule: Sequence[float], *, deadline_s: float, most: int
    ) -> Open:
        """As `generator.OpenLoop.run`."""
        due = array("d", schedule)
        with tempfile.TemporaryDirectory(prefix="infaas-load-") as made:
            folder = Path(made)
            (folder / "schedule.f64").write_bytes(due.tobytes())
            said = self._run(folder, address, requests, ("open", most, deadline_s, folder / "schedule.f64"), None)
            return Open(
                due_s=due,
                sent_s=_array("d", folder / "sent.f64"),
                ended_s=_array("d", folder / "ended.f64"),
                statuses=_array("h", folder / "outcome.i16"),
                reasons=_array("h", folder / "reason.i16"),
                stated_s=_array("d", folder / "stated.f64"),
                words=said["words"],
                kept=_kept(folder / "kept.bin"),
                cpu_share=said["cpu_share"],
                most_connections=said["most_connections"],
                refused_connections=said["refused_connections"],
                late_p99_s=said["late_p99_s"],
            )

    def _run(
        self,
        folder: Path,
        address: Address,
        requests: Sequence[bytes],
        more: Sequence[object],
        on_edge: Callable[[], Any] | None,
    ) -> dict[str, Any]:
        file = folder / "requests.bin"
        file.write_bytes(b"".join(_SIZE.pack(len(request)) + request for request in requests))
        words = [str(word) for word in (self._program, *address, file, folder, *more)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for _ in process.stdout:  # "begin" and "end"
                if on_edge is not None:
                    on_edge()
            _, complaint = process.communicate()
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise UnreachableError(f"the load ended with {process.returncode}: {complaint.strip()}")
        said: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return said


def _array(kind: str, file: Path) -> array[Any]:
    values: array[Any] = array(kind)
    values.frombytes(file.read_bytes())
    return values


def _kept(file: Path) -> list[Kept]:
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        question, size = _KEPT.unpack_from(data, at)
        at += _KEPT.size
        found.append(Kept(question, data[at : at + size]))
        at += size
    return found
