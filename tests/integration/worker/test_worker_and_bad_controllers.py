"""A worker whose controller sends what cannot be read: that one loses its connection, and nobody else anything."""

from __future__ import annotations

import pytest
from worker_values import SLOW, column, published, x

from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing import graphs
from infaas.testing.worker_driver import ControllerEnd


def a_batch(size: int) -> bytes:
    query = pb.QueryInputs(id=1, items=1, inputs=[pb.TensorValue(shape=[1, 4], size=size)])
    batch = pb.Batch(id=77, instance="i1", input_names=["x"], input_datatypes=["FP32"], queries=[query])
    return pb.ControllerMessage(batch=batch).SerializeToString()


@pytest.mark.parametrize(
    ("head", "payload", "reason"),
    [
        (b"\xff\xff\xff", b"", "cannot be read"),
        (a_batch(16), bytes(15), "1 tensors of 16 bytes in all come with 15 bytes"),
        (a_batch(16), bytes(17), "1 tensors of 16 bytes in all come with 17 bytes"),
        (a_batch(2**40), bytes(16), "come with 16 bytes"),
    ],
)
async def test_a_controller_that_breaks_the_protocol_loses_its_connection_and_what_it_staged_alone(
    start, head, payload, reason
):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "good") as good:
        await good.ready("i1", published(worker, graphs.slow(SLOW), max_batch=1))
        running = await good.submit("i1", x(1))
        await good.until(lambda: running in good.started)
        async with ControllerEnd(worker.address, "bad") as bad:
            await bad.until(lambda: bool(bad.reports))
            await bad.submit("i1", x(2))
            bad.endpoint.send(head, [payload])
            await bad.over()
            assert bad.done == {}
        assert column(await good.answer(running), 0) == [1.0]
        assert column(await good.infer("i1", x(3)), 0) == [3.0]
    assert reason in worker.log


async def test_tensors_of_megabytes_go_there_and_back_unchanged(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=200_000))
        values = [float(value) for value in range(200_000)]
        assert column(await end.infer("i1", x(*values)), 0) == [2 * value for value in values]
