"""Programs of two versions at one Redis: what a newer one keeps does not hurt an older one, and is left alone by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from redis.asyncio import Redis

from infaas.store.base import UNFOLLOWED, Change, Kind
from infaas.store.redis import RedisStore
from infaas.testing.previous import NoHistoryError, environ_of, unpack_previous

LATER = "kind-of-a-later-release"


async def next_group(store: RedisStore, cursor: str, epoch: str) -> list[Change]:
    """The next changes that are any."""
    async with asyncio.timeout(10):
        async with contextlib.aclosing(store.watch(cursor, epoch)) as groups:
            async for group in groups:
                if group:
                    return list(group)
    raise AssertionError("the watch ended")


async def write_as_a_later_release(redis: Redis, namespace: str) -> None:
    """A record of a kind that is not known here, with its change, and one that has expired."""
    prefix = f"{{{namespace}}}"
    await redis.hset(f"{prefix}:record:{LATER}", mapping={"stays": "{}", "goes": "{}"})
    last = (await redis.xrevrange(f"{prefix}:changes", count=1))[0][0]
    number = int(last.split(b"-")[0]) + 1
    entry = {"kind": LATER, "key": "stays", "version": 1, "value": "{}"}
    await redis.xadd(f"{prefix}:changes", entry, id=f"{number}-1")
    await redis.zadd(f"{prefix}:expiry", {f"{LATER}:goes": 1})


async def test_records_and_changes_of_a_kind_that_is_not_known_are_passed_over(
    redis_url: str, redis_namespace: str
) -> None:
    store, redis = RedisStore(redis_url, redis_namespace), Redis.from_url(redis_url)
    await store.put(Kind.TASK, "before", b"1")
    snapshot = await store.list((Kind.TASK,))
    await write_as_a_later_release(redis, redis_namespace)
    await store.put(Kind.TASK, "after", b"2")
    (change,) = await next_group(store, snapshot.cursor, snapshot.epoch)
    assert (change.kind, change.key) == (Kind.TASK, "after")
    assert [record.key for record in (await store.list((Kind.TASK,))).records] == ["after", "before"]
    assert await redis.zscore(f"{{{redis_namespace}}}:expiry", f"{LATER}:goes") == 1, "who knows it takes it away"
    await store.close()
    await redis.aclose()


@pytest.mark.parametrize("kind", sorted(UNFOLLOWED))
async def test_changes_of_kinds_that_are_not_followed_are_passed_over_whoever_wrote_them_down(
    redis_url: str, redis_namespace: str, kind: Kind
) -> None:
    store, redis = RedisStore(redis_url, redis_namespace), Redis.from_url(redis_url)
    await store.put(Kind.TASK, "before", b"1")
    snapshot = await store.list((Kind.TASK,))
    stream = f"{{{redis_namespace}}}:changes"
    number = int((await redis.xrevrange(stream, count=1))[0][0].split(b"-")[0]) + 1
    entry = {"kind": kind.value, "key": "any", "version": 1, "value": "{}"}
    await redis.xadd(stream, entry, id=f"{number}-1")
    await store.put(Kind.TASK, "after", b"2")
    (change,) = await next_group(store, snapshot.cursor, snapshot.epoch)
    assert (change.kind, change.key) == (Kind.TASK, "after")
    await store.close()
    await redis.aclose()


async def test_a_watch_goes_on_behind_a_group_that_holds_nothing_known(redis_url: str, redis_namespace: str) -> None:
    store, redis = RedisStore(redis_url, redis_namespace), Redis.from_url(redis_url)
    await store.put(Kind.TASK, "before", b"1")
    snapshot = await store.list((Kind.TASK,))
    await write_as_a_later_release(redis, redis_namespace)
    heard = asyncio.create_task(next_group(store, snapshot.cursor, snapshot.epoch))
    async with asyncio.timeout(10):
        async with contextlib.aclosing(store.watch(snapshot.cursor, snapshot.epoch)) as groups:
            assert [list(await anext(groups)) for _ in range(3)] == [[], [], []], "signs of life"
    await store.put(Kind.TASK, "after", b"2")
    assert [change.key for change in await heard] == ["after"]
    await store.close()
    await redis.aclose()


READ = """
    import asyncio, contextlib, json, sys
    from infaas.store.base import Kind
    from infaas.store.redis import RedisStore

    async def main(url, namespace, cursor, epoch):
        store = RedisStore(url, namespace)
        listed = [record.key for record in (await store.list((Kind.TASK,))).records]
        async with asyncio.timeout(10), contextlib.aclosing(store.watch(cursor, epoch)) as groups:
            async for group in groups:
                if group:
                    break
        await store.close()
        print(json.dumps([[kind.value for kind in Kind], listed, [change.key for change in group]]))

    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return unpack_previous(tmp_path_factory.mktemp("previous"))
    except NoHistoryError as error:
        pytest.skip(str(error))


async def test_the_version_before_reads_on_whatever_this_one_writes(
    redis_url: str, redis_namespace: str, previous: Path
) -> None:
    """Nobody can mend it any more: it ends at a change of a kind that it does not know, and can do nothing where a
    record of such a kind has expired."""
    store = RedisStore(redis_url, redis_namespace)
    await store.put(Kind.TASK, "before", b"1")
    snapshot = await store.list((Kind.TASK,))
    for kind in Kind:
        await store.put(kind, "short", b"{}", ttl_s=0.001)
        await store.put(kind, "key", b"{}")
        await store.delete(kind, "key")
    await store.close()  # and looks no more
    words = [sys.executable, "-c", textwrap.dedent(READ), redis_url, redis_namespace, snapshot.cursor, snapshot.epoch]
    done = await asyncio.to_thread(
        subprocess.run, words, capture_output=True, text=True, check=False,
        cwd=previous, env=environ_of(previous), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    known, listed, changed = json.loads(done.stdout)
    assert set(known) < {kind.value for kind in Kind}, "else this shows nothing"
    assert listed == ["before"]
    assert changed
