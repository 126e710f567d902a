"""The data-plane benchmark's load against real sockets: what it counts is what the server answered."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from infaas.oip.v2 import grpc_service_pb2 as oip
from infaas.testing.triton import free_port

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
QUESTIONS = [b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n" + bytes([number]) for number in range(4)]
Address = tuple[str, int]
UNSENT = 0


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from dataplane import generator, h2, native_load, servers, wire

    return SimpleNamespace(generator=generator, h2=h2, native_load=native_load, servers=servers, wire=wire)


class PythonLoad:
    def __init__(self, parts: Any) -> None:
        self._generator = parts.generator

    async def closed(self, address: Address, **window: Any) -> Any:
        connect = self._generator.rest_connect(address, QUESTIONS)
        return await self._generator.closed_loop(connect, len(QUESTIONS), **window)

    async def opened(self, address: Address, schedule: Sequence[float], *, deadline_s: float, most: int) -> Any:
        connect = self._generator.rest_connect(address, QUESTIONS)
        loop = self._generator.OpenLoop(connect, len(QUESTIONS), deadline_s=deadline_s, most=most)
        return await loop.run(schedule)


class CLoad:
    """The program waits for itself, so another thread waits for it."""

    def __init__(self, load: Any) -> None:
        self._load = load

    async def closed(self, address: Address, **window: Any) -> Any:
        return await asyncio.to_thread(self._load.closed, address, QUESTIONS, **window)

    async def opened(self, address: Address, schedule: Sequence[float], **more: Any) -> Any:
        return await asyncio.to_thread(self._load.opened, address, QUESTIONS, schedule, **more)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of built programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(params=["python", "c"])
def load(request: pytest.FixtureRequest, parts: Any, cache: Path) -> PythonLoad | CLoad:
    if request.param == "python":
        return PythonLoad(parts)
    return CLoad(parts.native_load.NativeLoad(built(parts, "load", cache)))


def built(parts: Any, name: str, cache: Path) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    program: Path = parts.native_load.built(name, cache)
    return program


REFUSED = "X-Infaas-Dropped-Reason: deadline-unreachable\r\nserver-timing: queue;dur=1.000, total;dur=1.500\r\n"


def said(status: int, content: bytes = b"", more: str = "") -> bytes:
    return f"HTTP/1.1 {status} Word\r\n{more}content-length: {len(content)}\r\n\r\n".encode() + content


@asynccontextmanager
async def a_server(
    answer: Callable[[int, int], bytes], *, closes: bool = False, at: Address = ("127.0.0.1", 0)
) -> AsyncIterator[Address]:
    """Answers the n-th query of all, and its question; an empty answer closes the connection, and each does so if it
    `closes`."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                question = (await reader.readexactly(1))[0]
                count += 1
                said = answer(count, question)
                if not said:
                    break
                half = len(said) // 2  # answers come in pieces
                writer.write(said[:half])
                await writer.drain()
                writer.write(said[half:])
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, *at, reuse_port=True)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


async def test_a_closed_loop_counts_answers_by_status_and_keeps_some_with_their_question(
    load: PythonLoad | CLoad,
) -> None:
    edges: list[None] = []
    async with a_server(lambda n, question: said(200 if n % 10 else 429, b"%d" % question)) as address:
        seen = await load.closed(address, connections=4, warm_s=0.05, seconds=0.5, on_edge=lambda: edges.append(None))
    assert seen.failure == ""
    assert len(edges) == 2
    assert seen.answered == seen.statuses[200] > seen.statuses[429] > 0
    assert len(seen.latencies_s) == seen.answered
    assert seen.kept
    assert all(one.content.endswith(b"\r\n\r\n%d" % one.question) for one in seen.kept)


