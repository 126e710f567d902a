"""Calls and streams whose messages are recognised by their bytes, and those that the generated class reads, are
answered alike: status, details, metadata, messages, what is counted, and the queries that the service gets."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alike import OWN_ID, Both, counted, query_of, serving_both
from infaas_controller.api import grpc_infer, turned
from serving import Serving

from infaas.domain.query import Code
from infaas.errors import RefusedError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.tensors_grpc import VIEW_BYTES

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e" / "bad_input"))

import bad_grpc
from raw_callers import TOKEN

PATIENCE_S = 30.0
SERVICE = "/inference.GRPCInferenceService/"
CREDENTIAL = ("authorization", f"Bearer {TOKEN}")
_DURATION = re.compile(r"dur=[0-9.]+")

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Sent:
    message: Any
    metadata: Metadata = ()
    timeout_s: float | None = None

    @property
    def data(self) -> bytes:
        return self.message if isinstance(self.message, bytes) else bytes(self.message.SerializeToString())


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    async with serving_both(TOKEN) as servers:
        yield servers


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the messages that were not recognised."""
    sizes: list[int] = []
    read = grpc_infer.read_infer

    def noted(data: bytes) -> Any:
        sizes.append(len(data))
        return read(data)

    monkeypatch.setattr(grpc_infer, "read_infer", noted)
    return sizes


def without_own(text: str) -> str:
    return OWN_ID.sub(b"r-own", text.encode()).decode()


def plain(metadata: Any) -> list[tuple[str, str]]:
    return [(key, _DURATION.sub("dur=", without_own(value))) for key, value in metadata]


def plain_answer(answer: Any) -> Any:
    """Decisions that are told name the request."""
    if "decision" in answer.parameters:
        told = answer.parameters["decision"]
        told.string_param = without_own(told.string_param)
    return answer


async def said(running: Serving, calls: Sequence[Sent], has_credential: bool = True) -> list[Any]:
    """Status, details, trailing metadata and the answer of each call, one after another on one channel."""
    found = []
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
        for sent in calls:
            metadata = [*([CREDENTIAL] if has_credential else []), *sent.metadata]
            made = call(sent.data, metadata=metadata, timeout=sent.timeout_s)
            try:
                answer = plain_answer(await asyncio.wait_for(made, PATIENCE_S))
            except grpc.aio.AioRpcError:
                answer = None
            found.append((await made.code(), await made.details(), plain(await made.trailing_metadata()), answer))
    return found


async def streamed(running: Serving, messages: Sequence[bytes], metadata: Metadata = ()) -> list[Any]:
    """The answers, sorted where they may come in any order, and how the stream ended."""
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        stream = channel.stream_stream(
            f"{SERVICE}ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
        )(iter(messages), metadata=[CREDENTIAL, *metadata], timeout=PATIENCE_S)
        answers: list[Any] = []
        try:
            while (answer := await stream.read()) is not grpc.aio.EOF:
                plain_answer(answer.infer_response)
                answers.append(answer)
        except grpc.aio.AioRpcError:
            pass  # its status is looked at below
        unnamed = [answer for answer in answers if not answer.infer_response.id]
        named = sorted(
            (a for a in answers if a.infer_response.id), key=lambda a: a.SerializeToString(deterministic=True)
        )
        return [unnamed, named, await stream.code(), await stream.details(), plain(await stream.trailing_metadata())]


async def assert_alike(both: Both, calls: Sequence[Sent], has_credential: bool = True) -> None:
    fast, ordinary = [await said(running, calls, has_credential) for running in (both.fast, both.ordinary)]
    for ours, others, sent in zip(fast, ordinary, calls, strict=True):
        assert ours == others, sent
    assert_same_deeds(both)


def assert_same_deeds(both: Both) -> None:
    assert counted(both.fast) == counted(both.ordinary)
    assert [query_of(q) for q in both.fast.service.seen] == [query_of(q) for q in both.ordinary.service.seen]


def a_message(value: int = 1, items: int = 1, change: Callable[[Any], Any] | None = None, **fields: Any) -> Any:
    message = pb.ModelInferRequest(model_name="simple", **fields)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[items, 16])
        message.raw_input_contents.append(np.full(16 * items, value, np.int32).tobytes())
    if change is not None:
        change(message)
    return message


