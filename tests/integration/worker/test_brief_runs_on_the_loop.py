"""Brief runs, which a worker's loop performs itself: they answer, fail and die as those on threads do."""

from __future__ import annotations

import signal

import pytest
from worker_values import SLOW, column, index, published, x

from infaas.domain.lifecycle import Death
from infaas.domain.tensor import Tensor
from infaas.testing import graphs
from infaas.testing.worker_driver import ControllerEnd
from infaas.up.restart import HUNG_EXIT

TINY = {"p95_ms": 0.02, "per_item_ms": 0.001, "threads": 1}


async def test_queries_are_answered_as_on_a_thread_and_larger_batches_go_to_one(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=4, **TINY))
        for rows in ((1.0,), (1.0, 2.0, 3.0)):
            done = await end.infer("i1", *(x(value) for value in rows))
            assert done.error_code == ""
            assert [column(done, place) for place in range(len(rows))] == [[2 * value] for value in rows]
            assert done.run_s > 0
        assert end.started == [], "each was over before anybody could have heard that it began"
        many = [await end.submit("i1", x(float(n))) for n in range(2)]
        assert [column(await end.answer(number), 0) for number in many] == [[0.0], [2.0]]
        too_many = await end.infer("i1", x(1, 2, 3, 4, 5))
        assert too_many.error_code == "invalid-argument"
        assert "takes at most 4 items" in too_many.error


async def test_batches_of_two_controllers_share_a_brief_run_of_the_loop_and_each_gets_its_own_answers(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "c1") as one, ControllerEnd(worker.address, "c2") as two:
        await one.ready("busy", published(worker, graphs.slow(SLOW), "slow", threads=1))
        await one.ready("i1", published(worker, graphs.double(), **TINY))
        await two.until(lambda: two.state("i1") == "READY")
        before = await one.submit("busy", x(1))
        await one.until(lambda: before in one.started)
        mine, theirs = await one.submit("i1", x(2), x(3, 4)), await two.submit("i1", x(5))
        await one.until(lambda: sum(load.staged for load in one.reports[-1].loads) == 2)
        ours, other = await one.answer(mine), await two.answer(theirs)
        assert [column(ours, query) for query in range(2)] == [[4.0], [6.0, 8.0]]
        assert column(other, 0) == [10.0]
        assert (ours.run_items, other.run_items) == (4, 4)
        assert (ours.others, other.others) == (0, 0), "who ran with it is done, too"
        assert (one.started, two.started) == ([before], []), "it was over before anybody could have heard that it began"
        assert [(await end.infer("i1", x(6))).run_items for end in (one, two)] == [0, 0]


async def test_a_query_that_makes_the_model_raise_fails_alone(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.look_up(10), **TINY))
        done = await end.infer("i1", index(3), index(99), index(5))
        assert [query.error_code for query in done.queries] == ["", "model-failed", ""]
        assert [column(done, place) for place in (0, 2)] == [[30.0], [50.0]]
        assert (await end.infer("i1", index(99))).error_code == "model-failed"
        assert column(await end.infer("i1", index(7)), 0) == [70.0]


async def test_a_crash_is_laid_to_the_instance_that_ran_by_the_next_life(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.brittle(), **TINY))
        await end.ready("i2", published(worker, graphs.brittle(), "v2", **TINY))
        assert (await end.infer("i1", number(610))).error_code == ""
        await end.submit("i1", number(graphs.CRASHES))
        await end.over()
    assert await worker.ended() == -signal.SIGFPE
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert set(end.worker.instances) == {"i1"}
        assert end.worker.instances["i1"].death is Death.CRASHED


@pytest.mark.long
async def test_a_run_that_takes_far_longer_than_measured_ends_the_process_and_its_next_life_names_it(start):
    worker = start(worker={"hang_after_s": 0.1, "hang_factor": 1.0})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.heavy(12), max_batch=1, **TINY))
        await end.submit("i1", x(0))
        await end.over()
    assert await worker.ended() == HUNG_EXIT
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert end.worker.instances["i1"].death is Death.HUNG
        assert "instance i1 of v1 hung for" in end.worker.instances["i1"].reason


def number(value: int) -> Tensor:
    return index(value)._replace(name="x")
