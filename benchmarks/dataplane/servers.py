"""A server that is measured: where it listens, what it understands, which processes are its own."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psutil

from dataplane.generator import Address

JSON, BINARY, GRPC = "JSON", "binary", "gRPC"
INFAAS = "infaas"
FASTAPI = "FastAPI + orjson"
REST_PATH = ""
"""The protocol's own path."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Which core the servers have, and which the generator; None: all share what there is."""

    server: int | None
    generator: int | None

    @contextmanager
    def for_server(self) -> Iterator[None]:
        """What is started within has the servers' core."""
        before = os.sched_getaffinity(0)
        if self.server is not None:
            os.sched_setaffinity(0, {self.server})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def for_generator(self) -> None:
        """From now on, for this process."""
        if self.generator is not None:
            os.sched_setaffinity(0, {self.generator})


def pins(*, is_shared: bool) -> Pins:
    """The first two cores that this process may use. Raises SystemExit when there is only one to pin to."""
    usable = sorted(os.sched_getaffinity(0))
    if is_shared:
        return Pins(None, None)
    if len(usable) < 2:
        raise SystemExit("this takes two cores, one for the servers and one for the load; --shared does without")
    return Pins(usable[0], usable[1])


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    address: Address
    roots: Mapping[str, int]
    """The programs that were started, by name; their children are theirs."""
    path: str = REST_PATH
    grpc: Address | None = None
    rest: tuple[str, ...] = (BINARY, JSON)
    """How tensors may travel over REST."""
    is_own: bool = False
    """INFaaS, in one edition or other."""

    def understands(self, kind: str) -> bool:
        return self.grpc is not None if kind == GRPC else kind in self.rest

    def programs(self) -> dict[str, list[psutil.Process]]:
        """Each root with its children, but for those that are roots themselves."""
        found: dict[str, list[psutil.Process]] = {}
        for name, root in self.roots.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(root)
                others = set(self.roots.values()) - {root}
                found[name] = [one for one in (process, *process.children(recursive=True)) if one.pid not in others]
        return found


class UnreachableError(SystemExit):
    """A server that answers nothing any more, or lets go of its callers. Ends the run unless somebody goes on without
    it."""


def cpu_s(programs: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    """Processor time that each program has taken so far."""
    return {name: sum(map(_cpu_s, processes)) for name, processes in programs.items()}


def _cpu_s(process: psutil.Process) -> float:
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system)


@dataclass(frozen=True, slots=True)
class LeftOut:
    name: str
    why: str


@contextmanager
def quiet(servers: Sequence[Server], but: Server) -> Iterator[None]:
    """The other peers stand still meanwhile. INFaaS runs on: its programs watch each other."""
    with ExitStack() as stack:
        for server in servers:
            if server is not but and not server.is_own:
                for process in itertools.chain(*server.programs().values()):
                    process.suspend()
                    stack.callback(_resume, process)
        yield


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def wait_listening(address: Address, is_alive: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError, or ChildProcessError when `is_alive()` says no first."""
    deadline = time.monotonic() + seconds
    while True:
        if not is_alive():
            raise ChildProcessError("it ended while it started")
        try:
            socket.create_connection(address, timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"it does not listen after {seconds:.0f} s") from None
            time.sleep(0.05)
        else:
            return


def wait_answering(address: Address, request: bytes, seconds: float) -> None:
    """Until a query is answered with a result: a server may listen before its model is loaded.

    Raises TimeoutError with what it said last.
    """
    deadline = time.monotonic() + seconds
    said = b""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=seconds) as connection:
                connection.sendall(request)
                said = connection.recv(4096)
        except OSError as error:
            said = repr(error).encode()
        if said[9:12] == b"200":
            return
        time.sleep(0.05)
    raise TimeoutError(f"no result after {seconds:.0f} s: {said!r}")
