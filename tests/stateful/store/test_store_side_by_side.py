"""Random operations on Redis and in memory side by side: every answer and the whole change stream must agree."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from infaas.errors import PreconditionError
from infaas.store.base import Change, CursorLostError, Kind, Lease, MetadataStore
from infaas.store.memory import MemoryStore
from infaas.store.redis import RedisStore
from infaas.testing.clock import ManualClock

T = TypeVar("T")

KINDS = st.sampled_from([Kind.TASK, Kind.WORKER, Kind.DEMAND])
NAMES = st.sampled_from(["a", "b:c", "ü"])
VALUES = st.binary(max_size=4)
EXPECTED = st.none() | st.integers(0, 4)
LEASES = st.sampled_from(["lead", "build/m@1"])
HOLDERS = st.sampled_from(["h1", "h2"])
SHORT_S = 0.02


class SideBySide(RuleBasedStateMachine):
    """`on` says which server and which loop."""

    url: ClassVar[str]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.stores: tuple[MetadataStore, MetadataStore] = (
            RedisStore(self.url, f"t{secrets.token_hex(6)}"),
            MemoryStore(self.clock),
        )
        self.leases: list[tuple[Lease, Lease]] = []
        self.lost_cursors: list[list[tuple[str, str]]] = []
        self.start()

    def start(self) -> None:
        snapshots = [self.wait(store.list(list(Kind))) for store in self.stores]
        self.origins = [(snapshot.cursor, snapshot.epoch) for snapshot in snapshots]
        self.expected_changes = 0

    def wait(self, awaitable: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(30):
                return await awaitable

        return self.loop.run_until_complete(bounded())

    def both(self, operation: Callable[[MetadataStore, int], Awaitable[Any]]) -> Any:
        """Do it on both; both must give the same, or refuse with the same words."""
        answers = [self.wait(answer(operation(store, side))) for side, store in enumerate(self.stores)]
        assert answers[0] == answers[1]
        return answers[0]

    def lease_of(self, index: int | None) -> tuple[Lease | None, Lease | None]:
        return (None, None) if index is None or not self.leases else self.leases[index % len(self.leases)]

    @rule(kind=KINDS, key=NAMES, value=VALUES, expect=EXPECTED, lease=st.none() | st.integers(0, 9))
    def put(self, kind: Kind, key: str, value: bytes, expect: int | None, lease: int | None) -> None:
        held = self.lease_of(lease)
        self.both(lambda store, side: store.put(kind, key, value, expect=expect, lease=held[side]))

    @rule(kind=KINDS, key=NAMES, value=VALUES)
    def put_for_long(self, kind: Kind, key: str, value: bytes) -> None:
        self.both(lambda store, _: store.put(kind, key, value, ttl_s=3600))

    @rule(kind=KINDS, key=NAMES, value=VALUES)
    def put_and_let_expire(self, kind: Kind, key: str, value: bytes) -> None:
        self.both(lambda store, _: store.put(kind, key, value, ttl_s=SHORT_S))
        self.let_pass()

    @rule(kind=KINDS, key=NAMES)
    def touch_and_let_expire(self, kind: Kind, key: str) -> None:
        self.both(lambda store, _: store.touch(kind, key, ttl_s=SHORT_S))
        self.let_pass()

    @rule(kind=KINDS, key=NAMES)
    def touch_for_long(self, kind: Kind, key: str) -> None:
        self.both(lambda store, _: store.touch(kind, key, ttl_s=3600))

    @rule(kind=KINDS, key=NAMES, expect=EXPECTED, lease=st.none() | st.integers(0, 9))
    def delete(self, kind: Kind, key: str, expect: int | None, lease: int | None) -> None:
        held = self.lease_of(lease)
        self.both(lambda store, side: store.delete(kind, key, expect=expect, lease=held[side]))

    @rule(name=LEASES, holder=HOLDERS, ttl_s=st.sampled_from([SHORT_S, 3600.0]))
    def acquire(self, name: str, holder: str, ttl_s: float) -> None:
        first, second = (self.wait(store.acquire(name, holder, ttl_s)) for store in self.stores)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            self.leases.append((first, second))
        if ttl_s == SHORT_S:
            self.let_pass()

    @rule(index=st.integers(0, 9))
    def renew(self, index: int) -> None:
        held = self.lease_of(index)
        if held[0] is None or held[0].ttl_s == SHORT_S:
            return
        self.both(lambda store, side: store.renew(held[side]))  # type: ignore[arg-type]

    @rule(index=st.integers(0, 9))
    def release(self, index: int) -> None:
        held = self.lease_of(index)
        if held[0] is not None:
            self.both(lambda store, side: store.release(held[side]))  # type: ignore[arg-type]

    @rule()
    def lose_everything(self) -> None:
        redis, memory = self.stores
        assert isinstance(redis, RedisStore)
        assert isinstance(memory, MemoryStore)
        self.wait(redis._redis.delete(*redis._keys))
        memory.clear()
        self.let_pass()  # fences start at the clock again, which has to have moved on
        self.lost_cursors = [*self.lost_cursors, self.origins][-2:]
        self.start()

    def let_pass(self) -> None:
        self.wait(asyncio.sleep(2 * SHORT_S))
        self.clock.advance(2 * SHORT_S)

    @invariant()
    def records_agree(self) -> None:
        self.both(lambda store, _: listed(store))
        self.both(lambda store, _: store.holders())
        self.both(lambda store, _: store.get(Kind.TASK, "a"))

    @invariant()
    def streams_agree(self) -> None:
        streams = [
            self.wait(changes_since(store, *origin)) for store, origin in zip(self.stores, self.origins, strict=True)
        ]
        assert streams[0] == streams[1]

    @invariant()
    def fences_only_grow(self) -> None:
        for side in (0, 1):
            last: dict[str, Lease] = {}
            for pair in self.leases:
                lease, before = pair[side], last.get(pair[side].name)
                if before is not None:
                    assert lease.fence > before.fence or (lease.fence, lease.holder) == (
                        before.fence,
                        before.holder,
                    )
                last[lease.name] = lease

    @invariant()
    def what_was_lost_stays_lost(self) -> None:
        for origins in self.lost_cursors:
            for store, origin in zip(self.stores, origins, strict=True):
                with pytest.raises(CursorLostError):
                    self.wait(changes_since(store, *origin))

    def teardown(self) -> None:
        redis = self.stores[0]
        assert isinstance(redis, RedisStore)
        self.wait(redis._redis.delete(*redis._keys))
        for store in self.stores:
            self.wait(store.close())

    @classmethod
    def on(cls, url: str, loop: asyncio.AbstractEventLoop) -> type[SideBySide]:
        """The library makes the machines itself, from a class without arguments."""
        return type(cls.__name__, (cls,), {"url": url, "loop": loop})


async def answer(operation: Awaitable[Any]) -> Any:
    try:
        return await operation
    except PreconditionError as error:
        # A fence differs from engine to engine; that there was an objection, and which, does not.
        return ("refused", error.text.split(" with fence ")[0])


async def listed(store: MetadataStore) -> object:
    return [(r.kind, r.key, r.value, r.version) for r in (await store.list(list(Kind))).records]


async def changes_since(store: MetadataStore, cursor: str, epoch: str) -> list[tuple[Kind, str, bytes | None, int]]:
    """Everything until the first empty group, which says that there is no more."""
    found: list[Change] = []
    groups = store.watch(cursor, epoch)
    try:
        async for group in groups:
            if not group:
                break
            found += group
    finally:
        await groups.aclose()
    return [(change.kind, change.key, change.value, change.version) for change in found]


def run(url: str, *, examples: int, steps: int) -> None:
    loop = asyncio.new_event_loop()
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            SideBySide.on(url, loop),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.close()


def test_redis_and_memory_give_the_same_answers(redis_url: str) -> None:
    run(redis_url, examples=12, steps=20)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_redis_and_memory_give_the_same_answers_for_long(redis_url: str) -> None:
    run(redis_url, examples=150, steps=50)
