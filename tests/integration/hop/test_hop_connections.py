"""Connections of the hop over real sockets and within a process, on both event loops: what is sent arrives, and whoever
breaks the rules is cut off without harm to anybody else."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvloop

from infaas.errors import UnauthenticatedError
from infaas.rpc.hop import endpoint as endpoints
from infaas.rpc.hop import listener as listeners
from infaas.rpc.hop.address import dial
from infaas.rpc.hop.endpoint import Connection, Endpoint, Handler
from infaas.rpc.hop.frames import ALIVE, HELLO_LIMIT_BYTES, OLDEST_VERSION, VERSION, pack, preface
from infaas.rpc.hop.inner import InnerEnd
from infaas.rpc.hop.listener import Listener
from infaas.rpc.tls import Tls
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.certificates import Authority
from infaas.testing.hop import WAIT_S, Heard, connected, connected_inside, share_memory

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Run = Callable[[Coroutine[Any, Any, None]], None]
Join = Callable[[Handler, Handler], Awaitable[tuple[Connection, Connection]]]
TOKEN = "secret-of-the-test"
POOL_BYTES = 4 * 2**20


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on either event loop."""

    def on_its_loop(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(test)

    return on_its_loop


class Place(NamedTuple):
    """Where to listen, how much memory each end lends once a caller is admitted, and whether callers are met within
    the process instead."""

    address: str
    pool_bytes: int = 0
    is_inside: bool = False
    tls: Tls | None = None


WAYS = ("unix", "unix, shared memory", "tcp", "tls")


def place_of(way: str, tmp_path: Path) -> Place:
    if way == "tcp":
        return Place("127.0.0.1:0")
    if way == "tls":
        return Place("127.0.0.1:0", tls=Tls(Authority(tmp_path / "ca").issue("127.0.0.1")))
    return Place(f"unix:{tmp_path}/w.sock", POOL_BYTES if way == "unix, shared memory" else 0, way == "inside")


@pytest.fixture(params=WAYS)
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request.param, tmp_path)


