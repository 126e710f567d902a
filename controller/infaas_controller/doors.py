"""Where callers come in: REST, gRPC and metrics, how they are opened and closed, and the file that says where they are.

Among processes that share these ports each also has a port of its own on the loopback, where the others ask it for what
only it remembers. It serves the same REST with the same credential, so it opens nothing that was closed.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from infaas.aio.supervise import Supervisor
from infaas.observe.log import get_logger
from infaas.processes.seat import Seat
from infaas.settings import Settings
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.listeners import HttpListener
from infaas_controller.siblings import ProcessState, Siblings

_log = get_logger(__name__)


class Doors:
    """Owned by the composition root: `open` once, `withdraw` before the drain, `close` at the end, opened or not."""

    def __init__(
        self,
        seat: Seat,
        settings: Settings,
        siblings: Siblings,
        grpc_server: GrpcServer,
        rest: HttpListener,
        metrics: HttpListener,
        private: HttpListener | None,
    ) -> None:
        """`private` is the port of its own; a lone controller needs none."""
        self._seat = seat
        self._settings = settings
        self._siblings = siblings
        self._grpc_server = grpc_server
        self._grpc_port: int | None = None
        self._rest = rest
        self._metrics = metrics
        self._private = private
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: asyncio.Task[None] | None = None
        """Of gRPC, whose servers cannot stop listening without saying goodbye to every caller."""
        self._announcement: Path | None = None

    async def take_grpc_port(self) -> None:
        """Serve gRPC already. Raises SettingsError when the port cannot be had."""
        self._grpc_port = await self._grpc_server.start(is_shared=not self._seat.is_alone)

    async def open(self, supervisor: Supervisor) -> None:
        """From here on callers come in. Raises SettingsError as `take_grpc_port`."""
        if self._grpc_port is None:
            await self.take_grpc_port()
        grpc_port = self._grpc_port or 0
        self._tasks = {
            supervisor.spawn(name, listener.run(), stage=1, is_eternal=False)
            for name, listener in self._listeners().items()
        }
        pid = os.getpid() if self._seat.is_alone else self._seat.master
        host = self._settings.controller.host
        self._announcement = announce(
            self._settings.state_dir, pid, host, self._rest.port, grpc_port, self._metrics.port
        )
        url = f"http://127.0.0.1:{self._private.port}" if self._private is not None else ""
        self._siblings.turn(ProcessState.SERVING, url)
        _log.info(
            "controller listens",
            controller=self._siblings.own_name,
            http=self._rest.port,
            grpc=grpc_port,
            metrics=self._metrics.port,
        )

    def withdraw(self) -> None:
        """Whoever looks from outside finds no controller any more; callers that are here are served.

        Where another process serves behind the same ports, this one takes no more connections from this moment on, and
        lets those go that ask for nothing: whoever comes finds the other. Who is the last to withdraw keeps the ports
        until it closes, so that somebody says that the controller is not ready (SURFACE rule 17).
        """
        self._siblings.turn(ProcessState.DRAINING)  # before the others are looked at: of two, one sees the other leave
        if self._announcement is not None and self._seat.is_alone:
            self._announcement.unlink(missing_ok=True)  # of several processes, the master withdraws it
        if self._tasks and self._siblings.does_another_serve():
            self._rest.leave()
            self._metrics.leave()
            serving_s = self._settings.controller.drain_timeout_s
            self._leaving = asyncio.create_task(self._grpc_server.stop(serving_s), name="grpc-leaving")

    async def close(self, grace_s: float) -> None:
        """No more connections; answers that are on their way get out."""
        for listener in self._listeners().values():
            listener.stop()
        await self._end_leaving()
        await self._grpc_server.stop(grace_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        else:
            for listener in self._listeners().values():
                listener.give_back()

    async def _end_leaving(self) -> None:
        """Who is still there has what `close` grants."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.cancel()
            await asyncio.wait({leaving})
            if not leaving.cancelled() and (error := leaving.exception()) is not None:
                # What follows ends the same server, and the rest of the controller, in any case.
                _log.error("gRPC did not begin to end", exc_info=error)

    def _listeners(self) -> dict[str, HttpListener]:
        named = {"rest": self._rest, "metrics": self._metrics}
        return named if self._private is None else {**named, "siblings-port": self._private}


def announce(state_dir: Path, pid: int, host: str, http_port: int, grpc_port: int, metrics_port: int) -> Path:
    """Say where this controller listens, for the programs of this machine. The file appears whole or not at all; `pid`
    is of the process that it holds as long as."""
    target = state_dir / "run" / "controller.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    scratch.write_text(json.dumps({"pid": pid, "host": host, **ports}))
    os.replace(scratch, target)
    return target
