"""The dispatcher over real connections to workers: answers, losses, cancellation, deadlines, loads."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from infaas_controller.ports import Answer, QueryFailedError
from infaas_controller.queues import Ticket

from infaas.domain.cluster import InstanceRecord
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.hop import frames
from infaas.settings import Settings
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeQuery, FakeWorker, ModelRaisedError, Output

Opener = Callable[..., Any]
EITHER_WAY = pytest.mark.parametrize("cluster", ["sockets", "inside"], indirect=True)
"""With the workers in processes of their own, and with all of them in the controller's."""


def image(value: int, items: int = 1) -> tuple[Tensor, ...]:
    return (Tensor("image", Datatype.FP32, (items, 64), struct.pack("<f", value) * 64 * items),)


def value_of(answer: Answer) -> int:
    return int(struct.unpack_from("<f", bytes(answer.outputs[0].data))[0])


async def failure(waiting: Any) -> QueryFailedError:
    with pytest.raises(QueryFailedError) as caught:
        await waiting
    return caught.value


@EITHER_WAY
async def test_two_thousand_concurrent_queries_each_get_the_answer_to_their_own_input(cluster: Opener) -> None:
    workers = [
        FakeWorker("w1", [an_instance("i1", worker="w1"), an_instance("i2", worker="w1")]),
        FakeWorker("w2", [an_instance("i3", worker="w2")]),
    ]
    async with cluster([a_variant("v1", per_item_ms=0.05)], workers) as c:
        waiting = [c.dispatcher.submit(c.query(id=f"q{n}", inputs=image(n))) for n in range(2_000)]
        answers = await asyncio.gather(*waiting)
        assert [value_of(answer) for answer in answers] == list(range(2_000))
        ran = [batch for worker in workers for batch in worker.ran]
        assert sum(batch.items for batch in ran) == 2_000
        assert max(batch.items for batch in ran) <= 32
        assert len(ran) < 1_000
        assert c.dispatcher.in_flight() == 0
        assert c.dispatcher.engine.ledger.is_settled()
        assert c.dispatcher.engine.queues.waiting == 0


async def test_an_answer_says_who_served_it_and_its_decision_can_be_explained(cluster: Opener) -> None:
    variants = [a_variant("cheap", cost=0.1), a_variant("dear", cost=0.9), a_variant("poor", accuracy=0.5, cost=0.01)]
    worker = FakeWorker("w1", [an_instance("i1", variant="cheap"), an_instance("i2", variant="dear")])
    async with cluster(variants, [worker]) as c:
        answer = await c.dispatcher.submit(c.query(id="mine", inputs=image(1), latency_ms=10_000))
        outcome = answer.outcome
        assert (outcome.variant, outcome.model, outcome.version, outcome.worker) == ("cheap", "m1", 1, "w1")
        assert (outcome.attempts, outcome.cold_start, outcome.slo_met) == (1, False, True)
        decision = c.dispatcher.decision("mine")
        assert decision is not None
        assert decision == c.dispatcher.decision(outcome.decision_id)
        assert decision.outcome == "answered"
        reasons = {candidate.variant: candidate.reason for candidate in decision.candidates}
        assert reasons["cheap"] == "chosen"
        assert "below the floor" in reasons["poor"]
        assert "more than the chosen" in reasons["dear"]
        assert c.dispatcher.stats()["cheap"].inference_count == 1


@EITHER_WAY
async def test_a_cancelled_call_takes_its_staged_query_back(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        worker.gate.clear()
        first = asyncio.create_task(c.dispatcher.submit(c.query(id="runs", inputs=image(1))))
        await c.until(lambda: bool(worker.ran))
        second = asyncio.create_task(c.dispatcher.submit(c.query(id="staged", inputs=image(2))))
        await c.until(lambda: c.dispatcher.in_flight() == 2 and c.dispatcher.engine.queues.waiting == 0)
        third = asyncio.create_task(c.dispatcher.submit(c.query(id="waits", inputs=image(3))))
        await c.until(lambda: c.dispatcher.engine.queues.waiting == 1)
        for task in (second, third):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert c.dispatcher.in_flight() == 1
        assert c.dispatcher.engine.queues.waiting == 0
        await c.until(lambda: len(worker.cancelled) == 1)
        worker.gate.set()
        assert value_of(await first) == 1
        assert c.dispatcher.decision("waits").outcome == "cancelled"
        await c.until(c.dispatcher.engine.ledger.is_settled)


@EITHER_WAY
async def test_a_deadline_that_passes_while_the_model_runs_is_a_504_at_once(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        worker.gate.clear()
        error = await failure(c.dispatcher.submit(c.query(inputs=image(1), latency_ms=150)))
        assert error.code is Code.DEADLINE_PASSED
        assert error.outcome.slo_met is False
        assert error.outcome.variant == "v1"
        worker.gate.set()
        await c.until(c.dispatcher.engine.ledger.is_settled)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(5)))) == 5


