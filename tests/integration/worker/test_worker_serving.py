"""A real worker process over its real stream: instances, batches and leases as others see them."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import numpy as np
import pytest
from worker_values import SLOW, column, index, published, x

from infaas.domain.lifecycle import WorkerState
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.v1 import worker_pb2
from infaas.testing import graphs
from infaas.testing.builders import a_profile
from infaas.testing.worker_driver import WAIT_S, ControllerEnd

MIB = 2**20


async def test_a_worker_loads_warms_and_answers_batches(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        assert (end.worker.state, dict(end.worker.instances)) == (WorkerState.READY, {})
        await end.ready("i1", published(worker, graphs.double()))
        done = await end.infer("i1", x(1), x(2, 3))
        assert (done.error_code, done.was_running, list(done.output_names)) == ("", True, ["y", "z"])
        assert list(done.output_datatypes) == ["FP32", "FP32"]
        assert [column(done, 0), column(done, 1), column(done, 1, 1)] == [[2.0], [4.0, 6.0], [3.0, 4.0]]
        assert (done.run_s > 0, done.staged_s >= 0, end.started) == (True, True, [done.id])
        await end.until(lambda: end.reports[-1].loads[0].items_done == 3)
        load = end.reports[-1].loads[0]
        assert (load.was_cold, load.load_s > 0, load.busy_s > 0) == (True, True, True)
        assert end.worker.instances["i1"].last_ok_at == pytest.approx(time.time(), abs=WAIT_S)


async def test_large_tensors_reach_the_runtime_through_shared_memory_and_its_answers_come_back_so(start):
    worker = start(worker={"shared_memory_bytes": MIB})
    rows = 6000
    async with ControllerEnd(worker.address, shared_memory_bytes=MIB) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=2 * rows))
        await end.until(lambda: end.sharing.is_lending)
        for turn in range(20):  # more than the memory holds at once
            done = await end.infer("i1", x(*[turn] * rows), x(7))
            assert (column(done, 0), column(done, 1)) == ([2.0 * turn] * rows, [14.0])
        traffic = end.endpoint.traffic
        assert (traffic.sent, traffic.received) == (20, 20)
        assert (traffic.sent_bytes, traffic.received_bytes) == (20 * 16 * (rows + 1), 20 * 32 * (rows + 1))
        assert (traffic.sent_without_room, traffic.received_without_room) == (0, 0)


async def test_a_worker_told_to_share_nothing_says_so_and_serves(start):
    worker = start(worker={"shared_memory_bytes": 0})
    async with ControllerEnd(worker.address, shared_memory_bytes=MIB) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=6000))
        await end.until(lambda: bool(end.sharing.reason))
        assert end.sharing.reason == "turned off by the other end's settings"
        assert column(await end.infer("i1", x(*[3] * 6000)), 0) == [6.0] * 6000


async def test_outputs_asked_for_and_errors_of_one_query_travel_to_the_controller(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double(), "v1"))
        await end.ready("i2", published(worker, graphs.look_up(), "v2"))
        done = await end.infer("i1", x(1), outputs=["z"])
        assert (list(done.output_names), column(done, 0)) == (["z"], [2.0])
        mixed = await end.infer("i2", index(1), index(99), index(2))
        assert (mixed.error_code, [q.error_code for q in mixed.queries]) == ("", ["", "model-failed", ""])
        assert (column(mixed, 0), column(mixed, 2)) == ([10.0], [20.0])
        failed = await end.infer("i2", index(99))
        assert (failed.error_code, failed.was_running) == ("model-failed", True)
        wrong = await end.infer("i1", index(1))
        assert wrong.error_code == "invalid-argument"
        unknown = await end.infer("nobody", x(1))
        assert (unknown.error_code, unknown.was_running) == ("unavailable", False)
        assert column(await end.infer("i2", index(5)), 0) == [50.0]


@pytest.mark.long
async def test_what_cannot_be_loaded_is_reported_failed_with_the_reason_and_then_forgotten(start):
    worker = start(worker={"cores": 1, "memory_bytes": 64 * MIB})
    async with ControllerEnd(worker.address) as end:
        worker.repository.put_bytes(b"no model")
        await end.load("absent", graphs.double().variant("v1"))
        await end.until(lambda: (end.state("absent") or "").startswith("FAILED"))
        await end.load("wide", published(worker, graphs.double(), threads=2))
        await end.until(lambda: (end.state("wide") or "").startswith("FAILED"))
        assert "needs 2 threads, this worker has 1 cores" in (end.state("wide") or "")
        await end.load("large", published(worker, graphs.double(), memory_mib=65))
        await end.until(lambda: (end.state("large") or "").startswith("FAILED"))
        assert "65.0 MiB, more than this worker's whole budget of 64.0 MiB" in (end.state("large") or "")
        await end.load("broken", published(worker, graphs.total()))
        await end.until(lambda: (end.state("broken") or "").startswith("FAILED"))
        assert "warm-up failed" in (end.state("broken") or "")
        await end.send(load=worker_pb2.LoadInstance(instance="garbled", variant=b"{"))
        await end.until(lambda: (end.state("garbled") or "").startswith("FAILED"))
        await end.until(lambda: not end.worker.instances)


async def test_queries_taken_back_before_the_start_do_not_run(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        first = await end.submit("i1", x(1))
        second = await end.submit("i1", x(2), x(3))
        await end.until(lambda: first in end.started)
        await end.send(cancel=worker_pb2.CancelQueries(batch=second, queries=[1]))
        half = await end.answer(second)
        assert ([q.error_code for q in half.queries], column(half, 1)) == (["cancelled", ""], [3.0])
        third = await end.submit("i1", x(4))
        fourth = await end.submit("i1", x(5))
        await end.until(lambda: third in end.started)
        await end.send(cancel=worker_pb2.CancelQueries(batch=fourth, queries=[1]))
        gone = await end.answer(fourth)
        assert (gone.error_code, gone.was_running, fourth in end.started) == ("cancelled", False, False)
        assert column(await end.answer(third), 0) == [4.0]


async def test_queries_whose_deadline_passes_while_staged_are_dropped_unrun(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        await end.ready("i2", published(worker, graphs.double(), "v2"))
        first = await end.submit("i1", x(1))
        await end.until(lambda: first in end.started)
        late = await end.submit("i2", x(1), remaining_s=0.0005)
        half = await end.submit("i1", x(2), x(3), own_s=[0.0005, 60.0])
        gone = await end.answer(late)
        assert (gone.error_code, gone.was_running, late in end.started) == ("deadline-passed", False, False)
        done = await end.answer(half)
        assert ([q.error_code for q in done.queries], column(done, 1)) == (["deadline-passed", ""], [3.0])


async def test_a_third_batch_of_one_controller_is_refused_while_another_controllers_is_staged(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "c1") as one, ControllerEnd(worker.address, "c2") as two:
        await one.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        await two.until(lambda: two.state("i1") == "READY")
        kept = [await one.submit("i1", x(1)), await one.submit("i1", x(2))]
        refused = await one.infer("i1", x(3))
        assert (refused.error_code, refused.was_running) == ("saturated", False)
        theirs = await two.infer("i1", x(4))
        assert (column(theirs, 0), two.started) == ([4.0], [theirs.id])
        assert [column(await one.answer(number), 0) for number in kept] == [[1.0], [2.0]]
        assert len(two.outcomes) == 1


async def test_each_controller_is_told_with_its_answers_what_the_instance_holds_of_others(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "c1") as one, ControllerEnd(worker.address, "c2") as two:
        await one.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        await two.until(lambda: two.state("i1") == "READY")
        mine = await one.submit("i1", x(1))
        await one.until(lambda: mine in one.started)
        theirs = [await two.submit("i1", x(number)) for number in (2, 3)]
        await one.until(lambda: one.reports[-1].loads[0].staged == 2)
        assert (await one.answer(mine)).others == 2
        assert [(await two.answer(number)).others for number in theirs] == [0, 0], "its own are none of the others'"
        assert (await one.infer("i1", x(4))).others == 0


async def test_batches_of_two_controllers_share_a_run_where_it_pays_and_each_gets_its_own_answers(start):
    worker = start(worker={"cores": 1})
    variant = published(worker, graphs.slow(SLOW), max_batch=8, profile=a_profile(p95_ms=300, per_item_ms=1))
    async with ControllerEnd(worker.address, "c1") as one, ControllerEnd(worker.address, "c2") as two:
        await one.ready("i1", variant)
        await two.until(lambda: two.state("i1") == "READY")
        first = await one.submit("i1", x(1))
        await one.until(lambda: first in one.started)
        mine, theirs = await one.submit("i1", x(2), x(3, 4)), await two.submit("i1", x(5))
        await one.until(lambda: one.reports[-1].loads[0].staged == 2)
        assert (await one.answer(first)).run_items == 0
        ours, other = await one.answer(mine), await two.answer(theirs)
        assert [column(ours, query) for query in range(2)] == [[2.0], [3.0, 4.0]]
        assert column(other, 0) == [5.0]
        assert (ours.run_items, other.run_items) == (4, 4)
        assert ours.run_s == other.run_s
        assert (ours.others, other.others) == (0, 0), "who ran with it is done, too"
        assert one.reports[-1].loads[0].running <= 2


async def test_a_suspect_shares_its_run_with_nobody(start):
    worker = start(worker={"cores": 1})
    variant = published(worker, graphs.slow(SLOW), max_batch=8, profile=a_profile(p95_ms=300, per_item_ms=1))
    async with ControllerEnd(worker.address, "c1") as one, ControllerEnd(worker.address, "c2") as two:
        await one.ready("i1", variant)
        await two.until(lambda: two.state("i1") == "READY")
        first = await one.submit("i1", x(1))
        await one.until(lambda: first in one.started)
        suspect, theirs = await one.submit("i1", x(2), is_alone=True), await two.submit("i1", x(5))
        await one.until(lambda: one.reports[-1].loads[0].staged == 2)
        assert [(await one.answer(suspect)).run_items, (await two.answer(theirs)).run_items] == [0, 0]


async def test_a_controller_that_vanishes_takes_its_staged_batch_along(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "c2") as two:
        async with ControllerEnd(worker.address, "c1") as one:
            await one.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
            running = await one.submit("i1", x(1))
            await one.until(lambda: running in one.started)
            await one.submit("i1", x(2))
            await two.until(lambda: (load := two.reports[-1].loads)[0].running == 1 and load[0].staged == 1)
        await two.until(lambda: two.reports[-1].loads[0].staged == 0)
        assert column(await two.infer("i1", x(5)), 0) == [5.0]
        await two.until(lambda: two.reports[-1].loads[0].items_done == 2)


async def test_the_least_useful_idle_instance_leaves_for_a_new_one(start):
    worker = start(worker={"memory_bytes": 100 * MIB})
    async with ControllerEnd(worker.address) as end:
        await end.ready("used", published(worker, graphs.double(), "v1", memory_mib=50))
        await end.ready("idle", published(worker, graphs.look_up(), "v2", memory_mib=50))
        await end.infer("idle", index(1))
        for _ in range(20):
            await end.infer("used", x(1, 2, 3))
        await end.ready("new", published(worker, graphs.slow(1), "v3", memory_mib=50))
        await end.until(lambda: set(end.worker.instances) == {"used", "new"})
        assert column(await end.infer("new", x(7)), 0) == [7.0]


async def test_unloading_drains_first_and_then_the_instance_is_gone(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        numbers = [await end.submit("i1", x(1)), await end.submit("i1", x(2))]
        await end.send(unload=worker_pb2.UnloadInstance(instance="i1", reason="test"))
        await end.until(lambda: end.state("i1") == "DRAINING: test")
        late = await end.infer("i1", x(3))
        assert late.error_code == "draining"
        assert [column(await end.answer(number), 0) for number in numbers] == [[1.0], [2.0]]
        await end.until(lambda: end.state("i1") is None)


async def test_cores_are_leased_when_free_and_batches_wait_for_the_end_of_a_lease(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        lease = end.stub.LeaseCores(worker_pb2.LeaseCoresRequest(holder="profiler", cores=1, max_s=60.0))
        granted = await lease.read()
        assert set(granted.core_ids) < set(range(1024))
        assert len(granted.core_ids) == 1
        number = await end.submit("i1", x(1))
        second = end.stub.LeaseCores(worker_pb2.LeaseCoresRequest(holder="profiler", cores=1, max_s=0.05))
        lease.cancel()
        assert column(await end.answer(number), 0) == [2.0]
        assert len((await second.read()).core_ids) == 1
        assert await second.read() is grpc.aio.EOF


async def test_no_core_is_leased_while_it_runs_something(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(SLOW), max_batch=1))
        number = await end.submit("i1", x(1))
        await end.until(lambda: number in end.started)
        lease = end.stub.LeaseCores(worker_pb2.LeaseCoresRequest(holder="profiler", cores=1, max_s=0.05))
        await lease.read()
        assert number in end.done


@pytest.mark.parametrize(("cores", "max_s"), [(0, 0.1), (99, 0.1), (1, 0.0)])
async def test_an_impossible_lease_is_refused(start, cores, max_s):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await end.stub.LeaseCores(worker_pb2.LeaseCoresRequest(cores=cores, max_s=max_s)).read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_idle_instances_prove_themselves(start):
    worker = start(worker={"probe_interval_s": 0.3})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        first = end.worker.instances["i1"].last_ok_at
        await end.until(lambda: end.worker.instances["i1"].last_ok_at > first + 0.5)
        assert end.reports[-1].loads[0].items_done == 0


async def test_a_large_tensor_passes(start):
    worker = start()
    graph = graphs.echo(Datatype.FP32, columns=4 * MIB)
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graph, max_batch=2))
        data = np.arange(8 * MIB, dtype=np.float32).reshape(2, -1)
        done = await end.infer("i1", Tensor("x", Datatype.FP32, data.shape, data.tobytes()))
        assert done.queries[0].outputs[0].data == data.tobytes()
