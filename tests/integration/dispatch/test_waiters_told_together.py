"""Waiters that somebody tells together: each is told once, whatever befalls the one who tells or their neighbours."""

from __future__ import annotations

import asyncio
import gc
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from infaas_controller.ports import Answer, Batch, QueryFailedError, Together, Waiter
from structlog.testing import capture_logs

from infaas.domain.query import Code, Decision
from infaas.domain.tensor import Datatype, Tensor
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeWorker

Opener = Callable[..., Any]
PATIENCE_S = 30.0


def image(value: int) -> tuple[Tensor, ...]:
    return (Tensor("image", Datatype.FP32, (1, 64), struct.pack("<f", value) * 64),)


def value_of(tensors: Sequence[Tensor]) -> int:
    return int(struct.unpack_from("<f", bytes(tensors[0].data))[0])


class Told(Waiter):
    """Notes what it hears, and how often."""

    def __init__(self, together: Together | None = None) -> None:
        self._together = together
        self.values: list[int] = []
        self.ids: list[str] = []
        self.errors: list[Exception] = []
        self.ended = asyncio.Event()

    @property
    def together(self) -> Together | None:
        return self._together

    def done(self) -> bool:
        return self.ended.is_set()

    def leave(self) -> None:
        """As a caller whose connection is gone, before anybody dropped his query."""
        self.ended.set()

    def hear(self, tensors: Sequence[Tensor], id: str) -> None:
        self.values.append(value_of(tensors))
        self.ids.append(id)
        self.ended.set()

    def set_result(self, answer: Answer) -> None:
        self.hear(answer.outputs, answer.outcome.decision_id)

    def set_exception(self, error: Exception) -> None:
        self.errors.append(error)
        self.ended.set()

    @property
    def ends(self) -> int:
        return len(self.values) + len(self.errors)


class Teller(Together):
    """Tells what it is given, but those that it leaves; `fails_after` so many it raises."""

    def __init__(self, leaves: Callable[[int], bool] = lambda _: False, fails_after: int | None = None) -> None:
        self._leaves = leaves
        self._fails_after = fails_after
        self.batches: list[list[int]] = []

    def answer(self, batch: Batch) -> Sequence[int]:
        self.batches.append([ended.number for ended in batch.ended])
        left: list[int] = []
        for at, ended in enumerate(batch.ended):
            if at == self._fails_after:
                raise RuntimeError("a fault of ours")
            waiter, place = ended.owner, batch.places[ended.number]
            assert isinstance(waiter, Told)
            assert waiter.together is self
            assert isinstance(place, int)
            if self._leaves(at) or waiter.done():
                left.append(at)
            else:
                waiter.hear(batch.outputs.tensors(place), f"{batch.prefix}{batch.first + at}")
        return left[::-1]  # in any order

    @property
    def told(self) -> int:
        return sum(map(len, self.batches))