@EITHER_WAY
async def test_when_a_worker_dies_its_staged_queries_and_its_running_one_are_answered_elsewhere(
    cluster: Opener,
) -> None:
    doomed = FakeWorker("w1", [an_instance("i1", worker="w1")])
    other = FakeWorker("w2", [an_instance("i2", worker="w2", state=InstanceState.DRAINING)])
    async with cluster([a_variant("v1")], [doomed, other]) as c:
        doomed.gate.clear()
        running = asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(1))))
        await c.until(lambda: bool(doomed.ran))
        rest = [asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(n)))) for n in range(2, 22)]
        await c.until(lambda: c.dispatcher.in_flight() == 21)
        other.add_instance(an_instance("i3", worker="w2"))
        await c.until(lambda: "i3" in c.dispatcher.engine.ledger.lanes)
        await doomed.kill()
        answers = await asyncio.gather(running, *rest)
        assert [value_of(answer) for answer in answers] == list(range(1, 22))
        assert answers[0].outcome.attempts == 2
        (alone,) = (batch for batch in other.ran if 1 in batch.queries)
        assert alone.items == 1, "what ran when its instance died runs alone"
        assert c.dispatcher.engine.ledger.is_settled()


@pytest.mark.parametrize("digested_at_once_bytes", [1 << 20, 0])
async def test_an_input_that_kills_its_instance_twice_is_a_model_failure_and_is_quarantined(
    cluster: Opener, monkeypatch: pytest.MonkeyPatch, digested_at_once_bytes: int
) -> None:
    monkeypatch.setattr("infaas_controller.quarantine.DIGESTED_AT_ONCE_BYTES", digested_at_once_bytes)
    worker = FakeWorker("w1", [an_instance("i1"), an_instance("i2")])
    async with cluster([a_variant("v1")], [worker]) as c:
        worker.gate.clear()
        waiting = asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(13))))
        await c.until(lambda: len(worker.ran) == 1)
        await worker.kill_instance(worker.ran[0].instance)
        await c.until(lambda: len(worker.ran) == 2)
        await worker.kill_instance(worker.ran[1].instance)
        error = await failure(waiting)
        assert error.code is Code.MODEL_FAILED
        assert error.outcome.attempts == 2
        probe = Ticket(0, c.query(inputs=image(13)), None)
        await c.until(lambda: c.dispatcher.engine.quarantine.holds(probe, c.clock.now()))
        worker.add_instance(an_instance("i9"))
        await c.until(lambda: "i9" in c.dispatcher.engine.ledger.lanes)
        assert (await failure(c.dispatcher.submit(c.query(inputs=image(13))))).code is Code.MODEL_FAILED
        assert len(worker.ran) == 2
        worker.gate.set()
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(14)))) == 14


@EITHER_WAY
@pytest.mark.parametrize("fails_alone", [False, True])
async def test_one_input_that_makes_the_model_raise_does_not_fail_its_neighbours(
    cluster: Opener, fails_alone: bool
) -> None:
    def picky(instance: InstanceRecord, names: list[str], query: FakeQuery) -> list[Output]:
        data = query.inputs[0].data
        if struct.unpack_from("<f", data)[0] == 3:
            raise ModelRaisedError("three is not allowed")
        return [("out", "UINT8", (len(data),), data)]

    worker = FakeWorker("w1", [an_instance("i1")], compute=picky)
    worker.fails_alone = fails_alone
    async with cluster([a_variant("v1", per_item_ms=0.01)], [worker]) as c:
        waiting = [asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(n)))) for n in range(6)]
        error = await failure(waiting[3])
        assert error.code is Code.MODEL_FAILED
        assert "three is not allowed" in error.text
        rest = await asyncio.gather(*(w for n, w in enumerate(waiting) if n != 3))
        assert [value_of(answer) for answer in rest] == [0, 1, 2, 4, 5]


