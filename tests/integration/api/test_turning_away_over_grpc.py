"""Calls and streams' queries like one that was refused for want of time are told the same for a moment, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from computing_service import ComputingService
from infaas_controller.api import turned
from serving import Serving, serving

from infaas.domain.query import Code
from infaas.errors import RefusedError
from infaas.oip.v2 import grpc_service_pb2 as pb

PATIENCE_S = 30.0
SERVICE = "/inference.GRPCInferenceService/"
LATENCY = ("x-infaas-slo-latency-ms", "20000")
FAR_S = 600.0

Metadata = Sequence[tuple[str, str]]


@pytest.fixture(autouse=True)
def holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the test runs."""
    monkeypatch.setattr(turned, "HOLDS_S", 60.0)
    monkeypatch.setattr(turned, "HOLDS_SHARE", 1_000.0)


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    """With too much to do."""
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        yield edges


def a_message(value: int, id_: str = "", tenant: str = "") -> bytes:
    message = pb.ModelInferRequest(model_name="simple", id=id_)
    if tenant:
        message.parameters["tenant"].string_param = tenant
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(np.full(16, value, np.int32).tobytes())
    return bytes(message.SerializeToString())


class Caller:
    """One channel, one call after another."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = channel.unary_unary(f"{SERVICE}ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)

    async def ask(
        self, message: bytes, metadata: Metadata = (LATENCY,), timeout_s: float | None = None
    ) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
        """How it ended."""
        made = self._call(message, metadata=metadata, timeout=timeout_s)
        async with asyncio.timeout(PATIENCE_S):
            code = await made.code()
            trailing = dict(await made.trailing_metadata())
            return code, await made.details(), trailing


@pytest.fixture
async def caller(running: Serving) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        yield Caller(channel)


def counted(running: Serving, code: str, priority: str = "standard") -> float:
    return sum(
        sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "infaas_requests_total"
        and (sample.labels["code"], sample.labels["priority"]) == (code, priority)
    )


async def test_who_comes_right_after_a_refusal_is_told_the_same_unread_and_counted(
    running: Serving, caller: Caller
) -> None:
    told = [await caller.ask(a_message(n, id_)) for n, id_ in enumerate(["", "a", "another", "", "no id, really", "a"])]
    assert len(running.service.seen) == 1
    assert {code for code, _, _ in told} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {details for _, details, _ in told} == {"too much to do"}
    ids = [fields.pop("x-request-id") for _, _, fields in told]
    assert [ids[1], ids[2], ids[5]] == ["a", "another", "a"]
    assert len({*ids}) == 5
    times = [(fields.pop("x-infaas-queue-ms"), fields.pop("server-timing")) for _, _, fields in told]
    assert times[0] == ("1.000", "queue;dur=1.000, run;dur=0.000, total;dur=1.000")
    assert times[1:] == [("0.000", "queue;dur=0.000, run;dur=0.000, total;dur=0.000")] * 5, "none of another's"
    assert all(fields == told[0][2] for _, _, fields in told), "the decision is shared"
    assert told[0][2]["x-infaas-decision-id"] == "d-0"
    assert "grpc-retry-pushback-ms" in told[0][2]
    assert counted(running, "deadline-unreachable") == 6


async def test_whoever_wants_something_else_is_read(running: Serving, caller: Caller) -> None:
    await caller.ask(a_message(1))
    service = running.service
    for number, metadata in enumerate(
        [[("x-infaas-slo-latency-ms", "19999")], [], [LATENCY, ("x-infaas-priority", "critical")]]
    ):
        await caller.ask(a_message(1), metadata)
        assert len(service.seen) == number + 2
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await caller.ask(a_message(1), [LATENCY, trace])
    assert len(service.seen) == 5, "somebody follows it"
    _, _, fields = await caller.ask(a_message(1), [LATENCY, ("x-request-id", "mine")])
    assert (fields["x-request-id"], len(service.seen)) == ("mine", 5)
    code, _, _ = await caller.ask(a_message(1), [LATENCY, ("x-request-id", "not good")])
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_tenant_has_no_room_for_is_told_to_none_but_him(running: Serving, caller: Caller) -> None:
    seen = running.service.seen
    running.service.refusal = RefusedError("most is team-a's", code=Code.QUOTA, retry_after_s=1.0)
    for expected, tenant in ((1, "team-a"), (2, "team-b"), (2, "team-a"), (2, "team-b")):
        code, _, fields = await caller.ask(a_message(expected), [LATENCY, ("x-infaas-tenant", tenant)])
        assert (code, fields["x-infaas-code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
        assert len(seen) == expected
    for expected, tenant in ((3, ""), (4, "team-a"), (5, "team-b"), (5, "team-b")):
        await caller.ask(a_message(expected, tenant=tenant))
        assert len(seen) == expected, "the same by parameter"
    assert [query.requirements.tenant for query in seen] == ["team-a", "team-b", None, "team-a", "team-b"]
    assert counted(running, "quota") == 8


async def test_of_calls_with_deadlines_those_with_more_time_are_asked_for(running: Serving, caller: Caller) -> None:
    seen = running.service.seen
    await caller.ask(a_message(1), (), FAR_S)
    await caller.ask(a_message(2), (), FAR_S / 2)
    assert len(seen) == 1, "it has less time"
    await caller.ask(a_message(3), (), 2 * FAR_S)
    assert len(seen) == 2
    await caller.ask(a_message(4), (), FAR_S)
    assert len(seen) == 2
    await caller.ask(a_message(5), (LATENCY,), 2 * FAR_S)
    assert len(seen) == 3, "it states another latency"
    await caller.ask(a_message(6), (LATENCY,), 3 * FAR_S)
    assert len(seen) == 3, "which counts for less than its deadline"


async def test_what_is_wrong_with_a_query_itself_is_said_to_each_after_reading_it(
    running: Serving, caller: Caller
) -> None:
    running.service.refusal = RefusedError("no variant can", code=Code.SLO_UNSATISFIABLE)
    for number in range(4):
        await caller.ask(a_message(number))
    assert len(running.service.seen) == 4


async def test_a_refusal_that_holds_no_more_is_not_told_again(
    running: Serving, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 0.0)
    for number in range(3):
        assert (await caller.ask(a_message(number)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(running.service.seen) == 3
    running.service.refusal = None
    assert (await caller.ask(a_message(4)))[0] is grpc.StatusCode.OK


async def test_how_many_were_told_the_same_is_kept_with_the_decision(running: Serving, caller: Caller) -> None:
    for number in range(5):
        await caller.ask(a_message(number))
    _, _, fields = await caller.ask(a_message(0), (), FAR_S)
    for seconds in (FAR_S / 2, FAR_S / 3, 2 * FAR_S):
        await caller.ask(a_message(0), (), seconds)
    assert running.service.alike == {fields["x-infaas-decision-id"]: 2}, "others were refused since"
    assert len(running.service.seen) == 3


async def test_queries_of_a_stream_are_turned_away_too(running: Serving) -> None:
    async def sent() -> AsyncIterator[bytes]:
        for number in range(5):
            yield a_message(number, str(number))
            while len(heard) <= number:
                await news.wait()
                news.clear()

    heard: list[Any] = []
    news = asyncio.Event()
    async with grpc.aio.insecure_channel(running.grpc) as channel, asyncio.timeout(PATIENCE_S):
        stream = channel.stream_stream(
            f"{SERVICE}ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
        )(sent(), metadata=[LATENCY])
        async for answer in stream:
            heard.append(answer)
            news.set()
    assert [answer.infer_response.id for answer in heard] == [str(n) for n in range(5)]
    assert {answer.error_message for answer in heard} == {"too much to do"}
    assert {answer.infer_response.parameters["code"].string_param for answer in heard} == {"deadline-unreachable"}
    assert {answer.infer_response.parameters["decision_id"].string_param for answer in heard} == {"d-0"}
    assert len(running.service.seen) == 1
    assert counted(running, "deadline-unreachable") == 5


async def test_a_stream_and_calls_share_what_they_were_told(running: Serving, caller: Caller) -> None:
    await caller.ask(a_message(1))
    async with grpc.aio.insecure_channel(running.grpc) as channel, asyncio.timeout(PATIENCE_S):
        stream = channel.stream_stream(
            f"{SERVICE}ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
        )(iter([a_message(2), a_message(3, "x")]), metadata=[LATENCY])
        heard = [answer async for answer in stream]
    assert sorted(answer.infer_response.id for answer in heard) == ["", "x"]
    assert len(running.service.seen) == 1
