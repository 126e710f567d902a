"""A worker whose controller sends what cannot be read: that one loses its connection, and nobody else anything."""

from __future__ import annotations

from typing import Any

import pytest
from worker_values import SLOW, column, published, x

from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing import graphs
from infaas.testing.worker_driver import ControllerEnd


def a_batch(**given: Any) -> bytes:
    """Of one query of one item, which its tensor does not fit."""
    inputs = [pb.Column(name="x", datatype="FP32", tail=[4])]
    batch = pb.Batch(**{"id": 77, "instance": "i1", "inputs": inputs, "queries": [1], "items": [1], **given})
    return pb.ControllerMessage(batch=batch).SerializeToString()


async def test_a_controller_that_breaks_the_protocol_loses_its_connection_and_what_it_staged_alone(start):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address, "good") as good:
        await good.ready("i1", published(worker, graphs.slow(SLOW), max_batch=1))
        running = await good.submit("i1", x(1))
        await good.until(lambda: running in good.started)
        async with ControllerEnd(worker.address, "bad") as bad:
            await bad.until(lambda: bool(bad.reports))
            await bad.submit("i1", x(2))
            bad.endpoint.send(b"\xff\xff\xff")
            await bad.over()
            assert bad.done == {}
        assert column(await good.answer(running), 0) == [1.0]
        assert column(await good.infer("i1", x(3)), 0) == [3.0]
    assert "a message cannot be read" in worker.log


@pytest.mark.parametrize(
    ("given", "payload", "reason"),
    [
        ({}, bytes(15), "1 tensors of 16 bytes in all come with 15 bytes"),
        ({}, bytes(17), "1 tensors of 16 bytes in all come with 17 bytes"),
        ({"items": [2**32 - 1]}, bytes(16), "come with 16 bytes"),
        ({"items": [1, 1]}, bytes(16), "1 queries come with 2 numbers of items"),
        ({"inputs": [pb.Column(name="x", datatype="FP8", tail=[4])]}, bytes(16), "'x' has datatype 'FP8'"),
        ({"queries": [], "items": []}, b"", "the batch holds no queries"),
    ],
)
async def test_a_batch_that_does_not_fit_its_tensors_is_refused_and_nothing_else_is(start, given, payload, reason):
    worker = start(worker={"cores": 1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=2))
        end.endpoint.send(a_batch(**given), [payload])
        refused = await end.answer(77)
        assert (refused.error_code, refused.was_running) == ("invalid-argument", False)
        assert reason in refused.error
        assert column(await end.infer("i1", x(3)), 0) == [6.0]
        assert not end.is_over


async def test_tensors_of_megabytes_go_there_and_back_unchanged(start):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double(), max_batch=200_000))
        values = [float(value) for value in range(200_000)]
        assert column(await end.infer("i1", x(*values)), 0) == [2 * value for value in values]