@EITHER_WAY
async def test_a_variant_that_no_worker_holds_is_loaded_on_demand_once_for_all_who_wait(cluster: Opener) -> None:
    worker = FakeWorker("w1")
    async with cluster([a_variant("v1")], [worker]) as c:
        answers = await asyncio.gather(*(c.dispatcher.submit(c.query(inputs=image(n))) for n in range(10)))
        assert [value_of(answer) for answer in answers] == list(range(10))
        assert worker.loaded == ["v1"]
        assert all(answer.outcome.cold_start for answer in answers)
        again = await c.dispatcher.submit(c.query(inputs=image(3)))
        assert not again.outcome.cold_start


async def test_selections_batches_and_loads_are_counted(cluster: Opener) -> None:
    class Counts:
        def __init__(self) -> None:
            self.selections: list[tuple[float, int]] = []
            self.batches: list[tuple[str, int]] = []
            self.loads: list[tuple[str, float]] = []

        def observe_selections(self, seconds: float, count: int) -> None:
            self.selections.append((seconds, count))

        def observe_batch(self, variant: str, items: int) -> None:
            self.batches.append((variant, items))

        def observe_load(self, variant: str, load_s: float) -> None:
            self.loads.append((variant, load_s))

    counts = Counts()
    async with cluster([a_variant("v1"), a_variant("v2", model="m2")], [FakeWorker("w1", [])]) as c:
        c.dispatcher.observe_with(counts)
        began = c.clock.now()
        answers = await asyncio.gather(*(c.dispatcher.submit(c.query("v1", inputs=image(n))) for n in range(5)))
        answers.append(await c.dispatcher.submit(c.query("v2", items=3, inputs=image(0, items=3))))
        assert [count for _, count in counts.selections] == [5, 1], "what came together was decided on together"
        each = [seconds for seconds, count in counts.selections for _ in range(count)]
        assert each == [answer.outcome.decide_s for answer in answers], "callers are told the same"
        assert min(each) > 0
        assert sum(each) < c.clock.now() - began
        assert sum(items for variant, items in counts.batches if variant == "v1") == 5
        assert [items for variant, items in counts.batches if variant == "v2"] == [3]
        assert [variant for variant, _ in counts.loads] == ["v1", "v2"]
        assert min(load_s for _, load_s in counts.loads) > 0


async def test_a_query_that_cannot_wait_for_a_load_is_refused_but_starts_it(cluster: Opener) -> None:
    worker = FakeWorker("w1")
    async with cluster([a_variant("v1", load_ms=5_000)], [worker]) as c:
        error = await failure(c.dispatcher.submit(c.query(inputs=image(1), latency_ms=500)))
        assert (error.code, error.is_retryable) == (Code.LOADING, True)
        await c.until(lambda: worker.loaded == ["v1"])
        await c.until(lambda: any(lane.is_ready for lane in c.dispatcher.engine.ledger.lanes.values()))
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(1), latency_ms=5_000))) == 1


async def test_a_load_that_fails_moves_its_queries_to_another_variant_and_the_reason_is_kept(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i2", variant="dear")])
    worker.load_error = "out of memory"
    async with cluster([a_variant("cheap", cost=0.1), a_variant("dear", cost=0.9)], [worker]) as c:
        answer = await c.dispatcher.submit(c.query(inputs=image(4)))
        assert answer.outcome.variant == "dear"
        assert c.dispatcher.engine.ledger.failed_load("cheap", "w1", c.clock.now()) == "out of memory"


async def test_without_any_ready_worker_queries_are_refused_with_a_time_to_come_back(cluster: Opener) -> None:
    async with cluster([a_variant("v1")], []) as c:
        error = await failure(c.dispatcher.submit(c.query(inputs=image(1))))
        assert (error.code, error.is_retryable) == (Code.NO_WORKER, True)
        assert not c.dispatcher.is_ready()
        assert c.dispatcher.recent(1)[0].outcome == "no-worker"


async def test_a_full_queue_refuses_and_a_higher_priority_pushes_a_lower_one_out(cluster: Opener) -> None:
    from infaas.domain.query import Priority

    worker = FakeWorker("w1", [an_instance("i1")])
    settings = Settings.model_validate({"controller": {"max_queue_size": 2}})
    async with cluster([a_variant("v1", max_batch=1)], [worker], settings=settings) as c:
        worker.gate.clear()
        sent = [asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(0)))) for _ in range(2)]
        await c.until(lambda: bool(worker.ran) and c.dispatcher.engine.queues.waiting == 0)
        low = [
            asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(n), priority=Priority.SHEDDABLE)))
            for n in (1, 2)
        ]
        await c.until(lambda: c.dispatcher.engine.queues.waiting == 2)
        same = await failure(c.dispatcher.submit(c.query(inputs=image(3), priority=Priority.SHEDDABLE)))
        assert (same.code, same.is_retryable) == (Code.SATURATED, True)
        high = asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(4), priority=Priority.CRITICAL)))
        evicted = await failure(low[1])
        assert evicted.code is Code.EVICTED
        worker.gate.set()
        assert [value_of(await each) for each in (*sent, low[0], high)] == [0, 0, 1, 4]


