"""A controller's link to what is no worker it can use: it says why, uses nothing of it, and goes on trying."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from link_values import Told, linked, reason_in

from infaas.rpc.codec import encode
from infaas.rpc.hop.frames import VERSION, pack, preface
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_worker
from infaas.testing.fake_worker import FakeWorker


async def reasons_of(address: str, told: Told, *, token: str = "", lost_after_s: float = 5.0) -> str:
    """Why a link to this address did not come to be, or ended, the first time."""
    async with linked(told, address, token=token, lost_after_s=lost_after_s) as (_, lines):
        return await reason_in(lines)


async def saying(path: Path, said: bytes, *, then_ends: bool = False) -> asyncio.Server:
    """A listener that says this to whoever comes, whatever that one says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if then_ends:
            writer.write_eof()
        await reader.read()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


def a_report(worker: str = "w1") -> bytes:
    report = pb.WorkerReport(worker=encode(a_worker(worker)), sequence=1)
    return framed(pb.WorkerMessage(report=report))


def framed(message: pb.WorkerMessage, *segments: bytes) -> bytes:
    return b"".join(pack(message.SerializeToString(), segments))


def a_done(size: int, *segments: bytes) -> bytes:
    outputs = [pb.Column(name="y", datatype="UINT8", tail=[size])]
    done = pb.BatchDone(id=7, queries=[1], items=[1], outputs=outputs)
    return framed(pb.WorkerMessage(done=done), *segments)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (preface(VERSION + 1), f"version {VERSION + 1} of the worker protocol is newer than version {VERSION}"),
        (preface(0), f"version 0 of the worker protocol is older than version {VERSION}"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the peer does not speak this protocol: it opened with b'HTTP/1.1"),
        (preface() + b"\xff" * 8, "a frame of 8589934590 bytes is announced"),
        (preface() + b"".join(pack(b"\xff\xff\xff")), "a message cannot be read"),
        (preface() + a_report("w2"), "is worker 'w2', not 'w1'"),
        (preface() + framed(pb.WorkerMessage(report=pb.WorkerReport(worker=b"{"))), "report cannot be read"),
    ],
)
async def test_what_is_no_worker_is_not_used_and_the_reason_is_said(tmp_path: Path, said: bytes, reason: str) -> None:
    server, told = await saying(tmp_path / "w", said), Told()
    assert reason in await reasons_of(f"unix:{tmp_path}/w", told)
    assert told.said == []
    server.close()


@pytest.mark.parametrize(
    ("said", "reason", "heard"),
    [
        (a_done(3, b"abc"), "the peer ended the connection", ["done 7 [b'abc']"]),
        (a_done(3, b"ab"), "1 tensors of 3 bytes in all come with 2 bytes", []),
        (a_done(3, b"abc")[:-1], "in the middle of a message", []),
    ],
)
async def test_a_worker_that_ends_or_breaks_off_is_lost_once_and_nothing_half_is_told(
    tmp_path: Path, said: bytes, reason: str, heard: list[str]
) -> None:
    server, told = await saying(tmp_path / "w", preface() + a_report() + said, then_ends=True), Told()
    assert reason in await reasons_of(f"unix:{tmp_path}/w", told)
    first = told.said[: told.said.index("lost w1") + 1]  # it may have been dialled again by now
    assert first == ["reported w1", "connected w1", "loads 0", *heard, "stream lost w1", "lost w1"]
    server.close()


async def test_a_worker_that_takes_the_connection_and_says_nothing_is_given_up_after_a_while(tmp_path: Path) -> None:
    server, told = await saying(tmp_path / "w", b""), Told()
    assert await reasons_of(f"unix:{tmp_path}/w", told, lost_after_s=0.3) == "nothing was heard for 0.3 s"
    server.close()


async def test_a_worker_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    assert "cannot be reached" in await reasons_of(f"unix:{tmp_path}/nobody", Told())
    assert "is neither unix:/path nor host:port" in await reasons_of("nowhere", Told())


async def test_a_worker_that_speaks_grpc_alone_is_told_from_a_broken_one(tmp_path: Path) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{tmp_path}/old")
    await server.start()
    assert "it speaks gRPC alone" in await reasons_of(f"unix:{tmp_path}/old", Told())
    await server.stop(None)


async def test_a_wrong_token_is_refused_with_the_reason_and_the_right_one_is_not() -> None:
    async with FakeWorker("w1", token="right") as worker:
        told = Told()
        reason = await reasons_of(worker.address, told, token="wrong")
        assert reason == "the worker refused (unauthenticated): no or wrong token"
        assert told.said == []
