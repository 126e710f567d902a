"""The life of a real worker process: how it begins, who may reach it, what it does without a store, how it ends."""

from __future__ import annotations

import asyncio
import signal

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from worker_values import SLOW, column, in_store, published, x

from infaas.domain.lifecycle import WorkerState
from infaas.rpc.v1 import worker_pb2
from infaas.testing import graphs
from infaas.testing.worker_driver import WAIT_S, BatchAnswer, ControllerEnd, WorkerProcess
from infaas.up.restart import SETTINGS_EXIT


async def test_a_drained_worker_refuses_batches_and_loads_until_it_is_resumed(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        await end.stub.Drain(worker_pb2.DrainRequest(reason="test"))
        await end.until(lambda: end.worker.state is WorkerState.DRAINING)
        assert (await end.infer("i1", x(1))).error_code == "draining"
        await end.stub.Resume(worker_pb2.ResumeRequest())
        await end.until(lambda: end.worker.state is WorkerState.READY)
        assert column(await end.infer("i1", x(1)), 0) == [2.0]


async def test_on_sigterm_it_says_not_ready_first_finishes_and_leaves_no_trace(start, own_redis_server):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(SLOW), max_batch=2))
        await in_store(own_redis_server.url, lambda record: record is not None and "i1" in record.instances)
        running = await end.submit("i1", x(1))
        staged = await end.submit("i1", x(2))
        await end.infer("nobody", x(3))  # answered at once, and in order: what was sent before it is there
        await end.until(lambda: running in end.started)
        worker.signal(signal.SIGTERM)
        await end.until(lambda: end.worker.state is WorkerState.DRAINING)
        assert staged not in end.done
        assert [column(await end.answer(n), 0) for n in (running, staged)] == [[1.0], [2.0]]
        await end.over()
    assert await worker.ended() == 0
    await in_store(own_redis_server.url, lambda record: record is None)
    assert list((worker.state_dir / "run").iterdir()) == []


@pytest.mark.long
async def test_a_drain_that_takes_too_long_is_cut(start):
    worker = start(worker={"cores": 1, "drain_timeout_s": 0.3})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.slow(10 * SLOW), max_batch=1))
        running = await end.submit("i1", x(1))
        await end.until(lambda: running in end.started)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        await end.over()
    assert "drain ran out of time" in worker.log


async def test_with_a_token_nobody_else_gets_in(start):
    worker = start(auth={"token": "secret-of-the-test"})
    async with ControllerEnd(worker.address, token="secret-of-the-test") as good:
        await good.until(lambda: bool(good.reports))
        for token in (None, "wrong"):
            async with ControllerEnd(worker.address, token=token) as bad:
                await bad.over()
                assert bad.refusal is not None
                assert (bad.refusal.error_code, bad.reports) == ("unauthenticated", [])
                assert "set auth.cluster_token" in bad.refusal.reason
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await good.stub.Drain(worker_pb2.DrainRequest())


async def test_the_clusters_token_lets_parts_in_and_the_callers_does_not(start):
    worker = start(auth={"token": "callers-5ecret", "cluster_token": "cluster-5ecret"})
    async with ControllerEnd(worker.address, token="cluster-5ecret") as good:
        await good.until(lambda: bool(good.reports))
        await good.stub.Resume(worker_pb2.ResumeRequest(), metadata=good.metadata)
        for _ in range(5):
            async with ControllerEnd(worker.address, token="callers-5ecret") as bad:
                await bad.over()
                assert bad.refusal is not None
                assert bad.refusal.reason.startswith("a wrong token came; set auth.cluster_token")
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await good.stub.Drain(worker_pb2.DrainRequest(), metadata=bad.metadata)
    assert worker.log.count("a controller was refused") == 1
    assert "5ecret" not in worker.log


async def test_a_token_is_changed_while_the_worker_runs(start, tmp_path):
    file = tmp_path / "token"
    file.write_text("old")
    worker = start(auth={"cluster_token_file": str(file)})
    async with ControllerEnd(worker.address, token="old") as first:
        await first.until(lambda: bool(first.reports))
        file.write_text("new\nold")
        await _is_let_in(worker, "new")
        await _is_let_in(worker, "old")
        file.write_text("new")
        await _is_let_in(worker, "old", expected=False)
        await _is_let_in(worker, "new")
        assert not first.is_over
    assert worker.log.count("tokens changed") == 2


async def test_it_registers_in_the_store_and_comes_back_after_the_store_was_lost(start, own_redis_server):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        record = await in_store(own_redis_server.url, lambda r: r is not None and len(r.instances) == 1)
        assert record is not None
        assert (record.address, record.pid, record.pool) == (worker.address, worker.pid, "local")
        own_redis_server.kill()
        own_redis_server.forget()
        assert column(await end.infer("i1", x(1)), 0) == [2.0]
        own_redis_server.start()
        again = await in_store(own_redis_server.url, lambda r: r is not None and len(r.instances) == 1)
        assert again is not None
        assert again.pid == worker.pid


async def test_a_worker_starts_and_serves_without_any_store(start, own_redis_server):
    own_redis_server.kill()
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        assert column(await end.infer("i1", x(1)), 0) == [2.0]
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_a_crashed_workers_record_expires_and_its_stale_socket_is_no_obstacle(start, own_redis_server):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        await in_store(own_redis_server.url, lambda record: record is not None)
        worker.crash()
        await end.over()
    await in_store(own_redis_server.url, lambda record: record is None)
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))


async def test_a_second_worker_on_the_same_socket_is_refused(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        second = start(worker={"id": "w2", "listen": worker.address})
        assert await second.ended() != 0
        assert "another process listens there" in second.log
        assert column(await _served(end, worker), 0) == [2.0]


async def test_it_listens_on_a_port_and_answers_health_checks(start, unused_port):
    worker = start(worker={"listen": f"127.0.0.1:{unused_port}"})
    async with ControllerEnd(worker.address) as end:
        assert column(await _served(end, worker), 0) == [2.0]
        async with grpc.aio.insecure_channel(worker.address) as channel:
            check = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert check.status == health_pb2.HealthCheckResponse.SERVING


async def test_beyond_loopback_it_asks_for_a_token_or_does_not_listen(start, unused_port):
    refused = start(worker={"listen": f"0.0.0.0:{unused_port}"})
    assert await refused.ended() == SETTINGS_EXIT
    assert "worker.listen '0.0.0.0' is not a loopback address" in refused.log
    worker = start(
        worker={"listen": f"0.0.0.0:{unused_port}", "advertise": f"127.0.0.1:{unused_port}"}, auth={"token": "t0ken"}
    )
    async with ControllerEnd(f"127.0.0.1:{unused_port}", token="t0ken") as end:
        assert column(await _served(end, worker), 0) == [2.0]


async def test_an_idle_worker_stays_small(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports))
        names = {path.path.rsplit("/", 1)[-1] for path in psutil.Process(worker.pid).memory_maps()}
        assert not [name for name in names if "onnxruntime" in name or "sqlalchemy" in name]


async def _is_let_in(worker: WorkerProcess, token: str, *, expected: bool = True) -> None:
    """Soon: the file is looked at once a second."""
    async with asyncio.timeout(WAIT_S):
        while True:
            async with ControllerEnd(worker.address, token=token) as end:
                await end.until(lambda: bool(end.reports) or end.is_over)
                if bool(end.reports) is expected:
                    return


async def _served(end: ControllerEnd, worker: WorkerProcess) -> BatchAnswer:
    await end.ready("i1", published(worker, graphs.double()))
    return await end.infer("i1", x(1))