@pytest.mark.long
async def test_a_worker_that_falls_silent_is_lost_although_its_stream_is_open(cluster: Opener) -> None:
    silent = FakeWorker("w1", [an_instance("i1", worker="w1")])
    settings = Settings.model_validate({"controller": {"worker_lost_after_s": 0.5}})
    async with cluster([a_variant("v1")], [silent], settings=settings) as c:
        silent.is_silent = True
        error = await failure(c.dispatcher.submit(c.query(inputs=image(1))))
        assert error.code in (Code.NO_WORKER, Code.UNAVAILABLE)
        assert not c.links.documents()[0].is_connected
        silent.is_silent = False
        await c.until_ready(silent)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(2)))) == 2


@EITHER_WAY
async def test_a_worker_that_comes_back_is_dialled_again(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        address = worker.address
        await worker.kill()
        await c.until(lambda: not c.links.documents()[0].is_connected)
        await worker.start(address)
        await c.until_ready(worker)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(6)))) == 6


@EITHER_WAY
async def test_a_batch_that_a_worker_refuses_before_it_runs_is_served_elsewhere(cluster: Opener) -> None:
    refusing = FakeWorker("w1", [an_instance("i1", worker="w1")])
    other = FakeWorker("w2", [an_instance("i2", worker="w2")])
    async with cluster([a_variant("v1")], [refusing, other]) as c:
        refusing.refuse = Code.DRAINING
        answers = [await c.dispatcher.submit(c.query(inputs=image(n))) for n in range(4)]
        assert [value_of(answer) for answer in answers] == [0, 1, 2, 3]
        assert {answer.outcome.worker for answer in answers} == {"w2"}


@EITHER_WAY
async def test_draining_a_worker_over_its_control_calls_takes_it_out_and_resuming_brings_it_back(
    cluster: Opener,
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        await c.links.drain("w1")
        assert c.keeper.view.workers["w1"].state is WorkerState.DRAINING
        assert (await failure(c.dispatcher.submit(c.query(inputs=image(1))))).code is Code.NO_WORKER
        await c.links.resume("w1")
        assert c.keeper.view.workers["w1"].state is WorkerState.READY
        await c.until_ready(worker)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(1)))) == 1


@EITHER_WAY
async def test_the_token_travels_with_the_stream(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], token="secret")
    async with cluster([a_variant("v1")], [worker], token="secret") as c:
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(1)))) == 1


@EITHER_WAY
async def test_a_draining_dispatcher_finishes_what_it_has_and_refuses_the_rest(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        worker.gate.clear()
        waiting = asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(1))))
        await c.until(lambda: bool(worker.ran))
        c.dispatcher.begin_drain()
        assert (await failure(c.dispatcher.submit(c.query(inputs=image(2))))).code is Code.DRAINING
        worker.gate.set()
        async with asyncio.timeout(20):
            await c.dispatcher.drained()
        assert value_of(await waiting) == 1


@EITHER_WAY
async def test_an_ended_query_is_not_kept_with_its_inputs(cluster: Opener) -> None:
    import gc
    import weakref

    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        data = memoryview(struct.pack("<f", 1.0) * 64)
        gone = weakref.ref(data)
        tensors = (Tensor("image", Datatype.FP32, (1, 64), data),)
        del data
        answer = await c.dispatcher.submit(c.query(id="big", inputs=tensors))
        del tensors
        assert value_of(answer) == 1
        await c.dispatcher.submit(c.query(id="next", inputs=image(2)))
        await c.until(lambda: gc.collect() >= 0 and gone() is None, within_s=5)
        assert c.dispatcher.decision("big") is not None


