"""Large requests are read and written outside the loop: same answers, same refusals; others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from computing_service import ComputingService
from infaas_controller.api.bulk.weigh import LOOP_BYTES
from serving import Serving, serving

from infaas.domain.query import Code
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.tensors import MAX_BYTES_ELEMENTS
from infaas.settings import Settings

SMALL = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}
PATIENCE_S = 60.0
ONE_AT_A_TIME = {"processes": 1, "waiting_at_most": 0}


def echoed(datatype: str, values: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    name = f"in_{datatype.lower()}"
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape or [1, len(values)], "data": values}]}


def url(edges: Serving, model: str) -> str:
    return f"http://{edges.http}/v2/models/{model}/infer"


async def infer(call: Any, message: Any) -> Any:
    return pb.ModelInferResponse.FromString(await call(message.SerializeToString(), timeout=PATIENCE_S))


@pytest.fixture
async def client() -> Any:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as found:
        yield found


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [0.5, -1.25, 3.0] * 40_000),
        ("INT64", [1, -2, 2**62] * 40_000),
        ("BYTES", ["", "ä", "long " * 10] * 20_000),
        ("BOOL", [True, False] * 60_000),
    ],
)
async def test_a_large_json_query_is_answered_in_json_like_a_small_one(
    edges: Serving, client: httpx.AsyncClient, datatype: str, values: list[Any]
) -> None:
    body = json.dumps(echoed(datatype, values)).encode()
    assert len(body) > LOOP_BYTES

    answer = await client.post(url(edges, f"echo-{datatype.lower()}"), content=body)

    assert answer.status_code == 200, answer.text[:300]
    assert answer.json()["outputs"][0]["data"] == values
    assert edges.bulk.pids


async def test_small_and_binary_queries_start_no_process(edges: Serving, client: httpx.AsyncClient) -> None:
    values = np.arange(200_000, dtype="<f4")
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "in_fp32",
                    "datatype": "FP32",
                    "shape": [1, len(values)],
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    fields = {"inference-header-content-length": str(len(head))}

    small = await client.post(url(edges, "simple"), json=SMALL)
    large = await client.post(url(edges, "echo-fp32"), content=head + values.tobytes(), headers=fields)

    assert (small.status_code, large.status_code) == (200, 200)
    assert large.content[int(large.headers["inference-header-content-length"]) :] == values.tobytes()
    assert not edges.bulk.pids


@pytest.mark.parametrize("elements", [5_000, MAX_BYTES_ELEMENTS + 1])
async def test_many_framed_elements_are_walked_elsewhere_and_absurdly_many_are_refused(
    edges: Serving, client: httpx.AsyncClient, elements: int
) -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "in_bytes",
                    "datatype": "BYTES",
                    "shape": [1, elements],
                    "parameters": {"binary_data_size": 4 * elements},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    fields = {"inference-header-content-length": str(len(head))}

    rest = await client.post(url(edges, "echo-bytes"), content=head + bytes(4 * elements), headers=fields)
    message = pb.ModelInferRequest(model_name="echo-bytes", raw_input_contents=[bytes(4 * elements)])
    message.inputs.add(name="in_bytes", datatype="BYTES", shape=[1, elements])
    async with grpc.aio.insecure_channel(edges.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        if elements <= MAX_BYTES_ELEMENTS:
            assert rest.status_code == 200
            assert (await infer(call, message)).raw_output_contents[0] == bytes(4 * elements)
            assert edges.bulk.pids
        else:
            assert (rest.status_code, rest.json()["code"]) == (400, Code.INVALID)
            assert str(MAX_BYTES_ELEMENTS) in rest.json()["error"]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await infer(call, message)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(MAX_BYTES_ELEMENTS) in (refused.value.details() or "")


async def test_large_typed_contents_are_answered_over_grpc_in_calls_and_streams(edges: Serving) -> None:
    values = np.linspace(-1, 1, 100_000, dtype="<f4")
    message = pb.ModelInferRequest(model_name="echo-fp32", id="large")
    message.inputs.add(name="in_fp32", datatype="FP32", shape=[1, len(values)]).contents.fp32_contents.extend(values)
    async with grpc.aio.insecure_channel(edges.grpc) as channel:
        answer = await infer(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), message)
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(timeout=PATIENCE_S)
        await stream.write(message.SerializeToString())
        streamed = pb.ModelStreamInferResponse.FromString(await stream.read())
        await stream.done_writing()

    assert (answer.id, answer.raw_output_contents[0]) == ("large", values.tobytes())
    assert streamed.infer_response.raw_output_contents[0] == values.tobytes()
    assert edges.bulk.pids


async def test_a_large_classification_is_sorted_elsewhere(edges: Serving, client: httpx.AsyncClient) -> None:
    rows = np.random.default_rng(3).random((10_000, 4), dtype=np.float32)
    body = echoed("FP32", rows.reshape(-1).tolist(), list(rows.shape))
    body["inputs"][0]["name"] = "scores"
    body["outputs"] = [{"name": "scores", "parameters": {"classification": 1}}]

    answer = await client.post(url(edges, "rank"), json=body)

    assert answer.status_code == 200, answer.text[:300]
    data = answer.json()["outputs"][0]["data"]
    assert [int(text.split(":")[1]) for text in data] == rows.argmax(axis=1).tolist()


@pytest.mark.parametrize("top", [10**9, 10**30])
@pytest.mark.parametrize("rows", [3, 10_000])
async def test_more_classes_than_there_are_names_them_all_and_leaves_no_process_behind(
    edges: Serving, client: httpx.AsyncClient, rows: int, top: int
) -> None:
    body = echoed("FP32", [0.1, 0.4, 0.3, 0.2] * rows, [rows, 4])
    body["inputs"][0]["name"] = "scores"
    body["outputs"] = [{"name": "scores", "parameters": {"classification": top}}]

    answers = [await client.post(url(edges, "rank"), json=body) for _ in range(4)]

    assert {answer.status_code for answer in answers} == {200}, answers[0].text[:300]
    data = answers[0].json()["outputs"][0]["data"]
    assert [int(text.split(":")[1]) for text in data] == [1, 2, 3, 0] * rows
    assert len(edges.bulk.pids) == (0 if rows == 3 else 1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs": [' + b" " * LOOP_BYTES, "not JSON"),
        (b'{"x": ' + b"[" * (2 * LOOP_BYTES), "nested"),
        (json.dumps(echoed("FP32", ["x"] * 60_000)).encode(), "do not fit"),
        (json.dumps(echoed("INT8", [300] * 60_000)).encode(), "range of INT8"),
        (json.dumps(echoed("BYTES", [""] * (MAX_BYTES_ELEMENTS + 1))).encode(), str(MAX_BYTES_ELEMENTS)),
        (json.dumps({"inputs": [], "parameters": dict.fromkeys(map(str, range(60_000)), 1)}).encode(), "60000 param"),
        (json.dumps({"inputs": echoed("FP32", [1])["inputs"] * 6_000}).encode(), "6000 inputs"),
    ],
)
async def test_a_large_bad_query_is_refused_in_words(
    edges: Serving, client: httpx.AsyncClient, body: bytes, words: str
) -> None:
    answer = await client.post(url(edges, "echo-fp32"), content=body)

    assert (answer.status_code, answer.json()["code"]) == (400, Code.INVALID), answer.text[:300]
    assert words in answer.json()["error"]
    assert not edges.service.seen


async def test_json_has_a_bound_of_its_own_that_binary_data_do_not_have(client: httpx.AsyncClient) -> None:
    settings = Settings.model_validate({"controller": {"max_json_bytes": 2_000}})
    async with serving(ComputingService(), settings) as edges:
        answer = await client.post(url(edges, "echo-fp32"), json=echoed("FP32", [0.5] * 1_000))
        claimed = {"inference-header-content-length": "20000000"}
        short = await client.post(url(edges, "echo-fp32"), json=echoed("FP32", [0.5]), headers=claimed)

    assert (answer.status_code, answer.json()["code"]) == (413, Code.TOO_LARGE)
    assert "controller.max_json_bytes" in answer.json()["error"]
    assert "binary" in answer.json()["error"]
    assert (short.status_code, short.json()["code"]) == (400, Code.INVALID), "it is large only by its own word"


async def test_a_killed_bulk_process_costs_its_request_and_the_next_gets_a_new_one(
    edges: Serving, client: httpx.AsyncClient
) -> None:
    body = json.dumps(echoed("FP32", [0.123456789] * 500_000)).encode()
    assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
    (first,) = edges.bulk.pids
    os.kill(first, signal.SIGSTOP)  # so that it cannot have answered before it is killed
    waiting = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="waiting")
    before = len(edges.service.seen)
    assert (await client.post(url(edges, "simple"), json=SMALL)).status_code == 200
    await _until_taken(edges)
    os.kill(first, signal.SIGKILL)

    lost = await waiting
    again = await client.post(url(edges, "echo-fp32"), content=body)

    assert (lost.status_code, lost.json()["code"], lost.json()["retryable"]) == (503, Code.UNAVAILABLE, True)
    assert again.status_code == 200
    assert first not in edges.bulk.pids
    assert len(edges.service.seen) == before + 2


async def test_a_process_that_ends_while_idle_costs_no_request_and_is_counted(
    edges: Serving, client: httpx.AsyncClient
) -> None:
    body = json.dumps(echoed("FP32", [0.5] * 60_000)).encode()
    assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
    (idle,) = edges.bulk.pids
    process = psutil.Process(idle)
    process.kill()
    async with asyncio.timeout(PATIENCE_S):
        while process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.to_thread(time.sleep, 0.002)

    answer = await client.post(url(edges, "echo-fp32"), content=body)

    assert answer.status_code == 200
    assert idle not in edges.bulk.pids
    assert edges.metrics.registry.get_sample_value("infaas_bulk_losses_total", {"reason": "ended"}) == 1


async def _until_taken(edges: Serving, busy: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while edges.bulk.busy != busy:
            await asyncio.to_thread(time.sleep, 0.002)  # it says nothing by itself


async def test_small_queries_are_answered_while_large_ones_are_read(edges: Serving, client: httpx.AsyncClient) -> None:
    body = json.dumps(echoed("FP32", [0.123456789] * 1_000_000)).encode()
    assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200  # a process is there
    began = time.monotonic()
    large = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="large")
    await _until_taken(edges)
    took: list[float] = []
    while not large.done():
        sent = time.monotonic()
        assert (await client.post(url(edges, "simple"), json=SMALL)).status_code == 200
        took.append(time.monotonic() - sent)
    whole = time.monotonic() - began

    assert (await large).status_code == 200
    assert len(took) >= 4
    assert sorted(took)[len(took) // 2] < whole / 4


async def test_too_many_large_requests_are_refused_as_load(client: httpx.AsyncClient) -> None:
    async with serving(ComputingService(), bulk_options=ONE_AT_A_TIME) as edges:
        body = json.dumps(echoed("FP32", [0.5] * 100_000)).encode()
        assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
        (pid,) = edges.bulk.pids
        os.kill(pid, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="waiting")
            await _until_taken(edges)
            refused = await client.post(url(edges, "echo-fp32"), content=body)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await waiting).status_code == 200

    assert (refused.status_code, refused.json()["code"]) == (429, Code.SATURATED)
    assert "retry-after" in refused.headers


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def binary(values: np.ndarray[Any, Any], *, is_answer_binary: bool = False) -> tuple[bytes, dict[str, str]]:
    """A query for `echo-fp32` whose input is binary, so that reading it is no work, and whose answer is JSON."""
    said = {"name": "in_fp32", "datatype": "FP32", "shape": [1, len(values)]}
    inputs = [{**said, "parameters": {"binary_data_size": values.nbytes}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": is_answer_binary}}).encode()
    return head + values.tobytes(), {"inference-header-content-length": str(len(head))}


async def test_an_answer_to_what_was_executed_waits_for_its_turn_and_is_not_refused_for_load(
    client: httpx.AsyncClient,
) -> None:
    values = np.arange(100_000, dtype="<f4")
    content, fields = binary(values)
    async with serving(ComputingService(), bulk_options=ONE_AT_A_TIME) as edges:
        body = json.dumps(echoed("FP32", [0.5] * 30_000)).encode()
        assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
        with stopped(*edges.bulk.pids):
            reading = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="reading")
            await _until_taken(edges)
            answering = [
                asyncio.create_task(client.post(url(edges, "echo-fp32"), content=content, headers=fields))
                for _ in range(3)
            ]
            await _until_taken(edges, 4)
            assert not any(task.done() for task in answering)
        answers = await asyncio.gather(*answering)
        assert (await reading).status_code == 200

    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(answer.json()["outputs"][0]["data"] == values.tolist() for answer in answers)


def many_scores() -> dict[str, Any]:
    body = echoed("FP32", [0.25] * 8_192, [2_048, 4])
    body["inputs"][0]["name"] = "scores"
    body["outputs"] = [{"name": "scores", "parameters": {"classification": 1}}]
    return body


@pytest.mark.parametrize("bound", [{"answers_at_most": 2}, {"answer_bytes_at_most": 500_000}])
async def test_while_answers_pile_up_nothing_is_executed_whose_answer_may_be_large(
    client: httpx.AsyncClient, bound: dict[str, int]
) -> None:
    content, fields = binary(np.arange(100_000, dtype="<f4"))
    async with serving(ComputingService(), bulk_options=ONE_AT_A_TIME | bound) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=content, headers=fields)).status_code == 200
        with stopped(*edges.bulk.pids):
            answering = [
                asyncio.create_task(client.post(url(edges, "echo-fp32"), content=content, headers=fields))
                for _ in range(2)
            ]
            await _until_taken(edges, 2)
            before = len(edges.service.seen)
            refused = await client.post(url(edges, "echo-fp32"), content=content, headers=fields)
            ranked = await client.post(url(edges, "rank"), json=many_scores())
            assert len(edges.service.seen) == before
            small = await client.post(url(edges, "simple"), json=SMALL)
            content_of_binary, fields_of_binary = binary(np.arange(100_000, dtype="<f4"), is_answer_binary=True)
            as_binary = await client.post(url(edges, "echo-fp32"), content=content_of_binary, headers=fields_of_binary)
        answers = await asyncio.gather(*answering)
        again = await client.post(url(edges, "echo-fp32"), content=content, headers=fields)

    for one in (refused, ranked):
        assert (one.status_code, one.json()["code"], one.json()["retryable"]) == (429, Code.SATURATED, True)
        assert "retry-after" in one.headers
    assert (small.status_code, as_binary.status_code, again.status_code) == (200, 200, 200)
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_an_answer_that_cannot_be_written_by_its_deadline_is_a_504_at_the_deadline(
    client: httpx.AsyncClient,
) -> None:
    content, fields = binary(np.arange(100_000, dtype="<f4"))
    async with serving(ComputingService(), bulk_options=ONE_AT_A_TIME) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=content, headers=fields)).status_code == 200
        with stopped(*edges.bulk.pids):
            fields["x-infaas-slo-latency-ms"] = "300"
            late = await client.post(url(edges, "echo-fp32"), content=content, headers=fields)
        await _until_taken(edges, 0)

    assert (late.status_code, late.json()["code"]) == (504, Code.DEADLINE_PASSED)
    assert late.headers["x-infaas-slo-met"] == "false"


@pytest.mark.parametrize("numbers", [50_000, 1_000_000])
async def test_a_stuck_process_is_ended_and_counted_and_the_next_request_gets_a_new_one(
    edges: Serving, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    """With a request that its pipe holds, and with one that it does not."""
    body = json.dumps(echoed("FP32", [0.5] * numbers)).encode()
    assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
    (pid,) = edges.bulk.pids
    os.kill(pid, signal.SIGSTOP)

    with monkeypatch.context() as impatient:  # from the start, a process that is being started would count as stuck
        impatient.setattr(edges.bulk, "_run_at_most_s", 0.3)
        stuck = await client.post(url(edges, "echo-fp32"), content=body)
    after = await client.post(url(edges, "echo-fp32"), content=body)

    assert (stuck.status_code, stuck.json()["code"]) == (504, Code.DEADLINE_PASSED)
    assert "was ended" in stuck.json()["error"]
    assert after.status_code == 200
    assert pid not in edges.bulk.pids
    assert not psutil.pid_exists(pid)
    assert edges.metrics.registry.get_sample_value("infaas_bulk_losses_total", {"reason": "stuck"}) == 1


async def connected(edges: Serving, model: str, body: bytes, **fields: str) -> asyncio.StreamWriter:
    """A caller over a connection of its own, who has sent a query and reads nothing."""
    host, port = edges.http.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    writer.write(
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode()
    )
    writer.write(body)
    await writer.drain()
    return writer


async def test_a_caller_that_leaves_takes_its_waiting_request_along(client: httpx.AsyncClient) -> None:
    body = json.dumps(echoed("FP32", [0.5] * 30_000)).encode()
    async with serving(ComputingService(), bulk_options={"processes": 1, "waiting_at_most": 1}) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
        with stopped(*edges.bulk.pids):
            first = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="first")
            await _until_taken(edges)
            waiting = await connected(edges, "echo-fp32", body)
            await _until_taken(edges, 2)
            waiting.close()
            await waiting.wait_closed()
            await _until_taken(edges, 1)
            next_one = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body), name="next")
            await _until_taken(edges, 2)
        assert [(await task).status_code for task in (first, next_one)] == [200, 200]
        cancelled = edges.metrics.registry.get_sample_value(
            "infaas_request_duration_seconds_count", {"model": "echo-fp32", "code": "cancelled"}
        )
    assert cancelled == 1


async def test_a_caller_that_leaves_takes_its_waiting_answer_along(client: httpx.AsyncClient) -> None:
    content, fields = binary(np.arange(100_000, dtype="<f4"))
    async with serving(ComputingService(), bulk_options=ONE_AT_A_TIME) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=content, headers=fields)).status_code == 200
        with stopped(*edges.bulk.pids):
            first = asyncio.create_task(client.post(url(edges, "echo-fp32"), content=content, headers=fields))
            await _until_taken(edges)
            waiting = await connected(edges, "echo-fp32", content, **fields)
            await _until_taken(edges, 2)
            waiting.close()
            await waiting.wait_closed()
            await _until_taken(edges, 1)
        assert (await first).status_code == 200


async def test_a_large_request_waits_to_be_read_until_its_deadline_and_no_longer(client: httpx.AsyncClient) -> None:
    body = json.dumps(echoed("FP32", [0.5] * 30_000)).encode()
    message = pb.ModelInferRequest(model_name="echo-fp32")
    message.inputs.add(name="in_fp32", datatype="FP32", shape=[1, 50_000]).contents.fp32_contents.extend([0.5] * 50_000)
    message.parameters["slo_latency_ms"].double_param = 300
    async with serving(ComputingService(), bulk_options={"processes": 1}) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
        with stopped(*edges.bulk.pids):
            rest = await client.post(
                url(edges, "echo-fp32"), content=body, headers={"x-infaas-slo-latency-ms": "300"}, timeout=20
            )
            async with grpc.aio.insecure_channel(edges.grpc) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as late:
                    await infer(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), message)
            assert len(edges.service.seen) == 1
        await _until_taken(edges, 0)

    assert (rest.status_code, rest.json()["code"]) == (504, Code.DEADLINE_PASSED)
    assert "before the large request was read" in rest.json()["error"]
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "before the large request was read" in (late.value.details() or "")


async def test_a_large_request_whose_requirements_are_no_requirements_is_not_read(
    edges: Serving, client: httpx.AsyncClient
) -> None:
    body = json.dumps(echoed("FP32", [0.5] * 30_000)).encode()

    answer = await client.post(url(edges, "echo-fp32"), content=body, headers={"x-infaas-slo-latency-ms": "soon"})

    assert (answer.status_code, answer.json()["code"]) == (400, Code.INVALID)
    assert "x-infaas-slo-latency-ms" in answer.json()["error"]
    assert not edges.bulk.pids


async def test_what_is_read_or_waits_when_the_pool_closes_may_be_sent_again(client: httpx.AsyncClient) -> None:
    body = json.dumps(echoed("FP32", [0.5] * 30_000)).encode()
    async with serving(ComputingService(), bulk_options={"processes": 1}) as edges:
        assert (await client.post(url(edges, "echo-fp32"), content=body)).status_code == 200
        (pid,) = edges.bulk.pids
        os.kill(pid, signal.SIGSTOP)
        tasks = [asyncio.create_task(client.post(url(edges, "echo-fp32"), content=body)) for _ in range(3)]
        await _until_taken(edges, 3)
        await edges.bulk.close()
        answers = [*await asyncio.gather(*tasks), await client.post(url(edges, "echo-fp32"), content=body)]

        assert [(one.status_code, one.json()["code"], one.json()["retryable"]) for one in answers] == [
            (503, Code.UNAVAILABLE, True)
        ] * 4
        assert (edges.bulk.busy, edges.bulk.pids) == (0, ())


async def test_a_number_that_no_reply_can_carry_is_refused_in_words_and_ends_no_process(
    edges: Serving, client: httpx.AsyncClient
) -> None:
    body = echoed("FP32", [0.5] * 60_000)
    assert (await client.post(url(edges, "echo-fp32"), json=body)).status_code == 200
    before = edges.bulk.pids

    answer = await client.post(url(edges, "echo-fp32"), json=body | {"parameters": {"mine": 10**30}})

    assert (answer.status_code, answer.json()["code"]) == (400, Code.INVALID), answer.text
    assert edges.bulk.pids == before


async def test_what_a_library_prints_in_the_process_is_no_part_of_a_reply(
    edges: Serving, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('a word from a library', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    answer = await client.post(url(edges, "echo-fp32"), json=echoed("FP32", [0.5] * 60_000))

    assert answer.status_code == 200, answer.text[:300]
