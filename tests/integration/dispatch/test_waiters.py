"""Queries whose caller has no task: told at once, dropped on word, and each of them told exactly once."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from infaas_controller.ports import Answer, QueryFailedError, Waiter

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype, Tensor
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeWorker

Opener = Callable[..., Any]


def image(value: int) -> tuple[Tensor, ...]:
    return (Tensor("image", Datatype.FP32, (1, 64), struct.pack("<f", value) * 64),)


class Told(Waiter):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self.is_cancelled = False
        self.ended = asyncio.Event()

    def done(self) -> bool:
        return self.ended.is_set()

    def cancel(self) -> bool:
        waited, self.is_cancelled = not self.done(), True
        self.ended.set()
        return waited

    def set_result(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.ended.set()

    def set_exception(self, error: Exception) -> None:
        self.errors.append(error)
        self.ended.set()

    @property
    def value(self) -> int:
        (answer,) = self.answers
        return int(struct.unpack_from("<f", bytes(answer.outputs[0].data))[0])


async def all_ended(waiters: list[Told]) -> None:
    async with asyncio.timeout(30):
        for waiter in waiters:
            await waiter.ended.wait()


async def test_every_waiter_is_told_its_own_answer_once(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1"), an_instance("i2")])
    async with cluster([a_variant("v1", per_item_ms=0.05)], [worker]) as c:
        waiters = [Told() for _ in range(500)]
        for number, waiter in enumerate(waiters):
            c.dispatcher.begin(c.query(id=f"q{number}", inputs=image(number)), waiter)
        await all_ended(waiters)
        assert [waiter.value for waiter in waiters] == list(range(500))
        assert not any(waiter.errors for waiter in waiters)
        assert len(worker.ran) < 250  # what came in one turn of the loop left together
        assert c.dispatcher.in_flight() == 0
        await c.until(c.dispatcher.engine.ledger.is_settled)


async def test_a_query_that_is_dropped_leaves_the_queue_and_its_waiter_hears_nothing_more(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1", max_batch=1)], [worker]) as c:
        worker.gate.clear()
        waiters = [Told() for _ in range(4)]
        drops = [
            c.dispatcher.begin(c.query(id=f"q{number}", inputs=image(number)), waiter)
            for number, waiter in enumerate(waiters)
        ]
        await c.until(lambda: bool(worker.ran))
        for waiter, drop in zip(waiters[1:], drops[1:], strict=True):
            waiter.cancel()
            drop()
        assert c.dispatcher.in_flight() == 1
        worker.gate.set()
        await all_ended(waiters)
        assert waiters[0].value == 0
        assert not any(waiter.answers or waiter.errors for waiter in waiters[1:])
        assert c.dispatcher.decision("q3").outcome == "cancelled"
        await c.until(c.dispatcher.engine.ledger.is_settled)


async def test_a_refusal_is_told(cluster: Opener) -> None:
    async with cluster([a_variant("v1")], []) as c:
        waiter = Told()
        c.dispatcher.begin(c.query(inputs=image(1)), waiter)
        assert c.dispatcher.in_flight() == 1
        await all_ended([waiter])
        (error,) = waiter.errors
        assert isinstance(error, QueryFailedError)
        assert error.code is Code.NO_WORKER
        assert c.dispatcher.in_flight() == 0


async def test_a_deadline_ends_the_wait(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        worker.gate.clear()
        waiter = Told()
        c.dispatcher.begin(c.query(inputs=image(1), latency_ms=150), waiter)
        await all_ended([waiter])
        (error,) = waiter.errors
        assert isinstance(error, QueryFailedError)
        assert error.code is Code.DEADLINE_PASSED
        worker.gate.set()
        await c.until(c.dispatcher.engine.ledger.is_settled)


async def test_a_draining_dispatcher_takes_no_more(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        c.dispatcher.begin_drain()
        waiter = Told()
        with pytest.raises(QueryFailedError) as caught:
            c.dispatcher.begin(c.query(inputs=image(1)), waiter)
        assert caught.value.code is Code.DRAINING
        assert not waiter.done()


async def test_who_is_dropped_before_anything_was_decided_leaves_a_decision(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        waiters = [Told(), Told()]
        drop, _ = [
            c.dispatcher.begin(c.query(id=f"q{number}", inputs=image(number)), waiter)
            for number, waiter in enumerate(waiters)
        ]
        waiters[0].cancel()
        drop()
        assert c.dispatcher.decision("q0").outcome == "cancelled"
        await all_ended(waiters)
        assert waiters[1].value == 1
        assert not waiters[0].answers
        assert c.dispatcher.in_flight() == 0


async def test_a_fault_on_arrival_is_told_to_the_waiter_and_costs_nobody_else(
    cluster: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        with monkeypatch.context() as broken:
            broken.setattr(c.dispatcher.engine, "_choose", _broken)
            waiter = Told()
            c.dispatcher.begin(c.query(inputs=image(1)), waiter)
            await all_ended([waiter])
            (error,) = waiter.errors
            assert isinstance(error, QueryFailedError)
            assert error.code is Code.INTERNAL
        other = Told()
        c.dispatcher.begin(c.query(inputs=image(2)), other)
        await all_ended([other])
        assert other.value == 2


def _broken(*given: Any, **named: Any) -> None:
    raise ZeroDivisionError


async def test_a_fault_in_ending_a_query_is_told_to_its_waiter(
    cluster: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        monkeypatch.setattr(c.dispatcher._performer, "_answer_one", _broken)
        waiter = Told()
        c.dispatcher.begin(c.query(inputs=image(1)), waiter)
        await all_ended([waiter])
        (error,) = waiter.errors
        assert isinstance(error, QueryFailedError)
        assert error.code is Code.INTERNAL
        assert c.dispatcher.in_flight() == 0
