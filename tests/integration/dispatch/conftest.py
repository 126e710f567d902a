"""A dispatcher over real connections to fake workers, with the real view keeper on a memory store."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from infaas_controller.dispatch import Dispatcher
from infaas_controller.policies import installed_policies
from infaas_controller.workers import WorkerLinks

from infaas.clock import Clock, SystemClock
from infaas.domain.cluster import ClusterView
from infaas.domain.query import Query
from infaas.domain.variant import Variant
from infaas.observe.book import Book
from infaas.rpc.codec import encode
from infaas.rpc.hop.inner import Meet
from infaas.settings import Settings
from infaas.store.base import Kind
from infaas.store.memory import MemoryStore
from infaas.store.view import ViewKeeper
from infaas.testing.builders import a_query, a_view
from infaas.testing.fake_worker import FakeWorker
from infaas.tokens import Tokens


@dataclass
class Cluster:
    dispatcher: Dispatcher
    keeper: ViewKeeper
    links: WorkerLinks
    store: MemoryStore
    clock: Clock

    def query(self, handle: str = "digits", **given: object) -> Query:
        return a_query(handle, at=self.clock.now(), **given)  # type: ignore[arg-type]

    async def until(self, holds: Callable[[], bool], within_s: float = 20.0) -> None:
        """Wait until something observable holds; the view's changes and answers drive it."""
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110  (what is waited for is another task's plain state)
                await asyncio.sleep(0.002)

    async def add(self, worker: FakeWorker) -> None:
        await self.store.put(Kind.WORKER, worker.id, encode(worker.record))

    async def until_ready(self, *workers: FakeWorker) -> None:
        decks = self.dispatcher.engine.ledger.decks
        await self.until(lambda: all(w.id in decks and decks[w.id].is_ready for w in workers))


Opener = Callable[..., "contextlib.AbstractAsyncContextManager[Cluster]"]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Opener:
    """Workers are reached over sockets; or, with "inside" as the parameter, within the process."""
    is_inside = getattr(request, "param", "sockets") == "inside"

    @asynccontextmanager
    async def opened(
        variants: Sequence[Variant], workers: Sequence[FakeWorker], *, settings: Settings | None = None,
        token: str | None = None, book: Book | None = None, clock: Clock | None = None,
    ) -> AsyncIterator[Cluster]:  # fmt: skip
        clock = clock or SystemClock()
        store = MemoryStore(clock)
        await publish(store, a_view(variants=variants))
        keeper = ViewKeeper(store, clock)
        rng = random.Random(7)
        used = settings or Settings()
        inner: dict[str, Meet] = {}
        links = WorkerLinks(
            keeper, clock, controller="c-test", draw=rng.random,
            lost_after_s=used.controller.worker_lost_after_s, tokens=Tokens.of(token), inner=inner,
            shared_memory_bytes=used.controller.shared_memory_bytes, book=book,
        )  # fmt: skip
        dispatcher = Dispatcher(keeper, links, installed_policies(), used, clock, rng)
        async with contextlib.AsyncExitStack() as stack:
            for worker in workers:
                await stack.enter_async_context(worker)
                if is_inside:
                    inner[worker.address] = worker.meet
                await store.put(Kind.WORKER, worker.id, encode(worker.record))
            following = asyncio.create_task(keeper.run(), name="view")
            await keeper.wait_synced()
            dispatcher.start()
            made = Cluster(dispatcher, keeper, links, store, clock)
            try:
                await made.until_ready(*workers)
                yield made
            finally:
                await dispatcher.close()
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await store.close()

    return opened


async def publish(store: MemoryStore, view: ClusterView) -> None:
    for task in view.tasks.values():
        await store.put(Kind.TASK, task.name, encode(task))
    for model in view.models.values():
        await store.put(Kind.MODEL, model.name, encode(model))
    for variant in view.variants.values():
        await store.put(Kind.VARIANT, variant.name, encode(variant))