@pytest.fixture(params=[*WAYS, "inside"])
def reach(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """As `listen`, or within the process."""
    return place_of(request.param, tmp_path)


@pytest.fixture(params=[connected, connected_inside])
def join(request: pytest.FixtureRequest) -> Join:
    """Two ends of a connection, over a socket or within the process."""
    found: Join = request.param
    return found


class Host:
    """A listener whose admitted controllers are remembered. Use as an async context manager."""

    def __init__(self, place: Place) -> None:
        self.is_inside = place.is_inside
        self._listen = place.address
        self.pool_bytes = place.pool_bytes
        self.tls = place.tls
        self._listener = Listener(self._admit, tls=place.tls)
        self.address = ""
        self.controllers: list[tuple[str, Heard, Connection]] = []

    async def __aenter__(self) -> Host:
        self.address = await self._listener.start(self._listen)
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._listener.close()

    def meet(self, heard: Heard) -> InnerEnd:
        return self._listener.meet(heard)

    def _admit(self, hello: pb.Hello, endpoint: Connection) -> Heard:
        if hello.token != TOKEN:
            raise UnauthenticatedError("a wrong token")
        heard = Heard()
        self.controllers.append((hello.controller, heard, endpoint))
        endpoint.send(b"welcome")
        return heard

    async def raw(self, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A caller that says just this."""
        if self.address.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(self.address.removeprefix("unix:"))
        else:
            host, _, port = self.address.rpartition(":")
            context = None if self.tls is None else self.tls.client()
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(said)
        return reader, writer


def a_hello(token: str = TOKEN) -> bytes:
    return pb.ControllerMessage(hello=pb.Hello(controller="c1", version="test", token=token)).SerializeToString()


def framed(head: bytes, *segments: bytes) -> bytes:
    return b"".join(pack(head, segments))


GREETING = preface() + framed(a_hello())


async def attached(host: Host) -> tuple[Connection, Heard]:
    heard = Heard()
    end: Connection
    if host.is_inside:
        end = host.meet(heard)
    else:
        end = dialled = Endpoint(heard, silence_s=WAIT_S)
        await dial(host.address, lambda: dialled, host.tls)
    end.greet()
    end.send(a_hello())
    await heard.until(lambda: heard.frames == [(b"welcome", b"")])
    other = host.controllers[-1][2]
    if host.pool_bytes and isinstance(end, Endpoint) and isinstance(other, Endpoint):
        share_memory(end, other, host.pool_bytes)
    return end, heard


async def read_to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What the other side said until it ended the connection."""
    async with asyncio.timeout(WAIT_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


def refusals(said: bytes) -> list[pb.Refusal]:
    """Those in what a listener said, after its preface."""
    assert said.startswith(preface())
    found, at = [], len(preface())
    while at < len(said):
        head, payload = struct.unpack_from("<II", said, at)
        found.append(pb.WorkerMessage.FromString(said[at + 8 : at + 8 + head]).refusal)
        at += 8 + head + payload
    return found


def test_messages_and_tensors_of_any_size_arrive_in_order_both_ways(run: Run, reach: Place) -> None:
    async def test() -> None:
        large = np.random.default_rng(7).integers(0, 256, 3_000_001, np.uint8).tobytes()
        messages = [(b"a", b""), (b"", b"x"), (b"b" * 70_000, large), (b"c", large[:600]), (b"d", large[:65_536])]
        async with Host(reach) as host:
            end, heard = await attached(host)
            ((name, theirs, back),) = host.controllers
            assert (name, heard.version) == ("c1", VERSION)
            for head, payload in messages:
                end.send(head, [payload[:100], memoryview(payload)[100:]])
                back.send(head, [payload])
            await theirs.until(lambda: len(theirs.frames) == len(messages))
            await heard.until(lambda: len(heard.frames) == len(messages) + 1)
            assert theirs.frames == messages
            assert heard.frames[1:] == messages
            end.close("done")
            assert await theirs.over() == "the peer ended the connection"

    run(test())


def test_what_is_sent_before_the_end_arrives_before_it(run: Run, reach: Place) -> None:
    async def test() -> None:
        async with Host(reach) as host:
            end, _ = await attached(host)
            end.send(b"last", [bytes(2_000_000)])
            end.close("done")
            end.send(b"after")
            (_, theirs, _), *_ = host.controllers
            await theirs.over()
            assert [(head, len(payload)) for head, payload in theirs.frames] == [(b"last", 2_000_000)]

    run(test())


def test_what_one_turn_of_the_loop_sends_is_handed_over_at_once(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await connected(one, two)
        await end.flushed()
        calls: list[str] = []
        end._transport = _Counting(end._transport, calls)  # type: ignore[assignment]
        for number in range(20):
            end.send(b"%d" % number, [b"tensor"])
        await two.until(lambda: len(two.frames) == 20)
        assert calls == ["write"]
        for number in range(4):
            end.send(b"%d" % number, [bytes(100_000)])
        await two.until(lambda: len(two.frames) == 24)
        assert calls == ["write", "writelines"]
        end.cut("done")
        await two.over()
        await asyncio.gather(end.gone(), other.gone())

    run(test())


class _Counting:
    """Counts what is handed to a transport."""

    def __init__(self, transport: Any, calls: list[str]) -> None:
        self._transport = transport
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("write"):
            self._calls.append(name)
        return getattr(self._transport, name)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (framed(b"whole") + framed(b"half", bytes(100))[:-1], "in the middle of a message"),
        (framed(b"whole") + b"\x01", "in the middle of a message"),
        (framed(b"whole") + struct.pack("<II", 5, 2**20) + bytes(70_000), "in the middle of a message"),
        (framed(b"whole"), "the peer ended the connection"),
    ],
)
def test_a_connection_that_ends_early_ends_its_controller_and_nobody_else(
    run: Run, listen: Place, said: bytes, reason: str
) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            end, _ = await attached(host)
            _, writer = await host.raw(GREETING + said)
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS cannot be half closed
                writer.close()
            neighbour = host.controllers[0][1]
            while len(host.controllers) < 2:  # noqa: ASYNC110  (a plain list of the test's own)
                await asyncio.sleep(0.01)
            heard = host.controllers[1][1]
            assert (await heard.over()).endswith(reason)
            assert (heard.frames, heard.ends) == ([(b"whole", b"")], 1)
            writer.close()
            end.send(b"still here")
            await neighbour.until(lambda: neighbour.frames == [(b"still here", b"")])
            end.cut("done")
            await end.gone()

    run(test())


def test_a_length_beyond_the_limit_ends_the_connection_before_any_memory_is_taken(run: Run, listen: Place) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            reader, writer = await host.raw(GREETING + struct.pack("<II", 8, 2**32 - 9))
            await read_to_the_end(reader, writer)
            ((_, heard, _),) = host.controllers
            assert "a frame of 4294967295 bytes is announced" in (heard.reason or "")

    run(test())


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nhost: worker\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(64),
        preface()[::-1],
    ],
)
def test_who_speaks_another_protocol_is_hung_up_on(run: Run, listen: Place, said: bytes) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            assert await read_to_the_end(*await host.raw(said)) == b""
            assert host.controllers == []

    run(test())


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (framed(a_hello("wrong")), "unauthenticated", "a wrong token"),
        (framed(a_hello("")), "unauthenticated", "a wrong token"),
        (framed(b"\xff\xff\xff"), "invalid-argument", "the first message cannot be read"),
        (framed(pb.ControllerMessage(cancel=pb.CancelQueries(batch=1)).SerializeToString()), "", "must be Hello"),
    ],
)
def test_who_does_not_say_hello_as_it_should_is_refused_with_the_reason(
    run: Run, listen: Place, said: bytes, code: str, reason: str
) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            (refusal,) = refusals(await read_to_the_end(*await host.raw(preface() + said)))
            assert reason in refusal.reason
            assert refusal.error_code == code or not code
            assert host.controllers == []

    run(test())