def an_echo(datatype: str, shape: Sequence[int], data: bytes, **fields: Any) -> Any:
    name = datatype.lower()
    message = pb.ModelInferRequest(model_name=f"echo-{name}", raw_input_contents=[data], **fields)
    message.inputs.add(name=f"in_{name}", datatype=datatype, shape=shape)
    return message


def a_ranking(scores: Sequence[float], top: int) -> Any:
    message = pb.ModelInferRequest(model_name="rank", raw_input_contents=[np.array(scores, np.float32).tobytes()])
    message.inputs.add(name="scores", datatype="FP32", shape=[1, 4])
    message.outputs.add(name="scores").parameters["classification"].int64_param = top
    return message


def parameter(name: str, **value: Any) -> dict[str, Any]:
    return {"parameters": {name: pb.InferParameter(**value)}}


LATENCY = ("x-infaas-slo-latency-ms", "500")
TRACE = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
GOOD: Mapping[str, Sequence[Sent]] = {
    "the same with other values": [Sent(a_message(n)) for n in range(3)],
    "ids": [Sent(a_message(n, id=id_)) for n, id_ in enumerate(["a", "b", "with space é", "x" * 200, ""])],
    "more items": [Sent(a_message(n, items)) for n, items in enumerate([4, 4, 2, 2])],
    "a version": [Sent(a_message(n, model_version="1")) for n in range(2)],
    "requirements": [Sent(a_message(n), [LATENCY, ("x-infaas-priority", "critical")]) for n in range(2)],
    "tenants": [Sent(a_message(n), [("x-infaas-tenant", name)]) for n, name in enumerate(["a", "b", "a", "team 7"])],
    "tenants as parameters": [Sent(a_message(n, **parameter("tenant", string_param=name)))
                              for n, name in enumerate(["a", "b", "a", "team 7"])],
    "a fallback": [Sent(a_message(n), [("x-infaas-fallback", "allow")]) for n in range(2)],
    "twins": [Sent(a_message(n, **parameter("slo_latency_ms", int64_param=70))) for n in range(2)],
    "a timeout": [Sent(a_message(n, **parameter("timeout", int64_param=5_000_000))) for n in range(2)],
    "request ids": [Sent(a_message(n, id="7"), [("x-request-id", f"n{n}")]) for n in range(2)],
    "a trace": [Sent(a_message(n), [TRACE, ("tracestate", "a=b")]) for n in range(2)],
    "an unusable trace": [Sent(a_message(n), [("traceparent", "00-zz")]) for n in range(2)],
    "metadata of others": [Sent(a_message(n), [("x-other", str(n)), ("x-other-bin", b"\0")]) for n in range(2)],
    "explain": [Sent(a_message(n), [("x-infaas-explain", "true")]) for n in range(2)],
    "outputs": [
        Sent(a_message(n, outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="OUTPUT1")])) for n in range(2)
    ],
    "classes": [Sent(a_ranking([0.5, n, 0.7, 0.2], 2)) for n in range(3)],
    "very many classes": [Sent(a_ranking([0.5, n, 0.7, 0.2], 2**40)) for n in range(2)],
    "typed contents": [Sent(a_message(change=bad_grpc.typed)) for _ in range(2)],
    "a stated latency and a deadline": [Sent(a_message(n), [LATENCY], 60.0) for n in range(2)],
    "BOOL that becomes bad": [Sent(an_echo("BOOL", [1, 2], data)) for data in (b"\0\1", b"\0\2", b"\1\1")],
    "BYTES that become bad": [
        Sent(an_echo("BYTES", [1, 1], data, id="i")) for data in (b"\1\0\0\0a", b"\2\0\0\0a", b"\1\0\0\0b")
    ],
    "FP16": [Sent(an_echo("FP16", [1, 2], np.full(2, n, np.float16).tobytes())) for n in range(2)],
    "nothing in it": [Sent(an_echo("FP32", [1, 0], b"")) for _ in range(2)],
    "large tensors": [Sent(an_echo("FP32", [1, VIEW_BYTES], bytes([n]) * 4 * VIEW_BYTES)) for n in range(2)],
    "very large tensors": [Sent(an_echo("FP32", [1, 200_000], bytes([n]) * 800_000)) for n in range(2)],
    "fields in another order": [Sent(a_message().SerializeToString() + b"\x1a\x017") for _ in range(2)],
    "unknown fields": [Sent(a_message().SerializeToString() + b"\xa0\x06\x01") for _ in range(2)],
    "the name twice": [Sent(a_message().SerializeToString() + b"\x0a\x06simpel") for _ in range(2)],
    "an id that is no text": [Sent(b"\x0a\x06simple\x1a\x01" + bad + a_message().SerializeToString()[8:])
                              for bad in (b"7", b"\xff")],
}  # fmt: skip


