"""Instances in processes of their own, and what a worker does about a crash and a hang: a real worker, real deaths."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import numpy as np
import psutil
from worker_values import in_store

from infaas.domain.lifecycle import Death, InstanceState, WorkerState
from infaas.domain.tensor import Datatype, Tensor
from infaas.domain.variant import Isolation
from infaas.testing import graphs
from infaas.testing.worker_driver import WAIT_S, BatchAnswer, ControllerEnd, WorkerProcess
from infaas.up.restart import HUNG_EXIT

IMPATIENT = {"hang_after_s": 1.0, "hang_factor": 1.0}
PROCESS = {"isolation": Isolation.PROCESS}


def x(*values: int) -> Tensor:
    array = np.array(values, np.int64)[:, None]
    return Tensor("x", Datatype.INT64, array.shape, array.tobytes())


def answers(done: BatchAnswer) -> list[list[int]]:
    return [np.frombuffer(query.outputs[0].data, np.int64).tolist() for query in done.queries]


def deadly(worker: WorkerProcess, name: str = "v1", **facts: Any):
    graph = graphs.deadly()
    worker.repository.put_bytes(graph.data)
    return graph.variant(name, **facts)


def children(worker: WorkerProcess) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children(recursive=True)


async def failed(end: ControllerEnd, instance: str) -> str:
    await end.until(lambda: (end.state(instance) or "").startswith("FAILED"))
    return end.state(instance) or ""


async def test_an_isolated_instance_answers_as_any_other_from_a_process_of_its_own(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker, **PROCESS))
        assert len(children(worker)) == 1
        assert end.worker.instances["i1"].isolation is Isolation.PROCESS
        done = await end.infer("i1", x(601), x(610, 700))
        assert (done.error_code, answers(done)) == ("", [[1000], [100, 10]])


async def test_a_crash_takes_down_only_its_own_instance_which_can_be_loaded_again(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker, **PROCESS))
        await end.ready("i2", deadly(worker, **PROCESS))
        await end.ready("i3", deadly(worker, "v3"))
        dead = await end.infer("i1", x(610), x(graphs.CRASHES))
        assert (dead.error_code, dead.was_running) == ("unavailable", True)
        assert "killed by SIGFPE" in dead.error
        assert "killed by SIGFPE" in await failed(end, "i1")
        record = end.worker.instances["i1"]
        assert (record.state, record.death) == (InstanceState.FAILED, Death.CRASHED)
        assert end.worker.state is WorkerState.READY
        assert answers(await end.infer("i2", x(610))) == [[100]]
        assert answers(await end.infer("i3", x(610))) == [[100]]
        refused = await end.infer("i1", x(610))
        assert (refused.error_code, refused.was_running) == ("unavailable", False)
        await end.ready("i4", deadly(worker, **PROCESS))
        assert answers(await end.infer("i4", x(610))) == [[100]]


async def test_an_idle_instance_whose_process_is_killed_is_reported_at_once(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker, **PROCESS))
        os.kill(children(worker)[0].pid, signal.SIGKILL)
        assert "killed by SIGKILL" in await failed(end, "i1")
        assert end.worker.instances["i1"].death is Death.CRASHED


async def test_a_hang_in_a_process_of_its_own_is_ended_and_harms_nobody(start):
    worker = start(worker=IMPATIENT)
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker, **PROCESS))
        hung = children(worker)
        await end.ready("i2", deadly(worker, **PROCESS))
        hanging = await end.submit("i1", x(graphs.HANGS))
        await end.until(lambda: hanging in end.started)
        assert answers(await end.infer("i2", x(610))) == [[100]]
        done = await end.answer(hanging)
        assert (done.error_code, done.was_running) == ("unavailable", True)
        assert "hung for" in await failed(end, "i1")
        assert end.worker.instances["i1"].death is Death.HUNG
        assert end.worker.state is WorkerState.READY
        await asyncio.to_thread(psutil.wait_procs, hung, timeout=WAIT_S)
        assert [child for child in hung if child.is_running()] == []
        assert answers(await end.infer("i2", x(700))) == [[10]]


async def test_a_hang_in_the_workers_own_process_ends_the_worker_after_its_other_work(start):
    worker = start(worker=IMPATIENT | {"cores": 2})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker))
        await end.ready("i2", deadly(worker, **PROCESS))
        hanging = await end.submit("i1", x(graphs.HANGS))
        done = await end.answer(hanging)
        assert (done.error_code, done.was_running) == ("unavailable", True)
        await end.until(lambda: end.is_over or end.worker.state is WorkerState.FAILED)
        assert end.worker.state is WorkerState.FAILED
        assert "instance i1 of v1 hung for" in end.worker.reason
        assert await worker.ended() == HUNG_EXIT
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert end.worker.state is WorkerState.READY
        assert "hung for" in end.worker.reason
        assert end.worker.instances["i1"].death is Death.HUNG


async def test_a_worker_that_died_of_a_crash_says_in_its_next_life_who_ran(start):
    worker = start(worker={"cores": 2})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker))
        await end.ready("i2", deadly(worker, "v2"))
        await end.submit("i1", x(graphs.CRASHES))
        await end.over()
    assert await worker.ended() == -signal.SIGFPE
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        record = end.worker
        assert set(record.instances) == {"i1"}
        assert record.instances["i1"].death is Death.CRASHED
        assert "Floating point exception" in record.instances["i1"].reason
        assert "instance i1 of v1" in record.reason


async def test_who_is_to_blame_is_told_by_a_later_life_when_nobody_came_to_hear_it_and_then_no_more(
    start, own_redis_server
):
    worker = start(worker={"cores": 2})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker))
        await end.submit("i1", x(graphs.CRASHES))
        await end.over()
    assert await worker.ended() == -signal.SIGFPE
    worker.start()
    await in_store(own_redis_server.url, lambda record: record is not None and record.pid == worker.pid)
    worker.crash()
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert end.worker.instances["i1"].death is Death.CRASHED
        told_after = len(end.reports) + 2
        await end.until(lambda: len(end.reports) > told_after)
    worker.crash()
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert (dict(end.worker.instances), end.worker.reason) == ({}, "")


async def test_a_worker_that_is_killed_from_outside_blames_nobody_and_leaves_no_child(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker))
        await end.ready("i2", deadly(worker, **PROCESS))
        left = children(worker)
        assert len(left) == 1
        worker.crash()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=WAIT_S)
    assert (len(gone), alive) == (1, [])
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert (dict(end.worker.instances), end.worker.reason) == ({}, "")


async def test_a_stopped_worker_takes_its_isolated_instances_along_in_order(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", deadly(worker, **PROCESS))
        left = children(worker)
        worker.signal(signal.SIGTERM)
        await end.over()
    assert await worker.ended() == 0
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in left)
