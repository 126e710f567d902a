"""The hop over TCP with certificates on both sides: who is let in, and what everybody else is told, on both event
loops."""

from __future__ import annotations

import asyncio
import functools
import inspect
import ssl
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import uvloop
from link_values import Lines, Told, linked, reason_in
from structlog.testing import capture_logs

from infaas.errors import SettingsError
from infaas.rpc.channel import open_channel
from infaas.rpc.hop import secured
from infaas.rpc.tls import Tls, TlsFiles
from infaas.rpc.v1 import worker_pb2, worker_pb2_grpc
from infaas.testing.certificates import Authority
from infaas.testing.fake_worker import FakeWorker

HOST = "127.0.0.1"
WITHIN_S = 20.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def on_one(*fixtures: Any, loop: str, **more: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(*fixtures, **more))

    own = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    on_one.__signature__ = own.replace(parameters=[*own.parameters.values(), loop])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", LOOPS)(on_one)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Somebody else's."""
    return Authority(tmp_path / "another")


async def until_logged(lines: Lines, event: str) -> str:
    """Its reason, if it says one."""
    async with asyncio.timeout(WITHIN_S):
        while not (found := [line for line in lines if line["event"] == event]):  # noqa: ASYNC110  (a plain list)
            await asyncio.sleep(0.01)
    return str(found[0].get("reason"))


async def trouble(worker: FakeWorker, tls: Tls | None) -> tuple[str, str]:
    """Why a controller has no link, and why the worker says that it let nobody in."""
    told = Told()
    async with linked(told, worker.address, tls=tls) as (link, lines):
        reason = await reason_in(lines)
        assert link.trouble == reason
        assert not told.said
        event = "no TLS connection came of it" if tls is not None else "a controller was refused"
        return reason, await until_logged(lines, event)


@on_both_loops
async def test_certificates_of_one_authority_are_a_link(authority: Authority) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        told = Told()
        async with linked(told, worker.address, tls=Tls(authority.issue("a-controller"))):
            await told.until("connected w1")


@on_both_loops
async def test_a_controllers_certificate_of_somebody_else_is_not_accepted(
    authority: Authority, stranger: Authority
) -> None:
    wrong = stranger.issue("a-controller")
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        reason, said = await trouble(worker, Tls(TlsFiles(wrong.cert, wrong.key, authority.file)))
    assert "it may not accept tls.cert_file, and its log says why" in reason
    assert said.startswith("its certificate is not accepted: ")


@on_both_loops
async def test_a_controllers_expired_certificate_is_not_accepted(authority: Authority) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        reason, said = await trouble(worker, Tls(authority.issue("a-controller", is_expired=True)))
    assert "it may not accept tls.cert_file" in reason
    assert said == "its certificate is not accepted: certificate has expired"


@on_both_loops
async def test_a_unix_socket_that_ends_at_once_says_nothing_of_certificates(
    authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "worker.sock"
    server = await asyncio.get_running_loop().create_unix_server(HangsUp, str(path))
    async with linked(Told(), f"unix:{path}", tls=Tls(authority.issue("a-controller"))) as (_, lines):
        assert "tls.cert_file" not in await reason_in(lines)
    server.close()
    await server.wait_closed()


class HangsUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@on_both_loops
async def test_a_listener_that_is_closed_before_it_took_anybody_leaves_no_socket(authority: Authority) -> None:
    (listening,) = await secured.listening_sockets(HOST, 0)
    server = secured.TlsServer([listening], HangsUp, HangsUp, Tls(authority.issue(HOST)))
    server.close()
    await server.wait_closed()
    assert listening.fileno() == -1


async def test_a_listener_that_can_take_nobody_any_more_says_so(authority: Authority) -> None:
    (listening,) = await secured.listening_sockets(HOST, 0)
    listening.setblocking(True)
    asyncio.get_running_loop().set_debug(True)  # it refuses such a socket then
    with capture_logs() as lines:
        server = secured.TlsServer([listening], HangsUp, HangsUp, Tls(authority.issue(HOST)))
        await until_logged(lines, "no connections are taken any more")
    server.close()
    await server.wait_closed()
    assert listening.fileno() == -1


@pytest.mark.parametrize(
    ("names", "is_expired", "expected"),
    [
        ((HOST,), True, "its certificate is not accepted: certificate has expired"),
        (("another.example",), False, "IP address mismatch"),
    ],
)
@on_both_loops
async def test_a_workers_unfit_certificate_is_not_accepted(
    authority: Authority, names: Sequence[str], is_expired: bool, expected: str
) -> None:
    told = Told()
    async with (
        FakeWorker("w1", tls=Tls(authority.issue(*names, is_expired=is_expired))) as worker,
        linked(told, worker.address, tls=Tls(authority.issue("a-controller"))) as (_, lines),
    ):
        reason = await reason_in(lines)
    assert "cannot be reached: no TLS connection came of it" in reason
    assert expected in reason


@on_both_loops
async def test_one_name_may_stand_for_all_workers(authority: Authority) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue("infaas-worker"))) as worker:
        told = Told()
        async with linked(told, worker.address, tls=Tls(authority.issue("a-controller"), "infaas-worker")):
            await told.until("connected w1")
        async with linked(told, worker.address, tls=Tls(authority.issue("a-controller"), "another")) as (_, lines):
            assert "Hostname mismatch" in await reason_in(lines)


