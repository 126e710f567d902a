"""What a worker takes of its machine: cores, memory, a name, a place to listen."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from infaas import machine
from infaas.domain.ids import WorkerId
from infaas.errors import SettingsError

_MAX_SOCKET_PATH = 100
"""The kernel takes 107 bytes; some room is left for whoever makes a relative path absolute."""


def cores_to_use(wanted: int | None, allowed: Sequence[int], quota: float | None) -> tuple[int, ...]:
    """The core ids to use: all that the process may run on, no more than its quota pays for, or as many as wanted.

    Raises SettingsError when more are wanted than the process may run on.
    """
    if wanted is not None:
        if wanted > len(allowed):
            raise SettingsError(f"{wanted} cores are wanted, this process may run on {len(allowed)}")
        return tuple(sorted(allowed)[:wanted])
    return tuple(sorted(allowed)[: machine.whole_cores(len(allowed), quota)])


def memory_budget(wanted: int | None) -> int:
    """Bytes for instances: as wanted, else half of what the container or the machine has left for us."""
    if wanted is not None:
        return wanted
    available = psutil.virtual_memory().available
    limit = machine.memory_limit_bytes()
    return (available if limit is None else min(available, limit)) // 2


def worker_id(wanted: str | None, pool: str, host: str) -> WorkerId:
    """Stable over restarts, so that a worker that comes back takes its own place."""
    if wanted:
        return WorkerId(wanted)
    return WorkerId(re.sub(r"[^A-Za-z0-9._-]+", "-", f"{pool}-{host}").strip("-._")[:128] or "worker")


def default_listen(state_dir: Path, worker: WorkerId) -> str:
    """A socket in the state folder, or in a private temporary folder when that path is too long for the kernel."""
    path = state_dir.absolute() / "run" / f"worker-{worker}.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return f"unix:{path}"
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"infaas-{os.getuid()}"
    return f"unix:{folder / mark}.sock"


def prepare_socket(listen: str) -> None:
    """Make a unix socket's folder (private) and remove what a dead worker left there.

    Raises SettingsError when the place cannot be used or another process listens on it.
    """
    if not listen.startswith("unix:"):
        return
    path = Path(listen.removeprefix("unix:"))
    if len(os.fsencode(path)) > 107:
        raise SettingsError(f"worker.listen {listen!r}: the path is longer than the kernel's 107 bytes")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid != os.getuid():
            raise SettingsError(f"worker.listen {listen!r}: {path.parent} belongs to somebody else")
        if path.exists():
            _remove_stale(path)
    except OSError as error:
        raise SettingsError(f"worker.listen {listen!r} cannot be used: {error}") from error


def remove_socket(listen: str) -> None:
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SettingsError(f"worker.listen unix:{path}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SettingsError(f"worker.listen unix:{path}: another process listens there")