async def test_a_connection_that_ends_is_said_and_ends_a_closed_loop(load: PythonLoad | CLoad) -> None:
    async with a_server(lambda n, _: said(200) if n < 20 else b"") as address:
        seen = await load.closed(address, connections=2, warm_s=0.0, seconds=30.0)
    assert "closed the connection" in seen.failure


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", said(200) + b"more"],
    ids=["no length", "more than the answer"],
)
async def test_an_answer_that_the_load_does_not_understand_ends_a_closed_loop(
    load: PythonLoad | CLoad, answer: bytes
) -> None:
    async with a_server(lambda n, _: said(200) if n < 20 else answer) as address:
        seen = await load.closed(address, connections=2, warm_s=0.0, seconds=30.0)
    assert seen.failure


async def test_every_query_of_a_schedule_has_its_own_outcome(load: PythonLoad | CLoad) -> None:
    """One in eight is refused, one in sixteen loses its connection, and the rest goes on over new ones."""
    schedule = list(np.linspace(0.0, 0.5, 320))

    def answer(n: int, question: int) -> bytes:
        return b"" if n % 16 == 0 else said(429, more=REFUSED) if n % 16 == 8 else said(200)

    async with a_server(answer) as address:
        seen = await load.opened(address, schedule, deadline_s=60.0, most=8)
    statuses = np.asarray(seen.statuses)
    assert np.sum(statuses == -1) == 20
    assert np.sum(statuses == 429) == 20
    assert np.sum(statuses == 200) == 280
    sent, ended, due = (np.frombuffer(x) for x in (seen.sent_s, seen.ended_s, seen.due_s))
    assert np.all(due <= sent)
    assert np.all(sent <= ended)
    assert seen.most_connections <= 8
    refused = statuses == 429
    assert {seen.words[reason] for reason in np.asarray(seen.reasons)[refused]} == {"deadline-unreachable"}
    assert set(np.frombuffer(seen.stated_s)[refused]) == {0.0015}


async def test_connections_that_the_server_says_it_closes_are_made_again(load: PythonLoad | CLoad) -> None:
    closing = said(200, more="connection: close\r\n")
    async with a_server(lambda n, question: closing, closes=True) as address:
        seen = await load.opened(address, list(np.linspace(0.0, 0.2, 40)), deadline_s=60.0, most=2)
    assert list(seen.statuses) == [200] * 40
    assert seen.refused_connections == 0


async def test_idle_connections_that_the_server_closes_unsaid_are_made_again(load: PythonLoad | CLoad) -> None:
    """Who asks on one while it is being closed is not answered; everybody else is."""
    async with a_server(lambda n, question: said(200), closes=True) as address:
        seen = await load.opened(address, list(np.linspace(0.0, 0.5, 20)), deadline_s=60.0, most=2)
    assert set(seen.statuses) <= {200, -1}
    assert list(seen.statuses).count(200) > 2, "more than the first connections could answer"


async def test_a_connection_that_cannot_be_made_is_tried_again_while_queries_wait(load: PythonLoad | CLoad) -> None:
    """The server goes with the first query, and comes back: those that can wait are answered."""
    gone = asyncio.Event()

    def goes(n: int, question: int) -> bytes:
        gone.set()
        return b""

    async def goes_and_comes_back(address: Address) -> None:
        async with a_server(goes, at=address):
            listening.set()
            await gone.wait()
        await asyncio.sleep(0.3)  # in which nobody listens
        async with a_server(lambda n, question: said(200), at=address):
            await done.wait()

    listening, done = asyncio.Event(), asyncio.Event()
    with socket.socket() as held:  # nobody else gets the port
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        address = held.getsockname()
        serving = asyncio.create_task(goes_and_comes_back(address), name="server")
        await listening.wait()
        seen = await load.opened(address, [0.0, *([0.05] * 5)], deadline_s=60.0, most=1)
        done.set()
        await serving
    assert list(seen.statuses) == [-1, *([200] * 5)]


