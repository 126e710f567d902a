"""Traces from real edges to a real collector in a process of its own, and W3C context without any."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import grpc
import httpx
import numpy as np
import pytest
from collector import Collector, Span
from computing_service import ComputingService
from serving import serving

from infaas.clock import SystemClock
from infaas.domain.query import Code
from infaas.errors import RefusedError, SettingsError
from infaas.observe.trace import Tracing, is_sampled, open_tracing
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.settings import ObserveSettings, Settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
BODY = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}


def opened(collector: Collector, ratio: float = 1.0) -> Tracing:
    observe = ObserveSettings(otlp_endpoint=collector.url, trace_ratio=ratio)
    tracing = open_tracing(Settings(observe=observe), "controller", SystemClock())
    assert tracing is not None
    return tracing


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {span["name"]: span for span in spans}


async def test_a_query_over_rest_becomes_a_request_span_of_its_callers_trace(collector: Collector) -> None:
    tracing, service = opened(collector), ComputingService()
    async with serving(service, tracing=tracing) as running:
        async with httpx.AsyncClient(base_url=f"http://{running.http}") as rest:
            headers = {"traceparent": SAMPLED, "tracestate": "them=1", "x-request-id": "r-1"}
            answer = await rest.post("/v2/models/simple/infer", json=BODY, headers=headers)
        assert answer.status_code == 200
        assert (answer.headers["traceparent"], answer.headers["tracestate"]) == (SAMPLED, "them=1")
        await asyncio.to_thread(tracing.close, 10.0)
    (span,) = collector.spans()
    assert (span["name"], span["service"], span["trace"], span["parent"]) == (
        "infaas.request",
        "infaas-controller",
        TRACE,
        PARENT,
    )
    assert span["state"] == "them=1"
    assert span["began_ns"] < span["ended_ns"]
    said = span["attributes"]
    assert said["infaas.protocol"] == "rest"
    assert (said["infaas.handle"], said["infaas.request_id"]) == ("simple", "r-1")
    assert said["infaas.variant"] == "simple.v1.ort-fp32-t1"
    assert said["infaas.decision_id"] == answer.headers["x-infaas-decision-id"]
    (query,) = service.seen
    assert query.trace is not None
    assert query.trace.traceparent == f"00-{TRACE}-{span['id']}-01"
    assert query.trace.tracestate == "them=1"


async def test_a_refused_query_over_grpc_is_an_error_in_its_trace(collector: Collector) -> None:
    tracing, service = opened(collector), ComputingService()
    service.refusal = RefusedError("queue full", code=Code.SATURATED)
    request = pb.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(np.arange(16, dtype=np.int32).tobytes())
    async with serving(service, tracing=tracing) as running:
        async with grpc.aio.insecure_channel(running.grpc) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(request, metadata=(("traceparent", SAMPLED),))
        assert dict(caught.value.trailing_metadata() or ())["traceparent"] == SAMPLED
        await asyncio.to_thread(tracing.close, 10.0)
    (span,) = collector.spans()
    assert (span["trace"], span["parent"], span["status"], span["message"]) == (TRACE, PARENT, 2, "saturated")
    assert (span["attributes"]["infaas.protocol"], span["attributes"]["infaas.code"]) == ("grpc", "saturated")


async def test_a_request_that_never_became_a_query_has_a_span_too(collector: Collector) -> None:
    tracing = opened(collector)
    async with (
        serving(ComputingService(), tracing=tracing) as running,
        httpx.AsyncClient(base_url=f"http://{running.http}") as rest,
    ):
        answer = await rest.post("/v2/models/nothing/infer", json=BODY, headers={"traceparent": SAMPLED})
        assert answer.status_code == 404
        await asyncio.to_thread(tracing.close, 10.0)
    (span,) = collector.spans()
    assert (span["trace"], span["parent"], span["message"]) == (TRACE, PARENT, "not-found")


async def test_the_caller_and_then_the_ratio_decide_what_is_recorded(collector: Collector) -> None:
    tracing = opened(collector, ratio=0.0)
    async with (
        serving(ComputingService(), tracing=tracing) as running,
        httpx.AsyncClient(base_url=f"http://{running.http}") as rest,
    ):
        for headers in ({"traceparent": UNSAMPLED}, {}, {"traceparent": SAMPLED}):
            assert (await rest.post("/v2/models/simple/infer", json=BODY, headers=headers)).status_code == 200
        await asyncio.to_thread(tracing.close, 10.0)
        unsampled, fresh, sampled = running.service.seen
    assert [span["parent"] for span in collector.spans()] == [PARENT]
    assert [is_sampled(query.trace) for query in (unsampled, fresh, sampled)] == [False, False, True]


async def test_without_a_collector_the_callers_own_context_travels_on() -> None:
    async with (
        serving(ComputingService()) as running,
        httpx.AsyncClient(base_url=f"http://{running.http}") as rest,
    ):
        headers = {"traceparent": SAMPLED, "tracestate": "them=1"}
        await rest.post("/v2/models/simple/infer", json=BODY, headers=headers)
        await rest.post("/v2/models/simple/infer", json=BODY)
        traced, plain = running.service.seen
    assert (traced.trace.traceparent, traced.trace.tracestate) == (SAMPLED, "them=1")
    assert plain.trace is None


async def test_a_collector_that_is_gone_costs_spans_and_no_queries(collector: Collector) -> None:
    tracing = open_tracing(
        Settings(observe=ObserveSettings(otlp_endpoint="http://127.0.0.1:9")), "controller", SystemClock()
    )
    assert tracing is not None
    async with (
        serving(ComputingService(), tracing=tracing) as running,
        httpx.AsyncClient(base_url=f"http://{running.http}") as rest,
    ):
        assert (await rest.post("/v2/models/simple/infer", json=BODY)).status_code == 200
        await asyncio.to_thread(tracing.close, 1.0)


def test_nothing_of_opentelemetry_is_imported_without_a_collector() -> None:
    program = (
        "import sys, infaas_controller.main, infaas_worker.main\n"
        "from infaas.clock import SystemClock\n"
        "from infaas.observe.trace import open_tracing\n"
        "from infaas.settings import Settings\n"
        "assert open_tracing(Settings(), 'controller', SystemClock()) is None\n"
        # The client of Redis imports OpenTelemetry's metrics by itself, where they are installed.
        "ours = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'infaas.observe.otlp')\n"
        "print([name for name in sys.modules if name.startswith(ours)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infaas.observe.otlp", None)
    with pytest.raises(SettingsError, match=r"infaas\[otel\]"):
        open_tracing(Settings(observe=ObserveSettings(otlp_endpoint="http://x:4318")), "worker", SystemClock())
