"""An open-loop load with honest accounting: queries leave on schedule, whatever became of the ones before.

Latency counts from the scheduled moment. A caller may try once more, on another controller, when a connection breaks
or the answer says that a retry can help: that is what clients of several controllers are told to do.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from infaas.client_tensors import Array, request_parts

OK = "ok"
HUNG = "hung"
BROKEN = "connection-broken"
Urls = Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Shot:
    """One query as its caller saw it; times in seconds since the load began."""

    due_s: float
    ended_s: float
    code: str
    """`ok`, an error's slug, `connection-broken`, or `hung`: nothing came within the caller's patience."""
    attempts: int

    @property
    def took_s(self) -> float:
        return self.ended_s - self.due_s


@dataclass(frozen=True, slots=True)
class Outcome:
    shots: tuple[Shot, ...]
    deadline_s: float

    @property
    def failed(self) -> Counter[str]:
        return Counter(shot.code for shot in self.shots if shot.code != OK)

    @property
    def retried(self) -> int:
        return sum(shot.attempts > 1 for shot in self.shots)

    def worst_beyond_deadline_s(self) -> float:
        """How long after its deadline the last caller got whatever it got; below 0: none was late."""
        return max((shot.took_s for shot in self.shots), default=0.0) - self.deadline_s

    def last_failure_s(self) -> float | None:
        return max((shot.due_s for shot in self.shots if shot.code != OK), default=None)

    def percentile_s(self, share: float) -> float:
        answered = [shot.took_s for shot in self.shots if shot.code == OK]
        return float(np.quantile(answered, share)) if answered else float("nan")


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """A Poisson process."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def query_bytes(handle: str, inputs: Mapping[str, Array], headers: Mapping[str, str]) -> bytes:
    """A whole HTTP request in the binary tensor extension."""
    body, raw = request_parts(inputs, (), is_binary=True)
    head = json.dumps(body, separators=(",", ":")).encode()
    content = b"".join([head, *raw])
    lines = [
        f"POST /v2/models/{handle}/infer HTTP/1.1",
        "Host: infaas",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


class Load:
    """Sends prepared queries to the first controller of `urls`, or spread over all of them."""

    def __init__(
        self,
        urls: Urls,
        queries: Sequence[bytes],
        *,
        deadline_s: float,
        is_spread: bool = False,
        has_retry: bool = False,
        patience_s: float = 5.0,
    ) -> None:
        """`patience_s`: how long beyond the deadline a caller waits before it calls the query hung."""
        self._urls = urls
        self._queries = queries
        self._deadline_s = deadline_s
        self._is_spread = is_spread
        self._has_retry = has_retry
        self._patience_s = patience_s
        self._idle: dict[str, deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def run(self, schedule: Sequence[float]) -> Outcome:
        """Returns when the last query has ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        shots: list[asyncio.Task[Shot]] = []
        for number, due_s in enumerate(schedule):
            await asyncio.sleep(max(0.0, began + due_s - loop.time()))
            shots.append(asyncio.create_task(self._shoot(number, due_s, began), name=f"query-{number}"))
        done = tuple(await asyncio.gather(*shots))
        self._close()
        return Outcome(done, self._deadline_s)

    async def closed_loop(self, callers: int, seconds: float) -> Outcome:
        """As many queries as `callers` get answered one after the other: what the cluster can do."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def call(first: int) -> list[Shot]:
            shots: list[Shot] = []
            while (now := loop.time()) < began + seconds:
                shots.append(await self._shoot(first + callers * len(shots), now - began, began))
            return shots

        found = await asyncio.gather(*(call(number) for number in range(callers)))
        self._close()
        return Outcome(tuple(shot for shots in found for shot in shots), self._deadline_s)

    def _close(self) -> None:
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()
        self._idle.clear()

    async def _shoot(self, number: int, due_s: float, began: float) -> Shot:
        loop = asyncio.get_running_loop()
        query = self._queries[number % len(self._queries)]
        code, attempts = BROKEN, 0
        try:
            async with asyncio.timeout_at(began + due_s + self._deadline_s + self._patience_s):
                for attempt in range(2 if self._has_retry else 1):
                    urls = self._urls()
                    first = number if self._is_spread else 0
                    attempts += 1
                    code, is_retryable = await self._ask(urls[(first + attempt) % len(urls)], query)
                    if code == OK or not is_retryable:
                        break
        except TimeoutError:
            code = HUNG
        return Shot(due_s, loop.time() - began, code, attempts)

    async def _ask(self, url: str, query: bytes) -> tuple[str, bool]:
        """How it ended, and whether another controller might do better."""
        idle = self._idle.setdefault(url, deque())
        wire = idle.pop() if idle else None
        try:
            reader, writer = wire or await _dial(url)
        except OSError:
            return BROKEN, True
        try:
            writer.write(query)
            status, length = await _head(reader)
            content = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return BROKEN, True
        except asyncio.CancelledError:
            writer.close()
            raise
        idle.append((reader, writer))
        if status == 200:
            return OK, False
        said = json.loads(content)
        return str(said["code"]), bool(said["retryable"])


async def _dial(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and content length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0]
    return int(head.split(b" ", 2)[1]), int(length)