async def test_good_calls_are_answered_alike(both: Both) -> None:
    for name, calls in GOOD.items():
        await assert_alike(both, [*calls, *calls])
        assert both.fast.service.seen, name
    assert len(both.fast.service.seen) > 80


@pytest.mark.parametrize("has_deadline", [False, True])
async def test_bad_calls_are_refused_alike_before_and_after_good_ones(both: Both, has_deadline: bool) -> None:
    timeout_s = 60.0 if has_deadline else None
    stated = () if not has_deadline else (LATENCY,)
    cases = [
        case
        for case in bad_grpc.ALL
        if case.method == "ModelInfer" and case.code and case.name not in ("no credential", "a wrong credential")
    ]
    assert len(cases) > 30
    for case in cases:
        good = Sent(a_message(3), stated, timeout_s)
        metadata = case.metadata if any(key.startswith("x-infaas-slo") for key, _ in case.metadata) else ()
        bad = Sent(case.message(), [*(stated if not metadata else ()), *case.metadata], timeout_s)
        await assert_alike(both, [good, bad, good, bad])


async def test_callers_without_a_right_are_refused_alike_after_others_were_served(both: Both) -> None:
    for metadata in ((), [("authorization", "Bearer x")], [("authorization", "Basic x")]):
        await assert_alike(both, [Sent(a_message()), Sent(a_message(id="7"))])
        calls = [Sent(a_message(id="7"), metadata), Sent(b"\xff", metadata)]
        await assert_alike(both, calls, has_credential=False)


async def test_what_was_seen_before_is_not_parsed_again(both: Both, parsed: list[int]) -> None:
    await said(both.fast, [Sent(a_message(n, id=str(n))) for n in range(5)])
    assert len(parsed) == 1
    await said(both.fast, [Sent(a_message(n), timeout_s=60.0) for n in range(3)])
    assert len(parsed) == 2
    await said(both.fast, [Sent(a_message(n), [LATENCY, ("x-request-id", str(n))], 60.0) for n in range(3)])
    assert len(parsed) == 3
    await streamed(both.fast, [Sent(a_message(n, id=str(n))).data for n in range(3)])
    assert len(parsed) == 3
    await said(both.ordinary, [Sent(a_message(n)) for n in range(3)])
    assert len(parsed) == 6


