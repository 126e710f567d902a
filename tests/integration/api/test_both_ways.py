"""The fast way and the ordinary one answer everything alike: status, fields and their order, body, what is counted."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alike import OWN_ID, Both, counted, query_of, serving_both
from infaas_controller.api import turned
from infaas_controller.api.http_infer import InferEndpoint
from infaas_controller.api.http_limits import Limits
from infaas_controller.api.http_turns import Turns
from serving import Serving

from infaas.domain.query import Code
from infaas.errors import RefusedError

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e" / "bad_input"))

import bad_rest
from raw_callers import TOKEN, request_bytes

PATIENCE_S = 30.0
INFER = "/v2/models/simple/infer"
END = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"
"""Closes the connection after everything before it was answered."""
_DATE = re.compile(rb"\r\ndate: [^\r]+")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


@dataclass(frozen=True)
class Exchange:
    """What a caller sends on one connection, piece by piece: the next when the last was answered in full."""

    name: str
    pieces: Sequence[bytes]


@pytest.fixture(params=["a turn each", "all in one turn"])
async def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Both]:
    """What was found for a header in a turn of the loop is not looked up again in it."""
    if request.param == "all in one turn":
        monkeypatch.setattr(Turns, "number", property(lambda _: 0, lambda _turns, _number: None), raising=False)
    async with serving_both(TOKEN, Limits(patience_s=PATIENCE_S, linger_s=2.0)) as servers:
        yield servers


@pytest.fixture
async def hasty() -> AsyncIterator[Both]:
    async with serving_both(TOKEN, Limits(patience_s=0.3, least_bytes_per_s=1e9, linger_s=2.0)) as servers:
        yield servers


async def said(running: Serving, pieces: Sequence[bytes]) -> bytes:
    """Everything that comes back, without what differs from run to run."""
    host, port = running.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            for piece in (*pieces, END):
                writer.write(piece)
                if piece is not END:
                    heard += await answer(reader)
            while more := await reader.read(2**16):
                heard += more
    except ConnectionError:
        pass  # the other side closed; what it said before is here
    except asyncio.IncompleteReadError as error:
        heard += error.partial
    finally:
        writer.close()
    return plain(heard)


def plain(heard: bytes) -> bytes:
    """Ids of ours differ, and with them lengths; `answer` has held those against what came."""
    for pattern, shown in ((OWN_ID, b"r-own"), (_DATE, b"\r\ndate: now"), (_LENGTH, b"\r\ncontent-length: right")):
        heard = pattern.sub(shown, heard)
    return heard


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    found = _LENGTH.search(head)
    return head + (await reader.readexactly(int(found[1])) if found else b"")


async def assert_alike(both: Both, exchanges: Sequence[Exchange]) -> None:
    for exchange in (*exchanges, *exchanges):  # a header that came before goes another way again
        fast, ordinary = await said(both.fast, exchange.pieces), await said(both.ordinary, exchange.pieces)
        assert fast.split(b"\r\n") == ordinary.split(b"\r\n"), exchange.name
    assert counted(both.fast) == counted(both.ordinary)
    assert [query_of(q) for q in both.fast.service.seen] == [query_of(q) for q in both.ordinary.service.seen]


# The table of bad input


@pytest.mark.parametrize("table", ["BODIES", "BINARY_BODIES", "REQUIREMENTS", "NAMES", "CONNECTIONS"])
async def test_bad_input_is_refused_alike(both: Both, table: str) -> None:
    cases = [case for case in getattr(bad_rest, table) if case.status]
    assert len(cases) > 5
    await assert_alike(both, [Exchange(case.name, list(case.pieces())) for case in cases])


@pytest.mark.parametrize("table", ["BODIES", "BINARY_BODIES", "REQUIREMENTS"])
async def test_bad_input_is_refused_alike_behind_a_good_query_and_before_one(both: Both, table: str) -> None:
    good = request_bytes("POST", INFER, json.dumps(bad_rest.body_of()).encode())
    cases = getattr(bad_rest, table)
    await assert_alike(both, [Exchange(case.name, [good, *case.pieces(), good]) for case in cases])


# Good queries, and how they come


def a_body(**more: Any) -> bytes:
    return json.dumps(bad_rest.body_of() | more).encode()


def a_query(
    body: bytes | None = None, headers: Mapping[str, str] | Sequence[tuple[str, str]] = (), path: str = INFER
) -> bytes:
    return request_bytes("POST", path, a_body() if body is None else body, headers)


def a_binary_query(value: int = 1, headers: Mapping[str, str] | None = None, items: int = 1, **more: Any) -> bytes:
    array = np.full((items, 16), value, np.int32)
    inputs = [
        {"name": n, "shape": [items, 16], "datatype": "INT32", "parameters": {"binary_data_size": array.nbytes}}
        for n in ("INPUT0", "INPUT1")
    ]
    head = json.dumps({"inputs": inputs, **more}).encode()
    fields = {"inference-header-content-length": str(len(head)), **(headers or {})}
    return a_query(head + array.tobytes() + (array * 2).tobytes(), fields)


def an_echo(datatype: str, shape: Sequence[int], data: bytes, **more: Any) -> bytes:
    name = datatype.lower()
    said = {"name": f"in_{name}", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [said], **more}).encode()
    fields = {"inference-header-content-length": str(len(head))}
    return a_query(head + data, fields, f"/v2/models/echo-{name}/infer")


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BINARY_OUT = {"parameters": {"binary_data_output": True}}
GOOD: Mapping[str, Sequence[bytes]] = {
    "JSON": [a_query()],
    "an id of its own": [a_query(a_body(id="mine"))],
    "an id that is no request id": [a_query(a_body(id="with space é"))],
    "a request id": [a_query(a_body(id="7"), {"x-request-id": "abc"}), a_query(None, {"x-request-id": "def"})],
    "a trace": [a_query(None, {"traceparent": TRACE, "tracestate": "a=b"})],
    "an unusable trace": [a_query(None, {"traceparent": "00-zz"})],
    "a version": [a_query(path="/v2/models/simple/versions/1/infer")],
    "a task": [a_query(path="/v2/models/simple-task/infer")],
    "a variant": [a_query(path="/v2/models/simple.v1.ort-fp32-t1/infer")],
    "requirements": [
        a_query(None, {"x-infaas-slo-latency-ms": "500", "x-infaas-priority": "critical"}),
        a_query(None, {"x-infaas-slo-latency-ms": "500", "x-infaas-tenant": "team-7"}),
        a_query(None, {"x-infaas-tenant": "team 7"}),
        a_query(None, {"x-infaas-fallback": "allow"}),
        a_query(a_body(parameters={"slo_latency_ms": 70, "priority": 1})),
        a_query(a_body(parameters={"timeout": 5_000_000})),
    ],
    "explain": [a_query(None, {"x-infaas-explain": "true"}), a_query(a_body(parameters={"explain": True}))],
    "outputs": [a_query(a_body(outputs=[{"name": "OUTPUT1"}]))],
    "binary": [a_binary_query(1), a_binary_query(2), a_binary_query(3, **BINARY_OUT), a_binary_query(4, **BINARY_OUT)],
    "binary of many items": [a_binary_query(1, items=4), a_binary_query(2, items=4), a_binary_query(3, items=3)],
    "binary with requirements": [
        a_binary_query(n, {"x-infaas-slo-latency-ms": ms}) for n, ms in ((1, "90"), (2, "90"), (3, "80"))
    ],
    "binary with ids": [a_binary_query(1, id="one"), a_binary_query(2, id="one"), a_binary_query(3, id="two")],
    "binary with request ids": [a_binary_query(n, {"x-request-id": f"n{n}"}) for n in range(3)],
    "binary that becomes bad": [an_echo("BOOL", [1, 2], data) for data in (b"\0\1", b"\0\2", b"\1\1")],
    "binary that becomes bad, with an id": [an_echo("BOOL", [1, 1], data, id="mine") for data in (b"\1", b"\7")],
    "BYTES that become bad": [
        an_echo("BYTES", [1, 1], data, **BINARY_OUT) for data in (b"\1\0\0\0a", b"\2\0\0\0a", b"\1\0\0\0b")
    ],
    "FP16": [an_echo("FP16", [1, 2], np.full(2, n, np.float16).tobytes(), **BINARY_OUT) for n in range(2)],
    "FP16 without a form": [an_echo("FP16", [1, 2], bytes(4)) for _ in range(2)],
    "a raw body": [
        a_query(np.full(4, n, np.float32).tobytes(), {"inference-header-content-length": "0"},
                "/v2/models/rank/infer")
        for n in range(2)
    ],
    "classes": [
        a_query(
            json.dumps({
                "inputs": [{"name": "scores", "shape": [1, 4], "datatype": "FP32", "data": [0.5, 0.1, 0.7, 0.2]}],
                "outputs": [{"name": "scores", "parameters": {"classification": top}}],
            }).encode(),
            path="/v2/models/rank/infer",
        )
        for top in (2, 99)
    ],
    "compressed answers": [a_query(None, {"accept-encoding": "gzip"}), a_query(None, {"accept-encoding": "deflate"})],
    "a list of codings": [a_query(None, {"accept-encoding": "gzip, deflate, br"})],
    "a query string": [a_query(path=f"{INFER}?a=b")],
    "a name in percent": [a_query(path="/v2/models/sim%70le/infer")],
    "no such name": [a_query(path="/v2/models/simpel/infer"), a_query(path="/v2/models/../infer"), a_query()],
    "asked to close": [a_query(None, {"connection": "close"})],
    "upgrades": [a_query(None, {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAM"})],
    "HTTP/1.0": [a_query().replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)],
    "a large answer": [a_query(
        json.dumps({"inputs": [
            {"name": "in_int32", "shape": [1, 9_000], "datatype": "INT32", "data": [7] * 9_000}
        ]}).encode(),
        path="/v2/models/echo-int32/infer",
    )],
    "a large binary answer": [an_echo("FP32", [1, 40_000], bytes(160_000), **BINARY_OUT)],
    "a body past a megabyte": [an_echo("FP32", [1, 300_000], bytes(1_200_000), **BINARY_OUT)],
    "blank lines between": [b"\r\n" + a_query(), b"\r\n\r\n" + a_query()],
}  # fmt: skip


async def test_good_queries_are_answered_alike(both: Both) -> None:
    await assert_alike(both, [Exchange(name, pieces) for name, pieces in GOOD.items()])
    assert len(both.fast.service.seen) > 40


async def test_only_usual_queries_take_the_fast_way(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []
    serve = InferEndpoint.serve

    async def noted(self: InferEndpoint, *given: Any) -> None:
        served.append(given[-2])
        await serve(self, *given)

    monkeypatch.setattr(InferEndpoint, "serve", noted)
    usual = ["JSON", "binary", "a trace", "a request id", "explain", "no such name", "asked to close", "classes"]
    for name in usual:
        await said(both.fast, GOOD[name])
    assert served == []
    for name in ("compressed answers", "a query string", "HTTP/1.0", "a body past a megabyte"):
        before = len(served)
        await said(both.fast, GOOD[name])
        assert len(served) == before + len(GOOD[name])
    before = len(served)
    await said(both.ordinary, GOOD["JSON"])
    assert len(served) == before + 1


async def test_pipelined_queries_are_answered_alike(both: Both) -> None:
    for first in ("JSON", "binary", "no such name", "HTTP/1.0", "compressed answers", "asked to close"):
        for second in ("JSON", "binary with ids", "a list of codings", "a query string", "a large answer"):
            whole = b"".join([*GOOD[first], *GOOD[second], END])
            fast, ordinary = await transcript(both.fast, [whole]), await transcript(both.ordinary, [whole])
            assert fast.split(b"\r\n") == ordinary.split(b"\r\n"), (first, second)
    assert counted(both.fast) == counted(both.ordinary)


@pytest.mark.parametrize("cut", [1, 30, "head", -40, -1])
async def test_queries_that_come_in_pieces_are_answered_alike(both: Both, cut: int | str) -> None:
    for name in ("JSON", "binary", "no such name", "a request id", "a list of codings", "asked to close"):
        query = GOOD[name][0]
        at = query.index(b"\r\n\r\n") + 4 if cut == "head" else int(cut)
        pieces = [query[:at], query[at:] + END]
        fast, ordinary = await transcript(both.fast, pieces), await transcript(both.ordinary, pieces)
        assert fast.split(b"\r\n") == ordinary.split(b"\r\n"), (name, cut)
    assert counted(both.fast) == counted(both.ordinary)


@pytest.mark.parametrize("missing", ["body", "part", "header"])
async def test_a_query_that_never_becomes_whole_ends_alike(hasty: Both, missing: str) -> None:
    query = GOOD["JSON"][0]
    head = query.index(b"\r\n\r\n") + 4
    sent = {"body": query[:head], "part": query[:-20], "header": query[: head - 10]}[missing]
    heard = [await transcript(running, [sent]) for running in (hasty.fast, hasty.ordinary)]
    assert heard[0].split(b"\r\n") == heard[1].split(b"\r\n")
    assert heard[0].startswith(b"HTTP/1.1 408 ")
    assert counted(hasty.fast) == counted(hasty.ordinary)


async def test_a_refused_header_is_answered_before_its_body_comes(both: Both) -> None:
    query = a_query(path="/v2/models/simpel/infer")
    head = query.index(b"\r\n\r\n") + 4
    heard = [await transcript(running, [query[:head]]) for running in (both.fast, both.ordinary)]
    assert heard[0].split(b"\r\n") == heard[1].split(b"\r\n")
    assert heard[0].startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close" in heard[0]


@pytest.mark.parametrize("code", [Code.SATURATED, Code.DEADLINE_PASSED, Code.NO_WORKER, Code.DRAINING])
async def test_refusals_of_the_service_are_answered_alike(
    both: Both, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 0.0)  # that some are told so unread is the fast way's alone
    for running in (both.fast, both.ordinary):
        running.service.refusal = RefusedError("not now", code=code, retry_after_s=2.5)
    await assert_alike(both, [Exchange(name, GOOD[name]) for name in ("JSON", "binary", "requirements")])


async def test_a_model_that_raises_is_answered_alike(both: Both) -> None:
    await assert_alike(both, [Exchange("overflow", [a_query(a_body()), a_binary_query(-(2**31)), a_binary_query(1)])])


async def test_queries_that_need_more_than_the_loop_can_begin_are_answered_alike(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of each are known before the third must wait for something."""
    pieces = [a_binary_query(1), a_binary_query(2), a_query(), a_query()]
    await assert_alike(both, [Exchange("known", pieces)])
    before = len(both.fast.service.seen)
    for running in (both.fast, both.ordinary):
        monkeypatch.setattr(running.service, "can_begin", lambda query: False)
    await assert_alike(both, [Exchange("not begun", pieces)])
    assert len(both.fast.service.seen) == before + 2 * len(pieces)


