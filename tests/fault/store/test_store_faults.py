"""Redis killed, emptied, stopped, read-only and full: errors come soon, and the view stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from infaas.clock import SystemClock
from infaas.domain.cluster import ClusterView
from infaas.errors import SettingsError, UnavailableError
from infaas.rpc.codec import encode
from infaas.store.base import CursorLostError, Kind, MetadataStore
from infaas.store.leader import Leadership
from infaas.store.redis import RedisStore
from infaas.store.server import wait_until_serving
from infaas.store.view import ViewKeeper
from infaas.testing.builders import a_task, a_variant, a_worker

if TYPE_CHECKING:
    from tests.conftest import RedisServer  # type: ignore[import-not-found]

T = Kind.TASK
BOUND_S = 20.0
"""Far above every limit in the store's client, far below waiting for ever."""


@pytest.fixture
async def store(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(own_redis_server.url, command_timeout_s=0.5)
    yield store
    await store.close()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def operations(store: MetadataStore) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "epoch": store.epoch,
        "get": lambda: store.get(T, "a"),
        "list": lambda: store.list([T]),
        "put": lambda: store.put(T, "a", b"1"),
        "delete": lambda: store.delete(T, "a"),
        "touch": lambda: store.touch(T, "a", ttl_s=1),
        "acquire": lambda: store.acquire("lead", "a", 1),
        "holders": store.holders,
        "watch": lambda: first_group(store),
    }


async def first_group(store: MetadataStore) -> object:
    async with contextlib.aclosing(store.watch("0-0", "x")) as groups:
        return await anext(groups)


async def assert_all_unavailable(store: MetadataStore) -> None:
    for name, operation in operations(store).items():
        with pytest.raises(UnavailableError) as error:
            async with asyncio.timeout(BOUND_S):
                await operation()
        assert error.value.is_retryable, name


async def until(keeper: ViewKeeper, fits: Callable[[ClusterView], object]) -> ClusterView:
    changed = asyncio.Event()
    unsubscribe = keeper.subscribe(lambda old, new: changed.set())
    try:
        async with asyncio.timeout(BOUND_S):
            while not fits(keeper.view):
                changed.clear()
                await changed.wait()
            return keeper.view
    finally:
        unsubscribe()