@on_both_loops
async def test_a_controller_without_tls_is_told_in_plain_words(authority: Authority) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        reason, said = await trouble(worker, None)
    assert reason == f"the worker refused (unauthenticated): {said}"
    assert said.startswith("this worker takes connections with TLS only: set tls.cert_file")


@on_both_loops
async def test_a_worker_without_tls_says_so_to_a_controller_that_has_it(authority: Authority) -> None:
    told = Told()
    async with (
        FakeWorker("w1") as worker,
        linked(told, worker.address, tls=Tls(authority.issue("a-controller"))) as (_, lines),
    ):
        assert "its own tls settings may be missing" in await reason_in(lines)
        await until_logged(lines, "a peer came with TLS, for which the tls settings are missing here")


@on_both_loops
async def test_who_shows_no_certificate_or_no_tls_gets_nothing(authority: Authority) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        host, _, port = worker.address.rpartition(":")
        bare = ssl.create_default_context(cafile=str(authority.file))
        reader, writer = await asyncio.open_connection(host, int(port), ssl=bare)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()


@on_both_loops
async def test_who_connects_and_says_nothing_is_let_go(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secured, "HANDSHAKE_WITHIN_S", 0.2)
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        host, _, port = worker.address.rpartition(":")
        for said in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            async with asyncio.timeout(WITHIN_S):
                assert await reader.read() == b""
            writer.close()


@on_both_loops
async def test_nothing_is_kept_of_those_who_were_not_let_in(authority: Authority, stranger: Authority) -> None:
    wrong = stranger.issue("a-controller")
    unfit = Tls(TlsFiles(wrong.cert, wrong.key, authority.file))
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST))) as worker:
        host, _, port = worker.address.rpartition(":")
        with capture_logs() as lines:
            for tls in (unfit, None):
                for _ in range(20):
                    context = None if tls is None else tls.client()
                    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
                    writer.write(b"whatever it is, it is not the protocol")
                    writer.transport.abort()
        listener = worker._listener
        assert listener is not None
        async with asyncio.timeout(WITHIN_S):
            while listener._endpoints or listener._server._entering:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len([line for line in lines if line["log_level"] == "warning"]) <= 3, "not a line for each"
        told = Told()
        async with linked(told, worker.address, tls=Tls(authority.issue("a-controller"))):
            await told.until("connected w1")


@on_both_loops
async def test_grpc_calls_to_the_same_address_are_secured_as_well(authority: Authority, stranger: Authority) -> None:
    wrong = stranger.issue("a-controller")
    async with FakeWorker("w1", tls=Tls(authority.issue("infaas-worker"))) as worker:

        async def drain(tls: Tls | None) -> None:
            async with open_channel(worker.address, tls) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                await stub.Drain(worker_pb2.DrainRequest(reason="a test"), timeout=5.0)

        await drain(Tls(authority.issue("a-controller"), "infaas-worker"))
        for refused in (
            None,
            Tls(authority.issue("a-controller"), "another"),
            Tls(TlsFiles(wrong.cert, wrong.key, authority.file), "infaas-worker"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await drain(refused)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


@on_both_loops
async def test_a_unix_socket_stays_as_it_is(authority: Authority, tmp_path: Path) -> None:
    async with FakeWorker("w1", tls=Tls(authority.issue(HOST)), listen=f"unix:{tmp_path}/w.sock") as worker:
        for tls in (None, Tls(authority.issue("a-controller"))):
            told = Told()
            async with linked(told, worker.address, tls=tls):
                await told.until("connected w1")


@on_both_loops
async def test_changed_certificates_hold_for_the_next_connection(authority: Authority, stranger: Authority) -> None:
    """A worker's authority is replaced while it runs: who was connected stays, who comes needs the new one."""
    files = authority.issue(HOST)
    old, later = Tls(authority.issue("a-controller")), Tls(stranger.issue("a-controller"))
    told = Told()
    async with FakeWorker("w1", tls=Tls(files)) as worker, linked(told, worker.address, tls=old) as (link, _):
        await told.until("connected w1")
        new = stranger.issue(HOST)
        for ours, theirs in ((files.cert, new.cert), (files.key, new.key), (files.ca, stranger.file)):
            ours.write_bytes(theirs.read_bytes())
        told_later = Told()
        async with linked(told_later, worker.address, tls=later):
            await told_later.until("connected w1")
        assert link.is_connected


def test_files_that_do_not_belong_together_are_refused_and_later_change_nothing(authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    with pytest.raises(SettingsError, match="cannot be used"):
        Tls(TlsFiles(one.cert, two.key, one.ca))
    with pytest.raises(SettingsError, match="No such file"):
        Tls(TlsFiles(one.cert, one.key.with_name("nothing"), one.ca))
    tls = Tls(one)
    before = tls.server()
    one.key.write_bytes(two.key.read_bytes())
    assert tls.server() is before
    one.cert.write_bytes(two.cert.read_bytes())
    assert tls.server() is not before
