"""Asks Triton servers on behalf of callers: a few at a time, on threads of its own, each question within a bound.

The calls block, and a server that is slow or stands still may hold one for as long as it likes. On the threads that the
rest of the controller blocks in, a few such questions would hold up every registration and every look at the catalogue.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from infaas.control import ForeignModelDocument
from infaas.errors import InfaasError, InvalidError, UnavailableError
from infaas.triton.address import dial_problem, parse_address
from infaas.triton.facts import Listed, ModelFacts
from infaas.triton.server import LOAD_S, READY, TritonServer

T = TypeVar("T")
DISCOVER_S = 30.0
FACTS_S = LOAD_S + 30.0
"""The server may have to load the model first."""
_THREADS = 4
_PER_SERVER = 2
_MAX_LISTED = 1000


class ForeignServers:
    """Used from one event loop; `close` once nobody asks any more."""

    def __init__(self, configured: str | None, *, discover_s: float = DISCOVER_S, facts_s: float = FACTS_S) -> None:
        """`configured`: the server that the configuration names, wherever that is. The bounds count from the question,
        the wait for a thread included."""
        self._configured = None if configured is None else configured.rstrip("/")
        self._discover_s = discover_s
        self._facts_s = facts_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="triton-ask")
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._askers: Counter[str] = Counter()
        self._open: set[TritonServer] = set()

    async def discover(self, url: str) -> tuple[ForeignModelDocument, ...]:
        """What a server has, and what of it can be attached. Raises InvalidError, UnavailableError."""
        return await self._ask(url, _discovered, self._discover_s)

    async def facts(self, url: str, model: str, version: str) -> ModelFacts:
        """Has the server load the model, and leaves it loaded: others may have begun to use it meanwhile.

        Raises InvalidError, NotFoundError, ModelError, UnavailableError.
        """
        return await self._ask(url, lambda server: _facts(server, model, version), self._facts_s)

    def close(self) -> None:
        """Ends what is still being asked, and waits for the threads. Blocking."""
        for server in list(self._open):
            server.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _ask(self, url: str, question: Callable[[TritonServer], T], within_s: float) -> T:
        """A caller who leaves, or waited too long, closes the connection: that ends what its thread waits for."""
        server = TritonServer(url)
        self._open.add(server)

        def work() -> T:
            self._refuse_guarded(url)
            server.require_live()
            return question(server)

        try:
            async with asyncio.timeout(within_s), self._turn(url):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise UnavailableError(f"the Triton server at {url} did not say all within {within_s:g} s") from None
        finally:
            self._open.discard(server)
            server.close()

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        """So that one server never has all threads."""
        gate = self._gates.setdefault(url, asyncio.Semaphore(_PER_SERVER))
        self._askers[url] += 1
        try:
            async with gate:
                yield
        finally:
            self._askers[url] -= 1
            if not self._askers[url]:
                del self._askers[url], self._gates[url]

    def _refuse_guarded(self, url: str) -> None:
        """Raises InvalidError, or UnavailableError for a host that has no address now."""
        if url == self._configured:
            return
        address = parse_address(url)
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnavailableError(f"the host of the Triton server at {url} is not found: {error}") from error
        if problem := dial_problem(url, (str(one[4][0]) for one in found)):
            raise InvalidError(problem)


def _facts(server: TritonServer, model: str, version: str) -> ModelFacts:
    server.ensure_loaded(model, version)
    return server.facts(model, version)


def _discovered(server: TritonServer) -> tuple[ForeignModelDocument, ...]:
    return tuple(_described(server, listed) for listed in server.index()[:_MAX_LISTED])


def _described(server: TritonServer, listed: Listed) -> ForeignModelDocument:
    """A model that is not loaded is not loaded for being looked at."""
    if listed.state != READY:
        state = listed.state or "UNAVAILABLE"
        return ForeignModelDocument(listed.name, listed.version, state, listed.reason)
    try:
        facts = server.facts(listed.name, listed.version)
    except InfaasError as error:
        return ForeignModelDocument(listed.name, listed.version, listed.state, error.text)
    return ForeignModelDocument(
        name=listed.name,
        version=listed.version,
        state=listed.state,
        reason=listed.reason,
        platform=facts.platform,
        inputs=tuple(f"{t.name} {t.kind} {list(t.shape)}" for t in facts.inputs),
        outputs=tuple(f"{t.name} {t.kind} {list(t.shape)}" for t in facts.outputs),
        max_batch_size=facts.max_batch_size,
        problems=facts.problems,
    )