async def test_deadlines_are_the_objective_of_calls_that_state_none(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        calls = [Sent(a_message(n), timeout_s=s) for n, s in enumerate((50.0, 40.0, 30.0))]
        assert all(answer for *_, answer in await said(running, calls))
        assert [query.requirements.latency_s for query in running.service.seen] == [
            pytest.approx(s, abs=5.0) for s in (50.0, 40.0, 30.0)
        ]
        stated = [Sent(a_message(n), [LATENCY], 60.0) for n in range(3)]
        await said(running, stated)
        assert [query.requirements.latency_s for query in running.service.seen[3:]] == [0.5] * 3


async def test_queries_that_want_the_same_share_one_object(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        await said(running, [Sent(a_message(n), [LATENCY], s) for n, s in enumerate((60.0, 50.0, 60.0))])
        assert len({id(query.requirements) for query in running.service.seen}) == 1
        assert len({id(query.signature) for query in running.service.seen}) == 1


async def test_queries_of_several_tenants_share_one_object_each(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        tenants = [("x-infaas-tenant", name) for name in ("a", "b", "a", "b")]
        for timeout_s in (None, 60.0):  # who has no deadline waits for what he stated; others until theirs
            running.service.seen.clear()
            await said(running, [Sent(a_message(n), [own], timeout_s) for n, own in enumerate(tenants)])
            wanted = [query.basis or query.requirements for query in running.service.seen]
            assert [each.tenant for each in wanted] == ["a", "b", "a", "b"]
            assert wanted[0] is wanted[2]
            assert wanted[1] is wanted[3]


async def test_queries_that_want_the_same_until_deadlines_of_their_own_share_what_they_want(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        await said(running, [Sent(a_message(n), timeout_s=s) for n, s in enumerate((60.0, 50.0, 60.0))])
        seen = running.service.seen
        assert len({id(query.requirements) for query in seen}) == 3
        assert len({id(query.basis) for query in seen}) == 1
        assert all(query.basis == replace(query.requirements, latency_s=86_400.0) for query in seen)


async def test_a_task_that_changes_is_seen_by_the_next_query(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        await said(running, [Sent(a_message(1)), Sent(a_message(2))])
        view = running.service.view
        task = view.tasks["simple-task"]
        defaults = replace(task.defaults, slo_latency_ms=40.0)
        running.service.view = replace(view, tasks={**view.tasks, "simple-task": replace(task, defaults=defaults)})
        await said(running, [Sent(a_message(3)), Sent(a_message(4))])
        assert [query.requirements.latency_s for query in running.service.seen] == [None, None, 0.04, 0.04]
        running.service.view = replace(view, tasks={}, models={}, variants={})
        (gone,) = await said(running, [Sent(a_message(5))])
        assert gone[0] is grpc.StatusCode.NOT_FOUND


async def test_refused_and_failed_queries_are_told_alike(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 0.0)  # that some are told so unread is for those that are recognised
    good, overflowing = Sent(a_message()), Sent(a_message(-(2**31)))
    await assert_alike(both, [good, overflowing, good, overflowing])
    for running in (both.fast, both.ordinary):
        running.service.refusal = RefusedError("queue full", code=Code.SATURATED, retry_after_s=1.5)
    await assert_alike(both, [good, good])
    await assert_streams_alike(both, [good.data, Sent(a_message(id="7")).data], [LATENCY])


async def test_calls_that_run_out_of_time_or_are_cancelled_are_counted_alike(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        service = running.service
        await said(running, [Sent(a_message(1), [LATENCY], 60.0)])
        service.hold = asyncio.Event()
        (late,) = await said(running, [Sent(a_message(2), [LATENCY], 0.3)])
        assert late[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(service.dropped.wait(), PATIENCE_S)
        service.dropped.clear()
        service.arrived.clear()
        async with grpc.aio.insecure_channel(running.grpc) as channel:
            call = channel.unary_unary(f"{SERVICE}ModelInfer")(Sent(a_message(3)).data, metadata=[CREDENTIAL, LATENCY])
            ended = asyncio.ensure_future(call.wait_for_connection())
            await asyncio.wait_for(service.arrived.wait(), PATIENCE_S)
            call.cancel()
            await asyncio.wait_for(service.dropped.wait(), PATIENCE_S)
            await asyncio.gather(ended, return_exceptions=True)
        service.hold = None
        await said(running, [Sent(a_message(4))])  # by then the others were counted
    assert counted(both.fast) == counted(both.ordinary)
    assert len(both.fast.service.cancelled) == len(both.ordinary.service.cancelled) == 2


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_recognised_too(
    both: Both, parsed: list[int], compression: grpc.Compression
) -> None:
    async with grpc.aio.insecure_channel(both.fast.grpc, compression=compression) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
        for number in range(3):
            answer = await call(Sent(a_message(number, id=str(number))).data, metadata=[CREDENTIAL])
            assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == [2 * number] * 16
            assert answer.id == str(number)
    assert len(parsed) == 1


# Streams


async def assert_streams_alike(both: Both, messages: Sequence[bytes], metadata: Metadata = ()) -> None:
    fast, ordinary = [await streamed(running, messages, metadata) for running in (both.fast, both.ordinary)]
    assert fast == ordinary
    assert counted(both.fast) == counted(both.ordinary)


async def test_good_streams_are_answered_alike(both: Both) -> None:
    for calls in GOOD.values():
        messages = [sent.data for sent in (*calls, *calls)]
        named = [data + b"\x1a\x03n%02d" % number for number, data in enumerate(messages)]
        metadata = calls[0].metadata
        await assert_streams_alike(both, messages, metadata)
        await assert_streams_alike(both, named, metadata)
    numbered = [Sent(a_message(n, id=str(n))).data for n in range(200)]
    await assert_streams_alike(both, numbered)


async def test_bad_queries_of_streams_are_refused_alike_among_good_ones(both: Both) -> None:
    for case in bad_grpc.ALL:
        data = Sent(case.message()).data
        if case.method != "ModelInfer" or not case.code or not case.has_credential or len(data) > 2**20:
            continue
        if case.name == "a request id with spaces":
            continue  # the stream ends before it began, which its client may take for a fault of its own
        good = Sent(a_message(2)).data
        await assert_streams_alike(both, [good, data, good, data], case.metadata)
