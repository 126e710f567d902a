"""The controller's two HTTP listeners: REST with the control plane, and metrics. Each is uvicorn on a socket of ours.

The socket is bound before anything is served, so that a taken port is a clear error at the start, and port 0 is known.
Signals stay with the composition root: it decides when a listener stops.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from infaas.errors import SettingsError
from infaas.observe.log import get_logger
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_limits import Limits
from infaas_controller.api.http_server import server_config

_BACKLOG = 2048
ACCEPTED_AT_ONCE = 32
"""Connections a turn of the loop: libuv takes one for each descriptor that listens, and where turns are long, whoever
connects would wait for seconds. One that comes alone costs some 3 µs more by that, of 30."""
_OWN_DESCRIPTORS = 512 + 3 * ACCEPTED_AT_ONCE
"""For everything but callers: workers, store, catalogue, uploads, and refused callers who still read why; and for our
listeners."""
_WITHOUT_LIMIT = 1 << 20
_log = get_logger(__name__)


def bind(host: str, port: int, setting: str, *, is_shared: bool = False) -> socket.socket:
    """A listening socket. One that is shared with other processes does not listen yet: from when it does, connections
    are handed to it. Raises SettingsError naming the port, the setting and what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if not is_shared:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}; "
            f"free the port, set {setting} to another one, or to 0 for any free port"
        ) from error
    listener.setblocking(False)
    return listener


def raise_descriptor_limit(connections: int) -> int:
    """Take every descriptor that this process may have; returns how many connections each listener then takes.

    That is `controller.max_connections`, unless three listeners full of them would leave none for the rest of us: then
    as many as fit, which is said in the log.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, _WITHOUT_LIMIT)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = connections_within(connections, hard)
    if taken < connections:
        _log.warning("fewer connections than configured", max_connections=connections, taken=taken, descriptors=hard)
    return taken


def connections_within(connections: int, descriptors: int) -> int:
    """Per listener, of which there are three, with some to spare."""
    return max(1, min(connections, (descriptors - _OWN_DESCRIPTORS) // 3))


class _Quiet(uvicorn.Server):
    """Leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpListener:
    """`run` serves until `stop`; the caller owns the task that runs it."""

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        *,
        drain_timeout_s: float,
        limits: Limits | None = None,
        fast: FastInfer | None = None,
    ) -> None:
        self._listener = listener
        patience_s = max(1, int(drain_timeout_s))
        config = server_config(app, limits, fast, loop="none", timeout_graceful_shutdown=patience_s)
        self._server = _Quiet(config)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    async def run(self) -> None:
        await self._server.serve(sockets=[self._listener, *self._more()])

    def _more(self) -> list[socket.socket]:
        """Of the same socket; as many as can be had."""
        made: list[socket.socket] = []
        try:
            made.extend(self._listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))
        except OSError as error:
            _log.warning("fewer connections than usual are accepted at once", at_once=len(made) + 1, reason=str(error))
        return made

    def give_back(self) -> None:
        """Close the socket of a listener that never ran."""
        self._listener.close()

    def leave(self) -> None:
        """As `stop`, and no connection is taken from this moment on: uvicorn looks ten times a second."""
        if self._server.started:
            for server in self._server.servers:
                server.close()
        self.stop()

    def stop(self) -> None:
        """Take no more connections, finish what runs; `run` then returns."""
        self._server.should_exit = True
