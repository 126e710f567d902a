"""Asks Triton servers on behalf of callers: a few at a time, on threads of its own, each question within a bound.

The calls block, and a server that is slow or stands still may hold one for as long as it likes. On the threads that the
rest of the controller blocks in, a few such questions would hold up every registration and every look at the catalogue.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from infaas.control import ForeignModelDocument
from infaas.errors import InfaasError, InvalidError, UnavailableError
from infaas.triton.address import dial_problem, parse_address
from infaas.triton.facts import Listed, ModelFacts
from infaas.triton.server import CALL_S, LOAD_S, READY, TritonServer

T = TypeVar("T")
DISCOVER_S = 30.0
FACTS_S = LOAD_S + 30.0
"""The server may have to load the model first."""
_THREADS = 4
_PER_SERVER = 2
_MAX_LISTED = 1000
_SHARE_OF_ASKING = 0.9
_LEAST_SHARE = 0.1
"""Of the time for a discovery: what asking may take, and what must be left of that to ask about one more model."""
_NOT_REACHED = "the time for asking was over before its turn; ask again, or name it when attaching"


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
        """What a server has, and what of it can be attached. Models that there was no time to ask about are listed with
        that reason. Raises InvalidError, UnavailableError."""
        until = time.monotonic() + _SHARE_OF_ASKING * self._discover_s
        least_s = _LEAST_SHARE * self._discover_s
        return await self._ask(url, lambda server: _discovered(server, until, least_s), self._discover_s)

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
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(await self._begun(parse_address(url).target, work))
        except TimeoutError:
            raise UnavailableError(f"the Triton server at {url} did not say all within {within_s:g} s") from None
        finally:
            self._open.discard(server)
            server.close()

    async def _begun(self, target: str, work: Callable[[], T]) -> Future[T]:
        """Work on its way to a thread, in its turn: one server never has all threads. A thread that nobody waits for
        any more, for it hangs in what no closed connection ends, keeps its turn until it is done."""
        gate = self._gates.setdefault(target, asyncio.Semaphore(_PER_SERVER))
        self._askers[target] += 1
        try:
            await gate.acquire()
        except BaseException:
            self._leave(target)
            raise
        loop = asyncio.get_running_loop()

        def done(_: Future[T]) -> None:
            if not loop.is_closed():  # else nobody waits for a turn
                loop.call_soon_threadsafe(self._end_turn, target)

        try:
            future = self._threads.submit(work)
        except RuntimeError:  # closed
            self._end_turn(target)
            raise UnavailableError("the controller stops; try again", retry_after_s=1.0) from None
        future.add_done_callback(done)
        return future

    def _end_turn(self, target: str) -> None:
        self._gates[target].release()
        self._leave(target)

    def _leave(self, target: str) -> None:
        self._askers[target] -= 1
        if not self._askers[target]:
            del self._askers[target], self._gates[target]

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


def _discovered(server: TritonServer, until: float, least_s: float) -> tuple[ForeignModelDocument, ...]:
    """By `time.monotonic`, models are asked about until then, and none for less than `least_s`."""
    found = []
    for listed in server.index()[:_MAX_LISTED]:
        left_s = until - time.monotonic()
        if left_s < least_s and listed.state == READY:
            found.append(ForeignModelDocument(listed.name, listed.version, listed.state, _NOT_REACHED))
        else:
            found.append(_described(server, listed, min(CALL_S, left_s / 2)))
    return tuple(found)


def _described(server: TritonServer, listed: Listed, call_s: float) -> ForeignModelDocument:
    """A model that is not loaded is not loaded for being looked at."""
    if listed.state != READY:
        state = listed.state or "UNAVAILABLE"
        return ForeignModelDocument(listed.name, listed.version, state, listed.reason)
    try:
        facts = server.facts(listed.name, listed.version, call_s=call_s)
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
