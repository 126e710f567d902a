"""Loading and warming, off the serving loop: what blocks runs on threads of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from infaas.domain.variant import PROCESS_MEMORY_BYTES, Isolation, Variant
from infaas.errors import InfaasError, InvalidError, ModelError
from infaas.repository.base import Repository
from infaas_worker.executors.base import BatchOut, Executors, LoadedModel
from infaas_worker.executors.sample import open_sizes, sample, warm_up_sizes

T = TypeVar("T")
LOADS_AT_ONCE = 2
"""Loading is bound by memory and disk; more at a time only slows each."""
_LOADING_NICE = 5
"""Of a single-threaded load beside serving threads: a quarter of a contended core."""
_UNMEASURED_FACTOR = 3
_UNMEASURED_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Opened:
    model: LoadedModel
    load_s: float
    was_cold: bool
    memory_bytes: int


class Loader:
    """Fetches artifacts and opens them. Remembers which ones this process has read before."""

    def __init__(self, repository: Repository, executors: Executors) -> None:
        self._repository = repository
        self._executors = executors
        self._read: set[str] = set()
        self._limit = asyncio.Semaphore(LOADS_AT_ONCE)

    async def memory_bytes(self, variant: Variant) -> int:
        """What one instance needs: measured, or for a variant without profile a guess from its artifact's size.

        Raises InfaasError when the artifact is not there.
        """
        if variant.memory_bytes:
            return variant.memory_bytes
        size = await on_thread(f"size-{variant.name}", lambda: self._repository.size(variant.artifact))
        process_bytes = PROCESS_MEMORY_BYTES if variant.isolation is Isolation.PROCESS else 0
        return size * _UNMEASURED_FACTOR + _UNMEASURED_BYTES + process_bytes

    async def open(self, variant: Variant) -> Opened:
        """Raises InfaasError with the reason when the variant cannot be loaded here."""
        async with self._limit:
            return await on_thread(f"load-{variant.name}", lambda: self._open(variant))

    def _open(self, variant: Variant) -> Opened:
        started = time.monotonic()
        was_cold = variant.artifact not in self._read
        executor = self._executors.of(variant)
        path = self._repository.fetch(variant.artifact)
        if variant.threads == 1:  # else the runtime's pool, made while loading, would inherit it for good
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICE)
        model = executor.load(variant, path)
        self._read.add(variant.artifact)
        return Opened(model, time.monotonic() - started, was_cold, variant.memory_bytes or model.memory_bytes())


async def warm_up(model: LoadedModel, variant: Variant) -> int:
    """Real inferences at batch 1 and at the largest batch; returns the size found to fit open dimensions.

    Raises InfaasError when no size works.
    """
    problem: InfaasError | None = None
    for size in open_sizes(variant):
        try:
            for items in warm_up_sizes(variant):
                await run(model, variant, items, size)
        except (ModelError, InvalidError) as error:
            problem = error
        else:
            return size
    raise problem or InvalidError(f"{variant.name} has no size to warm up with")


async def run(model: LoadedModel, variant: Variant, items: int, open_size: int) -> BatchOut:
    return await asyncio.wrap_future(model.submit(sample(variant, items, open_size)))


async def on_thread(name: str, fn: Callable[[], T]) -> T:
    """Run in a fresh thread, which may therefore lower its own priority. Cancelling leaves the thread to finish."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(value)  # type: ignore[arg-type]  # T may itself be None

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = fn()
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=work, name=name[:60], daemon=True).start()
    return await outcome
