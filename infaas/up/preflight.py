"""What is checked and cleaned before anything starts, so that what would fail later fails now, in words."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from infaas.errors import ConflictError, SettingsError
from infaas.exposure import require_safe_binding, require_safe_worker
from infaas.settings import Settings
from infaas.up.record import controller_file, run_dir

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path, a limit of the kernel's."""
ROOM_FOR_SOCKET = len("/run/worker-0123456789.sock")
KEPT_LOGS = 3
PORTS = (("http_port", "--http-port"), ("grpc_port", "--grpc-port"), ("metrics_port", "--metrics-port"))


def prepare_folder(state_dir: Path) -> None:
    """Make the state folder. Raises SettingsError when it cannot hold a system."""
    length = len(os.fsencode(state_dir.absolute())) + ROOM_FOR_SOCKET
    if length > MAX_SOCKET_PATH:
        raise SettingsError(
            f"state_dir {str(state_dir)!r} is too long for the unix sockets in it "
            f"({length} bytes, at most {MAX_SOCKET_PATH}): pick a shorter one with --state-dir"
        )
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_dir(state_dir).mkdir(exist_ok=True)
        (state_dir / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise SettingsError(f"state_dir {str(state_dir)!r} cannot be made: {error.strerror}") from error
    if not os.access(state_dir, os.W_OK | os.X_OK):
        raise SettingsError(f"state_dir {str(state_dir)!r} is not writable for this user; pick another: --state-dir")


def check_exposure(settings: Settings) -> None:
    """Without a credential only loopback may be bound. Raises SettingsError."""
    require_safe_binding("controller.host", settings.controller.host, settings.token())
    require_safe_worker(settings)


def check_sharing(settings: Settings) -> None:
    """What one program has to itself cannot be told to all of them. Raises SettingsError."""
    if settings.worker.triton_private:
        raise SettingsError(
            "worker.triton_private cannot hold here: the generator and every worker that `infaas up` starts use the "
            "server at worker.triton_url; leave it out, or run each program by itself with a server of its own"
        )


def check_ports(settings: Settings) -> None:
    """Raises ConflictError naming every port that is taken, its setting and its flag; 0 is never taken."""
    host = settings.controller.host
    problems = []
    seen: dict[int, str] = {}
    for name, flag in PORTS:
        port = int(getattr(settings.controller, name))
        if port == 0:
            continue
        if port in seen:
            problems.append(f"port {port} is given twice: controller.{seen[port]} and controller.{name} ({flag})")
        elif not is_free(host, port):
            holder = holder_of(port)
            by = f" by {holder}" if holder else ""
            problems.append(
                f"port {port} on {host} is taken{by}: set controller.{name} or {flag} to another one "
                f"({flag} 0 picks a free one)"
            )
        seen[port] = name
    if problems:
        raise ConflictError("; ".join(problems), problems=problems)


def is_free(host: str, port: int) -> bool:
    """Whether the port can be bound now. Raises SettingsError when the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Two sockets with SO_REUSEADDR may both bind; only one may listen.
            probe.listen(1)
        except (PermissionError, socket.gaierror) as error:
            raise SettingsError(f"controller.host {host!r}, port {port}: {error.strerror}") from error
        except OSError as error:
            if "assign" in str(error.strerror):
                raise SettingsError(f"controller.host {host!r} is not an address of this machine") from error
            return False
    return True


def holder_of(port: int) -> str | None:
    """The process that listens on a port, as far as this user may see."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return None
    return None


def clean_leftovers(state_dir: Path) -> list[str]:
    """Remove sockets and announcements of a system that is gone. Call with the folder's lock held."""
    removed = []
    stale = [state_dir / "redis.sock", controller_file(state_dir), *run_dir(state_dir).glob("*.sock")]
    for path in stale:
        if path.exists() or path.is_symlink():
            path.unlink()
            removed.append(path.name)
    return removed


def rotate_logs(state_dir: Path, names: Iterable[str]) -> None:
    """Every start begins a fresh log; the last few are kept as `name.log.1`, `.2` ..."""
    for name in names:
        newest = log_path(state_dir, name)
        for number in range(KEPT_LOGS, 0, -1):
            source = newest if number == 1 else newest.with_name(f"{newest.name}.{number - 1}")
            if source.exists():
                shutil.move(source, newest.with_name(f"{newest.name}.{number}"))


def log_path(state_dir: Path, name: str) -> Path:
    return state_dir / "logs" / f"{name}.log"