async def test_callers_that_leave_are_counted_alike(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        running.service.hold = asyncio.Event()
        host, port = running.http.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(a_query())
        async with asyncio.timeout(PATIENCE_S):
            await running.service.arrived.wait()
            writer.close()
            await running.service.dropped.wait()
            running.service.hold = None
            await said(running, [a_query()])
    assert counted(both.fast) == counted(both.ordinary)
    assert len(both.fast.service.cancelled) == len(both.ordinary.service.cancelled) == 1


@pytest.mark.parametrize("both", ["a turn each"], indirect=True)
async def test_a_task_that_changes_is_seen_by_the_next_turn(both: Both) -> None:
    for running in (both.fast, both.ordinary):
        await said(running, [a_binary_query(1), a_binary_query(2)])
        view = running.service.view
        task = view.tasks["simple-task"]
        defaults = replace(task.defaults, slo_latency_ms=40.0)
        running.service.view = replace(view, tasks={**view.tasks, "simple-task": replace(task, defaults=defaults)})
        await said(running, [a_binary_query(3), a_query()])
        stated = [query.requirements.latency_s for query in running.service.seen]
        assert stated == [None, None, 0.04, 0.04]


async def transcript(running: Serving, pieces: Sequence[bytes]) -> bytes:
    """Everything that comes back until the connection ends; the pieces are read apart."""
    host, port = running.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            for piece in pieces[:-1]:
                writer.write(piece)
                await said(running, [])  # by then the server has read it
            writer.write(pieces[-1])
            while more := await reader.read(2**16):
                heard += more
    except ConnectionError:
        pass
    finally:
        writer.close()
    return plain(heard)
