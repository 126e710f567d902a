"""Digests of large inputs, off the loop, on threads that nothing else uses.

A query whose outline is in quarantine or under suspicion waits for its digest before anything is decided on it. On the
threads that the rest of the controller blocks in, a catalogue that hangs would hold it up.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from infaas.domain.query import Query
from infaas_controller.quarantine import digest

THREADS = 2


class Digesting:
    """Used from one event loop; `close` once nobody asks any more."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="digest")

    async def of(self, query: Query) -> bytes:
        """Cancelled before a thread has begun, it is no work; after that it runs to its end alone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, digest, query)

    async def close(self) -> None:
        """Waits for what is under way."""
        await asyncio.to_thread(self._threads.shutdown)
