"""REST as a caller meets it: answer headers, refusals in words, limits, credentials, callers who leave."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from computing_service import ComputingService
from serving import Serving, serving

from infaas.domain.query import Code, Level, Priority
from infaas.errors import RefusedError
from infaas.settings import ControllerSettings, Settings

INFER = "/v2/models/simple/infer"


def a_body(items: int = 1, **more: Any) -> dict[str, Any]:
    data = list(range(16 * items))
    inputs = [{"name": n, "shape": [items, 16], "datatype": "INT32", "data": data} for n in ("INPUT0", "INPUT1")]
    return {"inputs": inputs, **more}


def rest_of(running: Serving) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{running.http}")


@pytest.fixture
async def rest(edges: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with rest_of(edges) as client:
        yield client


async def test_an_answer_says_who_served_it_and_how(rest: httpx.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-infaas-slo-latency-ms": "500", "x-request-id": "abc", "traceparent": trace, "tracestate": "a=b"}
    answer = await rest.post(INFER, json=a_body(id="7"), headers=headers)
    assert answer.status_code == 200
    document = answer.json()
    assert (document["model_name"], document["model_version"], document["id"]) == ("simple", "1", "7")
    assert document["outputs"][0]["data"] == [2 * n for n in range(16)]
    assert document["parameters"]["variant"] == "simple.v1.ort-fp32-t1"
    got = answer.headers
    assert (got["x-request-id"], got["traceparent"], got["tracestate"]) == ("abc", trace, "a=b")
    assert (got["x-infaas-variant"], got["x-infaas-worker"]) == ("simple.v1.ort-fp32-t1", "w1")
    assert (got["x-infaas-decision-id"], got["x-infaas-slo-met"], got["x-infaas-attempts"]) == ("d-0", "true", "1")
    assert got["x-infaas-queue-ms"] == "0.500"
    assert got["server-timing"] == "queue;dur=0.500, run;dur=1.000, total;dur=2.000"
    assert "x-infaas-cold-start" not in got
    assert "x-infaas-fallback" not in got


async def test_a_fallbacks_reason_is_sent_as_ascii(rest: httpx.AsyncClient) -> None:
    answer = await rest.post(INFER, json=a_body(), headers={"x-infaas-fallback": "allow"})
    assert answer.headers["x-infaas-fallback"] == "below >= floor"


@pytest.mark.parametrize("handle", ["simple", "simple-task", "simple.v1.ort-fp32-t1"])
async def test_every_level_of_name_is_served_and_echoed(rest: httpx.AsyncClient, edges: Serving, handle: str) -> None:
    answer = await rest.post(f"/v2/models/{handle}/infer", json=a_body(3))
    assert answer.json()["model_name"] == handle
    query = edges.service.seen[-1]
    assert (query.handle, query.items, query.version) == (handle, 3, None)
    assert query.signature == (("INPUT0", "INT32", (16,)), ("INPUT1", "INT32", (16,)))
    assert (await rest.get(f"/v2/models/{handle}")).json()["name"] == handle
    assert (await rest.get(f"/v2/models/{handle}/config")).json()["name"] == handle
    (row,) = (await rest.get(f"/v2/models/{handle}/stats")).json()["model_stats"]
    assert (row["name"], row["version"], row["inference_count"]) == (handle, "1", 3)
    assert row["batch_stats"][0]["batch_size"] == 3
    assert (await rest.get(f"/v2/models/{handle}/ready")).json() == {"name": handle, "ready": True}


async def test_the_requests_own_id_is_the_request_id_unless_a_header_says(rest: httpx.AsyncClient) -> None:
    assert (await rest.post(INFER, json=a_body(id="mine"))).headers["x-request-id"] == "mine"
    odd = await rest.post(INFER, json=a_body(id="with space é"))
    assert odd.json()["id"] == "with space é"
    assert odd.headers["x-request-id"].startswith("r-")


@pytest.mark.parametrize("bad", ["a b", "x" * 129])
async def test_a_request_id_that_cannot_be_echoed_is_refused(rest: httpx.AsyncClient, bad: str) -> None:
    answer = await rest.post(INFER, json=a_body(), headers={"x-request-id": bad})
    assert answer.status_code == 400
    assert "'x-request-id'" in answer.json()["error"]


async def test_an_unusable_trace_context_is_dropped(rest: httpx.AsyncClient) -> None:
    answer = await rest.post(INFER, json=a_body(), headers={"traceparent": "00-zz", "tracestate": "a=b"})
    assert answer.status_code == 200
    assert "traceparent" not in answer.headers
    assert "tracestate" not in answer.headers


async def test_explain_puts_the_decision_into_the_answer(rest: httpx.AsyncClient) -> None:
    answer = await rest.post(INFER, json=a_body(), headers={"x-infaas-explain": "true"})
    decision = json.loads(answer.json()["parameters"]["decision"])
    assert decision["id"] == answer.headers["x-infaas-decision-id"]
    assert (decision["level"], decision["variant"]) == (Level.MODEL.value, "simple.v1.ort-fp32-t1")
    assert "decision" not in (await rest.post(INFER, json=a_body())).json()["parameters"]


async def test_binary_tensors_go_both_ways(rest: httpx.AsyncClient) -> None:
    array = np.arange(32, dtype=np.int32).reshape(2, 16)
    inputs = [
        {"name": n, "shape": [2, 16], "datatype": "INT32", "parameters": {"binary_data_size": 128}}
        for n in ("INPUT0", "INPUT1")
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = await rest.post(INFER, content=head + array.tobytes() + (array * 2).tobytes(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    document = json.loads(answer.content[:length])
    assert [o["parameters"]["binary_data_size"] for o in document["outputs"]] == [128, 128]
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:][:128], np.int32).reshape(2, 16), array * 3)


async def test_a_raw_body_is_one_item(rest: httpx.AsyncClient) -> None:
    scores = np.array([0.5, 0.1, 0.9, 0.2], np.float32).tobytes()
    headers = {"inference-header-content-length": "0"}
    answer = await rest.post("/v2/models/rank/infer", content=scores, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == scores


async def test_classification_names_the_tasks_classes(rest: httpx.AsyncClient) -> None:
    inputs = [{"name": "scores", "shape": [1, 4], "datatype": "FP32", "data": [0.5, 0.125, 0.75, 0.25]}]
    outputs = [{"name": "scores", "parameters": {"classification": 2}}]
    answer = await rest.post("/v2/models/rank/infer", json={"inputs": inputs, "outputs": outputs})
    (output,) = answer.json()["outputs"]
    assert output["data"] == ["0.750000:2:hen", "0.500000:0:cat"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])


async def test_fp16_outputs_are_refused_as_json_before_any_work(rest: httpx.AsyncClient, edges: Serving) -> None:
    inputs = [{"name": "in_fp16", "shape": [1, 1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}]
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = await rest.post("/v2/models/echo-fp16/infer", content=head + b"\0\x3c", headers=headers)
    assert answer.status_code == 400
    assert "no JSON form" in answer.json()["error"]
    assert edges.service.seen == []


@pytest.mark.parametrize("datatype", ["bool", "bytes", "fp32", "fp64", "int8", "int64", "uint8", "uint64"])
async def test_every_datatype_passes_through(rest: httpx.AsyncClient, datatype: str) -> None:
    data: list[Any] = {"bool": [True, False], "bytes": ["a", "ü"], "fp32": [0.5, -2.0], "fp64": [0.1, 1e300]}.get(
        datatype, [1, 2]
    )
    inputs = [{"name": f"in_{datatype}", "shape": [2, 1], "datatype": datatype.upper(), "data": data}]
    answer = await rest.post(f"/v2/models/echo-{datatype}/infer", json={"inputs": inputs})
    assert answer.json()["outputs"][0]["data"] == data


@pytest.mark.parametrize(
    ("path", "change", "headers", "status", "code", "words"),
    [
        ("/v2/models/nothing/infer", {}, {}, 404, "not-found", "unknown model 'nothing'"),
        ("/v2/models/simpel/infer", {}, {}, 404, "not-found", "did you mean 'simple'"),
        ("/v2/models/simple/versions/7/infer", {}, {}, 404, "not-found", "version 7"),
        ("/v2/models/simple/versions/new/infer", {}, {}, 400, "invalid-argument", "version 'new'"),
        ("/v2/models/simple/versions/0/infer", {}, {}, 400, "invalid-argument", "version '0'"),
        (INFER, {"inputs": []}, {}, 400, "invalid-argument", "input 'INPUT0' is missing"),
        (INFER, {"outputs": [{"name": "Z"}]}, {}, 400, "invalid-argument", "unknown output 'Z'"),
        (INFER, {"parameters": {"slo_latency_ms": -1}}, {}, 400, "invalid-argument", "parameter 'slo_latency_ms'"),
        (INFER, {"parameters": {"sequence_id": 4}}, {}, 501, "unsupported", "sequence_id"),
        (INFER, {}, {"x-infaas-slo-latency-ms": "soon"}, 400, "invalid-argument", "'x-infaas-slo-latency-ms'"),
        (
            INFER,
            {},
            {"x-infaas-latency": "5"},
            400,
            "invalid-argument",
            "nearest known one is 'x-infaas-slo-latency-ms'",
        ),
        (
            INFER,
            {},
            {"inference-header-content-length": "x"},
            400,
            "invalid-argument",
            "inference-header-content-length",
        ),
        (INFER, {}, {"inference-header-content-length": "99999"}, 400, "invalid-argument", "from 0 to the body's"),
        (INFER, {}, {"content-encoding": "br"}, 400, "invalid-argument", "'content-encoding' is 'br'"),
        (INFER, {}, {"content-encoding": "gzip"}, 400, "invalid-argument", "not what its 'content-encoding' says"),
        (INFER, {}, {"x-infaas-max-cost": "0"}, 422, "slo-unsatisfiable", "the nearest is"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_words(
    rest: httpx.AsyncClient,
    path: str,
    change: dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: str,
    words: str,
) -> None:
    answer = await rest.post(path, json=a_body() | change, headers={"x-request-id": "r-7", **headers})
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code)
    assert words in document["error"]
    assert document["request_id"] == answer.headers["x-request-id"] == "r-7"
    assert document["retryable"] is False
    assert document["decision_id"] == answer.headers.get("x-infaas-decision-id")


async def test_a_header_sent_twice_is_malformed(rest: httpx.AsyncClient) -> None:
    headers = [("x-infaas-slo-latency-ms", "5"), ("x-infaas-slo-latency-ms", "50")]
    answer = await rest.post(INFER, json=a_body(), headers=headers)
    assert answer.status_code == 400
    assert "'5, 50'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("code", "status", "dropped"),
    [
        (Code.SATURATED, 429, "saturated"),
        (Code.DEADLINE_UNREACHABLE, 429, "deadline-unreachable"),
        (Code.LOADING, 503, "no-worker"),
        (Code.DEADLINE_PASSED, 504, "deadline-passed"),
    ],
)
async def test_a_dropped_query_says_why_and_when_to_come_back(
    rest: httpx.AsyncClient, edges: Serving, code: Code, status: int, dropped: str
) -> None:
    wait = 1.2 if status != 504 else None
    edges.service.refusal = RefusedError("too much", code=code, retry_after_s=wait)
    answer = await rest.post(INFER, json=a_body())
    assert (answer.status_code, answer.json()["code"]) == (status, code.value)
    assert answer.headers["x-infaas-dropped-reason"] == dropped
    assert answer.headers.get("retry-after") == ("2" if wait else None)
    assert answer.headers["x-infaas-decision-id"] == answer.json()["decision_id"] == "d-0"
    assert "server-timing" in answer.headers


async def test_an_unexpected_failure_leaks_nothing(
    rest: httpx.AsyncClient, edges: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(query: Any) -> Any:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(edges.service, "_answer", fail)
    answer = await rest.post(INFER, json=a_body())
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "hunter2" not in answer.text


async def test_a_compressed_request_is_taken(rest: httpx.AsyncClient) -> None:
    body = gzip.compress(json.dumps(a_body()).encode())
    assert (await rest.post(INFER, content=body, headers={"content-encoding": "gzip"})).status_code == 200
    cut = await rest.post(INFER, content=body[:-9], headers={"content-encoding": "gzip"})
    assert (cut.status_code, "cut short" in cut.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("asked", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip, deflate", None),
        ("gzip;q=0.0", None),
        ("br", None),
        ("identity", None),
    ],
)
async def test_an_answer_is_compressed_for_who_asks_for_one_coding(
    edges: Serving, asked: str, coding: str | None
) -> None:
    async with httpx.AsyncClient(base_url=f"http://{edges.http}") as client:
        for items in (1, 4_000):  # on the loop and in a thread
            answer = await client.post(INFER, json=a_body(items), headers={"accept-encoding": asked})
            assert answer.status_code == 200, answer.text
            assert answer.headers.get("content-encoding") == coding
            assert answer.json()["outputs"][0]["shape"] == [items, 16]
            if coding and items > 1:
                assert int(answer.headers["content-length"]) < len(answer.content)


async def test_a_body_over_the_limit_is_413_however_it_comes() -> None:
    settings = Settings(controller=ControllerSettings(max_body_bytes=2048))

    async def in_parts() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 1024

    async with serving(ComputingService(), settings) as running, rest_of(running) as client:
        bomb = gzip.compress(b" " * 10_000_000)
        whole = await client.post(INFER, content=b" " * 4096)
        parts = await client.post(INFER, content=in_parts())
        packed = await client.post(INFER, content=gzip.compress(b" " * 4096), headers={"content-encoding": "gzip"})
        blown = await client.post(INFER, content=bomb[:2000], headers={"content-encoding": "gzip"})
        for answer in (whole, parts, packed, blown):
            assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
            assert "at most 2048" in answer.json()["error"]
        assert (await client.post(INFER, json=a_body())).status_code == 200


async def test_a_caller_who_leaves_takes_the_query_along(edges: Serving) -> None:
    edges.service.hold = asyncio.Event()
    body = json.dumps(a_body()).encode()
    host, port = edges.http.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.wait_for(edges.service.arrived.wait(), 10)
    writer.close()
    await asyncio.wait_for(edges.service.dropped.wait(), 10)
    assert len(edges.service.cancelled) == 1
    assert edges.service.in_flight() == 0


async def test_requests_on_one_connection_follow_one_another(edges: Serving) -> None:
    body = json.dumps(a_body()).encode()
    host, port = edges.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    writer.write(request * 3)
    for _ in range(3):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
    writer.close()
    assert edges.service.cancelled == []


async def test_task_defaults_reach_the_query(edges: Serving, rest: httpx.AsyncClient) -> None:
    view = edges.service.view
    task = view.tasks["simple-task"]
    defaults = replace(task.defaults, slo_latency_ms=40.0, priority=Priority.SHEDDABLE)
    edges.service.view = replace(view, tasks={**view.tasks, "simple-task": replace(task, defaults=defaults)})
    await rest.post(INFER, json=a_body())
    await rest.post(INFER, json=a_body(), headers={"x-infaas-slo-latency-ms": "90"})
    first, second = edges.service.seen
    assert (first.requirements.latency_s, first.requirements.priority) == (0.04, Priority.SHEDDABLE)
    assert first.deadline == pytest.approx(first.arrived_at + 0.04)
    assert second.requirements.latency_s == 0.09


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", INFER, 405, "it takes POST"),
        ("DELETE", "/v2", 405, "does not take DELETE"),
        ("GET", "/nowhere", 404, "no such path: '/nowhere'"),
        ("GET", "/v2/models/nothing", 404, "unknown model"),
        ("GET", "/v2/models/simple/versions/9/config", 404, "no ready version 9; there are 1"),
        ("GET", "/v2/models/nothing/ready", 404, "unknown model"),
        ("POST", "/v2/repository/models/nothing/load", 404, "failed to load 'nothing'"),
        ("POST", "/v2/repository/models/nothing/unload", 404, "unknown model"),
        ("GET", "/v2/systemsharedmemory/status", 501, "shared memory"),
        ("POST", "/v2/trace/setting", 501, "trace"),
        ("POST", "/v2/logging", 501, "log"),
        ("POST", "/v2/models/simple/generate", 501, "use infer"),
    ],
)
async def test_every_other_error_has_the_same_body(
    rest: httpx.AsyncClient, method: str, path: str, status: int, words: str
) -> None:
    answer = await rest.request(method, path, headers={"x-request-id": "r-9"})
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert set(answer.json()) == {"error", "code", "request_id", "decision_id", "retryable"}
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "r-9"


async def test_health_follows_readiness(rest: httpx.AsyncClient, edges: Serving) -> None:
    for path in ("/v2/health/live", "/livez", "/healthz"):
        assert (await rest.get(path)).json() == {"live": True}
    for path in ("/v2/health/ready", "/readyz"):
        assert (await rest.get(path)).json() == {"ready": True}
    edges.service.ready = False
    answer = await rest.get("/v2/health/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await rest.get("/livez")).status_code == 200


async def test_unloading_makes_a_model_unready_and_loading_ready_again(rest: httpx.AsyncClient) -> None:
    assert (await rest.post("/v2/repository/models/simple/unload")).status_code == 200
    assert (await rest.get("/v2/models/simple/ready")).status_code == 503
    index = {(row["name"], row["version"]): row for row in (await rest.post("/v2/repository/index")).json()}
    assert index["simple", "1"]["state"] in ("UNLOADING", "UNAVAILABLE")
    assert index["simple", "1"]["reason"]
    only_ready = (await rest.post("/v2/repository/index", json={"ready": True})).json()
    assert "simple" not in {row["name"] for row in only_ready}
    assert (await rest.post("/v2/repository/models/simple/load")).status_code == 200
    assert (await rest.get("/v2/models/simple/ready")).status_code == 200


async def test_the_list_is_kserves_form(rest: httpx.AsyncClient) -> None:
    models = (await rest.get("/v2/models")).json()["models"]
    assert {"simple", "simple-task", "simple.v1.ort-fp32-t1"} <= set(models)