@contextlib.asynccontextmanager
async def running_view(store: MetadataStore) -> AsyncIterator[ViewKeeper]:
    keeper = ViewKeeper(store, SystemClock())
    task = asyncio.create_task(keeper.run(), name="view")
    try:
        async with asyncio.timeout(BOUND_S):
            await keeper.wait_synced()
        yield keeper
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_killed_server_makes_every_operation_unavailable(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(T, "a", b"1")
    own_redis_server.kill()
    await assert_all_unavailable(store)


@pytest.mark.long
async def test_a_stopped_server_makes_every_operation_unavailable_within_a_bound(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(T, "a", b"1")
    with stopped(own_redis_server.pid):
        started = time.monotonic()
        await assert_all_unavailable(store)
        assert time.monotonic() - started < BOUND_S * 2
    await wait_until_serving(own_redis_server.url)
    assert (await store.get(T, "a")) is not None


async def test_closing_does_not_wait_for_a_stopped_server_to_take_what_was_being_sent(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.epoch()
    with stopped(own_redis_server.pid):
        sending = asyncio.create_task(store.put(T, "a", bytes(5_000_000)), name="put")  # more than the socket holds
        for _ in range(100):
            await asyncio.sleep(0)
        async with asyncio.timeout(BOUND_S):
            await store.close()
        with pytest.raises(UnavailableError):
            await sending


async def test_a_stopped_server_ends_a_watch_that_was_waiting(own_redis_server: RedisServer, store: RedisStore) -> None:
    snapshot = await store.list([T])

    async def follow() -> None:
        async for _ in store.watch(snapshot.cursor, snapshot.epoch):
            pass

    task = asyncio.create_task(follow(), name="watch")
    await asyncio.sleep(0.1)
    with stopped(own_redis_server.pid), pytest.raises(UnavailableError):
        await asyncio.wait_for(task, BOUND_S)


async def test_after_a_restart_with_its_file_nothing_is_lost(own_redis_server: RedisServer, store: RedisStore) -> None:
    await store.put(T, "a", b"1")
    snapshot = await store.list([T])
    own_redis_server.kill()
    own_redis_server.start()
    await wait_until_serving(own_redis_server.url)
    await store.put(T, "a", b"2", expect=1)
    assert await store.epoch() == snapshot.epoch
    async with contextlib.aclosing(store.watch(snapshot.cursor, snapshot.epoch)) as groups:
        assert [change.value for change in await anext(groups)] == [b"2"]


async def test_a_server_that_comes_back_older_has_another_epoch(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(T, "a", b"1")
    old = await store.list([T])
    await store.put(T, "a", b"2")
    newer = await store.list([T])
    await store._redis.xdel(store._stream, newer.cursor)  # what a lost tail of the file looks like
    with pytest.raises(CursorLostError, match="older"):
        async with contextlib.aclosing(store.watch(newer.cursor, newer.epoch)) as groups:
            await anext(groups)
    assert await store.epoch() != old.epoch


async def test_the_view_outlives_a_server_that_is_killed_and_comes_back_empty(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(T, "digits", encode(a_task()))
    await store.put(Kind.VARIANT, "v1", encode(a_variant("v1")))
    await store.put(Kind.WORKER, "w1", encode(a_worker("w1")), ttl_s=100)
    async with running_view(store) as keeper:
        before = keeper.view
        own_redis_server.kill()
        own_redis_server.forget()
        own_redis_server.start()
        await wait_until_serving(own_redis_server.url, BOUND_S)
        await store.put(Kind.VARIANT, "v2", encode(a_variant("v2")))
        view = await until(keeper, lambda view: "v2" in view.variants)
        assert set(view.variants) == {"v1", "v2"}
        assert view.workers is before.workers
        assert view.tasks is before.tasks


async def test_the_view_notices_a_flush_under_its_watch_and_keeps_everything(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(Kind.VARIANT, "v1", encode(a_variant("v1")))
    async with running_view(store) as keeper:
        epoch = await store.epoch()
        await store._redis.flushall()
        await store.put(Kind.VARIANT, "v2", encode(a_variant("v2")))
        view = await until(keeper, lambda view: "v2" in view.variants)
        assert set(view.variants) == {"v1", "v2"}
        assert await store.epoch() != epoch
        await store.put(Kind.VARIANT, "v1", encode(a_variant("v1")))
        await store.delete(Kind.VARIANT, "v1")
        await until(keeper, lambda view: set(view.variants) == {"v2"})


async def test_a_leader_whose_store_stands_still_stops_claiming_and_leads_again_later(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    leader = Leadership(store, "lead", "a", 1.0, SystemClock())
    task = asyncio.create_task(leader.run(), name="leader")
    try:
        async with asyncio.timeout(BOUND_S):
            held = await leader.wait_held()
            with stopped(own_redis_server.pid):
                await leader.wait_lost()
                assert leader.lease is None
            again = await leader.wait_held()
            assert again.fence >= held.fence
    finally:
        await leader.stop()
        await task


async def test_a_read_only_replica_refuses_writes_as_unavailable(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store.put(T, "a", b"1")
    await store._redis.config_set("replica-serve-stale-data", "yes")
    await store._redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    for operation in ("put", "delete", "acquire"):
        with pytest.raises(UnavailableError) as error:
            await operations(store)[operation]()
        assert error.value.is_retryable
        assert "READONLY" in error.value.text or "read only" in error.value.text
    record = await store.get(T, "a")
    assert record is not None
    assert record.value == b"1"


async def test_a_server_without_room_refuses_writes_as_unavailable_and_still_reads(store: RedisStore) -> None:
    await store.put(T, "a", b"1")
    await store._redis.config_set("maxmemory", "1")
    with pytest.raises(UnavailableError) as error:
        await store.put(T, "a", b"2")
    assert error.value.is_retryable
    assert (await store.list([T])).records[0].value == b"1"


async def test_a_foreign_key_under_our_name_is_an_error_that_no_retry_mends(store: RedisStore) -> None:
    await store._redis.set(store._stream, "somebody else's")
    with pytest.raises(UnavailableError) as error:
        await store.put(T, "a", b"2")
    assert not error.value.is_retryable


async def test_a_wrong_password_is_an_error_that_no_retry_mends(
    own_redis_server: RedisServer, store: RedisStore
) -> None:
    await store._redis.config_set("requirepass", "right")
    for url in (own_redis_server.url, own_redis_server.url.replace("unix://", "unix://:wrong@")):
        stranger = RedisStore(url)
        with pytest.raises(UnavailableError) as error:
            await stranger.epoch()
        assert not error.value.is_retryable
        assert "wrong@" not in error.value.text
        await stranger.close()
    friend = RedisStore(own_redis_server.url.replace("unix://", "unix://:right@"))
    assert await friend.epoch()
    await friend.close()


async def test_a_missing_socket_is_unavailable_and_its_path_is_named() -> None:
    store = RedisStore("unix:///nowhere/at/all.sock")
    with pytest.raises(UnavailableError, match=r"/nowhere/at/all\.sock"):
        await store.epoch()
    with pytest.raises(UnavailableError):
        await wait_until_serving("unix:///nowhere/at/all.sock", 0.1)
    await store.close()


@pytest.mark.parametrize("url", ["", "http://localhost", "redis://localhost:port/0"])
async def test_a_url_that_is_none_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError, match="redis_url"):
        RedisStore(url)


async def test_a_password_in_the_url_is_never_shown() -> None:
    store = RedisStore("redis://user:hunter2@127.0.0.1:1/0")
    with pytest.raises(UnavailableError) as error:
        await store.epoch()
    assert "hunter2" not in error.value.text
    assert "127.0.0.1:1" in error.value.text
    await store.close()


async def test_a_cancellation_is_never_lost(store: RedisStore) -> None:
    """At whichever turn of the loop it comes: a lost one would leave a task that cannot be stopped."""
    await store.put(T, "a", b"1")

    async def work() -> None:
        for _ in range(3):
            await store.get(T, "a")

    for turns in range(1000):
        task = asyncio.create_task(work(), name="work")
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            assert turns > 5
            return
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, BOUND_S)


async def test_the_stream_is_bounded(store: RedisStore) -> None:
    bounded = RedisStore(f"unix://{store._where.removeprefix('unix:')}", "bounded", stream_length=100)
    for number in range(1000):
        await bounded.put(T, "a", str(number).encode())
    assert await bounded._redis.xlen(bounded._stream) <= 300
    await bounded.close()