async def all_ended(waiters: Sequence[Told]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for waiter in waiters:
            await waiter.ended.wait()


def begin(c: Any, waiters: Sequence[Told]) -> list[Callable[[], None]]:
    return [
        c.dispatcher.begin(c.query(id=f"q{number}", inputs=image(number)), waiter)
        for number, waiter in enumerate(waiters)
    ]


async def settled(c: Any) -> None:
    await c.until(c.dispatcher.engine.ledger.is_settled)
    assert c.dispatcher.in_flight() == 0


def one_worker() -> FakeWorker:
    return FakeWorker("w1", [an_instance("i1")])


VARIANT = a_variant("v1", per_item_ms=0.05)


async def test_each_hears_its_own_answer_once_and_its_decision_is_found_under_the_id_it_heard(cluster: Opener) -> None:
    async with cluster([VARIANT], [one_worker()]) as c:
        teller = Teller()
        waiters = [Told(teller) for _ in range(100)]
        begin(c, waiters)
        await all_ended(waiters)
        assert [waiter.values for waiter in waiters] == [[number] for number in range(100)]
        assert teller.told == 100
        ids = [waiter.ids[0] for waiter in waiters]
        assert len(set(ids)) == 100
        for number, id in enumerate(ids):
            found = c.dispatcher.decision(id)
            assert (found.request_id, found.outcome, found.variant) == (f"q{number}", "answered", "v1")
            assert found == c.dispatcher.decision(f"q{number}")
            assert [candidate.variant for candidate in found.candidates] == ["v1"]
        stats = c.dispatcher.stats()["v1"]
        assert (stats.success_count, stats.inference_count, stats.fail_count) == (100, 100, 0)
        await settled(c)


@pytest.mark.parametrize("is_left", [False, True])
async def test_one_alone_is_told_in_the_same_way(cluster: Opener, is_left: bool) -> None:
    async with cluster([VARIANT], [one_worker()]) as c:
        teller = Teller(leaves=lambda _: is_left)
        waiter = Told(teller)
        begin(c, [waiter])
        await all_ended([waiter])
        assert (teller.told, waiter.values, waiter.errors) == (1, [0], [])
        found = c.dispatcher.decision(waiter.ids[0])
        assert (found.request_id, found.outcome, found.variant) == ("q0", "answered", "v1")
        assert c.dispatcher.stats()["v1"].success_count == 1
        await settled(c)


async def test_those_that_are_left_are_told_by_themselves_and_nobody_twice(cluster: Opener) -> None:
    async with cluster([VARIANT], [one_worker()]) as c:
        teller = Teller(leaves=lambda at: at % 3 == 1)
        waiters = [Told(teller) for _ in range(60)]
        begin(c, waiters)
        await all_ended(waiters)
        assert [waiter.values for waiter in waiters] == [[number] for number in range(60)]
        assert {waiter.ends for waiter in waiters} == {1}
        found = [c.dispatcher.decision(waiter.ids[0]) for waiter in waiters]
        assert [one.request_id for one in found] == [f"q{number}" for number in range(60)]
        assert len({one.id for one in found}) == 60
        assert c.dispatcher.stats()["v1"].success_count == 60
        await settled(c)


async def test_one_who_leaves_them_all_costs_nothing(cluster: Opener) -> None:
    async with cluster([VARIANT], [one_worker()]) as c:
        teller = Teller(leaves=lambda _: True)
        waiters = [Told(teller) for _ in range(20)]
        begin(c, waiters)
        await all_ended(waiters)
        assert [waiter.values for waiter in waiters] == [[number] for number in range(20)]
        assert [c.dispatcher.decision(waiter.ids[0]).request_id for waiter in waiters] == [f"q{n}" for n in range(20)]
        assert c.dispatcher.stats()["v1"].success_count == 20
        await settled(c)


@pytest.mark.parametrize("fails_after", [0, 1, 5])
async def test_when_the_one_who_tells_fails_those_who_heard_nothing_are_told_so(
    cluster: Opener, fails_after: int
) -> None:
    worker = one_worker()
    async with cluster([VARIANT], [worker]) as c:
        teller = Teller(fails_after=fails_after)
        first = Told()
        worker.gate.clear()
        c.dispatcher.begin(c.query(inputs=image(99)), first)
        await c.until(lambda: bool(worker.ran))
        waiters = [Told(teller) for _ in range(12)]
        begin(c, waiters)
        worker.gate.set()
        await all_ended([first, *waiters])
        assert {waiter.ends for waiter in waiters} == {1}, "each has one end"
        assert [waiter.values for waiter in waiters if waiter.values] == [
            [number] for number, waiter in enumerate(waiters) if waiter.values
        ]
        failed = [error for waiter in waiters for error in waiter.errors]
        assert failed
        assert all(isinstance(error, QueryFailedError) and error.code is Code.INTERNAL for error in failed)
        assert "RuntimeError: a fault of ours" in str(failed[0])
        assert len(failed) == sum(max(0, len(batch) - fails_after) for batch in teller.batches)
        after = Told()
        c.dispatcher.begin(c.query(inputs=image(7)), after)
        await all_ended([after])
        assert after.values == [7]
        await settled(c)


async def test_who_does_not_wait_any_more_hears_nothing_and_the_others_do(cluster: Opener) -> None:
    worker = one_worker()
    async with cluster([VARIANT], [worker]) as c:
        teller = Teller()
        worker.gate.clear()
        waiters = [Told(teller) for _ in range(16)]
        drops = begin(c, waiters)
        await c.until(lambda: bool(worker.ran))
        for number in (0, 5, 15):
            waiters[number].leave()
        for number in (3, 8):
            waiters[number].leave()
            drops[number]()
        worker.gate.set()
        await all_ended(waiters)
        await settled(c)
        gone = {0, 3, 5, 8, 15}
        assert [waiter.values for waiter in waiters] == [[] if n in gone else [n] for n in range(16)]
        assert not any(waiter.errors for waiter in waiters)
        assert {n: c.dispatcher.decision(f"q{n}").outcome for n in gone} == {
            n: "cancelled" if n in (3, 8) else "answered" for n in gone
        }


async def test_when_a_batchs_decisions_cannot_be_told_its_callers_have_their_answers_all_the_same(
    cluster: Opener,
) -> None:
    async with cluster([VARIANT], [one_worker()]) as c:
        faults: list[str] = []

        def breaks(decision: Decision) -> None:
            faults.append(decision.id)
            raise RuntimeError("a fault of ours")

        c.dispatcher.decisions.on_decision(breaks)
        teller = Teller()
        waiters = [Told(teller) for _ in range(20)]
        with capture_logs() as lines:
            begin(c, waiters)
            await all_ended(waiters)
        assert teller.told == 20
        assert [waiter.values for waiter in waiters] == [[number] for number in range(20)]
        assert {waiter.ends for waiter in waiters} == {1}
        assert len(faults) == len(teller.batches), "a fault ends the telling of its batch"
        said = [line for line in lines if line["event"] == "who follows decisions was not told of a batch's"]
        assert {(line["log_level"], str(line["exc_info"])) for line in said} == {("error", "a fault of ours")}
        assert len(said) == len(faults)
        stats = c.dispatcher.stats()["v1"]
        assert (stats.success_count, stats.inference_count, stats.fail_count) == (20, 20, 0)
        kept = {decision.id: decision.request_id for decision in c.dispatcher.recent(100)}
        assert kept == {waiter.ids[0]: f"q{number}" for number, waiter in enumerate(waiters)}
        await settled(c)


@pytest.mark.parametrize("first", ["a task", "a waiter", "a lone waiter"])
async def test_tasks_and_waiters_of_several_tellers_in_one_batch_each_hear_their_own(
    cluster: Opener, first: str
) -> None:
    worker = one_worker()
    async with cluster([VARIANT], [worker]) as c:
        tellers = Teller(), Teller()
        waiters = [Told(tellers[0]), Told(tellers[1]), Told(), Told(tellers[0]), Told(tellers[1]), Told()]
        if first == "a lone waiter":
            waiters.reverse()
        worker.gate.clear()
        tasks = [asyncio.create_task(c.dispatcher.submit(c.query(id=f"t{n}", inputs=image(50 + n)))) for n in range(3)]
        if first == "a task":
            await asyncio.sleep(0)
        begin(c, waiters)
        await c.until(lambda: bool(worker.ran))
        worker.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(*tasks)
        await all_ended(waiters)
        assert [value_of(answer.outputs) for answer in answers] == [50, 51, 52]
        assert [waiter.values for waiter in waiters] == [[n] for n in range(6)]
        assert max(len(ran.queries) for ran in worker.ran) > 3, "they ran in one batch"
        ids = [*(answer.outcome.decision_id for answer in answers), *(waiter.ids[0] for waiter in waiters)]
        names = [c.dispatcher.decision(id).request_id for id in ids]
        assert names == ["t0", "t1", "t2", *(f"q{n}" for n in range(6))]
        await settled(c)


async def test_queries_that_were_tried_again_are_told_by_themselves(cluster: Opener) -> None:
    worker, other = one_worker(), FakeWorker("w2", [an_instance("i2", worker="w2")])
    async with cluster([VARIANT], [worker, other]) as c:
        teller = Teller()
        worker.gate.clear()
        other.gate.clear()
        waiters = [Told(teller) for _ in range(12)]
        begin(c, waiters)
        await c.until(lambda: bool(worker.ran or other.ran))
        lost = worker if worker.ran else other
        await lost.kill()
        (other if lost is worker else worker).gate.set()
        await all_ended(waiters)
        assert [waiter.values for waiter in waiters] == [[n] for n in range(12)]
        again = [n for n in range(12) if c.dispatcher.decision(f"q{n}").attempts > 1]
        assert again, "some were at the worker that was lost"
        assert teller.told <= 12 - len(again)


async def test_what_is_kept_of_answers_that_are_told_together_holds_no_input(cluster: Opener) -> None:
    worker = one_worker()
    async with cluster([VARIANT], [worker]) as c:
        teller = Teller()
        waiters = [Told(teller) for _ in range(8)]
        gone: list[weakref.ref[memoryview]] = []
        for number, waiter in enumerate(waiters):
            data = memoryview(struct.pack("<f", number) * 64)
            gone.append(weakref.ref(data))
            tensors = (Tensor("image", Datatype.FP32, (1, 64), data),)
            c.dispatcher.begin(c.query(id=f"q{number}", inputs=tensors), waiter)
            del data, tensors
        await all_ended(waiters)
        assert teller.told
        await settled(c)
        await c.until(lambda: gc.collect() >= 0 and not any(each() for each in gone), within_s=5)
        assert all(c.dispatcher.decision(f"q{number}") is not None for number in range(8))
