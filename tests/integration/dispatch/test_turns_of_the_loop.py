"""When what came in a turn of the loop is decided on and sent, and how long a turn looks on for more."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from infaas_controller.dispatch import DECIDED_AT_ONCE, LOOKS_ON_S
from infaas_controller.ports import Answer, Waiter

from infaas.domain.tensor import Datatype, Tensor
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.clock import ManualClock
from infaas.testing.fake_worker import FakeWorker

Opener = Callable[..., Any]
VARIANT = a_variant("v1", per_item_ms=0.05)
PATIENCE_S = 30.0


def image(value: int) -> tuple[Tensor, ...]:
    return (Tensor("image", Datatype.FP32, (1, 64), struct.pack("<f", value) * 64),)


class Told(Waiter):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.errors: list[Exception] = []
        self.ended = asyncio.Event()

    def done(self) -> bool:
        return self.ended.is_set()

    def set_result(self, answer: Answer) -> None:
        self.values.append(int(struct.unpack_from("<f", bytes(answer.outputs[0].data))[0]))
        self.ended.set()

    def set_exception(self, error: Exception) -> None:
        self.errors.append(error)
        self.ended.set()


class Decided:
    """How many queries were decided on, each time."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def observe_selections(self, seconds: float, count: int) -> None:
        self.counts.append(count)

    def observe_batch(self, variant: str, items: int) -> None:
        return

    def observe_load(self, variant: str, load_s: float) -> None:
        return


def begin(c: Any, number: int) -> Told:
    told = Told()
    c.dispatcher.begin(c.query(id=f"q{number}", inputs=image(number)), told)
    return told


async def all_ended(told: list[Told]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for one in told:
            await one.ended.wait()


async def after_a_batch_of(c: Any, worker: FakeWorker, items: int) -> Decided:
    """The last answers were so many, so that about as many callers may come again."""
    await all_ended([begin(c, number) for number in range(items)])
    assert [ran.items for ran in worker.ran] == [items]
    decided = Decided()
    c.dispatcher.observe_with(decided)
    return decided


async def test_who_asks_for_it_has_what_came_decided_on_before_more_is_read(cluster: Opener) -> None:
    async with cluster([VARIANT], [FakeWorker("w1", [an_instance("i1")])]) as c:
        decided = Decided()
        c.dispatcher.observe_with(decided)
        told = [begin(c, number) for number in range(3)]
        assert decided.counts == []
        c.dispatcher.decide()
        assert decided.counts == [3]
        c.dispatcher.decide()
        assert decided.counts == [3], "nothing came since"
        await all_ended(told)
        assert [one.values for one in told] == [[0], [1], [2]]


async def test_those_that_are_decided_on_alone_leave_together_by_so_many(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker]) as c:
        decided = Decided()
        c.dispatcher.observe_with(decided)
        told = []
        for number in range(DECIDED_AT_ONCE):
            told.append(begin(c, number))
            c.dispatcher.decide()
        assert decided.counts == [1] * DECIDED_AT_ONCE
        assert c.dispatcher.engine.queues.waiting < DECIDED_AT_ONCE, "the turn is not over, and some have left"
        await all_ended(told)


async def test_a_trickle_of_arrivals_holds_back_what_is_there_for_a_moment_at_most(cluster: Opener) -> None:
    clock, worker = ManualClock(), FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker], clock=clock) as c:
        decided = await after_a_batch_of(c, worker, 20)
        told = []
        for number in range(5):
            told.append(begin(c, number))
            await asyncio.sleep(0)
            assert decided.counts == [], "each look brings another one, and the moment is not over"
        clock.advance(LOOKS_ON_S)
        told.append(begin(c, 5))
        await asyncio.sleep(0)
        assert decided.counts == [6]
        await all_ended(told)
        assert [one.values for one in told] == [[number] for number in range(6)]
        assert [ran.items for ran in worker.ran] == [20, 6]


async def test_every_moment_begins_anew(cluster: Opener) -> None:
    clock, worker = ManualClock(), FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker], clock=clock) as c:
        decided = await after_a_batch_of(c, worker, 20)
        worker.gate.clear()
        told = [begin(c, 0)]
        await asyncio.sleep(0)
        clock.advance(LOOKS_ON_S)
        told.append(begin(c, 1))
        await asyncio.sleep(0)
        assert decided.counts == [2]
        told.append(begin(c, 2))
        await asyncio.sleep(0)
        assert decided.counts == [2], "the next ones have a moment of their own"
        clock.advance(LOOKS_ON_S)
        told.append(begin(c, 3))
        await asyncio.sleep(0)
        assert decided.counts == [2, 2]
        worker.gate.set()
        await all_ended(told)


async def test_a_look_that_brings_nothing_ends_the_turn(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker], clock=ManualClock()) as c:
        decided = await after_a_batch_of(c, worker, 20)
        told = [begin(c, 0), begin(c, 1)]
        await asyncio.sleep(0)
        assert decided.counts == []
        await asyncio.sleep(0)
        assert decided.counts == [2]
        await all_ended(told)


async def test_no_turn_looks_on_for_more_than_may_come_again(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker], clock=ManualClock()) as c:
        decided = await after_a_batch_of(c, worker, 3)
        told = [begin(c, 0), begin(c, 1), begin(c, 2), begin(c, 3)]
        await asyncio.sleep(0)
        assert decided.counts == []
        told.append(begin(c, 4))
        await asyncio.sleep(0)
        assert decided.counts == [5], "the three that were answered, and two more while they came"
        await all_ended(told)


async def test_when_a_turn_brings_in_many_the_first_are_decided_on_and_sent_before_it_ends(
    cluster: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([VARIANT], [worker]) as c:
        decided = Decided()
        c.dispatcher.observe_with(decided)
        sent: list[bool] = []
        send = c.links.send

        def noted(*given: Any) -> bool:
            sent.append(send(*given))
            return sent[-1]

        monkeypatch.setattr(c.links, "send", noted)
        told = [begin(c, number) for number in range(DECIDED_AT_ONCE - 1)]
        assert (decided.counts, sent) == ([], [])
        told.append(begin(c, DECIDED_AT_ONCE - 1))
        assert decided.counts == [DECIDED_AT_ONCE]
        assert sent == [True]
        assert c.dispatcher.engine.queues.waiting == 0
        told += [begin(c, DECIDED_AT_ONCE + number) for number in range(3)]
        assert (decided.counts, sent) == ([DECIDED_AT_ONCE], [True]), "the rest waits for the end of the turn"
        await all_ended(told)
        assert decided.counts == [DECIDED_AT_ONCE, 3]
        assert [one.values for one in told] == [[number] for number in range(DECIDED_AT_ONCE + 3)]
        assert [ran.items for ran in worker.ran] == [DECIDED_AT_ONCE, 3]
