"""A kept lease: held by one, judged by one's own clock, given back at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from infaas.clock import SystemClock
from infaas.store.leader import Leadership
from infaas.store.memory import MemoryStore
from infaas.testing.clock import ManualClock

TTL_S = 0.3


@pytest.fixture
async def running() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_one_of_two_leads_and_the_other_follows_when_it_stops(running: list[asyncio.Task[None]]) -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    first, second = (Leadership(store, "lead", holder, TTL_S, clock) for holder in ("a", "b"))
    running.append(asyncio.create_task(first.run(), name="first"))
    async with asyncio.timeout(10):
        held = await first.wait_held()
        running.append(asyncio.create_task(second.run(), name="second"))
        assert second.lease is None
        await first.stop()
        assert first.lease is None
        taken = await second.wait_held()
    assert (held.holder, taken.holder) == ("a", "b")
    assert taken.fence > held.fence


async def test_a_lease_is_kept_beyond_its_time_by_renewing() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    leader = Leadership(store, "lead", "a", 30.0, clock)
    await leader._try()
    held = leader.lease
    for _ in range(5):
        clock.advance(20.0)
        await leader._try()
        assert leader.lease == held
        assert await store.acquire("lead", "b", 30.0) is None


async def test_an_unrenewed_lease_is_not_claimed_any_more(running: list[asyncio.Task[None]]) -> None:
    clock = ManualClock()
    leader = Leadership(MemoryStore(clock), "lead", "a", 30.0, clock)
    running.append(asyncio.create_task(leader.run(), name="leader"))
    async with asyncio.timeout(10):
        await leader.wait_held()
    clock.advance(26.9)
    assert leader.lease is not None
    clock.advance(0.2)
    assert leader.lease is None, "nine tenths of its time went by without a renewal"
    async with asyncio.timeout(10):
        await leader.wait_lost()


async def test_a_lease_lost_with_the_store_is_taken_anew_with_a_higher_fence(
    running: list[asyncio.Task[None]],
) -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    leader = Leadership(store, "lead", "a", TTL_S, clock)
    running.append(asyncio.create_task(leader.run(), name="leader"))
    async with asyncio.timeout(10):
        held = await leader.wait_held()
        store.clear()
        await leader.wait_lost()
        again = await leader.wait_held()
    assert again.fence > held.fence


async def test_stopping_ends_run_and_frees_the_lease_and_may_be_repeated() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    leader = Leadership(store, "lead", "a", 100.0, clock)
    task = asyncio.create_task(leader.run(), name="leader")
    async with asyncio.timeout(10):
        await leader.wait_held()
        await leader.stop()
        await leader.stop()
        await task
    assert await store.holders() == {}


async def test_stopping_after_a_cancelled_run_still_frees_the_lease() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    leader = Leadership(store, "lead", "a", 100.0, clock)
    task = asyncio.create_task(leader.run(), name="leader")
    async with asyncio.timeout(10):
        await leader.wait_held()
        task.cancel()
        await leader.stop()
    assert task.cancelled()
    assert await store.holders() == {}


async def test_stopping_with_a_closed_store_does_not_fail() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    leader = Leadership(store, "lead", "a", 100.0, clock)
    task = asyncio.create_task(leader.run(), name="leader")
    async with asyncio.timeout(10):
        await leader.wait_held()
        await store.close()
        await leader.stop()
        await task
    assert leader.lease is None