def test_who_has_shown_no_credential_yet_may_send_next_to_nothing(run: Run, listen: Place) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            announced = struct.pack("<II", HELLO_LIMIT_BYTES + 1, 0)
            assert await read_to_the_end(*await host.raw(preface() + announced)) in (b"", preface())
            assert host.controllers == []

    run(test())


@pytest.mark.parametrize("version", [VERSION + 1, 999])
def test_with_a_caller_of_a_newer_version_the_newest_that_is_known_here_is_spoken(
    run: Run, listen: Place, version: int
) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            reader, writer = await host.raw(preface(version) + framed(a_hello()))
            expected = preface(VERSION) + framed(b"welcome")
            async with asyncio.timeout(WAIT_S):
                assert await reader.readexactly(len(expected)) == expected
            assert [name for name, *_ in host.controllers] == ["c1"]
            writer.close()

    run(test())


@pytest.mark.parametrize("version", [OLDEST_VERSION - 1])
def test_a_caller_of_a_version_that_is_not_spoken_any_more_is_told_so_and_let_go(
    run: Run, listen: Place, version: int
) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            (refusal,) = refusals(await read_to_the_end(*await host.raw(preface(version) + framed(a_hello()))))
            assert refusal.error_code == "unsupported"
            assert f"version {version} of the worker protocol" in refusal.reason
            assert host.controllers == []

    run(test())


@pytest.mark.parametrize("said", [b"", b"INFa", preface(), GREETING[:-3]])
def test_who_never_gets_to_its_hello_is_let_go(
    run: Run, listen: Place, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "HELLO_WITHIN_S", 0.2)

    async def test() -> None:
        async with Host(listen) as host:
            await read_to_the_end(*await host.raw(said))
            assert host.controllers == []

    run(test())


def test_a_controller_that_vanished_without_a_word_is_let_go(
    run: Run, listen: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "ABSENT_AFTER_S", 0.3)
    monkeypatch.setattr(listeners, "HELLO_WITHIN_S", 0.3)

    async def test() -> None:
        async with Host(listen) as host:
            reader, writer = await host.raw(GREETING)
            await read_to_the_end(reader, writer)
            ((_, heard, _),) = host.controllers
            assert heard.reason == "nothing was heard for 0.3 s"

    run(test())