@EITHER_WAY
async def test_a_link_outlives_a_fault_in_what_hears_of_it_and_the_worker_is_dialled_again(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        done, faults = c.dispatcher.engine.done, []

        def breaks(*given: Any) -> None:
            if not faults:
                faults.append(given)
                raise RuntimeError("a fault of ours")
            done(*given)

        c.dispatcher.engine.done = breaks
        first = await failure_or_answer(c.dispatcher.submit(c.query(inputs=image(1), latency_ms=5_000)))
        assert faults
        await c.until_ready(worker)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(2)))) == 2
        assert c.links.documents()[0].is_connected
        assert isinstance(first, Answer | QueryFailedError), "it is tried again or told, but does not hang"
        await c.until(c.dispatcher.engine.ledger.is_settled)
        assert c.dispatcher.in_flight() == 0


@EITHER_WAY
async def test_a_fault_while_a_worker_is_let_go_does_not_keep_it_from_being_dialled_again(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        lost, faults = c.dispatcher.engine.worker_lost, []

        def breaks(*given: Any) -> None:
            lost(*given)
            faults.append(given)
            raise RuntimeError("a fault of ours")

        c.dispatcher.engine.worker_lost = breaks
        address = worker.address
        await worker.kill()
        await c.until(lambda: bool(faults))
        c.dispatcher.engine.worker_lost = lost
        await worker.start(address)
        await c.until_ready(worker)
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(6)))) == 6


@pytest.mark.parametrize("when", ["on arrival", "after its instance died"])
async def test_a_policy_that_raises_is_its_own_querys_500_and_the_links_live(cluster: Opener, when: str) -> None:
    worker = FakeWorker("w1", [an_instance("i1"), an_instance("i2")])
    async with cluster([a_variant("v1")], [worker]) as c:
        policy = c.dispatcher.engine._settings.policies("slo")
        calm, broken = policy.on_arrival, []

        def judge(situation: Any) -> Any:
            if situation.query.id == "bad" and (when == "on arrival" or broken):
                raise ZeroDivisionError("of a plug-in")
            return calm(situation)

        policy.on_arrival = judge
        worker.gate.clear()
        bad = asyncio.create_task(c.dispatcher.submit(c.query(id="bad", inputs=image(1))))
        if when != "on arrival":
            await c.until(lambda: len(worker.ran) == 1)
            broken.append(True)
            await worker.kill_instance(worker.ran[0].instance)
        error = await failure(bad)
        worker.gate.set()
        assert error.code is Code.INTERNAL
        assert "ZeroDivisionError: of a plug-in" in error.text
        assert value_of(await c.dispatcher.submit(c.query(id="good", inputs=image(2)))) == 2
        assert c.links.documents()[0].is_connected
        assert c.dispatcher.in_flight() == 0


@pytest.mark.parametrize("breaks", ["_answer_one", "_send"])
async def test_a_command_that_cannot_be_performed_is_told_to_whoever_waits_for_it_and_to_nobody_else(
    cluster: Opener, breaks: str
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1", max_batch=1)], [worker]) as c:
        whole, faults = getattr(c.dispatcher._performer, breaks), []

        def broken(*given: Any) -> None:
            if not faults:
                faults.append(given)
                raise RuntimeError("a fault of ours")
            whole(*given)

        setattr(c.dispatcher._performer, breaks, broken)
        waiting = [asyncio.create_task(c.dispatcher.submit(c.query(inputs=image(n)))) for n in range(5)]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        failed = [each for each in found if isinstance(each, QueryFailedError)]
        assert [each.code for each in failed] == [Code.INTERNAL]
        assert "RuntimeError: a fault of ours" in failed[0].text
        assert sum(isinstance(each, Answer) for each in found) == 4
        assert c.dispatcher.in_flight() == 0
        await c.until(c.dispatcher.engine.ledger.is_settled)


@EITHER_WAY
async def test_a_batch_that_is_too_large_for_one_message_is_refused_and_the_link_lives(
    cluster: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        monkeypatch.setattr(frames, "LIMIT_BYTES", 20_000)
        large = (Tensor("image", Datatype.FP32, (1, 6_400), bytes(25_600)),)
        error = await failure(c.dispatcher.submit(c.query(inputs=large)))
        assert error.code is Code.TOO_LARGE
        assert "20000 can be sent at once" in error.text
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(2)))) == 2
        assert len(worker.ran) == 1
        await c.until(c.dispatcher.engine.ledger.is_settled)


async def failure_or_answer(waiting: Any) -> Answer | QueryFailedError:
    try:
        found: Answer = await waiting
    except QueryFailedError as error:
        return error
    return found
