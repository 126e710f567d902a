"""gRPC as a caller meets it: trailing metadata, statuses, streams, deadlines, cancellation, health."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from computing_service import ComputingService
from grpc_health.v1 import health_pb2
from infaas_controller.api.grpc import GrpcServer
from pydantic import SecretStr
from serving import Serving, serving

from infaas.domain.query import Code
from infaas.errors import RefusedError, SettingsError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.settings import AuthSettings, ControllerSettings, Settings

PREFIX = "/inference.GRPCInferenceService/"


def a_request(model: str = "simple", items: int = 1, **fields: Any) -> Any:
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[items, 16])
        request.raw_input_contents.append(np.arange(16 * items, dtype=np.int32).tobytes())
    return request


class Caller:
    def __init__(self, target: str) -> None:
        self.channel = grpc.aio.insecure_channel(target)

    def call(self, name: str, request: Any, answer: Any, **options: Any) -> Any:
        method = self.channel.unary_unary(
            PREFIX + name, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        return method(request, **options)

    def infer(self, request: Any, **options: Any) -> Any:
        return self.call("ModelInfer", request, pb.ModelInferResponse, **options)

    def stream(self, requests: Any, **options: Any) -> Any:
        return self.channel.stream_stream(
            PREFIX + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(requests, **options)


@pytest.fixture
async def caller(edges: Serving) -> AsyncIterator[Caller]:
    made = Caller(edges.grpc)
    yield made
    await made.channel.close()


async def failure(call: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or "", dict(caught.value.trailing_metadata() or ())


async def test_an_answer_says_who_served_it_in_trailing_metadata(caller: Caller) -> None:
    metadata = (("x-infaas-slo-latency-ms", "500"), ("x-request-id", "abc"), ("x-infaas-explain", "true"))
    call = caller.infer(a_request(id="7"), metadata=metadata)
    answer = await call
    assert (answer.model_name, answer.model_version, answer.id) == ("simple", "1", "7")
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.int32), np.arange(16) * 2)
    assert answer.parameters["variant"].string_param == "simple.v1.ort-fp32-t1"
    assert '"id":"d-0"' in answer.parameters["decision"].string_param
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "abc"
    assert trailing["x-infaas-variant"] == "simple.v1.ort-fp32-t1"
    assert trailing["x-infaas-decision-id"] == "d-0"
    assert trailing["x-infaas-slo-met"] == "true"
    assert trailing["server-timing"].startswith("queue;dur=0.5")


async def test_typed_contents_are_taken(caller: Caller) -> None:
    request = pb.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents.extend(range(16))
    answer = await caller.infer(request)
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[1], np.int32), np.zeros(16))


@pytest.mark.parametrize(
    ("request_", "metadata", "status", "code", "words"),
    [
        (a_request("nothing"), (), "NOT_FOUND", "not-found", "unknown model 'nothing'"),
        (a_request(model_version="7"), (), "NOT_FOUND", "not-found", "version 7"),
        (a_request(model_version="x"), (), "INVALID_ARGUMENT", "invalid-argument", "version 'x'"),
        (pb.ModelInferRequest(model_name="simple"), (), "INVALID_ARGUMENT", "invalid-argument", "'INPUT0' is missing"),
        (a_request(), (("x-infaas-max-cost", "cheap"),), "INVALID_ARGUMENT", "invalid-argument", "'x-infaas-max-cost'"),
        (
            a_request(),
            (("x-infaas-slo", "1"),),
            "INVALID_ARGUMENT",
            "invalid-argument",
            "unknown header 'x-infaas-slo'",
        ),
        (a_request(), (("x-infaas-max-cost", "0"),), "FAILED_PRECONDITION", "slo-unsatisfiable", "the nearest is"),
        (a_request(), (("x-request-id", "a b"),), "INVALID_ARGUMENT", "invalid-argument", "'x-request-id'"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_words(
    caller: Caller, request_: Any, metadata: Any, status: str, code: str, words: str
) -> None:
    got, details, trailing = await failure(caller.infer(request_, metadata=metadata))
    assert (got, trailing["x-infaas-code"]) == (status, code)
    assert words in details
    assert trailing["x-request-id"]


async def test_a_dropped_query_says_why_and_when_to_come_back(caller: Caller, edges: Serving) -> None:
    edges.service.refusal = RefusedError("queue full", code=Code.SATURATED, retry_after_s=1.5)
    status, details, trailing = await failure(caller.infer(a_request()))
    assert (status, details) == ("RESOURCE_EXHAUSTED", "queue full")
    assert trailing["x-infaas-dropped-reason"] == "saturated"
    assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("2", "1500")
    assert trailing["x-infaas-decision-id"] == "d-0"


async def test_an_unexpected_failure_leaks_nothing(
    caller: Caller, edges: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(query: Any) -> Any:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(edges.service, "_answer", fail)
    status, details, trailing = await failure(caller.infer(a_request()))
    assert (status, trailing["x-infaas-code"]) == ("INTERNAL", "internal")
    assert "hunter2" not in details


async def test_a_deadline_is_the_objective_and_its_passing_drops_the_query(caller: Caller, edges: Serving) -> None:
    edges.service.hold = asyncio.Event()
    status, _, _ = await failure(caller.infer(a_request(), timeout=0.5))
    assert status == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(edges.service.dropped.wait(), 10)
    (query,) = edges.service.seen
    assert query.requirements.latency_s is not None
    assert 0 < query.requirements.latency_s <= 0.502, "gRPC keeps deadlines in whole milliseconds, rounded up"


async def test_a_cancelled_call_drops_the_query(caller: Caller, edges: Serving) -> None:
    edges.service.hold = asyncio.Event()
    call = caller.infer(a_request())
    task = asyncio.ensure_future(call.wait_for_connection())
    await asyncio.wait_for(edges.service.arrived.wait(), 10)
    call.cancel()
    await asyncio.wait_for(edges.service.dropped.wait(), 10)
    await asyncio.gather(task, return_exceptions=True)
    assert edges.service.in_flight() == 0


async def test_a_stream_keeps_several_in_flight_and_survives_errors(caller: Caller, edges: Serving) -> None:
    edges.service.hold = asyncio.Event()
    bad = a_request(id="bad")
    del bad.inputs[1], bad.raw_input_contents[1]
    call = caller.stream([a_request(id=str(n)) for n in range(5)] + [bad] + [a_request(id="last")])

    async def release() -> None:
        while len(edges.service.seen) < 6:
            edges.service.arrived.clear()
            await edges.service.arrived.wait()
        edges.service.hold.set()

    await asyncio.wait_for(release(), 10)
    answers = {answer.infer_response.id: answer async for answer in call}
    assert next(iter(answers)) == "bad"  # refused at once, while the others were held
    assert sorted(answers) == ["0", "1", "2", "3", "4", "bad", "last"]
    assert [id_ for id_, answer in answers.items() if answer.error_message] == ["bad"]
    assert "'INPUT1' is missing" in answers["bad"].error_message
    assert answers["bad"].infer_response.parameters["code"].string_param == "invalid-argument"
    assert answers["0"].infer_response.parameters["triton_final_response"].bool_param


async def test_cancelling_a_stream_drops_all_its_queries(caller: Caller, edges: Serving) -> None:
    edges.service.hold = asyncio.Event()
    call = caller.stream([a_request(id=str(n)) for n in range(3)])
    while len(edges.service.seen) < 3:
        edges.service.arrived.clear()
        await asyncio.wait_for(edges.service.arrived.wait(), 10)
    call.cancel()
    while len(edges.service.cancelled) < 3:
        edges.service.dropped.clear()
        await asyncio.wait_for(edges.service.dropped.wait(), 10)
    assert edges.service.in_flight() == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("SystemSharedMemoryStatus", "shared memory"), ("TraceSetting", "trace"), ("LogSettings", "log")],
)
async def test_what_is_not_served_says_so(caller: Caller, name: str, words: str) -> None:
    status, details, trailing = await failure(caller.call(name, pb.ServerLiveRequest(), pb.ServerLiveResponse))
    assert (status, trailing["x-infaas-code"]) == ("UNIMPLEMENTED", "unsupported")
    assert words in details


async def test_a_message_over_the_limit_is_refused() -> None:
    settings = Settings(controller=ControllerSettings(max_body_bytes=1024))
    async with serving(ComputingService(), settings) as running:
        caller = Caller(running.grpc)
        status, _, _ = await failure(caller.infer(a_request(items=40_000)))
        assert status == "RESOURCE_EXHAUSTED"
        await caller.channel.close()


async def test_with_a_token_only_health_is_open() -> None:
    settings = Settings(auth=AuthSettings(token=SecretStr("s3cret")))
    async with serving(ComputingService(), settings) as running:
        caller = Caller(running.grpc)
        assert (await caller.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
        assert (await caller.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            calls = [
                caller.infer(a_request(), metadata=metadata),
                caller.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse, metadata=metadata),
            ]
            for call in calls:
                status, _, trailing = await failure(call)
                assert (status, trailing["x-infaas-code"]) == ("UNAUTHENTICATED", "unauthenticated")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                _ = [answer async for answer in caller.stream([a_request()], metadata=metadata)]
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await caller.infer(a_request(), metadata=(("authorization", "Bearer s3cret"),))
        assert answer.model_name == "simple"
        await caller.channel.close()


def health(caller: Caller, kind: str) -> Any:
    make = caller.channel.unary_stream if kind == "Watch" else caller.channel.unary_unary
    return make(
        f"/grpc.health.v1.Health/{kind}",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


async def test_health_is_checked_and_watched_through_a_drain(caller: Caller, edges: Serving) -> None:
    serving_, not_serving, unknown = 1, 2, 3
    check = health(caller, "Check")
    for name in ("", "inference.GRPCInferenceService"):
        assert (await check(health_pb2.HealthCheckRequest(service=name))).status == serving_
    status, _, _ = await failure(check(health_pb2.HealthCheckRequest(service="other")))
    assert status == "NOT_FOUND"
    watching = health(caller, "Watch")(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == serving_
    edges.service.ready = False
    assert (await asyncio.wait_for(watching.read(), 10)).status == not_serving
    edges.service.ready = True
    assert (await asyncio.wait_for(watching.read(), 10)).status == serving_
    stray = health(caller, "Watch")(health_pb2.HealthCheckRequest(service="other"))
    assert (await stray.read()).status == unknown
    edges.grpc_server.drain()
    assert (await asyncio.wait_for(watching.read(), 10)).status == not_serving
    assert await asyncio.wait_for(watching.read(), 10) is grpc.aio.EOF
    assert (await check(health_pb2.HealthCheckRequest())).status == not_serving
    assert await asyncio.wait_for(stray.read(), 10) is grpc.aio.EOF


async def test_a_taken_port_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = GrpcServer(ComputingService(), Settings())
        with pytest.raises(SettingsError, match=r"controller\.grpc_port"):
            await server.start("127.0.0.1", taken.getsockname()[1])