def test_an_idle_end_gives_signs_of_life(run: Run, listen: Place) -> None:
    async def test() -> None:
        said = bytearray()
        enough = asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said.extend(await reader.readexactly(len(preface()) + 2 * len(ALIVE)))
            enough.set()
            writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        end = Endpoint(Heard(), silence_s=WAIT_S, beat_s=0.05)
        await dial(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", lambda: end)
        end.greet()
        async with asyncio.timeout(WAIT_S):
            await enough.wait()
        assert bytes(said) == preface() + 2 * ALIVE
        end.cut("done")
        await end.gone()
        server.close()
        await server.wait_closed()

    run(test())


def test_a_peer_that_says_nothing_is_taken_for_lost_and_one_that_was_only_not_listened_to_is_not(run: Run) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await connected(one, two)
        await one.until(lambda: one.version == VERSION)
        end.serve(one, silence_s=0.2)
        other.send(b"in time")
        await other.flushed()
        end._heard_at -= 1.0
        end._listen_hard(False)  # as when the loop stood still for so long that this comes before what is to be read
        await one.until(lambda: bool(one.frames))
        assert one.reason is None
        assert await one.over() == "nothing was heard for 0.2 s"
        assert "the peer ended the connection" in await two.over()
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_a_peer_that_does_not_read_is_cut_off_at_a_bound_and_costs_no_more(
    run: Run, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "UNSENT_LIMIT_BYTES", 8 * 2**20)

    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await join(one, two)
        await two.until(lambda: two.version == VERSION)
        other.pause(True)
        sent = most = 0
        while one.reason is None:
            end.send(b"x", [bytes(2**20)])
            sent += 1
            most = max(most, end.unsent_bytes)
            await asyncio.sleep(0)
            assert sent < 200
        assert "bytes were left unread" in one.reason
        assert one.congestion == [True]
        assert most <= 10 * 2**20
        assert end.unsent_bytes <= most
        other.pause(False)
        await two.over()
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_a_peer_that_reads_late_gets_everything_and_its_congestion_is_told_and_taken_back(run: Run, join: Join) -> None:
    async def test() -> None:
        one, two = Heard(), Heard()
        end, other = await join(one, two)
        await two.until(lambda: two.version == VERSION)
        other.pause(True)
        for number in range(8):
            end.send(b"%d" % number, [bytes(2**20)])
        await one.until(lambda: one.congestion == [True])
        assert end.is_congested
        other.pause(False)
        await end.flushed()
        await two.until(lambda: len(two.frames) == 8)
        assert [head for head, _ in two.frames] == [b"%d" % number for number in range(8)]
        assert one.congestion[-1] is False
        end.cut("done")
        await two.over()
        await asyncio.gather(end.gone(), other.gone())

    run(test())


def test_what_a_handler_raises_ends_its_own_connection(run: Run, reach: Place) -> None:
    async def test() -> None:
        async with Host(reach) as host:
            end, heard = await attached(host)

            def breaks(head: bytes, payload: memoryview) -> None:
                raise RuntimeError("a fault of ours")

            host.controllers[0][1].received = breaks  # type: ignore[method-assign]
            end.send(b"x")
            await heard.over()
            assert host.controllers[0][1].reason == "RuntimeError: a fault of ours"
            _, again = await attached(host)
            assert again.reason is None

    run(test())


def test_a_listener_closes_although_a_controller_does_not_read(run: Run, listen: Place) -> None:
    async def test() -> None:
        async with Host(listen) as host:
            _, writer = await host.raw(GREETING)
            while not host.controllers:  # noqa: ASYNC110  (a plain list of the test's own)
                await asyncio.sleep(0.01)
            ((_, heard, back),) = host.controllers
            async with asyncio.timeout(WAIT_S):
                while not back.is_congested:  # over TLS what leaves in one turn counts only once the socket is full
                    back.send(b"x", [bytes(2**20)])
                    await asyncio.sleep(0.01)
        assert heard.reason == "the worker stopped"
        writer.close()

    run(test())
