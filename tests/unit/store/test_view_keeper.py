"""The view follows the store and the streams, and loses nothing when the store does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import WorkerId
from infaas.domain.lifecycle import WorkerState
from infaas.errors import UnavailableError
from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.memory import MemoryStore
from infaas.store.view import ViewKeeper, pause_s, require_filled, require_listed
from infaas.testing.builders import a_model, a_task, a_variant, a_worker, an_instance
from infaas.testing.clock import ManualClock

W1 = WorkerId("w1")


@pytest.fixture
def store(manual_clock: ManualClock) -> MemoryStore:
    return MemoryStore(manual_clock, stream_length=50)


@pytest.fixture
async def keeper(store: MemoryStore, manual_clock: ManualClock) -> AsyncIterator[ViewKeeper]:
    keeper = ViewKeeper(store, manual_clock)
    task = asyncio.create_task(keeper.run(), name="view")
    async with asyncio.timeout(10):
        await keeper.wait_synced()
    yield keeper
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(keeper: ViewKeeper, fits: Callable[[ClusterView], object]) -> ClusterView:
    """The first view that fits, waiting for changes and not for time."""
    changed = asyncio.Event()
    unsubscribe = keeper.subscribe(lambda old, new: changed.set())
    try:
        async with asyncio.timeout(10):
            while not fits(keeper.view):
                changed.clear()
                await changed.wait()
            return keeper.view
    finally:
        unsubscribe()


async def fill(store: MemoryStore) -> None:
    await store.put(Kind.TASK, "digits", encode(a_task()))
    await store.put(Kind.MODEL, "m1", encode(a_model()))
    await store.put(Kind.VARIANT, "v1", encode(a_variant("v1")))
    await store.put(Kind.WORKER, "w1", encode(a_worker("w1", instances=[an_instance()])), ttl_s=100)


def names(view: ClusterView) -> tuple[list[str], list[str], list[str], list[str]]:
    return sorted(view.tasks), sorted(view.models), sorted(view.variants), sorted(view.workers)


FULL = (["digits"], ["m1"], ["v1"], ["w1"])


async def test_nothing_is_said_to_be_missing_before_the_catalogue_was_written_into_the_store(
    store: MemoryStore, manual_clock: ManualClock
) -> None:
    keeper = ViewKeeper(store, manual_clock, awaits_catalogue=True)
    task = asyncio.create_task(keeper.run(), name="view")
    try:
        view = await until(keeper, lambda view: view.is_listed)
        assert not view.is_filled
        with pytest.raises(UnavailableError, match="has not been filled from the catalogue yet"):
            require_filled(view)
        await fill(store)
        view = await until(keeper, lambda view: names(view) == FULL)
        assert not view.is_filled, "more may come"
        await store.put(Kind.CATALOGUE, "source", b"id")
        view = await until(keeper, lambda view: view.is_filled)
        require_filled(view)
        await store.delete(Kind.CATALOGUE, "source")
        await store.delete(Kind.VARIANT, "v1")
        view = await until(keeper, lambda view: not view.variants)
        assert view.is_filled, "what was known once stays known"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_stored_before_and_after_the_start_is_in_the_view(store: MemoryStore, keeper: ViewKeeper) -> None:
    await fill(store)
    view = await until(keeper, lambda view: names(view) == FULL)
    assert view.variants["v1"] == a_variant("v1")  # type: ignore[index]
    assert view.workers[W1] == a_worker("w1", instances=[an_instance()])
    await store.delete(Kind.VARIANT, "v1")
    await until(keeper, lambda view: not view.variants)


async def test_a_keeper_that_starts_later_is_full_once_it_is_synced(
    store: MemoryStore, manual_clock: ManualClock
) -> None:
    await fill(store)
    keeper = ViewKeeper(store, manual_clock)
    assert not keeper.is_synced
    assert not keeper.view.is_listed
    assert keeper.age_s() == float("inf")
    async with asyncio.timeout(10):
        task = asyncio.create_task(keeper.run(), name="view")
        await keeper.wait_synced()
    assert names(keeper.view) == FULL
    assert keeper.is_synced
    assert keeper.age_s() == 0.0
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_an_unaffected_mapping_keeps_its_identity(store: MemoryStore, keeper: ViewKeeper) -> None:
    await fill(store)
    before = await until(keeper, lambda view: names(view) == FULL)
    await store.put(Kind.WORKER, "w2", encode(a_worker("w2")), ttl_s=100)
    after = await until(keeper, lambda view: len(view.workers) == 2)
    assert after.variants is before.variants
    assert after.models is before.models
    assert after.tasks is before.tasks
    assert after.workers[W1] is before.workers[W1]
    assert after.version > before.version


async def test_changes_of_one_turn_make_one_view(keeper: ViewKeeper) -> None:
    seen: list[tuple[ClusterView, ClusterView]] = []
    keeper.subscribe(lambda old, new: seen.append((old, new)))
    for pid in range(10):
        keeper.worker_reported(a_worker("w1", pid=pid))
    keeper.worker_reported(a_worker("w2"))
    await until(keeper, lambda view: len(view.workers) == 2)
    assert len(seen) == 1
    assert seen[0][0].workers == {}
    assert seen[0][1] is keeper.view
    assert keeper.view.workers[W1].pid == 9


async def test_who_is_told_the_first_view_of_the_store_knows_that_it_is_all_there_is(
    store: MemoryStore, manual_clock: ManualClock
) -> None:
    """Whoever forgets what has left the catalogue must not wait for its next change to do so."""
    await fill(store)
    keeper = ViewKeeper(store, manual_clock)
    heard: list[tuple[bool, int]] = []
    keeper.subscribe(lambda old, new: heard.append((keeper.is_synced, len(new.variants))))
    task = asyncio.create_task(keeper.run(), name="view")
    async with asyncio.timeout(10):
        await keeper.wait_synced()
    assert heard == [(True, 1)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_empty_store_is_news_too_as_what_is_not_there_is_then_known_not_to_be(
    store: MemoryStore, manual_clock: ManualClock
) -> None:
    keeper = ViewKeeper(store, manual_clock)
    keeper.worker_reported(a_worker("w1"))
    early = await until(keeper, lambda view: view.workers)
    with pytest.raises(UnavailableError, match="has not read the metadata store"):
        require_listed(early)
    task = asyncio.create_task(keeper.run(), name="view")
    late = await until(keeper, lambda view: view.is_listed)
    require_listed(late)
    assert late.workers == early.workers
    assert late.variants is not early.variants, "caches keyed by the mapping remember answers of before"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_same_report_again_makes_no_new_view(keeper: ViewKeeper) -> None:
    keeper.worker_reported(a_worker("w1"))
    before = await until(keeper, lambda view: view.workers)
    keeper.worker_reported(a_worker("w1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert keeper.view is before


async def test_a_report_overrides_the_store_until_the_stream_is_lost(store: MemoryStore, keeper: ViewKeeper) -> None:
    await fill(store)
    await until(keeper, lambda view: names(view) == FULL)
    keeper.worker_reported(a_worker("w1", state=WorkerState.DRAINING))
    await until(keeper, lambda view: view.workers[W1].state is WorkerState.DRAINING)
    await store.put(Kind.WORKER, "w1", encode(a_worker("w1", pid=99)), ttl_s=100)
    await store.delete(Kind.TASK, "digits")
    await until(keeper, lambda view: not view.tasks)
    assert keeper.view.workers[W1].pid != 99
    keeper.worker_stream_lost(W1)
    await store.put(Kind.WORKER, "w1", encode(a_worker("w1", pid=100)), ttl_s=100)
    await until(keeper, lambda view: view.workers[W1].pid == 100)


async def test_an_expired_worker_leaves_only_when_its_stream_is_gone(
    store: MemoryStore, keeper: ViewKeeper, manual_clock: ManualClock
) -> None:
    await fill(store)
    keeper.worker_reported(a_worker("w1"))
    await until(keeper, lambda view: names(view) == FULL)
    manual_clock.advance(200)
    await store.delete(Kind.TASK, "digits")
    await until(keeper, lambda view: not view.tasks)
    assert W1 in keeper.view.workers
    keeper.worker_stream_lost(W1)
    await until(keeper, lambda view: not view.workers)


async def test_an_emptied_store_takes_nothing_from_the_view(store: MemoryStore, keeper: ViewKeeper) -> None:
    await fill(store)
    before = await until(keeper, lambda view: names(view) == FULL)
    store.clear()
    await store.put(Kind.VARIANT, "v2", encode(a_variant("v2")))
    view = await until(keeper, lambda view: "v2" in view.variants)
    assert names(view) == (["digits"], ["m1"], ["v1", "v2"], ["w1"])
    assert view.workers is before.workers
    await fill(store)
    await store.delete(Kind.VARIANT, "v1")
    await until(keeper, lambda view: "v1" not in view.variants)
    assert names(keeper.view) == (["digits"], ["m1"], ["v2"], ["w1"])


async def test_falling_behind_the_stream_within_an_epoch_loses_no_deletion(
    store: MemoryStore, keeper: ViewKeeper
) -> None:
    await fill(store)
    await until(keeper, lambda view: names(view) == FULL)
    await store.delete(Kind.VARIANT, "v1")
    for number in range(200):  # without a turn of the loop in between: the watcher's cursor falls off
        await store.put(Kind.PROGRESS, "b/r", str(number).encode())
    await store.put(Kind.MODEL, "m2", encode(a_model("m2")))
    view = await until(keeper, lambda view: "m2" in view.models)
    assert names(view) == (["digits"], ["m1", "m2"], [], ["w1"])


async def test_a_record_that_cannot_be_read_is_skipped(store: MemoryStore, keeper: ViewKeeper) -> None:
    await fill(store)
    await store.put(Kind.VARIANT, "v1", b'{"name": 3}')
    await store.put(Kind.MODEL, "m9", encode(a_model("another-name")))
    await store.put(Kind.WORKER, "w9", b"\xff\x00")
    await store.put(Kind.TASK, "after", encode(a_task("after")))
    view = await until(keeper, lambda view: "after" in view.tasks)
    assert names(view) == (["after", "digits"], ["m1"], ["v1"], ["w1"])
    assert view.variants["v1"] == a_variant("v1")  # type: ignore[index]


async def test_a_failing_subscriber_hurts_nobody_and_an_ended_one_hears_nothing(keeper: ViewKeeper) -> None:
    heard: list[list[str]] = []

    def fail(old: ClusterView, new: ClusterView) -> None:
        raise RuntimeError("boom")

    keeper.subscribe(fail)
    unsubscribe = keeper.subscribe(lambda old, new: heard.append(sorted(new.workers)))
    keeper.worker_reported(a_worker("w1"))
    await until(keeper, lambda view: len(view.workers) == 1)
    unsubscribe()
    unsubscribe()
    keeper.worker_reported(a_worker("w2"))
    await until(keeper, lambda view: len(view.workers) == 2)
    assert heard == [["w1"]]


async def test_the_age_grows_while_the_store_is_silent(
    store: MemoryStore, keeper: ViewKeeper, manual_clock: ManualClock
) -> None:
    await fill(store)
    await until(keeper, lambda view: names(view) == FULL)
    await store.close()
    manual_clock.advance(42.0)
    assert keeper.age_s() == pytest.approx(42.0)
    assert keeper.is_synced
    assert names(keeper.view) == FULL


@pytest.mark.parametrize("failures", [0, 1, 5, 50, 10_000])
def test_pauses_are_bounded_and_jittered(failures: int) -> None:
    assert 0 < pause_s(failures, 0.0) < pause_s(failures, 0.99) <= 2.0
