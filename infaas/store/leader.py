"""Keeps a fenced lease, for loops that only one process may run: the registrar's, the fleet's, a build's.

Holding is judged by this process's own monotonic clock, from before the request that was granted: a leader that was
paused or cut off knows that its lease may be over before the store gives it to somebody else. What it writes carries
the fence all the same, so that even a wrong judgement changes nothing.
"""

from __future__ import annotations

import asyncio
import random

from infaas.clock import Clock
from infaas.errors import UnavailableError
from infaas.observe.log import get_logger
from infaas.store.base import Lease, MetadataStore

_SAFE_SHARE = 0.9
"""Of the time to live, counted from before the request: clocks of two machines do not run equally fast."""
_log = get_logger(__name__)


class Leadership:
    """Owned by one event loop; `run` is its background task. `stop` gives the lease back."""

    def __init__(self, store: MetadataStore, name: str, holder: str, ttl_s: float, clock: Clock) -> None:
        self._store = store
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._clock = clock
        self._lease: Lease | None = None
        self._valid_until = 0.0
        self._held = asyncio.Event()
        self._lost = asyncio.Event()
        self._stopping = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    @property
    def lease(self) -> Lease | None:
        """None unless held, and certainly still valid now."""
        return self._lease if self._lease is not None and self._clock.now() < self._valid_until else None

    async def wait_held(self) -> Lease:
        while (lease := self.lease) is None:
            self._held.clear()
            await self._held.wait()
        return lease

    async def wait_lost(self) -> None:
        """Return as soon as the present lease is lost or no longer certain, even if a new one was taken by then; at
        once if none is held."""
        present = self.lease
        while present is not None and self.lease == present:
            self._lost.clear()
            try:
                async with asyncio.timeout(max(0.001, self._valid_until - self._clock.now())):
                    await self._lost.wait()
            except TimeoutError:
                continue

    async def run(self) -> None:
        """Take the lease whenever it is free and renew it three times in its time, until `stop`."""
        self._runner = asyncio.current_task()
        while not self._stopping.is_set():
            await self._try()
            await self._pause()

    async def stop(self) -> None:
        """End `run` and release the lease, so that the next holder need not wait for its end. Idempotent.

        A store that cannot be reached is logged: the lease then ends by itself.
        """
        self._stopping.set()
        if self._runner is not None and self._runner is not asyncio.current_task():
            await asyncio.wait([self._runner])
        lease, self._lease = self._lease, None
        self._lost.set()
        if lease is None:
            return
        try:
            await self._store.release(lease)
        except UnavailableError as error:
            _log.warning("a lease was not released and ends by itself", lease=self._name, reason=str(error))
        else:
            _log.info("lease released", lease=self._name, holder=self._holder, fence=lease.fence)

    async def _try(self) -> None:
        asked_at = self._clock.now()
        held = self._lease
        try:
            if held is not None and not await self._store.renew(held):
                _log.warning("lease lost", lease=self._name, holder=self._holder, fence=held.fence)
                held = self._lease = None
                self._lost.set()
                asked_at = self._clock.now()
            if held is None:
                held = await self._store.acquire(self._name, self._holder, self._ttl_s)
                if held is not None:
                    _log.info("lease taken", lease=self._name, holder=self._holder, fence=held.fence)
        except UnavailableError as error:
            _log.warning("lease not renewed", lease=self._name, is_held=self.lease is not None, reason=str(error))
            if self.lease is None:
                self._lost.set()
            return
        if held is not None:
            self._lease = held
            self._valid_until = asked_at + _SAFE_SHARE * self._ttl_s
            self._held.set()

    async def _pause(self) -> None:
        wait_s = self._ttl_s / 3 * random.uniform(0.8, 1.0)
        try:
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()
        except TimeoutError:
            return