async def test_a_query_whose_deadline_passed_before_a_connection_was_free_is_not_sent(
    load: PythonLoad | CLoad,
) -> None:
    gate = asyncio.Event()
    received: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                received.append((await reader.readexactly(1))[0])
                await gate.wait()
                writer.write(said(200))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    # The second is due at once and waits for the only connection until the gate opens, long after its deadline.
    asyncio.get_running_loop().call_later(1.0, gate.set)
    seen = await load.opened(server.sockets[0].getsockname(), [0.0, 0.0], deadline_s=0.2, most=1)
    server.close()
    assert list(seen.statuses) == [200, UNSENT]
    assert received == [0]


async def test_grpc_calls_of_prepared_frames_are_answered_by_a_real_server(parts: Any) -> None:
    """More bytes than the first window holds, so that the windows must be kept; one call in seven fails."""
    count = 0
    seen_headers: set[str] = set()

    async def infer(request: Any, context: Any) -> Any:
        nonlocal count
        count += 1
        seen_headers.update(str(value) for key, value in context.invocation_metadata() if key == "x-asked")
        if count % 7 == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return oip.ModelInferResponse(raw_output_contents=[request.raw_input_contents[0][:4]])

    method = grpc.unary_unary_rpc_method_handler(
        infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    rows = [np.full(2_000, number, np.float32) for number in range(3)]
    messages = [oip.ModelInferRequest(raw_input_contents=[row.tobytes()]).SerializeToString() for row in rows]
    try:
        seen = await parts.generator.closed_loop(
            parts.h2.grpc_connect(("127.0.0.1", port), "/s/m", messages, {"x-asked": "v" * 200}), 3,
            connections=3, warm_s=0.1, seconds=1.0,
        )  # fmt: skip
    finally:
        await server.stop(None)
    assert seen.failure == ""
    assert seen.statuses[200] > seen.statuses[500] > 0
    assert seen.statuses.total() * len(messages[0]) > 3 * 65_535
    assert seen_headers == {"v" * 200}
    assert parts.wire.wrong(seen.kept, np.array([[0.0], [1.0], [2.0]]), parts.wire.grpc_output) == []


def test_a_grpc_message_that_fits_no_frame_is_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match="does not fit a frame"):
        parts.h2.grpc_connect(("127.0.0.1", 1), "/s/m", [b"x" * 20_000], {})


@contextmanager
def a_null_server(parts: Any, cache: Path, tmp_path: Path) -> Iterator[Address]:
    answer = tmp_path / "answer"
    answer.write_bytes(said(200, b"nothing"))
    address = ("127.0.0.1", free_port())
    with subprocess.Popen([built(parts, "null", cache), str(address[1]), answer]) as process:
        try:
            parts.servers.wait_listening(address, lambda: process.poll() is None, 10.0)
            yield address
        finally:
            process.kill()


@pytest.mark.parametrize("size", [1, 300_000])
def test_the_null_server_reads_whole_requests_and_answers_each_once(
    parts: Any, cache: Path, tmp_path: Path, size: int
) -> None:
    load = parts.native_load.NativeLoad(built(parts, "load", cache))
    request = f"POST / HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size)
    with a_null_server(parts, cache, tmp_path) as address:
        seen = load.closed(address, [request], connections=8, warm_s=0.05, seconds=0.3)
    assert (seen.failure, set(seen.statuses)) == ("", {200})
    assert {one.content for one in seen.kept} == {said(200, b"nothing")}


def test_a_program_that_cannot_be_built_says_why(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(parts.native_load.CannotBuildError, match="no C compiler"):
        parts.native_load.built("load", tmp_path)


def test_nobody_there_ends_the_load_with_the_reason(parts: Any, cache: Path) -> None:
    load = parts.native_load.NativeLoad(built(parts, "load", cache))
    with pytest.raises(SystemExit, match="no connection"):
        load.closed(("127.0.0.1", free_port()), QUESTIONS, connections=2, warm_s=0.0, seconds=1.0)
