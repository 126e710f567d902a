"""Loading and warming, off the serving loop: what blocks runs on threads of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from infaas.domain.variant import PROCESS_MEMORY_BYTES, Isolation, Variant
from infaas.errors import InfaasError, InvalidError, ModelError
from infaas.repository.base import Repository
from infaas_worker.executors.base import BatchOut, Executor, Executors, LoadedModel
from infaas_worker.executors.sample import open_sizes, sample, warm_up_sizes

T = TypeVar("T")
LOADS_AT_ONCE = 2
"""Loading is bound by memory and disk; more at a time only slows each."""
LOADS_ELSEWHERE_AT_ONCE = 8
"""Those that wait for a server, which may be slow, take no turn from those that use this machine."""
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
        self._here = asyncio.Semaphore(LOADS_AT_ONCE)
        self._elsewhere = asyncio.Semaphore(LOADS_ELSEWHERE_AT_ONCE)

    async def memory_bytes(self, variant: Variant) -> int:
        """What one instance needs: measured, or for a variant without profile a guess from its artifact's size.

        Raises InfaasError when the artifact is not there.
        """
        if variant.memory_bytes:
            return variant.memory_bytes
        size = await on_thread(f"size-{variant.name}", lambda: self._repository.size(variant.artifact))
        has_process = variant.isolation is Isolation.PROCESS and not is_elsewhere(variant)
        process_bytes = PROCESS_MEMORY_BYTES if has_process else 0
        return size * _UNMEASURED_FACTOR + _UNMEASURED_BYTES + process_bytes

    async def open(self, variant: Variant, on_begin: Callable[[], None]) -> Opened:
        """`on_begin` is called when the executor's part begins: the artifact is here and it is this load's turn.

        Raises InfaasError with the reason when the variant cannot be loaded here.
        """
        if is_elsewhere(variant):  # also a suspect's (SURFACE rule 15): its server is a process of its own already
            variant = replace(variant, isolation=Isolation.THREAD)
        async with self._elsewhere if is_elsewhere(variant) else self._here:
            started = time.monotonic()
            name = f"load-{variant.name}"
            executor, path = await on_thread(name, lambda: self._fetch(variant))
            on_begin()
            return await on_thread(name, lambda: self._open(variant, executor, path, started))

    def _fetch(self, variant: Variant) -> tuple[Executor, Path]:
        return self._executors.of(variant), self._repository.fetch(variant.artifact)

    def _open(self, variant: Variant, executor: Executor, path: Path, started: float) -> Opened:
        was_cold = variant.artifact not in self._read
        if variant.threads == 1:  # else the runtime's pool, made while loading, would inherit it for good
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICE)
        model = executor.load(variant, path)
        self._read.add(variant.artifact)
        return Opened(model, time.monotonic() - started, was_cold, variant.memory_bytes or model.memory_bytes())


def is_elsewhere(variant: Variant) -> bool:
    """Whether a server loads it, and this process only waits."""
    return variant.runtime.is_elsewhere


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
