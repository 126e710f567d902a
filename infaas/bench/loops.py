"""The two ways to send: on a schedule whatever comes back (open), or one after another per caller (closed).

Every query is a task that the loop owns and awaits. A run may be told to stop: nothing is sent any more, and what has
no answer after a short grace is recorded as unfinished.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from infaas.bench.journal import Journal
from infaas.bench.pacer import Pacer
from infaas.bench.reply import BROKEN, HUNG, UNFINISHED, Reply

Ask = Callable[[int, int], Awaitable[Reply]]
"""Sends query `number` with the requirements of set `mix`; raises OSError when the connection breaks."""
_GRACE_S = 1.0


class Loops:
    """One run. `mix` draws the set of the next query; queries are numbered as they are due."""

    def __init__(self, ask: Ask, journal: Journal, mix: Callable[[], int], *, patience_s: float) -> None:
        self._ask = ask
        self._journal = journal
        self._mix = mix
        self._patience_s = patience_s
        self._began = 0.0
        self._next = 0
        self._stop = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    async def open_loop(self, schedule: Sequence[float]) -> None:
        """Returns when the last query has ended."""
        self._began = time.monotonic()
        await self._unless_stopped(self._pace(schedule), "pace")
        await self._end()

    async def closed_loop(self, callers: int, *, seconds: float | None, count: int | None) -> None:
        """Until the time is over or `count` queries were sent."""
        self._began = time.monotonic()
        for number in range(callers):
            self._own(self._call(seconds, count), f"caller-{number}")
        await self._end()

    async def _pace(self, schedule: Sequence[float]) -> None:
        with Pacer() as pacer:
            for sent, due_s in enumerate(schedule):
                await pacer.until(self._began + due_s)
                self._own(self._shoot(self._number(), due_s), f"query-{sent}")

    async def _call(self, seconds: float | None, count: int | None) -> None:
        while not self._stop.is_set():
            due_s = self.elapsed_s
            if (seconds is not None and due_s >= seconds) or (count is not None and self._next >= count):
                return
            await self._shoot(self._number(), due_s)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    async def _shoot(self, number: int, due_s: float) -> None:
        mix = self._mix()
        sent_s = self.elapsed_s
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await self._ask(number, mix)
        except TimeoutError:
            reply = Reply(HUNG)
        except OSError:
            reply = Reply(BROKEN)
        except asyncio.CancelledError:
            self._journal.add(number, mix, due_s, sent_s, self.elapsed_s, Reply(UNFINISHED))
            raise
        self._journal.add(number, mix, due_s, sent_s, self.elapsed_s, reply)

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self.stop()

    async def _end(self) -> None:
        """Every query that was sent is recorded, one way or the other. Raises what broke a task, if anything did."""
        await self._unless_stopped(self._settled(), "settled")
        if self._running:
            await asyncio.wait(set(self._running), timeout=_GRACE_S)
        left = set(self._running)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        if self._failure is not None:
            raise self._failure

    async def _settled(self) -> None:
        while self._running:
            await asyncio.wait(set(self._running))

    async def _unless_stopped(self, work: Coroutine[None, None, None], name: str) -> None:
        """Until the work is done, or a stop is asked for, which cancels it."""
        working = asyncio.create_task(work, name=name)
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.wait({working, stopped})
        if not working.cancelled():
            working.result()
