"""What a running local system writes about itself: who holds the state folder, which programs run, how they fare.

`run/up.lock` is held by the one supervisor of a state folder for as long as it lives (the kernel lets go of it, so a
crash leaves no stale lock). `run/up.json` is for people and for `infaas status` and `down`; it is replaced whole.
A process id is trusted only together with its start time, because ids are reused.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infaas.errors import ConflictError, UnavailableError


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """One supervised program. Times are seconds since the epoch."""

    name: str
    state: str
    pid: int | None
    start_ticks: int | None
    restarts: int
    quick_exits: int
    last_exit: str | None
    last_exit_at: float | None
    next_try_at: float | None
    log: str


@dataclass(frozen=True, slots=True)
class UpRecord:
    """The whole local system. `state` is `starting`, `ready`, `stopping` or `stopped`."""

    pid: int
    start_ticks: int | None
    state: str
    version: str
    state_dir: str
    started_at: float
    ready_after_s: float | None
    programs: tuple[ProgramRecord, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the running controller listens, from `run/controller.json`, which it writes itself."""

    pid: int
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def url(self) -> str:
        return f"http://{_for_url(self.host)}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"{_for_url(self.host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{_for_url(self.host)}:{self.metrics_port}/metrics"


def run_dir(state_dir: Path) -> Path:
    return state_dir / "run"


def up_file(state_dir: Path) -> Path:
    return run_dir(state_dir) / "up.json"


def controller_file(state_dir: Path) -> Path:
    return run_dir(state_dir) / "controller.json"


def write_up(record: UpRecord, state_dir: Path) -> None:
    target = up_file(state_dir)
    scratch = target.with_name(f".{target.name}.{record.pid}")
    scratch.write_text(json.dumps(asdict(record), indent=1) + "\n")
    os.replace(scratch, target)


def read_up(state_dir: Path) -> UpRecord | None:
    """None when nothing was ever started here. Raises UnavailableError when the file is not ours."""
    found = _read_json(up_file(state_dir))
    if found is None:
        return None
    try:
        programs = tuple(ProgramRecord(**entry) for entry in found.pop("programs"))
        return UpRecord(programs=programs, **found)
    except (KeyError, TypeError) as error:
        raise UnavailableError(f"{up_file(state_dir)} was written by another version: {error}") from error


def read_endpoints(state_dir: Path) -> Endpoints | None:
    """None while no controller has announced itself, or the one that did is gone."""
    found = _read_json(controller_file(state_dir))
    if found is None:
        return None
    try:
        endpoints = Endpoints(
            pid=int(found["pid"]),
            host=str(found["host"]),
            http_port=int(found["http_port"]),
            grpc_port=int(found["grpc_port"]),
            metrics_port=int(found["metrics_port"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"{controller_file(state_dir)} is not a controller's announcement: {error}") from error
    return endpoints if start_ticks(endpoints.pid) is not None else None


def start_ticks(pid: int) -> int | None:
    """A live process's start time in clock ticks since boot; None when there is none (or only a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in parentheses, may hold spaces; everything after the last one is plain.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(pid: int | None, ticks: int | None) -> bool:
    """Whether this very process still runs."""
    return pid is not None and ticks is not None and start_ticks(pid) == ticks


def is_up(record: UpRecord | None) -> bool:
    return record is not None and is_alive(record.pid, record.start_ticks)


class FolderLock:
    """Holds a state folder for one supervisor. Raises ConflictError when another one has it."""

    def __init__(self, state_dir: Path) -> None:
        self._path = run_dir(state_dir) / "up.lock"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ConflictError(
                f"infaas is already up in {state_dir} (pid {holder}): `infaas status` shows it, `infaas down` stops "
                "it, and --state-dir starts another one elsewhere"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UnavailableError(f"{path} does not hold a JSON object")
    return found


def _for_url(host: str) -> str:
    """An address a client can dial: a wildcard is reached over loopback."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
