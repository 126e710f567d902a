"""An open-loop load with honest accounting: queries leave on schedule, whatever became of the ones before.

Latency counts from the scheduled moment. A caller may try once more, on another controller, when a connection breaks
or the answer says that a retry can help: that is what clients of several controllers are told to do.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from infaas.bench.pacer import Pacer
from infaas.bench.reply import BROKEN, HUNG, OK
from infaas.bench.rest import RestPool, query_bytes
from infaas.bench.schedule import arrivals

__all__ = ["BROKEN", "HUNG", "OK", "Load", "Outcome", "Shot", "arrivals", "query_bytes"]

Urls = Callable[[], Sequence[str]]
HUNG_AFTER_S = 1.0
"""Whatever is lost, a caller gets an answer or an error no later than this after the deadline."""


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
    def hung(self) -> int:
        """Callers who had nothing a second after their deadline, whatever they got later."""
        return sum(shot.took_s > self.deadline_s + HUNG_AFTER_S for shot in self.shots)

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
        pause_s: float = 0.0,
        patience_s: float = 5.0,
    ) -> None:
        """`pause_s`: before the second try.
        `patience_s`: how long beyond the deadline a caller waits before it calls the query hung."""
        self._urls = urls
        self._queries = queries
        self._deadline_s = deadline_s
        self._is_spread = is_spread
        self._has_retry = has_retry
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._pools: dict[str, RestPool] = {}

    async def run(self, schedule: Iterable[float]) -> Outcome:
        """Returns when the last query has ended. The schedule is asked for the next moment when the one before came."""
        began = time.monotonic()
        shots: list[asyncio.Task[Shot]] = []
        with Pacer() as pacer:
            for number, due_s in enumerate(schedule):
                await pacer.until(began + due_s)
                shots.append(asyncio.create_task(self._shoot(number, due_s, began), name=f"query-{number}"))
        done = tuple(await asyncio.gather(*shots))
        self._close()
        return Outcome(done, self._deadline_s)

    async def closed_loop(self, callers: int, seconds: float) -> Outcome:
        """As many queries as `callers` get answered one after the other: what the cluster can do."""
        began = time.monotonic()

        async def call(first: int) -> list[Shot]:
            shots: list[Shot] = []
            while (now := time.monotonic()) < began + seconds:
                shots.append(await self._shoot(first + callers * len(shots), now - began, began))
            return shots

        found = await asyncio.gather(*(call(number) for number in range(callers)))
        self._close()
        return Outcome(tuple(shot for shots in found for shot in shots), self._deadline_s)

    def _close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    async def _shoot(self, number: int, due_s: float, began: float) -> Shot:
        query = self._queries[number % len(self._queries)]
        code, attempts = BROKEN, 0
        left_s = began + due_s + self._deadline_s + self._patience_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                for attempt in range(2 if self._has_retry else 1):
                    urls = self._urls()
                    first = number if self._is_spread else 0
                    attempts += 1
                    if attempt and self._pause_s:
                        await asyncio.sleep(self._pause_s)
                    code, is_retryable = await self._ask(urls[(first + attempt) % len(urls)], query)
                    if code == OK or not is_retryable:
                        break
        except TimeoutError:
            code = HUNG
        return Shot(due_s, time.monotonic() - began, code, attempts)

    async def _ask(self, url: str, query: bytes) -> tuple[str, bool]:
        """How it ended, and whether another controller might do better."""
        pool = self._pools.get(url)
        if pool is None:
            pool = self._pools[url] = RestPool(url)
        try:
            reply = await pool.ask(query)
        except OSError:
            return BROKEN, True
        return reply.code, reply.is_retryable
