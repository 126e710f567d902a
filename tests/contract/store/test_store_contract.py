"""What every metadata store promises, checked on real Redis and in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from infaas.errors import PreconditionError, UnavailableError
from infaas.store.base import Change, CursorLostError, Kind, Lease, MetadataStore
from infaas.store.memory import MemoryStore
from infaas.store.redis import RedisStore
from infaas.testing.clock import ManualClock

T = Kind.TASK
W = Kind.WORKER


@dataclass
class Setup:
    """One engine with two clients, and the means to let time pass and to lose everything."""

    store: MetadataStore
    other: MetadataStore
    pass_time: Callable[[float], Awaitable[None]]
    empty: Callable[[], Awaitable[None]]


@pytest.fixture(params=["redis", "memory"])
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    if request.param == "memory":
        clock = ManualClock()
        store = MemoryStore(clock, stream_length=200)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        async def clear() -> None:
            store.clear()

        yield Setup(store, store, advance, clear)
        await store.close()
        return
    url, namespace = request.getfixturevalue("redis_url"), request.getfixturevalue("redis_namespace")
    clients = [RedisStore(url, namespace, stream_length=200) for _ in range(2)]

    async def lose() -> None:
        raw = clients[0]._redis
        await raw.delete(*await raw.keys(f"{{{namespace}}}:*"))

    yield Setup(clients[0], clients[1], asyncio.sleep, lose)
    for client in clients:
        await client.close()


async def collect(store: MetadataStore, cursor: str, epoch: str, count: int, timeout_s: float = 10.0) -> list[Change]:
    found: list[Change] = []
    async with asyncio.timeout(timeout_s):
        async with contextlib.aclosing(store.watch(cursor, epoch)) as groups:
            async for group in groups:
                found += group
                if len(found) >= count:
                    return found
    raise AssertionError(f"the watch ended after {found}")


def shown(changes: Sequence[Change]) -> list[tuple[Kind, str, bytes | None, int]]:
    return [(change.kind, change.key, change.value, change.version) for change in changes]


async def test_a_record_reads_back_as_it_was_written(setup: Setup) -> None:
    value = bytes(range(256))
    assert await setup.store.put(T, "digits", value) == 1
    record = await setup.other.get(T, "digits")
    assert record is not None
    assert (record.kind, record.key, record.value, record.version) == (T, "digits", value, 1)
    assert await setup.other.get(Kind.MODEL, "digits") is None
    assert await setup.other.get(T, "other") is None


async def test_keys_may_hold_any_text(setup: Setup) -> None:
    for key in ("model@1/ort-fp32-t1", "a:b", "ü", "", "x y\n", "{a}%d*"):
        await setup.store.put(Kind.PROGRESS, key, key.encode(), ttl_s=100)
        assert (await setup.other.get(Kind.PROGRESS, key)).value == key.encode()  # type: ignore[union-attr]


async def test_versions_grow_with_each_write_and_do_not_restart_after_a_deletion(setup: Setup) -> None:
    assert [await setup.store.put(T, "a", b"x") for _ in range(3)] == [1, 2, 3]
    assert await setup.store.delete(T, "a")
    assert await setup.store.put(T, "a", b"y", expect=0) == 5


async def test_a_write_that_expects_another_version_is_refused_and_changes_nothing(setup: Setup) -> None:
    await setup.store.put(T, "a", b"1")
    before = await setup.store.list([T])
    with pytest.raises(PreconditionError, match="version 1, not 7"):
        await setup.other.put(T, "a", b"2", expect=7)
    with pytest.raises(PreconditionError):
        await setup.other.put(T, "a", b"2", expect=0)
    with pytest.raises(PreconditionError, match="version 0, not 1"):
        await setup.other.put(T, "b", b"2", expect=1)
    with pytest.raises(PreconditionError):
        await setup.other.delete(T, "a", expect=2)
    assert await setup.store.list([T]) == before
    assert await setup.other.put(T, "a", b"2", expect=1) == 2
    assert await setup.other.delete(T, "a", expect=2)


async def test_deleting_nothing_is_false_and_leaves_no_change(setup: Setup) -> None:
    before = await setup.store.list([T])
    assert not await setup.store.delete(T, "a")
    assert not await setup.store.delete(T, "a", expect=3)
    assert (await setup.store.list([T])).cursor == before.cursor


async def test_of_many_writers_with_one_expectation_exactly_one_wins(setup: Setup) -> None:
    await setup.store.put(T, "a", b"0")

    async def attempt(number: int) -> bool:
        try:
            await (setup.store, setup.other)[number % 2].put(T, "a", str(number).encode(), expect=1)
        except PreconditionError:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(number) for number in range(20)))) == 1


async def test_a_listing_holds_the_kinds_asked_for_in_order(setup: Setup) -> None:
    for kind, key in ((W, "w2"), (W, "w1"), (T, "t"), (Kind.BUILD, "b")):
        await setup.store.put(kind, key, key.encode())
    snapshot = await setup.other.list([W, T])
    assert [(record.kind, record.key) for record in snapshot.records] == [(T, "t"), (W, "w1"), (W, "w2")]
    assert snapshot.epoch == await setup.store.epoch()
    assert (await setup.other.list([])).records == ()


async def test_a_watch_from_a_listing_misses_nothing_and_repeats_nothing(setup: Setup) -> None:
    await setup.store.put(T, "a", b"1")
    snapshot = await setup.store.list(list(Kind))
    await setup.store.put(T, "a", b"2")
    await setup.other.put(W, "w", b"3")
    await setup.other.delete(T, "a")
    changes = await collect(setup.other, snapshot.cursor, snapshot.epoch, 3)
    assert shown(changes) == [(T, "a", b"2", 2), (W, "w", b"3", 1), (T, "a", None, 3)]
    rest = await collect(setup.store, changes[0].cursor, snapshot.epoch, 2)
    assert rest == changes[1:]


async def test_a_waiting_watch_hears_of_a_change(setup: Setup) -> None:
    snapshot = await setup.store.list([T])
    waiting = asyncio.create_task(collect(setup.store, snapshot.cursor, snapshot.epoch, 1), name="watch")
    await asyncio.sleep(0)
    await setup.other.put(T, "a", b"1")
    assert shown(await waiting) == [(T, "a", b"1", 1)]


async def test_a_quiet_watch_gives_empty_groups_as_signs_of_life(setup: Setup) -> None:
    snapshot = await setup.store.list([T])
    groups = setup.store.watch(snapshot.cursor, snapshot.epoch)
    async with asyncio.timeout(10), contextlib.aclosing(groups):
        assert [list(await anext(groups)) for _ in range(3)] == [[], [], []]


async def test_an_expired_record_is_gone_and_its_deletion_appears_once(setup: Setup) -> None:
    snapshot = await setup.store.list([W])
    watches = [
        asyncio.create_task(collect(store, snapshot.cursor, snapshot.epoch, 3), name="watch")
        for store in (setup.store, setup.other)
    ]
    await setup.store.put(W, "w", b"1", ttl_s=0.05)
    await setup.pass_time(0.06)
    assert await setup.store.get(W, "w") is None
    assert await setup.other.put(W, "marker", b"") == 1
    for changes in await asyncio.gather(*watches):
        assert shown(changes) == [(W, "w", b"1", 1), (W, "w", None, 2), (W, "marker", b"", 1)]


async def test_watchers_alone_make_an_expiry_appear(setup: Setup) -> None:
    snapshot = await setup.store.list([W])
    await setup.store.put(W, "w", b"1", ttl_s=0.2)
    waiting = asyncio.create_task(collect(setup.other, snapshot.cursor, snapshot.epoch, 2), name="watch")
    await setup.pass_time(0.25)
    assert shown(await waiting) == [(W, "w", b"1", 1), (W, "w", None, 2)]


async def test_touch_keeps_a_record_alive_without_a_change(setup: Setup) -> None:
    await setup.store.put(W, "w", b"1", ttl_s=1.0)
    before = await setup.store.list([W])
    assert await setup.other.touch(W, "w", ttl_s=100)
    await setup.pass_time(1.1)
    assert await setup.store.list([W]) == before
    assert not await setup.other.touch(W, "nobody", ttl_s=1)


async def test_writing_without_a_ttl_makes_a_record_stay(setup: Setup) -> None:
    await setup.store.put(W, "w", b"1", ttl_s=0.05)
    await setup.store.put(W, "w", b"2")
    await setup.pass_time(0.1)
    assert await setup.store.get(W, "w") is not None


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan")])
async def test_a_ttl_that_is_no_time_is_refused(setup: Setup, ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        await setup.store.put(W, "w", b"", ttl_s=ttl_s)
    with pytest.raises(ValueError, match="ttl_s"):
        await setup.store.acquire("lead", "a", ttl_s)


async def test_a_cursor_that_fell_off_the_stream_is_lost(setup: Setup) -> None:
    snapshot = await setup.store.list([T])
    first = await setup.store.put(T, "a", b"0")
    after_first = await setup.store.list([T])
    for number in range(600):
        await setup.store.put(T, "a", str(number).encode())
    assert first == 1
    for lost in (snapshot, after_first):
        with pytest.raises(CursorLostError):
            await collect(setup.other, lost.cursor, lost.epoch, 1)
    fresh = await setup.store.list([T])
    await setup.store.delete(T, "a")
    assert len(await collect(setup.other, fresh.cursor, fresh.epoch, 1)) == 1


async def test_an_emptied_store_has_another_epoch_and_ends_a_running_watch(setup: Setup) -> None:
    await setup.store.put(T, "a", b"0")
    snapshot = await setup.store.list([T])
    waiting = asyncio.create_task(collect(setup.other, snapshot.cursor, snapshot.epoch, 1), name="watch")
    await asyncio.sleep(0.01)
    await setup.empty()
    with pytest.raises(CursorLostError):
        await waiting
    assert await setup.store.epoch() != snapshot.epoch
    assert (await setup.store.list([T])).records == ()


async def test_an_emptied_and_refilled_store_does_not_continue_an_old_cursor(setup: Setup) -> None:
    await setup.store.put(T, "a", b"0")
    snapshot = await setup.store.list([T])
    await setup.empty()
    for number in range(5):
        await setup.store.put(T, "a", str(number).encode())
    with pytest.raises(CursorLostError):
        await collect(setup.other, snapshot.cursor, snapshot.epoch, 1)


async def test_the_epoch_stays_while_the_store_does(setup: Setup) -> None:
    epoch = await setup.store.epoch()
    await setup.other.put(T, "a", b"1")
    await setup.other.delete(T, "a")
    assert await setup.other.epoch() == epoch == (await setup.store.list([T])).epoch


async def test_a_lease_has_one_holder_until_released(setup: Setup) -> None:
    mine = await setup.store.acquire("lead", "a", 100)
    assert mine is not None
    assert await setup.other.acquire("lead", "b", 100) is None
    assert await setup.other.acquire("lead", "a", 100) == mine
    assert await setup.store.renew(mine)
    assert await setup.other.holders() == {"lead": "a"}
    await setup.store.release(mine)
    assert await setup.other.holders() == {}
    theirs = await setup.other.acquire("lead", "b", 100)
    assert theirs is not None
    assert theirs.fence > mine.fence
    assert not await setup.store.renew(mine)
    await setup.store.release(mine)
    assert await setup.store.holders() == {"lead": "b"}


async def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_fence(setup: Setup) -> None:
    first = await setup.store.acquire("lead", "a", 0.05)
    assert first is not None
    await setup.pass_time(0.06)
    assert await setup.store.holders() == {}
    assert not await setup.store.renew(first)
    again = await setup.store.acquire("lead", "a", 100)
    assert again is not None
    assert again.fence > first.fence


async def test_a_deposed_leader_changes_nothing(setup: Setup) -> None:
    old = await setup.store.acquire("lead", "a", 1.0)
    assert old is not None
    await setup.store.put(T, "t", b"old", lease=old)
    await setup.pass_time(1.1)
    with pytest.raises(PreconditionError, match="lead"):
        await setup.store.put(T, "t", b"late", lease=old)
    new = await setup.other.acquire("lead", "b", 100)
    assert new is not None
    await setup.other.put(T, "t", b"new", lease=new)
    for forged in (old, Lease("lead", "b", old.fence, 100), Lease("lead", "a", new.fence, 100), Lease("x", "a", 1, 1)):
        with pytest.raises(PreconditionError):
            await setup.store.put(T, "t", b"late", lease=forged)
        with pytest.raises(PreconditionError):
            await setup.store.delete(T, "t", lease=forged)
        with pytest.raises(PreconditionError):
            await setup.store.delete(T, "nothing", lease=forged)
    assert (await setup.store.get(T, "t")).value == b"new"  # type: ignore[union-attr]


async def test_fences_do_not_go_back_when_the_store_is_emptied(setup: Setup) -> None:
    fences = []
    for _ in range(5):
        lease = await setup.store.acquire("lead", "a", 100)
        assert lease is not None
        fences.append(lease.fence)
        await setup.store.release(lease)
    await setup.empty()
    await setup.pass_time(0.02)
    lease = await setup.store.acquire("lead", "a", 100)
    assert lease is not None
    assert sorted({*fences, lease.fence}) == [*fences, lease.fence]


async def test_of_many_contenders_one_gets_the_lease(setup: Setup) -> None:
    attempts = [(setup.store, setup.other)[n % 2].acquire("lead", f"h{n}", 100) for n in range(20)]
    assert sum(lease is not None for lease in await asyncio.gather(*attempts)) == 1


async def test_closing_ends_a_watch_and_later_calls_are_unavailable(setup: Setup) -> None:
    snapshot = await setup.store.list([T])

    async def follow() -> str:
        async for _ in setup.store.watch(snapshot.cursor, snapshot.epoch):
            pass
        return "ended"

    task = asyncio.create_task(follow(), name="watch")
    await asyncio.sleep(0.01)
    await setup.store.close()
    assert await asyncio.wait_for(task, 10) == "ended"
    with pytest.raises(UnavailableError):
        await setup.store.get(T, "a")
    await setup.store.close()
