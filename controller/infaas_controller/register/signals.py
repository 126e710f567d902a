"""Wakes loops and watchers when a generator leaves something in the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, TypeVar

from infaas.errors import UnavailableError
from infaas.store.base import CursorLostError, Kind, MetadataStore

_KINDS = (Kind.BUILD, Kind.PROGRESS, Kind.RESULT)
_LONGEST_PAUSE_S = 2.0
_KEEPALIVE_S = 15.0
T = TypeVar("T")


async def follow_builds(store: MetadataStore, notify: Callable[[], None]) -> NoReturn:
    """Call `notify` at once, and whenever a build, its progress or a result changed. Eternal.

    A store that cannot be reached is tried again with growing, jittered pauses, and `notify` is called when it is back.
    """
    failures = 0
    while True:
        try:
            snapshot = await store.list((Kind.BUILD,))
            notify()
            failures = 0
            async for changes in store.watch(snapshot.cursor, snapshot.epoch):
                if any(change.kind in _KINDS for change in changes):
                    notify()
        except CursorLostError:
            continue
        except UnavailableError:
            failures += 1
            await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.1 * 2 ** min(failures, 8)) * random.uniform(0.5, 1.0))


async def wait_or(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event came in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def ended(task: asyncio.Task[NoReturn]) -> None:
    """Cancel a helper task and wait until it is gone, whatever it ends with."""
    task.cancel()
    await asyncio.wait([task])


async def changes(
    store: MetadataStore, read: Callable[[], Awaitable[T]], is_over: Callable[[T], bool], *, name: str
) -> AsyncIterator[T | None]:
    """What `read` gives now and whenever that changes, until it is over; None now and then when nothing happens."""
    changed = asyncio.Event()
    watcher = asyncio.create_task(follow_builds(store, changed.set), name=name)
    last: T | None = None
    try:
        while True:
            changed.clear()
            found = await read()
            if found != last:
                yield found
            last = found
            if is_over(found):
                return
            if not await wait_or(changed, _KEEPALIVE_S):
                yield None
    finally:
        await ended(watcher)
