"""Tenants and priorities as callers state them, over REST and gRPC, at the edges, queues and workers that ship."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.settings import Settings
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeQuery, FakeWorker, Output

Opener = Callable[..., Any]
WAITING = 6


def _serving() -> Any:
    name = "serving"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "api" / "serving.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name].serving


class House:
    """A controller with a worker that runs nothing before its gate is opened."""

    def __init__(self, cluster: Any, worker: FakeWorker, rest: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self.cluster = cluster
        self.worker = worker
        self.ran: list[int] = []
        """What every query's input was full of, in the order they ran."""
        self._rest = rest
        self._channel = channel
        worker.compute = self._compute

    def _compute(self, instance: object, names: list[str], query: FakeQuery) -> list[Output]:
        data = query.inputs[0].data[:4]
        self.ran.append(int(np.frombuffer(data, np.float32)[0]))
        return [("digit", "FP32", (1, 1), data)]

    @property
    def waiting(self) -> int:
        return int(self.cluster.dispatcher.engine.queues.waiting)

    async def over_rest(self, value: int, headers: dict[str, str], **parameters: Any) -> httpx.Response:
        tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [value] * 64}
        body = {"inputs": [tensor], "parameters": parameters}
        return await self._rest.post("/v2/models/digits/infer", json=body, headers=headers)

    async def over_grpc(self, value: int, **metadata: str) -> tuple[Any, dict[str, str]]:
        """The answer, or the error; and the trailing metadata."""
        request = pb.ModelInferRequest(model_name="digits")
        request.inputs.add(name="image", datatype="FP32", shape=[1, 64])
        request.raw_input_contents.append(np.full(64, value, np.float32).tobytes())
        call = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )(request, metadata=tuple((f"x-infaas-{key}", text) for key, text in metadata.items()))
        try:
            return await call, dict(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            return error, dict(error.trailing_metadata() or ())

    async def fill(self, headers: dict[str, str], first: int, count: int) -> list[asyncio.Task[httpx.Response]]:
        """Over REST, one after the other, until each waits."""
        tasks = []
        for value in range(first, first + count):
            expected = self.waiting + 1
            tasks.append(asyncio.create_task(self.over_rest(value, headers), name=f"rest {value}"))
            await self.cluster.until(lambda expected=expected: self.waiting == expected)
        return tasks


@pytest.fixture
def house(cluster: Opener) -> Callable[..., contextlib.AbstractAsyncContextManager[House]]:
    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[House]:
        worker = FakeWorker("w1", [an_instance("i1")])
        used = Settings.model_validate({"controller": {"max_queue_size": WAITING, **settings}})
        async with (
            cluster([a_variant("v1", max_batch=1)], [worker], settings=used) as c,
            _serving()(c.dispatcher, used) as edges,
            httpx.AsyncClient(base_url=f"http://{edges.http}", timeout=60.0) as rest,
            grpc.aio.insecure_channel(edges.grpc) as channel,
        ):
            worker.gate.clear()
            made = House(c, worker, rest, channel)
            sent = []
            for number in (1, 2):  # one runs, one is staged
                sent.append(asyncio.create_task(made.over_rest(0, {}), name="sent"))
                await c.until(lambda number=number: c.dispatcher.in_flight() == number and made.waiting == 0)
            yield made
            worker.gate.set()
            assert [each.status_code for each in await asyncio.gather(*sent)] == [200, 200]

    return opened


def value_of(answer: httpx.Response) -> float:
    return float(answer.json()["outputs"][0]["data"][0])


async def test_a_full_queue_is_shared_and_its_flood_is_told_so_over_either_protocol(house: Any) -> None:
    async with house() as h:
        flood = await h.fill({"x-infaas-tenant": "team-a"}, 10, WAITING)
        refused = await h.over_rest(99, {"x-infaas-tenant": "team-a"})
        assert (refused.status_code, refused.headers["x-infaas-dropped-reason"]) == (429, "saturated"), "he is alone"
        other = asyncio.create_task(h.over_grpc(20, tenant="team-b"), name="grpc")
        pushed_out = await flood[-1]
        assert pushed_out.status_code == 429
        assert pushed_out.headers["x-infaas-dropped-reason"] == "quota"
        assert pushed_out.headers["retry-after"] == "1"
        assert pushed_out.json()["code"] == "quota"
        assert "pushed out for tenant 'team-b'" in pushed_out.json()["error"]
        by_parameter = asyncio.create_task(h.over_rest(21, {}, tenant="team-b"), name="rest")
        assert (await flood[-2]).status_code == 429
        error, trailing = await h.over_grpc(98, tenant="team-a")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert trailing["x-infaas-code"] == trailing["x-infaas-dropped-reason"] == "quota"
        decision = h.cluster.dispatcher.decision(trailing["x-infaas-decision-id"])
        assert (decision.outcome, decision.requirements["tenant"]) == ("quota", "team-a")
        assert "4 of them for tenant 'team-a'" in decision.reason
        assert h.cluster.dispatcher.queue_tenants() == {"digits": 2}
        assert h.cluster.dispatcher.queue_bytes == WAITING * 256
        h.worker.gate.set()
        assert [value_of(await each) for each in flood[:-2]] == [10, 11, 12, 13]
        assert value_of(await by_parameter) == 21
        answer, _ = await other
        assert np.frombuffer(answer.raw_output_contents[0], np.float32)[0] == 20
        assert h.cluster.dispatcher.queue_bytes == 0


async def test_tenants_take_turns_at_an_instance(house: Any) -> None:
    async with house() as h:
        waiting = await h.fill({"x-infaas-tenant": "team-a"}, 10, 4)
        waiting += await h.fill({"x-infaas-tenant": "team-b"}, 20, 2)
        h.worker.gate.set()
        assert [value_of(answer) for answer in await asyncio.gather(*waiting)] == [10, 11, 12, 13, 20, 21]
        assert set(h.ran[2:6]) == {10, 11, 20, 21}, "by turns"
        assert h.ran[6:] == [12, 13]


async def test_a_priority_is_honoured_whoever_states_it(house: Any) -> None:
    async with house() as h:
        waiting = await h.fill({"x-infaas-tenant": "team-a", "x-infaas-priority": "sheddable"}, 10, WAITING)
        critical = asyncio.create_task(h.over_grpc(30, priority="critical"), name="grpc")
        evicted = await waiting[-1]
        assert (evicted.status_code, evicted.headers["x-infaas-dropped-reason"]) == (429, "evicted-priority")
        h.worker.gate.set()
        assert (await critical)[0].raw_output_contents
        assert [(await each).status_code for each in waiting[:-1]] == [200] * (WAITING - 1)
        assert h.ran[2] == 30


async def test_what_may_wait_in_all_is_bounded_in_number_and_in_bytes(house: Any) -> None:
    for bound in ({"max_queue_queries": 2}, {"max_queue_bytes": 1_024}):
        async with house(max_queue_size=100, **bound) as h:
            most = 2 if "max_queue_queries" in bound else 4
            waiting = await h.fill({}, 10, most)
            refused = await h.over_rest(99, {})
            assert (refused.status_code, refused.json()["code"]) == (429, "saturated")
            assert "that may wait in all" in refused.json()["error"]
            h.worker.gate.set()
            assert {(await each).status_code for each in waiting} == {200}
